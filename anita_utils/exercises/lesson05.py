"""The exercises of lesson 05: acc and acc_norm, Italian answers, paired error, one resample, a cluster interval."""

from __future__ import annotations

import re
import unicodedata
from math import sqrt

import numpy as np

from anita_utils.exercises.checking import Between, Exercise


def _first(values):
    return max(range(len(values)), key=lambda number: values[number])


def _choose(lls, answers, length=len, per=lambda ll, size: ll / size, swapped=False):
    both = _first(lls), _first([per(ll, length(answer)) for ll, answer in zip(lls, answers, strict=True)])
    return both[::-1] if swapped else both


chosen_twice = Exercise(
    cases=[
        (([-6.0, -8.0], ["viola", "il colore è il giallo"]), (0, 1)),
        (([-20.0, -4.0, -12.0], ["il fiume Po", "Po", "il Po di qua e di là"]), (1, 2)),
        (([-6.0, -5.0], ["controrivoluzionario", "tra me e te"]), (1, 0)),
        (([-3.0, -4.0], ["un bel cielo azzurro", "no"]), (0, 0)),
    ],
    mistakes=[
        (lambda *a: _choose(*a, length=lambda text: len(text.split())),
         "You divided by words: lm-eval's acc_norm divides by characters."),
        (lambda *a: _choose(*a, swapped=True), "The two are swapped: first acc, then acc_norm."),
        (lambda lls, answers: (_first(lls), _first(lls)),
         "acc_norm is not normed: divide each log-likelihood by its answer's length."),
        (lambda *a: _choose(*a, per=lambda ll, size: ll * size),
         "You multiplied by the length, which punishes long answers twice: divide."),
        (lambda lls, answers: _choose([-ll for ll in lls], answers),
         "You took the smallest. Log-likelihoods are negative: the likeliest is the largest, nearest to 0."),
        (lambda lls, answers: (max(lls), max(x / len(a) for x, a in zip(lls, answers, strict=True))),
         "Those are the scores; the *number* of the answer is asked for, from 0."),
    ],
    hint="acc: the number of the largest log-likelihood. acc_norm: of the largest log-likelihood divided by the "
    "number of characters.",
    right="same model, same item, two choices: name the metric with the figure.",
)  # fmt: skip

_ARTICLES = ["il", "lo", "la", "l", "i", "gli", "le", "un", "uno", "una"]


def _bare(text):
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _normal(answer, lower=True, bare=_bare, cut=r"[^a-zA-Z0-9]+", by=" ", articles=_ARTICLES):
    text = re.sub(cut, by, bare(answer.lower() if lower else answer))
    return " ".join(word for word in text.split() if word not in articles)


normal_italian = Exercise(
    cases=[
        (("L'Aquila.",), "aquila"),
        (("È  il Po!",), "e po"),
        (("Gli Uffizi, di Firenze",), "uffizi di firenze"),
        (("Città di Castello",), "citta di castello"),
        (("lago di Lugano",), "lago di lugano"),
    ],
    mistakes=[
        (lambda a: _normal(a, cut=r"[^a-zA-Z0-9 ]+", by=""),
         "The apostrophe was deleted, so an article grew onto its noun (laquila). Replace marks by a space."),
        (lambda a: _normal(a, bare=lambda t: t, cut=r"[^\w]+"),
         "The accents are still there: NFD takes letter and accent apart; drop the combining marks."),
        (lambda a: _normal(a, bare=lambda t: t),
         "Accented letters vanished as a whole (citt): take the accent off first, then drop what is no letter."),
        (lambda a: _normal(a, articles=[]),
         "The articles are still there: drop il, lo, la, l, i, gli, le, un, uno, una as words."),
        (lambda a: _normal(a, lower=False),
         "Capitals are still there: lower the text first, so that Gli is an article too."),
        (lambda a: _normal(a, lower=False).lower(),
         "Lowered too late: L and Gli had passed as no articles. Lower the text first."),
        (lambda a: re.sub("|".join(_ARTICLES), "", _normal(a, articles=[])).strip(),
         "You cut articles out of the middle of words: compare whole words."),
    ],
    hint="Lower the text; NFD and drop combining marks; everything but letters and digits becomes a space; drop the"
    " words that are articles; join by single spaces.",
    right="\"L'Aquila\" and \"aquila\" are the same answer now. The kit also drops English articles, and makes"
    " \"dell'\" di and \"sei\" 6.",
)  # fmt: skip


def _mean(values):
    return sum(values) / len(values)


def _spread(values, less=1):
    return sqrt(sum((value - _mean(values)) ** 2 for value in values) / (len(values) - less))


def _less(before, after):
    return [b - a for a, b in zip(before, after, strict=True)]


def _error(before, after, less=1):
    return _mean(_less(before, after)), _spread(_less(before, after), less) / sqrt(len(before))


paired_error = Exercise(
    cases=[
        (([1, 0, 0, 1], [1, 1, 0, 1]), (0.25, 0.25)),
        (([1, 0, 1, 0, 1], [1, 1, 1, 1, 0]), (0.2, sqrt(0.7) / sqrt(5))),
    ],
    mistakes=[
        (lambda a, b: (_mean(_less(a, b)), sqrt((_spread(a) ** 2 + _spread(b) ** 2) / len(a))),
         "That error is for two *different* sets of items. Here both models answered the same: take the differences "
         "item by item, and the spread of those."),
        (lambda a, b: _error(b, a), "The sign: after less before."),
        (lambda a, b: _error(a, b, less=0),
         "You divided by n; for a spread estimated from the items themselves it is n - 1."),
        (lambda a, b: (_mean(_less(a, b)), _spread(_less(a, b))),
         "That is the spread of single items; the mean's error is smaller by √n."),
        (lambda a, b: (_mean(_less(a, b)), _spread(_less(a, b)) / len(a)), "Divide by √n, not by n."),
        (lambda a, b: (_mean(_less(a, b)), _spread(_less(a, b)) ** 2 / len(a)),
         "That is the squared error (the variance): take its root."),
    ],
    hint="The differences, item by item (after less before); their mean; their standard deviation (n - 1) divided "
    "by √n.",
    right="an item that both got right, or both wrong, adds nothing to the error: that is the gain of pairing.",
)  # fmt: skip


def _drawn(scores, clusters, drawn):
    return [score for name in drawn for score, cluster in zip(scores, clusters, strict=True) if cluster == name]


_SCORES, _CLUSTERS = [1, 1, 1, 0, 0, 1], ["a", "a", "a", "b", "c", "c"]

one_resample = Exercise(
    cases=[
        ((_SCORES, _CLUSTERS, ["a", "b", "c"]), 4 / 6),
        ((_SCORES, _CLUSTERS, ["b", "a", "b"]), 3 / 5),
        ((_SCORES, _CLUSTERS, ["c", "c", "c"]), 1 / 2),
    ],
    mistakes=[
        (lambda s, c, d: _mean(_drawn(s, c, sorted(set(d)))),
         "A cluster drawn twice counts twice: that is what drawing with replacement means."),
        (lambda s, c, d: _mean([_mean(_drawn(s, c, [name])) for name in d]),
         "You averaged the clusters' means, so a cluster of one item weighs as much as one of three. Put the items "
         "together, then take one mean."),
        (lambda s, c, d: sum(_drawn(s, c, d)) / len(s),
         "Divide by the number of items *drawn*: clusters differ in size."),
        (lambda s, c, d: _mean(s), "The draw plays no part: that is the score of all items."),
        (lambda s, c, d: _mean([s[c.index(name)] for name in d]),
         "Only the first item of each cluster: a drawn cluster brings all its items."),
    ],
    hint="Go through the drawn names; for each, take along the scores of *all* its items; then one mean.",
    right="one draw of the bootstrap. Two thousand of them make the interval.",
)  # fmt: skip

# 100 items in 25 clusters of 4 that stand or fall together, 13 clusters right. A mean of 25 coins has a standard error
# of 0.1, so 95 % of the draws lie within 0.2 of 0.52; of 100 independent items, within 0.1.
_TOGETHER = [float(cluster % 2 == 0) for cluster in range(25) for _ in range(4)]
_NAMES = [f"cluster {cluster}" for cluster in range(25) for _ in range(4)]
_APART = [0.0, 1.0] * 50, [f"item {number}" for number in range(100)]
_RIGHT = [Between(0.29, 0.35), Between(0.69, 0.75)], [Between(0.38, 0.42), Between(0.58, 0.62)]


def _ends(together, apart=_RIGHT[1]):
    """What a mistake gives on items that stand together, and on items that stand apart."""
    return lambda scores, clusters, generator: together if len(set(clusters)) == 25 else apart


cluster_interval = Exercise(
    cases=[
        ((_TOGETHER, _NAMES, np.random.default_rng(0)), _RIGHT[0]),
        ((*_APART, np.random.default_rng(1)), _RIGHT[1]),
    ],
    mistakes=[
        (_ends([Between(0.40, 0.45), Between(0.59, 0.64)]),
         "Too narrow: you drew items one by one, as if the four items of a cluster were four witnesses. Draw "
         "clusters, and take all their items along."),
        (_ends([Between(0.40, 0.45), Between(0.59, 0.64)], [Between(0.43, 0.47), Between(0.53, 0.57)]),
         "That is the mean and one standard deviation, about 68 %. For 95 % take np.percentile(means, [2.5, 97.5])."),
        (_ends([Between(0.35, 0.38), Between(0.66, 0.69)], [Between(0.40, 0.43), Between(0.57, 0.60)]),
         "Those are the percentiles 5 and 95, which hold 90 %: leave out 2.5 % on either side."),
        (_ends([0.52, 0.52], [0.5, 0.5]),
         "Every draw is the same: draw *with* replacement, so that some clusters come twice and others not at all."),
    ],
    hint="Two thousand times: draw as many cluster names as there are clusters, with replacement; put all their "
    "items together; take the mean. Then np.percentile(means, [2.5, 97.5]).",
    right="twice as wide as for independent items: 25 witnesses, not 100.",
)  # fmt: skip

EXERCISES = {
    "chosen_twice": chosen_twice,
    "normal_italian": normal_italian,
    "paired_error": paired_error,
    "one_resample": one_resample,
    "cluster_interval": cluster_interval,
}
