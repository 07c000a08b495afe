"""Merging part by part gives what PEFT gives in one piece, and needs less memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters import all_weights, make_adapter, on_cpu, said_to_be_tied, scaled, untied
from exact import in_float64
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from anita_utils import AnitaError, merging, model, stages, training
from anita_utils.hub import check_model_folder
from anita_utils.merging import check_merged, merge_adapter
from anita_utils.model import load_tokenizer
from anita_utils.run import Run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("r", "rslora"), [(4, False), (6, True)])
@pytest.mark.parametrize("shape", ["one file", "many files"])
def test_it_is_bit_for_bit_what_peft_merges(base_path, tmp_path, monkeypatch, dtype, r, rslora, shape):
    base = base_path
    if shape == "many files":
        base = untied(base_path, tmp_path / "base")
        assert len(list(base.glob("*.safetensors"))) > 2
        monkeypatch.setattr(merging, "PART", 2_000_000)
    adapter = make_adapter(base, tmp_path / "adapter", r=r, use_rslora=rslora)
    expected = PeftModel.from_pretrained(on_cpu(base, dtype), adapter).merge_and_unload()
    merge_adapter(base, adapter, tmp_path / "merged", dtype)

    merged = on_cpu(check_model_folder(tmp_path / "merged"), dtype)
    assert (len(list((tmp_path / "merged").glob("*.safetensors"))) > 2) == (shape == "many files")
    wanted, found = expected.state_dict(), merged.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert not torch.equal(found["model.layers.0.mlp.up_proj.weight"],
                           on_cpu(base, dtype).state_dict()["model.layers.0.mlp.up_proj.weight"])  # fmt: skip

    expected.save_pretrained(tmp_path / "peft")
    for file in ("config.json", "generation_config.json"):
        wanted, found = (json.loads((tmp_path / where / file).read_text("utf-8")) for where in ("peft", "merged"))
        assert found.items() >= wanted.items()
        assert found.keys() - wanted.keys() <= {"rope_theta", "torch_dtype"}  # for transformers 4


def test_layers_with_a_rank_and_an_alpha_of_their_own_are_merged_as_peft_does(base_path, tmp_path):
    first = "model.layers.0.self_attn.q_proj"
    settings = {"rank_pattern": {f"^{first}": 3, "up_proj": 2}, "alpha_pattern": {f"^{first}": 5, "down_proj": 11}}
    adapter = make_adapter(base_path, tmp_path / "adapter", r=4, **settings)
    expected = PeftModel.from_pretrained(on_cpu(base_path), adapter).merge_and_unload().state_dict()
    merge_adapter(base_path, adapter, tmp_path / "merged")
    found = all_weights(tmp_path / "merged")
    assert all(torch.equal(expected[name], found[name]) for name in found)


def test_weights_that_two_layers_share_are_written_once_and_not_merged_into(base_path, tmp_path):
    merge_adapter(base_path, make_adapter(base_path, tmp_path / "a", r=2), tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    adapter = make_adapter(base_path, tmp_path / "b", r=2, target_modules=["lm_head"])
    with pytest.raises(
        AnitaError, match=r"cannot be merged by adding \(.*lm_head.*train linear layers that share no weights"
    ):
        merge_adapter(base_path, adapter, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_base_that_lacks_a_layer_is_named(base_path, tmp_path):
    base = untied(base_path, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", r=2)
    index = base / "model.safetensors.index.json"
    values = json.loads(index.read_text("utf-8"))
    last = sorted(set(values["weight_map"].values()))[-1]
    values["weight_map"] = {name: file for name, file in values["weight_map"].items() if file != last}
    index.write_text(json.dumps(values), "utf-8")
    with pytest.raises(AnitaError, match="no weights for .*: restore the model"):
        merge_adapter(base, adapter, tmp_path / "merged")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="the peak of a process can be reset on Linux")
def test_it_holds_a_part_of_the_model_only(base_path, tmp_path, monkeypatch):
    config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8,
                         num_key_value_heads=8, vocab_size=256, tie_word_embeddings=False)  # fmt: skip
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    large.to_empty(device="cpu")
    for parameter in large.parameters():
        parameter.data.fill_(0.5)  # what the numbers are does not matter, but they must be some
    large.save_pretrained(tmp_path / "base")  # 270 MB
    load_tokenizer(base_path).save_pretrained(tmp_path / "base")
    size = sum(parameter.nbytes for parameter in large.parameters())
    get_peft_model(large, LoraConfig(r=2, target_modules=["q_proj", "up_proj"])).save_pretrained(tmp_path / "adapter")
    del large
    monkeypatch.setattr(merging, "PART", size // 10)

    model.keep_freed_memory()  # as training does before
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts again from here
    before = memory("VmRSS")
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", "bfloat16")
    assert sum(file.stat().st_size for file in (tmp_path / "merged").glob("*.safetensors")) > size
    assert memory("VmHWM") - before < size / 3


# ---- tied or untied, as the weights are


def test_a_head_of_its_own_is_kept_though_the_configuration_says_tied(base_path, tmp_path, tokenizer):
    base = said_to_be_tied(untied(base_path, tmp_path / "base"))
    adapter = make_adapter(base, tmp_path / "adapter", r=2)
    merge_adapter(base, adapter, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False
    head = all_weights(base)["lm_head.weight"]
    assert torch.equal(all_weights(tmp_path / "merged")["lm_head.weight"], head.float())

    ids = torch.arange(200, 232).view(1, 32)
    with torch.no_grad():
        used = on_cpu(base)  # transformers 5 takes the head in the files, whatever the configuration says
        assert torch.equal(used.lm_head.weight, head.float())
        expected = in_float64(PeftModel.from_pretrained(used, adapter).eval())(input_ids=ids).logits
        found = in_float64(on_cpu(tmp_path / "merged"))(input_ids=ids).logits
    # logits of up to 93 differ by 1e-5 to 2e-5, for the merged weights are stored in float32
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)
    check_merged(base, adapter, tmp_path / "merged", "float32", tokenizer)


@pytest.mark.parametrize("names", [["model.embed_tokens.weight", "lm_head.weight"], ["lm_head.weight"]],
                         ids=["under both names", "under the head's alone"])  # fmt: skip
def test_equal_matrices_stay_tied_under_whichever_name_they_are_saved(base_path, tmp_path, tokenizer, names, capsys):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    weights = load_file(base / "model.safetensors")
    embedding = weights.pop("model.embed_tokens.weight")
    save_file(weights | {name: embedding.clone() for name in names}, base / "model.safetensors", {"format": "pt"})
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base, adapter, tmp_path / "merged")
    merge_adapter(base_path, adapter, tmp_path / "plain")
    found, wanted = all_weights(tmp_path / "merged"), all_weights(tmp_path / "plain")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is True
    assert capsys.readouterr().out == ""
    check_merged(base, adapter, tmp_path / "merged", "float32", tokenizer)


def test_an_untied_model_without_a_head_is_refused(base_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    values = json.loads((base / "config.json").read_text("utf-8")) | {"tie_word_embeddings": False}
    (base / "config.json").write_text(json.dumps(values), "utf-8")
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    with pytest.raises(AnitaError, match=r"no weights for lm_head\.weight: restore the model"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_an_adapter_on_a_shared_embedding_is_refused(base_path, tmp_path):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2, target_modules=["embed_tokens"])
    with pytest.raises(AnitaError, match=r"cannot be merged by adding \(.*embed_tokens.* share no weights"):
        merge_adapter(base_path, adapter, tmp_path / "merged")


def test_an_adapter_on_a_head_of_its_own_is_merged(base_path, tmp_path):
    base = said_to_be_tied(untied(base_path, tmp_path / "base"))
    config = AutoConfig.from_pretrained(base, tie_word_embeddings=False)
    own = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(
        own, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    expected = adapted.merge_and_unload().lm_head.weight
    assert torch.equal(all_weights(tmp_path / "merged")["lm_head.weight"], expected)


def test_what_the_model_has_no_place_for_is_left_out(base_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    odd = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(4)}
    save_file(load_file(base / "model.safetensors") | odd, base / "model.safetensors", {"format": "pt"})
    merge_adapter(base, make_adapter(base_path, tmp_path / "adapter", r=2), tmp_path / "merged")
    assert not odd.keys() & all_weights(tmp_path / "merged").keys()


@pytest.mark.parametrize("settings", [
    {"target_modules": ["q_proj"], "modules_to_save": ["up_proj"]},
    {"target_modules": ["q_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "lora_bias": True},
    {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
], ids=["a whole matrix", "dora", "bias", "tokens"])  # fmt: skip
def test_an_adapter_that_is_more_than_two_matrices_a_layer_is_refused(base_path, tmp_path, settings):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2, **settings)
    with pytest.raises(
        AnitaError, match=r"\d+ weights cannot be merged by adding .*: train .* with neither modules_to_save"
    ):
        merge_adapter(base_path, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_is_there_already_is_refused_and_left_as_it_is(base_path, tmp_path):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "note.txt").touch()
    with pytest.raises(AnitaError, match="merged exists already: delete it, or name another folder"):
        merge_adapter(base_path, adapter, tmp_path / "merged")
    assert [file.name for file in (tmp_path / "merged").iterdir()] == ["note.txt"]


# ---- finite


@pytest.mark.parametrize(("factor", "dtype"), [(float("nan"), "float32"), (1e39, "float32"), (1e6, "float16")])
def test_an_adapter_that_diverged_is_one_line_and_leaves_nothing(base_path, tmp_path, factor, dtype):
    adapter = scaled(make_adapter(base_path, tmp_path / "adapter", r=2), factor)
    with pytest.raises(
        merging.Diverged, match=r"^model\.layers\.\d\.\S+weight is nan or inf .*: lower the learning rate$"
    ):
        merge_adapter(base_path, adapter, tmp_path / "merged", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_base_that_is_not_finite_or_too_large_is_not_blamed_on_the_training(base_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    weights = load_file(base / "model.safetensors")
    for value, remedy in (
        (float("nan"), "holds nan or inf in float16: restore"),
        (1e30, "set model.dtype to float32 where it is too large"),
    ):
        weights["model.norm.weight"][3] = value
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(AnitaError, match=f"base: model.norm.weight .*{remedy}"):
            merge_adapter(base, adapter, tmp_path / "merged", "float16")
        assert not (tmp_path / "merged").exists()


def test_one_update_at_a_rate_of_1e30_is_one_line_and_leaves_nothing(runs, tiny_profile):
    tiny_profile.order = ["sft"]
    tiny_profile.stages["sft"].learning_rate, tiny_profile.stages["sft"].warmup_steps = 1e30, 0
    tiny_profile.stages["sft"].per_device_train_batch_size, tiny_profile.stages["sft"].examples = 64, 32
    stage = stages.find_stage(Run.open("t", tiny_profile, 42), "sft")
    with pytest.raises(AnitaError, match=r"^stage 'sft': model\.\S+ is nan or inf .*: lower the learning rate$"):
        training.train_stage(stage)
    assert not stage.done and [path for path in stage.folder.parent.iterdir() if path.suffix != ".lock"] == []


def memory(key):
    """A figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
