"""Effects, intervals and verdicts, against numbers by hand, scipy, and simulations where the truth is known."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from anita_utils import AnitaError
from anita_utils.ablation.effects import (
    FACTORS,
    Effect,
    MeasureSheet,
    claims_table,
    corrected_interval,
    effects_table,
    estimate,
    evidence,
    factorial,
    find,
    outcome,
    prediction_interval,
    read_sheet,
    shuffled_control,
    tells,
    verdict,
)
from anita_utils.stats import Measurement, holm, holm_levels, rows

CELLS = {frozenset(c): "_".join(c) or "base" for size in range(4) for c in combinations(FACTORS, size)}
TRUTH = {"sft": 0.1, "italian": 0.2, "dpo": -0.05, "sft × italian": 0.03, "sft × dpo": 0.0, "italian × dpo": -0.02,
         "sft × italian × dpo": 0.04}  # fmt: skip


def cell_mean(cell):
    """The figure of a cell where the effects are TRUTH: half of each effect, with the sign of the cell."""
    signs = {factor: 1 if factor in cell else -1 for factor in FACTORS}
    return 0.5 + sum(size / 2 * np.prod([signs[f] for f in name.split(" × ")]) for name, size in TRUTH.items())


def sheet_of(values, noise=0.0, clusters=50, random=None):
    """A sheet of arms × seeds figures, each spread over clusters with noise that is new for every one."""
    values = np.asarray(values, float)[..., None] + np.zeros(clusters)
    scores = values + (noise * random.normal(size=values.shape) if noise else 0)
    return MeasureSheet(list(CELLS.values()), list(range(values.shape[1])), [scores], [np.ones(values.shape)])


def monte_carlo(share, rounds):
    """Three standard errors of a share counted in so many rounds."""
    return 3 * np.sqrt(share * (1 - share) / rounds)


# ---------------------------------------------------------------- estimates


def test_effects_are_recovered_exactly_without_noise():
    sheet = sheet_of([[cell_mean(cell)] * 3 for cell in CELLS])
    found = {name: sheet.effect(contrast) for name, contrast in factorial(CELLS).items()}
    assert {name: effect.estimate for name, effect in found.items()} == pytest.approx(TRUTH, abs=1e-12)
    assert all(effect.interval() == pytest.approx((effect.estimate,) * 2, abs=1e-9) for effect in found.values())
    assert [name for name, effect in found.items() if effect.p == 1] == ["sft × dpo"]


def test_an_interaction_by_hand():
    """With one stage 10 and 20, with both 40: the whole is 10 more than its parts, and Yates halves it twice."""
    by_hand = {"base": 0, "sft": 10, "italian": 20, "sft_italian": 40}
    by_hand |= {name + "_dpo" if name != "base" else "dpo": value for name, value in by_hand.items()}
    sheet = sheet_of([[by_hand[name]] * 2 for name in CELLS.values()])
    contrasts = factorial(CELLS)
    assert sheet.effect(contrasts["sft"]).estimate == pytest.approx((10 + 20) / 2)
    assert sheet.effect(contrasts["sft × italian"]).estimate == pytest.approx((20 - 10) / 2)
    assert sheet.effect(contrasts["dpo"]).estimate == pytest.approx(0)
    synergy = {"sft_italian": 1, "sft": -1, "italian": -1, "base": 1}
    assert sheet.effect(synergy).estimate == pytest.approx(10)


def test_seeds_alone_give_the_ordinary_t_interval():
    values = np.array([0.1, 0.4, 0.2, 0.35, 0.15])
    effect, scipys = estimate(values), stats.ttest_1samp(values, 0)
    assert effect.p == pytest.approx(scipys.pvalue)
    assert effect.interval() == pytest.approx(tuple(scipys.confidence_interval(0.95)))
    assert effect.above(0.1) == pytest.approx(stats.ttest_1samp(values, 0.1, alternative="greater").pvalue)
    assert effect.below(0.1) == pytest.approx(stats.ttest_1samp(values, 0.1, alternative="less").pvalue)


def test_items_alone_give_the_bootstraps_spread():
    """Seeds that agree to the item: what is left is the choice of items, also in ratios with unequal clusters."""
    random = np.random.default_rng(1)
    scores, clusters = random.normal(1, 0.3, 240), [str(n) for n in random.integers(0, 80, 240)]
    measured = Measurement("chat/accuracy", "it", "seen", list(scores), clusters)
    sheet = read_sheet({("a", seed): [measured] for seed in (1, 2, 3)}, "chat/accuracy it seen", ["a"])
    effect = sheet.effect({"a": 1})
    assert effect.estimate == pytest.approx(measured.value)
    assert effect.error == pytest.approx(np.std(measured.resampled()), rel=0.1)  # the bootstrap's own error is 1.6 %


def test_one_seed_has_no_interval():
    with pytest.raises(AnitaError, match="takes two or more, not 1: run `anita ablate --seeds 5`"):
        estimate(np.array([0.3]))


@pytest.mark.parametrize("spread", [(0.05, 0.5, 0.5), (0.2, 0.2, 0.2), (0.0, 1.0, 0.0), (0.1, 0.0, 1.0)])
def test_the_interval_covers_the_truth_for_other_seeds_and_items(spread):
    """A difference with a part of its own for each seed, each item and each pair of them, as their share varies."""
    random, rounds, seeds, items, covered = np.random.default_rng(7), 1000, 5, 60, 0
    for _ in range(rounds):
        by_seed, by_item = spread[0] * random.normal(size=(seeds, 1)), spread[1] * random.normal(size=(1, items))
        scores = 0.3 + by_seed + by_item + spread[2] * random.normal(size=(seeds, items))
        low, high = (
            MeasureSheet(["a"], list(range(seeds)), [scores[None]], [np.ones((1, seeds, items))])
            .effect({"a": 1})
            .interval()
        )
        covered += low <= 0.3 <= high
    assert covered / rounds > 0.95 - monte_carlo(0.95, rounds)
    assert covered / rounds < 0.99


def test_the_interval_for_one_new_seed_covers_it():
    random, rounds = np.random.default_rng(3), 3000
    draws = random.normal(0.6, 0.02, (rounds, 6))
    ends = [prediction_interval(values[:5]) for values in draws]
    covered = np.mean([low <= values[5] <= high for (low, high), values in zip(ends, draws, strict=True)])
    assert covered == pytest.approx(0.99, abs=monte_carlo(0.99, rounds))


def test_seeds_that_agree_leave_room_for_one_item():
    assert prediction_interval(np.full(5, 0.5)) == (0.5, 0.5)
    low, high = prediction_interval(np.full(5, 0.5), step=0.01)
    assert low < 0.49 and high > 0.51 and high - low < 0.04


def test_an_interval_has_the_coverage_asked_for():
    effect, values = Effect(0.1, 0.02, 7, 5), stats.t(7, loc=0.1, scale=0.02)
    for coverage in (0.5, 0.95, 0.999):
        assert effect.interval(coverage) == pytest.approx(values.interval(coverage))
    assert effect.interval() == effect.interval(0.95)


def test_intervals_end_where_a_share_does():
    """0.95, 0.99 and 1.0: two degrees of freedom reach far beyond 1. Against 0.5 ± 0, at most half is gained."""
    high, middle = [0.95, 0.99, 1.0], [0.5, 0.5, 0.5]
    low, top = estimate(np.array(high), bounds=(0, 1)).interval(0.99)
    assert top == 1 and low == pytest.approx(stats.ttest_1samp(high, 0).confidence_interval(0.99)[0])
    assert prediction_interval(np.array(high), bounds=(0, 1))[1] == 1
    measured = {}
    for arm, shares in {"a": high, "b": middle}.items():
        for seed, share in enumerate(shares):
            scores = [1.0] * round(100 * share) + [0.0] * round(100 - 100 * share)
            clusters = [f"{n:03}" for n in range(100)]
            measured[arm, seed] = [Measurement("language_fidelity", "it", None, scores, clusters),
                                   Measurement("perplexity", "it", None, scores, clusters)]  # fmt: skip
    share, text = (read_sheet(measured, name, ["a", "b"]) for name in ("language_fidelity it", "perplexity it"))
    assert share.effect({"a": 1, "b": -1}).bounds == (-1, 1) and share.effect({"a": 1}).bounds == (0, 1)
    assert share.effect({"a": 2, "b": -1}).bounds == (-1, 2)
    gained, logarithm = (replace(sheet.effect({"a": 1, "b": -1}), error=1, df=4) for sheet in (share, text))
    assert gained.interval() == (-1, 1)
    assert logarithm.bounds == (-np.inf, np.inf) and logarithm.interval()[1] > 1


def test_a_wide_interval_tells_nothing():
    assert tells((0.2, 0.5), (0, 1)) and tells((-0.3, 0.3), (-1, 1))
    assert not tells((0.2, 0.54), (0, 1)) and not tells((0, 1), (0, 1))
    assert not tells((3.1, 3.2), (-np.inf, np.inf))  # a perplexity has no range to be a third of


# ---------------------------------------------------------------- corrections and controls


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9, 0.001, 0.4]) == pytest.approx([1, 1, 0.004, 1])
    assert holm([]) == []


def test_of_two_tests_that_exclude_each_other_one_counts():
    """Two lines, four tests, two nulls true at most: factors 2, 2, 2, 1 instead of 4, 3, 2, 1."""
    p = [0.02, 0.9, 0.03, 0.04]
    assert holm(p) == pytest.approx([0.08, 0.9, 0.09, 0.09])
    assert holm(p, true=2) == pytest.approx([0.04, 0.9, 0.06, 0.08])
    assert holm_levels(p, 0.05, true=2) == pytest.approx([0.025] * 4)


def test_a_claim_is_found_by_luck_in_one_table_of_twenty():
    """Nulls on the edge of both sides: half of the lines have no gain, the others exactly what is worth naming."""
    random, rounds, lines, wrong = np.random.default_rng(13), 2000, 12, 0
    for _ in range(rounds):
        p = []
        for number in range(lines):
            truth = 0.02 * (number % 2)
            effect = estimate(truth + 0.02 * random.normal(size=5))
            p += evidence(effect, "higher", 0.02)
        true_nulls = [2 * number + number % 2 for number in range(lines)]  # for where 0 is true, against where 0.02 is
        wrong += min(np.array(holm(p, true=lines))[true_nulls]) < 0.05
    assert wrong / rounds < 0.05 + monte_carlo(0.05, rounds)


def test_nothing_is_found_where_there_is_nothing():
    random, rounds, found = np.random.default_rng(11), 400, 0
    for _ in range(rounds):
        sheets = [sheet_of(0.5 + 0.02 * random.normal(size=(8, 5)), 0.3, 40, random) for _ in range(2)]
        p = [sheet.effect(contrast).p for sheet in sheets for contrast in factorial(CELLS).values()]
        found += min(holm(p)) < 0.05
    assert found / rounds < 0.05 + monte_carlo(0.05, rounds)


def test_shuffled_labels_show_nothing_where_the_true_ones_do():
    random = np.random.default_rng(5)
    sheet = sheet_of([[cell_mean(cell)] * 5 for cell in CELLS], 0.3, 60, random)
    contrasts = factorial(CELLS)
    p = holm([sheet.effect(contrast).p for contrast in contrasts.values()])
    assert dict(zip(contrasts, p, strict=True))["italian"] < 0.01
    assert shuffled_control([sheet], contrasts, rounds=200) < 0.05 + monte_carlo(0.05, 200)
    assert shuffled_control([sheet], contrasts, rounds=20) == shuffled_control([sheet], contrasts, rounds=20)


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize("kind", ["higher", "kept", "differs"])
def test_the_corrected_interval_says_what_the_tests_say(kind):
    random, worth, said = np.random.default_rng(17), 0.02, set()
    for _ in range(300):
        effect = Effect(random.normal(0, 0.03), random.uniform(0.001, 0.02), random.uniform(3, 40), 5)
        level = random.uniform(0.0005, 0.05)
        p_for, p_against = evidence(effect, kind, worth)
        low, high = corrected_interval(effect, kind, level)
        speaks = {"higher": low > 0, "kept": low > -worth, "differs": low > 0 or high < 0}[kind]
        denies = {"higher": high < worth, "kept": high < -worth, "differs": -worth < low and high < worth}[kind]
        assert (p_for < level, p_against < level) == (speaks, denies)
        said.add((speaks, denies))
    assert len(said) >= 3


def test_line_and_verdict_say_the_same():
    """Twelve claims of three kinds, from clear to open: each verdict can be read from its interval alone."""
    random, kinds = np.random.default_rng(19), ["higher", "kept", "differs"]
    gains = [0.2, -0.2, 0.0, 0.04, -0.04, 0.01, 0.02, -0.02, 0.08, 0.0, 0.001, -0.1]
    measured, claims, clusters = {}, {}, [str(n) for n in range(60)]
    for number, gain in enumerate([0.0, *gains]):
        for seed in range(5):
            scores = list(0.5 + gain + random.normal(0, 0.05, 60))
            measured[f"arm {number}", seed] = [Measurement("language_fidelity", "it", None, scores, clusters)]
        contrast, kind = {f"arm {number}": 1, "arm 0": -1}, kinds[number % 3]
        claims[f"{number}"] = SimpleNamespace(contrast=contrast, kind=kind, worth=0.02, family="one",
                                              measures=["language_fidelity it"])  # fmt: skip
    claims.pop("0")
    table = claims_table(measured, claims)
    p = table[["p_for", "p_against"]].to_numpy().ravel()
    assert table[["holm_for", "holm_against"]].to_numpy().ravel() == pytest.approx(holm(p, true=12))
    for row in table.itertuples():
        kind = claims[row.claim].kind
        edge = -0.02 if kind == "kept" else 0
        speaks = row.low > edge or (kind == "differs" and row.high < 0)
        denies = row.high < (-0.02 if kind == "kept" else 0.02) and (kind != "differs" or row.low > -0.02)
        assert row.verdict == ("not supported" if denies else "supported" if speaks else "undecided at n = 5 seeds")
    assert len(set(table["verdict"])) == 3


def test_an_outcome_tells_too_little_from_the_contrary():
    line = {"worth": 0.02, "verdict": "not supported", "seeds": 5}
    assert outcome(line | {"low": -0.01, "high": 0.015}) == "equivalent"
    assert outcome(line | {"low": -0.3, "high": -0.1}) == outcome(line | {"low": -0.03, "high": 0.01}) == "against"
    assert outcome({"verdict": "supported"}) == "for"
    assert outcome({"verdict": "undecided at n = 5 seeds"}) == "undecided"
    assert outcome({"verdict": "not measured with two seeds yet"}) == "not measured"


@pytest.mark.parametrize(
    ("kind", "estimated", "error", "said"),
    [
        ("higher", 0.10, 0.01, "supported"),
        ("higher", -0.10, 0.01, "not supported"),
        ("higher", 0.00, 0.001, "not supported"),
        ("higher", 0.01, 0.0005, "not supported"),  # there, but surely smaller than what is worth naming
        ("higher", 0.03, 0.02, "undecided at n = 5 seeds"),
        ("kept", 0.00, 0.002, "supported"),
        ("kept", -0.10, 0.01, "not supported"),
        ("kept", -0.02, 0.01, "undecided at n = 5 seeds"),
        ("differs", -0.10, 0.01, "supported"),
        ("differs", 0.10, 0.01, "supported"),
        ("differs", 0.00, 0.002, "not supported"),
        ("differs", 0.02, 0.01, "undecided at n = 5 seeds"),
    ],
)
def test_verdicts(kind, estimated, error, said):
    effect = Effect(estimated, error, 4, 5)
    assert verdict(*evidence(effect, kind, 0.02), 5) == said


def measured_arms(gain, seeds=4):
    """Two arms whose Italian benchmarks differ by `gain`, item by item with some noise; one of one seed besides."""
    random = np.random.default_rng(2)
    items = random.uniform(0.2, 0.5, 100)

    def model(shift):
        noisy = items + shift + random.normal(0, 0.02, 100)
        return [Measurement(f"benchmark/{family}", "it", None, list(noisy), [str(n) for n in range(100)])
                for family in ("arc", "mmlu")]  # fmt: skip

    return {(arm, seed): model(shift) for arm, shift in {"base": 0, "whole": gain}.items() for seed in range(seeds)} | {
        ("late", 0): model(0)
    }


def test_claims_get_their_verdicts():
    claim = SimpleNamespace(
        contrast={"whole": 1, "base": -1}, kind="higher", worth=0.02, measures=["benchmark/mean it"], family="one"
    )
    late = SimpleNamespace(**vars(claim) | {"contrast": {"late": 1, "base": -1}})
    for gain, said in {0.1: "supported", 0.0: "not supported", -0.1: "not supported"}.items():
        table = claims_table(measured_arms(gain), {"gains": claim, "late": late}).set_index("claim")
        assert table.loc["gains", "estimate"] == pytest.approx(gain, abs=0.01)
        assert table.loc["gains", "low"] < gain < table.loc["gains", "high"]
        assert list(table["verdict"]) == [said, "not measured with two seeds yet"]
        assert list(table["seeds"]) == [4, 1]


def test_the_table_of_effects_corrects_over_all_it_tells():
    random = np.random.default_rng(4)
    measured = {}
    for cell, arm in CELLS.items():
        for seed in range(3):
            scores = list(cell_mean(cell) + random.normal(0, 0.1, 50))
            clusters = [str(n) for n in range(50)]
            measured[arm, seed] = [
                Measurement("language_fidelity", code, None, scores, clusters) for code in ("en", "it")
            ]
    table = effects_table(measured, CELLS, ["language_fidelity en", "language_fidelity it"])
    assert len(table) == 14 and list(table["effect"])[:7] == list(TRUTH)
    assert table["p_holm"].to_numpy() == pytest.approx(holm(table["p"].to_list()))
    excluded = (table["low"] > 0) | (table["high"] < 0)
    assert list(excluded) == list(table["p_holm"] < 0.05) and 0 < excluded.sum() < 14
    one_seed = {key: found for key, found in measured.items() if key[1] == 0}
    assert effects_table(one_seed, CELLS, ["language_fidelity en"]).empty


# ---------------------------------------------------------------- measures


def test_measures_are_the_reports_figures():
    random = np.random.default_rng(9)
    clusters = [str(n) for n in range(30)]
    models = {}
    for arm in ("base", "dpo"):
        made = [Measurement(f"benchmark/{family}", code, None, list(random.random(30)), clusters)
                for code in ("en", "it") for family in ("arc", "mmlu", "gsm8k")]  # fmt: skip
        lengths = list(random.integers(5, 20, 30).astype(float))
        made.append(Measurement("perplexity", "it", None, [1.5 * n for n in lengths], clusters, lengths))
        made.append(Measurement("preference_margin", "all", None, list(random.normal(size=30)), clusters))
        models[arm, 1] = models[arm, 2] = made
    for measure, scale in {
        "benchmark/mean en": float,
        "perplexity it": np.exp,
        "preference_accuracy_logprob": float,
    }.items():
        sheet = read_sheet(models, measure, ["dpo", "base"])
        reported = {" ".join(filter(None, (r["metric"], r["language"] * (r["language"] != "all")))): r["value"]
                    for r in rows(models["dpo", 1], "dpo")}  # fmt: skip
        assert scale(sheet.values()[0, 0]) == pytest.approx(reported[measure])
    with pytest.raises(AnitaError, match="no measure 'perplexity fr' was taken: choose benchmark/.* perplexity it"):
        find(models["base", 1], "perplexity fr")


def test_each_family_of_claims_is_corrected_by_itself():
    """Twenty claims about nothing more in a family make its p-values larger, those of another family not."""
    claim = {"contrast": {"whole": 1, "base": -1}, "kind": "higher", "worth": 0.02, "measures": ["benchmark/mean it"]}
    one = {"gains": SimpleNamespace(**claim, family="one")}
    others = {str(n): SimpleNamespace(**claim | {"contrast": {"whole": -1, "base": 1}}, family="other")
              for n in range(20)}  # fmt: skip
    same = {name: SimpleNamespace(**vars(other) | {"family": "one"}) for name, other in others.items()}
    measured = measured_arms(0.005)
    alone, beside, among = (claims_table(measured, claims).iloc[0] for claims in (one, one | others, one | same))
    assert 0 < alone["holm_for"] == beside["holm_for"] < among["holm_for"]
    assert alone["low"] == beside["low"] > among["low"] and alone["p_for"] == among["p_for"]
