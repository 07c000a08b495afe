"""How is a model loaded, in 4 bits where that is asked for, and what does it answer?

>>> model = load_model("data/tiny-llama-3-instruct"); tokenizer = load_tokenizer("data/tiny-llama-3-instruct")
>>> chat(model, tokenizer, ["What is the capital of Piedmont?"])
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.chat_template import check_tokenizer, inspect_template, without_system_role
from anita_utils.data import render
from anita_utils.paths import read_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from anita_utils.profile import Profile, Quantisation


def load_tokenizer(path: str | Path, revision: str | None = None, system_in_user: bool = False) -> Tokenizer:
    """The tokenizer of a model, padding on the left, never with the end of a turn.

    Right padding would put padding between a prompt and its answer; padding with EOS would teach the model that turns
    do not end. Llama 3 has no padding token, so its first reserved one is taken, elsewhere the one for unknown text.

    system_in_user: a system text goes into the first user turn, whatever renders the chat (this kit, TRL, lm-eval).
    """
    from transformers import AutoTokenizer

    with readable(path, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    if system_in_user and tokenizer.chat_template:
        tokenizer.chat_template = without_system_role(tokenizer.get_chat_template())
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        reserved = "<|reserved_special_token_0|>"
        known = tokenizer.convert_tokens_to_ids(reserved) not in (None, tokenizer.unk_token_id)
        tokenizer.pad_token = reserved if known else tokenizer.unk_token
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        raise AnitaError(f"{shown(path)}: no token to pad with: set tokenizer.pad_token to one that is never in a text")
    return tokenizer


@contextmanager
def readable(path: str | Path, what: str) -> Iterator[None]:
    """Turns whatever a library says of a damaged model inside the block into an AnitaError of one line."""
    try:
        yield
    except Exception as error:  # of every kind: plain Exceptions, TypeErrors of a configuration, errors of torch
        if isinstance(error, AnitaError) or no_memory(error):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = "restore its files, or take another model"
        raise AnitaError(f"{shown(path)}: {what} cannot be read ({said}): {remedy}") from error


def checked_tokenizer(path: str | Path, system_in_user: bool = False, needs_template: bool = True) -> Tokenizer:
    """The tokenizer of the model in a folder, if its chat template and its ids fit; reads no weights.

    needs_template: False where running text may be all that is trained on: then a template may be missing.
    """
    tokenizer = load_tokenizer(path, system_in_user=system_in_user)
    try:
        if needs_template or tokenizer.chat_template:
            inspect_template(tokenizer)
        check_tokenizer(tokenizer, embedding_rows(path))
    except AnitaError as error:
        raise AnitaError(f"{shown(path)}: {error}") from error
    return tokenizer


def embedding_rows(folder: str | Path) -> int | None:
    """How many rows the embedding of a model in a folder has, by its config.json; None where that does not say."""
    with readable(folder, "the model"):
        config = json.loads(read_text(Path(folder) / "config.json"))
        return config.get("text_config", config).get("vocab_size")


def quantisation_config(quantisation: Quantisation, compute_dtype: str = "float32"):
    """bitsandbytes' configuration for a profile's quantisation, None where it asks for none."""
    import torch
    from transformers import BitsAndBytesConfig

    if not quantisation.load_in_4bit:
        return None
    return BitsAndBytesConfig(**quantisation.model_dump(), bnb_4bit_compute_dtype=getattr(torch, compute_dtype))


def load_model(
    path: str | Path,
    quantisation: Quantisation | None = None,
    dtype: str = "float32",
    compute_dtype: str = "float32",
    revision: str | None = None,
) -> PreTrainedModel:
    """A causal language model, in 4 bits when `quantisation` asks for it; on the GPU where there is one.

    dtype: the type of the weights that are not quantised. compute_dtype: what 4-bit weights are unpacked to.

    AnitaError for a model that cannot be read, lacks weights (transformers would draw them at random, with a warning),
    or computes what is no number.
    """
    import gc
    import logging

    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for an optional kernel that is not needed
    options = {"use_safetensors": True, "trust_remote_code": False}  # a pickle or a repository's code can do anything
    if quantisation and quantisation.load_in_4bit:
        options["quantization_config"] = quantisation_config(quantisation, compute_dtype)
    gc.collect()  # a trainer's circle of references can hold a model that is not needed any more
    with readable(path, "the model"):
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            revision=revision,
            device_map={"": 0} if torch.cuda.is_available() else {"": "cpu"},
            output_loading_info=True,
            **options,
        )
        keep_gradients_exact(model)
        # Greedy means greedy: no repetition penalty, beams or shortest length of the model's own
        own = model.generation_config
        ids = {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id}
        model.generation_config = GenerationConfig(**ids)
        # One token, by the model's own way of generating: its settings of generation are tried with it
        few = torch.arange(4, device=model.device)[None]
        options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0, "output_logits": True}
        first = model.generate(few, attention_mask=torch.ones_like(few), return_dict_in_generate=True, **options)
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise AnitaError(f"{shown(path)}: no weights for {missing[0]} ({len(missing)} missing): restore its files")
    if layers := [name for name in unexpected if ".layers." in name]:
        says = f"config.json has no layer for {layers[0]} ({len(layers)} weights)"
        raise AnitaError(f"{shown(path)}: {says}: restore its files")
    if unexpected:
        left_out = f"{len(unexpected)} weights are left out, for which the model has no place: {unexpected[0]}"
        print(f"{shown(path)}: {left_out}", file=sys.stderr)
    if not first.logits[0].isfinite().all():
        raise AnitaError(f"{shown(path)}: the model's logits are no numbers (nan or inf): restore its weights")
    return model


def held_for_evaluation(profile: Profile) -> Quantisation:
    """How a model that is only looked at is held: `evaluation.load_in_4bit`, of the kind it trains with."""
    return profile.quantisation.model_copy(update={"load_in_4bit": profile.evaluation.load_in_4bit})


def load_for_evaluation(path: str | Path, profile: Profile, revision: str | None = None) -> PreTrainedModel:
    """A model that is measured or talked to, never trained."""
    dtype = profile.model.dtype
    return load_model(path, held_for_evaluation(profile), dtype, compute_dtype=dtype, revision=revision).eval()


def keep_gradients_exact(model: torch.nn.Module) -> None:
    """Switches off bitsandbytes' inference kernel for CPUs with AVX512-BF16, on every 4-bit layer.

    After one evaluation forward that kernel repacks the weight, and from then on training runs through it without
    autograd: LoRA gradients change and only a warning says so.
    """
    if "bitsandbytes" not in sys.modules:  # no layer is in 4 bits, and importing it takes seconds
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def chat(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[dict]],
    system: str | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 64,
) -> list[str]:
    """The model's greedy answers, in the order of the prompts: single questions, or chats that end with one.

    Prompts of like length share a batch. An answer ends with the model's own end tokens, or the template's.
    """
    import torch

    opening = [{"role": "system", "content": system}] if system else []
    chats = [[*opening, *turns_of(prompt)] for prompt in prompts]
    ids = [render(turns, tokenizer, add_generation_prompt=True) for turns in chats]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    ends = end_tokens(model, tokenizer)
    answers = [""] * len(ids)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[n] for n in numbers]}, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                **batch.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
            )
        for number, tokens in zip(numbers, output[:, batch["input_ids"].shape[1] :], strict=True):
            answers[number] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    model.train(was_training)
    return answers


def end_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer: the model's own, and the template's."""
    own = model.generation_config.eos_token_id
    ends = {own} if isinstance(own, int) else set(own or [])
    return sorted(ends | {inspect_template(tokenizer).end_of_turn_id})


def turns_of(prompt: str | list[dict]) -> list[dict]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def weight_count(parameter: torch.nn.Parameter) -> int:
    """How many weights a parameter stands for: in 4 bits more than the bytes it holds."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def parameter_counts(model: torch.nn.Module) -> dict[str, int]:
    """All and trainable parameters of a model."""
    counts = [(weight_count(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return {"all": sum(count for count, _ in counts), "trainable": sum(count for count, trained in counts if trained)}


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks: fetching them from the kernel again can cost half of each step."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: the largest block that stays in the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: how much free heap is kept


def give_back_memory() -> None:
    """Gives the pages of freed blocks back to the system, those between blocks in use too."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def no_memory(error: Exception) -> bool:
    """Whether memory ran out: the GPU's or the machine's."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
