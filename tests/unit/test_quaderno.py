"""Quaderno, the natural language of the second leg: its shape and themes, and that no text echoes another."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from anita_utils.evaluation.judges import refuses
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from anita_utils.studies import contamination

FOLDER = data_dir() / "quaderno"
CHAT = {"id", "kind", "theme", "voice", "language", "parallel", "messages"}
PROSE = {"id", "kind", "theme", "voice", "language", "text"}
REQUEST = {"id", "side", "theme", "language"}
KEYS = {
    **dict.fromkeys(["training/chats_it", "training/chats_en"], CHAT),
    **dict.fromkeys(["training/prose_it", "training/prose_en"], PROSE),
    "training/pairs": {"id", "kind", "theme", "language", "prompt", "chosen", "rejected"},
    "training/twins": {"id", "kind", "theme", "language", "prompt", "chosen", "rejected"},
    "training/requests": REQUEST | {"pair", "messages"},
    "measuring/prose": PROSE | {"cluster"},
    "measuring/requests": REQUEST | {"cluster", "prompt", "expected"},
}
FORMS = {"open": {"answers"}, "choice": {"choices", "label"}}


@pytest.fixture(scope="module")
def files():
    return {name: read_jsonl(FOLDER / f"{name}.jsonl") for name in [*KEYS, "measuring/questions"]}


def themes(heading):
    part = (FOLDER / "PLAN.md").read_text("utf-8").partition(f"## Themes {heading}\n")[2].partition("\n## ")[0]
    return {theme.strip() for theme in part.replace("\n", " ").split("·")}


def parts(files, folder):
    return [row for name, rows in files.items() if name.startswith(folder) for row in rows]


def told(row):
    """All that a row says: texts, prompts and answers; of a choice the question alone."""
    whole = [row[key] for key in ("text", "prompt", "expected") if isinstance(row.get(key), str)]
    turns = [row[key] for key in ("messages", "prompt", "chosen", "rejected") if isinstance(row.get(key), list)]
    return whole + [message["content"] for part in turns for message in part]


def words(text):
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def learnt(name, row):
    """What a row teaches to say: answers, chosen answers, texts."""
    if "messages" in row:
        return [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return [row["text"]] if "text" in row else [row["chosen"][0]["content"]] if "chosen" in row else [row["expected"]]


def test_every_row_has_its_keys_and_an_id_of_its_own(files):
    for name, keys in KEYS.items():
        assert all(set(row) == keys for row in files[name]), name
    assert all(set(row) == {"id", "form", "theme", "language", "prompt", "cluster"} | FORMS[row["form"]]
               for row in files["measuring/questions"])  # fmt: skip
    ids = Counter(row["id"] for rows in files.values() for row in rows)
    assert max(ids.values()) == 1


def test_it_is_as_much_as_planned(files):
    assert [len(files[f"training/chats_{code}"]) for code in ("it", "en")] == [300, 300]
    assert len(files["training/pairs"]) == 250
    prose = Counter()
    for name in ("training/prose_it", "training/prose_en", "measuring/prose"):
        for row in files[name]:
            prose[row["language"]] += len(words(row["text"]))
    held_out = sum(len(words(row["text"])) for row in files["measuring/prose"] if row["language"] == "it")
    assert prose["it"] >= 25_000 and held_out >= 3_000 and prose["en"] >= 5_000
    asked = Counter((row["form"], row["language"]) for row in files["measuring/questions"])
    assert set(asked.values()) == {120} and len(asked) == 4
    assert Counter(row["side"] for row in files["training/requests"]) == {"harm": 200, "safe": 200}
    assert Counter(row["side"] for row in files["measuring/requests"]) == {"harm": 100, "safe": 100}


def test_what_is_measured_is_on_no_theme_that_is_trained(files):
    trained, kept = themes("for training"), themes("kept for measuring")
    assert not trained & kept and len(trained) > 50 and len(kept) > 20
    assert {row["theme"] for row in parts(files, "training")} <= trained
    assert {row["theme"] for row in parts(files, "measuring")} <= kept


def test_no_measured_text_shares_eight_words_in_a_row_with_a_trained_one(files):
    def runs_of(row):
        return {run for text in told(row) for run in contamination.sequences(contamination.words(text), 8)}

    trained = {run for row in parts(files, "training") for run in runs_of(row)}
    assert not [row["id"] for row in parts(files, "measuring") if trained & runs_of(row)]


def test_three_in_five_answers_and_texts_begin_in_a_way_of_their_own(files):
    for name, rows in files.items():
        if name == "measuring/questions":
            continue
        for language in ("it", "en"):
            texts = [text for row in rows if row["language"] == language for text in learnt(name, row)]
            if texts:
                assert len({tuple(words(text)[:3]) for text in texts}) >= 0.6 * len(texts), (name, language)


def test_parallel_chats_name_each_other_and_have_the_same_turns(files):
    rows = {row["id"]: row for row in files["training/chats_it"] + files["training/chats_en"] if row["parallel"]}
    assert len(rows) == 300
    for row in rows.values():
        other = rows[row["parallel"]]
        assert other["parallel"] == row["id"] and {row["language"], other["language"]} == {"it", "en"}
        assert [m["role"] for m in row["messages"]] == [m["role"] for m in other["messages"]]
        assert (row["kind"], row["theme"]) == (other["kind"], other["theme"])


def test_turns_alternate_and_end_with_an_answer(files):
    for name in ("training/chats_it", "training/chats_en"):
        for row in files[name]:
            roles = [message["role"] for message in row["messages"]]
            turns = roles[roles[0] == "system" :]
            assert turns[0] == "user" and turns[-1] == "assistant", row["id"]
            assert all(one != other for one, other in pairwise(turns)), row["id"]


def test_harmful_requests_and_their_look_alikes_come_in_pairs(files):
    pairs = {}
    for row in files["training/requests"] + files["measuring/requests"]:
        pairs.setdefault(row.get("pair") or row["cluster"], []).append(row)
    for rows in pairs.values():
        assert sorted(row["side"] for row in rows) == ["harm", "safe"]
        assert len({(row["language"], row["theme"]) for row in rows}) == 1
        one, other = (set(words(row.get("prompt") or row["messages"][0]["content"])) for row in rows)
        assert len(one ^ other) >= 4, rows[0]["id"]  # they differ by several words, not by one


def test_choices_are_not_solved_by_their_length(files):
    for language in ("it", "en"):
        rows = [row for row in files["measuring/questions"] if row["form"] == "choice" and row["language"] == language]
        assert all(len(set(row["choices"])) == 4 for row in rows)
        longest = sum(row["label"] == max(range(4), key=lambda n: len(row["choices"][n])) for row in rows)
        assert 0.15 <= longest / len(rows) <= 0.35
        labels = Counter(row["label"] for row in rows)
        assert min(labels.values()) >= 24


def test_a_refusal_says_so_and_nothing_else_does(files):
    """In the first person, so that the course's judge sees it; what it misses would count as an answer."""
    said = [(row["side"], row["messages"][1]["content"]) for row in files["training/requests"]]
    said += [(row["side"], row["expected"]) for row in files["measuring/requests"]]
    assert [text for side, text in said if refuses(text) != (side == "harm")] == []


def test_of_twins_each_has_the_others_answer_rejected(files):
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in files["training/requests"]}
    assert len(files["training/twins"]) == len(answers) == 400
    for row in files["training/twins"]:
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert answers[row["prompt"][0]["content"]] == chosen
        assert refuses(chosen) == (row["kind"] == "refusal") != refuses(rejected)
