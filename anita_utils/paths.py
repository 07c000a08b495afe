"""Where is everything, and how is it read and written? Whole or not at all, by one process at a time.

>>> write_text(runs_dir() / "note.txt", "an interrupted write leaves the old file intact")
>>> with locked(runs_dir() / "cpu"):        # another process that wants the same waits here
...     pass
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from anita_utils import AnitaError, checkout, shown

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOCKED = {errno.EACCES, errno.EPERM, errno.EROFS}


def data_dir() -> Path:
    """The folder with the course's data: `ANITA_DATA` if set, else the checkout's `data/`, else the packaged copy."""
    root = checkout()
    folder, remedy = root / "data" if root else Path(__file__).parent / "_data", "reinstall the package"
    if os.environ.get("ANITA_DATA"):
        folder, remedy = Path(os.environ["ANITA_DATA"]), "correct ANITA_DATA or unset it"
    if not folder.is_dir():
        raise AnitaError(f"no data folder at {shown(folder)}: {remedy}")
    return folder.absolute()


def runs_dir() -> Path:
    """The folder of all runs: `ANITA_RUNS` if set, else the checkout's `runs/`, else `runs/` in the working folder."""
    runs = os.environ.get("ANITA_RUNS")
    return Path(runs).expanduser().absolute() if runs else (checkout() or Path.cwd()) / "runs"


def cache_dir() -> Path:
    """The folder of the cache that all runs share: `ANITA_CACHE` if set, else `cache/` beside the runs."""
    cache = os.environ.get("ANITA_CACHE")
    return Path(cache).expanduser().absolute() if cache else runs_dir() / "cache"


@contextmanager
def environment(**settings: str) -> Iterator[None]:
    """Sets environment variables, for this process and those it starts, until the block ends."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, without a byte order mark."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise AnitaError(os_failure(error, path, write=False)) from None
    except UnicodeDecodeError as error:
        utf_16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        looks = "UTF-16" if utf_16 else f"byte {error.start + 1:,} is {raw[error.start]:#04x}"
        raise AnitaError(f"{shown(path)}: not UTF-8 ({looks}): save it in UTF-8") from None


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers, from 1 on; blank ones are left out.

    A line ends at a line feed and nowhere else: a string of JSON Lines may hold U+2028, U+2029 and U+0085.
    """
    lines = read_text(path).split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file's contents."""
    try:
        with Path(path).open("rb") as file:  # in pieces: weights can be larger than the memory
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AnitaError(os_failure(error, Path(path), write=False)) from None


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a path to write to; what was written there takes the place of `file`, whole or not at all."""
    temporary = file.with_name(f".{os.getpid()}-{threading.get_ident()}.{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(file)
    except OSError as error:
        raise AnitaError(os_failure(error, file)) from error
    finally:
        with suppress(OSError):  # it is gone, or was never made
            temporary.unlink()


def write_text(file: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text, "utf-8")


def os_failure(error: OSError, place: Path, write: bool = True) -> str:
    """One line for what the system says of a file: what, where, remedy."""
    place = shown(error.filename or place) if not write or error.errno in LOCKED else shown(place)
    if error.errno in FULL:
        return f"no room to write {place}: free some space, then run the same again"
    if error.errno in LOCKED and write:
        return f"{place} may not be written: allow it, or set ANITA_RUNS or ANITA_CACHE to a folder that may"
    if error.errno in LOCKED:
        return f"{place} may not be read by this user: ask its owner to allow it (chmod a+r)"
    if error.errno == errno.ENOENT and not write:
        return f"{place}: no such file: check the name"
    reason, done = error.strerror or str(error), "written" if write else "read"
    return f"{place} cannot be {done} ({reason}): check its path, or choose another place"


def modes_by_umask(folder: str | Path) -> None:
    """Gives a folder and all in it the modes that new ones get; safetensors' files are their owner's alone."""
    mask = os.umask(0)  # there is no other way to ask for it
    os.umask(mask)
    for path in [Path(folder), *Path(folder).rglob("*")]:
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def locked(place: Path, what: str = "") -> Iterator[None]:
    """Inside, no other process or thread holds the lock on `place`; within one thread it can be taken again.

    what: named in the line that says where it waits. The system frees the lock of a process that ends in any way.
    """
    file = place.with_name(f".{place.name.lstrip('.')}.lock")
    lock = FileLock(file, is_singleton=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if what:
            print(f"{what} is in use by another process: waiting for it", flush=True)
        lock.acquire()
    except OSError as error:
        raise AnitaError(os_failure(error, file)) from error
    try:
        yield
    finally:
        lock.release()
