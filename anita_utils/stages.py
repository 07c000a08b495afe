"""A stage of a run: what it starts from and trains on, its folder in the cache, and what is kept of it.

>>> stage = find_stage(Run.load(), "sft")
>>> stage.done, stage.key
(True, '4c1a94be6f1c5d1f')
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.data import read_jsonl
from anita_utils.datasets_hub import fetch
from anita_utils.failures import explained
from anita_utils.hub import data_dir, file_hash, model_key, on_hub, resolve_model
from anita_utils.machine import LIBRARIES
from anita_utils.merging import Diverged, check_merged, merge_adapter
from anita_utils.profile import Stage as Settings
from anita_utils.record import Run, cache_dir, write_text
from anita_utils.resuming import give_lock, last_good, take_lock, trained_seconds
from anita_utils.saving import modes_by_umask, public_name, publish, without_folders

if TYPE_CHECKING:
    from datasets import Dataset

CORPORA = {"sft": ["sft"], "italian": ["italian_text", "italian_replay"], "dpo": ["dpo"]}
# raise it when training.py or data.py changes what a stage learns, so that no cached stage is taken for a new one
ENGINE = 2


@dataclass
class Stage:
    """One stage of a run: its settings, its parent model, its folder in the cache that all runs share."""

    run: Run
    name: str
    settings: Settings
    parent: str
    parent_path: str
    parent_key: str

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

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.lock")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process trains this stage: whoever comes second waits."""
        take_lock(self.lock, f"stage '{self.name}'")
        try:
            yield
        finally:
            give_lock(self.lock)

    def checkpoint(self) -> str | None:
        """The newest good checkpoint of a killed training, to hand to `trainer.train`; None to begin anew.

        From here to `finish` no other process trains this stage. AnitaError where one just did.
        """
        take_lock(self.lock, f"stage '{self.name}'")
        if self.done:
            raise AnitaError(f"stage '{self.name}' was trained by another process meanwhile: run this again to take it")
        folder = last_good(self.work)
        return folder and str(folder)

    def finish(self, trainer) -> None:
        """Saves adapter, merged model and stage.json, whole or not at all, and links them into the run.

        The merged model is read back and compared first. AnitaError where it is not what was trained, or not finite.
        """
        finished = self.folder.with_name(f".{self.folder.name}.new")
        adapter, merged, dtype = finished / "adapter", finished / "merged", self.run.profile.model.dtype
        shutil.rmtree(finished, ignore_errors=True)
        try:
            with explained(self):
                trainer.model.save_pretrained(adapter)
                merge_adapter(self.parent_path, adapter, merged, dtype)
                summary = self.summary(trainer)  # now: its peak of memory is not to be that of the check
                summary["checked"] = check_merged(self.parent_path, adapter, merged, dtype, trainer.processing_class)
                summary["adapter"] = self.publish(finished)
                write_text(finished / "stage.json", json.dumps(summary, indent=1) + "\n")
                modes_by_umask(finished)
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(finished, self.folder)
        except Diverged as error:
            shutil.rmtree(self.work, ignore_errors=True)  # its checkpoints lead to the same end
            raise AnitaError(f"stage '{self.name}': {error}") from error
        finally:
            shutil.rmtree(finished, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)
        self.link()
        give_lock(self.lock)

    def publish(self, finished: Path) -> str:
        """Takes this machine's paths out of what was saved; returns which model the adapter belongs on."""
        model, order = self.run.profile.model, self.run.profile.order
        revision = model.revision if on_hub(model.base) else None
        return publish(finished, public_name(model.base), order[: order.index(self.name)], revision)

    def summary(self, trainer) -> dict:
        """What stage.json holds. The seconds are those of all the trainer's lives, where it was killed."""
        # num_tokens: the library's count, which begins at nought when a killed training goes on
        history = [row for row in trainer.state.log_history if "loss" in row]
        history = [{key: value for key, value in row.items() if key != "num_tokens"} for row in history]
        runtime = next(row["train_runtime"] for row in reversed(trainer.state.log_history) if "train_runtime" in row)
        seconds = trained_seconds(self.work / f"checkpoint-{trainer.state.global_step}") or runtime
        tokens = token_count(trainer.train_dataset)
        return {
            "recipe": without_folders(self.recipe),
            "key": self.key,
            "parent": self.parent,
            "history": history,
            "steps": trainer.state.global_step,
            "tokens": tokens,
            "cut_tokens": cut_tokens(trainer.train_dataset, self.settings.max_length),
            "seconds": round(seconds, 2),
            "tokens_per_second": round(tokens * self.settings.epochs / seconds, 1),
            "peak_memory_bytes": peak_memory(),
        }

    def changes(self) -> list[str]:
        """How the recipe differs from that of the stage which the run holds under this name, if it holds one."""
        file = self.run.model_dir(self.name) / "stage.json"
        if not file.is_file():
            return []
        old, new = (flat(recipe) for recipe in (json.loads(file.read_text("utf-8"))["recipe"], self.recipe))
        names = [name for name in old | new if old.get(name) != new.get(name)]
        # the hashes of data and parent say nothing to people
        return [name if name in ("data", "parent") else f"{name} {old.get(name)} → {new.get(name)}" for name in names]

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


def cut_tokens(dataset: Dataset, max_length: int) -> int:
    """Tokens that the trainer's data lost, or will lose in its batches, because their rows are longer than that."""
    if "cut" in dataset.column_names:
        return sum(dataset["cut"])
    pairs = zip(dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
    lengths = (len(prompt) + len(answer) for prompt, *answers in pairs for answer in answers)
    return sum(max(0, length - max_length) for length in lengths)


def flat(values: dict, path: str = "") -> dict:
    """Nested dictionaries as one, keys joined by points."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


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
