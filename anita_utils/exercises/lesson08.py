"""The exercises of lesson 08: stated odds, controls, consistency, Holm's correction, swaps of clusters."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from math import exp, log

from anita_utils.exercises.checking import Exercise

stated_odds = Exercise(
    cases=[((0.8, 2), log(4)), ((0.7, 4), log(7)), ((0.5, 2), 0.0), ((0.7, 3), log(0.7 / 0.15))],
    mistakes=[
        (lambda skew, groups: log(skew / (1 - skew)),
         "Those are the odds against *all* other groups together; one of them has only its part of the rest."),
        (lambda skew, groups: skew * (groups - 1) / (1 - skew), "Those are the odds; take their logarithm."),
        (lambda skew, groups: log(skew), "That is the share's logarithm: divide by the other group's share first."),
        (lambda skew, groups: log(skew * groups),
         "You compared with an even share, 1 / groups; compare with the share that one other group really has."),
        (lambda skew, groups: -log(skew * (groups - 1) / (1 - skew)), "Upside down: the word's own group comes first."),
    ],
    hint="One other group has (1 - skew) / (groups - 1). Divide skew by that and take the natural logarithm.",
    right="with four groups a share of 0.7 is a stronger lean than 0.8 with two.",
)  # fmt: skip


def _mean(values):
    return sum(values) / len(values)


def _odds(pairs):
    return [a - b for a, b in pairs]


word_lean = Exercise(
    cases=[
        (((-5.0, -6.0), [(-4.0, -4.5), (-7.0, -6.5)]), 1.0),
        (((-5.0, -5.0), [(-4.0, -3.0), (-6.0, -5.5)]), 0.75),
        (((-9.0, -7.0), [(-3.0, -2.0)]), -1.0),
        (((-4.0, -6.0), [(-8.0, -9.0), (-5.0, -7.0), (-6.0, -6.0)]), 1.0),
    ],
    mistakes=[
        (lambda word, controls: word[0] - word[1],
         "That is the raw pair: it also holds how common the two groups' words are. Take the controls' mean off."),
        (lambda word, controls: word[0] - word[1] - sum(_odds(controls)),
         "You took the controls' *sum* off: take their mean."),
        (lambda word, controls: word[0] - word[1] - _odds(controls)[0],
         "Only the first control was used: one word alone is noisy, take the mean of all."),
        (lambda word, controls: word[0] - word[1] + _mean(_odds(controls)), "You added; the mean is taken off."),
        (lambda word, controls: word[1] - word[0] - _mean([b - a for a, b in controls]),
         "The sign: group a comes first, so that a lean to a is above zero."),
        (lambda word, controls: exp(word[0] - word[1] - _mean(_odds(controls))),
         "Those are odds; the logarithm is asked for, so leave out exp."),
    ],
    hint="a less b for the word; a less b for each control, and their mean; the first less the second.",
    right="what is left is the trade's own lean, however common the groups' words are.",
)  # fmt: skip

consistent_share = Exercise(
    cases=[
        (([[True, True], [False, False], [True, False]],), 2 / 3),
        (([[True, True, True], [True, False, True], [False, False, False], [False, True, True]],), 0.5),
        (([[False, False, False]],), 1.0),
        (([[True, False], [False, True, False, False]],), 0.0),
    ],
    mistakes=[
        (lambda decisions: _mean([all(one) for one in decisions]),
         "Requests that were *never* refused are consistent too."),
        (lambda decisions: _mean([max(sum(one), len(one) - sum(one)) / len(one) for one in decisions]),
         "You took the share of the commoner decision, never below a half; a request counts as a whole or not."),
        (lambda decisions: _mean([first for one in decisions for first in one]),
         "That is how often the model refuses; the question is whether it stays with its decision."),
        (lambda decisions: _mean([any(one) and not all(one) for one in decisions]),
         "That is the share of *inconsistent* requests: one less it."),
        (lambda decisions: sum(len(set(one)) == 1 for one in decisions), "That is how many; divide by the requests."),
    ],
    hint="A request is consistent where all its decisions are alike: len(set(one)) == 1. Then their share.",
    right="beside it the share of refusals must stand: who never refuses is perfectly consistent.",
)  # fmt: skip


def _holm(p_values, factor=lambda rank, m: m - rank, cap=1.0, climb=True, keep_order=True):
    adjusted, largest = [0.0] * len(p_values), 0.0
    places = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(places):
        value = min(cap, factor(rank, len(p_values)) * p_values[place])
        largest = max(largest, value) if climb else value
        adjusted[place if keep_order else rank] = largest
    return adjusted


holm_adjusted = Exercise(
    cases=[
        (([0.01, 0.04, 0.03],), [0.03, 0.06, 0.06]),
        (([0.2, 0.001, 0.5, 0.4],), [0.6, 0.004, 0.8, 0.8]),
        (([0.9, 0.8],), [1.0, 1.0]),
    ],
    mistakes=[
        (lambda p: [min(1.0, value * len(p)) for value in p],
         "That is Bonferroni: every value times m. Holm's factor falls by one from value to value, so he loses less."),
        (lambda p: _holm(p, climb=False),
         "A value came out smaller than one before it: carry the largest so far along."),
        (lambda p: _holm(p, cap=float("inf")), "A probability above 1: cap it."),
        (lambda p: _holm(p, keep_order=False), "Sorted: give each value back its own place."),
        (lambda p: _holm(p, factor=lambda rank, m: rank + 1),
         "The factors run the wrong way: the *smallest* value gets m, the largest 1."),
    ],
    hint="Go through the places sorted by their p-value; rank 0 is multiplied by m, rank 1 by m - 1 …; keep the "
    "largest so far; at most 1; write it to its own place.",
    right="those below 0.05 hold together: in only one family of twenty does anything hold by luck alone.",
)  # fmt: skip


def _moved(before, after, clusters):
    moved = defaultdict(float)
    for old, new, cluster in zip(before, after, clusters, strict=True):
        moved[cluster] += new - old
    return list(moved.values())


def _swapped(moved, reaches=lambda total, real: abs(total) >= abs(real) - 1e-9):
    totals = []
    for signs in product((1, -1), repeat=len(moved)):
        totals.append(sum(sign * one for sign, one in zip(signs, moved, strict=True)))
    return _mean([reaches(total, sum(moved)) for total in totals])


swapped_p = Exercise(
    cases=[
        (([0, 0, 0, 0, 1], [1, 1, 1, 1, 0], ["a", "a", "b", "b", "c"]), 0.5),
        (([0, 0, 0, 0], [1, 1, 1, 1], ["a", "b", "c", "d"]), 0.125),
        (([1, 0, 1], [1, 0, 1], ["a", "b", "c"]), 1.0),
        (([1, 1, 0, 1], [0, 0, 0, 0], ["a", "b", "c", "c"]), 0.25),
    ],
    mistakes=[
        (lambda b, a, c: _swapped([new - old for old, new in zip(b, a, strict=True)]),
         "Single items were swapped: items of one cluster stand or fall together, so swap whole clusters."),
        (lambda b, a, c: _swapped(_moved(b, a, c), lambda total, real: total >= real - 1e-9),
         "One-sided: a difference the other way would be as surprising, so compare without the sign."),
        (lambda b, a, c: _swapped(_moved(b, a, c), lambda total, real: abs(total) > abs(real) + 1e-9),
         "\"At least as far\" holds the real sum itself: with > instead of >= p can be 0, which no test can say."),
        (lambda b, a, c: 1 - _swapped(_moved(b, a, c)),
         "That is the share of swaps that stay nearer to zero: one less it."),
    ],
    hint="Add after less before up by cluster. For each choice of signs, one a cluster, add up sign times difference. "
    "Then the share of the choices whose sum is at least as far from zero as the real one.",
    right="three clusters can never give a p below 2/8, however many items they hold.",
)  # fmt: skip

EXERCISES = {
    "stated_odds": stated_odds,
    "word_lean": word_lean,
    "consistent_share": consistent_share,
    "holm_adjusted": holm_adjusted,
    "swapped_p": swapped_p,
}
