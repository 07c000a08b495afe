"""A thousand random mistakes in the shipped profiles: each is one line that names file, key and remedy."""

import copy
import re
from typing import Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anita_utils import AnitaError
from anita_utils.machine import Machine
from anita_utils.memory import OPTIMIZERS
from anita_utils.profile import ORDERS, PROFILES, HubData, Optimizer, Profile, Section, Stage, parse_profile

SHIPPED = {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in PROFILES.glob("*.yaml")}
REMEDY = re.compile(r"\b(should|add|remove|did you mean|choose|set|drop|keep|describe|list|lower)\b")
MACHINE = {"cores": 2, "memory_bytes": 2**34, "avx512_bf16": False, "system": "", "python": "", "versions": {}}
LAPTOP = Machine(**MACHINE, cpu="a CPU", bf16=False)
T4 = Machine(**MACHINE, cpu="a CPU", bf16=False, gpu="T4", gpu_memory_bytes=2**34, gpu_capability=(7, 5))

BROKEN = {  # values that are of the wrong type or out of range for a field of each kind
    int: ["many", "", True, 0.5, -1, float("inf"), [1], {"a": 1}],
    float: ["fast", "", False, -0.1, float("inf"), float("nan"), [0.1], {"a": 1}],
    bool: ["perhaps", 7, -0.5, None, [True], {"a": True}],
    str: [None, 7, 0.5, True, ["cpu"], {"a": "cpu"}],
    list: [None, 7, True, {"a": "sft"}, [7], [None], [["sft"]]],
    dict: [None, "sft", 7, True, ["sft"], {"sft": None}],
    Literal: ["fp3", "", True, 0.5, -4, ["nf4"], {"a": "nf4"}],
    Section: [None, "sft", 7, True, ["sft"]],
}
HALVES = {"fp16": (LAPTOP,), "bf16": (LAPTOP, T4), "float16": (LAPTOP,), "bfloat16": (LAPTOP, T4)}


def on_one_corpus(stages):
    """With an SFT on a single corpus of one's own, so on a single language."""
    return stages | {"sft": stages["sft"] | {"data": "mine.jsonl"}}


PAIRS = [  # what no machine and no recipe can join: the change, and the key that is named
    (lambda values, stage: values["stages"][stage].update(row_length=8, max_length=9), "stages.{stage}.max_length"),
    (lambda values, stage: values["stages"]["dpo"].update(row_length=9, max_length=8), "stages.dpo.row_length"),
    (lambda values, stage: values["stages"]["dpo"].update(beta=None), "stages.dpo.beta"),
    (lambda values, stage: values["stages"][stage].update(beta=0.1), "stages.{stage}.beta"),
    (lambda values, stage: values["stages"][stage].update(data=["sft", "some/one"]), "stages.{stage}.data"),
    (lambda values, stage: values["stages"].pop(stage), "order"),
    (lambda values, stage: values.update(order=[stage, stage]), "order"),
    (lambda values, stage: values.update(order=[stage, "rlhf"]), "order"),
    (lambda values, stage: values.update(order="paper", stages=on_one_corpus(values["stages"])), "order"),
]


def takes_none(field):
    return type(None) in get_args(field.annotation)


def fields(section, values, path=()):
    """The path, the field and its kind, for every key that is written in a profile."""
    for name, field in section.model_fields.items():
        if name not in values:
            continue
        kind = get_args(field.annotation)[0] if takes_none(field) else field.annotation  # the X of X | None
        kind = get_origin(kind) or kind
        yield (*path, name), field, kind
        if kind is dict:
            inside = get_args(field.annotation)[-1]
            for key, inner in values[name].items() if inside in (Stage, HubData) else ():
                yield from fields(inside, inner, (*path, name, key))
        elif isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, values[name], (*path, name))


FIELDS = {name: list(fields(Profile, values)) for name, values in SHIPPED.items()}


def section_at(values, path):
    for key in path:
        values = values[key]
    return values


@st.composite
def corruptions(draw, name):
    """A profile with one mistake in it, the key that has to be named, and the machine it is tried on."""
    values, machine = copy.deepcopy(SHIPPED[name]), None
    sort = draw(st.sampled_from(["missing", "extra", "wrong", "pair", "machine"]))
    if sort == "missing":
        required = [path for path, field, _ in FIELDS[name] if field.is_required()]
        path = draw(st.sampled_from(required))
        del section_at(values, path[:-1])[path[-1]]
    elif sort == "extra":
        path = draw(st.sampled_from([path for path, _, _ in FIELDS[name]]))
        known = section_at(values, path[:-1])
        slip = st.builds(lambda at: path[-1][:at] + path[-1][at + 1 :], st.integers(0, len(path[-1]) - 1))
        keys = st.one_of(slip, st.text(max_size=20), st.integers(), st.none(), st.booleans(), st.dates())
        key = draw(keys.filter(lambda key: key not in known and key not in known_fields(path)))
        known[key] = draw(st.sampled_from([None, 1, "one", [], {}]))
        path = (*path[:-1], key if isinstance(key, str) else int(key) if isinstance(key, bool) else repr(key))
    elif sort == "wrong":
        path, field, kind = draw(st.sampled_from(FIELDS[name]))
        choices = BROKEN[Section if kind not in BROKEN else kind]
        value = draw(st.sampled_from(choices).filter(lambda value: value is not None or not takes_none(field)))
        section_at(values, path[:-1])[path[-1]] = value
    elif sort == "pair":
        stage = draw(st.sampled_from(["sft", "italian"]))
        change, key = draw(st.sampled_from(PAIRS))
        change(values, stage)
        path = key.format(stage=stage).split(".")
    else:
        path = draw(st.sampled_from([("precision",), ("model", "dtype")]))
        values["precision"], values["model"]["dtype"] = "fp32", "float32"
        asked = draw(st.sampled_from([half for half in HALVES if ("float" in half) == (path[-1] == "dtype")]))
        section_at(values, path[:-1])[path[-1]] = asked
        machine = draw(st.sampled_from(HALVES[asked]))
    return values, ".".join(map(str, path)), machine


def known_fields(path):
    """The keys that are known beside the last one of a path."""
    section = Profile
    for key in path[:-1]:  # the name of a stage or data set leads into a dict
        section = section.model_fields[key].annotation if isinstance(section, type) else get_args(section)[-1]
    return section.model_fields


@pytest.mark.parametrize("name", SHIPPED)
def test_every_mistake_is_one_line_with_file_key_and_remedy(name):
    @given(corruptions(name))
    @settings(max_examples=1000 // len(SHIPPED), derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def refused(corruption):
        values, key, machine = corruption
        with pytest.raises(AnitaError) as error:
            profile = parse_profile(values, "mine.yaml")
            if machine is not None:
                profile.check(machine)
        message = str(error.value)
        assert len(message.splitlines()) == 1 and len(message) < 600
        assert message.startswith(f"mine.yaml: {' '.join(key.split())}"), message
        assert REMEDY.search(message.removeprefix(f"mine.yaml: {key}")), message

    refused()


@pytest.mark.parametrize("name", SHIPPED)
def test_without_a_mistake_they_load(name):
    assert parse_profile(copy.deepcopy(SHIPPED[name]), "mine.yaml").name == name
    kinds = {kind if kind in BROKEN else Section for _, _, kind in FIELDS[name]}
    assert len(FIELDS[name]) > 60 and kinds == set(BROKEN)


def test_a_date_that_there_is_not_is_reported(tmp_path):
    from anita_utils.profile import load_profile

    file = tmp_path / "mine.yaml"
    file.write_text("seed: 2024-13-45\n", "utf-8")
    with pytest.raises(AnitaError, match="mine.yaml is not YAML .*: correct that line"):
        load_profile(file)


def test_the_planner_knows_every_optimizer_a_profile_may_name():
    assert set(get_args(Optimizer)) == set(OPTIMIZERS)
    assert set(ORDERS) == {"summary", "paper", "journal"}
