"""Two runs side by side, stage by stage, with paired differences: what `anita report A B` writes.

>>> write_comparison(Run.load("monday"), Run.load("tuesday"))
PosixPath('…/runs/tuesday/against-monday.html')
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anita_utils import AnitaError
from anita_utils.course.report import Cell, Sheet, figure, latest, machine_text, name_of, render, what
from anita_utils.evaluation.measuring import Stored, compared, stored
from anita_utils.evaluation.metrics import verdict
from anita_utils.run import Run

MARKS = (
    "The difference is the second run less the first; with an interval it is paired: both answered the same items. "
    "▲ better, ▼ worse, ◆ changed: p < 0.05 after Holm's correction over the measures of a kind. One training each: "
    "whether another seed would show the same, `anita ablate` tells."
)


def write_comparison(first: Run, second: Run) -> Path:
    """Writes against-FIRST.html and .md into the second run's folder; returns the former.

    AnitaError when they are one run, or have no stage in common.
    """
    names = [first.folder.name, second.folder.name]
    if first.folder == second.folder:
        raise AnitaError(f"'{names[0]}' and '{names[1]}' are the same run: name two")
    sheets = [about(first, second), *stage_sheets(first, second)]
    if len(sheets) == 1:
        raise AnitaError(f"runs '{names[0]}' and '{names[1]}' have measured no stage in common: run lesson 05 in both")
    content = {"title": f"{names[1]} against {names[0]}", "sheets": sheets}
    render("against.md.j2", content, second.folder / f"against-{names[0]}.md")
    return render("against.html.j2", content, second.folder / f"against-{names[0]}.html")


def about(*runs: Run) -> Sheet:
    """What each run is: profile, base, seed, commit, machine, libraries."""
    infos = [run.info() for run in runs]
    sheet = Sheet("The two runs", "", ["", *(run.folder.name for run in runs)])
    told = [{"profile": info["profile"]["name"], "base": info["profile"]["model"]["base"], "seed": str(info["seed"]),
             "order": ", ".join(run.profile.order), "suite": run.profile.evaluation.suite,
             "commit": info.get("commit") or "unknown", **machine_text(info)}
            for run, info in zip(runs, infos, strict=True)]  # fmt: skip
    for key in told[0]:
        values = [one[key] for one in told]
        sheet.rows.append([Cell(key), *(Cell(value, "", "changed" if values[0] != value else "") for value in values)])
    return sheet


def stage_sheets(first: Run, second: Run) -> list[Sheet]:
    """A table for each stage that both runs measured: a row a measure, both figures and their difference."""
    known, kept = [latest(run.metrics()) for run in (first, second)], [stored(run) for run in (first, second)]
    sheets = []
    for stage in dict.fromkeys(["base", *first.profile.order]):
        names = [key for key in known[0] if key[0] == stage and key in known[1] and not key[1].startswith("train/")]
        if not names:
            continue
        paired = _paired(*(found.get(stage) for found in kept))
        note = MARKS if paired else f"Not paired: what {stage} answered item by item is not in the cache."
        sheet = Sheet(stage, note, ["", first.folder.name, second.folder.name, "difference"])
        for key in names:
            rows = [table[key] for table in known]
            sheet.rows.append(
                [Cell(what(rows[0])), *map(figure, rows), _difference(rows, paired.get(name_of(rows[0])))]
            )
        sheets.append(sheet)
    return sheets


def _paired(before: Stored | None, after: Stored | None) -> dict[tuple, dict[str, Any]]:
    return {name_of(row): row for row in compared(before, after)} if before and after else {}


def _difference(rows: list[dict[str, Any]], paired: dict[str, Any] | None) -> Cell:
    if paired:
        return figure(paired, signed=True, look=verdict(paired))
    bare = {"ci_low": None, "ci_high": None, "n": None}
    return figure(rows[1] | bare | {"value": rows[1]["value"] - rows[0]["value"]}, signed=True)
