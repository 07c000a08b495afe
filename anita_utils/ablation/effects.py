"""Does a part of the recipe make a difference? Effects, interactions and verdicts, over seeds and items.

>>> cells = {frozenset(): "base", frozenset({"sft"}): "sft", …}          # which arm has which stages
>>> sheet = read_sheet(measured, "benchmark/mean it", list(cells.values()))
>>> sheet.effect(factorial(cells)["sft × dpo"]).interval()
(-0.012, 0.031)

A measure is named "metric language split", the split left out where there is none. Shares are compared as they are,
perplexities by their logarithms: 0.05 is then five per cent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import pandas
from scipy import stats

from anita_utils import AnitaError
from anita_utils.evaluation import metrics
from anita_utils.stats import LEVEL, Measurement, counted, found_anything, holm, holm_levels

if TYPE_CHECKING:
    from anita_utils.ablation.arms import Claim


FACTORS = ("sft", "italian", "dpo")
NOTHING = 1e-12  # below this a difference is the rounding of floating point
UNBOUNDED = (-inf, inf)
Measured = Mapping[tuple[str, int], list[Measurement]]  # by arm and seed
Bounds = tuple[float, float]  # the least and the greatest value that is possible


@dataclass(frozen=True)
class Effect:
    """An estimated difference, its standard error, and the degrees of freedom of its t distribution.

    bounds: the least and the greatest value it can take, such as -1 and 1 for the difference of two shares.
    """

    estimate: float
    error: float
    df: float
    seeds: int
    bounds: Bounds = UNBOUNDED

    def above(self, threshold: float = 0.0) -> float:
        """The one-sided p-value against "it is at most `threshold`"."""
        gap = self.estimate - threshold
        if self.error < NOTHING:  # no noise at all: what is seen is so
            return 0.0 if gap > NOTHING else 1.0
        return float(stats.t.sf(gap / self.error, self.df))

    def below(self, threshold: float = 0.0) -> float:
        """The one-sided p-value against "it is at least `threshold`"."""
        return replace(self, estimate=-self.estimate).above(-threshold)

    @property
    def p(self) -> float:
        """The two-sided p-value against "there is none"."""
        return min(1.0, 2 * min(self.above(), self.below()))

    def interval(self, coverage: float = 1 - LEVEL) -> Bounds:
        """The two-sided interval of that coverage, 95 % if not said otherwise, cut off at the bounds."""
        reach = float(stats.t.ppf((1 + coverage) / 2, self.df)) * self.error
        return max(self.estimate - reach, self.bounds[0]), min(self.estimate + reach, self.bounds[1])


def estimate(per_seed: np.ndarray, influences: Iterable[np.ndarray] = (), bounds: Bounds = UNBOUNDED) -> Effect:
    """The mean of one figure a seed, with an interval for other seeds and, where influences are given, other items.

    per_seed: the figure (a contrast of arms, say) with each seed; at least two.
    influences: for each set of items, seeds × clusters: how far each cluster pulls the figure from its mean.
    bounds: the least and the greatest value that the figure can take.

    Seeds and items are crossed, so the variance of the mean is that between seeds plus that between items, minus their
    interaction, which is in both. Its degrees of freedom are Satterthwaite's.
    """
    n = len(per_seed)
    if n < 2:
        raise AnitaError(f"an interval over seeds takes two or more, not {n}: run `anita ablate --seeds 5`")
    seeds = np.var(per_seed, ddof=1) / n
    tables = [table for table in influences if table.shape[1] > 1]
    items = sum(np.var(table.mean(axis=0), ddof=1) / table.shape[1] for table in tables)
    within = sum(np.mean(np.var(table, axis=1, ddof=1)) / table.shape[1] for table in tables)
    interaction = (within - items) / (n - 1)
    more = max(items - interaction, items - seeds, 0.0)  # never less than either source alone
    variance = seeds + more
    clusters = max(2, sum(table.shape[1] for table in tables))
    spread = seeds**2 / (n - 1) + more**2 / (clusters - 1)
    df = variance**2 / spread if spread > 0 else n - 1
    return Effect(float(np.mean(per_seed)), float(np.sqrt(variance)), float(df), n, bounds)


def prediction_interval(values: np.ndarray, step: float = 0.0, bounds: Bounds = UNBOUNDED) -> Bounds:
    """Where one new seed's figure falls with a probability of 99 %, if seeds vary normally.

    step: the smallest change the figure can show, 1/n for a share of n items. Five seeds that agree to the last item
    still leave room for rounding: the standard deviation is taken to be at least step / √12.
    bounds: the least and the greatest value of the figure, where the interval is cut off.
    """
    n = len(values)
    deviation = max(float(np.std(values, ddof=1)), step / np.sqrt(12))
    reach = float(stats.t.ppf(0.995, n - 1)) * deviation * np.sqrt(1 + 1 / n)
    mean = float(np.mean(values))
    return max(mean - reach, bounds[0]), min(mean + reach, bounds[1])


def tells(interval: Bounds, bounds: Bounds) -> bool:
    """Whether it says anything that a figure falls into the interval: it is narrower than a third of its range.

    A figure without a range, such as a perplexity, does not count.
    """
    width, span = interval[1] - interval[0], bounds[1] - bounds[0]
    return span < inf and width < span / 3


@dataclass(frozen=True)
class MeasureSheet:
    """One measure of several arms with several seeds, cluster by cluster.

    scores, weights: for each part of the measure (one; six for the mean of the benchmarks) an array of arms × seeds ×
    clusters; the part's figure is sum(scores) / sum(weights), the measure's the mean of its parts.
    bounds: the least and the greatest value that the measure can take.
    """

    arms: list[str]
    seeds: list[int]
    scores: list[np.ndarray]
    weights: list[np.ndarray]
    bounds: Bounds = UNBOUNDED

    def values(self) -> np.ndarray:
        """The figures, arms × seeds; of a perplexity its logarithm."""
        parts = [s.sum(-1) / w.sum(-1) for s, w in zip(self.scores, self.weights, strict=True)]
        return np.mean(parts, axis=0)

    def effect(self, contrast: Mapping[str, float]) -> Effect:
        """The weighted sum of arms that `contrast` names."""
        weights = np.array([contrast.get(arm, 0.0) for arm in self.arms])
        influences = []
        for score, weight in zip(self.scores, self.weights, strict=True):
            ratio = score.sum(-1, keepdims=True) / weight.sum(-1, keepdims=True)
            pulls = (score - ratio * weight) / weight.mean(-1, keepdims=True) / len(self.scores)
            influences.append(np.tensordot(weights, pulls, 1))
        return estimate(weights @ self.values(), influences, self._bounds_of(weights))

    def _bounds_of(self, weights: np.ndarray) -> Bounds:
        """The least and the greatest weighted sum of arms; an arm without weight is left out, as 0 × ∞ is no number."""
        ends = [sorted((weight * self.bounds[0], weight * self.bounds[1])) for weight in weights if weight]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def shuffled(self, random: np.random.Generator) -> MeasureSheet:
        """The same with the arms' labels shuffled for each seed and cluster: no arm differs from another."""
        return replace(self, scores=[random.permuted(score, axis=0) for score in self.scores])


def read_sheet(measured: Measured, measure: str, arms: list[str]) -> MeasureSheet:
    """The measure of those arms, with the seeds that all of them were measured with (perhaps none)."""
    seeds = sorted(set.intersection(*({seed for arm, seed in measured if arm == name} for name in arms)))
    if not seeds:
        return MeasureSheet(arms, [], [], [])
    totals = [[[part.totals() for part in find(measured[arm, seed], measure)] for seed in seeds] for arm in arms]
    parts = range(len(totals[0][0]))
    scores = [np.array([[trial[part][0] for trial in row] for row in totals]) for part in parts]
    weights = [np.array([[trial[part][1] for trial in row] for row in totals]) for part in parts]
    return MeasureSheet(arms, seeds, scores, weights, metrics.bounds(measure.split()[0]))


def find(measured: list[Measurement], measure: str) -> list[Measurement]:
    """The measurements behind a measure's name. AnitaError for one that was not measured."""
    metric, language, split = (measure.split() + [None, None])[:3]
    language, measured = language or "all", counted(measured)
    if metric == "benchmark/mean":
        found = [m for m in measured if m.metric.startswith("benchmark/") and m.language == language]
    else:
        found = [m for m in measured if m.name == (metric, language, split) and not m.bins]
    if not found:
        known = ["benchmark/mean en", "benchmark/mean it", *(" ".join(filter(None, m.name)) for m in measured)]
        raise AnitaError(f"no measure '{measure}' was taken: choose {', '.join(known)}")
    return found


def factorial(cells: Mapping[frozenset[str], str]) -> dict[str, dict[str, float]]:
    """The contrasts of a 2 × 2 × 2 design: three main effects and four interactions, each as weights of arms.

    cells: the arm that has exactly those stages. A main effect is the mean with the stage minus the mean without; an
    interaction of two is half the difference that one makes to the other's effect, and so on (Yates's convention).
    """
    contrasts = {}
    for size in range(1, len(FACTORS) + 1):
        for named in combinations(FACTORS, size):
            signs = {cell: np.prod([1 if factor in cell else -1 for factor in named]) for cell in cells}
            contrasts[" × ".join(named)] = {cells[cell]: float(sign) / (len(cells) / 2) for cell, sign in signs.items()}
    return contrasts


def effects_table(measured: Measured, cells: Mapping[frozenset[str], str], measures: list[str]) -> pandas.DataFrame:
    """Every effect on every measure, a row each; p-values and intervals are corrected over all of them (Holm), so that
    an interval excludes 0 exactly when `p_holm` is below 0.05. Empty below two seeds.
    """
    rows, found = [], []
    for measure in measures:
        sheet = read_sheet(measured, measure, list(cells.values()))
        if len(sheet.seeds) < 2:
            continue
        for name, contrast in factorial(cells).items():
            found.append(sheet.effect(contrast))
            rows.append([measure, name])
    p = [effect.p for effect in found]
    table = pandas.DataFrame(rows, columns=["measure", "effect"])
    table["estimate"] = [effect.estimate for effect in found]
    ends = [effect.interval(1 - level) for effect, level in zip(found, holm_levels(p), strict=True)]
    table["low"], table["high"] = [low for low, _ in ends], [high for _, high in ends]
    table["seeds"] = [effect.seeds for effect in found]
    return table.assign(p=p, p_holm=holm(p))


def shuffled_control(sheets: list[MeasureSheet], contrasts: Mapping[str, dict], rounds: int = 100) -> float:
    """The share of rounds in which the same analysis finds something in shuffled labels: about 5 %, if honest."""
    random, p_values = np.random.default_rng(0), []
    for _ in range(rounds):
        dealt = [sheet.shuffled(random) for sheet in sheets]
        p_values.append([sheet.effect(contrast).p for sheet in dealt for contrast in contrasts.values()])
    return found_anything(p_values)


def evidence(effect: Effect, kind: str, worth: float) -> tuple[float, float]:
    """Two p-values: small if the data speak for a claim, and small if they speak against it.

    kind: "higher", the difference is above zero (against: it is below `worth`); "kept", no more than `worth` is lost
    (against: more is); "differs", it is not zero (against: it lies within `worth` of zero either way). The last two are
    two-sided, so that one interval judges both.
    """
    if kind == "higher":
        return effect.above(), effect.below(worth)
    if kind == "kept":
        return effect.above(-worth), effect.below(-worth)
    return effect.p, min(1.0, 2 * max(effect.below(worth), effect.above(-worth)))


def corrected_interval(effect: Effect, kind: str, level: float) -> Bounds:
    """The interval that says the same as the tests of `evidence` at that level.

    Of kind "higher" it lies above 0 exactly when p for is below the level, and below `worth` exactly when p against is;
    of kind "kept" likewise with -worth; of kind "differs" it excludes 0, or lies within `worth` of it either way.
    """
    return effect.interval(1 - level if kind == "differs" else 1 - 2 * level)


def verdict(p_for: float, p_against: float, seeds: int) -> str:
    """In words. An effect that is there, but surely too small to be worth naming, does not support a claim."""
    if p_against < LEVEL:
        return "not supported"
    return "supported" if p_for < LEVEL else f"undecided at n = {seeds} seeds"


def outcome(row: pandas.Series) -> str:
    """What a line of `claims_table` came to: "for" or "against" the claim, "equivalent" (not supported, as the whole
    interval is nearer to 0 than what is worth naming), "undecided", or "not measured".
    """
    said = row["verdict"]
    if said == "supported":
        return "for"
    if said == "not supported":
        return "equivalent" if -row["worth"] < row["low"] and row["high"] < row["worth"] else "against"
    return "undecided" if said.startswith("undecided") else "not measured"


def claims_table(measured: Measured, claims: Mapping[str, Claim]) -> pandas.DataFrame:
    """A verdict for each claim and measure: estimate, corrected interval, p for and against, the same after Holm.

    A family's p-values are corrected together. Of the two of a line one null hypothesis at most can be true, so they
    count once. The interval (low, high) has the level that the line was judged at: line and verdict say the same.
    """
    rows, found = [], []
    for name, claim in claims.items():
        for measure in claim.measures:
            sheet = read_sheet(measured, measure, list(claim.contrast))
            effect = sheet.effect(claim.contrast) if len(sheet.seeds) > 1 else None
            found.append(effect)
            row = {"claim": name, "family": claim.family, "measure": measure, "estimate": np.nan, "low": np.nan,
                   "high": np.nan, "worth": claim.worth, "seeds": len(sheet.seeds)}  # fmt: skip
            row |= dict.fromkeys(("p_for", "p_against", "holm_for", "holm_against"), np.nan)
            if effect:
                row["estimate"] = effect.estimate
                row["p_for"], row["p_against"] = evidence(effect, claim.kind, claim.worth)
            rows.append(row)
    for family in {row["family"] for row in rows}:
        own = [number for number, row in enumerate(rows) if row["family"] == family and found[number]]
        p = [rows[number][side] for number in own for side in ("p_for", "p_against")]
        adjusted, levels = holm(p, true=len(own)), holm_levels(p, true=len(own))
        for place, number in enumerate(own):
            row, pair = rows[number], slice(2 * place, 2 * place + 2)
            row["holm_for"], row["holm_against"] = adjusted[pair]
            # The larger level fits both tests: the smaller is only that of a p-value that is below it anyway
            level = max(levels[pair])
            row["low"], row["high"] = corrected_interval(found[number], claims[row["claim"]].kind, level)
    for row in rows:
        said = verdict(row["holm_for"], row["holm_against"], row["seeds"])
        row["verdict"] = said if row["seeds"] > 1 else "not measured with two seeds yet"
    return pandas.DataFrame(rows)
