"""Which paragraphs and rows are not trained on, and why? Broken or foreign text, what was there before, leaks.

>>> unfit("La cittÃ  Ã¨ antica."), unfit("| 3216 | 859 | 4075 |")
('broken characters', 'tables and code')
>>> near_duplicates(["La Dora passa per Torino.", "Il Po", "la Dora passa per Torino!"])
{2: 0}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from anita_utils.paths import data_dir
from anita_utils.studies.contamination import Item, find_leaks, read_items, sequences, words

# What decoding replaced, control characters, and UTF-8 that was read as Latin-1: "Ã¨" for "è", "â€™" for "’", and "Ã"
# before what was a no-break space, for "à"
BROKEN = re.compile("[\ufffd\x00-\x08\x0e-\x1f\x7f-\x9f]|[ÃÂ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|Ã(?![^\\W\\d_])|â€")
LETTERS = 0.7  # of what is no white space; less is a table or code
SIMILAR = 0.8  # the share of two paragraphs' sequences of words that both have, from which the later is left out
PERMUTATIONS = 128
FALSE_ALARMS, MISSES = 0.1, 0.9  # what the bands of MinHash avoid; false alarms are compared again, and cost time only


def unfit(text: str) -> str | None:
    """Why a text is no prose; None where it is."""
    if BROKEN.search(text):
        return "broken characters"
    signs = re.sub(r"\s", "", text)
    return "tables and code" if sum(map(str.isalpha, signs)) < LETTERS * len(signs) else None


@cache
def _identifier():
    """An identifier of its own: the judges' is bound to two languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def language(text: str) -> str:
    """The most likely of py3langid's languages, by its code: it."""
    return _identifier().classify(text)[0]


def near_duplicates(texts: Sequence[str], similar: float = SIMILAR) -> dict[int, int]:
    """The numbers of texts that repeat an earlier one, each with that one's number.

    Two texts repeat each other where their sets of sequences of three words have at least this Jaccard index.
    Candidates come from MinHash, which misses a few near the bound; each is compared in full.
    """
    from datasketch import MinHash, MinHashLSH

    index, empty = MinHashLSH(similar, PERMUTATIONS, weights=(FALSE_ALARMS, MISSES)), MinHash(PERMUTATIONS)
    found = {}
    for number, text in enumerate(texts):
        own, sketch = sequences(words(text)), empty.copy()
        sketch.update_batch([" ".join(sequence).encode() for sequence in own])
        candidates = sorted(index.query(sketch))
        first = next((other for other in candidates if jaccard(own, sequences(words(texts[other]))) >= similar), None)
        if first is None:
            index.insert(number, sketch)
        else:
            found[number] = first
    return found


def jaccard(one: set, other: set) -> float:
    """The share of the elements of two sets that both have; 1 for two empty ones."""
    return len(one & other) / len(one | other) if one or other else 1.0


def benchmark_files() -> list[Path]:
    """The items of the kit's own benchmarks, those of the test and those to tune by."""
    items = data_dir() / "benchmarks" / "items"
    return sorted([*items.glob("*.test.jsonl"), *items.glob("*.development.jsonl")])


def leaks(rows: Sequence[str], files: Sequence[Path]) -> dict[int, list[str]]:
    """The numbers of rows that hold a benchmark's question with its answer, and the names of these items."""
    items: list[Item] = [item for file in files for item in read_items(file)]
    found: dict[int, list[str]] = {}
    for leak in find_leaks(rows, items):
        found.setdefault(leak.document, []).append(items[leak.item].name)
    return found
