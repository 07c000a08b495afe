"""Models and adapters to merge, made from the shipped model."""

import json

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

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


def said_to_be_tied(untied_base):
    """Makes its configuration say that the head is the embedding, though its files hold another head."""
    file = untied_base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"tie_word_embeddings": True}), "utf-8")
    return untied_base


def all_weights(folder):
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def scaled(adapter, factor, side="lora_B"):
    """Multiplies one matrix of each layer of a saved adapter."""
    file = adapter / "adapter_model.safetensors"
    weights = {name: matrix * factor if side in name else matrix for name, matrix in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    return adapter
