"""The exercises of lesson 07: a conditional share, the hits of a habit, likeness of two texts, Fisher's exact test."""

from __future__ import annotations

from collections import Counter
from math import comb, sqrt

from anita_utils.exercises.checking import Exercise


def _share(values):
    return sum(values) / len(values)


def _given(condition, values, wanted):
    return _share([value for knows, value in zip(condition, values, strict=True) if knows == wanted])


conditional_shares = Exercise(
    cases=[
        (([1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0]), (2 / 4, 1 / 2)),
        (([1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]), (4 / 5, 0.0)),
    ],
    mistakes=[
        (lambda k, s: (_given(s, k, 1), _given(s, k, 0)),
         "You took the facts that were *said in Italian* and counted those known: that is P(known | said)."),
        (lambda k, s: (_share([a * b for a, b in zip(k, s, strict=True)]),
                       _share([(1 - a) * b for a, b in zip(k, s, strict=True)])),
         "You divided by all facts. Divide each count by the facts that meet its condition."),
        (lambda k, s: (_given(k, s, 0), _given(k, s, 1)), "The two are swapped: first given that it is known."),
        (lambda k, s: (_share(s), _share(s)), "The condition plays no part: take the known facts, then the others."),
        (lambda k, s: (_given(k, s, 1), 1 - _given(k, s, 1)),
         "The two do not add up to 1: each is a share of *its own* facts."),
    ],
    hint="Among the facts with known 1, the share with said 1; then the same among the facts with known 0.",
    right="two shares of two different groups of facts. If they are alike, knowing plays no part.",
)  # fmt: skip


def _pairs(answers, objects):
    return [[answer == name for name in objects] for answer in answers]


def _table(answers, objects, keep=lambda i, j: True):
    table = _pairs(answers, objects)
    return _share([_share([hit for j, hit in enumerate(row) if keep(i, j)]) for i, row in enumerate(table)])


habit_share = Exercise(
    cases=[
        ((["Sicilia", "Sicilia", "Sicilia", "Lazio"], ["Sicilia", "Sicilia", "Lazio", "Molise"]), 7 / 16),
        ((["Po", "Po", "Po"], ["Po", "Arno", "Tevere"]), 1 / 3),
        ((["Po", "Arno"], ["Po", "Arno"]), 1 / 2),
    ],
    mistakes=[
        (lambda a, o: _share([x == y for x, y in zip(a, o, strict=True)]),
         "That is the share that *is* right: each answer against its own object. Hold it against every object."),
        (lambda a, o: _table(a, o, lambda i, j: i != j),
         "You left out each answer's own object. A shuffle may leave an object where it was: count it."),
        (lambda a, o: 1 / len(set(o)),
         "That is blind guessing among the different objects. A habit is no blind guess: count how often each answer "
         "meets its name among the objects."),
        (lambda a, o: _share([answer in o for answer in a]),
         "You asked whether the name is there at all; it matters how many of the objects bear it."),
        (lambda a, o: len(a) * _table(a, o), "That is the number of hits: divide by the number of answers too."),
    ],
    hint="For each answer the share of all objects that equal it; then the mean over the answers.",
    right="the level that a habit alone reaches. What an answer is worth begins above it.",
)  # fmt: skip


def _runs(text, size):
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


def _dot(one, other):
    return sum(times * other[run] for run, times in one.items())


def _cosine(one, other, size, make=_runs, by=lambda a, b: sqrt(_dot(a, a) * _dot(b, b))):
    one, other = make(one, size), make(other, size)
    return _dot(one, other) / by(one, other)


likeness = Exercise(
    cases=[
        (("anna", "anno", 2), 2 / 3),
        (("banana", "ananas", 2), 8 / 9),
        (("mare", "monte", 3), 0.0),
        (("sole", "sole", 2), 1.0),
        (("nonna", "anna", 2), 2 / sqrt(4 * 3)),
    ],
    mistakes=[
        (lambda a, b, n: _cosine(a, b, n, make=lambda text, size: Counter(set(_runs(text, size)))),
         "You counted each sequence once. In \"banana\", \"an\" stands twice: count how often."),
        (lambda a, b, n: _cosine(a, b, n, by=lambda x, y: 1), "Divide by both lengths: √(a·a) times √(b·b)."),
        (lambda a, b, n: _cosine(a, b, n, by=lambda x, y: _dot(x, x) * _dot(y, y)),
         "The lengths are the *roots* of the sums of squares."),
        (lambda a, b, n: _cosine(a, b, n, by=lambda x, y: sum(x.values()) * sum(y.values())),
         "You divided by the numbers of sequences; the length of a vector is the root of the sum of its squares."),
        (lambda a, b, n: sum((_runs(a, n) & _runs(b, n)).values()) / sum((_runs(a, n) | _runs(b, n)).values()),
         "That is the shared part of all sequences (Jaccard's measure). The cosine multiplies the counts."),
    ],
    hint="Count every run of `size` characters in both texts; multiply the counts of the runs they share and add up; "
    "divide by the root of the sum of squares of either text.",
    right="1 for the same runs, 0 for none shared. The kit also weights rare runs more.",
)  # fmt: skip


def _ways(right, n, other_right, other_n):
    """The probability of each number of right ones in the first group, when the right ones are dealt at random."""
    all_right, total = right + other_right, n + other_n
    numbers = range(max(0, all_right - other_n), min(n, all_right) + 1)
    return {k: comb(all_right, k) * comb(total - all_right, n - k) / comb(total, n) for k in numbers}


def _tail(right, n, other_right, other_n, keep):
    ways = _ways(right, n, other_right, other_n)
    return sum(p for k, p in ways.items() if keep(k, p, ways[right]))


def _fisher(*counts):
    return _tail(*counts, lambda k, p, seen: p <= seen * (1 + 1e-9))


fisher_p = Exercise(
    cases=[
        ((3, 3, 0, 3), 2 / 20),
        ((5, 5, 1, 5), 10 / 210),
        ((2, 4, 1, 5), 66 / 126),
        ((1, 5, 2, 4), 66 / 126),
    ],
    mistakes=[
        (lambda a, n, b, m: _tail(a, n, b, m, lambda k, p, seen: k >= a),
         "That is one side only: deals that favour the *other* group as strongly are as surprising."),
        (lambda *c: _ways(*c)[c[0]], "That is the chance of exactly what was seen. Add all that is no likelier."),
        (lambda a, n, b, m: min(1.0, 2 * _tail(a, n, b, m, lambda k, p, seen: k >= a)),
         "Doubling one side is right only where both sides are alike: add up the deals that are no likelier."),
        (lambda *c: _tail(*c, lambda k, p, seen: p < seen * (1 - 1e-9)),
         "Rarer than what was seen, yes; what was seen itself counts too."),
    ],
    hint="comb(right ones, k) × comb(wrong ones, n − k) / comb(all, n) is the chance of k right ones in the first "
    "group of n. Add up those chances that are no larger than the one of what was seen.",
    right="Fisher's exact test: no bell curve, only counting. Beware of comparing floats: allow a hair of rounding.",
)  # fmt: skip

EXERCISES = {
    "conditional_shares": conditional_shares,
    "habit_share": habit_share,
    "likeness": likeness,
    "fisher_p": fisher_p,
}
