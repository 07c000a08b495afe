"""What goes wrong while training, told in one line: a full disk, a folder that may not be written, no memory left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.paths import FULL, LOCKED
from anita_utils.resuming import drop_unfinished

if TYPE_CHECKING:
    from anita_utils.stages import Stage

# torch and safetensors raise errors of their own about files, without the number that an OSError has.
UNWRITTEN = ("PytorchStreamWriter", "inline_container", "os error")


@contextmanager
def explained(stage: Stage) -> Iterator[None]:
    """Turns such a failure of training `stage` inside the block into an AnitaError, and leaves nothing half-written."""
    try:
        yield
    except AnitaError:
        raise
    except Exception as error:
        drop_unfinished(stage.work)
        said = explanation(stage, error)
        if said is None:
            raise
        raise AnitaError(f"stage '{stage.name}': {said}") from error


def explanation(stage: Stage, error: Exception) -> str | None:
    """What to tell of an error: what, where, remedy; None for one that is none of these."""
    text, number = str(error), getattr(error, "errno", None)
    if no_memory(error):
        return out_of_memory(stage)
    place = shown(getattr(error, "filename", None) or stage.work)
    again = "run the same again: training goes on from the last whole checkpoint"
    if number in FULL or any(f"os error {code}" in text for code in FULL):
        return f"no room to write {place}: free some space, then {again}"
    if number in LOCKED:
        return f"{place} may not be written: allow it, or set ANITA_CACHE to a folder that may"
    if any(sign in text for sign in UNWRITTEN):
        return f"{shown(stage.work)} could not be written, perhaps for want of room: free some space, then {again}"
    return None


def no_memory(error: Exception) -> bool:
    """Whether memory ran out: the GPU's or the machine's."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def out_of_memory(stage: Stage) -> str:
    """The planner's figure for the stage, and the change that saves most."""
    import torch

    from anita_utils.memory import GIB, bytes_by_part, job_of, savings

    job, on_gpu = job_of(stage.run.profile, stage.name), torch.cuda.is_available()
    needed = bytes_by_part(job, on_gpu)["total"]
    change, saved = max(savings(job, on_gpu).items(), key=lambda pair: pair[1])
    return (
        f"out of memory; by the plan it needs {needed / GIB:.2f} GiB at {job.batch} x {job.length:,}: {change} would "
        f"save {saved / GIB:.2f} (see `anita plan --stage {stage.name}`)"
    )
