"""What becomes of a folder of texts? Read, sieved, cut into rows, a part held out: all of it counted.

>>> corpus = build_corpus(Path("testi"))
>>> corpus.counts["words"]
{'read': 1200, 'left out': {'another language': 300}, 'kept': 900}
>>> write_corpus(corpus, Path("mio"))    # mio/train.jsonl, held_out.jsonl, counts.json, README.md
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.progress import track

from anita_utils import AnitaError, shown
from anita_utils.corpus import sieve
from anita_utils.corpus.persons import personal
from anita_utils.corpus.reading import READERS, SHORTEST, Unread, find_files, known_encoding, paragraphs_of
from anita_utils.machine import version_of
from anita_utils.paths import replacing, write_text
from anita_utils.stages import shipped_corpora

EXTRA = {"trafilatura": "trafilatura", "datasketch": "datasketch", "phonenumbers": "phonenumbers",
         "stdnum": "python-stdnum"}  # fmt: skip
ROW_WORDS = 100  # 226 tokens of SmolLM2's in Italian text, 248 of the shipped model's: most rows fit max_length 256
HELD_OUT = 0.05  # of the words
MADE = {"train.jsonl", "held_out.jsonl", "counts.json", "README.md"}  # the files of a corpus
LEAK = "a benchmark's question with its answer"
SENTENCE = re.compile(r".+?(?:[.?!…]\s+|\n|\Z)", re.DOTALL)
T = TypeVar("T")


@dataclass
class Paragraph:
    text: str
    left_out: str | None = None  # the reason

    @property
    def size(self) -> int:
        return len(self.text.split())


@dataclass
class Corpus:
    """What was made of a folder: rows of training text, rows held out, what was counted."""

    train: list[dict] = field(default_factory=list)
    held_out: list[dict] = field(default_factory=list)
    counts: dict = field(default_factory=dict)
    documents: dict[str, list[Paragraph]] = field(default_factory=dict)  # all paragraphs by file, left out or not


def build_corpus(
    folder: Path,
    row_words: int = ROW_WORDS,
    held_out: float = HELD_OUT,
    encoding: str | None = None,
    benchmarks: Sequence[Path] = (),
) -> Corpus:
    """The texts of a folder as rows to train on; the same for the same files, in whatever order the system lists them.

    row_words: the most words of a row. held_out: the share of the words that goes into whole documents held out.
    encoding: of files that are not UTF-8; without it, they are left out. benchmarks: further files of items.

    AnitaError where nothing is left.
    """
    if missing := [package for module, package in EXTRA.items() if find_spec(module) is None]:
        remedy = "pip install --constraint constraints.txt --editable '.[corpus]'"
        raise AnitaError(f"{', '.join(missing)} not installed, which reading a corpus takes: {remedy}")
    corpus, files, named = Corpus(), Counter(), {}
    cut = read_folder(corpus, folder, row_words, encoding and known_encoding(encoding), files, named)
    paragraphs = [paragraph for document in corpus.documents.values() for paragraph in document]
    languages = sift(paragraphs)
    rows, leaked = rows_of(corpus.documents, row_words, [*sieve.benchmark_files(), *benchmarks])
    if emptied := sorted(corpus.documents.keys() - {name for name, _ in rows}):
        named["nothing kept"] = emptied
    if not rows:
        reasons = files + Counter(paragraph.left_out for paragraph in paragraphs)
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        raise AnitaError(f"{shown(folder)}: nothing is left of {len(paragraphs):,} paragraphs ({why}): add other texts")
    apart = hold_out(rows, held_out)
    for name, row in rows:
        side = corpus.held_out if name in apart else corpus.train
        side.append({"text": text_of(row), "document": name})
    settings = {"row_words": row_words, "held_out": held_out, "encoding": encoding, "similar": sieve.SIMILAR,
                "benchmarks": [file.name for file in benchmarks]}  # fmt: skip
    corpus.counts = {
        "folder": folder.resolve().name,
        "settings": settings,
        "libraries": {name: version_of(name) for name in (*EXTRA.values(), "py3langid")},
        "files": dict(files),
        "named": named,
        "paragraphs": fates(paragraphs, lambda paragraph: 1),
        "words": fates(paragraphs, lambda paragraph: paragraph.size),
        "other_languages": dict(languages.most_common()),
        "leaked_items": leaked,
        "cut_paragraphs": cut,
        "train": sizes(corpus.train),
        "held_out": sizes(corpus.held_out),
    }
    return corpus


def read_folder(
    corpus: Corpus, folder: Path, row_words: int, encoding: str | None, counts: Counter[str], named: dict
) -> int:
    """Reads every document of the folder in pieces of at most `row_words`; returns how many paragraphs were cut.

    counts: gets the number of files by what became of them; named: the names of those that are not plainly read.
    """
    if not folder.is_dir():
        raise AnitaError(f"{shown(folder)} is no folder: give one that holds {', '.join(READERS)}")
    files, others = find_files(folder)
    if not files:
        raise AnitaError(f"{shown(folder)} holds no {', '.join(READERS)}: put texts there, or give another folder")
    cut, console = 0, Console(stderr=True)
    for file in track(files, "reading", console=console, transient=True, disable=not console.is_terminal):
        # A name that is not in UTF-8 is written with its bytes' numbers
        name = os.fsencode(file.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")
        try:
            paragraphs, found = paragraphs_of(file, encoding)
        except Unread as reason:
            said = str(reason)
        else:
            said = "read" if found == "utf-8" else f"read as {found}"
            pieces = [cut_text(paragraph, row_words) for paragraph in paragraphs]
            cut += sum(len(piece) > 1 for piece in pieces)
            corpus.documents[name] = [Paragraph(text) for piece in pieces for text in piece]
        counts[said] += 1
        if said != "read":
            named.setdefault(said, []).append(name)
    for suffix, count in sorted(others.items()):
        counts[f"of another kind: {suffix}"] = count
    return cut


def sift(paragraphs: list[Paragraph]) -> Counter[str]:
    """Writes into each paragraph why it is left out, if it is; returns how many are in which other language."""
    languages: Counter[str] = Counter()
    for paragraph in paragraphs:
        short = f"fewer than {SHORTEST} words"
        paragraph.left_out = short if paragraph.size < SHORTEST else sieve.unfit(paragraph.text)
        if paragraph.left_out is None and (code := sieve.language(paragraph.text)) != "it":
            languages[code] += 1
            paragraph.left_out = "another language"
        paragraph.left_out = paragraph.left_out or personal(paragraph.text)
    left = kept(paragraphs)
    for number in sieve.near_duplicates([paragraph.text for paragraph in left]):
        left[number].left_out = "a near-duplicate"
    return languages


def rows_of(
    documents: dict[str, list[Paragraph]], most: int, benchmarks: Sequence[Path]
) -> tuple[list[tuple[str, list[Paragraph]]], list[str]]:
    """Rows of at most `most` words, each with its document's name, and the names of the items that others leak."""
    rows = [(name, row) for name, document in documents.items() for row in packed(kept(document), most)]
    leaked = sieve.leaks([text_of(row) for _, row in rows], benchmarks)
    for number in leaked:
        for paragraph in rows[number][1]:
            paragraph.left_out = LEAK
    names = {name for items in leaked.values() for name in items}
    return [row for number, row in enumerate(rows) if number not in leaked], sorted(names)


def kept(paragraphs: Iterable[Paragraph]) -> list[Paragraph]:
    return [paragraph for paragraph in paragraphs if paragraph.left_out is None]


def packed(parts: Iterable[T], most: int, size: Callable[[T], int] = lambda part: part.size) -> list[list[T]]:
    """The parts in their order, in groups of at most `most` words; one that is longer stands alone."""
    groups: list[list[T]] = []
    room = 0
    for part in parts:
        if not groups or size(part) > room:
            groups.append([])
            room = most
        groups[-1].append(part)
        room -= size(part)
    return groups


def cut_text(text: str, most: int) -> list[str]:
    """A text in pieces of at most `most` words, cut between sentences or lines; one that is longer, between words."""
    if len(text.split()) <= most:
        return [text]
    parts = []
    for sentence in SENTENCE.findall(text):
        words = sentence.split()
        long = len(words) > most
        parts += [" ".join(words[at : at + most]) + " " for at in range(0, len(words), most)] if long else [sentence]
    return ["".join(piece).strip() for piece in packed(parts, most, lambda part: len(part.split()))]


def text_of(row: Iterable[Paragraph]) -> str:
    return "\n\n".join(paragraph.text for paragraph in row)


def hold_out(rows: Sequence[tuple[str, Sequence[Paragraph]]], share: float) -> set[str]:
    """The names of the documents held out: in an order that only the names decide, each that still fits the share.

    Where none fits, the smallest, unless it is the only one.
    """
    sizes = Counter()
    for name, row in rows:
        sizes[name] += sum(paragraph.size for paragraph in row)
    room, chosen = share * sizes.total(), set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    if share and not chosen and len(sizes) > 1:
        chosen.add(min(sizes, key=lambda name: (sizes[name], name)))
    return chosen


def fates(paragraphs: Iterable[Paragraph], size: Callable[[Paragraph], int]) -> dict:
    """What was read, left out by reason, and kept."""
    found: Counter[str | None] = Counter()
    for paragraph in paragraphs:
        found[paragraph.left_out] += size(paragraph)
    total, left = found.total(), found.pop(None, 0)
    return {"read": total, "left out": dict(found.most_common()), "kept": left}


def sizes(rows: Sequence[dict]) -> dict[str, int]:
    words = sum(len(row["text"].split()) for row in rows)
    return {"documents": len({row["document"] for row in rows}), "rows": len(rows), "words": words}


def write_corpus(corpus: Corpus, out: Path) -> None:
    """Writes the folder of a corpus, whole or not at all, in the place of one that was there.

    AnitaError where something else is there.
    """
    check_out(out)
    with replacing(out) as new:
        try:
            for name in ("train", "held_out"):
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in getattr(corpus, name))
                write_text(new / f"{name}.jsonl", "".join(lines))
            write_text(new / "counts.json", json.dumps(corpus.counts, indent=1, ensure_ascii=False) + "\n")
            write_text(new / "README.md", card(corpus.counts, out.name))
            if out.is_dir():
                shutil.rmtree(out)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise


def check_out(out: Path) -> None:
    """AnitaError where a corpus may not be written: over anything but one, or by the name of a shipped one."""
    if out.name in ("", ".."):
        raise AnitaError(f"--out {out} names no folder of its own: give the corpus a name")
    there = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if out.exists() and not ("counts.json" in there and there <= MADE):
        raise AnitaError(
            f"{shown(out)} is there and holds no corpus, or other files too: choose another name for --out"
        )
    if str(out) in shipped_corpora():
        raise AnitaError(f"'{out}' is the name of a shipped corpus: choose another name for --out")


def card(counts: dict, name: str) -> str:
    """The data card: what the corpus is, its figures, how it was made, what it does not promise."""
    room = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True)
    room.filters["thousands"] = "{:,}".format
    return room.get_template("card.md.j2").render(counts=counts, name=name, shortest=SHORTEST) + "\n"
