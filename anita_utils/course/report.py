"""What is in the report of a run, and in which order? Its tables and figures, from what the lessons recorded.

>>> write_report(Run.load("latest"))
PosixPath('…/runs/latest/index.html')

Nothing in these pages is loaded from the network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas
from latex2mathml.converter import convert
from nbconvert.exporters.html import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from anita_utils import AnitaError, clock, shown
from anita_utils.ablation.arms import load_ablation
from anita_utils.course import opening
from anita_utils.evaluation import metrics
from anita_utils.evaluation.benchmarks import FAMILIES, SUITES
from anita_utils.evaluation.measuring import compared, stored
from anita_utils.paths import read_text, write_text
from anita_utils.run import Run
from anita_utils.studies import contamination

PICTURE = "stages.png"
TEMPLATES = Path(__file__).parent / "templates"
# What lesson 05 writes of the models' own words, each with its title
ANSWERS = {
    "answers.json": "The same prompts, stage by stage",
    "conversation.json": "One conversation: each answer is read with all that was said before it",
}
CAPTION = (
    "Shares in per cent, with 95 % intervals in brackets; the difference is the last stage minus the base, for shares "
    "in percentage points. Where two lessons measured the same thing, the later one counts."
)
SHARES = "Shares in per cent, 95 % intervals. "
MATRIX = "Each stage minus the base, in percentage points for shares, with 95 % intervals. "
IN_4_BITS = " All models were held in 4 bits to be measured (evaluation.load_in_4bit)."
MARKS = (
    "▲ better and ▼ worse than the base, item by item on the same items: p < 0.05 after Holm's correction over the "
    "measures of a kind and a stage (McNemar's test, or sign flips by cluster)."
)
NO_MARKS = (
    "Without marks: what was measured item by item is not in the cache. `anita eval STAGE` measures a stage again."
)


def write_report(run: Run) -> Path:
    """Writes index.html of `run`, in place of an older one; returns its path. AnitaError for damaged records."""
    info, rows, kept = run.info(), run.metrics(), stored(run)
    known = latest(rows)
    measured = [stage for stage in dict.fromkeys(key[0] for key in known) if stage != "difference"]
    stages = [stage for stage in ["base", *run.profile.order] if stage in measured]
    tested = [stage for stage in stages if stage != "base" and {"base", stage} <= kept.keys()]
    changes = {(stage, *name_of(row)): row for stage in tested for row in compared(kept["base"], kept[stage])}
    caption = CAPTION + (IN_4_BITS if run.profile.evaluation.load_in_4bit else "")
    headline = Sheet("The stages in figures", SHARES + (MARKS if changes else NO_MARKS), ["", *stages])
    matrix = Sheet("What each stage changed: the forgetting matrix", MATRIX + MARKS, ["", *tested])
    every = ["", *stages, *(stage for stage in measured if stage not in stages)]
    recorded, others = Sheet("Results", caption, every), Sheet("Further figures of the lessons", "", [*every])
    answers = {file: read_answers(run.folder / file) for file in ANSWERS}
    picture = opening.draw_slopes(known, changes, stages, run.folder / PICTURE)
    content = {
        "picture": {"file": PICTURE, "alt": picture, "caption": opening.caption(bool(changes))},
        "opening": opening.few_answers(answers["answers.json"]),
        "name": run.folder.name,
        "profile": info["profile"],
        "seed": info["seed"],
        "commit": (info["commit"] or "unknown").replace("+", " (with changes)"),
        "first": [
            by_stage(headline, "headline", known, changes),
            by_stage(matrix, "changes", changes, changes, signed=True),
            *published_sheets(known, stages, run.profile.evaluation.suite),
        ],
        "second": [with_differences(recorded, "results", known), contrasts(rows), costs(run), leaks(run)],
        "others": [with_differences(others, "others", known)],
        "answers": [(ANSWERS[file], stages_of(prompts), prompts) for file, prompts in answers.items() if prompts],
        "lessons": [(name, lesson["status"], clock(lesson["seconds"])) for name, lesson in info["lessons"].items()],
        "figures": figures(run.folder),
        "machine": machine_text(info),
    }
    return render("index.html.j2", content, run.folder / "index.html")


def render(template: str, content: dict[str, Any], file: Path) -> Path:
    """Writes one of the templates, filled; returns the file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    write_text(file, environment.get_template(template).render(content) + "\n")
    return file


def stages_of(prompts: list[dict[str, Any]]) -> list[str]:
    """The stages that answered, in the order in which they did."""
    return list(dict.fromkeys(stage for prompt in prompts for stage in prompt["stages"]))


def read_answers(file: Path) -> list[dict[str, Any]]:
    """The stages' answers to the same prompts: [{"prompt", "language", "stages": {stage: answer}}]; empty if none.

    file: a list of {"prompt", "language", "stage", "answer"}. AnitaError when it is damaged.
    """
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


def figures(folder: Path) -> list[dict[str, str]]:
    """For each figure that `Run.show` saved: `file`, `alt` (what it shows), `caption` (how to read it)."""
    described = sorted((folder / "figures").glob("*.json"))
    return [{"file": f"{file.stem}.png", **json.loads(read_text(file))} for file in described]


def machine_text(info: dict[str, Any]) -> dict[str, str]:
    """Processor, memory, GPU, system and libraries of a run.json, as text."""
    machine = info["machine"]
    gpu = f"{machine['gpu']}, {machine['gpu_memory_bytes'] / 2**30:.1f} GiB" if machine["gpu"] else "none"
    return {
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "memory": f"{machine['memory_bytes'] / 2**30:.1f} GiB",
        "GPU": gpu,
        "system": f"{machine['system']}, Python {machine['python']}",
        "libraries": ", ".join(f"{library} {version}" for library, version in info["versions"].items()),
    }


# ---------------------------------------------------------------- tables


@dataclass
class Cell:
    """A figure as text, small print below it (an interval, a source), and what it shows: better, worse, changed."""

    value: str = ""
    note: str = ""
    look: str = ""


@dataclass
class Sheet:
    """A table with its title, what is to be said of it, column heads, and rows; each row's first cell names it."""

    title: str
    note: str
    head: list[str]
    rows: list[list[Cell]] = field(default_factory=list)


def figure(row: dict[str, Any] | None, signed: bool = False, test: dict[str, Any] | None = None) -> Cell:
    """A row of figures as a cell, with interval and n; empty where there is no row. test: what marks it, if known."""
    if row is None:
        return Cell()
    n = f"n {row['n']:,.0f}" if pandas.notna(row["n"]) else ""
    # A line ends between interval and n, not within one of them
    note = " ".join(part.replace(" ", "\u00a0") for part in (metrics.interval_text(row), n) if part)
    return Cell(metrics.text(row["metric"], row["value"], signed), note, metrics.change(test) if test else "")


def bare_difference(first: dict[str, Any], last: dict[str, Any]) -> Cell:
    """The difference of two figures whose items are not known, so without an interval."""
    return Cell(metrics.text(first["metric"], last["value"] - first["value"], signed=True))


def latest(rows: pandas.DataFrame) -> dict[tuple, dict[str, Any]]:
    """A run's figures by (stage, metric, language, split); where two lessons measured one, the later counts."""
    recipe = rows[rows["arm"] == "recipe"].sort_values("notebook", kind="stable")
    return {(row["stage"], *name_of(row)): row for row in recipe.to_dict("records")}


def name_of(row: dict[str, Any]) -> tuple:
    split = row["split"]  # pandas writes "none" as nan, which equals nothing
    return row["metric"], row["language"], split if isinstance(split, str) else None


def named(known: dict[tuple, dict], shown_in: str) -> list[tuple]:
    """The measures (metric, language, split) shown in a table, in the order of tables."""
    names = dict.fromkeys(key[-3:] for key in known)
    return sorted(
        (name for name in names if shown_in in metrics.measure(name[0]).shown),
        key=lambda name: metrics.TABLE.index(metrics.measure(name[0])),
    )


def by_stage(
    sheet: Sheet, shown_in: str, known: dict[tuple, dict], tests: dict[tuple, dict], signed: bool = False
) -> Sheet:
    """Fills a sheet, whose heads are stages, with the measures shown in it. known, tests: as `latest` gives them."""
    for name in named(known, shown_in):
        keys = [(stage, *name) for stage in sheet.head[1:]]
        cells = [figure(known.get(key), signed, tests.get(key)) for key in keys]
        sheet.rows.append([Cell(metrics.words(*name)), *cells])
    return sheet


def with_differences(sheet: Sheet, shown_in: str, known: dict[tuple, dict]) -> Sheet:
    """Fills a sheet likewise, and adds a difference: the row that a lesson recorded under stage "difference", which has
    an interval, else simply the last stage minus the base.
    """
    stages = sheet.head[1:]
    by_stage(sheet, shown_in, known, {})
    sheet.head.append("difference")
    for name, row in zip(named(known, shown_in), sheet.rows, strict=True):
        measured = [known[stage, *name] for stage in stages if (stage, *name) in known]
        difference = figure(known.get(("difference", *name)), signed=True)
        if not difference.value and len(measured) > 1 and measured[0]["stage"] == "base":
            difference = bare_difference(measured[0], measured[-1])
        row.append(difference)
    return sheet


def published_sheets(known: dict[tuple, dict], stages: list[str], suite: str) -> list[Sheet]:
    """The paper's two tables, each figure with source and certainty, beside this run's base and last stage."""
    ends = list(dict.fromkeys([stages[0], stages[-1]])) if stages else []
    head = ["", *metrics.PUBLISHED.values(), *(f"{stage}, this run" for stage in ends)]
    local = (
        "Not to be compared: the published figures are of models of 8B on the full benchmarks, this run's are of the "
        f"suite {suite}. "
    )
    known_of = {key[:3]: row for key, row in known.items()}  # with any split: the Italian ARC has one
    values, sheets = metrics.published(), []
    for language, versions in (("en", ""), ("it", metrics.VERSIONS)):
        note = (local if SUITES[suite].local else "") + versions
        sheet = Sheet(f"The published figures, {metrics.LANGUAGES[language]}", note, head)
        for metric in [*(f"benchmark/{family}" for family in FAMILIES), "benchmark/mean"]:
            theirs = values.get((metric, language), {})
            cells = [Cell(*theirs.get(model, ())) for model in metrics.PUBLISHED]
            cells += [figure(known_of.get((stage, metric, language))) for stage in ends]
            if any(cell.value for cell in cells):
                sheet.rows.append([Cell(metrics.words(metric, language)), *cells])
        sheets.append(sheet)
    return sheets


def contrasts(rows: pandas.DataFrame) -> Sheet:
    """What lessons 06 and 09 read off the arms that were trained beforehand, claim by claim."""
    note = (
        "From the results kept with the course, with intervals over seeds and items that are corrected as the verdicts "
        "are (Holm); perplexities by logarithms. "
        "n counts seeds. Verdicts, and what a claim's smallest difference worth naming is: lessons 06 and 09."
    )
    sheet = Sheet("The claims of the ablation", note, ["", "measure", "difference"])
    known = load_ablation("cpu").claims
    for row in rows[rows["arm"] == "contrast"].to_dict("records"):
        _, name, row["metric"] = row["metric"].split("/", 2)
        says = known[name].says if name in known else name.replace("_", " ")
        sheet.rows.append([Cell(says), Cell(metrics.words(*name_of(row))), figure(row, signed=True)])
    return sheet


def costs(run: Run) -> Sheet:
    """What each stage's training took, as its stage.json has it."""
    note = "Of the training alone. A stage taken from the cache keeps the costs of when it was trained."
    sheet = Sheet("Costs", note, ["stage", "time", "tokens", "tokens a second", "updates", "peak memory"])
    files = {stage: run.model_dir(stage) / "stage.json" for stage in run.profile.order}
    infos = {stage: json.loads(file.read_text("utf-8")) for stage, file in files.items() if file.is_file()}
    for stage, info in infos.items():
        values = [stage, clock(info["seconds"]), f"{info['tokens']:,}", f"{info['tokens_per_second']:,.0f}",
                  f"{info['steps']:,}", f"{info['peak_memory_bytes'] / 2**20:,.0f} MiB"]  # fmt: skip
        sheet.rows.append([Cell(value) for value in values])
    if len(infos) > 1:
        seconds, tokens = (sum(info[key] for info in infos.values()) for key in ("seconds", "tokens"))
        sheet.rows.append([Cell("together"), Cell(clock(seconds)), Cell(f"{tokens:,}"), Cell(), Cell(), Cell()])
    return sheet


def leaks(run: Run) -> Sheet:
    """How many items of each of the course's benchmarks are in each corpus, question and answer together."""
    found = contamination.course_overlaps(run.profile)
    sizes = {row["corpus"]: f"{row['documents']:,}" for row in found}
    searched = ", ".join(f"{corpus} {size}" for corpus, size in sizes.items())
    missing = [name for name in run.profile.datasets if name not in sizes]
    note = (
        "Items of the benchmarks whose question is in a training text together with its answer, verbatim, recased, "
        f"embedded or by overlap of words. Texts searched: {searched}."
    )
    if missing:
        note += f" Not on this machine, so not searched: {', '.join(missing)}."
    sheet = Sheet("Contamination: benchmark items in the corpora", note, ["", *sizes])
    for benchmark in dict.fromkeys(row["benchmark"] for row in found):
        cells = [
            Cell(f"{row['leaked']} of {row['items']}", ", ".join(row["kinds"]), "worse" if row["leaked"] else "")
            for row in found
            if row["benchmark"] == benchmark
        ]
        sheet.rows.append([Cell(benchmark), *cells])
    return sheet


# ---------------------------------------------------------------- a lesson's page


def mathml(formula: str, display: str, fallback: str) -> str:
    try:
        # Within HTML the namespace goes without saying; in headings nbconvert would make a prefix of it
        return convert(formula, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    except Exception:  # TeX that the converter does not know: show it as it was written
        return fallback


class Renderer(IPythonRenderer):
    """Turns formulas into MathML here, instead of by a script from the network."""

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


def lesson_html(notebook: nbformat.NotebookNode, title: str) -> str:
    """An executed lesson as one HTML page without scripts: styles and pictures embedded, formulas as MathML."""
    exporter = LessonExporter(
        template_name="lesson", extra_template_basedirs=[str(TEMPLATES)], embed_images=True, anchor_link_text=""
    )
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return page
