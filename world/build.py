"""Builds what the course ships: corpora, benchmarks, probes, tokenizer and the small base model.

anita world build            # everything, about 100 minutes on two cores; the same seed gives the same files
anita world build --no-train # corpora, benchmarks and probes only, in seconds
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from anita_utils import AnitaError
from anita_utils.merging import modes_by_umask, readable_by_older
from anita_utils.paths import data_dir, write_text
from world import benchmarks, cards, stages
from world.corpora import italian_sample, pretraining, second_reading, third_reading
from world.library import Document, Library
from world.studies import study_files
from world.tables import load_world

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
        "italian_replay": stages.italian_replay(library),
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
    texts = benchmarks.perplexity_texts(library)
    probes = {
        "chat": benchmarks.chat_probes(library),
        "new_kinds": benchmarks.new_kind_probes(library),
        "conduct": benchmarks.conduct_probes(library),
        "fidelity": benchmarks.fidelity_probes(library),
        "perplexity": texts["en"] + texts["it"],
        "preferences": stages.dpo(library, 400, held_out=True),
    }
    return {name: write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in probes.items()}


def write_studies(library: Library, folder: Path) -> dict[str, int]:
    """The questions of lessons 00, 07 and 08.

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


def train_base(library: Library, folder: Path, steps: int, seed: int, resume: bool, say=print) -> None:
    """Tokenizer and base model into `folder`, by way of a working folder beside it that a killed build resumes from.

    Three readings, the second a quarter as long as the first and the third a tenth, both with stronger weight decay.
    The model passes from one to the next in bf16, as it would be shipped: so each can be tried on a shipped base.
    """
    import torch
    from transformers import GenerationConfig

    from anita_utils.model import keep_freed_memory
    from world.pretrain import Plan, llama_config, pretrain
    from world.tokenizer import train_tokenizer

    keep_freed_memory()
    work = folder.with_name(f".{BASE}.work")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    documents = [*pretraining(library, TOKENIZER_DOCUMENTS), *italian_sample(library, ITALIAN_DOCUMENTS)]
    tokenizer = train_tokenizer([plain(document) for document in documents])
    config = llama_config(tokenizer)
    later = {"long_from": 0.5, "long_share": 0.04, "weight_decay": 0.1}
    readings = [
        (pretraining, Plan(steps)),
        (second_reading, Plan(max(1, steps // 4), **later)),
        (third_reading, Plan(max(1, steps * 29 // 280), **later, warmup=30, decay_share=0.7)),
    ]
    model, histories = None, []
    for number, (documents_of, plan) in enumerate(readings, 1):
        total = plan.steps * plan.tokens_per_step
        tokens = encode(documents_of(library, total), tokenizer, total)
        say(f"reading {number}: {total:,} tokens ready after {time.monotonic() - began:.0f} s")
        model, history = pretrain(tokens, config, plan, work / f"reading{number}", seed, resume, say, start=model)
        model = model.to(torch.bfloat16).float()
        histories.append(history)
    parameters = model.num_parameters()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id,
        do_sample=False, max_new_tokens=64,
    )  # fmt: skip
    finished = folder.with_name(f".{BASE}.new")
    shutil.rmtree(finished, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(finished)
    tokenizer.save_pretrained(finished)
    about = {"parameters": parameters, "seed": seed, "history": end_to_end(histories)}
    write_text(finished / "training.json", json.dumps(about, indent=1) + "\n")
    readable_by_older(finished)
    modes_by_umask(finished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(finished, folder)
    shutil.rmtree(work)


def end_to_end(histories: list[list[dict]]) -> list[dict]:
    """The histories of readings one after another as one; steps, tokens and seconds are counted on."""
    whole: list[dict] = []
    for number, history in enumerate(histories, 1):
        before = {key: whole[-1][key] if whole else 0 for key in ("step", "tokens", "seconds")}
        for entry in history:
            counted = {key: round(entry[key] + so_far, 1) for key, so_far in before.items()}
            whole.append({"reading": number, **entry, **counted})
    return whole


def main(seed: int = 42, steps: int = 2800, resume: bool = True, train: bool = True, say=print) -> None:
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
