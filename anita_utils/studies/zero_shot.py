"""Understanding or memorising: facts asked in ways that training never showed.

>>> questions = draw_questions(50)     # every item says in `split` what is new about it
>>> judge(measuring.ask(model, tokenizer, questions, profile))[0]["right_in_italian"]
True

The questions are in data/probes/studies. What training showed of them is found by `anita_utils.studies.contamination`.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from anita_utils.data import IGNORED, render
from anita_utils.evaluation.judges import language_of, names_it
from anita_utils.evaluation.measuring import log_likelihoods, probes, right_in_either

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPLITS = ("base_italian", "italian_chat", "adapted", "never_in_italian")
SEED = 42  # of the draws: that of the shipped files


def draw_facts(count: int | None) -> dict[str, list[dict]]:
    """Facts of each split: `count` of them, of "adapted" and "never_in_italian" twice as many; None takes all.

    The splits are SPLITS and two of the relations that no text tells. Facts about words (plurals, opposites,
    translations) are not among them.
    """
    by_split = defaultdict(list)
    for fact in probes("studies/facts"):
        by_split[fact["split"]].append(fact)
    drawn = {}
    for split, facts in by_split.items():
        most = count * (2 if split in SPLITS[2:] else 1) if count else len(facts)
        drawn[split] = Random(f"{SEED}/zero_shot/{split}").sample(facts, min(most, len(facts)))
    return drawn


def item(fact: dict, prompt: str, language: str, split: str) -> dict:
    """A question as `measuring.ask` and its judges take it."""
    about = {key: fact[key] for key in ("subject", "right", "relation", "cluster")}
    return {"prompt": prompt, "language": language, "split": split, **about}


def draw_questions(count: int | None) -> list[dict]:
    """All questions of the lesson, up to `count` of a kind; None takes all.

    Splits: the four of SPLITS in Italian, the last two in English too; the same never-in-Italian facts in the
    `second_style`; two of the relations that no text tells, in both languages; `renamed` and `contradicted`, where the
    request itself says the answer.
    """
    facts = draw_facts(count)
    unread = facts["never_in_italian"]
    asked: dict[str, list[dict]] = {split: [] for split in (*SPLITS, "second_style")}
    asked["second_style"] = [item(fact, fact["second_style"], "it", "second_style") for fact in unread]
    for split, members in facts.items():
        both = [(fact, *question) for fact in members for question in fact["questions"].items()]
        asked[split] = [item(fact, prompt, language, split) for fact, language, prompt in both]
    return [row for rows in asked.values() for row in rows] + said_in_the_request(unread, count)


def said_in_the_request(unread: list[dict], count: int | None) -> list[dict]:
    """Questions whose answer is in the request, in Italian: on an invented name, or against what is true.

    `renamed`: the fact's subject bears a name that means nothing, so only reading helps. `contradicted`: the subject is
    the real one, said with a wrong object, which is `right` here; `remembered` is the true one. Which object that is
    depends on `count`: the file holds those for the limits of the shipped profiles, and any other takes those for None.
    """
    renamed, contradicted = {}, {}
    for row in probes("studies/told"):
        if row["split"] == "renamed":
            renamed[row["cluster"]] = row
        elif row.pop("limit") in (None, count):  # None comes first in the file
            contradicted[row["cluster"]] = row
    named = [fact["cluster"] for fact in unread if fact["cluster"] in renamed]
    return [renamed[key] for key in named[:count]] + [contradicted[fact["cluster"]] for fact in unread[:count]]


def judge(answered: list[dict]) -> list[dict]:
    """The answered questions with what is judged about each, True or False.

    right_in_either: by the right name in either language. in_italian: the answer is Italian. right_in_italian: it is,
    and has the right name in Italian. remembers, where the request says the answer: the name that is true elsewhere.
    """
    judged = []
    for asked in answered:
        row = asked | {"right_in_either": right_in_either(asked)}
        row["in_italian"] = language_of(asked["answer"]) == "it"
        said = names_it(asked["answer"], asked["right"]["it"], *asked["subject"].values())
        row["right_in_italian"] = row["in_italian"] and said
        if "remembered" in asked:
            row["remembers"] = right_in_either(asked | {"right": asked["remembered"]})
        judged.append(row)
    return judged


def draw_choices(count: int | None) -> list[dict]:
    """The Italian question on each of the never-in-Italian facts that `draw_facts` draws, with four answers."""
    choices = {row["cluster"]: row for row in probes("studies/choices")}
    return [choices[fact["cluster"]] for fact in draw_facts(count)["never_in_italian"]]


def encode_choice(question: str, choice: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """A question with one of its answers as lm-eval scores it: the answer's words alone, not the end of the turn."""
    asked = render([{"role": "user", "content": question}], tokenizer, add_generation_prompt=True)
    said = tokenizer(choice, add_special_tokens=False)["input_ids"]
    return {"input_ids": asked + said, "labels": [IGNORED] * len(asked) + said}


def rank(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict], batch_size: int) -> list[dict]:
    """The items with whether the right answer is the likeliest: `acc` by its sum, `acc_norm` by characters."""
    encoded = [encode_choice(row["question"], choice, tokenizer) for row in items for choice in row["choices"]]
    totals, _ = log_likelihoods(model, encoded, batch_size)
    ranked, start = [], 0
    for row in items:
        scores = np.array(totals[start : start + len(row["choices"])])
        start += len(scores)
        normed = scores / [len(choice) for choice in row["choices"]]
        found = {"acc": int(scores.argmax()), "acc_norm": int(normed.argmax())}
        ranked.append(row | {key: place == row["label"] for key, place in found.items()})
    return ranked


def hits(judged: list[dict]) -> list[list[list[bool]]]:
    """For each relation a table: does the answer to fact i name the object of fact j, in either language?"""
    tables = []
    for relation in dict.fromkeys(row["relation"] for row in judged):
        rows = [row for row in judged if row["relation"] == relation]
        tables.append([[right_in_either(row | {"right": other["right"]}) for other in rows] for row in rows])
    return tables
