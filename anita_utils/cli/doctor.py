"""What this machine has and lacks for a profile, each finding with its remedy: `anita doctor`.

>>> report = diagnose("cpu")
>>> report.failed, report.recommended
(False, 'cpu')
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version
from pydantic import BaseModel, Field
from rich.markup import escape
from rich.table import Table

from anita_utils import AnitaError, checkout, shown
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
from anita_utils.profile import Profile, load_profile

GIB = 2**30
INSTALL = "pip install --constraint constraints.txt --editable ."
TORCHAO = "0.16"  # peft 0.21 refuses to load beside an older one; Colab brings 0.10
HUB_SECONDS = 5  # how long the Hub may take to answer


class Need(NamedTuple):
    """What a profile asks of the machine, by rule of thumb; `anita plan` reckons its memory part by part."""

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

    def fits(self, machine: Machine) -> bool:
        return self.has_gpu(machine) and self.has_memory(machine) and machine.cores >= self.cores


# The most demanding first: the first that fits is recommended. A T4 shows 14.7 of its 16 GB.
NEEDS = [
    Need("h100", gpu_gib=60, bf16=True, cores=2, memory_gib=16, disk_gb=70),
    Need("colab-t4", gpu_gib=14, bf16=False, cores=2, memory_gib=8, disk_gb=70),
    Need("colab-t4-1b", gpu_gib=6, bf16=False, cores=2, memory_gib=8, disk_gb=12),
    Need("laptop", gpu_gib=0, bf16=False, cores=4, memory_gib=8, disk_gb=4),
    Need("cpu", gpu_gib=0, bf16=False, cores=1, memory_gib=4, disk_gb=1),
]


class Finding(BaseModel):
    """One thing looked at."""

    name: str = Field(description="What was looked at.")
    status: Literal["ok", "warning", "failure"] = Field(description="'failure' where the profile cannot run.")
    found: str = Field(description="What was found.")
    remedy: str = Field(description="What to do about it; empty when all is well.")


def finding(name: str, found: str, remedy: str = "", bad: Literal["warning", "failure"] = "failure") -> Finding:
    """A Finding: "ok" without a remedy, `bad` with one."""
    return Finding(name=name, status=bad if remedy else "ok", found=found, remedy=remedy)


class Report(BaseModel):
    """All findings for a profile."""

    profile: str = Field(description="The profile that the machine was looked at for.")
    recommended: str = Field(description="The most demanding profile that fits this machine.")
    findings: list[Finding] = Field(description="In the order they were looked at.")

    @property
    def failed(self) -> bool:
        return any(finding.status == "failure" for finding in self.findings)

    def table(self) -> Table:
        table = Table(title=f"Profile {self.profile}", caption=f"Recommended here: --profile {self.recommended}")
        for column in ("", "status", "found", "remedy"):
            table.add_column(column, overflow="fold")
        colours = {"ok": "green", "warning": "yellow", "failure": "red"}
        for row in self.findings:
            status = f"[{colours[row.status]}]{row.status}[/]"
            table.add_row(row.name, status, escape(row.found), escape(row.remedy))
        return table


def diagnose(profile_name: str = "cpu") -> Report:
    """Looks at this machine for a profile. AnitaError only for a profile that does not load."""
    profile = load_profile(profile_name)
    findings = [*packages(), torchao()]
    try:
        machine = detect_machine()
        hub = the_hub(profile)
        reachable = hub.status == "ok"
        findings += [*hardware(machine, profile), disk(profile), hub, token(profile), *the_model(profile, reachable)]
    except ImportError as error:  # a missing package, the very thing to be told, ends the examination
        findings.append(finding("machine", f"cannot be looked at: {error}", INSTALL))
        machine, reachable = None, False
    return Report(profile=profile.name, recommended=recommend(machine, reachable), findings=findings)


def refused(name: str, error: AnitaError) -> Finding:
    """An AnitaError as a finding: what stands after its last colon is the remedy."""
    found, _, remedy = str(error).rpartition(": ")
    return finding(name, found, remedy)


def packages() -> Iterator[Finding]:
    """Python; what the course cannot do without; and whether the versions are those that were tested."""
    remedy = "" if sys.version_info >= (3, 11) else "install Python 3.11 or later"
    yield finding("python", platform.python_version(), remedy)
    try:
        needed = [Requirement(text) for text in metadata.requires("anita-utils") or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        yield finding("packages", "anita-utils is not installed", INSTALL)
        return
    wrong = []
    for requirement in needed:
        installed = installed_version(requirement.name)
        if installed is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, needed {requirement.specifier}")
    if wrong:
        yield finding("packages", "; ".join(wrong), f"{INSTALL} (then start the kernel anew)")
    else:
        yield finding("packages", f"all {len(needed)} that the course needs")
    yield versions()


def versions() -> Finding:
    """Installed versions against constraints.txt, which holds the tested ones."""
    root = checkout()
    if root is None:
        return finding("versions", "not compared: constraints.txt is only in the checkout")
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    others = []
    for package, tested in (line.split("==") for line in lines if not line.startswith("#")):
        installed = installed_version(package)
        if installed and Version(installed).public != Version(tested).public:  # torch's +cpu or +cu128 is left open
            others.append(f"{package} {installed} (tested: {tested})")
    if not others:
        return finding("versions", "as tested")
    found = f"{len(others)} not as tested: {', '.join(others[:8])}{', …' if len(others) > 8 else ''}"
    return finding("versions", found, f"figures may differ; for the tested ones: {INSTALL}", "warning")


def torchao() -> Finding:
    """Whether an old torchao keeps peft from loading."""
    installed = installed_version("torchao")
    if installed and Version(installed) < Version(TORCHAO):
        return finding("torchao", f"{installed}, beside which peft does not load", "pip uninstall --yes torchao")
    return finding("torchao", installed or "not installed, not needed")


def installed_version(package: str) -> str | None:
    """A package's version, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def need_of(profile: Profile) -> Need:
    """What is known of the profile's needs; for one that is not the course's own, the least."""
    return next((need for need in NEEDS if need.profile == profile.name), NEEDS[-1])


def hardware(machine: Machine, profile: Profile) -> Iterator[Finding]:
    """Cores, memory, GPU and arithmetic, against what the profile asks."""
    need = need_of(profile)
    remedy = "" if machine.cores > 1 else "expect twice the time"
    yield finding("cores", f"{machine.cores} ({machine.cpu})", remedy, "warning")
    remedy = "" if need.has_memory(machine) else f"close other programs, about {need.memory_gib} GiB are needed"
    yield finding("memory", f"{machine.memory_bytes / GIB:.1f} GiB", remedy, "warning")
    yield gpu(machine, need)
    try:
        profile.check(machine)
    except AnitaError as error:
        yield refused("precision", error)
    else:
        bf16 = "true bf16" if machine.bf16 else "no true bf16 (at most emulated)"
        yield finding("precision", f"{bf16}; the profile computes in {profile.precision}")


def gpu(machine: Machine, need: Need) -> Finding:
    """The first GPU, its memory and compute capability; a warning where several are visible."""
    import torch

    if machine.gpu is None:
        found = "none"
    else:
        capability = ".".join(map(str, machine.gpu_capability))
        found = f"{machine.gpu}, {machine.gpu_memory_bytes / GIB:.1f} GiB, capability {capability}"
    if not need.has_gpu(machine):
        remedy = f"take --profile {recommend(machine, True)}, or a machine with such a GPU"
        return finding("gpu", f"{found}; needed: {need.gpu_gib} GiB", remedy)
    count = torch.cuda.device_count()
    # Kaggle shows two T4s, and TRL refuses several in one process
    remedy = "set CUDA_VISIBLE_DEVICES=0 before Python starts" if count > 1 else ""
    return finding("gpu", f"{found}{f', the first of {count}' if count > 1 else ''}", remedy, "warning")


def disk(profile: Profile) -> Finding:
    """Room for the runs and, for a model from the Hub, for its cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from anita_utils.paths import runs_dir

    needed = need_of(profile).disk_gb
    folders = {"ANITA_RUNS": runs_dir()} | ({"HF_HOME": Path(HF_HUB_CACHE)} if on_hub(profile.model.base) else {})
    free, setting = min((shutil.disk_usage(existing(folder)).free / 1e9, key) for key, folder in folders.items())
    remedy = "" if free >= needed else f"make room or set {setting} to another disk, about {needed} GB are needed"
    bad = "failure" if free < 0.5 else "warning"  # below, not even the small model's run has room
    return finding("disk", f"{free:.1f} GB free for {shown(folders[setting])}", remedy, bad)


def the_hub(profile: Profile) -> Finding:
    """Whether the Hub answers: a failure only if the profile's model must still come from it."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_session

    try:
        status = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code
        trouble = f"is in trouble (HTTP {status})" if status >= 500 else ""
    except errors.OfflineModeIsEnabled:
        trouble = "is not asked, as HF_HUB_OFFLINE is set"
    except errors.HTTPError as error:
        trouble = f"cannot be reached ({error})"
    if not trouble:
        return finding("hub", f"{constants.ENDPOINT} answers")
    remedy = "check connection, proxy and HF_ENDPOINT, and unset HF_HUB_OFFLINE"
    if on_hub(profile.model.base) and not whole_here(profile):
        return finding("hub", f"{constants.ENDPOINT} {trouble}", remedy)
    return finding(
        "hub", f"{constants.ENDPOINT} {trouble}", f"this model needs no Hub; for others: {remedy}", "warning"
    )


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
        return finding("token", "there")
    if not on_hub(profile.model.base):
        return finding("token", "none, not needed")
    return finding("token", "none", "`hf auth login` or HF_TOKEN: a gated model is refused without", "warning")


def the_model(profile: Profile, reachable: bool) -> Iterator[Finding]:
    """Whether the base model is here and whole or, on the Hub, may be had at the revision that the profile pins.

    Nothing when it can only be asked of a Hub that does not answer.
    """
    base, revision = profile.model.base, profile.model.revision
    try:
        if not on_hub(base):
            yield finding("model", shown(resolve_model(base)))
        elif whole_here(profile):
            yield finding("model", f"{base} is in the local cache")
        elif reachable:
            check_access(base)
            commit = resolve_revision(base, revision)
            remedy = "" if revision else f"set model.revision to {commit}, its commit today"
            yield finding("model", f"{base} may be downloaded, {revision or 'not pinned'}", remedy, "warning")
    except AnitaError as error:
        yield refused("model", error)


def recommend(machine: Machine | None, hub: bool) -> str:
    """The most demanding profile that fits; without the Hub, only the shipped model is left."""
    fitting = [need.profile for need in NEEDS if machine and need.fits(machine)]
    return fitting[0] if hub and fitting else NEEDS[-1].profile
