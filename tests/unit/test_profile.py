"""Profiles: what loads, what is refused and in which words; the machine."""

import copy

import pytest
import yaml

from anita_utils import AnitaError
from anita_utils.profile import PROFILES, Machine, Profile, detect_machine, load_profile

CPU = yaml.safe_load((PROFILES / "cpu.yaml").read_text("utf-8"))
LAPTOP = {"cpu": "some", "cores": 2, "memory_bytes": 8 * 2**30, "system": "Linux", "python": "3.11", "versions": {}}


def machine(capability=None, bf16=True):
    """A laptop, or one with a GPU of that capability; bf16: whether the laptop's CPU has instructions for it."""
    gpu = {"gpu": "GPU", "gpu_memory_bytes": 2**34, "gpu_capability": capability} if capability else {}
    return Machine(**LAPTOP, **gpu, bf16=bf16 if capability is None else capability >= (8, 0), avx512_bf16=False)


def refusal(tmp_path, change):
    """The message that the cpu profile earns after `change`."""
    values = copy.deepcopy(CPU)
    change(values)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    with pytest.raises(AnitaError) as error:
        load_profile(file)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_profile_loads_and_is_called_like_its_file(file):
    profile = load_profile(file.stem)
    assert profile.name == file.stem
    assert set(profile.order) == {"sft", "italian", "dpo"}


def test_cpu_profile_is_written_out_with_a_reason_for_each_value():
    lines = (PROFILES / "cpu.yaml").read_text("utf-8").splitlines()
    values = [line for line in lines if not line.startswith("#") and line.partition(":")[2].partition("#")[0].strip()]
    unexplained = [line for line in values if " # " not in line and line != "name: cpu"]
    assert len(values) > 50
    assert unexplained == []


def test_every_field_is_described():
    def fields(schema):
        for section in [schema, *schema.get("$defs", {}).values()]:
            yield from section.get("properties", {}).items()

    assert [name for name, field in fields(Profile.model_json_schema()) if "description" not in field] == []


def test_unknown_profile_names_the_choice():
    with pytest.raises(AnitaError, match=r"no profile 'gpu': choose cpu"):
        load_profile("gpu")


def test_unknown_key_is_named_with_the_nearest(tmp_path):
    message = refusal(tmp_path, lambda v: v["stages"]["sft"]["lora"].update(alfa=1))
    assert "stages.sft.lora.alfa: unknown key: did you mean 'alpha'?" in message
    assert "'learning_rate'?" in refusal(tmp_path, lambda v: v["stages"]["dpo"].update(learning_rat=1))
    assert "known here: name, model" in refusal(tmp_path, lambda v: v.update(zzz=1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v["stages"]["sft"].update(batch_size="many"), "stages.sft.batch_size: 'many' will not do"),
        (lambda v: v["stages"]["sft"].update(learning_rate=-1), "stages.sft.learning_rate: -1 will not do"),
        (lambda v: v.update(precision="fp8"), "precision: 'fp8' will not do"),
        (lambda v: v["model"].pop("base"), "model.base: missing"),
        (lambda v: v.update(order=["sft", "rlhf"]), "order: 'rlhf' has no settings"),
        (lambda v: v.update(order=["sft", "sft"]), "order: a stage stands in it twice"),
        (lambda v: v["stages"]["dpo"].pop("beta"), "stages.dpo.beta: missing"),
        (lambda v: v["stages"]["sft"].update(beta=0.1), "stages.sft.beta: only dpo has one"),
    ],
)
def test_wrong_values_are_named_with_their_key(tmp_path, change, expected):
    assert expected in refusal(tmp_path, change)


def test_broken_yaml_is_one_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: [cpu\nmodel: {", "utf-8")
    with pytest.raises(AnitaError, match="mine.yaml is not YAML") as error:
        load_profile(file)
    assert "\n" not in str(error.value)


def test_impossible_pairs_are_refused():
    def profile(precision, dtype="float32"):
        return Profile.model_validate(CPU | {"precision": precision, "model": CPU["model"] | {"dtype": dtype}})

    with pytest.raises(AnitaError, match="precision: fp16 on a CPU"):
        profile("fp16").check(machine())
    with pytest.raises(AnitaError, match="model.dtype: float16 on a CPU"):
        profile("fp32", "float16").check(machine())
    with pytest.raises(AnitaError, match=r"precision: GPU \(capability 7.5\) has no bf16: set it to fp16"):
        profile("bf16").check(machine((7, 5)))
    with pytest.raises(AnitaError, match="model.dtype: .* has no bfloat16: set it to float16"):
        profile("fp16", "bfloat16").check(machine((7, 5)))
    profile("bf16", "bfloat16").check(machine((8, 0)))
    profile("fp16").check(machine((7, 5)))
    profile("bf16").check(machine())
    with pytest.raises(AnitaError, match="precision: bf16 on a CPU without bf16 instructions .* set it to fp32"):
        profile("bf16").check(machine(bf16=False))


def test_detected_machine_counts_only_its_own_cores(monkeypatch):
    import os

    import torch

    found = detect_machine()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.versions["torch"] == torch.__version__
    assert Machine.model_validate_json(found.model_dump_json()) == found


def test_a_t4_has_no_bf16_whatever_torch_says(monkeypatch):
    import torch

    class Properties:
        total_memory = 16 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: Properties)
    found = detect_machine()
    assert found.gpu == "Tesla T4"
    assert not found.bf16
