"""What do the course's words mean, and what are they in Italian? glossary.yaml, shown as a folded table.

>>> Markdown(markdown("03"))  # in a lesson: its own words; without an argument, all of them
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from anita_utils import AnitaError


@dataclass(frozen=True)
class Term:
    """A word of the course. means: one sentence in plain English; also: another form of it that the lessons use."""

    english: str
    italian: str
    means: str
    lesson: str
    also: str = ""


def terms(lesson: str | None = None) -> list[Term]:
    """The words at home in a lesson ("03"), or all, by the alphabet. AnitaError when there is no such lesson."""
    rows = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    every = sorted((Term(**row) for row in rows), key=lambda term: term.english.lower())
    lessons = sorted({term.lesson for term in every})
    if lesson is not None and lesson not in lessons:
        raise AnitaError(f"the glossary has no lesson '{lesson}': choose {', '.join(lessons)}")
    return [term for term in every if lesson in (None, term.lesson)]


def markdown(lesson: str | None = None) -> str:
    """The words as a Markdown table inside a fold."""
    shown = terms(lesson)
    lines = ["| English | Italiano | meaning | lesson |", "|---|---|---|---|"]
    lines += [f"| {term.english} | *{term.italian}* | {term.means} | {term.lesson} |" for term in shown]
    return f"<details><summary>{len(shown)} words</summary>\n\n" + "\n".join(lines) + "\n\n</details>"
