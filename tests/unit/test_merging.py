"""Merging an adapter part by part gives what PEFT gives in one piece, and needs less memory."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from anita_utils import AnitaError, merging, model
from anita_utils.hub import check_model_folder
from anita_utils.merging import merge_adapter
from anita_utils.model import load_tokenizer


def on_cpu(folder, dtype="float32"):
    """The model in one piece, where PEFT computes as merging does: on the CPU."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def make_adapter(base, folder, **settings):
    """A LoRA adapter with random updates on every linear layer, saved."""
    torch.manual_seed(0)
    settings = {"target_modules": "all-linear", "init_lora_weights": False, "lora_alpha": 7} | settings
    get_peft_model(on_cpu(base), LoraConfig(task_type="CAUSAL_LM", **settings)).save_pretrained(folder)
    return folder


def untied(base_path, folder):
    """The small model with a head of its own, in several files."""
    config = AutoConfig.from_pretrained(base_path, tie_word_embeddings=False)
    other = AutoModelForCausalLM.from_pretrained(base_path, config=config, dtype=torch.bfloat16)
    torch.manual_seed(1)
    torch.nn.init.normal_(other.lm_head.weight)
    other.save_pretrained(folder, max_shard_size="3MB")
    load_tokenizer(base_path).save_pretrained(folder)
    return folder


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
        assert found == wanted


def test_weights_that_two_layers_share_are_written_once_and_not_merged_into(base_path, tmp_path):
    merge_adapter(base_path, make_adapter(base_path, tmp_path / "a", r=2), tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    adapter = make_adapter(base_path, tmp_path / "b", r=2, target_modules=["lm_head"])
    with pytest.raises(AnitaError, match="lm_head shares its weights with another layer: leave it out"):
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
    large.to_empty(device="cpu").save_pretrained(tmp_path / "base")  # 270 MB; what the numbers are does not matter
    load_tokenizer(base_path).save_pretrained(tmp_path / "base")
    size = sum(parameter.nbytes for parameter in large.parameters())
    get_peft_model(large, LoraConfig(r=2, target_modules=["q_proj", "up_proj"])).save_pretrained(tmp_path / "adapter")
    del large
    monkeypatch.setattr(merging, "PART", size // 10)

    model.keep_freed_memory()  # as training does before
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew from here
    before = memory("VmRSS")
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", "bfloat16")
    assert sum(file.stat().st_size for file in (tmp_path / "merged").glob("*.safetensors")) > size
    assert memory("VmHWM") - before < size / 3


def memory(key):
    """A figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
