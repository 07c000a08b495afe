"""Curves: arms measured while they train, which come out the same, and what is measured on the way."""

import numpy as np
import pytest
from few_arms import ARMS, quiet

from anita_utils import stages, training
from anita_utils.ablation import campaign, results
from anita_utils.ablation.arms import load_ablation
from anita_utils.evaluation import measuring
from anita_utils.hub import model_key
from anita_utils.run import Run
from anita_utils.studies import forgetting


def on_the_way(model, tokenizer, profile):
    """Something of the model that any update moves, and whether it was told to be still."""
    weights = sum(float(weight.detach().abs().sum()) for name, weight in model.named_parameters() if "lora_B" in name)
    return [{"metric": "moved", "language": "all", "split": None, "value": weights, "n": int(model.training)}]


def test_a_watched_arm_is_measured_on_its_way_and_comes_out_the_same(runs, tiny, done, arms, kept_results, monkeypatch):
    monkeypatch.setattr(forgetting, "held_out", on_the_way)
    longer = {"order": ["sft"], "stages.sft.num_train_epochs": 12}
    values = ARMS | {"arms": ARMS["arms"] | {"long": {"asks": "And longer?", "points": 4, "set": longer}}}
    found = load_ablation(arms(values))
    run, cells = campaign.ablate(tiny, found, [1], ["long"], keep=True, say=quiet)
    curve = results.load_kept("cpu").curve("long")
    moved = curve[curve["metric"] == "moved"]
    cell = next(cell for cell in cells if cell.arm == "long")
    steps = cell.stages[0].info["steps"]
    assert list(moved["update"]) == [round(n * steps / 4) for n in range(5)] and set(moved["n"]) == {0}
    assert moved["value"].iloc[0] == 0 and (moved["value"].iloc[1:] > 0).all()
    assert "train/loss" in set(curve["metric"])
    watched_model = model_key(cell.model)

    # unwatched it comes to the very same model; then to watch it takes another training, for nobody can look back
    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("unwatched")))
    values["arms"]["long"]["points"] = 0
    _, cells = campaign.ablate(tiny, load_ablation(arms(values)), [1], ["long"], say=quiet)
    unwatched = next(cell for cell in cells if cell.arm == "long")
    assert model_key(unwatched.model) == watched_model
    assert not forgetting.complete(forgetting.curve(unwatched.stages[-1], 4))
    count = len(done.trained)
    forgetting.watched(unwatched.stages[-1], 4)
    assert len(done.trained) == count + 1 and forgetting.complete(forgetting.curve(unwatched.stages[-1], 4))
    forgetting.watched(unwatched.stages[-1], 4)
    assert len(done.trained) == count + 1  # from the cache


def test_a_killed_watched_training_keeps_its_points(runs, tiny, monkeypatch):
    """Points up to the checkpoint stay, later ones are measured again: the curve is that of an unbroken training."""
    monkeypatch.setattr(training, "SAVE_EVERY", 10)
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    tiny.order, tiny.stages["sft"].num_train_epochs = ["sft"], 20
    stage = stages.find_stage(Run.open("whole", tiny, 1), "sft")
    whole = forgetting.watched(stage, 8, on_the_way)
    calls = []

    def dies(model, tokenizer, profile):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return on_the_way(model, tokenizer, profile)

    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("killed")))
    stage = stages.find_stage(Run.open("killed", tiny, 1), "sft")
    with pytest.raises(KeyboardInterrupt):
        forgetting.watched(stage, 8, dies)
    before = forgetting.curve(stage, 8).read()
    assert len(before) == 6 and not forgetting.complete(forgetting.curve(stage, 8))
    again = []
    rows = forgetting.watched(stage, 8, lambda *args: again.append(1) or on_the_way(*args))
    assert rows == whole and 0 < len(again) < 9


def test_what_is_measured_on_the_way(tiny, random_model):
    """On a model of random weights: pairs by kind, and an entropy near the logarithm of the vocabulary."""
    from anita_utils.model import load_model, load_tokenizer

    model, tokenizer = load_model(random_model).eval(), load_tokenizer(random_model)
    rows = {(row["metric"], row["language"], row["split"]): row for row in forgetting.held_out(model, tokenizer, tiny)}
    assert {("pairs/accuracy", "all", split) for split in ("rule", "fact")} < set(rows)
    assert ("chat/accuracy_in_language", "en", "seen") in rows
    assert ("refusal/harmful", "all", "held_out_wordings") in rows
    assert 0.9 * np.log(len(tokenizer)) < rows["entropy", "all", None]["value"] <= np.log(len(tokenizer))
    pairs = measuring.probes("preferences")
    facts = [pair for pair in pairs if pair["kind"] in forgetting.FACTS]
    assert rows["pairs/accuracy", "all", "fact"]["n"] == len(facts)
    measured = measuring.preferences(model, tokenizer, facts, 64)[0].scores
    assert rows["pairs/accuracy", "all", "fact"]["value"] == pytest.approx(np.mean(np.array(measured) > 0))


def test_entropy_is_that_of_the_answers_own_tokens(random_model):
    """Against torch's, token by token, on answers of different lengths in one batch."""
    import torch

    from anita_utils.data import encode_chat
    from anita_utils.model import load_model, load_tokenizer

    model, tokenizer = load_model(random_model).eval(), load_tokenizer(random_model)
    answered = [
        {"prompt": "Where is Rome?", "answer": answer, "cluster": answer} for answer in ("Rome.", "In Italy, I say.")
    ]
    by_hand = []
    for item in answered:
        turns = [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": item["answer"]}]
        encoded = encode_chat(turns, tokenizer, 1024)
        with torch.no_grad():
            logits = model(torch.tensor([encoded["input_ids"]])).logits[0, :-1]
        scored = torch.tensor(encoded["labels"][1:]) != -100
        by_hand += torch.distributions.Categorical(logits=logits[scored]).entropy().tolist()
    assert forgetting.entropy(model, tokenizer, answered, 2).value == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_what_was_logged_between_two_points():
    history = [
        {"step": step, "loss": loss, "rewards/accuracies": 0.5} for step, loss in ((5, 1.0), (10, 0.6), (15, 0.2))
    ]
    rows = {(row["update"], row["metric"]): row["value"] for row in forgetting.logged(history, [0, 10, 20])}
    assert rows == pytest.approx({(10, "train/loss"): 0.8, (10, "train/pairs_accuracy"): 0.5,
                                  (20, "train/loss"): 0.2, (20, "train/pairs_accuracy"): 0.5})  # fmt: skip
    assert forgetting.logged([], [0, 10]) == []
