"""Checkpoints that can be trusted.

A checkpoint is good only with its manifest: the hashes of its files, written last and renamed into place. Whatever was
killed before, or changed since, is seen by it.

>>> write_manifest(Path("checkpoint-100"), seconds=31.5)     # when all else is written
>>> last_good(Path("."))                                     # names what is damaged, and takes the one before
PosixPath('checkpoint-100')
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from anita_utils.paths import file_hash, write_text

MANIFEST = "manifest.json"


def write_manifest(folder: Path, seconds: float) -> None:
    """Writes down the hash of every file in a checkpoint's folder, and the seconds trained up to it."""
    files = {str(file.relative_to(folder)): file_hash(file) for file in _files(folder)}
    write_text(folder / MANIFEST, json.dumps({"seconds": round(seconds, 2), "files": files}, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)


def trained_seconds(folder: Path) -> float | None:
    """The seconds trained up to a good checkpoint, however often it was interrupted; None without a manifest."""
    file = folder / MANIFEST
    return json.loads(file.read_text("utf-8"))["seconds"] if file.is_file() else None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file is as its manifest says."""
    if not (folder / MANIFEST).is_file():
        return "its writing was broken off"
    try:
        hashes = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_hash(folder / name) != expected:
            return f"{name} is truncated or altered"
    return None


def checkpoints(work: Path) -> list[Path]:
    """The checkpoints in a stage's working folder, good or not, the newest first."""
    found = [folder for folder in work.glob("checkpoint-*") if folder.name.partition("-")[2].isdigit()]
    return sorted(found, key=lambda folder: -int(folder.name.partition("-")[2]))


def last_good(work: Path) -> Path | None:
    """The newest good checkpoint, or None. Newer ones that are damaged are named and deleted.

    Left where they are, they would count as newest, and the library would delete good ones in their stead.
    """
    for folder in checkpoints(work):
        fault = damage(folder)
        if fault is None:
            return folder
        print(f"{folder.name} is no good ({fault}): the one before is taken, or the stage begins anew")
        shutil.rmtree(folder)
    return None


def drop_unfinished(work: Path) -> None:
    """Deletes the checkpoints whose writing was broken off."""
    for folder in checkpoints(work):
        if not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)
