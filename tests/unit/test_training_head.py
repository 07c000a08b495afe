"""The head on scored tokens only gives what TRL's own head gives: losses, gradients, and all that is logged."""

import math

import pytest
import torch
from exact import in_float64, summed_in_float64
from torch.nn.functional import cross_entropy

from anita_utils import training
from anita_utils.data import IGNORED
from anita_utils.run import Run
from anita_utils.stages import find_stage
from anita_utils.training import token_scores

# What both heads must agree on, to rounding: "entropy" and the like are what TRL logs of each step.
LOGGED = {
    "sft": ["entropy", "mean_token_accuracy", "num_tokens"],
    "dpo": ["entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected", "rewards/margins", "logps/chosen"],
}


def test_scores_by_hand():
    """Three words with probabilities 1/2, 1/4, 1/4; the label is the likeliest, then it is not."""
    logits = torch.tensor([[2.0, 1.0, 1.0]] * 2) * math.log(2)
    scores = {name: score.tolist() for name, score in token_scores(logits, torch.tensor([0, 2])).items()}
    assert scores["log_probs"] == pytest.approx([math.log(1 / 2), math.log(1 / 4)])
    assert scores["entropy"] == pytest.approx([1.5 * math.log(2)] * 2)
    assert scores["mean_logits"] == pytest.approx([4 / 3 * math.log(2)] * 2)
    assert scores["is_top1"] == [True, False]


def test_a_batch_without_a_scored_token_has_no_scores():
    scores = token_scores(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    assert all(score.shape == (0,) for score in scores.values())


def step(stage, batch_of):
    """One step's loss, its gradients and what is logged. batch_of: makes the batch from the trainer."""
    trainer = training.build_trainer(stage)
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():  # an adapter's B is zero at first, and hides A's gradient
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    summed_in_float64(in_float64(trainer.model))  # else rounding takes up to a third of what gradients may differ by
    loss = trainer.compute_loss(trainer.model.train(), batch_of(trainer))
    loss.backward()
    trainer.log({})
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    return loss.item(), gradients, trainer.state.log_history[-1]


def first_rows(trainer):
    return trainer.data_collator([trainer.train_dataset[number] for number in range(4)])


def nothing_scored(trainer):
    batch = first_rows(trainer)
    return batch | {"labels": torch.full_like(batch["labels"], IGNORED)}


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_it_trains_as_trls_own_head_does(runs, tiny_profile, monkeypatch, name):
    tiny_profile.order = [name]
    stage = find_stage(Run.open("t", tiny_profile, 42), name)
    loss, gradients, logged = step(stage, first_rows)
    monkeypatch.setattr(training, "score_labels_only", lambda model: None)
    loss_by_trl, gradients_by_trl, logged_by_trl = step(stage, first_rows)

    assert loss == pytest.approx(loss_by_trl, abs=1e-5)
    assert gradients.keys() == gradients_by_trl.keys() and gradients
    for weight, gradient in gradients.items():
        by_trl = gradients_by_trl[weight]  # rounding is as large as the matrix's own numbers, not as each near 0
        assert (gradient - by_trl).norm() <= 1e-5 * by_trl.norm(), weight
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    found = {key: logged[key] for key in LOGGED[name]}
    assert found == pytest.approx({key: logged_by_trl[key] for key in LOGGED[name]}, abs=1e-4)


def test_a_step_in_which_nothing_is_scored_learns_nothing(runs, tiny_profile):
    tiny_profile.order = ["sft"]
    loss, gradients, _ = step(find_stage(Run.open("t", tiny_profile, 42), "sft"), nothing_scored)
    assert loss == 0 and not any(gradient.any() for gradient in gradients.values())


def test_any_other_call_is_the_models_own(runs, tiny_profile, monkeypatch):
    """Whole logits, and the loss of a plain call with labels, as before."""
    tiny_profile.order = ["sft"]
    trainer = training.build_trainer(find_stage(Run.open("t", tiny_profile, 42), "sft"))
    batch = first_rows(trainer)
    labels = batch.pop("labels")
    with torch.no_grad():
        plain, scored = trainer.model(**batch), trainer.model(**batch, labels=labels)
    assert plain.logits.shape == (*labels.shape, trainer.model.config.vocab_size)
    assert torch.equal(plain.logits, scored.logits)
    loss = cross_entropy(plain.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert scored.loss.item() == pytest.approx(loss.item(), abs=1e-5)


def test_a_family_that_caps_its_logits_keeps_trls_head(runs, tiny_profile, monkeypatch):
    """Its scores are not the head's product alone: without the cap the loss would be another, without a word."""
    tiny_profile.order = ["sft"]
    load = training.load_for_training

    def capped(stage):
        model, tokenizer = load(stage)
        model.config.final_logit_softcapping = 0.1
        return model, tokenizer

    monkeypatch.setattr(training, "load_for_training", capped)
    trainer = training.build_trainer(find_stage(Run.open("t", tiny_profile, 42), "sft"))
    loss = trainer.compute_loss(trainer.model, first_rows(trainer)).item()
    assert loss == pytest.approx(math.log(trainer.model.config.vocab_size), rel=0.02)  # all words nearly as likely


def test_the_head_sees_scored_tokens_only(runs, tiny_profile):
    """What the change is for: fails when TRL's head, which scores every place, is in use."""
    tiny_profile.order = ["sft"]
    trainer = training.build_trainer(find_stage(Run.open("t", tiny_profile, 42), "sft"))
    batch, seen = first_rows(trainer), []
    trainer.model.get_output_embeddings().register_forward_hook(lambda _, states, logits: seen.append(len(logits)))
    trainer.compute_loss(trainer.model.train(), dict(batch))
    scored = int((batch["labels"][:, 1:] != IGNORED).sum())
    assert seen == [scored] and scored < batch["labels"].numel() / 2
