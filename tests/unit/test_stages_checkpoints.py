"""Checkpoints are trusted by their manifests alone; stages killed at any moment end as if they had not been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from locks import in_use
from safetensors.torch import load_file

from anita_utils import AnitaError, checkout, stages, training
from anita_utils.paths import write_text
from anita_utils.run import Run, where_and_when
from anita_utils.stages import damage, last_good, trained_seconds, write_manifest

LIVES = Path(__file__).with_name("lives.py")


def make_checkpoint(work, step, manifest=True):
    folder = work / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 4)
    (folder / "inner" / "state").write_text("state")
    if manifest:
        write_manifest(folder, seconds=step / 10)
    return folder


def truncate(folder):
    os.truncate(folder / "weights", 1000)


def alter(folder):
    content = bytearray((folder / "weights").read_bytes())
    content[500] ^= 1
    (folder / "weights").write_bytes(content)


def lose(folder):
    (folder / "inner" / "state").unlink()


def spoil_manifest(folder):
    os.truncate(folder / "manifest.json", 40)


def break_off(folder):
    (folder / "manifest.json").unlink()


DAMAGES = {
    truncate: "weights is truncated or altered",
    alter: "weights is truncated or altered",
    lose: "inner/state is missing",
    spoil_manifest: "manifest.json is damaged",
    break_off: "its writing was broken off",
}


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, capsys, harm):
    good, newer = make_checkpoint(tmp_path, 90), make_checkpoint(tmp_path, 100)
    assert last_good(tmp_path) == newer and trained_seconds(newer) == 10.0
    harm(newer)
    assert damage(newer) == DAMAGES[harm]
    assert last_good(tmp_path) == good
    assert f"checkpoint-100 is no good ({DAMAGES[harm]})" in capsys.readouterr().out
    assert not newer.exists() and damage(good) is None


def test_without_a_good_checkpoint_there_is_none(tmp_path):
    assert last_good(tmp_path / "nowhere") is None
    make_checkpoint(tmp_path, 5, manifest=False)
    assert last_good(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_training_goes_on_before_a_truncated_checkpoint(runs, tiny_profile, monkeypatch, capsys):
    tiny_profile.order = ["sft"]
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    monkeypatch.setenv("ANITA_CACHE", str(runs / "unbroken"))
    unbroken = training.train_stage(stages.find_stage(Run.open("a", tiny_profile, 42), "sft"))
    info, weights = unbroken.info, load_file(f"{unbroken.merged}/model.safetensors")  # its folder follows ANITA_CACHE

    monkeypatch.setenv("ANITA_CACHE", str(runs / "broken"))
    stage = stages.find_stage(Run.open("b", tiny_profile, 42), "sft")
    trainer = training.build_trainer(stage)
    monkeypatch.setattr(trainer, "_finalize_training", lambda *arguments: None)  # all checkpoints, nothing finished
    trainer.train()
    newest = stage.work / f"checkpoint-{info['steps']}"
    os.truncate(newest / "optimizer.pt", (newest / "optimizer.pt").stat().st_size // 2)
    training.train_stage(stage)
    assert f"{newest.name} is no good (optimizer.pt is truncated or altered)" in capsys.readouterr().out
    assert stage.info["history"] == info["history"]
    resumed = load_file(f"{stage.merged}/model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert not stage.work.exists()


def test_a_stage_that_another_process_trained_meanwhile_is_not_trained_again(runs, tiny_profile):
    tiny_profile.order = ["sft"]
    stage = training.train_stage(stages.find_stage(Run.open("t", tiny_profile, 42), "sft"))
    with pytest.raises(AnitaError, match="was trained by another process meanwhile"), stage.training():
        pass
    assert not in_use(stage.folder)


WAITER = """
import sys
from pathlib import Path
from anita_utils.paths import locked
with locked(Path(sys.argv[1]), "it"):
    print("its turn")
"""


def test_inside_a_training_no_other_process_has_the_stage(runs, tiny_profile):
    tiny_profile.order = ["sft"]
    stage = stages.find_stage(Run.open("t", tiny_profile, 42), "sft")
    with stage.training() as checkpoint:
        assert checkpoint is None and in_use(stage.folder)
        command = [sys.executable, "-u", "-c", WAITER, stage.folder]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=checkout())
        assert other.stdout.readline() == "it is in use by another process: waiting for it\n"
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "its turn\n" and not in_use(stage.folder)


def test_a_training_goes_on_from_its_checkpoint_or_begins_again(runs, tiny_profile):
    tiny_profile.order = ["sft"]
    stage = stages.find_stage(Run.open("t", tiny_profile, 42), "sft")
    good = make_checkpoint(stage.work, 5)
    with stage.training() as checkpoint:
        assert checkpoint == str(good)
    with stage.training(resume=False) as checkpoint:
        assert checkpoint is None and not good.exists()


def test_what_changed_since_the_last_training_is_printed(runs, tiny_profile, capsys):
    tiny_profile.order = ["sft"]
    training.train_stage(stages.find_stage(Run.open("t", tiny_profile, 42), "sft"))
    tiny_profile.stages["sft"].learning_rate, tiny_profile.stages["sft"].lora.r = 1e-3, 2
    capsys.readouterr()
    with stages.find_stage(Run.open("t", tiny_profile, 42), "sft").training():
        said = capsys.readouterr().out
    start, _, changes = said.strip().partition(": trained again, and what builds on it: ")
    assert start == "sft"
    assert sorted(changes.split("; ")) == ["settings.learning_rate 0.003 → 0.001", "settings.lora.r 4 → 2"]


def in_lives(tmp_path, profile, *arguments):
    """Runs lives.py with the profile; returns what it found."""
    import yaml

    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    outcome = subprocess.run(
        [sys.executable, LIVES, file, tmp_path / "lives", *map(str, arguments)],
        capture_output=True, text=True, cwd=LIVES.parents[2], env=os.environ | {"PYTHONPATH": str(LIVES.parents[2])},
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-4000:]
    return json.loads(outcome.stdout.splitlines()[-1])


def keep(found):
    """Writes what the soak test found, good or not, into the benchmarks' results."""
    result = where_and_when() | {"stages": found}
    write_text(checkout() / "benchmarks" / "results" / "kills.json", json.dumps(result, indent=1) + "\n")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_stages_killed_at_random_moments_end_as_unbroken_ones(tmp_path, tiny_profile, kills):
    found = in_lives(tmp_path, tiny_profile, "kill", kills)
    if kills == 20:
        keep(found)
    assert list(found) == ["sft", "italian", "dpo"]
    for stage in found.values():
        assert stage["kills"] == kills
        assert stage["inside_a_write"] >= kills / 4
        assert stage["finished"] >= 1 and stage["as_unbroken"] == stage["finished"]


def test_two_processes_at_once_train_a_stage_once(tmp_path, tiny_profile):
    tiny_profile.order = ["sft"]
    assert sorted(in_lives(tmp_path, tiny_profile, "race")) == ["found", "trained"]
