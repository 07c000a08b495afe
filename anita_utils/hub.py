"""Where data and models are found: shipped with the course, in a run, in a folder, or on the Hugging Face Hub.

>>> resolve_model("tiny-llama-3-instruct")     # the small base model shipped in data/
>>> resolve_model("dpo")                       # the merged model of that stage in the latest run
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from anita_utils import AnitaError, checkout, shown

SHIPPED_BASE = "tiny-llama-3-instruct"
STAGES = ("base", "sft", "italian", "dpo")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def data_dir() -> Path:
    """The folder with the course's data: `ANITA_DATA` if set, else the checkout's `data/`, else the packaged copy.

    Raises AnitaError when there is none.
    """
    root = checkout()
    candidates = [Path(os.environ["ANITA_DATA"])] if os.environ.get("ANITA_DATA") else []
    candidates += [root / "data"] if root else []
    candidates += [Path(__file__).parent / "_data"]
    if candidates[0].is_dir():
        return candidates[0].absolute()
    remedy = "correct ANITA_DATA or unset it" if os.environ.get("ANITA_DATA") else "reinstall the package"
    raise AnitaError(f"no data folder at {shown(candidates[0])}: {remedy}")


def offline() -> bool:
    """Whether the Hub must not be asked (`HF_HUB_OFFLINE`, as huggingface_hub reads it)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def resolve_model(name: str, revision: str | None = None, run=None) -> str:
    """What to hand to `from_pretrained` for a model called `name`.

    name: `tiny-llama-3-instruct`, a stage (base, sft, italian, dpo), a folder, or a name on the Hub. A stage wins over
        a folder of the same name: write `./sft` for the folder.
    revision: the Hub revision that will be asked for; only used to look into the local Hub cache when offline.
    run: the `Run` whose stages are meant; the latest by default.

    Returns a checked folder, or the Hub name as it is. Raises AnitaError for a missing or damaged folder, a stage that
    was not trained yet, or a Hub name that is not cached while offline.
    """
    if name == SHIPPED_BASE:
        return str(check_model_folder(data_dir() / SHIPPED_BASE))
    if name in STAGES:
        return _resolve_stage(name, run)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(check_model_folder(folder))
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise AnitaError(f"no model folder {shown(folder)}: check the path, or name a stage ({', '.join(STAGES)})")
    if offline() and not _cached(name, revision):
        raise AnitaError(
            f"model '{name}' is no stage ({', '.join(STAGES)}), no folder and not cached, and HF_HUB_OFFLINE is set: "
            "correct the name, or unset HF_HUB_OFFLINE to download it"
        )
    return name


def _resolve_stage(stage: str, run) -> str:
    """The folder of a stage's merged model; for `base`, of the model that the run's profile starts from."""
    from anita_utils.record import Run, runs_dir  # here: it brings pandas, and most callers name a folder

    if run is None and (runs_dir() / "latest").exists():
        run = Run.load("latest")
    if stage == "base":
        model = run.profile.model if run else None
        return resolve_model(model.base, model.revision) if model else resolve_model(SHIPPED_BASE)
    if run is None:
        raise AnitaError(f"no run yet in {shown(runs_dir())}, so no model '{stage}': run `anita course` first")
    folder = run.model_dir(stage) / "merged"
    if not folder.is_dir():
        raise AnitaError(f"run '{run.folder.name}' has no model '{stage}' yet ({shown(folder)}): run its lesson first")
    return str(check_model_folder(folder))


def _cached(name: str, revision: str | None) -> bool:
    """Whether the local Hub cache holds the model's configuration."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def check_model_folder(folder: Path) -> Path:
    """The absolute `folder`, once it is seen to hold a whole model: configuration, tokenizer, untruncated weights.

    Reads only the headers of the weights, so it costs nothing. Raises AnitaError naming the file.
    """
    folder = Path(folder).absolute()
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise AnitaError(f"{shown(folder)} holds only a LoRA adapter: name the merged model's folder instead")
        raise AnitaError(f"{shown(folder)} is not a model folder (no config.json): check the path, or restore it")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise AnitaError(f"{shown(folder)} has no tokenizer.json: save the tokenizer beside the model")
    for weights in _weight_files(folder):
        check_safetensors(weights)
    return folder


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: the single one, or the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise AnitaError(f"{shown(index)} is damaged ({error}): restore or save the model again") from error
    return [folder / shard for shard in sorted(shards)]


def check_safetensors(file: Path) -> None:
    """Raises AnitaError when a safetensors file is missing, damaged or shorter than its header says."""
    remedy = "restore the file (git checkout, or train the stage again)"
    if not file.is_file():
        raise AnitaError(f"{shown(file)} is missing: {remedy}")
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_length = int.from_bytes(stream.read(8), "little")
        if size < 8 or header_length > size - 8:
            raise AnitaError(f"{shown(file)} is truncated ({size:,} bytes, header cut off): {remedy}")
        try:
            header = json.loads(stream.read(header_length))
            end = max((t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnitaError(f"{shown(file)} is not a safetensors file (unreadable header): {remedy}") from error
    expected = 8 + header_length + end
    if size != expected:
        raise AnitaError(f"{shown(file)} is truncated ({size:,} of {expected:,} bytes): {remedy}")
