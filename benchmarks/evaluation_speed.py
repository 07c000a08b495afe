"""`anita eval` beside the `lm_eval` command with its defaults on the same tasks, back to back, and the suite `quick`.

python benchmarks/evaluation_speed.py                            # three rounds, some ten minutes on two idle cores
python benchmarks/evaluation_speed.py --rounds 1 --limit 2       # whether it runs; its figures mean nothing

Each command is a process of its own, with an empty cache: start-up counts. `anita eval` measures more than `lm_eval`
(free answers, perplexity, language, refusal): its benchmarks alone are held against `lm_eval`, and the whole is told
beside. Ratios are taken within each round, so that a busy minute slows both sides. Writes evaluation_speed.json and
.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from anita_utils import AnitaError, shown
from anita_utils.paths import data_dir, write_text
from anita_utils.run import where_and_when

RESULTS = Path(__file__).parent / "results"
GOALS = {"piccola_seconds": 60, "ratio": 5, "quick_seconds": 20}  # at most, at least, at most


def commands(model: Path, limit: int | None, out: Path) -> dict[str, list[str]]:
    """The commands that are timed, in their order within a round."""
    few = ["--limit", str(limit)] if limit else []
    anita = [sys.executable, "-m", "anita_utils.cli.main", "eval", str(model), "--profile", "cpu", "--json"]
    harness = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model}"]
    harness += ["--include_path", str(data_dir() / "benchmarks"), "--tasks", "piccola_en,piccola_it"]
    harness += ["--apply_chat_template", "--output_path", str(out)]  # else the tasks would not be the same
    return {"piccola": [*anita, "--suite", "piccola", *few], "lm_eval": [*harness, *few],
            "benchmarks": [*anita, "--suite", "piccola", "--only", "benchmarks", *few],
            "quick": [*anita, "--suite", "quick", *few]}  # fmt: skip


def timed(command: list[str], folder: Path) -> float:
    """How long the command takes, in seconds. AnitaError where it fails."""
    own = {"ANITA_RUNS": str(folder / "runs"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise AnitaError(f"`{' '.join(command[1:4])} …` failed: {last}")
    return seconds


def measure(rounds: int, limit: int | None, model: Path) -> dict:
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, command in commands(model, limit, Path(folder) / "lm_eval").items():
                # A cache of its own: what one command measured must not spare the next one the work
                seconds.setdefault(name, []).append(round(timed(command, Path(folder) / name), 2))
    ratios = {
        ours: [one / other for one, other in zip(seconds["lm_eval"], seconds[ours], strict=True)]
        for ours in ("benchmarks", "piccola")
    }
    return {
        "seconds": seconds,
        "ratios": {ours: [round(ratio, 2) for ratio in each] for ours, each in ratios.items()},
        "median": {"piccola_seconds": median(seconds["piccola"]), "ratio": round(median(ratios["benchmarks"]), 2),
                   "whole_ratio": round(median(ratios["piccola"]), 2), "quick_seconds": median(seconds["quick"])},
        "limit": limit,
        "model": shown(model),
        **where_and_when(),
    }  # fmt: skip


def as_markdown(result: dict) -> str:
    middle, cores = result["median"], result["machine"]["cores"]
    limited = f", of {result['limit']} items a task: a trial, no result" if result["limit"] else ""
    rows = [
        ("`anita eval --suite piccola`", f"{middle['piccola_seconds']:.1f} s", f"under {GOALS['piccola_seconds']} s"),
        ("`lm_eval` with its defaults, same tasks", f"{median(result['seconds']['lm_eval']):.1f} s", ""),
        ("`anita eval --suite piccola --only benchmarks`", f"{median(result['seconds']['benchmarks']):.1f} s", ""),
        ("how many times faster than `lm_eval`", f"{middle['ratio']:.1f}", f"at least {GOALS['ratio']}"),
        ("how many times faster with all that `lm_eval` does not measure", f"{middle['whole_ratio']:.1f}", ""),
        ("`anita eval --suite quick`", f"{middle['quick_seconds']:.1f} s", f"at most {GOALS['quick_seconds']} s"),
    ]
    rounds = "; ".join(f"{name} {', '.join(map(str, found))}" for name, found in result["seconds"].items())
    lines = [f"# Evaluation, on {cores} cores of {result['machine']['cpu']}{limited}", "",
             "| | median of rounds | goal |", "|---|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows), "",
             f"Seconds of each round: {rounds}. Commit {result['commit']}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="items a task, to try whether it runs")
    parser.add_argument("--model", type=Path, default=data_dir() / "tiny-llama-3-instruct")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    try:
        result = measure(options.rounds, options.limit, options.model)
    except AnitaError as error:
        sys.exit(f"evaluation_speed: {error}")
    write_text(options.out / "evaluation_speed.json", json.dumps(result, indent=2) + "\n")
    write_text(options.out / "evaluation_speed.md", as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
