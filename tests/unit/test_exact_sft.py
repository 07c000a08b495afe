"""SFT is the textbook computation: masks written by hand, packed rows like lone examples, a bare PyTorch loop."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from anita_utils import attention, stages, training
from anita_utils.data import IGNORED, PackedCollator, encode_chat, encode_text, packed_rows
from anita_utils.model import load_model
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from anita_utils.run import Run

ASK = {"role": "user", "content": "What is the capital of Piedmont?"}
ANSWER = {"role": "assistant", "content": "The capital of Piedmont is Turin."}
AGAIN = [{"role": "user", "content": "E dov'è il Colosseo?"}, {"role": "assistant", "content": "Il Colosseo è a Roma."}]
SYSTEM = {"role": "system", "content": "Rispondi in modo chiaro."}
CHATS = {
    "one turn": [ASK, ANSWER],
    "two turns": [ASK, ANSWER, *AGAIN],
    "system, one turn": [SYSTEM, ASK, ANSWER],
    "system, two turns": [SYSTEM, ASK, ANSWER, *AGAIN],
}


def by_hand(messages, tokenizer):
    """Llama 3's format spelt out, without template: token ids and labels, piece by piece."""
    ids, labels = tokenizer.convert_tokens_to_ids(["<|begin_of_text|>"]), [IGNORED]
    for message in messages:
        head = f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n"
        for piece, scored in ((head, False), (message["content"] + "<|eot_id|>", message["role"] == "assistant")):
            tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += tokens
            labels += tokens if scored else [IGNORED] * len(tokens)
    return ids, labels


@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS)
def test_masks_are_those_written_by_hand_however_short_the_cut(tokenizer, messages):
    ids, labels = by_hand(messages, tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert sum(label == tokenizer.eos_token_id for label in labels) == sum(m["role"] == "assistant" for m in messages)
    for length in range(1, len(ids) + 2):
        assert encode_chat(messages, tokenizer, length) == {"input_ids": ids[:length], "labels": labels[:length]}


def test_tokens_are_lost_only_by_cutting_and_are_counted(tokenizer):
    documents = [{"messages": chat} for chat in CHATS.values()] + [{"text": "Il Po attraversa Torino. " * 9}]
    whole = [encode_chat(chat, tokenizer)["input_ids"] for chat in CHATS.values()]
    whole.append(encode_text(documents[-1]["text"], tokenizer)["input_ids"])
    limit = 32
    assert min(map(len, whole)) < limit < max(map(len, whole))
    rows = packed_rows(documents, tokenizer, 64, limit)
    kept = sorted(token for ids in whole for token in ids[:limit])
    assert sorted(token for row in rows["input_ids"] for token in row) == kept
    counts = training.packing_summary(rows, 64)
    assert counts["tokens"] + counts["cut_tokens"] == sum(map(len, whole))
    assert training.packing_summary(packed_rows(documents, tokenizer, 256), 256)["cut_tokens"] == 0


@pytest.fixture(scope="module")
def tiny(tiny_path):
    return load_model(tiny_path).eval()


@pytest.fixture(scope="module")
def batch(tokenizer):
    """24 chats in a few packed rows, one of them shorter than the others."""
    documents = read_jsonl(data_dir() / "corpora" / "sft.jsonl")[:24]
    batch = PackedCollator(tokenizer.pad_token_id)(list(packed_rows(documents, tokenizer, 256)))
    assert 2 < len(batch["input_ids"]) < 12 and (batch["input_ids"] == tokenizer.pad_token_id).any()
    return batch


def examples(batch):
    """Where each example lies in a packed batch: row, first place, end. Padding counts as one, unscored."""
    for row, places in enumerate(batch["position_ids"]):
        starts = (places == 0).nonzero().flatten().tolist()
        yield from ((row, first, end) for first, end in zip(starts, [*starts[1:], len(places)], strict=True))


def test_each_packed_example_has_the_loss_it_has_alone(tiny, batch):
    ids, labels, places = batch["input_ids"], batch["labels"], batch["position_ids"]
    with torch.no_grad():
        logits = tiny(input_ids=ids, position_ids=places, use_cache=False).logits
        scored = 0
        for row, first, end in examples(batch):
            targets = labels[row, first + 1 : end]
            if (targets == IGNORED).all():
                continue
            packed = cross_entropy(logits[row, first : end - 1], targets)
            alone = cross_entropy(tiny(input_ids=ids[row : row + 1, first:end]).logits[0, :-1], targets)
            assert packed.item() == pytest.approx(alone.item(), abs=1e-4)
            scored += 1
    assert scored == 24


def test_no_gradient_flows_between_examples(tiny, batch):
    row, first, end = list(examples(batch))[1]
    assert row == 0 and first > 0
    embedded = tiny.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = tiny(inputs_embeds=embedded, position_ids=batch["position_ids"], use_cache=False).logits
    cross_entropy(logits[row, first : end - 1], batch["input_ids"][row, first + 1 : end]).backward()
    reached = embedded.grad.abs().sum(-1) > 0
    assert reached[row, first : end - 1].all()
    reached[row, first : end - 1] = False
    assert not reached.any()


def bare_loop(model, batches, settings, rate_at):
    """Plain PyTorch: forward, mean loss over the scored tokens, backward, clipping to 1, AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=settings.weight_decay)
    losses = []
    for step, batch in enumerate(batches):
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.param_groups[0]["lr"] = rate_at(step)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_hundred_updates_are_those_of_a_bare_loop(runs, tiny_profile, monkeypatch):
    settings = tiny_profile.stages["sft"]
    settings.examples, settings.per_device_train_batch_size, settings.warmup_steps = 400, 2, 10
    settings.learning_rate = 1e-3
    own = training.training_arguments
    changes = {"logging_steps": 1, "max_steps": 100, "save_strategy": "no"}
    monkeypatch.setattr(training, "training_arguments", lambda stage: {**own(stage), **changes})
    stage = stages.find_stage(Run.open("t", tiny_profile, 42), "sft")

    trainer = training.build_trainer(stage)
    fresh = {name: weight.clone() for name, weight in trainer.model.state_dict().items() if "lora_" in name}
    trainer.train()
    ours = [row["loss"] for row in trainer.state.log_history if "loss" in row]

    from peft import get_peft_model

    model = get_peft_model(training.load_for_training(stage)[0], training.lora_config(stage)).train()
    model.load_state_dict(fresh, strict=False)
    loader = trainer.get_train_dataloader()  # the same rows in the same order
    batches = [batch for _ in range(100) for batch in loader][:100]
    rates = [settings.learning_rate * min(step / 10, (100 - step) / 90) for step in range(100)]
    bare = bare_loop(model, batches, settings, rates.__getitem__)
    assert len(ours) == 100 and ours[0] - ours[-1] > 0.5
    assert ours == pytest.approx(bare, abs=1e-4)
    # two ways of attending to the same texts: one by one, and through a mask over the whole row
    assert (trainer.model.config._attn_implementation, model.config._attn_implementation) == (attention.NAME, "sdpa")
