"""The minimal pairs and their training text: balance, what is known and what is new, and that nothing leaks."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from itertools import pairwise
from random import Random
from string import Formatter

import pytest

from anita_utils.paths import data_dir
from world import grammar
from world.italian import capitalise
from world.tables import load_world

WORD = re.compile(r"\w+'?|[^\w\s]")
USES = ("development", "test")
LEAST = {"development": 20, "test": 40}
LANGUAGES = {"it": (12, 12, 30), "en": (6, 6, 15)}  # phenomena; training frames and words of each
ARTICLES = {"il", "lo", "la", "l'", "i", "gli", "le", "un", "uno", "una", "un'", "quel", "quello", "quell'", "quella"}
FUSED = re.compile(r"(?:de|da|ne|su|a)(?:l|ll'|llo|lla|i|gli|lle)$")
ARTICLE_FAMILY = ("article_noun", "elision", "prepositions")
PARTICIPLE_FAMILY = ("auxiliaries", "participles")


def tokens(text: str) -> list[str]:
    """Lower-case words; an elided one keeps its apostrophe and is a word by itself: l' amica."""
    return WORD.findall(text.lower())


def key_word(form: str) -> str:
    """The word of a form that counts: "i compiti" → compiti."""
    return max(tokens(str(form)), key=len)


@pytest.fixture(scope="module")
def table() -> dict:
    return load_world().extra["grammar"]


@pytest.fixture(scope="module")
def all_pairs(table: dict) -> dict[str, list[dict]]:
    return {use: grammar.pairs(table, use, Random(f"42/{use}")) for use in USES}


@pytest.fixture(scope="module")
def corpora() -> list[str]:
    """Every text of the corpora."""
    found = []
    for path in sorted((data_dir() / "corpora").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            if "text" in document:
                found.append(document["text"])
            turns = (document.get(part, []) for part in ("messages", "prompt", "chosen", "rejected"))
            found += [turn["content"] for part in turns for turn in part]
    return found


@pytest.fixture(scope="module")
def training(table: dict) -> dict[str, list[str]]:
    """Training sentences of every phenomenon, each row of each list among them."""
    found = {}
    for phenomenon in table["phenomena"]:
        hand = grammar.Hand(table, phenomenon, "known", Random(1))
        found[phenomenon["phenomenon"]] = [
            grammar.fill(template, hand.deal([template]))[0] for template in phenomenon["training"] for _ in range(90)
        ]
    return found


@pytest.fixture(scope="module")
def unigrams(table: dict, corpora: list[str]) -> Counter:
    rng = Random(2)
    texts = [grammar.training_text(table, language, rng) for language in LANGUAGES for _ in range(600)]
    return Counter(word for text in corpora + texts for word in tokens(text))


def unigram_score(pair: dict, counts: Counter) -> float:
    """1 if an add-one unigram model finds the good sentence likelier, 0 if the bad one, a half if neither."""
    total = math.log(counts.total() + len(counts) + 1)
    good, bad = (sum(math.log(counts[word] + 1) - total for word in tokens(pair[side])) for side in ("good", "bad"))
    return 0.5 if math.isclose(good, bad) else float(good > bad)


def differing(pair: dict) -> tuple[Counter, Counter]:
    good, bad = Counter(tokens(pair["good"])), Counter(tokens(pair["bad"]))
    return good - bad, bad - good


def common_start(one: list[str], other: list[str]) -> int:
    """How many words two sentences have in common before the first that differs."""
    both = list(zip(one, other, strict=False))
    return next((n for n, (a, b) in enumerate(both) if a != b), len(both))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_phenomena_frames_and_words(table: dict) -> None:
    for language, (phenomena, frames, words) in LANGUAGES.items():
        of_language = [p for p in table["phenomena"] if p["language"] == language]
        assert len(of_language) == phenomena
        for phenomenon in of_language:
            used = {grammar.list_name(slot) for frame in phenomenon["training"] for slot in grammar.slots(frame)}
            lists = [phenomenon["words"][name] for name in used - set(table["names"])]
            known = {row for words in lists for kind in ("known", "any") for row in grammar.rows(words, kind)}
            forms = {form for row in known for form in row.split("/") if form not in ("m", "f")}
            assert len(phenomenon["training"]) >= frames, phenomenon["phenomenon"]
            assert len(forms) >= words, phenomenon["phenomenon"]


def test_every_list_is_used_and_every_frame_counts(table: dict) -> None:
    for phenomenon in table["phenomena"]:
        frames = [frame for use in USES for frame in phenomenon[use]]
        templates = phenomenon["training"] + [t for frame in frames for t in grammar.frame_pairs(frame)]
        used = {grammar.list_name(slot) for template in templates for slot in grammar.slots(template)}
        assert used - set(table["names"]) == set(phenomenon["words"]), phenomenon["phenomenon"]
        for frame in frames:
            names = {grammar.list_name(s) for t in grammar.frame_pairs(frame) for s in grammar.slots(t)}
            counting = [n for n in names - set(table["names"]) if "any" not in phenomenon["words"][n]]
            assert counting or "half" in frame, frame


def test_uses_have_frames_of_their_own(table: dict) -> None:
    for phenomenon in table["phenomena"]:
        seen: dict[str, str] = {}
        for use in ("training", *USES):
            for frame in phenomenon[use]:
                for template in [frame] if isinstance(frame, str) else grammar.frame_pairs(frame):
                    right = grammar.CHOICE.sub(r"\1", template)
                    assert seen.setdefault(right, use) == use, right


def test_counts_and_halves(table: dict, all_pairs: dict[str, list[dict]]) -> None:
    for use in USES:
        counts = Counter((pair["phenomenon"], pair["known_words"]) for pair in all_pairs[use])
        for phenomenon in table["phenomena"]:
            known, new = (counts[phenomenon["phenomenon"], known] for known in (True, False))
            assert known + new >= LEAST[use]
            assert abs(known - new) <= 2


def test_pairs_are_well_formed(all_pairs: dict[str, list[dict]]) -> None:
    both = [pair for use in USES for pair in all_pairs[use]]
    good = [pair["good"] for pair in both]
    assert len(set(good)) == len(good)
    assert not set(good) & {pair["bad"] for pair in both}
    for pair in both:
        assert set(pair) == {"good", "bad", "phenomenon", "language", "known_words", "cluster"}
        for side in ("good", "bad"):
            assert re.fullmatch(r"[A-ZÈ][^\[\]{}|]*[\wùàèéìò][.?]", pair[side]), pair[side]
            assert "  " not in pair[side]
            assert " ." not in pair[side]
        good_words, bad_words = tokens(pair["good"]), tokens(pair["bad"])
        assert good_words != bad_words
        start, end = common_start(good_words, bad_words), common_start(good_words[::-1], bad_words[::-1])
        assert max(len(good_words), len(bad_words)) - start - end <= 3, pair


def test_pairs_can_be_drawn_again(table: dict, all_pairs: dict[str, list[dict]]) -> None:
    assert grammar.pairs(table, "test", Random("42/test")) == all_pairs["test"]


def frame_pattern(table: dict, phenomenon: dict, template: str) -> re.Pattern:
    """Every sentence that a training frame can make, as a regular expression."""
    parts = []
    for text, field, spec, _ in Formatter().parse(template):
        parts.append(re.escape(text))
        if field:
            name = grammar.list_name(grammar.slots("{" + field + "}")[0])
            words = phenomenon["words"].get(name) or {"known": table["names"][name]}
            kinds = [row for kind in ("known", "any") for row in grammar.rows(words, kind)]
            slot = "{" + re.sub(r"^\w+", "x", field) + ":" + (spec or "") + "}"
            filled = {slot.format(x=grammar.word(row, words, phenomenon["language"])) for row in kinds}
            parts.append(f"(?:{'|'.join(map(re.escape, sorted(filled)))})")
    return re.compile("".join(parts), re.IGNORECASE)


def test_no_pair_is_in_any_training_text(table: dict, all_pairs: dict[str, list[dict]], corpora: list[str]) -> None:
    corpus = "\n".join(corpora)
    patterns = [frame_pattern(table, p, frame) for p in table["phenomena"] for frame in p["training"]]
    for use in USES:
        for pair in all_pairs[use]:
            for side in ("good", "bad"):
                assert pair[side].rstrip(".") not in corpus
                assert not any(pattern.fullmatch(pair[side]) for pattern in patterns), pair[side]


def test_patterns_hold_the_training_text(table: dict, training: dict[str, list[str]]) -> None:
    for phenomenon in table["phenomena"]:
        patterns = [frame_pattern(table, phenomenon, frame) for frame in phenomenon["training"]]
        for text in training[phenomenon["phenomenon"]]:
            assert any(pattern.fullmatch(text) for pattern in patterns), text


def test_known_and_new_words(table: dict, training: dict[str, list[str]]) -> None:
    """Known rows stand in the training text of that phenomenon, new ones do not."""
    for phenomenon in table["phenomena"]:
        vocabulary = {word for text in training[phenomenon["phenomenon"]] for word in tokens(text)}
        for name, words in phenomenon["words"].items():
            for kind in ("known", "new"):
                for row in grammar.rows(words, kind):
                    forms = [f for f in grammar.word(row, words, phenomenon["language"]).forms.items() if f[0] != "reg"]
                    inside = [key_word(form) in vocabulary for _, form in forms]
                    message = f"{phenomenon['phenomenon']}: {name}: {kind} {row}"
                    assert any(inside) if kind == "known" else not any(inside), message


def test_false_friends_are_known_or_new(all_pairs: dict[str, list[dict]], training: dict[str, list[str]]) -> None:
    vocabulary = {word for text in training["false_friends"] for word in tokens(text)}
    for use in USES:
        for pair in all_pairs[use]:
            if pair["phenomenon"] == "false_friends":
                for side in differing(pair):
                    stems = [any(known.startswith(word[:-1]) for known in vocabulary) for word in side]
                    assert stems == [pair["known_words"]] * len(stems), pair


def test_new_nouns_never_follow_an_article(table: dict, training: dict[str, list[str]]) -> None:
    """New nouns of the articles, of elision and of prepositions: in no training text has any of them an article."""
    by_name = {p["phenomenon"]: p for p in table["phenomena"]}
    new = {
        key_word(form)
        for name in ARTICLE_FAMILY
        for words in by_name[name]["words"].values()
        for row in grammar.rows(words, "new")
        for form in grammar.word(row, words, "it").forms.values()
    }
    for name, texts in training.items():
        if by_name[name]["language"] == "it":
            for text in set(texts):
                for before, word in pairwise(tokens(text)):
                    assert word not in new or not (before in ARTICLES or FUSED.match(before)), text


def test_new_participles_are_in_no_training_text_of_either_construction(
    table: dict, training: dict[str, list[str]]
) -> None:
    vocabulary = {word for name in PARTICIPLE_FAMILY for text in training[name] for word in tokens(text)}
    for phenomenon in table["phenomena"]:
        if phenomenon["phenomenon"] in PARTICIPLE_FAMILY:
            for row in grammar.rows(phenomenon["words"]["e"], "new"):
                assert not set(row.split("/")) & vocabulary


def test_every_word_is_known_to_the_model(table: dict, corpora: list[str], training: dict[str, list[str]]) -> None:
    """Whatever the draw, every word of a good sentence stands in a corpus, a table or some training text."""
    tables = [p.read_text("utf-8") for p in (data_dir() / "world").rglob("*") if p.suffix in (".yaml", ".csv")]
    texts = corpora + tables + [text for texts in training.values() for text in texts]
    vocabulary = {word for text in texts for word in tokens(text)}
    drawn = {pair["good"] for use in USES for seed in range(12) for pair in grammar.pairs(table, use, Random(seed))}
    assert not {word for good in drawn for word in tokens(good)} - vocabulary


def test_frames_are_balanced(table: dict, all_pairs: dict[str, list[dict]]) -> None:
    """Over a frame what is right once is wrong once; where a form is never right, most words still are balanced."""
    clusters: dict[str, list[dict]] = defaultdict(list)
    for use in USES:
        for pair in all_pairs[use]:
            clusters[pair["cluster"]].append(pair)
    uneven = {name for name, found in clusters.items() if word_balance(found)}
    regularised = {
        f"{p['phenomenon']}/{use}/{number}"
        for p in table["phenomena"]
        for use in USES
        for number, frame in enumerate(p[use])
        if any(".reg}" in template for template in grammar.frame_pairs(frame))
    }
    assert uneven == regularised


def word_balance(found: list[dict]) -> Counter:
    """How much oftener each word that differs stands on the good side than on the bad one."""
    balance: Counter = Counter()
    for pair in found:
        good, bad = differing(pair)
        balance.update(good)
        balance.subtract(bad)
    return Counter({word: count for word, count in balance.items() if count})


def test_words_are_balanced_in_each_phenomenon(table: dict, all_pairs: dict[str, list[dict]]) -> None:
    """A word that differs at least eight times is good in a third to two thirds of them."""
    for use in USES:
        for phenomenon in table["phenomena"]:
            name = phenomenon["phenomenon"]
            sides = [differing(pair) for pair in all_pairs[use] if pair["phenomenon"] == name]
            good = sum((side[0] for side in sides), Counter())
            bad = sum((side[1] for side in sides), Counter())
            for word in set(good) | set(bad):
                if good[word] + bad[word] >= 8:
                    assert 1 / 3 <= good[word] / (good[word] + bad[word]) <= 2 / 3, (use, name, word)


@pytest.mark.parametrize("use", USES)
def test_word_frequency_alone_is_at_chance(use: str, all_pairs: dict[str, list[dict]], unigrams: Counter) -> None:
    scores: dict[str, list[float]] = defaultdict(list)
    for pair in all_pairs[use]:
        score = unigram_score(pair, unigrams)
        scores[pair["language"]].append(score)
        scores[pair["phenomenon"]].append(score)
        scores[f"{pair['language']}, known words: {pair['known_words']}"].append(score)
    for name, values in sorted(scores.items()):
        print(f"{use}: {name}: {mean(values):.3f} of {len(values)}")
    for name, values in scores.items():
        low, high = (0.45, 0.55) if name[:2] in LANGUAGES and name[2:3] in ("", ",") else (0.35, 0.65)
        assert low <= mean(values) <= high, (name, mean(values))


def test_training_text_is_right_and_covers_every_phenomenon(table: dict) -> None:
    rng = Random(3)
    for language in LANGUAGES:
        texts = [grammar.training_text(table, language, rng) for _ in range(1500)]
        of_language = [p for p in table["phenomena"] if p["language"] == language]
        patterns = {
            (p["phenomenon"], frame): frame_pattern(table, p, frame) for p in of_language for frame in p["training"]
        }
        joined = "\n".join(texts)
        for frame, pattern in patterns.items():
            assert pattern.search(joined), frame
        for text in texts:
            assert text == capitalise(text)
            assert 2 <= len(re.findall(r"[.?](?= [A-ZÈ]|$)", text)) <= 8  # a frame may hold two sentences
            assert not re.search(r"[\[\]{}|]|  | [.,;:]", text)
