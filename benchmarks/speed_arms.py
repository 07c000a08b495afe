"""What `engine_speed.py` compares: each function makes an arm, which trains once over the rows when it is called."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from datasets import Dataset
from peft import get_peft_model
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from anita_utils import training
from anita_utils.data import IGNORED, encode, like_lengths, render
from anita_utils.hub import resolve_model
from anita_utils.model import load_tokenizer
from anita_utils.profile import Profile
from anita_utils.run import Run
from anita_utils.stages import Stage
from anita_utils.training import Watch

Arm = Callable[[], tuple[int, float]]  # useful tokens and seconds of one pass
SEED, AUTHORS_BATCH = 42, {"sft": 16, "italian": 16, "dpo": 8}


def open_stage(profile: Profile, name: str, tokens: int, length: int | None = None) -> Stage:
    """A stage of the profile on the shipped base, with as many examples as hold about `tokens` tokens.

    length: rows of that many tokens, with as many rows in a batch as hold 1,024.
    """
    settings = profile.stages[name].model_copy()
    if length:
        settings.max_length = settings.row_length = length
        settings.per_device_train_batch_size = max(1, 1024 // length)
    run = Run.open("speed", profile, SEED)
    base = resolve_model(profile.model.base)
    stage = Stage(run, name, settings)
    settings.examples = None
    tokenizer, sizes, held = load_tokenizer(base), [], 0
    for row in stage.documents():
        sizes.append(sum(len(render(row["prompt"] + row[side], tokenizer)) for side in ("chosen", "rejected"))
                     if name == "dpo" else len(encode(row, tokenizer)["input_ids"]))  # fmt: skip
        held += sizes[-1]
        if held >= tokens:
            break
    settings.examples = len(sizes)
    return stage


class Clock(TrainerCallback):
    """The seconds from the first step's beginning to the last one's end."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = time.perf_counter() - self.start


class Counted:
    """A collator that counts the tokens it hands out, padding not counted."""

    def __init__(self, collator, pad: int) -> None:
        self.collator, self.pad, self.tokens = collator, pad, 0

    def __call__(self, rows):
        batch = self.collator(rows)
        self.tokens += useful(batch, self.pad)
        return batch


def useful(batch: dict, pad: int) -> int:
    return int((batch["input_ids"] != pad).sum())


def arm_of(trainer) -> Arm:
    """An arm that lets a TRL trainer do one pass: no checkpoints, no progress, else as it is."""
    trainer.args.save_strategy = "no"
    for callback in (Watch, PrinterCallback):
        trainer.remove_callback(callback)
    clock, counted = Clock(), Counted(trainer.data_collator, trainer.processing_class.pad_token_id)
    trainer.add_callback(clock)
    trainer.data_collator = counted

    def once() -> tuple[int, float]:
        counted.tokens = 0
        trainer.train()
        return counted.tokens, clock.seconds

    return once


def course(stage: Stage) -> Arm:
    return arm_of(training.build_trainer(stage))


def trl_rows(stage: Stage, tokenizer) -> Dataset:
    """The stage's rows as TRL takes them by default, neither packed nor sorted, with the same masks."""
    if stage.name == "dpo":
        return Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")}
                                  for row in stage.documents()])  # fmt: skip
    return Dataset.from_list([encode(row, tokenizer, stage.settings.max_length) for row in stage.documents()])


def masked(stage: Stage) -> Arm:
    """The course's packed rows with the library's own attention: a mask over the whole row keeps texts apart."""
    trainer = training.build_trainer(stage)
    trainer.model.get_base_model().set_attn_implementation("sdpa")
    return arm_of(trainer)


def padded(stage: Stage) -> Arm:
    """The course's engine on padded batches of like length, each with about as many chats as a batch of packed rows."""
    tokenizer = training.tokenizer_of(stage)
    rows, packed = trl_rows(stage, tokenizer), training.training_rows(stage, tokenizer)
    batch = round(stage.settings.per_device_train_batch_size * len(rows) / len(packed))
    order = like_lengths([len(row) for row in rows["input_ids"]], batch, SEED)
    changes = {"per_device_train_batch_size": batch, "train_sampling_strategy": "sequential"}
    trainer = trl_trainer(stage, rows.select(order), **changes)
    training.prepare(trainer)
    return arm_of(trainer)


def trl_trainer(stage: Stage, rows: Dataset | None = None, **changes):
    """TRL's trainer on rows that are neither packed nor sorted; `changes` are of the stage's own settings."""
    model, tokenizer = training.load_for_training(stage)
    arguments = training.training_arguments(stage) | {"train_sampling_strategy": "random"} | changes
    make, config = (DPOTrainer, DPOConfig) if stage.name == "dpo" else (SFTTrainer, SFTConfig)
    if stage.name == "dpo":
        arguments["beta"] = stage.settings.beta
    trainer = make(model=model, args=config(**arguments), train_dataset=rows or trl_rows(stage, tokenizer),
                   processing_class=tokenizer, peft_config=training.lora_config(stage))  # fmt: skip
    training.adapters_in_fp32(trainer.model)
    return trainer


def authors_trainer(stage: Stage):
    batch = AUTHORS_BATCH[stage.name]
    return trl_trainer(stage, per_device_train_batch_size=batch, gradient_checkpointing=True)


def authors(stage: Stage) -> Arm:
    return arm_of(authors_trainer(stage))


def packing(stage: Stage) -> Arm:
    return arm_of(trl_trainer(stage, packing=True, max_length=stage.settings.row_length))


def course_batches(stage: Stage) -> list[dict]:
    """The very batches that the course's engine trains on."""
    return [dict(batch) for batch in training.build_trainer(stage).get_train_dataloader()]


def bare(stage: Stage) -> Arm:
    """Plain PyTorch on the course's batches: forward, loss, backward, clipping, AdamW; no logs, no metrics."""
    batches = course_batches(stage)
    model, tokenizer = training.load_for_training(stage)
    model = get_peft_model(model, training.lora_config(stage)).train()
    training.adapters_in_fp32(model)
    loss_of = pair_loss if stage.name == "dpo" else token_loss
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    settings = stage.settings
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def once() -> tuple[int, float]:
        start = time.perf_counter()
        for batch in batches:
            loss_of(model, batch, settings).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()
        return sum(useful(batch, tokenizer.pad_token_id) for batch in batches), time.perf_counter() - start

    return once


def scored_logits(model, scored, **inputs):
    """Logits of the scored places alone: the head is the costliest product of a small model."""
    inner = model.get_base_model()
    return inner.lm_head(inner.model(**inputs, use_cache=False).last_hidden_state[:, :-1][scored])


def token_loss(model, batch, settings):
    targets = batch["labels"][:, 1:]
    scored = targets != IGNORED
    logits = scored_logits(model, scored, input_ids=batch["input_ids"], position_ids=batch["position_ids"])
    return cross_entropy(logits, targets[scored])


def pair_loss(model, batch, settings):
    scored, targets = batch["completion_mask"][:, 1:].bool(), batch["input_ids"][:, 1:]

    def answers():
        logits = scored_logits(model, scored, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        of_tokens = torch.zeros(targets.shape).masked_scatter(scored, -cross_entropy(logits, targets[scored],
                                                                                     reduction="none"))  # fmt: skip
        return of_tokens.sum(1)

    with torch.no_grad(), model.disable_adapter():
        reference = answers()
    chosen, rejected = (answers() - reference).chunk(2)
    return -logsigmoid(settings.beta * (chosen - rejected)).mean()


def limit(stage: Stage) -> Arm:
    """The frozen matrices' products alone, at their true sizes: the backward pass multiplies as often as the forward.

    Left out: attention, the adapter, norms, unpacking of 4-bit weights, the optimiser.
    """
    batches = course_batches(stage)
    model, tokenizer = training.load_for_training(stage)
    config, pairs = model.config, stage.name == "dpo"
    pad = tokenizer.pad_token_id
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = hidden * config.num_key_value_heads // config.num_attention_heads
    shapes = [(hidden, hidden)] * 2 + [(hidden, heads)] * 2 + [(hidden, inner)] * 2 + [(inner, hidden)]
    shapes = shapes * config.num_hidden_layers
    weights = [torch.randn(after, before) for before, after in shapes]
    head = torch.randn(config.vocab_size, hidden)
    times = 3 if pairs else 2  # forward and backward; in DPO the reference's forward too

    def once() -> tuple[int, float]:
        seconds = 0.0
        for batch in batches:
            places = batch["input_ids"].numel()
            scored = int(batch["completion_mask"].sum() if pairs else (batch["labels"] != IGNORED).sum())
            inputs = {width: torch.randn(places, width) for width in (hidden, heads, inner)}
            states, chosen = torch.randn(scored, hidden), torch.randn(scored, config.vocab_size)
            start = time.perf_counter()
            for weight in weights:
                inputs[weight.shape[1]] @ weight.T
                inputs[weight.shape[0]] @ weight
                if times == 3:
                    inputs[weight.shape[1]] @ weight.T
            for _ in range(times - 1):
                states @ head.T
            chosen @ head
            seconds += time.perf_counter() - start
        return sum(useful(batch, pad) for batch in batches), seconds

    return once
