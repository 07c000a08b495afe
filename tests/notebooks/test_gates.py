"""More of what can be told of the lessons without running them: arguments, links, figures, lengths, stale outputs."""

import ast
import inspect
import re
import statistics
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anita_utils.course.lessons import cells_hash

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
LESSONS = {file.stem: nbformat.read(file, as_version=4) for file in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
LIBRARIES = ("transformers", "trl", "peft", "bitsandbytes", "datasets", "lm_eval", "tokenizers")
LONGEST, MEDIAN = 30, 10  # lines of a code cell
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def code_of(notebook):
    """The code cells' Python, without magics and shell lines."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE) for source in cells]


def imported(trees):
    """What a lesson imports from the libraries: the name it is called by, and the object."""
    found = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LIBRARIES:
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            found |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in LIBRARIES:
                    module = __import__(alias.name, fromlist=["_"] if alias.asname else [])
                    found[alias.asname or alias.name.split(".")[0]] = module
    return found


def unknown_arguments(notebook):
    """Keyword arguments in a lesson's calls of the libraries that the installed ones do not take."""
    trees = [ast.parse(source) for source in code_of(notebook)]
    names = imported(trees)
    for call in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called, root = ast.unparse(call.func), ast.unparse(call.func).split(".")[0]
        if root not in names or not re.fullmatch(r"[\w.]+", called):
            continue
        target = names[root]
        for part in called.split(".")[1:]:
            target = getattr(target, part)  # an AttributeError is a finding, too
        taken = inspect.signature(target).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            yield from (f"{called}({word.arg}=)" for word in call.keywords if word.arg and word.arg not in taken)


def broken_links(notebook):
    """Links in the text to files that are not there."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return [place for text in texts for place, _ in LINK.findall(text) if place and not (NOTEBOOKS / place).exists()]


def unread_figures(notebook):
    """Cells that save a figure and are followed by no text before the next figure."""
    waiting = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            waiting = []
        elif "run.show(" in cell.source:
            if waiting:
                return waiting
            waiting = [cell.id]
    return waiting


def too_long(notebook):
    return [number for number, code in enumerate(code_of(notebook), 1) if len(code.strip().splitlines()) > LONGEST]


def long_on_the_whole(notebook):
    """The median of the code cells' lengths, where it is too long."""
    median = statistics.median(len(code.strip().splitlines()) for code in code_of(notebook))
    return [median] if median > MEDIAN else []


def is_told(call):
    """Whether a call that shows a figure hands on words for those who cannot see it."""
    words = next((word.value for word in call.keywords if word.arg == "alt"), None)
    return isinstance(words, ast.JoinedStr) or isinstance(words, ast.Constant) and len(str(words.value).split()) > 3


def untold_figures(notebook):
    """Cells that show a figure without alternative text; pictures stored without."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        (code,) = code_of(new_notebook(cells=[cell]))
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        shown = [call for call in calls if ast.unparse(call.func).split(".")[-1] == "show"]
        if not all(map(is_told, shown)):
            yield cell.id
        for output in cell.outputs:
            if (
                "image/png" in output.get("data", {})
                and not output.metadata.get("image/png", {}).get("alt", "").strip()
            ):
                yield f"{cell.id}, its picture"


@pytest.mark.parametrize("name", LESSONS)
@pytest.mark.parametrize(
    "finder", [unknown_arguments, broken_links, unread_figures, too_long, long_on_the_whole, untold_figures]
)
def test_a_lesson_has_none(name, finder):
    assert list(finder(LESSONS[name])) == []


@pytest.mark.parametrize("name", LESSONS)
def test_stored_outputs_are_those_of_the_cells_above_them(name):
    """`anita course --update` stores the hash of the cells that ran; after a change of one, run the lesson again."""
    assert LESSONS[name].metadata.get("outputs_of") == cells_hash(LESSONS[name])


FIGURE = 'run.show(figure, "x", "y")'


@pytest.mark.parametrize(
    ("finder", "bad", "good"),
    [
        (
            unknown_arguments,
            ["from peft import LoraConfig\nLoraConfig(rank=1)"],
            ["from peft import LoraConfig\nLoraConfig(r=1)"],
        ),
        (unknown_arguments, ["import peft as p\np.LoraConfig(r=1, rank=1)"], ["import peft as p\np.LoraConfig(r=1)"]),
        (unread_figures, [FIGURE, FIGURE, "# Read"], [FIGURE, "x = 1", "# Read", FIGURE, "# Read"]),
        (unread_figures, ["# Before", FIGURE], [FIGURE, "# After"]),
        (
            untold_figures,
            ["run.show(fig, 'x', caption='Read it.')"],
            ["run.show(fig, 'x', caption='Read it.', alt='A bar for each stage.')"],
        ),
        (untold_figures, ["plt.show()"], ["run.show(fig, 'y', alt=f'{3} bars')"]),
        (long_on_the_whole, ["\n".join(["x = 1"] * 11)], ["\n".join(["x = 1"] * 19), "x = 1"]),
        (too_long, ["\n".join(["x = 1"] * 31)], ["\n".join(["x = 1"] * 30)]),
        (
            broken_links,
            ["# [a](nowhere.md)"],
            ["# [a](../README.md) [b](https://x.org) [c](#here) [d](01_load_llama3.ipynb)"],
        ),
    ],
)
def test_each_finder_finds_what_it_is_for(finder, bad, good):
    def lesson(sources):
        return new_notebook(cells=[(new_markdown_cell if s.startswith("#") else new_code_cell)(s) for s in sources])

    assert list(finder(lesson(bad))) and not list(finder(lesson(good)))


@pytest.mark.parametrize(("metadata", "found"), [({}, 1), ({"alt": " "}, 1), ({"alt": "Two bars."}, 0)])
def test_a_stored_picture_needs_words(metadata, found):
    picture = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": metadata})
    assert len(list(untold_figures(new_notebook(cells=[new_code_cell("1", outputs=[picture])])))) == found
