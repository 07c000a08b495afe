"""Leaks of every kind are found, templates and facts are none; and the course's own corpora hold no benchmark item."""

import importlib.util
import json

import pytest

from anita_utils import checkout, hub
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from anita_utils.rows import read_jsonl
from anita_utils.studies import contamination
from anita_utils.studies.contamination import Item, course_overlaps, find_leaks, overlaps, read_items, texts_of

GOOSE = Item("goose", "What kind of animal is a goose?", ("A goose is a bird.",), ("A goose is a mammal.",))
STORY = Item(
    "story",
    "What happens next? Marta walked to the old harbour before dawn and looked for the boat that her uncle had left.",
    ("She untied the rope and rowed out to sea.",),
    ("She baked a cake for the whole school.",),
)


@pytest.fixture(scope="module")
def benchmark():
    file = checkout() / "benchmarks" / "contamination_speed.py"
    spec = importlib.util.spec_from_file_location("contamination_speed", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def items():
    """Every item of the course's benchmarks."""
    files = sorted((data_dir() / "benchmarks" / "items").glob("*.test.jsonl"))
    return [item for file in files for item in read_items(file)]


def kinds(document, *items):
    return [leak.kind for leak in find_leaks([document], items)]


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ("What kind of animal is a goose? A goose is a bird.", "verbatim"),
        ("WHAT KIND OF ANIMAL IS A GOOSE?\n- a goose is a bird!", "recased"),
        ("Q. What kind of animal is a goose? Think well.\nAnswer: a goose is a bird. Thank you.", "embedded"),
        ("A goose is a bird. And what kind of animal is a goose?", "embedded"),
    ],
)
def test_a_question_with_its_answer_is_a_leak(document, kind):
    assert kinds(document, GOOSE) == [kind]


@pytest.mark.parametrize(
    "document",
    [
        "What kind of animal is a goose?",
        "A goose is a bird.",
        "What kind of animal is a goose? A goose is a mammal.",  # a wrong answer
        "What kind of animal is a duck? A duck is a bird.",
        "Is a goose a kind of animal? Yes, and a goose is a bird.",
        "",
    ],
)
def test_a_question_or_an_answer_or_a_template_alone_is_none(document):
    assert kinds(document, GOOSE) == []


def test_another_apostrophe_is_no_other_word():
    item = Item("mouth", "Quale città si trova alla foce dell'Arno?", ("Marina di Pisa.",))
    assert kinds("Quale città si trova alla foce dellʼArno? Marina di Pisa.", item) == ["recased"]


def test_changed_words_are_seen_through_but_another_name_is_another_question():
    told = f"{STORY.question} {STORY.answers[0]}"
    changed = told.replace("old", "ancient").replace("uncle", "grandfather")
    assert kinds(changed, STORY) == ["overlap"]
    assert kinds(changed.replace("rope and rowed out to sea", "parcel and gave up"), STORY) == []
    others = [Item(str(n), f"Here {name} slept.", ("Yes",)) for n, name in enumerate(["Marta", "Carla"])]
    assert kinds(told.replace("Marta", "Carla"), STORY, *others) == []
    assert kinds(told, STORY, *others) == ["verbatim"]


def test_what_the_question_says_itself_is_no_answer():
    item = Item("choice", "Which of the two is larger, the Sun or the Moon?", ("the Sun",), ("the Moon",))
    assert kinds("Which of the two is larger, the Sun or the Moon? Nobody here knows.", item) == []
    assert kinds("Which of the two is larger, the Sun or the Moon? It is the Sun.", item) == ["embedded"]


def test_accents_and_apostrophes_make_no_difference():
    item = Item("city", "Qual è la città più alta dell'Umbria?", ("È Perugia.",))
    assert kinds("qual e la citta piu alta dell’Umbria - e perugia", item) == ["recased"]


def test_a_document_that_repeats_a_leak_hides_nothing():
    """Sequences count by their rarity; a leak that is there a hundred times must not make itself common."""
    told = f"So it goes. {STORY.question.replace('old', 'ancient')} Then: {STORY.answers[0]}"
    assert len(find_leaks([told] * 100, [STORY, GOOSE])) == 100


def test_planted_leaks_of_each_kind_are_found_and_templates_are_not(benchmark):
    texts, items, planted = benchmark.material(4000, 300, seed=1, share=0.2)
    found = {(leak.document, leak.item): leak.kind for leak in find_leaks(texts, items)}
    for kind in benchmark.KINDS:
        own = [(document, item) for document, (item, how) in planted.items() if how == kind]
        seen = [found[pair] for pair in own if pair in found]
        assert len(own) >= 150 and len(seen) >= 0.99 * len(own), (kind, len(seen), len(own))
        assert set(seen) == {kind}
    assert not set(found) - {(document, item) for document, (item, _) in planted.items()}


def test_planted_leaks_of_the_courses_own_items_are_found(items):
    documents = []
    for kind in range(3):
        for item in items[kind::5]:
            told = f"{item.question} {item.answers[-1]}"
            documents.append([told, told.upper(), f"Once upon a time. {told} And so on for ever."][kind])
    wanted = [number for kind in range(3) for number in range(kind, len(items), 5)]
    found = {(leak.document, leak.item) for leak in find_leaks(documents, items)}
    missed = [documents[n] for n, item in enumerate(wanted) if (n, item) not in found]
    assert len(missed) <= 0.01 * len(documents), missed[:5]


def test_no_corpus_of_the_course_holds_an_item_of_its_benchmarks(runs):
    rows = course_overlaps(load_profile("cpu"))
    corpora = {"sft", "italian_text", "italian_replay", "dpo", "pretraining_sample"}
    assert {row["corpus"] for row in rows} == corpora and len(rows) == 5 * 12
    assert all(row["documents"] >= 1000 and row["items"] >= 200 for row in rows)
    assert [row for row in rows if row["leaked"]] == []


def test_a_corpus_of_ones_own_is_searched_and_nothing_is_downloaded(runs, tmp_path, monkeypatch):
    profile = load_profile("laptop")
    monkeypatch.setattr(contamination, "overlaps", lambda corpora, benchmarks: [*corpora])
    shipped = course_overlaps(profile)
    assert len(shipped) == 5
    [name, *_] = profile.datasets
    sample = hub.sample_file(name, profile.datasets[name])
    sample.parent.mkdir(parents=True)
    own = tmp_path / "mine.jsonl"
    for file in (sample, own):
        file.write_text('{"text": "Ciao."}', "utf-8")
    profile.stages[profile.order[0]].data = [str(own), *profile.datasets]
    assert course_overlaps(profile) == [*shipped, str(own), name]


def test_a_planted_leak_is_counted_and_the_cache_follows_the_files(runs, tmp_path):
    name = "arc_it"
    benchmark = {name: data_dir() / "benchmarks" / "items" / f"{name}.test.jsonl"}
    item = read_jsonl(benchmark[name])[3]
    chat = {"prompt": [{"role": "user", "content": item["question"]}]}
    right, wrong = item["choices"][item["label"]], item["choices"][item["label"] - 1]
    for side, text in (("chosen", right), ("rejected", wrong)):
        chat[side] = [{"role": "assistant", "content": text}]
    assert [text.splitlines()[-1] for text in texts_of(chat)] == [right, wrong]
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(chat), "utf-8")
    [row] = overlaps({"pairs": [file]}, benchmark)
    assert (row["leaked"], row["items"], row["documents"], row["kinds"]) == (1, 200, 2, {"verbatim": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "find_leaks", lambda *_: pytest.fail("not from the cache"))
        assert overlaps({"pairs": [file]}, benchmark) == [row]
    file.write_text(json.dumps({"text": "Ciao."}), "utf-8")
    assert overlaps({"pairs": [file]}, benchmark)[0]["leaked"] == 0
