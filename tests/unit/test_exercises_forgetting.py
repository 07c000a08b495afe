"""The exercises of lesson 09: their checks explain what students get wrong. Their other rules: test_exercises.py.

The wrong answers are written as a student would write them; `WRONG` also joins those of the other lessons.
"""

from math import exp, log, log2

import numpy as np
import pytest
import torch

from anita_utils.exercises.lesson09 import EXERCISES


def net_loss(before, after):
    return np.mean(before) - np.mean(after)


def of_all(before, after):
    return np.mean([b and not a for b, a in zip(before, after, strict=True)])


def at_the_end(updates, held_out, patience):
    best, waited = held_out[0], 0
    for update, value in zip(updates[1:], held_out[1:], strict=True):
        waited = 0 if value > best else waited + 1
        best = max(best, value)
        if waited == patience:
            return update
    return updates[-1]


def latest_of_equals(updates, held_out, patience):
    best = 0
    for place, value in enumerate(held_out):
        if value >= held_out[best]:
            best = place
        if place - best >= patience:
            break
    return updates[best]


WRONG = [
    ("lost_share", net_loss, "hides what was lost"),
    ("lost_share", of_all, "Only what was right before"),
    ("entropy", lambda probabilities: -sum(p * log2(p) for p in probabilities if p), "in bits"),
    ("entropy", lambda probabilities: sum(p * log(p) for p in probabilities if p), "The sign"),
    ("stop_at", lambda updates, held_out, patience: updates[int(np.argmax(held_out))], "never sees what comes after"),
    ("stop_at", at_the_end, "where you stopped"),
    ("stop_at", latest_of_equals, "keep the earlier"),
    ("chosen_moved", lambda r, p, b: (log(1 + exp(-b * (p[0] - p[1]))), exp(p[0] - r[0])), "forgets the reference"),
    ("chosen_moved", lambda r, p, b: (log(1 + exp(-b * (p[0] - r[0] - p[1] + r[1]))), p[0] - r[0]), "take exp of it"),
    ("longest_row", lambda f, p, r, s: max(0, int((r - f) / p) // s * s), "to the brim"),
    ("longest_row", lambda f, p, r, s: int(0.95 * r / p) // s * s, "take `fixed` off"),
]


def test_the_cases_are_what_the_libraries_compute():
    for (probabilities,), wanted in EXERCISES["entropy"].cases:
        distribution = torch.distributions.Categorical(probs=torch.tensor(probabilities, dtype=torch.float64))
        assert distribution.entropy().item() == pytest.approx(wanted, abs=1e-6)
    for (reference, policy, beta), (loss, times) in EXERCISES["chosen_moved"].cases:
        moved = torch.tensor(policy) - torch.tensor(reference)
        assert -torch.nn.functional.logsigmoid(beta * (moved[0] - moved[1])).item() == pytest.approx(loss, abs=1e-6)
        assert moved[0].exp().item() == pytest.approx(times)
