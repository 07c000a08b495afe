"""Ablations: the recipe with parts left out, swapped or changed; each arm trained and measured, nothing twice.

>>> ablate(load_profile("cpu"), load_ablation("cpu"), seeds=[42, 43])       # what `anita ablate --seeds 2` does

What is done is known by its content, in the cache that all runs share: a killed ablation goes on where it was.
"""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from anita_utils import AnitaError
from anita_utils.arms import Ablation, arm_profile
from anita_utils.effects import find
from anita_utils.evaluation import PARTS, evaluate, evaluation_file
from anita_utils.hub import resolve_model
from anita_utils.intervals import Measurement, rows
from anita_utils.machine import detect_machine
from anita_utils.profile import ORDERS, Profile
from anita_utils.record import Run
from anita_utils.training import Stage, find_stage, train_stage

NOTEBOOK = "ablation"  # under which its rows stand in metrics.jsonl
SEEDS = 5  # of the committed results
COSTS = ["train/tokens", "train/seconds"]


# ---------------------------------------------------------------- what there is to do


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: a chain of stages, each in the cache or not, and the model at its end."""

    arm: str
    seed: int
    profile: Profile
    stages: tuple[Stage, ...]
    base: str

    @property
    def model(self) -> str:
        return self.stages[-1].merged if self.stages else self.base

    @property
    def last(self) -> str:
        """The stage that metric rows name."""
        return self.stages[-1].name if self.stages else "base"

    @cached_property
    def key(self) -> str:
        """What tells its model from all others, before there is one."""
        return self.stages[-1].key if self.stages else self.base

    @property
    def trained(self) -> bool:
        return all(stage.done for stage in self.stages)

    @property
    def measured(self) -> bool:
        return self.trained and all(evaluation_file(self.model, self.profile, part).is_file() for part in PARTS)


def plan(run: Run, ablation: Ablation, seeds: Iterable[int]) -> list[Cell]:
    """Every arm with every seed, seed after seed. Nothing is trained; data sets and a base on the Hub are fetched.

    AnitaError for an arm that cannot be, on this machine or at all.
    """
    machine = detect_machine()
    arms = {name: arm_profile(run.profile, name, arm) for name, arm in ablation.arms.items()}
    for profile, _ in arms.values():
        profile.check(machine)
    cells = []
    for seed in seeds:
        for name, (profile, order) in arms.items():
            own = Run(run.folder / "arms" / f"{name}-{seed}", profile, seed)
            stages = tuple(find_stage(own, stage) for stage in order)
            cells.append(Cell(name, seed, profile, stages, resolve_model(profile.model.base, profile.model.revision)))
    return cells


def remaining(cells: Iterable[Cell]) -> dict[str, tuple[int, int]]:
    """How many trainings and evaluations are still to be done, of how many; what arms share counts once."""
    stages = {stage.key: stage for cell in cells for stage in cell.stages}
    models = {cell.key: cell for cell in cells}
    return {
        "trainings": (sum(not stage.done for stage in stages.values()), len(stages)),
        "evaluations": (sum(not cell.measured for cell in models.values()), len(models)),
    }


def outline(cells: list[Cell]) -> list[dict[str, str]]:
    """For each arm: its stages, with the arms each is shared with, and how much of it is done."""
    users: dict[str, set[str]] = {}
    for cell in cells:
        for stage in cell.stages:
            users.setdefault(stage.key, set()).add(cell.arm)
    lines = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == arm]
        chain = []
        for stage in own[0].stages:
            others = len(users[stage.key]) - 1
            chain.append(f"{stage.name} (shared with {others})" if others else stage.name)
        stages = [stage for cell in own for stage in cell.stages]
        lines.append({"arm": arm, "stages": ", then ".join(chain) or "none",
                      "trained": f"{sum(stage.done for stage in stages)} of {len(stages)}",
                      "measured": f"{sum(cell.measured for cell in own)} of {len(own)}"})  # fmt: skip
    return lines


# ---------------------------------------------------------------- doing it


def ablate(
    profile: Profile,
    ablation: Ablation,
    seeds: list[int],
    only: Iterable[str] = (),
    name: str | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Run, list[Cell]]:
    """Trains and measures the arms in `only` (all by default) with each seed, leaving out what the cache holds.

    name: the run that the figures go to; `ablation-PROFILE` by default. Its metrics.jsonl always holds every arm of the
        file that is done with these seeds, whoever did it.

    Returns the run and the cells of the whole file, done or not. AnitaError, before anything is trained, for an arm
    that is unknown or cannot be.
    """
    only = list(only)
    dry_plan(profile, ablation, seeds[:1], only)  # first: a broken arm leaves no run behind
    run = Run.open(name or f"ablation-{profile.name}", profile, seeds[0], newest=False)
    cells = plan(run, ablation, seeds)
    chosen = select(cells, only)
    made: dict[tuple[str, int], list[dict]] = {}
    for number, cell in enumerate(chosen, 1):
        place = f"{number}/{len(chosen)} {cell.arm}, seed {cell.seed}"
        if cell.measured:
            say(f"{place}: done before")
        else:
            missing = [stage.name for stage in cell.stages if not stage.done]
            say(f"{place}: {'training ' + ', '.join(missing) if missing else 'measuring'}")
        for stage in cell.stages:
            train_stage(stage)
            gc.collect()  # a trainer and its model hold each other: without this they would pile up
        measured = evaluate(cell.model, cell.profile)
        if number == 1:
            check_measures(ablation, measured)
        record(run, cells, made)
    return run, cells


def dry_plan(profile: Profile, ablation: Ablation, seeds: list[int], only: Iterable[str] = ()) -> list[Cell]:
    """The cells that `ablate` would see to; nothing is written."""
    return select(plan(Run(Path(), profile, seeds[0]), ablation, seeds), only)


def select(cells: list[Cell], only: Iterable[str]) -> list[Cell]:
    """The cells of the arms in `only`, or all. AnitaError for an arm that is not there."""
    only, known = list(only), dict.fromkeys(cell.arm for cell in cells)
    for arm in only:
        if arm not in known:
            raise AnitaError(f"no arm '{arm}': choose {', '.join(known)}")
    return [cell for cell in cells if not only or cell.arm in only]


def check_measures(ablation: Ablation, measured: list[Measurement]) -> None:
    """AnitaError for a measure that is asked for and not there: told after the first arm, not after the last."""
    for measure in [*ablation.measures, *(measure for claim in ablation.claims.values() for measure in claim.measures)]:
        find(measured, measure)


def record(run: Run, cells: list[Cell], made: dict[tuple[str, int], list[dict]]) -> None:
    """Writes the rows of every cell that is done to metrics.jsonl; `made` keeps those of earlier calls."""
    for cell in cells:
        if (cell.arm, cell.seed) not in made and cell.measured:
            made[cell.arm, cell.seed] = cell_rows(cell)
    run.record(NOTEBOOK, [row for cell in cells for row in made.get((cell.arm, cell.seed), [])])


def cell_rows(cell: Cell) -> list[dict]:
    """What was measured of a cell's model, and what its training cost, as metric rows."""
    infos = [stage.info for stage in cell.stages]
    tokens = sum(info["tokens"] * stage.settings.epochs for info, stage in zip(infos, cell.stages, strict=True))
    costs = zip(COSTS, (tokens, sum(info["seconds"] for info in infos)), strict=True)
    own = [{"stage": cell.last, "metric": metric, "value": value} for metric, value in costs]
    figures = rows(evaluate(cell.model, cell.profile), cell.last)
    return [{"arm": cell.arm, "seed": cell.seed} | row for row in figures + own]


def measurements(cells: Iterable[Cell]) -> dict[tuple[str, int], list[Measurement]]:
    """Item by item, by arm and seed, what the cells that are done were measured to be."""
    return {(cell.arm, cell.seed): evaluate(cell.model, cell.profile) for cell in cells if cell.measured}


def factorial_cells(cells: Iterable[Cell], ablation: Ablation) -> dict[frozenset[str], str]:
    """The arms that set nothing but the order, and that to stages in the summary's order: {stages: arm}.

    Empty unless all eight are there.
    """
    found = {}
    for cell in cells:
        names = [stage.name for stage in cell.stages]
        if set(ablation.arms[cell.arm].set) == {"order"} and names == [s for s in ORDERS["summary"] if s in names]:
            found.setdefault(frozenset(names), cell.arm)
    return found if len(found) == 2 ** len(ORDERS["summary"]) else {}


def slurm_script(profile: Profile, ablation: Ablation, seeds: list[int], options: list[str]) -> str:
    """A Slurm array of one task for each seed: seeds share no stage, so that nothing is trained twice.

    options: what else each task's `anita ablate` is given, such as --profile and --arms.

    AnitaError for an arm that cannot be, before any task waits in a queue to find out.
    """
    for name, arm in ablation.arms.items():
        arm_profile(profile, name, arm)
    call = shlex.join(["anita", "ablate", *options])
    device = "#SBATCH --gpus=1" if profile.precision != "fp32" else "#SBATCH --cpus-per-task=2"
    return f"""#!/bin/bash
#SBATCH --job-name=anita-ablation
#SBATCH --array={seeds[0]}-{seeds[-1]}
{device}
#SBATCH --time=24:00:00
#SBATCH --output=ablation-%a.log
# One task a seed. Add what your cluster asks for (account, partition), and activate the environment.
# A task that ran out of time goes on when it is submitted again. When all are done, gather them (nothing is trained):
#   {call} --seed {seeds[0]} --seeds {len(seeds)}
set -euo pipefail
{call} --seed "$SLURM_ARRAY_TASK_ID" --seeds 1 --run {shlex.quote(f"ablation-{profile.name}")}-"$SLURM_ARRAY_TASK_ID"
"""
