"""Where things are; files are read as people write them, and written whole, by one process at a time."""

import os
import subprocess
import sys
import threading

import pytest
from test_stages_failures import files_up_to, not_almighty

from anita_utils import AnitaError
from anita_utils.evaluation import measuring
from anita_utils.paths import (
    cache_dir,
    data_dir,
    locked,
    os_failure,
    read_lines,
    read_text,
    replacing,
    runs_dir,
    write_text,
)
from anita_utils.run import Run

ROW = {"stage": "base", "metric": "perplexity", "value": 3.5}


def one_line(action, match):
    with pytest.raises(AnitaError, match=match) as error:
        action()
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- folders


def test_data_folder_of_the_checkout_and_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("ANITA_DATA", raising=False)
    assert data_dir().name in {"data", "_data"}
    monkeypatch.setenv("ANITA_DATA", str(tmp_path))
    assert data_dir() == tmp_path
    monkeypatch.setenv("ANITA_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(AnitaError, match="correct ANITA_DATA"):
        data_dir()


def test_folders_follow_the_environment(runs, monkeypatch, tmp_path):
    assert runs_dir() == runs
    assert cache_dir() == runs / "cache"
    monkeypatch.setenv("ANITA_CACHE", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere"


# ---------------------------------------------------------------- reading


def test_lines_keep_their_numbers(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffuno\r\n\n  \ndue\u2028tre\nquattro".encode())
    assert read_lines(file) == [(1, "uno\r"), (4, "due\u2028tre"), (5, "quattro")]


def test_what_cannot_be_read_says_why(tmp_path):
    one_line(lambda: read_text(tmp_path / "none"), "none: no such file: check the name")
    one_line(lambda: read_text(tmp_path), r"cannot be read \(Is a directory\)")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    with not_almighty():
        one_line(lambda: read_text(tmp_path / "secret"), "secret may not be read by this user: ask its owner")


# ---------------------------------------------------------------- writing


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "kept.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "new \ud800")
    assert file.read_text("utf-8") == "old"


@pytest.mark.parametrize("what", ["run.json", "metrics", "figure", "evaluation", "report", "kept results"])
def test_a_full_disk_is_one_line_wherever_it_fills(runs, small_profile, what, monkeypatch):
    """run.json and the evaluation ended in a traceback: returnn#1792, and what else is written at a run's end."""
    from matplotlib.figure import Figure

    from anita_utils.ablation import results
    from anita_utils.course import report
    from anita_utils.studies import contamination

    run = Run.open("t", small_profile, 42)
    run.record("05_evaluation", [ROW])
    monkeypatch.setattr(contamination, "course_overlaps", lambda profile: [])
    kept = results.Kept({("base", 1): {"arm": "base", "weights": "w", "scores": {}}}, {"w": {"x": [1.0] * 999}})
    actions = {
        "run.json": lambda: Run.open("t", small_profile, 43),
        "metrics": lambda: run.record("05_evaluation", [ROW] * 9),
        "figure": lambda: run.show(Figure(), "05_evaluation-empty", alt="Nothing.", caption="There is none."),
        "evaluation": lambda: measuring.evaluation_entry("m", small_profile, "answers").write(
            {"measured": ["x"] * 999}
        ),
        "report": lambda: report.write_report(run),
        "kept results": lambda: results.write_kept(run.folder / "results.jsonl", kept),
    }
    before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    with files_up_to(300):
        one_line(actions[what], "no room to write .*: free some space")
    after = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file() and file.suffix != ".lock"}
    assert after == {file: raw for file, raw in before.items() if file.suffix != ".lock"}
    actions[what]()


def test_the_remedy_fits_reading_and_writing(tmp_path):
    refused = PermissionError(13, "Permission denied", str(tmp_path / "x"))
    assert "may not be read by this user" in os_failure(refused, tmp_path, write=False)
    assert "set ANITA_RUNS" in os_failure(refused, tmp_path) and "ANITA_RUNS" not in os_failure(
        refused, tmp_path, False
    )


# ---------------------------------------------------------------- two at once

RECORDS = """
import sys
from anita_utils.run import Run

run = Run.load("t")
for number in range(30):
    name = f"{sys.argv[1]}_{number}"
    run.record(name, [{"stage": "base", "metric": "perplexity", "value": 1.0}])
    run.lesson_done(name, 1.0, "done")
"""


def test_two_kernels_on_one_run_lose_nothing(runs, small_profile):
    """Of 60 records 35 to 39 survived: automlbenchmark#691."""
    run = Run.open("t", small_profile, 42)
    processes = [subprocess.Popen([sys.executable, "-c", RECORDS, name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(run.metrics()) == 60 and len(run.info()["lessons"]) == 60


def test_two_threads_of_one_kernel_lose_nothing(runs, small_profile):
    run = Run.open("t", small_profile, 42)
    threads = [
        threading.Thread(target=lambda name=name: [run.record(f"{name}_{n}", [ROW]) for n in range(10)])
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run.metrics()) == 20


def test_a_lock_is_taken_again_by_its_process_and_given_back_by_one_that_is_killed(tmp_path):
    place = tmp_path / "place"
    with locked(place), locked(place):
        pass
    holding = "import sys, time\nfrom pathlib import Path\nfrom anita_utils.paths import locked\n"
    holding += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", holding, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    timer = threading.Timer(0.5, process.kill)
    timer.start()
    with locked(place, "it"):  # waits until the other is gone
        assert process.wait() == -9


# ---------------------------------------------------------------- consoles


def called(*arguments, shell="", **environment):
    """The command in a process of its own, through a shell that can close its streams."""
    command = f'"{sys.executable}" -m anita_utils.cli.main {" ".join(arguments)} {shell}'
    done = subprocess.run(command, shell=True, capture_output=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_consoles_that_cannot_print_accents_and_closed_streams(runs, random_model, tmp_path):
    """Tracebacks under cp1252 and with stdin closed: lamindb#3001."""
    asks = ("chat", str(random_model), "--max-new-tokens", "1")
    for encoding in ("cp1252", "ascii"):
        code, out, err = called(*asks, "--prompt", '"Perché? → 🐺"', PYTHONIOENCODING=encoding)
        assert code == 0 and b"Traceback" not in err and out.startswith(b"> Perch"), err
        assert called("doctor", PYTHONIOENCODING=encoding)[0] in (0, 1)
    for shell in ("<&-", "< /dev/null"):
        code, _, err = called(*asks, shell=shell)
        assert code == 0 and b"Traceback" not in err, err
    code, _, err = called("plan", "--profile", "cpu", shell="| head -n 1")
    assert b"Traceback" not in err
    code, _, err = called(*asks, shell="<<< $(printf 'perch\\351')") if os.path.exists("/bin/bash") else (0, b"", b"")
    assert b"Traceback" not in err


def test_prompts_that_are_half_a_character_are_one_line(runs, random_model):
    code, _, err = called("chat", str(random_model), "--prompt", "$(printf 'perch\\351')")
    assert code == 2 and err.count(b"\n") == 1 and b"half a character" in err, err
