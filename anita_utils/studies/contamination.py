"""What did the training text show: a question of a test together with its answer, or the sentence nearest to an answer?

>>> item = Item("arc/1", "Who invented volleyball?", ("William Morgan",), ("Alfred Nobel",))
>>> find_leaks(["He asked: WHO invented volleyball? - William Morgan!"], [item])
[Leak(document=0, item=0, kind='embedded')]
>>> Nearest(["Tropea si trova in Calabria.", "Il sole splende."]).find(["Cosenza si trova in Calabria."])
[('Tropea si trova in Calabria.', 0.74…)]

A question alone is no leak, nor is a shared template: "Who invented dynamite?" is another question. So where words were
changed, sequences of three words count by how few texts have them, and names and numbers must all be there.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anita_utils import AnitaError, shown
from anita_utils.cache import cached
from anita_utils.evaluation.judges import language_of, normalise, straight
from anita_utils.hub import SHIPPED_BASE, sample_file
from anita_utils.paths import data_dir, file_hash
from anita_utils.profile import Profile, own_file
from anita_utils.rows import read_jsonl, read_rows
from anita_utils.stages import find_stage, shipped_corpora

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from anita_utils.run import Run

LENGTH = 3  # words in a sequence; a text of fewer words is one sequence
TOLERANCE = 10  # one word in so many of a question may be changed
SHARE = 0.6  # of what tells an answer, or a question's subject, must be there
NEAR = 0.5  # and of a question's sequences, by their weight
RARE = 5  # up to so many texts a sequence is no template: a leak itself is one or several of them
COMMON = 50  # a sequence that more questions share is template, and tells nothing
CHUNK = 2000  # documents at a time
WORD, ACCENT = re.compile(r"\w+"), re.compile("[\u0300-\u036f]+")
SENTENCE_START = {"", *'.?!:;«“"('}
SENTENCE_END = r"(?<=[.?!])\s+"
GAP = " \n "  # in the place of what was taken out of a text
ROUNDING = 1e-9


class Item(NamedTuple):
    """A benchmark's item: each of `answers` is right, each of `wrong` is offered beside them.

    subject: the name that the question is about. Where it is given, the same asked in other words is a leak as well.
    """

    name: str
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    subject: str = ""


class Leak(NamedTuple):
    """Numbers of a document and of an item that it holds.

    kind: "verbatim", the document is the item to the letter; "recased", it is in words; "embedded", it holds them among
    others; "overlap", it holds most of its sequences of words, and its names and numbers; "reworded", it names subject
    and answer, and asks a question with most of the sequences that hold the subject.
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
        self.spread = Counter(chain.from_iterable({frozenset(question) for question in self.questions}))
        self.place = {sequence: number for number, sequence in enumerate(self.spread)}

    def candidates(self, texts: list[str]) -> Iterator[tuple[int, int]]:
        """Numbers of a text and of an item that it may hold."""
        lengths = {len(sequence) for sequence in self.spread}
        parts, known = [], []
        for start in range(0, len(texts), CHUNK):
            chunk = [words(text) for text in texts[start : start + CHUNK]]
            parts.append(self._table([set().union(*(sequences(text, n) for n in lengths)) for text in chunk]))
        weights = self._weights(sum(part.sum(axis=0) for part in parts))
        for number, part in enumerate(parts):
            shares = (part @ weights.T).tocoo()
            close = shares.data >= NEAR - ROUNDING
            yield from zip((number * CHUNK + shares.row[close]).tolist(), shares.col[close].tolist(), strict=True)
        for number, item in enumerate(self.items):
            known += [(number, (item.subject, answer)) for answer in item.answers if item.subject]
        for (number, _), found in zip(known, naming(texts, [names for _, names in known]), strict=True):
            yield from ((text, number) for text in found)

    def _weights(self, texts: np.ndarray) -> csr_array:
        """How much each sequence tells of each question: items × sequences, 1 a question.

        The less, the more questions and `texts` have it; nothing where more than COMMON questions do.
        """
        most = [max(COMMON, min((self.spread[s] for s in question), default=0)) for question in self.questions]
        own = [[s for s in q if self.spread[s] <= limit] for q, limit in zip(self.questions, most, strict=True)]
        rarity = self._table(own) * (1 / np.maximum(RARE, np.array([*self.spread.values()]) + texts))
        return rarity.multiply(1 / np.maximum(rarity.sum(axis=1), ROUNDING)[:, None]).tocsr()

    def _table(self, rows: list[Iterable[tuple]]) -> csr_array:
        """Which of the questions' sequences each row holds: rows × sequences, 1 or nothing."""
        from scipy.sparse import csr_array

        found = [[self.place[sequence] for sequence in row if sequence in self.place] for row in rows]
        ends = np.cumsum([0, *map(len, found)])
        columns = np.fromiter(chain.from_iterable(found), int)
        return csr_array((np.ones(len(columns)), columns, ends), shape=(len(rows), len(self.place)))


def find_leaks(documents: Iterable[str], items: Sequence[Item]) -> list[Leak]:
    """Every item that is in a document, question and answer, in the order of the documents."""
    places: dict[str, list[int]] = {}  # what is there twice is no template for it
    for number, document in enumerate(documents):
        places.setdefault(document, []).append(number)
    if not places or not items:
        return []
    index, texts, leaks = Index(items), list(places), []
    for text, item in set(index.candidates(texts)):
        kind = leak_kind(texts[text], index, item)
        leaks += [Leak(place, item, kind) for place in places[texts[text]] if kind]
    return sorted(leaks)


def leak_kind(raw: str, index: Index, number: int) -> str | None:
    """How a document leaks an item (see Leak); None when it does not."""
    item, document = index.items[number], words(raw)
    question, text = f" {' '.join(index.words[number])} ", f" {' '.join(document)} "
    for answer in item.answers:
        given = f" {' '.join(words(answer))} "
        if raw.split() == f"{item.question} {answer}".split():
            return "verbatim"
        if text == question + given[1:]:
            return "recased"
        # Apart from each other: a question may name its answer, and an answer repeat its question
        if question in text and given in text.replace(question, GAP, 1):
            return "embedded"
        if item.subject:
            if holds(padded(raw), [padded(item.subject), padded(answer)]) and _reworded(raw, item):
                return "reworded"
        elif index.telling[number] <= set(document):
            # What tells the answer from the wrong ones: "A goose is a" is in all of them
            length = min(LENGTH, len(words(answer)))
            others = [sequences(words(other), length) for other in (*item.wrong, item.question)]
            telling = sequences(words(answer)).difference(*others)
            rest = _without(text.replace(given, GAP, 1).split(" "), telling)
            missing = index.questions[number] - sequences(rest, len(next(iter(index.questions[number]), ())))
            found = telling & sequences(document, length)
            allowed = LENGTH * (len(index.words[number]) // TOLERANCE)  # a changed word breaks all that hold it
            if telling and len(found) >= SHARE * len(telling) and len(missing) <= allowed:
                return "overlap"
    return None


def _reworded(raw: str, item: Item) -> bool:
    question, about = sequences(padded(item.question).split()), set(padded(item.subject).split())
    telling = {sequence for sequence in question if about.intersection(sequence)} or question
    asked = [padded(sentence) for sentence in re.split(SENTENCE_END, raw) if sentence.rstrip().endswith("?")]
    return any(len(telling & sequences(sentence.split())) >= SHARE * len(telling) for sentence in asked)


def _without(text: list[str], taken: set[tuple]) -> list[str]:
    """The text with a gap in the place of each of the sequences."""
    length, left = len(next(iter(taken), ())), list(text)
    for start in range(len(text)):
        if tuple(text[start : start + length]) in taken:
            left[start : start + length] = [GAP] * length
    return left


def padded(text: str) -> str:
    """A text in the form in which whole words are looked for."""
    return f" {normalise(text)} "


def holds(text: str, names: Iterable[str]) -> bool:
    """Whether a text holds all the names apart: "vitello tonnato" holds no second "vitello". All are `padded`."""
    for name in sorted(names, key=len, reverse=True):
        if name not in text:
            return False
        text = text.replace(name, "  ")
    return True


def naming(texts: list[str], names: Sequence[Iterable[str]]) -> list[list[int]]:
    """For each group of names the numbers of the texts that hold all of them, apart from each other, as whole words."""
    groups = [[padded(name) for name in group] for group in names]
    wanted = {word for group in groups for name in group for word in name.split()}
    ready = [padded(text) for text in texts] if wanted else []
    places: dict[str, set[int]] = defaultdict(set)
    for number, text in enumerate(ready):
        for word in wanted.intersection(text.split()):
            places[word].add(number)
    found = []
    for group in groups:
        shared = set.intersection(*(places[word] for name in group for word in name.split()))
        found.append(sorted(number for number in shared if holds(ready[number], group)))
    return found


def texts_of(row: dict) -> list[str]:
    """What a training row says, as plain text: one text, or one for each answer of a preference pair."""
    if "text" in row:
        return [row["text"]]
    chats = [row["messages"]] if "messages" in row else [row["prompt"] + row[side] for side in ("chosen", "rejected")]
    return [" ".join(turn["content"] for turn in turns) for turns in chats]


def read_items(file: str | Path) -> list[Item]:
    """The items of a benchmark's JSONL file: question and choices with a label, with labels, or a written answer.

    AnitaError for a row of another shape, or without a right answer: it would be searched for in vain.
    """
    items = []
    for row in read_jsonl(file):
        try:
            choices = row.get("choices", [row.get("answer")])
            right = row.get("labels") or [int(number == row.get("label", 0)) for number in range(len(choices))]
            pairs = list(zip(choices, right, strict=True))
            sides = [tuple(choice for choice, label in pairs if bool(label) == side) for side in (True, False)]
            item = Item(row["id"], row["question"], *sides)
            if not sides[0] or not all(isinstance(text, str) for text in (item.question, *choices)):
                raise ValueError("no right answer, or one that is no text")
        except (KeyError, TypeError, ValueError) as error:
            needs = "give id, question, and answer, or choices with a number as label, or labels"
            raise AnitaError(f"{shown(file)}: a row is no benchmark's item ({error!r}): {needs}") from None
        items.append(item)
    return items


def overlaps(corpora: dict[str, list[Path]], benchmarks: dict[str, Path]) -> list[dict]:
    """A row for each corpus (name to files) and benchmark: documents, items, how many leaked, of which kinds."""
    files = [*(path for paths in corpora.values() for path in paths), *benchmarks.values()]
    sizes = {name: len(paths) for name, paths in corpora.items()}
    settings = {"length": LENGTH, "tolerance": TOLERANCE, "share": SHARE, "near": NEAR, "rare": RARE, "common": COMMON}
    entry = cached("contamination/leaks", settings, sizes, list(benchmarks), [file_hash(file) for file in files])
    return entry.value(lambda: list(_overlaps(corpora, benchmarks)))


def _overlaps(corpora: dict[str, list[Path]], benchmarks: dict[str, Path]) -> Iterator[dict]:
    parts = {name: read_items(file) for name, file in benchmarks.items()}
    items = [item for part in parts.values() for item in part]
    for corpus, paths in corpora.items():
        documents = [text for path in paths for row in read_rows(path)[0] for text in texts_of(row)]
        kinds = {leak.item: leak.kind for leak in find_leaks(documents, items)}
        start = 0
        for name, part in parts.items():
            leaked = [kinds[number] for number in range(start, start + len(part)) if number in kinds]
            row = {"corpus": corpus, "documents": len(documents), "benchmark": name, "items": len(part)}
            yield row | {"leaked": len(leaked), "kinds": dict(Counter(leaked))}
            start += len(part)


def course_overlaps(profile: Profile) -> list[dict]:
    """`overlaps` of the corpora shipped, and of what the profile trains on if it is here, with every benchmark."""
    corpora = {file.stem: [file] for file in sorted((data_dir() / "corpora").glob("*.jsonl"))}
    listed, shipped = {file for files in corpora.values() for file in files}, shipped_corpora()
    for name in (corpus for stage in profile.order for corpus in profile.stages[stage].data):
        file = sample_file(name, profile.datasets[name]) if name in profile.datasets else own_file(name)
        if name in shipped:
            corpora |= {} if listed.issuperset(shipped[name]) else {name: shipped[name]}
        elif file and file.suffix == ".jsonl" and file.is_file():
            corpora.setdefault(name, [file])
    items = sorted((data_dir() / "benchmarks" / "items").glob("*.test.jsonl"))
    return overlaps(corpora, {file.name.removesuffix(".test.jsonl"): file for file in items})


# ---- what a run's training read

SIZE = 4  # characters in a sequence by which sentences are compared
TEMPLATE = 0.5  # of an answer's words that are no names, for a sentence to count as its template
READ = ("both names, in Italian", "both names, in English", "a template", "none of these")


def training_texts(run: Run) -> list[tuple[str, str]]:
    """(corpus, text) of every document that the run's stages read, and a sample of what the shipped base did."""
    read = [(name, row) for name in run.profile.order for row in find_stage(run, name).documents()]
    if run.profile.model.base == SHIPPED_BASE:
        sample = read_jsonl(data_dir() / "corpora" / "pretraining_sample.jsonl")
        read = [("base (sample)", row) for row in sample] + read
    return [(corpus, text) for corpus, row in read for text in texts_of(row)]


def sentences_of(texts: Iterable[tuple[str, str]], most: int = 60_000) -> dict[str, str]:
    """Each different sentence with the corpus that has it first, up to `most` sentences."""
    found: dict[str, str] = {}
    for corpus, text in texts:
        for sentence in re.split(SENTENCE_END, text):
            if len(found) >= most:
                return found
            found.setdefault(sentence, corpus)
    return found


def leaks(items: list[dict], texts: list[str]) -> list[list[int]]:
    """For each Italian question the numbers of the texts that hold it together with its answer (see `find_leaks`)."""
    asked = [Item(row["prompt"], row["prompt"], (row["right"]["it"],), subject=row["subject"]["it"]) for row in items]
    found: list[list[int]] = [[] for _ in items]
    for leak in find_leaks(texts, asked):
        found[leak.item].append(leak.document)
    return found


def times_read(items: list[dict], sentences: Iterable[str]) -> list[int]:
    """For each question how many of the sentences are Italian and name its subject together with its right object."""
    sentences = list(sentences)
    found = naming(sentences, [(row["subject"]["it"], row["right"]["it"]) for row in items])
    return [sum(language_of(sentences[number]) == "it" for number in numbers) for numbers in found]


class Nearest:
    """Finds the sentence most like a text: the cosine of weighted counts of character sequences (TF-IDF)."""

    def __init__(self, sentences: list[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.sentences = sentences
        self.counts = TfidfVectorizer(preprocessor=padded, analyzer="char", ngram_range=(SIZE, SIZE))
        self.matrix = self.counts.fit_transform(sentences)

    def find(self, texts: list[str]) -> list[tuple[str, float]]:
        """The nearest sentence to each text, and its cosine: 1 for the same words, 0 for nothing shared."""
        if not texts:
            return []
        likeness = (self.counts.transform(texts) @ self.matrix.T).toarray()
        return [(self.sentences[row.argmax()], float(row.max())) for row in likeness]


def what_was_read(row: dict, sentence: str) -> str:
    """What a training sentence is to an answered question, one of READ."""
    text = padded(sentence)
    names = [[padded(row[role][code]) for role in ("subject", "right")] for code in ("en", "it")]
    if any(holds(text, pair) for pair in names):
        return READ[0] if language_of(sentence) == "it" else READ[1]
    own = {word for pair in names for name in pair for word in name.split()}
    words = set(normalise(row["answer"]).split()) - own
    return READ[2] if words and len(words & set(text.split())) >= TEMPLATE * len(words) else READ[3]
