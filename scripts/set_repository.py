"""Writes the course's public address wherever it is used: badges, links, metadata, the lessons' set-up cells.

python scripts/set_repository.py https://github.com/someone/something
python scripts/set_repository.py --once https://github.com/…    # changes nothing where an address is set already

Until then no page shows a badge, and a lesson on Colab says in a line what is missing. The first push to GitHub runs
this (.github/workflows/address.yml). It needs nothing but Python and git.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ADDRESS = re.compile(r"https://github\.com/([\w-]+/[\w.-]+?)(?:\.git)?/?")
CONSTANT = re.compile(r'^REPOSITORY: str \| None = (?:None|"https://github\.com/(.+)")$', re.MULTILINE)
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".ipynb", ".cff"}
COLAB = "https://colab.research.google.com"
LESSON = re.compile(r"^(\| \[.+\]\(notebooks/(\w+)\.ipynb\) \|.*) \|$", re.MULTILINE)  # a row of the README's table
NO_ADDRESS = '    raise SystemExit("no public address yet: run scripts/set_repository.py first")\n'
END_OF_SCRIPTS = 'anita = "anita_utils.cli.main:main"\n'


def badge(repository: str, lesson: str) -> str:
    """The badge that opens a lesson on Colab, in Markdown."""
    place = f"{COLAB}/github/{repository}/blob/main/notebooks/{lesson}.ipynb"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({place})"


def set_repository(address: str, root: Path, once: bool = False) -> list[Path]:
    """Writes `address` into all files that git knows under `root`, or would add; the one before is replaced.

    once: change nothing where an address is set. Returns the changed files. Raises ValueError for anything but the
    address of a GitHub repository.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise ValueError(f"'{address}' is not a repository's address: write https://github.com/OWNER/NAME")
    constant = root / "anita_utils" / "__init__.py"
    present = CONSTANT.search(constant.read_text("utf-8"))[1]
    if present is None:
        return first_address(match[1], root)
    return [] if once else replaced(present, match[1], root)


def first_address(repository: str, root: Path) -> list[Path]:
    """Puts in what is not there before an address is known."""
    address = f"https://github.com/{repository}"
    changed = [root / "anita_utils" / "__init__.py", root / "pyproject.toml", root / "README.md"]
    constant, metadata, readme = changed
    edit(constant, lambda text: CONSTANT.sub(f'REPOSITORY: str | None = "{address}"', text))
    urls = f'{END_OF_SCRIPTS}\n[project.urls]\nRepository = "{address}"\n'
    edit(metadata, lambda text: text.replace(END_OF_SCRIPTS, urls))
    edit(readme, lambda text: LESSON.sub(lambda row: f"{row[1]} {badge(repository, row[2])} |", text))
    edit(readme, lambda text: f"{text.rstrip()} Its home is\n<{address}>.\n")
    for file in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        edit(file, lambda text, name=file.stem: lesson_with(repository, name, text))
        changed.append(file)
    return changed


def lesson_with(repository: str, name: str, text: str) -> str:
    """A lesson's JSON with its badge below the title, and a set-up cell that gets the course on Colab."""
    notebook = json.loads(text)
    title = "".join(notebook["cells"][0]["source"]).split("\n")
    notebook["cells"][0]["source"] = "\n".join([*title[:2], badge(repository, name), "", *title[2:]]).splitlines(True)
    clone = f"    !git clone --quiet --depth 1 https://github.com/{repository} course\n"
    for cell in notebook["cells"]:
        cell["source"] = [clone if line == NO_ADDRESS else line for line in cell["source"]]
    return dumped(notebook)


def dumped(notebook: dict) -> str:
    """A notebook as Jupyter writes it; its stored outputs belong to the code as it is now (`lessons.cells_hash`)."""
    if "outputs_of" in notebook["metadata"]:
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        notebook["metadata"]["outputs_of"] = hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def replaced(present: str, repository: str, root: Path) -> list[Path]:
    """Replaces one address by another, in both spellings: github.com/OWNER/NAME and Colab's github/OWNER/NAME."""
    spellings = re.compile(rf"(github\.com/|github/){re.escape(present)}(?![\w-])")
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    changed = []
    for file in (root / name for name in sorted(set(names)) if Path(name).suffix in TEXT):
        before = file.read_text("utf-8") if file.is_file() else ""
        after = spellings.sub(rf"\g<1>{repository}", before)
        if after != before:
            after = dumped(json.loads(after)) if file.suffix == ".ipynb" else after
            file.write_text(after, "utf-8")
            changed.append(file)
    return changed


def edit(file: Path, change) -> None:
    file.write_text(change(file.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--once"]
    if len(words) != 1:
        sys.exit(__doc__)
    root = Path(__file__).resolve().parent.parent
    try:
        for file in set_repository(words[0], root, once="--once" in sys.argv):
            print(file.relative_to(root))
    except ValueError as error:
        sys.exit(str(error))
