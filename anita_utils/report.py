"""The report of a run, built in one place from what the lessons recorded: index.html, report.md, a page a lesson.

Nothing in these pages is loaded from the network.

>>> write_report(Run.load("latest"))
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas

from anita_utils import AnitaError, shown, tables
from anita_utils.comparison import compared, stored
from anita_utils.figures import figure_texts, with_alternative_texts
from anita_utils.paths import write_text
from anita_utils.record import Run, clock

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
    known, kept = tables.latest(metrics), stored(run)
    changes = {s: compared(kept["base"], kept[s]) for s in stages if s != "base" and {"base", s} <= kept.keys()}
    sheets = [tables.headline(known, stages, changes), tables.forgetting(changes)]
    sheets += tables.published_sheets(known, stages, run.profile.evaluation.suite)
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
        "more": [s for s in (tables.contrasts(metrics), tables.costs(run), tables.leaks(run)) if s.rows],
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
