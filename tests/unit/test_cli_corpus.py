"""`anita corpus`: what it prints, and a stage trained on the folder it made."""

import json
from pathlib import Path

import pytest
import yaml
from texts import ARTICLES, LEFT_OUT, leaked, write_folder

from anita_utils import AnitaError
from anita_utils.profile import load_profile, override, parse_profile
from anita_utils.run import Run
from anita_utils.stages import find_stage
from anita_utils.studies.contamination import course_overlaps


@pytest.fixture
def made(anita, tmp_path, monkeypatch):
    """A corpus in the working folder, by the name "mio"; and what was printed."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "testi")
    code, out, err = anita("corpus", "testi", "--out", "mio")
    assert (code, err) == (0, "")
    return out


def test_all_that_was_left_out_is_printed(made):
    assert "testi → mio" in made
    for reason, count in LEFT_OUT.items():
        assert any(f"left out: {reason}" in line and f" {count} " in line for line in made.splitlines())
    assert "files: 5 read, 1 not UTF-8, 1 without text, 1 of another kind: .png\n" in made
    assert "not UTF-8: vecchio.txt\n" in made and "--encoding latin-1" in made and "without text: vuota.html\n" in made
    assert "other languages, in paragraphs: en 1\n" in made and f"benchmark items found: {leaked()[1]}\n" in made
    assert "train: " in made and "held_out: 1 rows" in made and "--set data=mio --check" in made


def test_counts_come_as_json_too(made, anita, tmp_path):
    code, out, _ = anita("corpus", "testi", "--out", "mio", "--json")
    assert code == 0 and json.loads(out) == json.loads((tmp_path / "mio" / "counts.json").read_text("utf-8"))


def test_what_cannot_be_is_one_line_and_leaves_nothing(anita, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "testi").mkdir()
    for arguments, line in (
        (("testi", "--out", "mio"), "anita: testi holds no .txt, .md, .html, .htm: put texts there"),
        (("testi", "--out", "testi"), "anita: testi is there and holds no corpus, or other files too: choose another"),
        (("testi", "--out", "sft"), "anita: 'sft' is the name of a shipped corpus: choose another name for --out"),
        (("testi", "--out", "mio", "--encoding", "latino"), "anita: no encoding 'latino': for instance latin-1"),
    ):
        code, out, err = anita("corpus", *arguments)
        assert (code, out) == (2, "") and err.startswith(line) and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["testi"]


# ---------------------------------------------------------------- training on it


def test_a_stage_is_trained_on_the_folder(made, anita, runs, tiny_profile, tmp_path):
    tiny_profile.stages["italian"].examples = None
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_profile.model_dump(mode="json")), "utf-8")
    rows = sum(1 for _ in (tmp_path / "mio" / "train.jsonl").open())
    code, out, err = anita("train", "italian", "--profile", "tiny.yaml", "--set", "data=mio", "--check")
    assert code == 0, err
    assert [line for line in out.splitlines() if "read" in line and f" {rows} " in line]
    code, out, err = anita("train", "italian", "--profile", "tiny.yaml", "--set", "data=mio", "--run", "own")
    assert code == 0, err
    assert f"rows: {rows} read, " in out
    stage = find_stage(Run.load("own"), "italian")
    assert stage.done and stage.info["recipe"]["settings"]["data"] == ["mio"]
    assert sum(ARTICLES[0] in row["text"] for row in stage.documents()) == 1


def test_a_folder_is_meant_by_its_path_and_a_shipped_name_stays_the_shipped_one(made, tmp_path, monkeypatch):
    profile = load_profile("cpu")
    names = ["mio", "./mio", str(tmp_path / "mio"), "mio/train.jsonl"]
    for name in names:
        changed = override(profile, {"stages.italian.data": [name]}, "here")
        stage = find_stage(Run(tmp_path / "unwritten", changed, 42), "italian")
        assert [file.resolve() for file in stage.corpora] == [tmp_path / "mio" / "train.jsonl"]
        found = {row["corpus"]: row["documents"] for row in course_overlaps(changed)}
        [taken] = changed.stages["italian"].data
        assert found[taken] == len(stage.documents())
        assert taken == "mio" if name == "mio" else Path(taken).name == "train.jsonl"
        monkeypatch.chdir("/")  # a run saved with it can be read wherever one stands
        assert parse_profile(changed.model_dump(), "run.json").stages["italian"].data == [taken]
        monkeypatch.chdir(tmp_path)
    (tmp_path / "mio").rename(tmp_path / "italian")
    stage = find_stage(Run(tmp_path / "unwritten", profile, 42), "italian")
    assert [file.name for file in stage.corpora] == ["italian_text.jsonl", "replay.jsonl"]
    changed = override(profile, {"stages.italian.data": ["mio"]}, "here")
    with pytest.raises(AnitaError, match="no corpus 'mio': choose .* or of a folder that `anita corpus` made"):
        _ = find_stage(Run(tmp_path / "unwritten", changed, 42), "italian").corpora
    with pytest.raises(AnitaError, match="nothing is known of './mio'"):
        override(profile, {"stages.italian.data": ["./mio"]}, "here")
