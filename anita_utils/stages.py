"""What is a stage? What it starts from and trains on, its folder in the cache, and what is kept of it.

>>> stage = find_stage(Run.load(), "sft")
>>> stage.done, stage.key
(True, '4c1a94be6f1c5d1f')

A checkpoint counts only with its manifest: the hashes of its files, written last.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pandas

from anita_utils import AnitaError, shown
from anita_utils.cache import Entry, made_by
from anita_utils.data import RowCounts
from anita_utils.hub import fetch, left_out_of, model_key, on_hub, resolve_model
from anita_utils.merging import Diverged, check_merged, merge_adapter, public_name, publish
from anita_utils.model import no_memory
from anita_utils.paths import (
    FULL,
    LOCKED,
    data_dir,
    file_hash,
    locked,
    modes_by_umask,
    os_failure,
    replacing,
    write_text,
)
from anita_utils.profile import Stage as Settings
from anita_utils.profile import own_file
from anita_utils.rows import read_rows
from anita_utils.run import Run

if TYPE_CHECKING:
    from datasets import Dataset


# ---------------------------------------------------------------- checkpoints


MANIFEST = "manifest.json"


def write_manifest(folder: Path, seconds: float) -> None:
    """Writes down the hash of every file in a checkpoint's folder, and the seconds trained up to it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    hashes = {str(file.relative_to(folder)): file_hash(file) for file in files}
    write_text(folder / MANIFEST, json.dumps({"seconds": round(seconds, 2), "files": hashes}, indent=1) + "\n")


def trained_seconds(folder: Path) -> float | None:
    """The seconds trained up to a good checkpoint, however often it was interrupted; None without a manifest."""
    file = folder / MANIFEST
    return json.loads(file.read_text("utf-8"))["seconds"] if file.is_file() else None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file is as its manifest says."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    except FileNotFoundError:
        return "its writing was broken off"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_hash(folder / name) != expected:
            return f"{name} is truncated or altered"
    return None


def checkpoints(work: Path) -> list[Path]:
    """The checkpoints in a stage's working folder, good or not, the newest first."""
    return sorted(work.glob("checkpoint-[0-9]*"), key=lambda folder: -int(folder.name.removeprefix("checkpoint-")))


def last_good(work: Path) -> Path | None:
    """The newest good checkpoint, or None. Newer ones that are damaged are named and deleted.

    Left where they are, they would count as newest, and the library would delete good ones in their stead.
    """
    for folder in checkpoints(work):
        fault = damage(folder)
        if fault is None:
            return folder
        print(f"{folder.name} is no good ({fault}): the one before is taken, or the stage begins again")
        shutil.rmtree(folder)
    return None


# ---------------------------------------------------------------- stages


CORPORA = {"sft": ["sft"], "italian": ["italian_text", "replay"], "dpo": ["dpo"]}  # a stage's own, of which files


def shipped_corpora() -> dict[str, list[Path]]:
    """The files of each corpus that comes with the course: those of the small world, and Quaderno's."""
    files = {file.stem: file for file in sorted((data_dir() / "corpora").glob("*.jsonl"))}
    quaderno = sorted((data_dir() / "quaderno" / "training").glob("*.jsonl"))
    found = {name: [files[one] for one in parts] for name, parts in CORPORA.items() if files.keys() >= set(parts)}
    single = files | {f"quaderno_{file.stem}": file for file in quaderno}
    return found | {name: [file] for name, file in single.items()}


class TrainedMeanwhile(AnitaError):
    """Another process trained the stage while this one waited for it."""


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
        return [file for corpus in self.settings.data for file in self.files_of(corpus)]

    def files_of(self, corpus: str) -> list[Path]:
        """The files of one of the corpora in `data`. AnitaError for one that there is not."""
        shipped, on_hub = shipped_corpora(), self.run.profile.datasets
        if corpus in on_hub:
            return [fetch(corpus, on_hub[corpus])]
        if corpus in shipped:
            return shipped[corpus]
        own = own_file(corpus)
        if own is None or not own.is_file():
            ways = "the path of a .jsonl file or of a folder that `anita corpus` made"
            remedy = f"choose {', '.join(shipped)}, {ways}, or describe a data set of the Hub under datasets"
            raise AnitaError(f"stages.{self.name}.data: no corpus '{corpus}': {remedy}")
        return [own]

    def documents(self) -> list[dict]:
        """The training rows in the course's own shape, shuffled by the seed, as many as the profile asks for.

        `counts` then says how many were read, and how many left out and why.
        """
        rows, left_out, beyond, described = [], Counter(), 0, self.run.profile.datasets
        for corpus in self.settings.data:
            own = []
            for path in self.files_of(corpus):
                good, others = read_rows(path)
                own += good
                left_out += others
            if corpus in described:
                left_out += left_out_of(corpus, described[corpus])
            most = self.settings.samples.get(corpus, len(own))
            beyond += max(0, len(own) - most)
            rows += own if most >= len(own) else Random(self.run.seed).sample(own, most)
        Random(self.run.seed).shuffle(rows)
        taken = rows[: self.settings.examples]
        beyond += len(rows) - len(taken)
        self.counts = RowCounts(len(taken) + beyond + left_out.total(), left_out, beyond)
        return taken

    @cached_property
    def recipe(self) -> dict:
        """Everything the result depends on; its hash names the stage in the cache."""
        profile = self.run.profile
        # A file is known by its contents' hash, not by where it lies
        names = [Path(corpus).name if corpus.endswith(".jsonl") else corpus for corpus in self.settings.data]
        settings = self.settings.model_dump() | {"data": names}
        if not settings["samples"]:
            del settings["samples"]  # as it was before there were any: what was trained then is still taken
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
            where = f"stage '{self.name}' of run '{self.run.folder.name}'"
            raise AnitaError(f"{where} is not trained yet: run its lesson first")
        return json.loads((self.folder / "stage.json").read_text("utf-8"))

    @property
    def merged(self) -> str:
        """The folder of the merged model; where it was deleted for room, it is merged again."""
        folder = self.folder / "merged"
        if self.done and not folder.is_dir():
            with locked(self.folder, f"stage '{self.name}'"):
                if not folder.is_dir():
                    self.merge_again(folder)
        return str(folder)

    def merge_again(self, out: Path) -> None:
        """AnitaError where the model that the stage started from is not here."""
        if self.before and not self.before.done:
            remedy = f"train '{self.before.name}' again, then this merges"
            raise AnitaError(
                f"stage '{self.name}': its merged model was deleted, as was '{self.before.name}': {remedy}"
            )
        print(f"{self.name}: merged again, as its merged model was deleted", file=sys.stderr)
        new = out.with_name(".merged")
        shutil.rmtree(new, ignore_errors=True)
        with explained(self):
            merge_adapter(self.parent_path, self.folder / "adapter", new, self.run.profile.model.dtype)
            os.replace(new, out)

    @contextmanager
    def training(self, resume: bool = True) -> Iterator[str | None]:
        """Inside, no other process trains this stage, and failures are explained in one line.

        Yields the newest good checkpoint of an interrupted training, to hand to `trainer.train`, or None.
        resume: False deletes all checkpoints first.

        TrainedMeanwhile where another process trained the stage while this one waited.
        """
        with explained(self), locked(self.folder, f"stage '{self.name}'"):
            if self.done:
                raise TrainedMeanwhile(f"stage '{self.name}' was trained by another process meanwhile: run this again")
            if changes := self.changes():
                print(f"{self.name}: trained again, and what builds on it: {'; '.join(changes)}")
            if not resume:
                shutil.rmtree(self.work, ignore_errors=True)
            folder = last_good(self.work)
            yield folder and str(folder)

    def finish(self, trainer) -> None:
        """Saves adapter, merged model and stage.json, whole or not at all, and links them into the run.

        The merged model is read back and compared first. AnitaError where it is not what was trained, or not finite.
        """
        finished = self.folder.with_name(f".{self.folder.name}.new")
        adapter, merged = finished / "adapter", finished / "merged"
        model, order = self.run.profile.model, self.run.profile.order
        shutil.rmtree(finished, ignore_errors=True)
        try:
            trainer.model.save_pretrained(adapter)
            merge_adapter(self.parent_path, adapter, merged, model.dtype)
            summary = self.summary(trainer)  # now: its peak of memory is not to be that of the check
            summary["checked"] = check_merged(self.parent_path, adapter, merged, model.dtype, trainer.processing_class)
            commit = model.revision if on_hub(model.base) else None
            summary["model"] = model_key(merged)
            summary["adapter"] = publish(finished, public_name(model.base), order[: order.index(self.name)], commit)
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

    def summary(self, trainer) -> dict:
        """What stage.json holds. The seconds are those of all the trainer's lives, where it was killed."""
        logged, tokens = trainer.state.log_history, token_count(trainer.train_dataset)
        history = [{**row} for row in logged if "loss" in row]
        for row in history:
            row.pop("num_tokens", None)  # the library's count begins at 0 again when a killed training goes on
        runtime = next(row["train_runtime"] for row in reversed(logged) if "train_runtime" in row)
        seconds = trained_seconds(self.work / f"checkpoint-{trainer.state.global_step}") or runtime
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
        """How the recipe differs from that of the stage that the run holds under this name, if it holds one."""
        file = self.run.model_dir(self.name) / "stage.json"
        if not file.is_file():
            return []
        recipes = (json.loads(file.read_text("utf-8"))["recipe"], self.recipe)
        old, new = (pandas.json_normalize(recipe).to_dict("records")[0] for recipe in recipes)
        names = [name for name in old | new if old.get(name) != new.get(name)]
        hashes = {"data", "parent"}  # which say nothing to people
        return [name if name in hashes else f"{name} {old.get(name)} → {new.get(name)}" for name in names]

    def link(self) -> None:
        """Points the run's models/<stage> at the cached stage."""
        link = self.run.model_dir(self.name)
        with replacing(link) as new:
            new.symlink_to(os.path.relpath(self.folder, link.parent), target_is_directory=True)


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


def peak_memory() -> int:
    """The most memory the process has held so far: the GPU's where there is one, else resident memory, in bytes."""
    import resource

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
    before = profile.order[: profile.order.index(name)]
    return Stage(run, name, profile.stages[name], find_stage(run, before[-1]) if before else None)


# ---------------------------------------------------------------- failures


# torch and safetensors raise errors of their own about files, without the number that an OSError has.
UNWRITTEN = ("PytorchStreamWriter", "inline_container", "os error")


@contextmanager
def explained(stage: Stage) -> Iterator[None]:
    """Turns a failure of training `stage` inside the block into an AnitaError, and leaves nothing half-written."""
    try:
        yield
    except AnitaError:
        raise
    except Exception as error:
        for folder in checkpoints(stage.work):
            if not (folder / MANIFEST).is_file():
                shutil.rmtree(folder, ignore_errors=True)
        number = getattr(error, "errno", None)
        if no_memory(error):
            said = out_of_memory(stage)
        elif number in LOCKED:
            said = os_failure(error, stage.work)
        elif number in FULL or any(sign in str(error) for sign in UNWRITTEN):
            place = shown(getattr(error, "filename", None) or stage.work)
            why = "no room" if number in FULL else "perhaps no room"
            again = "run the same again: training goes on from the last whole checkpoint"
            said = f"{place} could not be written ({why}): free some space, then {again}"
        else:
            raise
        raise AnitaError(f"stage '{stage.name}': {said}") from error


def out_of_memory(stage: Stage) -> str:
    """The planner's figure for the stage, and the change that saves most."""
    import torch

    from anita_utils.memory import GIB, bytes_by_part, job_of, savings

    job, on_gpu = job_of(stage.run.profile, stage.name), torch.cuda.is_available()
    needed, saved = bytes_by_part(job, on_gpu)["total"] / GIB, savings(job, on_gpu)
    best = max(saved, key=saved.get)
    return (
        f"out of memory; by the plan it needs {needed:.2f} GiB at {job.batch} x {job.length:,}: {best} would save "
        f"{saved[best] / GIB:.2f} (see `anita plan --stage {stage.name}`)"
    )
