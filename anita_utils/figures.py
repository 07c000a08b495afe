"""What is said of a run's figures: in a few words for those who cannot see them, and how to read them.

>>> describe(figure)
'Across: share (line: 95 % interval). Shown: base, sft.'
"""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAVED = re.compile(r"""save_figure\(\s*[^,]+,\s*["']([^"']+)["'],\s*["']([^"']+)["']""")
MARKUP = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)|^#+ ")


def describe(figure: Figure) -> str:
    """Titles, axes and legends of a figure, in words."""
    said = []
    for axes in figure.axes:
        legend = axes.get_legend() or (figure.legends[0] if figure.legends else None)
        names = [text.get_text() for text in legend.get_texts()] if legend else []
        if not names and len(axes.get_yticklabels()) and axes.get_xlabel() and not axes.get_ylabel():
            names = [label.get_text() for label in axes.get_yticklabels()]
        parts = {"": axes.get_title() or axes.get_title("left"), "Across: ": axes.get_xlabel(),
                 "Upwards: ": axes.get_ylabel(), "Shown: ": ", ".join(filter(None, names))}  # fmt: skip
        said += [f"{name}{' '.join(text.split())}." for name, text in parts.items() if text.strip()]
    return " ".join(dict.fromkeys(said))


def figure_texts(folder: Path) -> list[dict[str, str]]:
    """For each figure in a run's folder: `file`, `alt` (what it shows), `caption` (how to read it, by its lesson)."""
    captions = {}
    for notebook in sorted((folder / "notebooks").glob("*.ipynb")):
        captions |= captions_in(nbformat.read(notebook, as_version=4))
    made = []
    for file in sorted((folder / "figures").glob("*.png")):
        described = file.with_suffix(".txt")
        alt = described.read_text("utf-8") if described.is_file() else "Its lesson says how to read it."
        name = file.stem.replace("-", ": ", 1).replace("-", " ").replace("_", " ")
        made.append({"file": file.name, "alt": f"{name}. {alt}", "caption": captions.get(file.stem, "")})
    return made


def captions_in(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The first paragraph below each cell that saves a figure, by the figure's name."""
    saved = [SAVED.search(cell.source) for cell in notebook.cells]
    return {"-".join(one.groups()): text for one, text in zip(saved, _below(notebook), strict=True) if one and text}


def _below(notebook: nbformat.NotebookNode) -> list[str]:
    """For each cell the first paragraph of the text right below it, without marks; "" where code follows."""
    found = []
    for after in [*notebook.cells[1:], None][: len(notebook.cells)]:
        text = after.source.split("\n\n")[0] if after is not None and after.cell_type == "markdown" else ""
        found.append(MARKUP.sub("", " ".join(text.split())))
    return found


def with_alternative_texts(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy in which each picture that code made has a text for those who cannot see it: its own, or what is below."""
    notebook = deepcopy(notebook)
    for cell, text in zip(notebook.cells, _below(notebook), strict=True):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                words = text or "What the code above draws."
                output.metadata["image/png"] = {"alt": f"Figure. {words}", **output.metadata.get("image/png", {})}
    return notebook
