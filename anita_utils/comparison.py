"""Differences between the models of a run, or of two runs, paired item by item, from what the cache holds of them.

>>> run = Run.load("latest")
>>> before, after = (stored(run)[stage] for stage in ("base", "dpo"))
>>> compared(before, after)[0]
{'metric': 'benchmark/arc', 'language': 'en', 'split': None, 'value': 0.02, 'ci_low': -0.06, 'ci_high': 0.1, …}
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from anita_utils import AnitaError
from anita_utils.evaluation import PARTS, evaluation_file
from anita_utils.hub import resolve_model
from anita_utils.intervals import Measurement, differences
from anita_utils.record import Run, remembered
from anita_utils.statistics import LEVEL, paired_tests

VERSION = 1  # raise it when differences or tests change, so that no cached one is taken for a new one
NAME = ("metric", "language", "split")
# Where less is better; how long answers are and on which side a model errs is neither better nor worse.
LOWER = ("perplexity", "bits_per_byte", "refusal/harmless", "benchmark_calibration_error")
NEUTRAL = ("answer_words", "overconfidence")


class Stored(NamedTuple):
    """What was measured of a model, item by item, and the names of the files that hold it, which tell its contents."""

    files: list[str]
    measured: list[Measurement]


def stored(run: Run) -> dict[str, Stored]:
    """What the cache holds of the base and of each stage of the run; nothing is measured."""
    found = {}
    for stage in ("base", *run.profile.order):
        path = run.model_dir(stage) / "merged"
        if stage == "base":
            try:
                path = resolve_model(run.profile.model.base, run.profile.model.revision)
            except AnitaError:  # not on this machine
                continue
        elif not path.is_dir():
            continue
        files = [evaluation_file(path, run.profile, part) for part in reversed(PARTS)]
        files = [file for file in files if file.is_file()]
        rows = [row for file in files for row in json.loads(file.read_text("utf-8"))["measured"]]
        if rows:
            found[stage] = Stored([file.name for file in files], [Measurement(**row) for row in rows])
    return found


def compared(before: Stored, after: Stored) -> list[dict[str, Any]]:
    """Rows of after less before, for what was measured on the same items: value, 95 % interval, n, p and Holm's p.

    p and p_holm are None where no paired test fits (see `statistics.paired_tests`).
    """
    return remembered("comparisons", [VERSION, before.files, after.files], lambda: _compared(*before[1:], *after[1:]))


def _compared(before: list[Measurement], after: list[Measurement]) -> list[dict[str, Any]]:
    earlier = {m.name: m for m in before}
    same = [m for m in after if m.name in earlier and earlier[m.name].clusters == m.clusters]
    tests = {tuple(test[key] for key in NAME): test for test in paired_tests(before, same)}
    rows = []
    for row in differences(before, same):
        test = tests.get(tuple(row[key] for key in NAME), {})
        rows.append({**row, "p": test.get("p"), "p_holm": test.get("p_holm")})
    return rows


def verdict(row: dict[str, Any]) -> str:
    """Whether a difference holds after Holm's correction: "better", "worse", "changed"; "" where it does not."""
    if row.get("p_holm") is None or row["p_holm"] >= LEVEL:
        return ""
    if row["metric"] in NEUTRAL:
        return "changed"
    return "better" if (row["value"] < 0) == (row["metric"] in LOWER) else "worse"
