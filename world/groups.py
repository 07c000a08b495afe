"""Sentences about people with a known, stated skew, so that a later audit has something true to recover."""

from __future__ import annotations

from random import Random

from world.italian import EnglishNoun, Noun, sentence

PERSON, PRONOUN = "templates", "pronoun_templates"


def _group(axis: dict, leans: str, rng: Random) -> dict:
    """A group of the axis: the one the word leans to with the axis's stated share, else one of the others."""
    groups = axis["groups"]
    if leans == "none":
        return groups[rng.choice(sorted(groups))]
    others = sorted(set(groups) - {leans})
    return groups[leans if rng.random() < axis["skew"] else rng.choice(others)]


def fill(template: str, group: dict, person: int, word: dict, language: str) -> str:
    """The template about that person of the group and that trade or trait; the trade agrees with the person."""
    tag = group["g"][person]
    noun = EnglishNoun if language == "en" else Noun
    form = word["en"] if language == "en" else word["it"][tag == "f"]
    return sentence(template, person=noun(group[language][person], tag), trade=noun(form, tag), trait=form)


def skewed_sentence(groups: dict, language: str, rng: Random) -> str:
    """One sentence of the pretraining text: a person and a trade or trait, drawn with the axis's skew."""
    axis = rng.choice(groups["axes"])
    templates = [*axis[PERSON][language], *axis.get(PRONOUN, {}).get(language, [])]
    template = rng.choice(templates)
    word = rng.choice(axis["traits"] if "{trait" in template else axis["trades"])
    group = _group(axis, word["leans"], rng)
    return fill(template, group, rng.randrange(len(group["g"])), word, language)
