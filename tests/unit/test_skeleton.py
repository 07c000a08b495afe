"""The repository itself: light imports, one source of versions, a clean linter, nobody's machine in the files."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import anita_utils

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".ipynb", ".j2", ".json", ".jsonl", ".csv", ""}


def repository_files():
    """The files that git knows, or would add."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("module", ["", ".cli", ".profile", ".hub", ".doctor"])
def test_imports_are_light(module):
    module = f"anita_utils{module}"
    program = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'papermill') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_the_version_stands_in_two_places_alike():
    assert PROJECT["project"]["version"] == anita_utils.__version__


def test_everything_installed_is_pinned_and_the_pin_satisfies_the_project():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in map(Requirement, [*PROJECT["project"]["dependencies"], *(r for extra in extras for r in extra)]):
        assert pins[requirement.name.lower()] in requirement.specifier, requirement
    assert pins["torch"] == "2.13.0"


def test_everything_imported_is_a_declared_dependency():
    imports = re.compile(r"^\s*(?:import|from) (\w+)", re.MULTILINE)
    imported = {name for file in ROOT.glob("anita_utils/**/*.py") for name in imports.findall(file.read_text("utf-8"))}
    imported -= {*sys.stdlib_module_names, "anita_utils"}
    declared = {Requirement(text).name.lower() for text in PROJECT["project"]["dependencies"]}
    owners = metadata.packages_distributions()
    spelled = {name: {owner.lower().replace("_", "-") for owner in owners[name]} for name in imported if name in owners}
    assert {"torch", "pydantic"} <= spelled.keys()
    assert {name: owner for name, owner in spelled.items() if not owner & declared} == {}


def test_the_linter_is_content_with_code_and_notebooks():
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout
    listed = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-files", "."], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert "test_skeleton.py" in listed
    assert not list((ROOT / "notebooks").glob("*.ipynb")) or ".ipynb" in listed


def test_no_file_names_somebodys_machine():
    home = re.compile(r"(?<![\w.~$}<>-])/(?:home|root|Users|work)/[\w.]")
    named = []
    for file in repository_files():
        if file.suffix in TEXT and file.name != Path(__file__).name and "tests" not in file.relative_to(ROOT).parts:
            named += [f"{file.relative_to(ROOT)}: {found}" for found in home.findall(file.read_text("utf-8"))]
    assert named == []


def test_continuous_integration_runs_the_tests():
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert "make test" in (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")


def test_conda_installs_what_make_installs():
    extras = "[dev,lab]"
    assert extras in (ROOT / "Makefile").read_text("utf-8")
    assert extras in (ROOT / "environment.yml").read_text("utf-8")


def test_a_second_make_installs_nothing(tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.fail("make is part of what the course needs")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()

    def plan():
        return subprocess.run([make, "-n", "course", "test"], cwd=tmp_path, capture_output=True, text=True).stdout

    assert "pip install" not in plan()
    assert "anita course" in plan()
    (tmp_path / ".venv" / ".installed").unlink()
    assert "pip install" in plan()


def test_an_old_python_is_refused_in_one_line(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    made = subprocess.run(["make", "course", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode != 0
    assert "needs Python 3.11" in made.stderr
    assert not (tmp_path / ".venv").exists()
