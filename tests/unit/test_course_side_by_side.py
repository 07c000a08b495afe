"""Two runs side by side: what differs, item by item."""

import re

import pytest
from test_course_report import LEAKS, RIGHT, make_run, plain

from anita_utils.studies import contamination


@pytest.fixture
def run(runs, monkeypatch):
    monkeypatch.setattr(contamination, "course_overlaps", lambda profile: LEAKS)
    return make_run("trial")


def test_two_runs_are_compared_item_by_item(run, anita, runs):
    other = make_run("other", RIGHT | {"dpo": (30, 36, 1.3)})
    code, out, err = anita("report", "trial", "other")
    assert code == 0 and err.startswith("run 'trial' (profile cpu, seed 42)\nrun 'other'")
    assert out.strip().endswith("against-trial.html")
    page = (other.folder / "against-trial.html").read_text("utf-8")
    assert page.count("<h2>") == 5  # the two runs, and four stages
    dpo = plain(page.partition("<h2>dpo")[2])
    assert re.search(r"arc, English \|\s+22\.5 .* \| 75\.0 .* \| \+52\.5 ▲ \[\S+, \S+\] n 40 \|", dpo)
    assert re.search(r"arc, Italian \|\s+90\.0 .* \| 90\.0 .* \| \+0\.0 \[0\.0, 0\.0\] n 40 \|", dpo)
    for file in (runs / "cache" / "evaluations").iterdir():
        file.unlink()
    anita("report", "trial", "other")
    page = (other.folder / "against-trial.html").read_text("utf-8")
    assert "Not paired" in page and "▲" not in page and "| +52.5 |" in plain(page.partition("<h2>dpo")[2])
    assert anita("report", "trial", "trial")[0] == 2
    code, _, err = anita("report", "trial", "other", "third")
    assert code == 2 and err.count("\n") == 1
