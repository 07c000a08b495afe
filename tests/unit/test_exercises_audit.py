"""The exercises of lesson 08: their checks explain what students get wrong. Their other rules: test_exercises.py.

The wrong answers are written as a student would write them; `WRONG` also joins those of the other lessons.
"""

from itertools import combinations, product
from math import exp, log, log10

import numpy as np
import pytest

from anita_utils.exercises.checking import plain, same
from anita_utils.exercises.lesson08 import EXERCISES
from anita_utils.stats import holm, sign_flip
from anita_utils.studies import bias


def never_refused_forgotten(decisions):
    return sum(1 for one in decisions if False not in one) / len(decisions)


def decided_by_majority(decisions):
    return np.mean([max(np.mean(one), 1 - np.mean(one)) for one in decisions])


def bonferroni(p_values):
    return np.minimum(1, np.array(p_values) * len(p_values))


def sorted_values(p_values):
    ordered = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    return np.minimum(1, np.maximum.accumulate(ordered))


def no_running_maximum(p_values):
    order = np.argsort(p_values)
    values = np.array(p_values)
    values[order] *= np.arange(len(p_values), 0, -1)
    return np.minimum(1, values)


def items_swapped(before, after, clusters):
    moved = np.array(after) - np.array(before)
    return np.mean([abs(np.dot(s, moved)) >= abs(moved.sum()) for s in product([-1, 1], repeat=len(moved))])


def sums_of(before, after, clusters):
    names = list(dict.fromkeys(clusters))
    moved = [sum(a - b for a, b, c in zip(after, before, clusters, strict=True) if c == n) for n in names]
    return [np.dot(signs, moved) for signs in product([-1, 1], repeat=len(moved))], sum(moved)


def one_sided(before, after, clusters):
    sums, real = sums_of(before, after, clusters)
    return np.mean(np.array(sums) >= real)


def strictly_farther(before, after, clusters):
    sums, real = sums_of(before, after, clusters)
    return np.mean(np.abs(sums) > abs(real))


WRONG = [
    ("stated_odds", lambda skew, groups: log(skew) - log(1 - skew), "against *all* other groups"),
    ("stated_odds", lambda skew, groups: skew / ((1 - skew) / (groups - 1)), "take their logarithm"),
    ("stated_odds", lambda skew, groups: log10(skew * (groups - 1) / (1 - skew)), "natural logarithm"),
    ("word_lean", lambda word, controls: word[0] - word[1], "raw pair"),
    ("word_lean", lambda word, controls: word[0] - word[1] - (controls[0][0] - controls[0][1]), "first control"),
    ("word_lean", lambda w, c: exp(w[0] - w[1]) / exp(np.mean([a - b for a, b in c])), "leave out exp"),
    ("consistent_share", never_refused_forgotten, "*never* refused"),
    ("consistent_share", decided_by_majority, "as a whole or not"),
    ("consistent_share", lambda decisions: sum(all(d) or not any(d) for d in decisions), "divide by the requests"),
    ("holm_adjusted", bonferroni, "Bonferroni"),
    ("holm_adjusted", sorted_values, "its own place"),
    ("holm_adjusted", no_running_maximum, "carry the largest"),
    ("swapped_p", items_swapped, "swap whole clusters"),
    ("swapped_p", one_sided, "One-sided"),
    ("swapped_p", strictly_farther, "At least as far"),
]


def test_the_cases_are_what_the_kit_computes():
    for (skew, groups), wanted in EXERCISES["stated_odds"].cases:
        assert bias.stated_lean(skew, groups) == pytest.approx(wanted)
    for (p_values,), wanted in EXERCISES["holm_adjusted"].cases:
        assert holm(p_values) == pytest.approx(wanted)
    for (before, after, clusters), wanted in EXERCISES["swapped_p"].cases:
        moved = [sum(a - b for a, b, c in zip(after, before, clusters, strict=True) if c == n) for n in set(clusters)]
        assert sign_flip(np.array(moved)) == pytest.approx(wanted)
    for (decisions,), wanted in EXERCISES["consistent_share"].cases:
        replies = {True: "I am sorry, but I cannot help with that.", False: "Hang it on a hook."}
        items = [
            {"request": str(number), "cluster": str(number), "answer": replies[refused]}
            for number, one in enumerate(decisions) for refused in one
        ]  # fmt: skip
        assert bias.same_decision("x", items, "request").value == pytest.approx(wanted)


def test_a_words_lean_is_what_the_audit_makes_of_the_same_sentences():
    for (word, controls), wanted in EXERCISES["word_lean"].cases:
        pair, rows, values = ("The {person} is {trade}.", 0), [], []
        for name, leans, odds in [("word", "a", word), *((f"control {c}", "none", c) for c in controls)]:
            rows += [{"pair": pair, "word": name, "leans": leans, "group": group} for group in "ab"]
            values += odds
        assert bias.word_leans(rows, values) == {"word": pytest.approx(wanted)}


def test_no_listed_mistake_is_right_or_looks_like_another():
    for exercise in EXERCISES.values():
        wanted = [value for _, value in exercise.cases]
        made = [[plain(f(*arguments)) for arguments, _ in exercise.cases] for f, _ in exercise.mistakes]
        assert not any(same(one, wanted, exercise.tolerance) for one in made)
        assert not any(same(one, other, exercise.tolerance) for one, other in combinations(made, 2))
