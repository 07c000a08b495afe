"""Minimal pairs, as BLiMP and MultiBLiMP have them, and the running text that teaches what they ask.

The table (grammar.yaml) has `names`, `counts` and `phenomena`. A phenomenon has word lists and, for each use, frames:

- A word list has `forms` ("s/p"), rows ("libro/libri, cane/cani") that are `known` (training text has them in that
  construction), `new` (it has not) or `any` (they do not count), and a gender `g` where the words are nouns.
- A training frame is one sentence. A frame of pairs is a balanced set: what is wrong in one of its sentences is right
  in another, so that the frequency of a word says nothing. All its sentences are filled with the same words.
- `{il}` is a word of the list `il` in its first form, `{il.p}` another form, `{il:il}` a noun with its article (see
  world/italian.py), `{il2}` a second word of that list, `{m}` and `{f}` a man's and a woman's name.
- `[right|wrong]` is where the two sentences of a pair differ.
"""

from __future__ import annotations

import re
from random import Random
from string import Formatter

from anita_utils import AnitaError
from world.italian import EnglishNoun, Noun, capitalise

CHOICE = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
TRIES = 200  # drawings of one frame before its words count as used up


class Word:
    """A row of a word list: its forms as attributes; formatted by itself it is the first one."""

    def __init__(self, forms: dict[str, Noun | str]) -> None:
        self.forms = forms

    def __getattr__(self, form: str) -> Noun | str:
        if form == "forms" or form not in self.forms:
            raise AttributeError(f"no form {form!r}")
        return self.forms[form]

    def __format__(self, spec: str) -> str:
        return format(next(iter(self.forms.values())), spec)


def rows(words: dict, kind: str) -> list[str]:
    """The rows of that kind (known, new, any) of a word list."""
    return [row.strip() for row in words.get(kind, "").split(",") if row.strip()]


def word(row: str, words: dict, language: str) -> Word:
    """The row "libro/libri" as a word; where the list or the row gives a gender, its forms are nouns."""
    forms = dict(zip(words.get("forms", "s").split("/"), row.split("/"), strict=True))
    gender = forms.pop("g", words.get("g"))
    if gender is None:
        return Word(forms)
    noun = EnglishNoun if language == "en" else Noun
    return Word({form: noun(text, gender + "p" * (form == "p")) for form, text in forms.items()})


def slots(template: str) -> list[str]:
    """The names of the slots of a template, each once, in order: il, il2, m …"""
    fields = (field for _, field, _, _ in Formatter().parse(template) if field)
    return list(dict.fromkeys(re.split(r"[.\[]", field)[0] for field in fields))


def list_name(slot: str) -> str:
    """The word list that a slot draws from: `il2` draws from `il`."""
    return slot.rstrip("0123456789")


def frame_pairs(frame: list[str] | dict) -> list[str]:
    """The templates of a frame of pairs: a list, or the `pairs` of one that serves one half only."""
    return frame["pairs"] if isinstance(frame, dict) else frame


def serves(phenomenon: dict, frame: list[str] | dict, kind: str) -> bool:
    """Whether a frame can be filled with known, or with new, words in every slot that counts."""
    if isinstance(frame, dict) and "half" in frame and frame["half"] != kind:
        return False
    names = {list_name(slot) for template in frame_pairs(frame) for slot in slots(template)}
    lists = [phenomenon["words"][name] for name in names if name in phenomenon.get("words", {})]
    return all(rows(words, kind) or rows(words, "any") for words in lists)


class Hand:
    """Deals the words of a phenomenon, each row of a list as often as the others."""

    def __init__(self, table: dict, phenomenon: dict, kind: str, rng: Random) -> None:
        self.table, self.phenomenon, self.kind, self.rng = table, phenomenon, kind, rng
        self.piles: dict[str, list[str]] = {}

    def row(self, name: str) -> str:
        if not self.piles.get(name):
            if name in self.table["names"]:
                choices = rows(self.table["names"], name)
            else:
                words = self.phenomenon["words"][name]
                choices = rows(words, self.kind) or rows(words, "any")
            self.piles[name] = self.rng.sample(choices, len(choices))
        return self.piles[name].pop()

    def deal(self, templates: list[str]) -> dict[str, Word]:
        """A word for each slot of the templates, no row twice among the slots of one list."""
        values: dict[str, Word] = {}
        used: set[tuple[str, str]] = set()
        for slot in dict.fromkeys(slot for template in templates for slot in slots(template)):
            name = list_name(slot)
            row = self.row(name)
            while (name, row) in used:
                row = self.row(name)
            used.add((name, row))
            values[slot] = word(row, self.phenomenon.get("words", {}).get(name, {}), self.phenomenon["language"])
        return values


def fill(template: str, values: dict[str, Word]) -> tuple[str, str]:
    """The right and the wrong sentence of a template; the same sentence twice where it holds no `[right|wrong]`."""
    text = template.format(**values)
    right, wrong = (CHOICE.sub(lambda match, side=side: match.group(side), text) for side in (1, 2))
    return capitalise(right), capitalise(wrong)


def pairs(table: dict, use: str, rng: Random) -> list[dict]:
    """The pairs of `use` (development or test), phenomenon by phenomenon, half with known words and half with new ones.

    Each pair: good, bad, phenomenon, language, known_words, cluster (its frame).
    """
    return [pair for phenomenon in table["phenomena"] for pair in phenomenon_pairs(table, phenomenon, use, rng)]


def phenomenon_pairs(table: dict, phenomenon: dict, use: str, rng: Random) -> list[dict]:
    """The pairs of one phenomenon: its frames in turn, set by set, until each half is full."""
    found: list[dict] = []
    for kind in ("known", "new"):
        hand, half, seen = Hand(table, phenomenon, kind, rng), [], set()
        frames = {n: frame for n, frame in enumerate(phenomenon[use]) if serves(phenomenon, frame, kind)}
        while len(half) < table["counts"][use] // 2:
            before = len(half)
            for number, frame in frames.items():
                if len(half) < table["counts"][use] // 2:
                    cluster = f"{phenomenon['phenomenon']}/{use}/{number}"
                    half += new_set(hand, frame_pairs(frame), cluster, seen)
            if len(half) == before:
                raise AnitaError(f"grammar.yaml: {phenomenon['phenomenon']}: too few {kind} words for {use}: add rows")
        found += half
    return found


def new_set(hand: Hand, templates: list[str], cluster: str, seen: set[str]) -> list[dict]:
    """One filling of a balanced set whose right sentences are all new; nothing when its words are used up."""
    for _ in range(TRIES):
        values = hand.deal(templates)
        filled = [fill(template, values) for template in templates]
        if not seen & {good for good, _ in filled}:
            seen |= {good for good, _ in filled}
            about = {
                "phenomenon": hand.phenomenon["phenomenon"],
                "language": hand.phenomenon["language"],
                "known_words": hand.kind == "known",
                "cluster": cluster,
            }
            return [{"good": good, "bad": bad, **about} for good, bad in filled]
    return []


def training_text(table: dict, language: str, rng: Random) -> str:
    """Two to four right sentences, each of a phenomenon, a training frame and known words drawn each time."""
    phenomena = [phenomenon for phenomenon in table["phenomena"] if phenomenon["language"] == language]
    return " ".join(training_sentence(table, rng.choice(phenomena), rng) for _ in range(rng.randint(2, 4)))


def training_sentence(table: dict, phenomenon: dict, rng: Random) -> str:
    """One right sentence of a training frame of the phenomenon."""
    template = rng.choice(phenomenon["training"])
    return fill(template, Hand(table, phenomenon, "known", rng).deal([template]))[0]
