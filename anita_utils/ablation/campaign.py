"""Which part of the recipe does what? Each arm trained and measured with each seed, nothing twice.

>>> ablate(load_profile("cpu"), load_ablation("cpu"), seeds=[42, 43])       # what `anita ablate --seeds 2` does

What is done is known by its content, in the cache that all runs share: an interrupted ablation goes on where it was.
Seeds share no stage, so they can run in processes of their own: of a small model, two trainings with a thread each are
faster than one after the other with two.
"""

from __future__ import annotations

import gc
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from anita_utils import AnitaError
from anita_utils.ablation.arms import Ablation, arm_profile, as_measured
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
from anita_utils.studies import forgetting
from anita_utils.training import train_stage

SEEDS = 5  # of the committed results
COSTS = ["train/tokens", "train/seconds"]
NOTHING = Kept({}, {})


@dataclass(frozen=True)
class Trial:
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

    @cached_property
    def made(self) -> str:
        """A hash of all that its figures depend on, known before they are there, and the same on any machine."""
        model = self.stages[-1].key if self.stages else model_key(self.base)
        code = {kind: made_by(kind) for kind in ("evaluations", "curves") if kind == "evaluations" or self.points}
        return digest({"model": model, "points": self.points, "code": code} | measured_with(self.profile))

    @property
    def measured(self) -> bool:
        """Whether all its figures are in the cache, those taken on the way too."""
        if not all(stage.done for stage in self.stages):
            return False
        if self.points and not forgetting.complete(forgetting.curve(self.stages[-1], self.points)):
            return False
        model = model_key(self.model)
        return all(evaluation_entry(model, self.profile, part).file.is_file() for part in PARTS)


def trials_of(run: Run, ablation: Ablation, seeds: Iterable[int]) -> list[Trial]:
    """Every arm with every seed, seed after seed; nothing is trained. AnitaError for an arm that cannot be."""
    machine = detect_machine()
    measured = as_measured(run.profile, ablation)
    arms = {name: arm_profile(measured, name, arm) for name, arm in ablation.arms.items()}
    for profile, _ in arms.values():
        profile.check(machine)
    trials = []
    for seed in seeds:
        for name, (profile, order) in arms.items():
            own = Run(run.folder / "arms" / f"{name}-{seed}", profile, seed)
            stages = tuple(find_stage(own, stage) for stage in order)
            for stage in stages:
                stage.corpora  # noqa: B018 (read now: a corpus that is not there is said before anything is written)
            base = resolve_model(profile.model.base, profile.model.revision)
            trials.append(Trial(name, seed, profile, stages, base, ablation.arms[name].points))
    return trials


def dry_plan(profile: Profile, ablation: Ablation, seeds: list[int], only: Iterable[str] = ()) -> list[Trial]:
    """The trials that `ablate` would see to; nothing is written."""
    return select(trials_of(Run(Path(), profile, seeds[0]), ablation, seeds), only)


def select(trials: list[Trial], only: Iterable[str]) -> list[Trial]:
    """The trials of the arms in `only`, or all. AnitaError for an arm that is not there."""
    known, only = list(dict.fromkeys(trial.arm for trial in trials)), list(only)
    unknown = [arm for arm in only if arm not in known]
    if unknown:
        raise AnitaError(f"no arm '{unknown[0]}': choose {', '.join(known)}")
    return [trial for trial in trials if not only or trial.arm in only]


def remaining(trials: list[Trial], kept: Kept = NOTHING) -> dict[str, tuple[int, int]]:
    """How many trainings and evaluations are still to be done, of how many; what arms share or was kept counts once."""
    to_do = [trial for trial in trials if trial.made not in kept.by_hash]
    stages = {stage.key for trial in trials for stage in trial.stages}
    missing = {stage.key for trial in to_do for stage in trial.stages if not stage.done}
    unmeasured = {trial.made for trial in to_do if not trial.measured}
    evaluations = {trial.made for trial in trials}
    return {"trainings": (len(missing), len(stages)), "evaluations": (len(unmeasured), len(evaluations))}


def outline(trials: list[Trial], kept: Kept = NOTHING) -> list[dict[str, str]]:
    """For each arm: its stages, with the arms each is shared with, how much of it is done, and how much was kept."""
    users = Counter(stage.key for trial in trials for stage in trial.stages)  # no two seeds share a stage
    lines = []
    for arm in dict.fromkeys(trial.arm for trial in trials):
        own = [trial for trial in trials if trial.arm == arm]
        chain = []
        for stage in own[0].stages:
            others = users[stage.key] - 1
            chain.append(f"{stage.name} (shared with {others})" if others else stage.name)
        done = [stage.done for trial in own for stage in trial.stages]
        line = {"arm": arm, "stages": ", then ".join(chain) or "none",
                "trained": f"{sum(done)} of {len(done)}",
                "measured": f"{sum(trial.measured for trial in own)} of {len(own)}",
                "kept": f"{sum(trial.made in kept.by_hash for trial in own)} of {len(own)}"}  # fmt: skip
        lines.append(line)
    return lines


def ablate(
    profile: Profile,
    ablation: Ablation,
    seeds: list[int],
    only: Iterable[str] = (),
    name: str | None = None,
    say: Callable[[str], None] = print,
    keep: bool = False,
    afresh: bool = False,
) -> tuple[Run, list[Trial]]:
    """Trains and measures the arms in `only` (all by default) with each seed, leaving out what is kept or cached.

    name: the run that the figures go to; `ablation-PROFILE` by default. Its results.jsonl and metrics.jsonl always hold
        every arm of the file that is done with these seeds, whichever call did it.
    keep: whether each result goes into the course's data too, at once: committed, it is never made again.
    afresh: leave out of account what is kept there. What the cache holds is taken all the same.

    Returns the run and the trials of the whole file, done or not. AnitaError, before anything is trained, for an arm
    that is unknown or cannot be.
    """
    only = list(only)
    dry_plan(profile, ablation, seeds[:1], only)  # first: a broken arm leaves no run behind
    run = Run.open(name or f"ablation-{profile.name}", profile, seeds[0], newest=False)
    trials, file = trials_of(run, ablation, seeds), kept_file(profile.name)
    chosen, kept = select(trials, only), NOTHING if afresh else read_kept(file)
    source = origin(ablation)  # now: results that are written below would make the checkout look changed
    results = collect(trials, kept, source)
    wanted = [*ablation.measures, *(measure for claim in ablation.claims.values() for measure in claim.measures)]
    for number, trial in enumerate(chosen, 1):
        place = f"{number}/{len(chosen)} {trial.arm}, seed {trial.seed}"
        if (trial.arm, trial.seed) in results.lines:
            say(f"{place}: {'kept' if trial.made in kept.by_hash else 'done'} before")
        else:
            missing = [stage.name for stage in trial.stages if not stage.done]
            say(f"{place}: {'training ' + ', '.join(missing) if missing else 'measuring'}")
            measured = make(trial)
            for measure in wanted if number == 1 else []:  # an error after the first arm, not after the last
                find(measured, measure)
            results = collect(trials, kept, source, results)
        write_kept(run.folder / "results.jsonl", results)
        run.record(NOTEBOOK, [row for line in results.lines.values() for row in figure_rows(line)])
        if keep:
            with locked(file):
                write_kept(file, read_kept(file).joined(results))
    return run, trials


def make(trial: Trial) -> list[Measurement]:
    """Trains what is missing, and measures it."""
    for stage in trial.stages:
        if trial.points and stage is trial.stages[-1]:
            forgetting.watched(stage, trial.points)
        else:
            train_stage(stage)
        gc.collect()  # a trainer and its model hold each other: without this they would pile up
    return evaluate(trial.model, trial.profile)


def origin(ablation: Ablation) -> dict:
    """Where results made now come from."""
    machine = detect_machine()
    versions = {name: machine.versions.get(name) for name in LIBRARIES}
    return {"commit": git_commit() or "unknown", "arms": ablation.digest, "machine": machine.cpu, "versions": versions}


def collect(trials: list[Trial], kept: Kept, source: dict, before: Kept = NOTHING) -> Kept:
    """The results of every trial that is done: kept, or measured here. before: those of an earlier call."""
    results = before
    for trial in trials:
        if (trial.arm, trial.seed) in results.lines:
            continue
        if trial.made in kept.by_hash:
            line = kept.by_hash[trial.made] | {"arm": trial.arm, "seed": trial.seed}
            results = add(results, line, kept.weights[line["weights"]])
        elif trial.measured:
            results = add(results, *result_line(trial, source))
    order = [(trial.arm, trial.seed) for trial in trials]
    return Kept({key: results.lines[key] for key in order if key in results.lines}, results.weights)


def result_line(trial: Trial, source: dict) -> tuple[dict, dict]:
    """A trial's result as a line to keep, and the weights of its clusters. source: as `origin` gives it."""
    measured, last = evaluate(trial.model, trial.profile), trial.stages[-1].name if trial.stages else "base"
    tokens = sum(stage.info["tokens"] * stage.settings.num_train_epochs for stage in trial.stages)
    seconds = sum(stage.info["seconds"] for stage in trial.stages)
    cost = {"stage": last, "language": "all", "split": None, "n": None}
    costs = [cost | {"metric": COSTS[0], "value": tokens}, cost | {"metric": COSTS[1], "value": seconds}]
    place = {"arm": trial.arm, "seed": trial.seed, "profile": trial.profile.name, "made": trial.made} | source
    curve = forgetting.watched(trial.stages[-1], trial.points) if trial.points else []
    return make_line(place, rows(measured, last) + costs, measured, curve)


def slurm_script(profile: Profile, ablation: Ablation, seeds: list[int], options: list[str]) -> str:
    """A Slurm array of one task for each seed. options: what else each task's `anita ablate` gets."""
    for name, arm in ablation.arms.items():
        arm_profile(profile, name, arm)  # one that cannot be is reported before any task waits in a queue
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


def in_processes(options: list[str], seeds: list[int], jobs: int, name: str) -> None:
    """Calls `anita ablate` once for each seed, `jobs` at a time, a thread each. The cache holds what they make.

    options: what else each call gets. name: of the runs, each followed by its seed. AnitaError where a call failed.
    """

    def one(seed: int) -> int:
        own = ["--seed", str(seed), "--seeds", "1", "--run", f"{name}-{seed}"]
        command = [sys.executable, "-m", "anita_utils.cli.main", "ablate", *options, *own]
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [str(seed) for seed, code in zip(seeds, pool.map(one, seeds), strict=True) if code]
    if failed:
        raise AnitaError(
            f"the ablation failed with seed {', '.join(failed)}, as said above: what is done is kept; remove the cause "
            "and call it again"
        )
