"""A folder with every kind of paragraph once: what is kept stays whole, all else is counted; twice the same bytes."""

import json
import os
import random

import pytest
from texts import ARTICLES, FILES, LEFT_OUT, leaked, write_folder

from anita_utils import AnitaError
from anita_utils.corpus import building
from anita_utils.corpus.building import (
    Paragraph,
    build_corpus,
    check_out,
    cut_text,
    hold_out,
    packed,
    write_corpus,
)
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl, read_rows

TEXTS = [row["text"] for row in read_jsonl(data_dir() / "corpora" / "italian_text.jsonl")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("testi") / "testi")


@pytest.fixture(scope="module")
def corpus(folder):
    return build_corpus(folder)


def write_texts(folder, count, words=60):
    """Documents of drawn paragraphs that no other has; returns the folder."""
    rng, folder = random.Random(0), folder / "molti"
    folder.mkdir()
    vocabulary = sorted({word for text in TEXTS for word in text.split() if word.isalpha()})
    for number in range(count):
        paragraphs = [" ".join(rng.choices(vocabulary, k=words)) for _ in range(rng.randint(1, 6))]
        (folder / f"{number}.txt").write_text("\n\n".join(paragraphs), "utf-8")
    return folder


# ---------------------------------------------------------------- what is kept


def test_every_file_and_paragraph_is_counted_once(corpus):
    counts = corpus.counts
    assert counts["files"] == FILES and counts["paragraphs"]["left out"] == LEFT_OUT
    assert counts["named"] == {"not UTF-8": ["vecchio.txt"], "without text": ["vuota.html"], "nothing kept": ["c.txt"]}
    assert (counts["paragraphs"]["read"], counts["paragraphs"]["kept"]) == (14, 8)
    assert counts["other_languages"] == {"en": 1} and counts["leaked_items"] == [leaked()[1]]
    for unit in ("paragraphs", "words"):
        assert counts[unit]["read"] == counts[unit]["kept"] + sum(counts[unit]["left out"].values())
    assert counts["words"]["left out"].keys() == LEFT_OUT.keys()


def test_what_is_kept_is_word_for_word_what_was_there(corpus):
    rows = corpus.train + corpus.held_out
    paragraphs = [part for row in rows for part in row["text"].split("\n\n")]
    assert sorted(part.removeprefix("Articoli\n") for part in paragraphs) == sorted(ARTICLES)
    assert sum(len(row["text"].split()) for row in rows) == corpus.counts["words"]["kept"]
    assert {row["document"] for row in rows} == {"a.txt", "b/due.html", "b/uno.md", "d.txt"}


def test_other_encodings_are_read_where_they_are_named(folder):
    counts = build_corpus(folder, encoding="latin-1").counts
    assert counts["files"]["read as cp1252"] == 1 and counts["named"]["read as cp1252"] == ["vecchio.txt"]
    assert counts["paragraphs"]["kept"] == 9


def test_items_of_ones_own_benchmark_are_kept_out(folder, tmp_path):
    item = {"id": "mine/1", "question": ARTICLES[5], "answer": ARTICLES[4]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(item) + "\n", "utf-8")
    counts = build_corpus(folder, benchmarks=[tmp_path / "mine.jsonl"]).counts
    assert counts["leaked_items"] == [leaked()[1], "mine/1"] and counts["paragraphs"]["kept"] == 6


# ---------------------------------------------------------------- rows


def test_long_paragraphs_are_cut_between_sentences():
    text = "Uno due tre. Quattro cinque? Sei sette otto nove dieci undici dodici.\nTredici"
    assert cut_text(text, 5) == ["Uno due tre. Quattro cinque?", "Sei sette otto nove dieci", "undici dodici. Tredici"]
    assert cut_text(text, 100) == [text]


def test_rows_hold_no_more_words_than_asked_and_lose_none(tmp_path):
    text = " ".join(TEXTS[:200])
    for most in (8, 50, 333):
        pieces = cut_text(text, most)
        assert " ".join(pieces).split() == text.split() and max(len(piece.split()) for piece in pieces) <= most
    made = build_corpus(write_texts(tmp_path, 6, words=90), row_words=100, held_out=0)
    sizes = [len(row["text"].split()) for row in made.train]
    assert max(sizes) <= 100 and made.counts["train"] == {"documents": 6, "rows": len(sizes), "words": sum(sizes)}
    assert made.counts["cut_paragraphs"] == 0 and made.held_out == []


def test_paragraphs_share_a_row_while_they_fit():
    sizes = [3, 4, 3, 9, 12, 1]
    groups = packed([Paragraph(" ".join("a" * size)) for size in sizes], 10)
    assert [[part.size for part in group] for group in groups] == [[3, 4, 3], [9], [12], [1]]


# ---------------------------------------------------------------- held out


def test_whole_documents_are_held_out_about_as_much_as_asked(tmp_path):
    folder = write_texts(tmp_path, 60)
    made = build_corpus(folder, held_out=0.2)
    sides = [{row["document"] for row in side} for side in (made.train, made.held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 60
    share = made.counts["held_out"]["words"] / made.counts["words"]["kept"]
    assert 0.17 < share <= 0.2
    (folder / "61.txt").write_text(" ".join(ARTICLES), "utf-8")
    again = {row["document"] for row in build_corpus(folder, held_out=0.2).held_out}
    assert len(sides[1] - again) <= 2  # a new document moves hardly any


def test_the_smallest_document_is_held_out_where_none_fits_and_of_one_none():
    rows = [("a", [Paragraph("uno due tre")]), ("b", [Paragraph("uno due")]), ("b", [Paragraph("tre")])]
    assert hold_out(rows, 0.05) == {"a"} and hold_out(rows[1:], 0.05) == set() and hold_out(rows, 0) == set()


# ---------------------------------------------------------------- the same again


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_the_same_folder_gives_the_same_bytes_in_whatever_order_it_is_listed(folder, corpus, tmp_path, monkeypatch):
    write_corpus(corpus, tmp_path / "mio")
    walk = os.walk

    def backwards(top, **options):
        for root, folders, names in walk(top, **options):
            folders.sort(reverse=True)
            yield root, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    write_corpus(build_corpus(folder), tmp_path / "altrove" / "mio")
    first = contents(tmp_path / "mio")
    assert first == contents(tmp_path / "altrove" / "mio")
    assert first.keys() == {"README.md", "counts.json", "held_out.jsonl", "train.jsonl"}
    assert str(tmp_path) not in first["README.md"].decode() + first["counts.json"].decode()


def test_the_card_and_the_rows_say_what_was_counted(corpus, tmp_path):
    write_corpus(corpus, tmp_path / "mio")
    rows, left_out = read_rows(tmp_path / "mio" / "train.jsonl")
    assert rows == corpus.train and not left_out
    card = (tmp_path / "mio" / "README.md").read_text("utf-8")
    for reason, count in LEFT_OUT.items():
        assert f"| left out: {reason} | {count} | {corpus.counts['words']['left out'][reason]} |" in card
    assert "1 not UTF-8" in card and "{{" not in card and "\n\n\n" not in card
    assert json.loads((tmp_path / "mio" / "counts.json").read_text("utf-8")) == corpus.counts


# ---------------------------------------------------------------- what goes wrong


def test_a_corpus_takes_the_place_of_one_and_of_nothing_else(corpus, tmp_path, monkeypatch):
    out = tmp_path / "mio"
    write_corpus(corpus, out)
    (out / "train.jsonl").write_text("old\n", "utf-8")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(building, "card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        write_corpus(corpus, out)
    assert (out / "train.jsonl").read_text("utf-8") == "old\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["mio"]
    write_corpus(corpus, out)
    assert read_jsonl(out / "train.jsonl") == corpus.train
    (out / "notes").mkdir()  # somebody's own
    with pytest.raises(AnitaError, match="or other files too"):
        check_out(out)
    (out / "notes").rmdir()
    for nameless in (".", ".."):
        with pytest.raises(AnitaError, match="names no folder of its own"):
            check_out(type(out)(nameless))
    (out / "counts.json").unlink()
    with pytest.raises(AnitaError, match="is there and holds no corpus, or other files too: choose another name"):
        check_out(out)
    with pytest.raises(AnitaError, match="'italian' is the name of a shipped corpus"):
        check_out(type(out)("italian"))


def test_a_folder_without_texts_is_named(tmp_path):
    for missing in (tmp_path / "nowhere", tmp_path / "a.txt"):
        with pytest.raises(AnitaError, match="is no folder: give one that holds .txt, .md, .html"):
            build_corpus(missing)
        (tmp_path / "a.txt").touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.pdf").touch()
    with pytest.raises(AnitaError, match="empty holds no .txt, .md, .html, .htm: put texts there"):
        build_corpus(empty)
    (empty / "a.txt").write_text("All human beings are born free and equal in dignity and rights.", "utf-8")
    with pytest.raises(AnitaError, match=r"nothing is left of 1 paragraphs \(1 read, .*1 another language\): add"):
        build_corpus(empty)


def test_one_file_makes_a_corpus_without_a_held_out_part(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(ARTICLES), "utf-8")
    made = build_corpus(tmp_path)
    assert made.held_out == [] and made.counts["paragraphs"] == {"read": 8, "left out": {}, "kept": 8}


def test_without_the_extra_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "find_spec", lambda name: None if name == "stdnum" else name)
    with pytest.raises(AnitaError, match=r"python-stdnum not installed.*: pip install .*'\.\[corpus\]'"):
        build_corpus(tmp_path)
