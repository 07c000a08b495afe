"""Lesson 03's exercises: wrong answers as a student would write them, and what each is to be told."""

import numpy as np


def largest_not_in_magnitude(weights, levels):
    scale = max(weights)
    return [levels[int(np.abs(np.array(levels) - w / scale).argmin())] * scale for w in weights]


def level_below(weights, levels):
    scale = max(abs(w) for w in weights)
    return [max(level for level in levels if level <= w / scale) * scale for w in weights]


def the_other_product(W, A, B, alpha):
    return W + alpha / len(A) * (A @ B)


WRONG = [
    ("lora_size", lambda shapes, r: r * sum(rows * columns for rows, columns in shapes), "multiplied the widths"),
    ("lora_size", lambda shapes, r: r * sum(columns for _, columns in shapes), "A alone"),
    ("lora_scale", lambda alpha, r, rank_stabilised: alpha / r, "divide by r"),
    ("lora_scale", lambda alpha, r, rank_stabilised: alpha * r**-0.5, "cannot divide by √r"),
    ("nf4_round", largest_not_in_magnitude, "largest *magnitude*"),
    ("nf4_round", level_below, "take the nearest"),
    ("merge_lora", the_other_product, "the other way round"),
    ("merge_lora", lambda W, A, B, alpha: W + alpha * (B @ A), "r is not always 1"),
    ("nf4_bytes", lambda matrices, others: matrices // 2 + 4 * matrices // 64 + 2 * others, "without double"),
    ("nf4_bytes", lambda n, m: (n + m) / 2 + n / 64 + n / 4096, "are not quantised"),
]
