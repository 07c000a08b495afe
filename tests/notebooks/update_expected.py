"""Writes expected.csv from a run that was looked at: python tests/notebooks/update_expected.py runs/latest"""

import json
import sys
from pathlib import Path

import pandas

COLUMNS = ["notebook", "arm", "stage", "metric", "language", "split", "value"]
FAMILIES = (
    "benchmark/",
    "chat/",
    "perplexity",
    "language_fidelity",
    "refusal/",
    "preference_accuracy",
    "minimal_pairs",
)

if __name__ == "__main__":
    lines = (Path(sys.argv[1]) / "metrics.jsonl").read_text("utf-8").splitlines()
    table = pandas.DataFrame(json.loads(line) for line in lines)
    table = table[table["metric"].str.startswith(FAMILIES)].fillna({"split": ""})
    table[COLUMNS].round(4).to_csv(Path(__file__).with_name("expected.csv"), index=False)
    print(f"{len(table)} figures")
