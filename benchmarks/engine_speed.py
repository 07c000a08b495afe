"""How fast the course's engine trains, beside what it could be compared with, on the shipped model and data.

    python benchmarks/engine_speed.py                      # about ten minutes on two quiet cores
    python benchmarks/engine_speed.py --rounds 1 --tokens 600 --out /tmp/trial

Useful tokens a second, padding not counted, for one pass over the same rows with the same seed: the course's engine,
the authors' settings under the same TRL (padded batches, gradient checkpointing), TRL's own packing, a bare PyTorch
loop on the course's own batches, the limit that the matrix products alone would set; for SFT also full weights, a mask
over each packed row, and padded batches sorted by length; and the course's engine in bf16 where the CPU has
instructions for it. All arms take turns, round after round; ratios are taken within a round, and the median of the
rounds is told. Then: peak memory beside the planner's figure, and how the cost grows. Writes engine_speed.json, .md
and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from memory_cpu import OVER_BASELINE, peak_of
from speed_arms import Arm, authors, bare, course, limit, masked, open_stage, packing, padded
from speed_report import figure, markdown, verdicts

from anita_utils import training
from anita_utils.course.set_up import quieten
from anita_utils.hub import SHIPPED_BASE
from anita_utils.machine import detect_machine
from anita_utils.memory import bytes_by_part, job_of
from anita_utils.paths import environment, write_text
from anita_utils.profile import Profile, load_profile
from anita_utils.run import where_and_when
from anita_utils.training import Watch

LENGTHS = (128, 256, 512, 1024)


def in_turns(arms: dict[str, Arm], rounds: int, say: str) -> dict[str, list[float]]:
    """Useful tokens a second of each arm in each round; a round that is not counted comes first."""
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, once in arms.items():
            tokens, seconds = once()
            if number:
                speeds[name].append(tokens / seconds)
                print(f"{say}, round {number}: {name} {tokens / seconds:,.0f} tokens/s", flush=True)
    return speeds


def ratio(speeds: dict[str, list[float]], one: str, other: str) -> float:
    """The median over the rounds of one arm's speed divided by another's."""
    return statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))


def compare(profile: Profile, tokens: int, rounds: int) -> dict:
    """Every stage's arms, and their ratios to the course's engine."""
    found = {}
    for name in profile.order:
        stage = open_stage(profile, name, tokens)
        makers = {"course": course, "authors": authors, "packing": packing, "bare": bare, "limit": limit}
        if name == "dpo":
            del makers["packing"]  # TRL has none for pairs
        arms = {arm: make(stage) for arm, make in makers.items()}
        if name == "sft":
            plain = profile.model_copy(deep=True)
            plain.quantisation.load_in_4bit = False
            arms["unquantised"] = course(open_stage(plain, name, tokens))
            arms |= {"packed, with a mask": masked(stage), "padded, sorted by length": padded(stage)}
        if detect_machine().avx512_bf16:  # without such instructions it takes ten times as long
            half = profile.model_copy(deep=True)
            half.precision = "bf16"
            arms["course in bf16"] = course(open_stage(half, name, tokens))
        speeds = in_turns(arms, rounds, name)
        found[name] = {
            "tokens_per_second": {arm: round(statistics.median(each), 1) for arm, each in speeds.items()},
            "rounds": {arm: [round(speed, 1) for speed in each] for arm, each in speeds.items()},
            "course_to": {arm: round(ratio(speeds, "course", arm), 3) for arm in speeds if arm != "course"},
        }
    return found


def peaks(profile: Profile) -> dict:
    """Peak bytes of each stage beyond model and adapter, measured and planned at the rows' true width."""
    found = {}
    for name in profile.order:
        stage = open_stage(profile, name, 20_000)
        stage.settings.gradient_accumulation_steps = 2  # gradients and optimiser are there when activations peak
        trainer = training.build_trainer(stage)
        trainer.args.save_strategy, trainer.args.max_steps = "no", 2
        trainer.remove_callback(Watch)
        batches = [batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()][:4]
        measured = peak_of(trainer.train)
        parts = bytes_by_part(replace(job_of(profile, name), length=max(batches)), on_gpu=False)
        planned = sum(parts[part] for part in OVER_BASELINE)
        found[name] = {"measured": measured, "planned": planned, "length": max(batches)}
        print(
            f"{name}: peak {measured / 1e6:,.0f} MB beyond model and adapter, planned {planned / 1e6:,.0f}", flush=True
        )
    return found


def growth(profile: Profile, tokens: int, rounds: int) -> dict:
    """Seconds for 1, 2 and 4 times the tokens, and seconds per 1,000 tokens for rows of each length."""
    by_size = {str(times): course(open_stage(profile, "sft", times * tokens // 2)) for times in (1, 2, 4)}
    by_length = {str(length): course(open_stage(profile, "sft", tokens, length)) for length in LENGTHS}
    speeds = in_turns(by_size | by_length, rounds, "growth")
    cost = {name: 1000 / statistics.median(each) for name, each in speeds.items()}
    return {
        "seconds_per_1000_tokens_by_size": {name: round(cost[name], 4) for name in by_size},
        "seconds_per_1000_tokens_by_length": {name: round(cost[name], 4) for name in by_length},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=12_000, help="of one pass")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    start = time.perf_counter()
    quieten()
    profile = load_profile("cpu")
    assert profile.model.base == SHIPPED_BASE
    with tempfile.TemporaryDirectory() as folder, environment(ANITA_RUNS=folder, ANITA_CACHE=f"{folder}/cache"):
        found = {
            **where_and_when(),
            "threads": torch.get_num_threads(),
            "load": [round(load, 2) for load in os.getloadavg()],  # before: what else the machine was doing
            "rounds": options.rounds,
            "tokens": options.tokens,
            "stages": compare(profile, options.tokens, options.rounds),
            "peaks": peaks(profile),
            "growth": growth(profile, options.tokens, options.rounds),
        }
    found["seconds"] = round(time.perf_counter() - start, 1)
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "engine_speed.json", json.dumps(found, indent=1) + "\n")
    write_text(options.out / "engine_speed.md", markdown(found))
    figure(found, options.out / "engine_speed.png")
    print(markdown(found))
    missed = [what for what, _, _, met in verdicts(found) if not met]
    print("all targets met" if not missed else f"missed: {'; '.join(missed)}", file=sys.stderr)


if __name__ == "__main__":
    main()
