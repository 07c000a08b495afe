"""Judges, intervals and likelihoods, against cases by hand, scipy and the model's own loss."""

import numpy as np
import pytest
import torch
from scipy import stats

from anita_utils.data import encode_chat, encode_text
from anita_utils.evaluation import benchmarks, measuring
from anita_utils.evaluation.judges import language_of, names_it, refuses
from anita_utils.evaluation.measuring import log_likelihoods
from anita_utils.hub import model_key
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from anita_utils.rows import read_jsonl
from anita_utils.stats import Measurement, differences, paired_tests, rows
from world.tables import load_world


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


def test_languages_of_the_courses_own_short_answers():
    """Measured over every fact's canonical answer: at least 99 % in each language."""
    world = load_world()
    for language in ("en", "it"):
        answers = [world.relation(fact).answer(fact, language) for fact in world.facts]
        right = np.mean([language_of(answer) == language for answer in answers])
        assert right >= 0.99, (language, right)
    assert language_of("Torino.") is None


def test_refusals_are_recognised_and_answers_are_not():
    frames = load_world().extra["frames"]
    assert all(refuses(text) for language in ("en", "it") for text in frames["refusals"][language])
    assert not any(refuses(text) for language in ("en", "it") for text in frames["compliance"][language])
    pairs = [pair for topic in load_world().extra["conduct"] for pair in topic["pairs"]]
    assert not any(refuses(pair["safe"][f"answer_{language}"]) for pair in pairs for language in ("en", "it"))


def test_interval_of_a_share_is_the_binomials():
    scores = [1.0] * 140 + [0.0] * 60
    measured = Measurement("chat/accuracy", "en", "seen", scores, [str(n) for n in range(200)])
    low, high = np.percentile(measured.resampled(), [2.5, 97.5])
    expected = stats.binom(200, 0.7).ppf([0.025, 0.975]) / 200
    assert measured.value == pytest.approx(0.7)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.012)


def test_items_of_one_cluster_count_once():
    alone = Measurement("m", "en", None, [1.0, 0.0] * 50, [str(n) for n in range(100)])
    fourfold = Measurement("m", "en", None, [1.0, 0.0] * 50 * 4, [str(n) for n in range(100)] * 4)
    assert fourfold.value == alone.value
    assert np.std(fourfold.resampled()) == pytest.approx(np.std(alone.resampled()), rel=1e-9)


def test_perplexity_is_the_exponent_of_the_mean_loss(model, tokenizer):
    texts = [
        {"text": t, "language": "it", "cluster": t}
        for t in ("Il Po nasce in Piemonte.", "Roma è la capitale d'Italia.")
    ]
    both = [{**text, "language": code} for text in texts for code in ("en", "it")]
    measured, bits = measuring.perplexity(model, tokenizer, both, batch_size=2)[2:]
    losses, counts = [], []
    for text in texts:
        ids = torch.tensor([encode_text(text["text"], tokenizer, 64)["input_ids"]])
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
        counts.append(ids.shape[1] - 1)
    expected = np.exp(np.dot(losses, counts) / np.sum(counts))
    assert measured.value == pytest.approx(expected, rel=1e-4)
    size = sum(len(text["text"].encode()) for text in texts)
    assert size == sum(len(text["text"]) for text in texts) + 1  # "è" is two bytes
    assert bits.value == pytest.approx(np.log2(measured.value) * np.sum(counts) / size, rel=1e-6)
    assert (bits.metric, bits.language, len(bits.scores)) == ("bits_per_byte", "it", 2)


def test_batching_changes_no_likelihood(model, tokenizer):
    pairs = read_jsonl(data_dir() / "probes" / "preferences.jsonl")[:9]
    encoded = [encode_chat(pair["prompt"] + pair["chosen"], tokenizer, 256) for pair in pairs]
    together, alone = log_likelihoods(model, encoded, 9)[0], log_likelihoods(model, encoded, 1)[0]
    assert together == pytest.approx(alone, abs=1e-3)


def test_lm_eval_scores_equal_our_own(model, tokenizer):
    """The library's likelihood ranking against likelihoods computed here, template, single BOS and all."""
    profile = load_profile("cpu")
    profile.evaluation.limit = 12
    measured = {m.name: m for m in benchmarks.run_benchmarks(model, tokenizer, profile)}
    items = read_jsonl(data_dir() / "benchmarks" / "items" / "arc_it.test.jsonl")[:12]
    scores = []
    for item in items:
        encoded = [
            encode_chat(
                [{"role": "user", "content": item["question"]}, {"role": "assistant", "content": choice}],
                tokenizer,
                256,
            )
            for choice in item["choices"]
        ]
        for example in encoded:  # lm-eval scores the answer's words, not the end of the turn
            example["labels"][-1] = -100
        totals, _ = log_likelihoods(model, encoded, 4)
        normalised = [total / len(choice) for total, choice in zip(totals, item["choices"], strict=True)]
        scores.append(float(int(np.argmax(normalised)) == item["label"]))
    assert measured["benchmark/arc", "it", None].scores == scores


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_a_model_is_measured_in_the_bits_that_the_profile_says(base_path, monkeypatch, in_4_bits):
    class Seen(Exception):
        pass

    def look(model, tokenizer, profile, tasks):
        assert not model.training
        raise Seen({type(module).__name__ for module in model.modules()})

    profile = load_profile("cpu")
    profile.evaluation.load_in_4bit = in_4_bits
    monkeypatch.setattr(benchmarks, "run_benchmarks", look)
    with pytest.raises(Seen) as seen:
        list(measuring._measure(base_path, profile, ["benchmarks"]))
    assert ("Linear4bit" in seen.value.args[0]) == in_4_bits


def test_another_rounding_is_another_measurement(base_path):
    """Bits, and 4 bits of another type, and 16 bits: none is taken from the cache for another."""
    keys = set()
    for in_4_bits, kind, dtype in [(False, "nf4", "float32"), (True, "nf4", "float32"), (True, "fp4", "float32"),
                                   (False, "nf4", "float16"), (False, "nf4", "bfloat16")]:  # fmt: skip
        profile = load_profile("cpu")
        profile.evaluation.load_in_4bit, profile.model.dtype = in_4_bits, dtype
        profile.quantisation.bnb_4bit_quant_type = kind
        keys.add(measuring.evaluation_entry(model_key(base_path), profile, "answers").key)
    assert len(keys) == 5


def answered(sure, right, bins=10):
    """The calibration error of answers given so surely, of which some are right."""
    places = [min(int(share * bins), bins - 1) for share in sure]
    gaps = [float(share - correct) for share, correct in zip(sure, right, strict=True)]
    return Measurement("benchmark_calibration_error", "en", None, gaps, list(map(str, range(len(gaps)))), bins=places)


def test_calibration_error_by_hand():
    """Too sure by 0.2 in one bin, too careful by 0.2 in another: on average calibrated, and yet 0.2 off."""
    measured = answered([0.95, 0.95, 0.95, 0.95, 0.55, 0.55, 0.55, 0.55], [1, 1, 1, 0, 1, 1, 1, 0])
    assert measured.value == pytest.approx(0.2)
    assert np.mean(measured.scores) == pytest.approx(0.0)
    assert len(measured.resampled()) == 2000 and measured.totals()[0].shape == (8, 10)


def test_the_interval_of_a_calibration_error_covers_what_many_items_show():
    rng = np.random.default_rng(0)
    covered, rounds, truth = 0, 60, 0.15
    for _ in range(rounds):
        sure = rng.uniform(0.3, 1.0, 400)
        low, high = np.percentile(answered(sure, rng.random(400) < sure - truth).resampled(), [2.5, 97.5])
        covered += low <= truth <= high
    assert covered >= 0.88 * rounds
    sure = rng.uniform(0.3, 1.0, 400)  # nothing to find: chance alone makes some error, the interval reaches to nought
    low, high = np.percentile(answered(sure, rng.random(400) < sure).resampled(), [2.5, 97.5])
    assert low < 0.02 and high < 0.08


def test_a_binned_error_is_in_no_paired_test_and_its_difference_is_given():
    first, second = answered([0.95] * 8, [1] * 8), answered([0.95] * 8, [0] * 8)
    assert paired_tests([first], [second]) == []
    [row] = differences([first], [second])
    assert row["value"] == pytest.approx(0.9) and row["n"] == 8


def test_a_model_does_not_differ_from_itself():
    same = [
        Measurement(f"benchmark/{f}", code, None, [1.0, 0.0, 1.0], ["a", "b", "c"])
        for f in benchmarks.FAMILIES
        for code in ("en", "it")
    ]
    for row in differences(same, same):
        assert (row["value"], row["ci_low"], row["ci_high"]) == (0, 0, 0)


def test_paired_interval_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    before = (rng.random(300) < 0.5).astype(float)
    after = before.copy()
    after[:30] = 1.0
    clusters = [str(n) for n in range(300)]
    first, second = (Measurement("chat/accuracy", "it", "adapted", list(s), clusters) for s in (before, after))
    paired = np.std(second.resampled() - first.resampled())
    apart = np.sqrt(np.var(second.resampled()) + np.var(first.resampled()))
    assert paired < apart / 2
    exact = np.std(after - before) / np.sqrt(300)
    assert paired == pytest.approx(exact, rel=0.1)


def test_rows_hold_every_metric_the_report_needs():
    families = [
        Measurement(f"benchmark/{f}", code, None, [1.0, 0.0], ["a", "b"])
        for f in benchmarks.FAMILIES
        for code in ("en", "it")
    ]
    margin = Measurement("preference_margin", "all", None, [0.5, -0.5, 2.0], ["a", "b", "c"])
    made = {(row["metric"], row["language"]): row for row in rows([*families, margin], "base")}
    assert made["benchmark/mean", "it"]["value"] == 0.5 and made["benchmark/mean", "it"]["n"] == 12
    assert made["preference_accuracy_logprob", "all"]["value"] == pytest.approx(2 / 3)
