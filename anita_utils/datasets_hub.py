"""Data sets on the Hub, streamed, sampled and brought into the course's row formats.

>>> name = "efederici/evol-dpo-ita"
>>> fetch(name, load_profile("laptop").datasets[name])     # a .jsonl file, downloaded once
PosixPath('…/runs/cache/datasets/efederici--evol-dpo-ita-….jsonl')

Whatever a data set's columns, a row comes out as {"messages": …}, {"text": …} or {"prompt", "chosen", "rejected"}.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from anita_utils import AnitaError
from anita_utils.profile import HubData
from anita_utils.record import cache_dir

BUFFER = 10_000  # rows that a stream is shuffled among; so many are read before the first one comes out
VERSION = 1  # raise it when this file makes other rows of the same data, so that no cached sample passes for a new one
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)
SPEAKERS = {"human": "user", "gpt": "assistant"}  # names that older chat data gives to the two roles


# ---------------------------------------------------------------- one row, into the course's format
# Each of these returns None for a row that teaches nothing: an empty answer, or two answers that are the same.


def chat(row: dict) -> dict | None:
    """A row with `messages` or `conversations`: ultrachat_200k, capybara-claude-15k-ita."""
    messages = turns(row["messages"] if "messages" in row else row["conversations"])
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    return {"messages": messages} if answers and all(answer.strip() for answer in answers) else None


def instruction(row: dict) -> dict | None:
    """A row in Alpaca's format, where `input` may be missing or empty."""
    request = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return chat({"messages": [_turn("user", request), _turn("assistant", row["output"])]})


def text(row: dict) -> dict | None:
    """Running text: clean_mc4_it."""
    return {"text": row["text"]} if (row["text"] or "").strip() else None


def preference(row: dict) -> dict | None:
    """Two answers to one prompt: ultrafeedback_binarized and orpo-dpo-mix-40k as whole chats, evol-dpo-ita as strings.

    Where both chats repeat the prompt, it is taken out of them, so that it is rendered once. Chats that differ before
    their last turn are no two answers to one prompt and are left out.
    """
    chosen, rejected = (_chat_of(row[side], "assistant") for side in ("chosen", "rejected"))
    if chosen == rejected or chosen[:-1] != rejected[:-1]:
        return None
    prompt, answers = chosen[:-1], chosen[-1:] + rejected[-1:]
    if not prompt:
        prompt = _chat_of(row.get("question") or row.get("prompt"), "user")
    said = [turn["content"].strip() for turn in prompt + answers]
    if not prompt or len(answers) < 2 or not all(said) or {answer["role"] for answer in answers} != {"assistant"}:
        return None
    return {"prompt": prompt, "chosen": answers[:1], "rejected": answers[1:]}


def turns(messages: list[dict] | None) -> list[dict]:
    """The turns of a chat as {"role", "content"}, without an empty system prompt."""
    named = []
    for message in messages or []:
        keys = ("role", "content") if "role" in message else ("from", "value")
        if not set(keys) <= message.keys():
            raise AnitaError(f"a turn has the keys {sorted(message)}: expected role and content, or from and value")
        role, content = (message[key] or "" for key in keys)
        named.append(_turn(SPEAKERS.get(role, role), content))
    return [turn for turn in named if turn["role"] != "system" or turn["content"].strip()]


def _chat_of(said: list[dict] | str | None, role: str) -> list[dict]:
    """A chat as it is, or a single turn of that role."""
    return turns(said) if isinstance(said, list) else [_turn(role, said)]


def _turn(role: str, content: str | None) -> dict:
    return {"role": role, "content": content or ""}


# The columns that must be there, and what reads them; the first that fits is taken, other columns do not matter.
ADAPTERS: list[tuple[set[str], Callable[[dict], dict | None]]] = [
    ({"prompt", "chosen", "rejected"}, preference),
    ({"question", "chosen", "rejected"}, preference),
    ({"messages"}, chat),
    ({"conversations"}, chat),
    ({"instruction", "output"}, instruction),
    ({"text"}, text),
]


def adapter(name: str, columns: set[str]) -> Callable[[dict], dict | None]:
    """What reads rows with these columns. AnitaError that lists those found and those expected where nothing does."""
    for needed, adapt in ADAPTERS:
        if needed <= columns:
            return adapt
    expected = ", or ".join(" + ".join(sorted(needed)) for needed, _ in ADAPTERS)
    raise AnitaError(f"data set '{name}' has the columns {', '.join(sorted(columns))}: expected {expected}")


# ---------------------------------------------------------------- the stream


def rows(name: str, settings: HubData) -> Iterator[dict]:
    """The sample that `settings` describe, row by row in the course's format; fewer where the data set holds fewer.

    The same settings give the same rows, as long as the data set stays the same: pin its revision. AnitaError, one
    line, for one that cannot be reached or read, is empty or has unknown columns.
    """
    raw = _stream(name, settings)
    first = next(raw, None)
    if first is None:
        raise AnitaError(f"data set '{name}' has no rows in split {settings.split}: check split and files")
    if settings.without and "source" not in first:
        raise AnitaError(f"datasets.{name}.without: its rows have no `source` to choose by: set it to []")
    adapt = adapter(name, set(first))
    kept = (row for row in chain([first], raw) if not _left_out(row, settings.without))
    yield from islice((row for row in map(adapt, kept) if row), settings.sample)


def _left_out(row: dict, words: list[str]) -> bool:
    return any(word.lower() in (row["source"] or "").lower() for word in words)


def _stream(name: str, settings: HubData) -> Iterator[dict]:
    """The rows as they are, shuffled."""
    from datasets import load_dataset

    try:
        if settings.files:
            # datasets 4 and later run no loading scripts, so a data set that comes with one is read by its files
            pinned = f"{name}@{settings.revision}" if settings.revision else name
            files = settings.files.replace(f"hf://datasets/{name}/", f"hf://datasets/{pinned}/")
            stream = load_dataset("json", data_files={settings.split: files}, split=settings.split, streaming=True)
        else:
            stream = load_dataset(
                name, settings.config, split=settings.split, revision=settings.revision, streaming=True
            )
        yield from stream.shuffle(seed=settings.seed, buffer_size=BUFFER)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:  # the last where no file fits the pattern
        reason = " ".join(str(error).split()) or f"no file at {settings.files}"
        raise AnitaError(
            f"data set '{name}' cannot be read ({reason}): check the network and its keys under datasets, "
            "or use --profile cpu"
        ) from error


def sample_file(name: str, settings: HubData) -> Path:
    """Where the sample lies in the cache that all runs share, once it is fetched."""
    known = [VERSION, name, settings.model_dump()]
    if settings.files and Path(settings.files).is_file():
        known.append(hashlib.sha256(Path(settings.files).read_bytes()).hexdigest())
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "datasets" / f"{name.replace('/', '--')}-{key}.jsonl"


def fetch(name: str, settings: HubData) -> Path:
    """The sample as a .jsonl file in the cache that all runs share; downloaded where it is not there yet.

    A licence that forbids commercial use is said before the download begins. A download that breaks off leaves nothing.
    """
    file = sample_file(name, settings)
    if file.is_file():
        return file
    if NON_COMMERCIAL.search(settings.licence):
        warnings.warn(
            f"{name} is licensed {settings.licence}: not for commercial use. To do without it, name another data set",
            stacklevel=2,
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as out:
            for row in rows(name, settings):
                out.write(json.dumps(row) + "\n")  # in ASCII: text of the web holds U+2028, which would split the line
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file
