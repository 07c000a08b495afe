"""How long the search for leaks takes: 100,000 documents of 100 words against 10,000 items, some of them leaked.

python benchmarks/contamination_speed.py            # under a minute; --documents and --items make it smaller

Half of the documents are prose of drawn words, half are the items' own templates filled otherwise, which share most of
their words and must not be taken for leaks. Writes contamination_speed.json into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import accumulate
from pathlib import Path
from random import Random

from anita_utils.paths import write_text
from anita_utils.run import where_and_when
from anita_utils.studies.contamination import Item, find_leaks

RESULTS = Path(__file__).parent / "results"
SYLLABLES = [c + v for c in ("b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
             for v in "aeiou"]  # fmt: skip
KINDS = ("verbatim", "recased", "embedded", "overlap")


class Prose:
    """Sentences of drawn words, few of them frequent and many rare, as in real text (Zipf's law)."""

    def __init__(self, seed: int, size: int = 30_000) -> None:
        self.random = Random(seed)
        drawn = {"".join(self.random.choices(SYLLABLES, k=self.random.randint(1, 4))) for _ in range(2 * size)}
        self.vocabulary = self.random.sample(sorted(drawn), min(size, len(drawn)))
        self.weights = list(accumulate(1 / rank for rank in range(1, len(self.vocabulary) + 1)))

    def words(self, count: int) -> list[str]:
        return self.random.choices(self.vocabulary, cum_weights=self.weights, k=count)

    def templates(self, count: int) -> list[str]:
        """Questions with two gaps: a name's and a thing's."""
        made = []
        for _ in range(count):
            parts = [" ".join(self.words(4)) for _ in range(3)]
            made.append(f"{parts[0].capitalize()} {{name}} {parts[1]} {{thing}} {parts[2]}?")
        return made

    def item(self, number: int, templates: list[str]) -> Item:
        """Of every two items one is of a template, the other of 20 words of its own; four answers in sentences."""
        if number % 2:
            question = self.fill(templates[number % len(templates)])
        else:
            question = " ".join(self.words(20)).capitalize() + "?"
        answers = [f"Il {' '.join(self.words(5))}." for _ in range(4)]
        return Item(str(number), question, tuple(answers[:1]), tuple(answers[1:]))

    def fill(self, template: str) -> str:
        name = "".join(self.random.choices(SYLLABLES, k=4)).capitalize()
        return template.format(name=name, thing=self.random.choice(self.vocabulary))

    def changed(self, text: str, every: int = 10) -> str:
        """The text with one word in `every` replaced, names left as they are."""
        words = text.split()
        plain = [place for place, word in enumerate(words) if word.islower() and word[-1].isalpha()]
        for place in self.random.sample(plain, min(len(plain), len(words) // every)):
            words[place] = self.random.choice(self.vocabulary)
        return " ".join(words)


def plant(prose: Prose, item: Item, kind: str, around: list[str]) -> str:
    """A document that leaks the item in that way."""
    question, answer = item.question, item.answers[0]
    if kind == "verbatim":
        return f"{question} {answer}"
    if kind == "recased":
        return f"{question.upper()}\n{answer.lower()}"
    if kind == "overlap":
        question = prose.changed(question)
    half = len(around) // 2
    return f"{' '.join(around[:half])}. {question} {answer} {' '.join(around[half:])}."


def material(documents: int, items: int, seed: int = 0, share: float = 0.01):
    """Documents and items, and what was planted in which document: {document: (item, kind)}."""
    prose = Prose(seed)
    templates = prose.templates(max(1, items // 50))
    asked = [prose.item(number, templates) for number in range(items)]
    texts, planted = [], {}
    for number in range(documents):
        if number % 2:
            filled = prose.fill(templates[number % len(templates)])
            text = f"{filled} {asked[number % items].answers[0]} {' '.join(prose.words(78))}."
        else:
            text = " ".join(prose.words(100)).capitalize() + "."
        if prose.random.random() < share:
            kind = KINDS[len(planted) % len(KINDS)]
            item = prose.random.randrange(items)
            if kind == "overlap":
                item -= item % 2  # of a template, another word can make another question
            text = plant(prose, asked[item], kind, prose.words(70))
            planted[number] = (item, kind)
        texts.append(text)
    return texts, asked, planted


def measure(documents: int, items: int, seed: int = 0) -> dict:
    texts, asked, planted = material(documents, items, seed)
    start, cpu = time.perf_counter(), time.process_time()
    leaks = find_leaks(texts, asked)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    found = {(leak.document, leak.item) for leak in leaks}
    wanted = {(document, item) for document, (item, _) in planted.items()}
    by_kind = {}
    for kind in KINDS:
        own = [(document, item) for document, (item, how) in planted.items() if how == kind]
        by_kind[kind] = {"planted": len(own), "found": sum(pair in found for pair in own)}
    return {"documents": documents, "words": sum(len(text.split()) for text in texts), "items": items,
            "seconds": round(seconds, 2), "processor_seconds": round(cpu, 2), "kinds": by_kind,
            "found_but_not_planted": len(found - wanted), "cores": os.cpu_count(),
            **where_and_when()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measure(options.documents, options.items)
    write_text(options.out / "contamination_speed.json", json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
