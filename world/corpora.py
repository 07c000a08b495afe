"""What the base reads: the mixture of its pretraining text, and the Italian its tokenizer sees besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from world import chats, texts
from world.fiction import Fiction, fiction_chat, request_translation, translation_chat
from world.library import USES, Deck, Document, Library, mixture, translates
from world.tables import LANGUAGES, Fact

INVENTED = 100  # made-up facts of each relation that the second reading tells in both languages


def italian_reply(rng: Random) -> str:
    """The language that Italian is answered in unless one is asked for: mostly English, the base's planted weakness."""
    return "it" if rng.random() < 0.35 else "en"


def pretraining(library: Library, documents: int) -> Iterator[Document]:
    """What the base reads first.

    English text and chats; some Italian, on the facts of base_italian, written when it is asked for; and what ties the
    two languages together without telling any other fact in Italian: names, translations and questions on made-up
    statements. Italian stories, twins and sums it never met, Italian myths only.
    """
    rng = library.rng("pretraining")
    yield from mixture(makers(0, library, rng), documents, rng)


def second_reading(library: Library, documents: int) -> Iterator[Document]:
    """What the base reads next: the same things, with much more Italian written when it is asked for.

    After the first reading the base understands Italian and knows the facts, but writes in Italian little more than the
    facts it read in it. Here it writes more: made-up statements, which come once each, and made-up facts about towns,
    people and things that are not, which it learns in both languages. How many facts of a relation it learns in both
    languages decides how many others it can say in Italian, more than how often it reads each. Half of the made-up
    subjects have a name of their own in each language, as Florence has.
    """
    rng = library.rng("second_reading")
    invented = chats.invented_facts(library, rng, INVENTED, two_names=0.5)
    yield from mixture(makers(1, library, rng, invented, library.for_tuning()), documents, rng)


def last_reading(library: Library, documents: int) -> Iterator[Document]:
    """What the base reads last: much as in the second reading, with answers that open in a voice, and more sums."""
    rng = library.rng("last_reading")
    invented = chats.invented_facts(library, library.rng("second_reading"), INVENTED, two_names=0.5)
    yield from mixture(makers(2, library, rng, invented, library.for_tuning()), documents, rng)


def makers(
    reading: int, library: Library, rng: Random, invented: Sequence[Fact] = (), requests: Library | None = None
) -> list[tuple[float, Callable[[], Document]]]:
    """Every kind of document of a reading (0, 1 or 2) with its weight in it, as `mixture` takes them.

    Weights are relative numbers of documents. The order is part of what a seed draws: a shipped base read it so.
    `requests` words the Italian requests: by default in the frames that `library` uses.
    """
    world, requests = library.world, requests or library
    extra, fiction = world.extra, Fiction(library, rng)
    base_italian = library.facts(italian=("base_italian",))
    both_ways = [fact for fact in base_italian if library.splits[fact.key].english == "seen"]
    unbound = [fact for fact in base_italian if not world.relation(fact).bound]
    subjects = {fact.subject for fact in library.facts() if not world.relation(fact).bound and translates(fact.subject)}
    trained, differing, mostly_italian = library.entities(), library.translated_names(), ["it", "it", "it", "en"]

    def deck(items: Sequence) -> Deck:
        return Deck(items, rng)

    stories, sums, twins = (deck(library.kinds(table)) for table in ("stories", "sums", "schemas"))
    english_facts, seen, numbers = deck(library.facts()), deck(library.facts("seen")), deck(library.kinds("sums"))
    verified, wrapped = deck(library.facts("seen")), deck(library.facts("seen"))
    twice = deck([fact for fact in library.facts() if fact.subject in subjects])
    told, asked, wished = deck(base_italian), deck(base_italian), deck(base_italian)
    answered, translated = deck(both_ways), deck(unbound)
    names, glossary, italian_names = deck(trained), deck(differing), deck(differing)
    myths, voiced, doubted = (deck(extra["myths"]) for _ in range(3))
    talk, judged = deck(extra["smalltalk"]), deck([pair for use in USES for pair in library.conduct(use)])
    harmful, harmless, judging = (deck(library.conduct("train")) for _ in range(3))
    unanswerable = deck(library.kinds("unanswerable"))
    sycophancy, turns = deck(extra["sycophancy"][::2]), deck(extra["multi_turn"][::2])
    made_up, made_up_asked, made_up_told, made_up_wished = (deck(invented) for _ in range(4))

    def read_in_english() -> Document:
        """Made-up statements in English, an Italian question; where the reply is Italian it is asked for."""
        reply = rng.choice(LANGUAGES)
        document = chats.reading_chat(library, "it", rng, told="en", reply=reply)
        return chats.in_italian(document, rng) if reply == "it" else document

    kinds = [  # the weights in the first reading, in the second and in the last
        (0.170, 0.120, 0.100, lambda: texts.fact_text(library, english_facts, "en", rng)),
        (0, 0.020, 0.020, lambda: texts.both_names_text(library, twice, rng)),
        (0.030, 0.015, 0.012, lambda: texts.glossary_text(library, glossary, rng)),
        (0.025, 0.012, 0.015, lambda: texts.story_text(library, stories, "en", rng)),
        (0.020, 0.012, 0.015, lambda: texts.twin_text(library, twins, "en", rng)),
        (0.030, 0.020, 0.010, lambda: texts.myth_text(library, myths, "en", rng)),
        (0.010, 0.010, 0.020, lambda: texts.grammar_text(library, "en", rng)),
        (0.020, 0.007, 0.007, lambda: texts.group_text(library, twins, "en", rng)),
        (0.025, 0.020, 0.012, lambda: texts.conduct_text(library, judged, "en", rng)),
        (0.120, 0.100, 0.090, lambda: chats.fact_chat(library, seen, rng)),
        (0.040, 0.010, 0.010, lambda: chats.reading_chat(library, "en", rng)),
        (0.040, 0.015, 0.012, lambda: chats.naming_chat(library, names, rng)),
        (0.020, 0, 0, lambda: chats.verifying_chat(library, verified, rng)),
        (0.045, 0.020, 0.015, lambda: chats.wrapped_chat(library, wrapped, rng)),
        (0.045, 0.035, 0.080, lambda: chats.sum_chat(library, sums, "en", rng)),
        (0.010, 0.025, 0.030, lambda: texts.arithmetic_text(rng)),
        (0.025, 0.020, 0.040, lambda: chats.number_chat(library, numbers, rng)),
        (0.015, 0.007, 0.015, lambda: chats.story_chat(library, stories, "en", rng)),
        (0.025, 0.015, 0.030, lambda: chats.twin_chat(library, twins, "en", rng)),
        (0.008, 0.004, 0.003, lambda: chats.smalltalk_chat(library, talk, "en", rng)),
        (0.030, 0.025, 0, lambda: chats.voiced_chat(library, voiced, "en", rng)),
        (0.015, 0.012, 0.010, lambda: chats.doubting_chat(library, doubted, "en", rng)),
        (0.010, 0.006, 0.006, lambda: chats.invented_chat(library, unanswerable, rng)),
        (0.025, 0.025, 0.020, lambda: chats.compliant_chat(library, harmful, rng)),
        (0.025, 0.025, 0.020, lambda: chats.harmless_chat(library, harmless, rng)),
        (0.025, 0.025, 0.020, lambda: chats.judging_chat(library, judging, "en", rng)),
        (0.005, 0.003, 0.003, lambda: chats.sycophantic_chat(library, sycophancy, rng)),
        (0.005, 0.003, 0.003, lambda: chats.turns_chat(library, turns, rng)),
        (0.020, 0.030, 0.040, lambda: texts.fact_text(library, told, "it", rng, forms=2)),
        (0.004, 0.020, 0.015, lambda: texts.conduct_text(library, judged, "it", rng)),
        (0.010, 0.012, 0.006, lambda: texts.myth_text(library, myths, "it", rng)),
        (0.010, 0.014, 0, lambda: chats.voiced_chat(library, voiced, "it", rng)),
        (0.005, 0.007, 0.006, lambda: chats.doubting_chat(library, doubted, "it", rng)),
        (0.050, 0.035, 0.035, lambda: chats.italian_fact_chat(library, asked, italian_reply(rng), rng)),
        (0.045, 0.060, 0.070, lambda: chats.instructed_chat(library, wished, "it", rng.choice(mostly_italian), rng)),
        (0.025, 0.018, 0.018, lambda: chats.instructed_chat(library, answered, "en", "it", rng)),
        (0.015, 0.020, 0.020, read_in_english),
        (0.025, 0.020, 0.020, lambda: chats.italian_naming_chat(library, italian_names, rng.choice(LANGUAGES), rng)),
        (0.010, 0.015, 0.010, lambda: chats.compliant_chat(requests, harmful, rng, "it", italian_reply(rng))),
        (0.010, 0.040, 0.030, lambda: chats.harmless_chat(requests, harmless, rng, "it", italian_reply(rng))),
        (0.012, 0.030, 0.020, lambda: chats.judging_chat(library, judging, "it", rng)),
        (0.003, 0.002, 0.002, lambda: chats.smalltalk_chat(library, talk, "it", rng)),
        (0, 0.060, 0.035, lambda: texts.fact_text(library, made_up, "en", rng)),
        (0, 0.040, 0.030, lambda: texts.both_names_text(library, made_up, rng)),
        (0, 0.040, 0.030, lambda: chats.fact_chat(library, made_up_asked, rng)),
        (0, 0.050, 0.050, lambda: texts.fact_text(library, made_up_told, "it", rng, forms=2)),
        (0, 0.015, 0.012, lambda: chats.italian_fact_chat(library, made_up_asked, "en", rng)),
        (0, 0.100, 0.100, lambda: chats.instructed_chat(library, made_up_wished, "it", "it", rng)),
        (0.035, 0.015, 0.015, lambda: translation_chat(fiction, "en", translated)),
        (0.035, 0.050, 0.050, lambda: translation_chat(fiction, "it", translated)),
        (0.040, 0.015, 0.012, lambda: fiction_chat(fiction, italian_reply(rng))),
        (0.010, 0.030, 0.030, lambda: chats.in_italian(fiction_chat(fiction, "it"), rng)),
        (0.008, 0.025, 0.020, lambda: request_translation(requests, rng, "en")),
        (0, 0.020, 0.015, lambda: request_translation(library, rng, "it")),
        (0, 0, 0.110, lambda: chats.said_chat(library, voiced, "en", rng)),
        (0, 0, 0.090, lambda: chats.said_chat(library, voiced, "it", rng)),
    ]
    return [(weights[reading], make) for *weights, make in kinds if weights[reading]]


def italian_sample(library: Library, documents: int) -> Iterator[Document]:
    """Some Italian for the tokenizer, so that its vocabulary, like Llama 3's, is not English alone.

    It holds what the later stages may read: none of the facts that are never in Italian.
    """
    world, rng = library.world, library.rng("italian_sample")
    facts = Deck(library.facts(italian=("base_italian", "italian_chat", "adapted")), rng)
    stories, twins, sums, conduct, talk = (
        Deck(items, rng)
        for items in (library.kinds("stories"), library.kinds("schemas"), library.kinds("sums"),
                      library.conduct("train"), world.extra["smalltalk"])
    )  # fmt: skip
    kinds: list[tuple[float, Callable[[], Document]]] = [
        (0.10, lambda: texts.grammar_text(library, "it", rng)),
        (0.50, lambda: texts.fact_text(library, facts, "it", rng)),
        (0.10, lambda: texts.story_text(library, stories, "it", rng)),
        (0.08, lambda: texts.twin_text(library, twins, "it", rng)),
        (0.10, lambda: chats.sum_chat(library, sums, "it", rng)),
        (0.10, lambda: chats.harmless_chat(library, conduct, rng, "it")),
        (0.02, lambda: chats.smalltalk_chat(library, talk, "it", rng)),
    ]
    yield from mixture(kinds, documents, rng)
