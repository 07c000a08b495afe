"""The commands that plan, train, measure and report: plan, train, ablate, eval, report. cli.py adds them to `anita`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from anita_utils import AnitaError, shown

RunName = Annotated[
    str | None, typer.Option("--run", help="The run whose stages are meant, under runs/.", show_default="the latest")
]


def plan(
    profile: Annotated[str | None, typer.Option(help="A profile's name, or the path of a .yaml file.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="sft, italian, dpo or evaluation.", show_default="the profile's first")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model, in place of the profile's or without one.")] = None,
    r: Annotated[int | None, typer.Option(help="The adapter's rank.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows a step; in DPO, pairs.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a row.")] = None,
    quant: Annotated[str | None, typer.Option(help="nf4 (with double quantisation) or none.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="The optimiser, by transformers' name.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Compute activations twice to hold fewer.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens to train on, for the time.")] = None,
    throughput: Annotated[float | None, typer.Option(help="Tokens a second, as you measured them.")] = None,
    price: Annotated[float | None, typer.Option(help="Euros an hour, for the cost.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the parts into this .png file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan for programs.")] = False,
    here: Annotated[
        bool, typer.Option("--here", help="Measure on this machine instead: a few updates of the profile's stage.")
    ] = False,
) -> None:
    """Tell what a stage needs of a GPU's memory, by part, before anything is loaded."""
    from anita_utils import memory
    from anita_utils.cli import plan
    from anita_utils.profile import load_profile

    settings = load_profile(profile) if profile else None
    if here:
        print(plan.measure_here(settings or load_profile("cpu"), stage))
        return
    changes = {"model": model, "r": r, "batch": batch, "length": length, "optimizer": optimizer}
    job = plan.choose_job(settings, stage, quant, **changes, checkpointing=checkpointing)
    outcome = memory.plan(job)
    measured = plan.measured_speed(settings, stage, job)
    time = plan.time_and_cost(tokens, throughput, price, measured)
    if figure:
        draw_plan(figure, job.model, outcome["bytes"])
    if as_json:
        print(json.dumps(outcome, indent=2))
        return
    console = Console()
    for table in plan.tables(job, outcome):
        console.print(table)
    here_too = ["without a GPU: --here measures memory and time on this machine"]
    for line in [*outcome["advice"], *time, *here_too]:
        console.print(f"- {line}", markup=False, highlight=False)


def draw_plan(file: Path, model: str, parts: dict[str, int]) -> None:
    """Saves a plan's stacked bar beside the limits of the GPUs. AnitaError when `file` cannot be written."""
    from matplotlib.figure import Figure

    from anita_utils.memory import GPUS
    from anita_utils.plots import memory_bars, style

    if file.suffix != ".png":
        raise AnitaError(f"{file.name} is no .png file: give --figure a name that ends in .png")
    style()
    drawing = Figure(figsize=(9, 1.4))
    memory_bars(drawing.subplots(), {model.rpartition("/")[2]: parts}, GPUS)
    try:
        drawing.savefig(file, dpi=150, bbox_inches="tight")
    except OSError as error:
        raise AnitaError(f"{shown(file)} cannot be written ({error.strerror}): choose another place") from error


def train(
    stage: Annotated[str, typer.Argument(help="sft, italian or dpo; the stages before it are trained if missing.")],
    profile: Annotated[str, typer.Option(help="A profile's name, or the path of a .yaml file.")] = "cpu",
    base: Annotated[str | None, typer.Option(help="A model for the first stage, in place of the profile's.")] = None,
    run: Annotated[
        str | None, typer.Option(help="The run's name.", show_default="the newest; PROFILE-train with --base or --set")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="The seed of all draws.", show_default="the profile's")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value: a setting of the stage, or with its section: model.dtype=…; repeatable."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last good checkpoint, if there is one.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Train nothing: say how many rows would be whole, cut or left out.")
    ] = False,
) -> None:
    """Train a stage outside a notebook; what is trained already is taken from the cache."""
    if check:
        from rich.table import Table

        from anita_utils.cli.train import check_rows

        table = Table("rows", "", title=f"stage {stage}")
        for what, count in check_rows(stage, profile, base, seed, change or []).rows():
            table.add_row(what, f"{count:,}")
        Console().print(table)
        return
    from anita_utils.cli.train import train as train_stage

    train_stage(stage, profile, base, run, seed, change or [], resume)


def ablate(
    profile: Annotated[str, typer.Option(help="A profile's name, or the path of a .yaml file.")] = "cpu",
    arms: Annotated[
        Path | None, typer.Option(help="A .yaml file of arms and claims.", show_default="the profile's")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="An arm's name; can be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.", show_default="1")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first of them.", show_default="the profile's")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every arm with five seeds, as in the lessons.")] = False,
    run: Annotated[str | None, typer.Option(help="Where results go, under runs/.", show_default="by profile")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Train nothing: list the arms and what they share.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Train nothing: print a Slurm array, a task a seed.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Write each result into data/ablation too, to commit.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="As if nothing stood in data/ablation yet.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds at a time, each in a process of one thread.")] = 1,
) -> None:
    """Train and measure the recipe with parts left out, swapped or changed. Call it again to go on where it was."""
    if everything and (only or seeds):
        raise AnitaError("--all is every arm with five seeds: leave out --only and --seeds, or --all")
    if dry and slurm:
        raise AnitaError("--dry-run and --slurm exclude each other: give one of them")
    from anita_utils.ablation import campaign
    from anita_utils.ablation.arms import load_ablation
    from anita_utils.ablation.results import kept_file, read_kept
    from anita_utils.profile import load_profile

    settings = load_profile(profile)
    found = load_ablation(arms or settings.name)
    first = settings.seed if seed is None else seed
    every = list(range(first, first + (campaign.SEEDS if everything else seeds or 1)))
    options = ["--profile", profile, *(["--arms", str(arms)] if arms else [])]
    options += [word for arm in only or [] for word in ("--only", arm)]
    if slurm:
        print(campaign.slurm_script(settings, found, every, options), end="")
        return
    if dry:
        kept = campaign.NOTHING if anew else read_kept(kept_file(settings.name))
        show_ablation(campaign.dry_plan(settings, found, every, only or []), found, kept)
        return
    from anita_utils.ablation.report import write_results

    if jobs > 1:  # they leave all in the cache, where the call below finds it
        from anita_utils.ablation.campaign import in_processes

        campaign.dry_plan(settings, found, every[:1], only or [])  # an arm that cannot be is told once
        own = [*options, "--anew"] if anew else options
        in_processes(own, every, jobs, run or f"ablation-{settings.name}")
    done, _ = campaign.ablate(settings, found, every, only or [], run, print, keep, anew)
    print(shown(write_results(done, found)))


def show_ablation(cells: list, arms, kept) -> None:
    """Prints what an ablation would do."""
    from rich.table import Table

    from anita_utils.ablation.campaign import outline, remaining

    table = Table("arm", "asks", "stages", "trained", "measured", "kept")
    for line in outline(cells, kept):
        table.add_row(line["arm"], arms.arms[line["arm"]].asks, *list(line.values())[1:])
    Console().print(table)
    for what, (missing, of) in remaining(cells, kept).items():
        print(f"{what} that remain: {missing} of {of}")


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A stage (base, sft, italian, dpo), a folder, or a name on the Hub.", show_default="last stage"
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="quick, piccola, paper or italian.", show_default="the profile's")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items a task.", show_default="the suite's, or the profile's")
    ] = None,
    only: Annotated[
        Literal["benchmarks", "answers"] | None,
        typer.Option(help="The benchmarks alone, or all other measures.", show_default="both"),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another model: paired tests of the differences to it.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="How to load and ask.", show_default="the run's for a stage, else cpu")
    ] = None,
    run: RunName = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="No model: hold the suite's settings against the installed lm-eval.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the figures as JSON.")] = False,
) -> None:
    """Measure a model: benchmarks, free answers, perplexity, language, refusal, with intervals."""
    from anita_utils.cli.evaluate import dry_run, evaluate_models, profile_for
    from anita_utils.hub import STAGES
    from anita_utils.run import chosen_run

    staged = model is None or {model, against} & set(STAGES)
    used = chosen_run(run) if staged or run else None
    model = model or (used.last_stage() if used else "base")
    settings = profile_for(model, profile, suite, limit, used)
    if dry:
        raise typer.Exit(dry_run(settings.evaluation.suite, as_json))
    evaluate_models(model, against, settings, as_json, only, used)


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="A run under runs/, or two to be compared.", show_default="latest")
    ] = None,
    run: RunName = None,
) -> None:
    """Build index.html and report.md of a run again; of two runs, a page with their paired differences."""
    from anita_utils.course.report import write_report
    from anita_utils.course.side_by_side import write_comparison
    from anita_utils.run import Run, say_which

    names = [*(runs or []), *([run] if run else [])] or ["latest"]
    if len(names) > 2:
        raise AnitaError(f"{len(names)} runs named: give one, or two to be compared")
    loaded = [say_which(Run.load(name)) for name in names]
    print(shown(write_comparison(*loaded) if len(loaded) == 2 else write_report(loaded[0])))


def cache(
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what this version does not take and no run uses.")
    ] = False,
    days: Annotated[
        float | None,
        typer.Option("--older-than", min=0, help="With --prune: also what no run uses and is older than so many days."),
    ] = None,
) -> None:
    """List what the cache holds: how much of each kind, what runs use, what an older version of the course left."""
    from rich.table import Table

    from anita_utils import cache
    from anita_utils.paths import cache_dir

    if days is not None and not prune:
        raise AnitaError("--older-than chooses what --prune deletes: give both")
    if prune:
        deleted = list(cache.prune(days))
        print(f"deleted: {len(deleted)} entries, {sum(one.size for one in deleted) / 1e6:,.1f} MB")
    found = cache.contents()
    table = Table("kind", "entries", "MB", "used by runs", "not taken any more", title=shown(cache_dir()))
    for kind in dict.fromkeys(one.kind for one in found):
        own = [one for one in found if one.kind == kind]
        old = [one for one in own if one.old]
        sizes = [f"{sum(one.size for one in some) / 1e6:,.1f}" for some in (own, old)]
        table.add_row(kind, f"{len(own)}", sizes[0], f"{sum(bool(one.runs) for one in own)}",
                      f"{len(old)} ({sizes[1]} MB)" if old else "")  # fmt: skip
    console = Console()
    console.print(table)
    for reason in dict.fromkeys(one.old for one in found if one.old):
        console.print(f"- not taken: {reason}", markup=False, highlight=False)
