"""The exercises of lesson 06: their checks explain what students get wrong. Their other rules: test_exercises.py.

The wrong answers are written as a student would write them; `WRONG` also joins those of the other lessons.
"""

from itertools import product
from statistics import mean, pstdev, stdev

import numpy as np
import pytest
from scipy import stats

from anita_utils.ablation import effects
from anita_utils.exercises.lesson06 import EXERCISES


def beside_nothing(means, stage):
    return means[stage] - means[""]


def with_less_base(means, stage):
    return mean(v for k, v in means.items() if stage in k) - means[""]


def deviation_of_one(values, t):
    return [mean(values) - t * stdev(values), mean(values) + t * stdev(values)]


def population_deviation(values, t):
    error = pstdev(values) / len(values) ** 0.5
    return mean(values) - t * error, mean(values) + t * error


def of_the_mean(values, t):
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - t * error, np.mean(values) + t * error


WRONG = [
    ("more_than_the_sum", lambda base, first, second, both: both - (first + second), "The base stands in every"),
    ("more_than_the_sum", lambda base, first, second, both: both - base, "take off what each gains alone"),
    ("main_effect", beside_nothing, "beside no other stage"),
    ("main_effect", with_less_base, "compared with the base alone"),
    ("seed_interval", deviation_of_one, "divide by √n"),
    ("seed_interval", population_deviation, "n − 1"),
    ("new_seed_interval", of_the_mean, "interval of the *mean*"),
    ("new_seed_interval", deviation_of_one, "the mean is uncertain too"),
    ("smallest_p", lambda seeds: 2.0**-seeds, "One-sided"),
    ("smallest_p", lambda seeds: 1 / seeds, "multiply rather than add up"),
]


def test_the_cases_are_what_the_kit_computes():
    for (values, t), wanted in EXERCISES["seed_interval"].cases:
        assert t == pytest.approx(stats.t.ppf(0.975, len(values) - 1), abs=1e-3)
        assert effects.estimate(np.array(values)).interval() == pytest.approx(wanted, abs=1e-3)
    for (values, _), wanted in EXERCISES["new_seed_interval"].cases:
        assert effects.prediction_interval(np.array(values)) == pytest.approx(wanted, abs=1e-2)
    letters = {"sft": "s", "italian": "i", "dpo": "d"}
    (means, stage), wanted = EXERCISES["main_effect"].cases[-1]
    cells = {frozenset(name for name, letter in letters.items() if letter in key): key for key in means}
    contrast = effects.factorial(cells)[next(name for name, letter in letters.items() if letter == stage)]
    assert sum(weight * means[arm] for arm, weight in contrast.items()) == pytest.approx(wanted)


def test_so_small_a_p_comes_of_counting_all_swaps():
    for (seeds,), wanted in EXERCISES["smallest_p"].cases:
        sums = [abs(sum(signs)) for signs in product((1, -1), repeat=seeds)]
        assert np.mean([one >= seeds for one in sums]) == wanted
