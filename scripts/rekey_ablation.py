"""Gives the committed results of the ablation new keys, where keys changed and what they stand for did not.

    git worktree add ../before COMMIT                            # the last commit with the old keys
    python scripts/rekey_ablation.py ../before --arm paper --arm italian_dpo
    git worktree remove ../before

A result is known by a hash of all it depends on (`made`). When settings get other names, or a key holds more than
before, every hash changes. This first proves that nothing else did: each --arm is trained with the first seed by the
code before and by the code of today, with a cache of its own each, and every merged weight must be equal, bit for bit.
Then each line whose hash was valid before gets today's; any other is left as it is and named. Exit code 1 where a
weight differs, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from anita_utils import checkout
from anita_utils.ablation.results import Kept, kept_file, read_kept, write_kept

# Run in either checkout, that before perhaps with modules of other names. KEYS prints the keys of all cells; WEIGHTS
# trains one arm and prints the hashes of its weights.
IMPORTS = """
import hashlib, json, sys
try:
    from anita_utils.ablation.arms import load_ablation
    from anita_utils.ablation.campaign import dry_plan
    from anita_utils.cli.train import quieten
except ImportError:
    from anita_utils.ablation import dry_plan
    from anita_utils.arms import load_ablation
    from anita_utils.headless import quieten
from anita_utils.profile import load_profile
from anita_utils.training import train_stage

profile, arms = load_profile(sys.argv[1]), load_ablation(sys.argv[1])
"""
KEYS = (
    IMPORTS
    + """
cells = dry_plan(profile, arms, json.loads(sys.argv[2]))
print(json.dumps([[cell.arm, cell.seed, cell.made] for cell in cells]))
"""
)
WEIGHTS = (
    IMPORTS
    + """
from safetensors.torch import load_file

quieten()
[cell] = dry_plan(profile, arms, [int(sys.argv[3])], [sys.argv[2]])
hashes = {}
for stage in cell.stages:
    weights = load_file(f"{train_stage(stage).merged}/model.safetensors")
    hashes[stage.name] = {name: hashlib.sha256(w.numpy().tobytes()).hexdigest() for name, w in weights.items()}
print(json.dumps(hashes))
"""
)


def run_in(root: Path, program: str, *arguments: str) -> object:
    """What the program prints last, as JSON, with the kit of the checkout at `root` and a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = os.environ | {"PYTHONPATH": str(root), "ANITA_RUNS": folder}
        settings.pop("ANITA_CACHE", None)
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, cwd=root, env=settings, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def keys(root: Path, profile: str, seeds: list[int]) -> dict[tuple[str, int], str]:
    return {(arm, seed): made for arm, seed, made in run_in(root, KEYS, profile, json.dumps(seeds))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path, help="a checkout with the old keys")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--arm", action="append", required=True, help="an arm to train twice; can be repeated")
    options = parser.parse_args()
    before, today, file = options.before.resolve(), checkout(), kept_file(options.profile)
    results = read_kept(file)

    for arm in options.arm:
        arguments = [options.profile, arm, str(results.seeds[0])]
        old, new = (run_in(root, WEIGHTS, *arguments) for root in (before, today))
        if old != new:
            print(f"{arm}, seed {results.seeds[0]}: the weights differ: no key is changed", file=sys.stderr)
            return 1
        count = sum(map(len, new.values()))
        print(f"{arm}, seed {results.seeds[0]}: {count} weights of {len(new)} stages are equal, bit for bit")

    old, new = (keys(root, options.profile, results.seeds) for root in (before, today))
    lines, stale = {}, []
    for key, line in results.lines.items():
        valid = line["made"] == old.get(key) and key in new
        lines[key] = line | {"made": new[key]} if valid else line
        stale += [] if valid else [key]
    write_kept(file, Kept(lines, results.weights))
    print(f"{len(lines) - len(stale)} of {len(lines)} results have today's keys")
    for arm, seed in stale:
        print(f"{arm}, seed {seed}: its key was not valid before, and stays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
