"""Figures with 95 % intervals: bootstrap over clusters, paired differences, the mean of the six benchmarks.

>>> Measurement("chat/accuracy", "it", "adapted", [1.0, 0.0, 1.0], ["fact 1", "fact 2", "fact 3"]).value
0.6666666666666666
"""
# MERGED DOC:
# """Tests of differences between two models that answered the same items, and Holm's correction for many of them.
#
# >>> mcnemar([1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1])     # six answers put right, none lost
# 0.03125
# >>> holm([0.01, 0.04, 0.03])
# [0.03, 0.06, 0.06]
#
# The null of all: the two models are alike, so that which of them gave which answer could as well have been swapped.
# """
# MERGED DOC:
# """A lesson's claims put to the test: one comparison a claim, Holm's correction over all, and a verdict.
#
# >>> claims = {"It learnt Italian": Paired(before, after), "The sentence counts": Groups(read, unread)}
# >>> verdicts(claims)[0]["verdict"]
# 'supported'
#
# Every claim is worded so that a difference above zero speaks for it. In a comparison each fact stands once, right (1) or
# wrong (0), so facts are the clusters that intervals resample and tests shuffle.
# """
# MERGED DOC:
# """Differences between the models of a run, or of two runs, paired item by item, from what the cache holds of them.
#
# >>> run = Run.load("latest")
# >>> before, after = (stored(run)[stage] for stage in ("base", "dpo"))
# >>> compared(before, after)[0]
# {'metric': 'benchmark/arc', 'language': 'en', 'split': None, 'value': 0.02, 'ci_low': -0.06, 'ci_high': 0.1, …}
# """

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import comb, nan
from typing import Any

import numpy as np

RESAMPLES = 2000


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
    """How often each cluster is drawn in each of RESAMPLES bootstrap samples: RESAMPLES × clusters."""
    return np.random.default_rng(seed).multinomial(clusters, [1 / clusters] * clusters, size=RESAMPLES)


def _row(stage: str, metric: str, language: str, split: str | None, value: float, samples: np.ndarray, n: int) -> dict:
    low, high = np.percentile(samples, [2.5, 97.5])
    return {"stage": stage, "metric": metric, "language": language, "split": split, "value": float(value),
            "ci_low": float(low), "ci_high": float(high), "n": n}  # fmt: skip


def pairs_won(margins: Measurement) -> Measurement:
    """`preference_accuracy_logprob` from `preference_margin`: the pairs whose chosen answer is the likelier one."""
    return replace(margins, metric="preference_accuracy_logprob", scores=[float(s > 0) for s in margins.scores])


def families_of(measured: list[Measurement], language: str) -> list[Measurement]:
    """The benchmarks of a language that go into its mean; one with a split, such as another version, stands apart."""
    return [m for m in measured if m.metric.startswith("benchmark/") and m.language == language and m.split is None]


def rows(measured: list[Measurement], stage: str) -> list[dict]:
    """The measures of one model as metric rows with 95 % intervals, and the mean of the six families per language."""
    made = []
    for m in measured:
        if m.metric == "preference_margin":
            wins = pairs_won(m)
            made.append(_row(stage, *wins.name, wins.value, wins.resampled(), len(wins.scores)))
        else:
            made.append(_row(stage, *m.name, m.value, m.resampled(), len(m.scores)))
    for language in ("en", "it"):
        families = families_of(measured, language)
        if not families:
            continue
        samples = np.mean([m.resampled(seed) for seed, m in enumerate(families)], axis=0)
        value = np.mean([m.value for m in families])
        made.append(_row(stage, "benchmark/mean", language, None, value, samples, sum(len(m.scores) for m in families)))
    return made


def differences(before: list[Measurement], after: list[Measurement]) -> list[dict]:
    """After less before, paired: both are resampled with the same clusters, so what they share cancels."""
    earlier = {m.name: m for m in before}
    made = []
    for m in after:
        if m.metric != "preference_margin":
            old = earlier[m.name]
            made.append(
                _row("difference", *m.name, m.value - old.value, m.resampled() - old.resampled(), len(m.scores))
            )
    for language in ("en", "it"):
        pairs = [(earlier[m.name], m) for m in families_of(after, language)]
        if not pairs:
            continue
        samples = np.mean([new.resampled(seed) - old.resampled(seed) for seed, (old, new) in enumerate(pairs)], axis=0)
        value = np.mean([new.value - old.value for old, new in pairs])
        n = sum(len(new.scores) for _, new in pairs)
        made.append(_row("difference", "benchmark/mean", language, None, value, samples, n))
    return made


def implicit_rewards(policy: list[Measurement], reference: list[Measurement], beta: float) -> Measurement:
    """DPO's implicit reward margin of each held-out pair: beta times (policy's margin less the reference's)."""
    margins = [next(m for m in measured if m.metric == "preference_margin") for measured in (policy, reference)]
    rewards = [beta * (ours - theirs) for ours, theirs in zip(margins[0].scores, margins[1].scores, strict=True)]
    return Measurement("reward_margin", "all", None, rewards, margins[0].clusters)


def preference_row(policy: list[Measurement], reference: list[Measurement], beta: float) -> dict:
    """How often the implicit reward prefers the chosen answer of a held-out pair."""
    rewards = implicit_rewards(policy, reference, beta)
    wins = Measurement("preference_accuracy", "all", None, [float(r > 0) for r in rewards.scores], rewards.clusters)
    return _row("dpo", *wins.name, wins.value, wins.resampled(), len(wins.scores))


# ---------------------------------------------------------------- statistics


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
            rows.append(_test_row(m.name, m.value - old.value, *found, clusters, len(m.scores)))
    for language in ("en", "it"):
        pairs = [(earlier[m.name], m) for m in families_of(after, language) if m.name in earlier]
        columns = [cluster_differences(old, new) for old, new in pairs]
        if columns and all(column is not None for column in columns):
            # Families share no clusters, so each cluster is swapped for itself; its weight is its part in the mean
            parts = [column / len(new.scores) / len(pairs) for column, (_, new) in zip(columns, pairs, strict=True)]
            shares, n = np.concatenate(parts), sum(len(new.scores) for _, new in pairs)
            name = ("benchmark/mean", language, None)
            rows.append(_test_row(name, float(shares.sum()), "sign flips", float(sign_flip(shares)), len(shares), n))
    families: dict[str, list[dict]] = {}
    for row in rows:
        families.setdefault(row["metric"].split("/")[0], []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    return rows


def _test_row(name: tuple, difference: float, test: str, p: float, clusters: int, n: int) -> dict:
    metric, language, split = name
    return {"metric": metric, "language": language, "split": split, "difference": difference, "test": test, "p": p,
            "clusters": clusters, "n": n}  # fmt: skip


# ---------------------------------------------------------------- comparison


NAME = ("metric", "language", "split")


def compare(before: list[Measurement], after: list[Measurement]) -> list[dict[str, Any]]:
    earlier = {m.name: m for m in before}
    same = [m for m in after if m.name in earlier and earlier[m.name].clusters == m.clusters]
    tests = {tuple(test[key] for key in NAME): test for test in paired_tests(before, same)}
    rows = []
    for row in differences(before, same):
        test = tests.get(tuple(row[key] for key in NAME), {})
        rows.append({**row, "p": test.get("p"), "p_holm": test.get("p_holm")})
    return rows


# ---------------------------------------------------------------- verdicts


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
