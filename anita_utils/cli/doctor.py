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
from anita_utils.machine import Machine, bf16_gain, detect_machine, version_of
from anita_utils.paths import runs_dir
from anita_utils.profile import Profile, load_profile
from anita_utils.weights import KNOWN, kept

GIB = 2**30
INSTALL = "pip install --constraint constraints.txt --editable ."
WORTH_IT = 1.5  # bf16 over fp32 in products of matrices: below, training gains nothing that one would notice
TORCHAO = "0.16"  # peft 0.21 refuses to load beside an older one; Colab brings 0.10


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
    Need("laptop", gpu_gib=0, bf16=False, cores=2, memory_gib=8, disk_gb=4),
    Need("laptop-hub", gpu_gib=0, bf16=False, cores=4, memory_gib=8, disk_gb=4),
    Need("cpu", gpu_gib=0, bf16=False, cores=1, memory_gib=4, disk_gb=1),
]


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
    findings, recommended = list(packages()), NEEDS[-1].profile
    try:
        machine = detect_machine()
        findings += [*hardware(machine, settings), *online(settings)]
        reachable = any(finding.name == "hub" and finding.status == "ok" for finding in findings)
        recommended = recommend(machine, reachable)
    except ImportError as error:  # a missing package, which is itself a finding, ends the examination
        findings.append(Finding("machine", "failure", f"cannot be looked at: {error}", INSTALL))
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


def recommend(machine: Machine, reachable: bool) -> str:
    """The most demanding profile that fits; where the Hub cannot be reached, only the shipped model is left."""
    for need in NEEDS if reachable else ():
        if need.has_gpu(machine) and need.has_memory(machine) and machine.cores >= need.cores:
            return need.profile
    return NEEDS[-1].profile


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

    root, others = checkout(), []
    lines = (root / "constraints.txt").read_text("utf-8").splitlines() if root else []
    for package, tested in (line.split("==") for line in lines if not line.startswith("#")):
        installed = version_of(package)
        if installed and Version(installed).public != Version(tested).public:  # torch's +cpu or +cu128 is left open
            others.append(f"{package} {installed} (tested: {tested})")
    found = "as tested" if root else "not compared: constraints.txt is only in the checkout"
    found = f"{len(others)} not as tested: {', '.join(others[:8])}" if others else found
    yield check("versions", found, not others, f"figures may differ; for the tested ones: {INSTALL}", "warning")

    torchao = version_of("torchao")
    fine = torchao is None or Version(torchao) >= Version(TORCHAO)
    found = torchao or "not installed, not needed"
    yield check("torchao", found, fine, "peft does not load beside it: pip uninstall --yes torchao")


def hardware(machine: Machine, profile: Profile) -> Iterator[Finding]:
    """Cores, memory, GPU, arithmetic and room on the disks, against what the profile asks."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    # Of a profile that is not the course's own nothing is known
    need = next((need for need in NEEDS if need.profile == profile.name), NEEDS[-1])
    yield check("cores", f"{machine.cores} ({machine.cpu})", machine.cores > 1, "expect twice the time", "warning")
    remedy = f"close other programs, about {need.memory_gib} GiB are needed"
    yield check("memory", f"{machine.memory_bytes / GIB:.1f} GiB", need.has_memory(machine), remedy, "warning")

    found, count = "none", torch.cuda.device_count()
    if machine.gpu is not None:
        capability = ".".join(map(str, machine.gpu_capability))
        found = f"{machine.gpu}, {machine.gpu_memory_bytes / GIB:.1f} GiB, capability {capability}"
    if not need.has_gpu(machine):
        remedy = f"take --profile {recommend(machine, True)}, or a machine with such a GPU"
        yield Finding("gpu", "failure", f"{found}; needed: {need.gpu_gib} GiB", remedy)
    elif count > 1:  # Kaggle shows two T4s, and TRL refuses several in one process
        remedy = "set CUDA_VISIBLE_DEVICES=0 before Python starts"
        yield Finding("gpu", "warning", f"{found}, the first of {count}", remedy)
    else:
        yield Finding("gpu", "ok", found)

    try:
        profile.check(machine)
        bf16, gain = "true bf16" if machine.bf16 else "no true bf16 (at most emulated)", bf16_gain()
        found = f"{bf16}, {gain:.1f} times as fast as fp32 here; the profile computes in {profile.precision}"
        slower = profile.precision == "fp32" and gain > WORTH_IT
        remedy = "a copy of the profile with precision: bf16 would train faster; figures would differ a little"
        yield check("precision", found, not slower, remedy, "warning")
    except AnitaError as error:
        yield refused("precision", error)

    folders = {"ANITA_RUNS": runs_dir()} | ({"HF_HOME": Path(HF_HUB_CACHE)} if hub.on_hub(profile.model.base) else {})
    there = {key: next(path for path in (folder, *folder.parents) if path.is_dir()) for key, folder in folders.items()}
    free, setting = min((shutil.disk_usage(folder).free / 1e9, key) for key, folder in there.items())
    remedy = f"make room or set {setting} to another disk, about {need.disk_gb} GB are needed"
    bad = "failure" if free < 0.5 else "warning"  # below, not even the small model's run has room
    yield check("disk", f"{free:.1f} GB free for {shown(folders[setting])}", free >= need.disk_gb, remedy, bad)


def online(profile: Profile) -> Iterator[Finding]:
    """Whether the Hub answers, whether a token is there (never which), and the base model: here and whole, or to be had
    at the revision that the profile pins. Nothing of a model that can only be asked of a Hub that does not answer.
    """
    from huggingface_hub import constants, errors, get_token
    from huggingface_hub.utils import get_session

    base, revision, on_hub = profile.model.base, profile.model.revision, hub.on_hub(profile.model.base)
    try:
        folder = hub.cached_model(base, revision) if on_hub else None
        needs_hub = on_hub and not (folder and hub.check_model_folder(folder))
    except AnitaError:  # what the cache holds is not whole
        needs_hub = True
    try:
        status = get_session().head(constants.ENDPOINT, timeout=5).status_code
        said = f"is in trouble (HTTP {status})" if status >= 500 else "answers"
    except errors.OfflineModeIsEnabled:
        said = "is not asked, as HF_HUB_OFFLINE is set"
    except errors.HTTPError as error:
        said = f"cannot be reached ({error})"
    remedy = "check connection, proxy and HF_ENDPOINT, and unset HF_HUB_OFFLINE"
    remedy = remedy if needs_hub else f"this model needs no Hub; for others: {remedy}"
    bad = "failure" if needs_hub else "warning"
    yield check("hub", f"{constants.ENDPOINT} {said}", said == "answers", remedy, bad)

    found = "there" if get_token() else "none" if on_hub else "none, not needed"
    yield check(
        "token", found, found != "none", "`hf auth login` or HF_TOKEN: a gated model is refused without", "warning"
    )

    try:
        if base in KNOWN and not kept(base):
            yield Finding("model", "warning", f"{base} is not here yet", f"`anita fetch {base}`")
        elif not on_hub:
            yield Finding("model", "ok", shown(hub.resolve_model(base)))
        elif not needs_hub:
            yield Finding("model", "ok", f"{base} is in the local cache")
        elif said == "answers":
            hub.check_access(base)
            remedy = f"set model.revision to {hub.resolve_revision(base, revision)}, its commit today"
            found = f"{base} may be downloaded, {revision or 'not pinned'}"
            yield check("model", found, revision is not None, remedy, "warning")
    except AnitaError as error:
        yield refused("model", error)
