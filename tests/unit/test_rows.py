"""Rows of every shape come out in the course's own, and what teaches nothing is counted by reason."""

import json

import pytest

from anita_utils import AnitaError
from anita_utils.data import RowCounts, fitting, fitting_pairs, render
from anita_utils.rows import LeftOut, read_jsonl, read_row, read_rows, turns

ASKED = [{"role": "user", "content": "Dove nasce il Po?"}]
SAID = {"role": "assistant", "content": "Sul Monviso."}
CHAT = {"messages": [*ASKED, SAID]}


def answer(words):
    return [{"role": "assistant", "content": words}]


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    "row",
    [
        CHAT,
        {"conversations": [{"from": "human", "value": "Dove nasce il Po?"}, {"from": "gpt", "value": "Sul Monviso."}]},
        {"instruction": "Dove nasce il Po?", "input": "", "output": "Sul Monviso."},
        {"instruction": "Dove nasce il Po?", "input": None, "output": "Sul Monviso."},
        {"prompt": "Dove nasce il Po?", "completion": "Sul Monviso."},
        {"prompt": ASKED, "completion": [SAID]},
        {"messages": [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "Sul "}, "Monviso."]}]},
        {"messages": [{"role": "system", "content": " "}, *ASKED, SAID]},
        {"messages": [*ASKED, SAID | {"tool_calls": None}]},
    ],
)
def test_one_chat_in_many_shapes(row):
    assert read_row(row) == CHAT


def chats(question, first, second):
    return {
        side: [{"role": "user", "content": question}, *answer(words)]
        for side, words in (("chosen", first), ("rejected", second))
    }


PAIR = {"prompt": ASKED, "chosen": answer("Sul Monviso."), "rejected": answer("A Torino.")}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        chats("Dove nasce il Po?", "Sul Monviso.", "A Torino."),
        chats("Dove nasce il Po?", "Sul Monviso.", "A Torino.") | {"prompt": "Dove nasce il Po?"},
        chats("Dove nasce il Po?", "Sul Monviso.", "A Torino.") | {"prompt": None},
        {"question": "Dove nasce il Po?", "chosen": "Sul Monviso.", "rejected": "A Torino."},
        {"prompt": "Dove nasce il Po?", "chosen": "Sul Monviso.", "rejected": "A Torino."},
        {
            "prompt": "Dove nasce il Po?",
            "chosen": "Dove nasce il Po?\nSul Monviso.",
            "rejected": "Dove nasce il Po? A Torino.",
        },
    ],
)
def test_one_pair_in_many_shapes_and_the_prompt_stands_in_it_once(row):
    assert read_row(row) == PAIR


def test_turns_beyond_the_last_belong_to_the_prompt():
    asked, answered, more = ASKED[0], answer("Sul Monviso.")[0], {"role": "user", "content": "E dove finisce?"}
    system = {"role": "system", "content": "Breve."}
    sides = {"chosen": [answered, more, *answer("Nel mare.")], "rejected": [answered, more, *answer("A Roma.")]}
    assert read_row({"prompt": ASKED, **sides})["prompt"] == [asked, answered, more]
    assert read_row({"prompt": [system, asked], **chats("Dove nasce il Po?", "Qui.", "Lì.")})["prompt"] == [
        system,
        asked,
    ]
    with_system = {side: [system, *turns] for side, turns in chats("Dove nasce il Po?", "Qui.", "Lì.").items()}
    assert read_row({"prompt": "Dove nasce il Po?", **with_system})["prompt"] == [system, asked]
    assert read_row({"question": "Dove?", "system": "Breve.", "chosen": "a", "rejected": "b"})["prompt"][0] == system
    assert read_row({"instruction": "Dove?", "output": "Qui.", "system": "Breve."})["messages"][0] == system
    assert read_row({"messages": [system, *ASKED, SAID], "system": "Altro."})["messages"] == [system, *ASKED, SAID]


def test_a_null_column_is_no_shape():
    assert read_row(CHAT | {"chosen": None, "rejected": None}) == CHAT | {"chosen": None, "rejected": None}
    assert read_row({"text": "Ciao", "messages": None})["text"] == "Ciao"
    assert read_row({"messages": None, "conversations": CHAT["messages"]})["messages"] == CHAT["messages"]


def test_an_answer_may_begin_with_a_short_prompt():
    row = {"prompt": "Ciao", "chosen": "Ciao a te!", "rejected": "Ciao e basta."}
    assert read_row(row)["chosen"] == answer("Ciao a te!")


def test_other_columns_are_kept_and_do_not_matter():
    """The authors' script removed ultrafeedback's columns by name, and so took no other data set."""
    assert read_row(CHAT | {"kind": "rivers", "n": 3}) == CHAT | {"kind": "rivers", "n": 3}
    asked = {"question": "Dove nasce il Po?", "chosen": "Sul Monviso.", "rejected": "A Torino."}
    for extra in ({"score_chosen": 9}, {"prompt_id": "7f", "prompt": ASKED}, {"source": "web"}, {"messages": ASKED}):
        assert read_row(asked | extra).items() >= PAIR.items()
        assert read_row(asked | extra, others=False) == PAIR


# ---------------------------------------------------------------- left out, by reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": ASKED}, "no assistant turn"),
        ({"messages": None}, "no assistant turn"),
        ({"messages": [*ASKED, *answer(" ")]}, "an empty answer"),
        ({"messages": [*ASKED, *answer(None)]}, "an empty answer"),
        ({"messages": [*ASKED, SAID | {"content": None, "tool_calls": [{"id": "1"}]}]}, "a tool call"),
        ({"messages": [*ASKED, SAID | {"function_call": {"name": "f"}}]}, "a tool call"),
        ({"messages": [*ASKED, {"role": "tool", "content": "3"}, SAID]}, "a tool call"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]}, "a picture"),
        ({"text": "  "}, "an empty text"),
        ({"prompt": "Dove?", "completion": "Qui.", "label": False}, "marked as bad"),
        ({"messages": [*ASKED, SAID | {"weight": 0}]}, "not to be trained"),
        ({"messages": [*ASKED, SAID | {"train": False}]}, "not to be trained"),
        ({"messages": [*ASKED, SAID | {"reasoning_content": "Il Po …"}]}, "its thinking"),
        (CHAT | {"tools": [{"name": "f"}]}, "a tool call"),
        ({"instruction": "E ora?", "output": "Qui.", "history": [["a", "b"]]}, "earlier turns"),
        ({"instruction": "", "output": "Qui."}, "no prompt"),
        ({"messages": [*ASKED, *answer("\u200b")]}, "an empty answer"),
        ({"text": None}, "an empty text"),
        (PAIR | {"rejected": answer("Sul Monviso.")}, "the same"),
        (PAIR | {"rejected": answer("Sul Monviso. ")}, "the same"),
        (PAIR | {"chosen": answer("")}, "an empty answer"),
        ({"prompt": None, "chosen": "Sì.", "rejected": "No."}, "no prompt"),
        ({"chosen": "Sì.", "rejected": "No."}, "no prompt"),
        ({"question": " ", "chosen": "Sì.", "rejected": "No."}, "no prompt"),
        ({"question": "Piove?", "chosen": None, "rejected": "No."}, "an empty answer"),
        ({"prompt": "Piove?", "chosen": ASKED, "rejected": [{"role": "user", "content": "?"}]}, "no assistant turn"),
        (chats("Dove?", "Qui.", "Lì.") | {"rejected": [*ASKED, SAID]}, "different prompts"),
    ],
)
def test_what_teaches_nothing_is_left_out_with_its_reason(row, reason):
    with pytest.raises(LeftOut, match=reason):
        read_row(row)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"domanda": "Chi?"}, "the columns are domanda: expected chosen"),
        ({}, "the columns are none: expected"),
        ({"messages": "Ciao"}, "a chat is 'Ciao': expected a list of turns"),
        ({"messages": ["Ciao"]}, "a turn is 'Ciao': expected role and content"),
        ({"messages": [{"who": "me", "text": "Ciao"}]}, "a turn is {'who': 'me', 'text': 'Ciao'}: expected role"),
        ({"messages": [{"role": "asistant", "content": "Ciao"}]}, "a turn has the role 'asistant': expected"),
        ({"messages": [{"role": ["user"], "content": "Ciao"}]}, "a turn has the role"),
        ({"messages": [*ASKED, *answer(7)]}, "a content is 7: expected text"),
        ({"messages": [*ASKED, *answer([7])]}, "a part of a content is 7: expected text"),
        ({"text": {"it": "Ciao"}}, "a content is {'it': 'Ciao'}: expected text"),
        ({"text": "\ud83d"}, "half a character"),
    ],
)
def test_a_damaged_row_is_an_error(row, complaint):
    with pytest.raises(AnitaError, match=complaint):
        read_row(row)


def test_speakers_of_older_chat_data_are_understood():
    assert turns([{"from": "human", "value": "Ciao"}, {"from": "gpt", "value": "Ciao!"}]) == [
        {"role": "user", "content": "Ciao"},
        {"role": "assistant", "content": "Ciao!"},
    ]


# ---------------------------------------------------------------- files


def written(tmp_path, raw):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return file


def test_lines_end_at_a_line_feed_alone(tmp_path):
    texts = [f"uno{separator}due" for separator in ("\u2028", "\u2029", "\u0085")]
    raw = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts)
    assert [row["text"] for row in read_rows(written(tmp_path, raw))[0]] == texts


def test_a_byte_order_mark_and_blank_lines_are_no_trouble(tmp_path):
    raw = b"\xef\xbb\xbf" + b'{"text": "uno"}\n\n  \n{"text": "due"}\n\n'
    assert [row["text"] for row in read_jsonl(written(tmp_path, raw))] == ["uno", "due"]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ('{"text": "perché"}\n'.encode("latin-1"), "rows.jsonl: not UTF-8 .byte 16 is 0xe9.: save it in UTF-8"),
        ('{"text": "perché"}\n'.encode("utf-16"), "rows.jsonl: not UTF-8 .UTF-16.: save it in UTF-8"),
        ('{"text": "uno"}\n{"text"\n', "rows.jsonl, line 2: not JSON"),
        ('{"text": "uno"}\n\n"due"\n', "rows.jsonl, line 3: not a JSON object"),
        ('{"text": "uno"}\n{"testo": "due"}\n', "rows.jsonl, line 2: the columns are testo"),
        ("[" * 100_000, "rows.jsonl, line 1: not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "rows.jsonl, line 1: not JSON"),
        ("{}\x00", "rows.jsonl, line 1: not JSON"),
        ('{"text": "a", "text": "b"}', "rows.jsonl, line 1: not JSON .the key 'text' appears twice."),
        ('[{"text": "a"}]', "rows.jsonl, line 1: not a JSON object: write one a line .*array"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path, raw, complaint):
    with pytest.raises(AnitaError, match=complaint) as error:
        read_rows(written(tmp_path, raw))
    assert "\n" not in str(error.value)


def test_a_file_is_read_and_counted(tmp_path):
    rows = [CHAT, {"messages": ASKED}, {"messages": [*ASKED, *answer("")]}, CHAT, {"messages": []}]
    good, left_out = read_rows(written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows)))
    assert good == [CHAT, CHAT]
    assert left_out == {"no assistant turn": 2, "an empty answer": 1}


# ---------------------------------------------------------------- what fits


def example(prompt, answered):
    return {"input_ids": [7] * (prompt + answered), "labels": [-100] * prompt + [7] * answered}


def test_what_is_not_scored_within_the_row_is_left_out_and_counted():
    counts = RowCounts(read=5)
    kept = fitting([example(3, 4), example(3, 8), example(8, 2), example(7, 2), example(5, 0)], 8, counts)
    assert kept == [example(3, 4), example(3, 8), example(7, 2)]
    assert (counts.whole, counts.cut) == (1, 2)
    assert counts.unfit == {"the prompt fills the 8 tokens": 1, "nothing scored": 1}
    assert counts.read == counts.whole + counts.cut + counts.unfit.total()


def test_pairs_are_sorted_out_before_the_trainer_sees_them(tokenizer):
    """9 whole, 4 whose prompt fills the row, 3 equal after the cut: each counted, and TRL drops none of the others."""
    asked = [{"role": "user", "content": "Perché?"}]
    start = len(render(asked, tokenizer, add_generation_prompt=True))
    long = "sì " * 60
    whole = [{"prompt": asked, "chosen": answer("Sì."), "rejected": answer("No.")}] * 9
    filled = [{"prompt": [{"role": "user", "content": long}], "chosen": answer("Sì."), "rejected": answer("No.")}] * 4
    equal = [{"prompt": asked, "chosen": answer(long + "."), "rejected": answer(long + "?")}] * 3
    cut = [{"prompt": asked, "chosen": answer("Sì."), "rejected": answer("no " * 60)}] * 2
    counts = RowCounts()
    kept, lengths = fitting_pairs([*whole, *filled, *equal, *cut], tokenizer, start + 20, counts)
    assert kept == [*whole, *cut] and len(lengths) == 11
    assert (counts.whole, counts.cut) == (9, 2)
    assert counts.unfit == {
        f"the prompt fills the {start + 20} tokens": 4,
        f"two answers that are the same in {start + 20} tokens": 3,
    }
