"""Solutions to lesson 05's exercises."""

import re
import unicodedata

import numpy as np

from anita_utils.exercises import check


def chosen_twice(log_likelihoods, answers):
    lengths = [len(answer) for answer in answers]
    per_character = np.array(log_likelihoods) / lengths
    return int(np.argmax(log_likelihoods)), int(np.argmax(per_character))


check("chosen_twice", chosen_twice)


def normal_italian(answer):
    articles = {"il", "lo", "la", "l", "i", "gli", "le", "un", "uno", "una"}
    apart = unicodedata.normalize("NFD", answer.lower())  # "è": "e" and an accent
    plain = "".join(letter for letter in apart if not unicodedata.combining(letter))
    words = re.findall(r"[a-z0-9]+", plain)
    return " ".join(word for word in words if word not in articles)


check("normal_italian", normal_italian)


def paired_error(before, after):
    differences = np.array(after) - np.array(before)
    return differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))


check("paired_error", paired_error)


def one_resample(scores, clusters, drawn):
    together = []
    for name in drawn:
        for score, cluster in zip(scores, clusters, strict=True):
            if cluster == name:
                together.append(score)
    return sum(together) / len(together)


check("one_resample", one_resample)


def cluster_interval(scores, clusters, generator):
    names = sorted(set(clusters))
    scores = np.array(scores)
    members = [np.array(clusters) == name for name in names]
    sums = np.array([scores[member].sum() for member in members])
    sizes = np.array([member.sum() for member in members])
    means = []
    for _ in range(2000):
        drawn = generator.integers(len(names), size=len(names))
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    return np.percentile(means, [2.5, 97.5])


check("cluster_interval", cluster_interval)
