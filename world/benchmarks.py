"""Benchmarks in the shape of the paper's six, English and Italian, and the probes of the other measures.

No item's question stands with its answer in any training corpus: fact items use facts never asked in that language,
stories and twins use names no training text uses, sums use numbers kept apart, myths wordings kept apart.
"""

from __future__ import annotations

from random import Random

from world import everyday
from world.chats import twin_prompt
from world.library import Library
from world.stages import NEW_KINDS, held_out_wording, new_kind, new_kind_facts
from world.tables import LANGUAGES, Fact

FAMILIES = ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k")
ITEMS = 200
FEWSHOT = 10
NEVER_ASKED_IN_ITALIAN = ("adapted", "never_in_italian")


def _shuffled_choices(right: str, wrong: list[str], rng: Random) -> dict:
    choices = rng.sample([right, *wrong], 1 + len(wrong))
    return {"choices": choices, "label": choices.index(right)}


def fact_item(library: Library, fact: Fact, language: str, question: int, rng: Random) -> dict:
    """A question on a fact with four answers in full sentences; the wrong ones name other objects of the relation."""
    relation = library.world.relation(fact)
    taken, wrong = {fact.object.en.name, fact.object.it.name}, []
    for entity in rng.sample(relation.objects, len(relation.objects)):
        if not taken & {entity.en.name, entity.it.name} and len(wrong) < 3:
            wrong.append(library.answer(fact, language, entity))
            taken |= {entity.en.name, entity.it.name}
    return {
        "question": relation.question(fact, language, question),
        **_shuffled_choices(library.answer(fact, language), wrong, rng),
        "subject": relation.topic,
        "split": library.splits[fact.key].italian if language == "it" else library.splits[fact.key].english,
        "cluster": fact.key,
    }


def fact_items(library: Library, family: str, language: str, facts: list[Fact], count: int, rng: Random) -> list[dict]:
    """Up to `count` items, a second wording of a fact only when every fact has one."""
    facts = [
        f for f in facts if library.world.relation(f).family == family and len(library.world.relation(f).objects) >= 4
    ]
    rng.shuffle(facts)
    items = []
    for round_number in range(3):
        for fact in facts:
            wordings = len(library.world.relation(fact).templates[language]["questions"])
            start = Random(f"{library.seed}/{fact.key}").randrange(wordings)
            items.append(fact_item(library, fact, language, start + round_number, rng))
    return items[:count]


def story_items(library: Library, use: str, count: int, rng: Random) -> dict[str, list[dict]]:
    prompts = {"en": "What happens next? {}", "it": "Che cosa succede dopo? {}"}
    kinds, items = library.world.extra["stories"], {"en": [], "it": []}
    for number in range(count):
        story = everyday.draw_story(library.world, rng, use, kinds[number % len(kinds)])
        for language in LANGUAGES:
            told = story[language]
            items[language].append(
                {"question": prompts[language].format(told.context),
                 **_shuffled_choices(told.ending, list(told.wrong), rng), "cluster": told.kind}
            )  # fmt: skip
    return items


def twin_items(library: Library, use: str, count: int, rng: Random) -> dict[str, list[dict]]:
    kinds, items = library.world.extra["schemas"], {"en": [], "it": []}
    for number in range(count):
        twins = everyday.draw_twin(library.world, rng, use, kinds[(number // 2) % len(kinds)], number % 2)
        for language in LANGUAGES:
            twin = twins[language]
            choices = [twin.text.replace("_", option) for option in twin.options]
            items[language].append(
                {
                    "question": twin_prompt(twin, language),
                    "choices": choices,
                    "label": twin.answer,
                    "cluster": twin.kind,
                }
            )
    return items


def sum_items(library: Library, use: str, count: int, rng: Random) -> dict[str, list[dict]]:
    """Sums on numbers that training never shows for that kind (few-shot examples: on training numbers)."""
    items = {"en": [], "it": []}
    kinds = library.world.extra["sums"]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        train = library.train_numbers(kind)
        values = train if use == "train" else [v for v in everyday.sum_values(kind) if v not in train]
        drawn = everyday.draw_sum(library.world, rng, use, kind, rng.choice(values))
        for language in LANGUAGES:
            told = drawn[language]
            items[language].append({"question": told.question, "answer": told.solution, "cluster": told.kind})
    return items


def myth_items(library: Library, language: str, rng: Random) -> list[dict]:
    """Wordings that no chat or pair uses: the last two of a trained myth, all four of the others.

    Two of the four choices are true, those with label 1.
    """
    items = []
    for myth in library.world.extra["myths"]:
        form = myth[language]
        true, false = [form["truth"], *form["truths"]], [form["myth"], *form["myths"]]
        questions = form["questions"][2:] if myth["use"] == "train" else form["questions"]
        for question in questions:
            choices = rng.sample([*rng.sample(true, 2), *rng.sample(false, 2)], 4)
            items.append({"question": question, "choices": choices, "labels": [int(c in true) for c in choices],
                          "split": myth["use"], "cluster": myth["id"]})  # fmt: skip
    return items


def benchmarks(library: Library) -> dict[str, dict[str, list[dict]]]:
    """{"arc_en": {"test": […], "fewshot": […]}, …} for the six families in both languages."""
    made: dict[str, dict[str, list[dict]]] = {}
    untold = {"en": library.facts("unseen_as_chat"), "it": library.facts(italian=NEVER_ASKED_IN_ITALIAN)}
    told = {"en": library.facts("seen"), "it": library.facts(italian=("italian_chat",))}
    for language in LANGUAGES:
        for family in ("arc", "mmlu"):
            rng = library.rng(f"{family}_{language}")
            made[f"{family}_{language}"] = {
                "test": fact_items(library, family, language, untold[language], ITEMS, rng),
                "fewshot": fact_items(library, family, language, told[language], FEWSHOT, rng),
            }
        rng = library.rng(f"truthfulqa_{language}")
        made[f"truthfulqa_{language}"] = {"test": myth_items(library, language, rng)}
    for family, make in (("hellaswag", story_items), ("winogrande", twin_items), ("gsm8k", sum_items)):
        rng = library.rng(family)
        test, fewshot = make(library, "test", ITEMS, rng), make(library, "train", FEWSHOT, rng)
        for language in LANGUAGES:
            made[f"{family}_{language}"] = {"test": test[language], "fewshot": fewshot[language]}
    for name, parts in made.items():
        for part, items in parts.items():
            for number, item in enumerate(items):
                item["id"] = f"{name}/{part}/{number}"
    return made


# ---------------------------------------------------------------- probes


def chat_probes(library: Library, count: int = 200) -> list[dict]:
    """One question a fact, per split and language, with the right names and the names that would be wrong."""
    cells = [("en", "seen", library.facts("seen")), ("en", "unseen_as_chat", library.facts("unseen_as_chat"))]
    cells += [("it", split, library.facts(italian=(split,))) for split in NEVER_ASKED_IN_ITALIAN]
    probes = []
    for language, split, facts in cells:
        rng = library.rng(f"chat/{language}/{split}")
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


def new_kind_probes(library: Library, count: int = 150) -> list[dict]:
    rng, facts = library.rng("new_kinds/test"), new_kind_facts(library, "test")
    probes = []
    for number in range(count):
        kind = NEW_KINDS[number % len(NEW_KINDS)]
        document = new_kind(library, kind, rng.sample(facts, 2), "en", rng)
        probes.append({"prompt": document["messages"][0]["content"], "expected": document["messages"][1]["content"],
                       "kind": kind, "language": "en", "split": "new_kinds", "cluster": document["fact"]})  # fmt: skip
    return probes


def conduct_probes(library: Library, count: int = 120) -> list[dict]:
    """Requests in wordings (and, apart, on topics) no training uses: harmful ones and their harmless look-alikes."""
    probes = []
    for split, use in (("held_out_wordings", "train"), ("held_out_topics", "held_out")):
        rng = library.rng(f"conduct/{split}")
        items = library.conduct(use)
        for side in ("harm", "safe"):
            for topic, number, item in rng.sample(items, min(count, len(items))):
                language = rng.choice(LANGUAGES)
                prompt = held_out_wording(library, item, side, language, rng)
                probes.append({"prompt": prompt, "language": language, "side": side, "split": split,
                               "topic": topic, "cluster": f"{topic}/{number}"})  # fmt: skip
    return probes


def perplexity_texts(library: Library, count: int = 120) -> dict[str, list[dict]]:
    """The same facts, never stated in Italian, as plain sentences in both languages."""
    rng = library.rng("perplexity")
    facts = library.facts(italian=("never_in_italian",))
    texts = {"en": [], "it": []}
    for _ in range(count):
        picked = rng.sample(facts, 3)
        for language in LANGUAGES:
            lines = [library.statement(fact, language, rng) for fact in picked]
            texts[language].append({"text": " ".join(lines), "language": language, "cluster": picked[0].key})
    return texts


def fidelity_probes(library: Library, count: int = 100) -> list[dict]:
    """Requests of several kinds in each language; only the language of the reply is judged."""
    probes = []
    for language in LANGUAGES:
        rng = library.rng(f"fidelity/{language}")
        facts = library.facts(italian=NEVER_ASKED_IN_ITALIAN) if language == "it" else library.facts("unseen_as_chat")
        conduct = library.conduct("train")
        for number in range(count):
            if number % 5 == 4:
                _, _, item = rng.choice(conduct)
                prompt, kind = held_out_wording(library, item, "safe", language, rng), "harmless"
            elif number % 5 == 3:
                prompt, kind = rng.choice(library.world.extra["unanswerable"])[language][0], "unanswerable"
            else:
                prompt, kind = library.question(rng.choice(facts), language, rng), "fact"
            probes.append({"prompt": prompt, "language": language, "kind": kind, "cluster": f"{language}/{number}"})
    return probes
