"""Makes a fresh session on Google Colab ready for the lessons; their set-up cell runs it there, and only there.

Colab's torch stays, with all that the running session stands on. What else the course needs is installed in the tested
versions (constraints-colab.txt), and two traps are fixed: Colab's datasets is too old for TRL, and at the sight of its
torchao peft raises an ImportError.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "constraints-colab.txt"
# Built for Colab's drivers, or in use before the first cell runs: pip may not replace these.
KEPT = ["torch", "torchvision", "torchaudio", "triton", "numpy", "pandas",
        "requests", "ipython", "ipykernel", "tornado"]  # fmt: skip


def normalised(name: str) -> str:
    """A package's name as pip compares it: lower case, hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(file: Path) -> dict[str, str]:
    """The lines `name==version` of a file, by normalised name."""
    lines = [line.split("#")[0].strip() for line in file.read_text("utf-8").splitlines()]
    return {normalised(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def installed(name: str) -> str | None:
    """The version that is installed now, if any."""
    importlib.invalidate_caches()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def last_words(said: str) -> str:
    """The last error in what pip said, or else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no message"]
    return ([line for line in lines if line.startswith("ERROR")] or lines)[-1]


def pip(*arguments: str | Path) -> None:
    """Runs pip quietly; ends the cell with its last words when it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        remedy = "choose Runtime > Disconnect and delete runtime, and run again"
        sys.exit(f"pip {arguments[0]} failed ({last_words(done.stderr)}): {remedy}")


def prepare() -> None:
    """Installs what is missing, takes torchao away, and lets this session find `anita_utils`."""
    changing = {name for name, version in read_pins(PINS).items() if installed(name) != version}
    in_use = sorted(name for name in changing if name.replace("-", "_") in sys.modules)
    if changing:
        print(f"installing {len(changing)} packages, which takes some minutes ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "kept.txt"
            kept.write_text("".join(f"{name}=={installed(name)}\n" for name in KEPT if installed(name)), "utf-8")
            pip("install", "--quiet", "--constraint", kept, "--requirement", PINS, "--editable", ROOT)
    if installed("torchao"):
        pip("uninstall", "--quiet", "--yes", "torchao")
    if in_use:
        sys.exit(f"renewed while in use: {', '.join(in_use)}: choose Runtime > Restart session, and run all cells")
    if str(ROOT) not in sys.path:  # an editable install is seen only by sessions that start after it
        sys.path.insert(0, str(ROOT))
    print("ready")


if __name__ == "__main__":
    prepare()
    from anita_utils.course.set_up import set_up  # noqa: E402

    set_up()
