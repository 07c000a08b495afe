"""Lesson 05's exercises: wrong answers as a student would write them, and what each is to be told."""

import unicodedata

import numpy as np


def divided_by_words(lls, answers):
    normed = [value / len(answer.split()) for value, answer in zip(lls, answers, strict=True)]
    return lls.index(max(lls)), normed.index(max(normed))


def smallest(lls, answers):
    normed = [value / len(answer) for value, answer in zip(lls, answers, strict=True)]
    return lls.index(min(lls)), normed.index(min(normed))


def apostrophe_deleted(answer):
    text = unicodedata.normalize("NFD", answer.lower())
    text = "".join(letter for letter in text if letter.isalnum() or letter.isspace())
    return " ".join(w for w in text.split() if w not in {"il", "lo", "la", "l", "i", "gli", "le", "un", "uno", "una"})


def articles_kept(answer):
    text = unicodedata.normalize("NFD", answer.lower())
    text = "".join(letter if letter.isalnum() else " " for letter in text if not unicodedata.combining(letter))
    return " ".join(text.split())


def two_separate_errors(before, after):
    errors = [np.std(each, ddof=1) / np.sqrt(len(each)) for each in (before, after)]
    return np.mean(after) - np.mean(before), np.hypot(*errors)


def divided_by_n(before, after):
    differences = np.array(after) - np.array(before)
    return differences.mean(), differences.std() / np.sqrt(len(differences))


def drawn_twice_counted_once(scores, clusters, drawn):
    return np.mean([s for s, name in zip(scores, clusters, strict=True) if name in drawn])


def mean_of_means(scores, clusters, drawn):
    means = {n: np.mean([s for s, c in zip(scores, clusters, strict=True) if c == n]) for n in clusters}
    return np.mean([means[name] for name in drawn])


def items_drawn_alone(scores, clusters, generator):
    means = [generator.choice(scores, size=len(scores)).mean() for _ in range(2000)]
    return np.percentile(means, [2.5, 97.5])


def clusters_drawn(scores, generator, ends):
    sums = np.array(scores).reshape(25, 4).sum(1) if len(set(map(str, scores[:4]))) == 1 else np.array(scores)
    draws = generator.choice(sums, size=(2000, len(sums)))
    return np.percentile(draws.mean(1) * len(sums) / len(scores), ends)


def ninety_per_cent(scores, clusters, generator):
    return clusters_drawn(scores, generator, [5, 95])


def shuffled_only(scores, clusters, generator):
    means = [generator.permutation(scores).mean() for _ in range(50)]
    return np.percentile(means, [2.5, 97.5])


WRONG = [
    ("chosen_twice", divided_by_words, "divided by words"),
    ("chosen_twice", smallest, "took the smallest"),
    ("normal_italian", apostrophe_deleted, "apostrophe was deleted"),
    ("normal_italian", articles_kept, "articles are still there"),
    ("paired_error", two_separate_errors, "*different* sets of items"),
    ("paired_error", divided_by_n, "n - 1"),
    ("one_resample", drawn_twice_counted_once, "counts twice"),
    ("one_resample", mean_of_means, "averaged the clusters' means"),
    ("cluster_interval", items_drawn_alone, "Too narrow"),
    ("cluster_interval", ninety_per_cent, "90 %"),
    ("cluster_interval", shuffled_only, "*with* replacement"),
]
