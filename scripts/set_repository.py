"""Fills in the course's public address wherever it is used: badges, links, metadata, `anita_utils.REPOSITORY`.

python scripts/set_repository.py https://github.com/someone/something
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ADDRESS = re.compile(r"https://github\.com/([\w-]+/[\w.-]+?)(?:\.git)?/?")
CONSTANT = re.compile(r'^REPOSITORY = "https://github\.com/(.+)"$', re.MULTILINE)
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".ipynb", ".cff"}


def set_repository(address: str, root: Path) -> list[Path]:
    """Replaces the present address by `address` in all files that git knows under `root`, or would add.

    Both spellings are replaced: github.com/OWNER/NAME and, in Colab's links, github/OWNER/NAME.

    Returns the changed files. Raises ValueError for anything but the address of a GitHub repository.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise ValueError(f"'{address}' is not a repository's address: write https://github.com/OWNER/NAME")
    present = CONSTANT.search((root / "anita_utils" / "__init__.py").read_text("utf-8")).group(1)
    spellings = re.compile(rf"(github\.com/|github/){re.escape(present)}(?![\w-])")
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    changed = []
    for file in (root / name for name in sorted(set(names)) if Path(name).suffix in TEXT):
        before = file.read_text("utf-8") if file.is_file() else ""
        after = spellings.sub(rf"\g<1>{match.group(1)}", before)
        if after != before:
            file.write_text(after, "utf-8")
            changed.append(file)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        for file in set_repository(sys.argv[1], Path(__file__).resolve().parent.parent):
            print(file.relative_to(Path(__file__).resolve().parent.parent))
    except ValueError as error:
        sys.exit(str(error))
