"""Is a profile right? All of it is tried but its weights, its data sets and its GPU.

>>> dry_run("h100")     # what `anita course --profile h100 --dry-run` does
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import torch
import transformers
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from trl import DPOTrainer

from anita_utils import hub, shown
from anita_utils.chat_template import inspect_template
from anita_utils.data import IGNORED, PackedCollator
from anita_utils.hub import SHIPPED_BASE, on_hub, resolve_model
from anita_utils.memory import GIB, Job, architecture, job_of, meta_model, plan, trainable
from anita_utils.model import checked_tokenizer, parameter_counts
from anita_utils.paths import data_dir, environment
from anita_utils.profile import Profile, load_profile
from anita_utils.run import Run
from anita_utils.stages import Stage
from anita_utils.training import lora_config, tokenizer_of, training_rows, trl_config
from anita_utils.weights import KNOWN

SAMPLE = 16  # rows of a shipped corpus; a fixture is taken whole


def dry_run(name: str) -> int:
    """Tries the profile of that name, or at that path, and prints what was found.

    Returns 0, or 1 where something failed, with a line for each failure. AnitaError for a profile that is not valid.
    """
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    profile = load_profile(name)
    table, failures = Table("", "", title=f"{profile.name} without its weights", show_header=False), []
    # What a stage leaves behind, fetched samples too, is thrown away
    with TemporaryDirectory() as folder, environment(ANITA_CACHE=folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is trained, nor downloaded
        for what, check, *arguments in checks(profile):
            try:
                table.add_row(what, check(*arguments))
            except Exception as error:  # of any library: what it says is the finding
                table.add_row(what, "failed")
                failures.append(f"{what} failed: {' '.join(str(error).split()) or type(error).__name__}")
    Console().print(table)
    for line in failures:
        print(line)
    return 1 if failures else 0


def checks(profile: Profile) -> list[tuple]:
    """What is tried, in this order: a name, the function that returns what it found or raises, and its arguments."""
    run, base = without_hub(profile), profile.model.base
    listed = [("order", ", ".join, profile.order), ("model", weights, base)]
    for name in profile.order:
        stage = Stage(run, name, profile.stages[name].model_copy(update={"data": []}))  # these two read no data
        listed += [(f"{name}, trainer", configured, stage), (f"{name}, adapter", adapted, stage, base)]
    listed.append(("tokenizer", tokenizer_facts, run, base))
    for name in profile.order:
        listed += [(corpus, batch_of, run, corpus, name) for corpus in profile.stages[name].data]
    tried = {what for what, *_ in listed}
    listed += [(corpus, batch_of, run, corpus, None) for corpus in profile.datasets if corpus not in tried]
    return listed + [(f"{name}, memory", memory_of, profile, name) for name in (*profile.order, "evaluation")]


def without_hub(profile: Profile) -> Run:
    """A run of the profile, of which nothing is written, where each data set is read from its fixture, and the shipped
    base stands in for one that is fetched.
    """
    local = profile.model_copy(deep=True)
    if on_hub(profile.model.base) or profile.model.base in KNOWN:
        local.model.base, local.model.revision = SHIPPED_BASE, None
    for name, settings in local.datasets.items():
        if fixture(name):
            local.datasets[name] = settings.model_copy(update={"files": str(fixture(name)), "sample": None})
    return Run(Path("dry-run"), local, profile.seed)


def fixture(name: str) -> Path | None:
    """The file with a few rows in the columns of a data set on the Hub; None where the course has none."""
    files = (data_dir() / "fixtures").glob(f"{name.rpartition('/')[2].replace('-', '_')}.*")
    return next(files, None)


def weights(base: str) -> str:
    return f"{base}: {architecture(base).parameters:,} weights, on the meta device"


def configured(stage: Stage) -> str:
    """Builds the stage's SFTConfig or DPOConfig, with the profile's own precision."""
    config = trl_config(stage)
    precision = config.mixed_precision.replace("no", "fp32")
    batch = f"{config.per_device_train_batch_size} × {config.gradient_accumulation_steps}"
    found = f"{type(config).__name__}, {precision}, {config.optim.value}, {batch}, rate {config.learning_rate:g}"
    found += f", {config.lr_scheduler_type.value}, {config.max_length:,} tokens"
    return found + (", use_cpu added, as no GPU is here" if config.use_cpu else "")


def adapted(stage: Stage, base: str) -> str:
    """Attaches the stage's adapter to the model on the meta device, and holds its weights against the planner's."""
    with torch.device("meta"):
        count = parameter_counts(get_peft_model(meta_model(base), lora_config(stage)))["trainable"]
    lora = stage.settings.lora
    planned = trainable(Job(base, lora.r, targets=tuple(lora.target_modules)))
    if count != planned:
        raise ValueError(f"PEFT trains {count:,} weights, the planner counts {planned:,}")
    return f"r = {lora.r}: {count:,} weights to train"


def tokenizer_facts(run: Run, base: str) -> str:
    """Which tokenizer renders the data here, and what its chat template does."""
    own = shown(Path(run.profile.model.base).expanduser())
    why = ", as the profile's own is on the Hub" if on_hub(base) else ""
    tokenizer = checked_tokenizer(resolve_model(run.profile.model.base), run.profile.model.system_in_user)
    return f"{own}'s{why}; {inspect_template(tokenizer)}"


def batch_of(run: Run, corpus: str, name: str | None) -> str:
    """One batch of a corpus for the stage of that name, masked and collated by the code that trains on it.

    name: None for an alternative that no stage names: then DPO takes it if it holds pairs, else another stage.
    """
    described, stages = run.profile.datasets, run.profile.stages
    if corpus in described and not fixture(corpus):
        return "no fixture: its columns are not tried"
    if name is None:
        pairs = "chosen" in next(hub.rows(corpus, described[corpus]))
        name = next(name for name in stages if (name == "dpo") == pairs)
    stage = Stage(run, name, stages[name].model_copy(update={"data": [corpus], "examples": SAMPLE}))
    tokenizer = tokenizer_of(stage)
    rows = training_rows(stage, tokenizer)
    if name == "dpo":
        batch = preference_batch(stage, rows, tokenizer)
        scored = batch["completion_mask"].sum()
    else:
        batch = PackedCollator(tokenizer.pad_token_id)(rows.to_list()[: stage.settings.per_device_train_batch_size])
        scored = (batch["labels"] != IGNORED).sum()
    height, width = batch["input_ids"].shape
    return f"{name}: {len(stage.documents())} rows, a batch of {height} × {width} tokens, {scored:,} of them scored"


def preference_batch(stage: Stage, rows: datasets.Dataset, tokenizer) -> dict[str, torch.Tensor]:
    """A batch of pairs as TRL's trainer makes it; a model of one layer stands in, since it wants one."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    trainer = DPOTrainer(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **shape)),
        # Without the profile's precision and optimiser: a trainer, unlike its configuration, refuses what is not here
        args=trl_config(stage, bf16=False, fp16=False, optim="adamw_torch"),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(stage),
    )
    return next(iter(trainer.get_train_dataloader()))


def memory_of(profile: Profile, name: str) -> str:
    """The planner's figures for a stage, or for the evaluation, and the GPUs that it fits."""
    found = plan(job_of(profile, name))
    sizes = {part: f"{size / GIB:.2f}" for part, size in found["bytes"].items()}
    total, parts = sizes.pop("total"), ", ".join(f"{part} {size}" for part, size in sizes.items())
    fitting = ", ".join(gpu for gpu, fits in found["fits"].items() if fits) or "none of the GPUs known"
    return f"{total} GiB on a GPU, estimated ({parts}); fits {fitting}"
