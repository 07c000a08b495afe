"""What does a run's report open with? A picture of what the stages changed, and a few answers side by side.

>>> draw_slopes(known, changes, ["base", "sft", "italian", "dpo"], Path("stages.png"))
'Mean of the English benchmarks: base 59, sft 58, italian 58, dpo 60. …'
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pandas

from anita_utils.evaluation import metrics
from anita_utils.paths import replacing

Known = dict[tuple, dict[str, Any]]  # figures, or tests of changes, by (stage, metric, language, split)

# Two of what the model knows, two of what it says in Italian, two of its conduct; a loss has as much room as a gain
PICTURED = [
    ("benchmark/mean", "en", None),
    ("benchmark/mean", "it", None),
    ("chat/accuracy", "it", "never_in_italian"),
    ("chat/accuracy_in_language", "it", "never_in_italian"),
    ("refusal/harmful", "all", "held_out_wordings"),
    ("refusal/harmless", "all", "held_out_wordings"),
]
MARKS = {"better": ("^", "#009e73"), "worse": ("v", "#d55e00"), "": ("o", "white")}
ANSWERS = 3


def draw_slopes(known: Known, changes: Known, stages: list[str], file: Path) -> str | None:
    """Draws the measures of `PICTURED` that are known, a panel each, into `file`.

    known, changes: figures, and the tests of their change from the base, as the report has them.

    Returns the picture in words, for those who cannot see it; None, and no file, where nothing is known.
    """
    import matplotlib.pyplot as plt

    shown = [name for name in PICTURED if len([stage for stage in stages if (stage, *name) in known]) > 1]
    if not shown:
        return None
    lines = (len(shown) + 1) // 2
    with plt.rc_context({"font.size": 9}):
        # Narrow, so that the letters can still be read on a telephone
        figure, axes = plt.subplots(lines, 2, figsize=(4.4, 1.9 * lines), squeeze=False, layout="constrained")
        for ax in axes.flat[len(shown) :]:
            ax.axis("off")
        for ax, name in zip(axes.flat, shown, strict=False):
            draw_measure(ax, name, known, changes, stages)
        with replacing(file) as temporary:
            figure.savefig(temporary, dpi=200, format="png")
        plt.close(figure)
    return " ".join(in_words(name, known, changes, stages) for name in shown)


def caption(marked: bool) -> str:
    """How the picture is to be read. marked: whether it is known which changes are beyond chance."""
    said = "How to read it: a panel is a measure in per cent, from the base to the last stage, with 95 % intervals."
    marks = "A filled point differs from the base beyond chance: ▲ better, ▼ worse. An open one does not, as far as"
    return f"{said} {marks} the items can tell." if marked else said


def draw_measure(ax, name: tuple, known: Known, changes: Known, stages: list[str]) -> None:
    """One panel: a measure from stage to stage."""
    rows = [(place, stage, known[stage, *name]) for place, stage in enumerate(stages) if (stage, *name) in known]
    places, values = [place for place, _, _ in rows], [100 * row["value"] for _, _, row in rows]
    ax.plot(places, values, color="#7f7f7f", linewidth=1, zorder=1)
    for place, stage, row in rows:
        marker, colour = MARKS.get(change_of(changes, stage, name), MARKS[""])
        edge = "#333333" if colour == "white" else colour
        if pandas.notna(row["ci_low"]):
            ax.plot([place, place], [100 * row["ci_low"], 100 * row["ci_high"]], color=edge, linewidth=1.2, zorder=2)
        ax.plot(place, 100 * row["value"], marker, color=edge, markerfacecolor=colour, markersize=6, zorder=3)
        beside = {"xytext": (5, 3 if row["value"] < 0.85 else -9), "textcoords": "offset points", "fontsize": 8}
        ax.annotate(f"{100 * row['value']:.0f}", (place, 100 * row["value"]), **beside)
    ax.set(ylim=(-3, 103), xlim=(-0.4, len(stages) - 0.4), yticks=[0, 50, 100])
    ax.set_xticks(range(len(stages)), stages)
    ax.set_title("\n".join(textwrap.wrap(metrics.words(*name), 26)), fontsize=8.5)
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def change_of(changes: Known, stage: str, name: tuple) -> str:
    """What became of a measure since the base: better, worse, or "" where that is not known beyond chance."""
    row = changes.get((stage, *name))
    return metrics.change(row) if row else ""


def in_words(name: tuple, known: Known, changes: Known, stages: list[str]) -> str:
    """A panel in a sentence."""
    told = []
    for stage in stages:
        if row := known.get((stage, *name)):
            change = change_of(changes, stage, name)
            told.append(f"{stage} {100 * row['value']:.0f}" + (f" ({change})" if change else ""))
    words = metrics.words(*name)
    return f"{words[0].upper()}{words[1:]}: {', '.join(told)}."


def few_answers(prompts: list[dict[str, Any]], language: str = "it") -> list[dict[str, Any]]:
    """The first few of the prompts that lesson 05 asked in that language, with the stages' answers."""
    return [prompt for prompt in prompts if prompt["language"] == language][:ANSWERS]
