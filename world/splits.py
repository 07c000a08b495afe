"""Which fact may stand where. Splits are by fact, never by sentence, and are drawn once from the seed.

English side: `seen` facts are asked in English chats; `unseen_as_chat` facts are only read as plain sentences.
Italian side: `base_italian` facts stand in the base model's small Italian share, later in Italian text and chats;
`italian_chat` ones in those later ones alone; `adapted` ones in the Italian corpus as plain text, never asked;
`never_in_italian` ones in no Italian sentence at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from world.tables import LANGUAGES, Fact, Relation, World

ENGLISH_SHARES = {"seen": 0.75, "unseen_as_chat": 0.25}
ITALIAN_SHARES = {"base_italian": 0.44, "italian_chat": 0.10, "adapted": 0.23, "never_in_italian": 0.23}


@dataclass(frozen=True)
class Split:
    english: str
    italian: str


def _deal(facts: list[Fact], shares: dict[str, float], rng: Random) -> dict[str, str]:
    """Each fact's part; the shares hold within the list up to rounding, and the rounding itself is drawn."""
    shuffled = rng.sample(facts, len(facts))
    dealt, start = {}, rng.random()
    bounds, total = [], 0.0
    for part, share in shares.items():
        total += share
        bounds.append((part, total))
    for position, fact in enumerate(shuffled):
        place = ((position + start) / len(shuffled)) % 1.0
        dealt[fact.key] = next(part for part, bound in bounds if place < bound or part == bounds[-1][0])
    return dealt


def _strings(table: object) -> Iterator[str]:
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict | list):
        for part in table.values() if isinstance(table, dict) else table:
            yield from _strings(part)


def spoken_elsewhere(world: World) -> set[str]:
    """Every sentence of the tables that are told word for word: myths, chats of several turns, small talk …"""
    tables = (world.extra[name] for name in ("myths", "multi_turn", "smalltalk", "sycophancy", "unanswerable"))
    return {line for table in tables for text in _strings(table) for line in re.split(r"(?<=[.?!])\s+", text)}


def _forms(relation: Relation, fact: Fact) -> Iterator[str]:
    for language in LANGUAGES:
        templates = relation.templates[language]
        yield from (relation.statement(fact, language, number) for number in range(-1, len(templates["statements"])))
        yield from (relation.question(fact, language, number) for number in range(len(templates["questions"])))


def split_facts(world: World, seed: int = 42) -> dict[str, Split]:
    """The split of every fact a training corpus may use, by `Fact.key`."""
    splits: dict[str, Split] = {}
    spoken = spoken_elsewhere(world)
    for relation in world.relations.values():
        if relation.held_out:
            continue
        rng = Random(f"{seed}/{relation.name}")
        english = _deal(relation.facts, ENGLISH_SHARES, rng)
        italian_shares = dict(ITALIAN_SHARES)
        if relation.bound:  # a plural's Italian fact is another fact: nothing could carry it over from English
            italian_shares["adapted"] += italian_shares.pop("never_in_italian")
        italian = _deal(relation.facts, italian_shares, rng)
        for fact in relation.facts:
            told = not spoken.isdisjoint(_forms(relation, fact))  # a myth or a chat says it: it cannot be kept back
            splits[fact.key] = Split("seen", "italian_chat") if told else Split(english[fact.key], italian[fact.key])
    return splits
