"""Whether training text holds benchmark items: a question together with its answer.

>>> item = Item("arc/1", "Who invented volleyball?", ("William Morgan",), ("Alfred Nobel",))
>>> find_leaks(["He asked: WHO invented volleyball? - William Morgan!"], [item])
[Leak(document=0, item=0, kind='embedded')]

A question alone is no leak, nor is a shared template: "Who invented dynamite?" is another question. So where words were
changed, sequences of three words count by how few texts have them, and names and numbers must all be there.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anita_utils.cache import cached
from anita_utils.data import contents
from anita_utils.datasets_hub import sample_file
from anita_utils.normalisation import straight
from anita_utils.paths import data_dir, file_hash
from anita_utils.profile import Profile
from anita_utils.rows import read_jsonl, read_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LENGTH = 3  # words in a sequence; a text of fewer words is one sequence
TOLERANCE = 10  # one word in so many of a question may be changed
SHARE = 0.6  # of what tells an answer must stand there
NEAR = 0.5  # and of a question's sequences, by their weight
RARE = 5  # up to so many texts a sequence is no template: a leak itself is one or several of them
COMMON = 50  # a sequence that more questions share is template, and tells nothing
CHUNK = 2000  # documents at a time
WORD, ACCENT = re.compile(r"\w+"), re.compile("[\u0300-\u036f]+")
SENTENCE_START = {"", *'.?!:;«“"('}
GAP = " \n "  # stands for what was taken out of a text
ROUNDING = 1e-9


class Item(NamedTuple):
    """A benchmark's item: each of `answers` is right, each of `wrong` is offered beside them."""

    name: str
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()


class Leak(NamedTuple):
    """Numbers of a document and of an item that it holds.

    kind: "verbatim", the document is the item to the letter; "recased", it is in words; "embedded", it holds them among
    others; "overlap", it holds most of its sequences of words, and its names and numbers.
    """

    document: int
    item: int
    kind: str


def words(text: str) -> list[str]:
    """The words of a text without case, accents and marks."""
    if not text.isascii():
        text = ACCENT.sub("", unicodedata.normalize("NFD", straight(text)))
    return WORD.findall(text.lower())


def sequences(text: Sequence, length: int = LENGTH) -> set[tuple]:
    """All runs of `length` words, or the whole text where it is shorter."""
    length = min(length, len(text))
    return set(zip(*(text[start:] for start in range(length)), strict=False)) if length else set()


def names_in(items: Iterable[Item]) -> set[str]:
    """Names: words that within sentences mostly have a capital letter; "Rosa" is one, though "rosa" is a colour."""
    capital, small = Counter(), Counter()
    for text in (text for item in items for text in (item.question, *item.answers, *item.wrong)):
        for found in WORD.finditer(text):
            if text[: found.start()].rstrip()[-1:] not in SENTENCE_START:
                (capital if found[0][0].isupper() else small).update(words(found[0]))
    return {word for word, times in capital.items() if times > small[word]}


class Index:
    """The questions of many items, made to be looked up in many documents."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items, self.words = items, [words(item.question) for item in items]
        self.questions = [sequences(question) for question in self.words]
        names = names_in(items)
        self.telling = [{w for w in question if w in names or w.isdigit()} for question in self.words]
        self.spread = Counter(s for distinct in {frozenset(question) for question in self.questions} for s in distinct)
        self.numbers = {word: n for n, word in enumerate(sorted({w for s in self.spread for w in s}), start=1)}
        self.lengths = sorted({len(sequence) for sequence in self.spread})
        keys = {sequence: self.key([self.numbers[word] for word in sequence]) for sequence in self.spread}
        self.keys = np.array(sorted(keys.values()), np.int64)
        self.place = {sequence: int(np.searchsorted(self.keys, key)) for sequence, key in keys.items()}

    def allowed(self, number: int) -> int:
        """How many of a question's sequences may be missing; a changed word breaks all that hold it."""
        return LENGTH * (len(self.words[number]) // TOLERANCE)

    def key(self, numbers: Sequence):
        """One whole number for a run of words, given by their numbers (or by arrays of these)."""
        key = 0
        for number in numbers:
            key = key * (len(self.numbers) + 1) + number
        return key

    def held(self, documents: list[list[str]]) -> csr_array:
        """Which of the sequences each document holds: documents × sequences, 1 or nothing."""
        from scipy.sparse import csr_array

        number, gap = self.numbers.get, [0] * LENGTH  # no sequence reaches over 0: a strange word, a document's end
        text = np.array([n for document in documents for n in [*(number(w, 0) for w in document), *gap]], np.int64)
        owner = np.repeat(np.arange(len(documents)), [len(document) + LENGTH for document in documents])
        found = [np.empty((2, 0), np.int64)]
        for length in self.lengths:
            parts = [text[start : len(text) - length + 1 + start] for start in range(length)]
            known = np.flatnonzero(np.logical_and.reduce([part > 0 for part in parts]))
            keys = self.key([part[known] for part in parts])
            places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            hit = self.keys[places] == keys
            found.append(np.stack([owner[known[hit]], places[hit]]))
        pairs = np.unique(np.concatenate(found, axis=1), axis=1)
        return csr_array((np.ones(pairs.shape[1]), pairs), shape=(len(documents), len(self.keys)))

    def weights(self, documents: np.ndarray) -> csr_array:
        """How much each sequence tells of each question: sequences × items, 1 a question.

        documents: how many hold each sequence. It tells the less the more questions and documents have it, and nothing
        where more than COMMON questions do.
        """
        from scipy.sparse import csr_array

        rows, columns, values = [], [], []
        for number, question in enumerate(self.questions):
            most = max(COMMON, min((self.spread[s] for s in question), default=0))
            own = [s for s in question if self.spread[s] <= most]
            rarity = np.array([1 / max(RARE, self.spread[s] + documents[self.place[s]]) for s in own])
            rows += [self.place[s] for s in own]
            columns += [number] * len(own)
            values += list(rarity / rarity.sum())
        return csr_array((values, (rows, columns)), shape=(len(self.keys), len(self.items)))


def find_leaks(documents: Iterable[str], items: Sequence[Item] | Index) -> list[Leak]:
    """Every item that stands in a document, question and answer, in the order of the documents.

    items: their Index spares time where several sets of documents are searched.
    """
    index = items if isinstance(items, Index) else Index(items)
    places: dict[str, list[int]] = {}  # what stands there twice is no template for it
    for number, document in enumerate(documents):
        places.setdefault(document, []).append(number)
    if not places or not index.items:
        return []
    texts, leaks = list(places), []
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    held = [index.held([words(text) for text in chunk]) for chunk in chunks]
    weights = index.weights(sum(part.sum(axis=0) for part in held))
    for chunk, part in zip(chunks, held, strict=True):
        shares = (part @ weights).tocoo()
        close = shares.data >= NEAR - ROUNDING
        for row, number in zip(shares.row[close].tolist(), shares.col[close].tolist(), strict=True):
            kind = leak_kind(chunk[row], words(chunk[row]), index, number)
            leaks += [Leak(place, number, kind) for place in places[chunk[row]] if kind]
    return sorted(leaks)


def leak_kind(raw: str, document: list[str], index: Index, number: int) -> str | None:
    """How a document, `raw` and in words, leaks an item (see Leak); None when it does not."""
    item, question = index.items[number], f" {' '.join(index.words[number])} "
    text = f" {' '.join(document)} "
    for answer in item.answers:
        given = f" {' '.join(words(answer))} "
        if raw.split() == f"{item.question} {answer}".split():
            return "verbatim"
        if text == question + given[1:]:
            return "recased"
        # Apart from each other: a question may name its answer, and an answer repeat its question
        if question in text and given in text.replace(question, GAP, 1):
            return "embedded"
        if index.telling[number] <= set(document):
            # What tells the answer from the wrong ones: "A goose is a" is in all of them
            length = min(LENGTH, len(words(answer)))
            others = [sequences(words(other), length) for other in (*item.wrong, item.question)]
            telling = sequences(words(answer)).difference(*others)
            rest = _without(text.replace(given, GAP, 1).split(" "), telling)
            missing = index.questions[number] - sequences(rest, len(next(iter(index.questions[number]), ())))
            found = telling & sequences(document, length)
            if telling and len(found) >= SHARE * len(telling) and len(missing) <= index.allowed(number):
                return "overlap"
    return None


def _without(text: list[str], taken: set[tuple]) -> list[str]:
    """The text with a gap wherever one of the sequences stands."""
    length, left = len(next(iter(taken), ())), list(text)
    for start in range(len(text)):
        if tuple(text[start : start + length]) in taken:
            left[start : start + length] = [GAP] * length
    return left


# ---------------------------------------------------------------- the course's files


def texts_of(row: dict) -> list[str]:
    """What a training row lets a model read: a text, a chat, or a prompt with each of two answers."""
    return ["\n".join(turns) for turns in contents(row)]


def read_items(file: str | Path) -> list[Item]:
    """The items of a benchmark's JSONL file: question and choices with a label, with labels, or a written answer."""
    items = []
    for row in read_jsonl(file):
        choices = row.get("choices", [row.get("answer")])
        right = row.get("labels") or [int(number == row.get("label", 0)) for number in range(len(choices))]
        pairs = list(zip(choices, right, strict=True))
        told = (tuple(choice for choice, label in pairs if bool(label) == side) for side in (True, False))
        items.append(Item(row["id"], row["question"], *told))
    return items


def overlaps(corpora: dict[str, list[Path]], benchmarks: dict[str, Path]) -> list[dict]:
    """A row for each corpus and benchmark: documents, items, how many of these leaked, and of which kinds.

    corpora: the files of each corpus, by name. Kept in the cache by the files' contents.
    """
    files = [*(path for paths in corpora.values() for path in paths), *benchmarks.values()]
    sizes = {name: len(paths) for name, paths in corpora.items()}
    settings = {"length": LENGTH, "tolerance": TOLERANCE, "share": SHARE, "near": NEAR, "rare": RARE, "common": COMMON}
    entry = cached("contamination/leaks", settings, sizes, list(benchmarks), [file_hash(file) for file in files])
    return entry.value(lambda: list(_overlaps(corpora, benchmarks)))


def _overlaps(corpora: dict[str, list[Path]], benchmarks: dict[str, Path]) -> Iterator[dict]:
    parts = {name: read_items(file) for name, file in benchmarks.items()}
    index = Index([item for part in parts.values() for item in part])
    for corpus, paths in corpora.items():
        documents = [text for path in paths for row in read_rows(path)[0] for text in texts_of(row)]
        kinds = {leak.item: leak.kind for leak in find_leaks(documents, index)}
        start = 0
        for name, part in parts.items():
            leaked = [kinds[number] for number in range(start, start + len(part)) if number in kinds]
            yield {"corpus": corpus, "documents": len(documents), "benchmark": name, "items": len(part),
                   "leaked": len(leaked), "kinds": dict(Counter(leaked))}  # fmt: skip
            start += len(part)


def course_overlaps(profile: Profile) -> list[dict]:
    """`overlaps` of the corpora shipped and of all others that the profile trains on, against every benchmark shipped.

    Nothing is downloaded: a sample of a data set on the Hub that is not here yet is left out.
    """
    corpora = {file.stem: [file] for file in sorted((data_dir() / "corpora").glob("*.jsonl"))}
    for name in (corpus for stage in profile.order for corpus in profile.stages[stage].data):
        file = sample_file(name, profile.datasets[name]) if name in profile.datasets else Path(name)
        if file.suffix == ".jsonl" and file.is_file():
            corpora[name] = [file]
    items = sorted((data_dir() / "benchmarks" / "items").glob("*.test.jsonl"))
    return overlaps(corpora, {file.name.removesuffix(".test.jsonl"): file for file in items})
