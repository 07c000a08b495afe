"""How are the lessons run? In order, without a browser, each in a kernel of its own; the run's folder keeps what ran.

>>> run_course(profile="cpu", only=["02"])      # what `anita course --only 02` does
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
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
    only: Collection[str] = (),
    resume: bool = False,
    timeout_per_cell: int = 600,
    update: bool = False,
    notebooks: Path | None = None,
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
            print(f"{lesson.stem}: done before", flush=True)
            continue
        if run_lesson(lesson, run, parameters, timeout_per_cell):
            write_report(run)
            print(f"What ran is kept in {shown(run.folder)}", flush=True)
            return 1
        if update:
            update_outputs(lesson, nbformat.read(executed(lesson, run), as_version=4))
    print(f"Report: {shown(write_report(run))}", flush=True)
    return 0


def lessons_folder() -> Path:
    """The checkout's notebooks. AnitaError where the kit was installed without them."""
    root = checkout()
    if root is None:
        source = f"clone {REPOSITORY}" if REPOSITORY else "get the whole course, with its notebooks/,"
        raise AnitaError(f"the lessons are not part of the installed package: {source} and run `make course`")
    return root / "notebooks"


def select_lessons(folder: Path, only: Collection[str] = ()) -> list[Path]:
    """The lessons in `folder`, in order, or those whose number or name is in `only`."""
    lessons = sorted(folder.absolute().glob("[0-9][0-9]_*.ipynb"))
    if not lessons:
        raise AnitaError(f"no lessons in {shown(folder)}: they are called like 01_load_llama3.ipynb")
    by_name = {lesson.stem: lesson for lesson in lessons} | {lesson.stem[:2]: lesson for lesson in lessons}
    for name in only:
        if name not in by_name:
            names = ", ".join(lesson.stem for lesson in lessons)
            raise AnitaError(f"no lesson '{name}': choose a number or a name of {names}")
    return sorted({by_name[name] for name in only}) or lessons


def check_parameters(lesson: Path) -> None:
    """AnitaError when a lesson does not take the course's parameters; papermill itself would only warn."""
    try:
        known = papermill.inspect_notebook(str(lesson))
    except (ValueError, KeyError) as error:  # nbformat's complaints about damaged files are ValueErrors
        raise AnitaError(f"{shown(lesson)} is not a notebook that papermill can run ({error}): restore it") from error
    for name in ("profile", "run", "seed"):
        if name not in known:
            remedy = "set it in the first code cell, tagged 'parameters'"
            raise AnitaError(f"{shown(lesson)}: unknown parameter '{name}': {remedy}")


def run_lesson(lesson: Path, run: Run, parameters: dict, timeout: int) -> str:
    """Executes one lesson in its folder and notes how it went; what ran goes into the run's folder, even if it fails.

    The cell that runs is shown: in a line that is rewritten on a terminal, else in a line for each cell of code.
    Returns why it failed, in one line; empty if it did not.
    """
    start, number, why, output = time.monotonic(), 0, "", executed(lesson, run)
    cells = len(nbformat.read(lesson, as_version=4).cells)
    output.parent.mkdir(parents=True, exist_ok=True)
    # What the kernels must agree on with this process: where the runs are, and which environment python3 means
    agreed = {"ANITA_RUNS": str(runs_dir()), "JUPYTER_PREFER_ENV_PATH": "1"} | IDLE_THREADS

    def show(cell: NotebookNode, cell_index: int) -> None:
        nonlocal number
        if is_injected(cell):
            return
        number += 1
        line = f"{lesson.stem}: cell {number}/{cells} at {clock(time.monotonic() - start)}"
        status.update(line)
        if cell.cell_type == "code" and not status.console.is_terminal:
            print(line, flush=True)

    with environment(**agreed), Console().status(lesson.stem) as status:
        try:
            papermill.execute_notebook(
                str(lesson),
                str(output),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(lesson.parent),
                execution_timeout=timeout,
                on_cell_start=show,  # nbclient's
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # else each kernel prints a warning
            )
        except PapermillExecutionError as error:
            why = f"{error.ename}: {error.evalue}"
        except CellTimeoutError:
            why = f"no end after {timeout} s (--timeout)"
        except RuntimeError as error:  # nbclient's DeadKernelError, and a kernel that does not even start
            why = f"the kernel died, perhaps for want of memory ({error})"
    seconds = time.monotonic() - start
    failure = f"cell {number} of {cells} failed after {clock(seconds)}: {why}" if why else ""
    notebook = clean_outputs(nbformat.read(output, as_version=4))
    nbformat.write(notebook, output)
    write_text(run.folder / "html" / f"{lesson.stem}.html", lesson_html(notebook, lesson.stem))
    run.lesson_done(lesson.stem, seconds, "failed" if failure else "done")
    print(f"{lesson.stem}: {failure or f'done in {clock(seconds)}'}", flush=True)
    return failure


def executed(lesson: Path, run: Run) -> Path:
    """Where a run keeps what ran of a lesson."""
    return run.folder / "notebooks" / lesson.name


def is_injected(cell: NotebookNode) -> bool:
    """Whether papermill put the cell there: the lesson's own parameters follow in it."""
    return "injected-parameters" in cell.metadata.get("tags", [])


def is_done(lesson: Path, run: Run, parameters: dict) -> bool:
    """Whether the run holds this lesson, ended well, with the same cells and the same parameters."""
    if run.info()["lessons"].get(lesson.stem, {}).get("status") != "done" or not executed(lesson, run).is_file():
        return False
    now, ran = (nbformat.read(file, as_version=4) for file in (lesson, executed(lesson, run)))
    return ran.metadata["papermill"]["parameters"] == parameters and sources(ran) == sources(now)


def sources(notebook: NotebookNode) -> list[str]:
    """The sources of a lesson's own cells."""
    return [cell.source for cell in notebook.cells if not is_injected(cell)]


def update_outputs(lesson: Path, ran: NotebookNode) -> None:
    """Writes the outputs of an executed lesson into the lesson itself, and nothing else: a diff shows only outputs.

    The lesson also keeps `cells_hash` of what ran, so that outputs older than their cells are found out. Cells are
    counted as if there had been no injected one. AnitaError if the lesson's cells are others by now.
    """
    notebook = nbformat.read(lesson, as_version=nbformat.NO_CONVERT)
    if sources(notebook) != sources(ran):
        raise AnitaError(f"{shown(lesson)} was changed while it ran: run it again")
    new_cells = [cell for cell in ran.cells if cell.cell_type == "code" and not is_injected(cell)]
    old_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, (old, new) in enumerate(zip(old_cells, new_cells, strict=True), start=1):
        old.outputs, old.execution_count = new.outputs, count
        for output in old.outputs:
            if "execution_count" in output:
                output.execution_count = count
    notebook.metadata["outputs_of"] = cells_hash(notebook)
    nbformat.write(notebook, lesson)


def cells_hash(notebook: NotebookNode) -> str:
    """A hash of the code of all cells, in order: that of the cells which the stored outputs came from."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def clean_outputs(notebook: NotebookNode) -> NotebookNode:
    """Takes this machine's paths out of a notebook's text outputs, in place: the checkout becomes ".", home "~"."""
    names = {runs_dir(): "runs", checkout(): ".", Path.home(): "~"}
    paths = sorted((path for path in names if path and len(path.parts) > 1), key=lambda path: -len(path.parts))
    rules = [(re.compile(re.escape(str(path)) + r"(?![\w-])"), names[path]) for path in paths]
    # Where IPython says a warning arose: another file in every session
    rules.append((re.compile(r"\S*ipykernel_\d+/\d+\.py"), "<cell>"))

    def clean(text: str) -> str:
        for pattern, name in rules:
            text = pattern.sub(name, text)
        return text

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for key in output.keys() & {"text", "evalue"}:
                output[key] = clean(output[key])
            if "traceback" in output:
                output.traceback = [clean(line) for line in output.traceback]
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):  # pictures are base64, which may hold a path's letters by chance
                    output.data[kind] = clean(value)
    return notebook
