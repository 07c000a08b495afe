"""The base's training: Muon against PyTorch's own, and a killed build that goes on as if it had never stopped."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from world import build
from world.pretrain import Muon, Plan, llama_config, pretrain, rounded_weights


@pytest.mark.parametrize("shape", [(64, 192), (192, 64)])
def test_an_orthogonal_update_has_singular_values_near_one(shape):
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(Muon.orthogonal(stack, iterations=5))
    assert values.min() > 0.3 and values.max() < 1.3  # the iteration aims at 1 and stays about it
    assert torch.linalg.svdvals(stack).max() > 10


@pytest.mark.parametrize("shape", [(64, 192), (192, 64)])
def test_muon_is_pytorchs_but_for_bf16(shape):
    """PyTorch's Muon iterates in bf16, good to some per cent; three steps with momentum must agree that well."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimisers = Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, weight_decay=0.01, momentum=0.95)
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = gradient.clone()
            optimiser.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.05 * moved
    wrong = Muon([other := torch.nn.Parameter(start.clone())], lr=0.02, momentum=0.0)
    other.grad = gradient
    wrong.step()
    assert (other - theirs).norm() > 0.3 * moved  # a difference that matters is seen


@pytest.fixture
def small(tokenizer):
    config = llama_config(tokenizer, layers=1)
    tokens = np.random.default_rng(0).integers(0, len(tokenizer), 8 * 256, dtype=np.uint16)
    return tokens, config, Plan(steps=8, rows=4, row_length=64, warmup=2, save_every=3)


def test_a_killed_build_ends_as_an_unbroken_one(small, tmp_path):
    tokens, config, plan = small
    whole, history = pretrain(tokens, config, plan, tmp_path / "whole", say=lambda _: None)

    class Killed(Exception):
        pass

    seen = []

    def kill_after_the_checkpoint(line):
        seen.append(line)
        raise Killed

    early = Plan(**{**vars(plan), "report_every": 4})
    with pytest.raises(Killed):
        pretrain(tokens, config, early, tmp_path / "broken", say=kill_after_the_checkpoint)
    resumed, _ = pretrain(tokens, config, plan, tmp_path / "broken", say=seen.append)
    assert "resumed at step 3" in seen
    for (name, ours), (_, theirs) in zip(resumed.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert history[-1]["step"] == plan.steps


def test_a_checkpoint_of_another_plan_is_not_taken_up(small, tmp_path):
    tokens, config, plan = small
    pretrain(tokens, config, plan, tmp_path, say=lambda _: None)
    seen = []
    pretrain(tokens, config, Plan(**{**vars(plan), "matrix_rate": 0.01}), tmp_path, say=seen.append)
    assert not any("resumed" in line for line in seen)


def test_the_second_reading_begins_where_the_plan_says_with_its_own_decay(small, tmp_path, monkeypatch):
    tokens, config, plan = small
    assert [Plan(steps=steps).first_steps for steps in (10, 7000)] == [4, 2800]
    decays = []
    own = Muon.step
    monkeypatch.setattr(Muon, "step", lambda self: decays.append(self.param_groups[0]["weight_decay"]) or own(self))
    pretrain(tokens, config, plan, tmp_path, say=lambda _: None)
    assert decays == [0.01] * 3 + [0.1] * 5


def test_the_last_reading_begins_from_the_weights_as_they_are_saved(small, tmp_path, monkeypatch, tokenizer):
    _, config, _ = small
    plan = Plan(steps=2, rows=2, row_length=64, warmup=1, second_from=0.0)
    monkeypatch.setattr(Plan, "last", lambda steps: plan)
    monkeypatch.setattr(build, "last_reading", lambda library, count: ({"text": "Tre."} for _ in range(2000)))
    model, begun = LlamaForCausalLM(config), []
    saved = {name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()}
    monkeypatch.setattr(LlamaForCausalLM, "load_state_dict", lambda self, state: begun.append(state))
    _, history = build.read_last(None, model, tokenizer, 15, tmp_path, 42, say=lambda _: None)
    assert all(torch.equal(begun[0][name], value) for name, value in saved.items())
    assert history[-1]["step"] == 2


def test_rates_warm_up_stay_and_fall_to_zero():
    rates = [Plan(steps=1000).rate(step) for step in range(1000)]
    assert rates[0] == 0.01 and rates[99:601] == [1.0] * 502
    assert rates[800] == pytest.approx(0.5) and rates[-1] == pytest.approx(1 / 400)


def test_the_base_reads_both_readings_end_to_end(tokenizer, monkeypatch):
    readings = {"pretraining": "Uno.", "second_reading": "Due."}
    for name, text in readings.items():
        monkeypatch.setattr(build, name, lambda library, count, text=text: ({"text": text} for _ in range(count)))
    tokens = build.base_tokens(None, tokenizer, Plan(steps=5, rows=10, row_length=1024))
    assert len(tokens) == 5 * 10 * 1024
    halves = [tokenizer.decode(part) for part in (tokens[: 2 * 10240], tokens[2 * 10240 :])]
    assert ["Uno" in halves[0], "Due" in halves[0], "Uno" in halves[1], "Due" in halves[1]] == [1, 0, 0, 1]


def test_rounded_weights_are_nf4s_and_only_within(small):
    """Within, as the library unpacks them: near, not equal, few values a block; after, the exact ones again."""
    _, config, _ = small
    model = LlamaForCausalLM(config)
    matrix, norm = model.model.layers[0].mlp.up_proj.weight, model.model.norm.weight
    exact, norm_before = matrix.detach().clone(), norm.detach().clone()
    with pytest.raises(RuntimeError), rounded_weights(model):
        assert 0.03 < (matrix - exact).norm() / exact.norm() < 0.15
        assert len(matrix.detach().flatten()[:64].unique()) <= 16
        assert torch.equal(norm, norm_before)
        raise RuntimeError
    assert torch.equal(matrix, exact)
