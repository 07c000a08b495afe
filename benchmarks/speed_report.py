"""What `engine_speed.py` found, as a table with targets and as a figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

TARGETS = {  # ratio: (arms, at least); NF4's is a slowing down, at most
    "sft": {"authors": 3.0, "bare": 0.8}, "italian": {"authors": 3.0, "bare": 0.8}, "dpo": {"authors": 2.0},
}  # fmt: skip
MOST_NF4 = 1.35


def verdicts(found: dict) -> Iterator[tuple[str, float, str, bool]]:
    """Each target: what, the ratio found, what was asked, and whether it is met."""
    for stage, targets in TARGETS.items():
        for arm, least in targets.items():
            value = found["stages"][stage]["course_to"][arm]
            yield f"{stage}: course ÷ {arm}", value, f"at least {least:g}", value >= least
    slower = round(1 / found["stages"]["sft"]["course_to"]["unquantised"], 3)
    yield "sft: time in NF4 ÷ unquantised", slower, f"at most {MOST_NF4:g}", slower <= MOST_NF4


def markdown(found: dict) -> str:
    """The results as people read them."""
    machine, lines = found["machine"], ["# Speed of the training engine", ""]
    lines += [
        f"{machine['cpu']}, {found['threads']} threads, torch {machine['versions']['torch']}, trl "
        f"{machine['versions']['trl']}; medians of {found['rounds']} interleaved rounds over about {found['tokens']:,} "
        f"tokens; `python benchmarks/engine_speed.py`, {found['when']}, commit {found['commit'] or 'not known'}, in "
        f"{found['seconds']:.0f} s.",
        "", "| useful tokens/s | " + " | ".join(found["stages"]) + " |", "|---|" + "---:|" * len(found["stages"]),
    ]  # fmt: skip
    arms = dict.fromkeys(arm for stage in found["stages"].values() for arm in stage["tokens_per_second"])
    for arm in arms:
        cells = [stage["tokens_per_second"].get(arm) for stage in found["stages"].values()]
        lines.append(f"| {arm} | " + " | ".join("" if cell is None else f"{cell:,.0f}" for cell in cells) + " |")
    lines += ["", "| target | found | asked | |", "|---|---:|---|---|"]
    lines += [f"| {what} | {value:.2f} | {asked} | {'met' if met else 'missed'} |"
              for what, value, asked, met in verdicts(found)]  # fmt: skip
    lines += ["", "| peak beyond model and adapter, MB | measured | planned | length |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {peak['measured'] / 1e6:,.0f} | {peak['planned'] / 1e6:,.0f} | {peak['length']} |"
              for name, peak in found["peaks"].items()]  # fmt: skip
    for what, costs in found["growth"].items():
        lines += ["", f"{what.replace('_', ' ')}: " + ", ".join(f"{name}: {cost:.3f}" for name, cost in costs.items())]
    return "\n".join(lines) + "\n"


def figure(found: dict, file: Path) -> None:
    """Bars of the arms' speeds by stage, and the cost of 1,000 tokens by amount and by length."""
    import matplotlib.pyplot as plt

    from anita_utils.plots import style

    style()
    colours = ["#0072b2", "#d55e00", "#e69f00", "#009e73", "#7f7f7f", "#56b4e9", "#cc79a7", "#f0e442", "#882255"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), width_ratios=[3, 2], layout="constrained")
    arms = list(found["stages"]["sft"]["tokens_per_second"])
    for number, arm in enumerate(arms):
        for place, stage in enumerate(found["stages"].values()):
            if arm in stage["tokens_per_second"]:
                left.bar(place + 0.1 * (number - 4), stage["tokens_per_second"][arm], 0.09, color=colours[number],
                         label=arm if place == 0 else None)  # fmt: skip
    left.set_xticks(range(len(found["stages"])), found["stages"])
    left.set(ylabel="useful tokens a second", yscale="log")
    left.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for what, label in (("size", "tokens, 1 to 4 times"), ("length", "rows of 128 to 1,024")):
        costs = found["growth"][f"seconds_per_1000_tokens_by_{what}"]
        smallest = min(map(int, costs))
        right.plot([int(name) / smallest for name in costs], list(costs.values()), "o-", label=label)
    right.set(xlabel="times the smallest", ylabel="seconds per 1,000 tokens", ylim=(0, None), xscale="log")
    right.minorticks_off()
    right.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.legend(fontsize=8)
    fig.savefig(file, dpi=150)
