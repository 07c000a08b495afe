"""Understanding or memorising: facts asked in ways that training never showed.

>>> library = Library(load_world())
>>> questions = draw_questions(library, 50)     # every item says in `split` what is new about it
>>> judge(evaluation.ask(model, tokenizer, questions, profile))[0]["right_in_italian"]
True

What of them training did show is found by `anita_utils.studies.contamination`, what follows from both by `anita_utils.stats`.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from anita_utils.data import IGNORED, render
from anita_utils.evaluation.judges import language_of, names_it
from anita_utils.evaluation.measuring import log_likelihoods, right_in_either
from world.benchmarks import fact_item
from world.chats import NAMED, OPENINGS, invented_fact
from world.tables import LANGUAGES, Entity, Fact

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from world.library import Library


SPLITS = ("base_italian", "italian_chat", "adapted", "never_in_italian")


# ---------------------------------------------------------------- the questions


def draw_facts(library: Library, count: int | None) -> dict[str, list[Fact]]:
    """Facts of each Italian split, `count` of them, of the last two splits twice as many; None takes all.

    Facts about words (plurals, opposites, translations) are left out: their Italian form is another fact.
    """
    drawn = {}
    for split in SPLITS:
        facts = [fact for fact in library.facts(italian=(split,)) if not library.world.relation(fact).bound]
        most = len(facts) if count is None else count * (2 if split in SPLITS[2:] else 1)
        drawn[split] = library.rng(f"zero_shot/{split}").sample(facts, min(most, len(facts)))
    return drawn


def wording(library: Library, fact: Fact, language: str) -> int:
    """Which of its relation's questions a fact is asked by: the same however often, and for whatever measure."""
    questions = library.world.relation(fact).templates[language]["questions"]
    return Random(f"{library.seed}/zero_shot/{language}/{fact.key}").randrange(len(questions))


def item(fact: Fact, prompt: str, language: str, split: str, right: Entity | None = None) -> dict:
    """A question as `evaluation.ask` and its judges take it; `right` where the answer is not the fact's own object."""
    right = right or fact.object
    return {
        "prompt": prompt,
        "language": language,
        "split": split,
        "subject": {code: fact.subject.name(code) for code in LANGUAGES},
        "right": {code: right.name(code) for code in LANGUAGES},
        "relation": fact.relation,
        "cluster": fact.key,
    }


def plain_question(library: Library, fact: Fact, language: str, split: str) -> dict:
    relation = library.world.relation(fact)
    return item(fact, relation.question(fact, language, wording(library, fact, language)), language, split)


def draw_questions(library: Library, count: int | None) -> list[dict]:
    """All questions of the lesson, up to `count` of a kind.

    Splits: the four of `splits.py` in Italian, the last two in English too; the same never-in-Italian facts in the
    `second_style`; the two relations held out whole, in both languages; `renamed` and `contradicted`, where the request
    itself tells the answer.
    """
    facts = draw_facts(library, count)
    asked = [
        plain_question(library, fact, language, split)
        for split, members in facts.items()
        for fact in members
        for language in (LANGUAGES if split in SPLITS[2:] else ("it",))
    ]
    unread = facts["never_in_italian"]
    for fact in unread:
        prompt = library.world.relation(fact).second_style(fact, "it", "question")
        asked.append(item(fact, prompt, "it", "second_style"))
    for relation in library.world.relations.values():
        if relation.held_out:
            rng = library.rng(f"zero_shot/{relation.name}")
            for fact in rng.sample(relation.facts, min(count or len(relation.facts), len(relation.facts))):
                asked += [plain_question(library, fact, language, relation.name) for language in LANGUAGES]
    return asked + told_questions(library, unread, count)


def told_questions(library: Library, facts: list[Fact], count: int | None) -> list[dict]:
    """Questions whose answer stands in the request, in Italian: on an invented name, or against what is true.

    `renamed`: the fact's subject bears a name that means nothing, so only reading helps. `contradicted`: the subject is
    the real one, told with a wrong object, which is `right` here; `remembered` is the true one.
    """
    rng, asked = library.rng("zero_shot/told"), []
    for split, members in (
        ("renamed", [fact for fact in facts if fact.subject.kind in NAMED]),
        ("contradicted", facts),
    ):
        for fact in members[:count]:
            if split == "renamed":
                told = replace(invented_fact(library.world.relation(fact), rng), object=fact.object)
            else:
                told = replace(fact, object=library.wrong_object(fact, rng))
            number = wording(library, fact, "it")
            question = library.world.relation(fact).question(told, "it", number)
            prompt = f"{rng.choice(OPENINGS['it'])} {library.statement(told, 'it', rng)} {question}"
            remembered = {code: fact.object.name(code) for code in LANGUAGES}
            asked.append(item(told, prompt, "it", split) | {"remembered": remembered, "cluster": fact.key})
    return asked


def judge(answered: list[dict]) -> list[dict]:
    """The answered questions with what is to be told apart, each True or False.

    right_in_either: by the right name in either language. in_italian: the answer is Italian. right_in_italian: it is,
    and has the right name in Italian. For told questions also remembers: the name that is true outside the request.
    """
    judged = []
    for asked in answered:
        row = asked | {"right_in_either": right_in_either(asked)}
        row["in_italian"] = language_of(asked["answer"]) == "it"
        row["right_in_italian"] = row["in_italian"] and names_it(
            asked["answer"], asked["right"]["it"], *asked["subject"].values()
        )
        if "remembered" in asked:
            row["remembers"] = right_in_either(asked | {"right": asked["remembered"]})
        judged.append(row)
    return judged


# ---------------------------------------------------------------- choosing among four


def draw_choices(library: Library, facts: list[Fact]) -> list[dict]:
    """The Italian question on each fact, worded as for writing, with the right answer among three wrong ones."""
    rng = library.rng("zero_shot/choices")
    items = [fact_item(library, fact, "it", wording(library, fact, "it"), rng) for fact in facts]
    return [row | {"language": "it"} for row in items]


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
        ranked.append(
            row | {"acc": int(scores.argmax()) == row["label"], "acc_norm": int(normed.argmax()) == row["label"]}
        )
    return ranked


def hits(judged: list[dict]) -> list[list[list[bool]]]:
    """For each relation a table: does the answer to fact i name the object of fact j, in either language?"""
    tables = []
    for relation in dict.fromkeys(row["relation"] for row in judged):
        rows = [row for row in judged if row["relation"] == relation]
        tables.append([[right_in_either(row | {"right": other["right"]}) for other in rows] for row in rows])
    return tables
