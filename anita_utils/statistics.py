"""Tests of differences between two models that answered the same items, and Holm's correction for many of them.

>>> mcnemar([1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1])     # six answers put right, none lost
0.03125
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]

The null of all: the two models are alike, so that which of them gave which answer could as well have been swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import comb

import numpy as np

from anita_utils.intervals import Measurement, cluster_draws, families_of

ENUMERATED = 12  # up to so many clusters that differ, all swaps are tried, else
SWAPS = 9_999  # random ones: with fewer, the 5 % would lie at 4.5 or 5.5 by the luck of the draw
LEVEL = 0.05  # below which a p-value, corrected over its family, counts
ROUNDING = 1e-9  # two sums of the same numbers in another order are still equal


def cluster_differences(before: Measurement, after: Measurement) -> np.ndarray | None:
    """After's scores less before's, added up by cluster; None when the two do not weigh the same items.

    Perplexities under two tokenisers are such a case: their tokens are not the same, so nothing can be swapped. Nor can
    parts of a binned error, which is no sum over items.
    """
    if before.bins or after.bins:
        return None
    (old, old_weights, names), (new, new_weights, others) = before.totals(), after.totals()
    if names != others or not np.array_equal(old_weights, new_weights):
        return None
    return new - old


def sign_flip(differences: np.ndarray, seed: int = 0) -> np.ndarray | float:
    """The two-sided p-value of the sum of `differences` when each cluster's models may be swapped.

    differences: a number a cluster, or a column a comparison (clusters × comparisons); then all get the same swaps.
    A swap turns the sign of a cluster's difference. Where few clusters differ, all swaps are counted and p is exact;
    else p is (1 + swaps as extreme) / (1 + swaps), which is never 0. Either way p is never too small on average, and
    somewhat too large where scores are coarse, so that many swaps give the very same sum.
    """
    differences = np.asarray(differences, float)
    moved = differences[np.abs(differences).reshape(len(differences), -1).max(1) > 0]
    exact = len(moved) <= ENUMERATED
    if exact:
        signs = np.array(list(product((1.0, -1.0), repeat=len(moved))))
    else:
        signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(2, size=(SWAPS, len(moved)))
    observed = np.abs(moved.sum(0))
    extreme = (np.abs(signs @ moved) >= observed - ROUNDING * (1 + observed)).sum(0)
    return extreme / len(signs) if exact else (1 + extreme) / (1 + len(signs))


def bootstrap_p(differences: np.ndarray, seed: int = 0) -> np.ndarray | float:
    """The two-sided p-value of the paired bootstrap: below 0.05 where the 95 % interval of the difference misses 0.

    differences: as for `sign_flip`. The same draws of clusters as `Measurement.resampled` makes with that seed. With
    few clusters p is a little too small on average; that of `sign_flip` never is.
    """
    differences = np.asarray(differences, float)
    samples = cluster_draws(len(differences), seed) @ differences
    tail = np.minimum((samples <= ROUNDING).sum(0), (samples >= -ROUNDING).sum(0))
    return np.minimum(1.0, 2 * (1 + tail) / (1 + len(samples)))


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """McNemar's exact two-sided p-value for right and wrong (1 and 0), where every item stands for itself."""
    gained = sum(bool(new > old) for old, new in zip(before, after, strict=True))
    lost = sum(bool(new < old) for old, new in zip(before, after, strict=True))
    n = gained + lost
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: those below 0.05 hold together at a family-wise level of 5 %."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _test(before: Measurement, after: Measurement) -> tuple[str, float] | None:
    """The test that fits the items, and its p-value; None when the two cannot be paired."""
    differences = cluster_differences(before, after)
    if differences is None:
        return None
    if len(differences) == len(after.scores) and {*before.scores, *after.scores} <= {0.0, 1.0}:
        # Item by item, whatever their order: each is its own cluster
        return "McNemar", mcnemar(before.totals()[0], after.totals()[0])
    return "sign flips", float(sign_flip(differences))


def paired_tests(before: list[Measurement], after: list[Measurement]) -> list[dict]:
    """A test of each measure's difference, after less before, and of the mean of the benchmarks of each language.

    Returns rows of metric, language, split, difference, test, p, p_holm, clusters, n. Holm's correction is over the
    rows whose metric begins with the same word: benchmarks, chat and so on are a family each. What cannot be paired,
    such as a perplexity under another tokeniser, has no row.
    """
    earlier = {m.name: m for m in before}
    rows = []
    for m in after:
        old = earlier.get(m.name)
        found = _test(old, m) if old and m.metric != "preference_margin" else None
        if found:
            clusters = len(set(m.clusters))
            rows.append(_row(m.name, m.value - old.value, *found, clusters, len(m.scores)))
    for language in ("en", "it"):
        pairs = [(earlier[m.name], m) for m in families_of(after, language) if m.name in earlier]
        columns = [cluster_differences(old, new) for old, new in pairs]
        if columns and all(column is not None for column in columns):
            # Families share no clusters, so each cluster is swapped for itself; its weight is its part in the mean
            parts = [column / len(new.scores) / len(pairs) for column, (_, new) in zip(columns, pairs, strict=True)]
            shares, n = np.concatenate(parts), sum(len(new.scores) for _, new in pairs)
            name = ("benchmark/mean", language, None)
            rows.append(_row(name, float(shares.sum()), "sign flips", float(sign_flip(shares)), len(shares), n))
    families: dict[str, list[dict]] = {}
    for row in rows:
        families.setdefault(row["metric"].split("/")[0], []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    return rows


def _row(name: tuple, difference: float, test: str, p: float, clusters: int, n: int) -> dict:
    metric, language, split = name
    return {"metric": metric, "language": language, "split": split, "difference": difference, "test": test, "p": p,
            "clusters": clusters, "n": n}  # fmt: skip
