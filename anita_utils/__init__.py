"""The kit behind the lessons: profiles, runs, models and figures of the LLaMAntino-3-ANITA course.

This module is light on purpose: nothing here, nor in `anita_utils.cli`, imports torch.

>>> import anita_utils
>>> anita_utils.__version__
'0.1.0'
"""

from pathlib import Path

__version__ = "0.1.0"

# The public address of the course. `python scripts/set_repository.py ADDRESS` fills it in wherever it is used.
REPOSITORY = "https://github.com/OWNER/REPOSITORY"

# OpenMP's threads spin while they wait for each other. Beside another busy program the thread that is waited for does
# not run, and training on two cores falls to a twentieth of its speed; threads that sleep keep their share. The library
# reads this when torch is imported: the `anita` command sets it for itself and for the lessons it runs.
IDLE_THREADS = {"OMP_WAIT_POLICY": "passive"}


class AnitaError(Exception):
    """A mistake the reader can mend: one clear line that says what is wrong, where, and the remedy."""


def checkout() -> Path | None:
    """The root of the course's checkout, or None when the kit was installed as a plain package."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "data").is_dir() else None


def shown(path: str | Path) -> str:
    """A path as people should read it: relative to the working folder or the checkout, else with `~` for home.

    Keeps the layout of somebody's machine out of messages, reports and stored outputs.
    """
    path = Path(path).absolute()
    for root in (Path.cwd(), checkout()):
        if root and path.is_relative_to(root):
            return str(path.relative_to(root))
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) and len(home.parts) > 1 else str(path)
