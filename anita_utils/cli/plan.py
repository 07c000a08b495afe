"""What `anita plan` reads and says around the arithmetic of `memory`: options, time and cost, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from anita_utils import AnitaError
from anita_utils.memory import GIB, GPUS, Job, base_bytes, job_of, longest
from anita_utils.profile import Profile, Quantisation


def choose_job(profile: Profile | None, stage: str | None, quant: str | None, **options) -> Job:
    """The job asked for on the command line: a profile's stage or a model, with the options that were given.

    quant: "nf4" (with double quantisation), "none" or None for what the profile says.
    options: fields of `Job`; None stands for one that was not given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if quant is not None:
        if quant not in ("nf4", "none"):
            raise AnitaError(f"no quantisation '{quant}': choose nf4 or none")
        given["quantisation"] = Quantisation(load_in_4bit=quant == "nf4")
    if profile is not None:
        return replace(job_of(profile, stage), **given)
    if "model" not in given:
        raise AnitaError("nothing to plan: give --profile (and --stage), or --model")
    if stage not in (None, "sft", "italian", "dpo", "evaluation"):
        raise AnitaError(f"no stage '{stage}': choose sft, italian, dpo or evaluation")
    return Job(pairs=stage == "dpo", trained=stage != "evaluation", **given)


def measured_speed(profile: Profile | None, stage: str | None, job: Job) -> tuple[float, float, str] | None:
    """Tokens, tokens a second, and where they were measured: in the latest run, if it was made with this very profile
    and has trained the stage that the job is; else None.
    """
    from anita_utils.run import Run  # here: it brings pandas

    if profile is None or job != job_of(profile, stage):
        return None
    run, stage = Run.latest(), stage or profile.order[0]
    if run is None:
        return None
    file = run.model_dir(stage) / "stage.json"
    if run.profile.model_dump() != profile.model_dump() or not file.is_file():
        return None
    done, machine = json.loads(file.read_text("utf-8")), run.info()["machine"]
    where = f"measured in run '{run.folder.name}' on {machine['gpu'] or machine['cpu']}"
    return done["tokens"] * profile.stages[stage].num_train_epochs, done["tokens_per_second"], where


# Trains a few updates on the stage's longest rows, the base in place of the stages before, and prints what it took.
PROBE = """
import json, sys, time
from anita_utils.cli.train import quieten
from anita_utils.profile import load_profile
from anita_utils.run import Run
from anita_utils.stages import find_stage, peak_memory, token_count
from anita_utils.training import build_trainer

quieten()
profile, name, updates = load_profile(sys.argv[1]), sys.argv[2], int(sys.argv[3])
stage = find_stage(Run.open("probe", profile, profile.seed, newest=False), name)
stage.before = None
trainer = build_trainer(stage)
rows = trainer.train_dataset
sizes = [token_count(rows.select([number])) for number in range(len(rows))]
longest = sorted(range(len(rows)), key=lambda number: -sizes[number])
count = updates * trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
trainer.train_dataset = rows.select(longest[:count])
trainer.args.num_train_epochs, trainer.args.save_strategy = 1, "no"
start = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - start
print(json.dumps({
    "peak_bytes": peak_memory(),
    "tokens_per_second": token_count(trainer.train_dataset) / seconds,
    "tokens": sum(sizes) * stage.settings.num_train_epochs,
    "updates": trainer.state.global_step,
}))
"""


def measure_here(profile: Profile, stage: str | None, updates: int = 4) -> str:
    """What a stage takes on this machine, with or without a GPU, in a line: measured in a few updates on its longest
    rows, in a process of its own whose results are thrown away.

    AnitaError for a stage that the profile does not have, or that cannot be trained here.
    """
    stage = stage or profile.order[0]
    if stage not in profile.order:
        raise AnitaError(f"--here trains a few updates of a stage: choose {', '.join(profile.order)}")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "profile.yaml"
        file.write_text(yaml.safe_dump(profile.model_dump(mode="json")), "utf-8")
        settings = os.environ | {"ANITA_RUNS": folder, "ANITA_CACHE": folder}
        command = [sys.executable, "-c", PROBE, str(file), stage, str(updates)]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise AnitaError(f"stage '{stage}' cannot be tried on this machine: {said.removeprefix('anita_utils.')}")
    found = json.loads(done.stdout.splitlines()[-1])
    minutes = found["tokens"] / found["tokens_per_second"] / 60
    return (
        f"{stage} on this machine: {found['peak_bytes'] / GIB:.2f} GiB at the peak, {found['tokens_per_second']:,.0f} "
        f"tokens/s, so {minutes:,.1f} minutes for {found['tokens']:,.0f} tokens (from {found['updates']} updates)"
    )


def time_and_cost(
    tokens: float | None, throughput: float | None, price: float | None, measured: tuple | None = None
) -> list[str]:
    """Hours from tokens and tokens a second, and euros from a price an hour: given or measured, never guessed.

    measured: what `measured_speed` found; it stands in for what was not given.
    """
    for name, value in {"tokens": tokens, "throughput": throughput, "price": price}.items():
        if value is not None and not 0 < value < float("inf"):
            raise AnitaError(f"{name} is {value}: give a number above 0")
    source = "as given" if throughput or not measured else measured[2]
    tokens, throughput = tokens or (measured and measured[0]), throughput or (measured and measured[1])
    if not tokens or not throughput:
        return ["time: not measured (give --tokens, and as --throughput the tokens a second of your GPU)"]
    hours = tokens / throughput / 3600
    time = f"time: {hours:.2f} h for {tokens:,.0f} tokens at {throughput:,.0f} a second, {source}"
    return [time, f"cost: {hours * price:.2f} EUR at {price:.2f} EUR an hour" if price else "cost: give --price"]


def tables(job: Job, outcome: dict) -> list:
    """Two rich tables of a plan: bytes by part, and the GPUs."""
    from rich.table import Table

    in_4_bits, other = base_bytes(job)
    quantised = outcome["quantized_parameters"]
    how = f"r = {job.r}" if job.trained else "measured, not trained"
    parts = Table("part", "GiB", "", title=f"{job.model}: {job.batch} x {job.length:,} tokens, {how}")
    notes = {
        "base": f"{outcome['parameters']:,} weights",
        "  in 4 bits": f"{quantised:,}, the layers' matrices",
        "  other": f"{outcome['parameters'] - quantised:,}, in {job.dtype}",
        "adapter": f"{outcome['trainable_parameters']:,} trained weights in fp32",
        "gradients": "of the trained weights, in fp32",
        "optimizer": job.optimizer,
        "activations": "with checkpointing" if job.checkpointing else "without checkpointing",
        "logits": "the tile that TRL's fused head works on, and its gradients",
        "overhead": "CUDA context, kernels, allocator",
    }
    if not job.trained:
        notes |= {
            "optimizer": "",
            "activations": "keys and values of every token",
            "logits": "every token's, in copies",
        }
    sizes = outcome["bytes"]
    for part, size in {"base": sizes["base"], "  in 4 bits": in_4_bits, "  other": other, **sizes}.items():
        parts.add_row(part, f"{size / GIB:.2f}", notes.get(part, ""), end_section=part == "overhead")
    gpus = Table("GPU", "usable", "headroom", "fits", f"longest at {job.batch}", f"most at {job.length:,}", title="GiB")
    for gpu, usable in GPUS.items():
        length, batch = longest(job, gpu)
        headroom = f"{usable - sizes['total'] / GIB:.2f}"
        fits = "yes" if outcome["fits"][gpu] else "no"
        gpus.add_row(gpu, f"{usable:.2f}", headroom, fits, f"{length:,}" if length else "-", f"{batch or '-'}")
    return [parts, gpus]
