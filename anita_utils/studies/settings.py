"""Where do settings come from? The authors' at their first upload, in their last script, and ours, side by side.

>>> settings_table("h100").loc[("sft", "learning_rate"), LAST]
value               2e-4
source    script ad85742
Name: (sft, learning_rate), dtype: object
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import yaml

from anita_utils.paths import data_dir
from anita_utils.profile import Profile, load_profile

FIRST, LAST = "authors at first upload", "authors' last script"
UNKNOWN = "not confirmed"
# What a profile has no key for, because the course settles it in one place: value and source.
FIXED = {
    "starts_from": ("the merged model of the stage before", "ours: training.find_stage"),
    "data_on_the_card": ("see data", "ours: the course has no card"),
    "text_form": ("<|begin_of_text|>{text}<|end_of_text|>", "ours: data.encode_text; plain text is no turn of a chat"),
    "lora.bias": ("none", "ours, as the authors: training.lora_config"),
    "lora_seed": ("the run's seed", "ours: one seed draws everything"),
    "prompt_length": ("no limit of its own", "ours: TRL 1.16 has none, max_length alone cuts"),
    "test_split": ("none", "ours: the benchmarks are held out instead"),
    "system_prompt": ("none", "ours: the lessons ask plainly; the authors' has a doubled article"),
    "sampling": ("greedy", "ours: the same answer each time, so that before and after can be compared"),
}
# Parameters whose key in a profile is not under their stage.
ELSEWHERE = {
    "quantisation.load_in_4bit": "quantisation.load_in_4bit",
    "precision": "precision",
    "seed": "seed",
    "max_new_tokens": "evaluation.max_new_tokens",
}


def comments(file: str | Path) -> dict[str, str]:
    """What a profile's file says about each of its values: {"stages.sft.lora.r": "script f5919e2, …", …}, or "".

    A comment begins on the line of its value and goes on in the lines below, as long as they begin in the same column.
    """
    lines = Path(file).read_text("utf-8").splitlines()
    found = {}
    for key, node in _values(yaml.compose("\n".join(lines))):
        line = node.end_mark.line
        start = lines[line].find("#", node.end_mark.column)
        parts = [lines[line][start:]] if start >= 0 else []
        for below in lines[line + 1 :]:
            if not parts or below[:start].strip() or not below[start:].startswith("#"):
                break
            parts.append(below[start:])
        found[key] = " ".join(part.removeprefix("#").strip() for part in parts)
    return found


def _values(node: yaml.MappingNode, path: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """The values of a mapping, however deep, with their keys joined by points."""
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else key.value
        if isinstance(value, yaml.MappingNode):
            yield from _values(value, name)
        else:
            yield name, value


def settings_table(profile: str | Path | Profile) -> pandas.DataFrame:
    """The authors' settings and those of a profile, or its name or file: three columns, each with value and source.

    What the authors' sources do not state reads "not confirmed"; what we conclude from them is marked "(inferred)".
    """
    facts = pandas.read_csv(data_dir() / "paper" / "hyperparameters.csv", dtype=str, keep_default_na=False)
    facts["value"] = facts["value"].where(facts.certainty != "inferred", facts["value"] + " (inferred)")
    facts["value"] = facts["value"].where(facts.certainty != UNKNOWN, UNKNOWN)
    loaded = profile if isinstance(profile, Profile) else load_profile(profile)
    said = comments(loaded.file) if loaded.file else {}
    ours = f"ours ({loaded.file.stem if loaded.file else loaded.name})"
    rows = {}
    for (stage, parameter), pair in facts.groupby(["stage", "parameter"], sort=False):
        row = pair.set_index("column")[["value", "source"]]
        value, source = _ours(loaded, said, stage, parameter)
        rows[stage, parameter] = [*row.loc[FIRST], *row.loc[LAST], value, source]
    columns = pandas.MultiIndex.from_product([[FIRST, LAST, ours], ["value", "source"]])
    index = pandas.MultiIndex.from_tuples(rows, names=["stage", "parameter"])
    return pandas.DataFrame(list(rows.values()), index, columns)


def _ours(profile: Profile, said: dict[str, str], stage: str, parameter: str) -> tuple[str, str]:
    """The profile's value for one of the authors' parameters, and its source."""
    first = profile.order[0] == stage
    if parameter in FIXED and not (parameter == "starts_from" and first):
        return FIXED[parameter]
    if stage != "all" and stage not in profile.stages:
        return "no such stage", "ours: left out of this profile"
    key = "model.base" if parameter == "starts_from" else ELSEWHERE.get(parameter, f"stages.{stage}.{parameter}")
    value: Any = profile.model_dump()
    for part in key.split("."):
        value = value[part]
    return _worded(value), said.get(key) or "ours: the profile gives no source"


def _worded(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item).removesuffix("_proj") for item in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float) and 0 < value < 0.001:
        digits, exponent = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"  # 2e-4, as the authors' are written
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown(table: pandas.DataFrame) -> str:
    """The table for a README: each cell a value with its source in small print."""
    names = list(dict.fromkeys(table.columns.get_level_values(0)))
    lines = [["stage", "parameter", *names], ["---"] * (2 + len(names))]
    for (stage, parameter), row in table.iterrows():
        cells = [f"{row[name, 'value']}<br><sub>{row[name, 'source']}</sub>" for name in names]
        safe = [cell.replace("|", "\\|").replace("<\\|", "&lt;\\|") for cell in cells]  # of <|eot_id|> and the like
        lines.append([stage, f"`{parameter}`", *safe])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
