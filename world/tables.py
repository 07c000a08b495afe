"""The tables of Piccola Italia, read and checked: entities, relations with their facts, stories, sums, conduct.

>>> world = load_world(); len(world.facts), world.relations["region_capital"].render("en", "answer", 0)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import pandas as pd
import yaml

from anita_utils import AnitaError
from anita_utils.paths import data_dir
from world.italian import EnglishNoun, Noun, sentence

LANGUAGES = ("en", "it")
FORMS = ("answer", "statements", "questions", "second_style")


@dataclass(frozen=True)
class Entity:
    """A thing of the world with its name in both languages; `kind` is the file it stands in (city, dish …)."""

    kind: str
    en: Noun
    it: Noun

    def noun(self, language: str) -> Noun:
        return self.en if language == "en" else self.it

    def name(self, language: str) -> str:
        return self.noun(language).name


@dataclass(frozen=True)
class Fact:
    """One true fact: `subject` stands in `relation` to `object`, its only right answer."""

    relation: str
    subject: Entity
    object: Entity

    @property
    def key(self) -> str:
        return f"{self.relation}/{self.subject.en.name}"


@dataclass
class Relation:
    """A kind of fact with its sentence templates in both languages.

    family: the benchmark that draws on it (mmlu or arc). bound: the fact is about the words themselves (plurals), so
    its Italian form is another fact. held_out: no training corpus uses it. derived: its facts follow from two others.
    """

    name: str
    topic: str
    family: str
    bound: bool
    held_out: bool
    derived: bool
    templates: dict[str, dict]
    facts: list[Fact] = field(default_factory=list)

    @property
    def objects(self) -> list[Entity]:
        """The different right answers, in order of appearance: the choices a question of this relation has."""
        return list(dict.fromkeys(fact.object for fact in self.facts))

    def statement(self, fact: Fact, language: str, index: int) -> str:
        """The fact as the statement of that number; -1 is the canonical answer."""
        forms = self.templates[language]
        template = forms["answer"] if index < 0 else forms["statements"][index % len(forms["statements"])]
        return self.fill(template, fact, language)

    def answer(self, fact: Fact, language: str, other: Entity | None = None) -> str:
        """The canonical chat answer; with `other` in the place of the right object it is an invented one."""
        fact = fact if other is None else Fact(fact.relation, fact.subject, other)
        return self.fill(self.templates[language]["answer"], fact, language)

    def question(self, fact: Fact, language: str, index: int) -> str:
        forms = self.templates[language]["questions"]
        return self.fill(forms[index % len(forms)], fact, language)

    def second_style(self, fact: Fact, language: str, part: str) -> str:
        return self.fill(self.templates[language]["second_style"][part], fact, language)

    def fill(self, template: str, fact: Fact, language: str) -> str:
        """A template of this relation about the fact."""
        return sentence(template, s=fact.subject.noun(language), o=fact.object.noun(language))


@dataclass
class World:
    """Everything the corpora are made from. `extra` holds the YAML tables by file name (stories, conduct, myths …)."""

    entities: dict[str, dict[str, Entity]]
    relations: dict[str, Relation]
    extra: dict[str, list | dict]
    names: pd.DataFrame

    @property
    def facts(self) -> list[Fact]:
        """Every fact that a training corpus may use, relations held out for later lessons left aside."""
        return [fact for relation in self.relations.values() if not relation.held_out for fact in relation.facts]

    @cached_property
    def people(self) -> dict[tuple[str, str], list[str]]:
        """First names by (use, gender tag), sorted: use is train or test."""
        return {key: sorted(table["name"]) for key, table in self.names.groupby(["use", "g"])}

    def relation(self, fact: Fact) -> Relation:
        return self.relations[fact.relation]


def read_yaml(path: Path) -> list | dict:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise AnitaError(f"{path.name}: not valid YAML ({str(error).splitlines()[0]}): correct the file") from None


def _read_entities(folder: Path) -> dict[str, dict[str, Entity]]:
    entities: dict[str, dict[str, Entity]] = {}
    for path in sorted(folder.glob("*.csv")):
        kind = path.stem.split("_extra_")[0]
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
        if list(table.columns) != ["en", "it", "g", "in_it"]:
            raise AnitaError(f"{path.name}: columns {list(table.columns)}, expected en,it,g,in_it: correct the header")
        for row in table.itertuples(index=False):
            entity = Entity(kind, EnglishNoun(row.en, row.g), Noun(row.it, row.g, row.in_it))
            if row.en in entities.setdefault(kind, {}):
                raise AnitaError(f"{path.name}: {row.en!r} is there twice among {kind}: keep one row")
            entities[kind][row.en] = entity
    return entities


def _read_relation(path: Path, entities: dict[str, dict[str, Entity]]) -> Relation:
    table = read_yaml(path)
    relation = Relation(
        name=table["relation"],
        topic=table["topic"],
        family=table["family"],
        bound=table.get("bound", False),
        held_out=table.get("held_out", False),
        derived="derive" in table,
        templates={language: table[language] for language in LANGUAGES},
    )
    if relation.derived:
        return relation
    seen = set()
    for subject, answer in table["facts"]:
        for kind, name in ((table["subject"], subject), (table["object"], answer)):
            if str(name) not in entities.get(kind, {}):
                raise AnitaError(
                    f"{path.name}: {name!r} is not in entities/{kind}.csv: add the row or correct the fact"
                )
        if subject in seen:
            raise AnitaError(f"{path.name}: {subject!r} has two answers: a fact has one")
        seen.add(subject)
        relation.facts.append(
            Fact(relation.name, entities[table["subject"]][str(subject)], entities[table["object"]][str(answer)])
        )
    return relation


def _derive(table: dict, relation: Relation, relations: dict[str, Relation]) -> None:
    """The facts that follow from two told ones: a monument's region from its city's. Nobody states them.

    table: `derive` names the two relations, a `~` before one that is read from object to subject; `except` names the
    subjects of which the conclusion would be wrong or odd.
    """

    def pairs(name: str) -> list[tuple[Entity, Entity]]:
        told = [(fact.subject, fact.object) for fact in relations[name.lstrip("~")].facts]
        return [(other, one) for one, other in told] if name.startswith("~") else told

    first, second = map(pairs, table["derive"])
    follows = {subject.en.name: answer for subject, answer in second}
    relation.facts = [
        Fact(relation.name, subject, follows[between.en.name])
        for subject, between in first
        if between.en.name in follows and subject.en.name not in table.get("except", ())
    ]


def load_world(folder: Path | None = None) -> World:
    """The world of `folder` (the course's own data/world by default). AnitaError names a file that is wrong."""
    return _load_world(folder or data_dir() / "world")


@cache
def _load_world(folder: Path) -> World:
    entities = _read_entities(folder / "entities")
    relations = {}
    paths = sorted((folder / "relations").glob("*.yaml"))
    for path in paths:
        relation = _read_relation(path, entities)
        relations[relation.name] = relation
    for path in paths:
        if "derive" in (table := read_yaml(path)):
            _derive(table, relations[table["relation"]], relations)
    extra = {path.stem: read_yaml(path) for path in sorted(folder.glob("*.yaml"))}
    return World(entities, relations, extra, pd.read_csv(folder / "names.csv", dtype=str))
