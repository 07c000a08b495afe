"""How sure is a figure, and is a difference more than chance? Intervals by bootstrap, paired tests, Holm's correction.

>>> compare(before, after)[0]          # two models that answered the same items
{'stage': 'difference', 'metric': 'benchmark/arc', 'value': 0.02, 'ci_low': -0.06, …, 'test': 'McNemar', 'p_holm': 0.8}
>>> verdicts({"It learnt Italian": Paired(before, after), "The sentence counts": Groups(read, unread)})[0]["verdict"]
'supported'

Items on one fact, myth or topic are a cluster: intervals resample clusters, and tests swap the two models' answers to
them. The null of all tests: the two are alike, so that which of them gave which answer could as well be swapped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import nan
from typing import Any

import numpy as np
from scipy.stats import binomtest, fisher_exact

RESAMPLES = 2000
ENUMERATED = 12  # up to so many clusters that differ, all swaps are tried, else
SWAPS = 9_999  # random ones: with fewer, the 5 % would lie at 4.5 or 5.5 by the luck of the draw
LEVEL = 0.05  # below which a p-value, corrected over its family, counts
MARGIN = 0.10  # the smallest difference that would matter to a claim
ROUNDING = 1e-9  # two sums of the same numbers in another order are still equal
ROW = ("stage", "metric", "language", "split", "value", "ci_low", "ci_high", "n")


@dataclass
class Measurement:
    """One measure of one model, item by item.

    scores and weights: the figure is sum(scores) / sum(weights), through exp for a perplexity; weights are 1 for shares
    and token counts for perplexity. clusters: the fact, myth or topic behind each item; intervals resample those.
    bins: where each item's score belongs, if scores are to cancel within a bin only: an expected calibration error.
    """

    metric: str
    language: str
    split: str | None
    scores: list[float]
    clusters: list[str]
    weights: list[float] | None = None
    bins: list[int] | None = None

    @property
    def name(self) -> tuple[str, str, str | None]:
        return self.metric, self.language, self.split

    def totals(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Scores and weights added up by cluster, and the clusters; with bins, the scores are clusters × bins."""
        bins = self.bins or [0] * len(self.scores)
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * (2 + max(bins, default=0)))
        weights = self.weights or [1.0] * len(self.scores)
        for cluster, score, weight, place in zip(self.clusters, self.scores, weights, bins, strict=True):
            sums[cluster][0] += weight
            sums[cluster][1 + place] += score
        names = sorted(sums)
        table = np.array([sums[name] for name in names])
        return table[:, 1:] if self.bins else table[:, 1], table[:, 0], names

    def figure(self, score: np.ndarray | float, weight: np.ndarray | float) -> np.ndarray | float:
        if self.bins:
            return np.abs(score).sum(-1) / weight
        ratio = score / weight
        return np.exp(ratio) if self.metric == "perplexity" else ratio

    @property
    def value(self) -> float:
        scores, weights, _ = self.totals()
        return float(self.figure(scores.sum(0), weights.sum()))

    def resampled(self, seed: int = 0) -> np.ndarray:
        """The figure in RESAMPLES bootstrap samples of clusters; the same clusters and seed give the same samples."""
        scores, weights, names = self.totals()
        draws = cluster_draws(len(names), seed)
        samples = self.figure(draws @ scores, draws @ weights)
        if self.bins:  # chance alone makes a binned error larger, so samples lie above it: turned round, they do not
            return np.maximum(0, 2 * self.value - samples)
        return samples


def cluster_draws(clusters: int, seed: int = 0) -> np.ndarray:
    """How often each cluster is in each bootstrap sample: RESAMPLES × clusters."""
    return np.random.default_rng(seed).multinomial(clusters, [1 / clusters] * clusters, size=RESAMPLES)


# ---------------------------------------------------------------- figures


def counted(measured: list[Measurement]) -> list[Measurement]:
    """The measures as people read them: of a `preference_margin`, whether the chosen answer is the likelier one."""
    return [_won(m, "preference_accuracy_logprob") if m.metric == "preference_margin" else m for m in measured]


def _won(margins: Measurement, metric: str) -> Measurement:
    return replace(margins, metric=metric, scores=[float(score > 0) for score in margins.scores])


def rows(measured: list[Measurement], stage: str) -> list[dict]:
    """The measures of one model as metric rows with 95 % intervals, and the mean of the benchmarks per language."""
    made = []
    for name, parts in _with_means(counted(measured)):
        samples = np.mean([m.resampled(seed) for seed, m in enumerate(parts)], axis=0)
        value = np.mean([m.value for m in parts])
        made.append(_row(stage, name, value, samples, sum(len(m.scores) for m in parts)))
    return made


def _with_means(measured: list[Measurement]) -> list[tuple[tuple, list[Measurement]]]:
    """Each measure by itself, and for each language the benchmarks without a split, for their mean: (name, parts)."""
    parts = [(m.name, [m]) for m in measured]
    for language in ("en", "it"):
        families = [m for m in measured if m.metric.startswith("benchmark/") and m.name[1:] == (language, None)]
        if families:
            parts.append((("benchmark/mean", language, None), families))
    return parts


def _row(stage: str, name: tuple, value: float, samples: np.ndarray, n: int) -> dict[str, Any]:
    low, high = np.percentile(samples, [2.5, 97.5])
    return dict(zip(ROW, (stage, *name, float(value), float(low), float(high), n), strict=True))


def implicit_rewards(policy: list[Measurement], reference: list[Measurement], beta: float) -> Measurement:
    """DPO's implicit reward margin of each held-out pair: beta times (policy's margin minus the reference's)."""
    margins = [next(m for m in measured if m.metric == "preference_margin") for measured in (policy, reference)]
    rewards = [beta * (ours - theirs) for ours, theirs in zip(margins[0].scores, margins[1].scores, strict=True)]
    return Measurement("reward_margin", "all", None, rewards, margins[0].clusters)


def preference_row(policy: list[Measurement], reference: list[Measurement], beta: float) -> dict:
    """How often the implicit reward prefers the chosen answer of a held-out pair."""
    wins = _won(implicit_rewards(policy, reference, beta), "preference_accuracy")
    return _row("dpo", wins.name, wins.value, wins.resampled(), len(wins.scores))


# ---------------------------------------------------------------- two models on the same items


def compare(before: list[Measurement], after: list[Measurement]) -> list[dict[str, Any]]:
    """After minus before, paired, for each measure that both have of the same items, and for the benchmarks' means.

    Metric rows (both are resampled with the same clusters, so what they share cancels), with both figures (`before`,
    `after`), `test`, `clusters`, `p`, and `p_holm`, corrected over the rows whose metric begins with the same word:
    benchmarks, chat and so on are a family each. The last four are None where items cannot be swapped, as perplexities
    of two tokenisers and binned errors.
    """
    known = {m.name: m for m in counted(before)}
    both = [m for m in counted(after) if m.name in known and sorted(known[m.name].clusters) == sorted(m.clusters)]
    made = []
    families: dict[str, list[dict]] = defaultdict(list)
    for name, parts in _with_means(both):
        pairs = [(known[new.name], new) for new in parts]
        samples = [new.resampled(seed) - old.resampled(seed) for seed, (old, new) in enumerate(pairs)]
        value = np.mean([new.value - old.value for old, new in pairs])
        row = _row("difference", name, value, np.mean(samples, axis=0), sum(len(new.scores) for new in parts))
        row |= _test(pairs) | {"p_holm": None}
        row["before"] = float(np.mean([old.value for old, _ in pairs]))
        row["after"] = float(np.mean([new.value for new in parts]))
        made.append(row)
        if row["p"] is not None:
            families[row["metric"].split("/")[0]].append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    return made


def differences(before: list[Measurement], after: list[Measurement]) -> list[dict]:
    """The rows of `compare` without tests, as metric rows."""
    return [{key: row[key] for key in ROW} for row in compare(before, after)]


def paired_tests(before: list[Measurement], after: list[Measurement]) -> list[dict]:
    """The rows of `compare` that a test fits: metric, language, split, difference, test, p, p_holm, clusters, n."""
    keys = ("metric", "language", "split", "test", "p", "p_holm", "clusters", "n")
    tested = [row for row in compare(before, after) if row["test"]]
    return [{key: row[key] for key in keys} | {"difference": row["value"]} for row in tested]


def _test(pairs: list[tuple[Measurement, Measurement]]) -> dict[str, Any]:
    """The test that fits the items of a measure, or of several that a mean is of."""
    moved = [cluster_differences(old, new) for old, new in pairs]
    if any(part is None for part in moved):
        return dict.fromkeys(("test", "p", "clusters"))
    old, new = pairs[0]
    if len(pairs) > 1:
        # Benchmarks share no clusters, so each cluster is swapped for itself; its weight is its part in the mean
        moved = [part / len(new.scores) / len(pairs) for part, (_, new) in zip(moved, pairs, strict=True)]
    elif len(moved[0]) == len(new.scores) and {*old.scores, *new.scores} <= {0.0, 1.0}:
        # Item by item, whatever their order: each is its own cluster
        p = mcnemar(old.totals()[0], new.totals()[0])
        return {"test": "McNemar", "p": p, "clusters": len(moved[0])}
    shares = np.concatenate(moved)
    return {"test": "sign flips", "p": float(sign_flip(shares)), "clusters": len(shares)}


def cluster_differences(before: Measurement, after: Measurement) -> np.ndarray | None:
    """After's scores minus before's, added up by cluster. None where nothing can be swapped: perplexities under two
    tokenisers, whose tokens are not the same, and parts of a binned error, which is no sum over items.
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


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """McNemar's exact two-sided p-value for right and wrong (1 and 0), where every item is its own cluster."""
    moved = np.sign(np.subtract(after, before))
    changed = int(np.abs(moved).sum())
    return float(binomtest(int((moved > 0).sum()), changed).pvalue) if changed else 1.0


def holm(p_values: Sequence[float], true: int | None = None) -> list[float]:
    """Holm's adjusted p-values, in the order given: those below 0.05 hold together at a family-wise level of 5 %.

    true: how many of the null hypotheses can be true at once, where logic allows fewer than all: of "there is no gain"
        and "the gain is at least 0.02", one at most. No factor is then larger (Shaffer 1986, JASA 81, procedure S1).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, factor in _holm_steps(p_values, true):
        largest = max(largest, min(1.0, factor * p_values[place]))
        adjusted[place] = largest
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = LEVEL, true: int | None = None) -> list[float]:
    """The level that Holm's procedure holds each p-value against, in the order given; true: as for `holm`.

    A p-value is below its level exactly when its adjusted one is below `alpha`, so an interval of coverage 1 - level
    excludes what was tested exactly then. The procedure stops at the first p-value that is not below its level, and
    holds all larger ones against that level too.
    """
    levels, level, going_on = [0.0] * len(p_values), alpha, True
    for place, factor in _holm_steps(p_values, true):
        if going_on:
            level = alpha / factor
            going_on = factor * p_values[place] < alpha
        levels[place] = level
    return levels


def _holm_steps(p_values: Sequence[float], true: int | None) -> list[tuple[int, int]]:
    """The places of the p-values, from the smallest p-value up, each with the factor it is multiplied by."""
    size = len(p_values)
    order = sorted(range(size), key=lambda place: p_values[place])
    return [(place, min(true or size, size - rank)) for rank, place in enumerate(order)]


# ---------------------------------------------------------------- the claims of a lesson


class Paired:
    """The same facts, right (1) or wrong (0), measured twice: after minus before, and McNemar's exact test."""

    test = "McNemar"

    def __init__(self, before: Sequence[float], after: Sequence[float]) -> None:
        self.before, self.after = np.array(before, float), np.array(after, float)
        self.size, self.n = len(self.after), str(len(self.after))

    def samples(self) -> np.ndarray:
        return _means(self.after - self.before)

    def difference(self) -> float:
        return _mean(self.after) - _mean(self.before)

    def p(self) -> float:
        return mcnemar(self.before, self.after)

    def shuffled(self, rng: np.random.Generator) -> Paired:
        """As if both measures were one: each fact's two results swapped by the toss of a coin."""
        swap = rng.random(len(self.after)) < 0.5
        return Paired(np.where(swap, self.after, self.before), np.where(swap, self.before, self.after))


class Groups(Paired):
    """Different facts: the share right of the first group minus that of the second, and Fisher's exact test."""

    test = "Fisher"

    def __init__(self, first: Sequence[float], second: Sequence[float]) -> None:
        self.first, self.second = self.after, self.before = np.array(first, float), np.array(second, float)
        self.size, self.n = min(len(self.first), len(self.second)), f"{len(self.first)} and {len(self.second)}"

    def samples(self) -> np.ndarray:
        return _means(self.first) - _means(self.second, seed=1)

    def p(self) -> float:
        return float(fisher_exact([[part.sum(), len(part) - part.sum()] for part in (self.first, self.second)]).pvalue)

    def shuffled(self, rng: np.random.Generator) -> Groups:
        """As if the groups were one: all facts dealt again."""
        dealt = rng.permutation(np.concatenate([self.first, self.second]))
        return Groups(dealt[: len(self.first)], dealt[len(self.first) :])


class Matched(Paired):
    """Answers against a habit: the share with the right object minus that with another fact's object.

    hits: a square table of 0 and 1 for each relation, in row i and column j whether the answer to fact i names the
    object of fact j. A model that always names a frequent object is right now and then; so it is with the objects
    shuffled within their relation, and the test counts how often a shuffle gives as many hits (one-sided).
    """

    test = "shuffled objects"

    def __init__(self, hits: list[np.ndarray], swaps: int = SWAPS) -> None:
        self.hits, self.swaps = [np.array(table, float) for table in hits], swaps
        self.habit = np.concatenate([table.mean(1) for table in self.hits] or [np.empty(0)])
        super().__init__(self.habit, np.concatenate([np.diag(table) for table in self.hits] or [np.empty(0)]))

    def p(self) -> float:
        rng, right = np.random.default_rng(0), np.zeros(self.swaps)
        for table in self.hits:
            order = rng.permuted(np.tile(np.arange(len(table)), (self.swaps, 1)), axis=1)
            right += table[np.arange(len(table)), order].sum(1)
        return float((1 + (right >= self.after.sum()).sum()) / (1 + self.swaps))

    def shuffled(self, rng: np.random.Generator) -> Matched:
        """As if the answers belonged to other facts: each relation's objects dealt again."""
        return Matched([table[:, rng.permutation(len(table))] for table in self.hits], swaps=999)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else nan


def _means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    return cluster_draws(len(values), seed) @ values / len(values) if len(values) else np.array([nan])


def verdict(difference: float, high: float, p_holm: float) -> str:
    """supported: beyond chance, and above zero. not supported: the interval ends below MARGIN. Else undecided."""
    if p_holm < LEVEL and difference > 0:
        return "supported"
    return "not supported" if high < MARGIN else "undecided at this n"


def verdicts(claims: dict[str, Paired | Groups]) -> list[dict]:
    """A row for each claim: difference with its 95 % interval, n, test, p, Holm's p over all claims, verdict.

    Claims are worded so that a difference above zero speaks for them. Where a group is empty the difference is nan, the
    interval holds all there is, p is 1 and the verdict undecided.
    """
    made = []
    for claim, comparison in claims.items():
        difference = comparison.difference()
        low, high = np.percentile(comparison.samples(), [2.5, 97.5])
        # All samples alike from so few facts prove no such thing: the rule of three, as for a share with 0 of n seen
        width = 3 / comparison.size if low == high else 0.0
        row = {"claim": claim, "difference": difference, "ci_low": max(-1.0, float(low - width)),
               "ci_high": min(1.0, float(high + width)), "n": comparison.n, "test": comparison.test,
               "p": 1.0 if np.isnan(difference) else comparison.p()}  # fmt: skip
        made.append(row)
    for row, p in zip(made, holm([row["p"] for row in made]), strict=True):
        row["p_holm"], row["verdict"] = p, verdict(row["difference"], row["ci_high"], p)
    return made


# ---------------------------------------------------------------- controls: labels shuffled, nothing should be found


def shuffled_p(claims: dict[str, Paired | Groups], rounds: int = 200, seed: int = 0) -> np.ndarray:
    """The p-values of all claims with their labels shuffled; rounds × claims."""
    rng = np.random.default_rng(seed)
    known = [comparison for comparison in claims.values() if not np.isnan(comparison.difference())]
    return np.array([[comparison.shuffled(rng).p() for comparison in known] for _ in range(rounds)])


def found_anything(p_values: np.ndarray) -> float:
    """The share of rounds (rows) in which any test passes Holm's correction: at most about LEVEL for honest tests."""
    return float(np.mean([min(holm(row)) < LEVEL for row in p_values])) if np.size(p_values) else 0.0
