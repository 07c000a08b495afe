"""LLaMA-3-8B's true shape on one GPU: how fast the course's engine trains it, beside TRL's defaults and the authors'.

    python benchmarks/gpu_8b.py                             # about nine minutes on an H100; needs no network
    python benchmarks/gpu_8b.py --seconds 60 --cases h100-sft --arms course flex
    python benchmarks/gpu_8b.py --tiny --out /tmp/trial     # a shape of nothing, on any machine: whether it runs

Random weights and drawn texts (random_8b.py); all arms of a case train on the same. An arm is timed from the end of its
warm-up until its seconds are over, update by update; gradients are accumulated over at most two steps, so that a minute
holds many updates. An arm that fails, for want of memory say, is noted, and the next begins.

Tokens are useful ones, padding not counted. Their share of the matrix rate counts the products of frozen weights alone:
forward, backward, forward again where activations are computed twice, forward of DPO's reference; attention and adapter
are left out. Writes gpu_8b.json and .md after every arm.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from random_8b import FOREVER, load_random, open_stage, profile_of, shape_folder
from speed_arms import Counted, authors_trainer, trl_rows
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from anita_utils import AnitaError, training
from anita_utils.course.set_up import quieten
from anita_utils.machine import detect_machine
from anita_utils.memory import GIB, architecture, bytes_by_part, job_of
from anita_utils.model import no_memory
from anita_utils.paths import environment, write_text
from anita_utils.profile import Profile
from anita_utils.run import where_and_when
from anita_utils.stages import Stage, peak_memory
from anita_utils.training import Watch

CASES = {"t4-sft": ("colab-t4", "sft"), "h100-sft": ("h100", "sft"), "h100-dpo": ("h100", "dpo")}
ARMS = ("course", "trl", "authors")
GOALS = {"share": 0.45, "tokens": 8000, "t4_gib": 12}  # of the packed rows, on an H200, at the T4 settings


# ---- the arms: each makes a trainer


def defaults(stage: Stage):
    """TRL as it comes: batches of 8, padded, texts cut at 1,024 tokens; same model, adapter and masks."""
    model, tokenizer = training.load_for_training(stage)
    config, make = (DPOConfig, DPOTrainer) if stage.name == "dpo" else (SFTConfig, SFTTrainer)
    arguments = config(output_dir=str(stage.work), num_train_epochs=FOREVER, use_cpu=not torch.cuda.is_available(),
                       report_to="none", disable_tqdm=True)  # fmt: skip
    return make(model=model, args=arguments, train_dataset=trl_rows(stage, tokenizer), processing_class=tokenizer,
                peft_config=training.lora_config(stage))  # fmt: skip


def flex(stage: Stage):
    """The course's engine with PyTorch's flex attention, which skips what packed rows may not see."""
    trainer = training.build_trainer(stage)
    trainer.model.get_base_model().set_attn_implementation("flex_attention")
    return trainer


def compiled(stage: Stage):
    """The course's engine through torch.compile."""
    own = training.training_arguments
    with patch.object(training, "training_arguments", lambda stage: own(stage) | {"torch_compile": True}):
        return training.build_trainer(stage)


MAKERS: dict[str, Callable] = {"course": training.build_trainer, "trl": defaults, "authors": authors_trainer,
                               "flex": flex, "compiled": compiled}  # fmt: skip


# ---- measuring


class Window(TrainerCallback):
    """Counts useful tokens and seconds from the end of the warm-up, and ends the training when its seconds are over."""

    def __init__(self, counted: Counted, warmup: int, seconds: float) -> None:
        self.counted, self.warmup, self.seconds = counted, warmup, seconds
        self.updates = self.tokens = self.elapsed = 0

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if state.global_step == self.warmup:
            self.began, self.before = now, self.counted.tokens
        if state.global_step > self.warmup:
            self.updates, self.elapsed = state.global_step - self.warmup, now - self.began
            self.tokens = self.counted.tokens - self.before
            control.should_training_stop = self.elapsed >= self.seconds


def forget_peak() -> None:
    """Gives back the GPU memory that nobody holds, and begins to look for a new peak."""
    gc.collect()  # a trainer refers to itself in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(make: Callable, stage: Stage, warmup: int, seconds: float) -> dict:
    """Tokens, seconds and peak memory of an arm, or why it failed."""
    began, trainer = time.perf_counter(), None
    forget_peak()
    try:
        trainer = make(stage)
        loading = peak_memory()
        forget_peak()  # of the library's own warm-up of the allocator, too
        trainer.args.save_strategy = "no"
        for callback in (Watch, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.data_collator = Counted(trainer.data_collator, trainer.processing_class.pad_token_id)
        window = Window(trainer.data_collator, warmup, seconds)
        trainer.add_callback(window)
        trainer.train()
    except Exception as error:  # whatever it is: a GPU is lent for minutes, and other arms wait
        why = "out of memory" if no_memory(error) else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found = {"failed": why}
    else:
        found = {"tokens": window.tokens, "seconds": round(window.elapsed, 4), "updates": window.updates,
                 "tokens_per_second": round(window.tokens / window.elapsed, 1), "loading_bytes": loading}  # fmt: skip
    found |= {"peak_bytes": peak_memory(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    del trainer
    forget_peak()
    return found | {"seconds_in_all": round(time.perf_counter() - began, 1)}


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP a second of large matrix products: the best of five times ten."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 512)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    sync = torch.cuda.synchronize if device == "cuda" else int  # on a CPU nothing is awaited
    best = math.inf
    for _ in range(6):  # the first is a warm-up, and never the best
        sync()
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        sync()
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * size**3 / best


def flop_a_token(profile: Profile, name: str) -> int:
    """Of the products with frozen weights, layers and head, as if every token were scored."""
    shape, job = architecture(profile.model.base), job_of(profile, name)
    head = shape.config.vocab_size * shape.config.hidden_size
    return (4 + 2 * job.checkpointing + 2 * job.pairs) * (shape.quantised + head)


def case_of(profile: Profile, name: str) -> dict:
    """What is trained, and what the planner says that it needs."""
    job = job_of(profile, name)
    precision = "bfloat16" if profile.precision == "bf16" else profile.model.dtype
    return {
        "profile": profile.name, "stage": name, "batch": job.batch, "length": job.length, "r": job.r,
        "precision": profile.precision, "flop_a_token": flop_a_token(profile, name),
        "matrix_rate": round(matrix_rate(getattr(torch, precision))),
        "planned_bytes": bytes_by_part(job, torch.cuda.is_available())["total"], "arms": {},
    }  # fmt: skip


def markdown(result: dict) -> str:
    """The results for people."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers", "trl", "peft"))
    tiny = " (a tiny shape: a trial, no result)" if result["tiny"] else ""
    lines = [f"# LLaMA-3-8B's shape on {machine['gpu'] or machine['cpu']}{tiny}", "",
             f"`python benchmarks/gpu_8b.py`, {result['when']}, commit {result['commit'] or 'not known'}, {versions}; "
             f"{result['seconds']:g} s an arm after {result['warmup']} updates.", "",
             "| | arm | useful tokens/s | share of matrix rate | peak, GiB | planned | |",
             "|---|---|---:|---:|---:|---:|---|"]  # fmt: skip
    for name, case in result["cases"].items():
        if "refused" in case:
            lines.append(f"| {name} | | | | | | {case['refused']} |")
            continue
        what = f"{name}: {case['batch']} × {case['length']:,}, {case['precision']}"
        for arm, found in case["arms"].items():
            planned = f"{case['planned_bytes'] / GIB:.2f}" if arm == "course" else ""
            speed = f"{found['tokens_per_second']:,.0f}" if "failed" not in found else ""
            share = f"{found['share']:.1%}" if "failed" not in found else ""
            lines.append(f"| {what} | {arm} | {speed} | {share} | {found['peak_bytes'] / GIB:.2f} | {planned} | "
                         f"{found.get('failed', '')} |")  # fmt: skip
    rates = {f"{case['matrix_rate'] / 1e12:,.1f} TFLOP/s ({case['precision']})"
             for case in result["cases"].values() if "refused" not in case}  # fmt: skip
    lines += ["", f"Matrix rate: {', '.join(sorted(rates))}. Aims on an H200: {GOALS['share']:.0%} of it and "
              f"{GOALS['tokens']:,} tokens/s in packed rows, at most {GOALS['t4_gib']} GiB at the T4 settings. "
              "On a CPU the peak is the whole process's, and means nothing."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=25, help="an arm is measured, after its warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="updates that are not timed")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--arms", nargs="+", choices=MAKERS, default=ARMS)
    parser.add_argument("--tiny", action="store_true", help="a shape of nothing, to try whether it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    quieten()
    machine = detect_machine()
    if machine.gpu is None and not options.tiny:
        sys.exit("gpu_8b: no GPU here: use --tiny to try whether it runs")
    result = where_and_when() | {"tiny": options.tiny, "seconds": options.seconds, "warmup": options.warmup}
    result["cases"] = {}
    with tempfile.TemporaryDirectory() as folder, environment(ANITA_RUNS=folder, ANITA_CACHE=f"{folder}/cache"):
        base = shape_folder(Path(folder) / "shape", options.tiny)
        for name in options.cases:
            profile_name, stage_name = CASES[name]
            profile = profile_of(profile_name, machine, options.tiny, base)
            try:
                profile.check(machine)
            except AnitaError as error:  # bf16 on a T4
                result["cases"][name] = {"refused": str(error)}
                continue
            case = result["cases"][name] = case_of(profile, stage_name)
            for arm in options.arms:
                with patch.object(training, "load_for_training", load_random):
                    found = measure(MAKERS[arm], open_stage(profile, stage_name), options.warmup, options.seconds)
                if "failed" not in found:
                    found["share"] = round(found["tokens_per_second"] * case["flop_a_token"] / case["matrix_rate"], 4)
                case["arms"][arm] = found
                print(f"{name}, {arm}: {found}", flush=True)
                write_text(options.out / "gpu_8b.json", json.dumps(result, indent=1) + "\n")
                write_text(options.out / "gpu_8b.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
