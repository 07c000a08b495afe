"""What the planner adds up: exact counts of weights, and bytes part by part, held against sums by hand and autograd."""

import json
from dataclasses import replace

import pytest

from anita_utils import AnitaError
from anita_utils.memory import (
    GIB,
    OPTIMIZERS,
    Job,
    architecture,
    base_bytes,
    bytes_by_part,
    head_memory,
    job_of,
    kept_by_layer,
    trainable,
    working_memory,
)
from anita_utils.profile import PROJECTIONS, Quantisation, load_profile

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
LARGE = "meta-llama/Meta-Llama-3-70B-Instruct"
TINY = "tiny-llama-3-instruct"
T4 = Job(LLAMA, dtype="float16", precision="fp16")  # 1 x 1024, r = 16, NF4, AdamW, checkpointing


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


def test_only_the_layers_matrices_of_the_8b_are_quantised():
    shape = architecture(LLAMA)
    embeddings = head = shape.config.vocab_size * shape.config.hidden_size
    norms = (2 * shape.config.num_hidden_layers + 1) * shape.config.hidden_size
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
    single = replace(Job(LLAMA), quantisation=Quantisation(load_in_4bit=True, bnb_4bit_use_double_quant=False))
    assert base_bytes(single)[0] == 6_979_321_856 * 4.5 / 8
    assert base_bytes(replace(single, quantisation=Quantisation(load_in_4bit=False))) == (0, 2 * 8_030_261_248)


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
        hidden, inner = 2 * length * shape.config.hidden_size, 2 * length * shape.config.intermediate_size
        unpacked = 2 * shape.config.hidden_size * shape.config.intermediate_size
        layer = kept_by_layer(job) + hidden + inner + max(inner, unpacked)
        return sum(working_memory(job)) - layer - length**2

    assert stored(1024) == 0.25 * GIB
    assert stored(4096) == GIB


def test_the_heads_tile_replaces_the_logits():
    shape = architecture(LLAMA)
    whole = 8 * 2048 * shape.config.vocab_size * 2
    assert round(whole / GIB, 1) == 3.9
    tile = 4096 * 32768 * 2
    around = 8 * 2048 * 4096 * (4 + 2 + 4 + 2)  # the norm's input and output, the gradient in fp32 and cast
    assert head_memory(shape.config, 8 * 2048, 2, on_gpu=True) == tile + around == GIB
    # Without Triton: log-probabilities and two gradients in fp32, and around them the norm's output and two of its kind
    assert head_memory(shape.config, 1024, 4, on_gpu=False) == 1024 * (128256 * 12 + 4096 * 12)


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
    last_norm, rotation = 4 * shape.config.hidden_size * tokens, 2 * tokens * 64 * (4 if precision == "fp32" else 2)
    measured = sum(size for place, size in saved.items() if place not in weights) - last_norm - rotation
    assert shape.config.num_hidden_layers * kept_by_layer(job) == pytest.approx(measured, rel=0.01)


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


def test_measuring_the_8b_by_hand():
    """Three copies of a score for each token and word; the 70B's keys, values and states are more than one of them."""
    job = job_of(load_profile("colab-t4"), "evaluation")
    assert (job.batch, job.length, job.quantisation.load_in_4bit) == (2, 4096, True)
    parts = bytes_by_part(job)
    assert parts["base"] == sum(base_bytes(T4))
    assert parts["activations"] == 0
    held = 2 * 80 * 8 * 128 + 2 * 8192  # keys and values of 8 heads in 80 layers; states
    assert bytes_by_part(replace(job, model=LARGE))["activations"] == (held - 128_256) * 2 * 4096 * 2
    assert parts["logits"] == 3 * 2 * 4096 * 128_256 * 2
    assert parts["adapter"] == parts["gradients"] == parts["optimizer"] == trainable(job) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "describes no Llama"),
        ("[]", "describes no Llama"),
        ({"model_type": "gpt2"}, "model_type 'gpt2': only 'llama' is known here"),
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


def test_every_optimiser_planned_for_is_one_of_transformers():
    from transformers.trainer_optimizer import OptimizerNames

    assert set(OPTIMIZERS) <= {name.value for name in OptimizerNames}


def test_an_adapter_on_a_layer_that_is_not_there_is_refused():
    with pytest.raises(AnitaError, match="LoRA target 'qkv' is no layer of .*: choose q_proj"):
        trainable(Job(LLAMA, targets=("qkv",)))
