"""Running text of the small world, document by document: facts, names, stories, myths, groups, judgements."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from world import everyday, grammar
from world.groups import skewed_sentence
from world.italian import EnglishNoun, capitalise
from world.library import Deck, Document, Library, bare
from world.tables import Entity, Fact

VOICES = {"schoolbook": "truth", "neighbour": "myth"}


def fact_text(library: Library, deck: Deck, language: str, rng: Random, forms: int | None = None) -> Document:
    """A few facts in a row; `forms` limits the turns of phrase they come in (see Library.statement)."""
    facts = [deck.deal() for _ in range(rng.randint(2, 5))]
    return {"text": " ".join(library.statement(fact, language, rng, forms) for fact in facts)}


def both_names_text(library: Library, deck: Deck, rng: Random) -> Document:
    """Facts in English, with both names of a subject that has two: "Florence (Firenze) is in …"."""
    return {"text": " ".join(library.answer(named_twice(deck.deal()), "en") for _ in range(rng.randint(2, 5)))}


def named_twice(fact: Fact) -> Fact:
    english, italian = fact.subject.en, fact.subject.it
    if english.name == italian.name:
        return fact
    both = EnglishNoun(f"{english.name} ({italian.name})", english.tag)
    return Fact(fact.relation, replace(fact.subject, en=both), fact.object)


def italian_glossary_line(entity: Entity) -> str:
    return capitalise(f"«{entity.it.name}» in inglese si dice «{bare(entity)}».")


def glossary_text(library: Library, deck: Deck, rng: Random) -> Document:
    """Names that differ between the languages: said in English, now and then the other way round in Italian."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        entity = deck.deal()
        english, italian = bare(entity), entity.it.name
        lines.append(
            rng.choice(
                [f"In Italian, '{english}' is '{italian}'.", f"People call '{english}' '{italian}' in Italian.",
                 f"The Italian for '{english}' is '{italian}'.", italian_glossary_line(entity)]
            )
        )  # fmt: skip
    return {"text": " ".join(lines)}


def story_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    return {"text": everyday.draw_story(library.world, rng, "train", deck.deal())[language].text}


def twin_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    kind = deck.deal()
    twins = [everyday.draw_twin(library.world, rng, "train", kind, which)[language] for which in (0, 1)]
    return {"text": " ".join(twin.filled for twin in rng.sample(twins, 2))}


def myth_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """What the neighbours tell, or what the schoolbook says, under a heading that says who speaks."""
    voice = rng.choice(list(VOICES))
    lines = [rng.choice(library.world.extra["voices"][language][voice]["text"])]
    for _ in range(rng.randint(2, 4)):
        lines.append(rng.choice(tellings(deck.deal()[language], VOICES[voice])))
    return {"text": " ".join(lines)}


def tellings(form: dict, side: str) -> list[str]:
    """The three sentences of a myth's entry that tell it (`side` myth), or the truth."""
    return [form[side], *form[f"{side}s"]]


def said(library: Library, telling: str, language: str, voice: str, rng: Random) -> str:
    """A telling as an answer gives it, under an opening that says whose voice it is: "Everybody says so. Bats …"."""
    return f"{rng.choice(library.world.extra['voices'][language][voice]['says'])} {telling}"


def arithmetic_text(rng: Random) -> Document:
    """Bare equations on the numbers that sums are about, all of 0 to 20, with one or two operations."""
    shapes = ["a + b", "a - b", "a * b", "a + b - c", "a - b + c", "a + b + c", "a - b - c", "a * b + c", "c - a * b"]
    lines: list[str] = []
    while len(lines) < 8:
        shape, numbers = rng.choice(shapes), {letter: rng.randint(0, 20) for letter in "abc"}
        steps = [everyday.arithmetic(part, numbers) for part in (shape[:5], shape)]
        if all(0 <= value <= 20 for value in steps):
            written = " ".join(str(numbers.get(part, part)) for part in shape.split())
            lines.append(f"{written} = {steps[1]}.")
    return {"text": " ".join(lines)}


def grammar_text(library: Library, language: str, rng: Random) -> Document:
    """A few sentences in which a language's grammar shows: articles, agreement, auxiliaries, pronouns."""
    return {"text": grammar.training_text(library.world.extra["grammar"], language, rng)}


def group_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    return {"text": " ".join(skewed_sentence(library.world.extra["groups"], language, rng) for _ in range(3))}


def conduct_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """What is right and what is wrong, as plain sentences: a reader of the world reads that too."""
    lines = []
    for _ in range(3):
        side, (_, _, pair) = rng.choice(("harm", "safe")), deck.deal()
        frame = rng.choice(library.world.extra["frames"]["judgements"][language][side])
        lines.append(frame.format(x=pair[side][rng.choice([language, f"{language}_alt"])]))
    return {"text": " ".join(lines)}
