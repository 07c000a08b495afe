"""`anita train`: a stage outside a notebook."""

import pytest
import yaml

from anita_utils import AnitaError, stages
from anita_utils.cli.train import changed
from anita_utils.profile import load_profile
from anita_utils.run import Run


@pytest.fixture
def tiny_file(tiny_profile, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_profile.model_dump(mode="json")))
    return file


def test_a_stage_is_trained_with_those_before_it_then_taken_from_the_cache(
    runs, anita, tiny_file, tiny_profile, monkeypatch
):
    monkeypatch.setattr("anita_utils.training.EVERY", 3600)  # however slow the machine, only the last line of each
    code, out, err = anita("train", "italian", "--profile", tiny_file)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("sft: ") and ", done in 0:" in lines[0]
    assert lines[1].startswith("italian: ") and lines[2].startswith("italian: trained: ")
    assert " tokens/s, " in lines[2] and len(lines) == 5
    assert lines[3] == "rows: 5,400 read, 5,336 not taken (examples), 0 cut, 64 whole"
    assert lines[4] == "run 'cpu': `anita chat italian --run cpu` asks it"
    # the same, and by the same name in the cache, as the lessons train
    stage = stages.find_stage(Run.open("cpu", tiny_profile, 42), "italian")
    assert stage.done and (stage.run.model_dir("italian") / "merged").is_dir()

    code, out, _ = anita("train", "italian", "--profile", tiny_file)
    assert code == 0 and out.startswith("italian: in the cache, unchanged: ") and out.count("\n") == 3

    changes = ("--run", "cpu", "--set", "learning_rate=1e-4", "--no-resume")
    code, out, _ = anita("train", "sft", "--profile", tiny_file, *changes)
    assert code == 0
    assert out.startswith("sft: trained again, and what builds on it: settings.learning_rate 0.003 → 0.0001\n")


def test_settings_and_base_are_changed_as_asked():
    profile = load_profile("cpu")
    new = changed(profile, "dpo", "some/where", ["beta=0.2", "model.dtype=bfloat16", "stages.sft.lora.r=8", "seed=3"])
    assert new.stages["dpo"].beta == 0.2 and new.model.dtype == "bfloat16" and new.seed == 3
    assert new.stages["sft"].lora.r == 8 and new.model.base == "some/where" and new.model.revision is None
    new.stages["dpo"].beta, new.stages["sft"].lora.r, new.seed = 0.5, 16, profile.seed
    new.model = profile.model
    assert new.model_dump() == profile.model_dump()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rate", "write key=value"),
        ("learning_rat=1", r"stages\.sft\.learning_rat: unknown key: did you mean 'learning_rate'"),
        ("epochs=2", r"stages\.sft\.epochs: unknown key: did you mean 'num_train_epochs'"),
        ("learning_rate=fast", r"stages\.sft\.learning_rate: 'fast' will not do"),
        ("learning_rate=[", "the value is no YAML"),
        ("stages.rl.beta=1", "no such section"),
        ("learning_rate.x=1", "no such section"),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(AnitaError, match=message):
        changed(load_profile("cpu"), "sft", None, [change])


def test_an_unknown_stage_is_named(runs, anita):
    code, out, err = anita("train", "rlhf")
    assert (code, out) == (2, "") and "has no stage 'rlhf': its order is sft, italian, dpo" in err
    assert not runs.exists()


def test_only_lessons_move_the_latest_run(runs, anita, tiny_file, tiny_profile):
    """`anita train --run other` moved it, and `anita chat dpo` then meant another run than before."""
    assert anita("train", "sft", "--profile", tiny_file, "--run", "first")[0] == 0
    assert Run.latest().folder.name == "first"  # there was none yet
    assert anita("train", "sft", "--profile", tiny_file, "--run", "other")[0] == 0
    assert Run.latest().folder.name == "first"
    Run.open("lessons", tiny_profile, 42)
    assert Run.latest().folder.name == "lessons"


def test_chat_eval_and_report_say_which_run_they_use(runs, anita, tiny_file, tiny_profile):
    for name in ("first", "other"):
        assert anita("train", "sft", "--profile", tiny_file, "--run", name)[0] == 0
    for arguments in (("chat", "sft", "--prompt", "Ciao", "--max-new-tokens", "1"), ("report",),
                      ("eval", "sft", "--dry-run")):  # fmt: skip
        for name in ("first", "other"):
            code, out, err = anita(*arguments, "--run", name)
            assert code == 0 and f"run '{name}' (profile {tiny_profile.name}, seed 42)" in err, (arguments, err)
        assert "run 'first'" in anita(*arguments)[2]
    code, _, err = anita("chat", "sft", "--run", "nowhere", "--prompt", "x")
    assert code == 2 and "no run 'nowhere'" in err
