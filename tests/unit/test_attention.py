"""Attention text by text: sdpa's own numbers and gradients, whatever lies in a row; other calls as they were."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from anita_utils import attention

LENGTHS = [[1, 7, 20, 4], [32], [2, 2, 2, 26]]  # of the texts of three rows


def llama(heads: int = 4, key_value_heads: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=key_value_heads, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture
def packed() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    places = [[place for length in row for place in range(length)] for row in LENGTHS]
    return {"input_ids": torch.randint(0, 50, (3, 32)), "position_ids": torch.tensor(places)}


def logits_and_gradients(model, batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits
    logits.float().log_softmax(-1)[..., 3].sum().backward()
    return logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_numbers_and_gradients_are_those_of_sdpa_on_each_text_alone(packed, key_value_heads):
    model = llama(key_value_heads=key_value_heads)
    masked, expected = logits_and_gradients(model, packed)
    attention.keep_to_texts(model)
    assert model.config._attn_implementation == attention.NAME
    logits, gradients = logits_and_gradients(model, packed)
    assert torch.allclose(logits, masked, atol=1e-5)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(gradients, expected, strict=True))
    for row, lengths in enumerate(LENGTHS):  # and with no packing at all
        parts = packed["input_ids"][row].split(lengths)
        alone = torch.cat([model(input_ids=part[None]).logits[0] for part in parts])
        assert torch.allclose(logits[row], alone, atol=1e-5)


def test_the_row_is_really_taken_apart(packed, monkeypatch):
    """Else equal numbers would prove nothing: no product is wider than the longest text, and none holds a mask."""
    model, widths = llama(), []
    attention.keep_to_texts(model)
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **options):
        widths.append((query.shape[0], query.shape[2]))
        assert options.get("attn_mask") is None
        return plain(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model(**packed, use_cache=False)
    assert sorted(widths[: len(widths) // 2]) == [(1, 1), (1, 4), (1, 7), (3, 2), (3, 32)]


def test_texts_of_like_length_come_together():
    groups = attention.texts_by_length(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]))
    found = [(places.tolist(), own.tolist()) for places, own in groups]
    assert found == [
        ([[5]], [[True]]),
        ([[3, 4]], [[True, True]]),
        ([[0, 1, 2, 2], [6, 7, 8, 9]], [[True, True, True, False], [True] * 4]),
    ]


def test_a_row_that_begins_inside_a_text_is_one_text_more():
    groups = attention.texts_by_length(torch.tensor([[5, 6, 0, 1]]))
    assert [places.tolist() for places, _ in groups] == [[[0, 1], [2, 3]]]


def test_padding_plain_rows_and_generation_go_by_sdpa():
    model = llama().eval()
    ids = torch.randint(1, 50, (2, 9))
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 0] + [1] * 6, [1] * 9])}
    calls = [padded, {"input_ids": ids}, {"input_ids": ids, "position_ids": torch.arange(9)[None]}]
    expected = [model(**call).logits for call in calls]
    answers = model.generate(**padded, max_new_tokens=5, do_sample=False, pad_token_id=0)
    attention.keep_to_texts(model)
    for call, logits in zip(calls, expected, strict=True):
        assert torch.equal(model(**call).logits, logits)
    assert torch.equal(model.generate(**padded, max_new_tokens=5, do_sample=False, pad_token_id=0), answers)


def test_a_family_with_a_window_of_its_own_is_left_alone():
    config = MistralConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                           num_attention_heads=4, num_key_value_heads=2, sliding_window=8)  # fmt: skip
    model = MistralForCausalLM(config)
    before = model.config._attn_implementation
    attention.keep_to_texts(model)
    assert model.config._attn_implementation == before != attention.NAME


def test_a_model_with_an_adapter_is_switched(packed):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    expected = model(**packed, use_cache=False).logits
    attention.keep_to_texts(model)
    assert model.config._attn_implementation == attention.NAME
    assert torch.allclose(model(**packed, use_cache=False).logits, expected, atol=1e-5)
