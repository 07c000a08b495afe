"""A merged model is read back and compared with what it was made of."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from adapters import all_weights, make_adapter, said_to_be_tied, scaled, untied
from safetensors.torch import load_file, save_file

from anita_utils import AnitaError, merging, stages, training
from anita_utils.merging import check_merged, merge_adapter
from anita_utils.paths import environment
from anita_utils.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The shipped model's first stage, a few updates long: parent, adapter, settings of the run."""
    from anita_utils.profile import load_profile

    profile = load_profile("cpu")
    profile.order, profile.stages["sft"].examples = ["sft"], 160
    with environment(ANITA_RUNS=str(tmp_path_factory.mktemp("runs"))):
        stage = training.train_stage(stages.find_stage(Run.open("t", profile, 42), "sft"))
        return stage.parent_path, stage.folder / "adapter", stage.info


def test_a_finished_stage_says_what_was_checked(trained):
    checked = trained[2]["checked"]
    assert checked["weights"] == {"compared": 38, "largest_difference": 0.0}
    assert 100 < checked["logits"]["compared"] <= 128
    assert 0 < checked["logits"]["largest_difference"] < 1e-3 and checked["logits"]["share"] < 1e-5


def changed_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def changed_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lose_the_head(base, folder):
    changed_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    changed_config(folder, tie_word_embeddings=True)


def shorten_the_rope(base, folder):
    changed_config(folder, rope_theta=10_000.0, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})


def lose_a_layer(base, folder):
    def change(weights):
        before = all_weights(Path(base))
        weights.update({name: before[name].to(weights[name].dtype) for name in weights if ".layers.2." in name})

    changed_weights(folder, change)


def lose_a_matrix(base, folder):
    name = "model.layers.3.self_attn.k_proj.weight"
    changed_weights(
        folder, lambda weights: weights.update({name: all_weights(Path(base))[name].to(weights[name].dtype)})
    )


def lose_a_norm(base, folder):
    changed_weights(folder, lambda weights: weights["model.norm.weight"].fill_(1.0))


SABOTAGES = [shorten_the_rope, lose_a_layer, lose_a_matrix, lose_a_norm]


@pytest.fixture
def merged(trained, tmp_path, request):
    dtype = request.param
    merge_adapter(*trained[:2], tmp_path / "merged", dtype)
    return trained[0], trained[1], tmp_path / "merged", dtype


DTYPES = pytest.mark.parametrize("merged", ["float32", "bfloat16", "float16"], indirect=True)


@DTYPES
def test_an_untouched_model_is_far_below_the_tolerance(merged, tokenizer):
    checked = check_merged(*merged, tokenizer)
    assert checked["weights"]["largest_difference"] == 0.0
    assert checked["logits"]["share"] < merging.TOLERANCE[merged[3]] / 10


@DTYPES
@pytest.mark.parametrize("memory", ["enough memory", "too little memory"])
@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_what_is_not_as_trained_is_one_line(merged, tokenizer, monkeypatch, sabotage, memory):
    if memory == "too little memory":
        monkeypatch.setattr(merging, "free_memory", lambda: 0)
    check_merged(*merged, tokenizer)
    sabotage(merged[0], merged[2])
    with pytest.raises(AnitaError, match=r"merged: .*train the stage again, and report this if it comes back$"):
        check_merged(*merged, tokenizer)


@DTYPES
def test_the_logits_alone_show_a_short_rope_and_in_fp32_one_layer(merged, tokenizer):
    """Effects against noise: the tolerance lies between, at least a factor of two from the effect."""
    texts = [tokenizer(text)["input_ids"][: merging.LENGTH] for text in merging.TEXTS]
    expected = merging._logits(Path(merged[0]), texts, merged[1]).detach()

    def effect(sabotage):
        folder = merged[2].with_name("sabotaged")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(merged[2], folder)
        sabotage(merged[0], folder)
        found = merging._logits(folder, texts).detach()
        return ((found - expected).std() / expected.std()).item()

    tolerance = merging.TOLERANCE[merged[3]]
    assert effect(shorten_the_rope) > 2 * tolerance
    if merged[3] == "float32":
        assert effect(lose_a_layer) > 20 * tolerance and effect(lose_a_matrix) > 20 * tolerance


@pytest.mark.parametrize("memory", ["enough memory", "too little memory"])
def test_a_lost_head_is_one_line(base_path, tmp_path, tokenizer, monkeypatch, memory):
    if memory == "too little memory":
        monkeypatch.setattr(merging, "free_memory", lambda: 0)
    base = said_to_be_tied(untied(base_path, tmp_path / "base"))
    adapter = make_adapter(base, tmp_path / "adapter", r=2)
    merge_adapter(base, adapter, tmp_path / "merged", "bfloat16")
    lose_the_head(base, tmp_path / "merged")
    with pytest.raises(AnitaError, match="merged: .* train the stage again"):
        check_merged(base, adapter, tmp_path / "merged", "bfloat16", tokenizer)
    texts = [tokenizer(text)["input_ids"][: merging.LENGTH] for text in merging.TEXTS]
    expected, found = merging._logits(base, texts, adapter), merging._logits(tmp_path / "merged", texts)
    assert (found - expected).std() > 2 * merging.TOLERANCE["bfloat16"] * expected.std()


def test_without_memory_it_says_that_the_logits_were_not_compared(base_path, tmp_path, tokenizer, monkeypatch):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    monkeypatch.setattr(merging, "free_memory", lambda: 1_000_000)
    checked = check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)
    assert checked["weights"]["compared"] == 38
    assert re.fullmatch(r"not compared: 0\.\d GiB needed, 0\.0 GiB free", checked["logits"])


def test_another_tokenizer_or_template_is_one_line(base_path, tmp_path, tokenizer):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    template = tmp_path / "merged" / "chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("| trim", ""), "utf-8")
    check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)  # the same text in this chat
    template.write_text(template.read_text("utf-8").replace("{{ bos_token }}", ""), "utf-8")
    with pytest.raises(AnitaError, match="merged: the saved tokenizer is not the one trained with"):
        check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)


def test_logits_that_are_no_numbers_are_a_divergence(base_path, tmp_path, tokenizer):
    adapter = scaled(make_adapter(base_path, tmp_path / "adapter", r=2), 1e30)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    with pytest.raises(merging.Diverged, match="logits are nan or inf: lower the learning rate"):
        check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)


def test_checking_draws_no_random_numbers(base_path, tmp_path, tokenizer):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)
    assert torch.equal(torch.rand(4), expected)
