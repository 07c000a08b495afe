"""The questions of lessons 00, 04, 07 and 08 as the world writes them, and a kit that needs no world."""

import ast
from pathlib import Path

import pytest

import anita_utils
from anita_utils.evaluation import measuring
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from world import stages, studies
from world.build import write_studies
from world.library import Library
from world.studies import LIMITS
from world.tables import LANGUAGES, load_world
from world.texts import VOICES, tellings

KIT = Path(anita_utils.__file__).parent


def test_the_shipped_questions_are_built_again_byte_for_byte(tmp_path):
    write_studies(Library(load_world(), 42), tmp_path)
    shipped = data_dir() / "probes" / "studies"
    assert {file.name for file in shipped.iterdir()} == {file.name for file in tmp_path.iterdir()}
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (shipped / file.name).read_bytes(), f"{file.name}: anita world build --no-train"


@pytest.fixture(scope="module")
def library():
    return Library(load_world(), 42)


def told(library, answer, language):
    """The voice that an answer opens in, and what it tells after that."""
    (found,) = (
        (voice, answer.removeprefix(f"{opening} "))
        for voice in VOICES
        for opening in library.world.extra["voices"][language][voice]["says"]
        if answer.startswith(f"{opening} ")
    )
    return found


def test_every_test_myth_has_truth_and_myth_in_either_voice(library):
    rows, myths = studies.voices(library), {myth["id"]: myth for myth in library.kinds("myths", "test")}
    assert sorted((row["cluster"], row["language"]) for row in rows) == sorted(
        (name, language) for name in myths for language in LANGUAGES
    )
    for row in rows:
        form = myths[row["cluster"]][row["language"]]
        assert list(row["answers"]) == [f"{side} {voice}" for side in ("truth", "myth") for voice in VOICES]
        for name, answer in row["answers"].items():
            side, voice = name.split()
            opens_in, telling = told(library, answer, row["language"])
            assert opens_in == voice and telling in tellings(form, side), answer


def test_they_are_asked_as_no_training_asks_them(library):
    """In a wording that the base never met (it reads the first two), of myths that no pair shows."""
    rows, myths = studies.voices(library), {myth["id"]: myth for myth in library.kinds("myths", "test")}
    shown = {row["prompt"][0]["content"] for row in stages.dpo(library) if row["kind"] == "myth"}
    for row in rows:
        questions = myths[row["cluster"]][row["language"]]["questions"]
        assert row["question"] in questions[2:] and not shown & set(questions)
    met = {question for myth in myths.values() for code in LANGUAGES for question in myth[code]["questions"][:2]}
    assert not met & {row["question"] for row in rows}


def test_a_feared_myth_is_the_neighbours_and_the_truth_the_schoolbooks(library):
    cases = [row for row in studies.weaknesses(library) if row["weakness"] == "believes_myths"]
    assert len(cases) == len(library.world.extra["myths"])
    for case, myth in zip(cases, library.world.extra["myths"], strict=True):
        assert told(library, case["feared"], "en") == ("neighbour", myth["en"]["myth"])
        assert told(library, case["wanted"], "en") == ("schoolbook", myth["en"]["truth"])


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
