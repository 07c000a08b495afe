"""The figures of the lessons: numbers in, Axes out. Colour-blind readers can tell the colours apart (Okabe and Ito)."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    plt.rcParams.update(
        {"figure.figsize": (7, 3.2), "figure.dpi": 100, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
         "axes.spines.right": False, "axes.axisbelow": True, "font.size": 10, "legend.frameon": False}
    )  # fmt: skip


def training_curve(ax: Axes, history: list[dict], key: str = "loss", label: str | None = None, **line) -> Axes:
    """A logged figure of a training against its updates. history: the rows of `Stage.info["history"]`."""
    points = [(row["step"], row[key]) for row in history if key in row]
    ax.plot(*zip(*points, strict=True), label=label or key, **line)
    ax.set_xlabel("update")
    ax.set_ylabel(key)
    return ax


def stage_bars(ax: Axes, table: pandas.DataFrame, by: str = "metric") -> Axes:
    """Bars with 95 % intervals: a group for each value of `by`, a bar for each stage in it.

    table: rows of metrics.jsonl with the columns stage, value, ci_low, ci_high and `by`.
    """
    groups = list(dict.fromkeys(table[by]))
    stages = [stage for stage in COLOURS if stage in set(table["stage"])]
    width = 0.8 / len(stages)
    for number, stage in enumerate(stages):
        rows = table[table["stage"] == stage].set_index(by)
        places = [
            group + (number - (len(stages) - 1) / 2) * width for group, name in enumerate(groups) if name in rows.index
        ]
        rows = rows.loc[[name for name in groups if name in rows.index]]
        errors = [rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]
        ax.bar(places, rows["value"], width * 0.9, yerr=errors, color=COLOURS[stage], label=stage,
               error_kw={"elinewidth": 0.8, "capsize": 2})  # fmt: skip
    ax.set_xticks(range(len(groups)), [str(name).replace("benchmark/", "").replace("_", " ") for name in groups])
    ax.legend(ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def difference_points(ax: Axes, table: pandas.DataFrame, by: str = "metric") -> Axes:
    """Differences with their 95 % intervals as points on a line, a row each; where the interval misses zero, filled.

    table: rows with value, ci_low, ci_high and `by`.
    """
    rows = table.iloc[::-1].reset_index(drop=True)
    for place, row in rows.iterrows():
        clear = row["ci_low"] > 0 or row["ci_high"] < 0
        ax.plot([row["ci_low"], row["ci_high"]], [place, place], color="#0072b2", linewidth=1.5)
        ax.plot(row["value"], place, "o", color="#0072b2", markerfacecolor="#0072b2" if clear else "white")
    ax.set_yticks(range(len(rows)), [str(name) for name in rows[by]])
    ax.axvline(0, color="black", linewidth=0.8)
    return ax


def memory_bars(ax: Axes, plans: dict[str, dict[str, int]], limits: dict[str, float]) -> Axes:
    """A stacked bar for each plan, a part in each colour, and a line for what each GPU holds.

    plans: name to bytes by part, as `memory.bytes_by_part` gives them. limits: GPU to GiB.
    """
    ends = [0.0] * len(plans)
    for part, colour in PARTS.items():
        sizes = [parts[part] / 2**30 for parts in plans.values()]
        ax.barh(list(plans), sizes, 0.5, left=ends, color=colour, label=part)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for gpu, limit in limits.items():
        ax.axvline(limit, color="black", linewidth=0.8, linestyle=":")
        ax.text(limit, 1.01, gpu, transform=ax.get_xaxis_transform(), rotation=60, fontsize=8)
    ax.set_xlabel("GiB")
    ax.legend(ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.45), fontsize=8, columnspacing=1)
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
