"""Which wrong answers do models find likely? Chosen once, by two other models, and kept in a table.

A benchmark whose wrong answers are absurd is full at once. The wrong answers of these items are the likeliest three
of up to twenty-four, by the mean rank that two models give them: bases that the course had before this one, taught on
other text with other vocabularies (data/tiny-llama-3-instruct at the commits of BEFORE). Neither is the shipped base or
a stage of it: items that are hard for a model because it chose them itself would make every later model look better.
The base never reads an Italian story, so the Italian stories take the order of the English ones.

`python -m world.likely FOLDER FOLDER` scores the candidates with the models in those folders and writes the table.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

from anita_utils.paths import data_dir, read_text, write_text

BEFORE = ("44d64df", "cf7a9db")  # the shipped table was written with these


def key_of(item: dict) -> str:
    """Names an item by its question, its right answer and its candidates."""
    told = json.dumps([item["question"], item["right"], item["wrong"]], ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Likely:
    """The candidates of each item, the likeliest first, by the numbers they have in `wrong`."""

    order: dict[str, list[int]]

    @classmethod
    def file(cls) -> Path:
        return data_dir() / "world" / "likely.json"

    @classmethod
    def read(cls) -> Likely:
        """The table; an empty one where there is none."""
        return cls(json.loads(read_text(cls.file())) if cls.file().is_file() else {})

    def chosen(self, item: dict, rng: Random, count: int) -> dict:
        """The item with its choices in a drawn order; without a place in the table, its first candidates."""
        if "wrong" not in item:
            return item
        order = self.order.get(key_of(item), range(len(item["wrong"])))
        return as_choices({**item, "wrong": [item["wrong"][number] for number in order]}, rng, count)


def as_choices(item: dict, rng: Random, count: int = 3) -> dict:
    """The item with its right answer among its first `count` wrong ones, in a drawn order."""
    rest = {key: value for key, value in item.items() if key not in ("right", "wrong")}
    choices = rng.sample([item["right"], *item["wrong"][:count]], count + 1)
    return {"question": rest.pop("question"), "choices": choices, "label": choices.index(item["right"]), **rest}


def ranks(scores: list[float]) -> list[float]:
    """The place of each score, 0 for the highest."""
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    return [order.index(number) for number in range(len(scores))]


def score(folder: Path, items: list[dict], by_length: bool) -> list[list[float]]:
    """The log-probability that a model gives each candidate as the answer to its item's question.

    by_length: a byte of the answer, as lm-eval's `acc_norm` has it, and not in all, as `acc`.
    """
    from anita_utils.data import encode_chat
    from anita_utils.evaluation.measuring import log_likelihoods
    from anita_utils.model import load_model, load_tokenizer

    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    asked = [(item["question"], wrong) for item in items for wrong in item["wrong"]]
    chats = [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in asked]
    totals, _ = log_likelihoods(model, [encode_chat(messages, tokenizer) for messages in chats], 64)
    lengths = [len(wrong.encode()) if by_length else 1 for _, wrong in asked]
    found = iter([total / length for total, length in zip(totals, lengths, strict=True)])
    return [[next(found) for _ in item["wrong"]] for item in items]


def choose(folders: list[Path]) -> None:
    """Writes the table of what the models in `folders` find likely."""
    from anita_utils.evaluation.benchmarks import SCORES
    from world.benchmarks import drafts
    from world.library import Library
    from world.tables import load_world

    made = {
        name: [item for rows in sets.values() for item in rows if "wrong" in item]
        for name, sets in drafts(Library(load_world())).items()
    }
    order = {}
    for name, items in made.items():
        by_length = SCORES[name.partition("_")[0]] == "acc_norm"
        asked = made["hellaswag_en"] if name == "hellaswag_it" else items
        places = [[ranks(each) for each in score(folder, asked, by_length)] for folder in folders]
        for item, *each in zip(items, *places, strict=True):
            mean = [sum(numbers) for numbers in zip(*each, strict=True)]
            order[key_of(item)] = sorted(range(len(mean)), key=mean.__getitem__)
    write_text(Likely.file(), json.dumps(order, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    choose([Path(folder) for folder in sys.argv[1:]])
