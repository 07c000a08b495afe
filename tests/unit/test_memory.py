"""The planner: exact counts, bytes added up by hand, what fits where, and what `anita plan` says."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from anita_utils import AnitaError
from anita_utils.architectures import HUB_NAMES, architecture
from anita_utils.memory import (
    GIB,
    GPUS,
    OPTIMIZERS,
    Job,
    base_bytes,
    bytes_by_part,
    head_memory,
    job_of,
    kept_by_layer,
    longest,
    plan,
    room,
    trainable,
    working_memory,
)
from anita_utils.planning import measured_speed, time_and_cost
from anita_utils.profile import PROFILES, PROJECTIONS, Profile, Quantisation, load_profile

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
LARGE = "meta-llama/Meta-Llama-3-70B-Instruct"
TINY = "tiny-llama-3-instruct"
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
        stage.update(batch_size=4, max_length=2048, row_length=None, gradient_checkpointing=True)
    values["stages"]["sft"]["optimizer"] = "paged_adamw_8bit"
    file = tmp_path / "large.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    return file


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (LLAMA, 8_030_261_248),
        (LARGE, 70_553_706_496),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_known_models_have_their_published_counts(model, parameters):
    assert architecture(model).parameters == parameters
    assert architecture(HUB_NAMES[model]).parameters == parameters


def test_only_the_layers_matrices_of_the_8b_are_quantised():
    shape = architecture(LLAMA)
    embeddings = head = shape.vocabulary * shape.hidden
    norms = (2 * shape.layers + 1) * shape.hidden
    assert (embeddings, norms) == (525_336_576, 266_240)
    assert shape.quantised == 6_979_321_856 == shape.parameters - embeddings - head - norms


def test_the_shipped_model_is_counted_as_its_weights_are(base_path):
    from safetensors import safe_open

    with safe_open(base_path / "model.safetensors", "pt") as weights:
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 (no mapping)
    stored = sum(size[0] * (size[1] if len(size) > 1 else 1) for size in sizes)
    assert architecture(TINY).parameters == architecture(str(base_path)).parameters == stored


@pytest.mark.parametrize(("r", "weights"), [(16, 41_943_040), (64, 167_772_160)])
def test_the_adapter_of_the_8b(r, weights):
    assert trainable(Job(LLAMA, r=r)) == weights


def test_the_adapter_has_the_weights_that_peft_makes(tmp_path, base_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(base_path))
    targets = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=8, target_modules=targets), low_cpu_mem_usage=True)
    made = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    assert trainable(Job(TINY, r=8, targets=tuple(targets))) == made


def test_the_base_of_the_8b_takes_5_31_gib():
    in_4_bits, other = base_bytes(Job(LLAMA))
    assert in_4_bits == round(6_979_321_856 * (4 + 8 / 64 + 32 / (64 * 256)) / 8)
    assert other == 2 * (525_336_576 * 2 + 266_240)
    assert round((in_4_bits + other) / 1e9, 2) == 5.70
    assert round((in_4_bits + other) / GIB, 2) == 5.31
    single = replace(Job(LLAMA), quantisation=Quantisation(bits=4, double=False))
    assert base_bytes(single)[0] == 6_979_321_856 * 4.5 / 8
    assert base_bytes(replace(single, quantisation=Quantisation(bits=None))) == (0, 2 * 8_030_261_248)


def test_weights_gradients_and_optimiser_by_hand():
    parts = bytes_by_part(replace(T4, optimizer="paged_adamw_8bit"))
    assert parts["adapter"] == parts["gradients"] == 4 * 41_943_040
    assert parts["optimizer"] == 41_943_040 * 2 + 2 * 41_943_040 // 256 * 4
    assert bytes_by_part(T4)["optimizer"] == 8 * 41_943_040
    assert parts["total"] == sum(size for part, size in parts.items() if part != "total")


def test_layer_inputs_of_the_8b_take_a_quarter_of_a_gib_for_1024_tokens():
    def stored(length):  # what is left when what one layer and the head work on is taken away
        job = replace(T4, length=length)
        shape = architecture(LLAMA)
        hidden, inner = 2 * length * shape.hidden, 2 * length * shape.feed_forward
        unpacked = 2 * shape.hidden * shape.feed_forward
        layer = kept_by_layer(job) + hidden + inner + max(inner, unpacked)
        return sum(working_memory(job)) - layer - length**2

    assert stored(1024) == 0.25 * GIB
    assert stored(4096) == GIB


def test_the_heads_tile_replaces_the_logits():
    shape = architecture(LLAMA)
    whole = 8 * 2048 * shape.vocabulary * 2
    assert round(whole / GIB, 1) == 3.9
    tile = 4096 * 32768 * 2
    around = 8 * 2048 * 4096 * (4 + 2 + 4 + 2)  # the norm's input and output, the gradient in fp32 and cast
    assert head_memory(shape, 8 * 2048, 2, on_gpu=True) == tile + around == GIB
    # Without Triton: log-probabilities and two gradients in fp32, and around them the norm's output and two of its kind
    assert head_memory(shape, 1024, 4, on_gpu=False) == 1024 * (128256 * 12 + 4096 * 12)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_keeps_what_autograd_says_it_keeps(base_path, monkeypatch, precision):
    """Every tensor that the layers save for their backward pass, on packed rows; each storage counts once."""
    import torch
    from peft import LoraConfig, get_peft_model

    from anita_utils.model import load_model
    from anita_utils.training import adapters_in_fp32

    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    job = Job(TINY, batch=2, length=192, dtype=dtype, precision=precision, checkpointing=False)
    model = load_model(base_path, job.quantisation, dtype=dtype, compute_dtype=dtype)
    model = get_peft_model(model, LoraConfig(r=job.r, target_modules=PROJECTIONS, task_type="CAUSAL_LM")).train()
    adapters_in_fp32(model)
    model.enable_input_require_grads()
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = torch.randint(4000, (job.batch, job.length))
    places = (torch.arange(job.length) % 64).expand(job.batch, -1)  # three texts a row
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        if precision == "bf16":  # PEFT asks whether CUDA has autocast on, and would copy every input on a CPU. Patched
            # only now: what autocast found when it was entered, it puts back at the end
            monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: True)
        kept_alive = model.base_model.model.model(input_ids=rows, position_ids=places, use_cache=False)
    monkeypatch.undo()
    assert kept_alive is not None and not torch.is_autocast_enabled("cpu")

    shape, tokens = architecture(TINY), job.batch * job.length
    last_norm, rotation = 4 * shape.hidden * tokens, 2 * tokens * 64 * (4 if precision == "fp32" else 2)
    measured = sum(size for place, size in saved.items() if place not in weights) - last_norm - rotation
    assert shape.layers * kept_by_layer(job) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("base", [T4, replace(T4, checkpointing=False), replace(T4, pairs=True), Job(TINY)])
def test_more_never_takes_less(base):
    def totals(name, values):
        return [bytes_by_part(replace(base, **{name: value}))["total"] for value in values]

    for name, values in {"batch": range(1, 40), "length": range(1, 1024, 31), "r": (1, 8, 16, 64)}.items():
        found = totals(name, values)
        assert found == sorted(found)
        assert found[0] < found[-1]
    assert totals("checkpointing", [True])[0] <= totals("checkpointing", [False])[0]
    one_row = bytes_by_part(replace(base, pairs=False))["total"]
    assert one_row < bytes_by_part(replace(base, pairs=True))["total"]


def test_a_pair_takes_what_two_rows_take_while_layers_are_checkpointed():
    assert working_memory(replace(T4, pairs=True)) == working_memory(replace(T4, batch=2))


def test_a_t4_fits_a_short_row_and_is_refused_a_large_batch():
    small, large = plan(T4), plan(replace(T4, batch=8, length=2048))
    assert all(small["fits"].values())
    assert large["fits"] == {name: name != "T4" for name in GPUS}
    refusal = large["advice"][0]
    assert refusal.startswith("T4 refused: 8 x 2,048 needs 14.")
    assert "activations" in refusal
    assert any("half the batch" in line for line in large["advice"])


def test_no_single_card_fits_the_70b_unquantised_and_the_advice_is_to_quantise():
    outcome = plan(Job(LARGE, quantisation=Quantisation(bits=None)))
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
    code, out, _ = plan_command("--model", LLAMA, "--price", 2)
    assert code == 0
    for text in ("in 4 bits", "3.35", "41,943,040", "headroom", "A100-40", "validated on:", "time: not measured"):
        assert text in out
    assert "EUR at" not in out


def test_time_and_cost_come_from_what_is_given():
    assert time_and_cost(7_200_000, 1000, 2.5) == [
        "time: 2.00 h for 7,200,000 tokens at 1,000 a second, as given",
        "cost: 5.00 EUR at 2.50 EUR an hour",
    ]
    measured = (3_600_000, 500, "measured in run 'x' on y")
    assert time_and_cost(None, None, None, measured)[0].endswith("at 500 a second, measured in run 'x' on y")
    assert time_and_cost(None, 1000, None, measured)[0].startswith("time: 1.00 h for 3,600,000 tokens at 1,000")
    assert time_and_cost(7_200_000, None, 1.0) == time_and_cost(None, None, None)


def test_measuring_the_8b_by_hand():
    """Three copies of a score for each token and word; the 70B's keys, values and states are more than one of them."""
    job = job_of(load_profile("colab-t4"), "evaluation")
    assert (job.batch, job.length, job.quantisation.bits) == (2, 4096, 4)
    parts = bytes_by_part(job)
    assert parts["base"] == sum(base_bytes(T4))
    assert parts["activations"] == 0
    held = 2 * 80 * 8 * 128 + 2 * 8192  # keys and values of 8 heads in 80 layers; states
    assert bytes_by_part(replace(job, model=LARGE))["activations"] == (held - 128_256) * 2 * 4096 * 2
    assert parts["logits"] == 3 * 2 * 4096 * 128_256 * 2
    assert parts["adapter"] == parts["gradients"] == parts["optimizer"] == trainable(job) == 0


def test_each_profile_can_measure_its_model_on_its_gpu():
    for name, gpu in {"colab-t4-1b": "T4", "colab-t4": "T4", "h100": "H100-80"}.items():
        assert plan(job_of(load_profile(name), "evaluation"))["fits"][gpu], name
    in_16_bits = load_profile("colab-t4")
    in_16_bits.evaluation.bits, in_16_bits.evaluation.batch_size = None, 1
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


def test_a_trained_stage_of_the_same_profile_gives_its_speed(runs):
    from anita_utils.record import Run

    profile = load_profile("cpu")
    job = job_of(profile, "dpo")
    assert measured_speed(profile, "dpo", job) is None
    run = Run.open("trial", "cpu")
    file = run.model_dir("dpo") / "stage.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"tokens": 1000, "tokens_per_second": 50.0}), "utf-8")
    tokens, speed, where = measured_speed(profile, "dpo", job)
    assert (tokens, speed) == (1000 * profile.stages["dpo"].epochs, 50.0)
    assert where.startswith("measured in run 'trial' on ")
    assert measured_speed(profile, "dpo", replace(job, batch=job.batch + 1)) is None
    assert measured_speed(profile, "sft", job_of(profile, "sft")) is None
    assert measured_speed(None, "dpo", job) is None
    other = Profile.model_validate(CPU | {"seed": 7})
    assert measured_speed(other, "dpo", job_of(other, "dpo")) is None


def test_the_figure_stacks_the_parts(plan_command, tmp_path):
    from matplotlib.figure import Figure

    from anita_utils.plots import memory_bars

    assert plan_command("--model", LLAMA, "--figure", tmp_path / "plan.png", "--json")[0] == 0
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
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
        (("--model", LLAMA, "--price", -1), "price is -1.0: give a number above 0"),
        (("--model", LLAMA, "--throughput", "nan"), "throughput is nan: give a number above 0"),
        (("--model", LLAMA, "--figure", "plan.jpg"), "plan.jpg is no .png file"),
        (("--model", LLAMA, "--figure", "nowhere/plan.png"), "nowhere/plan.png cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(plan_command, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = plan_command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"anita: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "describes no Llama"),
        ("[]", "describes no Llama"),
        ({"model_type": "gpt2"}, "model_type 'gpt2': the planner knows only 'llama'"),
        ({"hidden_size": None}, "describes no Llama"),
        ({"hidden_size": "wide"}, "describes no Llama"),
        ({"num_attention_heads": 0}, "describes no Llama .*num_attention_heads is 0"),
        ({"num_attention_heads": 5, "head_dim": None}, "describes no Llama"),
        ({"vocab_size": -5}, "describes no Llama"),
    ],
)
def test_a_folder_that_holds_no_llama_is_refused(tmp_path, base_path, change, message):
    values = json.loads((base_path / "config.json").read_text("utf-8"))
    text = change if isinstance(change, str) else json.dumps(values | change)
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(AnitaError, match=message):
        architecture(str(tmp_path))


def test_a_missing_size_is_never_filled_in(tmp_path, base_path):
    values = json.loads((base_path / "config.json").read_text("utf-8"))
    del values["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(AnitaError, match="describes no Llama .*hidden_size"):
        architecture(str(tmp_path))


def test_an_adapter_on_a_layer_that_is_not_there_is_refused():
    with pytest.raises(AnitaError, match="LoRA target 'qkv' is no layer of .*: choose q_proj"):
        trainable(Job(LLAMA, targets=("qkv",)))


def test_every_optimiser_planned_for_is_one_of_transformers():
    from transformers.trainer_optimizer import OptimizerNames

    assert set(OPTIMIZERS) <= {name.value for name in OptimizerNames}


def test_the_planner_is_light_to_import():
    program = "import sys, anita_utils.planning; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
