"""The measure of the real model: manuals read from packages, and all of it from end to end on a model of one layer.

The soak test fetches the true model; it needs the registry, and about five minutes.
"""

import importlib.util
import json
import subprocess
import sys

import pytest
from test_stages_checkpoints import in_lives

from anita_utils import AnitaError, checkout
from anita_utils.hub import resolve_model
from anita_utils.profile import load_profile
from anita_utils.stats import Measurement

SCRIPT = checkout() / "benchmarks" / "real_model.py"
ITALIAN = "Il pacchetto si installa con il comando che segue, e la configurazione si trova nella cartella del sistema."
ENGLISH = "The package is installed by the command that follows, and its settings are found in the system's folder."


@pytest.fixture(scope="module")
def real_model():
    spec = importlib.util.spec_from_file_location("real_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_model"] = module  # its processes look the functions up by name
    spec.loader.exec_module(module)
    return module


def page(*paragraphs):
    return "<html><body><main>" + "".join(f"<p>{one}</p>" for one in paragraphs) + "</main></body></html>"


def test_running_text_of_one_language_is_taken_once(real_model, tmp_path):
    said = [f"{ITALIAN[:-1]} numero {number}." for number in range(1, 8)]
    (tmp_path / "a.html").write_text(page(*said, ENGLISH, "0x00 0x01 0x02 0x03 | 0x04 0x05 0x06 0x07 | 0x08"), "utf-8")
    (tmp_path / "b.html").write_text(page(*said), "utf-8")
    (tmp_path / "c.html").write_text("<html></html>", "utf-8")
    [text] = real_model.texts_of(tmp_path, "it")
    assert len(text.split()) >= real_model.WORDS and "0x00" not in text and "package" not in text
    assert text.splitlines() == said[: len(text.splitlines())]
    assert real_model.texts_of(tmp_path, "en") == []  # too short to be measured


def test_a_package_that_cannot_be_fetched_is_named(real_model, tmp_path, monkeypatch):
    class Failed:
        stderr = "E: Unable to locate package nowhere"

    monkeypatch.setattr(real_model.subprocess, "run", lambda *arguments, **options: Failed)
    with pytest.raises(AnitaError, match="nowhere cannot be fetched .*Unable to locate.*apt-get update"):
        real_model.unpacked("nowhere", tmp_path)


def test_without_apt_manuals_are_left_out_and_it_is_said(real_model, monkeypatch, capsys):
    monkeypatch.setattr(real_model.shutil, "which", lambda program: None)
    assert real_model.manuals() == [] and "manuals are left out" in capsys.readouterr().err


def test_each_stage_is_set_against_the_one_before_it(real_model):
    profile = load_profile("laptop")
    right = {"base": 2, "sft": 4, "italian": 5, "dpo": 5, "italian alone": 9}
    items = [str(number) for number in range(10)]
    measured = {
        stage: [Measurement("language_fidelity", "it", None, [1.0] * good + [0.0] * (10 - good), items)]
        for stage, good in right.items()
    }
    found = {(row["from"], row["to"]): round(row["value"], 3) for row in real_model.steps(profile, measured)}
    assert found == {
        ("base", "sft"): 0.2, ("sft", "italian"): 0.1, ("italian", "dpo"): 0, ("base", "dpo"): 0.3,
        ("base", "italian alone"): 0.7,
    }  # fmt: skip


def test_all_of_it_runs_and_goes_on_where_it_was(real_model, runs, tiny, tmp_path, monkeypatch):
    import yaml

    tiny.evaluation.probes, tiny.evaluation.natural, tiny.evaluation.suite = 1, True, "quick"
    file, made = tmp_path / "mine.yaml", []
    file.write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
    foreseen = {"seconds": 1.0, "peak_memory_bytes": 2**30, "tokens": 9, "tokens_per_second": 9.0, "updates": 2}

    def plan(profile):
        made.append(profile.name)
        return dict.fromkeys(profile.order, foreseen)

    def in_place_of_lessons(profile, run):
        made.append(real_model.training.train_missing(real_model.Run.open(run, load_profile(profile), 42)))
        return {"seconds": 60.0, "peak_memory_bytes": 2**30}

    monkeypatch.setattr(
        real_model, "planned", lambda profile: made.append("plan") or dict.fromkeys(profile.order, foreseen)
    )
    monkeypatch.setattr(real_model, "lessons", in_place_of_lessons)
    monkeypatch.setattr(real_model, "in_full", lambda profile: profile)
    texts = [{"text": text, "language": code, "cluster": code} for text, code in ((ITALIAN, "it"), (ENGLISH, "en"))]
    monkeypatch.setattr(real_model, "manuals", lambda: texts)
    for _ in range(2):
        real_model.main(["--profile", str(file), "--run", "mine", "--out", str(tmp_path / "out")])
    assert len(made) == 2  # once each
    outcome = json.loads((tmp_path / "out" / "real_model.json").read_text())
    known = {(row["stage"], row["metric"], row["language"], row["split"]) for row in outcome["figures"]}
    for stage in ("base", "sft", "italian", "dpo", "italian alone"):
        for metric, language, split in (
            ("bits_per_byte", "it", "manuals"), ("bits_per_byte", "en", "natural"), ("choices", "it", "natural"),
            ("chat/accuracy", "it", "natural"), ("refusal/harmless", "all", "natural"), ("minimal_pairs", "it", None),
        ):  # fmt: skip
            assert (stage, metric, language, split) in known
    told = (tmp_path / "out" / "real_model.md").read_text()
    assert "| dpo | 0.0 min |" in told and "bits a byte of Italian text, manuals" in told
    assert "Lessons 00 to 05: 1 minutes, 1.00 GiB" in told


@pytest.mark.soak
def test_the_true_model_is_fetched_trained_killed_and_asked(tmp_path, runs):
    profile = load_profile("laptop")
    profile.model.base = resolve_model("smollm2")
    for stage in profile.stages.values():
        stage.examples, stage.samples = 20, {}
    found = in_lives(tmp_path, profile, "kill", 1)
    assert list(found) == profile.order
    assert all(stage["kills"] == 1 and stage["as_unbroken"] == stage["finished"] >= 1 for stage in found.values())
    command = [sys.executable, "-m", "anita_utils.cli.main", "chat", profile.model.base, "--prompt", "Ciao!"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0 and len(said.stdout.splitlines()) >= 2, said.stderr
