"""`anita eval`: what it resolves, measures, prints, and says of mistakes. No network; models are stand-ins."""

import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from anita_utils import hub, paths
from anita_utils.cli import evaluate
from anita_utils.evaluation import measuring
from anita_utils.evaluation.benchmarks import SUITES
from anita_utils.profile import load_profile
from anita_utils.run import Run
from anita_utils.stats import Measurement


def figures(right):
    """What a model measured, of 40 items a benchmark of which `right` are right."""
    scores, clusters = [1.0] * right + [0.0] * (40 - right), list(map(str, range(40)))
    measured = [Measurement(b.metric, b.language, b.split, scores, clusters) for b in SUITES["paper"].benchmarks]
    return [*measured, Measurement("perplexity", "it", None, [60.0, 80.0], ["a", "b"], [30.0, 40.0])]


@pytest.fixture
def measured(monkeypatch, runs):
    """Stands in for `evaluate`: notes how it was called; the model called `better` gets more right."""
    calls = []

    def evaluate(path, profile, benchmarks, answers):
        calls.append((path, profile))
        found = figures(30 if path.endswith("better") else 10)
        return (found[:-1] if benchmarks else []) + (found[-1:] if answers else [])

    monkeypatch.setattr(measuring, "evaluate", evaluate)
    monkeypatch.setattr(hub, "resolve_model", lambda name, rev=None, run=None: f"{rev or 'path'}/{name}")
    return calls


def shown(table):
    console = Console(width=200, record=True, file=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_model_is_measured_by_suite_and_limit(anita, measured):
    code, out, err = anita("eval", "better", "--suite", "quick", "--limit", "7")
    assert (code, err) == (0, "")
    [(path, profile)] = measured
    assert path == "path/better"
    assert (profile.name, profile.evaluation.suite, profile.evaluation.limit) == ("cpu", "quick", 7)
    assert "perplexity" in out and "suite quick" in out


def test_a_part_is_measured_alone(anita, measured):
    for only, there, left_out in [
        ("benchmarks", "arc, English", "perplexity"),
        ("answers", "perplexity of Italian text", "arc"),
    ]:
        code, out, _ = anita("eval", "x", "--only", only)
        assert code == 0 and there in out and left_out not in out
    assert anita("eval", "x", "--only", "nothing")[0] == 2


def test_a_suite_brings_its_own_limit_and_none_keeps_the_profiles(anita, measured):
    anita("eval", "x", "--suite", "piccola")
    anita("eval", "x")
    cpu = load_profile("cpu").evaluation
    asked = [(profile.evaluation.suite, profile.evaluation.limit) for _, profile in measured]
    assert asked == [("piccola", None), (cpu.suite, cpu.limit)]


def test_stages_are_measured_as_their_run_was_set(anita, measured, monkeypatch):
    settings = load_profile("cpu")
    settings.evaluation.max_new_tokens = 11
    Run.open("trial", settings)
    anita("eval")
    assert [(path, profile.evaluation.max_new_tokens) for path, profile in measured] == [("path/base", 11)]


def test_the_pinned_base_is_measured_at_its_revision(anita, measured):
    profile = load_profile("laptop-hub")
    anita("eval", profile.model.base, "--profile", "laptop-hub", "--suite", "quick")
    assert measured[0][0] == f"{profile.model.revision or 'path'}/{profile.model.base}"


def test_for_programs(anita, measured):
    code, out, _ = anita("eval", "better", "--against", "x", "--suite", "paper", "--json")
    assert code == 0
    outcome = json.loads(out)
    arc = {(row["metric"], row["language"]): row for row in outcome["figures"]}["benchmark/arc", "en"]
    assert (arc["value"], arc["n"]) == (0.75, 40) and arc["ci_low"] < 0.75 < arc["ci_high"]
    assert (outcome["evaluation"]["suite"], outcome["against"]) == ("paper", "x")
    tests = {(row["metric"], row["language"]): row for row in outcome["tests"]}
    assert tests["benchmark/arc", "en"]["p"] == pytest.approx(2 / 2**20)
    assert tests["benchmark/arc", "en"]["p_holm"] > tests["benchmark/arc", "en"]["p"]
    assert tests["perplexity", "it"]["difference"] == 0 and tests["perplexity", "it"]["p"] == 1


def test_two_models_are_compared_in_words(anita, measured):
    code, out, _ = anita("eval", "better", "--against", "x", "--suite", "quick")
    words = " ".join(out.replace("│", "").split())
    assert code == 0 and "better minus x, paired" in words
    assert (
        "arc, English +50.0 0.0000 0.0000 * 40" in words and "perplexity of Italian text +0.00 1.0000 1.0000 2" in words
    )


def test_the_table_shows_intervals_n_and_what_was_published():
    text = shown(evaluate.figures_table(figures(30), "paper", "mine"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    lines = {row[0]: row[1:] for row in rows}
    low, high = np.percentile(figures(30)[0].resampled(), [2.5, 97.5]) * 100
    interval = f"[{low:.1f}, {high:.1f}]"
    assert lines["arc, English"] == ["75.0", interval, "40", "74.6", "not confirmed"]
    assert lines["arc, Italian, version 2.0"][3:] == ["57.1 (version 1)", "44.4 (version 1)"]
    means = [f"{100 * (mmlu + hellaswag) / 2:.1f}" for mmlu, hellaswag in [(0.5672, 0.7093), (0.5590, 0.5998)]]
    assert lines["mean of the Italian benchmarks"][2:] == ["80", *means]  # of two: not of the other version
    assert lines["mean of the English benchmarks"][2:] == ["240", "75.1", ""]
    assert lines["perplexity of Italian text"][0] == "7.39"
    assert "published" not in shown(evaluate.figures_table(figures(30), "quick", "mine"))


def test_versions_that_differ_are_never_subtracted(anita, measured):
    _, out, _ = anita("eval", "x", "--suite", "paper")
    assert "not to be subtracted, and in no mean" in " ".join(out.split())


def test_a_dry_run_needs_no_model(anita, measured, runs):
    code, out, err = anita("eval", "nowhere", "--suite", "piccola", "--dry-run")
    assert (code, err, measured) == (0, "", [])
    assert "piccola" in out
    code, out, _ = anita("eval", "nowhere", "--suite", "quick", "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0 and found["limit"] == SUITES["quick"].limit and len(found["benchmarks"]) == 12
    assert {row["chat"] for row in found["benchmarks"]} == {True}


def test_a_dry_run_that_finds_something_amiss_fails(anita, monkeypatch, runs):
    suite = SUITES["piccola"]
    broken = suite.benchmarks[0]._replace(version="9")
    monkeypatch.setitem(SUITES, "piccola", suite._replace(benchmarks=(broken, *suite.benchmarks[1:])))
    code, out, _ = anita("eval", "--suite", "piccola", "--dry-run", "--json")
    problems = [row["problem"] for row in json.loads(out)["benchmarks"]]
    assert code == 1 and problems == ["version 1.0, not 9", *[""] * 11]


def test_an_unknown_suite_is_one_line(anita, runs):
    for options in ([], ["--dry-run"]):
        code, out, err = anita("eval", "base", "--suite", "grande", *options)
        assert (code, out) == (2, "")
        assert err == "anita: no suite 'grande': choose quick, piccola, paper, italian\n"


def test_a_model_without_a_chat_template_is_one_line(anita, runs, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(paths.data_dir() / "tiny-llama-3-instruct", folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for file in ("tokenizer_config.json",):
        values = json.loads((folder / file).read_text("utf-8"))
        values.pop("chat_template", None)
        (folder / file).write_text(json.dumps(values), "utf-8")
    code, out, err = anita("eval", folder, "--suite", "quick")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "plain: the tokenizer has no chat template" in err
