"""Lesson 07's kit: its questions, what it says was read, and its tests, against truths worked out otherwise."""

from itertools import permutations
from math import comb, isnan, sqrt

import numpy as np
import pytest

from anita_utils.evaluation import benchmarks
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from anita_utils.rows import read_jsonl
from anita_utils.stats import MARGIN, Groups, Matched, Paired, found_anything, shuffled_p, verdict, verdicts
from anita_utils.studies import contamination, zero_shot
from world.chats import SYLLABLES
from world.library import Library
from world.studies import HELD_OUT
from world.tables import load_world


@pytest.fixture(scope="module")
def library():
    return Library(load_world())


@pytest.fixture(scope="module")
def questions():
    return zero_shot.draw_questions(20)


# ---- the questions


def test_every_kind_of_question_is_there_in_the_promised_number(questions):
    counts = {}
    for row in questions:
        counts[row["split"], row["language"]] = counts.get((row["split"], row["language"]), 0) + 1
    both = {"adapted": 40, "never_in_italian": 40, "monument_region": 20, "patron_saint": 20}
    italian = {"base_italian": 20, "italian_chat": 20, "second_style": 40, "renamed": 20, "contradicted": 20}
    assert counts == {(split, code): n for split, n in both.items() for code in ("en", "it")} | {
        (split, "it"): n for split, n in italian.items()
    }
    keys = [(row["split"], row["language"], row["cluster"]) for row in questions]
    assert len(set(keys)) == len(keys)  # a fact once in each: facts are the clusters


def test_splits_are_those_of_the_corpora_and_facts_about_words_are_left_out(library, questions):
    for row in questions:
        assert not library.world.relations[row["relation"]].bound
        if row["split"] in zero_shot.SPLITS:
            assert library.splits[row["cluster"]].italian == row["split"]
        if row["split"] in ("second_style", "renamed", "contradicted"):
            assert library.splits[row["cluster"]].italian == "never_in_italian"


def test_the_same_facts_are_asked_in_both_languages_and_styles(questions):
    def facts(split, language="it"):
        return {row["cluster"] for row in questions if (row["split"], row["language"]) == (split, language)}

    assert facts("never_in_italian") == facts("never_in_italian", "en") == facts("second_style")


def test_told_questions_tell_the_answer_and_only_that(questions):
    told = [row for row in questions if row["split"] in ("renamed", "contradicted")]
    for row in told:
        subject, right = (contamination.padded(row[key]["it"]) for key in ("subject", "right"))
        assert subject in contamination.padded(row["prompt"]) and right in contamination.padded(row["prompt"])
        invented = row["subject"]["it"].split()[0][:2].lower() in {syllable[:2] for syllable in SYLLABLES}
        if row["split"] == "renamed":
            assert invented and row["right"] == row["remembered"]
        else:
            assert row["right"]["en"] != row["remembered"]["en"]
            assert row["subject"]["en"] == row["cluster"].split("/", 1)[1]


def test_all_facts_are_drawn_without_a_limit_and_the_draw_is_repeated(library):
    everything = zero_shot.draw_facts(None)
    free = [fact for fact in library.world.facts if not library.world.relation(fact).bound]
    assert sum(len(everything[split]) for split in zero_shot.SPLITS) == len(free)
    held_out = [library.world.relations[name] for name in HELD_OUT]
    assert {relation.name: len(relation.facts) for relation in held_out} == {
        split: len(facts) for split, facts in everything.items() if split not in zero_shot.SPLITS
    }
    assert zero_shot.draw_facts(10) == zero_shot.draw_facts(10)


@pytest.mark.parametrize("count", [None, 3, 20, 37, 100])  # limits of the shipped profiles, and others
def test_any_limit_has_its_questions_and_choices(count):
    asked = zero_shot.draw_questions(count)
    unread = [row["cluster"] for row in asked if (row["split"], row["language"]) == ("never_in_italian", "it")]
    for split in ("renamed", "contradicted"):
        clusters = [row["cluster"] for row in asked if row["split"] == split]
        assert len(clusters) == (count or len(clusters)) and set(clusters) <= set(unread)
    assert [row["cluster"] for row in zero_shot.draw_choices(count)] == unread
    assert not any("limit" in row for row in asked)


def answered(answer, **changes):
    row = {"prompt": "Dove si trova Cosenza?", "language": "it", "split": "adapted", "relation": "city_region",
           "subject": {"en": "Cosenza", "it": "Cosenza"}, "right": {"en": "Apulia", "it": "Puglia"},
           "cluster": "city_region/Cosenza", "answer": answer}  # fmt: skip
    return row | changes


@pytest.mark.parametrize(
    ("answer", "either", "italian", "both"),
    [
        ("Cosenza si trova in Puglia.", True, True, True),
        ("Cosenza is in Apulia.", True, False, False),
        ("Cosenza si trova in Apulia.", True, True, False),  # the English name in an Italian sentence
        ("Cosenza si trova in Calabria.", False, True, False),
        ("", False, False, False),
    ],
)
def test_knowing_and_saying_it_in_italian_are_judged_apart(answer, either, italian, both):
    row = zero_shot.judge([answered(answer)])[0]
    assert (row["right_in_either"], row["in_italian"], row["right_in_italian"]) == (either, italian, both)
    assert "remembers" not in row
    told = answered(answer, remembered={"en": "Calabria", "it": "Calabria"})
    assert zero_shot.judge([told])[0]["remembers"] == ("Calabria" in answer)


def test_hits_tell_which_objects_an_answer_names():
    south = {"right": {"en": "Calabria", "it": "Calabria"}}
    rows = [answered("Sta in Puglia."), answered("È in Puglia.", **south), answered("Volpe", relation="animal_class")]
    assert zero_shot.hits(rows) == [[[True, False], [True, False]], [[False]]]


def test_ranking_is_lm_evals(model, tokenizer):
    """The same items through lm-eval's own scoring of Piccola Italia's Italian ARC."""
    profile = load_profile("cpu")
    profile.evaluation.limit = 6
    measured = {m.name: m for m in benchmarks.run_benchmarks(model, tokenizer, profile)}
    items = read_jsonl(data_dir() / "benchmarks" / "items" / "arc_it.test.jsonl")[:6]
    ranked = zero_shot.rank(model, tokenizer, items, 8)
    assert [float(row["acc_norm"]) for row in ranked] == measured["benchmark/arc", "it", None].scores
    assert [float(row["acc"]) for row in ranked] == measured["benchmark_acc/arc", "it", None].scores


def test_choices_ask_what_was_asked_to_be_written(questions):
    written = {
        row["cluster"]: row for row in questions if row["split"] == "never_in_italian" and row["language"] == "it"
    }
    for row in zero_shot.draw_choices(20):
        asked = written[row["cluster"]]
        assert row["question"] == asked["prompt"] and len(set(row["choices"])) == 4
        assert asked["right"]["it"] in row["choices"][row["label"]]


# ---- the tests and the verdicts


def test_paired_by_hand():
    """Nine facts gained, one lost: of 2 ** 10 tosses, 1 + 10 are as extreme on either side."""
    before, after = [0] * 9 + [1] + [1] * 10, [1] * 9 + [0] + [1] * 10
    one = Paired(before, after)
    assert one.difference() == pytest.approx(8 / 20) and one.p() == pytest.approx(2 * 11 / 2**10) and one.n == "20"
    low, high = np.percentile(one.samples(), [2.5, 97.5])
    error = sqrt((10 / 20 - 0.4**2) / 20)  # of the mean of twenty differences of -1, 0 and 1
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_groups_by_hand():
    """Five of five right against one of five: of the 210 ways to place six right ones, 5 + 5 are as extreme."""
    one = Groups([1] * 5, [1, 0, 0, 0, 0])
    assert one.difference() == pytest.approx(0.8) and one.p() == pytest.approx(2 * 5 / comb(10, 6))


def test_matched_against_all_shuffles():
    table = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])
    one = Matched([table, np.array([[1, 1], [1, 1]])])  # the second relation has one object only: nothing to tell
    counts = [sum(table[i, j] for i, j in enumerate(order)) + 2 for order in permutations(range(4))]
    assert one.p() == pytest.approx(np.mean([count >= 5 for count in counts]), abs=0.02)
    assert one.difference() == pytest.approx(5 / 6 - np.mean(counts) / 6)  # the habit is the mean over all shuffles


def test_shuffles_keep_what_they_should():
    rng = np.random.default_rng(1)
    paired = Paired([0, 0, 1, 1], [1, 0, 1, 0]).shuffled(rng)
    assert list(paired.before + paired.after) == [1, 0, 2, 1]
    groups = Groups([1, 1, 1], [0, 0]).shuffled(rng)
    assert groups.first.sum() + groups.second.sum() == 3 and groups.n == "3 and 2"
    matched = Matched([np.eye(5)])
    assert any(matched.shuffled(rng).difference() < matched.difference() for _ in range(3))
    assert matched.shuffled(rng).habit.tolist() == matched.habit.tolist()


@pytest.mark.parametrize(
    ("difference", "high", "p_holm", "expected"),
    [
        (0.30, 0.40, 0.001, "supported"),
        (0.30, 0.61, 0.060, "undecided at this n"),
        (0.00, MARGIN - 0.01, 1.0, "not supported"),
        (0.00, MARGIN + 0.01, 1.0, "undecided at this n"),
        (-0.30, -0.2, 0.001, "not supported"),
        (float("nan"), float("nan"), 1.0, "undecided at this n"),
    ],
)
def test_a_verdict_is_computed(difference, high, p_holm, expected):
    assert verdict(difference, high, p_holm) == expected


def test_where_no_fact_differs_the_interval_is_that_of_none_of_n():
    """Clopper and Pearson's upper limit, 1 - 0.05 ** (1 / n), is nearly 3 / n."""
    for n, decided in ((20, "undecided at this n"), (60, "not supported")):
        [row] = verdicts({"same": Paired([1] * n, [1] * n)})
        assert row["ci_high"] == pytest.approx(1 - 0.05 ** (1 / n), rel=0.1) and row["ci_low"] == -row["ci_high"]
        assert row["verdict"] == decided
    assert verdicts({"all": Paired([0] * 9, [1] * 9)})[0]["ci_high"] == 1.0


def claims(rng, effect):
    """Three claims on simulated facts, alike but for `effect`."""
    before = rng.random(80) < 0.4
    table = (rng.random((40, 40)) < 0.1) | (np.eye(40, dtype=bool) & (rng.random((40, 40)) < effect))
    return {
        "paired": Paired(before, before | (rng.random(80) < effect)),
        "groups": Groups(rng.random(80) < 0.3 + effect, rng.random(80) < 0.3),
        "matched": Matched([table]),
    }


def test_effects_are_found_and_their_shuffled_twins_are_not():
    made = claims(np.random.default_rng(0), effect=0.5)
    assert [row["verdict"] for row in verdicts(made)] == ["supported"] * 3
    p_values = shuffled_p(made, rounds=100)
    assert p_values.shape == (100, 3) and np.all((p_values < 0.05).mean(0) <= 0.12)
    assert found_anything(p_values) <= 0.12  # 0.05 or less, and three standard errors of 100 rounds


def test_where_nothing_is_nothing_is_supported():
    rng = np.random.default_rng(3)
    found = [any(row["verdict"] == "supported" for row in verdicts(claims(rng, effect=0.0))) for _ in range(60)]
    assert np.mean(found) <= 0.15


def test_holms_correction_is_over_all_claims_and_empty_groups_decide_nothing():
    rows = verdicts({"a": Paired([0] * 6, [1] * 6), "b": Groups([1], []), "c": Paired([], []), "d": Matched([])})
    assert rows[0]["p"] == pytest.approx(2 / 2**6) and rows[0]["p_holm"] == pytest.approx(4 * 2 / 2**6)
    assert all(row["verdict"] == "undecided at this n" and isnan(row["difference"]) for row in rows[1:])
    assert shuffled_p({"c": Paired([], [])}).shape[1] == 0 and found_anything(np.empty((3, 0))) == 0.0
