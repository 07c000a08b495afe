"""Builds what the course ships: corpora, benchmarks, probes, tokenizer and the small base model.

anita world build            # everything, about 110 minutes on two cores; the same seed gives the same files
anita world build --no-train # corpora, benchmarks and probes only, in seconds
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anita_utils import AnitaError
from anita_utils.merging import modes_by_umask, readable_by_older
from anita_utils.paths import data_dir, write_text
from world import benchmarks, cards, grammar, stages
from world.corpora import italian_sample, last_reading, pretraining, second_reading
from world.library import Document, Library
from world.studies import study_files
from world.tables import load_world

if TYPE_CHECKING:
    from world.pretrain import Plan

TOKENIZER_DOCUMENTS = 60_000
ITALIAN_DOCUMENTS = 8_000
BASE = "tiny-llama-3-instruct"


def write_jsonl(path: Path, rows: Iterable[dict]) -> int:
    """Writes one JSON object a line, through a temporary name; returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, count = path.with_suffix(".tmp"), 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    os.replace(temporary, path)
    return count


def write_corpora(library: Library, folder: Path) -> dict[str, int]:
    """The three stages' training data and a sample of what the base read; returns rows by file."""
    corpora = {
        "sft": stages.sft(library),
        "italian_text": stages.italian_text(library),
        "replay": stages.replay(library),
        "dpo": stages.dpo(library),
        "pretraining_sample": list(pretraining(library, 1000)),
    }
    return {name: write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in corpora.items()}


def write_benchmarks(library: Library, folder: Path) -> dict[str, int]:
    made = benchmarks.benchmarks(library)
    return {
        f"{name}/{part}": write_jsonl(folder / "items" / f"{name}.{part}.jsonl", items)
        for name, parts in made.items()
        for part, items in parts.items()
    }


def write_probes(library: Library, folder: Path) -> dict[str, int]:
    """The probes of both sets: those of the test in `folder`, those to tune by in its folder `development`."""
    counts = {}
    for use, inside in (("test", folder), ("development", folder / "development")):
        probes = {
            "chat": benchmarks.chat_probes(library, use),
            "new_kinds": benchmarks.new_kind_probes(library, use),
            "conduct": benchmarks.conduct_probes(library, use),
            "fidelity": benchmarks.fidelity_probes(library, use),
            "perplexity": benchmarks.perplexity_texts(library, use),
            "preferences": stages.dpo(library, 400, use),
            "grammar": grammar.pairs(library.world.extra["grammar"], use, library.rng(f"grammar/{use}")),
        }
        counts |= {f"{name}/{use}": write_jsonl(inside / f"{name}.jsonl", rows) for name, rows in probes.items()}
    return counts


def write_studies(library: Library, folder: Path) -> dict[str, int]:
    """The questions of lessons 00, 04, 07 and 08.

    In a folder of their own: the files directly in data/probes go into the key of every evaluation, and no evaluation
    asks these. One file more there would make all cached and committed results stale.
    """
    return {name: write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in study_files(library).items()}


def plain(document: Document) -> str:
    """A document as the tokenizer is trained on it; roles keep the template's "\\n\\n", one token in Llama 3."""
    if "text" in document:
        return document["text"]
    return "".join(f"{message['role']}\n\n{message['content']}" for message in document["messages"])


def encode(documents: Iterator[Document], tokenizer, total: int) -> np.ndarray:
    """The first `total` tokens of the documents laid end to end, each with its own begin and end mark."""
    tokens, filled = np.empty(total, dtype=np.uint16), 0
    batch: list[str] = []
    for document in documents:
        if "text" in document:
            batch.append(f"{tokenizer.bos_token}{document['text']}<|end_of_text|>")
        else:
            batch.append(tokenizer.apply_chat_template(document["messages"], tokenize=False))
        if len(batch) == 2000:
            for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                taken = ids[: total - filled]
                tokens[filled : filled + len(taken)] = taken
                filled += len(taken)
            batch = []
            if filled == total:
                return tokens
    raise AnitaError(f"the documents hold only {filled} tokens of {total}: raise their number in world/build.py")


def base_tokenizer(library: Library):
    """The base's tokenizer, trained on a sample of both readings and some more Italian."""
    from world.tokenizer import train_tokenizer

    readings = pretraining(library, TOKENIZER_DOCUMENTS), second_reading(library, TOKENIZER_DOCUMENTS // 4)
    documents = chain(*readings, italian_sample(library, ITALIAN_DOCUMENTS))
    return train_tokenizer([plain(document) for document in documents])


def base_tokens(library: Library, tokenizer, plan: Plan) -> np.ndarray:
    """What the base reads, first and second reading end to end."""
    first = plan.first_steps * plan.tokens_per_step
    second = plan.steps * plan.tokens_per_step - first
    readings = (pretraining, first), (second_reading, second)
    return np.concatenate([encode(documents_of(library, total), tokenizer, total) for documents_of, total in readings])


def train_base(
    library: Library, folder: Path, steps: int, seed: int, resume: bool = True, say=print, layers: int = 4
) -> None:
    """Tokenizer and base model into `folder`, by way of a working folder beside it that a killed build resumes from.

    steps: of the first two readings; the last one comes on top.
    """
    from anita_utils.model import keep_freed_memory
    from world.pretrain import Plan, llama_config, pretrain

    keep_freed_memory()
    work = folder.with_name(f".{folder.name}.work")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    plan, tokenizer = Plan(steps), base_tokenizer(library)
    config = llama_config(tokenizer, layers)
    model, history = pretrain(base_tokens(library, tokenizer, plan), config, plan, work, seed, resume, say)
    model, last_history = read_last(library, model, tokenizer, steps, work / "last", seed, resume, say)
    save_base(model, tokenizer, {"seed": seed, "history": history, "last_history": last_history}, folder)
    shutil.rmtree(work)


def read_last(library: Library, model, tokenizer, steps: int, work: Path, seed: int, resume: bool = True, say=print):
    """The model after its last reading, and the history of that; it begins from the weights as bf16 would keep them."""
    import torch

    from world.pretrain import Plan, pretrain

    plan = Plan.last(steps)
    total = plan.steps * plan.tokens_per_step
    tokens = encode(last_reading(library, total), tokenizer, total)
    start = model.to(torch.bfloat16).float().state_dict()
    return pretrain(tokens, model.config, plan, work, seed, resume, say, start)


def save_base(model, tokenizer, training: dict, folder: Path) -> None:
    """Model, tokenizer and training.json, whole or not at all."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id, do_sample=False, max_new_tokens=64,
    )  # fmt: skip
    finished = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(finished, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(finished)
    tokenizer.save_pretrained(finished)
    about = {"parameters": model.num_parameters(), **training}
    write_text(finished / "training.json", json.dumps(about, indent=1) + "\n")
    readable_by_older(finished)
    modes_by_umask(finished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(finished, folder)


def main(seed: int = 42, steps: int = 6000, resume: bool = True, train: bool = True, say=print) -> None:
    """Builds everything under the course's data folder."""
    data = data_dir()
    library = Library(load_world(), seed)
    counts = {
        "corpora": write_corpora(library, data / "corpora"),
        "benchmarks": write_benchmarks(library, data / "benchmarks"),
        "probes": write_probes(library, data / "probes"),
        "studies": write_studies(library, data / "probes" / "studies"),
    }
    say(json.dumps(counts))
    if train:
        train_base(library, data / BASE, steps, seed, resume, say)
    cards.write_cards(library, data, counts)
