"""The figures of lessons 00 to 04: do they draw the numbers they are given?"""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas

from anita_utils import plots
from anita_utils.data import IGNORED

INTERVALS = pandas.DataFrame(
    {"kind": ["a", "b"], "value": [0.3, 0.9], "ci_low": [0.1, 0.8], "ci_high": [0.6, 1.0], "n": [5, 9]}
)


def names(ticks):
    return [tick.get_text() for tick in ticks]


def test_gigabyte_bars_end_in_their_totals(ax):
    table = pandas.DataFrame({"weights": [5.0, 32.0], "Adam": [1.5, 64.0]}, index=["QLoRA", "full"])
    plots.gigabyte_bars(ax, table, {"T4, 16 GB": 16}, ["grey", "red"])
    assert names(ax.texts) == ["6.5", "96.0", "T4, 16 GB"]
    assert [bar.get_width() for bar in ax.patches] == [5.0, 32.0, 1.5, 64.0]
    assert ax.lines[-1].get_xdata()[0] == 16 and ax.get_xlim()[1] > 96


def test_interval_bars_have_the_first_row_on_top(ax):
    plots.interval_bars(ax, INTERVALS["kind"], INTERVALS, "grey")
    assert [bar.get_width() for bar in ax.patches] == [0.3, 0.9] and ax.yaxis_inverted()
    (ends,) = (part.get_segments() for part in ax.collections)
    assert np.allclose([[x for x, _ in line] for line in ends], [[0.1, 0.6], [0.8, 1.0]])


def test_differences_are_filled_where_they_miss_the_line(ax):
    plots.difference_points(ax, INTERVALS, by="kind", zero=0.5)
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() for line in points] == ["#0072b2", "white"]  # from the last row up
    assert ax.lines[-1].get_xdata()[0] == 0.5


def test_a_map_of_shares_has_its_names(ax):
    plots.share_map(ax, np.eye(2), ["il", "topo"], ["0.0", "0.1"], "share of the attention")
    assert names(ax.get_xticklabels()) == ["il", "topo"] and names(ax.get_yticklabels()) == ["0.0", "0.1"]
    assert ax.figure.axes[1].get_ylabel() == "share of the attention"


def test_tokens_are_padding_read_or_scored(ax):
    plots.token_grid(ax, [[IGNORED, 7, 8], [IGNORED]])
    assert ax.images[0].get_array().tolist() == [[1, 2, 2], [1, 0, 0]]
    assert ax.get_legend_handles_labels()[1] == ["padding", "read", "scored"]


def test_token_bars_show_line_ends(ax):
    plots.token_bars(ax, ["Roma", "\n"], [-0.5, -2.0], "red")
    assert [bar.get_height() for bar in ax.patches] == [-0.5, -2.0]
    assert names(ax.get_xticklabels()) == ["Roma", "⏎"]


def test_the_first_points_bear_names(ax):
    plots.named_points(ax, [4.5, 4.1, 4.0], [0.1, 0.2, 0.3], [64, 128], "o-", "red", "fp32")
    assert names(ax.texts) == ["64", "128"] and ax.texts[1].xy == (4.1, 0.2)
    assert ax.lines[0].get_xydata().tolist() == [[4.5, 0.1], [4.1, 0.2], [4.0, 0.3]]


def test_points_are_coloured_by_kind(ax):
    table = pandas.DataFrame({"kind": ["myth", "truth", "myth"], "x": [1, 2, 3], "y": [4, 5, 6]})
    plots.points_by_kind(ax, table, "x", "y")
    assert names(ax.get_legend().get_texts()) == ["myth", "truth"]
    assert ax.lines[0].get_xydata().tolist() == [[1, 4], [3, 6]]


def test_logged_curves_of_one_group_share_a_panel(ax):
    history = [{"step": 5, "rewards/chosen": 0.1, "rewards/rejected": -0.1}, {"step": 10}]
    plots.training_curves(ax, history, ["rewards/chosen", "rewards/rejected"], {"chosen": "green"})
    assert ax.get_ylabel() == "rewards" and names(ax.get_legend().get_texts()) == ["chosen", "rejected"]
    assert [line.get_color() for line in ax.lines] == ["green", "#0072b2"]
