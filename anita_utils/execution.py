"""Executes one notebook in a kernel of its own: progress cell by cell, a timeout for each cell, peak memory.

>>> execute(Path("notebooks/00_start_here.ipynb"), Path("out.ipynb"), {"profile": "cpu"}, timeout=600, on_cell=print)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from anita_utils import IDLE_THREADS
from anita_utils.paths import environment, runs_dir
from anita_utils.record import clock


@dataclass
class Outcome:
    """How a lesson went; `failure` is one line, or None."""

    seconds: float
    peak_memory_bytes: int
    failure: str | None


def execute(notebook: Path, output: Path, parameters: dict, timeout: int, on_cell: Callable[[int], None]) -> Outcome:
    """Executes `notebook` with papermill, working in its folder, and writes what ran to `output`, even if it fails.

    parameters: put in a cell after the one tagged "parameters".
    timeout: seconds after which a cell counts as hung.
    on_cell: is told the number of each cell, counted from 1 in the notebook as it stands, when the cell begins.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    injected_at = 1 + next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    number = 0

    def count(index: int) -> None:
        nonlocal number
        if index != injected_at:  # the cell that papermill injects has no number of its own
            number = index + 1 if index < injected_at else index
            on_cell(number)

    output.parent.mkdir(parents=True, exist_ok=True)
    failure = None
    # What the kernels must agree on with this process: where the runs are, and which environment python3 means
    agreed = {"ANITA_RUNS": str(runs_dir()), "JUPYTER_PREFER_ENV_PATH": "1"} | IDLE_THREADS
    start = time.monotonic()
    with environment(**agreed), watch_memory() as peak:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters,
                engine_name=CourseEngine.name,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(notebook.parent),
                execution_timeout=timeout,
                on_cell=count,
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # else each kernel prints a warning
            )
        except PapermillExecutionError as error:
            failure = f"{error.ename}: {error.evalue}"
        except CellTimeoutError:
            failure = f"no end after {timeout} s (--timeout)"
        except RuntimeError as error:  # nbclient's DeadKernelError, and a kernel that does not even start
            failure = f"the kernel died, perhaps for want of memory ({error})"
    seconds = time.monotonic() - start
    if failure:
        failure = f"cell {number} of {len(cells)} failed after {clock(seconds)}: {failure}"
    return Outcome(seconds, peak(), failure)


class CourseEngine(NBClientEngine):
    """papermill's own engine, which also tells `on_cell` the index of each cell that begins."""

    name = "anita"

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, on_cell=None, **kwargs):
        start = nb_man.cell_start

        def cell_start(cell, cell_index=None, **details):
            on_cell(cell_index)
            start(cell, cell_index, **details)

        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register(CourseEngine.name, CourseEngine)


@contextmanager
def watch_memory(interval: float = 0.2) -> Iterator[Callable[[], int]]:
    """Yields a function that tells the peak, so far, of the memory held by the processes started inside the block.

    Samples their resident memory every `interval` seconds with psutil, so a shorter peak can escape it.
    """
    this = psutil.Process()
    older = set(this.children(recursive=True))
    peak = 0
    over = threading.Event()

    def resident(process: psutil.Process) -> int:
        try:
            return process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            return 0

    def watch() -> None:
        nonlocal peak
        while not over.wait(interval):
            peak = max(peak, sum(resident(child) for child in set(this.children(recursive=True)) - older))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        over.set()
        thread.join()
