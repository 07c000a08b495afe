"""The planner's figure beside a measured peak: QLoRA SFT of a random Llama on a CPU, in cases above 1 GiB, and what
lm-eval takes to rank answers with it.

    python benchmarks/memory_cpu.py        writes benchmarks/results/memory_cpu.json and .md; exit code 1 above 5 %

Measured: every allocation and release of PyTorch's CPU allocator, as the profiler sees them, added up over two updates
of two accumulated steps each (so that optimiser and gradients are there when activations peak). Base and adapter are
loaded before; so the peak over that baseline stands beside gradients + optimizer + activations + logits of the plan.
What is done before training begins (loading, TRL's making of the trainer) is not in it. Takes some minutes, about 5 GB.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

CONFIG = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip
CASES = [
    {"batch": 4, "length": 1024, "checkpointing": False},
    {"batch": 8, "length": 1024, "checkpointing": True},
    {"batch": 2, "length": 1024, "checkpointing": False, "r": 64},
    {"batch": 16, "length": 1024, "trained": False},
]
OVER_BASELINE = ("gradients", "optimizer", "activations", "logits")
TOLERANCE = 0.05
RESULTS = Path(__file__).parent / "results"


def peak_of(step) -> int:
    """The most bytes of CPU tensors that `step()` holds at once, over what was held before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def make_trainer(folder: Path, job):
    """TRL's SFT trainer for the job, on the model in `folder` and random packed rows, as the course builds it."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from anita_utils.data import PackedCollator
    from anita_utils.hub import SHIPPED_BASE
    from anita_utils.model import load_model
    from anita_utils.paths import data_dir
    from anita_utils.training import PREPACKED, adapters_in_fp32, score_labels_only

    ids = torch.randint(CONFIG["vocab_size"], (4 * job.batch, job.length)).tolist()
    places = [place % 128 for place in range(job.length)]  # packed: every 128 tokens a new text begins
    rows = Dataset.from_list([{"input_ids": row, "labels": row, "position_ids": places} for row in ids])
    arguments = SFTConfig(
        output_dir=str(folder / "out"), per_device_train_batch_size=job.batch, gradient_accumulation_steps=2,
        max_steps=2, optim=job.optimizer, max_length=job.length, gradient_checkpointing=job.checkpointing,
        use_cpu=True, bf16=False, save_strategy="no", report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False, **PREPACKED,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=load_model(folder, job.quantisation), args=arguments, train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(data_dir() / SHIPPED_BASE), data_collator=PackedCollator(0),
        peft_config=LoraConfig(r=job.r, target_modules=list(job.targets), task_type="CAUSAL_LM"),
    )  # fmt: skip
    adapters_in_fp32(trainer.model)
    score_labels_only(trainer.model)
    return trainer


def ranking(folder: Path, job):
    """A function that has lm-eval rank as many texts of the job's length as make two batches."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from anita_utils.hub import SHIPPED_BASE
    from anita_utils.model import load_model
    from anita_utils.paths import data_dir

    tokenizer = AutoTokenizer.from_pretrained(data_dir() / SHIPPED_BASE)
    lm = HFLM(load_model(folder, job.quantisation).eval(), tokenizer=tokenizer, batch_size=job.batch)
    texts = torch.randint(len(tokenizer), (2 * job.batch, job.length + 1)).tolist()  # the last token is only predicted
    requests = [((str(number), ""), text[:-8], text[-8:]) for number, text in enumerate(texts)]
    return lambda: lm._loglikelihood_tokens(requests, disable_tqdm=True)


def measure(folder: Path, case: dict) -> dict:
    """A case with the plan's bytes by part, their sum over the baseline, the measured peak, and the plan's error."""
    from anita_utils.memory import Job, bytes_by_part

    job = Job(model=str(folder), dtype="float32", precision="fp32", **case)
    parts = bytes_by_part(job, on_gpu=False)
    planned = sum(parts[part] for part in OVER_BASELINE)
    began = time.monotonic()
    measured = peak_of(make_trainer(folder, job).train if job.trained else ranking(folder, job))
    return {
        "what": "SFT" if job.trained else "lm-eval",
        **case,
        "r": job.r if job.trained else None,
        "planned_parts": {part: parts[part] for part in OVER_BASELINE},
        "planned_bytes": planned,
        "measured_bytes": measured,
        "error": round(planned / measured - 1, 4),
        "seconds": round(time.monotonic() - began, 1),
    }


def table(result: dict) -> str:
    """The results for people, in Markdown."""
    from anita_utils.memory import GIB

    machine = result["machine"]
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "transformers", "trl", "peft"))
    lines = [
        "# The planner beside a measured peak, on a CPU",
        "",
        f"`python benchmarks/memory_cpu.py`, {result['when']}, commit {result['commit'] or 'not known'}, on "
        f"{machine['cpu']} ({machine['cores']} cores), with {versions}.",
        f"QLoRA SFT of a random Llama ({CONFIG['num_hidden_layers']} layers of {CONFIG['hidden_size']}) in fp32, and",
        "lm-eval with it: the peak of CPU tensors over what is held before, beside gradients + optimiser + activations",
        "+ logits of the plan.",
        "",
        "| | rows × tokens | r | checkpointing | planned, GiB | measured, GiB | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        sizes = f"{case['planned_bytes'] / GIB:.3f} | {case['measured_bytes'] / GIB:.3f}"
        checkpointing = {True: "yes", False: "no", None: "–"}[case.get("checkpointing")]
        how = f"{case['what']} | {case['batch']} × {case['length']:,} | {case['r'] or '–'} | {checkpointing}"
        lines.append(f"| {how} | {sizes} | {case['error']:+.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from anita_utils.memory import GIB
    from anita_utils.paths import write_text
    from anita_utils.run import where_and_when

    torch.manual_seed(0)
    result = where_and_when() | {"tolerance": TOLERANCE, "cases": []}
    result["versions"] = result["machine"].pop("versions")  # apart, as in results that are there already
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(folder)
        for case in CASES:
            result["cases"].append(measure(Path(folder), case))
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "memory_cpu.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(RESULTS / "memory_cpu.md", table(result))
    print(table(result))
    if any(case["measured_bytes"] < GIB for case in result["cases"]):
        sys.exit("a case is below 1 GiB and says too little: make it larger")
    if any(abs(case["error"]) > TOLERANCE for case in result["cases"]):
        sys.exit(f"the planner is off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
