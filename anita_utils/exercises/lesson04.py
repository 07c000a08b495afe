"""The exercises of lesson 04: Bradley-Terry, the pull, the loss of a pair, reward accuracy, beta, the best policy."""

from __future__ import annotations

from math import exp, log

from anita_utils.exercises.checking import Exercise


def _sigmoid(x):
    return 1 / (1 + exp(-x))


bradley_terry = Exercise(
    cases=[
        ((2.0, 2.0), 0.5),
        ((log(3), 0.0), 0.75),
        ((1.0, 1.0 + log(4)), 0.2),
    ],
    mistakes=[
        (lambda a, b: _sigmoid(b - a),
         "That is the chance that the *second* wins: take the first score less the second."),
        (lambda a, b: a / (a + b) if a + b else 0.5,
         "Scores are logarithms of strengths: exponentials first, exp(a) / (exp(a) + exp(b))."),
        (lambda a, b: _sigmoid(a), "The other score plays no part: only the difference of the two counts."),
        (lambda a, b: exp(a - b), "Those are the odds: divide by 1 plus the odds."),
        (lambda a, b: a - b, "That is the difference of the scores; it still has to go through the sigmoid."),
        (lambda a, b: -log(_sigmoid(a - b)), "That is the loss, -log p; the probability p itself is asked for."),
    ],
    hint="exp(a) / (exp(a) + exp(b)), which is 1 / (1 + exp(-(a - b))).",
    right="only the difference counts, so rewards are known up to a constant. DPO lives on that.",
)  # fmt: skip


pull = Exercise(
    cases=[((0.0,), 0.5), ((log(3),), 0.25), ((-3.0,), 1 / (1 + exp(-3)))],
    mistakes=[
        (_sigmoid, "That is the probability that the chosen answer wins; the pull is what is left to 1."),
        (lambda m: _sigmoid(m) - 1, "That is the slope with its sign; how strongly it pulls is the slope's size."),
        (lambda m: -log(_sigmoid(m)), "That is the loss itself; the pull is the size of its slope."),
        (lambda m: _sigmoid(m) * (1 - _sigmoid(m)),
         "That is the slope of the sigmoid. The loss is -log of it, and the logarithm's 1 / sigmoid cancels a factor."),
        (lambda m: 1 - m, "The margin has to go through the sigmoid first."),
    ],
    hint="1 - 1 / (1 + exp(-margin)): one half at margin 0, less and less to the right.",
    right="a settled pair hardly pulls any more.",
)  # fmt: skip


def _mean(values):
    return sum(values) / len(values)


def _pair(policy, reference, beta, of=sum, referred=True, sign=1, final=lambda p: -log(p)):
    margin = of(policy[0]) - of(policy[1]) - (of(reference[0]) - of(reference[1]) if referred else 0)
    return final(_sigmoid(sign * beta * margin))


_PAIR = ([-1.0, -2.0, -3.0], [-4.0, -6.0]), ([-2.0, -2.0, -3.0], [-4.0, -4.0])
_HURT = ([-1.0, -3.0], [-1.0, -1.0, -1.0]), ([-1.0, -1.0], [-2.0, -1.0, -2.0])

pair_loss = Exercise(
    cases=[
        ((*_PAIR, 0.1), -log(_sigmoid(0.3))),
        ((*_PAIR, 0.5), -log(_sigmoid(1.5))),
        ((*_HURT, 0.5), -log(_sigmoid(-2.0))),
    ],
    mistakes=[
        (lambda *a: _pair(*a, of=_mean),
         "You averaged over the tokens: a whole answer's log-probability is the *sum*."),
        (lambda *a: _pair(*a, referred=False),
         "The reference is not in it: what counts is how far the margin moved beyond the reference's."),
        (lambda *a: _pair(*a, sign=-1),
         "The sign: this loss falls when the *rejected* answer wins. Chosen less rejected, policy less reference."),
        (lambda p, r, beta: _pair(p, r, 1.0), "beta is missing: multiply the difference of the margins by it."),
        (lambda *a: _pair(*a, final=lambda p: p),
         "That is the probability that the chosen answer wins; the loss is its negative logarithm."),
        (lambda *a: _pair(*a, final=log), "A minus is missing: a loss is never below 0."),
        (lambda *a: _pair(*a, final=lambda p: log(1 / p - 1)),
         "That is the negative reward margin: it still has to go through the sigmoid and the logarithm."),
    ],
    hint="Add up each answer's tokens; chosen less rejected, for the policy and for the reference; the difference "
    "of the two times beta; -log of its sigmoid.",
    right="the first is the 0.554 of the lesson, now from the tokens up.",
)  # fmt: skip


def _share(pairs):
    return _mean([float(pair) for pair in pairs])


reward_accuracy = Exercise(
    cases=[
        (([4.0, -1.0, -3.0, 2.0], [1.0, -2.0, -4.0, 5.0]), 0.75),
        (([2.0, -1.0, 0.5, 3.0, 1.0], [2.0, -1.0, 0.5, 3.0, 0.5]), 0.2),
        (([1.0, 2.0], [-1.0, 1.0]), 1.0),
    ],
    mistakes=[
        (lambda ours, theirs: _share(m > 0 for m in ours),
         "You asked whether the policy finds the chosen answer likelier. The reward asks whether it does so *more "
         "than the reference*."),
        (lambda ours, theirs: _share(m >= n for m, n in zip(ours, theirs, strict=True)),
         "Ties are counted as right: a policy that has not moved would score 100 %. Only a margin above 0 counts."),
        (lambda ours, theirs: _share(m < n for m, n in zip(ours, theirs, strict=True)),
         "The other way round: the policy's margin is to be the larger."),
        (lambda ours, theirs: _mean([m - n for m, n in zip(ours, theirs, strict=True)]),
         "That is the mean margin; the accuracy is the *share* of pairs with a margin above 0."),
        (lambda ours, theirs: sum(m > n for m, n in zip(ours, theirs, strict=True)),
         "That is a count: divide by the number of pairs."),
        (lambda ours, theirs: _share(m > 0 and n > 0 for m, n in zip(ours, theirs, strict=True)),
         "You asked whether both find the chosen answer likelier; compare the two margins with each other."),
        (lambda ours, theirs: 100 * _share(m > n for m, n in zip(ours, theirs, strict=True)),
         "Those are per cent; a share lies between 0 and 1."),
    ],
    hint="Pair by pair: is the policy's margin above the reference's? The share of pairs where it is.",
    right="a new adapter scores 0 here, not one half: all its margins are ties.",
)  # fmt: skip

needed_margin = Exercise(
    cases=[
        ((0.75, 0.1), 10 * log(3)),
        ((0.75, 0.5), 2 * log(3)),
        ((0.5, 0.1), 0.0),
        ((0.25, 0.1), -10 * log(3)),
    ],
    mistakes=[
        (lambda p, beta: log(p / (1 - p)) * beta,
         "You multiplied by beta: beta × margin is the reward margin, so the margin is the reward margin *divided* "
         "by beta."),
        (lambda p, beta: log(p / (1 - p)), "That is the reward margin; divide it by beta for the log-probabilities."),
        (lambda p, beta: p / (1 - p) / beta, "The odds have no logarithm yet: the sigmoid undone is log(p / (1 - p))."),
        (lambda p, beta: -log(p) / beta, "You used the loss, -log p. The sigmoid undone is log(p / (1 - p))."),
        (lambda p, beta: log((1 - p) / p) / beta, "The sign: p / (1 - p), not the other way round."),
        (lambda p, beta: abs(log(p / (1 - p))) / beta,
         "Below one half the margin is negative: the policy has moved the wrong way."),
        (lambda p, beta: _sigmoid(p) / beta,
         "You applied the sigmoid once more; it has to be undone: log(p / (1 - p))."),
    ],
    hint="p = sigmoid(beta × margin). Undo the sigmoid, log(p / (1 - p)), then divide by beta.",
    right="for the same loss, beta 0.1 lets the policy wander five times as far as beta 0.5.",
)  # fmt: skip


def _best(reference, rewards, beta, power=lambda r, b: r / b, normalised=True, referred=True):
    weights = [(p if referred else 1) * exp(power(r, beta)) for p, r in zip(reference, rewards, strict=True)]
    return [weight / sum(weights) if normalised else weight for weight in weights]


best_policy = Exercise(
    cases=[
        (([0.5, 0.25, 0.25], [0.0, log(2), log(4)], 1.0), [0.25, 0.25, 0.5]),
        (([0.5, 0.25, 0.25], [0.0, log(2), log(4)], 0.5), [1 / 11, 2 / 11, 8 / 11]),
        (([1.0, 0.0], [0.0, log(9)], 1.0), [1.0, 0.0]),
    ],
    mistakes=[
        (lambda *a: _best(*a, power=lambda r, b: r * b),
         "You multiplied the reward by beta: it is divided by it. A small beta trusts the reward more."),
        (lambda *a: _best(*a, normalised=False), "Those do not add up to 1: divide by their sum."),
        (lambda *a: _best(*a, referred=False),
         "The reference is not in it: each answer's probability under the reference is what the reward multiplies."),
        (lambda *a: _best(*a, power=lambda r, b: r), "beta plays no part: the reward is divided by it."),
        (lambda *a: _best(*a, power=lambda r, b: -r / b), "The sign: a higher reward makes an answer likelier."),
        (lambda reference, rewards, beta: [float(r == max(rewards)) for r in rewards],
         "That is the policy without a leash. The reference holds it back: weigh its probabilities by exp(reward / "
         "beta)."),
    ],
    hint="Weight of an answer: its probability under the reference times exp(reward / beta). Divide by the sum.",
    right="solve it for the reward, and the implicit reward of DPO stands there. What the reference gives 0, no "
    "reward can raise.",
)  # fmt: skip

EXERCISES = {
    "bradley_terry": bradley_terry,
    "pull": pull,
    "pair_loss": pair_loss,
    "reward_accuracy": reward_accuracy,
    "needed_margin": needed_margin,
    "best_policy": best_policy,
}
