"""Which part of the recipe does what? `anita ablate`: arms trained and measured, listed, or printed as a Slurm array.

anita ablate --all --dry-run
anita ablate --only italian --seeds 2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anita_utils import AnitaError, shown
from anita_utils.cli import ProfileName


def ablate(
    profile: ProfileName = "cpu",
    arms: Annotated[Path | None, typer.Option(help="A .yaml file of arms and claims; else the profile's.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="An arm's name; can be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; else 1.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first of them; else the profile's.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every arm with five seeds, as in the lessons.")] = False,
    run: Annotated[str | None, typer.Option(help="Where results go, under runs/; else by profile.")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Train nothing: list the arms and what they share.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Train nothing: print a Slurm array, a task a seed.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Write each result into data/ablation too, to commit.")] = False,
    afresh: Annotated[bool, typer.Option("--afresh", help="Leave out of account what data/ablation holds.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds at a time, each in a process of one thread.")] = 1,
) -> None:
    """Train and measure the recipe with parts left out, swapped or changed. Call it again to go on where it was."""
    if everything and (only or seeds):
        raise AnitaError("--all is every arm with five seeds: leave out --only and --seeds, or --all")
    if dry and slurm:
        raise AnitaError("--dry-run and --slurm exclude each other: give one of them")
    from anita_utils.ablation import campaign
    from anita_utils.ablation.arms import load_ablation
    from anita_utils.ablation.report import write_results
    from anita_utils.ablation.results import kept_file, read_kept
    from anita_utils.profile import load_profile

    settings = load_profile(profile)
    found, chosen = load_ablation(arms or settings.name), only or []
    first = settings.seed if seed is None else seed
    every = list(range(first, first + (campaign.SEEDS if everything else seeds or 1)))
    options = ["--profile", profile, *(["--arms", str(arms)] if arms else [])]
    for arm in chosen:
        options += ["--only", arm]
    if slurm:
        print(campaign.slurm_script(settings, found, every, options), end="")
        return
    if dry:
        kept = campaign.NOTHING if afresh else read_kept(kept_file(settings.name))
        trials = campaign.dry_plan(settings, found, every, chosen)
        table = Table("arm", "asks", "stages", "trained", "measured", "kept")
        for line in campaign.outline(trials, kept):
            arm, *done = line.values()
            table.add_row(arm, found.arms[arm].asks, *done)
        Console().print(table)
        for what, (missing, of) in campaign.remaining(trials, kept).items():
            print(f"{what} that remain: {missing} of {of}")
        return
    if jobs > 1:  # they leave all in the cache, where the call below finds it
        campaign.dry_plan(settings, found, every[:1], chosen)  # an arm that cannot be is reported once
        own = [*options, "--afresh"] if afresh else options
        campaign.in_processes(own, every, jobs, run or f"ablation-{settings.name}")
    done, _ = campaign.ablate(settings, found, every, chosen, run, print, keep, afresh)
    print(shown(write_results(done, found)))
