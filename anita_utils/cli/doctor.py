"""Can this machine run a profile? `anita doctor`: what it has and lacks, each finding with its remedy.

anita doctor
anita doctor --profile h100 --json
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anita_utils import AnitaError, checkout, hub, shown
from anita_utils.cli import Json, ProfileName
from anita_utils.machine import Machine, detect_machine, version_of
from anita_utils.paths import runs_dir
from anita_utils.profile import Profile, load_profile

GIB = 2**30
INSTALL = "pip install --constraint constraints.txt --editable ."
TORCHAO = "0.16"  # peft 0.21 refuses to load beside an older one; Colab brings 0.10
HUB_SECONDS = 5  # how long the Hub may take to answer


class Need(NamedTuple):
    """What a profile asks of the machine, by rule of thumb; `anita plan` counts its memory part by part."""

    profile: str
    gpu_gib: int  # 0 for no GPU
    bf16: bool  # whether the GPU must have bf16 instructions
    cores: int
    memory_gib: int
    disk_gb: int  # the base model, and a merged one for each of three stages

    def has_gpu(self, machine: Machine) -> bool:
        return (machine.gpu_memory_bytes or 0) >= self.gpu_gib * GIB and (machine.bf16 or not self.bf16)

    def has_memory(self, machine: Machine) -> bool:
        return machine.memory_bytes >= 0.9 * self.memory_gib * GIB  # firmware keeps a little of what was bought


# The most demanding first: the first that fits is recommended. A T4 shows 14.7 of its 16 GB.
NEEDS = [
    Need("h100", gpu_gib=60, bf16=True, cores=2, memory_gib=16, disk_gb=70),
    Need("colab-t4", gpu_gib=14, bf16=False, cores=2, memory_gib=8, disk_gb=70),
    Need("colab-t4-1b", gpu_gib=6, bf16=False, cores=2, memory_gib=8, disk_gb=12),
    Need("laptop", gpu_gib=0, bf16=False, cores=4, memory_gib=8, disk_gb=4),
    Need("cpu", gpu_gib=0, bf16=False, cores=1, memory_gib=4, disk_gb=1),
]


def need_of(profile: Profile) -> Need:
    """What is known of the profile's needs; for one that is not the course's own, the least."""
    return next((need for need in NEEDS if need.profile == profile.name), NEEDS[-1])


class Finding(NamedTuple):
    """One thing looked at. With a failure among them, the profile cannot run."""

    name: str
    status: Literal["ok", "warning", "failure"]
    found: str
    remedy: str = ""


def check(name: str, found: str, fine: bool, remedy: str, bad: Literal["warning", "failure"] = "failure") -> Finding:
    """A finding that is ok where it is `fine`, else `bad` and with a remedy."""
    return Finding(name, "ok", found) if fine else Finding(name, bad, found, remedy)


def refused(name: str, error: AnitaError) -> Finding:
    """An AnitaError as a failure: what follows its last colon is the remedy."""
    found, _, remedy = str(error).rpartition(": ")
    return Finding(name, "failure", found, remedy)


def doctor(profile: ProfileName = "cpu", as_json: Json = False) -> None:
    """Look at this machine for a profile: what is there, what is missing, and the remedy. Exit code 1 on a failure."""
    settings = load_profile(profile)
    findings, recommended = diagnose(settings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        print(json.dumps({"profile": settings.name, "recommended": recommended, "findings": rows}, indent=2))
    else:
        table = Table(title=f"Profile {settings.name}", caption=f"Recommended here: --profile {recommended}")
        for column in ("", "status", "found", "remedy"):
            table.add_column(column, overflow="fold")
        colours = {"ok": "green", "warning": "yellow", "failure": "red"}
        for name, status, found, remedy in findings:
            table.add_row(name, f"[{colours[status]}]{status}[/]", escape(found), escape(remedy))
        Console().print(table)
    raise typer.Exit(any(finding.status == "failure" for finding in findings))


def diagnose(profile: Profile) -> tuple[list[Finding], str]:
    """All findings about this machine for a profile, and the profile that fits it best."""
    findings = list(packages())
    try:
        machine, answer = detect_machine(), the_hub(profile)
        reachable = answer.status == "ok"
        findings += [*hardware(machine, profile), disk(profile), answer, token(profile), *the_model(profile, reachable)]
    except ImportError as error:  # a missing package, which is itself a finding, ends the examination
        findings.append(Finding("machine", "failure", f"cannot be looked at: {error}", INSTALL))
        return findings, NEEDS[-1].profile
    return findings, recommend(machine, reachable)


def recommend(machine: Machine, reachable: bool) -> str:
    """The most demanding profile that fits; where the Hub cannot be reached, only the shipped model is left."""
    for need in NEEDS if reachable else ():
        if need.has_gpu(machine) and need.has_memory(machine) and machine.cores >= need.cores:
            return need.profile
    return NEEDS[-1].profile


# ---------------------------------------------------------------- what is installed


def packages() -> Iterator[Finding]:
    """Python, what the course cannot do without, whether versions are the tested ones, and what keeps peft away."""
    yield Finding("python", "ok", platform.python_version())
    needed, wrong = ["anita-utils"], []
    if version_of("anita-utils"):
        needed += [text for text in metadata.requires("anita-utils") or [] if "extra ==" not in text]
    for requirement in map(Requirement, needed):
        installed = version_of(requirement.name)
        if installed is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, needed {requirement.specifier}")
    found = "; ".join(wrong) or "all that the course needs"
    yield check("packages", found, not wrong, f"{INSTALL} (then restart the kernel)")
    yield versions()
    torchao = version_of("torchao")
    fine = torchao is None or Version(torchao) >= Version(TORCHAO)
    found = torchao or "not installed, not needed"
    yield check("torchao", found, fine, "peft does not load beside it: pip uninstall --yes torchao")


def versions() -> Finding:
    """Installed versions against constraints.txt, which holds the tested ones."""
    root = checkout()
    if root is None:
        return Finding("versions", "ok", "not compared: constraints.txt is only in the checkout")
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    others = []
    for package, tested in (line.split("==") for line in lines if not line.startswith("#")):
        installed = version_of(package)
        if installed and Version(installed).public != Version(tested).public:  # torch's +cpu or +cu128 is left open
            others.append(f"{package} {installed} (tested: {tested})")
    some = ", ".join(others[:8]) + (", …" if len(others) > 8 else "")
    found = f"{len(others)} not as tested: {some}" if others else "as tested"
    return check("versions", found, not others, f"figures may differ; for the tested ones: {INSTALL}", "warning")


# ---------------------------------------------------------------- the machine


def hardware(machine: Machine, profile: Profile) -> Iterator[Finding]:
    """Cores, memory, GPU and arithmetic, against what the profile asks."""
    need = need_of(profile)
    yield check("cores", f"{machine.cores} ({machine.cpu})", machine.cores > 1, "expect twice the time", "warning")
    remedy = f"close other programs, about {need.memory_gib} GiB are needed"
    yield check("memory", f"{machine.memory_bytes / GIB:.1f} GiB", need.has_memory(machine), remedy, "warning")
    yield gpu(machine, need)
    try:
        profile.check(machine)
    except AnitaError as error:
        yield refused("precision", error)
    else:
        bf16 = "true bf16" if machine.bf16 else "no true bf16 (at most emulated)"
        yield Finding("precision", "ok", f"{bf16}; the profile computes in {profile.precision}")


def gpu(machine: Machine, need: Need) -> Finding:
    """The first GPU, its memory and compute capability; a warning where several are visible."""
    import torch

    found = "none"
    if machine.gpu is not None:
        capability = ".".join(map(str, machine.gpu_capability))
        found = f"{machine.gpu}, {machine.gpu_memory_bytes / GIB:.1f} GiB, capability {capability}"
    if not need.has_gpu(machine):
        remedy = f"take --profile {recommend(machine, True)}, or a machine with such a GPU"
        return Finding("gpu", "failure", f"{found}; needed: {need.gpu_gib} GiB", remedy)
    count = torch.cuda.device_count()
    if count > 1:  # Kaggle shows two T4s, and TRL refuses several in one process
        remedy = "set CUDA_VISIBLE_DEVICES=0 before Python starts"
        return Finding("gpu", "warning", f"{found}, the first of {count}", remedy)
    return Finding("gpu", "ok", found)


def disk(profile: Profile) -> Finding:
    """Room for the runs and, for a model from the Hub, for its cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    needed = need_of(profile).disk_gb
    folders = {"ANITA_RUNS": runs_dir()} | ({"HF_HOME": Path(HF_HUB_CACHE)} if hub.on_hub(profile.model.base) else {})
    there = {key: next(path for path in (folder, *folder.parents) if path.is_dir()) for key, folder in folders.items()}
    free, setting = min((shutil.disk_usage(folder).free / 1e9, key) for key, folder in there.items())
    remedy = f"make room or set {setting} to another disk, about {needed} GB are needed"
    bad = "failure" if free < 0.5 else "warning"  # below, not even the small model's run has room
    return check("disk", f"{free:.1f} GB free for {shown(folders[setting])}", free >= needed, remedy, bad)


# ---------------------------------------------------------------- the Hub and the model


def the_hub(profile: Profile) -> Finding:
    """Whether the Hub answers: a failure only if the profile's model must still come from it."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_session

    try:
        status = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code
        said = f"is in trouble (HTTP {status})" if status >= 500 else "answers"
    except errors.OfflineModeIsEnabled:
        said = "is not asked, as HF_HUB_OFFLINE is set"
    except errors.HTTPError as error:
        said = f"cannot be reached ({error})"
    remedy, bad = "check connection, proxy and HF_ENDPOINT, and unset HF_HUB_OFFLINE", "failure"
    if whole_here(profile):
        remedy, bad = f"this model needs no Hub; for others: {remedy}", "warning"
    return check("hub", f"{constants.ENDPOINT} {said}", said == "answers", remedy, bad)


def whole_here(profile: Profile) -> bool:
    """Whether the profile's model needs no Hub: it is none of the Hub's, or whole in the local cache."""
    if not hub.on_hub(profile.model.base):
        return True
    folder = hub.cached_model(profile.model.base, profile.model.revision)
    try:
        return folder is not None and bool(hub.check_model_folder(folder))
    except AnitaError:
        return False


def token(profile: Profile) -> Finding:
    """Whether a token is there; never which."""
    from huggingface_hub import get_token

    if get_token():
        return Finding("token", "ok", "there")
    if not hub.on_hub(profile.model.base):
        return Finding("token", "ok", "none, not needed")
    return Finding("token", "warning", "none", "`hf auth login` or HF_TOKEN: a gated model is refused without")


def the_model(profile: Profile, reachable: bool) -> Iterator[Finding]:
    """Whether the base model is here and whole or, on the Hub, may be had at the revision that the profile pins.

    Nothing when it can only be asked of a Hub that does not answer.
    """
    base, revision = profile.model.base, profile.model.revision
    try:
        if not hub.on_hub(base):
            yield Finding("model", "ok", shown(hub.resolve_model(base)))
        elif whole_here(profile):
            yield Finding("model", "ok", f"{base} is in the local cache")
        elif reachable:
            hub.check_access(base)
            remedy = f"set model.revision to {hub.resolve_revision(base, revision)}, its commit today"
            found = f"{base} may be downloaded, {revision or 'not pinned'}"
            yield check("model", found, revision is not None, remedy, "warning")
    except AnitaError as error:
        yield refused("model", error)
