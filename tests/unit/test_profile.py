"""Profiles: what loads, what is refused and in which words, what is changed under a dotted key."""

import copy
import inspect
import re

import pytest
import yaml

from anita_utils import AnitaError
from anita_utils.machine import Machine
from anita_utils.profile import PROFILES, HubData, Lora, Profile, Quantisation, Stage, load_profile, override
from anita_utils.studies.settings import comments

CPU = yaml.safe_load((PROFILES / "cpu.yaml").read_text("utf-8"))
HUB_DATA = {"revision": None, "split": "train", "licence": "MIT", "sample": None}
COMMITS = "f5919e2|37c0e1a|ad85742|ffbb396"
SOURCE = re.compile(rf"\b(paper|journal|card|HF#1|repo|ours|not confirmed|unpinned|script ({COMMITS}))\b")
REVISIONS = {  # all that are known; any other must be null
    "meta-llama/Meta-Llama-3-8B-Instruct": "5f0b02c75b57c5855da9ae460ce51323ea669d8a",
    "meta-llama/Llama-3.2-1B-Instruct": "9213176726f574b556790deb65791e0c5aa438b6",
}
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


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_value_is_written_out_with_its_source(file):
    said = comments(file)
    assert len(said) > 60
    assert [key for key, comment in said.items() if not SOURCE.search(comment)] == []
    # "ours" alone is no reason, and a script is named by a commit that there is
    assert [key for key, comment in said.items() if re.fullmatch(r"ours\W*", comment)] == []
    nameless = re.compile(rf"(?<!loading )\bscripts?\b(?! ({COMMITS}))")
    assert [key for key, comment in said.items() if nameless.search(comment)] == []
    hashes = {found for comment in said.values() for found in re.findall(r"\b[0-9a-f]{7}\b", comment)}
    assert hashes <= set(COMMITS.split("|"))
    # nothing is left to a default that no comment explains; without `samples` all rows are taken
    written = yaml.safe_load(file.read_text("utf-8"))
    for stage in written["stages"].values():
        assert set(Stage.model_fields) - {"beta", "samples"} <= set(stage)
        assert set(Lora.model_fields) == set(stage["lora"])
    assert all(set(HubData.model_fields) == set(data) for data in written.get("datasets", {}).values())


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_only_known_revisions_are_pinned(file):
    profile, said = load_profile(file.stem), comments(file)
    assert profile.model.revision == REVISIONS.get(profile.model.base)
    for name, data in profile.datasets.items():
        assert data.revision is None and "unpinned" in said[f"datasets.{name}.revision"]
    if "/" in profile.model.base and profile.model.revision is None:
        assert "unpinned" in said["model.revision"]


@pytest.mark.parametrize("name", ["cpu", "laptop", "laptop-hub", "colab-t4-1b", "colab-t4", "h100"])
def test_what_no_source_states_is_never_given_as_the_authors(name):
    said = comments(PROFILES / f"{name}.yaml")
    unknown = ["lora.use_rslora", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"]
    unknown += ["warmup_steps", "weight_decay", "lr_scheduler_type", "optim", "max_length", "row_length"]
    for key in unknown:
        assert re.match(r"ours.*not confirmed", said[f"stages.italian.{key}"]), key
    assert "inferred" in said["stages.italian.learning_rate"]


def test_profiles_fit_their_machines():
    t4, large, laptop = machine((7, 5)), machine((9, 0)), machine(bf16=False)
    for name, fits in (("colab-t4-1b", t4), ("colab-t4", t4), ("h100", large), ("laptop", laptop), ("cpu", laptop)):
        load_profile(name).check(fits)
    with pytest.raises(AnitaError, match=r"h100\.yaml: precision: GPU .* has no bf16: set it to fp16"):
        load_profile("h100").check(t4)
    with pytest.raises(AnitaError, match="fp16 on a CPU"):
        load_profile("colab-t4").check(laptop)


def test_the_sizes_the_machines_were_measured_for():
    t4, large = load_profile("colab-t4").stages, load_profile("h100").stages
    assert (t4["sft"].per_device_train_batch_size, t4["sft"].max_length) == (1, 1024)
    assert (t4["dpo"].per_device_train_batch_size, t4["dpo"].max_length) == (1, 512)
    assert (large["sft"].per_device_train_batch_size, large["sft"].row_length) == (4, 4096)
    assert (large["dpo"].per_device_train_batch_size, large["dpo"].max_length) == (8, 1024)
    assert all(stage.gradient_checkpointing for stage in [*t4.values(), *large.values()])


@pytest.mark.parametrize("name, order", [("summary", "sft italian dpo"), ("journal", "sft dpo italian")])
def test_an_order_can_be_named(name, order):
    assert Profile.model_validate(CPU | {"order": name}).order == order.split()


def test_the_papers_order_needs_two_languages_in_sft(tmp_path):
    def on(*corpora):
        values = copy.deepcopy(CPU) | {"order": "paper"}
        values["stages"]["sft"]["data"] = list(corpora)
        return values

    assert "list a corpus of each in stages.sft.data" in refusal(tmp_path, lambda v: v.update(on("mine.jsonl")))
    for corpora in (["english.jsonl", "italian.jsonl"], ["sft"]):  # the small world's chats are in both
        assert Profile.model_validate(on(*corpora)).order == ["sft", "dpo"]


def test_a_profile_survives_being_written_down():
    for name in ("cpu", "h100"):
        values = load_profile(name).model_dump(mode="json")
        assert Profile.model_validate(values).model_dump(mode="json") == values


def test_every_field_is_described():
    def fields(schema):
        for section in [schema, *schema.get("$defs", {}).values()]:
            yield from section.get("properties", {}).items()

    assert [name for name, field in fields(Profile.model_json_schema()) if "description" not in field] == []


def test_unknown_profile_names_the_choice():
    known = "colab-t4, colab-t4-1b, cpu, h100, laptop, laptop-hub"
    with pytest.raises(AnitaError, match=rf"no profile 'gpu': choose {known}, or"):
        load_profile("gpu")


def test_unknown_key_is_named_with_the_nearest(tmp_path):
    message = refusal(tmp_path, lambda v: v["stages"]["sft"]["lora"].update(lora_alfa=1))
    assert "stages.sft.lora.lora_alfa: unknown key: did you mean 'lora_alpha'?" in message
    assert "'learning_rate'?" in refusal(tmp_path, lambda v: v["stages"]["dpo"].update(learning_rat=1))
    assert "known here: name, model" in refusal(tmp_path, lambda v: v.update(zzz=1))


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("stages.sft", "batch_size", "per_device_train_batch_size"),
        ("stages.italian", "gradient_accumulation", "gradient_accumulation_steps"),
        ("stages.dpo", "epochs", "num_train_epochs"),
        ("stages.sft", "warmup", "warmup_steps"),
        ("stages.sft", "schedule", "lr_scheduler_type"),
        ("stages.dpo", "optimizer", "optim"),
        ("stages.italian.lora", "alpha", "lora_alpha"),
        ("stages.dpo.lora", "rslora", "use_rslora"),
        ("stages.sft.lora", "dropout", "lora_dropout"),
        ("stages.sft.lora", "targets", "target_modules"),
        ("quantisation", "bits", "load_in_4bit"),
        ("quantisation", "type", "bnb_4bit_quant_type"),
        ("quantisation", "double", "bnb_4bit_use_double_quant"),
        ("evaluation", "bits", "load_in_4bit"),
    ],
)
def test_an_old_name_is_answered_with_todays(tmp_path, section, old, new):
    """In place of the new one, so that it is missing too, and beside it."""

    def put(values, keep):
        for key in section.split("."):
            values = values[key]
        values[old] = values[new] if keep else values.pop(new)

    for keep in (False, True):
        message = refusal(tmp_path, lambda values, keep=keep: put(values, keep))
        assert f"{section}.{old}: unknown key: did you mean '{new}'?" in message


def test_an_old_name_is_no_clue_where_the_new_one_has_no_place(tmp_path):
    assert "model.epochs: unknown key: remove it; known here: base" in refusal(
        tmp_path, lambda values: values["model"].update(epochs=1)
    )


def test_every_setting_has_the_name_that_its_library_gives_it():
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import DPOConfig, SFTConfig

    ours = {"data", "samples", "examples", "lora", "row_length", "beta"}
    for config in (SFTConfig, DPOConfig):
        assert set(Stage.model_fields) - ours <= set(inspect.signature(config).parameters)
    assert "beta" in inspect.signature(DPOConfig).parameters
    assert set(Lora.model_fields) <= set(inspect.signature(LoraConfig).parameters)
    assert set(Quantisation.model_fields) <= set(inspect.signature(BitsAndBytesConfig).parameters)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v["stages"]["sft"].update(optim="many"), "stages.sft.optim: 'many' will not do"),
        (lambda v: v["quantisation"].update(load_in_4bit=4), "quantisation.load_in_4bit: 4 will not do"),
        (lambda v: v["stages"]["sft"].update(learning_rate=-1), "stages.sft.learning_rate: -1 will not do"),
        (lambda v: v.update(precision="fp8"), "precision: 'fp8' will not do"),
        (lambda v: v["model"].pop("base"), "model.base: missing"),
        (lambda v: v.update(order=["sft", "rlhf"]), "order: 'rlhf' has no settings"),
        (lambda v: v.update(order=["sft", "sft"]), "order: a stage is in it twice"),
        (lambda v: v.update(order="backwards"), "order: 'backwards' is not known: choose summary, paper, journal"),
        (lambda v: v["stages"]["sft"].update(data="some/one"), "describe it under datasets.some/one"),
        (lambda v: v["stages"]["sft"].update(data=[]), "stages.sft.data: [] will not do"),
        (lambda v: v["evaluation"].update(suite="glue"), "evaluation.suite: 'glue' will not do"),
        (lambda v: v.update(datasets={"some/one": {}}), "datasets.some/one.revision: missing"),
        (lambda v: v.update(datasets={"one": HUB_DATA}), "datasets.one"),
        (lambda v: v.update(datasets={"a/b": HUB_DATA | {"sample": 0}}), "datasets.a/b.sample: 0 will not do"),
        (
            lambda v: v.update(datasets={"a/b": HUB_DATA | {"sed": 1}}),
            "datasets.a/b.sed: unknown key: did you mean 'seed'",
        ),
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


def test_a_key_that_stands_twice_is_refused(tmp_path):
    """YAML's library takes the last of two values without a word."""
    file = tmp_path / "mine.yaml"
    file.write_text((PROFILES / "cpu.yaml").read_text("utf-8") + "seed: 7\n", "utf-8")
    with pytest.raises(AnitaError, match="mine.yaml is not YAML .the key 'seed' is there twice") as error:
        load_profile(file)
    assert "\n" not in str(error.value)


def test_values_are_changed_under_dotted_keys_and_nothing_else_is():
    profile = load_profile("cpu")
    changed = override(profile, {"stages.sft.learning_rate": "1e-4", "stages.dpo.lora.r": 8, "seed": 3}, "mine")
    assert (changed.stages["sft"].learning_rate, changed.stages["dpo"].lora.r, changed.seed) == (1e-4, 8, 3)
    assert profile.model_dump() == load_profile("cpu").model_dump()
    back = {"stages.sft.learning_rate": profile.stages["sft"].learning_rate, "seed": profile.seed}
    back["stages.dpo.lora.r"] = profile.stages["dpo"].lora.r
    assert override(changed, back, "mine").model_dump() == profile.model_dump()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("stages.stf.lora.r", "mine: stages.stf: no such section: did you mean 'sft'?"),
        ("stages.sft.seed.x", "mine: stages.sft.seed: no such section: remove it; known here: samples, lora"),
        ("stages.sft.lora.rank", "mine: stages.sft.lora.rank: unknown key: remove it; known here: r, lora_alpha"),
        ("stages.sft.lora.r", "mine: stages.sft.lora.r: 'x' will not do"),
    ],
)
def test_a_wrong_dotted_key_is_named(key, message):
    with pytest.raises(AnitaError) as error:
        override(load_profile("cpu"), {key: "x"}, "mine")
    assert str(error.value).startswith(message)


def test_that_a_profile_is_a_rehearsal_changes_no_result(small_profile, tmp_path):
    from anita_utils.evaluation.measuring import measured_with
    from anita_utils.run import Run
    from anita_utils.stages import find_stage

    rehearsal = small_profile.model_copy(update={"name": "rehearsal-cpu", "rehearsal_of": "cpu"})
    recipes = [find_stage(Run(tmp_path, profile, 42), "dpo").recipe for profile in (small_profile, rehearsal)]
    assert recipes[0] == recipes[1]
    assert measured_with(small_profile) == measured_with(rehearsal)


def test_samples_name_corpora_of_their_stage(tmp_path):
    values = yaml.safe_load((PROFILES / "cpu.yaml").read_text("utf-8"))
    values["stages"]["sft"]["samples"] = {"nowhere": 5}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(AnitaError, match=r"stages\.sft\.samples: 'nowhere' is not in stages\.sft\.data"):
        load_profile(file)
    own = tmp_path / "own.jsonl"
    own.write_text("")
    values["stages"]["sft"] |= {"data": [str(own)], "samples": {str(own): 5}}
    file.write_text(yaml.safe_dump(values))
    assert load_profile(file).stages["sft"].samples == {str(own): 5}
