"""The repository itself: light imports in one direction, short files, one source of versions, a clean linter."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import anita_utils

ROOT = Path(__file__).resolve().parents[2]
KIT = sorted(ROOT.glob("anita_utils/**/*.py"))
LONGEST = 450  # lines that a file may have
TABLES = (ast.Dict, ast.List, ast.Tuple, ast.Set)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".ipynb", ".j2", ".json", ".jsonl", ".csv", ""}


def repository_files():
    """The files that git knows, or would add."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


LIGHT = ["profile", "hub", "memory", "cli.main", "cli.plan", "cli.train", "cli.doctor"]


@pytest.mark.parametrize("module", ["anita_utils", *(f"anita_utils.{name}" for name in LIGHT)])
def test_imports_are_light(module):
    program = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'papermill') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def imported_by(file, names):
    """The modules of `names` that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & names or {node.module}  # a module of a package, or names from a module
    return found & names


def test_imports_run_in_no_circle():
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in KIT}
    imports = {name: imported_by(file, set(names)) - {name} for name, file in names.items()}
    assert "anita_utils.profile" in imports["anita_utils.run"]
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_no_file_of_the_kit_is_long():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text("utf-8").splitlines()) for file in KIT}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def is_table(statement):
    """Whether a statement assigns a table: a literal, or what is made of one or of three constants."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return False
    value = statement.value
    given = [value.slice] if isinstance(value, ast.Subscript) else []
    if isinstance(value, ast.Call):
        given = [*value.args, *(keyword.value for keyword in value.keywords)]
    constants = sum(isinstance(one, ast.Constant) for one in given)
    return constants >= 3 or any(isinstance(one, TABLES) for one in [value, *given])


def test_only_tables_are_kept_from_the_formatter():
    others = []
    for file in KIT:
        lines = file.read_text("utf-8").splitlines()
        statements = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.stmt)]
        tables = {statement.end_lineno for statement in statements if is_table(statement)}
        skipped = [number for number, line in enumerate(lines, 1) if line.endswith("# fmt: skip")]
        others += [f"{file.relative_to(ROOT)}:{number}" for number in skipped if number not in tables]
    assert others == []


def test_the_kit_is_installed_without_the_workshop():
    """A wheel holds the kit and the data; only one command reaches for `world`, and says so where there is none."""
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == ["anita_utils", "data"] and "force-include" not in wheel
    assert PROJECT["project"]["scripts"] == {"anita": "anita_utils.cli.main:main"}
    world = {"world"} | {f"world.{file.stem}" for file in ROOT.glob("world/*.py")}
    users = [str(file.relative_to(ROOT)) for file in KIT if imported_by(file, world)]
    assert users == ["anita_utils/cli/main.py"]


def test_the_version_is_the_same_in_two_places():
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
    imported = {name for file in KIT for name in imports.findall(file.read_text("utf-8"))}
    imported -= {*sys.stdlib_module_names, "anita_utils", "world"}
    extras = PROJECT["project"]["optional-dependencies"]
    used = PROJECT["project"]["dependencies"] + extras["corpus"] + extras["web"]
    declared = {Requirement(text).name.lower() for text in used}
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
    extras = "[corpus,dev,lab,web]"
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
