"""How much memory does a stage, or measuring a model, need, part by part, and which GPU has it?

>>> bytes_by_part(job_of(load_profile("cpu"), "sft"))["total"] / GIB

Counts of weights are exact: the model is built on torch's meta device from its config.json (those in `shapes/` are the
published ones). Activations and logits are added up from what the installed libraries keep for the backward pass
(transformers 5.23 with sdpa, peft 0.21, bitsandbytes 0.50, TRL 1.16); see `working_memory`.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.hub import SHIPPED_BASE
from anita_utils.model import held_for_evaluation
from anita_utils.paths import data_dir
from anita_utils.profile import PROJECTIONS, Profile, Quantisation

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM


GIB = 2**30
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "fp32": 4, "bf16": 2, "fp16": 2}  # bytes a number
# Bytes of optimiser state for each trained weight. In 8 bits every block of 256 has a scale in fp32 too.
OPTIMIZERS = {
    "sgd": 0,
    "adamw_torch": 8, "adamw_torch_fused": 8, "paged_adamw_32bit": 8,
    "adamw_8bit": 2 + 8 / 256, "adamw_bnb_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256,
    "lion_32bit": 4, "paged_lion_32bit": 4, "lion_8bit": 1 + 4 / 256, "paged_lion_8bit": 1 + 4 / 256,
}  # fmt: skip
TILE = (4096, 32768)  # tokens and vocabulary entries whose logits TRL's fused head holds at once (trl/kernels)
# The CUDA context with the kernels loaded (about 0.5 GiB) and what the allocator rounds up. Estimated, not measured.
OVERHEAD = int(0.75 * GIB)
# GiB that torch reports as the card's total, as people report it of theirs, the lower where they differ. Not measured.
GPUS = {
    "T4": 14.74,  # 16 GB, of which ECC takes a sixteenth
    "L4": 22.0,  # 24 GB, of which ECC takes a sixteenth
    "4090": 23.5,  # 24 GB without ECC; the driver keeps some, a screen may take more
    "A100-40": 39.4,  # 40 GiB minus what the driver keeps; HBM's ECC takes nothing
    "H100-80": 79.1,  # 80 GiB minus what the driver keeps
}
# Tokens of the longest text that a suite measures a model on: the course's own are shorter, the leaderboards' longest
# five-shot questions are some 3,000 in English and more in Italian. Estimated, not measured.
LONGEST_TEXT = {"quick": 512, "piccola": 512, "paper": 4096, "italian": 4096}
MARGIN = 0.05  # of a card's memory, left free: the plan is an estimate, and the allocator loses some to gaps
VALIDATED = (
    "an estimate; validated on: what layers keep for the backward pass, on a small model on a CPU (within 1 %); no "
    "peak on a GPU yet. Counts of weights are exact; activations, logits and overhead follow from the libraries' code"
)


@dataclass(frozen=True)
class Job:
    """What is trained or measured and how, as far as memory is concerned. AnitaError for a value that cannot be."""

    model: str
    r: int = 16
    batch: int = 1  # rows a step on one device; in DPO a pair is one
    length: int = 1024  # tokens a row
    quantisation: Quantisation = field(default_factory=lambda: Quantisation(load_in_4bit=True))
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    dtype: str = "bfloat16"  # of the weights that are not quantised
    precision: str = "bf16"  # of the arithmetic
    targets: tuple[str, ...] = tuple(PROJECTIONS)
    pairs: bool = False  # DPO
    trained: bool = True  # False: the model is only measured, and `length` is the longest text's

    def __post_init__(self) -> None:
        for name in ("r", "batch", "length"):
            if getattr(self, name) < 1:
                raise AnitaError(f"{name} is {getattr(self, name)}: give a whole number from 1 on")
        if self.optimizer not in OPTIMIZERS:
            raise AnitaError(f"no figure for optimizer '{self.optimizer}': choose {', '.join(OPTIMIZERS)}")


def job_of(profile: Profile, stage: str | None = None) -> Job:
    """The job that a profile's stage is, by default its first; or "evaluation", for a model that is measured."""
    stage, model = stage or profile.order[0], profile.model.base
    common = {"model": model, "dtype": profile.model.dtype, "precision": profile.precision}
    if stage == "evaluation":
        longest_text = min(LONGEST_TEXT[profile.evaluation.suite], architecture(model).config.max_position_embeddings)
        batch, held = profile.evaluation.batch_size, held_for_evaluation(profile)
        return Job(**common, batch=batch, length=longest_text, quantisation=held, trained=False)
    if stage not in profile.stages:
        known = ", ".join([*profile.stages, "evaluation"])
        raise AnitaError(f"profile '{profile.name}' has no stage '{stage}': choose {known}")
    settings = profile.stages[stage]
    return Job(
        **common,
        r=settings.lora.r,
        batch=settings.per_device_train_batch_size,
        length=settings.row_length or settings.max_length,
        quantisation=profile.quantisation,
        optimizer=settings.optim,
        checkpointing=settings.gradient_checkpointing,
        targets=tuple(settings.lora.target_modules),
        pairs=stage == "dpo",
    )


def trainable(job: Job) -> int:
    """The adapter's weights: two matrices a target, r x inputs and outputs x r. 0 when nothing is trained."""
    per_rank = architecture(job.model).per_rank
    if unknown := [target for target in job.targets if target not in per_rank]:
        raise AnitaError(f"LoRA target '{unknown[0]}' is no layer of {job.model}: choose {', '.join(per_rank)}")
    return job.r * sum(per_rank[target] for target in job.targets) if job.trained else 0


def bits_per_weight(quantisation: Quantisation) -> float:
    """4 bits and a scale for every 64 weights: in fp32, or in 8 bits with an fp32 scale for every 256 scales."""
    return 4 + (8 / 64 + 32 / (64 * 256) if quantisation.bnb_4bit_use_double_quant else 32 / 64)


def base_bytes(job: Job) -> tuple[int, int]:
    """Bytes of the frozen weights: those in 4 bits, and those in the job's dtype."""
    shape = architecture(job.model)
    quantised = shape.quantised if job.quantisation.load_in_4bit else 0
    in_4_bits = round(quantised * bits_per_weight(job.quantisation) / 8)
    return in_4_bits, (shape.parameters - quantised) * WIDTH[job.dtype]


def bytes_by_part(job: Job, on_gpu: bool = True) -> dict[str, int]:
    """Bytes at the peak of a step, by part, and their total.

    on_gpu: without a GPU there is no CUDA context, and the head is that of `training.score_labels_only`.

    Adapter and gradients are in fp32 (`training.adapters_in_fp32`), and gradients counted as held all the time, which
    is so with accumulation. The optimiser's short-lived copies come when activations are gone.
    """
    trained = trainable(job)
    activations, logits = working_memory(job, on_gpu) if job.trained else measuring_memory(job)
    parts = {
        "base": sum(base_bytes(job)),
        "adapter": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": round(OPTIMIZERS[job.optimizer] * trained),
        "activations": activations,
        "logits": logits,
        "overhead": OVERHEAD if on_gpu else 0,
    }
    return parts | {"total": sum(parts.values())}


def measuring_memory(job: Job) -> tuple[int, int]:
    """Bytes of activations and of logits when lm-eval 0.4 ranks the answers of the longest batch.

    It takes the logits of every token: the model's, their log-softmax, and that of the batch before. When the third
    comes, keys, values and hidden states are gone again; they count for what they exceed it by. `ranker.Ranker` takes
    less where it can. The course's own likelihoods take 8 bytes more a logit, on shorter texts.
    """
    config, tokens, width = architecture(job.model).config, job.batch * job.length, WIDTH[job.dtype]
    logits = config.vocab_size * tokens
    own = logits * (width + 8) if job.length <= LONGEST_TEXT["piccola"] else 0
    keys_and_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    held = (keys_and_values + 2 * config.hidden_size) * tokens * width
    return max(0, held - logits * width), max(3 * logits * width, own)


def kept_by_layer(job: Job) -> int:
    """Bytes that one layer keeps for its backward pass: both norms' inputs in fp32 and their outputs; query, key, value
    and attention's output; gate, its SiLU, up and their product; what each lora_A gives; the mask as sdpa adds it.

    Counted as if all projections had adapters, without dropout, and rows were padded or packed: then sdpa takes a mask
    and repeats keys and values for every head. (On a CPU packed rows need no mask, see `attention`: a plan for one is
    too large by that much, some megabytes for the small model.)
    """
    config, (tokens, places, width) = architecture(job.model).config, extent(job)
    attention = config.num_attention_heads * config.head_dim
    numbers = 2 * config.hidden_size + 4 * attention + 4 * config.intermediate_size + len(PROJECTIONS) * job.r
    copies = trainable(job) * width // config.num_hidden_layers if width < 4 else 0  # the adapter, cast by autocast
    return (tokens * numbers + places) * width + 2 * 4 * config.hidden_size * tokens + copies


def extent(job: Job) -> tuple[int, int, int]:
    """Tokens of a step, places in its attention masks, and bytes a number (dtype and precision taken to be as wide)."""
    rows = job.batch * (2 if job.pairs else 1)  # chosen and rejected go through together
    return rows * job.length, rows * job.length**2, max(WIDTH[job.dtype], WIDTH[job.precision])


def working_memory(job: Job, on_gpu: bool = True) -> tuple[int, int]:
    """Bytes of activations and of logits when a step is at its fullest.

    Two moments compete: the backward pass of the LM head, and that of one layer, when the head's buffers are free
    again. The logits' part is the head's; the activations' is what the fuller moment holds beyond it, so that the two
    add up to that moment. In DPO the reference's forward pass (adapter off, nothing kept) competes too.
    """
    config, (tokens, places, width) = architecture(job.model).config, extent(job)
    hidden, inner = config.hidden_size * tokens * width, config.intermediate_size * tokens * width
    # The largest matrix, unpacked to be multiplied
    unpacked = config.hidden_size * config.intermediate_size * width if job.quantisation.load_in_4bit else 0
    # One layer's backward pass: gradients of its output and of the product, then of gate and up
    layer = hidden + inner + max(inner, unpacked)
    stored = config.num_hidden_layers * kept_by_layer(job)
    if job.checkpointing:  # every layer keeps its input alone; the one in work is computed again
        shared = hidden if width == 4 else 0  # in fp32 that input is the first norm's too
        stored, layer = config.num_hidden_layers * hidden, kept_by_layer(job) - shared + layer
    stored += places  # the mask in booleans, shared by all layers
    reference = 3 * hidden + 3 * inner + unpacked + places * width if job.pairs else 0
    logits = head_memory(config, tokens, width, on_gpu)
    return stored + max(layer, reference, logits) - logits, logits


def head_memory(config: LlamaConfig, tokens: int, width: int, on_gpu: bool) -> int:
    """Bytes of the LM head in its backward pass, for SFT and DPO alike.

    On a GPU it is TRL 1.16's fused head (`trl/kernels/chunked_logprob.py`), which works out one tile of the logits at a
    time, twice. Elsewhere it is `training.score_labels_only`: the logits of all scored tokens, here taken to be all
    tokens, as log-probabilities and two gradients of them in fp32.
    """
    if not on_gpu:
        return tokens * (config.vocab_size * 12 + config.hidden_size * (4 + 2 * width))
    tile = min(tokens, TILE[0]) * TILE[1] * width  # as wide whatever the vocabulary
    # The last norm's input in fp32 and its output; the output's gradient, added up in fp32, then cast.
    return tile + tokens * config.hidden_size * (4 + width + 4 + width)


def room(gpu: str) -> int:
    return int(GPUS[gpu] * (1 - MARGIN) * GIB)


def longest(job: Job, gpu: str) -> tuple[int, int]:
    """The longest row (by 64 tokens) and the largest batch (up to 1,024) that fit the GPU; 0 where none fits."""

    def needed(**change) -> int:
        return bytes_by_part(replace(job, **change))["total"]

    lengths = range(64, architecture(job.model).config.max_position_embeddings + 1, 64)
    fitting = bisect_right(lengths, room(gpu), key=lambda length: needed(length=length))
    return 64 * fitting, bisect_right(range(1, 1025), room(gpu), key=lambda batch: needed(batch=batch))


def plan(job: Job) -> dict:
    """The plan as `anita plan --json` prints it: counts, bytes by part, which GPUs it fits, advice."""
    shape = architecture(job.model)
    if job.length > (most := shape.config.max_position_embeddings):
        raise AnitaError(f"length is {job.length:,}: {job.model} was made for at most {most:,} tokens")
    needed = bytes_by_part(job)
    fits = {name: needed["total"] <= room(name) for name in GPUS}
    return {
        "parameters": shape.parameters,
        "quantized_parameters": shape.quantised if job.quantisation.load_in_4bit else 0,
        "trainable_parameters": trainable(job),
        "bytes": needed,
        "fits": fits,
        "advice": [*_advice(job, needed, fits), VALIDATED],
    }


def savings(job: Job, on_gpu: bool = True) -> dict[str, int]:
    """The bytes that each of the usual changes would save."""
    accumulated = " with twice the accumulation" if job.trained else ""
    changes = {
        "checkpointing": {"checkpointing": True},
        "optimizer adamw_8bit": {"optimizer": "adamw_8bit"},
        "quant nf4": {"quantisation": Quantisation(load_in_4bit=True)},
        f"half the batch{accumulated}": {"batch": max(1, job.batch // 2)},
        "half the length": {"length": max(1, job.length // 2)},
    }
    total = bytes_by_part(job, on_gpu)["total"]
    return {name: total - bytes_by_part(replace(job, **change), on_gpu)["total"] for name, change in changes.items()}


def _advice(job: Job, needed: dict[str, int], fits: dict[str, bool]) -> list[str]:
    """Why a GPU is refused and what would fit it; what each change would save; what to know of the choices made."""
    largest = max((part for part in needed if part != "total"), key=needed.get)
    asks = f"{job.batch} x {job.length:,} needs {needed['total'] / GIB:.2f} GiB"
    asks += f", the most for {largest} ({needed[largest] / GIB:.2f})"
    refused, advice = [name for name, fit in fits.items() if not fit], []
    for name in refused:
        length, batch = longest(job, name)
        would = [f"length {length:,} at batch {job.batch}"] if length else []
        would += [f"batch {batch} at length {job.length:,}"] if batch else []
        remedy = " or ".join(would) + " fits" if would else "a shorter row or a smaller batch alone is not enough"
        filled = f"{room(name) / GIB:.2f} of {GPUS[name]:.2f} may be filled"
        advice.append(f"{name} refused: {asks}, and {filled}; {remedy}")
    if refused:
        saved = {change: size / GIB for change, size in savings(job).items()}
        advice += [f"{change} would save {size:.2f} GiB" for change, size in saved.items() if size >= 0.01]
    if job.optimizer.startswith("paged"):
        advice.append(f"{job.optimizer}: its state is counted, but moves to main memory when the GPU is full")
    if fits["T4"] and (job.precision == "bf16" or job.dtype == "bfloat16"):
        advice.append("T4: it has no bf16; fp16 takes the same room")
    return advice


SHAPES = {  # the files with the configurations that their authors published
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
    """A Llama's counts of weights, and its widths as its configuration has them."""

    parameters: int  # tied embeddings and head count once
    quantised: int  # those of the layers' matrices: embeddings, head and norms are never held in 4 bits
    per_rank: dict[str, int]  # projection: weights that LoRA adds for each unit of rank, over all layers
    config: LlamaConfig  # of which `max_position_embeddings` is the most tokens the model was made for


def config_file(model: str) -> Path:
    """The config.json of a model: shipped with the kit or the data, or in a folder. AnitaError for an unknown one."""
    if model == SHIPPED_BASE:
        return data_dir() / SHIPPED_BASE / "config.json"
    if model in SHAPES:
        return Path(__file__).parent / "shapes" / f"{SHAPES[model]}.json"
    own = os.path.join(os.path.expanduser(model), "config.json")
    if os.path.isfile(own):  # unlike Path.is_file, False for whatever cannot be a path
        return Path(own)
    remedy = f"choose {', '.join([*SHAPES, SHIPPED_BASE])}, or name a folder that holds the model's config.json"
    raise AnitaError(f"no architecture is known for model '{model}': {remedy}")


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
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise AnitaError(f"{shown(file)} describes no Llama ({error!r}): restore the model's config.json") from error


@cache
def architecture(model: str) -> Architecture:
    """Counts the model's weights on the meta device, which takes no memory for them. Imports torch."""
    import torch

    model = meta_model(model)
    per_rank, quantised = Counter(), 0
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            per_rank[name.rpartition(".")[2]] += module.in_features + module.out_features
            quantised += module.weight.numel()
    return Architecture(sum(weight.numel() for weight in model.parameters()), quantised, per_rank, model.config)
