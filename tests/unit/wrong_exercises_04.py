"""Lesson 04's exercises: wrong answers as a student would write them, and what each is to be told."""

from math import exp, log

import numpy as np
import torch


def tokens_averaged(policy, reference, beta):
    margin = np.mean(policy[0]) - np.mean(policy[1]) - np.mean(reference[0]) + np.mean(reference[1])
    return -np.log(1 / (1 + np.exp(-beta * margin)))


def without_reference(policy, reference, beta):
    return -np.log(1 / (1 + np.exp(-beta * (sum(policy[0]) - sum(policy[1])))))


WRONG = [
    ("bradley_terry", lambda a, b: exp(b) / (exp(a) + exp(b)), "*second* wins"),
    ("bradley_terry", lambda a, b: a / (a + b), "exponentials first"),
    ("bradley_terry", lambda a, b: a - b, "difference of the scores"),
    ("pull", lambda m: 1 / (1 + exp(-m)), "left to 1"),
    ("pull", lambda m: 1 / (1 + exp(-m)) - 1, "slope's size"),
    ("pull", lambda m: log(1 + exp(-m)), "the loss itself"),
    ("needed_margin", lambda p, beta: abs(log(p / (1 - p))) / beta, "wrong way"),
    ("pair_loss", tokens_averaged, "averaged over the tokens"),
    ("pair_loss", without_reference, "reference is not in it"),
    ("reward_accuracy", lambda ours, theirs: np.mean(np.array(ours) > 0), "*more than the reference*"),
    ("reward_accuracy", lambda ours, theirs: np.mean(np.array(ours) >= theirs), "Ties"),
    ("needed_margin", lambda p, beta: beta * log(p / (1 - p)), "multiplied by beta"),
    ("needed_margin", lambda p, beta: (p / (1 - p)) / beta, "no logarithm"),
    ("best_policy", lambda p, r, beta: torch.tensor(r).div(beta).softmax(0), "reference is not in it"),
    ("best_policy", lambda p, r, beta: np.array(p) * np.exp(np.array(r) / beta), "do not add up to 1"),
]
