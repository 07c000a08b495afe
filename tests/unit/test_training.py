"""Stages: chained, cached, resumable, reproducible; only the adapter moves."""

import ast
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from anita_utils import AnitaError, checkout, stages, training
from anita_utils.model import load_model
from anita_utils.run import Run


def test_a_changed_recipe_is_another_stage(runs, small_profile):
    run = Run.open("t", small_profile, 42)
    first = stages.find_stage(run, "dpo").key
    assert stages.find_stage(run, "dpo").key == first
    small_profile.stages["sft"].learning_rate *= 2
    assert stages.find_stage(Run.open("t", small_profile, 42), "dpo").key != first  # by way of its parent
    small_profile.stages["sft"].learning_rate /= 2
    assert stages.find_stage(Run.open("t", small_profile, 43), "dpo").key != first


def test_unknown_stage_is_named(runs, small_profile):
    with pytest.raises(AnitaError, match="has no stage 'rlhf': its order is sft, italian, dpo"):
        stages.find_stage(Run.open("t", small_profile, 42), "rlhf")


def test_missing_corpus_is_named(runs, small_profile):
    small_profile.stages["sft"].data = ["nowhere"]
    with pytest.raises(AnitaError, match="stages.sft.data: no corpus 'nowhere': choose sft, italian, dpo"):
        stages.find_stage(Run.open("t", small_profile, 42), "sft").documents()


def test_stages_chain_and_are_trained_once(runs, small_profile):
    run = Run.open("t", small_profile, 42)
    paths = training.train_missing(run)
    assert list(paths) == ["base", "sft", "italian", "dpo"]
    info = json.loads((run.model_dir("italian") / "stage.json").read_text())
    assert info["parent"] == "sft" and info["tokens"] > 0 and info["seconds"] > 0
    assert info["recipe"]["parent"] == stages.find_stage(run, "sft").key
    stamp = (run.model_dir("sft") / "stage.json").stat().st_mtime_ns
    assert training.train_missing(Run.open("other", small_profile, 42)) == paths
    assert (run.model_dir("sft") / "stage.json").stat().st_mtime_ns == stamp
    assert (runs / "other" / "models" / "dpo" / "merged" / "model.safetensors").is_file()


def test_the_same_seed_trains_the_same_weights(runs, small_profile, monkeypatch):
    small_profile.order = ["sft"]
    weights = []
    for name in ("first", "second"):
        monkeypatch.setenv("ANITA_CACHE", str(runs / name))
        path = training.train_missing(Run.open(name, small_profile, 42))["sft"]
        weights.append(load_file(f"{path}/model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_killed_stage_ends_as_an_unbroken_one(runs, small_profile, monkeypatch, name):
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    small_profile.order = [name]
    every_four = training.training_arguments
    monkeypatch.setattr(
        training, "training_arguments", lambda stage: {**every_four(stage), "save_steps": 4, "logging_steps": 1}
    )
    monkeypatch.setenv("ANITA_CACHE", str(runs / "unbroken"))
    unbroken = training.train_stage(stages.find_stage(Run.open("a", small_profile, 42), name))
    # read now: a stage looks for itself in the cache of the moment
    first, history = load_file(f"{unbroken.merged}/model.safetensors"), unbroken.info["history"]

    monkeypatch.setenv("ANITA_CACHE", str(runs / "killed"))
    killed = stages.find_stage(Run.open("b", small_profile, 42), name)
    trainer = training.build_trainer(killed)
    trainer.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert stages.last_good(killed.work) is not None and not killed.done
    training.train_stage(killed)
    second = load_file(f"{killed.merged}/model.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [row["loss"] for row in killed.info["history"]] == [row["loss"] for row in history]


def test_only_the_adapter_moves(runs, small_profile):
    small_profile.order = ["sft"]
    stage = training.open_stage(Run.open("t", small_profile, 42), "sft")
    trainer = training.build_trainer(stage)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    assert {name for name in before if "lora_" in name} == moved


def test_the_merged_model_differs_from_its_parent_by_the_adapter_alone(runs, small_profile):
    small_profile.order = ["sft"]
    stage = training.train_stage(stages.find_stage(Run.open("t", small_profile, 42), "sft"))
    parent, merged = load_model(stage.parent_path).state_dict(), load_model(stage.merged).state_dict()
    adapter = load_file(stage.folder / "adapter" / "adapter_model.safetensors")
    lora = stage.settings.lora
    for name, weight in merged.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in adapter:
            update = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"] * (lora.lora_alpha / lora.r)
            assert torch.allclose(weight, parent[name] + update, atol=1e-5), name
        else:
            assert torch.equal(weight, parent[name]), name


def test_the_trainer_drops_no_pair_and_keeps_the_order(runs, small_profile, tmp_path):
    """TRL drops pairs whose prompt fills the row without a word, and so shifts an order that was fixed: trl#6321."""

    def row(asked, good, bad):
        return {"prompt": [{"role": "user", "content": asked}], "chosen": [{"role": "assistant", "content": good}],
                "rejected": [{"role": "assistant", "content": bad}]}  # fmt: skip

    rows = [row(f"Perché {n}?", f"Sì {n}.", f"No {n}.") for n in range(9)]
    rows += [row("perché " * 60, "Sì.", "No.")] * 4 + [row("Perché?", "sì " * 60, "sì " * 61)] * 3
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in rows), "utf-8")
    dpo = small_profile.stages["dpo"]
    dpo.data, dpo.max_length, small_profile.order = [str(file)], 40, ["dpo"]
    stage = stages.find_stage(Run.open("t", small_profile, 42), "dpo")
    trainer = training.build_trainer(stage)
    assert len(trainer.train_dataset) == 9 and stage.counts.whole == 9
    assert stage.counts.unfit.total() == 7 and stage.counts.read == 16
    again = training.training_rows(stage, trainer.processing_class)
    decoded = [trainer.processing_class.decode(row["chosen_ids"]) for row in trainer.train_dataset]
    assert [text.partition("<|")[0] for text in decoded] == [row["chosen"][0]["content"] for row in again]


@pytest.mark.parametrize("rows", ["", "\n\n", '{"messages": [{"role": "user", "content": "Ciao"}]}\n',
                                  '{"messages": [{"role": "user", "content": "' + "ciao " * 99 + '"}, '
                                  '{"role": "assistant", "content": "Sì."}]}\n'])  # fmt: skip
def test_nothing_to_train_on_is_one_line(runs, anita, tmp_path, rows):
    """Every label masked: a loss of 0.000, and no weight moved: trl#6668."""
    file = tmp_path / "mine.jsonl"
    file.write_text(rows, "utf-8")
    changes = [part for change in (f"data={file}", "max_length=32") for part in ("--set", change)]
    for mode in (["--check"], []):
        code, _, err = anita("train", "sft", *changes, *mode)
        assert code == 2 and err.startswith("anita: stage 'sft' has nothing to train on (") and err.count("\n") == 1


def test_what_was_read_and_left_out_stands_in_the_stage(runs, tiny_profile, tmp_path):
    rows = [{"text": f"Il Po è lungo {number} km."} for number in range(12)] + [{"text": " "}] * 3
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tiny_profile.order, tiny_profile.stages["sft"].data = ["sft"], [str(file)]
    info = training.train_stage(stages.find_stage(Run.open("t", tiny_profile, 42), "sft")).info
    assert info["rows"] == {
        "read": 15,
        "left_out": {"an empty text": 3},
        "not_taken": 0,
        "unfit": {},
        "cut": 0,
        "whole": 12,
    }
    assert info["recipe"]["settings"]["data"] == ["mine.jsonl"]


def test_an_import_changes_nothing_elsewhere():
    """It wrote into transformers' registry of callbacks, and set glibc's memory for everyone who looked at a stage."""
    code = """
import ctypes
from transformers.integrations import integration_utils
import bitsandbytes, peft, trl
callbacks, called, load = dict(integration_utils.INTEGRATION_TO_CALLBACK), [], ctypes.CDLL
ctypes.CDLL = lambda name, *rest, **more: called.append(name) or load(name, *rest, **more)
import anita_utils.training
assert integration_utils.INTEGRATION_TO_CALLBACK == callbacks and None not in called
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout())


def test_modules_only_define():
    """At the top of a module are definitions and constants: no calls, no loops, nothing put into other objects."""

    def defines(node):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
        if isinstance(node, ast.If):
            return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        return text or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)

    kit = checkout() / "anita_utils"
    others = {
        f"{file.relative_to(kit)}: {ast.unparse(node)}"
        for file in kit.rglob("*.py")
        for node in ast.parse(file.read_text("utf-8")).body
        if not defines(node)
    }
    assert {line for line in others if not line.startswith("cli/main.py: ")} == set()  # there the commands are named


def test_a_prepared_trainer_has_what_the_lessons_speak_of(runs, tiny_profile):
    from transformers import PrinterCallback

    tiny_profile.order = ["sft"]
    trainer = training.build_trainer(stages.find_stage(Run.open("t", tiny_profile, 42), "sft"))
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert trained and all(weight.dtype is torch.float32 for weight in trained)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(training.Watch) == 1 and PrinterCallback not in kinds
    assert trainer.model.get_base_model().forward.__module__ == "anita_utils.training"


def test_so_many_rows_of_a_corpus_are_taken_and_the_rest_counted(runs, small_profile):
    sft = small_profile.stages["sft"]
    sft.data, sft.samples, sft.examples = ["sft", "quaderno_requests"], {"sft": 50}, None
    stage = stages.find_stage(Run.open("t", small_profile, 42), "sft")
    rows = stage.documents()
    assert len(rows) == 450 and stage.counts.read == 4400 and stage.counts.not_taken == 3950
    assert stage.documents() == rows
    other = stages.find_stage(Run.open("t", small_profile, 43), "sft").documents()
    assert len(other) == 450 and other != rows  # another seed draws others
    sft.samples = {"sft": 9000}  # more than there are
    assert len(stage.documents()) == 4400


def test_samples_decide_a_stage_s_key_and_their_absence_does_not(runs, small_profile):
    run = Run.open("t", small_profile, 42)
    assert "samples" not in stages.find_stage(run, "sft").recipe["settings"]
    first = stages.find_stage(run, "sft").key
    small_profile.stages["sft"].samples = {"sft": 50}
    assert stages.find_stage(Run.open("t", small_profile, 42), "sft").key != first
