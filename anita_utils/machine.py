"""What machine does the course run on?

>>> detect_machine().bf16
False
"""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from anita_utils import __version__

LIBRARIES = ["torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "lm_eval", "papermill"]
BF16_CAPABILITY = (8, 0)  # Ampere; torch.cuda.is_bf16_supported() also says yes where bf16 is only emulated (a T4)
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # as torch.cpu.get_capabilities names them, x86 and ARM


class Machine(BaseModel):
    """The computer, as far as the course cares."""

    model_config = ConfigDict(extra="forbid")

    cpu: str = Field(description="The processor's name.")
    cores: int = Field(description="The cores this process may use, which can be fewer than the machine has.")
    memory_bytes: int = Field(description="The main memory this process may use.")
    gpu: str | None = Field(None, description="The first GPU's name, if there is one.")
    gpu_memory_bytes: int | None = Field(None, description="Its memory.")
    gpu_capability: tuple[int, int] | None = Field(None, description="Its CUDA compute capability.")
    bf16: bool = Field(description="Whether it has instructions for bf16; without, bf16 is emulated and slow.")
    avx512_bf16: bool = Field(description="Whether the CPU has AVX512's bf16, which changes bitsandbytes' path.")
    system: str = Field(description="Operating system and architecture.")
    python: str = Field(description="The Python version.")
    versions: dict[str, str] = Field(description="The versions of the libraries that decide the figures.")


def detect_machine() -> Machine:
    """Looks at the machine. Imports torch."""
    import joblib
    import psutil
    import torch

    has_gpu = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability(0) if has_gpu else None
    cpu = torch.cpu.get_capabilities()
    versions = {name: version_of(name) for name in LIBRARIES}
    return Machine(
        cpu=_cpu_name(),
        cores=joblib.cpu_count(),  # heeds affinity and container limits
        memory_bytes=min(psutil.virtual_memory().total, _container_memory()),
        gpu=torch.cuda.get_device_name(0) if has_gpu else None,
        gpu_memory_bytes=torch.cuda.get_device_properties(0).total_memory if has_gpu else None,
        gpu_capability=capability,
        bf16=capability >= BF16_CAPABILITY if has_gpu else any(cpu.get(name) for name in CPU_BF16),
        avx512_bf16=bool(cpu.get("avx512_bf16")),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={"anita-utils": __version__} | {name: version for name, version in versions.items() if version},
    )


def bf16_gain() -> float:
    """How many times as fast as in fp32 this machine multiplies matrices in bf16, measured within half a second.

    The matrices have a 135M Llama's widths. Below 1 where bf16 is emulated; training, with all else that it does in
    fp32, gains less than this.
    """
    import torch
    from torch.utils.benchmark import Timer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        tokens, weights = (torch.ones(shape, dtype=dtype, device=device) for shape in ((1024, 576), (576, 1536)))
        given = {"tokens": tokens, "weights": weights}
        timer = Timer("tokens @ weights", globals=given, num_threads=torch.get_num_threads())
        seconds[dtype] = timer.blocked_autorange(min_run_time=0.2).median
    return seconds[torch.float32] / seconds[torch.bfloat16]


def version_of(library: str) -> str | None:
    """The installed version of a library; None where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = cpuinfo.is_file() and re.search(r"^model name\s*: (.+)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def free_memory() -> float:
    """The main memory that this process could still take, in bytes: the machine's, or what its container leaves."""
    import psutil

    return min(psutil.virtual_memory().available, _container_memory() - psutil.Process().memory_info().rss)


def _container_memory() -> int | float:
    """The memory limit of the container the process runs in; infinite outside one."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if os.access(limit, os.R_OK) else "max"
    return int(text) if text.isdigit() else float("inf")
