"""The dry run of every profile, and what it says of profiles that will not do."""

import json
import re
import shutil

import pytest
import yaml

from anita_utils import shown
from anita_utils.course.dry_run import fixture
from anita_utils.profile import PROFILES, load_profile

LARGE, SMALL, OPEN = (41_943_040, 167_772_160), (11_272_192, 45_088_768), (4_884_480, 19_537_920)
# profile: trained weights at r = 16 and 64, the precision, the optimisers of SFT and DPO
EXPECTED = {
    "laptop-hub": (OPEN, "fp32", "adamw_torch", "adamw_torch"),
    "colab-t4-1b": (SMALL, "fp16", "paged_adamw_8bit", "adamw_8bit"),
    "colab-t4": (LARGE, "fp16", "paged_adamw_8bit", "adamw_8bit"),
    "h100": (LARGE, "bf16", "paged_adamw_8bit", "adamw_8bit"),
}
GPUS = {"laptop-hub": "T4", "colab-t4-1b": "T4", "colab-t4": "T4", "h100": "H100-80"}


@pytest.fixture
def dry_run(anita, monkeypatch, runs):
    """Dry-runs a profile on a wide terminal; returns exit code and what was printed."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(profile):
        code, out, err = anita("course", "--profile", profile, "--dry-run")
        assert not runs.exists(), "a dry run leaves nothing behind"
        return code, out + err

    return call


def changed(tmp_path, change, profile="h100"):
    """The file of that profile after `change`."""
    values = yaml.safe_load((PROFILES / f"{profile}.yaml").read_text("utf-8"))
    change(values)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    return file


@pytest.mark.parametrize("name", EXPECTED)
def test_a_profile_is_tried_without_its_weights(dry_run, name):
    code, out = dry_run(name)
    assert code == 0, out
    counts, precision, sft, dpo = EXPECTED[name]
    for stage, rank, count in (("sft", 16, counts[0]), ("italian", 64, counts[1]), ("dpo", 64, counts[1])):
        assert re.search(rf"{stage}, adapter +│ r = {rank}: {count:,} weights to train", out), out
    assert re.search(rf"sft, trainer +│ SFTConfig, {precision}, {sft}, .*linear", out)
    assert re.search(rf"dpo, trainer +│ DPOConfig, {precision}, {dpo}, ", out)
    assert "tiny-llama-3-instruct's, as the profile's own is on the Hub" in out
    for corpus in load_profile(name).datasets:
        batch = re.search(rf"{corpus} +│ (\w+): (\d) rows, a batch of (\d+) × (\d+) tokens, (\d+) of them scored", out)
        stage, rows, height, width, scored = batch.groups()
        assert 3 <= int(rows) <= 5 and 0 < int(scored) < int(height) * int(width)
        assert stage == ("dpo" if "dpo" in corpus or "feedback" in corpus else "italian" if "mc4" in corpus else "sft")
        pairs = min(int(rows), load_profile(name).stages["dpo"].per_device_train_batch_size)
        assert int(height) == (2 * pairs if stage == "dpo" else 1)
    for what in ("sft", "italian", "dpo", "evaluation"):
        planned = re.search(
            rf"{what}, memory +│ (\d+\.\d\d) GiB on a GPU, estimated \((.*)\); fits .*{GPUS[name]}", out
        )
        parts = dict(part.split() for part in planned[2].split(", "))
        assert sum(map(float, parts.values())) == pytest.approx(float(planned[1]), abs=0.05)
        assert list(parts) == ["base", "adapter", "gradients", "optimizer", "activations", "logits", "overhead"]
    assert "failed" not in out and "Warning" not in out


def test_the_small_world_needs_no_stand_in(dry_run):
    code, out = dry_run("cpu")
    assert code == 0, out
    assert re.search(r"dpo +│ dpo: 16 rows, a batch of 16 × ", out)
    facts = r"begins with <\|begin_of_text\|>; .*a turn ends with <\|eot_id\|>"
    assert re.search(rf"tokenizer +│ tiny-llama-3-instruct's; {facts} +│", out)


def test_a_local_bases_data_is_rendered_with_its_own_tokenizer(dry_run, tmp_path, base_path):
    """Its template adds a system prompt by itself: each chat is longer by as much, and a line says so."""
    added = "<|start_header_id|>system<|end_header_id|>\\n\\nSii chiaro.<|eot_id|>"
    own = tmp_path / "own"
    shutil.copytree(base_path, own)
    template = (own / "chat_template.jinja").read_text("utf-8").removeprefix("{{ bos_token }}")
    default = "{% if messages[0].role != 'system' %}{{ '" + added + "' }}{% endif %}"
    (own / "chat_template.jinja").write_text("{{ bos_token }}" + default + template, "utf-8")
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Dov'è Torino?"}, {"role": "assistant", "content": "In Piemonte."}]
    chats.write_text(json.dumps({"messages": turns}) + "\n", "utf-8")

    def one_chat(values, base):
        values["model"] |= {"base": str(base), "revision": None}
        values["stages"]["sft"]["data"] = str(chats)

    lengths = []
    for base in (base_path, own):
        code, out = dry_run(changed(tmp_path, lambda values, base=base: one_chat(values, base), "cpu"))
        assert code == 0, out
        lengths.append(int(re.search(r"sft: 1 rows, a batch of 1 × (\d+) tokens, 4 of them scored", out)[1]))
        facts = re.search(rf"tokenizer +│ {re.escape(shown(base))}'s; (.*?) +│", out)[1]
        assert facts.startswith("begins with <|begin_of_text|>; ") and "a turn ends with <|eot_id|>" in facts
    assert lengths[1] - lengths[0] == 10  # three marks, the role, a blank line, "Si", "i", " chi", "aro", "."
    assert facts.endswith("adds a system prompt of 10 tokens to each chat without one")


def test_left_out_rows_are_left_out_of_the_batch(dry_run):
    """The fixture holds five pairs, two of them of the kinds that the smaller profiles switch off."""
    assert re.search(r"mlabonne/orpo-dpo-mix-40k +│ dpo: 3 rows", dry_run("laptop-hub")[1])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda v: v["model"].update(base="some/one"), r"model failed: no architecture is known for model 'some/one'"),
        (
            lambda v: v["stages"]["dpo"].update(data=["gsarti/clean_mc4_it"]),
            r"gsarti/clean_mc4_it failed: stages.dpo.data: 4 rows of gsarti/clean_mc4_it are no preference pairs",
        ),
        (
            lambda v: v["datasets"]["efederici/evol-dpo-ita"].update(without=["toxic-dpo"]),
            r"efederici/evol-dpo-ita failed: datasets.efederici/evol-dpo-ita.without: .* set it to \[\]",
        ),
    ],
)
def test_a_failure_is_one_line_and_exit_1(dry_run, tmp_path, change, line):
    code, out = dry_run(changed(tmp_path, change))
    assert code == 1
    assert re.search(rf"^{line}", out, re.MULTILINE), out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(precision="fp8"), "mine.yaml: precision: 'fp8' will not do"),
        (lambda v: v["stages"]["dpo"].update(optim="adamx"), "mine.yaml: stages.dpo.optim: 'adamx' will not"),
        (
            lambda v: v["stages"]["sft"]["lora"].update(target_modules=["query"]),
            "mine.yaml: stages.sft.lora.target_modules.0: 'query'",
        ),
    ],
)
def test_an_invalid_profile_is_refused_before_anything_is_tried(dry_run, tmp_path, change, words):
    code, out = dry_run(changed(tmp_path, change))
    assert code == 2 and out.count("\n") == 1 and words in out


def test_a_data_set_of_ones_own_is_said_not_to_be_tried(dry_run, tmp_path):
    def own(values):
        values["datasets"]["some/one"] = values["datasets"]["efederici/evol-dpo-ita"]

    code, out = dry_run(changed(tmp_path, own))
    assert code == 0 and re.search(r"some/one +│ no fixture: its columns are not tried", out)


def test_every_data_set_of_the_profiles_has_its_fixture():
    for name in EXPECTED:
        assert all(fixture(corpus) for corpus in load_profile(name).datasets)
    assert fixture("some/one") is None


def test_modes_of_the_course_exclude_each_other(anita):
    code, _, err = anita("course", "--dry-run", "--rehearse")
    assert code == 2 and err.startswith("anita: --update, --rehearse and --dry-run exclude each other")
