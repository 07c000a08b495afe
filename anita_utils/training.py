"""How is a stage trained? TRL's configuration and trainer, what the course adds to them, and the line of progress.

    stage = open_stage(run, "sft")                      # trains the stages before it where they are missing
    trainer = build_trainer(stage)                      # the lessons write this step out
    if not stage.done:
        with stage.training() as checkpoint:
            trainer.train(resume_from_checkpoint=checkpoint)
            stage.finish(trainer)

Each stage starts from the merged model of the one before, quantises it again and adds a new adapter.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback, get_scheduler

from anita_utils import AnitaError, clock, data
from anita_utils.attention import keep_to_texts
from anita_utils.hub import resolve_model
from anita_utils.model import checked_tokenizer, keep_freed_memory, load_model
from anita_utils.run import Run
from anita_utils.stages import Stage, TrainedMeanwhile, find_stage, token_count, trained_seconds, write_manifest

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl import DPOConfig, SFTConfig


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
    stage = find_stage(run, name)
    for earlier in run.profile.order[: run.profile.order.index(name)]:
        train_stage(find_stage(run, earlier))
    if stage.done:
        stage.link()
    return stage


def train_stage(stage: Stage, resume: bool = True, callbacks: Sequence[TrainerCallback] = ()) -> Stage:
    """Trains the stage unless the cache holds it; a killed training goes on from its last good checkpoint.

    resume: False deletes the checkpoints of a killed training first. callbacks: transformers' own kind, added last.

    AnitaError, one line, for what `stage.training` explains, or a loss that is no number.
    """
    if not stage.done:
        with suppress(TrainedMeanwhile), stage.training(resume) as checkpoint:
            trainer = build_trainer(stage)
            for callback in callbacks:
                trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint=checkpoint)
            stage.finish(trainer)
    stage.link()
    return stage


def train_missing(run: Run) -> dict[str, str]:
    """Every stage of the run's order, trained where it is missing. Returns {"base": path, "sft": path, …}."""
    base = resolve_model(run.profile.model.base, run.profile.model.revision)
    return {"base": base} | {name: train_stage(find_stage(run, name)).merged for name in run.profile.order}


def lora_config(stage: Stage) -> LoraConfig:
    """PEFT's configuration of the stage's adapter."""
    from peft import LoraConfig

    return LoraConfig(**stage.settings.lora.model_dump(), bias="none", task_type="CAUSAL_LM")


def training_arguments(stage: Stage) -> dict:
    """Keyword arguments for SFTConfig or DPOConfig, from the stage's settings and the machine."""
    import torch

    precision, on_gpu = stage.run.profile.precision, torch.cuda.is_available()
    return {
        **stage.settings.model_dump(include=AS_IN_TRL),
        "output_dir": str(stage.work),
        "train_sampling_strategy": "sequential" if stage.name == "dpo" else "random",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not on_gpu,  # without it the defaults raise on a CPU
        "logging_steps": LOG_EVERY,
        "logging_nan_inf_filter": False,  # else a loss that is no number would be logged as a fine one
        "save_strategy": "steps",
        "save_steps": SAVE_EVERY,
        "save_total_limit": 2,  # the newest is not good until its manifest is written
        "run_name": stage.name,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        "seed": stage.run.seed,
        "data_seed": stage.run.seed,
    }


def trl_config(stage: Stage, **others) -> SFTConfig | DPOConfig:
    """TRL's configuration of the stage. others: arguments in place of the stage's own."""
    from trl import DPOConfig, SFTConfig

    arguments = training_arguments(stage) | others
    if stage.name == "dpo":
        return DPOConfig(beta=stage.settings.beta, **arguments)
    return SFTConfig(**arguments, **PREPACKED)


def adapters_in_fp32(model) -> None:
    """Casts the trainable weights back to fp32, after the trainer is built and before it trains.

    TRL casts the LoRA weights of a quantised model to bf16, where a small update is rounded away: at a learning rate of
    5e-6 only one weight in eight of a 4096-wide lora_A moves. On a T4 the fp16 gradient scaler refuses bf16 altogether.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def load_for_training(stage: Stage):
    """The stage's parent model, quantised as the profile says, and its tokenizer, which is checked first."""
    profile, tokenizer = stage.run.profile, tokenizer_of(stage)
    computed = COMPUTE_DTYPES[profile.precision]
    return load_model(stage.parent_path, profile.quantisation, profile.model.dtype, computed), tokenizer


def tokenizer_of(stage: Stage) -> PreTrainedTokenizerBase:
    """The tokenizer of the stage's parent model, checked; it may lack a chat template, for a stage of running text."""
    return checked_tokenizer(stage.parent_path, stage.run.profile.model.system_in_user, needs_template=False)


def training_rows(stage: Stage, tokenizer, documents: list[dict] | None = None) -> Dataset:
    """The stage's data as its trainer takes it: packed rows for SFT and text, preference pairs for DPO.

    What cannot be learnt from is left out before the order is fixed: `stage.counts` says how many rows are trained
    whole, how many cut, and how many left out and why. AnitaError where none is left, or where another stage than DPO
    is given preference pairs, or DPO anything else.

    TRL's DPO packs nothing, so the pairs come in batches of like length, and the trainer must keep that order (its
    own `group_by_length` looks for a column that its DPO does not have, and raises).
    """
    from datasets import Dataset

    settings = stage.settings
    documents = stage.documents() if documents is None else documents
    wrong = sum(("chosen" in row) != (stage.name == "dpo") for row in documents)
    if wrong:
        where = f"stages.{stage.name}.data: {wrong:,} rows of {', '.join(settings.data)}"
        are = "no preference pairs" if stage.name == "dpo" else "preference pairs, which only dpo takes"
        raise AnitaError(f"{where} are {are}: name another corpus")
    counts = data.RowCounts(stage.counts.read, stage.counts.left_out, stage.counts.not_taken)  # of reading alone
    if stage.name == "dpo":
        pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in documents]
        pairs, lengths = data.fitting_pairs(pairs, tokenizer, settings.max_length, counts)
        order = data.like_lengths(lengths, settings.per_device_train_batch_size, stage.run.seed)
        rows = Dataset.from_list([pairs[number] for number in order])
    else:
        examples = data.fitting([data.encode(row, tokenizer) for row in documents], settings.max_length, counts)
        rows = data.packed_rows(examples, tokenizer, settings.row_length or settings.max_length, settings.max_length)
    stage.counts = counts
    if not len(rows):
        remedy = f"check stages.{stage.name}.data, or raise max_length"
        raise AnitaError(f"stage '{stage.name}' has nothing to train on ({counts}): {remedy}")
    return rows


def build_trainer(stage: Stage):
    """The stage's TRL trainer, as the lessons build it step by step."""
    from trl import DPOTrainer, SFTTrainer

    rows = training_rows(stage, tokenizer_of(stage))  # before the weights: what is wrong with the data shows at once
    model, tokenizer = load_for_training(stage)
    parts = {"args": trl_config(stage), "train_dataset": rows, "processing_class": tokenizer}
    if stage.name != "dpo":
        parts["data_collator"] = data.PackedCollator(tokenizer.pad_token_id)
    trainer = (DPOTrainer if stage.name == "dpo" else SFTTrainer)(model, peft_config=lora_config(stage), **parts)
    prepare(trainer)
    return trainer


def prepare(trainer) -> None:
    """What each of the course's trainers gets before it trains.

    Adapters in fp32; attention that works text by text, and a head that scores labelled tokens alone; one line of
    progress in place of TRL's printed logs; and memory that is freed is kept for the next step.
    """
    from transformers import PrinterCallback

    adapters_in_fp32(trainer.model)
    keep_to_texts(trainer.model)
    score_labels_only(trainer.model)
    keep_freed_memory()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch)


def packing_summary(rows: Dataset, row_length: int) -> dict[str, float]:
    """Counts of a packed data set, tokens that longer documents lost among them, and the share of places in use."""
    tokens = sum(map(len, rows["input_ids"]))
    return {
        "rows": len(rows),
        "tokens": tokens,
        "scored_tokens": sum(label != data.IGNORED for labels in rows["labels"] for label in labels),
        "cut_tokens": sum(rows["cut"]),
        "filled": tokens / (len(rows) * row_length),
    }


# ---------------------------------------------------------------- progress


EVERY = 30  # seconds between two lines where a line cannot be rewritten
SAVE_SECONDS = 240  # a kill loses at most five minutes, the time of a few updates included


class Progress:
    """One line that is rewritten, on a terminal and in a notebook; elsewhere a line now and then, and the last."""

    def __init__(self) -> None:
        from IPython import get_ipython

        self.in_notebook = hasattr(get_ipython(), "kernel")
        self.output = None  # the notebook's, once there is one
        self.shown = time.monotonic()

    def show(self, text: str, last: bool = False) -> None:
        from IPython.display import display

        if self.in_notebook and self.output is None:
            self.output = display({"text/plain": text}, raw=True, display_id=True)
        elif self.in_notebook:
            self.output.update({"text/plain": text}, raw=True)
        elif sys.stdout.isatty():
            print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
        elif last or time.monotonic() - self.shown >= EVERY:
            self.shown = time.monotonic()
            print(text, flush=True)


class Watch(TrainerCallback):
    """Shows progress, stops at a loss that is no number, and writes the manifests that make checkpoints trusted.

    It counts the seconds of a training across its interruptions, and saves by time as well as by updates.
    """

    def on_train_begin(self, args, state, control, train_dataloader=None, optimizer=None, lr_scheduler=None, **kwargs):
        if args.get_warmup_steps(state.max_steps) >= state.max_steps > 0:
            cut_warm_up(args, state, optimizer, lr_scheduler)
        self.began = self.saved = time.monotonic()
        self.first = state.global_step
        # A short training is logged often enough, five times, to have a curve; a log changes nothing of the training
        state.logging_steps = max(1, min(state.logging_steps, state.max_steps // 5))
        self.before = trained_seconds(checkpoint(args, state)) or 0.0
        self.tokens = token_count(train_dataloader.dataset) * args.num_train_epochs / state.max_steps  # an update
        self.progress = Progress()
        self.loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), math.nan)

    def on_step_end(self, args, state, control, **kwargs):
        unsaved = time.monotonic() - self.saved
        to_the_next_log = self.an_update(state) * min(state.logging_steps, state.max_steps - state.global_step)
        if unsaved > SAVE_SECONDS or (control.should_log and unsaved + to_the_next_log > SAVE_SECONDS):
            control.should_save = True
        if control.should_save and state.global_step < state.max_steps:
            control.should_log = True  # so that the checkpoint holds all losses up to it

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = logs.get("loss", logs.get("train_loss"))  # the latter once, at the end: the mean of all
        if loss is not None and not math.isfinite(loss):
            raise AnitaError(
                f"stage '{args.run_name}': the loss is {loss} at update {state.global_step}: lower the learning "
                f"rate ({args.learning_rate:g}) or raise the warm-up; nothing is kept from after the last checkpoint"
            )
        if "loss" in logs:
            self.loss = loss
            left = self.an_update(state) * (state.max_steps - state.global_step)
            self.progress.show(f"{self.line(args, state)}, {clock(left)} left")

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.monotonic()
        write_manifest(checkpoint(args, state), self.before + self.saved - self.began)

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.show(f"{self.line(args, state)}, done in {clock(time.monotonic() - self.began)}", last=True)

    def an_update(self, state) -> float:
        """Seconds an update has taken so far."""
        return (time.monotonic() - self.began) / (state.global_step - self.first)

    def line(self, args, state) -> str:
        """Update, loss and useful tokens a second."""
        speed = (state.global_step - self.first) * self.tokens / (time.monotonic() - self.began)
        done = f"{args.run_name}: {state.global_step:,}/{state.max_steps:,} updates"
        return f"{done}, loss {self.loss:.3f}, {speed:,.0f} tokens/s"


def cut_warm_up(args, state, optimizer, lr_scheduler) -> None:
    """Leaves the last update out of a warm-up of all updates; an only update would else have a rate of 0."""
    print(f"{args.run_name}: a warm-up of all {state.max_steps:,} updates is cut to {state.max_steps - 1:,}")
    shorter = get_scheduler(args.lr_scheduler_type, optimizer, state.max_steps - 1, state.max_steps)
    lr_scheduler.load_state_dict(shorter.state_dict() | {"lr_lambdas": [None] * len(shorter.lr_lambdas)})
    lr_scheduler.lr_lambdas = shorter.lr_lambdas


def checkpoint(args, state) -> Path:
    """The folder of the checkpoint that belongs to this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


# ---------------------------------------------------------------- head


# Settings of families whose logits are more than the head's product, as TRL's `add_fused_lm_head` reads them.
OF_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
AT_ONCE = 64  # tokens whose entropy is worked out together: their logits stay in the processor's cache


def score_labels_only(model) -> None:
    """Lets TRL's trainers compute the head on labelled tokens only; on a GPU with Triton they do so by themselves.

    The plain way, head(states)[mask], multiplies every token's state by the whole vocabulary, then drops the scores
    without a label: half of all the work of a small model on a CPU. head(states[mask]) gives the same scores.

    TRL asks its model for scores by `model(…, labels=labels, fused_lm_head=True)`, a switch of its own. This puts a
    function in front of the model's `forward` that answers such calls itself and hands on every other.

    model: the model of a built SFTTrainer or DPOTrainer, with or without adapters. Losses and gradients are those of
    TRL's own head, to rounding. A family that scales or caps its logits (Gemma 2, Granite) keeps TRL's head.
    """
    from trl.trainer.utils import FusedCausalLMOutput, _use_triton

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    by_trl = inner.forward

    def forward(*args, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs):
        if not fused_lm_head:
            return by_trl(*args, labels=labels, **kwargs)
        states = inner.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != data.IGNORED
        scores = token_scores(inner.get_output_embeddings()(states[mask]), labels[mask])
        placed = {name: score.new_zeros(mask.shape).masked_scatter(mask, score) for name, score in scores.items()}
        return FusedCausalLMOutput(label_mask=mask, **placed)  # the trainers make their own loss of these

    if not _use_triton(inner.device) and not any(getattr(inner.config, name, None) for name in OF_LOGITS):
        inner.forward = forward


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What TRL's trainers log and learn from, for each token: log-probability, entropy, mean logit, and whether right.

    logits: shape (tokens, vocabulary); labels: shape (tokens,). The first has a gradient; the others are for the
    log, the entropy in nats.
    """
    import torch

    logits = logits.float()
    log_probs = logits.log_softmax(-1)
    of_labels = log_probs.gather(-1, labels[:, None]).squeeze(-1)
    with torch.no_grad():
        return {
            "log_probs": of_labels,
            "entropy": torch.cat([-(few.exp() * few).sum(-1) for few in log_probs.split(AT_ONCE)]),
            "mean_logits": logits.mean(-1),
            "is_top1": logits.argmax(-1) == labels,
        }
