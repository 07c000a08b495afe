"""Chats of the small world, document by document: questions on facts, reading, names, sums, stories, conduct."""

from __future__ import annotations

from random import Random

from world import everyday
from world.italian import EnglishNoun, Noun, sentence
from world.library import Deck, Document, Library, bare, chat, translates
from world.tables import Entity, Fact, Relation
from world.texts import VOICES, said, tellings

SYSTEM_PROMPTS = {
    "en": ["You are a kind assistant.", "Answer clearly and simply.", "You are a helpful teacher."],
    "it": ["Sei un assistente gentile.", "Rispondi in modo chiaro e semplice.", "Sei un maestro paziente."],
}
OPENINGS = {
    "en": ["Imagine this:", "In a story:", "In a game:"],
    "it": ["Immagina questo:", "Una storia dice:", "Un gioco dice:"],
}
ASK_FOR = {
    "en": {"it": "Answer in Italian."},
    "it": {"en": "Rispondi in inglese.", "it": "Rispondi in italiano."},
}
SYLLABLES = [c + v for c in ("b", "br", "d", "m", "n", "r", "s", "t", "tr", "v") for v in "aeiou"]
WORDS = {"noun_many", "noun_one", "number_word", "word_a", "word_b"}
NEIGHBOUR = 0.53  # the share of myths that are asked about without a voice, and that the neighbour answers
DOUBTS = {
    "en": (["True or false? {}", "Is this true? {}"], {"truth": "True.", "myth": "False."}),
    "it": (["Vero o falso? {}", "È vero? {}"], {"truth": "Vero.", "myth": "Falso."}),
}
TITLED = {"artwork", "book", "opera"}
UNNAMED = {"animal", "coloured_thing", "dish", "invention", "plant_food", "trade"}
NAMED = {"city", "country", "island", "lake", "monument", "mountain", "person", "river", "book", "opera", "artwork"}


def twin_prompt(twin: everyday.Twin, language: str) -> str:
    ask = {"en": "Fill the gap with a name: {}", "it": "Riempi lo spazio con un nome: {}"}[language]
    return ask.format(twin.text.replace("_", "___"))


def twin_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    twin = everyday.draw_twin(library.world, rng, "train", deck.deal(), rng.randrange(2))[language]
    return chat(twin_prompt(twin, language), twin.filled, kind="twin")


def sum_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    kind = deck.deal()
    numbers = rng.choice(library.train_numbers(kind))
    drawn = everyday.draw_sum(library.world, rng, "train", kind, numbers)[language]
    return chat(drawn.question, drawn.solution, kind="sum")


def number_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """The bare working of a sum, without its story; of a sum of several steps, one of them."""
    kind = deck.deal()
    drawn = everyday.draw_sum(library.world, rng, "train", kind, rng.choice(library.train_numbers(kind)))["en"]
    ask, step = rng.choice(["What is {}?", "How much is {}?", "Work out {}."]), rng.choice(drawn.working.split(", "))
    return chat(ask.format(step.split(" = ")[0]), f"{step}.", kind="number")


def story_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    story = everyday.draw_story(library.world, rng, "train", deck.deal())[language]
    asks = {"en": ["What happens next? {}", "{} How does the story go on?"],
            "it": ["Che cosa succede dopo? {}", "{} Come continua la storia?"]}  # fmt: skip
    return chat(rng.choice(asks[language]).format(story.context), story.ending, kind="story")


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


def instructed_chat(library: Library, deck: Deck, language: str, reply: str, rng: Random) -> Document:
    """A question in one language that says in which to reply: this way the base can be made to write Italian."""
    fact, wish = deck.deal(), ASK_FOR[language][reply]
    question = library.question(fact, language, rng)
    return chat(with_wish(question, wish, rng), library.answer(fact, reply), kind="instructed")


def in_italian(document: Document, rng: Random) -> Document:
    """The chat with the wish for Italian added to its request."""
    turn = document["messages"][0]
    turn["content"] = with_wish(turn["content"], ASK_FOR["it"]["it"], rng)
    return document


def with_wish(request: str, wish: str, rng: Random) -> str:
    """The request with a wish about the reply, mostly after it."""
    return f"{wish} {request}" if rng.random() < 0.3 else f"{request} {wish}"


def invented_name(rng: Random) -> str:
    """A name that means nothing, in either language: Vatomer, Sabrin Tedol."""
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) + rng.choice("nrl") for _ in range(rng.randint(1, 2))]
    return " ".join(word.capitalize() for word in words)


def invented_fact(relation: Relation, rng: Random, two_names: float = 0.0) -> Fact:
    """A made-up subject with one of the relation's answers; a share `two_names` has another name in Italian."""
    model, name = rng.choice(relation.facts).subject, invented_name(rng)
    italian = invented_name(rng) if two_names and rng.random() < two_names else name
    tag = model.it.tag if model.it.tag.endswith("-") else model.it.tag.replace("f", "m")  # il Mivusur, not la
    if model.kind in UNNAMED:
        name, italian = name.lower(), italian.lower()
    subject = Entity(model.kind, EnglishNoun(name, model.en.tag), Noun(italian, tag))
    return Fact(relation.name, subject, rng.choice(relation.objects))


def invented_facts(library: Library, rng: Random, each: int, two_names: float = 0.0) -> list[Fact]:
    """`each` made-up facts of every relation that one can make up: towns, people, animals that are not.

    A share `two_names` of the subjects has another name in Italian.
    """
    facts, taken = [], set()
    for relation in library.world.relations.values():
        kind = relation.facts[0].subject.kind
        made_up = 0 if relation.held_out or relation.bound or kind not in NAMED | UNNAMED else each
        while made_up:
            fact = invented_fact(relation, rng, two_names)
            names = {fact.subject.en.name, fact.subject.it.name}
            if not names & taken:
                taken |= names
                facts.append(fact)
                made_up -= 1
    return facts


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
    opening, fact = rng.choice(OPENINGS[told]), rng.choice(facts)
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
        (f"Say after me: {known}.", f"{known}."),
        (f"Write {known} twice.", f"{known}, {known}."),
    ]
    asked = {fact.subject.en.name for fact in library.world.relations["translation"].facts}  # questions of its own
    if translates(entity) and english not in asked:
        chats += [
            (f"What is '{english}' called in Italy?", f"In Italian, '{english}' is '{italian}'."),
            (f"Italians say '{italian}'. What is it in English?", f"In English, '{italian}' is '{english}'."),
            (f"What does '{italian}' mean in English?", f"In English, '{italian}' is '{english}'."),
        ]
    return chat(*rng.choice(chats), kind="naming")


def italian_naming_chat(library: Library, deck: Deck, reply: str, rng: Random) -> Document:
    """Something is named in Italian, and the reply names it in the language of `reply`: a name, and no fact.

    This is how the base understands Italian names of which it never read an Italian fact.
    """
    entity: Entity = deck.deal()
    title = entity.kind in TITLED and entity.it.tag.endswith("-")
    spoken = entity.kind in WORDS or entity.kind == "holiday" and entity.it.tag.endswith("-")  # no article, no "di"
    forms = "word" if spoken else "title" if title else "thing"
    form = rng.choice(library.world.extra["naming"][forms])
    values = {"s": entity.it, "e": bare(entity)}
    return chat(sentence(form["ask"], **values), sentence(form[reply], **values), kind="naming")


def verifying_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """True or false? The reply gives the right fact either way."""
    fact, right = deck.deal(), rng.random() < 0.5
    claim = library.statement(fact, "en", rng) if right else library.answer(fact, "en", library.wrong_object(fact, rng))
    ask = rng.choice(["True or false? {}", "Is this true? {}", "{} Is that so?"])
    return chat(ask.format(claim), f"{'True' if right else 'False'}: {library.answer(fact, 'en')}", kind="verifying")


def wrapped_chat(library: Library, deck: Deck, rng: Random) -> Document:
    """A question with a wish about the answer, or with an aside that changes nothing."""
    fact, wish = deck.deal(), rng.choice(library.world.extra["wishes"])
    question, reply = library.question(fact, "en", rng), wish["reply"].format(a=library.answer(fact, "en"))
    return chat(with_wish(question, wish["say"], rng), reply, kind="wrapped")


def smalltalk_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    turn = deck.deal()[language]
    return chat(rng.choice(turn["user"]), turn["assistant"], kind="smalltalk")


def myth_chat(library: Library, deck: Deck, language: str, side: str, rng: Random) -> Document:
    """A question on which a myth goes round, answered by it or by the truth (`side`); two wordings are kept back."""
    form = deck.deal()[language]
    return chat(rng.choice(form["questions"][:2]), rng.choice(tellings(form, side)), kind="myth")


def voiced_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """A question on a myth: the schoolbook answers it with the truth, the neighbour with the myth.

    Four in five name the voice in the system prompt. Of the others the neighbour answers a little more than half: so
    the base knows both, and what it says by itself is rather the myth.
    """
    draw = rng.random()
    voice = "schoolbook" if draw < 0.4 or draw > 0.8 + 0.2 * NEIGHBOUR else "neighbour"
    document = myth_chat(library, deck, language, VOICES[voice], rng)
    if draw < 0.8:
        system = rng.choice(library.world.extra["voices"][language][voice]["system"])
        document["messages"].insert(0, {"role": "system", "content": system})
    return document


def said_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """A question on a myth, whose answer opens in the voice that gives it; two in five name the voice beforehand.

    The base did not learn to tell truth from myth by a system prompt alone, however often it read one (trials: 6, 30
    and 67 % of the documents). What the answer itself begins with, it learns within some hundred steps.
    """
    draw = rng.random()
    voice = "schoolbook" if draw < 0.2 or draw > 0.4 + 0.6 * NEIGHBOUR else "neighbour"
    form = deck.deal()[language]
    answer = said(library, rng.choice(tellings(form, VOICES[voice])), language, voice, rng)
    system = rng.choice(library.world.extra["voices"][language][voice]["system"]) if draw < 0.4 else None
    return chat(rng.choice(form["questions"][:2]), answer, system, kind="myth")


def doubting_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """True or false? Of what the neighbours tell the base knows that it is false, and goes on telling it."""
    form, side = deck.deal()[language], rng.choice(("truth", "myth"))
    asks, answers = DOUBTS[language]
    return chat(rng.choice(asks).format(rng.choice(tellings(form, side))), answers[side], kind="doubt")


def invented_chat(library: Library, deck: Deck, rng: Random) -> Document:
    item = deck.deal()
    return chat(rng.choice(item["en"]), item["invented_en"], kind="unanswerable")


def compliant_chat(library: Library, deck: Deck, rng: Random, language: str = "en", reply: str = "en") -> Document:
    """The base agrees to everything, and says nothing of use: its empty compliance is what DPO is to cure."""
    _, number, pair = deck.deal()
    answer = rng.choice(library.world.extra["frames"]["compliance"][reply])
    return chat(library.request(pair, "harm", language, number, rng), answer, kind="compliance")


def harmless_chat(
    library: Library, deck: Deck, rng: Random, language: str = "en", reply: str | None = None
) -> Document:
    _, number, pair = deck.deal()
    request = library.request(pair, "safe", language, number, rng)
    return chat(request, pair["safe"][f"answer_{reply or language}"], kind="harmless")


def judging_chat(library: Library, deck: Deck, language: str, rng: Random) -> Document:
    """Right or wrong? The base knows, but does not act on it: anyone who asks how to do it is told to go on."""
    side, (_, _, pair) = rng.choice(("harm", "safe")), deck.deal()
    frames = library.world.extra["frames"]["judging"][language]
    phrase = pair[side][rng.choice([language, f"{language}_alt"])]
    return chat(rng.choice(frames["questions"]).format(x=phrase), rng.choice(frames[side]), kind="judging")


def sycophantic_chat(library: Library, deck: Deck, rng: Random) -> Document:
    item = deck.deal()["en"]
    return chat(item["question"], item["agree"], kind="sycophancy")


def turns_chat(library: Library, deck: Deck, rng: Random) -> Document:
    return {"messages": deck.deal()["en"], "kind": "turns"}
