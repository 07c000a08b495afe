"""Where data and models are found: shipped with the course, in a run, in a folder, or on the Hugging Face Hub.

>>> resolve_model("tiny-llama-3-instruct")     # the small base model shipped in data/
>>> resolve_model("dpo")                       # the merged model of that stage in the latest run
>>> resolve_model("meta-llama/Meta-Llama-3-8B-Instruct", "5f0b02c75b57c5855da9ae460ce51323ea669d8a")    # from the Hub
"""
# MERGED DOC:
# """Data sets on the Hub, streamed, sampled and brought into the course's row formats.
#
# >>> name = "efederici/evol-dpo-ita"
# >>> fetch(name, load_profile("laptop").datasets[name])     # a .jsonl file, downloaded once
# PosixPath('…/runs/cache/datasets/efederici--evol-dpo-ita-….jsonl')
#
# Whatever a data set's columns, a row comes out as {"messages": …}, {"text": …} or {"prompt", "chosen", "rejected"}.
# """
# MERGED DOC:
# """Models on the Hugging Face Hub: fetched at a revision, and every failure told in one line with the ways out.
#
# >>> download_model("meta-llama/Llama-3.2-1B-Instruct", "9213176726f574b556790deb65791e0c5aa438b6")
# >>> resolve_revision("gsarti/clean_mc4_it", kind="dataset")     # the commit to pin
#
# Of a repository only safetensors, configuration and tokenizer are fetched: pickles and Python files never are, so no
# code of a repository can run.
# """

from __future__ import annotations

import errno
import glob
import json
import re
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from anita_utils import AnitaError, shown
from anita_utils.cache import Entry, cached, digest
from anita_utils.paths import data_dir, file_hash, locked, replacing
from anita_utils.profile import HubData
from anita_utils.rows import teaching

if TYPE_CHECKING:
    from anita_utils.profile import Profile


SHIPPED_BASE = "tiny-llama-3-instruct"
STAGES = ("base", "sft", "italian", "dpo")
RESTORE = "restore the file (git checkout, or train the stage again)"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # those of old without an owner are no models for this course
MODEL_FILES = [
    "model*.safetensors",
    "model.safetensors.index.json",
    *("config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
]
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
    from anita_utils.paths import runs_dir
    from anita_utils.run import Run  # here: it brings pandas, and most callers name a folder

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


# ---------------------------------------------------------------- download


# Seconds before the second and the third try. huggingface_hub itself tries again where a file breaks off or is looked
# up, but not where the Hub fails in the middle of a file or when asked what a branch stands for.
WAITS = (1, 4)
WAYS_ROUND = "or take the small model with --profile cpu, or a mirror under the same licence by setting model.base"
Answer = TypeVar("Answer")


def download_model(name: str, revision: str | None = None) -> Path:
    """The folder of a Hub model in the local cache, its commit's name, fetched if it is not whole there.

    revision: a commit, tag or branch; None takes what the main branch holds today, and says so.

    A download that breaks off leaves no half-written file behind; the files that were finished are kept for the next.
    Raises AnitaError, one line with the remedy, for whatever keeps the model away.
    """
    folder = ask_hub(lambda: _snapshot(name, revision), name, revision)
    if revision is None:
        note = f"note: {name} is not pinned; this is its commit {folder.name}: set model.revision to it to keep it"
        print(note, file=sys.stderr)
    if not any(folder.glob("model*.safetensors")):
        resolve_revision(name, revision)  # tells so if the Hub is out of reach: then a part of the model was cached
        raise AnitaError(
            f"{name} has no safetensors weights, and others (pickles) can hold harmful code: "
            "set model.base to a repository that has them"
        )
    return folder


def cached_model(name: str, revision: str | None = None) -> Path | None:
    """The folder of a Hub model in the local cache, None if none of it is there. The Hub is not asked."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(name, revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _snapshot(name: str, revision: str | None, **options) -> Path:
    from huggingface_hub import snapshot_download

    # No file of a subfolder: Meta keeps the weights there once more, in another format.
    files = {"allow_patterns": MODEL_FILES, "ignore_patterns": ["*/*"]}
    return Path(snapshot_download(name, revision=revision, **files, **options))


def resolve_revision(name: str, revision: str | None = None, kind: str = "model") -> str:
    """The commit that a branch or tag of a Hub repository stands for today; the main branch for None.

    kind: "model" or "dataset". Asks the Hub, so it needs the network: AnitaError when there is none.
    """
    from huggingface_hub import HfApi

    return ask_hub(lambda: HfApi().repo_info(name, revision=revision, repo_type=kind).sha, name, revision, kind)


def check_access(name: str) -> None:
    """Raises AnitaError unless the files of a Hub model may be downloaded with the token of this machine."""
    from huggingface_hub import HfApi

    ask_hub(lambda: HfApi().auth_check(name), name)


def ask_hub(action: Callable[[], Answer], name: str, revision: str | None = None, kind: str = "model") -> Answer:
    """What `action` returns, a call of huggingface_hub about the repository `name`.

    Failures that pass are waited out (`WAITS`); any other becomes an AnitaError: what, where, remedy.
    """
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    for wait in (*WAITS, None):
        try:
            return action()
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: hf_xet's
            cause = error
            while isinstance(cause, LocalEntryNotFoundError) and cause.__cause__:
                cause = cause.__cause__  # "not in the cache", because the Hub could not be asked for this reason
            if wait is None or not _may_pass(cause):
                raise AnitaError(_explain(cause, name, revision, kind)) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of huggingface_hub, if there is one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: Exception) -> bool:
    """Whether a failure may be gone a little later: an overloaded Hub, a connection cut or a file cut short."""
    # By name, for the HTTP library under huggingface_hub is another one from version to version.
    cut = type(error).__name__ in {"ReadError", "ReadTimeout", "RemoteProtocolError"}
    return cut or "Consistency check failed" in str(error) or _status(error) in {408, 429, 500, 502, 503, 504}


def _explain(error: Exception, name: str, revision: str | None, kind: str) -> str:
    """One line for a failure of the Hub: what is wrong, where, and after the last colon the remedy."""
    from huggingface_hub import constants, errors

    hub, status = constants.ENDPOINT, _status(error)
    address = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{name}"
    wanted = f"{name} at revision {revision}" if revision else name
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]

    if isinstance(error, errors.HFValidationError):
        return f"'{name}' cannot name a Hub repository: write it as owner/name"
    if isinstance(error, errors.GatedRepoError) and status == 401:
        return (
            f"{name} is gated and you are not logged in: ask for access at {address}, "
            f"then log in with `hf auth login` or set HF_TOKEN; {WAYS_ROUND}"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is gated and your account is not on its list, or your token may not read gated repositories: "
            f"ask for access at {address}, or give the token that right at {hub}/settings/tokens; {WAYS_ROUND}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision '{revision}': correct it, the commits are listed at {address}/commits/main"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return (
            f"there is no {kind} {name} on {hub}, or it is private: "
            "correct the name, or log in with `hf auth login` or HF_TOKEN as one who may read it"
        )
    if status == 401:
        return f"{hub} refuses your token: log in anew with `hf auth login`, or correct HF_TOKEN"
    if status == 429:
        return f"{hub} takes no more requests from you for now (HTTP 429): wait some minutes, or log in for more"
    if status and status >= 500:
        return (
            f"{hub} is in trouble (HTTP {status}, {len(WAITS) + 1} times), so {wanted} cannot be had: try again later, "
            "what was downloaded whole is kept; or take the small model with --profile cpu"
        )
    if status:
        return f"{hub} refuses {wanted} (HTTP {status}: {reason}): look at {address}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{wanted} is no folder and not whole in the local cache, and HF_HUB_OFFLINE is set: "
            "correct the name, or unset HF_HUB_OFFLINE to download it; or take the small model with --profile cpu"
        )
    if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} or "No space left" in str(error):
        free = shutil.disk_usage(existing(constants.HF_HUB_CACHE)).free
        return (
            f"no room for {wanted} in {shown(constants.HF_HUB_CACHE)} ({reason}; {free / 1e9:,.1f} GB free): "
            "make room, or set HF_HOME to a folder on a larger disk"
        )
    if _may_pass(error) or isinstance(error, RuntimeError):
        return (
            f"the download of {wanted} broke off ({reason}), also when tried again: "
            "repeat the command, files that were finished are kept"
        )
    if isinstance(error, errors.HTTPError):
        return (
            f"{hub} cannot be reached ({reason}) and {wanted} is not whole in the local cache: "
            "check connection, proxy and HF_ENDPOINT, or take the small model with --profile cpu"
        )
    if isinstance(error, errors.FileMetadataError | ValueError):
        return f"{hub} does not answer as a Hub does: check HF_ENDPOINT, proxy and firewall"
    return (
        f"{wanted} cannot be stored in {shown(constants.HF_HUB_CACHE)} ({reason}): "
        "set HF_HOME to a folder that you may write in"
    )


def existing(folder: str | Path) -> Path:
    """The nearest folder above that exists, `folder` itself if it does."""
    return next(path for path in (Path(folder), *Path(folder).parents) if path.is_dir())


# ---------------------------------------------------------------- datasets_hub


BUFFER = 10_000  # rows that a stream is shuffled among; so many are read before the first one comes out
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


def rows(name: str, settings: HubData, left_out: Counter[str] | None = None) -> Iterator[dict]:
    """The sample that `settings` describe, row by row in the course's format; fewer where the data set holds fewer.

    left_out: is added to: how many rows on the way teach nothing, or are not wanted, by reason.

    The same settings give the same rows, as long as the data set stays the same: pin its revision. AnitaError, one
    line, for one that cannot be reached or read, is empty or has unknown columns or damaged rows.
    """
    left_out = Counter() if left_out is None else left_out
    raw = _stream(name, settings)
    first = next(raw, None)
    if first is None:
        raise AnitaError(f"data set '{name}' has no rows in split {settings.split}: check split and files")
    if settings.without and "source" not in first:
        raise AnitaError(f"datasets.{name}.without: its rows have no `source` to choose by: set it to []")
    wanted = _wanted(chain([first], raw), settings.without, left_out)
    placed = ((f"data set '{name}'", row) for row in wanted)
    yield from islice(teaching(placed, left_out, others=False), settings.sample)


def _wanted(raw: Iterable[dict], without: list[str], left_out: Counter[str]) -> Iterator[dict]:
    """The rows whose source is not one of those to do without; the others are counted."""
    for row in raw:
        source = (row.get("source") or "").lower() if without else ""
        if any(word.lower() in source for word in without):
            left_out["of a source that is left out (without)"] += 1
        else:
            yield row


def _stream(name: str, settings: HubData) -> Iterator[dict]:
    """The rows as they are, shuffled."""
    from datasets import load_dataset

    try:
        if settings.files:
            # datasets 4 and later run no loading scripts, so a data set that comes with one is read by its files
            pinned = f"{name}@{settings.revision}" if settings.revision else name
            files = settings.files.replace(f"hf://datasets/{name}/", f"hf://datasets/{pinned}/")
            if Path(files).is_file():
                files = glob.escape(files)  # a path: brackets and stars in it are no pattern
            stream = load_dataset("json", data_files={settings.split: files}, split=settings.split, streaming=True)
        else:
            stream = load_dataset(
                name, settings.config, split=settings.split, revision=settings.revision, streaming=True
            )
        yield from stream.shuffle(seed=settings.seed, buffer_size=BUFFER)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:  # the last where no file fits the pattern
        reason = " ".join(str(error).split()) or f"no file at {settings.files}"
        raise AnitaError(
            f"data set '{name}' cannot be read ({reason}): check the network and its keys under datasets, "
            "or use --profile cpu"
        ) from error


def sample_entry(name: str, settings: HubData) -> Entry:
    """The entry of the cache that the sample lies in, once it is fetched: a .jsonl file, and beside it its counts."""
    local = settings.files and Path(settings.files).is_file()
    contents = file_hash(settings.files) if local else None
    return cached(f"datasets/{name.replace('/', '--')}", name, settings.model_dump(), contents)


def sample_file(name: str, settings: HubData) -> Path:
    """Where the sample lies once it is fetched."""
    entry = sample_entry(name, settings)
    return entry.path.with_name(f"{entry.path.name}.jsonl")


def fetch(name: str, settings: HubData) -> Path:
    """The sample as a .jsonl file in the cache that all runs share; downloaded where it is not there yet.

    A licence that forbids commercial use is said before the download begins. A download that breaks off leaves nothing.
    """
    file, entry = sample_file(name, settings), sample_entry(name, settings)
    if file.is_file() and entry.read() is not None:
        return file
    if NON_COMMERCIAL.search(settings.licence):
        warnings.warn(
            f"{name} is licensed {settings.licence}: not for commercial use. To do without it, name another data set",
            stacklevel=2,
        )
    left_out: Counter[str] = Counter()
    with locked(file, f"data set '{name}'"):
        if file.is_file() and entry.read() is not None:  # another process fetched it while this one waited
            return file
        with replacing(file) as temporary:
            with temporary.open("w", encoding="utf-8") as out:
                for row in rows(name, settings, left_out):
                    out.write(json.dumps(row) + "\n")
            entry.write(dict(left_out))
    return file


def left_out_of(name: str, settings: HubData) -> Counter[str]:
    """How many rows were left out when the sample was fetched, by reason."""
    return Counter(sample_entry(name, settings).read() or {})
