"""The runner of ablations on a tiny random model: resumed, nothing twice, kept, planned, in processes of their own."""

import json

import pytest
from few_arms import ARMS, quiet

from anita_utils import AnitaError, stats
from anita_utils.ablation import campaign, results
from anita_utils.ablation.arms import load_ablation
from anita_utils.ablation.effects import find
from anita_utils.ablation.report import write_results
from anita_utils.evaluation import measuring
from anita_utils.run import Run

# ---------------------------------------------------------------- running


def test_shared_stages_are_trained_once_and_a_killed_ablation_goes_on(runs, tiny, done, arms):
    found, lines = load_ablation(arms()), []

    def killed(line):
        lines.append(line)
        if len(lines) == 4:  # base, sft and sft_dpo are done, rank_2 is next
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        campaign.ablate(tiny, found, [1, 2], say=killed)
    assert done.trained == ["sft 1", "dpo 1"] and len(done.measured) == 3
    written = runs / "ablation-cpu" / "metrics.jsonl"
    kept = written.read_text("utf-8").splitlines()
    assert set(Run.load("ablation-cpu").metrics()["arm"]) == {"base", "sft", "sft_dpo"}

    lines.clear()
    run, cells = campaign.ablate(tiny, found, [1, 2], say=lines.append)
    assert done.trained == ["sft 1", "dpo 1", "dpo 1", "sft 2", "dpo 2", "dpo 2"]
    assert len(done.measured) == len(set(done.measured)) == 7  # the base once for both seeds
    assert lines[:4] == [f"{n}/8 {arm}, seed 1: done before" for n, arm in enumerate(["base", "sft", "sft_dpo"], 1)] + [
        "4/8 rank_2, seed 1: training dpo"
    ]
    metrics = run.metrics()
    assert set(zip(metrics["arm"], metrics["seed"], strict=True)) == {(cell.arm, cell.seed) for cell in cells}
    assert set(kept) < set(written.read_text("utf-8").splitlines())
    own = metrics[(metrics["arm"] == "sft_dpo") & (metrics["seed"] == 2)].set_index("metric")
    assert set(own["stage"]) == {"dpo"}
    stages = [stage.info for cell in cells if (cell.arm, cell.seed) == ("sft_dpo", 2) for stage in cell.stages]
    assert own.loc["train/tokens", "value"] == sum(stage["tokens"] for stage in stages) > 0

    unbroken, _ = campaign.ablate(tiny, found, [1, 2], name="unbroken", say=quiet)
    assert (unbroken.folder / "metrics.jsonl").read_text("utf-8") == written.read_text("utf-8")
    assert len(done.trained) == 6 and len(done.measured) == 7
    assert not (runs / "latest").exists()  # an ablation is no run of the lessons


def test_one_arm_at_a_time_comes_to_the_same_table(runs, tiny, done, arms):
    found = load_ablation(arms())
    campaign.ablate(tiny, found, [1], ["sft"], say=quiet)
    assert set(Run.load("ablation-cpu").metrics()["arm"]) == {"sft"}
    run, _ = campaign.ablate(tiny, found, [1], ["base"], say=quiet)
    assert set(run.metrics()["arm"]) == {"sft", "base"}
    assert done.trained == ["sft 1"]
    with pytest.raises(AnitaError, match="no arm 'stf': choose base, sft, sft_dpo, rank_2"):
        campaign.ablate(tiny, found, [1], ["stf"], say=quiet)


def test_arms_are_measured_by_the_courses_own_evaluation(runs, tiny, arms, monkeypatch):
    few = measuring.probes
    monkeypatch.setattr(measuring, "probes", lambda *which: few(*which)[::39])
    run, cells = campaign.ablate(tiny, load_ablation(arms()), [1], ["sft"], say=quiet)
    metrics = run.metrics()
    assert {"benchmark/mean", "chat/accuracy", "perplexity", "train/seconds"} <= set(metrics["metric"])
    direct = stats.rows(measuring.evaluate(run.folder / "arms/sft-1/models/sft/merged", tiny), "sft")
    assert list(metrics["value"])[: len(direct)] == pytest.approx([row["value"] for row in direct], rel=1e-5)


def test_a_wrong_measure_is_told_after_the_first_arm(runs, tiny, done, arms):
    with pytest.raises(AnitaError, match="no measure 'perplexity fr' was taken: choose benchmark/mean en"):
        campaign.ablate(tiny, load_ablation(arms(ARMS | {"measures": ["perplexity fr"]})), [1], say=quiet)
    assert len(done.measured) == 1 and done.trained == []


# ---------------------------------------------------------------- over several days


def test_what_was_kept_is_never_made_again_even_where_the_cache_is_gone(
    runs, tiny, done, arms, kept_results, monkeypatch
):
    found, lines = load_ablation(arms()), []

    def killed(line):
        lines.append(line)
        if "rank_2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # the first day: three arms
        campaign.ablate(tiny, found, [1, 2], keep=True, say=killed)
    first = kept_results.read_text("utf-8").splitlines()
    places = [(line.get("arm"), line.get("seed")) for line in map(json.loads, first)]
    assert places == [(None, None), ("base", 1), ("base", 2), ("sft", 1), ("sft_dpo", 1)]  # the base has no seed
    measured = {
        arm: find(results.load_kept("cpu").measured[arm, 1], "benchmark/mean it")[0].value for arm in ("base", "sft")
    }

    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("other-machine")))  # the second day: no run, no cache
    trained, counted = list(done.trained), len(done.measured)
    lines.clear()
    run, cells = campaign.ablate(tiny, found, [1], keep=True, say=lines.append)
    assert lines[:3] == [f"{n}/4 {arm}, seed 1: kept before" for n, arm in enumerate(["base", "sft", "sft_dpo"], 1)]
    # rank_2 alone was made, and SFT under it once more, as its model was not kept
    assert done.trained[len(trained) :] == ["sft 1", "dpo 1"] and len(done.measured) == counted + 1
    assert kept_results.read_text("utf-8").splitlines()[: len(first)] == first
    metrics = run.metrics()
    assert set(metrics["arm"]) == set(ARMS["arms"])
    again = results.load_kept("cpu")
    assert {arm: find(again.measured[arm, 1], "benchmark/mean it")[0].value for arm in measured} == measured
    page = write_results(run, found).read_text("utf-8")
    assert "| rank_2 | 1 |" in page

    # another day, another seed: the base needs no second measuring; then all of it once more, as if nothing was kept
    assert campaign.remaining(campaign.trials_of(run, found, [2]), again) == {
        "trainings": (3, 3),
        "evaluations": (3, 4),
    }
    assert campaign.remaining(campaign.trials_of(run, found, [2]))["evaluations"] == (4, 4)
    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("third")))
    count = len(done.trained)
    campaign.ablate(tiny, found, [1], ["sft"], afresh=True, say=quiet)
    assert done.trained[count:] == ["sft 1"]


def test_a_changed_setting_makes_a_kept_result_another(runs, tiny, done, arms, kept_results):
    found = load_ablation(arms())
    campaign.ablate(tiny, found, [1], ["sft"], keep=True, say=quiet)
    tiny.stages["sft"].learning_rate *= 2
    lines = []
    campaign.ablate(tiny, found, [1], ["sft"], "other", keep=True, say=lines.append)
    assert lines == ["1/1 sft, seed 1: training sft"] and done.trained == ["sft 1", "sft 1"]
    assert len(results.load_kept("cpu").lines) == 1  # the old one is replaced


# ---------------------------------------------------------------- planning


def test_no_stage_is_shared_between_seeds(runs, tiny):
    cells = campaign.dry_plan(tiny, load_ablation("cpu"), [1, 2])
    keys = [{stage.key for cell in cells if cell.seed == seed for stage in cell.stages} for seed in (1, 2)]
    assert len(keys[0]) == len(keys[1]) == 18 and not keys[0] & keys[1]
