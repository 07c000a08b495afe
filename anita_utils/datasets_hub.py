"""Data sets on the Hub, streamed, sampled and brought into the course's row formats.

>>> name = "efederici/evol-dpo-ita"
>>> fetch(name, load_profile("laptop").datasets[name])     # a .jsonl file, downloaded once
PosixPath('…/runs/cache/datasets/efederici--evol-dpo-ita-….jsonl')

Whatever a data set's columns, a row comes out as {"messages": …}, {"text": …} or {"prompt", "chosen", "rejected"}.
"""

from __future__ import annotations

import glob
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from anita_utils import AnitaError
from anita_utils.cache import Entry, cached
from anita_utils.paths import file_hash, locked, replacing
from anita_utils.profile import HubData
from anita_utils.rows import LeftOut, shape_of

BUFFER = 10_000  # rows that a stream is shuffled among; so many are read before the first one comes out
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


def rows(name: str, settings: HubData, left_out: Counter[str] | None = None) -> Iterator[dict]:
    """The sample that `settings` describe, row by row in the course's format; fewer where the data set holds fewer.

    left_out: is added to: how many rows on the way teach nothing, or are not wanted, by reason.

    The same settings give the same rows, as long as the data set stays the same: pin its revision. AnitaError, one
    line, for one that cannot be reached or read, is empty or has unknown columns or damaged rows.
    """
    left_out = Counter() if left_out is None else left_out
    raw = _stream(name, settings)
    first = next(raw, None)
    if first is None:
        raise AnitaError(f"data set '{name}' has no rows in split {settings.split}: check split and files")
    if settings.without and "source" not in first:
        raise AnitaError(f"datasets.{name}.without: its rows have no `source` to choose by: set it to []")
    yield from islice(_taught(name, chain([first], raw), settings.without, left_out), settings.sample)


def _taught(name: str, raw: Iterable[dict], without: list[str], left_out: Counter[str]) -> Iterator[dict]:
    """The rows that teach something; the others are counted."""
    for row in raw:
        source = (row.get("source") or "").lower() if without else ""
        if any(word.lower() in source for word in without):
            left_out["of a source that is left out (without)"] += 1
            continue
        try:
            _, read = shape_of(row)
            yield read(row)
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except AnitaError as error:
            raise AnitaError(f"data set '{name}': {error}") from None


def _stream(name: str, settings: HubData) -> Iterator[dict]:
    """The rows as they are, shuffled."""
    from datasets import load_dataset

    try:
        if settings.files:
            # datasets 4 and later run no loading scripts, so a data set that comes with one is read by its files
            pinned = f"{name}@{settings.revision}" if settings.revision else name
            files = settings.files.replace(f"hf://datasets/{name}/", f"hf://datasets/{pinned}/")
            if Path(files).is_file():
                files = glob.escape(files)  # a path: brackets and stars in it are no pattern
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


def sample_entry(name: str, settings: HubData) -> Entry:
    """The entry of the cache that the sample lies in, once it is fetched: a .jsonl file, and beside it its counts."""
    local = settings.files and Path(settings.files).is_file()
    contents = file_hash(settings.files) if local else None
    return cached(f"datasets/{name.replace('/', '--')}", name, settings.model_dump(), contents)


def sample_file(name: str, settings: HubData) -> Path:
    """Where the sample lies once it is fetched."""
    entry = sample_entry(name, settings)
    return entry.path.with_name(f"{entry.path.name}.jsonl")


def fetch(name: str, settings: HubData) -> Path:
    """The sample as a .jsonl file in the cache that all runs share; downloaded where it is not there yet.

    A licence that forbids commercial use is said before the download begins. A download that breaks off leaves nothing.
    """
    file, entry = sample_file(name, settings), sample_entry(name, settings)
    if file.is_file() and entry.read() is not None:
        return file
    if NON_COMMERCIAL.search(settings.licence):
        warnings.warn(
            f"{name} is licensed {settings.licence}: not for commercial use. To do without it, name another data set",
            stacklevel=2,
        )
    left_out: Counter[str] = Counter()
    with locked(file, f"data set '{name}'"):
        if file.is_file() and entry.read() is not None:  # another process fetched it while this one waited
            return file
        with replacing(file) as temporary:
            with temporary.open("w", encoding="utf-8") as out:
                for row in rows(name, settings, left_out):
                    out.write(json.dumps(row) + "\n")
            entry.write(dict(left_out))
    return file


def left_out_of(name: str, settings: HubData) -> Counter[str]:
    """How many rows were left out when the sample was fetched, by reason."""
    return Counter(sample_entry(name, settings).read() or {})
