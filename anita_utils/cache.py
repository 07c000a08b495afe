"""What has been made before, and is it still valid? An entry is named by all it depends on.

>>> entry = cached("evaluations/answers", {"model": "4c1a94be6f1c5d1f", "settings": {"batch_size": 64}})
>>> entry.value(make)       # what is kept there; where nothing is, what `make()` returns, which is then kept

Each entry also depends on the libraries' versions, and on a number for each module or function that it comes from. A
change in what one of these returns raises its number here: `tests/unit/test_cache.py` compares source and number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from anita_utils import AnitaError
from anita_utils.machine import version_of
from anita_utils.paths import cache_dir, read_text, runs_dir, write_text

# By kind of entry: the modules, or functions, that its contents come from, each with its number. It begins at 1.
ENCODING = {"chat_template": 1, "data": 1, "model": 1}
MEASURING = ENCODING | {"evaluation.judges": 1, "evaluation.measuring": 2}
FUNCTIONS: dict[str, dict[str, int]] = {
    "stages": ENCODING | {"rows": 1, "stages.Stage.documents": 1, "attention": 1, "training": 2, "merging": 1},
    "evaluations": MEASURING | {"evaluation.ranker": 1, "evaluation.benchmarks": 2},
    "curves": MEASURING | {"studies.forgetting": 2},
    "comparisons": {"stats": 2},
    "contamination": {"studies.contamination": 2, "rows": 1, "evaluation.judges": 1},
    "datasets": {"rows": 1, "hub": 1},
    "models": {"weights": 1},
}
# By kind of entry: the libraries whose versions decide its contents.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "stages": ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "tokenizers"),
    "evaluations": ("torch", "transformers", "lm_eval", "tokenizers", "py3langid"),
    "curves": ("torch", "transformers", "tokenizers", "py3langid"),
    "comparisons": ("numpy", "scipy"),
    "contamination": (),
    "datasets": ("datasets",),
    "models": ("torch", "transformers", "tokenizers", "gguf"),
}
# How the cache's entries are called, today's and those of older versions: label-KEY, KEY-label, .label-KEY.work
OURS = re.compile(r"(?:^|-)[0-9a-f]{16}(?:\.(?:json|jsonl|work|new)|-\w+\.json)?$")


def digest(values: Any) -> str:
    """Sixteen letters for a JSON value: the same for the same value, however its keys are ordered."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def made_by(kind: str) -> dict[str, dict]:
    """The versions of the libraries, and the numbers of the functions above 1, that a kind of entry comes from."""
    changed = {name: number for name, number in FUNCTIONS[kind].items() if number > 1}
    libraries = {name: version_of(name) or "not installed" for name in LIBRARIES[kind]}
    return {"libraries": libraries, "functions": changed}


@dataclass(frozen=True)
class Entry:
    """A place in the cache. Made by `cached`."""

    name: str  # kind and label: "stages/sft"
    depends: dict[str, Any]  # all that its contents depend on

    @cached_property
    def key(self) -> str:
        return digest([self.name, self.depends])

    @property
    def path(self) -> Path:
        """The folder of an entry that holds files; `file` is the file of one that holds a value."""
        return cache_dir() / f"{self.name}-{self.key}"

    @property
    def file(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def read(self) -> Any | None:
        """The value kept here; None where there is none, or it cannot be read."""
        try:
            return json.loads(self.file.read_text("utf-8"))["value"]
        except (OSError, ValueError, KeyError, TypeError):  # never written, or damaged: made again
            return None

    def write(self, value: Any) -> None:
        """Keeps a value that JSON can hold."""
        write_text(self.file, json.dumps({"made_of": self.depends, "value": value}, ensure_ascii=False))

    def value(self, make: Callable[[], Any]) -> Any:
        """The value kept here; where there is none, what `make` returns, which is kept."""
        if self.read() is None:
            self.write(make())
        return self.read()


def cached(name: str, *depends: Any) -> Entry:
    """The entry called `name` ("kind/label") that depends on these values and on its kind's code and libraries."""
    return Entry(name, {"depends": list(depends)} | made_by(name.partition("/")[0]))


class Content(NamedTuple):
    """Something in the cache."""

    path: Path
    kind: str
    size: int  # bytes
    runs: list[str]  # those that use it
    old: str  # why this version of the course does not take it; empty where it does


def contents() -> list[Content]:
    """Everything in the cache, kind by kind; what is being trained and has checkpoints counts as a kind of its own."""
    users: dict[str, list[str]] = {}
    for link in runs_dir().glob("*/models/*"):
        if not link.parents[1].is_symlink():  # `latest` is one of the others
            users.setdefault(os.path.realpath(link), []).append(link.parents[1].name)
    found = []
    for folder in (cache_dir() / kind for kind in sorted(FUNCTIONS)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            beside = path.suffix == ".json" and path.with_suffix(".jsonl").is_file()
            if beside or not OURS.search(path.name):  # whatever else is there is not the cache's
                continue
            kind = "checkpoints" if path.name.startswith(".") else folder.name
            old = "" if kind == "checkpoints" else _outdated(folder.name, path)
            found.append(Content(path, kind, size_of(path), users.get(os.path.realpath(path), []), old))
    return found


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _outdated(kind: str, path: Path) -> str:
    """Why this version of the course does not take an entry; empty where it does."""
    file, depends = path.with_suffix(".json"), "made_of"
    if path.is_dir():
        file, depends = (path / "stage.json", "recipe") if kind == "stages" else (path / "origin.json", "made_of")
    try:
        made = json.loads(read_text(file))[depends]
        then = made["libraries"] | made["functions"]
    except (ValueError, KeyError, TypeError, AnitaError):
        return "made by an older version of the course"
    now = made_by(kind)["libraries"] | made_by(kind)["functions"]
    changed = [name for name in then | now if then.get(name) != now.get(name)]
    return f"{changed[0]} was {then.get(changed[0])}, is {now.get(changed[0])}" if changed else ""


def prune() -> Iterator[Content]:
    """Deletes, and yields, what this version does not take and no run uses. Checkpoints are left alone."""
    for content in contents():
        if content.runs or not content.old:
            continue
        if content.path.is_dir() and not content.path.is_symlink():
            shutil.rmtree(content.path)
        else:
            content.path.unlink()
            content.path.with_suffix(".json").unlink(missing_ok=True)
        yield content


def drop_merged() -> Iterator[int]:
    """Deletes all stages' merged models, and yields the bytes of each. Adapters stay: `Stage.merged` merges again."""
    for folder in sorted((cache_dir() / "stages").glob("*/merged")):
        if (folder.parent / "stage.json").is_file() and (folder.parent / "adapter").is_dir():
            yield size_of(folder)
            shutil.rmtree(folder)
