"""What `gpu_8b.py` trains: a Llama of a true shape with random weights, on texts that are drawn.

>>> base = shape_folder(Path("shape"), tiny=False)
>>> stage = open_stage(profile_of("h100", detect_machine(), False, base), "sft")
>>> with patch.object(training, "load_for_training", load_random): trainer = training.build_trainer(stage)

Speed and memory do not depend on what a model knows. The weights are drawn matrix by matrix and quantised as they come,
so that no machine ever holds the 16 GB.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import torch
from transformers import LlamaForCausalLM

from anita_utils import training
from anita_utils.course.rehearsal import rehearse
from anita_utils.hub import SHIPPED_BASE
from anita_utils.machine import Machine
from anita_utils.memory import config_file, meta_model
from anita_utils.model import keep_gradients_exact, load_tokenizer, quantisation_config
from anita_utils.paths import data_dir, write_text
from anita_utils.profile import Profile, load_profile
from anita_utils.rows import read_jsonl
from anita_utils.run import Run
from anita_utils.stages import Stage

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
TINY_LENGTH = 48  # tokens a row
SEED, EXAMPLES = 42, 512
MEDIAN, SPREAD = 600, 0.7  # of a text's words, which are about as many tokens: log-normal, an assumption about chats
FOREVER = 1000  # epochs: the clock ends an arm, not the data


def random_weights(shell: LlamaForCausalLM, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """Weights for an empty model. All layers share their matrices' values: each gets a copy, in 4 bits, when loaded."""

    def drawn(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device) * shell.config.initializer_range

    shared = cache(drawn)
    weights = {}
    for name, parameter in shell.named_parameters():
        if parameter.dim() == 1:  # a norm's
            weights[name] = torch.ones(parameter.shape, dtype=dtype, device=device)
        else:
            weights[name] = (shared if "_proj" in name else drawn)(parameter.shape)
    return weights


def load_random(stage: Stage):
    """In place of `training.load_for_training`: a random model of the shape in the stage's folder, and the tokenizer.

    The library's own loader quantises each matrix and drops the original before it takes the next.
    """
    profile, device = stage.run.profile, "cuda" if torch.cuda.is_available() else "cpu"
    shell, dtype = meta_model(stage.parent_path), getattr(torch, profile.model.dtype)
    model = LlamaForCausalLM.from_pretrained(
        None, config=shell.config, state_dict=random_weights(shell, dtype, device), dtype=dtype,
        device_map={"": 0 if device == "cuda" else "cpu"},
        quantization_config=quantisation_config(profile.quantisation, training.COMPUTE_DTYPES[profile.precision]),
    )  # fmt: skip
    keep_gradients_exact(model)
    return model, load_tokenizer(stage.parent_path)


@dataclass
class Drawn(Stage):
    """A stage whose texts are drawn, not read."""

    corpora = ()
    parent_key = ""

    @property
    def parent_path(self) -> str:
        """The folder with the shape alone: the weights are drawn."""
        return self.run.profile.model.base

    def documents(self) -> list[dict]:
        rng, median = Random(SEED), min(MEDIAN, self.settings.max_length // 2)

        def text(share: float) -> str:
            length = max(1, round(share * median * math.exp(rng.gauss(0, SPREAD))))
            start = rng.randrange(len(words()))
            return " ".join((words()[start:] + words())[:length])  # about a token a word

        def turn(role: str, share: float) -> list[dict]:
            return [{"role": role, "content": text(share)}]

        if self.name == "dpo":
            return [{"prompt": turn("user", 1 / 3), "chosen": turn("assistant", 2 / 3),
                     "rejected": turn("assistant", 2 / 3)} for _ in range(self.settings.examples)]  # fmt: skip
        return [{"text": text(1)} for _ in range(self.settings.examples)]


@cache
def words() -> list[str]:
    rows = read_jsonl(data_dir() / "corpora" / "italian_text.jsonl")[:5000]
    return " ".join(row["text"] for row in rows).split()


def open_stage(profile: Profile, name: str) -> Drawn:
    """The profile's stage, with texts that never end and an update every second step."""
    settings = profile.stages[name].model_copy()
    settings.examples, settings.num_train_epochs = settings.examples or EXAMPLES, FOREVER
    settings.gradient_accumulation_steps = min(2, settings.gradient_accumulation_steps)
    return Drawn(Run.open(f"8b-{profile.name}", profile, SEED), name, settings)


def shape_folder(folder: Path, tiny: bool) -> Path:
    """A folder like a model's, without weights: config.json and the shipped tokenizer."""
    tokenizer = load_tokenizer(data_dir() / SHIPPED_BASE)
    tokenizer.save_pretrained(folder)
    config = TINY | {"vocab_size": len(tokenizer)}
    if not tiny:
        config = json.loads(config_file("meta-llama/Meta-Llama-3-8B-Instruct").read_text("utf-8"))
    write_text(folder / "config.json", json.dumps(config))
    return folder


def profile_of(name: str, machine: Machine, tiny: bool, folder: Path) -> Profile:
    """The profile, on the shape in `folder`; tiny: also with what the machine lacks replaced, and short rows."""
    profile = load_profile(name)
    if tiny:
        profile = rehearse(profile, machine)
        for stage in profile.stages.values():
            stage.max_length, stage.row_length = TINY_LENGTH, stage.row_length and TINY_LENGTH
    profile.model.base, profile.model.revision = str(folder), None
    return profile
