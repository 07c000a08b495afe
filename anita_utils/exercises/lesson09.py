"""The exercises of lesson 09: what is lost, entropy, early stopping, a fine loss on a dying answer, the longest row."""

from __future__ import annotations

from math import exp, log, log2

from anita_utils.exercises.checking import Exercise


def _count(before, after, old, new):
    return sum((b, a) == (old, new) for b, a in zip(before, after, strict=True))


lost_share = Exercise(
    cases=[
        (([1, 1, 1, 0], [1, 0, 1, 1]), 1 / 3),
        (([1, 1, 0, 0, 0], [0, 0, 1, 1, 1]), 1.0),
        (([1, 0, 1, 1, 1, 0], [1, 0, 1, 1, 0, 0]), 1 / 4),
    ],
    mistakes=[
        (lambda b, a: (sum(b) - sum(a)) / len(b),
         "That is the difference of the scores: what was learnt meanwhile hides what was lost."),
        (lambda b, a: _count(b, a, 1, 0) / len(b), "You divided by all. Only what was right before can be lost."),
        (lambda b, a: _count(b, a, 0, 1) / b.count(0), "That is what was learnt: right after, wrong before."),
        (lambda b, a: _count(b, a, 1, 0), "That is their number: divide by how many were right before."),
        (lambda b, a: _count(b, a, 1, 1) / sum(b), "That is the share that was *kept*."),
    ],
    hint="Count the places with 1 before and 0 after; divide by the number of ones before.",
    right="a stage can leave the score as it was and still lose a third.",
)  # fmt: skip


def _sum(probabilities, logarithm=log):
    return -sum(p * logarithm(p) for p in probabilities if p > 0)


entropy = Exercise(
    cases=[
        (([0.5, 0.5],), log(2)),
        (([1.0, 0.0],), 0.0),
        (([0.5, 0.25, 0.25],), 1.5 * log(2)),
        (([0.1] * 10,), log(10)),
    ],
    mistakes=[
        (lambda p: _sum(p, log2), "That is in bits: take the natural logarithm for nats."),
        (lambda p: -_sum(p), "The sign: logarithms of probabilities are below zero, so put a minus before the sum."),
        (lambda p: _sum(p) / len(p), "The probabilities are weights already: do not divide by their number."),
        (lambda p: -sum(log(x) for x in p if x > 0), "Each logarithm counts with its probability: p · ln p."),
        (lambda p: 1 - sum(x * x for x in p), "That is Gini's measure. Entropy takes ln p in place of 1 − p."),
        (lambda p: -log(max(p)), "That looks at the likeliest word alone: all of them count."),
    ],
    hint="Minus the sum of p · ln p, leaving out those with p = 0.",
    right="0 for who is sure, the logarithm of their number for who has no idea among so many.",
)  # fmt: skip


def _stop(updates, held_out, patience, ties=False, give="best"):
    best = 0
    for place in range(1, len(held_out)):
        if held_out[place] > held_out[best] or (ties and held_out[place] == held_out[best]):
            best = place
        elif place - best >= patience:
            return updates[place] if give == "end" else updates[best]
    return updates[len(updates) - 1] if give == "end" else updates[best]


stop_at = Exercise(
    cases=[
        (([0, 1, 2, 3, 4], [0.5, 0.7, 0.6, 0.6, 0.9], 2), 1),
        (([0, 100, 200, 300, 400], [0.2, 0.5, 0.4, 0.6, 0.5], 2), 300),
        (([0, 10, 20, 30], [0.4, 0.6, 0.6, 0.5], 3), 10),
        (([0, 50, 100, 150, 200], [0.9, 0.8, 0.7, 0.8, 0.95], 3), 0),
    ],
    mistakes=[
        (lambda u, h, p: u[h.index(max(h))],
         "That looks at the whole curve. One who stops early never sees what comes after."),
        (lambda u, h, p: _stop(u, h, p, give="end"), "You returned where you stopped: the model kept is the best one."),
        (lambda u, h, p: _stop(u, h, p, ties=True), "Of two equal ones keep the earlier: it costs less."),
        (lambda u, h, p: _stop(u, h, 1), "You stopped at the first point that was not better: wait for `patience`."),
        (lambda u, h, p: u[-1], "That trains to the end: the last model is not the best."),
    ],
    hint="Remember the place of the best so far; stop as soon as the present place is `patience` beyond it.",
    right="with too little patience a dip ends the training, with too much it costs time.",
)  # fmt: skip


def _moved(reference, policy, beta, sign=1.0, ratio=lambda good: exp(good)):
    good, bad = policy[0] - reference[0], policy[1] - reference[1]
    return log(1 + exp(-beta * (good - sign * bad))), ratio(good)


chosen_moved = Exercise(
    cases=[
        (((-10.0, -12.0), (-14.0, -32.0), 0.5), (log(1 + exp(-8)), exp(-4))),
        (((-10.0, -12.0), (-10.0, -12.0), 0.5), (log(2), 1.0)),
        (((-5.0, -5.0), (-4.0, -6.0), 0.1), (log(1 + exp(-0.2)), exp(1))),
    ],
    mistakes=[
        (lambda r, p, b: (log(1 + exp(-b * (p[0] - p[1]))), exp(p[0] - r[0])),
         "The loss forgets the reference: only what the policy moved *beyond* it counts."),
        (lambda r, p, b: _moved(r, p, 1.0), "β is missing: it scales the margin before the logistic function."),
        (lambda r, p, b: _moved(r, p, b, ratio=lambda good: good),
         "A difference of log-probabilities is the *logarithm* of a ratio: take exp of it."),
        (lambda r, p, b: _moved(r, p, b, ratio=lambda good: exp(-good)),
         "That is how many times *less* likely: policy over reference is asked for."),
        (lambda r, p, b: _moved(r, p, b, sign=-1.0), "The rejected answer's reward is taken off, not added."),
        (lambda r, p, b: (b * (p[0] - r[0] - p[1] + r[1]), exp(p[0] - r[0])),
         "That is the reward margin: the loss is ln(1 + e^−margin)."),
    ],
    hint="margin = β · ((policy − reference of the chosen) − (the same of the rejected)); loss = ln(1 + e^−margin); "
    "the second is e to the power of what the chosen one's log-probability moved.",
    right="the loss sees the difference alone. So log both sides' likelihoods, not the margin only.",
)  # fmt: skip


def _row(fixed, per_token, room, step, free=0.95, steps=lambda x: int(x)):
    return max(0, steps((room * free - fixed) / per_token / step + 1e-9)) * step


longest_row = Exercise(
    cases=[
        ((6.0, 0.004, 16.0, 64), 2240),
        ((6.0, 0.004, 6.0, 64), 0),
        ((1.0, 0.01, 20.0, 128), 1792),
        ((3.5, 0.002, 24.0, 256), 9472),
    ],
    mistakes=[
        (lambda f, p, r, s: _row(f, p, r, s, free=1.0), "You filled the card to the brim: a twentieth stays free."),
        (lambda f, p, r, s: _row(f, p, r, s, steps=lambda x: round(x)),
         "Rounded to the nearest: if that is up, it does not fit. Round down."),
        (lambda f, p, r, s: int((r * 0.95 - f) / p), "Rows come in steps: round down to a multiple of `step`."),
        (lambda f, p, r, s: _row(0.0, p, r, s), "The weights are there before the first token: take `fixed` off."),
        (lambda f, p, r, s: int((r * 0.95 - f) / p // s) * s,
         "Where the model alone does not fit, the answer is 0: a row has no negative length."),
        (lambda f, p, r, s: max(0, int(((r - f) * 0.95) / p // s)) * s,
         "A twentieth of the whole card stays free, not of what the weights leave."),
    ],
    hint="(0.95 · room − fixed) / per_token tokens fit; round down to a multiple of step; never below 0.",
    right="the planner does this with parts that grow in other ways too: the mask with the square of the row.",
)  # fmt: skip

EXERCISES = {
    "lost_share": lost_share,
    "entropy": entropy,
    "stop_at": stop_at,
    "chosen_moved": chosen_moved,
    "longest_row": longest_row,
}
