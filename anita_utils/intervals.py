"""Figures with 95 % intervals: bootstrap over clusters, paired differences, the mean of the six benchmarks.

>>> Measurement("chat/accuracy", "it", "adapted", [1.0, 0.0, 1.0], ["fact 1", "fact 2", "fact 3"]).value
0.6666666666666666
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

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
