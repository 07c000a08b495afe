"""The figures of the lessons: numbers in, Axes out. Colour-blind readers can tell the colours apart (Okabe and Ito)."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas
    from matplotlib.axes import Axes


COLOURS = {"base": "#7f7f7f", "sft": "#0072b2", "italian": "#009e73", "dpo": "#d55e00"}
PARTS = {
    "base": "#7f7f7f", "adapter": "#0072b2", "gradients": "#56b4e9", "optimizer": "#009e73", "activations": "#d55e00",
    "logits": "#e69f00", "overhead": "#cc79a7",
}  # fmt: skip
LANGUAGES = {"en": "#0072b2", "it": "#009e73", "all": "#7f7f7f"}


def style() -> None:
    """Sets matplotlib's defaults for the lessons: small figures, light grid, no frame above and to the right."""
    import matplotlib.pyplot as plt

    look = {"figure.figsize": (7, 3.2), "figure.dpi": 100, "axes.grid": True, "grid.alpha": 0.3,
            "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "font.size": 10,
            "legend.frameon": False}  # fmt: skip
    plt.rcParams.update(look)


def training_curve(ax: Axes, history: list[dict], key: str = "loss", label: str | None = None, **line) -> Axes:
    """A logged figure of a training against its updates. history: the rows of `Stage.info["history"]`."""
    points = [(row["step"], row[key]) for row in history if key in row]
    ax.plot(*zip(*points, strict=True), label=label or key, **line)
    ax.set_xlabel("update")
    ax.set_ylabel(key)
    return ax


def stage_bars(ax: Axes, table: pandas.DataFrame, by: str = "metric") -> Axes:
    """Metric rows as bars with 95 % intervals: a group for each value of `by`, a bar for each stage in it."""
    groups = list(dict.fromkeys(table[by]))
    stages = [stage for stage in COLOURS if stage in set(table["stage"])]
    width, thin = 0.8 / len(stages), {"elinewidth": 0.8, "capsize": 2}
    for number, stage in enumerate(stages):
        rows = table[table["stage"] == stage]
        places = [groups.index(name) + (number - (len(stages) - 1) / 2) * width for name in rows[by]]
        errors = [rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]
        ax.bar(places, rows["value"], 0.9 * width, yerr=errors, color=COLOURS[stage], label=stage, error_kw=thin)
    ax.set_xticks(range(len(groups)), [str(name).replace("benchmark/", "").replace("_", " ") for name in groups])
    ax.legend(ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def difference_points(ax: Axes, table: pandas.DataFrame, by: str = "metric", zero: float = 0) -> Axes:
    """Differences (value, ci_low, ci_high) as points, a row each; filled where the interval misses `zero`."""
    rows = table.iloc[::-1].reset_index(drop=True)
    for place, row in rows.iterrows():
        clear = row["ci_low"] > zero or row["ci_high"] < zero
        ax.plot([row["ci_low"], row["ci_high"]], [place, place], color="#0072b2", linewidth=1.5)
        ax.plot(row["value"], place, "o", color="#0072b2", markerfacecolor="#0072b2" if clear else "white")
    ax.set_yticks(range(len(rows)), [str(name) for name in rows[by]])
    ax.axvline(zero, color="black", linewidth=0.8)
    return ax


def coloured_tokens(tokens: list[str], scored: list[bool]):
    """Tokens in a row as HTML: scored ones in colour, the others grey; spaces and line ends made visible."""
    from IPython.display import HTML

    spans = []
    for token, counted in zip(tokens, scored, strict=True):
        shown = escape(token.replace(" ", "·").replace("\n", "⏎"))
        look = "background:#bfe3d5;color:#000" if counted else "background:#e8e8e8;color:#555"
        spans.append(
            f'<span style="{look};padding:1px 3px;margin:1px;border-radius:3px;display:inline-block">{shown}</span>'
        )
    return HTML(f'<div style="font-family:monospace;line-height:1.9">{"".join(spans)}</div>')


TOKENS = {"padding": "#f2f2f2", "read": "#9ecae1", "scored": "#009e73"}


def gigabyte_bars(ax: Axes, table: pandas.DataFrame, limits: dict[str, float], colours: list[str]) -> Axes:
    """A bar for each row, a part for each column, its total at the end; a dotted line for each limit."""
    table.plot.barh(stacked=True, ax=ax, color=colours, width=0.6, legend=len(table.columns) > 1)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for place, total in enumerate(table.sum(axis=1)):
        ax.text(total + 1.5, place, f"{total:.1f}", va="center", fontsize=9, bbox=white)
    for name, gigabytes in limits.items():
        ax.axvline(gigabytes, color="black", linewidth=0.8, linestyle=":")
        ax.text(gigabytes, 1.01, name, transform=ax.get_xaxis_transform(), rotation=30, fontsize=8)
    ax.set_xlim(0, 1.1 * max(table.sum(axis=1).max(), *limits.values()))
    ax.set_xlabel("GB")
    return ax


def memory_bars(ax: Axes, plans: dict[str, dict[str, int]], limits: dict[str, float]) -> Axes:
    """A stacked bar, in GiB, for each plan (of `memory.bytes_by_part`); a line for what each GPU holds."""
    import pandas

    gigabyte_bars(ax, pandas.DataFrame(plans).T[list(PARTS)] / 2**30, limits, list(PARTS.values()))
    ax.set_xlabel("GiB")
    ax.legend(ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.45), fontsize=8, columnspacing=1)
    return ax


def interval_bars(ax: Axes, names, rows: pandas.DataFrame, colours) -> Axes:
    """Shares as bars with their 95 % intervals, the first row on top. rows: with value, ci_low and ci_high."""
    errors = [rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]
    ax.barh(names, rows["value"], xerr=errors, color=colours, capsize=2)
    ax.set(xlabel="share (line: 95 % interval)", xlim=(0, 1))
    ax.invert_yaxis()
    return ax


def share_map(ax: Axes, shares, columns: list[str], rows: list[str], label: str = "share") -> Axes:
    """Shares from 0 to 1 as a grid, the darker the larger. shares: of shape (rows, columns)."""
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def token_grid(ax: Axes, rows: list[list[int]]) -> Axes:
    """A batch as a grid, a line for each row of labels: padding, tokens that are read, tokens that are scored."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    from anita_utils.data import IGNORED

    grid = np.zeros((len(rows), max(map(len, rows))))
    for line, labels in zip(grid, rows, strict=True):
        line[: len(labels)] = np.where(np.array(labels) == IGNORED, 1, 2)
    colours = ListedColormap(list(TOKENS.values()))
    ax.imshow(grid, cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    for name, colour in TOKENS.items():
        ax.plot([], [], "s", color=colour, label=name)  # for a legend
    ax.set(xlabel="token", ylabel="row")
    ax.locator_params(integer=True)  # there is no row 2.5
    ax.grid(False)
    return ax


def token_bars(ax: Axes, tokens: list[str], scores: list[float], colour: str) -> Axes:
    """A bar for each token of an answer. scores: their log-probabilities."""
    ax.bar(range(len(tokens)), scores, color=colour)
    ax.set_xticks(
        range(len(tokens)), [token.replace("\n", "⏎") for token in tokens], rotation=30, ha="right", fontsize=8
    )
    ax.set_ylabel("log-probability")
    return ax


def named_points(ax: Axes, x, y, names: list, look: str, colour: str, label: str) -> Axes:
    """A line through points; the first of them bear these names."""
    ax.plot(x, y, look, color=colour, label=label)
    for name, *place in zip(names, x, y, strict=False):
        ax.annotate(f"{name}", place, (6, 4), textcoords="offset points", fontsize=8, color=colour)
    return ax


def points_by_kind(ax: Axes, table: pandas.DataFrame, x: str, y: str) -> Axes:
    """A point for each row, at its columns `x` and `y`, coloured by its column "kind"; black lines at zero."""
    for (kind, rows), colour in zip(table.groupby("kind"), PARTS.values(), strict=False):
        ax.plot(rows[x], rows[y], "o", markersize=4, color=colour, label=kind)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return ax


def training_curves(ax: Axes, history: list[dict], keys: list[str], colours: dict[str, str]) -> Axes:
    """Several logged figures such as "rewards/chosen" in one panel; colours: by the part after the slash."""
    for key in keys:
        group, _, name = key.partition("/")
        training_curve(ax, history, key, label=name, color=colours.get(name, "#0072b2"))
    if len(keys) > 1:
        ax.set_ylabel(group)
        ax.legend()
    return ax


def dotted(ax: Axes, values: Sequence[float], half: float = 0.45, **line) -> Axes:
    """A dotted line at each of the values, across the bars of groups 0, 1, 2, …: what guessing gets, what is stated."""
    places = range(len(values))
    ax.hlines(values, [n - half for n in places], [n + half for n in places], color="black", linestyle=":", **line)
    return ax


def offered_answers(ax: Axes, answers: list[str], scores: Sequence[float], right: int) -> Axes:
    """The scores of the answers offered to one question: the right one in green, the highest in a frame."""
    colours = [COLOURS["italian"] if number == right else "#bbbbbb" for number in range(len(answers))]
    frames = ["black" if score == max(scores) else "none" for score in scores]
    ax.barh(answers, scores, color=colours, edgecolor=frames)
    return ax


def whiskers(ax: Axes, places: Sequence[float], table: pandas.DataFrame, colour: str, line: str, label: str) -> Axes:
    """Figures joined by a line, each with its 95 % interval. table: the columns value, ci_low, ci_high."""
    errors = [table["value"] - table["ci_low"], table["ci_high"] - table["value"]]
    ax.errorbar(places, table["value"], errors, fmt=line, color=colour, capsize=2, label=label)
    return ax


def seed_points(ax: Axes, values: dict[str, Sequence[float]], reference: float) -> Axes:
    """A row for each name: a grey point for each seed, a blue mark at their mean; dotted, what to compare with."""
    for place, figures in enumerate(values.values()):
        ax.plot(figures, [place] * len(figures), "o", markersize=3, color="#bbbbbb")
        ax.plot(sum(figures) / len(figures), place, "|", markersize=11, markeredgewidth=2, color="#0072b2")
    ax.axvline(reference, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(values)), list(values))
    return ax


def stacked_gains(ax: Axes, gains: pandas.DataFrame, whole: Sequence[float]) -> Axes:
    """Two bars a row: what each part (a stage's column) gains alone, stacked; in black, what all gain together."""
    colours = [COLOURS[stage] for stage in gains]
    gains.add_suffix(" alone").plot.bar(stacked=True, ax=ax, color=colours, width=0.35, position=1.05, rot=0)
    ax.bar(range(len(gains)), whole, 0.35, align="edge", color="black", label="all three")
    ax.set_xlim(-0.6, len(gains) - 0.4)
    ax.axhline(0, color="black", linewidth=0.8)
    return ax


def bands(ax: Axes, table: pandas.DataFrame) -> Axes:
    """Where a figure should fall, a band from `low` to `high`, and its `value`, a point: orange, if outside."""
    for place, row in enumerate(table.iloc[::-1].itertuples()):
        ax.plot([row.low, row.high], [place, place], color="#56b4e9", linewidth=5, alpha=0.5)
        ax.plot(row.value, place, "o", color="#0072b2" if row.low <= row.value <= row.high else "#d55e00")
    ax.set_yticks(range(len(table)), list(table.index[::-1]))
    return ax


VERDICTS = {
    "supported": {"marker": "o", "color": "#009e73"},
    "not supported": {"marker": "X", "color": "#d55e00"},
    "undecided": {"marker": "D", "color": "#6e6e6e", "markerfacecolor": "white"},
}


def forest(ax: Axes, table: pandas.DataFrame, linear: float = 0.05) -> Axes:
    """A row for each line of a table of verdicts: estimate and interval, colour and marker by verdict.

    table: as `effects.claims_table` gives it, and a column `label`. A line that was not measured has its label alone.
    linear: up to this effect either way the axis is linear; beyond, it is logarithmic, so that small effects can be
        told apart beside large ones.

    The band is what is not worth naming, `worth` either way; a thin line separates one claim from the next.
    """
    for place, row in enumerate(table.itertuples()):
        ax.fill_betweenx([place - 0.5, place + 0.5], -row.worth, row.worth, color="#cfe6f5", linewidth=0)
        for verdict, look in VERDICTS.items():
            if row.verdict.startswith(verdict):
                ax.plot([row.low, row.high], [place, place], color=look["color"], linewidth=1.6)
                ax.plot(row.estimate, place, linestyle="none", markersize=6, **look)
        if place and row.claim != table["claim"].iloc[place - 1]:
            ax.axhline(place - 0.5, color="#bbbbbb", linewidth=0.6)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xscale("symlog", linthresh=linear)
    ends = [0.02, 0.05, 0.2, 0.5, 1, 2]
    ticks = [*(-end for end in reversed(ends)), 0, *ends]
    reached = 1.1 * max([linear, *table["low"].abs().dropna(), *table["high"].abs().dropna()])
    ax.set_xticks(ticks, [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in ticks], fontsize=8)
    ax.set_xlim(-reached, reached)
    ax.minorticks_off()
    ax.set_yticks(range(len(table)), list(table["label"]), fontsize=8)
    ax.set_ylim(len(table) - 0.5, -0.5)  # the first row on top
    ax.grid(False, axis="y")
    for verdict, look in VERDICTS.items():  # for a legend, which has every verdict, found or not
        ax.plot([], [], linestyle="none", label=verdict, **look)
    ax.fill_between([], [], color="#cfe6f5", label="not worth naming")
    ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0), fontsize=9)
    return ax


def text_map(
    ax: Axes, table: pandas.DataFrame, texts: pandas.DataFrame, colours: str, low: float, high: float, size: int = 10
) -> Axes:
    """A table as coloured cells with a text in each; rows and columns are named as the table's."""
    import numpy as np

    ax.imshow(table, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for (row, column), text in np.ndenumerate(texts.to_numpy()):
        dark = abs(table.iloc[row, column]) > 0.6 * max(abs(low), abs(high))
        ax.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=size)
    ax.set_xticks(range(table.shape[1]), list(table.columns))
    ax.set_yticks(range(table.shape[0]), list(table.index))
    ax.grid(False)
    return ax


def stated_and_measured(ax: Axes, table: pandas.DataFrame, parts: dict[str, Sequence[float]]) -> Axes:
    """Figures with their 95 % intervals beside stated ones (dotted), and what each is the mean of, in grey."""
    for place, row in enumerate(table.itertuples()):
        ax.plot([place + 0.22] * len(parts[row.Index]), parts[row.Index], "o", markersize=3, color="#bbbbbb")
        ax.plot([place, place], [row.ci_low, row.ci_high], color="#0072b2")
        ax.plot(place, row.value, "o", color="#0072b2", markerfacecolor="#0072b2" if row.recovered else "white")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xticks(range(len(table)), list(table.index))
    return dotted(ax, table["stated"], half=0.3)


def lost_and_learnt(ax: Axes, names: Sequence[str], lost: Sequence[float], learnt: Sequence[float]) -> Axes:
    """A row for each name: to the left the share lost of what was right, to the right the one learnt of the wrong."""
    ax.barh(names, learnt, color="#0072b2", label="learnt, of what was wrong")
    ax.barh(names, [-share for share in lost], color="#d55e00", label="lost, of what was right")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlim(-1, 1)
    ax.invert_yaxis()
    return ax
