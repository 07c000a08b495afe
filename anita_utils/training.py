"""The three stages on TRL: their configuration, and training them one after the other.

    stage = open_stage(run, "sft")                      # trains the stages before it where they are missing
    trainer = build_trainer(stage)                      # the lessons write this step out
    if not stage.done:
        trainer.train(resume_from_checkpoint=stage.checkpoint())
        stage.finish(trainer)

Each stage starts from the merged model of the one before, quantises it afresh and adds a new adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anita_utils import AnitaError
from anita_utils.data import (
    PackedCollator,
    count_tokens,
    encode,
    fitting,
    fitting_pairs,
    like_lengths,
    packed_rows,
)
from anita_utils.failures import explained
from anita_utils.head import score_labels_only
from anita_utils.hub import resolve_model
from anita_utils.model import checked_tokenizer, keep_freed_memory, load_model
from anita_utils.record import Run
from anita_utils.stages import Stage, corpus_name, find_stage

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase, TrainerCallback

# For SFTConfig: the rows are ready (TRL would drop their position ids, and with them the borders between examples).
PREPACKED = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
COMPUTE_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# The settings of a stage that SFTConfig and DPOConfig take as they are.
AS_IN_TRL = {
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "warmup_steps",
    "weight_decay", "lr_scheduler_type", "optim", "max_length", "gradient_checkpointing",
}  # fmt: skip
LOG_EVERY, SAVE_EVERY = 5, 100  # updates; a checkpoint comes with a log, so that it holds all losses up to it


def open_stage(run: Run, name: str) -> Stage:
    """The stage, ready to be trained: the stages before it are found in the cache or trained on the spot."""
    position = run.profile.order.index(name) if name in run.profile.order else 0
    for earlier in run.profile.order[:position]:
        train_stage(find_stage(run, earlier))
    stage = find_stage(run, name)
    if stage.done:
        stage.link()
    return stage


def train_stage(stage: Stage, resume: bool = True, callbacks: Sequence[TrainerCallback] = ()) -> Stage:
    """Trains the stage unless the cache holds it; a killed training goes on from its last good checkpoint.

    resume: False deletes the checkpoints of a killed training first. callbacks: what watches the training.

    AnitaError, one line, for a full disk, a folder that may not be written, a loss that is no number, or too little
    memory; then nothing is left half-written.
    """
    if not stage.done:
        with explained(stage), stage.alone():
            if not stage.done:  # another process may have trained it while this one waited
                _train(stage, resume, callbacks)
    stage.link()
    return stage


def _train(stage: Stage, resume: bool, callbacks: Sequence[TrainerCallback]) -> None:
    if changes := stage.changes():
        print(f"{stage.name}: trained anew, and what builds on it: {'; '.join(changes)}")
    if not resume:
        shutil.rmtree(stage.work, ignore_errors=True)
    trainer = build_trainer(stage)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=stage.checkpoint())
    stage.finish(trainer)


def train_missing(run: Run) -> dict[str, str]:
    """Every stage of the run's order, trained where it is missing. Returns {"base": path, "sft": path, …}."""
    paths = {"base": resolve_model(run.profile.model.base, run.profile.model.revision)}
    for name in run.profile.order:
        paths[name] = train_stage(find_stage(run, name)).merged
    return paths


def lora_config(stage: Stage) -> LoraConfig:
    """PEFT's configuration of the stage's adapter."""
    from peft import LoraConfig

    return LoraConfig(**stage.settings.lora.model_dump(), bias="none", task_type="CAUSAL_LM")


def training_arguments(stage: Stage) -> dict:
    """Keyword arguments for SFTConfig or DPOConfig, from the stage's settings and the machine."""
    import torch

    from anita_utils.watching import WATCH

    keep_freed_memory()
    precision = stage.run.profile.precision
    return {
        **stage.settings.model_dump(include=AS_IN_TRL),
        "output_dir": str(stage.work),
        "train_sampling_strategy": "sequential" if stage.name == "dpo" else "random",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not torch.cuda.is_available(),  # without it the defaults raise on a CPU
        "logging_steps": LOG_EVERY,
        "logging_nan_inf_filter": False,  # else a loss that is no number would be logged as a fine one
        "save_strategy": "steps",
        "save_steps": SAVE_EVERY,
        "save_total_limit": 2,  # the newest is not good until its manifest is written
        "run_name": stage.name,
        "report_to": [WATCH],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": stage.run.seed,
        "data_seed": stage.run.seed,
    }


def adapters_in_fp32(model) -> None:
    """Casts the trainable weights back to fp32, after the trainer is built and before it trains.

    TRL casts the LoRA weights of a quantised model to bf16, where a small update is rounded away: at a learning rate of
    5e-6 only one weight in eight of a 4096-wide lora_A moves. On a T4 the fp16 gradient scaler refuses bf16 outright.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def load_for_training(stage: Stage):
    """The stage's parent model, quantised as the profile says, and its tokenizer, which is checked first."""
    profile, tokenizer = stage.run.profile, tokenizer_of(stage)
    model = load_model(
        stage.parent_path,
        profile.quantisation,
        dtype=profile.model.dtype,
        compute_dtype=COMPUTE_DTYPES[profile.precision],
    )
    return model, tokenizer


def tokenizer_of(stage: Stage) -> PreTrainedTokenizerBase:
    """The tokenizer of the stage's parent model, checked; it may lack a chat template, for a stage of running text."""
    return checked_tokenizer(stage.parent_path, stage.run.profile.model.system_in_user, needs_template=False)


def training_rows(stage: Stage, tokenizer, documents: list[dict] | None = None) -> Dataset:
    """The stage's data as its trainer takes it: packed rows for SFT and text, preference pairs for DPO.

    documents: the stage's own, where they have been encoded already and need not be once more.

    What cannot be learnt from is left out here, before the order is fixed: `stage.counts` says how many rows are
    trained whole, how many cut, and how many left out and why. AnitaError where none is left.

    TRL's DPO packs nothing, so the pairs come in batches of like length, and the trainer must keep that order (its
    own `group_by_length` looks for a column that its DPO does not have, and raises).
    """
    from datasets import Dataset

    settings = stage.settings
    if documents is None:
        documents = stage.documents()
    check_kind(stage, documents)
    counts = stage.counts.before_encoding()
    if stage.name == "dpo":
        pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in documents]
        pairs, lengths = fitting_pairs(pairs, tokenizer, settings.max_length, counts)
        order = like_lengths(lengths, settings.per_device_train_batch_size, stage.run.seed)
        rows = Dataset.from_list([pairs[number] for number in order])
    else:
        examples = fitting([encode(row, tokenizer) for row in documents], settings.max_length, counts)
        rows = packed_rows(examples, tokenizer, settings.row_length or settings.max_length, settings.max_length)
    stage.counts = counts
    if not len(rows):
        raise AnitaError(
            f"stage '{stage.name}' has nothing to train on ({counts}): "
            f"check stages.{stage.name}.data, or raise max_length"
        )
    return rows


def check_kind(stage: Stage, documents: list[dict]) -> None:
    """AnitaError where preference pairs stand in another stage than DPO, or anything else in it."""
    wrong = sum(("chosen" in row) != (stage.name == "dpo") for row in documents)
    if wrong:
        names = ", ".join(corpus_name(corpus) for corpus in stage.settings.data)
        are = "no preference pairs" if stage.name == "dpo" else "preference pairs, which only dpo takes"
        raise AnitaError(f"stages.{stage.name}.data: {wrong:,} rows of {names} are {are}: name another corpus")


def build_trainer(stage: Stage):
    """The stage's TRL trainer, as the lessons build it step by step."""
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = training_rows(stage, tokenizer_of(stage))  # before the weights: what is wrong with the data shows at once
    model, tokenizer = load_for_training(stage)
    arguments = training_arguments(stage)
    common = {"model": model, "train_dataset": rows, "processing_class": tokenizer, "peft_config": lora_config(stage)}
    if stage.name == "dpo":
        trainer = DPOTrainer(args=DPOConfig(beta=stage.settings.beta, **arguments), **common)
    else:
        collator = PackedCollator(tokenizer.pad_token_id)
        trainer = SFTTrainer(args=SFTConfig(**arguments, **PREPACKED), data_collator=collator, **common)
    adapters_in_fp32(trainer.model)
    score_labels_only(trainer.model)
    trainer.remove_callback(PrinterCallback)  # the history keeps what it would print
    return trainer


def packing_summary(rows: Dataset, row_length: int) -> dict[str, float]:
    """Counts of a packed data set and the share of places that hold a token."""
    counts = count_tokens(rows)
    return {**counts, "filled": counts["tokens"] / (counts["rows"] * row_length)}
