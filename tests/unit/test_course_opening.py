"""What the report opens with: which measures are drawn, how they are marked, and the same in words."""

import matplotlib.image
import pytest

from anita_utils.course.opening import PICTURED, draw_slopes, few_answers, in_words

STAGES = ["base", "sft", "dpo"]
ENGLISH, ITALIAN = PICTURED[:2]


def row(name, value):
    metric, language, split = name
    return {"metric": metric, "language": language, "split": split, "value": value, "ci_low": value - 0.05,
            "ci_high": value + 0.05}  # fmt: skip


@pytest.fixture
def known():
    return {(stage, *ENGLISH): row(ENGLISH, value) for stage, value in zip(STAGES, (0.6, 0.5, 0.7), strict=True)}


@pytest.fixture
def changes():
    def change(before, after, p):
        return {"metric": ENGLISH[0], "before": before, "after": after, "p_holm": p}

    return {("sft", *ENGLISH): change(0.6, 0.5, 0.01), ("dpo", *ENGLISH): change(0.6, 0.7, 0.3)}


def test_a_loss_is_told_as_a_gain_is_and_only_beyond_chance(known, changes):
    assert in_words(ENGLISH, known, changes, STAGES) == (
        "Mean of the English benchmarks: base 60, sft 50 (worse), dpo 70."
    )


def test_the_picture_is_drawn_and_described(known, changes, tmp_path):
    file = tmp_path / "stages.png"
    told = draw_slopes(known, changes, STAGES, file)
    assert told == in_words(ENGLISH, known, changes, STAGES)
    height, width, _ = matplotlib.image.imread(file).shape
    assert width < 1000 and height < width  # one line of panels, narrow enough for a telephone


def test_every_measure_known_has_a_panel(known, changes, tmp_path):
    known |= {("base", *ITALIAN): row(ITALIAN, 0.3), ("sft", *ITALIAN): row(ITALIAN, 0.4) | {"ci_low": None}}
    told = draw_slopes(known, changes, STAGES, tmp_path / "stages.png")
    assert told.endswith("Mean of the Italian benchmarks: base 30, sft 40.")


def test_without_figures_nothing_is_drawn(known, tmp_path):
    only_base = {("base", *ENGLISH): known["base", *ENGLISH]}
    assert draw_slopes(only_base, {}, STAGES, tmp_path / "stages.png") is None
    assert not (tmp_path / "stages.png").exists()


def test_the_first_italian_answers_are_taken_in_their_order():
    prompts = [{"prompt": str(n), "language": "en" if n % 2 else "it", "stages": {}} for n in range(10)]
    assert [prompt["prompt"] for prompt in few_answers(prompts)] == ["0", "2", "4"]
