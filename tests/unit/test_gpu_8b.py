"""The benchmark on a GPU: what it counts and trains, and that all of it runs on a tiny shape without one."""

import json
import sys

import pytest
import torch

from anita_utils import checkout, training
from anita_utils.machine import detect_machine
from anita_utils.memory import job_of, meta_model
from anita_utils.profile import load_profile

MATRICES, HEAD = 6_979_321_856, 525_336_576  # weights of LLaMA-3-8B's layers, and of its head


@pytest.fixture
def gpu_8b(monkeypatch):
    monkeypatch.syspath_prepend(checkout() / "benchmarks")
    import gpu_8b

    return gpu_8b


def test_the_cases_are_those_of_the_profiles(gpu_8b):
    jobs = [job_of(load_profile(profile), stage) for profile, stage in gpu_8b.CASES.values()]
    assert [(job.batch, job.length, job.pairs) for job in jobs] == [(1, 1024, False), (4, 4096, False), (8, 1024, True)]


def test_arithmetic_is_counted_by_the_frozen_weights(gpu_8b):
    profile = load_profile("h100")  # whose stages compute activations twice
    assert gpu_8b.flop_a_token(profile, "sft") == 6 * (MATRICES + HEAD)
    assert gpu_8b.flop_a_token(profile, "dpo") == 8 * (MATRICES + HEAD)


def test_the_whole_shape_is_drawn_from_few_matrices(gpu_8b):
    import random_8b

    shell = meta_model("meta-llama/Meta-Llama-3-8B-Instruct")
    weights = random_8b.random_weights(shell, torch.bfloat16, "meta")
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: parameter.shape for name, parameter in shell.named_parameters()
    }
    held = sum(weight.nbytes for weight in {id(weight): weight for weight in weights.values()}.values())
    assert held < 2.5e9  # bytes; embeddings and head alone are 2.1e9
    assert weights["lm_head.weight"] is not weights["model.embed_tokens.weight"]  # else one would count for both


@pytest.fixture
def stage(gpu_8b, runs, tmp_path):
    import random_8b

    base = random_8b.shape_folder(tmp_path / "shape", tiny=True)
    return random_8b.open_stage(random_8b.profile_of("h100", detect_machine(), True, base), "sft")


def test_the_layers_are_in_4_bits_and_the_texts_the_same_each_time(gpu_8b, stage):
    import random_8b
    from bitsandbytes.nn import Linear4bit

    model, _ = random_8b.load_random(stage)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 2 * 7 and all(layer.weight.dtype == torch.uint8 for layer in layers)
    assert not any(layer.weight.is_meta for layer in layers)
    assert stage.documents() == stage.documents() and len({row["text"] for row in stage.documents()}) > 20


def test_what_fails_is_noted(gpu_8b, stage):
    def no_room(stage):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def broken(stage):
        raise ValueError("first\nsecond")

    assert gpu_8b.measure(no_room, stage, 1, 0)["failed"] == "out of memory"
    assert gpu_8b.measure(broken, stage, 1, 0)["failed"] == "ValueError: first second"


def test_all_cases_run_on_a_tiny_shape_though_an_arm_fails(gpu_8b, monkeypatch, tmp_path):
    def no_room(stage):
        raise torch.OutOfMemoryError

    before = training.load_for_training
    monkeypatch.setitem(gpu_8b.MAKERS, "flex", no_room)
    arms = ["course", "flex", "trl", "authors"]
    monkeypatch.setattr(sys, "argv", ["gpu_8b", "--tiny", "--warmup", "1", "--seconds", "0", "--out", str(tmp_path),
                                      "--arms", *arms])  # fmt: skip
    gpu_8b.main()
    found = json.loads((tmp_path / "gpu_8b.json").read_text())
    assert list(found["cases"]) == ["t4-sft", "h100-sft", "h100-dpo"] and found["tiny"] and found["machine"]["cpu"]
    for case in found["cases"].values():
        assert list(case["arms"]) == arms
        assert case["arms"].pop("flex")["failed"] == "out of memory"
        for arm in case["arms"].values():
            assert arm["updates"] == 1 and arm["tokens"] > 0 and arm["seconds"] > 0  # one beyond the warm-up
            rate = arm["tokens"] / arm["seconds"] * case["flop_a_token"] / case["matrix_rate"]
            assert arm["share"] == pytest.approx(rate, rel=0.1, abs=2e-4)
    page = (tmp_path / "gpu_8b.md").read_text()
    assert "a trial, no result" in page and page.count("out of memory") == 3
    assert training.load_for_training is before
