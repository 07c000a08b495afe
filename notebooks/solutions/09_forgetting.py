"""Solutions to lesson 09's exercises."""

from math import exp, floor, log

import numpy as np

from anita_utils.exercises import check


def lost_share(before, after):
    before, after = np.array(before), np.array(after)
    return ((before == 1) & (after == 0)).sum() / (before == 1).sum()


check("lost_share", lost_share)


def entropy(probabilities):
    return -sum(p * log(p) for p in probabilities if p > 0)


check("entropy", entropy)


def stop_at(updates, held_out, patience):
    best = 0
    for place, value in enumerate(held_out):
        if value > held_out[best]:
            best = place
        if place - best >= patience:
            break
    return updates[best]


check("stop_at", stop_at)


def chosen_moved(reference, policy, beta):
    chosen, rejected = policy[0] - reference[0], policy[1] - reference[1]
    return log(1 + exp(-beta * (chosen - rejected))), exp(chosen)


check("chosen_moved", chosen_moved)


def longest_row(fixed, per_token, room, step):
    tokens = (0.95 * room - fixed) / per_token
    return max(0, floor(tokens / step)) * step


check("longest_row", longest_row)
