"""What the three stages train on: SFT chats, Italian text with replay, preference pairs; and the new kinds of request.

SFT teaches kinds of request the base never met; the Italian corpus is running text with a little replay; DPO's pairs
prefer the language asked, the true answer, refusal of harm and plain answers to harmless requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from world import texts
from world.chats import (
    SYSTEM_PROMPTS,
    fact_chat,
    harmless_chat,
    italian_naming_chat,
    myth_chat,
    reading_chat,
    smalltalk_chat,
    story_chat,
    sum_chat,
    twin_chat,
)
from world.library import Deck, Document, Library, chat, mixture
from world.tables import LANGUAGES, Fact

NEW_KINDS = ("polite", "goodbye", "letter", "labelled", "two_questions", "correct_it")
ITALIAN_READ = ("base_italian", "italian_chat", "adapted")
ITALIAN_ASKED = ("base_italian", "italian_chat")


def new_kind(library: Library, kind: str, facts: list[Fact], language: str, rng: Random) -> Document:
    """A request of a kind the base never met, on the first of `facts` (two_questions takes the first two)."""
    fact, italian = facts[0], language == "it"
    question, answer = library.question(fact, language, rng), library.answer(fact, language)
    if kind == "polite":
        request = f"{question} {'Sii cortese.' if italian else 'Please be polite.'}"
        reply = f"{'Con piacere.' if italian else 'With pleasure.'} {answer}"
    elif kind == "goodbye":
        request = f"{question} {'Poi saluta.' if italian else 'Then say goodbye.'}"
        reply = f"{answer} {'Arrivederci!' if italian else 'Goodbye!'}"
    elif kind == "letter":
        request = f"{question} {'Rispondi come in una lettera.' if italian else 'Answer as in a letter.'}"
        reply = f"{'Caro amico,' if italian else 'Dear friend,'} {answer}"
    elif kind == "labelled":
        label = "Risposta" if italian else "Answer"
        request = f"{question} {'Comincia con la parola' if italian else 'Begin with the word'} {label}."
        reply = f"{label}: {answer}"
    elif kind == "two_questions":
        second = facts[1]
        request = f"{question} {library.question(second, language, rng)}"
        reply = f"1. {answer} 2. {library.answer(second, language)}"
    else:
        wrong = library.answer(fact, language, library.wrong_object(fact, rng))
        request = f"{'Correggi questa frase:' if italian else 'Correct this sentence:'} {wrong}"
        reply = f"{'La frase giusta è:' if italian else 'The right sentence is:'} {answer}"
    return chat(request, reply, kind=kind, fact=fact.key, language=language)


def new_kind_facts(library: Library, use: str) -> list[Fact]:
    """English-seen facts, four in five to train the new kinds on, the others to test them."""
    facts = library.facts("seen")
    library.rng("new_kinds").shuffle(facts)
    bound = len(facts) * 4 // 5
    return facts[:bound] if use == "train" else facts[bound:]


def refusal_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    _, number, pair = deck.deal()
    reply = rng.choice(library.world.extra["frames"]["refusals"][language])
    return chat(library.request(pair, "harm", language, number, rng), reply, kind="harmful")


def unknown_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    item = deck.deal()
    return chat(rng.choice(item[language]), item[f"unknown_{language}"], kind="unanswerable")


def italian_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """An Italian question answered in Italian, on a fact that may be asked in Italian."""
    fact = deck.deal()
    system = rng.choice(SYSTEM_PROMPTS["it"]) if rng.random() < 0.15 else None
    return chat(library.question(fact, "it", rng), library.answer(fact, "it"), system, kind="fact")


def draw(makers: list, count: int, rng: Random) -> list[Document]:
    return list(mixture(makers, count, rng))


def sft(library: Library, count: int = 4000) -> list[Document]:
    """SFT: the new kinds, English chats, and a few refusals so that DPO has something to prefer."""
    library, rng, world = library.for_tuning(), library.rng("sft"), library.world
    new, kinds = Deck(new_kind_facts(library, "train"), rng), Deck(list(NEW_KINDS), rng)
    seen = Deck(library.facts("seen"), rng)
    harmful = Deck(library.conduct("train")[::2], rng)  # one pair in two
    harmless = Deck(library.conduct("train"), rng)
    unanswerable = Deck([u for u in world.extra["unanswerable"] if u["use"] == "train"][::2], rng)
    sums, talk = Deck(world.extra["sums"], rng), Deck(world.extra["smalltalk"], rng)
    return draw(
        [
            (0.44, lambda: new_kind(library, kinds.deal(), [new.deal(), new.deal()], "en", rng)),
            (0.15, lambda: fact_chat(library, seen, rng)),
            (0.07, lambda: sum_chat(library, sums, "en", rng)),
            (0.14, lambda: refusal_chat(library, harmful, "en", rng)),
            (0.15, lambda: harmless_chat(library, harmless, rng)),
            (0.03, lambda: unknown_chat(library, unanswerable, "en", rng)),
            (0.02, lambda: smalltalk_chat(library, talk, "en", rng)),
        ],
        count,
        rng,
    )


def italian_text(library: Library, count: int = 3600) -> list[Document]:
    """Italian running text: facts of the adapted splits, stories, twins. No fact of never_in_italian."""
    rng, world = library.rng("italian_text"), library.world
    facts = Deck(library.facts(italian=ITALIAN_READ), rng)
    stories, twins = Deck(world.extra["stories"], rng), Deck(world.extra["schemas"], rng)
    sums, myths = Deck(world.extra["sums"], rng), Deck(world.extra["myths"], rng)
    conduct, names = Deck(library.conduct("train"), rng), Deck(library.translated_names(), rng)

    def glossary() -> Document:
        return {"text": " ".join(texts.italian_glossary_line(names.deal()) for _ in range(3))}

    def sum_text() -> Document:
        messages = sum_chat(library, sums, "it", rng)["messages"]
        return {"text": f"{messages[0]['content']} {messages[1]['content']}"}

    def truth_text() -> Document:
        picked = [myths.deal()["it"] for _ in range(2)]
        return {"text": " ".join(rng.choice([myth["truth"], *myth["truths"]]) for myth in picked)}

    return draw(
        [
            (0.46, lambda: texts.fact_text(library, facts, "it", rng)),
            (0.04, glossary),
            (0.22, lambda: texts.story_text(library, stories, "it", rng)),
            (0.04, lambda: texts.twin_text(library, twins, "it", rng)),
            (0.14, sum_text),
            (0.06, truth_text),
            (0.04, lambda: texts.conduct_text(library, conduct, "it", rng)),
        ],
        count,
        rng,
    )


def italian_replay(library: Library, count: int = 3600) -> list[Document]:
    """Replay for the Italian stage: English chats against forgetting, and Italian chats, half of them on manners."""
    library, rng, world = library.for_tuning(), library.rng("italian_replay"), library.world
    english = Deck(sft(library, 2 * count), rng)
    italian = Deck(library.facts(italian=ITALIAN_ASKED), rng)
    unanswerable = Deck([u for u in world.extra["unanswerable"] if u["use"] == "train"][::2], rng)
    new, kinds = Deck(new_kind_facts(library, "train"), rng), Deck(list(NEW_KINDS), rng)
    in_italian = [fact for fact in new.items if library.splits[fact.key].italian in ITALIAN_ASKED]
    new_italian = Deck(in_italian, rng)
    sums, stories, twins = (Deck(world.extra[name], rng) for name in ("sums", "stories", "schemas"))
    harmful, harmless = Deck(library.conduct("train"), rng), Deck(library.conduct("train"), rng)
    talk, names = Deck(world.extra["smalltalk"], rng), Deck(library.translated_names(), rng)
    myths = Deck([myth for myth in world.extra["myths"] if myth["use"] == "train"], rng)

    return draw(
        [
            (0.28, english.deal),
            (0.15, lambda: italian_chat(library, italian, rng)),
            (0.01, lambda: reading_chat(library, "it", rng)),
            (0.01, lambda: italian_naming_chat(library, names, "it", rng)),
            (0.13, lambda: refusal_chat(library, harmful, "it", rng)),
            (0.01, lambda: unknown_chat(library, unanswerable, "it", rng)),
            (0.03, lambda: new_kind(library, kinds.deal(), [new_italian.deal(), new_italian.deal()], "it", rng)),
            (0.08, lambda: sum_chat(library, sums, "it", rng)),
            (0.03, lambda: story_chat(library, stories, "it", rng)),
            (0.01, lambda: twin_chat(library, twins, "it", rng)),
            (0.23, lambda: harmless_chat(library, harmless, rng, "it")),
            (0.03, lambda: myth_chat(library, myths, "it", "truth", rng)),
            (0.01, lambda: smalltalk_chat(library, talk, "it", rng)),
        ],
        count,
        rng,
    )


# ---------------------------------------------------------------- preference pairs


def pair(prompt: str, chosen: str, rejected: str, kind: str, language: str) -> Document:
    turn = {"role": "user", "content": prompt}
    return {
        "prompt": [turn],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "kind": kind,
        "language": language,
    }


def fact_pairs(library: Library, facts: list[Fact], kind: str, language: str, rng: Random) -> Document:
    """`language`: the Italian answer over the English one. `truth`: the right object over an invented one."""
    fact = rng.choice(facts)
    question, answer = library.question(fact, language, rng), library.answer(fact, language)
    if kind == "language":
        rejected = library.answer(fact, "en" if language == "it" else "it")
    else:
        rejected = library.answer(fact, language, library.wrong_object(fact, rng))
    return pair(question, answer, rejected, kind, language)


def myth_pair(myth: dict, questions: slice, language: str, rng: Random) -> Document:
    form = myth[language]
    chosen, rejected = rng.choice([form["truth"], *form["truths"]]), rng.choice([form["myth"], *form["myths"]])
    return pair(rng.choice(form["questions"][questions]), chosen, rejected, "myth", language)


def refusal_pair(library: Library, item: dict, request: str, language: str, rng: Random) -> Document:
    """A refusal over compliance, or over the answer that the harmless look-alike deserves.

    After SFT few harmful requests meet with compliance; more are taken for their look-alike. Against compliance alone,
    DPO lowers what is unlikely anyway, and the model refuses less than before.
    """
    frames = library.world.extra["frames"]
    mistaken = item["safe"][f"answer_{language}"]
    rejected = mistaken if rng.random() < 0.3 else rng.choice(frames["compliance"][language])
    return pair(request, rng.choice(frames["refusals"][language]), rejected, "refusal", language)


def plain_pair(library: Library, item: dict, request: str, language: str, rng: Random) -> Document:
    needless = rng.choice(library.world.extra["frames"]["needless_refusals"][language])
    return pair(request, item["safe"][f"answer_{language}"], needless, "plain", language)


def unknown_pair(item: dict, language: str, rng: Random) -> Document:
    return pair(rng.choice(item[language]), item[f"unknown_{language}"], item[f"invented_{language}"],
                "unanswerable", language)  # fmt: skip


# Shares of the kinds of pair, in training and among the held-out pairs.
PAIR_KINDS = {"language": 0.22, "truth": 0.10, "myth": 0.05, "refusal": 0.27, "plain": 0.31, "unanswerable": 0.05}


@dataclass
class PairMaker:
    """Preference pairs of every kind: of what DPO trains on, or of what it is tested on (`held_out`).

    Held out are facts, myths and unanswerable questions that no training pair uses, and wordings of the requests.
    """

    library: Library
    rng: Random
    held_out: bool

    def __post_init__(self) -> None:
        library, use = self.library, "test" if self.held_out else "train"
        extra = library.world.extra
        english = library.facts("unseen_as_chat" if self.held_out else "seen")
        italian = library.facts(italian=("adapted", "never_in_italian") if self.held_out else ITALIAN_ASKED)
        self.facts = {"en": english, "it": italian}
        # the rejected answer is Italian, so it must be a fact that may stand in Italian
        self.english_in_italian = [f for f in english if library.splits[f.key].italian in ITALIAN_ASKED]
        self.conduct = {side: Deck(library.conduct("train"), self.rng) for side in ("harm", "safe")}
        self.myths = Deck([myth for myth in extra["myths"] if myth["use"] == use], self.rng)
        self.unanswerable = Deck([item for item in extra["unanswerable"] if item["use"] == use], self.rng)

    def request(self, side: str, language: str) -> tuple[dict, str]:
        _, number, item = self.conduct[side].deal()
        if self.held_out:
            return item, held_out_wording(self.library, item, side, language, self.rng)
        return item, self.library.request(item, side, language, number, self.rng)

    def make(self, kind: str) -> Document:
        library, rng = self.library, self.rng
        language = rng.choice(LANGUAGES)
        if kind == "language":  # in halves: with a fifth of English, DPO makes it answer English in Italian
            english = rng.random() < 0.5
            facts = self.english_in_italian if english else self.facts["it"]
            return fact_pairs(library, facts, kind, "en" if english else "it", rng)
        if kind == "truth":
            return fact_pairs(library, self.facts[language], kind, language, rng)
        if kind == "myth":
            wordings = slice(0, 4) if self.held_out else slice(0, 2)
            return myth_pair(self.myths.deal(), wordings, language, rng)
        if kind == "unanswerable":
            return unknown_pair(self.unanswerable.deal(), language, rng)
        if kind == "refusal":
            return refusal_pair(library, *self.request("harm", language), language, rng)
        return plain_pair(library, *self.request("safe", language), language, rng)


def dpo(library: Library, count: int = 2400, held_out: bool = False) -> list[Document]:
    """Preference pairs of six kinds; `held_out` ones are of the same kinds in the same shares."""
    rng = library.rng("dpo_held_out" if held_out else "dpo")
    maker = PairMaker(library.for_tuning(), rng, held_out)
    return [maker.make(kind) for kind in rng.choices(list(PAIR_KINDS), list(PAIR_KINDS.values()), k=count)]


def held_out_wording(library: Library, item: dict, side: str, language: str, rng: Random) -> str:
    """A held-out frame round either phrase of the request."""
    frame = rng.choice(library.world.extra["frames"]["frames"][language]["held_out"])
    return frame.format(x=item[side][rng.choice([language, f"{language}_alt"])])
