"""The questions of lessons 00, 07 and 08 as the world writes them, and a kit that needs no world."""

import ast
from pathlib import Path

import pytest

import anita_utils
from anita_utils.evaluation import measuring
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from world.build import write_studies
from world.library import Library
from world.studies import LIMITS
from world.tables import load_world

KIT = Path(anita_utils.__file__).parent


def test_the_shipped_questions_are_built_again_byte_for_byte(tmp_path):
    write_studies(Library(load_world(), 42), tmp_path)
    shipped = data_dir() / "probes" / "studies"
    assert {file.name for file in shipped.iterdir()} == {file.name for file in tmp_path.iterdir()}
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (shipped / file.name).read_bytes(), f"{file.name}: anita world build --no-train"


def test_they_are_in_no_evaluations_key(tmp_path, monkeypatch):
    """One file more there, and every committed result would be stale."""
    profile, before = load_profile("cpu"), measuring.measured_with(load_profile("cpu"))
    for entry in data_dir().iterdir():
        if entry.name != "probes":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "probes").mkdir()
    for file in (data_dir() / "probes").glob("*.jsonl"):
        (tmp_path / "probes" / file.name).symlink_to(file)
    monkeypatch.setenv("ANITA_DATA", str(tmp_path))  # the same without the folder
    assert measuring.measured_with(profile) == before


def test_what_is_contradicted_is_there_for_the_limits_of_all_profiles():
    profiles = [load_profile(file.stem) for file in (KIT / "profiles").glob("*.yaml")]
    assert {profile.evaluation.limit for profile in profiles} == set(LIMITS)


@pytest.mark.parametrize("file", sorted(KIT.rglob("*.py")), ids=lambda file: str(file.relative_to(KIT)))
def test_the_kit_imports_no_world(file):
    """It is outside the package. `anita world build` alone does, in a checkout."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    used = {name for name in found if name.partition(".")[0] == "world"}
    assert used == ({"world.build"} if file.name == "main.py" and file.parent.name == "cli" else set())
