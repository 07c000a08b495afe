"""Lesson 08 without its models: what it asks was never trained on, and its last table says what was not run."""

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import nbformat
import pandas
import pytest

from anita_utils.evaluation import benchmarks, measuring
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from anita_utils.studies import bias

LESSON = Path(__file__).parents[2] / "notebooks" / "08_bias_and_safety.ipynb"
SOURCES = {cell.id.removeprefix("08-"): cell.source for cell in nbformat.read(LESSON, as_version=4).cells}


@pytest.fixture(scope="module")
def asked():
    """The names that the lesson's cells make up to its prompts."""
    names = {"rng": Random("42/audit"), "items": 50, "persons": 2, "per_topic": 2}
    names |= {"bias": bias, "measuring": measuring, "pandas": pandas}
    for cell in ("pairs", "requests", "conduct", "askers", "treatment", "unanswerable", "know", "forms"):
        exec(SOURCES[cell], names)
    return names


def test_no_prompt_stands_in_a_training_corpus(asked):
    prompts = {item["prompt"] for name in ("conduct", "treatment", "unanswerable", "opinions") for item in asked[name]}
    trained = set()
    for file in (data_dir() / "corpora").glob("*.jsonl"):
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            turns = row.get("messages") or row.get("prompt") or []
            trained |= {turn["content"] for turn in turns if turn["role"] == "user"}
    assert len(trained) > 1000 and len(prompts) > 400 and not prompts & trained
    sentences = {row["text"] for rows in asked["pairs"].values() for row in rows}
    texts = " ".join((data_dir() / "corpora" / "pretraining_sample.jsonl").read_text("utf-8").splitlines())
    assert len(sentences) > 1000 and not any(sentence in texts for sentence in sentences)


def test_requests_come_in_three_wordings_and_askers_in_pairs(asked):
    conduct = pandas.DataFrame(asked["conduct"])
    assert conduct.cluster.nunique() == 32 and set(conduct.groupby("request").size()) == {3}
    assert (conduct.groupby(["cluster", "side", "language"]).size() == 6).all()
    treatment = pandas.DataFrame(asked["treatment"])
    assert set(treatment.groupby("pair").prompt.nunique()) == {2} and set(treatment["axis"]) == set(asked["axes"])
    two = treatment[treatment.pair == treatment.pair[0]].prompt.str.split(". ", n=1, regex=False).str
    assert two[0].nunique() == 2 and two[1].nunique() == 1  # another asker, the same request


def test_women_and_men_have_two_forms_and_answers_that_agree(asked):
    forms = pandas.DataFrame(asked["forms"])
    assert set(forms.groupby("sex").size()) == {21}
    for item in forms.itertuples():
        right, wrong = item.answers
        assert bias.form_written(right, item.right, item.wrong) == "right"
        assert bias.form_written(wrong, item.right, item.wrong) == "wrong"
    assert all(" una " in right or " un'" in right for right, _ in forms.answers[forms.sex == "women"])


@pytest.mark.parametrize(
    ("base", "columns"),
    [
        ("tiny-llama-3-instruct", {"in the small world": "better", "on the 8B": "not run"}),
        ("meta-llama/Meta-Llama-3-8B-Instruct", {"in the small world": "another run", "on the 8B": "better"}),
        ("meta-llama/Llama-3.2-1B-Instruct", {"in the small world": "another run", "on the 8B": "not run",
                                              "on meta-llama/Llama-3.2-1B-Instruct": "better"}),
    ],
)  # fmt: skip
def test_the_last_table_says_which_model_was_run(base, columns, capsys):
    profile = load_profile("cpu")
    profile.model.base = base
    row = {"measure": "agrees en", "before": 0.5, "after": 0.1, "p_holm": 0.01, "verdict": "better"}
    names = {"table": pandas.DataFrame([row]), "profile": profile, "shipped": base == "tiny-llama-3-instruct"}
    exec(SOURCES["final-lists"], names)
    last = SOURCES["final"].rsplit("\n", 1)
    exec(f"{last[0]}\nlast_table = {last[1]}", names)
    shown = names["last_table"]
    assert {name: shown.loc["agrees en", name] for name in columns} == columns
    assert list(shown.columns) == ["before", "after", "p_holm", *columns]
    assert "better (1): agrees en" in capsys.readouterr().out


def test_the_published_sets_are_looked_up_where_the_suite_is_not_local(monkeypatch):
    profile = load_profile("cpu")
    names = {"profile": profile, "measuring": measuring, "benchmarks": benchmarks, "pandas": pandas}
    exec(f"{SOURCES['published-sets']}\n{SOURCES['published']}", names)
    assert set(names["table_of_sets"]["in lm-eval"]) == {"not looked up: the suite is local"}
    profile.evaluation.suite = "paper"
    monkeypatch.setattr(
        benchmarks, "task_manager", lambda suite: SimpleNamespace(task_index={"honest_it": 1, "arc_it": 2})
    )
    exec(f"{SOURCES['published-sets']}\n{SOURCES['published']}", names)
    found = names["table_of_sets"].set_index("set")["in lm-eval"]
    assert found["HONEST (it)"] == "honest_it" and set(found.drop("HONEST (it)")) == {"no"}
