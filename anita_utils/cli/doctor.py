"""Can this machine run a profile? `anita doctor`: what it has and lacks, each finding with its remedy.

anita doctor
anita doctor --profile h100 --json
"""

from __future__ import annotations

import json
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anita_utils import AnitaError, checkout, shown
from anita_utils.cli import Json, ProfileName
from anita_utils.hub import (
    cached_model,
    check_access,
    check_model_folder,
    existing,
    on_hub,
    resolve_model,
    resolve_revision,
)
from anita_utils.machine import Machine, detect_machine
from anita_utils.paths import runs_dir
from anita_utils.profile import Profile, load_profile

GIB = 2**30
INSTALL = "pip install --constraint constraints.txt --editable ."
TORCHAO = "0.16"  # peft 0.21 refuses to load beside an older one; Colab brings 0.10
HUB_SECONDS = 5  # how long the Hub may take to answer
COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


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


class Finding(NamedTuple):
    """One thing looked at. Where there is a remedy it is a warning or, where the profile cannot run, a failure."""

    name: str
    found: str
    remedy: str = ""
    bad: Literal["warning", "failure"] = "failure"

    @property
    def status(self) -> str:
        return self.bad if self.remedy else "ok"


def doctor(
    profile: ProfileName = "cpu",
    as_json: Json = False,
) -> None:
    """Look at this machine for a profile: what is there, what is missing, and the remedy. Exit code 1 on a failure."""
    settings = load_profile(profile)
    findings, recommended = diagnose(settings)
    if as_json:
        rows = [{"name": one.name, "status": one.status, "found": one.found, "remedy": one.remedy} for one in findings]
        print(json.dumps({"profile": settings.name, "recommended": recommended, "findings": rows}, indent=2))
    else:
        table = Table(title=f"Profile {settings.name}", caption=f"Recommended here: --profile {recommended}")
        for column in ("", "status", "found", "remedy"):
            table.add_column(column, overflow="fold")
        for one in findings:
            status = f"[{COLOURS[one.status]}]{one.status}[/]"
            table.add_row(one.name, status, escape(one.found), escape(one.remedy))
        Console().print(table)
    raise typer.Exit(any(one.status == "failure" for one in findings))


def diagnose(profile: Profile) -> tuple[list[Finding], str]:
    """All findings about this machine for a profile, and the profile that fits it best."""
    findings = [Finding("python", platform.python_version()), packages(), versions(), torchao()]
    try:
        machine, hub = detect_machine(), the_hub(profile)
        findings += [*hardware(machine, profile), disk(profile), hub, token(profile)]
        findings += the_model(profile, hub.status == "ok")
    except ImportError as error:  # a missing package, which is itself a finding, ends the examination
        findings.append(Finding("machine", f"cannot be looked at: {error}", INSTALL))
        return findings, NEEDS[-1].profile
    return findings, recommend(machine, hub.status == "ok")


def recommend(machine: Machine, hub: bool) -> str:
    """The most demanding profile that fits; without the Hub, only the shipped model is left."""
    for need in NEEDS if hub else ():
        if need.has_gpu(machine) and need.has_memory(machine) and machine.cores >= need.cores:
            return need.profile
    return NEEDS[-1].profile


def refused(name: str, error: AnitaError) -> Finding:
    """An AnitaError as a finding: what follows its last colon is the remedy."""
    found, _, remedy = str(error).rpartition(": ")
    return Finding(name, found, remedy)


# ---------------------------------------------------------------- what is installed


def packages() -> Finding:
    """What the course cannot do without."""
    try:
        needed = [Requirement(text) for text in metadata.requires("anita-utils") or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return Finding("packages", "anita-utils is not installed", INSTALL)
    wrong = []
    for requirement in needed:
        installed = installed_version(requirement.name)
        if installed is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, needed {requirement.specifier}")
    if wrong:
        return Finding("packages", "; ".join(wrong), f"{INSTALL} (then restart the kernel)")
    return Finding("packages", f"all {len(needed)} that the course needs")


def versions() -> Finding:
    """Installed versions against constraints.txt, which holds the tested ones."""
    root = checkout()
    if root is None:
        return Finding("versions", "not compared: constraints.txt is only in the checkout")
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    others = []
    for package, tested in (line.split("==") for line in lines if not line.startswith("#")):
        installed = installed_version(package)
        if installed and Version(installed).public != Version(tested).public:  # torch's +cpu or +cu128 is left open
            others.append(f"{package} {installed} (tested: {tested})")
    if not others:
        return Finding("versions", "as tested")
    found = f"{len(others)} not as tested: {', '.join(others[:8])}{', …' if len(others) > 8 else ''}"
    return Finding("versions", found, f"figures may differ; for the tested ones: {INSTALL}", "warning")


def torchao() -> Finding:
    """Whether an old torchao keeps peft from loading."""
    installed = installed_version("torchao")
    if installed and Version(installed) < Version(TORCHAO):
        return Finding("torchao", f"{installed}, beside which peft does not load", "pip uninstall --yes torchao")
    return Finding("torchao", installed or "not installed, not needed")


def installed_version(package: str) -> str | None:
    """A package's version, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- the machine


def need_of(profile: Profile) -> Need:
    """What is known of the profile's needs; for one that is not the course's own, the least."""
    return next((need for need in NEEDS if need.profile == profile.name), NEEDS[-1])


def hardware(machine: Machine, profile: Profile) -> list[Finding]:
    """Cores, memory, GPU and arithmetic, against what the profile asks."""
    need = need_of(profile)
    few = "" if machine.cores > 1 else "expect twice the time"
    little = "" if need.has_memory(machine) else f"close other programs, about {need.memory_gib} GiB are needed"
    bf16 = "true bf16" if machine.bf16 else "no true bf16 (at most emulated)"
    precision = Finding("precision", f"{bf16}; the profile computes in {profile.precision}")
    try:
        profile.check(machine)
    except AnitaError as error:
        precision = refused("precision", error)
    return [
        Finding("cores", f"{machine.cores} ({machine.cpu})", few, "warning"),
        Finding("memory", f"{machine.memory_bytes / GIB:.1f} GiB", little, "warning"),
        gpu(machine, need),
        precision,
    ]


def gpu(machine: Machine, need: Need) -> Finding:
    """The first GPU, its memory and compute capability; a warning where several are visible."""
    import torch

    found = "none"
    if machine.gpu is not None:
        capability = ".".join(map(str, machine.gpu_capability))
        found = f"{machine.gpu}, {machine.gpu_memory_bytes / GIB:.1f} GiB, capability {capability}"
    if not need.has_gpu(machine):
        remedy = f"take --profile {recommend(machine, True)}, or a machine with such a GPU"
        return Finding("gpu", f"{found}; needed: {need.gpu_gib} GiB", remedy)
    count = torch.cuda.device_count()
    if count > 1:  # Kaggle shows two T4s, and TRL refuses several in one process
        remedy = "set CUDA_VISIBLE_DEVICES=0 before Python starts"
        return Finding("gpu", f"{found}, the first of {count}", remedy, "warning")
    return Finding("gpu", found)


def disk(profile: Profile) -> Finding:
    """Room for the runs and, for a model from the Hub, for its cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    needed = need_of(profile).disk_gb
    folders = {"ANITA_RUNS": runs_dir()} | ({"HF_HOME": Path(HF_HUB_CACHE)} if on_hub(profile.model.base) else {})
    free, setting = min((shutil.disk_usage(existing(folder)).free / 1e9, key) for key, folder in folders.items())
    remedy = "" if free >= needed else f"make room or set {setting} to another disk, about {needed} GB are needed"
    bad = "failure" if free < 0.5 else "warning"  # below, not even the small model's run has room
    return Finding("disk", f"{free:.1f} GB free for {shown(folders[setting])}", remedy, bad)


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
    found, remedy = f"{constants.ENDPOINT} {said}", "check connection, proxy and HF_ENDPOINT, and unset HF_HUB_OFFLINE"
    if said == "answers":
        return Finding("hub", found)
    if on_hub(profile.model.base) and not whole_here(profile):
        return Finding("hub", found, remedy)
    return Finding("hub", found, f"this model needs no Hub; for others: {remedy}", "warning")


def whole_here(profile: Profile) -> bool:
    """Whether the profile's Hub model is whole in the local cache."""
    folder = cached_model(profile.model.base, profile.model.revision)
    try:
        return folder is not None and bool(check_model_folder(folder))
    except AnitaError:
        return False


def token(profile: Profile) -> Finding:
    """Whether a token is there; never which."""
    from huggingface_hub import get_token

    if get_token():
        return Finding("token", "there")
    if not on_hub(profile.model.base):
        return Finding("token", "none, not needed")
    return Finding("token", "none", "`hf auth login` or HF_TOKEN: a gated model is refused without", "warning")


def the_model(profile: Profile, reachable: bool) -> list[Finding]:
    """Whether the base model is here and whole or, on the Hub, may be had at the revision that the profile pins.

    Empty when it can only be asked of a Hub that does not answer.
    """
    base, revision = profile.model.base, profile.model.revision
    try:
        if not on_hub(base):
            return [Finding("model", shown(resolve_model(base)))]
        if whole_here(profile):
            return [Finding("model", f"{base} is in the local cache")]
        if not reachable:
            return []
        check_access(base)
        remedy = f"set model.revision to {resolve_revision(base, revision)}, its commit today"
        found = f"{base} may be downloaded, {revision or 'not pinned'}"
        return [Finding("model", found, "" if revision else remedy, "warning")]
    except AnitaError as error:
        return [refused("model", error)]
