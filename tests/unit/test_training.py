"""Stages: chained, cached, resumable, reproducible; only the adapter moves."""

import json

import pytest
import torch
from safetensors.torch import load_file

from anita_utils import AnitaError, training
from anita_utils.model import load_model
from anita_utils.record import Run


def test_a_changed_recipe_is_another_stage(runs, small_profile):
    run = Run.open("t", small_profile, 42)
    first = training.find_stage(run, "dpo").key
    assert training.find_stage(run, "dpo").key == first
    small_profile.stages["sft"].learning_rate *= 2
    assert training.find_stage(Run.open("t", small_profile, 42), "dpo").key != first  # by way of its parent
    small_profile.stages["sft"].learning_rate /= 2
    assert training.find_stage(Run.open("t", small_profile, 43), "dpo").key != first


def test_unknown_stage_is_named(runs, small_profile):
    with pytest.raises(AnitaError, match="has no stage 'rlhf': its order is sft, italian, dpo"):
        training.find_stage(Run.open("t", small_profile, 42), "rlhf")


def test_missing_corpus_is_named(runs, small_profile):
    small_profile.stages["sft"].data = ["nowhere"]
    with pytest.raises(AnitaError, match=r"stage 'sft': no data at .*nowhere\.jsonl"):
        training.find_stage(Run.open("t", small_profile, 42), "sft").documents()


def test_stages_chain_and_are_trained_once(runs, small_profile):
    run = Run.open("t", small_profile, 42)
    paths = training.train_missing(run)
    assert list(paths) == ["base", "sft", "italian", "dpo"]
    info = json.loads((run.model_dir("italian") / "stage.json").read_text())
    assert info["parent"] == "sft" and info["tokens"] > 0 and info["seconds"] > 0
    assert info["recipe"]["parent"] == training.find_stage(run, "sft").key
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
    unbroken = training.train_stage(training.find_stage(Run.open("a", small_profile, 42), name))
    # read now: a stage looks for itself in the cache of the moment
    first, history = load_file(f"{unbroken.merged}/model.safetensors"), unbroken.info["history"]

    monkeypatch.setenv("ANITA_CACHE", str(runs / "killed"))
    killed = training.find_stage(Run.open("b", small_profile, 42), name)
    trainer = training.build_trainer(killed)
    trainer.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert killed.checkpoint() is not None and not killed.done
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
    stage = training.train_stage(training.find_stage(Run.open("t", small_profile, 42), "sft"))
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
