"""The shapes of the models that the course knows: counted from their config.json on torch's meta device.

>>> architecture("meta-llama/Meta-Llama-3-8B-Instruct").parameters
8030261248

The JSON files beside this module are the models' published config.json, less the keys that say nothing about the shape.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.hub import SHIPPED_BASE
from anita_utils.paths import data_dir

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

HUB_NAMES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
    "meta-llama/Meta-Llama-3-70B-Instruct": "llama-3-70b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
}
SIZES = (  # LlamaConfig would fill in a missing one from Llama 1
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A Llama's counts and widths."""

    parameters: int  # tied embeddings and head count once
    quantised: int  # those of the layers' matrices: embeddings, head and norms are never held in 4 bits
    per_rank: dict[str, int]  # projection: weights that LoRA adds for each unit of rank, over all layers
    layers: int
    hidden: int
    attention: int  # heads times the width of a head
    key_value: int  # the same of the heads that are asked, which share keys and values
    feed_forward: int
    vocabulary: int
    context: int  # the most tokens the model was made for


def config_file(model: str) -> Path:
    """The config.json of a model: shipped with the kit or the data, or in a folder. AnitaError for an unknown one."""
    if model == SHIPPED_BASE:
        return data_dir() / SHIPPED_BASE / "config.json"
    shipped = Path(__file__).parent / f"{HUB_NAMES.get(model, model)}.json"
    own = Path(os.path.expanduser(model)) / "config.json"
    for file in (shipped, own):
        if os.path.isfile(file):  # unlike Path.is_file, False for whatever cannot be a path
            return file
    raise AnitaError(
        f"no architecture is known for model '{model}': choose {', '.join([*HUB_NAMES, SHIPPED_BASE])}, "
        "or name a folder that holds the model's config.json"
    )


def meta_model(model: str) -> LlamaForCausalLM:
    """The model with all its shapes and no weights, on the meta device. Imports torch."""
    import torch
    from huggingface_hub.errors import StrictDataclassError  # what LlamaConfig's own checks raise
    from transformers import LlamaConfig, LlamaForCausalLM

    file = config_file(model)
    try:
        values = json.loads(file.read_text("utf-8"))
        if values["model_type"] != "llama":
            raise AnitaError(f"{shown(file)}: model_type '{values['model_type']}': the planner knows only 'llama'")
        for key in SIZES:
            if not isinstance(values[key], int) or values[key] < 1:
                raise ValueError(f"{key} is {values[key]}")
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig.from_dict(values))
    except (OSError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise AnitaError(f"{shown(file)} describes no Llama ({error!r}): restore the model's config.json") from error


@cache
def architecture(model: str) -> Architecture:
    """Counts the model's weights on the meta device, which takes no memory for them. Imports torch."""
    import torch

    built = meta_model(model)
    config = built.config
    per_rank, quantised = Counter(), 0
    for name, module in built.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            per_rank[name.rpartition(".")[2]] += module.in_features + module.out_features
            quantised += module.weight.numel()
    return Architecture(
        parameters=sum(parameter.numel() for parameter in built.parameters()),
        quantised=quantised,
        per_rank=dict(per_rank),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        attention=config.num_attention_heads * config.head_dim,
        key_value=config.num_key_value_heads * config.head_dim,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
    )
