"""Training alone and beside another busy program, by what its threads do while they wait for each other.

    python benchmarks/busy_neighbour.py             # some three minutes; writes results/busy_neighbour.json and .md

Each arm is a process of its own, since OpenMP reads its settings when torch is imported; the arms take turns, so
that a slow minute of the machine falls on all of them. What counts is the share of the speed alone that is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from anita_utils import IDLE_THREADS
from anita_utils.paths import write_text
from anita_utils.run import where_and_when

RESULTS = Path(__file__).parent / "results"
# What the threads of an arm do while they wait: settings of OpenMP
ARMS = {
    "spin for long (the default)": {},
    "spin shortly, then sleep (the course)": IDLE_THREADS,
    "sleep at once": {"GOMP_SPINCOUNT": "0"},
}
TRAIN = """
import sys, time
from anita_utils import training
from anita_utils.cli.train import quieten
from anita_utils.profile import load_profile
from anita_utils.run import Run
from anita_utils.stages import find_stage, token_count

quieten()
profile = load_profile("cpu")
stage = profile.stages["sft"]
stage.examples = int(sys.argv[1])
trainer = training.build_trainer(find_stage(Run.open("busy", profile, 42, newest=False), "sft"))
start = time.perf_counter()
trainer.train()
print(token_count(trainer.train_dataset) / (time.perf_counter() - start))
"""


def tokens_per_second(waiting: dict[str, str], examples: int, busy: bool) -> float:
    """One short training in a process of its own, beside a loop that does nothing if `busy`."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {name: value for name, value in os.environ.items() if name not in IDLE_THREADS}
        settings |= waiting | {"ANITA_RUNS": folder}
        loop = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            command = [sys.executable, "-c", TRAIN, str(examples)]
            out = subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout
        finally:
            if loop:
                loop.kill()
        return float(out.splitlines()[-1])


def measure(rounds: int, examples: int) -> dict:
    found: dict = {arm: {"alone": [], "beside": []} for arm in ARMS}
    for _ in range(rounds):
        for arm, waiting in ARMS.items():
            for busy, speeds in zip((False, True), found[arm].values(), strict=True):
                speeds.append(tokens_per_second(waiting, examples // (1 + busy), busy))
    for row in found.values():
        row["kept"] = median(row["beside"]) / median(row["alone"])
    return found


def markdown(result: dict) -> str:
    lines = ["| threads that wait | tokens/s alone | beside a busy program | kept |", "|---|---:|---:|---:|"]
    for name, row in result["arms"].items():
        lines.append(f"| {name} | {median(row['alone']):,.0f} | {median(row['beside']):,.0f} | {row['kept']:.0%} |")
    machine = result["machine"]
    return "\n".join(lines) + f"\n\nSFT of profile cpu, {machine['cpu']}, {machine['cores']} cores, {result['when']}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=480)
    options = parser.parse_args()
    result = {"arms": measure(options.rounds, options.examples)} | where_and_when()
    write_text(RESULTS / "busy_neighbour.json", json.dumps(result, indent=1) + "\n")
    write_text(RESULTS / "busy_neighbour.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
