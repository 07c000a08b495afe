"""A stage of a run: what it starts from and trains on, its folder in the cache, and what is kept of it.

>>> stage = find_stage(Run.load(), "sft")
>>> stage.done, stage.key
(True, '4c1a94be6f1c5d1f')
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.cache import Entry, made_by
from anita_utils.data import RowCounts
from anita_utils.datasets_hub import fetch, left_out_of
from anita_utils.failures import explained
from anita_utils.hub import model_key, on_hub, resolve_model
from anita_utils.merging import Diverged, check_merged, merge_adapter
from anita_utils.paths import data_dir, file_hash, locked, take_lock, write_text
from anita_utils.profile import Stage as Settings
from anita_utils.record import Run
from anita_utils.resuming import last_good, trained_seconds
from anita_utils.rows import read_rows
from anita_utils.saving import modes_by_umask, public_name, publish

if TYPE_CHECKING:
    from datasets import Dataset

CORPORA = {"sft": ["sft"], "italian": ["italian_text", "italian_replay"], "dpo": ["dpo"]}


@dataclass
class Stage:
    """One stage of a run: its settings, its parent model, its folder in the cache that all runs share."""

    run: Run
    name: str
    settings: Settings
    before: Stage | None = None  # the stage it builds on; None builds on the profile's base
    counts: RowCounts = field(default_factory=RowCounts)  # of its rows, once they are read and encoded

    @property
    def parent(self) -> str:
        return self.before.name if self.before else "base"

    @cached_property
    def parent_path(self) -> str:
        """The folder of the model it starts from; a base on the Hub is fetched, once."""
        if self.before:
            return self.before.merged
        return resolve_model(self.run.profile.model.base, self.run.profile.model.revision)

    @cached_property
    def parent_key(self) -> str:
        if self.before:
            return self.before.key
        key = model_key(self.parent_path)
        self.run.note_base(key)
        return key

    @cached_property
    def corpora(self) -> list[Path]:
        """The files with the training rows. A sample of a data set on the Hub is fetched first, once."""
        on_hub = self.run.profile.datasets
        paths = []
        for corpus in self.settings.data:
            if corpus in on_hub:
                paths.append(fetch(corpus, on_hub[corpus]))
                continue
            if corpus.endswith(".jsonl"):
                paths.append(Path(corpus))
                continue
            shipped = data_dir() / "corpora"
            names = CORPORA.get(corpus, [corpus])
            if not all((shipped / f"{name}.jsonl").is_file() for name in names):
                known = ", ".join(dict.fromkeys([*CORPORA, *sorted(file.stem for file in shipped.glob("*.jsonl"))]))
                raise AnitaError(
                    f"stages.{self.name}.data: no corpus '{corpus}': choose {known}, or name a file that ends in .jsonl"
                )
            paths += [shipped / f"{name}.jsonl" for name in names]
        for path in paths:
            if not path.is_file():
                raise AnitaError(f"stages.{self.name}.data: {shown(path)}: no such file: check the name")
        return paths

    def documents(self) -> list[dict]:
        """The training rows in the course's own shape, shuffled by the seed, as many as the profile asks for.

        `counts` then says how many were read, and how many left out and why.
        """
        from random import Random

        rows, left_out = [], Counter()
        for path in self.corpora:
            good, others = read_rows(path)
            rows += good
            left_out += others
        for corpus in set(self.settings.data) & set(self.run.profile.datasets):
            left_out += left_out_of(corpus, self.run.profile.datasets[corpus])
        Random(self.run.seed).shuffle(rows)
        taken = rows[: self.settings.examples]
        self.counts = RowCounts(len(rows) + left_out.total(), left_out, len(rows) - len(taken))
        return taken

    @cached_property
    def recipe(self) -> dict:
        """Everything the result depends on; its hash names the stage in the cache."""

        profile = self.run.profile
        settings = self.settings.model_dump() | {"data": [corpus_name(corpus) for corpus in self.settings.data]}
        recipe = {
            "stage": self.name,
            "settings": settings,
            "precision": profile.precision,
            "dtype": profile.model.dtype,
            "quantisation": profile.quantisation.model_dump(),
            "seed": self.run.seed,
            "parent": self.parent_key,
            "data": [file_hash(path) for path in self.corpora],
        }
        if profile.model.system_in_user:
            recipe["system_in_user"] = True
        return recipe | made_by("stages")

    @property
    def key(self) -> str:
        return self.entry.key

    @cached_property
    def entry(self) -> Entry:
        return Entry(f"stages/{self.name}", self.recipe)

    @property
    def folder(self) -> Path:
        return self.entry.path

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

    def alone(self) -> AbstractContextManager[None]:
        """Inside, no other process trains this stage: the second one waits."""
        return locked(self.folder, f"stage '{self.name}'")

    def checkpoint(self) -> str | None:
        """The newest good checkpoint of a killed training, to hand to `trainer.train`; None to begin anew.

        From here to `finish` no other process trains this stage. AnitaError where one just did.
        """
        self.lock = take_lock(self.folder, f"stage '{self.name}'")
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
        self.lock.release(force=True)  # a cell that was interrupted and run again took it twice

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
            "recipe": self.recipe,
            "key": self.key,
            "parent": self.parent,
            "history": history,
            "steps": trainer.state.global_step,
            "tokens": tokens,
            "rows": vars(self.counts),
            "cut_tokens": cut_tokens(trainer.train_dataset, self.settings.max_length),
            "seconds": round(seconds, 2),
            "tokens_per_second": round(tokens * self.settings.num_train_epochs / seconds, 1),
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


def corpus_name(corpus: str) -> str:
    """How a corpus is called in what is kept: of a file its name alone, since its contents are known by their hash."""
    return Path(corpus).name if corpus.endswith(".jsonl") else corpus


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
    before = find_stage(run, profile.order[position - 1]) if position else None
    return Stage(run, name, profile.stages[name], before)
