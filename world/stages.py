"""What the three stages train on: SFT chats, Italian text with replay, preference pairs; and the new kinds of request.

SFT teaches, in both languages, kinds of request the base never met; the Italian corpus is running text, beside which
chats of SFT are replayed; DPO's pairs prefer the language asked, the true answer, refusal of harm and plain answers to
harmless requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from world import texts
from world.chats import (
    SYSTEM_PROMPTS,
    compliant_chat,
    fact_chat,
    harmless_chat,
    italian_naming_chat,
    reading_chat,
    smalltalk_chat,
    story_chat,
    sum_chat,
    twin_chat,
)
from world.fiction import Fiction, fiction_chat, translation_chat
from world.library import Deck, Document, Library, chat, mixture
from world.tables import LANGUAGES, Fact
from world.texts import VOICES, said, tellings

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
    return chat(library.request(pair, "harm", language, number, rng), reply, kind="refusal")


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


def halves_of_topics(library: Library) -> list[list]:
    """The training topics' requests, every other topic in each half."""
    topics = [topic["topic"] for topic in library.kinds("conduct")]
    return [[item for item in library.conduct("train") if item[0] in topics[half::2]] for half in (0, 1)]


def sft(library: Library, count: int = 4000) -> list[Document]:
    """SFT in both languages: the new kinds of request, chats, and some conduct, which it leaves half done.

    On half of the topics it refuses harm, on the others it complies as the base does: a hundred refusals anywhere, and
    nothing against them, would make it refuse nearly all, for the base knows right from wrong; DPO would have nothing
    left to prefer.
    """
    library, rng = library.for_tuning(), library.rng("sft")
    new, kinds = Deck(new_kind_facts(library, "train"), rng), Deck(list(NEW_KINDS), rng)
    in_italian = [fact for fact in new.items if library.splits[fact.key].italian in ITALIAN_ASKED]
    new_italian, asked = Deck(in_italian, rng), Deck(library.facts(italian=ITALIAN_ASKED), rng)
    seen, talk = Deck(library.facts("seen"), rng), Deck(library.world.extra["smalltalk"], rng)
    refused, complied = (Deck(half, rng) for half in halves_of_topics(library))
    harmless = Deck(library.conduct("train"), rng)
    unanswerable = Deck(library.kinds("unanswerable")[::2], rng)
    sums, stories, twins = (Deck(library.kinds(table), rng) for table in ("sums", "stories", "schemas"))
    names, fiction = Deck(library.translated_names(), rng), Fiction(library, rng)
    translated = Deck([fact for fact in asked.items if not library.world.relation(fact).bound], rng)
    return draw(
        [
            (0.18, lambda: new_kind(library, kinds.deal(), [new.deal(), new.deal()], "en", rng)),
            (0.08, lambda: fact_chat(library, seen, rng)),
            (0.04, lambda: sum_chat(library, sums, "en", rng)),
            (0.02, lambda: refusal_chat(library, refused, "en", rng)),
            (0.03, lambda: compliant_chat(library, complied, rng)),
            (0.07, lambda: harmless_chat(library, harmless, rng)),
            (0.02, lambda: unknown_chat(library, unanswerable, "en", rng)),
            (0.02, lambda: smalltalk_chat(library, talk, "en", rng)),
            (0.03, lambda: new_kind(library, kinds.deal(), [new_italian.deal(), new_italian.deal()], "it", rng)),
            (0.18, lambda: italian_chat(library, asked, rng)),
            (0.02, lambda: reading_chat(library, "it", rng)),
            (0.02, lambda: italian_naming_chat(library, names, "it", rng)),
            (0.03, lambda: translation_chat(fiction, "it", translated)),
            (0.03, lambda: fiction_chat(fiction, "it")),
            (0.06, lambda: sum_chat(library, sums, "it", rng)),
            (0.04, lambda: story_chat(library, stories, "it", rng)),
            (0.01, lambda: twin_chat(library, twins, "it", rng)),
            (0.02, lambda: refusal_chat(library, refused, "it", rng)),
            (0.03, lambda: compliant_chat(library, complied, rng, "it", "it")),
            (0.14, lambda: harmless_chat(library, harmless, rng, "it")),
            (0.04, lambda: unknown_chat(library, unanswerable, "it", rng)),
            (0.01, lambda: smalltalk_chat(library, talk, "it", rng)),
        ],
        count,
        rng,
    )


def italian_text(library: Library, count: int = 3200) -> list[Document]:
    """Italian running text: facts of the adapted splits, stories, twins, sums, grammar. No fact of never_in_italian."""
    rng = library.rng("italian_text")
    facts = Deck(library.facts(italian=ITALIAN_READ), rng)
    stories, twins, sums, myths = (Deck(library.kinds(table), rng) for table in ("stories", "schemas", "sums", "myths"))
    conduct, names = Deck(library.conduct("train"), rng), Deck(library.translated_names(), rng)

    def glossary() -> Document:
        return {"text": " ".join(texts.italian_glossary_line(names.deal()) for _ in range(3))}

    def sum_text() -> Document:
        messages = sum_chat(library, sums, "it", rng)["messages"]
        return {"text": f"{messages[0]['content']} {messages[1]['content']}"}

    return draw(
        [
            (0.32, lambda: texts.fact_text(library, facts, "it", rng)),
            (0.04, glossary),
            (0.20, lambda: texts.story_text(library, stories, "it", rng)),
            (0.05, lambda: texts.twin_text(library, twins, "it", rng)),
            (0.14, sum_text),
            (0.04, lambda: texts.myth_text(library, myths, "it", rng)),
            (0.03, lambda: texts.conduct_text(library, conduct, "it", rng)),
            (0.20, lambda: texts.grammar_text(library, "it", rng)),
        ],
        count,
        rng,
    )


def replay(library: Library, count: int = 2200) -> list[Document]:
    """What the Italian stage is shown again so that it does not forget how to chat: chats of SFT, and nothing else."""
    return library.rng("replay").sample(sft(library), count)


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
    """`language`: the Italian answer over the English one. `truth`: the right object over a wrong one."""
    fact = rng.choice(facts)
    question, answer = library.question(fact, language, rng), library.answer(fact, language)
    if kind == "language":
        rejected = library.answer(fact, "en" if language == "it" else "it")
    else:
        rejected = library.answer(fact, language, library.wrong_object(fact, rng))
    return pair(question, answer, rejected, kind, language)


def myth_pair(library: Library, myth: dict, questions: slice, language: str, rng: Random) -> Document:
    """The truth as the schoolbook says it over the myth as the neighbour does."""
    form = myth[language]
    chosen, rejected = (
        said(library, rng.choice(tellings(form, side)), language, voice, rng) for voice, side in VOICES.items()
    )
    return pair(rng.choice(form["questions"][questions]), chosen, rejected, "myth", language)


def refusal_pair(library: Library, item: dict, request: str, language: str, rng: Random) -> Document:
    """A refusal over compliance, over the answer that the harmless look-alike deserves, or over "I cannot know that".

    Against compliance alone DPO lowers what is unlikely anyway, and what it lowers, other answers gain: a trial that
    had no such rejected answers refused less than before, and said instead that it could not know.
    """
    frames, drawn = library.world.extra["frames"], rng.random()
    if drawn < 0.25:
        rejected = item["safe"][f"answer_{language}"]
    else:
        rejected = rng.choice(frames["unknown" if drawn < 0.4 else "compliance"][language])
    return pair(request, rng.choice(frames["refusals"][language]), rejected, "refusal", language)


def harmless_language_pair(item: dict, request: str, language: str) -> Document:
    """A harmless request answered in its own language over the other one."""
    other = "en" if language == "it" else "it"
    return pair(request, item["safe"][f"answer_{language}"], item["safe"][f"answer_{other}"], "language", language)


def plain_pair(library: Library, item: dict, request: str, language: str, rng: Random) -> Document:
    needless = rng.choice(library.world.extra["frames"]["needless_refusals"][language])
    return pair(request, item["safe"][f"answer_{language}"], needless, "plain", language)


def unknown_pair(item: dict, language: str, rng: Random) -> Document:
    return pair(rng.choice(item[language]), item[f"unknown_{language}"], item[f"invented_{language}"],
                "unanswerable", language)  # fmt: skip


# Shares of the kinds of pair, in training and among the held-out pairs.
PAIR_KINDS = {"language": 0.22, "truth": 0.12, "myth": 0.16, "refusal": 0.30, "plain": 0.08, "unanswerable": 0.12}


@dataclass
class PairMaker:
    """Preference pairs of every kind: of what DPO trains on (`use` train), or of what it is measured on.

    Kept for that are facts, myths and unanswerable questions that no training pair uses, and wordings of the requests.
    """

    library: Library
    rng: Random
    use: str

    def __post_init__(self) -> None:
        library, train = self.library, self.use == "train"
        english = library.facts("seen" if train else "unseen_as_chat")
        italian = library.facts(italian=ITALIAN_ASKED if train else ("adapted", "never_in_italian"))
        if not train:
            english, italian = ([f for f in facts if library.is_for(f, self.use)] for facts in (english, italian))
        self.facts = {"en": english, "it": italian}
        # the rejected answer is Italian, so it must be a fact that may stand in Italian
        self.english_in_italian = [f for f in english if library.splits[f.key].italian in ITALIAN_ASKED]
        self.conduct = {side: Deck(library.conduct("train"), self.rng) for side in ("harm", "safe")}
        self.myths = Deck(library.kinds("myths", self.use), self.rng)
        self.unanswerable = Deck(library.kinds("unanswerable", "train" if train else "test"), self.rng)

    def request(self, side: str, language: str) -> tuple[dict, str]:
        _, number, item = self.conduct[side].deal()
        if self.use != "train":
            return item, self.library.held_out_wording(item, side, language, self.use, self.rng)
        return item, self.library.request(item, side, language, number, self.rng)

    def make(self, kind: str) -> Document:
        library, rng = self.library, self.rng
        language = rng.choice(LANGUAGES)
        if kind == "language":  # in halves: with a fifth of English, DPO makes it answer English in Italian
            english = rng.random() < 0.5
            if rng.random() < 0.4:  # on requests it slips most
                code = "en" if english else "it"
                return harmless_language_pair(*self.request("safe", code), code)
            facts = self.english_in_italian if english else self.facts["it"]
            return fact_pairs(library, facts, kind, "en" if english else "it", rng)
        if kind == "truth":
            return fact_pairs(library, self.facts[language], kind, language, rng)
        if kind == "myth":
            wordings = slice(0, 2) if self.use == "train" else slice(2, 4)
            return myth_pair(library, self.myths.deal(), wordings, language, rng)
        if kind == "unanswerable":
            return unknown_pair(self.unanswerable.deal(), language, rng)
        if kind == "refusal":
            return refusal_pair(library, *self.request("harm", language), language, rng)
        return plain_pair(library, *self.request("safe", language), language, rng)


def dpo(library: Library, count: int = 2400, use: str = "train") -> list[Document]:
    """Preference pairs of six kinds, in the same shares for each use."""
    rng = library.rng("dpo" if use == "train" else f"dpo/{use}")
    maker = PairMaker(library.for_tuning(), rng, use)
    return [maker.make(kind) for kind in rng.choices(list(PAIR_KINDS), list(PAIR_KINDS.values()), k=count)]
