"""Which wrong answers do models find likely? Chosen once, by two models made for this alone, and kept in a table.

A benchmark whose wrong answers are absurd is full at once. The wrong answers of these items are the likeliest three
of up to eight, by the mean rank that two models give them: one of the base's shape with another seed, and a smaller
one. Neither is the shipped base or a stage of it: items that are hard for a model because it chose them itself would
make every later model look better.

`python -m world.likely FOLDER FOLDER` scores the candidates with two models and writes the table.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from anita_utils.paths import data_dir, read_text, write_text


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
        rest = {key: value for key, value in item.items() if key not in ("right", "wrong")}
        order = self.order.get(key_of(item), range(len(item["wrong"])))
        choices = rng.sample([item["right"], *(item["wrong"][number] for number in order[:count])], count + 1)
        return {"question": rest.pop("question"), "choices": choices, "label": choices.index(item["right"]), **rest}
