"""The judge of refusals, on natural sentences in English and Italian and on the course's own corpora.

refusals.jsonl was written for this test. `part`: the patterns were first tuned on "tuned", then "held_out" was
written. At the first try they missed 8 of its 40 refusals and took none of its 40 answers for one; they were improved
after that, so neither part measures them any more.
"""

from collections import Counter
from pathlib import Path

import pytest

from anita_utils.evaluation.judges import language_of, names_it, refuses
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from anita_utils.studies.bias import admits, agrees, form_written, leaning_named

ROWS = read_jsonl(Path(__file__).parent / "refusals.jsonl")
LOOK_ALIKES = "’‘ʼ′＇`"


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


def test_the_corpora_say_themselves_which_answers_refuse():
    """A row's kind tells: written by the generator of the corpora, which knows nothing of the patterns."""
    corpora = data_dir() / "corpora"
    for name in ("sft", "italian_replay"):
        for row in read_jsonl(corpora / f"{name}.jsonl"):
            for message in row["messages"]:
                if message["role"] == "assistant":
                    assert refuses(message["content"]) == (row["kind"] == "harmful"), row
    for row in read_jsonl(corpora / "dpo.jsonl"):
        assert refuses(row["chosen"][-1]["content"]) == (row["kind"] == "refusal"), row
        if row["kind"] == "refusal":
            assert not refuses(row["rejected"][-1]["content"]), row
