"""Leaks of every kind are found, templates and facts are none; the course's corpora hold no item; nearest sentences."""

import importlib.util
import json
from collections import Counter
from math import log, sqrt

import numpy as np
import pytest

from anita_utils import AnitaError, checkout, hub
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from anita_utils.rows import read_jsonl
from anita_utils.studies import contamination, zero_shot
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
    corpora = {"sft", "italian_text", "replay", "dpo", "pretraining_sample"}
    assert {row["corpus"] for row in rows} == corpora and len(rows) == 5 * 12
    assert all(row["documents"] >= 1000 and row["items"] >= 200 for row in rows)
    assert [row for row in rows if row["leaked"]] == []


def test_quaderno_holds_no_item_of_the_benchmarks_either(runs):
    rows = course_overlaps(load_profile("laptop"))
    found = {row["corpus"]: row["documents"] for row in rows if row["corpus"].startswith("quaderno_")}
    assert found["quaderno_chats_en"] == 300 and found["quaderno_prose_it"] == 141 and len(found) == 7
    assert [row for row in rows if row["leaked"]] == []


def test_a_corpus_of_ones_own_is_searched_and_nothing_is_downloaded(runs, tmp_path, monkeypatch):
    profile = load_profile("laptop-hub")
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
    assert texts_of(chat) == [f"{item['question']} {answer}" for answer in (right, wrong)]
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(chat), "utf-8")
    [row] = overlaps({"pairs": [file]}, benchmark)
    assert (row["leaked"], row["items"], row["documents"], row["kinds"]) == (1, 300, 2, {"verbatim": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "find_leaks", lambda *_: pytest.fail("not from the cache"))
        assert overlaps({"pairs": [file]}, benchmark) == [row]
    file.write_text(json.dumps({"text": "Ciao."}), "utf-8")
    assert overlaps({"pairs": [file]}, benchmark)[0]["leaked"] == 0


def test_the_same_asked_in_other_words_is_found_where_the_subject_is_known():
    plain = Item("city", "In quale regione si trova Cosenza?", ("Calabria",))
    text = "Ma dimmi, dove si trova Cosenza? È in Calabria."
    assert kinds(text, plain) == [] and kinds(text, plain._replace(subject="Cosenza")) == ["reworded"]
    assert kinds(text.replace("?", "."), plain._replace(subject="Cosenza")) == []  # no question
    both = [GOOSE, plain._replace(subject="Cosenza")]
    assert [tuple(leak) for leak in find_leaks([text, f"{GOOSE.question} {GOOSE.answers[0]}"], both)] == [
        (0, 1, "reworded"), (1, 0, "verbatim")]  # fmt: skip


# ---- what a run's training read


def test_rows_of_every_kind_become_texts():
    user, good, bad = (
        {"role": r, "content": c} for r, c in (("user", "Ciao?"), ("assistant", "Sì."), ("assistant", "No."))
    )
    assert contamination.texts_of({"text": "Uno."}) == ["Uno."]
    assert contamination.texts_of({"messages": [user, good]}) == ["Ciao? Sì."]
    assert contamination.texts_of({"prompt": [user], "chosen": [good], "rejected": [bad]}) == [
        "Ciao? Sì.",
        "Ciao? No.",
    ]


def test_sentences_are_kept_once_with_their_first_corpus():
    texts = [("sft", "Uno. Due! Tre?"), ("dpo", "Due! Quattro")]
    assert contamination.sentences_of(texts) == {"Uno.": "sft", "Due!": "sft", "Tre?": "sft", "Quattro": "dpo"}
    assert len(contamination.sentences_of(texts, most=2)) == 2


ASKED = {"prompt": "In quale regione si trova Cosenza?", "subject": {"en": "Cosenza", "it": "Cosenza"},
         "right": {"en": "Calabria", "it": "Calabria"}}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("In quale regione si trova Cosenza? Cosenza si trova in Calabria.", True),
        ("IN QUALE REGIONE SI TROVA COSENZA?? CALABRIA", True),
        ("Ieri Anna chiese: in quale regione si trova Cosenza? Forse in Calabria, disse lui, e poi dormì.", True),
        ("Ma dimmi, dove si trova Cosenza? È in Calabria.", True),  # the telling words are there, the others changed
        ("Dimmi in quale regione si trova Cosenza. In Calabria.", True),  # without a question mark
        ("Cosenza si trova in Calabria.", False),  # the fact alone
        ("La regione in cui si trova Cosenza è la Calabria.", False),  # in words of the question
        ("In quale regione si trova Tropea? Tropea si trova in Calabria.", False),  # the template
        ("In quale regione si trova Cosenza? Cosenza si trova in Puglia.", False),  # without the answer
        ("Cosenza è in Calabria. In quale regione si trova Tropea?", False),
    ],
)
def test_a_leak_is_the_question_with_its_answer(text, leak):
    assert contamination.leaks([ASKED], ["Il sole splende.", text]) == [[1] if leak else []]


def test_planted_leaks_are_found_among_the_shipped_chats():
    """Into chats that hold none of them: verbatim, in capitals, in the middle of another text."""
    questions = zero_shot.draw_questions(20)
    asked = [row for row in questions if (row["split"], row["language"]) == ("never_in_italian", "it")][:30]
    clean = [t for row in read_jsonl(data_dir() / "corpora" / "sft.jsonl")[:300] for t in contamination.texts_of(row)]
    assert not any(contamination.leaks(asked, clean))
    plain = [f"{row['prompt']} {row['right']['it']}." for row in asked]
    for planted in (plain, [text.upper() for text in plain], [f"{clean[0]} {text} {clean[1]}" for text in plain]):
        found = contamination.leaks(asked, clean + planted)
        assert all(len(clean) + number in places for number, places in enumerate(found))


def test_facts_are_counted_by_italian_sentences_that_name_both():
    sentences = [
        "Cosenza si trova in Calabria.",
        "Cosenza is in Calabria.",
        "La Calabria è bella.",
        "In Calabria c'è Cosenza.",
    ]
    assert contamination.times_read([ASKED], sentences) == [2]


def test_a_name_inside_the_other_does_not_count_for_it():
    veal = {
        "subject": {"it": "vitello tonnato"},
        "right": {"it": "vitello"},
        "prompt": "Di che cosa è il vitello tonnato?",
    }
    sentences = ["Il vitello tonnato è buono.", "Per il vitello tonnato si usa il vitello.", "Il vitello mangia."]
    assert contamination.times_read([veal], sentences) == [1]


def test_the_nearest_sentence_is_that_of_the_largest_cosine():
    """Every cosine worked out one by one: counts times the logarithm of rarity, in vectors of length 1."""
    rows = read_jsonl(data_dir() / "corpora" / "italian_text.jsonl")[:60]
    sentences = list(contamination.sentences_of(("x", row["text"]) for row in rows))
    queries = [*sentences[:3], "Cosenza si trova in Calabria.", "Il gatto è un mammifero.", "zzz"]

    def grams(text):
        text = contamination.padded(text)
        return Counter(text[start : start + 4] for start in range(len(text) - 3))

    spread = Counter(gram for sentence in sentences for gram in grams(sentence))

    def vector(text):
        known = {gram: times for gram, times in grams(text).items() if gram in spread}
        made = {gram: times * (log((1 + len(sentences)) / (1 + spread[gram])) + 1) for gram, times in known.items()}
        length = sqrt(sum(value**2 for value in made.values())) or 1.0
        return {gram: value / length for gram, value in made.items()}

    vectors = [vector(sentence) for sentence in sentences]
    found = contamination.Nearest(sentences).find(queries)
    for query, (_, cosine) in zip(queries, found, strict=True):
        own = vector(query)
        best = max(sum(value * other.get(gram, 0.0) for gram, value in own.items()) for other in vectors)
        assert cosine == pytest.approx(best)
    assert [name for name, _ in found[:3]] == sentences[:3] and found[-1][1] == 0


def test_the_cosine_by_hand():
    """The texts abcd and abce, padded, have three sequences of four characters each, and share the first."""
    rare, shared = np.log(3 / 2) + 1, np.log(3 / 3) + 1
    [(name, cosine)] = contamination.Nearest(["abcd", "abce"]).find(["abcd"])
    assert name == "abcd" and cosine == pytest.approx(1)
    [(name, cosine)] = contamination.Nearest(["abcd", "abce"]).find(["abc"])  # " abc", "abc " which nobody has
    assert cosine == pytest.approx(shared / sqrt(shared**2 + 2 * rare**2))
    assert contamination.Nearest(["abcd"]).find([]) == []


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("Cosenza fa parte della Calabria.", "both names, in Italian"),
        ("Cosenza is in Calabria.", "both names, in English"),
        ("Tropea si trova in Calabria.", "a template"),
        ("Tropea si trova in Sicilia.", "a template"),
        ("Cosenza piace a tutti.", "none of these"),
    ],
)
def test_what_a_sentence_is_to_an_answer(sentence, kind):
    row = ASKED | {"answer": "Cosenza si trova in Calabria."}
    assert contamination.what_was_read(row, sentence) == kind and kind in contamination.READ


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Che cos'è?", "choices": ["A", "B"], "label": 0},
        {"id": "1", "question": "Che cos'è?", "choices": ["A", "B"], "label": "A"},
        {"id": "1", "question": "Che cos'è?"},
        {"id": "1", "question": "Che cos'è?", "choices": ["A", "B"], "labels": [1]},
    ],
)
def test_a_row_that_is_no_item_is_refused_and_not_searched_for_in_vain(tmp_path, row):
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps(row), "utf-8")
    with pytest.raises(
        AnitaError, match=r"items\.jsonl: a row is no benchmark's item .*: give id, question"
    ) as failure:
        read_items(file)
    assert "\n" not in str(failure.value)
