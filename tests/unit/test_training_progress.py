"""One line of progress that is rewritten where that can be done, and does not flood elsewhere."""

import sys
from types import SimpleNamespace

import IPython
import pytest

from anita_utils import stages, training
from anita_utils.paths import file_hash
from anita_utils.run import Run
from anita_utils.training import Progress


def show_three(progress):
    for number in range(3):
        progress.show(f"line {number}", last=number == 2)


def test_a_terminals_line_is_rewritten(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_three(Progress())
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("\n") and out.count("\r") == 3


@pytest.mark.parametrize(("every", "lines"), [(3600, ["line 2"]), (0, ["line 0", "line 1", "line 2"])])
def test_elsewhere_a_line_comes_now_and_then_and_the_last_always(monkeypatch, capsys, every, lines):
    monkeypatch.setattr(training, "EVERY", every)
    show_three(Progress())
    assert capsys.readouterr().out.splitlines() == lines


def test_a_notebook_holds_one_output_that_is_rewritten(monkeypatch, capsys):
    shown = []

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return SimpleNamespace(update=lambda content, raw: shown.__setitem__(0, content["text/plain"]))

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", display)
    show_three(Progress())
    assert shown == ["line 2"] and capsys.readouterr().out == ""


def trained(profile, name, monkeypatch, run="t", **settings):
    """The stage, trained with these settings, and the names of the checkpoints that were written on the way."""
    profile.order = [name]
    for key, value in settings.items():
        setattr(profile.stages[name], key, value)
    written = []
    monkeypatch.setattr(training, "write_manifest", lambda folder, seconds: written.append(folder.name))
    return training.train_stage(stages.find_stage(Run.open(run, profile, 42), name)), written


@pytest.mark.parametrize(("name", "examples", "updates"), [("sft", 4, 1), ("dpo", 8, 2), ("sft", 64, 6)])
def test_a_training_of_a_few_updates_has_logs_of_all_of_them(runs, tiny_profile, monkeypatch, name, examples, updates):
    """With fewer updates than logging_steps there was none, and a healthy run ended with `loss nan`: Soup#899."""
    batch = {"sft": 64, "dpo": 4}[name] if updates < 3 else 1
    stage, _ = trained(tiny_profile, name, monkeypatch, examples=examples, per_device_train_batch_size=batch)
    history = stage.info["history"]
    steps = stage.info["steps"]
    assert steps >= updates and history[-1]["step"] > steps - max(1, steps // 5)
    assert len(history) >= min(5, steps) and all(row["loss"] > 0 for row in history)


def test_checkpoints_come_by_time_too_and_change_nothing(runs, tiny_profile, monkeypatch):
    """101 updates took 6 to 23 minutes and left none: at most five minutes of work may be lost."""
    plain, none = trained(tiny_profile, "sft", monkeypatch, num_train_epochs=5)
    monkeypatch.setenv("ANITA_CACHE", str(runs / "other"))
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)  # as if every update took so long
    timed, often = trained(tiny_profile, "sft", monkeypatch, run="u", num_train_epochs=5)
    steps = plain.info["steps"]
    assert none == [f"checkpoint-{steps}"] and len(often) >= steps // 5
    losses = [[row["loss"] for row in stage.info["history"]] for stage in (plain, timed)]
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.5)
    assert len({file_hash(f"{stage.merged}/model.safetensors") for stage in (plain, timed)}) == 1


def test_the_only_update_is_not_all_warm_up(runs, tiny_profile, monkeypatch, capsys):
    """With a warm-up of 0.05 the one update had a rate of 0, and no weight moved, without a word."""
    from safetensors.torch import load_file

    settings = {"examples": 4, "per_device_train_batch_size": 64, "warmup_steps": 0.05}
    stage, _ = trained(tiny_profile, "sft", monkeypatch, **settings)
    assert stage.info["steps"] == 1 and "a warm-up of all 1 updates is cut to 0" in capsys.readouterr().out
    adapter = load_file(stage.folder / "adapter" / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in adapter.items() if "lora_B" in name)
