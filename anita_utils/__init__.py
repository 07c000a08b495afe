"""The kit behind the lessons: profiles, runs, models and figures of the LLaMAntino-3-ANITA course.

This module is light on purpose: nothing here, nor in `anita_utils.cli.main`, imports torch.
"""

from pathlib import Path

__version__ = "0.1.0"

# The public address of the course; `python scripts/set_repository.py ADDRESS` writes it wherever it is used.
REPOSITORY: str | None = None

# OpenMP's threads spin while they wait for each other, 300,000 turns by default. Beside other busy programs the thread
# that is waited for does not run, and the spinning keeps it from running: training on two cores falls to a third of its
# speed, or to a twentieth. After 1,000 turns they sleep, which keeps half and costs little when the machine is free
# (benchmarks/busy_neighbour.py). Read when torch is imported: the `anita` command sets it for itself and its lessons.
IDLE_THREADS = {"GOMP_SPINCOUNT": "1000"}


class AnitaError(Exception):
    """A mistake the reader can fix: one clear line that says what is wrong, where, and the remedy."""


def checkout() -> Path | None:
    """The root of the course's checkout, or None when the kit was installed as a plain package."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "data").is_dir() else None


def shown(path: str | Path) -> str:
    """A path as people should read it: relative to the working folder or the checkout, else with `~` for home."""
    path = Path(path).absolute()
    for root in (Path.cwd(), checkout()):
        if root and path.is_relative_to(root):
            return str(path.relative_to(root))
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) and len(home.parts) > 1 else str(path)


def clock(seconds: float) -> str:
    """Seconds as people read them: 75 → "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
