"""Tests of differences, against scipy, cases by hand, and a world in which there is no difference."""

from math import comb

import numpy as np
import pytest
from scipy import stats as scipy_stats

from anita_utils import stats
from anita_utils.evaluation.benchmarks import FAMILIES
from anita_utils.stats import (
    Measurement,
    compare,
    differences,
    holm,
    holm_levels,
    mcnemar,
    paired_tests,
    sign_flip,
)


def measurement(scores, clusters=None, metric="chat/accuracy", language="it", **others):
    clusters = clusters or list(map(str, range(len(scores))))
    return Measurement(metric, language, None, [float(score) for score in scores], clusters, **others)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (6, 0), (5, 5), (12, 3), (3, 12), (40, 21)])
def test_mcnemar_by_hand(gained, lost):
    """Of all ways to toss a coin for each item that changed, those at least as one-sided as what is seen."""
    before, after = [0] * gained + [1] * lost + [0, 1] * 10, [1] * gained + [0] * lost + [0, 1] * 10
    changed = gained + lost
    expected = 2 * sum(comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    assert mcnemar(before, after) == pytest.approx(min(1.0, expected), rel=1e-12)


def swapped(differences, **options):
    """scipy's permutation test of the same null: the two members of each pair swapped."""
    pair = (np.asarray(differences, float), np.zeros(len(differences)))
    statistic = lambda old, new, axis: np.sum(old - new, axis)  # noqa: E731
    return scipy_stats.permutation_test(pair, statistic, permutation_type="samples", vectorized=True, **options).pvalue


@pytest.mark.parametrize("differences", [[1, 2, -1, 0, 3], [1, 1, 1, 1, 1, 1], [0.5, -0.25, 0.1, 2.0, -3.0, 1.0, 0.7]])
def test_few_clusters_are_swapped_in_every_way(differences):
    assert sign_flip(differences) == pytest.approx(swapped(differences, n_resamples=np.inf), rel=1e-12)


def test_many_clusters_are_swapped_at_random():
    differences = np.random.default_rng(5).integers(-2, 4, 60)
    drawn = swapped(differences, n_resamples=20_000, rng=np.random.default_rng(1))
    assert 0.001 < drawn < 0.2  # else the next line would say little
    assert sign_flip(differences) == pytest.approx(drawn, abs=4 * np.sqrt(drawn / 2000))


def test_nothing_moved_is_no_evidence():
    assert sign_flip([0, 0, 0]) == 1.0
    assert np.all(sign_flip(np.zeros((40, 3))) == 1.0)


def test_items_for_themselves_make_mcnemar_of_sign_flips():
    before, after = [0] * 9 + [1] * 2 + [1, 0] * 20, [1] * 9 + [0] * 2 + [1, 0] * 20
    flips = sign_flip(np.subtract(after, before))
    assert flips == pytest.approx(mcnemar(before, after), rel=1e-12)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.005, 0.011, 0.02, 0.04]) == pytest.approx([0.02, 0.033, 0.04, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_each_p_value_has_its_level_by_hand():
    """0.05 / 4, / 3, / 2, / 1; after the first that is too large, its level is that of all others."""
    assert holm_levels([0.04, 0.011, 0.005, 0.02]) == pytest.approx([0.05, 0.05 / 3, 0.0125, 0.025])
    assert holm_levels([0.04, 0.03, 0.005, 0.02]) == pytest.approx([0.05 / 3, 0.05 / 3, 0.0125, 0.05 / 3])
    assert holm_levels([0.2, 0.01], alpha=0.01) == pytest.approx([0.005, 0.005])
    assert holm_levels([]) == []


@pytest.mark.parametrize("true", [None, 6, 1])
def test_a_p_value_is_below_its_level_exactly_when_holm_finds_it(true):
    random, seen = np.random.default_rng(23), set()
    for _ in range(500):
        p = list(random.beta(0.3, 3, 12))
        found = [one < 0.05 for one in holm(p, true)]
        assert [one < level for one, level in zip(p, holm_levels(p, true=true), strict=True)] == found
        seen.add(sum(found))
    assert len(seen) > 3


def no_difference(together, sets=2000, clusters=200, items=4, seed=0):
    """Two models with the same chance at each item, `sets` times: two arrays of sets × clusters × items.

    together: a model gets all items of a cluster by one throw of the dice, as it knows a fact or not.
    """
    rng = np.random.default_rng(seed)
    chances = 1 / (1 + np.exp(-rng.normal(0, 1, (clusters, 1)) - rng.normal(0, 1, (clusters, items))))
    dice = rng.random((2, sets, clusters, 1 if together else items))
    return (dice < chances).astype(float)


REJECTED = pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("together", [False, True])
def test_where_nothing_differs_one_in_twenty_is_rejected(together):
    before, after = no_difference(together)
    by_cluster = (after - before).sum(2).T
    # As for a mean of benchmarks, where a right answer is not worth the same everywhere
    assert np.mean(sign_flip(by_cluster * np.linspace(0.7, 1.3, len(by_cluster))[:, None]) < 0.05) == REJECTED
    # Right and wrong alone are coarse: the exact test is careful, and no more than that
    assert 0.03 < np.mean(sign_flip(by_cluster) < 0.05) < 0.06
    if together:  # why clusters matter: the same results, taken item by item
        items = (after - before).reshape(len(before), -1).T
        assert np.mean(sign_flip(items) < 0.05) > 0.15


def test_paired_tests_choose_the_test_and_correct_each_family():
    alone, shared = list("abcdefgh"), list("aabbccdd")
    zeros, ones = [0] * 8, [1] * 8
    before = [measurement(zeros, alone, f"benchmark/{name}") for name in ("arc", "mmlu")]
    after = [measurement(ones, alone, "benchmark/arc"), measurement([1] * 6 + [0] * 2, alone, "benchmark/mmlu")]
    before.append(measurement(zeros, shared))
    after.append(measurement(ones, shared))
    rows = {row["metric"]: row for row in paired_tests(before, after)}
    assert set(rows) == {"benchmark/arc", "benchmark/mmlu", "benchmark/mean", "chat/accuracy"}
    arc, mmlu, mean = (rows[f"benchmark/{name}"] for name in ("arc", "mmlu", "mean"))
    chat = rows["chat/accuracy"]
    assert (arc["test"], arc["clusters"], arc["n"], arc["difference"]) == ("McNemar", 8, 8, 1.0)
    assert (chat["test"], chat["clusters"], chat["n"]) == ("sign flips", 4, 8)
    assert (arc["p"], mmlu["p"], chat["p"]) == pytest.approx((2 / 2**8, 2 / 2**6, 2 / 2**4), rel=1e-12)
    assert chat["p_holm"] == chat["p"]  # alone in its family
    assert mmlu["p_holm"] == mmlu["p"] and arc["p_holm"] == 2 * arc["p"] and mean["p"] < arc["p"]
    values = {row["metric"]: row["value"] for row in differences(before, after)}
    assert {name: row["difference"] for name, row in rows.items()} == pytest.approx(values)


def test_one_comparison_gives_figures_interval_and_test():
    """The same rows as `differences` and `paired_tests`, joined; a margin is compared by the pairs it wins."""
    rng = np.random.default_rng(4)
    both = [
        [
            measurement(rng.random(30) < chance),
            measurement(rng.normal(chance, 1, 30), metric="preference_margin"),
            measurement([5, 6, tokens], weights=[2.0, 3.0, tokens], metric="perplexity"),
        ]
        for chance, tokens in ((0.3, 4.0), (0.9, 5.0))
    ]
    made = {row["metric"]: row for row in compare(*both)}
    assert list(made) == ["chat/accuracy", "preference_accuracy_logprob", "perplexity"]
    for row, plain in zip(made.values(), differences(*both), strict=True):
        assert {key: row[key] for key in plain} == plain
        assert row["after"] - row["before"] == pytest.approx(row["value"])
    won = [np.mean(np.array(measured[1].scores) > 0) for measured in both]
    pairs = made["preference_accuracy_logprob"]
    assert (pairs["before"], pairs["after"]) == pytest.approx(tuple(won)) and pairs["test"] == "McNemar"
    assert [made["perplexity"][key] for key in ("test", "p", "p_holm", "clusters")] == [None] * 4
    tested = {row["metric"]: row["p_holm"] for row in paired_tests(*both)}
    assert tested == {name: made[name]["p_holm"] for name in ("chat/accuracy", "preference_accuracy_logprob")}


def test_what_was_asked_of_one_model_alone_is_not_compared():
    first, second = measurement([0, 1], list("ab")), measurement([0, 1], list("ac"))
    assert compare([first], [second]) == compare([], [second]) == []


def test_the_order_of_the_items_does_not_matter():
    before, after = measurement([0, 0, 0, 1], list("abcd")), measurement([1, 1, 1, 0], list("dcba"))
    turned = measurement([0, 1, 1, 1], list("abcd"))
    assert paired_tests([before], [after]) == paired_tests([before], [turned])


def test_perplexities_of_two_tokenisers_are_not_tested():
    first = measurement([5, 6, 7], weights=[2.0, 3.0, 4.0], metric="perplexity")
    second = measurement([5, 6, 6], weights=[2.0, 3.0, 5.0], metric="perplexity")
    assert paired_tests([first], [second]) == []
    [row] = paired_tests([first], [measurement([4, 5, 6], weights=[2.0, 3.0, 4.0], metric="perplexity")])
    assert row["p"] == 2 / 2**3 and row["difference"] < 0


def test_a_split_benchmark_stays_out_of_the_mean():
    """Another version of a task is shown, and never averaged with the others."""
    families = [Measurement("benchmark/arc", "it", "version 2.0", [1.0, 1.0], ["a", "b"]),
                Measurement("benchmark/mmlu", "it", None, [1.0, 0.0], ["c", "d"])]  # fmt: skip
    made = {(row["metric"], row["language"]): row for row in stats.rows(families, "base")}
    assert (made["benchmark/mean", "it"]["value"], made["benchmark/mean", "it"]["n"]) == (0.5, 2)
    assert ("benchmark/mean", "en") not in made  # of nothing there is no mean
    assert made["benchmark/arc", "it"]["split"] == "version 2.0"


# ---- intervals


def test_interval_of_a_share_is_the_binomials():
    scores = [1.0] * 140 + [0.0] * 60
    measured = Measurement("chat/accuracy", "en", "seen", scores, [str(n) for n in range(200)])
    low, high = np.percentile(measured.resampled(), [2.5, 97.5])
    expected = scipy_stats.binom(200, 0.7).ppf([0.025, 0.975]) / 200
    assert measured.value == pytest.approx(0.7)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.012)


def test_items_of_one_cluster_count_once():
    alone = Measurement("m", "en", None, [1.0, 0.0] * 50, [str(n) for n in range(100)])
    fourfold = Measurement("m", "en", None, [1.0, 0.0] * 50 * 4, [str(n) for n in range(100)] * 4)
    assert fourfold.value == alone.value
    assert np.std(fourfold.resampled()) == pytest.approx(np.std(alone.resampled()), rel=1e-9)


def answered(sure, right, bins=10):
    """The calibration error of answers given so surely, of which some are right."""
    places = [min(int(share * bins), bins - 1) for share in sure]
    gaps = [float(share - correct) for share, correct in zip(sure, right, strict=True)]
    return Measurement("benchmark_calibration_error", "en", None, gaps, list(map(str, range(len(gaps)))), bins=places)


def test_calibration_error_by_hand():
    """Too sure by 0.2 in one bin, too careful by 0.2 in another: on average calibrated, and yet 0.2 off."""
    measured = answered([0.95, 0.95, 0.95, 0.95, 0.55, 0.55, 0.55, 0.55], [1, 1, 1, 0, 1, 1, 1, 0])
    assert measured.value == pytest.approx(0.2)
    assert np.mean(measured.scores) == pytest.approx(0.0)
    assert len(measured.resampled()) == 2000 and measured.totals()[0].shape == (8, 10)


def test_the_interval_of_a_calibration_error_covers_what_many_items_show():
    rng = np.random.default_rng(0)
    covered, rounds, truth = 0, 60, 0.15
    for _ in range(rounds):
        sure = rng.uniform(0.3, 1.0, 400)
        low, high = np.percentile(answered(sure, rng.random(400) < sure - truth).resampled(), [2.5, 97.5])
        covered += low <= truth <= high
    assert covered >= 0.88 * rounds
    sure = rng.uniform(0.3, 1.0, 400)  # nothing to find: chance alone makes some error, the interval reaches zero
    low, high = np.percentile(answered(sure, rng.random(400) < sure).resampled(), [2.5, 97.5])
    assert low < 0.02 and high < 0.08


def test_a_binned_error_is_in_no_paired_test_and_its_difference_is_given():
    first, second = answered([0.95] * 8, [1] * 8), answered([0.95] * 8, [0] * 8)
    assert paired_tests([first], [second]) == []
    [row] = differences([first], [second])
    assert row["value"] == pytest.approx(0.9) and row["n"] == 8


def test_a_model_does_not_differ_from_itself():
    same = [
        Measurement(f"benchmark/{f}", code, None, [1.0, 0.0, 1.0], ["a", "b", "c"])
        for f in FAMILIES
        for code in ("en", "it")
    ]
    for row in differences(same, same):
        assert (row["value"], row["ci_low"], row["ci_high"]) == (0, 0, 0)


def test_paired_interval_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    before = (rng.random(300) < 0.5).astype(float)
    after = before.copy()
    after[:30] = 1.0
    clusters = [str(n) for n in range(300)]
    first, second = (Measurement("chat/accuracy", "it", "adapted", list(s), clusters) for s in (before, after))
    paired = np.std(second.resampled() - first.resampled())
    apart = np.sqrt(np.var(second.resampled()) + np.var(first.resampled()))
    assert paired < apart / 2
    exact = np.std(after - before) / np.sqrt(300)
    assert paired == pytest.approx(exact, rel=0.1)


def test_rows_hold_every_metric_the_report_needs():
    families = [
        Measurement(f"benchmark/{f}", code, None, [1.0, 0.0], ["a", "b"]) for f in FAMILIES for code in ("en", "it")
    ]
    margin = Measurement("preference_margin", "all", None, [0.5, -0.5, 2.0], ["a", "b", "c"])
    made = {(row["metric"], row["language"]): row for row in stats.rows([*families, margin], "base")}
    assert made["benchmark/mean", "it"]["value"] == 0.5 and made["benchmark/mean", "it"]["n"] == 12
    assert made["preference_accuracy_logprob", "all"]["value"] == pytest.approx(2 / 3)
