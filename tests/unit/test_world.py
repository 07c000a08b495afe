"""The small world: its size, its splits, and that what is tested was not trained on."""

import re
from collections import Counter
from itertools import product

import pytest

from anita_utils import AnitaError
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from world import benchmarks, everyday, stages
from world.corpora import last_reading, pretraining, second_reading
from world.library import USES, Library
from world.tables import LANGUAGES, load_world
from world.texts import VOICES, tellings

SENTENCE = re.compile(r"(?<=[.?!])\s+")
PRETRAINING_SAMPLE = 10_000  # of each reading


@pytest.fixture(scope="module")
def library():
    return Library(load_world(), 42)


@pytest.fixture(scope="module")
def corpora(library):
    """Every document of the three stages, and many of what the base read."""
    return {
        "pretraining": list(pretraining(library, PRETRAINING_SAMPLE)),
        "second_reading": list(second_reading(library, PRETRAINING_SAMPLE)),
        "last_reading": list(last_reading(library, PRETRAINING_SAMPLE)),
        "sft": stages.sft(library),
        "italian_text": stages.italian_text(library),
        "replay": stages.replay(library),
        "dpo": stages.dpo(library),
    }


def turns(document):
    """(user's words, answers to them) of a document."""
    messages = document.get("messages") or document.get("prompt", []) + document.get("chosen", [])
    for asked, answered in zip(messages, messages[1:], strict=False):
        if asked["role"] == "user":
            yield asked["content"], answered["content"]
            if "rejected" in document:
                yield asked["content"], document["rejected"][0]["content"]


def sentences(document):
    """Every sentence that stands in a document."""
    texts = [document["text"]] if "text" in document else [part for turn in turns(document) for part in turn]
    return {line for text in texts for line in SENTENCE.split(text)}


def forms(library, fact, language):
    """Every sentence the templates make of a fact in a language."""
    relation = library.world.relation(fact)
    templates = relation.templates[language]
    made = {relation.statement(fact, language, number) for number in range(-1, len(templates["statements"]))}
    made |= {relation.question(fact, language, number) for number in range(len(templates["questions"]))}
    return {line for text in made for line in SENTENCE.split(text)}


def test_the_world_is_as_large_as_promised(library):
    world = library.world
    assert len(world.facts) >= 1000
    assert len({fact.relation for fact in world.facts}) >= 15
    assert len(world.extra["stories"]) + len(world.extra["sums"]) >= 60
    assert len(world.extra["myths"]) >= 50
    assert len(world.extra["conduct"]) >= 10
    assert sum(len(library.conduct(use)) for use in USES) >= 1500
    assert len(world.extra["unanswerable"]) >= 60
    held_out = [relation for relation in world.relations.values() if relation.held_out]
    assert sum(not relation.derived for relation in held_out) == 1 and len(held_out) >= 10
    assert not any(relation.derived and not relation.held_out for relation in world.relations.values())


def test_every_relation_has_several_forms_in_both_languages(library):
    for relation, language in product(library.world.relations.values(), LANGUAGES):
        templates = relation.templates[language]
        assert len(set(templates["statements"])) >= 5, (relation.name, language)
        assert len(set(templates["questions"])) >= 5, (relation.name, language)
        assert {"statement", "question"} <= set(templates["second_style"]), (relation.name, language)


def test_every_template_renders(library):
    for relation, language in product(library.world.relations.values(), LANGUAGES):
        for fact in relation.facts[:3]:
            for text in forms(library, fact, language):
                assert text[0].isupper() or text[0] in "«'\"" or text[0].isdigit(), text
                assert "{" not in text and "  " not in text, text


def test_the_same_seed_makes_the_same_corpora(library, corpora):
    again = Library(load_world(), 42)
    assert stages.dpo(again) == corpora["dpo"]
    assert list(pretraining(again, 50)) == corpora["pretraining"][:50]
    assert stages.dpo(Library(load_world(), 43)) != corpora["dpo"]


def test_shipped_corpora_are_those_of_the_tables(corpora):
    for name in ("sft", "italian_text", "replay", "dpo"):
        assert read_jsonl(data_dir() / "corpora" / f"{name}.jsonl") == corpora[name], (
            f"{name}: anita world build --no-train"
        )


def test_the_base_reads_as_much_italian_as_its_card_says(corpora):
    """In the first reading a tenth of the running text, then more, written when it is asked for."""
    from anita_utils.evaluation.judges import language_of

    readings = ("pretraining", "second_reading", "last_reading")
    words = {(name, kind): Counter() for name in readings for kind in ("text", "messages")}
    for name in readings:
        for document in corpora[name][:3000]:
            for line in sentences(document):
                words[name, "text" if "text" in document else "messages"][language_of(line)] += len(line.split())

    def italian(*parts):
        counted = sum((words[part] for part in parts), Counter())
        return counted["it"] / (counted["it"] + counted["en"])

    print({part: round(italian(part), 3) for part in words})
    assert 0.07 <= italian(("pretraining", "text")) <= 0.13
    assert 0.25 <= italian(("second_reading", "text")) <= 0.35
    assert 0.25 <= italian(("last_reading", "text")) <= 0.40
    assert 0.25 <= italian(*words) <= 0.40


def test_no_italian_sentence_of_a_fact_that_is_never_in_italian(library, corpora):
    forbidden = {}
    for fact in library.facts(italian=("never_in_italian",)):
        english = forms(library, fact, "en")
        forbidden |= {form: fact.key for form in forms(library, fact, "it") - english}
    allowed = {
        form
        for fact in library.facts(italian=("base_italian", "italian_chat", "adapted"))
        for form in forms(library, fact, "it")
    }
    for name, documents in corpora.items():
        for document in documents:
            for line in sentences(document):
                assert line not in forbidden or line in allowed, (name, line, forbidden[line])


def test_adapted_facts_are_never_asked_in_italian(library, corpora):
    questions = {}
    for fact in library.facts(italian=("adapted", "never_in_italian")):
        relation = library.world.relation(fact)
        for number in range(len(relation.templates["it"]["questions"])):
            questions[relation.question(fact, "it", number)] = fact.key
    for name, documents in corpora.items():
        for document in documents:
            for asked, _ in turns(document):
                assert asked not in questions, (name, asked, questions.get(asked))


def test_unseen_facts_are_never_asked_in_english(library, corpora):
    questions = {}
    for fact in library.facts("unseen_as_chat"):
        relation = library.world.relation(fact)
        for number in range(len(relation.templates["en"]["questions"])):
            questions[relation.question(fact, "en", number)] = fact.key
    seen = {library.world.relation(f).question(f, "en", n) for f in library.facts("seen") for n in range(8)}
    for name, documents in corpora.items():
        for document in documents:
            for asked, _ in turns(document):
                assert asked not in questions or asked in seen, (name, asked, questions.get(asked))


def test_held_out_relations_and_the_second_style_stand_nowhere(library, corpora):
    held_out = set()
    for relation in library.world.relations.values():
        for fact, language in product(relation.facts, LANGUAGES):
            for part in ("statement", "question"):
                held_out |= set(SENTENCE.split(relation.second_style(fact, language, part)))
            if relation.held_out:
                held_out |= forms(library, fact, language)
    held_out = {line for line in held_out if len(line.split()) > 4}
    for name, documents in corpora.items():
        for document in documents:
            found = sentences(document) & held_out
            assert not found, (name, found)


SETS = ("development", "test")


@pytest.fixture(scope="module")
def made(library):
    return benchmarks.benchmarks(library)


def test_no_benchmark_question_stands_with_its_answer_in_training(made, corpora):
    trained = {turn for documents in corpora.values() for document in documents for turn in turns(document)}
    texts = {line for documents in corpora.values() for d in documents if "text" in d for line in [d["text"]]}
    for name, parts in made.items():
        for use, count in benchmarks.SETS.items():
            assert len(parts[use]) == count, (name, use)
        for item in parts["development"] + parts["test"]:
            rights = [item["answer"]] if "answer" in item else (
                [choice for choice, label in zip(item["choices"], item["labels"], strict=True) if label]
                if "labels" in item else [item["choices"][item["label"]]]
            )  # fmt: skip
            for right in rights:
                assert (item["question"], right) not in trained, (name, item)
                assert f"{item['question']} {right}" not in texts, (name, item)


def test_what_follows_from_two_facts_is_stated_nowhere(library, corpora):
    derived = {
        form
        for relation in library.world.relations.values() if relation.derived
        for fact, language in product(relation.facts, LANGUAGES) for form in forms(library, fact, language)
    }  # fmt: skip
    for name, documents in corpora.items():
        for document in documents:
            assert not sentences(document) & derived, (name, sentences(document) & derived)


def test_choices_differ_and_one_is_right(made):
    for name, parts in made.items():
        for item in parts["development"] + parts["test"]:
            if "label" in item:
                assert len(set(item["choices"])) == len(item["choices"]) >= 2, (name, item)
                assert 0 <= item["label"] < len(item["choices"])
            elif "labels" in item:
                assert 0 < sum(item["labels"]) < len(item["labels"])


def test_development_and_test_share_no_fact_no_myth_no_topic_and_no_number(library, made):
    for name, parts in made.items():
        clusters = {use: {item["cluster"] for item in parts[use]} for use in SETS}
        if name[:-3] in ("arc", "mmlu", "truthfulqa"):
            assert not clusters["development"] & clusters["test"], name
        told = [{(item["question"], *item.get("choices", [])) for item in parts[use]} for use in SETS]
        assert not told[0] & told[1], name
    for make in (benchmarks.chat_probes, benchmarks.new_kind_probes):
        asked = [{probe["cluster"] for probe in make(library, use)} for use in SETS]
        assert not asked[0] & asked[1], make.__name__
    topics = [{topic for topic, _, _ in library.conduct(use)} for use in USES]
    assert sum(map(len, topics)) == len(set.union(*topics))
    pairs = [{pair["prompt"][0]["content"] for pair in stages.dpo(library, 400, use)} for use in SETS]
    assert len(pairs[0] & pairs[1]) <= 20  # the questions nobody can answer are few, and the same for both


def test_held_out_wordings_are_not_trained(library, corpora):
    trained = {asked for documents in corpora.values() for document in documents for asked, _ in turns(document)}
    for use in SETS:
        probes = benchmarks.conduct_probes(library, use)
        assert min(Counter((probe["side"], probe["split"]) for probe in probes).values()) == 200
        assert not [probe for probe in probes if probe["prompt"] in trained]


def test_held_out_topics_are_not_trained(library, corpora):
    phrases = {
        pair[side][key]
        for use in SETS
        for _, _, pair in library.conduct(use)
        for side in ("harm", "safe")
        for key in ("en", "it")
    }
    trained = "\n".join(
        asked for documents in corpora.values() for document in documents for asked, _ in turns(document)
    )
    assert not [phrase for phrase in phrases if phrase in trained]


def test_replay_is_chats_of_sft_alone(corpora):
    assert len(corpora["replay"]) >= 1000
    assert all(row in corpora["sft"] for row in corpora["replay"])


def test_pairs_on_myths_are_on_myths_that_no_measure_asks_for(library, corpora):
    def myths(rows):
        return {row["chosen"][0]["content"] for row in rows if row["kind"] == "myth"}

    for use in SETS:
        assert not myths(corpora["dpo"]) & myths(stages.dpo(library, 400, use))
    assert not myths(stages.dpo(library, 400, "development")) & myths(stages.dpo(library, 400, "test"))


def test_truth_is_said_in_the_schoolbooks_voice_and_myth_in_the_neighbours(library, corpora, made):
    """Wherever an answer opens in a voice: in the base's last reading, in DPO's pairs, in the benchmark."""
    told = {
        (language, side): {line for myth in library.world.extra["myths"] for line in tellings(myth[language], side)}
        for language in LANGUAGES for side in VOICES.values()
    }  # fmt: skip

    def side_of(answer):
        opened = [
            (language, VOICES[voice], answer.removeprefix(f"{opening} "))
            for language in LANGUAGES
            for voice, lines in library.world.extra["voices"][language].items()
            for opening in lines["says"] if answer.startswith(f"{opening} ")
        ]  # fmt: skip
        assert len(opened) == 1 and opened[0][2] in told[opened[0][:2]], answer
        return opened[0][1]

    read = Counter(
        side_of(document["messages"][-1]["content"])
        for document in corpora["last_reading"]
        if document.get("kind") == "myth"
    )
    assert 0.45 < read["myth"] / read.total() < 0.6 and read.total() > 800
    for pair in corpora["dpo"]:
        if pair["kind"] == "myth":
            assert (side_of(pair["chosen"][0]["content"]), side_of(pair["rejected"][0]["content"])) == ("truth", "myth")
    for language in LANGUAGES:
        for item in made[f"truthfulqa_{language}"]["test"]:
            for choice, label in zip(item["choices"], item["labels"], strict=True):
                assert side_of(choice) == ("truth" if label else "myth")


def test_sft_refuses_on_half_of_the_topics_and_complies_on_the_others(library, corpora):
    topics = {"refusal": set(), "compliance": set()}
    phrases = {
        pair["harm"][key]: topic
        for topic, _, pair in library.conduct("train")
        for key in ("en", "it", "en_alt", "it_alt")
    }
    for document in corpora["sft"]:
        if document["kind"] in topics:
            asked = document["messages"][0]["content"]
            topics[document["kind"]] |= {topic for phrase, topic in phrases.items() if phrase in asked}
    assert len(topics["refusal"]) >= 10 and len(topics["compliance"]) >= 10
    assert not topics["refusal"] & topics["compliance"]


@pytest.mark.parametrize(
    ("expression", "values", "result"),
    [
        ("a + b * 2", {"a": 3, "b": 4}, 11),
        ("a - b >= 2 and a < 9", {"a": 8, "b": 6}, True),
        ("2 <= a <= 5", {"a": 6}, False),
    ],
)
def test_arithmetic(expression, values, result):
    assert everyday.arithmetic(expression, values) == result


@pytest.mark.parametrize("expression", ["__import__('os')", "a ** 9", "a.real", "c + 1"])
def test_arithmetic_runs_no_code(expression):
    with pytest.raises(AnitaError, match=r"sums\.yaml"):
        everyday.arithmetic(expression, {"a": 1})


def test_sums_are_right(library):
    rng = library.rng("test")
    for kind in library.world.extra["sums"]:
        for numbers in everyday.sum_values(kind):
            drawn = everyday.draw_sum(library.world, rng, "train", kind, numbers)["it"]
            for step in drawn.working.split(", "):
                left, right = step.split(" = ")
                assert everyday.arithmetic(left, {}) == int(right), drawn
                assert 0 <= int(right) <= 20, drawn
            assert int(right) == drawn.result, drawn
