"""What a notebook keeps of a figure: one picture, with words for those who cannot see it."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output

from anita_utils import plots
from anita_utils.run import Run


def test_a_figure_is_shown_once_with_its_words(runs):
    select_figure_formats(InteractiveShell.instance(), {"png"})  # what a notebook does at its start
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    with capture_output() as kept:
        Run.open("trial", "cpu").show(figure, "00_start_here-line", "A line that climbs.", "It climbs.")
    (shown,) = kept.outputs
    assert shown.data["image/png"] and shown.metadata["image/png"]["alt"] == "A line that climbs."
    assert not plt.fignum_exists(figure.number)


def test_bars_and_points_carry_their_intervals():
    table = pandas.DataFrame(
        [("base", "benchmark/arc", 0.5, 0.4, 0.6), ("dpo", "benchmark/arc", 0.7, 0.6, 0.9),
         ("dpo", "benchmark/mean", 0.2, 0.1, 0.3)],
        columns=["stage", "metric", "value", "ci_low", "ci_high"],
    )  # fmt: skip
    bars = plots.stage_bars(plt.subplots()[1], table)
    assert [text.get_text() for text in bars.get_xticklabels()] == ["arc", "mean"]
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["base", "dpo"]
    assert [bar.get_height() for bar in bars.patches] == [0.5, 0.7, 0.2]
    changes = table.assign(ci_low=[-0.1, 0.6, 0.1])
    points = plots.difference_points(plt.subplots()[1], changes)
    faces = [line.get_markerfacecolor() for line in points.lines if line.get_marker() == "o"]
    assert faces == ["#0072b2", "#0072b2", "white"]  # from below: the first row's interval holds zero
    plt.close("all")
