"""The planner: what fits on which GPU, profiles as jobs, and what `anita plan` says."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from anita_utils.memory import GIB, GPUS, Job, bytes_by_part, job_of, longest, plan, room
from anita_utils.profile import PROFILES, Quantisation, load_profile

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
LARGE = "meta-llama/Meta-Llama-3-70B-Instruct"
T4 = Job(LLAMA, dtype="float16", precision="fp16")  # 1 x 1024, r = 16, NF4, AdamW, checkpointing
CPU = yaml.safe_load((PROFILES / "cpu.yaml").read_text("utf-8"))
KEYS = ["parameters", "quantized_parameters", "trainable_parameters", "bytes", "fits", "advice"]
PARTS = ["base", "adapter", "gradients", "optimizer", "activations", "logits", "overhead", "total"]


@pytest.fixture
def plan_command(anita, monkeypatch):
    """Calls `anita plan` on a wide terminal; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: anita("plan", *arguments)


@pytest.fixture
def large_profile(tmp_path):
    """A profile for the 8B model on a large GPU, made from the cpu profile. Returns its file."""
    values = copy.deepcopy(CPU)
    values.update(name="large", precision="bf16", model={"base": LLAMA, "dtype": "bfloat16"})
    for stage in values["stages"].values():
        stage.update(per_device_train_batch_size=4, max_length=2048, row_length=None, gradient_checkpointing=True)
    values["stages"]["sft"]["optim"] = "paged_adamw_8bit"
    file = tmp_path / "large.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    return file


def test_a_t4_fits_a_short_row_and_is_refused_a_large_batch():
    small, large = plan(T4), plan(replace(T4, batch=8, length=2048))
    assert all(small["fits"].values())
    assert large["fits"] == {name: name != "T4" for name in GPUS}
    refusal = large["advice"][0]
    assert refusal.startswith("T4 refused: 8 x 2,048 needs 14.")
    assert "activations" in refusal
    assert any("half the batch" in line for line in large["advice"])


def test_no_single_card_fits_the_70b_unquantised_and_the_advice_is_to_quantise():
    outcome = plan(Job(LARGE, quantisation=Quantisation(load_in_4bit=False)))
    assert not any(outcome["fits"].values())
    assert outcome["quantized_parameters"] == 0
    assert "a shorter row or a smaller batch alone is not enough" in outcome["advice"][0]
    assert any(line.startswith("quant nf4 would save 9") for line in outcome["advice"])
    assert plan(Job(LARGE))["fits"]["H100-80"]


@pytest.mark.parametrize("gpu", GPUS)
def test_the_longest_row_and_the_largest_batch_fit_and_the_next_do_not(gpu):
    job = replace(T4, batch=8, length=2048, checkpointing=False)
    length, batch = longest(job, gpu)

    def fits(**change):
        return bytes_by_part(replace(job, **change))["total"] <= room(gpu)

    assert not length or fits(length=length)
    assert not batch or fits(batch=batch)
    assert not fits(length=length + 64)
    assert not fits(batch=batch + 1)


def test_a_profiles_stage_becomes_a_job(large_profile):
    profile = load_profile(large_profile)
    job = job_of(profile, "sft")
    assert (job.model, job.batch, job.length, job.dtype, job.pairs) == (LLAMA, 4, 2048, "bfloat16", False)
    assert job_of(profile, "dpo").pairs
    assert job_of(load_profile("cpu")).length == CPU["stages"]["sft"]["row_length"]


def test_json_has_the_keys_that_programs_rely_on(plan_command, large_profile):
    code, out, err = plan_command("--profile", large_profile, "--stage", "sft", "--json")
    assert (code, err) == (0, "")
    outcome = json.loads(out)
    assert list(outcome) == KEYS
    assert list(outcome["bytes"]) == PARTS
    assert list(outcome["fits"]) == list(GPUS)
    assert (outcome["parameters"], outcome["quantized_parameters"]) == (8_030_261_248, 6_979_321_856)
    assert outcome["trainable_parameters"] == 41_943_040
    assert round(outcome["bytes"]["base"] / GIB, 2) == 5.31
    assert any("paged_adamw_8bit" in line and "main memory" in line for line in outcome["advice"])
    assert "validated on:" in outcome["advice"][-1]


def test_options_change_the_profiles_values(plan_command, large_profile):
    def total(*options):
        return json.loads(plan_command("--profile", large_profile, *options, "--json")[1])["bytes"]["total"]

    assert total("--batch", 8) > total() > total("--length", 512)
    assert total("--no-checkpointing") > total()
    assert total("--quant", "none") - total() > 9 * GIB
    assert (
        json.loads(plan_command("--profile", large_profile, "--r", 64, "--json")[1])["trainable_parameters"]
        == 167_772_160
    )


def test_the_table_shows_parts_headroom_and_what_is_not_measured(plan_command):
    code, out, _ = plan_command("--model", LLAMA)
    assert code == 0
    for text in ("in 4 bits", "3.35", "41,943,040", "headroom", "A100-40", "validated on:", "--here measures"):
        assert text in out


def test_each_profile_can_measure_its_model_on_its_gpu():
    for name, gpu in {"colab-t4-1b": "T4", "colab-t4": "T4", "h100": "H100-80"}.items():
        assert plan(job_of(load_profile(name), "evaluation"))["fits"][gpu], name
    in_16_bits = load_profile("colab-t4")
    in_16_bits.evaluation.load_in_4bit, in_16_bits.evaluation.batch_size = False, 1
    found = plan(job_of(in_16_bits, "evaluation"))
    assert found["bytes"]["base"] == 2 * 8_030_261_248 > GPUS["T4"] * GIB and not found["fits"]["T4"]


def test_the_evaluation_is_planned_like_a_stage(plan_command):
    code, out, _ = plan_command("--profile", "colab-t4", "--stage", "evaluation")
    assert code == 0 and "measured, not trained" in out and "keys and values of every token" in out
    found = json.loads(plan_command("--profile", "colab-t4", "--stage", "evaluation", "--json")[1])
    assert list(found) == KEYS and list(found["bytes"]) == PARTS
    assert found["trainable_parameters"] == 0 and found["fits"]["T4"]
    own = json.loads(plan_command("--model", LLAMA, "--stage", "evaluation", "--quant", "none", "--json")[1])
    assert not own["fits"]["T4"] and not any("accumulation" in line for line in own["advice"])


def test_the_figure_stacks_the_parts():
    from matplotlib.figure import Figure

    from anita_utils.plots import memory_bars

    parts = bytes_by_part(T4)
    axes = memory_bars(Figure().subplots(), {"one": parts, "two": parts}, {"T4": 14.74})
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert max(ends) == pytest.approx(parts["total"] / GIB)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == PARTS[:-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to plan: give --profile"),
        (("--model", "nobody/nothing"), "no architecture is known for model 'nobody/nothing': choose meta-llama/"),
        (("--model", "~nobody/" + "x" * 300), "no architecture is known"),
        (("--profile", "nonsense"), "no profile 'nonsense'"),
        (("--profile", "cpu", "--stage", "rlhf"), "profile 'cpu' has no stage 'rlhf': choose sft, italian, dpo, ev"),
        (("--model", LLAMA, "--stage", "rlhf"), "no stage 'rlhf': choose sft, italian, dpo or"),
        (("--model", LLAMA, "--r", 0), "r is 0: give a whole number"),
        (("--model", LLAMA, "--batch", -1), "batch is -1: give a whole number"),
        (("--model", LLAMA, "--length", 9000), "length is 9,000: " + LLAMA + " was made for at most 8,192 tokens"),
        (("--model", LLAMA, "--quant", "int3"), "no quantisation 'int3': choose nf4 or none"),
        (("--model", LLAMA, "--optimizer", "magic"), "no figure for optimizer 'magic': choose sgd, adamw_torch"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(plan_command, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = plan_command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"anita: {message}")
    assert err.count("\n") == 1


def test_the_planner_is_light_to_import():
    program = "import sys, anita_utils.cli.plan; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_stage_is_measured_on_this_machine(anita, tiny_profile, tmp_path, runs):
    """The plan is a GPU's; a process on a CPU takes other memory, and nobody knows its speed beforehand."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_profile.model_dump(mode="json")), "utf-8")
    for stage in ("sft", "dpo"):
        code, out, _ = anita("plan", "--profile", file, "--stage", stage, "--here")
        found = re.search(
            stage + r" on this machine: ([\d.]+) GiB at the peak, ([\d,]+) tokens/s, so ([\d.]+) minutes", out
        )
        assert code == 0 and 0.2 < float(found[1]) < 8 and float(found[2].replace(",", "")) > 0
    assert not runs.exists()  # what was tried is thrown away
    for stage in tiny_profile.stages.values():
        stage.examples = 2
    file.write_text(yaml.safe_dump(tiny_profile.model_dump(mode="json")), "utf-8")
    code, _, err = anita("plan", "--profile", file, "--stage", "sft", "--here")
    assert code == 2 and "sft: its data make 1 update, and the first is not timed" in err and len(err.splitlines()) == 1
    assert anita("plan", "--profile", file, "--stage", "evaluation", "--here")[0] == 2
