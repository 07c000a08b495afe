"""The base's training: Muon against PyTorch's own, and a killed build that goes on as if it had never stopped."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from world.build import end_to_end
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
    return tokens, config, Plan(steps=8, rows=4, row_length=64, long_share=0.0, warmup=2, save_every=3)


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


def test_a_second_reading_goes_on_from_the_first_and_not_from_another(small, tmp_path):
    tokens, config, plan = small
    first, _ = pretrain(tokens, config, plan, tmp_path / "first", say=lambda _: None)
    start = {name: value.clone() for name, value in first.state_dict().items()}
    slow = Plan(**{**vars(plan), "matrix_rate": 1e-9, "vector_rate": 1e-9})
    second, _ = pretrain(tokens, config, slow, tmp_path / "second", say=lambda _: None, start=first)
    for name, value in second.state_dict().items():
        assert torch.allclose(value, start[name], atol=1e-6), name
    seen = []
    pretrain(tokens, config, slow, tmp_path / "second", say=seen.append, start=LlamaForCausalLM(config))
    assert not any("resumed" in line for line in seen)


def test_long_rows_lie_where_the_plan_says():
    plan = Plan(steps=200, long_from=0.5, long_share=0.04)
    assert [step for step in range(200) if plan.length(step) == 1024] == list(range(100, 108))
    assert sum(Plan(steps=2800).length(step) == 1024 for step in range(2800)) == 140


def test_histories_are_counted_on():
    one = [
        {"step": 5, "loss": 2.0, "tokens": 50, "seconds": 1.5},
        {"step": 8, "loss": 1.0, "tokens": 80, "seconds": 2.5},
    ]
    two = [{"step": 4, "loss": 0.5, "tokens": 40, "seconds": 1.0}]
    whole = end_to_end([one, two])
    assert whole[:2] == [{"reading": 1, **entry} for entry in one]
    assert whole[2] == {"reading": 2, "step": 12, "loss": 0.5, "tokens": 120, "seconds": 3.5}


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
