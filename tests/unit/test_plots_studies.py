"""The figures of the ablation and the studies: each draws what it is given, and names its rows."""

import matplotlib

matplotlib.use("agg")

import pandas
import pytest

from anita_utils import plots


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_dotted_lines_lie_at_their_values(ax):
    plots.dotted(ax, [0.25, 0.5])
    assert [line[:, 1].tolist() for line in ax.collections[0].get_segments()] == [[0.25, 0.25], [0.5, 0.5]]


def test_of_the_offered_answers_the_highest_is_framed(ax):
    plots.offered_answers(ax, ["a", "b", "c"], [-3.0, -1.0, -2.0], right=2)
    framed = [bar.get_edgecolor()[3] == 1 for bar in ax.patches]
    green = [bar.get_facecolor() == matplotlib.colors.to_rgba(plots.COLOURS["italian"]) for bar in ax.patches]
    assert framed == [False, True, False] and green == [False, False, True]


def test_whiskers_reach_to_the_ends_of_the_intervals(ax):
    table = pandas.DataFrame({"value": [0.5, 0.6], "ci_low": [0.4, 0.5], "ci_high": [0.8, 0.7]})
    plots.whiskers(ax, [0, 1], table, "#0072b2", "o-", "one way")
    reached = ax.collections[0].get_segments()
    assert reached[0][:, 1].tolist() == pytest.approx([0.4, 0.8])
    assert ax.get_legend_handles_labels()[1] == ["one way"]


def test_seeds_are_points_and_their_mean_a_mark(ax):
    plots.seed_points(ax, {"base": [0.1, 0.3], "dpo": [0.5, 0.7]}, reference=0.2)
    assert names(ax.yaxis) == ["base", "dpo"]
    assert [line.get_xdata()[0] for line in ax.lines[1::2]] == pytest.approx([0.2, 0.6])


def test_gains_are_stacked_upwards_and_losses_downwards(ax):
    gains = pandas.DataFrame({"sft": [0.1], "italian": [-0.2], "dpo": [0.3]}, index=["one measure"])
    plots.stacked_gains(ax, gains, [0.25])
    stack = [(bar.get_y(), bar.get_height()) for bar in ax.patches[:4]]
    assert [x for bar in stack for x in bar] == pytest.approx([0, 0.1, 0, -0.2, 0.1, 0.3, 0, 0.25])
    assert names(ax.xaxis) == ["one measure"]


def test_a_point_outside_of_its_band_is_orange(ax):
    table = pandas.DataFrame({"value": [0.5, 0.9], "low": [0.4, 0.4], "high": [0.6, 0.6]}, index=["in", "out"])
    plots.bands(ax, table)
    assert names(ax.yaxis) == ["out", "in"]  # the first row on top
    assert [point.get_color() for point in ax.lines[1::2]] == ["#d55e00", "#0072b2"]


def test_a_text_stands_in_every_cell(ax):
    table = pandas.DataFrame({"sft": [0.1, 0.9], "dpo": [0.2, 0.3]}, index=["theft", "fraud"])
    plots.text_map(ax, table, table.map("{:.0%}".format), "Blues", 0, 1)
    assert [(text.get_text(), text.get_color()) for text in ax.texts] == [
        ("10%", "black"),
        ("20%", "black"),
        ("90%", "white"),
        ("30%", "black"),
    ]
    assert names(ax.xaxis) == ["sft", "dpo"] and names(ax.yaxis) == ["theft", "fraud"]


def test_what_was_recovered_is_filled(ax):
    table = pandas.DataFrame(
        {"stated": [1.4, 1.4], "value": [0.2, 1.2], "ci_low": [-0.1, 0.9], "ci_high": [0.5, 1.5]}, index=["age", "all"]
    )
    plots.stated_and_measured(ax, table.assign(recovered=[False, True]), {"age": [0.1, 0.3], "all": [1.2]})
    assert [line.get_markerfacecolor() for line in ax.lines[2::3]][:2] == ["white", "#0072b2"]
    assert names(ax.xaxis) == ["age", "all"]


def test_lost_goes_to_the_left_and_learnt_to_the_right(ax):
    plots.lost_and_learnt(ax, ["sft, chat", "dpo, chat"], [0.2, 0.0], [0.1, 0.5])
    assert [bar.get_width() for bar in ax.patches] == [0.1, 0.5, -0.2, -0.0]
    assert ax.get_legend_handles_labels()[1] == ["learnt, of what was wrong", "lost, of what was right"]


def lines_of_verdicts():
    rows = [("gain", "a", 0.1, 0.05, 0.15, 0.02, "supported"), ("gain", "b", -0.3, -0.4, -0.2, 0.05, "not supported"),
            ("order", "c", 0.01, -0.01, 0.03, 0.02, "undecided at n = 5 seeds"),
            ("rank", "d", None, None, None, 0.02, "not measured with two seeds yet")]  # fmt: skip
    columns = ["claim", "label", "estimate", "low", "high", "worth", "verdict"]
    return pandas.DataFrame(rows, columns=columns).astype({"estimate": float, "low": float, "high": float})


def test_a_forest_has_a_row_for_each_line_with_its_interval_and_band(ax):
    plots.forest(ax, lines_of_verdicts())
    assert names(ax.yaxis) == ["a", "b", "c", "d"] and ax.get_ylim() == (3.5, -0.5)  # the first row on top
    intervals = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.6]
    assert [list(line.get_xdata()) for line in intervals] == [[0.05, 0.15], [-0.4, -0.2], [-0.01, 0.03]]
    assert [line.get_ydata()[0] for line in intervals] == [0, 1, 2]
    bands = [band.get_paths()[0].get_extents() for band in ax.collections[:4]]
    assert [(band.x0, band.x1) for band in bands] == [(-0.02, 0.02), (-0.05, 0.05), (-0.02, 0.02), (-0.02, 0.02)]
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 0.6] == [1.5, 2.5]  # between claims


def test_a_forests_verdicts_differ_in_colour_and_in_marker(ax):
    plots.forest(ax, lines_of_verdicts())
    points = [line for line in ax.lines if line.get_marker() != "None" and len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in points] == [0.1, -0.3, 0.01]
    assert len({line.get_marker() for line in points}) == len({line.get_color() for line in points}) == 3
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["supported", "not supported", "undecided", "not worth naming"]


def test_a_forest_of_forty_lines_can_be_read():
    import matplotlib.pyplot as plt

    table = pandas.concat([lines_of_verdicts()] * 10, ignore_index=True)
    table["label"] = [f"line {number}" for number in range(40)]
    fig, ax = plt.subplots(figsize=(10, 11))
    plots.forest(ax, table)
    fig.tight_layout()
    fig.canvas.draw()
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
        inside = [box for box in boxes if ax.bbox.x0 - 300 < box.x0 < ax.bbox.x1 + 30]
        assert not [1 for one, other in zip(inside, inside[1:], strict=False) if one.overlaps(other)]
    plt.close(fig)


def test_a_forest_where_nothing_was_measured_has_its_labels(ax):
    plots.forest(ax, lines_of_verdicts().iloc[3:])
    assert names(ax.yaxis) == ["d"]
