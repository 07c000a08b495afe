"""Solutions to lesson 07's exercises."""

from collections import Counter
from math import comb, sqrt

from anita_utils.exercises import check


def conditional_shares(known, said):
    groups = {0: [], 1: []}
    for knows, says in zip(known, said, strict=True):
        groups[knows].append(says)
    given_known = sum(groups[1]) / len(groups[1])
    given_unknown = sum(groups[0]) / len(groups[0])
    return given_known, given_unknown


check("conditional_shares", conditional_shares)


def habit_share(answers, objects):
    hits = sum(objects.count(answer) for answer in answers)
    return hits / len(answers) / len(objects)


check("habit_share", habit_share)


def likeness(first, second, size):
    def counts(text):
        starts = range(len(text) - size + 1)
        return Counter(text[start : start + size] for start in starts)

    def product(one, other):
        return sum(times * other[run] for run, times in one.items())

    a, b = counts(first), counts(second)
    return product(a, b) / sqrt(product(a, a) * product(b, b))


check("likeness", likeness)


def fisher_p(right, n, other_right, other_n):
    all_right, all_facts = right + other_right, n + other_n

    def chance(k):
        ways = comb(all_right, k) * comb(all_facts - all_right, n - k)
        return ways / comb(all_facts, n)

    possible = range(max(0, all_right - other_n), min(n, all_right) + 1)
    seen = chance(right) * (1 + 1e-9)  # equal chances may differ in the last digit
    return sum(chance(k) for k in possible if chance(k) <= seen)


check("fisher_p", fisher_p)
