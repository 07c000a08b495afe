"""Solutions to lesson 06's exercises."""

import numpy as np

from anita_utils.exercises import check


def more_than_the_sum(base, first, second, both):
    return (both - base) - (first - base) - (second - base)


check("more_than_the_sum", more_than_the_sum)


def main_effect(means, stage):
    have = [value for stages, value in means.items() if stage in stages]
    lack = [value for stages, value in means.items() if stage not in stages]
    return np.mean(have) - np.mean(lack)


check("main_effect", main_effect)


def seed_interval(values, t):
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - t * error, np.mean(values) + t * error


check("seed_interval", seed_interval)


def new_seed_interval(values, t):
    reach = t * np.std(values, ddof=1) * np.sqrt(1 + 1 / len(values))
    return np.mean(values) - reach, np.mean(values) + reach


check("new_seed_interval", new_seed_interval)


def smallest_p(seeds):
    return 2 / 2**seeds


check("smallest_p", smallest_p)
