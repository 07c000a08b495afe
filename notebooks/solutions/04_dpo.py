"""Solutions to lesson 04's exercises."""

from math import exp, log

from anita_utils.exercises import check


def bradley_terry(first, second):
    return 1 / (1 + exp(second - first))


check("bradley_terry", bradley_terry)


def pull(margin):
    return 1 - 1 / (1 + exp(-margin))  # -log σ has the slope -(1 - σ)


check("pull", pull)


def pair_loss(policy, reference, beta):
    margin = sum(policy[0]) - sum(policy[1])  # summed over the tokens, never averaged
    reference_margin = sum(reference[0]) - sum(reference[1])
    # -log of the sigmoid
    return log(1 + exp(-beta * (margin - reference_margin)))


check("pair_loss", pair_loss)


def reward_accuracy(policy_margins, reference_margins):
    pairs = zip(policy_margins, reference_margins, strict=True)
    wins = [ours > theirs for ours, theirs in pairs]
    return sum(wins) / len(wins)  # beta is above 0, so it cannot change who wins


check("reward_accuracy", reward_accuracy)


def needed_margin(probability, beta):
    return log(probability / (1 - probability)) / beta


check("needed_margin", needed_margin)


def best_policy(reference, rewards, beta):
    answers = zip(reference, rewards, strict=True)
    weights = [p * exp(reward / beta) for p, reward in answers]
    return [weight / sum(weights) for weight in weights]


check("best_policy", best_policy)
