"""What came of each arm with each seed? The results of an ablation that are kept with the course, in data/ablation.

>>> kept = load_kept("cpu")
>>> kept.measured["sft", 42]                     # item by item, as `effects` takes it
>>> kept.said                                    # which seeds, which commits, in one sentence

A line for each arm and seed holds the hash of what was made and how it was measured: data, settings, seed, parent,
libraries, items. So it is known again on any machine, and need not be trained there. Scores are added up by cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas

from anita_utils import AnitaError, shown
from anita_utils.cache import digest
from anita_utils.evaluation.metrics import measure
from anita_utils.paths import data_dir, read_lines, write_text
from anita_utils.stats import Measurement, counted

NOTEBOOK = "ablation"  # the name of its rows in metrics.jsonl
DIGITS = 6
CURVE = ["update", "metric", "language", "split", "value", "n"]
FIGURE = ["stage", "metric", "language", "split", "value", "n"]


@dataclass(frozen=True)
class Kept:
    """The lines of a file of results, by arm and seed."""

    lines: dict[tuple[str, int], dict]
    weights: dict[str, dict[str, list[float]]]  # of the clusters, by the hash that lines name

    @cached_property
    def measured(self) -> dict[tuple[str, int], list[Measurement]]:
        """Item by item, or rather cluster by cluster, as `effects` takes it."""
        return {key: measurements(line, self.weights) for key, line in self.lines.items()}

    @cached_property
    def by_hash(self) -> dict[str, dict]:
        """By the hash of what was made: two arms of the same stages have one line."""
        return {line["made"]: line for line in self.lines.values()}

    def joined(self, other: Kept) -> Kept:
        """The same with another's lines, which take the place of older ones of the same arm and seed."""
        return Kept(self.lines | other.lines, self.weights | other.weights)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.lines})

    def seeds_of(self, *arms: str) -> list[int]:
        """The seeds that all these arms were made with."""
        return [seed for seed in self.seeds if all((arm, seed) in self.lines for arm in arms)]

    @property
    def said(self) -> str:
        """What the file holds, for people."""
        arms = {arm for arm, _ in self.lines}
        whole = self.seeds_of(*arms)
        commits = ", ".join(dict.fromkeys(line["commit"][:10] for line in self.lines.values()))
        seeds = ", ".join(map(str, self.seeds))
        some = "" if whole == self.seeds else f", all of them with {', '.join(map(str, whole)) or 'none'}"
        return f"{len(self.lines)} results: {len(arms)} arms, seeds {seeds}{some}; commit {commits}"

    def frame(self) -> pandas.DataFrame:
        """All figures, a row each: notebook, arm, seed, stage, metric, language, split, value, n."""
        rows = [row for line in self.lines.values() for row in figure_rows(line)]
        return pandas.DataFrame(rows, columns=["notebook", "arm", "seed", *FIGURE])

    def curve(self, arm: str) -> pandas.DataFrame:
        """What was measured while an arm's last stage trained: seed, update, metric, language, split, value, n."""
        lines = [(seed, line) for (name, seed), line in self.lines.items() if name == arm]
        rows = [[seed, *row] for seed, line in lines for row in line["curve"]]
        return pandas.DataFrame(rows, columns=["seed", *CURVE])


def kept_file(profile: str) -> Path:
    """The results of the profile of that name."""
    return data_dir() / "ablation" / f"{profile}.jsonl"


def load_kept(profile: str = "cpu", arms: Iterable[str] = ()) -> Kept:
    """The results kept with the course. AnitaError, one line, where there are none, or none of one of the arms."""
    file = kept_file(profile)
    kept = read_kept(file)
    if not kept.lines:
        raise AnitaError(f"no results of the ablation at {shown(file)}: make some with `anita ablate --all --keep`")
    for arm in arms:
        if not kept.seeds_of(arm):
            remedy = f"make it with `anita ablate --only {arm} --keep`"
            raise AnitaError(f"{shown(file)} holds no result of arm '{arm}': {remedy}")
    return kept


def read_kept(file: Path) -> Kept:
    """The results in a file; none where it is not there. AnitaError for a line that cannot be read."""
    lines: dict[tuple[str, int], dict] = {}
    weights: dict[str, dict] = {}
    for number, text in read_lines(file) if file.is_file() else []:
        try:
            line = json.loads(text)
            if "of" in line:
                weights[line["weights"]] = line["of"]
            else:
                lines[line["arm"], line["seed"]] = line
                measurements(line, weights)
        except (ValueError, KeyError, TypeError) as error:
            wrong = f"no result of an ablation ({error!r}): restore the file (git checkout)"
            raise AnitaError(f"{shown(file)}, line {number}: {wrong}") from error
    return Kept(lines, weights)


def write_kept(file: Path, kept: Kept) -> None:
    """Writes the file whole or not at all; first the weights that its lines name."""
    used = {line["weights"] for line in kept.lines.values()}
    head = [{"weights": key, "of": kept.weights[key]} for key in sorted(used)]
    rows = [*head, *kept.lines.values()]
    write_text(file, "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows))


def add(kept: Kept, line: dict, weights: dict) -> Kept:
    """The same with one line more, in place of an older one of the same arm and seed."""
    return kept.joined(Kept({(line["arm"], line["seed"]): line}, {line["weights"]: weights}))


def make_line(place: dict[str, Any], figures: list[dict], measured: list[Measurement], curve: Iterable[dict]):
    """A line and the weights of its clusters. place: whatever says where it comes from; figures: with FIGURE's keys."""
    scores, weights = {}, {}
    for m in counted(measured):
        if m.bins or "ablation" not in measure(m.metric).shown:
            continue
        name = " ".join(filter(None, m.name))
        sums, weighed, _ = m.totals()
        scores[name], weights[name] = [[short(value) for value in values] for values in (sums, weighed)]
    line = place | {
        "figures": [[short(row[key]) for key in FIGURE] for row in figures],
        "curve": [[short(row[key]) for key in CURVE] for row in curve],
        "weights": digest(weights),
        "scores": scores,
    }
    return line, weights


def short(value: Any) -> Any:
    """A number in six digits at most, whole ones without a point; anything else as it is."""
    if value is None or isinstance(value, str):
        return value
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def figure_rows(line: dict) -> list[dict]:
    """The figures of a line as metric rows."""
    own = {"notebook": NOTEBOOK, "arm": line["arm"], "seed": line["seed"]}
    return [own | dict(zip(FIGURE, figure, strict=True)) for figure in line["figures"]]


def measurements(line: dict, weights: dict) -> list[Measurement]:
    """The measurements behind a line, an item a cluster."""
    found = []
    for name, scores in line["scores"].items():
        metric, language, split = (name.split() + [None])[:3]
        weighed = weights[line["weights"]][name]
        clusters = [f"{number:04}" for number in range(len(scores))]  # in their order by name
        found.append(Measurement(metric, language, split, [float(s) for s in scores], clusters, weighed))
    return found
