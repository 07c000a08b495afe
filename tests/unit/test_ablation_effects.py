"""Effects, intervals and verdicts, against numbers by hand, scipy, and simulations where the truth is known."""

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
    effects_table,
    estimate,
    evidence,
    factorial,
    find,
    prediction_interval,
    read_sheet,
    shuffled_control,
    verdict,
)
from anita_utils.stats import Measurement, holm, rows

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


# ---------------------------------------------------------------- corrections and controls


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9, 0.001, 0.4]) == pytest.approx([1, 1, 0.004, 1])
    assert holm([]) == []


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
    assert 0 < alone["for"] == beside["for"] < among["for"]
