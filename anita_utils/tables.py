"""The tables of a report, made of a run's records and of what the cache holds item by item; report.py shows them.

>>> headline(run, run.metrics(), {"dpo": compared(base, dpo)}).rows[0][0].value
'benchmarks, mean, English'
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pandas

from anita_utils.arms import load_ablation
from anita_utils.comparison import verdict
from anita_utils.contamination import course_overlaps
from anita_utils.paths import data_dir
from anita_utils.record import Run, clock
from anita_utils.scoreboard import PUBLISHED, VERSIONS, is_share, published
from anita_utils.suites import FAMILIES, SUITES

LANGUAGE = {"en": ", English", "it": ", Italian", "all": ""}
WORDS = {
    "benchmark/mean": "benchmarks, mean", "perplexity": "perplexity", "bits_per_byte": "bits a byte",
    "language_fidelity": "answers in the language asked", "refusal/harmful": "refuses what is harmful",
    "refusal/harmless": "refuses what is harmless", "chat/accuracy": "free answers right",
    "chat/accuracy_in_language": "free answers right, in the language asked",
}  # fmt: skip
HEADLINE = (
    "benchmark/mean",
    "chat/accuracy_in_language",
    "perplexity",
    "bits_per_byte",
    "language_fidelity",
    "refusal/harmful",
    "refusal/harmless",
)
SKILLS = ("benchmark/", "chat/", "language_fidelity", "refusal/", "perplexity", "bits_per_byte")
SIGNS = {"better": "▲", "worse": "▼", "changed": "◆", "": ""}
MARKS = (
    "▲ better and ▼ worse than the base, item by item on the same items: p < 0.05 after Holm's correction over the "
    "measures of a kind and a stage (McNemar's test, or sign flips by cluster)."
)
NO_MARKS = (
    "Without marks: what was measured item by item is not in the cache. `anita eval STAGE` measures a stage anew."
)


@dataclass
class Cell:
    """A figure as text, small print below it (an interval, a source), and a verdict to mark it by."""

    value: str = ""
    note: str = ""
    look: str = ""  # better, worse, changed

    @property
    def sign(self) -> str:
        return SIGNS[self.look]


@dataclass
class Sheet:
    """A table with its title, what is to be said of it, column heads, and rows; each row's first cell names it."""

    title: str
    note: str
    head: list[str]
    rows: list[list[Cell]] = field(default_factory=list)


def what(row: dict[str, Any]) -> str:
    """A measure in words, with its language and part of the data."""
    name = WORDS.get(row["metric"], row["metric"].replace("benchmark/", "").replace("/", ", ").replace("_", " "))
    split = (
        f" ({row['split'].replace('_', ' ').replace('italian', 'Italian')})" if isinstance(row["split"], str) else ""
    )
    return name + LANGUAGE[row["language"]] + split


def figure(row: dict[str, Any], signed: bool = False, look: str = "") -> Cell:
    """A figure with its interval and n; shares in per cent."""
    factor, digits = (100, 1) if is_share(row["metric"]) else (1, 2)
    value = f"{factor * row['value']:{'+' if signed else ''}.{digits}f}"
    ends = [row["ci_low"], row["ci_high"]]
    interval = f"[{', '.join(f'{factor * end:.{digits}f}' for end in ends)}]" if all(map(pandas.notna, ends)) else ""
    n = f"n {row['n']:,.0f}" if pandas.notna(row["n"]) else ""
    interval, n = (part.replace(" ", "\u00a0") for part in (interval, n))  # a line ends between them, not within
    return Cell(value, " ".join(filter(None, [interval, n])), look)


def latest(metrics: pandas.DataFrame) -> dict[tuple, dict[str, Any]]:
    """A run's figures by (stage, metric, language, split); where two lessons measured one, the later counts."""
    recipe = metrics[metrics["arm"] == "recipe"].sort_values("notebook", kind="stable")
    return {(row["stage"], *name_of(row)): row for row in recipe.to_dict("records")}


def name_of(row: dict[str, Any]) -> tuple:
    split = row["split"]  # pandas writes "none" as nan, which equals nothing
    return row["metric"], row["language"], split if isinstance(split, str) else None


def headline(known: dict[tuple, dict], stages: list[str], changes: dict[str, list[dict]]) -> Sheet:
    """What each stage does to the figures that the course is about. known: as `latest` gives it."""
    looks = {(stage, *name_of(row)): verdict(row) for stage, rows in changes.items() for row in rows}
    names = dict.fromkeys(key[1:] for metric in HEADLINE for key in known if key[1] == metric)
    sheet = Sheet("The stages in figures", f"Shares in per cent, 95 % intervals. {MARKS if changes else NO_MARKS}",
                  ["", *stages])  # fmt: skip
    for metric, language, split in names:
        cells = [Cell(what({"metric": metric, "language": language, "split": split}))]
        for stage in stages:
            row, look = known.get((stage, metric, language, split)), looks.get((stage, metric, language, split), "")
            cells.append(figure(row, look=look) if row else Cell())
        sheet.rows.append(cells)
    return sheet


def forgetting(changes: dict[str, list[dict]]) -> Sheet:
    """Each stage less the base, skill by skill, paired: what it taught and what it cost. changes: rows by stage."""
    note = f"Each stage less the base, in percentage points for shares, with 95 % intervals. {MARKS}"
    sheet = Sheet("What each stage changed: the forgetting matrix", note, ["", *changes])
    by_name = {stage: {name_of(row): row for row in rows} for stage, rows in changes.items()}
    names = dict.fromkeys(name for rows in by_name.values() for name in rows if name[0].startswith(SKILLS))
    for name in sorted(names, key=lambda name: next(i for i, skill in enumerate(SKILLS) if name[0].startswith(skill))):
        found = [rows.get(name) for rows in by_name.values()]
        shown = [figure(row, signed=True, look=verdict(row)) if row else Cell() for row in found]
        sheet.rows.append([Cell(what(next(filter(None, found)))), *shown])
    return sheet


def published_sheets(known: dict[tuple, dict], stages: list[str], suite: str) -> list[Sheet]:
    """The paper's two tables, each figure with source and certainty, beside this run's base and last stage."""
    table = pandas.read_csv(data_dir() / "paper" / "results.csv", keep_default_na=False)
    sources = {(row["model"], row["benchmark"], row["language"]): row for row in table.to_dict("records")}
    ends = list(dict.fromkeys([stages[0], stages[-1]])) if stages else []
    values, sheets = published(), []
    comparable = SUITES[suite].local is False
    note = "" if comparable else (
        f"Not to be compared: the published figures are of models of 8B on the full benchmarks, this run's are of the "
        f"suite {suite}. "
    )  # fmt: skip
    for language, name in (("en", "English"), ("it", "Italian")):
        sheet = Sheet(f"The published figures, {name}", note + VERSIONS * (language == "it"),
                      ["", *PUBLISHED.values(), *(f"{stage}, this run" for stage in ends)])  # fmt: skip
        for family in (*FAMILIES, "mean"):
            metric = f"benchmark/{family}"
            texts = values.get((metric, language), {})
            cells = []
            for model in PUBLISHED:
                row = sources.get((model, family, language))
                value = texts.get(model, "")
                source = f"mean of those above{', without arc' * (language == 'it')}" if value else ""
                if row:
                    source = f"{row['source']}, {row['certainty']}".removesuffix(f", {value}")
                cells.append(Cell(value, source))
            ours = [[row for key, row in known.items() if key[:3] == (stage, metric, language)] for stage in ends]
            cells += [figure(rows[0]) if rows else Cell() for rows in ours]
            if any(cell.value for cell in cells):
                sheet.rows.append([Cell(family), *cells])
        sheets.append(sheet)
    return sheets


def contrasts(metrics: pandas.DataFrame) -> Sheet:
    """What lessons 06 and 09 read off the arms that were trained beforehand, claim by claim."""
    note = (
        "From the results kept with the course, with 95 % intervals over seeds and items; perplexities by logarithms. "
        "n counts seeds. Verdicts, and what a claim's smallest difference worth naming is: lessons 06 and 09."
    )
    sheet = Sheet("The claims of the ablation", note, ["", "measure", "difference"])
    known = load_ablation("cpu").claims
    for row in metrics[metrics["arm"] == "contrast"].to_dict("records"):
        _, name, metric = row["metric"].split("/", 2)
        says = known[name].says if name in known else name.replace("_", " ")
        row["metric"] = metric
        sheet.rows.append([Cell(says), Cell(what(row)), figure(row, signed=True)])
    return sheet


def costs(run: Run) -> Sheet:
    """What each stage's training took, as its stage.json has it."""
    note = "Of the training alone. A stage taken from the cache keeps the costs of when it was trained."
    sheet = Sheet("Costs", note, ["stage", "time", "tokens", "tokens a second", "updates", "peak memory"])
    seconds = tokens = 0
    for stage in run.profile.order:
        file = run.model_dir(stage) / "stage.json"
        if not file.is_file():
            continue
        info = json.loads(file.read_text("utf-8"))
        seconds, tokens = seconds + info["seconds"], tokens + info["tokens"]
        figures = [clock(info["seconds"]), f"{info['tokens']:,}", f"{info['tokens_per_second']:,.0f}",
                   f"{info['steps']:,}", f"{info['peak_memory_bytes'] / 2**20:,.0f} MiB"]  # fmt: skip
        sheet.rows.append([Cell(stage), *map(Cell, figures)])
    if len(sheet.rows) > 1:
        sheet.rows.append([Cell("together"), Cell(clock(seconds)), Cell(f"{tokens:,}"), Cell(), Cell(), Cell()])
    return sheet


def leaks(run: Run) -> Sheet:
    """How many items of each of the course's benchmarks stand in each corpus, question and answer together."""
    rows = course_overlaps(run.profile)
    sizes = {row["corpus"]: f"{row['documents']:,}" for row in rows}
    missing = [name for name in run.profile.datasets if name not in sizes]
    note = (
        "Items of the benchmarks whose question stands in a training text together with its answer, verbatim, recased, "
        "embedded or by overlap of words. Texts searched: "
        + ", ".join(f"{corpus} {size}" for corpus, size in sizes.items())
        + f". Not on this machine, so not searched: {', '.join(missing)}" * bool(missing)
        + "."
    )
    sheet = Sheet("Contamination: benchmark items in the corpora", note, ["", *sizes])
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        found = [row for row in rows if row["benchmark"] == benchmark]
        cells = [
            Cell(f"{row['leaked']} of {row['items']}", ", ".join(row["kinds"]), "worse" if row["leaked"] else "")
            for row in found
        ]
        sheet.rows.append([Cell(benchmark), *cells])
    return sheet
