"""An ablation's seeds in processes of their own, one thread each.

>>> in_processes(["--profile", "cpu"], [42, 43], jobs=2, name="ablation-cpu")

A small model leaves most of a processor idle while its threads wait for each other: two trainings with a thread each
are faster than one after the other with two. Seeds share no stage, so nothing is trained twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from anita_utils import AnitaError


def in_processes(options: list[str], seeds: list[int], jobs: int, name: str) -> None:
    """Calls `anita ablate` once for each seed, `jobs` at a time. What they make lies in the cache that all share.

    options: what else each call is given. name: how the runs are called, each followed by its seed.

    AnitaError, once the others have ended, where a call failed; it has said why.
    """

    def one(seed: int) -> int:
        own = ["--seed", str(seed), "--seeds", "1", "--run", f"{name}-{seed}"]
        command = [sys.executable, "-m", "anita_utils.cli", "ablate", *options, *own]
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [seed for seed, code in zip(seeds, pool.map(one, seeds), strict=True) if code]
    if failed:
        raise AnitaError(
            f"the ablation failed with seed {', '.join(map(str, failed))}, as said above: what is done is kept; mend "
            "the cause and call it again"
        )
