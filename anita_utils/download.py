"""Models on the Hugging Face Hub: fetched at a revision, and every failure told in one line with the ways out.

>>> download_model("meta-llama/Llama-3.2-1B-Instruct", "9213176726f574b556790deb65791e0c5aa438b6")
>>> resolve_revision("gsarti/clean_mc4_it", kind="dataset")     # the commit to pin

Of a repository only safetensors, configuration and tokenizer are fetched: pickles and Python files never are, so no
code of a repository can run.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from anita_utils import AnitaError, shown

MODEL_FILES = [
    "model*.safetensors",
    "model.safetensors.index.json",
    *("config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
]
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
