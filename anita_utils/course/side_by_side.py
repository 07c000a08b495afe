"""How do two runs differ, stage by stage, item by item? What `anita report A B` writes.

>>> write_comparison(Run.load("monday"), Run.load("tuesday"))
PosixPath('…/runs/tuesday/against-monday.html')
"""

from __future__ import annotations

from pathlib import Path

from anita_utils import AnitaError
from anita_utils.course.report import Cell, Sheet, bare_difference, figure, latest, machine_text, name_of, render
from anita_utils.evaluation.measuring import compared, stored
from anita_utils.evaluation.metrics import words
from anita_utils.run import Run

MARKS = (
    "The difference is the second run minus the first; with an interval it is paired: both answered the same items. "
    "▲ better, ▼ worse, ◆ changed: p < 0.05 after Holm's correction over the measures of a kind. One training each: "
    "whether another seed would show the same, `anita ablate` tells."
)


def write_comparison(first: Run, second: Run) -> Path:
    """Writes against-FIRST.html into the second run's folder; returns its path.

    AnitaError when they are one run, or have no stage in common.
    """
    names = [first.folder.name, second.folder.name]
    if first.folder == second.folder:
        raise AnitaError(f"'{names[0]}' and '{names[1]}' are the same run: name two")
    sheets = [about(first, second), *stage_sheets(first, second)]
    if len(sheets) == 1:
        raise AnitaError(f"runs '{names[0]}' and '{names[1]}' have measured no stage in common: run lesson 05 in both")
    content = {"title": f"{names[1]} against {names[0]}", "sheets": sheets}
    return render("against.html.j2", content, second.folder / f"against-{names[0]}.html")


def about(first: Run, second: Run) -> Sheet:
    """What each run is: profile, base, seed, commit, machine, libraries. What differs is marked."""
    described = []
    for run in (first, second):
        info = run.info()
        own = {"profile": info["profile"]["name"], "base": info["profile"]["model"]["base"], "seed": str(info["seed"]),
               "order": ", ".join(run.profile.order), "suite": run.profile.evaluation.suite,
               "commit": info["commit"] or "unknown"}  # fmt: skip
        described.append(own | machine_text(info))
    sheet = Sheet("The two runs", "", ["", first.folder.name, second.folder.name])
    for (key, value), other in zip(described[0].items(), described[1].values(), strict=True):
        sheet.rows.append([Cell(key), Cell(value), Cell(other, look="changed" if other != value else "")])
    return sheet


def stage_sheets(first: Run, second: Run) -> list[Sheet]:
    """A table for each stage that both runs measured: a row a measure, both figures and their difference."""
    old, new = latest(first.metrics()), latest(second.metrics())
    before, after = stored(first), stored(second)
    sheets = []
    for stage in dict.fromkeys(["base", *first.profile.order]):
        keys = [key for key in old if key[0] == stage and key in new and not key[1].startswith("train/")]
        if not keys:
            continue
        both = stage in before and stage in after
        paired = {name_of(row): row for row in compared(before[stage], after[stage])} if both else {}
        note = MARKS if paired else f"Not paired: what {stage} answered item by item is not in the cache."
        sheet = Sheet(stage, note, ["", first.folder.name, second.folder.name, "difference"])
        for key in keys:
            row = paired.get(key[1:])
            difference = figure(row, signed=True, test=row) if row else bare_difference(old[key], new[key])
            sheet.rows.append([Cell(words(*key[1:])), figure(old[key]), figure(new[key]), difference])
        sheets.append(sheet)
    return sheets
