"""Runs: opening, recording, and what happens to damaged files."""

import json
import os

import numpy
import pytest
from matplotlib.figure import Figure

from anita_utils import AnitaError
from anita_utils.profile import load_profile
from anita_utils.run import Run, where_and_when

KEYS = ["notebook", "arm", "stage", "metric", "value", "ci_low", "ci_high", "n", "language", "split", "seed", "profile"]
ROW = {"stage": "sft", "metric": "perplexity", "value": 2.5, "language": "en"}


def other_profile(name="other"):
    return load_profile("cpu").model_copy(update={"name": name})


def test_open_writes_what_the_run_is(runs):
    run = Run.open("trial", "cpu", 7)
    info = json.loads((runs / "trial" / "run.json").read_text("utf-8"))
    assert info["profile"] == load_profile("cpu").model_dump()
    assert info["seed"] == run.seed == 7
    assert info["machine"]["cores"] >= 1
    assert "torch" in info["versions"]
    assert info["lessons"] == {}
    assert "commit" in info


def test_what_figures_hold_for_is_told_in_json():
    found = where_and_when()
    assert set(found) == {"machine", "commit", "when"} and "torch" in found["machine"]["versions"]
    assert json.loads(json.dumps(found))["machine"]["cores"] >= 1


def test_latest_is_reused_for_the_same_profile_and_else_made(runs):
    assert Run.open("latest", "cpu").folder.name == "cpu"
    first = Run.open("first", "cpu")
    assert os.readlink(runs / "latest") == "first"
    assert Run.open("latest", "cpu").folder == first.folder
    assert Run.open("latest", other_profile()).folder.name == "other"
    assert Run.load("latest").profile.name == "other"
    assert not [file.name for file in runs.iterdir() if file.name.startswith(".")]


def test_opening_again_keeps_what_was_recorded(runs):
    run = Run.open("trial", "cpu")
    run.record("02_sft", [ROW])
    run.lesson_done("02_sft", 12.34, "done")
    again = Run.open("trial", "cpu")
    assert len(again.metrics()) == 1
    assert again.info()["lessons"] == {"02_sft": {"seconds": 12.3, "status": "done"}}


def test_lessons_that_ran_on_other_terms_are_outdated(runs):
    profile = load_profile("cpu")
    changed = profile.model_copy(update={"evaluation": profile.evaluation.model_copy(update={"limit": 7})})
    for terms in ({"profile": changed}, {"profile": "cpu", "seed": 1}):
        Run.open("trial", "cpu").lesson_done("02_sft", 1, "done")
        assert Run.open("trial", "cpu").info()["lessons"]["02_sft"]["status"] == "done"
        assert Run.open("trial", **terms).info()["lessons"]["02_sft"]["status"] == "outdated"


def test_a_run_keeps_its_profile(runs):
    Run.open("trial", "cpu")
    with pytest.raises(AnitaError, match="made with profile 'cpu', not 'other'.*--run"):
        Run.open("trial", other_profile())


@pytest.mark.parametrize("name", ["../out", "a/b", "", "cache", ".hidden"])
def test_names_that_leave_the_folder_are_refused(runs, name):
    with pytest.raises(AnitaError, match="cannot name a run"):
        Run.open(name, "cpu")


def test_record_replaces_the_same_lesson_only(runs):
    run = Run.open("trial", "cpu", 5)
    run.record("02_sft", [ROW, ROW | {"language": "it"}])
    run.record("03_italian", [{"stage": "italian", "metric": "perplexity", "value": 3.0}])
    table = run.record("02_sft", [ROW | {"value": numpy.float32(9), "n": numpy.int64(3), "split": "seen"}])
    assert list(table["value"]) == [9.0]
    metrics = run.metrics()
    assert list(metrics.columns) == KEYS
    assert list(metrics["notebook"]) == ["03_italian", "02_sft"]
    assert set(metrics["seed"]) == {5}
    assert set(metrics["profile"]) == {"cpu"}
    assert set(metrics["arm"]) == {"recipe"}
    lines = (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [list(json.loads(line)) for line in lines] == [KEYS, KEYS]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ROW | {"valeu": 1}, "valeu"),
        (ROW | {"value": float("nan")}, "value"),
        (ROW | {"language": "fr"}, "language"),
        ({"stage": "sft"}, "metric"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_is_written(runs, row, complaint):
    run = Run.open("trial", "cpu")
    run.record("02_sft", [ROW])
    with pytest.raises(AnitaError, match=complaint):
        run.record("02_sft", [ROW, row])
    assert len(run.metrics()) == 1


@pytest.mark.parametrize("line", ["{", '{"stage": "sft"}', "0", "[]"])
def test_malformed_lines_are_named_with_their_number(runs, line):
    run = Run.open("trial", "cpu")
    run.record("02_sft", [ROW])
    file = run.folder / "metrics.jsonl"
    file.write_text(file.read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(AnitaError, match=r"metrics\.jsonl, line 2: ") as error:
        run.metrics()
    assert "\n" not in str(error.value)


def test_an_empty_run_has_an_empty_table_with_all_columns(runs):
    metrics = Run.open("trial", "cpu").metrics()
    assert list(metrics.columns) == KEYS
    assert metrics.empty


def test_damaged_run_json_is_named(runs):
    run = Run.open("trial", "cpu")
    (run.folder / "run.json").write_text('{"profile": {}', "utf-8")
    for action in (lambda: Run.load("trial"), lambda: Run.open("trial", "cpu")):
        with pytest.raises(AnitaError, match=r"run\.json is damaged"):
            action()
    with pytest.raises(AnitaError, match="no run 'nowhere'"):
        Run.load("nowhere")


def test_loading_changes_nothing(runs):
    Run.open("old", "cpu")
    Run.open("new", "cpu")
    before = (runs / "old" / "run.json").read_text("utf-8")
    Run.load("old")
    assert os.readlink(runs / "latest") == "new"
    assert (runs / "old" / "run.json").read_text("utf-8") == before


def test_figures_and_models_have_their_places(runs):
    run = Run.open("trial", "cpu")
    figure = Figure()
    figure.subplots().plot([1, 2])
    run.show(figure, "02_sft-loss", alt="A line that rises.", caption="Higher is worse.")
    file = run.folder / "figures" / "02_sft-loss.png"
    assert file.read_bytes().startswith(b"\x89PNG")
    said = json.loads(file.with_suffix(".json").read_text("utf-8"))
    assert said == {"alt": "A line that rises.", "caption": "Higher is worse."}
    assert run.model_dir("sft") == run.folder / "models" / "sft"
    assert run.last_stage() == "base"
    for stage in ("sft", "dpo"):
        (run.model_dir(stage) / "merged").mkdir(parents=True)
    assert run.last_stage() == "dpo"
