"""A lesson's claims put to the test: one comparison a claim, Holm's correction over all, and a verdict.

>>> claims = {"It learnt Italian": Paired(before, after), "The sentence counts": Groups(read, unread)}
>>> verdicts(claims)[0]["verdict"]
'supported'

Every claim is worded so that a difference above zero speaks for it. In a comparison each fact stands once, right (1) or
wrong (0), so facts are the clusters that intervals resample and tests shuffle.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np

from anita_utils.intervals import cluster_draws
from anita_utils.statistics import LEVEL, SWAPS, holm, mcnemar

MARGIN = 0.10  # the smallest difference that would matter


class Paired:
    """The same facts measured twice: after less before, and McNemar's exact test."""

    test = "McNemar"

    def __init__(self, before: Sequence[float], after: Sequence[float]) -> None:
        self.before, self.after = np.array(before, float), np.array(after, float)
        self.size, self.n = len(self.after), str(len(self.after))

    def samples(self) -> np.ndarray:
        """The difference in bootstrap samples of the facts."""
        return _means(self.after - self.before)

    def difference(self) -> float:
        return _mean(self.after) - _mean(self.before)

    def p(self) -> float:
        return mcnemar(self.before, self.after)

    def shuffled(self, rng: np.random.Generator) -> Paired:
        """As if both measures were one: each fact's two results swapped by the toss of a coin."""
        swap = rng.random(len(self.after)) < 0.5
        return Paired(np.where(swap, self.after, self.before), np.where(swap, self.before, self.after))


class Groups:
    """Different facts: the share right of the first group less that of the second, and Fisher's exact test."""

    test = "Fisher"

    def __init__(self, first: Sequence[float], second: Sequence[float]) -> None:
        self.first, self.second = np.array(first, float), np.array(second, float)
        self.size, self.n = min(len(self.first), len(self.second)), f"{len(self.first)} and {len(self.second)}"

    def samples(self) -> np.ndarray:
        return _means(self.first) - _means(self.second, seed=1)

    def difference(self) -> float:
        return _mean(self.first) - _mean(self.second)

    def p(self) -> float:
        from scipy.stats import fisher_exact

        return float(fisher_exact([[part.sum(), len(part) - part.sum()] for part in (self.first, self.second)]).pvalue)

    def shuffled(self, rng: np.random.Generator) -> Groups:
        """As if the groups were one: all facts dealt anew."""
        dealt = rng.permutation(np.concatenate([self.first, self.second]))
        return Groups(dealt[: len(self.first)], dealt[len(self.first) :])


class Matched:
    """Answers against a habit: the share with the right object less that with another fact's object.

    hits: a square table of 0 and 1 for each relation, in row i and column j whether the answer to fact i names the
    object of fact j. A model that always names a frequent object is right now and then; so it is with the objects
    shuffled within their relation, and the test counts how often a shuffle gives as many hits (one-sided).
    """

    test = "shuffled objects"

    def __init__(self, hits: list[np.ndarray], swaps: int = SWAPS) -> None:
        self.hits, self.swaps = [np.array(table, float) for table in hits], swaps
        self.own = np.concatenate([np.diag(table) for table in self.hits] or [np.empty(0)])
        self.habit = np.concatenate([table.mean(1) for table in self.hits] or [np.empty(0)])
        self.size, self.n = len(self.own), str(len(self.own))

    def samples(self) -> np.ndarray:
        return _means(self.own - self.habit)

    def difference(self) -> float:
        return _mean(self.own) - _mean(self.habit)

    def p(self) -> float:
        rng, right = np.random.default_rng(0), np.zeros(self.swaps)
        for table in self.hits:
            order = rng.permuted(np.tile(np.arange(len(table)), (self.swaps, 1)), axis=1)
            right += table[np.arange(len(table)), order].sum(1)
        return float((1 + (right >= self.own.sum()).sum()) / (1 + self.swaps))

    def shuffled(self, rng: np.random.Generator) -> Matched:
        """As if the answers belonged to other facts: each relation's objects dealt anew."""
        return Matched([table[:, rng.permutation(len(table))] for table in self.hits], swaps=999)


Comparison = Paired | Groups | Matched


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else nan


def _means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    return cluster_draws(len(values), seed) @ values / len(values) if len(values) else np.array([nan])


def interval(comparison: Comparison) -> tuple[float, float]:
    """The 95 % interval of the difference, by the bootstrap over facts.

    Where no fact differs from another all samples are the same, though so few facts prove no such thing: there it
    reaches 3 / n to either side, as the 95 % limit of a share does of which 0 of n were seen (the rule of three).
    """
    low, high = np.percentile(comparison.samples(), [2.5, 97.5])
    width = 3 / comparison.size if low == high else 0.0
    return max(-1.0, float(low - width)), min(1.0, float(high + width))


def verdict(difference: float, high: float, p_holm: float) -> str:
    """supported: beyond chance, and above zero. not supported: the interval ends below MARGIN. Else undecided."""
    if p_holm < LEVEL and difference > 0:
        return "supported"
    return "not supported" if high < MARGIN else "undecided at this n"


def verdicts(claims: dict[str, Comparison]) -> list[dict]:
    """A row for each claim: difference with its 95 % interval, n, test, p, Holm's p over all claims, verdict.

    Where a group is empty the difference is nan, the interval holds all there is, p is 1 and the verdict undecided.
    """
    rows = []
    for claim, comparison in claims.items():
        difference = comparison.difference()
        low, high = interval(comparison)
        p = 1.0 if np.isnan(difference) else comparison.p()
        rows.append({"claim": claim, "difference": difference, "ci_low": low, "ci_high": high, "n": comparison.n,
                     "test": comparison.test, "p": p})  # fmt: skip
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"], row["verdict"] = p, verdict(row["difference"], row["ci_high"], p)
    return rows


def shuffled_p(claims: dict[str, Comparison], rounds: int = 200, seed: int = 0) -> np.ndarray:
    """The control: the p-values of all claims with their labels shuffled; rounds × claims. They should find nothing."""
    rng = np.random.default_rng(seed)
    known = [comparison for comparison in claims.values() if not np.isnan(comparison.difference())]
    return np.array([[comparison.shuffled(rng).p() for comparison in known] for _ in range(rounds)])


def found_anything(p_values: np.ndarray) -> float:
    """The share of rounds in which any claim passes Holm's correction: about LEVEL at most, if the tests are honest."""
    return float(np.mean([min(holm(row)) < LEVEL for row in p_values])) if p_values.size else 0.0
