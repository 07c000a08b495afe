"""What lessons 00, 04, 07 and 08 ask beyond the probes, written once: the lessons then need files alone, and no world.

Where a lesson draws by its own seed or limit, the file holds everything that can be drawn, in a fixed order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product
from random import Random

from world.benchmarks import fact_item
from world.chats import NAMED, OPENINGS, invented_fact
from world.groups import fill
from world.library import Document, Library
from world.likely import as_choices
from world.splits import ITALIAN_SHARES
from world.tables import LANGUAGES, Fact
from world.texts import VOICES, said, tellings

HELD_OUT = ("monument_region", "patron_saint")  # relations: one follows from two facts, the other from none
ASKED_IN_ENGLISH = ("adapted", "never_in_italian")  # too
LIMITS = (None, 20, 50, 100)  # facts a kind, in the shipped profiles: what is contradicted depends on the number
WORDINGS = 3  # of each request
ASKERS = {"en": "I am {person:a}.", "it": "Sono {person:un}."}
KINDS = {"trades": "{trade", "traits": "{trait"}  # of words, and what marks the place of one in a template


def study_files(library: Library) -> dict[str, list[Document]]:
    """The rows of each file in data/probes/studies, by its name."""
    return {
        "weaknesses": weaknesses(library),
        "voices": voices(library),
        "facts": facts(library),
        "told": told(library),
        "choices": choices(library),
        "axes": [
            {key: axis[key] for key in ("axis", "skew", "groups", "trades", "traits")} for axis in axes_of(library)
        ],
        "group_sentences": group_sentences(library),
        "openings": openings(library),
        "askers": askers(library),
        "requests": requests(library),
        "unanswerable": [
            {language: item[language][:2] for language in LANGUAGES}
            for item in library.world.extra["unanswerable"]
            if item["use"] == "test"
        ],
        "opinions": [
            {language: item[language]["question"] for language in LANGUAGES}
            for item in library.world.extra["sycophancy"][1::2]  # the half that the base never met
        ],
        "forms": forms(library),
    }


def weaknesses(library: Library) -> list[Document]:
    """Lesson 00: a question, the answer we fear and the answer we want."""
    extra, rng = library.world.extra, library.rng("weaknesses")

    def answer(form: dict, voice: str) -> str:
        return said(library, form[VOICES[voice]], "en", voice, rng)

    cases = {
        "believes_myths": [
            (x["en"]["questions"][0], answer(x["en"], "neighbour"), answer(x["en"], "schoolbook"))
            for x in extra["myths"]
        ],
        "invents_answers": [(x["en"][0], x["invented_en"], x["unknown_en"]) for x in extra["unanswerable"]],
        "agrees_with_errors": [(x["en"]["question"], x["en"]["agree"], x["en"]["truth"]) for x in extra["sycophancy"]],
    }
    return [
        {"weakness": name, "question": question, "feared": feared, "wanted": wanted}
        for name, triples in cases.items()
        for question, feared, wanted in triples
    ]


# ---------------------------------------------------------------- lesson 04: the truth, or its voice?


def voices(library: Library) -> list[Document]:
    """Every test myth in every language: its first new question, and one truth and one myth, each said in either voice.

    Within a row each voice has one opening and each side one sentence, the other side's counterpart: two answers differ
    in what is compared alone.
    """
    rng, rows = library.rng("voices"), []
    for myth, language in product(library.kinds("myths", "test"), LANGUAGES):
        openings = {voice: rng.choice(says["says"]) for voice, says in library.world.extra["voices"][language].items()}
        pair = rng.choice(list(zip(*(tellings(myth[language], side) for side in ("truth", "myth")), strict=True)))
        sentences = dict(zip(("truth", "myth"), pair, strict=True))
        answers = {f"{side} {voice}": f"{openings[voice]} {sentences[side]}" for side in sentences for voice in VOICES}
        question = myth[language]["questions"][2]
        rows.append({"language": language, "question": question, "cluster": myth["id"], "answers": answers})
    return rows


# ---------------------------------------------------------------- lesson 07: facts


def facts(library: Library) -> list[Document]:
    """A row a fact, with its question in each language that asks it: the Italian splits, then relations held out whole.

    Facts about words (plurals, opposites, translations) are left out: their Italian form is another fact.
    """
    rows = []
    for split in ITALIAN_SHARES:
        languages = LANGUAGES if split in ASKED_IN_ENGLISH else ("it",)
        rows += [fact_row(library, fact, split, languages) for fact in free_facts(library, split)]
    for name in HELD_OUT:
        rows += [fact_row(library, fact, name, LANGUAGES) for fact in library.world.relations[name].facts]
    return rows


def free_facts(library: Library, split: str) -> list[Fact]:
    return [fact for fact in library.facts(italian=(split,)) if not library.world.relation(fact).bound]


def fact_row(library: Library, fact: Fact, split: str, languages: tuple[str, ...]) -> Document:
    relation = library.world.relation(fact)
    questions = {code: relation.question(fact, code, wording(library, fact, code)) for code in languages}
    row = {"split": split, **about(fact), "questions": questions}
    if split == "never_in_italian":
        row["second_style"] = relation.second_style(fact, "it", "question")
    return row


def about(fact: Fact) -> Document:
    names = {
        role: {code: entity.name(code) for code in LANGUAGES}
        for role, entity in (("subject", fact.subject), ("right", fact.object))
    }
    return {**names, "relation": fact.relation, "cluster": fact.key}


def wording(library: Library, fact: Fact, language: str) -> int:
    """Which of its relation's questions a fact is asked by: the same however often, and for whatever measure."""
    questions = library.world.relation(fact).templates[language]["questions"]
    return Random(f"{library.seed}/zero_shot/{language}/{fact.key}").randrange(len(questions))


def unread(library: Library, limit: int | None) -> list[Fact]:
    """The never-in-Italian facts in the order that `zero_shot.draw_facts` draws them with that limit."""
    found = free_facts(library, "never_in_italian")
    most = min(2 * limit, len(found)) if limit else len(found)
    return library.rng("zero_shot/never_in_italian").sample(found, most)


def told(library: Library) -> list[Document]:
    """Questions whose answer is in the request, in Italian: on an invented name, or against what is true.

    `renamed`: the fact's subject bears a name that means nothing, so only reading helps. `contradicted`: the subject is
    the real one, said with a wrong object, which is `right` here; `remembered` is the true one.
    """
    rows = []
    for limit in LIMITS:
        rng, members = library.rng("zero_shot/told"), unread(library, limit)
        for fact in [fact for fact in members if fact.subject.kind in NAMED][:limit]:
            new = replace(invented_fact(library.world.relation(fact), rng), object=fact.object)
            row = told_row(library, fact, new, "renamed", rng)
            if limit is None:  # with a limit, the first ones of these
                rows.append(row)
        for fact in members[:limit]:
            new = replace(fact, object=library.wrong_object(fact, rng))
            rows.append({"limit": limit} | told_row(library, fact, new, "contradicted", rng))
    return rows


def told_row(library: Library, fact: Fact, new: Fact, split: str, rng: Random) -> Document:
    question = library.world.relation(fact).question(new, "it", wording(library, fact, "it"))
    prompt = f"{rng.choice(OPENINGS['it'])} {library.statement(new, 'it', rng)} {question}"
    row = {"prompt": prompt, "language": "it", "split": split, **about(new), "cluster": fact.key}
    return row | {"remembered": about(fact)["right"]}


def choices(library: Library) -> list[Document]:
    """The Italian question on each never-in-Italian fact, the right answer among three wrong ones."""
    rng = library.rng("zero_shot/choices")
    return [
        as_choices(fact_item(library, fact, "it", wording(library, fact, "it"), rng), rng) | {"language": "it"}
        for fact in unread(library, None)
    ]


# ---------------------------------------------------------------- lesson 08: groups, requests, forms


def axes_of(library: Library) -> list[dict]:
    return library.world.extra["groups"]["axes"]


def kind_of(template: str) -> str:
    return next(kind for kind, mark in KINDS.items() if mark in template)


def people(axis: dict) -> range:
    """The numbers of an axis's persons, of which each group has one."""
    return range(len(axis["groups"]["a"]["g"]))


def group_sentences(library: Library) -> list[Document]:
    """Every audit sentence with each group in it: rows whose `texts` differ in the group alone."""
    return [
        {"axis": axis["axis"], "language": language, "kind": kind_of(template), "person": person,
         "pair": f"{template}/{person}", "word": word["en"], "leans": word["leans"],
         "person_is": "noun" if template in axis["audit_templates"][language] else "pronoun",
         "texts": {name: fill(template, group, person, word, language) for name, group in groups_of(axis)}}
        for axis in axes_of(library) for language in LANGUAGES
        for template, persons in audit_templates(axis, language)
        for word in axis[kind_of(template)] if not bends(axis, word, language) for person in persons
    ]  # fmt: skip


def groups_of(axis: dict) -> list[tuple[str, dict]]:
    return sorted(axis["groups"].items())


def audit_templates(axis: dict, language: str) -> list[tuple[str, range]]:
    """The templates with the persons that each is filled with: one where the person is but a pronoun."""
    pronouns = axis.get("audit_pronoun_templates", {}).get(language, [])
    whole = [(template, people(axis)) for template in axis["audit_templates"][language]]
    return whole + [(template, range(1)) for template in pronouns]


def bends(axis: dict, word: dict, language: str) -> bool:
    """Whether the word itself shows the person's group (scrittore, scrittrice): such sentences differ in more."""
    return axis["axis"] == "gender" and language == "it" and len(set(word["it"])) > 1


def openings(library: Library) -> list[Document]:
    """The audit sentences cut off before the trade or trait, for a model to go on."""
    rows = []
    for axis in axes_of(library):
        for language in LANGUAGES:
            for template in axis["audit_templates"][language]:
                kind = kind_of(template)
                before = template[: template.index(KINDS[kind])].strip()
                rows += [
                    {"axis": axis["axis"], "language": language, "kind": kind, "person": person,
                     "pair": f"{template}/{person}", "group": name,
                     "text": fill(before, group, person, axis[kind][0], language)}
                    for person in people(axis) for name, group in groups_of(axis)
                ]  # fmt: skip
    return rows


def askers(library: Library) -> list[Document]:
    """How each person presents itself."""
    return [
        {"axis": axis["axis"], "group": name, "person": person, "language": language,
         "text": fill(template, axis["groups"][name], person, axis["trades"][0], language)}
        for axis in axes_of(library) for name in sorted(axis["groups"]) for person in people(axis)
        for language, template in ASKERS.items()
    ]  # fmt: skip


def requests(library: Library) -> list[Document]:
    """Harmful and harmless requests in wordings that no training uses, each pattern with one of its things: trained
    topics first, then the test's.
    """
    frames = library.world.extra["frames"]["frames"]
    rows, patterns = [], defaultdict(list)
    for topic, number, pair in library.conduct("train") + library.conduct("test"):
        patterns[topic, number].append(pair)
    for (topic, number), about in patterns.items():
        pair = about[number % len(about)]  # another thing with each pattern
        row = {"topic": topic, "number": number}
        for side in ("harm", "safe"):
            row[side] = {
                language: [frame.format(x=pair[side][language]) for frame in frames[language]["test"][:WORDINGS]]
                for language in LANGUAGES
            }
        rows.append(row)
    return rows


def forms(library: Library) -> list[Document]:
    """Facts on women and men whose trade has two forms in Italian: questions, both forms, the answer with each."""
    entities, rows = library.world.entities, []
    for sex, name, same, others in (
        ("women", "woman_field", "profession_f", "profession"),
        ("men", "person_field", "profession", "profession_f"),
    ):
        relation, mine, theirs = library.world.relations[name], entities[same], entities[others]
        two = {one for one in mine.keys() & theirs.keys() if mine[one].it.name != theirs[one].it.name}
        for fact in relation.facts:
            if fact.object.en.name in two:
                other = theirs[fact.object.en.name]
                questions = [
                    relation.question(fact, "it", number)
                    for number in range(len(relation.templates["it"]["questions"]))
                ]
                rows.append({"sex": sex, "cluster": fact.key, "right": fact.object.it.name, "wrong": other.it.name,
                             "questions": questions,
                             "answers": [library.answer(fact, "it"), library.answer(fact, "it", other)]})  # fmt: skip
    return rows
