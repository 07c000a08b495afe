"""Solutions to lesson 05's exercises."""

import re
import unicodedata

import numpy as np

from anita_utils.exercises import check


def chosen_twice(log_likelihoods, answers):
    normed = [value / len(answer) for value, answer in zip(log_likelihoods, answers, strict=True)]
    return int(np.argmax(log_likelihoods)), int(np.argmax(normed))


check("chosen_twice", chosen_twice)


def normal_italian(answer):
    articles = {"il", "lo", "la", "l", "i", "gli", "le", "un", "uno", "una"}
    apart = unicodedata.normalize("NFD", answer.lower())  # "è" becomes "e" and an accent
    plain = "".join(character for character in apart if not unicodedata.combining(character))
    return " ".join(word for word in re.findall(r"[a-z0-9]+", plain) if word not in articles)


check("normal_italian", normal_italian)


def paired_error(before, after):
    differences = np.array(after) - np.array(before)
    return differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))


check("paired_error", paired_error)


def one_resample(scores, clusters, drawn):
    together = [score for name in drawn for score, own in zip(scores, clusters, strict=True) if own == name]
    return sum(together) / len(together)


check("one_resample", one_resample)


def cluster_interval(scores, clusters, generator):
    names = sorted(set(clusters))
    sums = np.array([sum(s for s, own in zip(scores, clusters, strict=True) if own == name) for name in names])
    sizes = np.array([clusters.count(name) for name in names])
    means = []
    for _ in range(2000):
        drawn = generator.integers(len(names), size=len(names))
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    return np.percentile(means, [2.5, 97.5])


check("cluster_interval", cluster_interval)
