"""The tables of the report, made of a run whose models answered as the tests say."""

import html
import json
import re
from dataclasses import asdict

import matplotlib.pyplot as plt
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from anita_utils import AnitaError
from anita_utils.course import report
from anita_utils.course.report import write_report
from anita_utils.evaluation.benchmarks import FAMILIES
from anita_utils.evaluation.measuring import PARTS, compared, evaluation_entry, stored
from anita_utils.evaluation.metrics import change
from anita_utils.hub import model_key
from anita_utils.paths import write_text
from anita_utils.profile import load_profile
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


def plain(page):
    """A page without its tags: a line a row of a table, a bar after each cell."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"</t[hd]>", " | ", page)))
    return re.sub(r"[ \u00a0]+", " ", text)


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
    looks = {report.name_of(row): change(row) for row in changes["italian"]}
    assert looks["benchmark/arc", "it", None] == looks["perplexity", "it", None] == "better"
    assert looks["benchmark/mean", "it", None] == "better"
    assert looks["benchmark/arc", "en", None] == looks["language_fidelity", "en", None] == "worse"
    assert looks["refusal/harmless", "all", "held_out_wordings"] == "better"  # fewer needless refusals
    gained = [row["metric"] for row in changes["sft"] if row["metric"].startswith("benchmark/") and change(row)]
    assert set(gained) == {"benchmark/mean"}  # two items a benchmark are luck, twelve together are not


def test_headline_and_forgetting_matrix(run):
    write_report(run)
    known, kept = report.latest(run.metrics()), stored(run)
    changes = {
        (stage, *report.name_of(row)): row for stage in STAGES[1:] for row in compared(kept["base"], kept[stage])
    }
    headline = report.by_stage(report.Sheet("", "", ["", *STAGES]), "headline", known, changes)
    mean = row_of(headline, "mean of the Italian benchmarks")
    assert [mean[stage].value for stage in STAGES] == ["25.0", "27.5", "87.5", "90.0"]
    assert [mean[stage].look for stage in STAGES] == ["", "", "better", "better"]
    assert re.fullmatch(r"\[\d+\.\d,\s\d+\.\d\] n\s240", mean["dpo"].note)
    assert row_of(headline, "bits a byte of Italian text")["italian"].value == "0.36"
    matrix = report.by_stage(report.Sheet("", "", ["", *STAGES[1:]]), "changes", changes, changes, signed=True)
    lost = row_of(matrix, "gsm8k, English")["italian"]
    assert (lost.value, lost.look) == ("-30.0", "worse") and "n\u00a040" in lost.note
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
    arc = row_of(english, "arc, English")
    assert (arc["ANITA, published"].value, arc["ANITA, published"].note) == ("74.6", "model card, confirmed")
    assert arc["its base, published"].value == "not confirmed"  # never a figure in the paper's name
    assert (arc["base, this run"].value, arc["dpo, this run"].value) == ("50.0", "22.5")
    assert "Not to be compared" in english.note and "not to be subtracted" not in english.note
    assert row_of(italian, "arc, Italian")["ANITA, published"].value == "57.1 (version 1)"
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
    assert (
        first[0].value.startswith("The three stages together gain more")
        and second[1].value == "perplexity of Italian text"
    )
    assert (first[2].value, first[2].note) == ("+3.0", "[1.0,\u00a05.0] n\u00a05") and second[2].value == "+1.25"
    page = write_report(run).read_text("utf-8")
    assert "The claims of the ablation" in page and page.count("+1.25") == 1
    assert "claim/synergy" not in page  # not among the stages' own figures


def test_the_page_holds_every_table(run):
    page = write_report(run).read_text("utf-8")
    titles = ["The stages in figures", "forgetting matrix", "The published figures, English",
              "The published figures, Italian", "Costs", "Contamination", "Machine"]  # fmt: skip
    places = [page.index(title) for title in titles]
    assert places == sorted(places)
    assert "▲" in page and "▼" in page and run.info()["commit"].rstrip("+") in page
    assert "@media print" in page and "viewport" in page
    for table in page.split("<table>")[1:-3]:  # the others are the lessons' and the machine's
        cells = [len(re.findall(r"<t[hd]\b", row)) for row in table.split("<tr>")[1:]]
        assert len(set(cells)) == 1, table


def test_figures_have_words(run):
    figure, axes = plt.subplots()
    axes.bar(["SFT", "DPO"], [1, 2])
    run.show(figure, "05_evaluation-benchmarks", alt='Two bars, "SFT" & DPO.', caption="Each bar is one stage.")
    [words] = report.figures(run.folder)
    assert words == {"file": "05_evaluation-benchmarks.png", "alt": 'Two bars, "SFT" & DPO.',
                     "caption": "Each bar is one stage."}  # fmt: skip
    page = write_report(run).read_text("utf-8")
    assert 'alt="Two bars, &#34;SFT&#34; &amp; DPO."' in page and "Each bar is one stage." in page


def test_pictures_in_the_lessons_pages_have_words_too():
    drawn = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "A bar & more"}})
    page = report.lesson_html(new_notebook(cells=[new_code_cell("draw()", outputs=[drawn])]), "title")
    assert re.findall(r'alt="([^"]*)"', page) == ["A bar &amp; more"]


def test_all_figures_of_the_recipe_are_listed(run):
    run.record("00_start_here", [{"stage": "base", "metric": "model/parameters", "value": 123456}])
    listed, others = (
        report.with_differences(report.Sheet("", "", ["", *STAGES]), name, report.latest(run.metrics()))
        for name in ("results", "others")
    )
    rows = {row[0].value: row[1:] for row in listed.rows}
    assert {"arc, English", "bits a byte of Italian text", "overconfidence, Italian"} <= set(rows)
    assert rows["arc, English"][-1].value == "-27.5" and rows["arc, English"][0].note.endswith("n\u00a040")
    assert [[cell.value for cell in row[:2]] for row in others.rows] == [["parameters", "123,456"]]


def test_recorded_difference_and_later_lesson_win(runs):
    run = Run.open("trial", "cpu")
    figure = {"metric": "perplexity", "language": "it"}
    run.record("01_a", [figure | {"stage": "base", "value": 9.0}, figure | {"stage": "sft", "value": 5.0}])
    run.record("05_b", [figure | {"stage": "base", "value": 8.0}])
    assert written(run) == [("8.00", ""), ("5.00", ""), ("-3.00", "")]
    run.record("06_c", [figure | {"stage": "difference", "value": -2.5, "ci_low": -3, "ci_high": -2}])
    assert written(run)[-1] == ("-2.50", "[-3.00,\u00a0-2.00]")


def written(run):
    """The cells of the first row of results."""
    sheet = report.Sheet("", "", ["", "base", "sft"])
    listed = report.with_differences(sheet, "results", report.latest(run.metrics()))
    return [(cell.value, cell.note) for cell in listed.rows[0][1:]]


def test_ablations_stay_out_of_the_results_and_benchmarks_come_first(runs):
    run = Run.open("trial", "cpu")
    rows = [("train/seconds", 9), ("perplexity", 3), ("benchmark/arc", 0.5)]
    run.record("05", [{"stage": "base", "metric": metric, "value": value} for metric, value in rows])
    run.record("06", [{"stage": "base", "metric": "perplexity", "value": 7777, "arm": "dpo_only"}])
    page = plain(write_report(run).read_text("utf-8").partition("<h2>Results")[2])
    assert page.index("arc |") < page.index("perplexity of text |") < page.index("seconds of training |")
    assert "7,777.00" not in page and "3.00" in page
    assert "4 bits" not in page
    profile = load_profile("cpu")
    profile.evaluation.load_in_4bit = True
    quantised = Run.open("quantised", profile)
    quantised.record("05", [{"stage": "base", "metric": "perplexity", "value": 3}])
    assert "All models were held in 4 bits to be measured" in write_report(quantised).read_text("utf-8")


def test_answers_are_shown_stage_by_stage_and_escaped(runs):
    run = Run.open("trial", "cpu")
    rows = [("Chi è?", "base", "<b>Who?</b>"), ("Chi è?", "dpo", "Non lo so.")]
    keys = ("prompt", "stage", "answer")
    answers = [dict(zip(keys, row, strict=True)) | {"language": "it"} for row in rows]
    (run.folder / "answers.json").write_text(json.dumps(answers), "utf-8")
    index = write_report(run).read_text("utf-8")
    assert '<td class="answer">&lt;b&gt;Who?&lt;/b&gt;</td><td class="answer">Non lo so.</td>' in index
    assert "One conversation" not in index
    (run.folder / "conversation.json").write_text(json.dumps(answers[:1]), "utf-8")
    assert "<h2>One conversation" in write_report(run).read_text("utf-8")
    (run.folder / "answers.json").write_text("[{}]", "utf-8")
    with pytest.raises(AnitaError, match=r"answers\.json is damaged"):
        write_report(run)
