"""The traps of this year's libraries that the lessons touch: each test fails without its cure."""

import copy
import weakref

import pytest
import torch
from exact import in_float64
from tokenizers import pre_tokenizers

from anita_utils import AnitaError, training
from anita_utils.merging import merge_adapter, read_weight
from anita_utils.model import chat, keep_gradients_exact, load_model, parameter_counts, weight_count
from anita_utils.profile import Quantisation
from anita_utils.run import Run

NF4 = Quantisation(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
PROMPTS = ["What is the capital of Piedmont?", "Which sea does the Po flow into, and where is the Colosseum?", "Hello!"]


def linear4bit(model):
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


# ---- bitsandbytes' CPU kernel corrupts gradients after any evaluation forward


def test_the_inference_kernel_is_off_everywhere(base_path):
    model = load_model(base_path, NF4)
    layers = linear4bit(model)
    assert len(layers) == 7 * model.config.num_hidden_layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def lora_gradients(base_path, cure: bool, evaluate_first: bool) -> dict[str, torch.Tensor]:
    from peft import LoraConfig, get_peft_model

    model = load_model(base_path, NF4, compute_dtype="bfloat16")
    if not cure:
        for layer in linear4bit(model):
            layer.support_avx512bf16_for_cpu = True
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(
        model, LoraConfig(r=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    ids = torch.arange(100, 164).view(2, 32)
    if evaluate_first:
        model.eval()
        with torch.no_grad():
            model(input_ids=ids)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def has_inference_kernel(base_path) -> bool:
    import bitsandbytes.nn.modules as modules

    check = getattr(modules, "has_avx512bf16", None)
    return bool(check and check())


def test_gradients_after_an_evaluation_equal_those_before(base_path):
    before = lora_gradients(base_path, cure=True, evaluate_first=False)
    after = lora_gradients(base_path, cure=True, evaluate_first=True)
    assert before.keys() == after.keys() and len(before) == 4 * 3 * 2
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_the_cure_gradients_change(base_path):
    if not has_inference_kernel(base_path):
        pytest.skip("this CPU lacks AVX512-BF16, so bitsandbytes has no inference kernel for it")
    before = lora_gradients(base_path, cure=False, evaluate_first=False)
    after = lora_gradients(base_path, cure=False, evaluate_first=True)
    differing = [n for n in before if after[n] is None or not torch.equal(before[n], after[n])]
    assert differing, "bitsandbytes fixed its kernel: keep_gradients_exact is no longer needed"


def test_the_cure_reaches_models_loaded_elsewhere(base_path):
    model = load_model(base_path, NF4)
    for layer in linear4bit(model):
        layer.support_avx512bf16_for_cpu = True
    keep_gradients_exact(model)
    assert not any(layer.support_avx512bf16_for_cpu for layer in linear4bit(model))


# ---- TRL casts the adapters of a quantised model to bf16


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_adapters_train_in_fp32(runs, small_profile, stage):
    small_profile.order = [stage]
    trainer = training.build_trainer(training.open_stage(Run.open("t", small_profile, 42), stage))
    trainable = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert {p.dtype for p in trainable.values()} == {torch.float32}


def test_without_the_cure_trl_leaves_bf16(runs, small_profile, monkeypatch):
    small_profile.order = ["sft"]
    monkeypatch.setattr(training, "adapters_in_fp32", lambda model: None)
    trainer = training.build_trainer(training.open_stage(Run.open("t", small_profile, 42), "sft"))
    dtypes = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert dtypes == {torch.bfloat16}, "TRL fixed its cast: adapters_in_fp32 is no longer needed"


# ---- the tokenizer


def test_blank_line_is_one_piece_at_a_prompts_end_and_before_a_word(tokenizer):
    assert len(tokenizer("\n\n", add_special_tokens=False)["input_ids"]) == 1
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Turin."}], return_dict=False
    )
    assert whole[: len(prompt)] == prompt


def test_gpt2s_split_would_break_it():
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    at_the_end = [piece for piece, _ in gpt2.pre_tokenize_str("\n\n")]
    before_a_word = [piece for piece, _ in gpt2.pre_tokenize_str("\n\nTurin")]
    assert before_a_word[: len(at_the_end)] != at_the_end


def test_padding_is_no_end_of_turn(tokenizer):
    assert tokenizer.pad_token == "<|reserved_special_token_0|>"
    assert tokenizer.pad_token_id not in {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end_of_text|>")}


# ---- generation


def test_batched_answers_equal_single_ones(model, tokenizer):
    assert tokenizer.padding_side == "left"
    assert chat(model, tokenizer, PROMPTS) == [chat(model, tokenizer, [prompt])[0] for prompt in PROMPTS]


def test_padding_on_the_right_spoils_them(model, tokenizer):
    right = copy.deepcopy(tokenizer)
    right.padding_side = "right"
    assert chat(model, right, PROMPTS) != chat(model, tokenizer, PROMPTS)


# ---- merging


def test_merged_model_equals_base_plus_adapter(base_path, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(base_path), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(base_path, tmp_path / "adapter", tmp_path / "merged")
    ids = torch.arange(200, 232).view(1, 32)
    with torch.no_grad():
        expected = in_float64(adapted)(input_ids=ids).logits
        merged = in_float64(load_model(tmp_path / "merged").eval())(input_ids=ids).logits
        plain = in_float64(load_model(base_path).eval())(input_ids=ids).logits
    assert torch.allclose(merged, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(merged, plain, atol=1e-2)


def test_a_weight_in_four_bits_counts_as_the_weights_it_stands_for(base_path, model):
    quantised = load_model(base_path, NF4)
    assert parameter_counts(quantised)["all"] == sum(weight.numel() for weight in model.parameters())
    packed = quantised.get_submodule("model.layers.0.mlp.up_proj").weight
    assert (
        weight_count(packed) == 2 * packed.numel() == model.get_submodule("model.layers.0.mlp.up_proj").weight.numel()
    )


def test_one_weight_is_read_without_the_rest(base_path, model):
    for name, weight in list(model.named_parameters())[:5]:
        assert torch.equal(read_weight(base_path, name).float(), weight)
    with pytest.raises(AnitaError, match="no weight 'model.nowhere': restore the model"):
        read_weight(base_path, "model.nowhere")


def test_loading_a_model_lets_go_of_one_in_a_circle(base_path):
    """A trainer and its model refer to each other; on a GPU nothing else would free the model in time."""
    first = load_model(base_path)
    first.circle, seen = [first], weakref.ref(first)
    del first
    assert seen() is not None
    load_model(base_path)
    assert seen() is None
