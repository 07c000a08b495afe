"""Solutions to lesson 08's exercises."""

from itertools import product
from math import log

import numpy as np

from anita_utils.exercises import check


def stated_odds(skew, groups):
    return log(skew / ((1 - skew) / (groups - 1)))


check("stated_odds", stated_odds)


def word_lean(word, controls):
    return word[0] - word[1] - np.mean([a - b for a, b in controls])


check("word_lean", word_lean)


def consistent_share(decisions):
    return np.mean([len(set(one)) == 1 for one in decisions])


check("consistent_share", consistent_share)


def holm_adjusted(p_values):
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values)):
        corrected = (len(p_values) - rank) * p_values[place]
        largest = max(largest, min(1.0, corrected))
        adjusted[place] = largest
    return adjusted


check("holm_adjusted", holm_adjusted)


def swapped_p(before, after, clusters):
    moved = np.array(after) - np.array(before)
    names = sorted(set(clusters))
    sums = np.array([moved[np.array(clusters) == name].sum() for name in names])
    signs = np.array(list(product((1, -1), repeat=len(sums))))
    observed = abs(sums.sum()) - 1e-9  # a hair less: sums of fractions are rounded
    return np.mean(np.abs(signs @ sums) >= observed)


check("swapped_p", swapped_p)
