"""The runner of ablations on a tiny random model: resumed, nothing twice, kept, planned, in processes of their own."""

import json
import re
import shlex
import subprocess
from itertools import combinations

import numpy as np
import pandas
import pytest
from few_arms import ARMS, quiet

from anita_utils import AnitaError, stats
from anita_utils.ablation import campaign, results
from anita_utils.ablation.arms import ABLATIONS, load_ablation
from anita_utils.ablation.effects import FACTORS, claims_table, find
from anita_utils.ablation.report import in_words, results_table, write_results
from anita_utils.evaluation import measuring
from anita_utils.run import Run
from anita_utils.stats import Measurement

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
    monkeypatch.setattr(measuring, "probes", lambda name: few(name)[::39])
    run, cells = campaign.ablate(tiny, load_ablation(arms()), [1], ["sft"], say=quiet)
    metrics = run.metrics()
    assert {"benchmark/mean", "chat/accuracy", "perplexity", "train/seconds"} <= set(metrics["metric"])
    direct = stats.rows(measuring.evaluate(run.folder / "arms/sft-1/models/sft/merged", tiny), "sft")
    assert list(metrics["value"])[: len(direct)] == pytest.approx([row["value"] for row in direct], rel=1e-5)


def test_the_results_are_written_with_claims_and_intervals(runs, tiny, done, arms):
    file = arms()
    run, cells = campaign.ablate(tiny, load_ablation(file), [1, 2, 3], ["sft", "sft_dpo"], say=quiet)
    page = write_results(run, load_ablation(file)).read_text("utf-8")
    table, metrics = pandas.read_csv(run.folder / "ablation.csv"), run.metrics()
    one = {"arm": "sft", "metric": "benchmark/mean", "language": "it"}
    row, values = (frame[(frame[list(one)] == list(one.values())).all(axis=1)] for frame in (table, metrics))
    row = row.iloc[0]
    assert row["mean"] == pytest.approx(values["value"].mean()) and row["seeds"] == 3
    assert row["new_low"] < row["low"] < values["value"].min() and row["new_high"] > row["high"]
    claims = pandas.read_csv(run.folder / "claims.csv")
    measured = {(c.arm, c.seed): measuring.evaluate(c.model, tiny) for c in cells if c.measured}
    pandas.testing.assert_frame_equal(claims, claims_table(measured, load_ablation(file).claims))
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


def test_results_that_are_missing_or_damaged_are_one_line(kept_results):
    with pytest.raises(AnitaError, match=r"no results of the ablation at .*cpu.jsonl: make some with `anita ablate"):
        results.load_kept("cpu")
    kept_results.parent.mkdir(parents=True)
    for text in ("{", '{"arm": "sft", "seed": 1}', '{"arm":"sft","seed":1,"weights":"x","scores":{"a en":[1]}}'):
        kept_results.write_text(text, "utf-8")
        with pytest.raises(AnitaError, match=r"cpu.jsonl, line 1: no result of an ablation .*restore the file"):
            results.load_kept("cpu")


def test_a_line_gives_back_what_was_measured():
    """Figures, effects and their items: a line read again against the measurements it was made of."""
    random = np.random.default_rng(3)
    clusters = [str(n // 2) for n in range(40)]
    shares = Measurement("chat/accuracy", "en", "seen", [float(x) for x in random.random(40) > 0.4], clusters)
    weights = list(random.integers(5, 20, 40).astype(float))
    text = Measurement("perplexity", "it", None, list(random.random(40) * 30), clusters, weights)
    margins = Measurement("preference_margin", "all", None, list(random.normal(size=40)), clusters)
    binned = Measurement("benchmark_calibration_error", "en", None, [0.1] * 40, clusters, bins=[0] * 40)
    line, weighed = results.make_line({"arm": "sft", "seed": 1}, [], [shares, text, margins, binned], [])
    back = {m.metric: m for m in results.measurements(json.loads(json.dumps(line)), {line["weights"]: weighed})}
    assert set(back) == {"chat/accuracy", "perplexity", "preference_accuracy_logprob"}
    assert back["chat/accuracy"].value == shares.value and back["perplexity"].value == pytest.approx(
        text.value, rel=1e-5
    )
    assert back["preference_accuracy_logprob"].value == np.mean(np.array(margins.scores) > 0)
    for old in (shares, text):
        for ours, theirs in zip(back[old.metric].totals()[:2], old.totals()[:2], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)  # cluster by cluster, in the same order


# ---------------------------------------------------------------- planning


def test_no_stage_is_shared_between_seeds(runs, tiny):
    cells = campaign.dry_plan(tiny, load_ablation("cpu"), [1, 2])
    keys = [{stage.key for cell in cells if cell.seed == seed for stage in cell.stages} for seed in (1, 2)]
    assert len(keys[0]) == len(keys[1]) == 20 and not keys[0] & keys[1]


def test_a_dry_run_lists_arms_and_what_remains_and_writes_nothing(runs, anita, tiny, done, arms, monkeypatch):
    file = arms()
    monkeypatch.setattr("anita_utils.profile.load_profile", lambda name: tiny)
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ("ablate", "--arms", file, "--seeds", 2, "--seed", 1)
    code, out, err = anita(*arguments, "--dry-run")
    assert (code, err) == (0, "") and not runs.exists()
    assert "What does SFT do?" in out and "sft (shared with 2), then dpo" in out
    assert out.endswith("trainings that remain: 6 of 6\nevaluations that remain: 7 of 7\n")

    code, out, err = anita("ablate", "--arms", file, "--seed", 1, "--only", "sft")
    assert code == 0 and out.endswith("ablation-cpu/ablation.md\n")
    out = anita(*arguments, "--dry-run")[1]
    assert out.endswith("trainings that remain: 5 of 6\nevaluations that remain: 6 of 7\n")
    assert anita(*arguments, "--dry-run", "--only", "base")[1].endswith(
        "trainings that remain: 0 of 0\nevaluations that remain: 1 of 1\n"
    )


def test_the_slurm_array_has_a_task_for_each_seed(runs, anita, tmp_path):
    code, script, _ = anita("ablate", "--all", "--seed", 7, "--arms", ABLATIONS / "cpu.yaml", "--slurm")
    file = tmp_path / "array.sh"
    file.write_text(script, "utf-8")
    assert code == 0 and "#SBATCH --array=7-11\n" in script
    subprocess.run(["bash", "-n", str(file)], check=True)
    recorder = 'anita() { printf "%s\\n" "$@"; }\nSLURM_ARRAY_TASK_ID=9\n'
    told = subprocess.run(["bash", "-c", recorder + script], capture_output=True, text=True, check=True).stdout.split()
    assert told[:3] == ["ablate", "--profile", "cpu"]
    assert told[-6:] == shlex.split("--seed 9 --seeds 1 --run ablation-cpu-9")
    code, out, err = anita(*told, "--only", "base", "--dry-run", "--afresh")
    assert (code, err) == (0, "") and "evaluations that remain: 1 of 1" in out and not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--all", "--seeds", 2], "--all is every arm with five seeds"),
        (["--all", "--only", "sft"], "--all is every arm with five seeds"),
        (["--dry-run", "--slurm"], "exclude each other"),
        (["--only", "stf"], "no arm 'stf': choose base, sft, italian"),
        (
            ["--arms", "nowhere.yaml"],
            "no arms for 'nowhere.yaml', only for cpu, h100: write some and name them",
        ),
        (["--profile", "laptop"], "no arms for 'laptop', only for cpu, h100: write some and name them with --arms"),
    ],
)
def test_wrong_arguments_are_one_line(runs, anita, arguments, complaint):
    code, out, err = anita("ablate", *arguments)
    assert (code, out) == (2, "") and complaint in err and err.count("\n") == 1 and not runs.exists()


# ---------------------------------------------------------------- seeds in processes of their own


@pytest.fixture
def called(monkeypatch):
    """What was called, in place of calling it: the words after `ablate`, with the threads allowed. Seed 3 fails."""
    calls = []

    def run(command, env, check):
        assert command[1:4] == ["-m", "anita_utils.cli.main", "ablate"] and not check
        calls.append((" ".join(command[4:]), env["OMP_NUM_THREADS"]))
        return subprocess.CompletedProcess(command, int("--seed 3 " in " ".join(command)))

    monkeypatch.setattr(campaign.subprocess, "run", run)
    return calls


def test_each_seed_is_a_call_of_its_own_with_one_thread(called):
    campaign.in_processes(["--profile", "cpu"], [1, 2], 2, "x")
    assert sorted(called) == [(f"--profile cpu --seed {n} --seeds 1 --run x-{n}", "1") for n in (1, 2)]


def test_a_seed_that_fails_is_named_when_the_others_have_ended(called):
    with pytest.raises(AnitaError, match="failed with seed 3, as said above.*call it again"):
        campaign.in_processes([], [2, 3, 4], 2, "x")
    assert len(called) == 3


def test_the_command_gathers_what_the_processes_made(anita, called, monkeypatch, runs):
    gathered = []

    def ablate(profile, arms, seeds, only, name, say, keep, afresh):
        gathered.append((seeds, list(only), keep, len(called)))
        raise AnitaError("far enough")

    monkeypatch.setattr(campaign, "ablate", ablate)
    code, _, err = anita("ablate", "--jobs", "2", "--seeds", "2", "--only", "sft", "--keep")
    assert code == 2 and "far enough" in err
    assert gathered == [([42, 43], ["sft"], True, 2)]  # after both calls
    assert all("--keep" not in words and "--only sft" in words for words, _ in called)


def test_an_arm_that_cannot_be_is_reported_before_any_process_begins(anita, called, runs):
    code, _, err = anita("ablate", "--jobs", "2", "--only", "stf")
    assert code == 2 and err.startswith("anita: no arm 'stf'") and not called
