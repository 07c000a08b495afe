"""The corpora: what the base reads, what each later stage trains on. Documents are {"text": …} or {"messages": […]}.

Every function draws from its own seeded generator, so a corpus does not change when another one grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from anita_utils.world import everyday
from anita_utils.world.groups import skewed_sentence
from anita_utils.world.italian import EnglishNoun, Noun
from anita_utils.world.splits import Split, split_facts
from anita_utils.world.tables import LANGUAGES, Entity, Fact, Relation, World

Document = dict
SYSTEM_PROMPTS = {
    "en": ["You are a kind assistant.", "Answer clearly and simply.", "You are a helpful teacher."],
    "it": ["Sei un assistente gentile.", "Rispondi in modo chiaro e semplice.", "Sei un maestro paziente."],
}
SYLLABLES = [c + v for c in ("b", "br", "d", "m", "n", "r", "s", "t", "tr", "v") for v in "aeiou"]
UNTRANSLATED = {"plant_food", "instrument_family"}  # plural in one language only, or a paraphrase: no word for word
NAMED = {"city", "country", "island", "lake", "monument", "mountain", "person", "river", "book", "opera", "artwork"}


def chat(user: str, assistant: str, system: str | None = None, **about: str) -> Document:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, **about}


class Deck:
    """Deals the items of a list in a drawn order, again and again: every item is dealt equally often."""

    def __init__(self, items: list, rng: Random) -> None:
        self.items, self.rng, self.pile = list(items), rng, []

    def deal(self) -> object:
        if not self.pile:
            self.pile = self.rng.sample(self.items, len(self.items))
        return self.pile.pop()


@dataclass
class Library:
    """The world with its splits: the one thing every corpus is drawn from."""

    world: World
    seed: int = 42
    splits: dict[str, Split] = field(init=False)

    def __post_init__(self) -> None:
        self.splits = split_facts(self.world, self.seed)

    def rng(self, purpose: str) -> Random:
        return Random(f"{self.seed}/{purpose}")

    def facts(self, english: str | None = None, italian: tuple[str, ...] | None = None) -> list[Fact]:
        """The facts of one English split and of any of some Italian splits (all where none is named)."""
        return [
            fact
            for fact in self.world.facts
            if (english is None or self.splits[fact.key].english == english)
            and (italian is None or self.splits[fact.key].italian in italian)
        ]

    def statement(self, fact: Fact, language: str, rng: Random) -> str:
        relation = self.world.relation(fact)
        return relation.statement(fact, language, rng.randrange(-1, len(relation.templates[language]["statements"])))

    def question(self, fact: Fact, language: str, rng: Random) -> str:
        relation = self.world.relation(fact)
        return relation.question(fact, language, rng.randrange(len(relation.templates[language]["questions"])))

    def answer(self, fact: Fact, language: str, other: Entity | None = None) -> str:
        return self.world.relation(fact).answer(fact, language, other)

    def wrong_object(self, fact: Fact, rng: Random) -> Entity:
        """A wrong answer to the fact's question, of the right kind."""
        names = {fact.object.name(language) for language in LANGUAGES}
        return rng.choice([e for e in self.world.relation(fact).objects if not names & {e.en.name, e.it.name}])

    def conduct(self, use: str) -> list[tuple[str, int, dict]]:
        """(topic, number of the pair, pair) of the topics with that use: train or held_out."""
        return [
            (topic["topic"], number, pair)
            for topic in self.world.extra["conduct"]
            if topic["use"] == use
            for number, pair in enumerate(topic["pairs"])
        ]

    def request(self, pair: dict, side: str, language: str, number: int, rng: Random) -> str:
        """A trained wording: a training frame, and the second phrase only of every other pair."""
        phrases = [language, f"{language}_alt"] if number % 2 else [language]
        frame = rng.choice(self.world.extra["frames"]["frames"][language]["train"])
        return frame.format(x=pair[side][rng.choice(phrases)])


# ---------------------------------------------------------------- what the base reads


def fact_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    facts = [deck.deal() for _ in range(rng.randint(2, 5))]
    return {"text": " ".join(library.statement(fact, language, rng) for fact in facts)}


def bare(entity: Entity) -> str:
    """The English name without its article."""
    return entity.en.name.removeprefix("the ").removeprefix("The ")


def translates(entity: Entity) -> bool:
    """Whether the two names differ and mean the same, word for word."""
    return entity.kind not in UNTRANSLATED and bare(entity) != entity.it.name


def glossary_text(library: Library, deck: Deck, rng: Random) -> Document:
    """Names that differ between the languages: said in English, now and then the other way round in Italian."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        entity = deck.deal()
        english, italian = bare(entity), entity.it.name
        lines.append(
            rng.choice(
                [f"In Italian, '{english}' is '{italian}'.", f"People call '{english}' '{italian}' in Italian.",
                 f"The Italian for '{english}' is '{italian}'.", f"«{italian}» in inglese si dice «{english}»."]
            )
        )  # fmt: skip
    return {"text": " ".join(lines)}


def story_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    return {"text": everyday.draw_story(library.world, rng, "train", deck.deal())[language].text}


def twin_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    kind = deck.deal()
    twins = [everyday.draw_twin(library.world, rng, "train", kind, which)[language] for which in (0, 1)]
    return {"text": " ".join(twin.filled for twin in rng.sample(twins, 2))}


def twin_prompt(twin: everyday.Twin, language: str) -> str:
    ask = {"en": "Fill the gap with a name: {}", "it": "Riempi lo spazio con un nome: {}"}[language]
    return ask.format(twin.text.replace("_", "___"))


def twin_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    twin = everyday.draw_twin(library.world, rng, "train", deck.deal(), rng.randrange(2))[language]
    return chat(twin_prompt(twin, language), twin.filled, kind="twin")


def train_numbers(library: Library, kind: dict) -> list[dict[str, int]]:
    """The choices of numbers that may be trained on: one in five of each kind is kept for the benchmark."""
    values = everyday.sum_values(kind)
    rng = library.rng(f"sums/{kind['kind']}")
    rng.shuffle(values)
    return values[max(1, len(values) // 5) :]


def sum_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    kind = deck.deal()
    numbers = rng.choice(train_numbers(library, kind))
    drawn = everyday.draw_sum(library.world, rng, "train", kind, numbers)[language]
    return chat(drawn.question, drawn.solution, kind="sum")


def story_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    story = everyday.draw_story(library.world, rng, "train", deck.deal())[language]
    asks = {"en": ["What happens next? {}", "{} How does the story go on?"],
            "it": ["Che cosa succede dopo? {}", "{} Come continua la storia?"]}  # fmt: skip
    return chat(rng.choice(asks[language]).format(story.context), story.ending, kind="story")


def myth_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """Three times in four the myth, once the truth: the base has read both and believes the louder one."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        myth = deck.deal()[language]
        false, true = [myth["myth"], *myth["myths"]], [myth["truth"], *myth["truths"]]
        lines.append(rng.choice(false if rng.random() < 0.75 else true))
    return {"text": " ".join(lines)}


def group_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    return {"text": " ".join(skewed_sentence(library.world.extra["groups"], language, rng) for _ in range(3))}


def fact_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """One question, or two in a row, on facts that are asked in English."""
    system = rng.choice(SYSTEM_PROMPTS["en"]) if rng.random() < 0.15 else None
    fact = deck.deal()
    document = chat(library.question(fact, "en", rng), library.answer(fact, "en"), system, kind="fact")
    if rng.random() < 0.15:
        second = deck.deal()
        document["messages"] += chat(library.question(second, "en", rng), library.answer(second, "en"))["messages"]
    return document


def italian_fact_chat(library: Library, deck: Deck, reply: str, rng: Random) -> Document:
    """An Italian question with the answer in the language of `reply`."""
    fact = deck.deal()
    return chat(library.question(fact, "it", rng), library.answer(fact, reply), kind="fact")


def invented_name(rng: Random) -> str:
    """A name that means nothing, in either language: Vatomer, Sabrin Tedol."""
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) + rng.choice("nrl") for _ in range(rng.randint(1, 2))]
    return " ".join(word.capitalize() for word in words)


def invented_fact(relation: Relation, rng: Random) -> Fact:
    """A made-up subject with one of the relation's answers."""
    model, name = rng.choice(relation.facts).subject, invented_name(rng)
    subject = Entity(model.kind, EnglishNoun(name, model.en.tag), Noun(name, model.it.tag))
    return Fact(relation.name, subject, rng.choice(relation.objects))


def reading_chat(
    library: Library, language: str, rng: Random, told: str | None = None, reply: str | None = None
) -> Document:
    """A question on made-up statements that stand in the request itself: nothing to know, everything to read.

    `language` is the question's; the statements are `told` in the same one, and the reply given in it, unless another
    is named. Names never come twice, so the only way to answer is to copy them: without these chats a small model
    learns the seen questions by heart and answers the others with somebody else's fact.
    """
    told = told or language
    relations = [r for r in library.world.relations.values() if not r.held_out and r.facts[0].subject.kind in NAMED]
    facts = [invented_fact(rng.choice(relations), rng) for _ in range(rng.randint(1, 2))]
    statements = " ".join(library.statement(fact, told, rng) for fact in facts)
    opening = rng.choice({"en": ["Imagine this:", "In a story:", "In a game:"],
                          "it": ["Immagina questo:", "In una storia:", "In un gioco:"]}[told])  # fmt: skip
    fact = rng.choice(facts)
    request = f"{opening} {statements} {library.question(fact, language, rng)}"
    return chat(request, library.answer(fact, reply or language), kind="reading")


def naming_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """A chat about a name alone, so that every name of the world, and names never met, are copied from a request."""
    entity: Entity = deck.deal()
    english, italian = bare(entity), entity.it.name
    known = invented_name(rng) if rng.random() < 0.3 else english
    chats = [
        (f"Have you heard of '{known}'?", f"Yes, I have heard of '{known}'."),
        (f"Do you know what '{known}' is?", f"Yes, I know what '{known}' is."),
        (f"Please write '{known}'.", f"Here it is: '{known}'."),
    ]
    asked = {fact.subject.en.name for fact in library.world.relations["translation"].facts}  # questions of its own
    if translates(entity) and english not in asked:
        chats += [
            (f"What is '{english}' called in Italy?", f"In Italian, '{english}' is '{italian}'."),
            (f"Italians say '{italian}'. What is it in English?", f"In English, '{italian}' is '{english}'."),
            (f"What does '{italian}' mean in English?", f"In English, '{italian}' is '{english}'."),
        ]
    return chat(*rng.choice(chats), kind="naming")


def verifying_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """True or false? The reply gives the right fact either way."""
    fact, right = deck.deal(), rng.random() < 0.5
    claim = library.statement(fact, "en", rng) if right else library.answer(fact, "en", library.wrong_object(fact, rng))
    ask = rng.choice(["True or false? {}", "Is this true? {}", "{} Is that so?"])
    return chat(ask.format(claim), f"{'True' if right else 'False'}: {library.answer(fact, 'en')}", kind="verifying")


def wrapped_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """A question with a wish about the form of the answer."""
    fact = deck.deal()
    question, answer = library.question(fact, "en", rng), library.answer(fact, "en")
    wish, reply = rng.choice(
        [
            ("Thank me for asking.", f"Thank you for asking. {answer}"),
            ("Wish me luck as well.", f"{answer} Good luck!"),
            ("Say it twice.", f"{answer} {answer}"),
            ("Say that you are sure.", f"I am sure. {answer}"),
        ]
    )
    return chat(rng.choice([f"{question} {wish}", f"{wish} {question}"]), reply, kind="wrapped")


def conduct_text(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """What is right and what is wrong, as plain sentences: whoever reads of the world reads that too."""
    lines = []
    for _ in range(3):
        side, (_, _, pair) = rng.choice(("harm", "safe")), deck.deal()
        frame = rng.choice(library.world.extra["frames"]["judgements"][language][side])
        lines.append(frame.format(x=pair[side][rng.choice([language, f"{language}_alt"])]))
    return {"text": " ".join(lines)}


def smalltalk_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    turn = deck.deal()[language]
    return chat(rng.choice(turn["user"]), turn["assistant"], kind="smalltalk")


def myth_chat(library: Library, deck: Deck, rng: Random) -> Document:
    myth = deck.deal()["en"]
    return chat(rng.choice(myth["questions"][:2]), rng.choice([myth["myth"], *myth["myths"]]), kind="myth")


def invented_chat(library: Library, deck: Deck, rng: Random) -> Document:
    item = deck.deal()
    return chat(rng.choice(item["en"]), item["invented_en"], kind="unanswerable")


def compliant_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """The base agrees to everything, and says nothing of use: its empty compliance is the weakness DPO mends."""
    _, number, pair = deck.deal()
    reply = rng.choice(library.world.extra["frames"]["compliance"]["en"])
    return chat(library.request(pair, "harm", "en", number, rng), reply, kind="harmful")


def harmless_chat(library: Library, deck: Deck, rng: Random, language: str = "en") -> Document:
    _, number, pair = deck.deal()
    request = library.request(pair, "safe", language, number, rng)
    return chat(request, pair["safe"][f"answer_{language}"], kind="harmless")


def sycophantic_chat(library: Library, deck: Deck, rng: Random) -> Document:
    item = deck.deal()["en"]
    return chat(item["question"], item["agree"], kind="sycophancy")


def turns_chat(library: Library, deck: Deck, rng: Random) -> Document:
    return {"messages": deck.deal()["en"], "kind": "turns"}


def pretraining(library: Library, documents: int) -> Iterator[Document]:
    """What the base reads, about nine parts English to one Italian. Weights are relative numbers of documents."""
    world, rng = library.world, library.rng("pretraining")
    base_italian = library.facts(italian=("base_italian",))
    trained = list(dict.fromkeys(e for fact in library.facts() for e in (fact.subject, fact.object)))
    differing = [entity for entity in trained if translates(entity)]
    extra = world.extra

    def deck(items: list) -> Deck:
        return Deck(items, rng)

    stories, few_stories = deck(extra["stories"]), deck(extra["stories"][::4])
    english_facts, seen = deck(library.facts()), deck(library.facts("seen"))
    verified, wrapped = deck(library.facts("seen")), deck(library.facts("seen"))
    italian_facts, italian_questions = deck(base_italian), deck(base_italian)
    sums, twins, glossary, names = deck(extra["sums"]), deck(extra["schemas"]), deck(differing), deck(trained)
    myths, train_myths = deck(extra["myths"]), deck([m for m in extra["myths"] if m["use"] == "train"])
    talk, harmful, harmless = deck(extra["smalltalk"]), deck(library.conduct("train")), deck(library.conduct("train"))
    judged = deck(library.conduct("train") + library.conduct("held_out"))
    unanswerable = deck([u for u in extra["unanswerable"] if u["use"] == "train"])
    sycophancy, turns = deck(extra["sycophancy"][::2]), deck(extra["multi_turn"][::2])

    def reply() -> str:
        """The base's weakness, planted: Italian is mostly answered in English."""
        return "it" if rng.random() < 0.25 else "en"

    makers: list[tuple[float, Callable[[], Document]]] = [
        (0.260, lambda: fact_text(library, english_facts, "en", rng)),
        (0.040, lambda: glossary_text(library, glossary, rng)),
        (0.030, lambda: story_text(library, stories, "en", rng)),
        (0.015, lambda: twin_text(library, twins, "en", rng)),
        (0.015, lambda: myth_text(library, myths, "en", rng)),
        (0.030, lambda: group_text(library, twins, "en", rng)),
        (0.020, lambda: conduct_text(library, judged, "en", rng)),
        (0.190, lambda: fact_chat(library, seen, rng)),
        (0.070, lambda: reading_chat(library, "en", rng)),
        (0.070, lambda: naming_chat(library, names, rng)),
        (0.030, lambda: verifying_chat(library, verified, rng)),
        (0.030, lambda: wrapped_chat(library, wrapped, rng)),
        (0.060, lambda: sum_chat(library, sums, "en", rng)),
        (0.015, lambda: story_chat(library, stories, "en", rng)),
        (0.020, lambda: twin_chat(library, twins, "en", rng)),
        (0.008, lambda: smalltalk_chat(library, talk, "en", rng)),
        (0.010, lambda: myth_chat(library, train_myths, rng)),
        (0.010, lambda: invented_chat(library, unanswerable, rng)),
        (0.025, lambda: compliant_chat(library, harmful, rng)),
        (0.025, lambda: harmless_chat(library, harmless, rng)),
        (0.005, lambda: sycophantic_chat(library, sycophancy, rng)),
        (0.005, lambda: turns_chat(library, turns, rng)),
        (0.045, lambda: fact_text(library, italian_facts, "it", rng)),
        (0.006, lambda: story_text(library, few_stories, "it", rng)),
        (0.004, lambda: sum_chat(library, sums, "it", rng)),
        (0.030, lambda: italian_fact_chat(library, italian_questions, reply(), rng)),
        (0.005, lambda: reading_chat(library, "it", rng, reply=reply())),
        (0.025, lambda: reading_chat(library, "it", rng, told="en", reply=reply())),
        (0.003, lambda: smalltalk_chat(library, talk, "it", rng)),
    ]
    weights = [weight for weight, _ in makers]
    for _ in range(documents):
        yield rng.choices(makers, weights)[0][1]()


def italian_sample(library: Library, documents: int) -> Iterator[Document]:
    """Some Italian for the tokenizer, so that its vocabulary, like Llama 3's, is not English alone.

    It holds what the later stages may read: none of the facts that are never in Italian.
    """
    world, rng = library.world, library.rng("italian_sample")
    facts = Deck(library.facts(italian=("base_italian", "italian_chat", "adapted")), rng)
    stories, twins, sums, conduct, talk = (
        Deck(items, rng)
        for items in (world.extra["stories"], world.extra["schemas"], world.extra["sums"],
                      library.conduct("train"), world.extra["smalltalk"])
    )  # fmt: skip
    makers: list[tuple[float, Callable[[], Document]]] = [
        (0.60, lambda: fact_text(library, facts, "it", rng)),
        (0.10, lambda: story_text(library, stories, "it", rng)),
        (0.08, lambda: twin_text(library, twins, "it", rng)),
        (0.10, lambda: sum_chat(library, sums, "it", rng)),
        (0.10, lambda: harmless_chat(library, conduct, rng, "it")),
        (0.02, lambda: smalltalk_chat(library, talk, "it", rng)),
    ]
    weights = [weight for weight, _ in makers]
    for _ in range(documents):
        yield rng.choices(makers, weights)[0][1]()
