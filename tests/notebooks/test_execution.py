"""The course as a student runs it: every lesson executed headlessly, its metrics held against the committed ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

ROOT = Path(__file__).parents[2]
EXPECTED = Path(__file__).with_name("expected.csv")
# Another CPU rounds otherwise, and a training amplifies it. The tolerances are well below the effects the lessons show:
# shares may move by 6 points (effects of 20 and more), perplexities by a tenth (effects of 2 times and more).
SHARE_TOLERANCE, PERPLEXITY_TOLERANCE = 0.06, 0.10
KEYS = ["notebook", "arm", "stage", "metric", "language", "split"]
LESSONS = len(list((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")))


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """One run of the whole course in an empty folder of runs, as `make course` does it."""
    runs = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "ANITA_RUNS": str(runs)}
    environment.pop("ANITA_CACHE", None)
    command = [sys.executable, "-m", "anita_utils.cli.main", "course", "--run", "test"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return runs / "test", environment


def metrics(folder: Path) -> pandas.DataFrame:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return pandas.DataFrame(rows).fillna({"split": ""}).set_index(KEYS).sort_index()


def test_every_lesson_ran(course):
    folder, _ = course
    lessons = json.loads((folder / "run.json").read_text("utf-8"))["lessons"]
    assert [lesson["status"] for lesson in lessons.values()] == ["done"] * LESSONS
    for name in lessons:
        assert (folder / "notebooks" / f"{name}.ipynb").is_file() and (folder / "html" / f"{name}.html").is_file()
        assert len(list((folder / "figures").glob(f"{name}-*.png"))) >= 2, name


def test_the_report_begins_with_the_results(course):
    page = (course[0] / "index.html").read_text("utf-8")
    assert page.index("mean of the English benchmarks") < page.index("03_qlora_italian")
    assert "<script src" not in page and 'href="http' not in page.split("<body")[0]


def test_metrics_are_those_committed(course):
    measured = metrics(course[0])
    expected = pandas.read_csv(EXPECTED, keep_default_na=False).set_index(KEYS).sort_index()
    missing = expected.index.difference(measured.index)
    assert missing.empty, list(missing)
    wrong = []
    for key, row in expected.iterrows():
        value = measured.loc[key, "value"]
        tolerance = abs(row["value"]) * PERPLEXITY_TOLERANCE if key[2].startswith("perplexity") else SHARE_TOLERANCE
        if abs(value - row["value"]) > tolerance:
            wrong.append((key, value, row["value"]))
    assert not wrong, wrong


def test_the_recipe_shows_its_effects(course):
    """The signs of what the course teaches, whatever the machine: each interval of the difference misses zero."""
    table = metrics(course[0]).reset_index()
    difference = table[table["stage"] == "difference"].set_index(["metric", "language", "split"])
    for key in [
        ("benchmark/mean", "it", ""),
        ("chat/accuracy_in_language", "it", "adapted"),
        ("chat/accuracy_in_language", "it", "never_in_italian"),
        ("language_fidelity", "it", ""),
        ("refusal/harmful", "all", "held_out_wordings"),
    ]:
        assert difference.loc[key, "ci_low"] > 0, (key, dict(difference.loc[key]))
    assert difference.loc[("perplexity", "it", ""), "ci_high"] < 0


def test_nf4_costs_little_perplexity(course):
    """Lesson 03 measures the same model in 4 bits and not: another figure by that name would be far from it."""
    table = (
        metrics(course[0])
        .reset_index()
        .set_index(["stage", "metric", "language"])["value"]
        .groupby(level=[0, 1, 2])
        .last()
    )
    for stage in ("sft", "italian"):
        for language in ("en", "it"):
            whole, nf4 = (table[stage, metric, language] for metric in ("perplexity", "perplexity/nf4"))
            assert nf4 == pytest.approx(whole, rel=0.1), (stage, language)


@pytest.mark.parametrize(
    "folder, lesson, stages",
    [(".", "02_supervised_fine_tuning", {"base", "sft"}), ("notebooks", "00_start_here", {"base"})],
)
def test_a_lesson_runs_alone_under_plain_papermill(course, tmp_path, folder, lesson, stages):
    """From the root and from notebooks/; the stages come from the cache of the run above, under another run's name."""
    _, environment = course
    notebook = ROOT / "notebooks" / f"{lesson}.ipynb"
    here = ROOT / folder
    command = [sys.executable, "-m", "papermill", os.path.relpath(notebook, here), str(tmp_path / "out.ipynb"),
               "-p", "profile", "cpu", "-p", "run", f"alone-{lesson}"]  # fmt: skip
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    recorded = Path(environment["ANITA_RUNS"]) / f"alone-{lesson}" / "metrics.jsonl"
    assert {json.loads(line)["stage"] for line in recorded.read_text("utf-8").splitlines()} >= stages
