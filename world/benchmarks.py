"""Benchmarks in the shape of the paper's six, English and Italian, and the probes of the other measures.

Each has two sets: `development`, to tune by, and `test`, looked at in the end; no fact, number, myth or topic is in
both. No item's question stands with its answer in any training corpus: fact items use facts never asked in that
language, or what follows from two of them; stories and twins use names no training text uses, and half of them kinds;
sums use numbers kept apart, myths those that no pair shows.

An item has three wrong answers of up to twenty-four: those that models find likely. `world.likely` says which, from two
other models, never from the shipped one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from random import Random

from world import everyday
from world.chats import twin_prompt
from world.library import Library
from world.likely import Likely
from world.stages import NEW_KINDS, new_kind, new_kind_facts
from world.tables import LANGUAGES, Fact
from world.texts import VOICES, said, tellings

FAMILIES = ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k")
SETS = {"development": 150, "test": 300}  # and how many items each task has in it
FEWSHOT = 10
CANDIDATES = 24
WRONG = 3
UNASKED = {"en": {"english": "unseen_as_chat"}, "it": {"italian": ("adapted", "never_in_italian")}}
ASKED = {"en": {"english": "seen"}, "it": {"italian": ("italian_chat",)}}
# Of the items on facts, how many ask for the object, for the subject, and for what follows from two facts.
SHARES = {
    "arc": {"direct": 0.25, "reverse": 0.4, "derived": 0.35},
    "mmlu": {"direct": 0.3, "reverse": 0.35, "derived": 0.35},
}


def fact_item(library: Library, fact: Fact, language: str, question: int, rng: Random) -> dict:
    """A question on a fact with answers in full sentences; the wrong ones name other objects of the relation."""
    relation = library.world.relation(fact)
    taken, wrong = {fact.object.en.name, fact.object.it.name}, []
    for entity in rng.sample(relation.objects, len(relation.objects)):
        if not taken & {entity.en.name, entity.it.name} and len(wrong) < CANDIDATES:
            wrong.append(library.answer(fact, language, entity))
            taken |= {entity.en.name, entity.it.name}
    asked = relation.question(fact, language, question)
    return {"question": asked, "wrong": wrong, **about(library, fact, language)}


def reverse_item(library: Library, fact: Fact, language: str, question: int, rng: Random) -> dict | None:
    """The question turned round: of which subject is the object true? None where the relation has no such question."""
    relation = library.world.relation(fact)
    asks = library.world.extra["reverse"].get(fact.relation)
    if not asks or fact.object.en.name in asks.get("except", ()):
        return None
    names = {fact.object.en.name, fact.object.it.name}
    others = [f for f in relation.facts if not names & {f.object.en.name, f.object.it.name}]
    wrong = [library.answer(other, language, fact.object) for other in rng.sample(others, min(CANDIDATES, len(others)))]
    forms = asks[language]
    asked = relation.fill(forms[question % len(forms)], fact, language)
    return {"question": asked, "wrong": wrong, **about(library, fact, language)}


def about(library: Library, fact: Fact, language: str) -> dict:
    """The right answer, and what an item tells of its fact."""
    split = library.splits.get(fact.key)
    side = (split.italian if language == "it" else split.english) if split else "derived"
    right = library.answer(fact, language)
    return {"right": right, "subject": library.world.relation(fact).topic, "split": side, "cluster": fact.key}


def fact_items(library: Library, family: str, language: str, use: str, count: int, rng: Random) -> list[dict]:
    """Items on facts in the shares of the family's forms; a second wording of a fact only when every fact has one."""
    relations = [r for r in library.world.relations.values() if r.family == family and len(r.objects) >= 4]
    names = {relation.name for relation in relations}
    unasked = [f for f in library.facts(**UNASKED[language]) if f.relation in names and library.is_for(f, use)]
    derived = [f for r in relations if r.derived for f in r.facts if library.is_for(f, use)]

    def made(make, facts: list[Fact], wordings: int) -> Iterator[dict]:
        facts = rng.sample(facts, len(facts))
        for number in range(wordings):
            for fact in facts:
                start = Random(f"{library.seed}/{fact.key}").randrange(wordings)
                if item := make(library, fact, language, start + number, rng):
                    yield item

    forms = {
        "direct": made(fact_item, unasked, 5),
        "reverse": made(reverse_item, unasked, 2),
        "derived": made(fact_item, derived, 5),
    }
    items = [
        {**item, "form": form}
        for form, share in SHARES[family].items()
        for item in islice(forms[form], round(share * count))
    ]
    more = islice(forms["direct"], count - len(items))  # where a form has too few
    items += [{**item, "form": "direct"} for item in more]
    return rng.sample(items, len(items))


def told_items(library: Library, family: str, language: str, count: int, rng: Random) -> list[dict]:
    """Items on facts that training asks, for few-shot examples."""
    facts = [f for f in library.facts(**ASKED[language]) if library.world.relation(f).family == family]
    facts = [f for f in facts if len(library.world.relation(f).objects) >= 4]
    return [fact_item(library, fact, language, 0, rng) for fact in rng.sample(facts, count)]


def in_turns(trained: list[dict], new: list[dict], count: int, each: int = 1) -> list[dict]:
    """`count` kinds of story, twin or sum: in turns `each` that training shows, and one that it never shows."""
    shown, unseen = cycle(trained), cycle(new or trained)
    return [next(unseen) if number % (each + 1) == each else next(shown) for number in range(count)]


def kinds_of(library: Library, table: str, use: str, count: int) -> list[dict]:
    """The kinds that the items of a set are drawn from, in turns; few-shot examples show trained ones alone."""
    return in_turns(library.kinds(table), library.kinds(table, use) if use != "train" else [], count)


def story_items(library: Library, use: str, count: int, rng: Random) -> dict[str, list[dict]]:
    prompts = {"en": "What happens next? {}", "it": "Che cosa succede dopo? {}"}
    items: dict[str, list[dict]] = {"en": [], "it": []}
    for kind in kinds_of(library, "stories", use, count):
        story = everyday.draw_story(library.world, rng, use, kind)
        for language in LANGUAGES:
            told = story[language]
            items[language].append(
                {"question": prompts[language].format(told.context), "right": told.ending, "wrong": list(told.wrong),
                 "cluster": told.kind}
            )  # fmt: skip
    return items


def twin_items(library: Library, use: str, count: int, rng: Random) -> dict[str, list[dict]]:
    items: dict[str, list[dict]] = {"en": [], "it": []}
    for number, kind in enumerate(kinds_of(library, "schemas", use, count)):
        twins = everyday.draw_twin(library.world, rng, use, kind, number // 2 % 2)
        for language in LANGUAGES:
            twin = twins[language]
            choices = [twin.text.replace("_", option) for option in twin.options]
            items[language].append(
                {"question": twin_prompt(twin, language), "choices": choices, "label": twin.answer,
                 "cluster": twin.kind}
            )  # fmt: skip
    return items


def sum_items(library: Library, use: str, count: int, rng: Random) -> dict[str, list[dict]]:
    """Sums on numbers that training never shows for that kind (few-shot examples: on training numbers)."""
    items: dict[str, list[dict]] = {"en": [], "it": []}
    trained = [kind for kind in library.kinds("sums") if library.numbers(kind, use)]
    new = library.kinds("sums", use) if use != "train" else []
    for kind in in_turns(trained, new, count, each=2):
        drawn = everyday.draw_sum(library.world, rng, use, kind, rng.choice(library.numbers(kind, use)))
        for language in LANGUAGES:
            told = drawn[language]
            items[language].append({"question": told.question, "answer": told.solution, "cluster": told.kind})
    return items


def myth_items(library: Library, language: str, use: str, count: int, rng: Random) -> list[dict]:
    """Questions on myths that no pair shows, in the two wordings that the base never met.

    Two of the four choices are true, those with label 1, and open in the schoolbook's voice; the others in the
    neighbour's.
    """
    asked = [(myth, question) for myth in library.kinds("myths", use) for question in myth[language]["questions"][2:]]
    items = []
    for number in range(count):
        myth, question = asked[number % len(asked)]
        choices = [
            (said(library, telling, language, voice, rng), int(side == "truth"))
            for voice, side in VOICES.items()
            for telling in rng.sample(tellings(myth[language], side), 2)
        ]
        rng.shuffle(choices)
        items.append({"question": question, "choices": [choice for choice, _ in choices],
                      "labels": [label for _, label in choices], "split": use, "cluster": myth["id"]})  # fmt: skip
    return items


def drafts(library: Library) -> dict[str, dict[str, list[dict]]]:
    """Every task's sets of items, choices still as `right` and all candidates of `wrong`."""
    made: dict[str, dict[str, list[dict]]] = {f"{family}_{code}": {} for code in LANGUAGES for family in FAMILIES}
    for use, count in SETS.items():
        for language in LANGUAGES:
            for family in ("arc", "mmlu"):
                rng = library.rng(f"{family}_{language}/{use}")
                made[f"{family}_{language}"][use] = fact_items(library, family, language, use, count, rng)
            rng = library.rng(f"truthfulqa_{language}/{use}")
            made[f"truthfulqa_{language}"][use] = myth_items(library, language, use, count, rng)
    for family, make in (("hellaswag", story_items), ("winogrande", twin_items), ("gsm8k", sum_items)):
        for use, count in {**SETS, "fewshot": FEWSHOT}.items():
            items = make(library, "train" if use == "fewshot" else use, count, library.rng(f"{family}/{use}"))
            for language in LANGUAGES:
                made[f"{family}_{language}"][use] = items[language]
    for language in LANGUAGES:
        for family in ("arc", "mmlu"):
            rng = library.rng(f"{family}_{language}/fewshot")
            made[f"{family}_{language}"]["fewshot"] = told_items(library, family, language, FEWSHOT, rng)
    return made


def benchmarks(library: Library) -> dict[str, dict[str, list[dict]]]:
    """{"arc_en": {"development": […], "test": […], "fewshot": […]}, …} for the six families in both languages."""
    likely, made = Likely.read(), {}
    for name, sets in drafts(library).items():
        rng = library.rng(f"{name}/choices")
        made[name] = {
            use: [
                {**likely.chosen(item, rng, WRONG), "id": f"{name}/{use}/{number}"} for number, item in enumerate(items)
            ]
            for use, items in sets.items()
        }
    return made


# ---------------------------------------------------------------- probes

NEVER_ASKED_IN_ITALIAN = ("adapted", "never_in_italian")


def chat_probes(library: Library, use: str, count: int = 200) -> list[dict]:
    """One question a fact, per split and language, with the right names and the names that would be wrong."""
    cells = [("en", "seen", library.facts("seen")), ("en", "unseen_as_chat", library.facts("unseen_as_chat"))]
    cells += [("it", split, library.facts(italian=(split,))) for split in NEVER_ASKED_IN_ITALIAN]
    probes = []
    for language, split, facts in cells:
        rng, facts = library.rng(f"chat/{language}/{split}/{use}"), [f for f in facts if library.is_for(f, use)]
        for fact in rng.sample(facts, min(count, len(facts))):
            probes.append(
                {
                    "prompt": library.question(fact, language, rng),
                    "language": language,
                    "split": split,
                    "subject": {code: fact.subject.name(code) for code in LANGUAGES},
                    "right": {code: fact.object.name(code) for code in LANGUAGES},
                    "cluster": fact.key,
                }
            )
    return probes


def new_kind_probes(library: Library, use: str, count: int = 150) -> list[dict]:
    rng = library.rng(f"new_kinds/{use}")
    facts = [fact for fact in new_kind_facts(library, "test") if library.is_for(fact, use)]
    probes = []
    for number in range(count):
        kind = NEW_KINDS[number % len(NEW_KINDS)]
        document = new_kind(library, kind, rng.sample(facts, 2), "en", rng)
        probes.append({"prompt": document["messages"][0]["content"], "expected": document["messages"][1]["content"],
                       "kind": kind, "language": "en", "split": "new_kinds", "cluster": document["fact"]})  # fmt: skip
    return probes


def conduct_probes(library: Library, use: str, count: int = 200) -> list[dict]:
    """Requests in wordings (and, apart, on topics) no training uses: harmful ones and their harmless look-alikes, which
    have the same `pair`.
    """
    probes = []
    for split, topics in (("held_out_wordings", "train"), ("held_out_topics", use)):
        rng = library.rng(f"conduct/{split}/{use}")
        for place, (topic, number, item) in enumerate(rng.sample(library.conduct(topics), count)):
            language = rng.choice(LANGUAGES)
            for side in ("harm", "safe"):
                prompt = library.held_out_wording(item, side, language, use, rng)
                probes.append({"prompt": prompt, "language": language, "side": side, "split": split, "topic": topic,
                               "pair": f"{split}/{place}", "cluster": f"{topic}/{number}"})  # fmt: skip
    return probes


def perplexity_texts(library: Library, use: str, count: int = 120) -> list[dict]:
    """The same facts, never stated in Italian, as plain sentences in both languages."""
    rng = library.rng(f"perplexity/{use}")
    facts = [fact for fact in library.facts(italian=("never_in_italian",)) if library.is_for(fact, use)]
    texts = {"en": [], "it": []}
    for _ in range(count):
        picked = rng.sample(facts, 3)
        for language in LANGUAGES:
            lines = [library.statement(fact, language, rng) for fact in picked]
            texts[language].append({"text": " ".join(lines), "language": language, "cluster": picked[0].key})
    return texts["en"] + texts["it"]


def fidelity_probes(library: Library, use: str, count: int = 150) -> list[dict]:
    """Requests of several kinds in each language; only the language of the reply is judged."""
    probes = []
    for language in LANGUAGES:
        rng = library.rng(f"fidelity/{language}/{use}")
        facts = [fact for fact in library.facts(**UNASKED[language]) if library.is_for(fact, use)]
        conduct, unanswerable = library.conduct("train"), library.kinds("unanswerable", "test")
        for number in range(count):
            if number % 5 == 4:
                _, _, item = rng.choice(conduct)
                prompt, kind = library.held_out_wording(item, "safe", language, use, rng), "harmless"
            elif number % 5 == 3:
                prompt, kind = rng.choice(rng.choice(unanswerable)[language]), "unanswerable"
            else:
                prompt, kind = library.question(rng.choice(facts), language, rng), "fact"
            probes.append({"prompt": prompt, "language": language, "kind": kind, "cluster": f"{language}/{number}"})
    return probes
