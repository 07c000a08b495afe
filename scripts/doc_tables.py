"""Fills the tables of README.md and docs/ from what was measured, so that no figure there is written by hand.

python scripts/doc_tables.py            # writes them; after a new run or `anita ablate --keep`
python scripts/doc_tables.py --check    # exit code 1 where a page does not say what the results say

The results are those of the run that `tests/notebooks/expected.csv` was made from, with which every test run is
compared; profiles and their memory come from the profiles and the planner, settings from data/paper, verdicts on
claims from `data/ablation/`. A claim that no arm is about is left to its lesson.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import yaml

from anita_utils.ablation.arms import load_ablation
from anita_utils.ablation.effects import claims_table, find
from anita_utils.ablation.results import kept_file, read_kept
from anita_utils.evaluation import metrics
from anita_utils.memory import GIB, bytes_by_part, job_of
from anita_utils.profile import PROFILES, load_profile
from anita_utils.studies.settings import markdown, settings_table

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_name("claims.yaml")
EXPECTED = ROOT / "tests" / "notebooks" / "expected.csv"
HEAD = "| | claim | lesson | measure | in the small world | on the 8B: not run; it takes |\n|---|---|---|---|---|---|\n"

STAGES = ["base", "sft", "italian", "dpo"]
MEASURES = [
    ("benchmark/mean", "en", ""),
    ("benchmark/mean", "it", ""),
    ("chat/accuracy", "en", "new_kinds"),
    ("chat/accuracy_in_language", "en", "unseen_as_chat"),
    ("language_fidelity", "it", ""),
    ("chat/accuracy_in_language", "it", "adapted"),
    ("chat/accuracy", "it", "adapted"),
    ("chat/accuracy_in_language", "it", "never_in_italian"),
    ("chat/accuracy", "it", "never_in_italian"),
    ("minimal_pairs", "en", ""),
    ("minimal_pairs", "it", ""),
    ("perplexity", "it", ""),
    ("refusal/harmful", "all", "held_out_wordings"),
    ("refusal/harmless", "all", "held_out_wordings"),
]
SHOWN = {metrics.words(*measure): measure for measure in MEASURES}
ON_GPU = {"cpu": False, "laptop": False, "colab-t4-1b": True, "colab-t4": True, "h100": True}


def results_table() -> str:
    """What each stage made of the model, in Markdown: shares in per cent."""
    found = pandas.read_csv(EXPECTED, keep_default_na=False)
    found = found[found["arm"] == "recipe"]  # lesson 06 measures another one too
    found = found.drop_duplicates(["stage", "metric", "language", "split"], keep="last")
    values = found.set_index(["metric", "language", "split", "stage"])["value"]
    lines = [f"| | {' | '.join(STAGES)} |\n|---|{'---:|' * len(STAGES)}\n"]
    for name, measure in SHOWN.items():
        share = metrics.measure(measure[0]).unit == "share"
        cells = [f"{values[(*measure, stage)] * (100 if share else 1):.{0 if share else 1}f}" for stage in STAGES]
        lines.append(f"| {name}{', %' if share else ''} | {' | '.join(cells)} |\n")
    return "".join(lines)


def profiles_table() -> str:
    """The profiles in Markdown: the machine in the profile's own first words, its model, the planner's memory."""
    lines = ["| profile | for | model | training, GiB | measuring, GiB |\n|---|---|---|---:|---:|\n"]
    for name, on_gpu in ON_GPU.items():
        profile = load_profile(name)
        first = (PROFILES / f"{name}.yaml").read_text("utf-8").splitlines()[0].removeprefix("# ")
        planned = [
            bytes_by_part(job_of(profile, stage), on_gpu)["total"] / GIB for stage in [*STAGES[1:], "evaluation"]
        ]
        model = profile.model.base.split("/")[-1]
        lines.append(f"| `{name}` | {first.split(': ')[0]} | {model} | {max(planned[:-1]):.1f} | {planned[-1]:.1f} |\n")
    return "".join(lines)


def verdicts() -> tuple[pandas.DataFrame, str]:
    """The verdict on each claim and measure of the shipped arms, and what results they rest on."""
    results = read_kept(kept_file("cpu"))
    said = f"Verdicts from {results.said}." if results.lines else "The arms of lessons 06 and 09 have not been run yet."
    return claims_table(results.measured, load_ablation("cpu").claims).set_index("claim"), said


def cell(row: dict, judged: pandas.DataFrame) -> str:
    """What the results say of a row; where no arm is about it, which lesson does."""
    if "claims" not in row:
        return f"lesson {row['lessons'][-1]} says"
    parts = []
    for name in row["claims"]:
        for found in judged.loc[[name]].itertuples():
            said = "not run yet" if found.seeds == 0 else found.verdict
            parts.append(f"{name.replace('_', ' ')}, {metrics.words(*found.measure.split())}: **{said}**")
    return "<br>".join(parts)


def verdicts_table() -> str:
    """The claims in Markdown, with a line above them."""
    judged, said = verdicts()
    lines = [
        f"| {row['kind']} | {row['says']} | {', '.join(row['lessons'])} | {row['measure']} | {cell(row, judged)} "
        f"| {row['on_8b']} |\n"
        for row in yaml.safe_load(ROWS.read_text("utf-8"))
    ]
    return f"{said}\n\n{HEAD}{''.join(lines)}"


def moved(before: float, after: float) -> str:
    """What became of a figure, in words: it falls, rises or stays."""
    old, new = f"{before:.3f}", f"{after:.3f}"
    if old == new:
        return f"stays at {old}"
    return f"{'falls' if after < before else 'rises'} from {old} to {new}"


def loss_sentence() -> str:
    """Whether facts are lost, over all kept seeds: Italian questions answered right in either language."""
    results = read_kept(kept_file("cpu"))
    seeds = results.seeds_of("base", "summary")
    parts = []
    for words, split in {"read in Italian": "adapted", "read in English only": "never_in_italian"}.items():
        base, recipe = (
            np.mean([find(results.measured[arm, seed], f"chat/accuracy it {split}")[0].value for seed in seeds])
            for arm in ("base", "summary")
        )
        parts.append(f"{moved(base, recipe)} on facts {words}")
    return (
        f"Over {len(seeds)} seeds, from the base to the end of the recipe, the share of Italian questions answered\n"
        f"right in either language {' and '.join(parts)}.\n"
    )


def table_of_settings() -> str:
    """The authors' settings beside ours, in Markdown."""
    return markdown(settings_table("h100"))


# Each page with its tables, by the name that their marks have
PAGES = {
    "README.md": {"results": results_table, "loss": loss_sentence},
    "docs/profiles.md": {"profiles": profiles_table},
    "docs/claims.md": {"claims": verdicts_table},
    "docs/settings.md": {"settings": table_of_settings},
}


def marks(name: str) -> tuple[str, str]:
    """What is before and after a table."""
    return f"<!-- {name}: written by scripts/doc_tables.py -->", f"<!-- end of {name} -->"


def filled(page: str, text: str) -> str:
    """The text of a page with today's tables between their marks."""
    for name, table in PAGES[page].items():
        begin, end = marks(name)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{table()}\n{end}{after}"
    return text


def main() -> int:
    old = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
    new = {page: filled(page, text) for page, text in old.items()}
    if "--check" in sys.argv[1:]:
        return int(new != old)
    for page, text in new.items():
        (ROOT / page).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
