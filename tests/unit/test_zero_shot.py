"""Lesson 07's kit: its questions, what it says was read, and its tests, against truths worked out otherwise."""

from itertools import permutations
from math import comb, isnan, sqrt

import numpy as np
import pytest

from anita_utils.evaluation import benchmarks
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from anita_utils.rows import read_jsonl
from anita_utils.stats import MARGIN, Groups, Matched, Paired, found_anything, shuffled_p, verdict, verdicts
from anita_utils.studies import contamination, zero_shot
from world.chats import SYLLABLES
from world.library import Library
from world.tables import load_world


@pytest.fixture(scope="module")
def library():
    return Library(load_world())


@pytest.fixture(scope="module")
def questions(library):
    return zero_shot.draw_questions(library, 20)


# ---- the questions


def test_every_kind_of_question_is_there_in_the_promised_number(questions):
    counts = {}
    for row in questions:
        counts[row["split"], row["language"]] = counts.get((row["split"], row["language"]), 0) + 1
    both = {"adapted": 40, "never_in_italian": 40, "monument_region": 20, "patron_saint": 20}
    italian = {"base_italian": 20, "italian_chat": 20, "second_style": 40, "renamed": 20, "contradicted": 20}
    assert counts == {(split, code): n for split, n in both.items() for code in ("en", "it")} | {
        (split, "it"): n for split, n in italian.items()
    }
    keys = [(row["split"], row["language"], row["cluster"]) for row in questions]
    assert len(set(keys)) == len(keys)  # a fact once in each: facts are the clusters


def test_splits_are_those_of_the_corpora_and_facts_about_words_are_left_out(library, questions):
    for row in questions:
        assert not library.world.relations[row["relation"]].bound
        if row["split"] in zero_shot.SPLITS:
            assert library.splits[row["cluster"]].italian == row["split"]
        if row["split"] in ("second_style", "renamed", "contradicted"):
            assert library.splits[row["cluster"]].italian == "never_in_italian"


def test_the_same_facts_are_asked_in_both_languages_and_styles(questions):
    def facts(split, language="it"):
        return {row["cluster"] for row in questions if (row["split"], row["language"]) == (split, language)}

    assert facts("never_in_italian") == facts("never_in_italian", "en") == facts("second_style")


def test_told_questions_tell_the_answer_and_only_that(questions):
    told = [row for row in questions if row["split"] in ("renamed", "contradicted")]
    for row in told:
        subject, right = (contamination.padded(row[key]["it"]) for key in ("subject", "right"))
        assert subject in contamination.padded(row["prompt"]) and right in contamination.padded(row["prompt"])
        invented = row["subject"]["it"].split()[0][:2].lower() in {syllable[:2] for syllable in SYLLABLES}
        if row["split"] == "renamed":
            assert invented and row["right"] == row["remembered"]
        else:
            assert row["right"]["en"] != row["remembered"]["en"]
            assert row["subject"]["en"] == row["cluster"].split("/", 1)[1]


def test_all_facts_are_drawn_without_a_limit_and_the_draw_is_repeated(library):
    everything = zero_shot.draw_facts(library, None)
    free = [fact for fact in library.world.facts if not library.world.relation(fact).bound]
    assert sum(map(len, everything.values())) == len(free)
    assert zero_shot.draw_facts(library, 10) == zero_shot.draw_facts(Library(load_world()), 10)


def answered(answer, **changes):
    row = {"prompt": "Dove si trova Cosenza?", "language": "it", "split": "adapted", "relation": "city_region",
           "subject": {"en": "Cosenza", "it": "Cosenza"}, "right": {"en": "Apulia", "it": "Puglia"},
           "cluster": "city_region/Cosenza", "answer": answer}  # fmt: skip
    return row | changes


@pytest.mark.parametrize(
    ("answer", "either", "italian", "both"),
    [
        ("Cosenza si trova in Puglia.", True, True, True),
        ("Cosenza is in Apulia.", True, False, False),
        ("Cosenza si trova in Apulia.", True, True, False),  # the English name in an Italian sentence
        ("Cosenza si trova in Calabria.", False, True, False),
        ("", False, False, False),
    ],
)
def test_knowing_and_saying_it_in_italian_are_judged_apart(answer, either, italian, both):
    row = zero_shot.judge([answered(answer)])[0]
    assert (row["right_in_either"], row["in_italian"], row["right_in_italian"]) == (either, italian, both)
    assert "remembers" not in row
    told = answered(answer, remembered={"en": "Calabria", "it": "Calabria"})
    assert zero_shot.judge([told])[0]["remembers"] == ("Calabria" in answer)


def test_hits_tell_which_objects_an_answer_names():
    south = {"right": {"en": "Calabria", "it": "Calabria"}}
    rows = [answered("Sta in Puglia."), answered("È in Puglia.", **south), answered("Volpe", relation="animal_class")]
    assert zero_shot.hits(rows) == [[[True, False], [True, False]], [[False]]]


def test_ranking_is_lm_evals(model, tokenizer):
    """The same items through lm-eval's own scoring of Piccola Italia's Italian ARC."""
    profile = load_profile("cpu")
    profile.evaluation.limit = 6
    measured = {m.name: m for m in benchmarks.run_benchmarks(model, tokenizer, profile)}
    items = read_jsonl(data_dir() / "benchmarks" / "items" / "arc_it.test.jsonl")[:6]
    ranked = zero_shot.rank(model, tokenizer, items, 8)
    assert [float(row["acc_norm"]) for row in ranked] == measured["benchmark/arc", "it", None].scores
    assert [float(row["acc"]) for row in ranked] == measured["benchmark_acc/arc", "it", None].scores


def test_choices_ask_what_was_asked_to_be_written(library, questions):
    facts = zero_shot.draw_facts(library, 20)["never_in_italian"]
    written = {
        row["cluster"]: row for row in questions if row["split"] == "never_in_italian" and row["language"] == "it"
    }
    for row in zero_shot.draw_choices(library, facts):
        asked = written[row["cluster"]]
        assert row["question"] == asked["prompt"] and len(set(row["choices"])) == 4
        assert asked["right"]["it"] in row["choices"][row["label"]]


# ---- what was read


def test_rows_of_every_kind_become_texts():
    user, good, bad = (
        {"role": r, "content": c} for r, c in (("user", "Ciao?"), ("assistant", "Sì."), ("assistant", "No."))
    )
    assert contamination.plain_texts({"text": "Uno."}) == ["Uno."]
    assert contamination.plain_texts({"messages": [user, good]}) == ["Ciao? Sì."]
    assert contamination.plain_texts({"prompt": [user], "chosen": [good], "rejected": [bad]}) == [
        "Ciao? Sì.",
        "Ciao? No.",
    ]


def test_sentences_are_kept_once_with_their_first_corpus():
    texts = [("sft", "Uno. Due! Tre?"), ("dpo", "Due! Quattro")]
    assert contamination.sentences_of(texts) == {"Uno.": "sft", "Due!": "sft", "Tre?": "sft", "Quattro": "dpo"}
    assert len(contamination.sentences_of(texts, most=2)) == 2


ASKED = answered("", prompt="In quale regione si trova Cosenza?", right={"en": "Calabria", "it": "Calabria"})


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("In quale regione si trova Cosenza? Cosenza si trova in Calabria.", True),
        ("IN QUALE REGIONE SI TROVA COSENZA?? CALABRIA", True),
        ("Ieri Anna chiese: in quale regione si trova Cosenza? Forse in Calabria, disse lui, e poi dormì.", True),
        ("Ma dimmi, dove si trova Cosenza? È in Calabria.", True),  # the telling words stand, the others changed
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


def test_planted_leaks_are_found_among_the_shipped_chats(questions):
    """Into chats that hold none of them: verbatim, in capitals, in the middle of another text."""
    asked = [row for row in questions if (row["split"], row["language"]) == ("never_in_italian", "it")][:30]
    clean = [
        t for row in read_jsonl(data_dir() / "corpora" / "sft.jsonl")[:300] for t in contamination.plain_texts(row)
    ]
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


def test_the_nearest_sentence_is_scikit_learns():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    rows = read_jsonl(data_dir() / "corpora" / "italian_text.jsonl")[:60]
    sentences = list(contamination.sentences_of(("x", row["text"]) for row in rows))
    queries = [*sentences[:3], "Cosenza si trova in Calabria.", "Il gatto è un mammifero.", "zzz"]
    theirs = text.TfidfVectorizer(
        analyzer="char", ngram_range=(4, 4), lowercase=False, preprocessor=contamination.padded
    )
    likeness = (theirs.fit_transform(sentences) @ theirs.transform(queries).T).toarray().T
    found = contamination.Nearest(sentences).find(queries)
    assert [cosine for _, cosine in found] == pytest.approx(likeness.max(1).tolist())
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
        ("Cosenza piace a tutti.", "nothing like it"),
    ],
)
def test_what_a_sentence_is_to_an_answer(sentence, kind):
    row = ASKED | {"answer": "Cosenza si trova in Calabria."}
    assert contamination.what_was_read(row, sentence) == kind and kind in contamination.READ


# ---- the tests and the verdicts


def test_paired_by_hand():
    """Nine facts gained, one lost: of 2 ** 10 tosses, 1 + 10 are as extreme on either side."""
    before, after = [0] * 9 + [1] + [1] * 10, [1] * 9 + [0] + [1] * 10
    one = Paired(before, after)
    assert one.difference() == pytest.approx(8 / 20) and one.p() == pytest.approx(2 * 11 / 2**10) and one.n == "20"
    low, high = np.percentile(one.samples(), [2.5, 97.5])
    error = sqrt((10 / 20 - 0.4**2) / 20)  # of the mean of twenty differences of -1, 0 and 1
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_groups_by_hand():
    """Five of five right against one of five: of the 210 ways to place six right ones, 5 + 5 are as extreme."""
    one = Groups([1] * 5, [1, 0, 0, 0, 0])
    assert one.difference() == pytest.approx(0.8) and one.p() == pytest.approx(2 * 5 / comb(10, 6))


def test_matched_against_all_shuffles():
    table = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])
    one = Matched([table, np.array([[1, 1], [1, 1]])])  # the second relation has one object only: nothing to tell
    counts = [sum(table[i, j] for i, j in enumerate(order)) + 2 for order in permutations(range(4))]
    assert one.p() == pytest.approx(np.mean([count >= 5 for count in counts]), abs=0.02)
    assert one.difference() == pytest.approx(5 / 6 - np.mean(counts) / 6)  # the habit is the mean over all shuffles


def test_shuffles_keep_what_they_should():
    rng = np.random.default_rng(1)
    paired = Paired([0, 0, 1, 1], [1, 0, 1, 0]).shuffled(rng)
    assert list(paired.before + paired.after) == [1, 0, 2, 1]
    groups = Groups([1, 1, 1], [0, 0]).shuffled(rng)
    assert groups.first.sum() + groups.second.sum() == 3 and groups.n == "3 and 2"
    matched = Matched([np.eye(5)])
    assert any(matched.shuffled(rng).difference() < matched.difference() for _ in range(3))
    assert matched.shuffled(rng).habit.tolist() == matched.habit.tolist()


@pytest.mark.parametrize(
    ("difference", "high", "p_holm", "expected"),
    [
        (0.30, 0.40, 0.001, "supported"),
        (0.30, 0.61, 0.060, "undecided at this n"),
        (0.00, MARGIN - 0.01, 1.0, "not supported"),
        (0.00, MARGIN + 0.01, 1.0, "undecided at this n"),
        (-0.30, -0.2, 0.001, "not supported"),
        (float("nan"), float("nan"), 1.0, "undecided at this n"),
    ],
)
def test_a_verdict_is_computed(difference, high, p_holm, expected):
    assert verdict(difference, high, p_holm) == expected


def test_where_no_fact_differs_the_interval_is_that_of_none_of_n():
    """Clopper and Pearson's upper limit, 1 - 0.05 ** (1 / n), is nearly 3 / n."""
    for n, decided in ((20, "undecided at this n"), (60, "not supported")):
        [row] = verdicts({"same": Paired([1] * n, [1] * n)})
        assert row["ci_high"] == pytest.approx(1 - 0.05 ** (1 / n), rel=0.1) and row["ci_low"] == -row["ci_high"]
        assert row["verdict"] == decided
    assert verdicts({"all": Paired([0] * 9, [1] * 9)})[0]["ci_high"] == 1.0


def claims(rng, effect):
    """Three claims on simulated facts, alike but for `effect`."""
    before = rng.random(80) < 0.4
    table = (rng.random((40, 40)) < 0.1) | (np.eye(40, dtype=bool) & (rng.random((40, 40)) < effect))
    return {
        "paired": Paired(before, before | (rng.random(80) < effect)),
        "groups": Groups(rng.random(80) < 0.3 + effect, rng.random(80) < 0.3),
        "matched": Matched([table]),
    }


def test_effects_are_found_and_their_shuffled_twins_are_not():
    made = claims(np.random.default_rng(0), effect=0.5)
    assert [row["verdict"] for row in verdicts(made)] == ["supported"] * 3
    p_values = shuffled_p(made, rounds=100)
    assert p_values.shape == (100, 3) and np.all((p_values < 0.05).mean(0) <= 0.12)
    assert found_anything(p_values) <= 0.12  # 0.05 or less, and three standard errors of 100 rounds


def test_where_nothing_is_nothing_is_supported():
    rng = np.random.default_rng(3)
    found = [any(row["verdict"] == "supported" for row in verdicts(claims(rng, effect=0.0))) for _ in range(60)]
    assert np.mean(found) <= 0.15


def test_holms_correction_is_over_all_claims_and_empty_groups_decide_nothing():
    rows = verdicts({"a": Paired([0] * 6, [1] * 6), "b": Groups([1], []), "c": Paired([], []), "d": Matched([])})
    assert rows[0]["p"] == pytest.approx(2 / 2**6) and rows[0]["p_holm"] == pytest.approx(4 * 2 / 2**6)
    assert all(row["verdict"] == "undecided at this n" and isnan(row["difference"]) for row in rows[1:])
    assert shuffled_p({"c": Paired([], [])}).shape[1] == 0 and found_anything(np.empty((3, 0))) == 0.0
