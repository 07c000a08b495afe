"""The report of a run, built in one place from what the lessons recorded: index.html, report.md, a page a lesson.

Nothing in these pages is loaded from the network.

>>> write_report(Run.load("latest"))
"""
# MERGED DOC:
# """The tables of a report, made of a run's records and of what the cache holds item by item; report.py shows them.
#
# >>> headline(run, run.metrics(), {"dpo": compared(base, dpo)}).rows[0][0].value
# 'benchmarks, mean, English'
# """

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas

from anita_utils import AnitaError, clock, shown
from anita_utils.ablation.arms import load_ablation
from anita_utils.course import report
from anita_utils.evaluation.benchmarks import FAMILIES, SUITES
from anita_utils.evaluation.measuring import compared, stored
from anita_utils.evaluation.metrics import PUBLISHED, VERSIONS, is_share, published, verdict
from anita_utils.paths import data_dir, write_text
from anita_utils.plots import figure_texts, with_alternative_texts
from anita_utils.run import Run
from anita_utils.studies.contamination import course_overlaps

TEMPLATES = Path(__file__).parent / "templates"
CAPTION = (
    "Shares in per cent, with 95 % intervals in brackets; the difference is the last stage less the base, for shares "
    "in percentage points. Where two lessons measured the same thing, the later one counts."
)
IN_4_BITS = " All models were held in 4 bits to be measured (evaluation.load_in_4bit)."
# What stands first in the table, and how it is written: (how the metric's name begins, kind).
METRICS = [
    ("benchmark/mean", "share"),
    ("benchmark/", "share"),
    ("benchmark_acc/", "share"),
    ("benchmark_norm/", "share"),
    ("italian/", "share"),
    ("overconfidence", "share"),
    ("benchmark_calibration_error", "share"),
    ("chat/", "share"),
    ("answer_words", "number"),
    ("perplexity", "number"),
    ("bits_per_byte", "number"),
    ("language_fidelity", "share"),
    ("refusal/", "share"),
    ("preference_accuracy", "share"),
    ("train/seconds", "seconds"),
    ("train/tokens_per_second", "count"),
]
# How the others are written, which lessons record for themselves; they stand apart, at the end.
OTHERS = [
    ("model/bytes", "bytes"),
    ("machine/memory_bytes", "bytes"),
    ("model/parameters", "count"),
    ("machine/cores", "count"),
    ("", "number"),
]
# kind: (factor, format of a value, format of an interval's ends, format of a difference)
FORMATS = {
    "share": (100, "{:.1f} %", "{:.1f}", "{:+.1f}"),
    "number": (1, "{:.2f}", "{:.2f}", "{:+.2f}"),
    "seconds": (1, "{:.1f} s", "{:.1f}", "{:+.1f} s"),
    "count": (1, "{:,.0f}", "{:,.0f}", "{:+,.0f}"),
    "bytes": (2**-30, "{:,.2f} GiB", "{:,.2f}", "{:+,.2f} GiB"),
}


def write_report(run: Run) -> Path:
    """Writes report.md and index.html of `run` anew; returns the latter. AnitaError for damaged records."""
    content = _content(run)
    render("report.md.j2", content, run.folder / "report.md")
    return render("index.html.j2", content, run.folder / "index.html")


def render(template: str, content: dict[str, Any], file: Path) -> Path:
    """Writes one of the templates, filled; returns the file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    write_text(file, environment.get_template(template).render(content))
    return file


def _content(run: Run) -> dict[str, Any]:
    """Everything the two templates show, as text."""
    info = run.info()
    metrics = run.metrics()
    recipe = metrics[metrics["arm"] == "recipe"]
    measured = [stage for stage in recipe["stage"].unique() if stage != "difference"]
    stages = [stage for stage in ["base", *run.profile.order] if stage in measured]
    known, kept = report.latest(metrics), stored(run)
    changes = {s: compared(kept["base"], kept[s]) for s in stages if s != "base" and {"base", s} <= kept.keys()}
    sheets = [report.headline(known, stages, changes), report.forgetting(changes)]
    sheets += report.published_sheets(known, stages, run.profile.evaluation.suite)
    stages += [stage for stage in measured if stage not in stages]
    answers, rows = read_answers(run), results(recipe, stages)
    return {
        "name": run.folder.name,
        "profile": info["profile"],
        "seed": info["seed"],
        "commit": (info.get("commit") or "unknown").replace("+", " (with changes)"),
        "caption": CAPTION + IN_4_BITS * run.profile.evaluation.load_in_4bit,
        "stages": stages,
        "sheets": [sheet for sheet in sheets if sheet.rows],
        "results": [row for row in rows if row["place"] < len(METRICS)],
        "others": [row for row in rows if row["place"] >= len(METRICS)],
        "more": [s for s in (report.contrasts(metrics), report.costs(run), report.leaks(run)) if s.rows],
        "answers": answers,
        "answer_stages": list(dict.fromkeys(chain.from_iterable(prompt["stages"] for prompt in answers))),
        "lessons": [_lesson(name, lesson) for name, lesson in info["lessons"].items()],
        "figures": figure_texts(run.folder),
        "machine": machine_text(info),
    }


def results(metrics: pandas.DataFrame, stages: list[str]) -> list[dict[str, Any]]:
    """The rows of the results table: a row for each metric, language and split, a cell for each stage.

    The difference is the row that a lesson recorded under stage "difference", which has an interval, else simply the
    last stage less the base.
    """
    rows = []
    latest = metrics.sort_values("notebook", kind="stable")
    for (metric, language, split), group in latest.groupby(["metric", "language", "split"], sort=False, dropna=False):
        kinds = enumerate(METRICS + OTHERS)
        place, kind = next((i, kind) for i, (start, kind) in kinds if metric.startswith(start))
        by_stage = {row["stage"]: row for row in group.to_dict("records")}  # a later lesson's figure wins
        measured = [by_stage[stage] for stage in stages if stage in by_stage]
        factor, _, _, signed = FORMATS[kind]
        difference = {"value": "", "interval": ""}
        if "difference" in by_stage:
            difference = _cell(by_stage["difference"], kind) | {
                "value": signed.format(factor * by_stage["difference"]["value"])
            }
        elif len(measured) > 1 and measured[0]["stage"] == "base":
            difference["value"] = signed.format(factor * (measured[-1]["value"] - measured[0]["value"]))
        sizes = [row["n"] for row in measured if pandas.notna(row["n"])]
        rows.append(
            {
                "place": place,
                "metric": metric,
                "language": language,
                "split": split if isinstance(split, str) else "",
                "cells": [_cell(by_stage.get(stage), kind) for stage in stages],
                "difference": difference,
                "n": f"{sizes[-1]:,.0f}" if sizes else "",
            }
        )
    return sorted(rows, key=lambda row: row["place"])


def _cell(row: dict[str, Any] | None, kind: str) -> dict[str, str]:
    """A figure and its interval as text; empty when the stage was not measured."""
    if row is None:
        return {"value": "", "interval": ""}
    factor, value, end, _ = FORMATS[kind]
    ends = [row["ci_low"], row["ci_high"]]
    interval = f"[{', '.join(end.format(factor * x) for x in ends)}]" if all(map(pandas.notna, ends)) else ""
    return {"value": value.format(factor * row["value"]), "interval": interval}


def read_answers(run: Run) -> list[dict[str, Any]]:
    """The stages' answers to the same prompts: [{"prompt", "language", "stages": {stage: answer}}]; empty if none.

    Read from answers.json, a list of {"prompt", "language", "stage", "answer"}. AnitaError when that file is damaged.
    """
    file = run.folder / "answers.json"
    if not file.is_file():
        return []
    prompts: dict[str, dict[str, Any]] = {}
    try:
        for row in json.loads(file.read_text("utf-8")):
            prompt = {"prompt": row["prompt"], "language": row["language"], "stages": {}}
            prompts.setdefault(row["prompt"], prompt)["stages"][row["stage"]] = row["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise AnitaError(f"{shown(file)} is damaged ({error!r}): delete it and run its lesson again") from error
    return list(prompts.values())


def _lesson(name: str, lesson: dict[str, Any]) -> dict[str, str]:
    memory = lesson["peak_memory_bytes"]
    return {
        "name": name,
        "status": lesson["status"],
        "time": clock(lesson["seconds"]),
        "memory": f"{memory / 2**20:,.0f} MiB" if memory else "",
    }


def machine_text(info: dict[str, Any]) -> dict[str, str]:
    """Processor, memory, GPU, system and libraries of a run.json, as text."""
    machine = info.get("machine", {})
    memories = [key for key in ("memory_bytes", "gpu_memory_bytes") if machine.get(key)]
    gibibytes = {key: f"{machine[key] / 2**30:.1f} GiB" for key in memories}
    versions = ", ".join(f"{library} {version}" for library, version in info.get("versions", {}).items())
    return {
        "processor": f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores",
        "memory": gibibytes.get("memory_bytes", "unknown"),
        "GPU": f"{machine['gpu']}, {gibibytes.get('gpu_memory_bytes', '?')}" if machine.get("gpu") else "none",
        "system": f"{machine.get('system', 'unknown')}, Python {machine.get('python', '?')}",
        "libraries": versions or "unknown",
    }


def lesson_html(notebook: nbformat.NotebookNode, title: str) -> str:
    """An executed lesson as one HTML page without scripts: styles and pictures embedded, formulas as MathML."""
    exporter = _exporter_class()(
        template_name="lesson", extra_template_basedirs=[str(TEMPLATES)], embed_images=True, anchor_link_text=""
    )
    page, _ = exporter.from_notebook_node(with_alternative_texts(notebook), resources={"metadata": {"name": title}})
    return page


def _exporter_class():
    """nbconvert's HTML exporter with formulas turned into MathML here instead of by a script from the network.

    Made on demand, because nbconvert takes a second to import.
    """
    from latex2mathml.converter import convert
    from nbconvert.exporters.html import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def mathml(formula: str, display: str, fallback: str) -> str:
        try:
            # Within HTML the namespace goes without saying; in headings nbconvert would make a prefix of it
            return convert(formula, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
        except Exception:  # TeX that the converter does not know: show it as it was written
            return fallback

    class Renderer(IPythonRenderer):
        def image(self, text, url, title=None):
            """A picture; but one from the network, such as a badge, becomes its words."""
            return text if url.startswith(("http://", "https://")) else super().image(text, url, title)

        def block_math(self, body):
            return mathml(body, "block", super().block_math(body))

        def inline_math(self, body):
            return mathml(body, "inline", super().inline_math(body))

        def latex_environment(self, name, body):
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block", super().latex_environment(name, body))

    class LessonExporter(HTMLExporter):
        @jinja2.pass_context
        def markdown2html(self, context, source):
            attachments = context.get("cell", {}).get("attachments", {})
            # embed_images would parse raw HTML piece by piece, and so close each <details> where it opens
            renderer = Renderer(escape=False, attachments=attachments, anchor_link_text=self.anchor_link_text)
            return MarkdownWithMath(renderer=renderer).render(source)

    return LessonExporter


# ---------------------------------------------------------------- tables


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
