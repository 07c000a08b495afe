"""What came of an ablation? ablation.csv, effects.csv and claims.csv in its run's folder, and all of it in ablation.md.

>>> run, _ = ablate(profile, ablation, seeds)
>>> write_results(run, ablation)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas

from anita_utils import shown
from anita_utils.ablation import effects
from anita_utils.ablation.arms import Ablation, load_ablation
from anita_utils.ablation.campaign import COSTS
from anita_utils.ablation.results import Kept, kept_file, read_kept
from anita_utils.evaluation.metrics import bounds, measure, words
from anita_utils.paths import write_text
from anita_utils.profile import Profile
from anita_utils.run import Run

IN_STEPS = ("share", "words", "bits")  # units of figures that can move by one item at least; others move freely
P_VALUES = {"p_for": "p for", "holm_for": "p for, Holm", "p_against": "p against", "holm_against": "p against, Holm"}
CORRECTED = "intervals over seeds and items, corrected as the p-values are (Holm)"
ANSWERS = {"for": "yes", "against": "no", "equivalent": "no, too little to be worth naming", "undecided": "open",
           "not measured": "not measured yet"}  # fmt: skip


def write_results(run: Run, ablation: Ablation) -> Path:
    """Writes ablation.csv, effects.csv, claims.csv and, with all of them for people, ablation.md; returns the last."""
    results = read_kept(run.folder / "results.jsonl")
    table = results_table(results)
    measured, factors = results.measured, ablation.factorial()
    found = effects.effects_table(measured, factors, ablation.measures if factors else [])
    claims = effects.claims_table(measured, ablation.claims)
    for name, frame in {"ablation": table, "effects": found, "claims": claims}.items():
        write_text(run.folder / f"{name}.csv", frame.to_csv(index=False))
    commit = run.info().get("commit") or "unknown"
    parts = [
        f"# Ablation, profile {run.profile.name}",
        f"Seeds {', '.join(map(str, results.seeds)) or 'none'}; commit {commit.replace('+', ' (with changes)')}; arms "
        f"from {shown(ablation.file)}, hash {ablation.digest}. In brackets: intervals.",
        "## Arms",
        "Means over seeds; 95 % intervals for other seeds.",
        _markdown(arms_overview(table, ablation).rename(columns=in_words)),
    ]
    if len(found):
        sheets = [effects.read_sheet(measured, name, list(factors.values())) for name in ablation.measures]
        control = effects.shuffled_control(sheets, effects.factorial(factors))
        parts += [
            "## Effects and interactions",
            f"The 2 × 2 × 2 of SFT, Italian text and DPO; {CORRECTED}, over the whole table. With the arms' labels "
            f"shuffled, something was found in {control:.0%} of 100 rounds.",
            _judged(found, ["measure", "effect", "estimate", "interval", "p", "p_holm"]),
        ]
    if len(claims):
        said = claims.assign(claim=[ablation.claims[name].says for name in claims["claim"]])
        columns = ["claim", "measure", "estimate", "interval", "worth", *P_VALUES.values(), "verdict"]
        parts += [
            "## Claims",
            f"In brackets {CORRECTED}, over each family of claims.",
            _judged(said.rename(columns=P_VALUES), columns),
        ]
    write_text(run.folder / "ablation.md", "\n\n".join(parts) + "\n")
    return run.folder / "ablation.md"


def results_table(results: Kept) -> pandas.DataFrame:
    """For each arm and measure: how many seeds, mean, 95 % interval of the mean, 99 % interval for one new seed, and
    whether it `tells` anything that a new seed falls into the latter. Intervals end where a share does, at 0 and 1.
    """
    lines = []
    keys = ["arm", "metric", "language", "split"]
    for key, group in results.frame().groupby(keys, sort=False, dropna=False):
        values = group["value"].to_numpy(float)
        line = dict(zip(keys, key, strict=True)) | {"seeds": len(values), "mean": values.mean()}
        line["tells"] = False
        if len(values) > 1:
            step = 1 / group["n"].min() if measure(key[1]).unit in IN_STEPS else 0.0
            ends = bounds(key[1])
            line["low"], line["high"] = effects.estimate(values, bounds=ends).interval()
            new = effects.prediction_interval(values, step, ends)
            line |= {"new_low": new[0], "new_high": new[1], "tells": effects.tells(new, ends)}
        lines.append(line)
    return pandas.DataFrame(lines, columns=[*keys, "seeds", "mean", "low", "high", "new_low", "new_high", "tells"])


def answer(judged: pandas.DataFrame, claim: str) -> str:
    """What the lines of a claim came to, in words: yes, no or open on each measure, with estimate and interval.

    judged: as `effects.claims_table` gives it.
    """
    parts = []
    for _, row in judged[judged["claim"] == claim].iterrows():
        said = f"{ANSWERS[effects.outcome(row)]} on {in_words(row['measure'])}"
        parts.append(said + (f" ({row['estimate']:+.3f} {_interval(row, '+')})" if row["seeds"] > 1 else ""))
    return "; ".join(parts)


def on_the_8b(profile: Profile, judged: pandas.DataFrame) -> list[str]:
    """For each claim and measure of `judged` the verdict on an 8B: of the profile's own arms, where its base is one and
    its results are kept with the course; else "not run".
    """
    name = profile.rehearsal_of or profile.name  # a rehearsal has no results of its own
    results = read_kept(kept_file(name))
    if "8B" not in profile.model.base or not results.lines:
        return ["not run"] * len(judged)
    claims = load_ablation(name).claims
    table = effects.claims_table(results.measured, claims).set_index(["claim", "measure"])
    verdicts = table["verdict"].where(table["seeds"] > 0, "not run").to_dict()
    return [verdicts.get(key, "not run") for key in judged[["claim", "measure"]].itertuples(index=False, name=None)]


def arms_overview(table: pandas.DataFrame, ablation: Ablation) -> pandas.DataFrame:
    """The arms, a row each, under the measures that the file of arms names, and what their training cost."""
    names = table[["metric", "language", "split"]].fillna("").agg(" ".join, axis=1).str.strip().str.removesuffix(" all")
    columns = [*(name.removesuffix(" all") for name in ablation.measures), *COSTS]
    lines = []
    for arm in table["arm"].unique():
        own = table[table["arm"] == arm].set_index(names[table["arm"] == arm])
        cells = {name: own.loc[name] for name in columns if name in own.index}
        shown_cells = {name: f"{_number(cell['mean'])} {_interval(cell)}".strip() for name, cell in cells.items()}
        lines.append({"arm": arm, "seeds": own["seeds"].iloc[0]} | shown_cells)
    return pandas.DataFrame(lines)


def in_words(name: str) -> str:
    """A measure's name in the file of arms, "metric language split", for people; "arm" and "seeds" as they are."""
    return name if name in ("arm", "seeds") else words(*name.split())


def _judged(table: pandas.DataFrame, columns: list[str]) -> str:
    measures = table["measure"].map(in_words)
    return _markdown(table.assign(measure=measures, interval=table.apply(_interval, axis=1))[columns])


def _number(value: float, sign: str = "") -> str:
    return "" if np.isnan(value) else f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign},.0f}"


def _interval(row: pandas.Series, sign: str = "") -> str:
    return "" if np.isnan(row["low"]) else f"[{_number(row['low'], sign)}, {_number(row['high'], sign)}]"


def _markdown(table: pandas.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns)]
    lines += [[_number(x) if isinstance(x, float) else str(x) for x in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
