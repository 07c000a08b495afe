"""Lesson 02's exercises: wrong answers as a student would write them, and what each is to be told."""

from math import cos, log, pi

import numpy as np
import torch
from students import SOLUTIONS


def mean_of_everything(probabilities, labels):
    return float(np.mean([-log(p) for p in probabilities]))


def wrong_divisor(probabilities, labels):
    return sum(-log(p) for p, label in zip(probabilities, labels, strict=True) if label != -100) / len(labels)


def end_not_scored(turns, end):
    labels = []
    for role, head, words in turns:
        labels += [-100] * len(head) + (words if role == "assistant" else [-100] * len(words)) + [-100]
    return labels


def labels_moved(turns, end):
    labels = SOLUTIONS["02_supervised_fine_tuning"]["chat_labels"](turns, end)
    return labels[1:] + [-100]


def filled_to_the_longest_of_all(lengths, batch):
    places = max(lengths) * len(lengths)
    return (places - sum(lengths)) / places


def share_in_use(lengths, batch):
    return 1 - SOLUTIONS["02_supervised_fine_tuning"]["padding_share"](lengths, batch)


def constant_after_warmup(step, warmup, steps):
    return 1.0 if step > warmup else step / warmup


def jumps(step, warmup, steps):
    return step / warmup if step < warmup else (steps - step) / steps


def along_a_cosine(step, warmup, steps):
    return step / warmup if step < warmup else (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2


def ends_of_all_scored(turns, end):
    labels = []
    for role, head, words in turns:
        labels += [-100] * len(head) + (words if role == "assistant" else [-100] * len(words)) + [end]
    return labels


def as_they_were(labels):
    return list(labels)


def only_the_tokens(labels):
    run = []
    for label in reversed(labels):
        if label == -100 and run:
            break
        if label != -100:
            run.insert(0, label)
    return run


def in_front(labels):
    run = only_the_tokens(labels)
    return run + [-100] * (len(labels) - len(run))


def zero_left_out(probabilities, labels):
    kept = [-log(p) for p, label in zip(probabilities, labels, strict=True) if label > 0]
    return sum(kept) / len(kept)


def without_shift(logits, labels):
    ids = torch.tensor(labels)
    return torch.nn.functional.cross_entropy(torch.tensor(logits), ids)


def shift_the_wrong_way(logits, labels):
    return torch.nn.functional.cross_entropy(torch.tensor(logits)[1:], torch.tensor(labels)[:-1])


WRONG = [
    ("only_the_last", as_they_were, "All answers are still scored"),
    ("only_the_last", only_the_tokens, "As many labels as tokens"),
    ("only_the_last", in_front, "moved to the front"),
    ("masked_loss", zero_left_out, "Label 0 is a token"),
    ("chat_labels", ends_of_all_scored, "end marks of the others"),
    ("warmed_up", along_a_cosine, "along a cosine"),
    (
        "padding_share",
        lambda lengths, batch: 100 * SOLUTIONS["02_supervised_fine_tuning"]["padding_share"](lengths, batch),
        "per cent",
    ),
    ("masked_loss", mean_of_everything, "leave out the positions"),
    ("masked_loss", wrong_divisor, "wrong divisor"),
    ("chat_labels", end_not_scored, "never learns to stop"),
    ("chat_labels", labels_moved, "moved the labels"),
    ("padding_share", filled_to_the_longest_of_all, "longest of *all*"),
    ("padding_share", share_in_use, "share in use"),
    ("warmed_up", constant_after_warmup, "never falls"),
    ("warmed_up", jumps, "jumps down"),
    ("next_token_loss", without_shift, "without the shift"),
    ("next_token_loss", shift_the_wrong_way, "Shifted the wrong way"),
]
