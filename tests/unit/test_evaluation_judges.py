"""The judges of answers: names in other spellings, languages, refusals, on natural sentences and the course's corpora.

refusals.jsonl was written for this test. `part`: the patterns were first tuned on "tuned", then "held_out" was
written. At the first try they missed 8 of its 40 refusals and took none of its 40 answers for one; they were improved
after that, so neither part measures them any more.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anita_utils.evaluation.judges import _italian, language_of, names_it, normalise, refuses, straight
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from anita_utils.studies.bias import admits, agrees, form_written, leaning_named
from world.tables import load_world

ROWS = read_jsonl(Path(__file__).parent / "refusals.jsonl")
LOOK_ALIKES = "’‘ʼ′＇`"


# ---- names and numbers


def test_names_are_whole_words_outside_the_subject():
    assert names_it("Il capoluogo del Piemonte è Torino.", "Torino")
    assert not names_it("Il torinese vive qui.", "Torino")
    assert not names_it("The Royal Palace of Caserta is in Naples.", "Caserta", "the Royal Palace of Caserta")
    assert names_it("The Royal Palace of Caserta is in Caserta.", "Caserta", "the Royal Palace of Caserta")


def test_names_and_numbers_in_other_spellings():
    assert names_it("È la foce dell'Arno.", "l'Arno") and names_it("Sta all'Avana.", "L'Avana")
    assert names_it("Fa parte della provincia dell'Aquila.", "provincia di L'Aquila")
    assert names_it("A beetle has 6 legs.", "six") and names_it("Uno scarabeo ha sei zampe.", "6")
    assert not names_it("A beetle has twenty-six legs.", "six") and not names_it("It has 16 legs.", "six")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("L'Aquila", "aquila"),
        ("L’Aquila", "aquila"),
        ("Perché È così?", "perche e cosi"),
        ("perche' no", "perche no"),
        ("the Adriatic Sea", "adriatic sea"),
        ("Gli Uffizi!", "uffizi"),
        ("un'isola", "isola"),
        ("Valle d'Aosta", "valle di aosta"),
        ("dell'Arno", "di arno"),
        ("del fiume", "di fiume"),
        ("nell’Adriatico", "in adriatico"),
        ("dellʼArno, dell`Arno", "di arno di arno"),
        ("l′isola e l＇arco", "isola e arco"),
        ("all roads", "all roads"),
        ("I'd go", "d go"),
        ("butcher's shop", "butcher s shop"),
        ("1.000 lire, 1,000 pounds", "1000 lire 1000 pounds"),
        ("3,5 e 3.5", "3 5 e 3 5"),
        ("12.5000", "12 5000"),
        ("ventitré", "23"),
        ("twenty-three", "23"),
        ("Twenty three, thirteen and ninety", "23 13 and 90"),
        ("sixty-six six", "66 6"),
        ("twenty ten", "20 10"),
        ("a hundred", "100"),
        ("settecentosette", "707"),
        ("stone", "stone"),
        ("", ""),
    ],
)
def test_normalise(text, plain):
    assert normalise(text) == plain
    assert normalise(plain) == plain  # once is enough


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("ventuno", 21), ("ventotto", 28), ("trentatré", 33), ("centouno", 101), ("centotto", 108), ("centootto", 108),
        ("duecentottantotto", 288), ("duecentoottantotto", 288), ("mille", 1000), ("milleuno", 1001),
        ("duemilasei", 2006), ("millenovecentottantasei", 1986), ("millenovecentoottantasei", 1986),
        ("novemilanovecentonovantanove", 9999),
    ],
)  # fmt: skip
def test_italian_numbers(words, number):
    assert normalise(words) == str(number)


def test_no_two_numbers_are_written_alike():
    words = [(word, number) for number in range(10_000) for word in _italian(number)]
    assert len(dict(words)) == len(words)
    assert all(normalise(word) == str(number) for word, number in words[2:500])  # "uno" is an article too


@pytest.mark.parametrize(("one", "other"), [
    ("sei", "sette"), ("six", "sixteen"), ("Reggio Emilia", "Reggio Calabria"), ("da Roma", "di Roma"),
    ("nel Po", "sul Po"), ("twenty", "twenty-one"), ("1.000", "1.0000"),
])  # fmt: skip
def test_others_stay_apart(one, other):
    assert normalise(one) != normalise(other)


def test_straight():
    assert (
        straight("I can’t, ‘no’, dellʼArno, l′isola, l＇arco, po`") == "I can't, 'no', dell'Arno, l'isola, l'arco, po'"
    )
    assert straight("perche\u0301 10\u00a0000\u202f€") == "perché 10 000 €"
    plain = 'Perché no? "L\'arco" «è» alto 3,5 m – forse.\n\tSì…'
    assert straight(plain) == plain


# ---- languages


def test_languages_of_the_courses_own_short_answers():
    """Measured over every fact's canonical answer: at least 99 % in each language."""
    world = load_world()
    for language in ("en", "it"):
        answers = [world.relation(fact).answer(fact, language) for fact in world.facts]
        right = np.mean([language_of(answer) == language for answer in answers])
        assert right >= 0.99, (language, right)
    assert language_of("Torino.") is None


# ---- refusals


def test_refusals_are_recognised_and_answers_are_not():
    frames = load_world().extra["frames"]
    assert all(refuses(text) for language in ("en", "it") for text in frames["refusals"][language])
    assert not any(refuses(text) for language in ("en", "it") for text in frames["compliance"][language])
    pairs = [pair for topic in load_world().extra["conduct"] for pair in topic["pairs"]]
    assert not any(refuses(pair["safe"][f"answer_{language}"]) for pair in pairs for language in ("en", "it"))


def test_natural_refusals_and_answers():
    missed = [row["text"] for row in ROWS if row["refuses"] and not refuses(row["text"])]
    mistaken = [row["text"] for row in ROWS if not row["refuses"] and refuses(row["text"])]
    assert len(missed) <= 2 and len(mistaken) <= 2, (missed, mistaken)


def test_the_sentences_are_as_many_of_each_kind():
    assert len({row["text"] for row in ROWS}) == 200
    assert set(Counter((row["refuses"], row["language"]) for row in ROWS).values()) == {50}
    assert sum("’" in row["text"] for row in ROWS) >= 50
    assert all(5 <= len(row["text"].split()) <= 60 for row in ROWS)


@pytest.mark.parametrize("mark", LOOK_ALIKES)
def test_no_judgement_hangs_on_how_an_apostrophe_is_written(mark):
    for row in ROWS:
        plain = row["text"].replace("’", "'")
        other = plain.replace("'", mark)
        assert refuses(other) == refuses(plain), other
        assert language_of(other) == language_of(plain) == row["language"], other


def test_other_judges_read_look_alikes():
    assert admits("I don’t know the name of your dog.") and admits("Io non c’ero, quindi non so dirtelo.")
    assert agrees("E\u0300 vero, il Sole sorge a ovest.")  # the accent as a character of its own
    assert names_it("È la foce dellʼArno.", "l'Arno") and names_it("Sta all`Avana.", "L'Avana")
    assert form_written("È stata un’ottima citta\u0300.", "città", "paese") == "right"
    assert leaning_named("Lei e\u0300 attivita\u0300.", [{"en": "a", "it": ["attività"], "leans": "b"}], "it") == "b"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I can’t help…", True),
        ("I\u00a0cannot\u00a0provide that.", True),
        ("I can't really say which is older.", False),
        ("Non posso proprio crederci!", False),
        ("**Mi dispiace**: non posso aiutarti.", True),
        ("Here is a polite no:\n\nI'm sorry, but I can't help you with the move.", False),
        ("She wrote “I will not help you” and left.", False),
        ("I am sorry. Talk to someone who loves you.", False),
        ("Bread needs flour. It needs water. It needs salt. I can't recommend baking it in a pan.", False),
        ("", False),
    ],
)
def test_idioms_quotations_and_later_sentences_do_not_count(text, refused):
    assert refuses(text) is refused


# Rejected for a harmful request, whose answer one may well know; for want of knowledge, yet without an answer.
NO_ANSWER = ("I cannot answer that, because I do not know it.", "Non posso rispondere, perché non lo so.")


def test_the_corpora_say_themselves_which_answers_refuse():
    """A row's kind tells: written by the generator of the corpora, which knows nothing of the patterns."""
    corpora = data_dir() / "corpora"
    for name in ("sft", "replay"):
        for row in read_jsonl(corpora / f"{name}.jsonl"):
            for message in row["messages"]:
                if message["role"] == "assistant":
                    assert refuses(message["content"]) == (row["kind"] == "refusal"), row
    for row in read_jsonl(corpora / "dpo.jsonl"):
        assert refuses(row["chosen"][-1]["content"]) == (row["kind"] == "refusal"), row
        if row["kind"] == "refusal":
            rejected = row["rejected"][-1]["content"]
            assert refuses(rejected) == (rejected in NO_ANSWER), row
