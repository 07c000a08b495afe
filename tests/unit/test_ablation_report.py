"""What came of an ablation, as tables and a page."""

import re
from itertools import combinations

import numpy as np
import pandas
import pytest
from few_arms import ARMS, quiet

from anita_utils.ablation import campaign, results
from anita_utils.ablation.arms import load_ablation
from anita_utils.ablation.effects import FACTORS, claims_table
from anita_utils.ablation.report import answer, in_words, results_table, write_results
from anita_utils.evaluation import measuring
from anita_utils.run import Run
from anita_utils.stats import Measurement


def test_the_results_are_written_with_claims_and_intervals(runs, tiny, done, arms):
    file = arms()
    run, cells = campaign.ablate(tiny, load_ablation(file), [1, 2, 3], ["sft", "sft_dpo"], say=quiet)
    page = write_results(run, load_ablation(file)).read_text("utf-8")
    table, metrics = pandas.read_csv(run.folder / "ablation.csv"), run.metrics()
    one = {"arm": "sft", "metric": "benchmark/mean", "language": "it"}
    row, values = (frame[(frame[list(one)] == list(one.values())).all(axis=1)] for frame in (table, metrics))
    row = row.iloc[0]
    assert row["mean"] == pytest.approx(values["value"].mean()) and row["seeds"] == 3
    ends = row[["new_low", "low", "high", "new_high"]].to_numpy(float)
    assert list(ends) == sorted(ends) and ends[1] < values["value"].min()
    shares = table[table["metric"].str.startswith(("benchmark/", "language_fidelity"))]
    assert shares[["low", "high", "new_low", "new_high"]].stack().between(0, 1).all()
    assert list(shares["tells"]) == list(shares["new_high"] - shares["new_low"] < 1 / 3)
    assert not table.loc[table["metric"] == "perplexity", "tells"].any()
    claims = pandas.read_csv(run.folder / "claims.csv")
    measured = {(c.arm, c.seed): measuring.evaluate(c.model, tiny) for c in cells if c.measured}
    exact = claims_table(measured, load_ablation(file).claims)
    pandas.testing.assert_frame_equal(claims, exact, atol=1e-5)  # results are kept in six digits
    assert "| p for | p for, Holm | p against | p against, Holm | verdict |" in page and "95 % intervals" in page
    assert "| DPO gains. | mean of the Italian benchmarks |" in page and "Seeds 1, 2, 3; commit" in page
    head = ["arm", "seeds", *map(in_words, [*ARMS["measures"], "train/tokens", "train/seconds"])]
    assert f"| {' | '.join(head)} |" in page and all(f"| {arm} | 3 | 0." in page for arm in ("sft", "sft_dpo"))
    assert "## Effects" not in page  # of the eight arms that takes, four are not there


def test_effects_and_their_control_are_told_where_all_eight_arms_are_there(runs, arms):
    """Italian text adds 0.2 to a benchmark, item by item with noise, and nothing else does anything."""
    random, clusters = np.random.default_rng(6), [str(n) for n in range(80)]
    eight = {frozenset(c): "_".join(c) or "base" for size in range(4) for c in combinations(FACTORS, size)}
    kept, run = results.Kept({}, {}), Run.open("t", "cpu")
    for cell, arm in eight.items():
        for seed in (1, 2, 3):
            scores = list(0.4 + 0.2 * ("italian" in cell) + random.normal(0, 0.05, 80))
            found = Measurement("language_fidelity", "it", None, scores, clusters)
            figure = {"stage": "dpo", "metric": "language_fidelity", "language": "it", "split": None, "n": 80}
            place = {"arm": arm, "seed": seed, "made": "", "commit": "abc"}
            kept = results.add(kept, *results.make_line(place, [figure | {"value": found.value}], [found], []))
    results.write_kept(run.folder / "results.jsonl", kept)
    orders = {
        arm: {"asks": "What?", "set": {"order": [f for f in FACTORS if f in cell]}} for cell, arm in eight.items()
    }
    values = {"measures": ["language_fidelity it"], "arms": orders}
    page = write_results(run, load_ablation(arms(values))).read_text("utf-8")
    effects = pandas.read_csv(run.folder / "effects.csv").set_index("effect")
    assert list(effects.index[effects["p_holm"] < 0.05]) == ["italian"]
    assert effects.loc["italian", "estimate"] == pytest.approx(0.2, abs=0.01)
    share = float(re.search(r"something was found in (\d+)% of 100 rounds", page)[1])
    assert share <= 100 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 100))
    assert "| Italian questions answered in Italian | sft × italian × dpo |" in page and "## Claims" not in page


def test_a_table_of_one_seed_has_no_intervals():
    figure = {"stage": "sft", "metric": "perplexity", "language": "it", "split": None, "value": 3.5, "n": 20}
    line, weights = results.make_line({"arm": "sft", "seed": 1}, [figure], [], [])
    table = results_table(results.add(results.Kept({}, {}), line, weights))
    assert list(table["mean"]) == [3.5] and table[["low", "new_high"]].isna().all(axis=None)


def test_a_claim_is_answered_in_words():
    columns = ["claim", "measure", "estimate", "low", "high", "worth", "seeds", "verdict"]
    judged = pandas.DataFrame(
        [("order", "benchmark/mean it", 0.1, 0.05, 0.15, 0.02, 5, "supported"),
         ("order", "perplexity it", 0.0, -0.01, 0.01, 0.02, 5, "not supported"),
         ("order", "perplexity en", 0.0, -0.1, 0.1, 0.02, 5, "undecided at n = 5 seeds"),
         ("other", "language_fidelity it", -0.3, -0.4, -0.2, 0.02, 5, "not supported"),
         ("other", "benchmark/mean en", np.nan, np.nan, np.nan, 0.02, 1, "not measured with two seeds yet")],
        columns=columns,
    )  # fmt: skip
    assert answer(judged, "order") == (
        "yes on mean of the Italian benchmarks (+0.100 [+0.050, +0.150]); "
        "no, too little to be worth naming on perplexity of Italian text (+0.000 [-0.010, +0.010]); "
        "open on perplexity of English text (+0.000 [-0.100, +0.100])"
    )
    assert answer(judged, "other") == (
        "no on Italian questions answered in Italian (-0.300 [-0.400, -0.200]); "
        "not measured yet on mean of the English benchmarks"
    )
