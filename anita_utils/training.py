"""The three stages on TRL: what a stage starts from and trains on, its configuration, its cache, resuming a killed one.

    stage = open_stage(run, "sft")                      # trains the stages before it where they are missing
    trainer = build_trainer(stage)                      # the lessons write this step out
    if not stage.done:
        trainer.train(resume_from_checkpoint=stage.checkpoint())
        stage.finish(trainer)

Each stage starts from the merged model of the one before, quantises it afresh and adds a new adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.data import PackedCollator, count_tokens, like_lengths, packed_rows, read_jsonl, render
from anita_utils.datasets_hub import fetch
from anita_utils.hub import data_dir, file_hash, model_key, resolve_model
from anita_utils.machine import LIBRARIES
from anita_utils.model import keep_freed_memory, load_model, load_tokenizer, merge_adapter
from anita_utils.profile import Stage as Settings
from anita_utils.record import Run, cache_dir, write_text

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig

CORPORA = {"sft": ["sft"], "italian": ["italian_text", "italian_replay"], "dpo": ["dpo"]}
# raise it when this file or data.py changes what a stage learns, so that no cached stage is taken for a new one
ENGINE = 2
# For SFTConfig: the rows are ready (TRL would drop their position ids, and with them the borders between examples).
PREPACKED = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
COMPUTE_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass
class Stage:
    """One stage of a run: its settings, its parent model, its folder in the cache that all runs share."""

    run: Run
    name: str
    settings: Settings
    parent: str
    parent_path: str
    parent_key: str
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def corpora(self) -> list[Path]:
        """The files with the training rows. A sample of a data set on the Hub is fetched first, once."""
        on_hub = self.run.profile.datasets
        paths = []
        for corpus in self.settings.data:
            if corpus in on_hub:
                paths.append(fetch(corpus, on_hub[corpus]))
                continue
            names = CORPORA.get(corpus, [corpus])
            paths += [Path(n) if n.endswith(".jsonl") else data_dir() / "corpora" / f"{n}.jsonl" for n in names]
        for path in paths:
            if not path.is_file():
                raise AnitaError(
                    f"stage '{self.name}': no data at {shown(path)}: build it with `anita world build --no-train`"
                )
        return paths

    def documents(self) -> list[dict]:
        """The training rows, shuffled by the seed when they come from several files."""
        from random import Random

        rows = [row for path in self.corpora for row in read_jsonl(path)]
        Random(self.run.seed).shuffle(rows)
        return rows[: self.settings.examples]

    @cached_property
    def recipe(self) -> dict:
        """Everything the result depends on; its hash names the stage in the cache."""
        from importlib.metadata import version

        profile = self.run.profile
        return {
            "stage": self.name,
            "settings": self.settings.model_dump(),
            "precision": profile.precision,
            "dtype": profile.model.dtype,
            "quantisation": profile.quantisation.model_dump(),
            "seed": self.run.seed,
            "parent": self.parent_key,
            "data": [file_hash(path) for path in self.corpora],
            "versions": {name: version(name) for name in LIBRARIES[:6]},
            "engine": ENGINE,
        }

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return cache_dir() / "stages" / f"{self.name}-{self.key}"

    @property
    def work(self) -> Path:
        """Where checkpoints lie while the stage is trained."""
        return self.folder.with_name(f".{self.folder.name}.work")

    @property
    def done(self) -> bool:
        return (self.folder / "stage.json").is_file()

    @property
    def info(self) -> dict:
        """stage.json: recipe, history of the training, tokens, seconds, peak memory."""
        if not self.done:
            raise AnitaError(
                f"stage '{self.name}' of run '{self.run.folder.name}' is not trained yet: run its lesson first"
            )
        return json.loads((self.folder / "stage.json").read_text("utf-8"))

    @property
    def merged(self) -> str:
        return str(self.folder / "merged")

    def checkpoint(self) -> str | None:
        """The newest whole checkpoint of a killed training, to hand to `trainer.train`; None to begin anew."""
        from transformers.trainer_utils import get_last_checkpoint

        return get_last_checkpoint(str(self.work)) if self.work.is_dir() else None

    def finish(self, trainer) -> None:
        """Saves adapter, merged model and stage.json, whole or not at all, and links them into the run."""
        history = [row for row in trainer.state.log_history if "loss" in row]
        summary = next(row for row in reversed(trainer.state.log_history) if "train_runtime" in row)
        finished = self.folder.with_name(f".{self.folder.name}.new")
        shutil.rmtree(finished, ignore_errors=True)
        trainer.model.save_pretrained(finished / "adapter")
        merge_adapter(self.parent_path, finished / "adapter", finished / "merged", self.run.profile.model.dtype)
        tokens = token_count(trainer.train_dataset)
        info = {
            "recipe": self.recipe,
            "key": self.key,
            "parent": self.parent,
            "history": history,
            "steps": trainer.state.global_step,
            "tokens": tokens,
            "seconds": round(summary["train_runtime"], 2),
            "tokens_per_second": round(tokens * self.settings.epochs / summary["train_runtime"], 1),
            "peak_memory_bytes": peak_memory(),
        }
        write_text(finished / "stage.json", json.dumps(info, indent=1) + "\n")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(finished, self.folder)
        shutil.rmtree(self.work, ignore_errors=True)
        self.link()

    def link(self) -> None:
        """Points the run's models/<stage> at the cached stage."""
        link = self.run.model_dir(self.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(self.folder, link.parent), target_is_directory=True)
        temporary.replace(link)


def token_count(dataset: Dataset) -> int:
    """Tokens in the trainer's data; a preference row counts its prompt once and both its answers."""
    columns = set(dataset.column_names)
    names = ["input_ids"] if "input_ids" in columns else ["prompt_ids", "chosen_ids", "rejected_ids"]
    return sum(len(ids) for name in names for ids in dataset[name])


def peak_memory() -> int:
    """The most memory the process has held so far: the GPU's where there is one, else resident memory, in bytes."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def find_stage(run: Run, name: str) -> Stage:
    """The stage of that name in the run's order, trained or not. Nothing is trained."""
    profile = run.profile
    if name not in profile.order:
        raise AnitaError(f"profile '{profile.name}' has no stage '{name}': its order is {', '.join(profile.order)}")
    position = profile.order.index(name)
    if position == 0:
        base = resolve_model(profile.model.base, profile.model.revision)
        return Stage(run, name, profile.stages[name], "base", base, model_key(base))
    parent = find_stage(run, profile.order[position - 1])
    return Stage(run, name, profile.stages[name], parent.name, parent.merged, parent.key)


def open_stage(run: Run, name: str) -> Stage:
    """The stage, ready to be trained: the stages before it are found in the cache or trained on the spot."""
    position = run.profile.order.index(name) if name in run.profile.order else 0
    for earlier in run.profile.order[:position]:
        train_stage(find_stage(run, earlier))
    stage = find_stage(run, name)
    if stage.done:
        stage.link()
    return stage


def train_stage(stage: Stage) -> Stage:
    """Trains the stage unless the cache holds it."""
    if stage.done:
        stage.link()
        return stage
    trainer = build_trainer(stage)
    trainer.train(resume_from_checkpoint=stage.checkpoint())
    stage.finish(trainer)
    return stage


def train_missing(run: Run) -> dict[str, str]:
    """Every stage of the run's order, trained where it is missing. Returns {"base": path, "sft": path, …}."""
    paths = {"base": resolve_model(run.profile.model.base, run.profile.model.revision)}
    for name in run.profile.order:
        paths[name] = train_stage(find_stage(run, name)).merged
    return paths


def lora_config(stage: Stage) -> LoraConfig:
    """PEFT's configuration of the stage's adapter."""
    from peft import LoraConfig

    lora = stage.settings.lora
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, use_rslora=lora.rslora, lora_dropout=lora.dropout, target_modules=lora.targets,
        bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip


def training_arguments(stage: Stage) -> dict:
    """Keyword arguments for SFTConfig or DPOConfig, from the stage's settings and the machine."""
    import torch

    keep_freed_memory()
    settings, precision = stage.settings, stage.run.profile.precision
    return {
        "output_dir": str(stage.work),
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "num_train_epochs": settings.epochs,
        "warmup_steps": settings.warmup,  # a share of the updates below 1
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": settings.schedule,
        "optim": settings.optimizer,
        "max_length": settings.max_length,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "train_sampling_strategy": "sequential" if stage.name == "dpo" else "random",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not torch.cuda.is_available(),  # without it the defaults raise on a CPU
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 100,
        "save_total_limit": 1,
        "report_to": "none",
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
    """The stage's parent model, quantised as the profile says, and its tokenizer."""
    profile = stage.run.profile
    model = load_model(
        stage.parent_path,
        profile.quantisation,
        dtype=profile.model.dtype,
        compute_dtype=COMPUTE_DTYPES[profile.precision],
    )
    return model, load_tokenizer(stage.parent_path)


def training_rows(stage: Stage, tokenizer) -> Dataset:
    """The stage's data as its trainer takes it: packed rows for SFT and text, preference pairs for DPO.

    TRL's DPO packs nothing, so the pairs come in batches of like length, and the trainer must keep that order (its
    own `group_by_length` looks for a column that its DPO does not have, and raises).
    """
    from datasets import Dataset

    documents = stage.documents()
    if stage.name == "dpo":
        if "chosen" not in documents[0]:
            names = ", ".join(stage.settings.data)
            raise AnitaError(f"stages.dpo.data: {names} holds no preference pairs: name a corpus that does")
        pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in documents]
        lengths = [
            max(len(render(pair["prompt"] + pair[side], tokenizer)) for side in ("chosen", "rejected"))
            for pair in pairs
        ]
        order = like_lengths(lengths, stage.settings.batch_size, stage.run.seed)
        return Dataset.from_list([pairs[number] for number in order])
    return packed_rows(
        documents, tokenizer, stage.settings.row_length or stage.settings.max_length, stage.settings.max_length
    )


def build_trainer(stage: Stage):
    """The stage's TRL trainer, as the lessons build it step by step."""
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    model, tokenizer = load_for_training(stage)
    rows, arguments = training_rows(stage, tokenizer), training_arguments(stage)
    common = {"model": model, "train_dataset": rows, "processing_class": tokenizer, "peft_config": lora_config(stage)}
    if stage.name == "dpo":
        trainer = DPOTrainer(args=DPOConfig(beta=stage.settings.beta, **arguments), **common)
    else:
        collator = PackedCollator(tokenizer.pad_token_id)
        trainer = SFTTrainer(args=SFTConfig(**arguments, **PREPACKED), data_collator=collator, **common)
    adapters_in_fp32(trainer.model)
    trainer.remove_callback(PrinterCallback)  # the history keeps what it would print
    return trainer


def packing_summary(rows: Dataset, row_length: int) -> dict[str, float]:
    """Counts of a packed data set and the share of places that hold a token."""
    counts = count_tokens(rows)
    return {**counts, "filled": counts["tokens"] / (counts["rows"] * row_length)}
