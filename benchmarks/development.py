"""Tries settings of the recipe on development items, with seeds that no result of the course uses.

    python benchmarks/development.py --seeds 1 2 3 --set stages.dpo.learning_rate=2e-4 --name faster

Trains the profile's stages with each seed, measures base and stages on the development items, and prints the figures
that the small world is tuned by: a column a model, a row a measure. Each model's figures are added to
runs/development.jsonl, with the settings and the name of the trial.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path

from anita_utils.evaluation.measuring import evaluate
from anita_utils.profile import load_profile, override
from anita_utils.run import Run, where_and_when
from anita_utils.stages import find_stage
from anita_utils.stats import rows
from anita_utils.training import train_stage

SHOWN = (
    "benchmark/mean it", "benchmark/mean en",
    *(f"benchmark/{family} {code}" for code in ("en", "it")
      for family in ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k")),
    "chat/accuracy en seen", "chat/accuracy_in_language en seen", "chat/accuracy en new_kinds",
    "chat/accuracy it never_in_italian", "chat/accuracy_in_language it never_in_italian",
    "chat/accuracy_in_language it adapted", "language_fidelity it", "language_fidelity en",
    "refusal/harmful all held_out_wordings", "refusal/harmful all held_out_topics",
    "refusal/harmless all held_out_wordings", "refusal/harmless all held_out_topics",
    "preference_accuracy_logprob all", "perplexity it", "perplexity en", "minimal_pairs it", "minimal_pairs en",
)  # fmt: skip


def figures(path: str | Path, profile, stage: str) -> dict[str, float]:
    """What was measured of a model, by "metric language split"."""
    found = rows(evaluate(path, profile), stage)
    return {
        " ".join(str(row[key]) for key in ("metric", "language", "split") if row[key]): row["value"] for row in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", help="a folder with another base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--name", default="as it is")
    parser.add_argument("--set", nargs="*", default=[], help="dotted keys of the profile: key=value")
    parser.add_argument("--measure", nargs="*", help="stages to measure (base too); all by default")
    given = parser.parse_args()
    changes = {key: json.loads(value) for key, _, value in (one.partition("=") for one in given.set)}
    changes |= {"evaluation.items": "development", "evaluation.limit": None}
    if given.base:
        changes["model.base"] = str(Path(given.base).resolve())
    profile = override(load_profile("cpu"), changes, "--set")
    table: dict[str, dict[str, float]] = {}
    for seed in given.seeds:
        run, began = Run(Path("runs") / "development" / str(seed), profile, seed), time.monotonic()
        paths = {"base": profile.model.base}
        for name in profile.order:
            stage = find_stage(run, name)
            train_stage(stage)
            paths[name] = stage.merged
            gc.collect()
        for name, path in paths.items():
            if given.measure and name not in given.measure:
                continue
            column = f"{name} {seed}" if name != "base" else name
            if column not in table:
                table[column] = figures(path, profile, name)
                line = {"trial": given.name, "seed": seed, "stage": name, "set": changes, "figures": table[column]}
                with Path("runs/development.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line | where_and_when(), ensure_ascii=False) + "\n")
        print(f"seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    wide = max(map(len, SHOWN))
    print(given.name.ljust(wide), *(column.rjust(10) for column in table))
    for measure in SHOWN:
        print(measure.ljust(wide), *(f"{column.get(measure, float('nan')):10.3f}" for column in table.values()))


if __name__ == "__main__":
    main()
