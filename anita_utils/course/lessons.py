"""Runs the lessons in order, headless, and gathers what they leave into a run's folder.

>>> run_course(profile="cpu", only=["02"])      # what `anita course --only 02` does
"""
# MERGED DOC:
# """Executes one notebook in a kernel of its own: progress cell by cell, a timeout for each cell, peak memory.
#
# >>> execute(Path("notebooks/00_start_here.ipynb"), Path("out.ipynb"), {"profile": "cpu"}, timeout=600, on_cell=print)
# """

from __future__ import annotations

import hashlib
import re
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
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from traitlets.config import Config

from anita_utils import IDLE_THREADS, REPOSITORY, AnitaError, checkout, clock, shown
from anita_utils.course.report import lesson_html, write_report
from anita_utils.paths import environment, runs_dir, write_text
from anita_utils.profile import load_profile
from anita_utils.run import Run

KEPT_PROFILE = "cpu"  # the profile whose outputs are kept in the repository's notebooks


def run_course(
    profile: str = "cpu",
    run_name: str = "latest",
    seed: int = 42,
    only: list[str] | tuple[str, ...] = (),
    resume: bool = False,
    timeout_per_cell: int = 600,
    update: bool = False,
    notebooks: Path | None = None,
    console: Console | None = None,
) -> int:
    """Executes the lessons one after the other, then writes the report.

    profile, run_name, seed: handed to `Run.open` and, as parameters, to every lesson.
    only: numbers ("02") or names of the lessons to run; all by default.
    resume: leave out what this run has already done, unless the lesson or its parameters changed since.
    timeout_per_cell: seconds after which a cell counts as hung.
    update: write the outputs back into the lessons themselves.
    notebooks: the folder of the lessons; the checkout's by default.

    Returns 0, or 1 after the first lesson that fails; what ran until then is kept. AnitaError for wrong arguments.
    """
    console = console or Console()
    lessons = select_lessons(notebooks or lessons_folder(), only)
    if Path(profile).suffix:
        profile = str(Path(profile).absolute())  # the lessons run in another folder
    if update and load_profile(profile).name != KEPT_PROFILE:
        raise AnitaError(f"--update keeps the outputs of profile {KEPT_PROFILE}: leave out --profile")
    for lesson in lessons:
        check_parameters(lesson)
    run = Run.open(run_name, profile, seed)
    parameters = {"profile": profile, "run": run.folder.name, "seed": seed}

    for lesson in lessons:
        if resume and is_done(lesson, run, parameters):
            _say(console, f"{lesson.stem}: done before")
            continue
        with _progress(console, lesson) as on_cell:
            outcome = run_lesson(lesson, run, parameters, timeout_per_cell, on_cell)
        status = "failed" if outcome.failure else "done"
        run.lesson_done(lesson.stem, outcome.seconds, outcome.peak_memory_bytes, status)
        _say(console, f"{lesson.stem}: {outcome.failure or f'done in {clock(outcome.seconds)}'}")
        if outcome.failure:
            write_report(run)
            _say(console, f"What ran is kept in {shown(run.folder)}")
            return 1
        if update:
            update_outputs(lesson, nbformat.read(_executed(lesson, run), as_version=4))
    _say(console, f"Report: {shown(write_report(run))}")
    return 0


def lessons_folder() -> Path:
    """The checkout's notebooks. AnitaError where the kit was installed without them."""
    root = checkout()
    if root is None:
        source = f"clone {REPOSITORY}" if REPOSITORY else "get the whole course, with its notebooks/,"
        raise AnitaError(f"the lessons are not part of the installed package: {source} and run `make course`")
    return root / "notebooks"


def select_lessons(folder: Path, only: list[str] | tuple[str, ...] = ()) -> list[Path]:
    """The lessons in `folder`, in order, or those whose number or name stands in `only`."""
    lessons = sorted(Path(folder).absolute().glob("[0-9][0-9]_*.ipynb"))
    if not lessons:
        raise AnitaError(f"no lessons in {shown(folder)}: they are called like 01_load_llama3.ipynb")
    unknown = [wanted for wanted in only if not any(wanted in (lesson.stem, lesson.stem[:2]) for lesson in lessons)]
    if unknown:
        names = ", ".join(lesson.stem for lesson in lessons)
        raise AnitaError(f"no lesson '{unknown[0]}': choose a number or a name of {names}")
    return [lesson for lesson in lessons if not only or {lesson.stem, lesson.stem[:2]} & set(only)]


def check_parameters(lesson: Path) -> None:
    """AnitaError when a lesson does not take the course's parameters; papermill itself would only warn."""
    try:
        known = papermill.inspect_notebook(str(lesson))
    except (ValueError, KeyError) as error:  # nbformat's complaints about damaged files are ValueErrors
        raise AnitaError(f"{shown(lesson)} is not a notebook that papermill can run ({error}): restore it") from error
    missing = [name for name in ("profile", "run", "seed") if name not in known]
    if missing:
        raise AnitaError(
            f"{shown(lesson)}: unknown parameter '{missing[0]}': set it in the first code cell, tagged 'parameters'"
        )


def run_lesson(lesson: Path, run: Run, parameters: dict, timeout: int, on_cell: Callable[[int], None]) -> Outcome:
    """Executes one lesson; its executed notebook and HTML page go into the run's folder, even if it fails."""
    outcome = execute(lesson, _executed(lesson, run), parameters, timeout, on_cell)
    notebook = clean_outputs(nbformat.read(_executed(lesson, run), as_version=4))
    nbformat.write(notebook, _executed(lesson, run))
    write_text(run.folder / "html" / f"{lesson.stem}.html", lesson_html(notebook, lesson.stem))
    return outcome


def _executed(lesson: Path, run: Run) -> Path:
    return run.folder / "notebooks" / lesson.name


def is_done(lesson: Path, run: Run, parameters: dict) -> bool:
    """Whether the run holds this lesson, ended well, with the same cells and the same parameters."""
    executed = _executed(lesson, run)
    if run.info()["lessons"].get(lesson.stem, {}).get("status") != "done" or not executed.is_file():
        return False
    notebook = nbformat.read(executed, as_version=4)
    same_parameters = notebook.metadata.get("papermill", {}).get("parameters") == parameters
    return same_parameters and _sources(_without_injected(notebook)) == _sources(
        nbformat.read(lesson, as_version=4).cells
    )


def _without_injected(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def _sources(cells: list[nbformat.NotebookNode]) -> list[str]:
    return [cell.source for cell in cells]


def update_outputs(lesson: Path, executed: nbformat.NotebookNode) -> None:
    """Writes the outputs of an executed lesson into the lesson itself, and nothing else: a diff shows only outputs.

    The lesson also keeps `cells_hash` of what ran, so that outputs older than their cells are found out. Cells are
    counted as if there had been no injected one. AnitaError if the lesson's cells are others by now.
    """
    source = nbformat.read(lesson, as_version=nbformat.NO_CONVERT)
    cells = _without_injected(executed)
    if _sources(source.cells) != _sources(cells):
        raise AnitaError(f"{shown(lesson)} was changed while it ran: run it again")
    pairs = ((old, new) for old, new in zip(source.cells, cells, strict=True) if old.cell_type == "code")
    for count, (old, new) in enumerate(pairs, start=1):
        old.outputs = new.outputs
        old.execution_count = count
        for output in old.outputs:
            if "execution_count" in output:
                output.execution_count = count
    source.metadata["outputs_of"] = cells_hash(source)
    nbformat.write(source, lesson)


def cells_hash(notebook: nbformat.NotebookNode) -> str:
    """A hash of the code of all cells, in order: that of the cells which the stored outputs came from."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def clean_outputs(notebook: nbformat.NotebookNode, root: Path | None = None) -> nbformat.NotebookNode:
    """Takes this machine's paths out of a notebook's text outputs, in place: the checkout becomes ".", home "~".

    root: the checkout, if not this package's own.
    """
    root = root or checkout()
    names = {runs_dir(): "runs", root: ".", Path.home(): "~"}
    paths = sorted((path for path in names if path and len(path.parts) > 1), key=lambda path: -len(path.parts))
    rules = [(re.compile(re.escape(str(path)) + r"(?![\w-])"), names[path]) for path in paths]
    # Where IPython says a warning arose: another file in every session
    rules.append((re.compile(r"\S*ipykernel_\d+/\d+\.py"), "<cell>"))

    def clean(value):
        if isinstance(value, str):
            for pattern, name in rules:
                value = pattern.sub(name, value)
        elif isinstance(value, list):
            value = [clean(item) for item in value]
        return value

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for key in ("text", "traceback", "evalue"):
                if key in output:
                    output[key] = clean(output[key])
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):  # pictures are base64, where a path's letters may stand by chance
                    output["data"][kind] = clean(value)
    return notebook


@contextmanager
def _progress(console: Console, lesson: Path) -> Iterator[Callable[[int], None]]:
    """Shows which cell of how many is running: a live line on a terminal, else a line for each cell of code."""
    cells = nbformat.read(lesson, as_version=4).cells
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("cell {task.completed}/{task.total}")]
    start = time.monotonic()
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(lesson.stem, total=len(cells))

        def on_cell(number: int) -> None:
            bar.update(task, completed=number)
            if not console.is_terminal and cells[number - 1].cell_type == "code":
                _say(console, f"{lesson.stem}: cell {number}/{len(cells)} at {clock(time.monotonic() - start)}")

        yield on_cell


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- execution


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
