"""The table of measures: complete, the only place that words them, and what was published."""

import re
from pathlib import Path

import pandas
import pytest

import anita_utils
from anita_utils.ablation.arms import load_ablation
from anita_utils.evaluation import metrics
from anita_utils.evaluation.benchmarks import SUITES
from anita_utils.paths import data_dir
from anita_utils.stats import Measurement, counted

LAST = metrics.TABLE[-1]


def produced():
    """The names in every place that measures: as they are written in the source."""
    made = set()
    for file in ("evaluation/measuring", "evaluation/benchmarks", "stats", "studies/bias"):
        text = (Path(anita_utils.__file__).parent / f"{file}.py").read_text("utf-8")
        made |= set(re.findall(r'(?:Measurement|share)\(\s*"([\w/]+)"', text))
    return made | {one.metric for suite in SUITES.values() for one in suite.benchmarks}


def test_every_metric_that_is_measured_has_a_row():
    made = produced()
    assert {"perplexity", "chat/accuracy", "overconfidence", "preference_margin", "bias/lean", "italian/faq"} <= made
    expected = pandas.read_csv(Path(__file__).parents[1] / "notebooks" / "expected.csv")
    arms = {measure.split()[0] for profile in ("cpu", "h100") for measure in load_ablation(profile).measures}
    for name in made | set(expected["metric"]) | arms | {"preference_accuracy_logprob"}:
        assert metrics.measure(name) != LAST or name in ("reward_margin",), name  # lesson 04 draws that one by itself


def test_a_measures_words_are_written_in_the_table_alone():
    """Each row's longest piece of fixed words, where it is two words or more, is in no other module."""
    root = Path(anita_utils.__file__).parent
    texts = {file: file.read_text("utf-8") for file in root.rglob("*.py") if "exercises" not in file.parts}
    texts.pop(root / "evaluation" / "metrics.py")
    for row in metrics.TABLE:
        phrase = max(re.split(r"\{\w+\}", row.words), key=len).strip(" ,")
        held = [file.name for file, text in texts.items() if " " in phrase and f'"{phrase}' in text]
        assert not held or phrase == "tokens a second", (phrase, held)  # costs of a training have a column of that name


def test_rows_are_found_and_none_hides_another():
    for row in metrics.TABLE:
        assert metrics.measure(row.name) == row
        assert row.better in ("higher", "lower", "zero", "neither")
        assert set(row.shown.split()) <= {"headline", "changes", "results", "ablation", "others"}


@pytest.mark.parametrize(
    ("measure", "name"),
    [
        (("benchmark/mean", "it", None), "mean of the Italian benchmarks"),
        (("benchmark/arc", "it", "version 2.0"), "arc, Italian, version 2.0"),
        (("benchmark_norm/mmlu", "en", None), "mmlu, accuracy by length, English"),
        (("chat/accuracy_in_language", "it", "adapted"), "right Italian answers, on facts read in Italian"),
        (("language_fidelity", "it", float("nan")), "Italian questions answered in Italian"),
        (("refusal/harmful", "all", "held_out_wordings"), "harmful requests refused, in new wordings"),
        (("perplexity", "all", None), "perplexity of text"),
        (("zero_shot/right_in_italian", "fr", None), "zero shot, right in Italian, fr"),
    ],
)
def test_words(measure, name):
    assert metrics.words(*measure) == name


def test_figures_are_written_by_their_unit():
    assert metrics.text("benchmark/arc", 0.5226) == "52.3" and metrics.text("refusal/harmless", -0.5, True) == "-50.0"
    assert metrics.text("perplexity", 7.389) == "7.39" and metrics.text("bits_per_byte", 0.1, signed=True) == "+0.10"
    assert metrics.text("model/parameters", 8_030_261_248) == "8,030,261,248"
    assert metrics.text("machine/memory_bytes", 3 * 2**30) == "3.00 GiB" and metrics.text("never/seen", 2) == "2.00"
    row = {"metric": "perplexity", "ci_low": 3.0, "ci_high": 4.256}
    assert metrics.interval_text(row) == "[3.00, 4.26]" and metrics.interval_text(row | {"ci_low": None}) == ""


def test_a_share_has_ends_and_a_perplexity_none():
    assert metrics.bounds("benchmark/mean") == metrics.bounds("refusal/harmful") == (0, 1)
    assert metrics.bounds("overconfidence") == metrics.bounds("bias/generated/age") == (-1, 1)
    assert metrics.bounds("perplexity") == metrics.bounds("train/tokens") == (-float("inf"), float("inf"))


def test_which_way_is_better():
    def change(metric, before, after, p=0.001):
        return metrics.change({"metric": metric, "before": before, "after": after, "p_holm": p})

    assert change("benchmark/arc", 0.1, 0.5) == change("perplexity", 9.0, 8.0) == "better"
    assert change("chat/accuracy", 0.5, 0.1) == change("refusal/harmless", 0.0, 0.2) == "worse"
    assert change("bias/lean", -1.0, 0.5) == "better" and change("bias/lean", 0.5, -1.0) == "worse"
    assert change("answer_words", 4, 6) == change("overconfidence", 0.1, 0.0) == "changed"
    assert change("perplexity", 9.0, 8.0, p=0.05) == change("perplexity", 9.0, 8.0, p=None) == ""


def test_a_margin_is_shown_as_pairs_won():
    pairs = [Measurement("preference_margin", "all", None, [1.0, 0.0, -2.0], ["a", "b", "c"])]
    assert counted(pairs)[0].scores == [1.0, 0.0, 0.0]
    assert metrics.words(*counted(pairs)[0].name) == "pairs won by likelihood"


def test_published_figures_have_a_source_and_the_italian_mean_leaves_arc_out():
    known = metrics.published()
    ours, base = metrics.PUBLISHED
    assert known["benchmark/arc", "en"][ours] == ("74.6", "model card, confirmed")
    assert known["benchmark/arc", "en"][base].value == "not confirmed"  # never a figure in the paper's name
    assert known["benchmark/arc", "it"][ours].value == "57.1 (version 1)"
    assert known["benchmark/mean", "it"][ours] == (f"{(56.72 + 70.93) / 2:.1f}", "mean of those above, without arc")
    assert base not in known["benchmark/mean", "en"]
    rows = pandas.read_csv(data_dir() / "paper" / "results.csv")
    assert {model for models in known.values() for model in models} == set(metrics.PUBLISHED) <= set(rows["model"])
