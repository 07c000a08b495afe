"""The course: real kernels on two throw-away lessons, and the report made of what they leave."""

import contextlib
import io
import re
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anita_utils import AnitaError
from anita_utils.course.lessons import (
    cells_hash,
    clean_outputs,
    run_course,
    select_lessons,
    update_outputs,
    watch_memory,
)
from anita_utils.course.report import lesson_html
from anita_utils.run import Run

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PARAMETERS = 'profile = "cpu"\nrun = "latest"\nseed = 42'
REMOTE = re.compile(r"""<(?:script|img|link|iframe)[^>]*(?:src|href)=["']?(?:https?:)?//|@import|url\(["']?https?:""")
RECORDING = """from anita_utils.run import Run
run = Run.open(run, profile, seed)
run.record("00_first", [
    {"stage": "base", "metric": "benchmark/arc", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "language": "it"},
    {"stage": "dpo", "metric": "benchmark/arc", "value": 0.75, "n": 10, "language": "it"},
])"""


def write_lesson(folder, name, *sources):
    """A lesson with parameters, a formula, and a code cell for each source."""
    folder.mkdir(parents=True, exist_ok=True)
    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(r"# Loss $\frac{a}{b}$"), first, *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def course(**options):
    """Runs a course; returns its exit code and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        return run_course(**options), screen.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A course of two lessons, the second of which fails in its second code cell."""
    folder = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANITA_RUNS", str(folder / "runs"))
        lessons = folder / "notebooks"
        write_lesson(lessons, "00_first", RECORDING, "import os\nprint(os.getcwd())\nseed")
        write_lesson(lessons, "01_second", "ballast = bytearray(300 * 2**20)\nimport time; time.sleep(1)", "1 / 0", "2")
        write_lesson(lessons, "02_never", "3")
        code, printed = course(run_name="trial", seed=7, notebooks=lessons)
        yield code, printed, folder


def test_a_failing_lesson_stops_the_course_and_is_named(finished):
    code, printed, _ = finished
    assert code == 1
    assert re.search(r"00_first: done in \d:\d\d\n", printed)
    assert "00_first: cell 3/4 at" in printed
    assert re.search(r"01_second: cell 4 of 5 failed after 0:\d\d: ZeroDivisionError: division by zero", printed)
    assert "02_never" not in printed


def test_what_ran_is_kept(finished):
    run = finished[2] / "runs" / "trial"
    second = nbformat.read(run / "notebooks" / "01_second.ipynb", as_version=4)
    assert any(out.output_type == "error" for cell in second.cells for out in cell.get("outputs", []))
    assert (run / "html" / "01_second.html").is_file()
    assert not (run / "notebooks" / "02_never.ipynb").exists()


def test_lessons_get_the_parameters_in_a_tagged_cell_and_work_in_their_folder(finished):
    first = nbformat.read(finished[2] / "runs" / "trial" / "notebooks" / "00_first.ipynb", as_version=4)
    injected = [cell for cell in first.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(injected) == 1
    assert 'run = "trial"' in injected[0].source
    outputs = first.cells[-1].outputs
    assert outputs[0].text.strip().endswith("notebooks")
    assert outputs[1].data["text/plain"] == "7"


def test_lessons_are_noted_with_time_and_memory(finished, monkeypatch):
    monkeypatch.setenv("ANITA_RUNS", str(finished[2] / "runs"))
    lessons = Run.load("trial").info()["lessons"]
    assert {name: lesson["status"] for name, lesson in lessons.items()} == {"00_first": "done", "01_second": "failed"}
    assert lessons["01_second"]["peak_memory_bytes"] > 300 * 2**20
    assert lessons["01_second"]["seconds"] >= 1


def test_the_report_shows_results_lessons_and_machine(finished):
    run = finished[2] / "runs" / "trial"
    index = (run / "index.html").read_text("utf-8")
    report = (run / "report.md").read_text("utf-8")
    assert "| benchmark/arc | it |  | 50.0 % [40.0, 60.0] | 75.0 % | +25.0 | 10 |" in report
    assert index.index("<h2>Results</h2>") < index.index("<h2>Lessons</h2>") < index.index("<h2>Machine</h2>")
    assert "+25.0" in index
    assert '<a href="html/01_second.html">' in index
    assert "[01_second](html/01_second.html) | failed" in report
    assert "torch 2." in index


def test_pages_load_nothing_from_the_network(finished):
    run = finished[2] / "runs" / "trial"
    pages = [run / "index.html", *(run / "html").glob("*.html")]
    assert len(pages) == 3
    for page in pages:
        assert not REMOTE.search(page.read_text("utf-8")), page
    assert REMOTE.search('<script src="https://x">')
    assert "<mfrac>" in pages[1].read_text("utf-8")


def test_formulas_the_converter_does_not_know_stay_readable():
    notebook = new_notebook(cells=[new_markdown_cell(r"$a \begin{b}$ and $$\beta$$")])
    page = lesson_html(notebook, "title")
    assert r"\begin{b}" in page
    assert 'display="block"' in page


def test_a_pictures_alternative_text_is_on_the_page():
    metadata = {"image/png": {"alt": 'Bars, "sft" < "dpo"'}}
    described = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata=metadata)
    page = lesson_html(new_notebook(cells=[new_code_cell("", outputs=[described])]), "t").partition("<body")[2]
    (words,) = re.findall(r"<img[^>]* alt=('[^']*'|\"[^\"]*\")", page)
    assert words[1:-1] == 'Bars, "sft" &lt; "dpo"'


def test_a_badge_becomes_words_where_nothing_is_loaded():
    page = lesson_html(new_notebook(cells=[new_markdown_cell("[![Open](https://x.org/b.svg)](https://x.org/a)")]), "t")
    assert '<a href="https://x.org/a">Open</a>' in page
    assert not REMOTE.search(page.partition("<body")[2])


def test_what_folds_up_stays_within_its_fold():
    text = "<details><summary>Answer</summary>\n\nIt *is*<br><sub>so</sub>.\n\n</details>"
    page = lesson_html(new_notebook(cells=[new_markdown_cell(text)]), "t").partition("<body")[2]
    fold = page[page.index("<details>") : page.index("</details>")]
    assert re.search(r"<em>is</em><br/?><sub>so</sub>\.", fold)


def test_resume_leaves_out_what_is_done_and_unchanged(tmp_path, runs):
    lessons = tmp_path / "notebooks"
    write_lesson(lessons, "00_first", "1")
    assert course(notebooks=lessons)[0] == 0
    code, printed = course(notebooks=lessons, resume=True)
    assert (code, "00_first: done before" in printed) == (0, True)
    assert "done before" not in course(notebooks=lessons, resume=True, seed=1)[1]
    write_lesson(lessons, "00_first", "2")
    assert "done before" not in course(notebooks=lessons, resume=True, seed=1)[1]


def test_update_changes_nothing_but_outputs(tmp_path, runs):
    lesson = write_lesson(tmp_path / "notebooks", "00_first", "print('hello')", "6 * 7")
    before = nbformat.read(lesson, as_version=nbformat.NO_CONVERT)
    assert course(notebooks=lesson.parent, update=True)[0] == 0
    after = nbformat.read(lesson, as_version=nbformat.NO_CONVERT)
    assert [cell.execution_count for cell in after.cells[1:]] == [1, 2, 3]
    assert after.cells[2].outputs[0].text == "hello\n"
    assert after.cells[3].outputs[0].execution_count == 3
    assert after.metadata.pop("outputs_of") == cells_hash(before)
    for cell in after.cells[1:]:
        cell.outputs, cell.execution_count = [], None
    assert after == before
    after.cells[2].source += "  # changed since"
    assert cells_hash(after) != cells_hash(before)


def test_update_is_for_the_kept_profile_and_the_cells_that_ran(tmp_path, runs):
    lesson = write_lesson(tmp_path / "notebooks", "00_first", "1")
    with pytest.raises(AnitaError, match="was changed while it ran"):
        update_outputs(lesson, new_notebook(cells=[new_code_cell("2")]))
    other = tmp_path / "other.yaml"
    from anita_utils.profile import PROFILES

    other.write_text((PROFILES / "cpu.yaml").read_text("utf-8").replace("name: cpu", "name: other"), "utf-8")
    with pytest.raises(AnitaError, match="--update keeps the outputs of profile cpu"):
        run_course(profile=str(other), notebooks=lesson.parent, update=True)


def test_a_hanging_cell_ends_at_the_timeout(tmp_path, runs):
    write_lesson(tmp_path / "notebooks", "00_first", "import time\ntime.sleep(60)")
    code, printed = course(notebooks=tmp_path / "notebooks", timeout_per_cell=1)
    assert code == 1
    assert re.search(r"00_first: cell 3 of 3 failed after .*: no end after 1 s", printed)


def test_a_dying_kernel_is_a_failure_not_a_traceback(tmp_path, runs):
    write_lesson(tmp_path / "notebooks", "00_first", "import os\nos._exit(1)")
    code, printed = course(notebooks=tmp_path / "notebooks")
    assert code == 1
    assert "00_first: cell 3 of 3 failed after" in printed
    assert "the kernel died" in printed


def test_kernels_start_without_a_warning(tmp_path, runs, capfd):
    write_lesson(tmp_path / "notebooks", "00_first", "1")
    assert course(notebooks=tmp_path / "notebooks")[0] == 0
    printed, warned = capfd.readouterr()
    # jupyter_client interrupts each kernel before it asks it to end. On a busy machine that can reach ipykernel while
    # it still closes the last cell, and ipykernel says so: a line at the end of a kernel, not at its start.
    warned = warned.replace("[IPKernelApp] ERROR | KeyboardInterrupt caught in kernel.\n", "")
    assert (printed, warned) == ("", "")


def test_unknown_parameters_and_lessons_are_errors(tmp_path, runs):
    lesson = write_lesson(tmp_path / "notebooks", "00_first", "1")
    assert select_lessons(lesson.parent, ["00"]) == select_lessons(lesson.parent, ["00_first"]) == [lesson]
    with pytest.raises(AnitaError, match="no lesson '07': .* 00_first"):
        run_course(only=["07"], notebooks=lesson.parent)
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells[1].source = 'profile = "cpu"\nrun = "latest"'
    nbformat.write(notebook, lesson)
    with pytest.raises(AnitaError, match="unknown parameter 'seed'"):
        run_course(notebooks=lesson.parent)
    lesson.write_text("no notebook", "utf-8")
    with pytest.raises(AnitaError, match=r"00_first\.ipynb is not a notebook"):
        run_course(notebooks=lesson.parent)


def test_outputs_lose_this_machines_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("ANITA_RUNS", "/scratch/runs")
    text = (
        "/home/someone/course/data /home/someone/course2 /scratch/runs/x /home/someone/.venv /tmp/ipykernel_12/34.py:5"
    )
    clean = "./data ~/course2 runs/x ~/.venv <cell>:5"
    picture = "/home/someone/course"  # base64 may hold any letters
    outputs = [
        new_output("stream", text=text),
        new_output("display_data", {"text/plain": text, "text/html": text, "image/png": picture}),
        new_output("error", ename="E", evalue=text, traceback=[text]),
    ]
    from pathlib import Path

    notebook = new_notebook(cells=[new_code_cell("", outputs=outputs)])
    stream, display, error = clean_outputs(notebook, root=Path("/home/someone/course")).cells[0].outputs
    assert stream.text == display.data["text/plain"] == display.data["text/html"] == error.evalue == clean
    assert error.traceback == [clean]
    assert display.data["image/png"] == picture


def test_memory_of_older_processes_does_not_count():
    import subprocess

    hog = [sys.executable, "-c", "x = bytearray(200 * 2**20); print(flush=True); import time; time.sleep(30)"]
    older = subprocess.Popen(hog, stdout=subprocess.PIPE)
    older.stdout.readline()
    try:
        with watch_memory(interval=0.05) as peak:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)"], check=True)
        assert 2**20 < peak() < 150 * 2**20
    finally:
        older.kill()
        older.wait()
