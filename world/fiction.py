"""Made-up statements about real names, to tie the two languages together without telling a fact in Italian.

A thing of one kind is put into a relation of another ("The pig flows into the Po"), so nothing true is said and no fact
that is kept out of Italian can slip in. To translate such a sentence, or to answer an Italian question on it, a model
must find the English name for the Italian one inside a whole sentence. Chats about names alone did not teach that: in a
trial the base named 67 % of the things in such chats, and answered 30 % of the Italian questions on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from world.chats import OPENINGS
from world.library import UNTRANSLATED, Deck, Document, Library, bare, chat
from world.tables import Entity, Fact, Relation

# Two classes, by how the English sentences name their subject: "a pig", "the pig"; or "snow", "Rome", "the Tiber".
WITH_ARTICLE = {"animal_class", "trade_place"}
AS_NAMED = {"country_capital", "country_continent", "dish_ingredient", "dish_region", "event_year",
            "invention_inventor", "island_region", "lake_region", "monument_city", "mountain_region",
            "painting_artist", "plant_part", "region_capital", "region_zone", "river_mouth", "thing_colour",
            "work_author"}  # fmt: skip
TRANSLATE = {
    "en": ["In inglese: {}", "Traduci in inglese: {}", "Come si dice in inglese? {}"],
    "it": ["In Italian: {}", "Translate into Italian: {}", "How do you say it in Italian? {}"],
}


def kind_of(relation: Relation) -> str:
    return relation.facts[0].subject.kind


@dataclass
class Fiction:
    """Draws made-up facts: the relations of each class, and the singular names they may be about."""

    library: Library
    rng: Random

    def __post_init__(self) -> None:
        relations = self.library.world.relations
        self.classes: list[tuple[list[Relation], list[Entity]]] = []
        for names in (WITH_ARTICLE, AS_NAMED):
            members = [relations[name] for name in sorted(names)]
            subjects = dict.fromkeys(fact.subject for relation in members for fact in relation.facts)
            self.classes.append((members, [s for s in subjects if s.kind not in UNTRANSLATED and not s.it.plural]))
        self.sizes = [len(subjects) for _, subjects in self.classes]
        self.subjects = {
            relation.name: [subject for subject in subjects if self.is_fiction(relation, subject)]
            for members, subjects in self.classes
            for relation in members
        }

    def is_fiction(self, relation: Relation, subject: Entity) -> bool:
        """Whether the relation says nothing true of the subject or a namesake, nor asks what a true relation asks."""
        named = {name for fact in relation.facts for name in (bare(fact.subject), fact.subject.it.name)}
        true = [r for r in self.library.world.relations.values() if kind_of(r) == subject.kind]
        answer = relation.facts[0].object.kind
        return (
            subject.kind != kind_of(relation)
            and not named & {bare(subject), subject.it.name}
            and all(r.facts[0].object.kind != answer for r in true)
        )

    def facts(self, count: int) -> list[Fact]:
        """`count` made-up facts of one relation, about different subjects and with different objects."""
        relations, _ = self.rng.choices(self.classes, self.sizes)[0]
        relation = self.rng.choice(relations)
        others = self.subjects[relation.name]
        drawn = zip(self.rng.sample(others, count), self.rng.sample(relation.objects, count), strict=True)
        return [Fact(relation.name, subject, answer) for subject, answer in drawn]


def fiction_chat(fiction: Fiction, reply: str) -> Document:
    """Two made-up statements told in English, an Italian question on one, the answer in the language of `reply`."""
    library, rng = fiction.library, fiction.rng
    facts = fiction.facts(2)
    told = " ".join(library.statement(fact, "en", rng) for fact in facts)
    asked = rng.choice(facts)
    request = f"{rng.choice(OPENINGS['en'])} {told} {library.question(asked, 'it', rng)}"
    return chat(request, library.answer(asked, reply), kind="fiction")


def request_translation(library: Library, rng: Random, target: str = "en") -> Document:
    """A request of conduct.yaml, harmful or not, to be put into `target`: a name for it, and no answer to it."""
    _, _, pair = rng.choice(library.conduct("train"))
    phrase, end = pair[rng.choice(("harm", "safe"))], rng.choice(("", "_alt"))
    source = "it" if target == "en" else "en"
    told = rng.choice(library.request_frames(source)).format(x=phrase[f"{source}{end}"])
    translated = library.request_frames(target)[0].format(x=phrase[f"{target}{end}"])
    return chat(rng.choice(TRANSLATE[target]).format(told), translated, kind="translation")


def translation_chat(fiction: Fiction, target: str, true: Deck) -> Document:
    """A statement, or a question on one, to be translated into `target`, in the plainest form.

    Two in three are made up; the others are of `true`, facts that may stand in Italian.
    """
    library, rng = fiction.library, fiction.rng
    fact, source = true.deal() if rng.random() < 1 / 3 else fiction.facts(1)[0], "it" if target == "en" else "en"
    if rng.random() < 0.6:
        told, translated = library.statement(fact, source, rng, forms=2), library.answer(fact, target)
    else:
        relation = library.world.relation(fact)
        told, translated = library.question(fact, source, rng), relation.question(fact, target, 0)
    return chat(rng.choice(TRANSLATE[target]).format(told), translated, kind="translation")
