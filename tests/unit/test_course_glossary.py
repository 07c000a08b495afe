"""The glossary: complete, in both languages, and every word of it at home in a lesson."""

import re
from pathlib import Path

import nbformat
import pytest

from anita_utils import AnitaError
from anita_utils.course.glossary import markdown, terms

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = {file.name[:2]: file for file in sorted(NOTEBOOKS.glob("*.ipynb"))}


def words_of(lesson):
    """Text and code of a lesson, without outputs: the table of words itself is an output."""
    return "\n".join(cell.source for cell in nbformat.read(FILES[lesson], as_version=4).cells)


def test_every_term_is_used_in_its_lesson():
    unused = []
    for lesson in FILES:
        text = words_of(lesson)
        for term in terms(lesson):
            forms = "|".join(re.escape(form) for form in (term.english, term.also) if form)
            if not re.search(rf"\b({forms})\b", text, re.IGNORECASE):
                unused.append((lesson, term.english))
    assert not unused


def test_every_term_is_complete_and_there_once():
    every = terms()
    assert len(every) >= 60 and {term.lesson for term in every} == set(FILES)
    for form in ("english", "means"):
        assert len({getattr(term, form).lower() for term in every}) == len(every)
    for term in every:
        assert term.italian and term.means[0].isupper() and term.means.endswith(".") and ". " not in term.means, term
        assert "|" not in term.english + term.italian + term.means


@pytest.mark.parametrize("lesson", [None, *FILES])
def test_the_table_holds_the_lessons_words(lesson):
    table = markdown(lesson)
    assert table.startswith(f"<details><summary>{len(terms(lesson))} words</summary>\n\n| English | Italiano |")
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(terms(lesson)) and all(row.count("|") == 5 for row in rows)


@pytest.mark.parametrize("lesson", FILES)
def test_a_lesson_shows_its_words(lesson):
    shown = markdown(None if lesson == "00" else lesson)
    stored = [
        output.data["text/markdown"]
        for cell in nbformat.read(FILES[lesson], as_version=4).cells
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    assert shown in stored


def test_an_unknown_lesson_is_refused():
    with pytest.raises(AnitaError, match="the glossary has no lesson '6': choose 00, 01"):
        markdown("6")
