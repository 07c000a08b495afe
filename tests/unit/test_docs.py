"""README and docs: their tables say what the results say, and every symptom listed is a message that exists."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml

from anita_utils.ablation import results
from anita_utils.ablation.arms import load_ablation
from anita_utils.stats import Measurement

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("doc_tables", ROOT / "scripts" / "doc_tables.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
ROWS = yaml.safe_load(script.ROWS.read_text("utf-8"))


@pytest.mark.parametrize("page", script.PAGES)
def test_a_page_says_what_the_results_say(page):
    """After new results: python scripts/doc_tables.py."""
    text = (ROOT / page).read_text("utf-8")
    assert script.filled(page, text) == text
    assert all(text.count(mark) == 1 for name in script.PAGES[page] for mark in script.marks(name))


def test_the_front_page_is_one_that_one_reads():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_every_symptom_that_is_quoted_is_a_message_of_the_course():
    """In the first column of docs/troubleshooting.md; "…" stands for what differs from case to case."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^\| (?:Colab: )?`([^`]+)`", page, re.MULTILINE)
    files = [
        *ROOT.glob("anita_utils/**/*.py"),
        *ROOT.glob("scripts/*.py"),
        *ROOT.glob("notebooks/*.ipynb"),
        ROOT / "Makefile",
    ]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text("utf-8") for file in files))  # strings in parts
    parts = [part.strip() for symptom in quoted for part in symptom.split("…") if part.strip(" '")]
    assert len(quoted) > 8 and [part for part in parts if part not in code] == []


def test_every_kind_is_there_and_every_lesson_and_claim_exists():
    kinds = [row["kind"] for row in ROWS]
    wanted = {"key result": 3, "mechanism": 4, "trade-off": 1, "failure signature": 4, "open question": 3,
              "limitation": 3, "next check": 3}  # fmt: skip
    assert {kind: kinds.count(kind) for kind in wanted} == wanted and len(kinds) == sum(wanted.values())
    lessons = {file.name[:2] for file in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    claims = load_ablation("cpu").claims
    for row in ROWS:
        assert set(row["lessons"]) <= lessons and set(row.get("claims", [])) <= set(claims)
        assert not any("|" in str(value) for value in row.values())


def test_a_verdict_comes_from_the_results_and_from_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "data_dir", lambda: tmp_path)
    assert "supported" not in script.verdicts_table() and script.verdicts_table().startswith(
        "The arms of lessons 06 and 09 have not"
    )
    found, random = results.Kept({}, {}), np.random.default_rng(0)
    for arm, share in {"summary": 0.9, "sft_italian": 0.1}.items():
        for seed in (1, 2, 3):
            scores = [float(one) for one in random.random(100) < share]
            clusters = [str(n) for n in range(100)]
            measured = [Measurement("refusal/harmful", "all", "held_out_wordings", scores, clusters)]
            measured += [Measurement(f"benchmark/{name}", code, None, scores, clusters) for name in ("arc", "mmlu")
                         for code in ("en", "it")]  # fmt: skip
            measured.append(Measurement("chat/accuracy_in_language", "it", "adapted", scores, clusters))
            place = {"arm": arm, "seed": seed, "made": "x", "commit": "abcdef"}
            found = results.add(found, *results.make_line(place, [], measured, []))
    results.write_kept(results.kept_file("cpu"), found)
    table = script.verdicts_table()
    assert "dpo refuses, harmful requests refused, in new wordings: **supported**" in table
    assert "synergy, mean of the Italian benchmarks: **not run yet**" in table and "seeds 1, 2, 3" in table
    assert "lesson 08 says" in table


@pytest.mark.parametrize("there", [True, False])
def test_the_check_finds_an_old_table(tmp_path, monkeypatch, there):
    for page, tables in script.PAGES.items():
        (tmp_path / page).parent.mkdir(exist_ok=True)
        text = "Between\n".join(f"{begin}\nYESTERDAY\n{end}\n" for begin, end in map(script.marks, tables))
        (tmp_path / page).write_text(f"Before\n{text}After\n", "utf-8")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["doc_tables.py"])
    if there:
        assert script.main() == 0
        for page, tables in script.PAGES.items():
            text = (tmp_path / page).read_text("utf-8")
            assert text.startswith("Before\n") and text.endswith("After\n") and "YESTERDAY" not in text
            assert text.count("Between\n") == len(tables) - 1
    monkeypatch.setattr("sys.argv", ["doc_tables.py", "--check"])
    assert script.main() == int(not there)


def shown_results():
    """The table's cells by its rows' first words."""
    lines = [line.split("|") for line in script.results_table().splitlines()]
    return {line[1].strip(): line[2:-1] for line in lines}


def test_results_are_those_that_every_test_run_is_held_against():
    rows = shown_results()
    found = pandas.read_csv(script.EXPECTED)
    last = found[(found["stage"] == "dpo") & (found["metric"] == "benchmark/mean") & (found["language"] == "it")]
    assert float(rows["mean of the Italian benchmarks, %"][-1]) == pytest.approx(100 * last["value"].item(), abs=0.5)
    assert len(rows) == len(script.SHOWN) + 2 and all(len(cells) == len(script.STAGES) for cells in rows.values())


def test_results_are_the_recipes_and_no_other_arms():
    """Lesson 06 trains DPO alone again, a stage by the same name: figures of lesson 04 are what the README shows."""
    found = pandas.read_csv(script.EXPECTED, keep_default_na=False)
    assert {"recipe", "dpo"} <= set(found["arm"])
    lesson = found[found["notebook"] == "04_dpo"].set_index(["metric", "language", "split"])["value"]
    rows = shown_results()
    for words, measure in script.SHOWN.items():
        if measure in lesson.index:
            share = measure[0] != "perplexity"
            shown = float(rows[words + ", %" * share][-1])
            assert shown == pytest.approx(lesson[measure] * (100 if share else 1), abs=0.51), words


def test_every_profile_is_there_with_what_the_planner_says():
    names = {file.stem for file in script.PROFILES.glob("*.yaml")}
    assert names == set(script.ON_GPU)
    sizes = {line.split("`")[1]: line.split("|")[-3:-1] for line in script.profiles_table().splitlines() if "`" in line}
    training, measuring = (float(size) for size in sizes["colab-t4"])
    assert sizes.keys() == names and 6 < training < 14 and 6 < measuring < 14  # an 8B in 4 bits, on a T4
