"""More of what can be told of the lessons without running them: arguments, links, figures, lengths, stale outputs."""

import ast
import inspect
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from anita_utils.course import cells_hash

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
LESSONS = {file.stem: nbformat.read(file, as_version=4) for file in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
LIBRARIES = ("transformers", "trl", "peft", "bitsandbytes", "datasets", "lm_eval", "tokenizers")
LONGEST = 30  # lines of a code cell
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
        elif "save_figure(" in cell.source:
            if waiting:
                return waiting
            waiting = [cell.id]
    return waiting


def too_long(notebook):
    return [number for number, code in enumerate(code_of(notebook), 1) if len(code.strip().splitlines()) > LONGEST]


@pytest.mark.parametrize("name", LESSONS)
@pytest.mark.parametrize("finder", [unknown_arguments, broken_links, unread_figures, too_long])
def test_a_lesson_has_none(name, finder):
    assert list(finder(LESSONS[name])) == []


@pytest.mark.parametrize("name", LESSONS)
def test_stored_outputs_are_those_of_the_cells_above_them(name):
    """`anita course --update` stores the hash of the cells that ran; whoever changes one must run the lesson again."""
    assert LESSONS[name].metadata.get("outputs_of") == cells_hash(LESSONS[name])


FIGURE = 'run.save_figure(figure, "x", "y")'


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
