"""The world with its splits, and what is drawn from it: decks of facts, questions, answers, wordings.

A document of a corpus is {"text": …} or {"messages": […]}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from world import everyday
from world.italian import EnglishNoun, Noun, sentence
from world.splits import Split, split_facts
from world.tables import LANGUAGES, Entity, Fact, World

Document = dict
USES = ("train", "development", "test")  # of kinds of story, topics of conduct, myths …
UNTRANSLATED = {"plant_food"}  # plural in one language only: no word for word


def chat(user: str, assistant: str, system: str | None = None, **about: str) -> Document:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, **about}


class Deck:
    """Deals the items of a list in a drawn order, again and again: every item is dealt equally often."""

    def __init__(self, items: list, rng: Random) -> None:
        self.items, self.rng, self.pile = list(items), rng, []

    def deal(self) -> object:
        if not self.pile:
            self.pile = self.rng.sample(self.items, len(self.items))
        return self.pile.pop()


def mixture(makers: list[tuple[float, Callable[[], Document]]], count: int, rng: Random) -> Iterator[Document]:
    """`count` documents, each from a maker drawn by its weight."""
    weights = [weight for weight, _ in makers]
    for _ in range(count):
        yield rng.choices(makers, weights)[0][1]()


@dataclass
class Library:
    """The world with its splits: the one thing every corpus is drawn from."""

    world: World
    seed: int = 42
    tuning: bool = False
    splits: dict[str, Split] = field(init=False)
    _numbers: dict[str, list] = field(init=False, default_factory=dict, repr=False)
    _conduct: dict[str, list] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.splits = split_facts(self.world, self.seed)

    def for_tuning(self) -> Library:
        """The same library, which words requests in more ways: for the stages, and the base's last reading."""
        return replace(self, tuning=True)

    def rng(self, purpose: str) -> Random:
        return Random(f"{self.seed}/{purpose}")

    def facts(self, english: str | None = None, italian: tuple[str, ...] | None = None) -> list[Fact]:
        """The facts of one English split and of any of some Italian splits (all where none is named)."""
        return [
            fact
            for fact in self.world.facts
            if (english is None or self.splits[fact.key].english == english)
            and (italian is None or self.splits[fact.key].italian in italian)
        ]

    def statement(self, fact: Fact, language: str, rng: Random, forms: int | None = None) -> str:
        """The fact in one of its forms: the canonical answer or a statement (of the first `forms`, or of all)."""
        relation = self.world.relation(fact)
        count = len(relation.templates[language]["statements"])
        return relation.statement(fact, language, rng.randrange(-1, min(forms or count, count)))

    def question(self, fact: Fact, language: str, rng: Random) -> str:
        relation = self.world.relation(fact)
        return relation.question(fact, language, rng.randrange(len(relation.templates[language]["questions"])))

    def answer(self, fact: Fact, language: str, other: Entity | None = None) -> str:
        return self.world.relation(fact).answer(fact, language, other)

    def wrong_object(self, fact: Fact, rng: Random) -> Entity:
        """A wrong answer to the fact's question, of the right kind."""
        names = {fact.object.name(language) for language in LANGUAGES}
        return rng.choice([e for e in self.world.relation(fact).objects if not names & {e.en.name, e.it.name}])

    def entities(self) -> list[Entity]:
        """Everything the facts are about, each once."""
        return list(dict.fromkeys(entity for fact in self.facts() for entity in (fact.subject, fact.object)))

    def translated_names(self) -> list[Entity]:
        """Of these, all that have one name in English and another in Italian."""
        return [entity for entity in self.entities() if translates(entity)]

    def kinds(self, table: str, use: str = "train") -> list[dict]:
        """The entries of a table (stories, schemas, sums, myths, unanswerable) with that use; without one, train."""
        return [entry for entry in self.world.extra[table] if entry.get("use", "train") == use]

    def conduct(self, use: str) -> list[tuple[str, int, dict]]:
        """(topic, number of the pair, pair) of the topics with that use: each pattern with each of its things."""
        if use not in self._conduct:
            self._conduct[use] = [
                (topic["topic"], number, with_thing(pair, thing))
                for topic in self.kinds("conduct", use)
                for number, pair in enumerate(topic["pairs"])
                for thing in topic["things"]
            ]
        return list(self._conduct[use])

    def is_for(self, fact: Fact, use: str) -> bool:
        """Whether questions on a fact are for `development` (one fact in three), or for the `test`."""
        return use == ("development" if Random(f"{self.seed}/use/{fact.key}").random() < 1 / 3 else "test")

    def train_numbers(self, kind: dict) -> list[dict[str, int]]:
        """The choices of numbers of a kind of sum that may be trained on: one in five is kept for the benchmark."""
        name = kind["kind"]
        if name not in self._numbers:
            values = everyday.sum_values(kind)
            self.rng(f"sums/{name}").shuffle(values)
            self._numbers[name] = values[max(1, len(values) // 5) :]
        return self._numbers[name]

    def numbers(self, kind: dict, use: str) -> list[dict[str, int]]:
        """The choices of numbers of a kind of sum for a use; those not trained on are halved between the sets.

        A kind with one such choice has none for development.
        """
        trained = self.train_numbers(kind)
        if use == "train":
            return trained
        return [v for v in everyday.sum_values(kind) if v not in trained][use == "development" :: 2]

    def request(self, pair: dict, side: str, language: str, number: int, rng: Random) -> str:
        """A trained wording: a training frame, and the second phrase only of every other pair."""
        phrases = [language, f"{language}_alt"] if number % 2 else [language]
        frame = rng.choice(self.request_frames(language))
        return frame.format(x=pair[side][rng.choice(phrases)])

    def held_out_wording(self, pair: dict, side: str, language: str, use: str, rng: Random) -> str:
        """A frame of that use (development or test) round either phrase of the request."""
        frame = rng.choice(self.world.extra["frames"]["frames"][language][use])
        return frame.format(x=pair[side][rng.choice([language, f"{language}_alt"])])

    def request_frames(self, language: str) -> list[str]:
        """The frames that a trained request may stand in."""
        frames = self.world.extra["frames"]["frames"][language]
        return frames["train"] + (frames["tuned"] if self.tuning else [])


def with_thing(pair: dict, thing: list[str]) -> dict:
    """A pattern of conduct.yaml, both sides, about one thing: [English, Italian, gender]."""
    nouns = {"en": EnglishNoun(thing[0], thing[2]), "it": Noun(thing[1], thing[2])}

    def filled(key: str, phrase: str) -> str:
        noun = nouns["it" if "it" in key.split("_") else "en"]
        return sentence(phrase, x=noun) if key.startswith("answer") else phrase.format(x=noun)

    return {side: {key: filled(key, phrase) for key, phrase in form.items()} for side, form in pair.items()}


def bare(entity: Entity) -> str:
    """The English name without its article."""
    return re.sub(r"^(?:[Tt]he|an?) ", "", entity.en.name)


def translates(entity: Entity) -> bool:
    """Whether the two names differ and mean the same, word for word."""
    return entity.kind not in UNTRANSLATED and bare(entity) != entity.it.name
