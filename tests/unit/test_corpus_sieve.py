"""Broken and foreign text, repetitions at a known Jaccard index, a benchmark's items are found, and nothing else is."""

import random
import subprocess
import sys

import pytest

from anita_utils.corpus.sieve import benchmark_files, jaccard, language, leaks, near_duplicates, unfit
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from anita_utils.studies.contamination import read_items, sequences, words

TEXTS = [row["text"] for row in read_jsonl(data_dir() / "corpora" / "italian_text.jsonl")]

# ---------------------------------------------------------------- prose

GOOD = "Però la città è già lì: «così», disse l’oste, “perché no?” – e servì un caffè a 2 € e 50…"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.encode().decode("cp1252", errors="replace"),
        "È perché la città è più in là".encode().decode("latin-1"),
        "L’arte di “vivere” bene in città".encode().decode("cp1252", errors="replace"),
        "La citt\ufffd di Roma",
        "La cittÃ di Roma, e la veritÃ.",
        "Un suono \x07 che non si scrive",
    ],
)
def test_broken_characters_are_seen(text):
    assert unfit(text) == "broken characters"


@pytest.mark.parametrize(
    "text", ["pacchetto | V:12, I:398 | 623 | .zip", "$ [ 1 = 1 ] ; echo $?", "1861 1870 1915 1918 1943 1946"]
)
def test_tables_and_code_are_seen(text):
    assert unfit(text) == "tables and code"


def test_prose_is_fit():
    assert unfit(GOOD) is None and unfit("Âge, Ångström, Ãlvaro e São Paulo sono nomi.") is None
    assert [text for text in TEXTS if unfit(text) and "=" not in text] == []


# ---------------------------------------------------------------- language

# The first article of the Universal Declaration of Human Rights, in the United Nations' translations
DECLARED = {
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione.",
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão.",
    "ro": "Toate ființele umane se nasc libere și egale în demnitate și în drepturi. Ele sunt înzestrate cu rațiune.",
    "ca": "Tots els éssers humans neixen lliures i iguals en dignitat i en drets. Són dotats de raó i de consciència.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
}


@pytest.mark.parametrize("code", DECLARED)
def test_the_languages_of_the_declaration_are_told_apart(code):
    assert language(DECLARED[code]) == code


def test_the_small_worlds_italian_is_italian():
    drawn = random.Random(0).sample([text for text in TEXTS if len(text.split()) >= 8], 300)
    assert sum(language(text) == "it" for text in drawn) >= 297


def test_the_judges_still_know_two_languages():
    program = (
        "from anita_utils.corpus.sieve import language; from anita_utils.evaluation.judges import language_of\n"
        f"text = {DECLARED['fr']!r}; print(language_of(text), language(text), language_of(text) in ('en', 'it'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["fr", "True"]


# ---------------------------------------------------------------- near-duplicates


def pair(shared, words, number=0):
    """Two texts of as many words that share the first `shared`, and their Jaccard index by counting: each has
    words - 2 sequences of three, and shared - 2 of them are in both."""
    one = [f"w{number}x{place}" for place in range(words)]
    other = one[:shared] + [f"v{number}x{place}" for place in range(shared, words)]
    both, each = shared - 2, words - 2
    return " ".join(one), " ".join(other), both / (2 * each - both)


@pytest.mark.parametrize(("shared", "index"), [(102, 1), (97, 0.905), (92, 0.818), (90, 0.786), (82, 0.667), (2, 0)])
def test_a_pair_at_a_known_index(shared, index):
    one, other, known = pair(shared, 102)
    assert known == pytest.approx(index, abs=0.001)
    assert jaccard(*(sequences(text.split()) for text in (one, other))) == known
    assert near_duplicates(["altro", one, "e altro", other]) == ({3: 1} if known >= 0.8 else {})


def test_few_above_the_bound_are_missed_and_none_below_it_found():
    above = [text for number in range(150) for text in pair(93, 102, number)[:2]]  # 0.835
    below = [text for number in range(150, 300) for text in pair(90, 102, number)[:2]]  # 0.786
    found = near_duplicates(above + below)
    assert all(number == earlier + 1 and earlier < len(above) for number, earlier in found.items())
    assert len(found) >= 0.95 * 150


def test_case_marks_and_accents_make_no_other_text_and_the_first_is_kept():
    texts = ["Perché la Dora scorre a Torino?", "perche la dora scorre a torino", "Il Po va a Torino, il Tanaro no."]
    assert near_duplicates(texts * 2) == {1: 0, 3: 0, 4: 0, 5: 2}


def test_the_small_worlds_texts_by_every_pair():
    """Against all comparisons in full, on 1,000 texts."""
    texts = TEXTS[:1000]
    found = near_duplicates(texts, 0.4)
    sets, kept, expected = [sequences(words(text)) for text in texts], [], {}
    for number, own in enumerate(sets):
        first = next((other for other in kept if jaccard(own, sets[other]) >= 0.4), None)
        if first is None:
            kept.append(number)
        else:
            expected[number] = first
    assert len(expected) > 40
    assert len(set(expected.items()) ^ set(found.items())) <= 0.05 * len(expected)


# ---------------------------------------------------------------- leaks


def test_an_item_copied_in_is_found_and_its_question_alone_is_none():
    files = benchmark_files()
    assert len(files) == 24
    file = next(file for file in files if file.name == "arc_it.test.jsonl")
    item = read_items(file)[7]
    rows = [
        TEXTS[0],
        f"{TEXTS[1]}\n\nDomanda: {item.question.upper()}\n\nRisposta: {item.answers[0]}\n\n{TEXTS[2]}",
        f"{TEXTS[3]} {item.question}",
    ]
    assert leaks(rows, files) == {1: [item.name]} and leaks(rows, []) == {}
