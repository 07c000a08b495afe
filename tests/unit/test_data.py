"""Masks, packing and reading, against the library's own paths and against losses computed one example at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anita_utils import AnitaError
from anita_utils.data import (
    IGNORED,
    PackedCollator,
    encode,
    encode_chat,
    encode_text,
    like_lengths,
    pack,
    packed_rows,
    render,
)
from anita_utils.model import load_tokenizer
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl

CHATS = [
    [{"role": "user", "content": "What is the capital of Piedmont?"}, {"role": "assistant", "content": "Turin."}],
    [
        {"role": "system", "content": "Rispondi in modo chiaro."},
        {"role": "user", "content": "Dov'è il Colosseo?"},
        {"role": "assistant", "content": "Il Colosseo è a Roma."},
        {"role": "user", "content": "E il Po, dove sfocia?"},
        {"role": "assistant", "content": "Il Po sfocia nel mare Adriatico."},
    ],
]


@pytest.mark.parametrize("messages", CHATS)
def test_only_the_assistants_words_are_scored(tokenizer, messages):
    example = encode_chat(messages, tokenizer, 1024)
    scored = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED]
    said = "".join(f"{m['content']}<|eot_id|>" for m in messages if m["role"] == "assistant")
    assert tokenizer.decode(scored) == said
    # transformers' own mask, from the template's generation marks
    own = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert [int(label != IGNORED) for label in example["labels"]] == list(own["assistant_masks"])


@pytest.mark.parametrize("messages", CHATS)
def test_exactly_one_bos(tokenizer, messages):
    assert render(messages, tokenizer).count(tokenizer.bos_token_id) == 1
    assert encode_chat(messages, tokenizer, 1024)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_text_that_begins_with_bos_gets_no_second(tokenizer):
    plain, marked = (encode_text(text, tokenizer, 64) for text in ("Il Po.", "<|begin_of_text|>Il Po."))
    assert plain == marked
    assert plain["input_ids"].count(tokenizer.bos_token_id) == 1
    assert plain["labels"][0] == IGNORED and plain["labels"][1:] == plain["input_ids"][1:]


def test_a_tokenizer_of_another_family_ends_text_and_pads_with_its_own_tokens(tmp_path):
    """Padding with the end of a turn, nothing reserved: as SmolLM2's, so far as we know it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "Il", "Po"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"unk_token": words[0], "bos_token": words[1], "eos_token": words[2], "pad_token": words[2]}
    PreTrainedTokenizerFast(tokenizer_object=plain, **marks).save_pretrained(tmp_path / "spare")
    other = load_tokenizer(tmp_path / "spare")
    assert other.pad_token == words[0] and other.padding_side == "left"
    assert other.convert_ids_to_tokens(encode_text("Il Po", other, 64)["input_ids"]) == [words[1], "Il", "Po", words[2]]
    PreTrainedTokenizerFast(tokenizer_object=plain, **marks | {"unk_token": words[2]}).save_pretrained(
        tmp_path / "none"
    )
    with pytest.raises(AnitaError, match="none: no token to pad with"):
        load_tokenizer(tmp_path / "none")


def test_truncation_keeps_labels_and_tokens_together(tokenizer):
    example = encode_chat(CHATS[1], tokenizer, 20)
    assert len(example["input_ids"]) == len(example["labels"]) == 20


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
@settings(deadline=None, max_examples=100)
def test_packing_loses_nothing_and_overfills_no_row(lengths):
    rows = pack(lengths, 64)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= 64 for row in rows)
    # best fit needs at most 1.7 times the least number of rows, plus one (Johnson, 1974)
    assert len(rows) <= 1.7 * -(-sum(lengths) // 64) + 1


def example_losses(model, tokenizer, documents):
    losses = []
    for document in documents:
        encoded = encode_chat(document["messages"], tokenizer, 256)
        ids, labels = torch.tensor([encoded["input_ids"]]), torch.tensor([encoded["labels"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        losses.append(
            torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum")
        )
    return torch.stack(losses)


def test_packed_losses_equal_those_alone(model, tokenizer):
    documents = read_jsonl(data_dir() / "corpora" / "sft.jsonl")[:24]
    rows = packed_rows(documents, tokenizer, 256)
    assert len(rows) < len(documents) / 2
    batch = PackedCollator(tokenizer.pad_token_id)(list(rows))
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
    packed = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    alone = example_losses(model, tokenizer, documents).sum()
    assert packed.item() == pytest.approx(alone.item(), rel=1e-4)


def test_no_example_sees_its_neighbour(model, tokenizer):
    rows = packed_rows([{"messages": chat} for chat in CHATS], tokenizer, 256)
    assert len(rows) == 1
    batch = PackedCollator(tokenizer.pad_token_id)(list(rows))
    batch.pop("labels")
    second = rows[0]["position_ids"].index(0, 1)
    with torch.no_grad():
        before = model(**batch, use_cache=False).logits[0, second:]
        batch["input_ids"][0, 1:second] = 7
        after = model(**batch, use_cache=False).logits[0, second:]
    assert torch.equal(before, after)


def test_what_was_encoded_before_packs_the_same(tokenizer):
    documents = [*({"messages": chat} for chat in CHATS), {"text": "Il Po nasce dal Monviso."}]
    encoded = [encode(document, tokenizer) for document in documents]
    for limit in (256, 20):
        assert packed_rows(encoded, tokenizer, 256, limit)[:] == packed_rows(documents, tokenizer, 256, limit)[:]


def test_malformed_line_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(AnitaError, match=r"rows\.jsonl, line 2: not JSON"):
        read_jsonl(file)
    file.write_text("12\n")
    with pytest.raises(AnitaError, match="line 1: not a JSON object"):
        read_jsonl(file)


def test_unknown_columns_are_named(tokenizer):
    with pytest.raises(AnitaError, match=r"\['answer'\]: expected `messages` or `text`"):
        packed_rows([{"answer": "x"}], tokenizer, 64)


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 9), st.integers(0, 3))
def test_batches_of_like_length_hold_every_row_once_and_little_padding(lengths, batch_size, seed):
    order = like_lengths(lengths, batch_size, seed)
    assert sorted(order) == list(range(len(lengths)))
    assert order == like_lengths(lengths, batch_size, seed)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    ranges = sorted((min(lengths[n] for n in batch), max(lengths[n] for n in batch)) for batch in batches)
    assert all(first[1] <= second[0] for first, second in zip(ranges, ranges[1:], strict=False))  # they do not overlap


def test_batches_of_like_length_come_in_a_drawn_order():
    order = like_lengths(list(range(100)), 10, seed=0)
    firsts = [order[start] for start in range(0, 100, 10)]
    assert firsts != sorted(firsts) and order != like_lengths(list(range(100)), 10, seed=1)
