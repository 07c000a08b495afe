"""The exercises of lesson 06: synergy, a main effect, intervals over seeds and for a new one, what few seeds prove."""

from __future__ import annotations

from math import factorial, sqrt

from anita_utils.exercises.checking import Exercise


def _mean(values):
    return sum(values) / len(values)


def _spread(values, less=1):
    middle = _mean(values)
    return sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - less))


def _around(values, reach):
    return _mean(values) - reach, _mean(values) + reach


more_than_the_sum = Exercise(
    cases=[((0.40, 0.45, 0.42, 0.52), 0.05), ((0.2, 0.5, 0.6, 0.7), -0.2), ((0.1, 0.3, 0.2, 0.4), 0.0)],
    mistakes=[
        (lambda base, first, second, both: both - first - second,
         "The base stands in every score: without it you compare scores, not gains."),
        (lambda base, first, second, both: both - base, "That is the gain of both: take off what each gains alone."),
        (lambda base, first, second, both: both - max(first, second),
         "That is what both add to the better one. Synergy is more than the *sum* of the two gains."),
        (lambda base, first, second, both: (both - first - second + base) / 2,
         "Half of it is the interaction in the factorial's convention; asked for is the whole difference."),
        (lambda base, first, second, both: first + second - base - both, "The sign: above zero is to mean synergy."),
    ],
    hint="(both − base) − (first − base) − (second − base).",
    right="with the base counted once. Below zero, the two teach the same thing twice.",
)  # fmt: skip


def _split(means, stage):
    have = [value for stages, value in means.items() if stage in stages]
    lack = [value for stages, value in means.items() if stage not in stages]
    return have, lack


main_effect = Exercise(
    cases=[
        (({"": 0.4, "s": 0.5, "d": 0.3, "sd": 0.6}, "s"), 0.2),
        (({"": 0.4, "s": 0.5, "d": 0.3, "sd": 0.6}, "d"), 0.0),
        (({"": 0.1, "s": 0.2, "i": 0.5, "d": 0.1, "si": 0.6, "sd": 0.2, "id": 0.5, "sid": 0.9}, "i"), 0.475),
    ],
    mistakes=[
        (lambda means, stage: means[stage] - means[""],
         "That is the effect beside no other stage. A main effect is the mean over all that the others may be."),
        (lambda means, stage: _mean(_split(means, stage)[0]) - means[""],
         "You compared with the base alone. Compare with *all* arms that lack the stage."),
        (lambda means, stage: sum(_split(means, stage)[0]) - sum(_split(means, stage)[1]),
         "Those are sums: divide each by the number of its arms."),
        (lambda means, stage: _mean(_split(means, stage)[0]) - _mean(list(means.values())),
         "You compared with the mean of *all* arms, half of which have the stage."),
        (lambda means, stage: _mean(_split(means, stage)[1]) - _mean(_split(means, stage)[0]),
         "The sign: with the stage, less without."),
    ],
    hint="The mean of the figures whose key holds the letter, less the mean of the others.",
    right="every arm takes part, so four or eight trainings estimate each effect, not two.",
)  # fmt: skip

seed_interval = Exercise(
    cases=[
        (([1.0, 2.0, 3.0], 4.303), (2 - 4.303 / sqrt(3), 2 + 4.303 / sqrt(3))),
        (([0.5, 0.5, 0.5, 0.5], 3.182), (0.5, 0.5)),
        (([0.10, 0.14, 0.12, 0.08, 0.16], 2.776), (0.12 - 2.776 * sqrt(0.0002), 0.12 + 2.776 * sqrt(0.0002))),
    ],
    mistakes=[
        (lambda values, t: _around(values, t * _spread(values)),
         "That is the spread of single seeds. Of a mean of n it is smaller: divide by √n."),
        (lambda values, t: _around(values, t * _spread(values, 0) / sqrt(len(values))),
         "You divided the squares by n; estimated from the same values, the variance takes n − 1."),
        (lambda values, t: _around(values, t * _spread(values) / len(values)), "Divide by the root of n, not by n."),
        (lambda values, t: _around(values, _spread(values) / sqrt(len(values))),
         "That is one standard error to each side: t of them make 95 %."),
        (lambda values, t: _around(values, t * _spread(values) ** 2 / sqrt(len(values))),
         "You took the variance: the error is made of its root, the standard deviation."),
    ],
    hint="The standard deviation with n − 1, divided by √n, times t: to either side of the mean.",
    right="that is where the mean of other seeds may lie. It shrinks with more seeds.",
)  # fmt: skip

new_seed_interval = Exercise(
    cases=[
        (([1.0, 2.0, 3.0], 9.925), (2 - 9.925 * sqrt(4 / 3), 2 + 9.925 * sqrt(4 / 3))),
        (([0.3, 0.5], 63.66), (0.4 - 63.66 * sqrt(0.02 * 1.5), 0.4 + 63.66 * sqrt(0.02 * 1.5))),
    ],
    mistakes=[
        (lambda values, t: _around(values, t * _spread(values) / sqrt(len(values))),
         "That is the interval of the *mean*. One seed has its own luck besides: √(1 + 1/n) in place of √(1/n)."),
        (lambda values, t: _around(values, t * _spread(values)),
         "Nearly: but the mean is uncertain too. The factor is √(1 + 1/n)."),
        (lambda values, t: _around(values, t * _spread(values) * (1 + 1 / len(values))),
         "Variances add up, not deviations: take the root of 1 + 1/n."),
        (lambda values, t: (min(values), max(values)),
         "Those are the seeds there were. A new one may well lie outside: of three seeds every second does."),
    ],
    hint="The standard deviation with n − 1, times √(1 + 1/n), times t: to either side of the mean.",
    right="it does not shrink to nothing with more seeds: one seed stays one seed.",
)  # fmt: skip

smallest_p = Exercise(
    cases=[((2,), 0.5), ((5,), 0.0625), ((6,), 0.03125), ((10,), 2 / 1024)],
    mistakes=[
        (lambda seeds: 0.5**seeds, "One-sided: the mirror image, in which the other arm wins always, is as extreme."),
        (lambda seeds: 1 / factorial(seeds),
         "The seeds are not put in another order: in each the two arms swap or not."),
        (lambda seeds: 2 / seeds**2, "Each seed has two ways, and they multiply: 2 to the power of the seeds."),
        (lambda seeds: 2 / (2 * seeds), "Each seed has two ways, and they multiply rather than add up."),
    ],
    hint="How many ways are there to swap or not in each seed? Two of them are as extreme as what was seen.",
    right="with five seeds such a test never falls below 0.05. Student's t gets further because it assumes more: that "
    "seeds vary normally.",
)  # fmt: skip

EXERCISES = {
    "more_than_the_sum": more_than_the_sum,
    "main_effect": main_effect,
    "seed_interval": seed_interval,
    "new_seed_interval": new_seed_interval,
    "smallest_p": smallest_p,
}
