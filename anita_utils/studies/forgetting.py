"""What does a training do on its way? The model measured on held-out items, again and again while it trains.

>>> rows = watched(find_stage(run, "dpo"), points=8)       # trains the stage if need be
>>> rows[0]
{'update': 0, 'metric': 'pairs/accuracy', 'language': 'all', 'split': 'rule', 'value': 0.52, 'n': 90}

The model is measured as it trains, in 4 bits with its adapter beside, so figures differ a little from the merged
model's. To be measured changes nothing of the training: nothing is drawn at random, and no weight moves.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
from transformers import TrainerCallback

from anita_utils.cache import Entry, cached
from anita_utils.data import IGNORED, encode_chat
from anita_utils.evaluation import measuring
from anita_utils.profile import Profile
from anita_utils.stages import Stage
from anita_utils.stats import Measurement
from anita_utils.training import train_stage

THIN = 6  # of the questions every sixth is asked, so that a point takes seconds
FACTS = ("truth",)  # kinds of pairs where a fact decides
VOICES = ("myth",)  # and where the voice to take does: the base has read both answers; a rule does in all others
HISTORY = {"loss": "train/loss", "rewards/accuracies": "train/pairs_accuracy", "logps/chosen": "train/chosen_logp",
           "logps/rejected": "train/rejected_logp"}  # fmt: skip


def watched(stage: Stage, points: int, measure: Callable | None = None, kind: str = "held_out") -> list[dict]:
    """Trains the stage, measuring it before the first update and then `points` times at equal distances.

    measure: takes model, tokenizer and profile, returns rows of metric, language, split, value, n; by default
        `held_out`. kind: its name, which the cache tells curves apart by.

    Returns the rows, each with its `update`, and what the trainer logged between two points, from the cache where they
    are there. A stage that was trained unwatched is trained again.
    """
    kept = curve(stage, points, kind)
    if stage.done and not complete(kept):
        shutil.rmtree(stage.folder)
    train_stage(stage, callbacks=[OnTheWay(kept, points, stage.run.profile, measure or held_out)])
    rows = [row for point in kept.read() for row in point["rows"]]
    return rows + logged(stage.info["history"], sorted({row["update"] for row in rows}))


def curve(stage: Stage, points: int, kind: str = "held_out") -> Entry:
    """Where the cache keeps what was measured on the way."""
    return cached(f"curves/{kind}", THIN, stage.key, points, measuring.measured_with(stage.run.profile))


def complete(entry: Entry) -> bool:
    """Whether the last point is there."""
    return any(point["update"] == point["of"] for point in entry.read() or [])


def logged(history: list[dict], updates: list[int]) -> list[dict]:
    """What a trainer logged (`Stage.info["history"]`) on its own pairs or texts, as means between two points."""
    rows = []
    for first, last in zip(updates, updates[1:], strict=False):
        part = [row for row in history if first < row["step"] <= last]
        for key, metric in HISTORY.items():
            values = [row[key] for row in part if key in row]
            if values:
                place = {"update": last, "metric": metric, "language": "all", "split": None}
                rows.append(place | {"value": float(np.mean(values)), "n": None})
    return rows


class OnTheWay(TrainerCallback):
    """Measures the model before the first update and at equal distances, and keeps each point at once.

    A killed training goes on from a checkpoint: points after it are measured again, and come out the same.
    """

    def __init__(self, entry: Entry, points: int, profile: Profile, measure: Callable) -> None:
        self.entry, self.points, self.profile, self.measure = entry, points, profile, measure

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        self.due = {round(number * state.max_steps / self.points) for number in range(self.points + 1)}
        self.kept = [point for point in self.entry.read() or [] if point["update"] <= state.global_step]
        if state.global_step == 0:
            self.kept = []
            self.note(state, model, processing_class)

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if state.global_step in self.due:
            self.note(state, model, processing_class)

    def note(self, state, model, tokenizer) -> None:
        training = model.training
        model.eval()
        rows = [{"update": state.global_step} | row for row in self.measure(model, tokenizer, self.profile)]
        model.train(training)
        self.kept.append({"update": state.global_step, "of": state.max_steps, "rows": rows})
        self.entry.write(self.kept)


def held_out(model, tokenizer, profile: Profile) -> list[dict]:
    """Pairs by kind, both answers' log-probabilities, entropy, length, and a few of each skill: rows without update."""
    batch_size = profile.evaluation.batch_size
    asked = {name: measuring.probes(name)[::THIN] for name in ("chat", "conduct")}
    answered = {name: measuring.ask(model, tokenizer, items, profile) for name, items in asked.items()}
    texts = measuring.probes("perplexity")[::2]
    pairs = [pair for n, pair in enumerate(measuring.probes("preferences")) if decides(pair) != "rule" or n % 4 == 0]
    measured = [
        *measuring.judge_answers(answered | {"new_kinds": [], "fidelity": []}),
        *measuring.perplexity(model, tokenizer, texts, batch_size),
        *pair_measures(model, tokenizer, pairs, batch_size),
        entropy(model, tokenizer, answered["chat"], batch_size),
    ]
    return [
        {"metric": m.metric, "language": m.language, "split": m.split, "value": m.value, "n": len(m.scores)}
        for m in measured
    ]


def decides(pair: dict) -> str:
    """What tells the chosen answer of a pair from the rejected one: a rule, a voice or a fact."""
    return "fact" if pair["kind"] in FACTS else "voice" if pair["kind"] in VOICES else "rule"


def pair_measures(model, tokenizer, pairs: list[dict], batch_size: int) -> list[Measurement]:
    """How often the chosen answer is the likelier one, by what decides; each side's log-probability, in nats."""
    sides, clusters = measuring.pair_likelihoods(model, tokenizer, pairs, batch_size), measuring.pair_clusters(pairs)
    measured = [Measurement(f"pairs/{side}_logp", "all", None, values, clusters) for side, values in sides.items()]
    wins = [float(good > bad) for good, bad in zip(sides["chosen"], sides["rejected"], strict=True)]
    for split in ("rule", "voice", "fact"):
        own = [n for n, pair in enumerate(pairs) if decides(pair) == split]
        scores, prompts = [wins[n] for n in own], [clusters[n] for n in own]
        measured += [Measurement("pairs/accuracy", "all", split, scores, prompts)] if own else []
    return measured


def entropy(model, tokenizer, answered: list[dict], batch_size: int) -> Measurement:
    """How undecided the model is along its own greedy answers: nats a token, from 0 to the log of the vocabulary."""
    encoded = []
    for item in answered:
        said = [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": item["answer"]}]
        encoded.append(encode_chat(said, tokenizer, 1024))
    totals, counts = [0.0] * len(encoded), [0.0] * len(encoded)
    for numbers, logits, labels in measuring.scored_logits(model, encoded, batch_size):
        logs, scored = logits.log_softmax(-1), labels != IGNORED
        sums = (-(logs.exp() * logs).sum(-1) * scored).sum(1).tolist()
        for number, total, count in zip(numbers, sums, scored.sum(1).tolist(), strict=True):
            totals[number], counts[number] = total, float(count)
    return Measurement("entropy", "all", None, totals, [item["cluster"] for item in answered], counts)
