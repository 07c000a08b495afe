"""Tests of differences, against scipy, cases by hand, and a world in which there is no difference."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from anita_utils import stats
from anita_utils.stats import (
    Measurement,
    bootstrap_p,
    cluster_differences,
    differences,
    holm,
    mcnemar,
    paired_tests,
    sign_flip,
)


def measurement(scores, clusters=None, metric="chat/accuracy", language="it", **others):
    clusters = clusters or list(map(str, range(len(scores))))
    return Measurement(metric, language, None, [float(score) for score in scores], clusters, **others)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (6, 0), (5, 5), (12, 3), (3, 12), (40, 21)])
def test_mcnemar_is_the_binomial_test_of_what_changed(gained, lost):
    before, after = [0] * gained + [1] * lost + [0, 1] * 10, [1] * gained + [0] * lost + [0, 1] * 10
    expected = scipy_stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(before, after) == pytest.approx(expected, rel=1e-12)


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
    p = bootstrap_p(by_cluster)
    assert len(p) == 2000 and np.mean(p < 0.05) == REJECTED
    # As for a mean of benchmarks, where a right answer is not worth the same everywhere
    assert np.mean(sign_flip(by_cluster * np.linspace(0.7, 1.3, len(by_cluster))[:, None]) < 0.05) == REJECTED
    # Right and wrong alone are coarse: the exact test is careful, and no more than that
    assert 0.03 < np.mean(sign_flip(by_cluster) < 0.05) < 0.06
    if together:  # why clusters matter: the same results, taken item by item
        items = (after - before).reshape(len(before), -1).T
        assert np.mean(sign_flip(items) < 0.05) > 0.15


def test_the_bootstraps_p_and_its_interval_say_the_same():
    rng = np.random.default_rng(2)
    clusters = [str(n // 3) for n in range(150)]
    seen = set()
    for shift in np.linspace(0, 0.3, 12):
        before, after = (measurement(rng.random(150) < 0.5 + extra, clusters) for extra in (0, shift))
        low, high = np.percentile(after.resampled() - before.resampled(), [2.5, 97.5])
        rejects = bootstrap_p(cluster_differences(before, after)) < 0.05
        assert rejects == (low > 0 or high < 0)
        seen.add(bool(rejects))
    assert seen == {True, False}


def test_bootstrap_and_sign_flips_agree_on_many_clusters():
    rng = np.random.default_rng(3)
    clusters = [str(n // 2) for n in range(600)]
    before, after = (measurement(rng.random(600) < chance, clusters) for chance in (0.5, 0.55))
    moved = cluster_differences(before, after)
    assert bootstrap_p(moved) == pytest.approx(sign_flip(moved), abs=0.03)


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
    assert (arc["p"], mmlu["p"], chat["p"]) == (2 / 2**8, 2 / 2**6, 2 / 2**4)
    assert chat["p_holm"] == chat["p"]  # alone in its family
    assert mmlu["p_holm"] == mmlu["p"] and arc["p_holm"] == 2 * arc["p"] and mean["p"] < arc["p"]
    values = {row["metric"]: row["value"] for row in differences(before, after)}
    assert {name: row["difference"] for name, row in rows.items()} == pytest.approx(values)


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
