"""How do texts and chats become tokens to train on, which of them are scored, and how do examples share a row?

>>> rows = packed_rows(read_jsonl(data_dir() / "corpora/sft.jsonl"), tokenizer, row_length=256)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from os.path import commonprefix
from random import Random
from typing import TYPE_CHECKING

from anita_utils import AnitaError
from anita_utils.chat_template import render_text, scored_tokens, token_ids
from anita_utils.rows import SAME

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase as Tokenizer


IGNORED = -100  # torch's label for a token that is not scored


def encode_text(text: str, tokenizer: Tokenizer, max_length: int | None = None) -> dict[str, list[int]]:
    """Running text: one BOS, the text, <|end_of_text|>, or else EOS; every token but the first is scored.

    A BOS that the text already begins with is not doubled (one of the traps in the authors' scripts), and one that the
    tokenizer lacks (ChatML's) is not written.
    """
    end = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    if end in (None, tokenizer.unk_token_id):
        end = tokenizer.eos_token_id
    ids = [tokenizer.bos_token_id, *token_ids(text.removeprefix(tokenizer.bos_token or ""), tokenizer), end]
    ids = [number for number in ids if number is not None][:max_length]
    return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}


def encode_chat(messages: list[dict], tokenizer: Tokenizer, max_length: int | None = None) -> dict[str, list[int]]:
    """A chat through its template; what `chat_template.scored_tokens` finds is scored, or AnitaError."""
    ids, answers = scored_tokens(messages, tokenizer)
    labels = [IGNORED] * len(ids)
    for first, end in answers:
        labels[first:end] = ids[first:end]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def render(messages: list[dict], tokenizer: Tokenizer, add_generation_prompt: bool = False) -> list[int]:
    """The chat as token ids, with exactly the one BOS that the template writes."""
    return token_ids(render_text(messages, tokenizer, add_generation_prompt), tokenizer)


@dataclass
class RowCounts:
    """What became of a stage's rows: of those read, which are trained whole, which cut, which left out and why."""

    read: int = 0  # the sum of all the others
    left_out: Counter[str] = field(default_factory=Counter)  # as they were read, by reason
    not_taken: int = 0  # beyond the number of examples that the profile asks for
    unfit: Counter[str] = field(default_factory=Counter)  # left out once they were encoded, by reason
    cut: int = 0  # longer than a row may be: the end is lost
    whole: int = 0

    def __post_init__(self) -> None:  # from JSON, where they are plain objects
        self.left_out, self.unfit = Counter(self.left_out), Counter(self.unfit)

    def take(self, reason: str | None, length: int, max_length: int) -> bool:
        """Counts an encoded row, which is left out where there is a reason; returns whether it is trained on."""
        if reason:
            self.unfit[reason] += 1
        elif length > max_length:
            self.cut += 1
        else:
            self.whole += 1
        return not reason

    def rows(self) -> list[tuple[str, int]]:
        """A table: what, and how many."""
        reasons = [(f"left out: {why}", count) for why, count in (self.left_out + self.unfit).most_common()]
        beyond = [("not taken (examples)", self.not_taken)] if self.not_taken else []
        return [("read", self.read), *reasons, *beyond, ("cut", self.cut), ("whole", self.whole)]

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {what}" for what, count in self.rows())


def fitting(encoded: list[dict], max_length: int, counts: RowCounts) -> list[dict]:
    """The encoded examples of which something is still scored within `max_length` tokens; all are counted."""
    kept = []
    for example in encoded:
        scored = [place for place, label in enumerate(example["labels"]) if place and label != IGNORED]
        reason = None
        if not scored:
            reason = "nothing scored"
        elif scored[0] >= max_length:
            reason = f"the prompt fills the {max_length} tokens"
        if counts.take(reason, len(example["input_ids"]), max_length):
            kept.append(example)
    return kept


def fitting_pairs(
    pairs: list[dict], tokenizer: Tokenizer, max_length: int, counts: RowCounts
) -> tuple[list[dict], list[int]]:
    """The preference pairs that still differ within `max_length` tokens, and each one's longer side; all are counted.

    TRL's trainer drops a pair whose prompt fills the row without a word, and trains on pairs that have become equal.
    """
    kept, lengths = [], []
    for pair in pairs:
        prompt = render(pair["prompt"], tokenizer, add_generation_prompt=True)
        sides = [render(pair["prompt"] + pair[side], tokenizer) for side in ("chosen", "rejected")]
        reason = None
        if sides[0] == sides[1]:
            reason = SAME
        elif len(commonprefix([prompt, *sides])) >= max_length:
            reason = f"the prompt fills the {max_length} tokens"
        elif sides[0][:max_length] == sides[1][:max_length]:
            reason = f"two answers that are the same in {max_length} tokens"
        if counts.take(reason, max(map(len, sides)), max_length):
            kept.append(pair)
            lengths.append(max(map(len, sides)))
    return kept, lengths


def encode(document: dict, tokenizer: Tokenizer, max_length: int | None = None) -> dict[str, list[int]]:
    """A row {"text": …} or {"messages": […]} as input_ids and labels; one that was encoded before stays as it is."""
    if "input_ids" in document:
        return {name: document[name][:max_length] for name in ("input_ids", "labels")}
    if "messages" in document:
        return encode_chat(document["messages"], tokenizer, max_length)
    if "text" in document:
        return encode_text(document["text"], tokenizer, max_length)
    raise AnitaError(f"a training row has the columns {sorted(document)}: expected `messages` or `text`")


def pack(lengths: list[int], row_length: int) -> list[list[int]]:
    """Which examples share a row: best fit, longest first. Returns the examples' numbers, row by row."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # rows by free places left
    for example in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        free = next((room for room in range(lengths[example], row_length + 1) if with_room[room]), None)
        if free is None:
            rows.append([])
            row, free = len(rows) - 1, row_length
        else:
            row = with_room[free].pop()
        rows[row].append(example)
        with_room[free - lengths[example]].append(row)
    return rows


def packed_rows(
    documents: Iterable[dict], tokenizer: Tokenizer, row_length: int, max_length: int | None = None
) -> Dataset:
    """Documents packed into rows of at most `row_length` tokens: columns input_ids, labels, position_ids and cut.

    max_length: longer documents are cut there, by default at `row_length`; `cut` counts the tokens so lost in a row.

    Position ids begin again at every example and its first label is ignored, so no example sees or predicts another:
    transformers reads the restarts and keeps attention inside each example.
    """
    from datasets import Dataset

    limit = max_length or row_length
    whole = [encode(document, tokenizer) for document in documents]
    lost = [max(0, len(example["input_ids"]) - limit) for example in whole]
    examples = [{name: values[:limit] for name, values in example.items()} for example in whole]
    columns: dict[str, list] = {"input_ids": [], "labels": [], "position_ids": [], "cut": []}
    for row in pack([len(example["input_ids"]) for example in examples], row_length):
        packed = [examples[number] for number in row]
        columns["input_ids"].append([token for example in packed for token in example["input_ids"]])
        columns["labels"].append([label for example in packed for label in [IGNORED, *example["labels"][1:]]])
        columns["position_ids"].append([place for example in packed for place in range(len(example["input_ids"]))])
        columns["cut"].append(sum(lost[number] for number in row))
    return Dataset.from_dict(columns)


def like_lengths(lengths: list[int], batch_size: int, seed: int) -> list[int]:
    """An order of the rows in which each batch holds rows of like length, so that little is padded, and the batches
    come in a drawn order. The last batch is smaller.
    """
    rng = Random(seed)
    drawn = sorted(rng.sample(range(len(lengths)), len(lengths)), key=lambda number: lengths[number])
    whole = len(drawn) // batch_size * batch_size
    batches = [drawn[start : start + batch_size] for start in range(0, whole, batch_size)]
    rng.shuffle(batches)
    return [number for batch in batches for number in batch] + drawn[whole:]


class PackedCollator:
    """Stacks packed rows into one batch; shorter rows are filled up with padding, which is not scored.

    No attention mask: with one, transformers would take the row for a single text.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        batch = {}
        for name, filler in (("input_ids", self.pad_token_id), ("labels", IGNORED)):
            batch[name] = torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in rows])
        places = [row["position_ids"] + list(range(width - len(row["position_ids"]))) for row in rows]
        batch["position_ids"] = torch.tensor(places)
        return batch
