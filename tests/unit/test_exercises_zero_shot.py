"""Lesson 07's exercises: the checks pass the solutions, explain a student's mistakes, and agree with the libraries.

The wrong answers here are written as a student would write them, not taken from the checks' own list of mistakes.
"""

import ast
import inspect
from collections import Counter
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact

from anita_utils.exercises.checking import judge, plain, same
from anita_utils.exercises.lesson07 import EXERCISES

SOLUTIONS = Path(__file__).parents[2] / "notebooks" / "solutions" / "07_zero_shot_italian.py"


@pytest.fixture(scope="module")
def solutions():
    """The functions of the solutions' file, without its calls of `check`, which read the list of all lessons."""
    tree = ast.parse(SOLUTIONS.read_text("utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Expr)]
    namespace = {}
    exec(compile(tree, SOLUTIONS.name, "exec"), namespace)
    return namespace


def the_other_way_round(known, said):
    known, said = np.array(known), np.array(said)
    return known[said == 1].mean(), known[said == 0].mean()


def of_all_facts(known, said):
    known, said = np.array(known), np.array(said)
    return (known * said).mean(), ((1 - known) * said).mean()


def by_counters(first, second, size, norm):
    def runs(text):
        return [text[i : i + size] for i in range(len(text) - size + 1)]

    a, b = runs(first), runs(second)
    names = sorted({*a, *b})
    left, right = (np.array([each.count(name) for name in names]) for each in (a, b))
    return left @ right / norm(left, right)


def set_likeness(first, second, size):
    a, b = ({text[i : i + size] for i in range(len(text) - size + 1)} for text in (first, second))
    return len(a & b) / np.sqrt(len(a) * len(b))


def one_sided(right, n, other_right, other_n):
    return fisher_exact([[right, n - right], [other_right, other_n - other_right]], alternative="greater").pvalue


def exactly_this(right, n, other_right, other_n):
    all_right, everything = right + other_right, n + other_n
    return comb(all_right, right) * comb(everything - all_right, n - right) / comb(everything, n)


WRONG = [
    ("conditional_shares", the_other_way_round, "P(known | said)"),
    ("conditional_shares", of_all_facts, "divided by all facts"),
    ("conditional_shares", lambda known, said: (np.mean(said), np.mean(said)), "plays no part"),
    (
        "habit_share",
        lambda answers, objects: np.mean([a == o for a, o in zip(answers, objects, strict=True)]),
        "that *is* right",
    ),
    ("habit_share", lambda answers, objects: 1 / len({*objects}), "blind guessing"),
    ("habit_share", lambda answers, objects: sum(a in objects for a in answers) / len(answers), "at all"),
    ("likeness", set_likeness, "each sequence once"),
    ("likeness", lambda a, b, n: by_counters(a, b, n, lambda x, y: 1), "both lengths"),
    ("likeness", lambda a, b, n: by_counters(a, b, n, lambda x, y: x.sum() * y.sum()), "numbers of sequences"),
    ("fisher_p", one_sided, "one side only"),
    ("fisher_p", exactly_this, "exactly what was seen"),
    ("fisher_p", lambda *counts: min(1, 2 * one_sided(*counts)), "Doubling"),
]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right(name, solutions):
    found = judge(EXERCISES[name], name, solutions[name])
    assert found.right and found.text == f"Right: {EXERCISES[name].right}"
    assert inspect.signature(solutions[name]).parameters.keys()


def test_every_exercise_meets_two_wrong_answers():
    tried = Counter(name for name, _, _ in WRONG)
    assert len(EXERCISES) >= 4 and all(tried[name] >= 2 for name in EXERCISES)


@pytest.mark.parametrize("name", EXERCISES)
def test_no_listed_mistake_is_right_or_looks_like_another(name):
    exercise = EXERCISES[name]
    wanted = [value for _, value in exercise.cases]
    made = [[plain(compute(*arguments)) for arguments, _ in exercise.cases] for compute, _ in exercise.mistakes]
    assert len(made) >= 3
    assert not any(same(results, wanted, exercise.tolerance) for results in made)
    assert not any(same(one, other, exercise.tolerance) for one, other in combinations(made, 2))


def test_an_empty_skeleton_is_not_done_rather_than_wrong():
    assert judge(EXERCISES["conditional_shares"], "conditional_shares", lambda known, said: ...).right is None


def test_what_is_right_here_is_what_the_libraries_compute():
    from anita_utils.stats import Groups, Matched

    for (right, n, other, m), wanted in EXERCISES["fisher_p"].cases:
        assert fisher_exact([[right, n - right], [other, m - other]]).pvalue == pytest.approx(wanted)
        one = Groups([1] * right + [0] * (n - right), [1] * other + [0] * (m - other))
        assert one.p() == pytest.approx(wanted)
    for (answers, objects), wanted in EXERCISES["habit_share"].cases:
        table = np.array([[answer == name for name in objects] for answer in answers])
        assert Matched([table]).habit.mean() == pytest.approx(wanted)
    for (first, second, size), wanted in EXERCISES["likeness"].cases:
        cosine = by_counters(first, second, size, lambda x, y: np.linalg.norm(x) * np.linalg.norm(y))
        assert cosine == pytest.approx(wanted)
