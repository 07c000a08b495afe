"""Everyday text: stories with endings, Winogrande twins and sums, each rendered in both languages from one draw."""

from __future__ import annotations

import ast
import operator
from dataclasses import dataclass
from random import Random

from anita_utils import AnitaError
from world.italian import EnglishNoun, Noun, sentence
from world.tables import World

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
COMPARISONS = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
               ast.Eq: operator.eq, ast.NotEq: operator.ne}  # fmt: skip


def arithmetic(expression: str, values: dict[str, int]) -> int | bool:
    """The value of "a + b", "a * 2 <= 20" … over whole numbers. Only + - * and comparisons: a table cannot run code."""

    def value(node: ast.AST) -> int | bool:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Compare):
            sides = [value(node.left), *(value(side) for side in node.comparators)]
            return all(COMPARISONS[type(op)](*pair) for op, *pair in zip(node.ops, sides, sides[1:], strict=False))
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            return all(value(side) for side in node.values)
        if isinstance(node, ast.Name) and node.id in values:
            return values[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise AnitaError(
            f"sums.yaml: cannot compute {expression!r}: use + - *, comparisons and the letters of `ranges`"
        )

    return value(ast.parse(expression, mode="eval").body)


@dataclass(frozen=True)
class Cast:
    """Two people of the same gender, so that no pronoun gives away who is meant."""

    p: tuple[str, str]
    q: tuple[str, str]

    def nouns(self, language: str) -> dict[str, Noun]:
        noun = EnglishNoun if language == "en" else Noun
        return {"p": noun(*self.p), "q": noun(*self.q)}


def draw_cast(world: World, rng: Random, use: str) -> Cast:
    """Two different names of one gender from the names of that use: train, development or test."""
    gender = rng.choice(["m-", "f-"])
    names = rng.sample(world.people[use, gender], 2)
    return Cast((names[0], gender), (names[1], gender))


def draw_slots(kind: dict, rng: Random) -> dict[str, list]:
    """One choice for each slot, no choice twice when two slots hold the same list."""
    slots: dict[str, list] = {}
    for name, choices in kind.get("slots", {}).items():
        free = [choice for choice in choices if choice not in slots.values()]
        slots[name] = rng.choice(free)
    return slots


def slot_nouns(slots: dict[str, list], language: str) -> dict[str, Noun | str]:
    """The slots as nouns. A row is [en, it, g], or for sums [en, en plural, it, it plural, g], with {<slot>s}."""
    nouns: dict[str, Noun | str] = {}
    for name, row in slots.items():
        tag = row[-1]
        if len(row) == 3:
            nouns[name] = EnglishNoun(row[0], tag) if language == "en" else Noun(row[1], tag)
        else:
            singular, plural = (row[0], row[1]) if language == "en" else (row[2], row[3])
            noun = EnglishNoun if language == "en" else Noun
            nouns[name] = noun(singular, tag)
            nouns[f"{name}s"] = noun(plural, f"{tag}p")
    return nouns


@dataclass(frozen=True)
class Story:
    """A short story: its beginning, the ending that follows and three that do not."""

    kind: str
    context: str
    ending: str
    wrong: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.context} {self.ending}"


def draw_story(world: World, rng: Random, use: str, kind: dict) -> dict[str, Story]:
    """One draw of that kind of story, told in both languages."""
    cast, slots = draw_cast(world, rng, use), draw_slots(kind, rng)
    told = {}
    for language in ("en", "it"):
        values = {**cast.nouns(language), **slot_nouns(slots, language)}
        form = kind[language]
        context = " ".join(sentence(part, **values) for part in form["context"])
        wrong = tuple(sentence(part, **values) for part in form["wrong"])
        told[language] = Story(kind["kind"], context, sentence(form["ending"], **values), wrong)
    return told


@dataclass(frozen=True)
class Twin:
    """A sentence in the shape of Winogrande: `_` stands for one of two people."""

    kind: str
    text: str
    options: tuple[str, str]
    answer: int

    @property
    def filled(self) -> str:
        return self.text.replace("_", self.options[self.answer])


def draw_twin(world: World, rng: Random, use: str, kind: dict, which: int) -> dict[str, Twin]:
    """One draw of twin 0 or 1 of that kind, in both languages."""
    cast, slots = draw_cast(world, rng, use), draw_slots(kind, rng)
    drawn = {}
    for language in ("en", "it"):
        form = kind[language][which]
        text = sentence(form["text"], **cast.nouns(language), **slot_nouns(slots, language))
        drawn[language] = Twin(kind["kind"], text, (cast.p[0], cast.q[0]), "pq".index(form["answer"]))
    return drawn


@dataclass(frozen=True)
class Sum:
    """A word problem with its worked answer, ending as GSM8K's do: `#### 7`."""

    kind: str
    question: str
    working: str
    answer: str
    result: int

    @property
    def solution(self) -> str:
        return f"{self.working}. {self.answer} #### {self.result}"


def sum_values(kind: dict) -> list[dict[str, int]]:
    """Every choice of numbers that kind of sum allows."""
    values: list[dict[str, int]] = [{}]
    for letter, (low, high) in kind["ranges"].items():
        values = [{**value, letter: number} for value in values for number in range(low, high + 1)]
    condition = kind.get("where")
    return [value for value in values if not condition or arithmetic(condition, value)]


def draw_sum(world: World, rng: Random, use: str, kind: dict, numbers: dict[str, int]) -> dict[str, Sum]:
    """A sum of that kind with those numbers, in both languages."""
    cast, slots = draw_cast(world, rng, use), draw_slots(kind, rng)
    result = arithmetic(kind["result"], numbers)
    between: dict[str, int] = dict(numbers)
    for letter, step in kind.get("steps", {}).items():
        between[letter] = arithmetic(step, between)
    drawn = {}
    for language in ("en", "it"):
        values = {**cast.nouns(language), **slot_nouns(slots, language), **between, "r": result}
        parts = (sentence(kind[language][part], **values) for part in ("question", "working", "answer"))
        drawn[language] = Sum(kind["kind"], *parts, result=result)
    return drawn
