"""A dry run: all of a profile that can be tried without its weights, its data sets and its GPU.

>>> dry_run("h100")     # what `anita course --profile h100 --dry-run` does
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import torch
import transformers
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, SFTConfig

from anita_utils import shown
from anita_utils.chat_template import inspect_template
from anita_utils.data import IGNORED, PackedCollator
from anita_utils.hub import SHIPPED_BASE, on_hub, resolve_model
from anita_utils.hub import rows as hub_rows
from anita_utils.memory import GIB, GPUS, Job, architecture, bytes_by_part, job_of, meta_model, plan, trainable
from anita_utils.model import checked_tokenizer, parameter_counts, quantisation_config
from anita_utils.paths import data_dir, environment
from anita_utils.profile import Profile, load_profile
from anita_utils.run import Run
from anita_utils.stages import Stage
from anita_utils.training import COMPUTE_DTYPES, PREPACKED, lora_config, training_arguments, training_rows

SAMPLE = 16  # rows of a shipped corpus; a fixture is taken whole


def dry_run(name: str, console: Console | None = None) -> int:
    """Tries the profile of that name, or at that path, and prints what was found and the plan of its memory.

    Returns 0, or 1 where something failed, with a line for each failure. AnitaError for a profile that is not valid.
    """
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    console = console or Console()
    profile = load_profile(name)
    table, failures = Table("", "", title=f"{profile.name} without its weights", show_header=False), []
    # What a stage leaves behind, fetched samples too, is thrown away
    with TemporaryDirectory() as folder, environment(ANITA_CACHE=folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is trained, nor downloaded
        for what, attempt in attempts(profile):
            try:
                found = attempt()
            except Exception as error:  # of any library: what it says is the finding
                found = "failed"
                failures.append(f"{what} failed: {' '.join(str(error).split()) or type(error).__name__}")
            table.add_row(what, found)
    console.print(table)
    if not any(failure.startswith("memory") for failure in failures):
        console.print(memory_table(profile))
    for failure in failures:
        console.print(failure, markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0


def attempts(profile: Profile) -> Iterator[tuple[str, Callable[[], str]]]:
    """What is tried, one after the other: its name, and a function that returns what was found or raises."""
    stages = {name: Stage(without_hub(profile), name, profile.stages[name]) for name in profile.order}
    yield "profile", lambda: f"valid; {', '.join(profile.order)}"
    yield "4-bit weights", lambda: quantisation_of(profile)
    yield "model", lambda: f"{profile.model.base}: {weights_of(profile):,} weights, on the meta device"
    for name, stage in stages.items():
        yield f"{name}, trainer", lambda stage=stage: configuration(stage)
        yield f"{name}, adapter", lambda stage=stage: adapter(profile, stage)
    yield "tokenizer", lambda: whose_tokenizer(profile)
    yield "chat template", lambda: str(inspect_template(tokenizer_here(profile)))
    named = [(corpus, name) for name in profile.order for corpus in profile.stages[name].data]
    others = [(corpus, None) for corpus in profile.datasets if corpus not in dict(named)]
    for corpus, name in named + others:
        yield corpus, lambda corpus=corpus, name=name: batch_of(profile, corpus, name)
    yield "memory", lambda: memory_fits(profile)


def without_hub(profile: Profile) -> Run:
    """A run of the profile, of which nothing is written, where each data set is read from its fixture, and the shipped
    base stands in for one on the Hub.
    """
    local = profile.model_copy(deep=True)
    if on_hub(profile.model.base):
        local.model.base, local.model.revision = SHIPPED_BASE, None
    for name, settings in local.datasets.items():
        if fixture(name):
            local.datasets[name] = settings.model_copy(update={"files": str(fixture(name)), "sample": None})
    return Run(Path("dry-run"), local, profile.seed)


def fixture(name: str) -> Path | None:
    """The file with a few rows in the columns of a data set on the Hub; None where the course has none."""
    files = (data_dir() / "fixtures").glob(f"{name.rpartition('/')[2].replace('-', '_')}.*")
    return next(files, None)


def quantisation_of(profile: Profile) -> str:
    """Builds the library's configuration of the frozen weights."""
    computed = COMPUTE_DTYPES[profile.precision]
    if quantisation_config(profile.quantisation, computed) is None:
        return f"none: {profile.model.dtype}"
    held = profile.quantisation
    double = "quantised twice" if held.bnb_4bit_use_double_quant else "quantised once"
    return f"{held.bnb_4bit_quant_type}, {double}, computed in {computed}; the others in {profile.model.dtype}"


def weights_of(profile: Profile) -> int:
    return architecture(profile.model.base).parameters


def configuration(stage: Stage) -> str:
    """Builds the stage's SFTConfig or DPOConfig, with the profile's own precision."""
    stage.corpora = []  # the arguments name the stage's folder by a hash of its data, which need not be here
    arguments = training_arguments(stage)
    if stage.name == "dpo":
        config = DPOConfig(beta=stage.settings.beta, **arguments)
    else:
        config = SFTConfig(**arguments, **PREPACKED)
    batch = f"{config.per_device_train_batch_size} × {config.gradient_accumulation_steps}"
    parts = [type(config).__name__, config.mixed_precision.replace("no", "fp32"), str(config.optim.value), batch]
    parts += [f"rate {config.learning_rate:g}", config.lr_scheduler_type.value, f"{config.max_length:,} tokens"]
    return ", ".join(parts + ["use_cpu added, as no GPU is here"] * config.use_cpu)


def adapter(profile: Profile, stage: Stage) -> str:
    """Attaches the stage's adapter to the model on the meta device, and holds its weights against the planner's."""
    with torch.device("meta"):
        adapted = get_peft_model(meta_model(profile.model.base), lora_config(stage))
    count = parameter_counts(adapted)["trainable"]
    lora = stage.settings.lora
    planned = trainable(Job(profile.model.base, lora.r, targets=tuple(lora.target_modules)))
    if count != planned:
        raise ValueError(f"PEFT trains {count:,} weights, the planner counts {planned:,}")
    return f"r = {lora.r}: {count:,} weights to train"


def batch_of(profile: Profile, corpus: str, name: str | None) -> str:
    """One batch of a corpus for the stage of that name, masked and collated by the code that trains on it.

    name: None for an alternative that no stage names: then it is one that takes such rows.
    """
    if corpus in profile.datasets and not fixture(corpus):
        return "no fixture: its columns are not tried"
    run = without_hub(profile)
    name = name or taker(run.profile, corpus)
    settings = run.profile.stages[name].model_copy(update={"data": [corpus], "examples": SAMPLE})
    stage = Stage(run, name, settings)
    ids, scored = (preference_batch if name == "dpo" else packed_batch)(stage)
    return f"{name}: {len(stage.documents())} rows, a batch of {ids[0]} × {ids[1]} tokens, {scored:,} of them scored"


def taker(profile: Profile, corpus: str) -> str:
    """A stage that takes the corpus's rows: DPO for pairs."""
    pairs = "chosen" in next(hub_rows(corpus, profile.datasets[corpus]))
    return next(name for name in profile.stages if (name == "dpo") == pairs)


def whose_tokenizer(profile: Profile) -> str:
    """Which tokenizer renders the data here."""
    if on_hub(profile.model.base):
        return f"{SHIPPED_BASE}'s, as the profile's own is on the Hub"
    base = profile.model.base
    return f"{base if base == SHIPPED_BASE else shown(Path(base).expanduser())}'s"


def tokenizer_here(profile: Profile) -> PreTrainedTokenizerBase:
    """The base's own tokenizer, checked, or the shipped one where the base is on the Hub."""
    base = SHIPPED_BASE if on_hub(profile.model.base) else profile.model.base
    return checked_tokenizer(resolve_model(base), profile.model.system_in_user)


def packed_batch(stage: Stage) -> tuple[tuple[int, int], int]:
    """The shape of a batch of packed rows, and how many of its tokens are scored."""
    tokenizer = tokenizer_here(stage.run.profile)
    rows = training_rows(stage, tokenizer).to_list()[: stage.settings.per_device_train_batch_size]
    batch = PackedCollator(tokenizer.pad_token_id)(rows)
    return tuple(batch["input_ids"].shape), int((batch["labels"] != IGNORED).sum())


def preference_batch(stage: Stage) -> tuple[tuple[int, int], int]:
    """The same of a batch of pairs as TRL's trainer makes it; a model of one layer stands in, since it wants one."""
    tokenizer = tokenizer_here(stage.run.profile)
    rows = training_rows(stage, tokenizer)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    # Without the profile's precision and optimiser: a trainer, unlike its configuration, refuses what is not here
    arguments = training_arguments(stage) | {"bf16": False, "fp16": False, "optim": "adamw_torch"}
    trainer = DPOTrainer(
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)),
        args=DPOConfig(beta=stage.settings.beta, **arguments),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(stage),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    return tuple(batch["input_ids"].shape), int(batch["completion_mask"].sum())


def memory_fits(profile: Profile) -> str:
    """The GPUs that every stage fits, and the model when it is measured."""
    plans = [plan(job_of(profile, name)) for name in (*profile.order, "evaluation")]
    fitting = [gpu for gpu in GPUS if all(found["fits"][gpu] for found in plans)]
    known = ", ".join(fitting) or "none of the GPUs known"
    return f"all stages and the evaluation fit {known}; an estimate, see `anita plan`"


def memory_table(profile: Profile) -> Table:
    """The planner's figures, a column for each stage and one for the evaluation."""
    parts = {name: bytes_by_part(job_of(profile, name)) for name in (*profile.order, "evaluation")}
    table = Table("GiB", *parts, title="on a GPU, estimated")
    for part in next(iter(parts.values())):
        table.add_row(part, *(f"{sizes[part] / GIB:.2f}" for sizes in parts.values()), end_section=part == "overhead")
    return table
