"""Lesson 07 on made-up answers, without a model: do its verdicts follow the answers, whatever the base and the luck?"""

from pathlib import Path

import nbformat
import pytest

from anita_utils import training
from anita_utils.evaluation import measuring
from anita_utils.profile import load_profile
from anita_utils.studies import contamination, zero_shot

LESSON = Path(__file__).parents[2] / "notebooks" / "07_zero_shot_italian.ipynb"
STAGES = ["base", "sft", "italian", "dpo"]
TEXTS = [
    ("sft", "Which region is Cosenza in? Cosenza is in Calabria."),
    ("italian", "La risposta è Roma. Il sole è giallo."),
]


def knows_all(row, stage):
    """The base knows everything and says it in English, the last stage in Italian: told names first of all."""
    if row["language"] == "en" or stage == "base":
        return f"The answer is {row['right']['en']}."
    return f"La risposta è {row['right']['it']}."


def knows_nothing(row, stage):
    return ""


@pytest.fixture
def run_lesson(monkeypatch, tmp_path):
    """Runs the lesson's cells on the answers that a function makes up; returns their names."""

    def run(answer, base=None, limit=20):
        monkeypatch.setenv("ANITA_RUNS", str(tmp_path))
        monkeypatch.setattr(training, "train_missing", lambda run: {stage: stage for stage in STAGES})
        for name in ("load_for_evaluation", "load_tokenizer"):
            monkeypatch.setattr(f"anita_utils.model.{name}", lambda path, *_: path)
        monkeypatch.setattr(
            measuring, "ask", lambda model, _, items, profile: [row | {"answer": answer(row, model)} for row in items]
        )
        monkeypatch.setattr(
            zero_shot, "rank", lambda model, _, items, size: [row | {"acc": False, "acc_norm": True} for row in items]
        )
        monkeypatch.setattr(contamination, "training_texts", lambda run: TEXTS)
        profile = load_profile("cpu")
        profile.evaluation.limit, profile.model.base = limit, base or profile.model.base
        names = {"profile": profile, "run": "made-up", "seed": 42, "display": lambda *shown, **options: None}
        for cell in nbformat.read(LESSON, as_version=4).cells:
            if cell.cell_type == "code" and cell.id not in ("07-parameters", "07-set-up"):
                exec(cell.source, names)
        return names

    return run


def test_verdicts_follow_the_answers(run_lesson):
    names = run_lesson(knows_all)
    final = names["final"]
    letters = {claim[0]: verdict for claim, verdict in final["in the small world"].items()}
    assert letters == {
        "A": "supported",
        "B": "supported",  # the base said nothing in Italian
        "C": "not supported",  # unread facts are said as well
        "D": "undecided at this n",  # none is unknown
        "E": "not supported",
        "F": "supported",
        "G": "supported",
        "H": "not supported",  # nothing was chosen right
        "I": "supported",  # this model is told the saints, and the control finds it
    }
    assert set(final["on the 8B"]) == {"not run"}
    assert len(names["found"]) == 20 + 20 + 40 + 40  # every right answer has its nearest sentence
    figures = sorted(file.name for file in names["run"].folder.glob("figures/*.png"))
    assert len(figures) == 5
    recorded = names["run"].metrics()
    assert recorded[recorded.metric == "zero_shot/right_in_italian"].n.min() >= 20
    said = recorded.set_index(["stage", "metric", "split"]).value
    assert said["dpo", "zero_shot/right_in_italian", "second_style"] == 1
    assert said["base", "zero_shot/right_in_italian", "second_style"] == 0


def test_a_model_that_knows_nothing_supports_nothing(run_lesson):
    """Nor does the lesson stop where no answer is right and no group is full."""
    names = run_lesson(knows_nothing, limit=4)
    assert "supported" not in set(names["final"]["in the small world"]) and len(names["found"]) == 0


def test_another_base_is_no_small_world(run_lesson, capsys):
    final = run_lesson(knows_all, base="somebody/Other-8B", limit=4)["final"]
    assert set(final["in the small world"]) == {"not run"} and "undecided at this n" in set(final["on the 8B"])
    assert "may have read any fact in Italian" in capsys.readouterr().out
