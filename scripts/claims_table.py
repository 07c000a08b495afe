"""Fills the README's table of claims from the kept results of the ablation.

python scripts/claims_table.py            # writes the table; after `anita ablate --keep`
python scripts/claims_table.py --check    # exit code 1 where the README does not say what the results say

A verdict is read off the results or left to the lesson; none is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas
import yaml

from anita_utils.arms import load_ablation
from anita_utils.effects import claims_table
from anita_utils.kept import kept_file, read_kept

ROOT = Path(__file__).resolve().parents[1]
README, ROWS = ROOT / "README.md", Path(__file__).with_name("claims.yaml")
BEGIN, END = "<!-- claims: written by scripts/claims_table.py -->", "<!-- end of claims -->"
HEAD = "| | claim | lesson | measure | in the small world | on the 8B: not run; it takes |\n|---|---|---|---|---|---|\n"


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
            parts.append(f"{name.replace('_', ' ')}, {found.measure.replace('_', ' ')}: **{said}**")
    return "<br>".join(parts)


def table() -> str:
    """The table in Markdown, with a line above it."""
    judged, said = verdicts()
    lines = [
        f"| {row['kind']} | {row['says']} | {', '.join(row['lessons'])} | {row['measure']} | {cell(row, judged)} "
        f"| {row['on_8b']} |\n"
        for row in yaml.safe_load(ROWS.read_text("utf-8"))
    ]
    return f"{said}\n\n{HEAD}{''.join(lines)}"


def filled(text: str) -> str:
    """The README with the table of today between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def main() -> int:
    text = README.read_text("utf-8")
    new = filled(text)
    if "--check" in sys.argv[1:]:
        return int(new != text)
    README.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
