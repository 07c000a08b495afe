"""environment.yml installs what `make` installs: its pip part, in a bare environment. Needs the package index."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
def test_the_pip_part_installs_a_course_that_works(tmp_path):
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    course = tmp_path / "course"
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (course / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, course / name)
    parts = yaml.safe_load((course / "environment.yml").read_text("utf-8"))["dependencies"]
    (wanted,) = [part["pip"] for part in parts if isinstance(part, dict)]
    (course / "condaenv.requirements.txt").write_text("\n".join(wanted) + "\n", "utf-8")  # as conda hands it to pip
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    installing = [python, "-m", "pip", "install", "--quiet", "--requirement", "condaenv.requirements.txt"]
    subprocess.run(installing, cwd=course, check=True)
    done = subprocess.run([python.with_name("anita"), "doctor"], cwd=course, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    versions = [line for line in done.stdout.splitlines() if "versions" in line]
    assert versions and "as tested" in versions[0]
