"""What a run's training read: the sentence nearest to an answer, questions with their answers, facts in Italian.

>>> sentences = sentences_of(training_texts(run))
>>> Nearest(list(sentences)).find(["Cosenza si trova in Calabria."])
[('Tropea si trova in Calabria.', 0.61)]
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from anita_utils.data import contents
from anita_utils.evaluation import language_of
from anita_utils.hub import SHIPPED_BASE
from anita_utils.normalisation import normalise
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from anita_utils.stages import find_stage

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from anita_utils.record import Run

END = r"(?<=[.?!])\s+"  # of a sentence
SIZE = 4  # characters in a sequence by which sentences are compared
SHARE = 0.6  # of a question's telling sequences of three words, for another to count as asking the same
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
    return [(corpus, text) for corpus, row in read for text in texts_of(row)]


def texts_of(row: dict) -> list[str]:
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
    whatever stands round it; or it asks a question with at least SHARE of the telling sequences. A shared template is
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
    return asked in ready or any(overlap(asked, padded(sentence), subject) >= SHARE for sentence in sentences)


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
