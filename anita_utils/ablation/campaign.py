"""Ablations: the recipe with parts left out, swapped or changed; each arm trained and measured, nothing twice.

>>> ablate(load_profile("cpu"), load_ablation("cpu"), seeds=[42, 43])       # what `anita ablate --seeds 2` does

What is done is known by its content, in the cache that all runs share: a killed ablation goes on where it was.
"""
# MERGED DOC:
# """An ablation's seeds in processes of their own, one thread each.
#
# >>> in_processes(["--profile", "cpu"], [42, 43], jobs=2, name="ablation-cpu")
#
# A small model leaves most of a processor idle while its threads wait for each other: two trainings with a thread each
# are faster than one after the other with two. Seeds share no stage, so nothing is trained twice.
# """

from __future__ import annotations

import gc
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from anita_utils import AnitaError
from anita_utils.ablation.arms import Ablation, arm_profile
from anita_utils.ablation.effects import find
from anita_utils.ablation.results import NOTEBOOK, Kept, add, figure_rows, kept_file, make_line, read_kept, write_kept
from anita_utils.cache import digest, made_by
from anita_utils.evaluation.measuring import PARTS, evaluate, evaluation_entry, measured_with
from anita_utils.hub import model_key, resolve_model
from anita_utils.machine import LIBRARIES, detect_machine
from anita_utils.paths import locked
from anita_utils.profile import Profile
from anita_utils.run import Run, git_commit
from anita_utils.stages import Stage, find_stage
from anita_utils.stats import Measurement, rows
from anita_utils.training import train_stage

SEEDS = 5  # of the committed results
COSTS = ["train/tokens", "train/seconds"]
NOTHING = Kept({}, {})


# ---------------------------------------------------------------- what there is to do


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: a chain of stages, each in the cache or not, and the model at its end."""

    arm: str
    seed: int
    profile: Profile
    stages: tuple[Stage, ...]
    base: str
    points: int = 0  # how often the last stage is measured while it trains

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

    @cached_property
    def made(self) -> str:
        """A hash of all that its figures depend on, known before they are there, and the same on any machine."""
        model = self.stages[-1].key if self.stages else model_key(self.base)
        code = {kind: made_by(kind) for kind in ("evaluations", "curves") if kind == "evaluations" or self.points}
        return digest({"model": model, "points": self.points, "code": code} | measured_with(self.profile))

    @property
    def trained(self) -> bool:
        return all(stage.done for stage in self.stages) and self.watched

    @property
    def watched(self) -> bool:
        """Whether what is to be measured on the way is there."""
        from anita_utils.studies.forgetting import complete, curve

        return not self.points or complete(curve(self.stages[-1], self.points))

    @property
    def measured(self) -> bool:
        if not self.trained:
            return False
        model = model_key(self.model)
        return all(evaluation_entry(model, self.profile, part).file.is_file() for part in PARTS)


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
            for stage in stages:
                stage.corpora  # noqa: B018 (read now: a corpus that is not there is said before anything is written)
            base = resolve_model(profile.model.base, profile.model.revision)
            cells.append(Cell(name, seed, profile, stages, base, ablation.arms[name].points))
    return cells


def remaining(cells: Iterable[Cell], kept: Kept = NOTHING) -> dict[str, tuple[int, int]]:
    """How many trainings and evaluations are still to be done, of how many; what arms share counts once.

    kept: results that are there already, of which nothing need be made again.
    """
    stages = {stage.key: stage for cell in cells for stage in cell.stages}
    models = {cell.key: cell for cell in cells}
    to_do = [cell for cell in cells if cell.made not in kept.by_hash]
    missing = {stage.key for cell in to_do for stage in cell.stages if not stage.done}
    return {
        "trainings": (len(missing), len(stages)),
        "evaluations": (len({cell.key for cell in to_do if not cell.measured}), len(models)),
    }


def outline(cells: list[Cell], kept: Kept = NOTHING) -> list[dict[str, str]]:
    """For each arm: its stages, with the arms each is shared with, how much of it is done, and how much was kept."""
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
                      "measured": f"{sum(cell.measured for cell in own)} of {len(own)}",
                      "kept": f"{sum(cell.made in kept.by_hash for cell in own)} of {len(own)}"})  # fmt: skip
    return lines


# ---------------------------------------------------------------- doing it


def ablate(
    profile: Profile,
    ablation: Ablation,
    seeds: list[int],
    only: Iterable[str] = (),
    name: str | None = None,
    say: Callable[[str], None] = print,
    keep: bool = False,
    anew: bool = False,
) -> tuple[Run, list[Cell]]:
    """Trains and measures the arms in `only` (all by default) with each seed, leaving out what is kept or cached.

    name: the run that the figures go to; `ablation-PROFILE` by default. Its results.jsonl and metrics.jsonl always hold
        every arm of the file that is done with these seeds, whoever did it.
    keep: whether each result goes into the course's data too, as soon as it is there: committed, it is never made
        again, on this machine or another.
    anew: leave out of account what is kept there. What the cache holds is taken all the same.

    Returns the run and the cells of the whole file, done or not. AnitaError, before anything is trained, for an arm
    that is unknown or cannot be.
    """
    only = list(only)
    dry_plan(profile, ablation, seeds[:1], only)  # first: a broken arm leaves no run behind
    run = Run.open(name or f"ablation-{profile.name}", profile, seeds[0], newest=False)
    cells = plan(run, ablation, seeds)
    chosen, file = select(cells, only), kept_file(profile.name)
    kept = NOTHING if anew else read_kept(file)
    source = origin(ablation)  # now: results that are written below would make the checkout look changed
    results = collect(cells, kept, source)
    for number, cell in enumerate(chosen, 1):
        place = f"{number}/{len(chosen)} {cell.arm}, seed {cell.seed}"
        if (cell.arm, cell.seed) in results.lines:
            say(f"{place}: {'kept' if cell.made in kept.by_hash else 'done'} before")
        else:
            missing = [stage.name for stage in cell.stages if not stage.done]
            say(f"{place}: {'training ' + ', '.join(missing) if missing else 'measuring'}")
            make(cell)
            if number == 1:
                check_measures(ablation, evaluate(cell.model, cell.profile))
            results = collect(cells, kept, source, results)
        record(run, results)
        if keep:
            with locked(file):
                write_kept(file, read_kept(file).joined(results))
    return run, cells


def make(cell: Cell) -> None:
    """Trains what is missing of a cell, and measures it."""
    for stage in cell.stages:
        if cell.points and stage is cell.stages[-1]:
            from anita_utils.studies.forgetting import watched

            watched(stage, cell.points)
        else:
            train_stage(stage)
        gc.collect()  # a trainer and its model hold each other: without this they would pile up
    evaluate(cell.model, cell.profile)


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


def origin(ablation: Ablation) -> dict:
    """Where results made now come from: commit, arms, machine, libraries."""
    machine = detect_machine()
    versions = {name: machine.versions.get(name) for name in LIBRARIES}
    return {"commit": git_commit() or "unknown", "arms": ablation.digest, "machine": machine.cpu, "versions": versions}


def collect(cells: list[Cell], kept: Kept, source: dict, before: Kept = NOTHING) -> Kept:
    """The results of every cell that is done: kept, or measured here. before: those of an earlier call."""
    results = before
    for cell in cells:
        if (cell.arm, cell.seed) in results.lines:
            continue
        if cell.made in kept.by_hash:
            line = kept.by_hash[cell.made] | {"arm": cell.arm, "seed": cell.seed}
            results = add(results, line, kept.weights[line["weights"]])
        elif cell.measured:
            results = add(results, *cell_line(cell, source))
    order = [(cell.arm, cell.seed) for cell in cells]
    return Kept({key: results.lines[key] for key in order if key in results.lines}, results.weights)


def cell_line(cell: Cell, source: dict) -> tuple[dict, dict]:
    """A cell's result as a line to keep, and the weights of its clusters. source: as `origin` gives it."""
    from anita_utils.studies.forgetting import watched

    measured = evaluate(cell.model, cell.profile)
    infos = [stage.info for stage in cell.stages]
    passes = [stage.settings.num_train_epochs for stage in cell.stages]
    tokens = sum(info["tokens"] * times for info, times in zip(infos, passes, strict=True))
    costs = zip(COSTS, (tokens, sum(info["seconds"] for info in infos)), strict=True)
    nowhere = {"stage": cell.last, "language": "all", "split": None, "n": None}
    figures = rows(measured, cell.last) + [nowhere | {"metric": metric, "value": value} for metric, value in costs]
    place = {"arm": cell.arm, "seed": cell.seed, "profile": cell.profile.name, "made": cell.made} | source
    return make_line(place, figures, measured, watched(cell.stages[-1], cell.points) if cell.points else [])


def record(run: Run, results: Kept) -> None:
    """Writes the run's results.jsonl and metrics.jsonl."""
    write_kept(run.folder / "results.jsonl", results)
    run.record(NOTEBOOK, [row for line in results.lines.values() for row in figure_rows(line)])


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


# ---------------------------------------------------------------- parallel


def in_processes(options: list[str], seeds: list[int], jobs: int, name: str) -> None:
    """Calls `anita ablate` once for each seed, `jobs` at a time. What they make lies in the cache that all share.

    options: what else each call is given. name: how the runs are called, each followed by its seed.

    AnitaError, once the others have ended, where a call failed; it has said why.
    """

    def one(seed: int) -> int:
        own = ["--seed", str(seed), "--seeds", "1", "--run", f"{name}-{seed}"]
        command = [sys.executable, "-m", "anita_utils.cli.main", "ablate", *options, *own]
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [seed for seed, code in zip(seeds, pool.map(one, seeds), strict=True) if code]
    if failed:
        raise AnitaError(
            f"the ablation failed with seed {', '.join(map(str, failed))}, as said above: what is done is kept; mend "
            "the cause and call it again"
        )
