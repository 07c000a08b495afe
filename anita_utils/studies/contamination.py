"""Whether training text holds benchmark items: a question together with its answer.

>>> item = Item("arc/1", "Who invented volleyball?", ("William Morgan",), ("Alfred Nobel",))
>>> find_leaks(["He asked: WHO invented volleyball? - William Morgan!"], [item])
[Leak(document=0, item=0, kind='embedded')]

A question alone is no leak, nor is a shared template: "Who invented dynamite?" is another question. So where words were
changed, sequences of three words count by how few texts have them, and names and numbers must all be there.
"""
# MERGED DOC:
# """What a run's training read: the sentence nearest to an answer, questions with their answers, facts in Italian.
#
# >>> sentences = sentences_of(training_texts(run))
# >>> Nearest(list(sentences)).find(["Cosenza si trova in Calabria."])
# [('Tropea si trova in Calabria.', 0.61)]
# """

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anita_utils.cache import cached
from anita_utils.data import contents
from anita_utils.evaluation.judges import language_of, normalise, straight
from anita_utils.hub import SHIPPED_BASE, sample_file
from anita_utils.paths import data_dir, file_hash
from anita_utils.profile import Profile
from anita_utils.rows import read_jsonl, read_rows
from anita_utils.stages import find_stage

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from anita_utils.run import Run


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


# ---------------------------------------------------------------- reading


END = r"(?<=[.?!])\s+"  # of a sentence
SIZE = 4  # characters in a sequence by which sentences are compared
ASKED = 0.6  # of a question's telling sequences of three words, for another to count as asking the same
TEMPLATE = 0.5  # of an answer's words besides the names, for a sentence to count as its template
READ = ("both names, in Italian", "both names, in English", "a template", "nothing like it")


def training_texts(run: Run) -> list[tuple[str, str]]:
    """(corpus, text) of every document that the run's stages read, a pair's two answers apart.

    Of what the shipped base read there is a sample; of another base nothing is known.
    """
    read = [(name, row) for name in run.profile.order for row in find_stage(run, name).documents()]
    if run.profile.model.base == SHIPPED_BASE:
        sample = read_jsonl(data_dir() / "corpora" / "pretraining_sample.jsonl")
        read = [("base (sample)", row) for row in sample] + read
    return [(corpus, text) for corpus, row in read for text in plain_texts(row)]


def plain_texts(row: dict) -> list[str]:
    """What a training row says, as plain text: one text, or one for each answer of a preference pair."""
    return [" ".join(turns) for turns in contents(row)]


def sentences_of(texts: Iterable[tuple[str, str]], most: int = 60_000) -> dict[str, str]:
    """Each different sentence with the corpus that has it first, up to `most` sentences."""
    found: dict[str, str] = {}
    for corpus, text in texts:
        for sentence in re.split(END, text):
            if len(found) >= most:
                return found
            found.setdefault(sentence, corpus)
    return found


def padded(text: str) -> str:
    """A text in the form in which whole words are looked for."""
    return f" {normalise(text)} "


def naming(texts: list[str], names: list[tuple[str, ...]]) -> list[list[int]]:
    """For each group of names the numbers of the texts that hold all of them as whole words; both are `padded`."""
    wanted = {word for group in names for name in group for word in name.split()}
    places: dict[str, set[int]] = defaultdict(set)
    for number, text in enumerate(texts):
        for word in wanted.intersection(text.split()):
            places[word].add(number)
    found = []
    for group in names:
        shared = set.intersection(*(places[word] for name in group for word in name.split()))
        found.append(sorted(number for number in shared if holds(texts[number], group)))
    return found


def holds(text: str, names: Iterable[str]) -> bool:
    """Whether a text holds all the names apart: "vitello tonnato" holds no "vitello" besides. All are `padded`."""
    for name in sorted(names, key=len, reverse=True):
        if name not in text:
            return False
        text = text.replace(name, "  ")
    return True


def named(row: dict, language: str = "it") -> tuple[str, str]:
    """Subject and right object of a question, padded."""
    return padded(row["subject"][language]), padded(row["right"][language])


def overlap(question: str, text: str, subject: str) -> float:
    """The share of the question's sequences of three words that stand in the text (all padded).

    Only sequences with a word of the subject tell anything: the others are template.
    """
    words = question.split()
    runs = [words[start : start + 3] for start in range(max(1, len(words) - 2))]
    telling = [run for run in runs if set(run) & set(subject.split())] or runs
    return sum(f" {' '.join(run)} " in text for run in telling) / len(telling)


def leaks(items: list[dict], texts: list[str]) -> list[list[int]]:
    """For each Italian question the numbers of the texts that hold it together with its answer.

    Such a text names subject and right object, and holds the question word for word, whatever its case and marks and
    whatever stands round it; or it asks a question with at least ASKED of the telling sequences. A shared template is
    no leak, nor is the fact alone, however much of the question its wording shares.
    """
    ready, pairs = [padded(text) for text in texts], [named(row) for row in items]
    return [
        [number for number in numbers if asks(texts[number], ready[number], row["prompt"], pair[0])]
        for row, pair, numbers in zip(items, pairs, naming(ready, pairs), strict=True)
    ]


def asks(text: str, ready: str, question: str, subject: str) -> bool:
    """Whether a text (`ready`: the same, padded) asks the question about that subject."""
    asked = padded(question)
    sentences = [sentence for sentence in re.split(END, text) if sentence.rstrip().endswith("?")]
    return asked in ready or any(overlap(asked, padded(sentence), subject) >= ASKED for sentence in sentences)


def times_read(items: list[dict], sentences: Iterable[str]) -> list[int]:
    """For each question how many of the sentences are Italian and name its subject together with its right object."""
    sentences = list(sentences)
    found = naming([padded(sentence) for sentence in sentences], [named(row) for row in items])
    return [sum(language_of(sentences[number]) == "it" for number in numbers) for numbers in found]


class Nearest:
    """Finds the sentence most like a text: the cosine of weighted counts of character sequences (TF-IDF)."""

    def __init__(self, sentences: list[str], size: int = SIZE) -> None:
        self.sentences, self.size, self.places = sentences, size, {}
        counts = [self._grams(sentence) for sentence in sentences]
        for gram in (gram for row in counts for gram in row):
            self.places.setdefault(gram, len(self.places))
        spread = Counter(gram for row in counts for gram in row)
        self.weights = np.array([np.log((1 + len(counts)) / (1 + spread[gram])) + 1 for gram in self.places])
        self.matrix = self._matrix(counts)

    def _grams(self, text: str) -> Counter:
        text = padded(text)
        return Counter(text[start : start + self.size] for start in range(len(text) - self.size + 1))

    def _matrix(self, counts: list[Counter]) -> csr_array:
        """Rows of length 1; sequences that no sentence has are left out."""
        from scipy.sparse import csr_array

        values, columns, starts = [np.empty(0)], [], [0]
        for grams in counts:
            known = {self.places[gram]: times for gram, times in grams.items() if gram in self.places}
            weighted = np.array(list(known.values())) * self.weights[list(known)]
            values.append(weighted / (np.linalg.norm(weighted) or 1.0))
            columns += known
            starts.append(len(columns))
        return csr_array((np.concatenate(values), columns, starts), shape=(len(counts), len(self.places)))

    def find(self, texts: list[str]) -> list[tuple[str, float]]:
        """The nearest sentence to each text, and its cosine: 1 for the same words, 0 for nothing shared."""
        if not texts:
            return []
        likeness = (self._matrix([self._grams(text) for text in texts]) @ self.matrix.T).toarray()
        return [(self.sentences[row.argmax()], float(row.max())) for row in likeness]


def what_was_read(row: dict, sentence: str) -> str:
    """What a training sentence is to an answered question, one of READ."""
    text, names = padded(sentence), [named(row, code) for code in ("en", "it")]
    if any(holds(text, pair) for pair in names):
        return READ[0] if language_of(sentence) == "it" else READ[1]
    own = {word for pair in names for name in pair for word in name.split()}
    words = set(normalise(row["answer"]).split()) - own
    return READ[2] if words and len(words & set(text.split())) >= TEMPLATE * len(words) else READ[3]
