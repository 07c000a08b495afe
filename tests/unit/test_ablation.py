"""The runner of ablations on a tiny random model: resumed, nothing twice, broken arms told in one line."""

import json
import re
import shlex
import subprocess
import types
from itertools import combinations

import numpy as np
import pandas
import pytest
import yaml

from anita_utils import AnitaError, ablation, curves, evaluation, kept, training
from anita_utils.ablation_report import results_table, write_results
from anita_utils.arms import ABLATIONS, arm_profile, load_ablation
from anita_utils.effects import FACTORS, claims_table, find
from anita_utils.hub import model_key
from anita_utils.intervals import Measurement
from anita_utils.profile import load_profile
from anita_utils.record import Run

ARMS = {
    "measures": ["benchmark/mean it", "perplexity it", "preference_accuracy_logprob"],
    "arms": {
        "base": {"asks": "What is there?", "set": {"order": []}},
        "sft": {"asks": "What does SFT do?", "set": {"order": ["sft"]}},
        "sft_dpo": {"asks": "And then DPO?", "set": {"order": ["sft", "dpo"]}},
        "rank_2": {"asks": "And with a smaller rank?", "set": {"order": ["sft", "dpo"], "stages.dpo.lora.r": 2}},
    },
    "claims": {
        "gain": {"says": "DPO gains.", "contrast": {"sft_dpo": 1, "sft": -1}, "worth": 0.01,
                 "measures": ["benchmark/mean it"]},
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def random_model(base_path, tmp_path_factory):
    """A model of one layer with random weights, and the course's tokenizer: nothing to learn from, but quick."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from anita_utils.model import load_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("random"), load_tokenizer(base_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(random_model):
    """The cpu profile with that model and a handful of examples: a stage takes a second."""
    profile = load_profile("cpu")
    profile.model.base = str(random_model)
    for stage in profile.stages.values():
        stage.examples, stage.batch_size, stage.warmup = 8, 4, 0  # so few updates are all warm-up otherwise
    profile.evaluation.limit, profile.evaluation.max_new_tokens = 1, 4
    return profile


@pytest.fixture
def done(monkeypatch):
    """Counts what is trained and measured; measuring is replaced by figures drawn from the model's own hash."""
    counts = types.SimpleNamespace(trained=[], measured=[])
    build = training.build_trainer

    def building(stage):
        counts.trained.append(f"{stage.name} {stage.run.seed}")
        return build(stage)

    def measuring(path, profile, part):
        random = np.random.default_rng(int(model_key(path), 16))
        clusters = [str(n) for n in range(20)]
        made = [Measurement(f"benchmark/{family}", code, None, list(random.random(20)), clusters)
                for code in ("en", "it") for family in ("arc", "mmlu")]  # fmt: skip
        if part == "benchmarks":
            return {}, made
        counts.measured.append(model_key(path))
        perplexity = Measurement("perplexity", "it", None, list(random.random(20)), clusters, [1.0] * 20)
        margins = Measurement("preference_margin", "all", None, list(random.normal(size=20)), clusters)
        return {}, [perplexity, margins]

    monkeypatch.setattr(training, "build_trainer", building)
    monkeypatch.setattr(evaluation, "_measure", measuring)
    return counts


@pytest.fixture
def arms(tmp_path):
    """Writes arms to a file; returns its path."""

    def write(values=ARMS):
        file = tmp_path / "arms.yaml"
        file.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False), "utf-8")
        return file

    return write


def quiet(line):
    pass


# ---------------------------------------------------------------- running


def test_shared_stages_are_trained_once_and_a_killed_ablation_goes_on(runs, tiny, done, arms):
    found, lines = load_ablation(arms()), []

    def killed(line):
        lines.append(line)
        if len(lines) == 4:  # base, sft and sft_dpo are done, rank_2 is next
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablation.ablate(tiny, found, [1, 2], say=killed)
    assert done.trained == ["sft 1", "dpo 1"] and len(done.measured) == 3
    written = runs / "ablation-cpu" / "metrics.jsonl"
    kept = written.read_text("utf-8").splitlines()
    assert set(Run.load("ablation-cpu").metrics()["arm"]) == {"base", "sft", "sft_dpo"}

    lines.clear()
    run, cells = ablation.ablate(tiny, found, [1, 2], say=lines.append)
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

    unbroken, _ = ablation.ablate(tiny, found, [1, 2], name="unbroken", say=quiet)
    assert (unbroken.folder / "metrics.jsonl").read_text("utf-8") == written.read_text("utf-8")
    assert len(done.trained) == 6 and len(done.measured) == 7
    assert not (runs / "latest").exists()  # an ablation is no run of the lessons


def test_one_arm_at_a_time_comes_to_the_same_table(runs, tiny, done, arms):
    found = load_ablation(arms())
    ablation.ablate(tiny, found, [1], ["sft"], say=quiet)
    assert set(Run.load("ablation-cpu").metrics()["arm"]) == {"sft"}
    run, _ = ablation.ablate(tiny, found, [1], ["base"], say=quiet)
    assert set(run.metrics()["arm"]) == {"sft", "base"}
    assert done.trained == ["sft 1"]
    with pytest.raises(AnitaError, match="no arm 'stf': choose base, sft, sft_dpo, rank_2"):
        ablation.ablate(tiny, found, [1], ["stf"], say=quiet)


def test_arms_are_measured_by_the_courses_own_evaluation(runs, tiny, arms, monkeypatch):
    few = evaluation.probes
    monkeypatch.setattr(evaluation, "probes", lambda name: few(name)[::39])
    run, cells = ablation.ablate(tiny, load_ablation(arms()), [1], ["sft"], say=quiet)
    metrics = run.metrics()
    assert {"benchmark/mean", "chat/accuracy", "perplexity", "train/seconds"} <= set(metrics["metric"])
    direct = evaluation.rows(evaluation.evaluate(run.folder / "arms/sft-1/models/sft/merged", tiny), "sft")
    assert list(metrics["value"])[: len(direct)] == pytest.approx([row["value"] for row in direct], rel=1e-5)


def test_the_results_are_written_with_claims_and_intervals(runs, tiny, done, arms):
    file = arms()
    run, cells = ablation.ablate(tiny, load_ablation(file), [1, 2, 3], ["sft", "sft_dpo"], say=quiet)
    page = write_results(run, load_ablation(file)).read_text("utf-8")
    table, metrics = pandas.read_csv(run.folder / "ablation.csv"), run.metrics()
    one = {"arm": "sft", "metric": "benchmark/mean", "language": "it"}
    row, values = (frame[(frame[list(one)] == list(one.values())).all(axis=1)] for frame in (table, metrics))
    row = row.iloc[0]
    assert row["mean"] == pytest.approx(values["value"].mean()) and row["seeds"] == 3
    assert row["new_low"] < row["low"] < values["value"].min() and row["new_high"] > row["high"]
    claims = pandas.read_csv(run.folder / "claims.csv")
    measured = {(c.arm, c.seed): evaluation.evaluate(c.model, tiny) for c in cells if c.measured}
    pandas.testing.assert_frame_equal(claims, claims_table(measured, load_ablation(file).claims))
    assert "| DPO gains. | benchmark/mean it |" in page and "Seeds 1, 2, 3; commit" in page
    head = ["arm", "seeds", *ARMS["measures"], "train/tokens", "train/seconds"]
    assert f"| {' | '.join(head)} |" in page and all(f"| {arm} | 3 | 0." in page for arm in ("sft", "sft_dpo"))
    assert "## Effects" not in page  # of the eight arms that takes, four are not there


def test_effects_and_their_control_are_told_where_all_eight_arms_are_there(runs, arms):
    """Italian text adds 0.2 to a benchmark, item by item with noise, and nothing else does anything."""
    random, clusters = np.random.default_rng(6), [str(n) for n in range(80)]
    eight = {frozenset(c): "_".join(c) or "base" for size in range(4) for c in combinations(FACTORS, size)}
    results, run = kept.Kept({}, {}), Run.open("t", "cpu")
    for cell, arm in eight.items():
        for seed in (1, 2, 3):
            scores = list(0.4 + 0.2 * ("italian" in cell) + random.normal(0, 0.05, 80))
            found = Measurement("language_fidelity", "it", None, scores, clusters)
            figure = {"stage": "dpo", "metric": "language_fidelity", "language": "it", "split": None, "n": 80}
            place = {"arm": arm, "seed": seed, "made": "", "commit": "abc"}
            results = kept.add(results, *kept.make_line(place, [figure | {"value": found.value}], [found], []))
    kept.write_kept(run.folder / "results.jsonl", results)
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
    assert "| language_fidelity it | sft × italian × dpo |" in page and "## Claims" not in page


def test_a_table_of_one_seed_has_no_intervals():
    figure = {"stage": "sft", "metric": "perplexity", "language": "it", "split": None, "value": 3.5, "n": 20}
    line, weights = kept.make_line({"arm": "sft", "seed": 1}, [figure], [], [])
    table = results_table(kept.add(kept.Kept({}, {}), line, weights))
    assert list(table["mean"]) == [3.5] and table[["low", "new_high"]].isna().all(axis=None)


def test_the_eight_arms_of_the_factorial_are_found_by_their_orders():
    found = load_ablation("cpu")
    assert found.factorial()[frozenset({"sft", "dpo"})] == "sft_dpo"
    assert found.factorial()[frozenset({"sft", "italian", "dpo"})] == "summary"
    found.arms = {name: arm for name, arm in found.arms.items() if name != "dpo"}
    assert found.factorial() == {}


# ---------------------------------------------------------------- over several days


@pytest.fixture
def kept_results(tmp_path, monkeypatch):
    """The file of committed results, in a folder of its own."""
    file = tmp_path / "data" / "ablation" / "cpu.jsonl"
    monkeypatch.setattr(kept, "data_dir", lambda: tmp_path / "data")
    return file


def test_what_was_kept_is_never_made_again_even_where_the_cache_is_gone(
    runs, tiny, done, arms, kept_results, monkeypatch
):
    found, lines = load_ablation(arms()), []

    def killed(line):
        lines.append(line)
        if "rank_2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # the first day: three arms
        ablation.ablate(tiny, found, [1, 2], keep=True, say=killed)
    first = kept_results.read_text("utf-8").splitlines()
    places = [(line.get("arm"), line.get("seed")) for line in map(json.loads, first)]
    assert places == [(None, None), ("base", 1), ("base", 2), ("sft", 1), ("sft_dpo", 1)]  # the base has no seed
    measured = {
        arm: find(kept.load_kept("cpu").measured[arm, 1], "benchmark/mean it")[0].value for arm in ("base", "sft")
    }

    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("other-machine")))  # the second day: no run, no cache
    trained, counted = list(done.trained), len(done.measured)
    lines.clear()
    run, cells = ablation.ablate(tiny, found, [1], keep=True, say=lines.append)
    assert lines[:3] == [f"{n}/4 {arm}, seed 1: kept before" for n, arm in enumerate(["base", "sft", "sft_dpo"], 1)]
    # rank_2 alone was made, and SFT under it once more, as its model was not kept
    assert done.trained[len(trained) :] == ["sft 1", "dpo 1"] and len(done.measured) == counted + 1
    assert kept_results.read_text("utf-8").splitlines()[: len(first)] == first
    metrics = run.metrics()
    assert set(metrics["arm"]) == set(ARMS["arms"])
    again = kept.load_kept("cpu")
    assert {arm: find(again.measured[arm, 1], "benchmark/mean it")[0].value for arm in measured} == measured
    page = write_results(run, found).read_text("utf-8")
    assert "| rank_2 | 1 |" in page

    # another day, another seed: the base needs no second measuring; then all of it once more, as if nothing was kept
    assert ablation.remaining(ablation.plan(run, found, [2]), again) == {"trainings": (3, 3), "evaluations": (3, 4)}
    assert ablation.remaining(ablation.plan(run, found, [2]))["evaluations"] == (4, 4)
    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("third")))
    count = len(done.trained)
    ablation.ablate(tiny, found, [1], ["sft"], anew=True, say=quiet)
    assert done.trained[count:] == ["sft 1"]


def test_a_changed_setting_makes_a_kept_result_another(runs, tiny, done, arms, kept_results):
    found = load_ablation(arms())
    ablation.ablate(tiny, found, [1], ["sft"], keep=True, say=quiet)
    tiny.stages["sft"].learning_rate *= 2
    lines = []
    ablation.ablate(tiny, found, [1], ["sft"], "other", keep=True, say=lines.append)
    assert lines == ["1/1 sft, seed 1: training sft"] and done.trained == ["sft 1", "sft 1"]
    assert len(kept.load_kept("cpu").lines) == 1  # the old one is replaced


def test_results_that_are_missing_or_damaged_are_one_line(kept_results):
    with pytest.raises(AnitaError, match=r"no results of the ablation at .*cpu.jsonl: make some with `anita ablate"):
        kept.load_kept("cpu")
    kept_results.parent.mkdir(parents=True)
    for text in ("{", '{"arm": "sft", "seed": 1}', '{"arm":"sft","seed":1,"weights":"x","scores":{"a en":[1]}}'):
        kept_results.write_text(text, "utf-8")
        with pytest.raises(AnitaError, match=r"cpu.jsonl, line 1: no result of an ablation .*restore the file"):
            kept.load_kept("cpu")


def test_a_line_gives_back_what_was_measured():
    """Figures, effects and their items: a line read again against the measurements it was made of."""
    random = np.random.default_rng(3)
    clusters = [str(n // 2) for n in range(40)]
    shares = Measurement("chat/accuracy", "en", "seen", [float(x) for x in random.random(40) > 0.4], clusters)
    weights = list(random.integers(5, 20, 40).astype(float))
    text = Measurement("perplexity", "it", None, list(random.random(40) * 30), clusters, weights)
    margins = Measurement("preference_margin", "all", None, list(random.normal(size=40)), clusters)
    binned = Measurement("benchmark_calibration_error", "en", None, [0.1] * 40, clusters, bins=[0] * 40)
    line, weighed = kept.make_line({"arm": "sft", "seed": 1}, [], [shares, text, margins, binned], [])
    back = {m.metric: m for m in kept.measurements(json.loads(json.dumps(line)), {line["weights"]: weighed})}
    assert set(back) == {"chat/accuracy", "perplexity", "preference_accuracy_logprob"}
    assert back["chat/accuracy"].value == shares.value and back["perplexity"].value == pytest.approx(
        text.value, rel=1e-5
    )
    assert back["preference_accuracy_logprob"].value == np.mean(np.array(margins.scores) > 0)
    for old in (shares, text):
        for ours, theirs in zip(back[old.metric].totals()[:2], old.totals()[:2], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)  # cluster by cluster, in the same order


# ---------------------------------------------------------------- measured on the way


def on_the_way(model, tokenizer, profile):
    """Something of the model that any update moves, and whether it was told to be still."""
    weights = sum(float(weight.detach().abs().sum()) for name, weight in model.named_parameters() if "lora_B" in name)
    return [{"metric": "moved", "language": "all", "split": None, "value": weights, "n": int(model.training)}]


def test_a_watched_arm_is_measured_on_its_way_and_comes_out_the_same(runs, tiny, done, arms, kept_results, monkeypatch):
    monkeypatch.setattr(curves, "held_out", on_the_way)
    values = ARMS | {"arms": ARMS["arms"] | {"long": {"asks": "And longer?", "points": 4,
                                                      "set": {"order": ["sft"], "stages.sft.epochs": 12}}}}  # fmt: skip
    found = load_ablation(arms(values))
    run, cells = ablation.ablate(tiny, found, [1], ["long"], keep=True, say=quiet)
    curve = kept.load_kept("cpu").curve("long")
    moved = curve[curve["metric"] == "moved"]
    cell = next(cell for cell in cells if cell.arm == "long")
    steps = cell.stages[0].info["steps"]
    assert list(moved["update"]) == [round(n * steps / 4) for n in range(5)] and set(moved["n"]) == {0}
    assert moved["value"].iloc[0] == 0 and (moved["value"].iloc[1:] > 0).all()
    assert "train/loss" in set(curve["metric"])
    watched_model = model_key(cell.model)

    # unwatched it comes to the very same model; then to watch it takes another training, for nobody can look back
    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("unwatched")))
    values["arms"]["long"]["points"] = 0
    _, cells = ablation.ablate(tiny, load_ablation(arms(values)), [1], ["long"], say=quiet)
    unwatched = next(cell for cell in cells if cell.arm == "long")
    assert model_key(unwatched.model) == watched_model
    assert not curves.complete(curves.curve_file(unwatched.stages[-1], 4))
    count = len(done.trained)
    curves.watched(unwatched.stages[-1], 4)
    assert len(done.trained) == count + 1 and curves.complete(curves.curve_file(unwatched.stages[-1], 4))
    curves.watched(unwatched.stages[-1], 4)
    assert len(done.trained) == count + 1  # from the cache


def test_a_killed_watched_training_keeps_its_points(runs, tiny, monkeypatch):
    """Points up to the checkpoint stay, later ones are measured again: the curve is that of an unbroken training."""
    monkeypatch.setattr(training, "SAVE_EVERY", 10)
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    tiny.order, tiny.stages["sft"].epochs = ["sft"], 20
    stage = training.find_stage(Run.open("whole", tiny, 1), "sft")
    whole = curves.watched(stage, 8, on_the_way)
    calls = []

    def dies(model, tokenizer, profile):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return on_the_way(model, tokenizer, profile)

    monkeypatch.setenv("ANITA_RUNS", str(runs.with_name("killed")))
    stage = training.find_stage(Run.open("killed", tiny, 1), "sft")
    with pytest.raises(KeyboardInterrupt):
        curves.watched(stage, 8, dies)
    before = curves.read_points(curves.curve_file(stage, 8))
    assert len(before) == 6 and not curves.complete(curves.curve_file(stage, 8))
    again = []
    rows = curves.watched(stage, 8, lambda *args: again.append(1) or on_the_way(*args))
    assert rows == whole and 0 < len(again) < 9


def test_what_is_measured_on_the_way(tiny, random_model):
    """On a model of random weights: pairs by kind, and an entropy near the logarithm of the vocabulary."""
    from anita_utils.model import load_model, load_tokenizer

    model, tokenizer = load_model(random_model).eval(), load_tokenizer(random_model)
    rows = {(row["metric"], row["language"], row["split"]): row for row in curves.held_out(model, tokenizer, tiny)}
    assert {("pairs/accuracy", "all", split) for split in ("rule", "fact")} < set(rows)
    assert ("chat/accuracy_in_language", "en", "seen") in rows and (
        "refusal/harmless",
        "all",
        "held_out_wordings",
    ) in rows
    assert 0.9 * np.log(len(tokenizer)) < rows["entropy", "all", None]["value"] <= np.log(len(tokenizer))
    pairs = evaluation.probes("preferences")
    facts = [pair for pair in pairs if pair["kind"] in curves.FACTS]
    assert rows["pairs/accuracy", "all", "fact"]["n"] == len(facts)
    measured = evaluation.preferences(model, tokenizer, facts, 64)[0].scores
    assert rows["pairs/accuracy", "all", "fact"]["value"] == pytest.approx(np.mean(np.array(measured) > 0))


def test_entropy_is_that_of_the_answers_own_tokens(random_model):
    """Against torch's, token by token, on answers of different lengths in one batch."""
    import torch

    from anita_utils.data import encode_chat
    from anita_utils.model import load_model, load_tokenizer

    model, tokenizer = load_model(random_model).eval(), load_tokenizer(random_model)
    answered = [
        {"prompt": "Where is Rome?", "answer": answer, "cluster": answer} for answer in ("Rome.", "In Italy, I say.")
    ]
    by_hand = []
    for item in answered:
        turns = [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": item["answer"]}]
        encoded = encode_chat(turns, tokenizer, 1024)
        with torch.no_grad():
            logits = model(torch.tensor([encoded["input_ids"]])).logits[0, :-1]
        scored = torch.tensor(encoded["labels"][1:]) != -100
        by_hand += torch.distributions.Categorical(logits=logits[scored]).entropy().tolist()
    assert curves.entropy(model, tokenizer, answered, 2).value == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_what_was_logged_between_two_points():
    history = [
        {"step": step, "loss": loss, "rewards/accuracies": 0.5} for step, loss in ((5, 1.0), (10, 0.6), (15, 0.2))
    ]
    rows = {(row["update"], row["metric"]): row["value"] for row in curves.logged(history, [0, 10, 20])}
    assert rows == pytest.approx({(10, "train/loss"): 0.8, (10, "train/pairs_accuracy"): 0.5,
                                  (20, "train/loss"): 0.2, (20, "train/pairs_accuracy"): 0.5})  # fmt: skip
    assert curves.logged([], [0, 10]) == []


# ---------------------------------------------------------------- planning


def test_no_stage_is_shared_between_seeds(runs, tiny):
    cells = ablation.dry_plan(tiny, load_ablation("cpu"), [1, 2])
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
    code, out, err = anita(*told, "--only", "base", "--dry-run", "--anew")
    assert (code, err) == (0, "") and "evaluations that remain: 1 of 1" in out and not runs.exists()


# ---------------------------------------------------------------- broken files


def changed(**arm):
    return ARMS | {"arms": ARMS["arms"] | {"new": {"asks": "What?"} | arm}}


def claiming(**changes):
    return ARMS | {"claims": {"gain": ARMS["claims"]["gain"] | changes}}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("arms: [", "arms.yaml is not YAML"),
        ("just words", "arms.yaml holds no keys: start from"),
        ({"claims": {}}, "arms.yaml: arms: missing: add it"),
        (ARMS | {"amrs": {}}, "arms.yaml: amrs: unknown key: known here: arms, measures, claims"),
        (ARMS | {"arms": {"a/b": {"asks": "What?"}}}, "arms.yaml: arms.a/b: String should match pattern"),
        ({"arms": {"sft": {"set": {}}}}, "arms.yaml: arms.sft.asks: missing: add it"),
        (
            changed(set={"stages.italian.lora.rank": 8}),
            "arm 'new': stages.italian.lora.rank: unknown key: remove it; known here: r, alpha",
        ),
        (changed(set={"stages.italain.epochs": 2}), "arm 'new': stages.italain: unknown key: did you mean 'italian'?"),
        (changed(set={"stages.sft.lora.r": -1}), "arm 'new': stages.sft.lora.r: -1 will not do"),
        (changed(set={"order": ["sft", "rlhf"]}), "arm 'new': order: 'rlhf' has no settings"),
        (changed(set={"order": "paper"}), "arm 'new': order: paper has SFT on English and Italian"),
        (changed(set={"order": ["sft"], "stages.dpo.beta": 1}), "changes nothing, as the arm runs sft"),
        (changed(set={"evaluation.limit": 3}), "arm 'new': evaluation.limit: must be the same in all arms"),
        (changed(set={"seed": 3}), "arm 'new': seed: must be the same in all arms"),
        (changed(set={"precision": "fp16", "model.dtype": "float16"}), "arm 'new': precision: fp16 on a CPU"),
        (changed(set={"stages.sft.data": "nowhere"}), "stage 'sft': no data at"),
        (claiming(contrast={"sft_dpo": 1, "stf": -1}), "claims.gain.contrast: no arm 'stf': choose base, sft"),
        (claiming(contrast={"sft_dpo": 1, "sft": 1}), "claims.gain.contrast: the weights must add up to 0"),
        (claiming(kind="lower"), "claims.gain.kind: Input should be 'higher', 'kept' or 'differs'"),
    ],
)
def test_broken_arms_are_one_line_and_leave_nothing(runs, anita, arms, values, complaint):
    code, out, err = anita("ablate", "--arms", arms(values))
    assert (code, out) == (2, "")
    assert complaint in err and err.startswith("anita: ") and err.count("\n") == 1
    assert not runs.exists()


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


def test_a_wrong_measure_is_told_after_the_first_arm(runs, tiny, done, arms):
    with pytest.raises(AnitaError, match="no measure 'perplexity fr' was taken: choose benchmark/mean en"):
        ablation.ablate(tiny, load_ablation(arms(ARMS | {"measures": ["perplexity fr"]})), [1], say=quiet)
    assert len(done.measured) == 1 and done.trained == []


def test_a_file_can_start_from_another(arms):
    cpu, own = load_ablation("cpu"), ARMS["arms"]["sft"] | {"asks": "Other?"}
    dropped = {"replay": None, "no_replay": None}
    found = load_ablation(
        arms({"like": "cpu", "arms": {"sft": own} | dropped, "claims": dropped | {"no_replay": None}})
    )
    assert found.arms["sft"].asks == "Other?" and found.arms["dpo"] == cpu.arms["dpo"]
    assert set(cpu.arms) - set(found.arms) == {"no_replay"} and set(cpu.claims) - set(found.claims) == {"replay"}
    assert found.measures == cpu.measures and found.digest != cpu.digest
    with pytest.raises(AnitaError, match="no arms for 'nowhere'"):
        load_ablation(arms({"like": "nowhere"}))


@pytest.mark.parametrize("name", ["cpu", "h100"])
def test_every_arm_that_is_shipped_can_be(name):
    found, profile = load_ablation(name), load_profile(name)
    orders = {arm: arm_profile(profile, arm, settings)[1] for arm, settings in found.arms.items()}
    assert (
        len(orders) == {"cpu": 17, "h100": 18}[name]
        and orders["journal"] == ["sft", "dpo", "italian"]
        and orders["base"] == []
    )


def test_an_arm_is_the_profile_but_for_what_it_sets(tiny):
    found = load_ablation("cpu")
    for name, arm in found.arms.items():
        profile, order = arm_profile(tiny, name, arm)
        assert order == ([] if name == "base" else profile.order)
        before, after = tiny.model_dump(), profile.model_dump()
        for key in arm.set:
            *path, last = key.split(".")
            for values in (before, after):
                for part in path:
                    values = values[part]
                values.pop(last)
        assert before == after
