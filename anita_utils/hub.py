"""Where data and models are found: shipped with the course, in a run, in a folder, or on the Hugging Face Hub.

>>> resolve_model("tiny-llama-3-instruct")     # the small base model shipped in data/
>>> resolve_model("dpo")                       # the merged model of that stage in the latest run
>>> resolve_model("meta-llama/Meta-Llama-3-8B-Instruct", "5f0b02c75b57c5855da9ae460ce51323ea669d8a")    # from the Hub
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.cache import digest
from anita_utils.download import MODEL_FILES, download_model, resolve_revision
from anita_utils.paths import data_dir, file_hash

if TYPE_CHECKING:
    from anita_utils.profile import Profile

SHIPPED_BASE = "tiny-llama-3-instruct"
STAGES = ("base", "sft", "italian", "dpo")
RESTORE = "restore the file (git checkout, or train the stage again)"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # those of old without an owner are no models for this course
# The files that decide what a model answers
DECISIVE = [*MODEL_FILES, "additional_chat_templates/*.jinja"]
COMMIT = re.compile(r"[0-9a-f]{40}")  # the name of a snapshot's folder in the Hub's cache


def resolve_model(name: str, revision: str | None = None, run=None) -> str:
    """The folder of the model called `name`, to hand to `from_pretrained`.

    name: `tiny-llama-3-instruct`, a stage (base, sft, italian, dpo), a folder, or a name on the Hub. A stage wins over
        a folder of the same name: write `./sft` for the folder.
    revision: the commit of the Hub repository; None takes what its main branch holds today, and says so.
    run: the `Run` whose stages are meant; the latest by default.

    A model on the Hub is downloaded unless it is in the local cache. Raises AnitaError for a missing or damaged folder,
    a stage that was not trained yet, or a model that the Hub does not give.
    """
    if name == SHIPPED_BASE:
        return str(check_model_folder(data_dir() / SHIPPED_BASE))
    if name in STAGES:
        return _resolve_stage(name, run)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(check_model_folder(folder))
    if not on_hub(name):
        raise AnitaError(
            f"no model folder {shown(folder)}: check the path, or name a stage ({', '.join(STAGES)}) "
            "or a repository on the Hub as owner/name"
        )
    folder = download_model(name, revision)
    cache = shown(folder.parents[1])
    return str(check_model_folder(folder, f"delete {cache} to download it anew; if it is so there, take another model"))


def on_hub(name: str) -> bool:
    """Whether `name` can only be that of a Hub repository: no shipped model, no stage, no folder."""
    if name == SHIPPED_BASE or name in STAGES or Path(name).expanduser().is_dir():
        return False
    return HUB_NAME.fullmatch(name) is not None and not name.startswith(".")


def todays_pins(profile: Profile) -> dict[str, dict]:
    """What a profile leaves unpinned, with the commits that the main branches hold today: a piece of a profile.

    Asks the Hub: AnitaError for the first that it does not tell.
    """
    pins = {}
    if on_hub(profile.model.base) and profile.model.revision is None:
        pins["model"] = {"base": profile.model.base, "revision": resolve_revision(profile.model.base)}
    for name, data in profile.datasets.items():
        if data.revision is None and (data.files or "hf://").startswith("hf://"):
            pins.setdefault("datasets", {})[name] = {"revision": resolve_revision(name, kind="dataset")}
    return pins


def _resolve_stage(stage: str, run) -> str:
    """The folder of a stage's merged model; for `base`, of the model that the run's profile starts from."""
    from anita_utils.record import Run, runs_dir  # here: it brings pandas, and most callers name a folder

    run = run or Run.latest()
    if stage == "base":
        model = run.profile.model if run else None
        return resolve_model(model.base, model.revision) if model else resolve_model(SHIPPED_BASE)
    if run is None:
        raise AnitaError(f"no run yet in {shown(runs_dir())}, so no model '{stage}': run `anita course` first")
    folder = run.model_dir(stage) / "merged"
    if not folder.is_dir():
        raise AnitaError(f"run '{run.folder.name}' has no model '{stage}' yet ({shown(folder)}): run its lesson first")
    return str(check_model_folder(folder))


def check_model_folder(folder: Path, remedy: str | None = None) -> Path:
    """The absolute `folder`, once it is seen to hold a whole model: configuration, tokenizer, untruncated weights.

    Reads only the headers of the weights, so it costs nothing. Raises AnitaError naming the file, with `remedy` instead
    of the usual one.
    """
    folder = Path(folder).absolute()
    if (folder / "adapter_config.json").is_file():  # transformers would put it on the model, and merging would not
        holds = "an adapter beside its model" if (folder / "config.json").is_file() else "only a LoRA adapter"
        raise AnitaError(f"{shown(folder)} holds {holds}: merge it, and name the merged model's folder instead")
    if not (folder / "config.json").is_file():
        restore = remedy or "check the path, or restore it"
        raise AnitaError(f"{shown(folder)} is not a model folder (no config.json): {restore}")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise AnitaError(f"{shown(folder)} has no tokenizer.json: {remedy or 'save the tokenizer beside the model'}")
    for weights in weight_files(folder):
        check_safetensors(weights, remedy or RESTORE)
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: the single one, or the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        return [folder / shard for shard in sorted(shards)]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise AnitaError(f"{shown(index)} is damaged ({error}): restore or save the model again") from error


def check_safetensors(file: Path, remedy: str = RESTORE) -> None:
    """Raises AnitaError when a safetensors file is missing, damaged or shorter than its header says."""
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


def model_key(path: str | Path) -> str:
    """What tells a model from all others: a hash of its weights, configuration, tokenizer and chat template, or the
    commit of a snapshot from the Hub.
    """
    path = Path(path)
    files = sorted(file for pattern in DECISIVE for file in path.glob(pattern))
    if path.parent.name == "snapshots" and COMMIT.fullmatch(path.name):  # the commit tells the weights, if not an edit
        small = [file for file in files if file.suffix != ".safetensors"]
        commit = f"{path.parents[1].name}@{path.name}"
        return f"{commit}-{digest([[f.name, _hash_once(f, _stamp(f))] for f in small])}" if small else commit
    return digest([[file.name, _hash_once(file, _stamp(file))] for file in files])


def _stamp(file: Path) -> tuple[int, ...]:
    """What changes with a file's contents: size, times of change, place on the disk."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@cache
def _hash_once(file: Path, stamp: tuple[int, ...]) -> str:
    """The hash of a file, read again only when its stamp is another: weights can be large."""
    return file_hash(file)
