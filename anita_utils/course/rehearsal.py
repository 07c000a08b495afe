"""Would the lessons run under another machine's profile? A rehearsal: its own keys, the shipped model, a few steps.

>>> rehearsed = rehearse(load_profile("h100"), detect_machine())
>>> rehearsed.name, rehearsed.stages["dpo"].lora.r, rehearsed.stages["dpo"].gradient_accumulation_steps
('rehearsal-h100', 64, 12)

Its figures mean nothing: they stay in a run of their own, which `runs/latest` never points at.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import yaml

from anita_utils.course.lessons import lessons_folder, run_course, select_lessons
from anita_utils.hub import SHIPPED_BASE
from anita_utils.machine import Machine, detect_machine
from anita_utils.paths import data_dir, environment, write_text
from anita_utils.profile import Model, Profile, load_profile, parse_profile
from anita_utils.rows import read_jsonl
from anita_utils.run import Run
from anita_utils.training import COMPUTE_DTYPES

EXAMPLES = 32  # a stage
EPOCHS = 5  # at least five updates, whatever the batch: the trainer logs every fifth, and a lesson draws the log
LENGTH = 256  # tokens a row: the small model could take 1,024, but nobody needs to wait for that
ITEMS = 4  # a benchmark
PROBES = 2  # of each kind
ANSWER = 16  # tokens
CORPORA = {"sft": "sft", "italian": "italian_text", "dpo": "dpo"}  # what is read in place of a data set on the Hub
NEEDS_A_GPU = re.compile(r"paged|8bit|bnb")


def rehearse(profile: Profile, machine: Machine) -> Profile:
    """The profile as it can be rehearsed on `machine`.

    All else is the profile's: order, quantisation, adapters, rates, schedules, batches, accumulation, packing,
    checkpointing. Data sets keep their names and the code that reads their columns, but come from the shipped corpora.
    """
    new = profile.model_copy(deep=True)
    new.name, new.rehearsal_of = f"rehearsal-{profile.name}", profile.name
    new.precision = possible(profile.precision, machine)
    wanted = next(short for short, long in COMPUTE_DTYPES.items() if long == profile.model.dtype)
    new.model = Model(base=SHIPPED_BASE, dtype=COMPUTE_DTYPES[possible(wanted, machine)])
    for name, stage in new.stages.items():
        file = data_dir() / "corpora" / f"{CORPORA.get(name, 'sft')}.jsonl"  # its rows have no `source` to choose by
        for corpus in set(stage.data) & set(new.datasets):
            here = {"files": str(file), "sample": EXAMPLES, "without": []}
            new.datasets[corpus] = new.datasets[corpus].model_copy(update=here)
        stage.examples = min(EXAMPLES, stage.examples or EXAMPLES)
        stage.num_train_epochs = EPOCHS
        stage.max_length = min(LENGTH, stage.max_length)
        stage.row_length = stage.row_length and min(LENGTH, stage.row_length)
        if machine.gpu is None and NEEDS_A_GPU.search(stage.optim):
            stage.optim = "adamw_torch"
    new.evaluation.suite = "piccola"  # the data of others is on the Hub
    new.evaluation.limit = min(ITEMS, new.evaluation.limit or ITEMS)
    new.evaluation.max_new_tokens = min(ANSWER, new.evaluation.max_new_tokens)
    return parse_profile(new.model_dump(), f"the rehearsal of {profile.name}")


def possible(precision: str, machine: Machine) -> str:
    """The precision nearest to the one asked for that the machine computes by instructions of its own."""
    if precision == "fp32" or (precision == "bf16" and machine.bf16):
        return precision
    if machine.gpu is not None:
        return "fp16"
    return "bf16" if machine.bf16 else "fp32"


def summary(rehearsed: Profile) -> str:
    """What takes the place of a profile's own values in its rehearsal."""
    optimizers = " and ".join(sorted({stage.optim for stage in rehearsed.stages.values()}))
    return (
        f"{rehearsed.name}, whose figures mean nothing: {SHIPPED_BASE}, the shipped corpora and benchmarks, "
        f"{rehearsed.precision} on weights in {rehearsed.model.dtype}, {optimizers}, {EXAMPLES} examples and {EPOCHS} "
        f"epochs a stage, at most {LENGTH} tokens a row, {ITEMS} items a benchmark, {PROBES} probes of a kind, answers "
        f"of at most {ANSWER} tokens. All else is the profile's own."
    )


def few(rows: list[dict], each: int = PROBES) -> list[dict]:
    """Up to `each` rows of every kind there is, first those with a twin: a harmful request, a harmless one like it."""
    twins = Counter((row.get("language"), row.get("cluster")) for row in rows)
    rows = sorted(rows, key=lambda row: (-twins[row.get("language"), row.get("cluster")], row.get("cluster", "")))
    taken, kept = Counter(), []
    for row in rows:
        kind = tuple(row.get(key) for key in ("language", "split", "kind", "side"))
        taken[kind] += 1
        if taken[kind] <= each:
            kept.append(row)
    return kept


def small_data(folder: Path) -> Path:
    """A data folder for `ANITA_DATA`: the course's own, linked, but with a few probes of each kind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for entry in data_dir().iterdir():
        if entry.name != "probes":
            (folder / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    for file in (data_dir() / "probes").glob("*.jsonl"):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in few(read_jsonl(file)))
        write_text(folder / "probes" / file.name, "".join(lines))
    (folder / "probes" / "studies").symlink_to(data_dir() / "probes" / "studies", target_is_directory=True)
    return folder


def rehearse_course(
    profile: str,
    run_name: str = "latest",
    seed: int = 42,
    only: Collection[str] = (),
    *others,
    notebooks: Path | None = None,
) -> int:
    """Runs the course as a rehearsal of `profile`; the arguments and what is returned are those of `run_course`.

    run_name: "latest" means rehearsal-NAME here. The rehearsed profile is written into the run's folder.
    """
    select_lessons(notebooks or lessons_folder(), only)  # before anything is written
    rehearsed = rehearse(load_profile(profile), detect_machine())
    run = Run.open(rehearsed.name if run_name == "latest" else run_name, rehearsed, seed)
    file, values = run.folder / f"{rehearsed.name}.yaml", rehearsed.model_dump(mode="json")
    write_text(file, f"# {summary(rehearsed)}\n" + yaml.safe_dump(values, sort_keys=False))
    print(summary(rehearsed), flush=True)
    with environment(ANITA_DATA=str(small_data(run.folder / "data"))):
        return run_course(str(file), run.folder.name, seed, only, *others, notebooks=notebooks)
