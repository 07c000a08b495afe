"""The tables of the report, made of a run whose models answered as the tests say."""

import json
import re
from dataclasses import asdict

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anita_utils import plots
from anita_utils.course import report
from anita_utils.course.report import write_report
from anita_utils.evaluation.benchmarks import FAMILIES
from anita_utils.evaluation.measuring import PARTS, compared, evaluation_entry, stored
from anita_utils.evaluation.metrics import verdict
from anita_utils.hub import model_key
from anita_utils.paths import write_text
from anita_utils.run import Run
from anita_utils.stats import Measurement, rows
from anita_utils.studies import contamination

ITEMS = 40
STAGES = ("base", "sft", "italian", "dpo")


def answers(right, metric, language, split=None):
    clusters = [f"{metric} {number}" for number in range(ITEMS)]
    return Measurement(metric, language, split, [float(number < right) for number in range(ITEMS)], clusters)


def measurements(english, italian, loss):
    """What was measured of a model that gets so many of 40 right, and reads Italian at that loss a token."""
    benchmarks = [
        answers({"en": english, "it": italian}[language], f"benchmark/{family}", language)
        for language in ("en", "it")
        for family in FAMILIES
    ]
    others = [
        answers(english, "language_fidelity", "en"),
        answers(italian, "language_fidelity", "it"),
        answers(english, "refusal/harmless", "all", "held_out_wordings"),
        answers(20, "overconfidence", "it"),
    ]
    clusters = [f"text {number}" for number in range(ITEMS)]
    texts = [
        Measurement("perplexity", "it", None, [loss * 9] * ITEMS, clusters, [9.0] * ITEMS),
        Measurement("bits_per_byte", "it", None, [loss * 9] * ITEMS, clusters, [30.0] * ITEMS),
    ]
    return benchmarks, [*others, *texts]


RIGHT = {"base": (20, 10, 2.0), "sft": (22, 11, 1.9), "italian": (8, 35, 1.2), "dpo": (9, 36, 1.3)}


def make_run(name, right=RIGHT):
    """A run with its models' stand-ins, costs, records, and item-by-item results in the cache."""
    run = Run.open(name, "cpu")
    recorded = []
    for stage, figures_of in right.items():
        path = run.model_dir(stage) / "merged"
        if stage == "base":
            key = "base"
            run.note_base(key)
        else:
            path.mkdir(parents=True)
            (path / "model.safetensors").write_bytes(f"{name} {stage}".encode())
            info = {"seconds": 75.0, "tokens": 120_000, "tokens_per_second": 1600.0, "steps": 300,
                    "peak_memory_bytes": 2**30}  # fmt: skip
            write_text(run.model_dir(stage) / "stage.json", json.dumps(info))
            key = model_key(path)
        measured = dict(zip(("benchmarks", "answers"), measurements(*figures_of), strict=True))
        for part in PARTS:
            kept = {"answers": {}, "measured": [asdict(m) for m in measured[part]]}
            evaluation_entry(key, run.profile, part).write(kept)
        recorded += rows([*measured["benchmarks"], *measured["answers"]], stage)
    run.record("05_evaluation", recorded)
    return run


@pytest.fixture
def run(runs, monkeypatch):
    monkeypatch.setattr(contamination, "course_overlaps", lambda profile: LEAKS)  # tried in test_studies_contamination
    return make_run("trial")


LEAKS = [
    {"corpus": corpus, "documents": 1200, "benchmark": "arc_it", "items": 200, "leaked": leaked, "kinds": kinds}
    for corpus, leaked, kinds in (("sft", 0, {}), ("dpo", 2, {"verbatim": 1, "overlap": 1}))
]


def row_of(sheet, name):
    [found] = [row for row in sheet.rows if row[0].value == name]
    return dict(zip(sheet.head[1:], found[1:], strict=True))


def test_differences_to_the_base_are_paired_and_marked(run):
    kept = stored(run)
    assert list(kept) == list(STAGES)
    changes = {stage: compared(kept["base"], kept[stage]) for stage in STAGES[1:]}
    by_name = {report.name_of(row): row for row in changes["italian"]}
    better = by_name["benchmark/arc", "it", None]
    assert better["value"] == pytest.approx(25 / 40) and better["ci_low"] < 25 / 40 < better["ci_high"]
    assert better["p"] == pytest.approx(2 / 2**25) and better["p"] < better["p_holm"] < 0.05
    looks = {report.name_of(row): verdict(row) for row in changes["italian"]}
    assert looks["benchmark/arc", "it", None] == looks["perplexity", "it", None] == "better"
    assert looks["benchmark/mean", "it", None] == "better"
    assert looks["benchmark/arc", "en", None] == looks["language_fidelity", "en", None] == "worse"
    assert looks["refusal/harmless", "all", "held_out_wordings"] == "better"  # fewer needless refusals
    gained = [row["metric"] for row in changes["sft"] if row["metric"].startswith("benchmark/") and verdict(row)]
    assert set(gained) == {"benchmark/mean"}  # two items a benchmark are luck, twelve together are not
    assert verdict({"metric": "answer_words", "value": 2, "p_holm": 0.001}) == "changed"
    assert verdict({"metric": "perplexity", "value": 2, "p_holm": None}) == ""


def test_headline_and_forgetting_matrix(run):
    write_report(run)
    known, kept = report.latest(run.metrics()), stored(run)
    changes = {stage: compared(kept["base"], kept[stage]) for stage in STAGES[1:]}
    headline = report.headline(known, list(STAGES), changes)
    mean = row_of(headline, "benchmarks, mean, Italian")
    assert [mean[stage].value for stage in STAGES] == ["25.0", "27.5", "87.5", "90.0"]
    assert [mean[stage].sign for stage in STAGES] == ["", "", "▲", "▲"]
    assert re.fullmatch(r"\[\d+\.\d,\s\d+\.\d\] n\s240", mean["dpo"].note)
    assert row_of(headline, "bits a byte, Italian")["italian"].value == "0.36"
    matrix = report.forgetting(changes)
    assert matrix.head == ["", "sft", "italian", "dpo"]
    lost = row_of(matrix, "gsm8k, English")["italian"]
    assert (lost.value, lost.look, lost.sign) == ("-30.0", "worse", "▼") and "n\u00a040" in lost.note
    assert len([row for row in matrix.rows if row[0].value.split(",")[0] in FAMILIES]) == 12


def test_without_what_was_measured_item_by_item_there_are_figures_and_no_marks(run):
    for file in (run.folder.parent / "cache" / "evaluations").iterdir():
        file.unlink()
    index = write_report(run).read_text("utf-8")
    assert "Without marks: what was measured item by item is not in the cache" in index
    assert "forgetting matrix" not in index and "▲" not in index and "87.5" in index


def test_the_papers_tables_have_source_and_certainty(run):
    known = report.latest(run.metrics())
    english, italian = report.published_sheets(known, list(STAGES), "piccola")
    arc = row_of(english, "arc")
    assert (arc["ANITA, published"].value, arc["ANITA, published"].note) == ("74.6", "model card, confirmed")
    assert arc["its base, published"].value == "not confirmed"  # never a figure in the paper's name
    assert (arc["base, this run"].value, arc["dpo, this run"].value) == ("50.0", "22.5")
    assert "Not to be compared" in english.note and "not to be subtracted" not in english.note
    assert row_of(italian, "arc")["ANITA, published"].value == "57.1 (version 1)"
    assert "not to be subtracted" in italian.note
    assert "Not to be compared" not in report.published_sheets(known, list(STAGES), "paper")[0].note


def test_costs_and_leaks(run):
    sheet = report.costs(run)
    assert [cell.value for cell in sheet.rows[0]] == ["sft", "1:15", "120,000", "1,600", "300", "1,024 MiB"]
    assert [cell.value for cell in sheet.rows[-1]][:3] == ["together", "3:45", "360,000"]
    found = row_of(report.leaks(run), "arc_it")
    assert (found["sft"].value, found["sft"].look) == ("0 of 200", "")
    assert (found["dpo"].value, found["dpo"].note, found["dpo"].look) == ("2 of 200", "verbatim, overlap", "worse")


def test_the_ablations_claims_stand_in_a_table_of_their_own(run):
    place = {"arm": "contrast", "stage": "difference", "ci_low": 0.01, "ci_high": 0.05, "n": 5}
    contrasts = {"claim/synergy/benchmark/mean": ("it", 0.03), "claim/italian_text/perplexity": ("it", 1.25)}
    run.record("06_ablation", [place | {"metric": metric, "language": language, "value": value}
                               for metric, (language, value) in contrasts.items()])  # fmt: skip
    first, second = report.contrasts(run.metrics()).rows
    assert first[0].value.startswith("The three stages together gain more") and second[1].value == "perplexity, Italian"
    assert (first[2].value, first[2].note) == ("+3.0", "[1.0,\u00a05.0] n\u00a05") and second[2].value == "+1.25"
    page = write_report(run).read_text("utf-8")
    assert "The claims of the ablation" in page and page.count("+1.25") == 1
    assert "claim/synergy" not in page  # not among the stages' own figures


def test_both_files_hold_every_table(run):
    index = write_report(run)
    pages = [index.read_text("utf-8"), (index.parent / "report.md").read_text("utf-8")]
    titles = ["The stages in figures", "forgetting matrix", "The published figures, English",
              "The published figures, Italian", "Costs", "Contamination", "Machine"]  # fmt: skip
    for page in pages:
        places = [page.index(title) for title in titles]
        assert places == sorted(places)
        assert "▲" in page and "▼" in page and run.info()["commit"].rstrip("+") in page
    lines = [line for line in pages[1].splitlines() if line.startswith("|")]
    for above, below in zip(lines, lines[1:], strict=False):
        if below.startswith("|---"):
            assert above.count("|") == below.count("|"), above
    assert "@media print" in pages[0] and "viewport" in pages[0]


def test_figures_have_words(run):
    figure, axes = plt.subplots()
    axes.bar(["SFT", "DPO"], [1, 2], label="this run")
    axes.set(xlabel="stage", ylabel="share right", title="Italian è")
    axes.legend()
    assert plots.describe(figure) == "Italian è. Across: stage. Upwards: share right. Shown: this run."
    run.save_figure(figure, "05_evaluation", "benchmarks")
    plt.close(figure)
    cells = [new_code_cell('run.save_figure(figure, "05_evaluation", "benchmarks");'),
             new_markdown_cell("**Each** bar is `one` stage,\nsnake_case and all.\n\n## Next")]  # fmt: skip
    notebook = new_notebook(cells=cells)
    (run.folder / "notebooks").mkdir()
    nbformat.write(notebook, run.folder / "notebooks" / "05_evaluation.ipynb")
    [words] = plots.figure_texts(run.folder)
    assert words["alt"] == (
        "05 evaluation: benchmarks. Italian è. Across: stage. Upwards: share right. Shown: this run."
    )
    assert words["caption"] == "Each bar is one stage, snake_case and all."
    assert f'alt="{words["alt"]}"' in write_report(run).read_text("utf-8")


def test_pictures_in_the_lessons_pages_have_words_too():
    drawn = [new_output("display_data", {"image/png": "iVBORw0KGgo="}) for _ in range(2)]
    cells = [new_code_cell("draw()", outputs=drawn[:1]), new_markdown_cell("Each *bar* is a stage & more."),
             new_code_cell("draw()", outputs=drawn[1:])]  # fmt: skip
    page = report.lesson_html(new_notebook(cells=cells), "title")
    assert re.findall(r'alt="([^"]*)"', page) == ["Figure. Each bar is a stage &amp; more.",
                                                  "Figure. What the code above draws."]  # fmt: skip


def test_every_saved_figure_of_the_lessons_is_found():
    """The pattern that finds captions knows how the lessons save their figures."""
    from anita_utils.course.lessons import lessons_folder

    for lesson in sorted(lessons_folder().glob("0[0-5]_*.ipynb")):
        notebook = nbformat.read(lesson, as_version=4)
        saved = sum("save_figure(" in cell.source for cell in notebook.cells if cell.cell_type == "code")
        named = [plots.SAVED.search(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
        assert sum(map(bool, named)) == saved, lesson.name
        assert {match[1] for match in named if match} <= {lesson.stem}


def test_two_runs_are_compared_item_by_item(run, anita, runs):
    other = make_run("other", RIGHT | {"dpo": (30, 36, 1.3)})
    code, out, err = anita("report", "trial", "other")
    assert code == 0 and err.startswith("run 'trial' (profile cpu, seed 42)\nrun 'other'")
    assert out.strip().endswith("against-trial.html")
    text = (other.folder / "against-trial.md").read_text("utf-8").replace("\u00a0", " ")
    assert text.count("\n## ") == 5  # the two runs, and four stages
    dpo = text.partition("## dpo")[2]
    assert re.search(r"\| arc, English \| 22\.5 .* \| 75\.0 .* \| \+52\.5 ▲ \[\S+, \S+\] n 40 \|", dpo)
    assert re.search(r"\| arc, Italian \| 90\.0 .* \| 90\.0 .* \| \+0\.0 \[0\.0, 0\.0\] n 40 \|", dpo)
    for file in (runs / "cache" / "evaluations").iterdir():
        file.unlink()
    anita("report", "trial", "other")
    text = (other.folder / "against-trial.md").read_text("utf-8")
    assert "Not paired" in text and "▲" not in text and "| +52.5 |" in text.partition("## dpo")[2]
    assert anita("report", "trial", "trial")[0] == 2
    code, _, err = anita("report", "trial", "other", "third")
    assert code == 2 and err.count("\n") == 1


def test_results_are_still_listed_in_full(run):
    listed = report.results(run.metrics(), list(STAGES))
    assert {"benchmark/arc", "bits_per_byte", "overconfidence"} <= {row["metric"] for row in listed}
