"""Each metric: its name, unit and direction, where it is shown, and what was published of it."""

from __future__ import annotations

from typing import Any

import pandas

from anita_utils.evaluation.benchmarks import FAMILIES
from anita_utils.paths import data_dir
from anita_utils.stats import LEVEL

# Where less is better; how long answers are and on which side a model errs is neither better nor worse.
LOWER = ("perplexity", "bits_per_byte", "refusal/harmless", "benchmark_calibration_error")
NEUTRAL = ("answer_words", "overconfidence")


def verdict(row: dict[str, Any]) -> str:
    """Whether a difference holds after Holm's correction: "better", "worse", "changed"; "" where it does not."""
    if row.get("p_holm") is None or row["p_holm"] >= LEVEL:
        return ""
    if row["metric"] in NEUTRAL:
        return "changed"
    return "better" if (row["value"] < 0) == (row["metric"] in LOWER) else "worse"


# ---------------------------------------------------------------- scoreboard


PUBLISHED = {
    "LLaMAntino-3-ANITA-8B-Inst-DPO-ITA": "ANITA, published",
    "Meta-Llama-3-8B-Instruct": "its base, published",
}
VERSIONS = (
    "arc_it: the published figures are of version 1 of the task, ours of version 2.0, which dropped an empty fifth "
    "choice: not to be subtracted, and in no mean."
)


def is_share(metric: str) -> bool:
    """Whether a metric is shown in per cent."""
    return metric not in ("perplexity", "bits_per_byte", "answer_words")


def published() -> dict[tuple[str, str], dict[str, str]]:
    """What was published of the paper's benchmarks: {(metric, language): {model: figure in per cent, as text}}.

    A figure not confirmed in its source is only called so. Means are of the benchmarks of which all are confirmed, and
    leave out the Italian ARC, as ours do.
    """
    table = pandas.read_csv(data_dir() / "paper" / "results.csv", keep_default_na=False)
    table = table[table["benchmark"].isin(FAMILIES) & table["model"].isin(PUBLISHED)]
    known: dict[tuple[str, str], dict[str, str]] = {}
    for row in table.to_dict("records"):
        text = f"{100 * row['value']:.1f}" if row["certainty"] == "confirmed" else "not confirmed"
        known.setdefault((f"benchmark/{row['benchmark']}", row["language"]), {})[row["model"]] = (
            f"{text} (version 1)" if "version 1" in row["note"] else text
        )
    averaged = table[~table["note"].str.contains("version 1")]
    for (model, language), group in averaged.groupby(["model", "language"]):
        if group["certainty"].eq("confirmed").all():
            mean = f"{100 * group['value'].mean():.1f}"
            known.setdefault(("benchmark/mean", language), {})[model] = mean
    return known
