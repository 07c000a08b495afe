"""What is each measure called, in what unit, which way is better, and where is it shown? And what was published of it?

>>> words("chat/accuracy_in_language", "it", "adapted")
'right Italian answers, on facts read in Italian'
>>> text("chat/accuracy_in_language", 0.875), gain("perplexity", before=9.0, after=8.0)
('87.5', 1.0)
"""

from __future__ import annotations

from collections import defaultdict
from math import inf
from typing import Any, NamedTuple

import pandas

from anita_utils.evaluation.benchmarks import FAMILIES
from anita_utils.paths import data_dir
from anita_utils.stats import LEVEL


class Measure(NamedTuple):
    """A row of the table of measures."""

    name: str  # in the data, or how such names begin
    words: str  # what people read; {name} is the rest of the name
    unit: str
    better: str  # higher, lower, zero (nearer to it) or neither
    # headline (first table of the report), changes (what stages changed), results (all of the recipe's), ablation
    # (compared item by item between arms), others (what lessons record for themselves)
    shown: str


EVERYWHERE = "headline changes results ablation"
ALL_BUT_FIRST = "changes results ablation"
# The first row whose name the metric begins with is its own; tables have this order.
TABLE = [
    Measure("benchmark/mean", "mean of the {language} benchmarks", "share", "higher", EVERYWHERE),
    Measure("benchmark/", "{name}", "share", "higher", ALL_BUT_FIRST),
    Measure("benchmark_acc/", "{name}, plain accuracy", "share", "higher", "results"),
    Measure("benchmark_norm/", "{name}, accuracy by length", "share", "higher", "results"),
    Measure("italian/", "{name}", "share", "higher", "results ablation"),
    Measure("overconfidence", "overconfidence", "share", "neither", "results"),
    Measure("benchmark_calibration_error", "calibration error", "share", "lower", "results"),
    Measure("chat/accuracy_in_language", "right {language} answers", "share", "higher", EVERYWHERE),
    Measure("chat/accuracy", "right answers to {language} questions, in either language", "share", "higher",
            EVERYWHERE),
    Measure("choices", "right answer likeliest of four, {language}", "share", "higher", ALL_BUT_FIRST),
    Measure("answer_words", "words an answer", "words", "neither", "results ablation"),
    Measure("language_fidelity", "{language} questions answered in {language}", "share", "higher", EVERYWHERE),
    Measure("refusal/harmful", "harmful requests refused", "share", "higher", EVERYWHERE),
    Measure("refusal/harmless", "harmless look-alikes refused", "share", "lower", EVERYWHERE),
    Measure("minimal_pairs/", "minimal pairs, {name}", "share", "higher", "results"),
    Measure("minimal_pairs", "minimal pairs of {language} grammar", "share", "higher", EVERYWHERE),
    Measure("perplexity/nf4", "perplexity of {language} text, in 4 bits", "tokens", "lower", "results"),
    Measure("perplexity", "perplexity of {language} text", "tokens", "lower", EVERYWHERE),
    Measure("bits_per_byte", "bits a byte of {language} text", "bits", "lower", "headline changes results"),
    Measure("preference_accuracy_logprob", "pairs won by likelihood", "share", "higher", "results ablation"),
    Measure("preference_accuracy", "pairs won by implicit reward", "share", "higher", "results"),
    Measure("preference_margin", "lead of the chosen answer", "nats", "higher", ""),  # shown as pairs won by likelihood
    Measure("train/seconds", "seconds of training", "seconds", "lower", "results"),
    Measure("train/tokens_per_second", "tokens a second", "count", "higher", "results"),
    Measure("train/", "training, {name}", "number", "neither", "results"),
    Measure("bias/lean", "lean of words, log-odds", "nats", "zero", "others"),
    Measure("bias/generated", "lean of what is written", "share", "zero", "others"),
    Measure("bias/same_decision", "both groups treated alike", "share", "higher", "others"),
    Measure("bias/form_preferred", "right form likelier", "share", "higher", "others"),
    Measure("bias/form_written", "right form written", "share", "higher", "others"),
    Measure("safety/refused_harmful", "harmful requests refused, audit", "share", "higher", "others"),
    Measure("safety/refused_harmless", "harmless requests refused, audit", "share", "lower", "others"),
    Measure("safety/consistent_", "one decision in all wordings, {name}", "share", "higher", "others"),
    Measure("safety/invented", "answers invented", "share", "lower", "others"),
    Measure("safety/agrees", "mistaken opinions agreed with", "share", "lower", "others"),
    Measure("model/bytes", "model, bytes{name}", "bytes", "neither", "others"),
    Measure("machine/memory_bytes", "memory of the machine", "bytes", "neither", "others"),
    Measure("model/parameters", "parameters", "count", "neither", "others"),
    Measure("machine/cores", "cores of the machine", "count", "neither", "others"),
    Measure("", "{name}", "number", "neither", "others"),
]  # fmt: skip
NEW_KINDS = "new kinds of request, answered exactly as asked"  # in whatever language they ask for
LANGUAGES = {"en": "English", "it": "Italian", "all": ""}
SPLITS = {
    "seen": "on facts met as chats",
    "unseen_as_chat": "on facts not met as chats",
    "adapted": "on facts read in Italian",
    "never_in_italian": "on facts read in English only",
    "held_out_topics": "on new topics",
    "held_out_wordings": "in new wordings",
    "natural": "in natural language",
}
# How a figure of a unit is written: factor, digits after the point, what follows it. Shares are in per cent.
UNITS = {"share": (100, 1, ""), "seconds": (1, 1, " s"), "count": (1, 0, ""), "bytes": (2**-30, 2, " GiB")}
SIGNED = ("overconfidence", "bias/generated")  # differences of two shares


def measure(metric: str) -> Measure:
    """The row of the table for a metric, by its name in the data; of unknown ones the last."""
    return next(row for row in TABLE if metric.startswith(row.name))


def bounds(metric: str) -> tuple[float, float]:
    """The least and the greatest value that a figure can take: 0 and 1 for a share; infinite where there are none."""
    row = measure(metric)
    if row.unit != "share":
        return -inf, inf
    return (-1.0, 1.0) if row.name in SIGNED else (0.0, 1.0)


def words(metric: str, language: str = "all", split: str | None = None) -> str:
    """The name of a measure of a language and a part of the data, for people."""
    if split == "new_kinds":
        return NEW_KINDS
    row = measure(metric)
    spoken = LANGUAGES.get(language, language)
    rest = metric.removeprefix(row.name).replace("/", ", ").replace("_", " ").replace("italian", "Italian")
    name = row.words.format(name=rest, language=spoken)
    if spoken and "{language}" not in row.words:
        name += f", {spoken}"
    if isinstance(split, str) and split:  # pandas writes nan for None
        name += f", {SPLITS.get(split, split.replace('_', ' '))}"
    return " ".join(name.split())


def text(metric: str, value: float, signed: bool = False) -> str:
    """A figure for people: shares in per cent, bytes in GiB, others as they are."""
    factor, digits, after = UNITS.get(measure(metric).unit, (1, 2, ""))
    return f"{factor * value:{'+' if signed else ''},.{digits}f}{after}"


def interval_text(row: dict[str, Any]) -> str:
    """The 95 % interval of a row of figures, in brackets; "" where it has none."""
    if pandas.isna(row["ci_low"]) or pandas.isna(row["ci_high"]):
        return ""
    return f"[{text(row['metric'], row['ci_low'])}, {text(row['metric'], row['ci_high'])}]"


def gain(metric: str, before: float, after: float) -> float:
    """By how much `after` is better than `before`; below zero it is worse. 0 where neither way is better."""
    better = {"higher": after - before, "lower": before - after, "zero": abs(before) - abs(after), "neither": 0.0}
    return better[measure(metric).better]


def change(row: dict[str, Any]) -> str:
    """What a row of `stats.compare` shows: "better", "worse", "changed"; "" where its corrected p is not below 0.05."""
    if row["p_holm"] is None or row["p_holm"] >= LEVEL:
        return ""
    if measure(row["metric"]).better == "neither":
        return "changed"
    return "better" if gain(row["metric"], row["before"], row["after"]) > 0 else "worse"


PUBLISHED = {
    "LLaMAntino-3-ANITA-8B-Inst-DPO-ITA": "ANITA, published",
    "Meta-Llama-3-8B-Instruct": "its base, published",
}
VERSIONS = (
    "arc_it: the published figures are of version 1 of the task, ours of version 2.0, which dropped an empty fifth "
    "choice: not to be subtracted, and in no mean."
)


class Published(NamedTuple):
    value: str  # in per cent; "not confirmed" where its source does not show it
    source: str


def published() -> dict[tuple[str, str], dict[str, Published]]:
    """What was published of the paper's benchmarks: {(metric, language): {model: figure with its source}}.

    Means are of the benchmarks of which all are confirmed, and leave out the Italian ARC, as ours do.
    """
    table = pandas.read_csv(data_dir() / "paper" / "results.csv", keep_default_na=False)
    table = table[table["benchmark"].isin(FAMILIES) & table["model"].isin(PUBLISHED)]
    known: dict[tuple[str, str], dict[str, Published]] = defaultdict(dict)
    for row in table.to_dict("records"):
        value, source = "not confirmed", row["source"]
        if row["certainty"] == "confirmed":
            value, source = f"{100 * row['value']:.1f}", f"{source}, confirmed"
        if "version 1" in row["note"]:
            value += " (version 1)"
        known[f"benchmark/{row['benchmark']}", row["language"]][row["model"]] = Published(value, source)
    averaged = table[~table["note"].str.contains("version 1")]
    for (model, language), group in averaged.groupby(["model", "language"]):
        if group["certainty"].eq("confirmed").all():
            source = "mean of those above" + (", without arc" if language == "it" else "")
            known["benchmark/mean", language][model] = Published(f"{100 * group['value'].mean():.1f}", source)
    return known
