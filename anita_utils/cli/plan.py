"""How much memory does a stage take? `anita plan`: a GPU's, by part, before anything is loaded; or measured here.

anita plan --model meta-llama/Meta-Llama-3-8B-Instruct --length 2048
anita plan --profile h100 --stage evaluation
anita plan --profile cpu --here
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anita_utils import AnitaError
from anita_utils.cli import Json
from anita_utils.memory import GIB, GPUS, Job, base_bytes, job_of, longest
from anita_utils.memory import plan as plan_of
from anita_utils.paths import environment
from anita_utils.profile import Profile, Quantisation, load_profile

STAGES = ("sft", "italian", "dpo", "evaluation")
QUANTISATIONS = {"nf4": Quantisation(load_in_4bit=True), "none": Quantisation(load_in_4bit=False)}
UPDATES = 6  # that --here trains


def plan(
    profile: Annotated[str | None, typer.Option(help="A profile's name, or the path of a .yaml file.")] = None,
    stage: Annotated[str | None, typer.Option(help="sft, italian, dpo, evaluation; else the profile's first.")] = None,
    model: Annotated[str | None, typer.Option(help="A model, in place of the profile's or without one.")] = None,
    r: Annotated[int | None, typer.Option(help="The adapter's rank.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows a step; in DPO, pairs.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a row.")] = None,
    quant: Annotated[str | None, typer.Option(help="nf4 (with double quantisation) or none.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="The optimiser, by transformers' name.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Compute activations twice to hold fewer.")] = None,
    as_json: Json = False,
    here: Annotated[bool, typer.Option("--here", help="Measure on this machine instead, in a few updates.")] = False,
) -> None:
    """Print what a stage needs of a GPU's memory, by part, before anything is loaded."""
    settings = load_profile(profile) if profile else None
    if here:
        settings = settings or load_profile("cpu")
        for name in [stage] if stage else settings.order:
            print(foreseen(name, measured_apart(settings, name)), flush=True)
        return
    if quant is not None and quant not in QUANTISATIONS:
        raise AnitaError(f"no quantisation '{quant}': choose nf4 or none")
    options = {"model": model, "r": r, "batch": batch, "length": length, "optimizer": optimizer}
    options |= {"checkpointing": checkpointing, "quantisation": QUANTISATIONS.get(quant)}
    given = {name: value for name, value in options.items() if value is not None}
    if settings is not None:
        job = replace(job_of(settings, stage), **given)
    elif model is None:
        raise AnitaError("nothing to plan: give --profile (and --stage), or --model")
    elif stage not in (None, *STAGES):
        raise AnitaError(f"no stage '{stage}': choose sft, italian, dpo or evaluation")
    else:
        job = Job(pairs=stage == "dpo", trained=stage != "evaluation", **given)
    outcome = plan_of(job)
    if as_json:
        print(json.dumps(outcome, indent=2))
        return
    console = Console()
    console.print(parts_table(job, outcome))
    console.print(gpus_table(job, outcome))
    for line in [*outcome["advice"], "time, and memory without a GPU: --here measures both on this machine"]:
        console.print(f"- {line}", markup=False, highlight=False)


def parts_table(job: Job, outcome: dict) -> Table:
    """GiB by part of the plan."""
    in_4_bits, other = base_bytes(job)
    sizes, quantised = outcome["bytes"], outcome["quantized_parameters"]
    notes = {
        "base": f"{outcome['parameters']:,} weights",
        "  in 4 bits": f"{quantised:,}, the layers' matrices",
        "  other": f"{outcome['parameters'] - quantised:,}, in {job.dtype}",
        "adapter": f"{outcome['trainable_parameters']:,} trained weights in fp32",
        "gradients": "of the trained weights, in fp32",
        "optimizer": job.optimizer if job.trained else "",
        "activations": "with checkpointing" if job.checkpointing else "without checkpointing",
        "logits": "the tile that TRL's fused head works on, and its gradients",
        "overhead": "CUDA context, kernels, allocator",
        "total": "",
    }
    if not job.trained:
        notes |= {"activations": "keys and values of every token", "logits": "every token's, in copies"}
    how = f"r = {job.r}" if job.trained else "measured, not trained"
    table = Table("part", "GiB", "", title=f"{job.model}: {job.batch} x {job.length:,} tokens, {how}")
    for part, note in notes.items():
        size = {"  in 4 bits": in_4_bits, "  other": other, **sizes}[part]
        table.add_row(part, f"{size / GIB:.2f}", note, end_section=part == "overhead")
    return table


def gpus_table(job: Job, outcome: dict) -> Table:
    """For each GPU whether the plan fits, and the longest row and the largest batch that would."""
    bounds = (f"longest at {job.batch}", f"most at {job.length:,}")
    table = Table("GPU", "usable", "headroom", "fits", *bounds, title="GiB")
    for gpu, usable in GPUS.items():
        headroom = usable - outcome["bytes"]["total"] / GIB
        fits = "yes" if outcome["fits"][gpu] else "no"
        most = [f"{number:,}" if number else "-" for number in longest(job, gpu)]
        table.add_row(gpu, f"{usable:.2f}", f"{headroom:.2f}", fits, *most)
    return table


def foreseen(name: str, found: dict[str, float]) -> str:
    """What `measured_here` found of a stage, in a line."""
    peak, minutes = found["peak_memory_bytes"] / GIB, found["seconds"] / 60
    return (
        f"{name} on this machine: {peak:.2f} GiB at the peak, {found['tokens_per_second']:,.0f} tokens/s, so "
        f"{minutes:,.1f} minutes for {found['tokens']:,.0f} tokens (from {found['updates']} updates)"
    )


def measured_apart(profile: Profile, name: str) -> dict[str, float]:
    """`measured_here` in a process of its own: the peak of one stage would be the least that the next could have."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        try:
            return process.submit(measured_here, profile, name).result()
        except BrokenProcessPool:
            why = f"{name}: its process was ended, mostly for want of memory"
            raise AnitaError(f"{why}: lower its batch or max_length, or close other programs") from None


def measured_here(profile: Profile, name: str) -> dict[str, float]:
    """What a stage takes on this machine, with or without a GPU: measured in a few updates on its longest rows, from
    the base in place of the stages before. Nothing is kept.

    The first update counts for the memory, not for the speed: in it, memory is fetched and kernels are chosen.

    AnitaError for a stage that the profile does not have, or that cannot be trained here.
    """
    if name not in profile.order:
        raise AnitaError(f"--here trains a few updates of a stage: choose {', '.join(profile.order)}")
    from transformers import TrainerCallback

    from anita_utils.course.set_up import quieten
    from anita_utils.hub import resolve_model
    from anita_utils.run import Run
    from anita_utils.stages import explained, find_stage, peak_memory, token_count
    from anita_utils.training import build_trainer

    quieten()
    profile = profile.model_copy(deep=True)
    profile.model.base = resolve_model(profile.model.base, profile.model.revision)  # before the cache is another
    with TemporaryDirectory() as folder, environment(ANITA_RUNS=folder, ANITA_CACHE=folder):
        stage = find_stage(Run.open("probe", profile, profile.seed, newest=False), name)
        stage.before = None
        trainer = build_trainer(stage)
        rows, arguments = trainer.train_dataset, trainer.args
        sizes = [token_count(rows.select([number])) for number in range(len(rows))]
        by_size = sorted(range(len(rows)), key=lambda number: -sizes[number])
        count = UPDATES * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        trainer.train_dataset = rows.select(by_size[:count])
        arguments.num_train_epochs, arguments.save_strategy = 1, "no"
        ends = []

        class Clock(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                ends.append(time.perf_counter())

        trainer.add_callback(Clock())
        with explained(stage):
            trainer.train()
    if len(ends) < 2:
        remedy = "give more rows, or a smaller batch"
        raise AnitaError(f"{name}: its data make {len(ends)} update, and the first is not timed: {remedy}")
    later = token_count(trainer.train_dataset) * (len(ends) - 1) / len(ends)  # rows of like length: an equal share each
    speed, tokens = later / (ends[-1] - ends[0]), sum(sizes) * stage.settings.num_train_epochs
    return {
        "peak_memory_bytes": peak_memory(),
        "tokens_per_second": speed,
        "tokens": tokens,
        "seconds": tokens / speed,
        "updates": len(ends),
    }
