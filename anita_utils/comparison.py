"""Differences between the models of a run, or of two runs, paired item by item, from what the cache holds of them.

>>> run = Run.load("latest")
>>> before, after = (stored(run)[stage] for stage in ("base", "dpo"))
>>> compared(before, after)[0]
{'metric': 'benchmark/arc', 'language': 'en', 'split': None, 'value': 0.02, 'ci_low': -0.06, 'ci_high': 0.1, …}
"""

from __future__ import annotations

from typing import Any, NamedTuple

from anita_utils.cache import cached
from anita_utils.evaluation import PARTS, evaluation_entry
from anita_utils.hub import model_key
from anita_utils.intervals import Measurement, differences
from anita_utils.record import Run
from anita_utils.statistics import LEVEL, paired_tests

NAME = ("metric", "language", "split")
# Where less is better; how long answers are and on which side a model errs is neither better nor worse.
LOWER = ("perplexity", "bits_per_byte", "refusal/harmless", "benchmark_calibration_error")
NEUTRAL = ("answer_words", "overconfidence")


class Stored(NamedTuple):
    """What was measured of a model, item by item, and the keys of the cache's entries that hold it."""

    keys: list[str]
    measured: list[Measurement]


def stored(run: Run) -> dict[str, Stored]:
    """What the cache holds of the base and of each stage of the run. Nothing is measured, resolved or downloaded: the
    base may be on another machine.
    """
    merged = {stage: run.model_dir(stage) / "merged" for stage in run.profile.order}
    models = {"base": run.base_key} | {stage: model_key(path) for stage, path in merged.items() if path.is_dir()}
    found = {}
    for stage, key in models.items():
        entries = [evaluation_entry(key, run.profile, part) for part in reversed(PARTS)]
        kept = {entry.key: value for entry in entries if (value := entry.read()) is not None}
        rows = [row for value in kept.values() for row in value["measured"]]
        if key and rows:
            found[stage] = Stored(list(kept), [Measurement(**row) for row in rows])
    return found


def compared(before: Stored, after: Stored) -> list[dict[str, Any]]:
    """Rows of after less before, for what was measured on the same items: value, 95 % interval, n, p and Holm's p.

    p and p_holm are None where no paired test fits (see `statistics.paired_tests`).
    """
    entry = cached("comparisons/pair", before.keys, after.keys)
    return entry.value(lambda: compare(before.measured, after.measured))


def compare(before: list[Measurement], after: list[Measurement]) -> list[dict[str, Any]]:
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
