"""DPO is its formula: on a model whose log-probabilities are a table made by hand, and on the course's own stage."""

import numpy as np
import pytest
import torch
from exact import summed_in_float64

from anita_utils import stages, training
from anita_utils.model import load_model
from anita_utils.run import Run

WORDS, BETA = 16, 0.3
PAIRS = {  # answers of unlike lengths, so that sums and means of log-probabilities say different things
    "prompt_ids": [[0, 3, 5], [0, 2]],
    "chosen_ids": [[1, 4, 1, 5, 9, 14], [2, 7, 14]],
    "rejected_ids": [[8, 14], [1, 8, 2, 8, 14]],
}


def table(a, b):
    """Log-probabilities of the next word (columns) after each word (rows), from small whole numbers."""
    weights = np.array([[1 + (a * now + b * after) % 7 for after in range(WORDS)] for now in range(WORDS)], float)
    return np.log(weights / weights.sum(axis=1, keepdims=True))


POLICY, REFERENCE = table(3, 5), table(2, 3)


def table_model(log_probabilities):
    """A Llama without layers: one-hot embeddings, a norm that leaves them so, and the table as its head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=WORDS, hidden_size=WORDS, intermediate_size=WORDS, num_hidden_layers=0,
                         num_attention_heads=1, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data = torch.eye(WORDS)
    model.model.norm.weight.data.fill_((1 / WORDS + config.rms_norm_eps) ** 0.5)
    model.lm_head.weight.data = torch.tensor(log_probabilities.T, dtype=torch.float32)
    return model


def steps_of(prompt, answer):
    """The pairs (word, next word) whose log-probabilities make up an answer's."""
    return list(zip([prompt[-1], *answer[:-1]], answer, strict=True))


def log_probability(table, prompt, answer):
    return sum(table[step] for step in steps_of(prompt, answer))


@pytest.fixture
def trainer(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w13"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w15", eos_token="w14", unk_token="w13")
    config = DPOConfig(output_dir=str(tmp_path), beta=BETA, use_cpu=True, bf16=False, report_to="none",
                       disable_tqdm=True, per_device_train_batch_size=2, gradient_checkpointing=False)  # fmt: skip

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset, *rest):
            return dataset  # the ids are made by hand too

    trainer = Ready(table_model(POLICY), ref_model=table_model(REFERENCE), args=config,
                    train_dataset=Dataset.from_dict(PAIRS), processing_class=tokenizer)  # fmt: skip
    for model in (trainer.model, trainer.ref_model):
        summed_in_float64(model)  # as the closed form is
    return trainer


def test_loss_rewards_margins_and_gradients_are_the_closed_form(trainer):
    pairs = list(zip(*PAIRS.values(), strict=True))
    rewards = {
        side: np.array([BETA * (log_probability(POLICY, pair[0], pair[place])
                                - log_probability(REFERENCE, pair[0], pair[place])) for pair in pairs])
        for side, place in (("chosen", 1), ("rejected", 2))
    }  # fmt: skip
    margins = rewards["chosen"] - rewards["rejected"]
    loss = np.log1p(np.exp(-margins)).mean()

    gradient = np.zeros((WORDS, WORDS))  # of the loss with respect to the table
    for pair, margin in zip(pairs, margins, strict=True):
        pull = BETA / (1 + np.exp(margin)) / len(pairs)
        for place, sign in ((1, -1), (2, 1)):
            for now, after in steps_of(pair[0], pair[place]):
                gradient[now] -= sign * pull * np.exp(POLICY[now])
                gradient[now, after] += sign * pull

    batch = trainer.data_collator(list(trainer.train_dataset))
    found = trainer.compute_loss(trainer.model.train(), batch)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-5)
    assert trainer.model.lm_head.weight.grad.T.numpy() == pytest.approx(gradient, abs=1e-5)
    assert np.abs(gradient).max() > 0.01

    trainer.log({})
    logged = trainer.state.log_history[-1]
    expected = {f"rewards/{side}": values.mean() for side, values in rewards.items()}
    expected |= {"rewards/margins": margins.mean(), "rewards/accuracies": (margins > 0).mean()}
    for place, side in ((1, "chosen"), (2, "rejected")):
        expected[f"logps/{side}"] = np.mean([log_probability(POLICY, pair[0], pair[place]) for pair in pairs])
    assert {name: logged[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_log_probabilities_are_summed_not_averaged(trainer):
    batch = trainer.data_collator(list(trainer.train_dataset))
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    for found, side in ((chosen, "chosen_ids"), (rejected, "rejected_ids")):
        sums = [log_probability(REFERENCE, *pair) for pair in zip(PAIRS["prompt_ids"], PAIRS[side], strict=True)]
        assert found.tolist() == pytest.approx(sums, abs=1e-5)
        assert found.tolist() != pytest.approx([s / len(a) for s, a in zip(sums, PAIRS[side], strict=True)], abs=0.5)


# ---- the course's own stage


def answer_log_probabilities(model, batch):
    """Sums over the answers, from the whole logits of a plain forward pass: first all chosen, then all rejected."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    of_tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (of_tokens * batch["completion_mask"][:, 1:]).sum(1)


def test_the_reference_is_the_stage_before_and_stands_still(runs, tiny_profile):
    run = Run.open("t", tiny_profile, 42)
    assert stages.find_stage(run, "dpo").parent_path == stages.find_stage(run, "italian").merged
    tiny_profile.order = ["dpo"]
    stage = stages.find_stage(Run.open("t", tiny_profile, 42), "dpo")
    trainer = training.build_trainer(stage)
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
    before = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
    parent = load_model(stage.parent_path, tiny_profile.quantisation)
    assert before.tolist() == pytest.approx(answer_log_probabilities(parent, batch).tolist(), abs=1e-3)
    trainer.train()
    assert torch.equal(torch.cat(trainer.compute_ref_log_probs(trainer.model, batch)), before)
    moved = answer_log_probabilities(trainer.model.eval(), batch)
    assert (moved - before).abs().max() > 0.01


def test_a_reference_computed_beforehand_gives_the_same_training(runs, tiny_profile, monkeypatch):
    tiny_profile.order = ["dpo"]
    tiny_profile.stages["dpo"].examples = 32
    stage = stages.find_stage(Run.open("t", tiny_profile, 42), "dpo")
    own = training.training_arguments
    histories = []
    for precomputed in (False, True):
        changes = {"precompute_ref_log_probs": precomputed, "logging_steps": 1, "save_strategy": "no"}
        monkeypatch.setattr(training, "training_arguments", lambda stage, changes=changes: {**own(stage), **changes})
        trainer = training.build_trainer(stage)
        trainer.train()
        histories.append([row for row in trainer.state.log_history if "loss" in row])
    assert len(histories[0]) == 8
    for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins"):
        live, beforehand = ([row[name] for row in history] for history in histories)
        assert beforehand == pytest.approx(live, abs=1e-4), name
