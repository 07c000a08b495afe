"""Lessons 06 and 09 on results whose truth is known, without a model: do their verdicts follow the results?"""

import re
from pathlib import Path
from types import SimpleNamespace

import made_up
import nbformat
import numpy as np
import pandas
import pytest

from anita_utils import AnitaError, stages, training
from anita_utils.ablation import results
from anita_utils.ablation.arms import load_ablation
from anita_utils.evaluation import measuring
from anita_utils.profile import load_profile
from anita_utils.stats import Measurement
from anita_utils.studies import forgetting

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STAGES = ["base", "sft", "italian", "dpo"]
DPO_ALONE = "dpo alone"  # where an arm is trained once more
CHAIN = {"base": [], "sft": ["sft"], "italian": ["sft", "italian"], "dpo": ["sft", "italian", "dpo"]}


def measured(path, profile, benchmarks=True):
    """What the made-up arms measure, for the stages of a run, whose paths are their names, or for DPO alone."""
    name = path if path in CHAIN else "dpo"
    arm = SimpleNamespace(set={"order": ["dpo"] if path == DPO_ALONE else CHAIN[name]})
    return made_up.measured(name, arm, np.random.default_rng(len(name)))


def watched(stage, points, measure=None, kind="held_out"):
    """English grows harder and its answers fewer while Italian text is learnt."""
    rows = []
    for update in range(0, 10 * points + 1, 10):
        for metric, language, value in (("perplexity", "en", 3 + update / 10), ("perplexity", "it", 30 - update / 2),
                                        ("chat/accuracy_in_language", "en", 0.95 - update / 100)):  # fmt: skip
            rows.append(
                {"update": update, "metric": metric, "language": language, "split": None, "value": value, "n": 50}
            )
    return rows + [{"update": 10, "metric": "train/loss", "language": "all", "split": None, "value": 2.0, "n": None}]


@pytest.fixture
def run_lesson(monkeypatch, tmp_path):
    """Runs a lesson's cells on made-up results and no model; returns their names."""

    def run(lesson, base=None, there=True, **made):
        monkeypatch.setenv("ANITA_RUNS", str(tmp_path / "runs"))
        monkeypatch.setattr(results, "data_dir", lambda: tmp_path / "data")
        if there:
            made_up.make_up(tmp_path / "data", **made)
        for name in ("load_for_evaluation", "load_tokenizer"):
            monkeypatch.setattr(f"anita_utils.model.{name}", lambda path, *_: path)
        monkeypatch.setattr("anita_utils.model.chat", lambda model, _, prompts, *rest: ["I am sorry."] * len(prompts))
        stage = SimpleNamespace(merged="dpo", parent="italian", parent_path="italian", info={"steps": 9, "seconds": 45},
                                documents=lambda: [{"prompt": [], "chosen": [], "rejected": []}])  # fmt: skip
        alone = SimpleNamespace(**vars(stage) | {"merged": DPO_ALONE})
        monkeypatch.setattr(stages, "find_stage", lambda run, name: alone if "arms" in run.folder.parts else stage)
        monkeypatch.setattr(training, "train_stage", lambda stage: stage)
        monkeypatch.setattr(training, "train_missing", lambda run: {name: name for name in STAGES})
        monkeypatch.setattr(measuring, "evaluate", measured)
        monkeypatch.setattr(forgetting, "watched", watched)
        monkeypatch.setattr(forgetting, "pair_measures", lambda model, _, pairs, size: [
            Measurement("pairs/accuracy", "all", split, [1.0, 0.0], ["a", "b"]) for split in ("rule", "fact")
        ])  # fmt: skip
        profile = load_profile("cpu")
        profile.model.base = base or profile.model.base
        names = {"profile": profile, "run": "made-up", "seed": 42, "display": lambda *shown, **options: None}
        for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells:
            if cell.cell_type == "code" and cell.id[3:] not in ("parameters", "set-up"):
                exec(cell.source, names)
        return names

    return run


def verdicts(names):
    judged = names["judged"]
    return {(row.claim, row.measure): row.verdict for row in judged.itertuples()}


def test_lesson_06_finds_what_was_put_in_and_nothing_else(run_lesson, capsys):
    names = run_lesson("06_ablation")
    said = capsys.readouterr().out
    assert re.search(r"Italian text comes before DPO or after it\? \w+.* on mean of the Italian benchmarks \(", said)
    assert re.search(r"The Italian stage takes 33% of the recipe's tokens\..* add anything\? \w+", said)
    found = verdicts(names)
    assert found["better_than_base", "benchmark/mean it"] == "supported"
    assert found["better_than_base", "benchmark/mean en"] == "not supported"  # no arm adds to it
    assert found["dpo_refuses", "refusal/harmful all held_out_wordings"] == "supported"
    assert found["italian_text", "perplexity it"] == "supported"
    assert found["replay", "benchmark/mean en"] == "supported"
    synergy = [said for (claim, _), said in found.items() if claim == "synergy"]
    assert len(synergy) == 3 and "supported" not in synergy  # the made-up stages add up
    effects = names["found"].set_index(["measure", "effect"])
    assert effects.loc[("benchmark/mean it", "italian"), "estimate"] == pytest.approx(0.15, abs=0.02)
    assert set(effects.index[effects.p_holm < 0.05].get_level_values("effect")) <= {"sft", "italian", "dpo"}
    assert names["share"] <= 0.12 and set(names["judged"]["on the 8B"]) == {"not run"}
    assert names["new_seed"] == 47 and names["comparable"] and len(names["placed"]) > 5
    assert len(list(names["run"].folder.glob("figures/06_ablation-*.png"))) == 7
    assert names["told"].inside.all() and 0 < len(names["told"]) < len(names["placed"])  # perplexities do not count
    recorded = names["run"].metrics()
    assert set(recorded[recorded.arm == "dpo"].seed) == {47} and "recipe" not in set(recorded.arm)


def test_lesson_06_says_so_where_seeds_are_few(run_lesson, capsys):
    names = run_lesson("06_ablation", seeds=(42,))
    assert set(verdicts(names).values()) == {"not measured with two seeds yet"}
    assert "no interval can be given yet" in capsys.readouterr().out and not names["comparable"]
    names = run_lesson("06_ablation", seeds=(42, 43))
    assert set(names["judged"].seeds) == {2} and "2" in results.load_kept("cpu").said


@pytest.mark.parametrize("lesson", ["06_ablation", "09_forgetting"])
def test_without_results_a_lesson_stops_with_one_clear_line(run_lesson, lesson):
    with pytest.raises(
        AnitaError, match="no results of the ablation at .*: make some with `anita ablate --all --keep`"
    ):
        run_lesson(lesson, there=False)
    with pytest.raises(AnitaError, match="holds no result of arm 'sft"):
        run_lesson(lesson, only=("base", "dpo", "summary", "text_only"))


def test_lesson_09_finds_what_was_put_in(run_lesson):
    names = run_lesson("09_forgetting")
    found = verdicts(names)
    english, benchmarks = "chat/accuracy_in_language en seen", "benchmark/mean en"
    assert (
        found["english_lost", english]
        == found["replay_saves", english]
        == found["gentle_saves", english]
        == "supported"
    )
    assert found["small_rank_saves", english] != "supported"  # it forgets as much as the large one
    assert found["gentle_costs_no_italian", "benchmark/mean it"] == "not supported"  # it costs 0.08
    assert found["long_dpo_keeps_skills", benchmarks] == "not supported"
    assert found["long_dpo_refuses_the_harmless", "refusal/harmless all held_out_wordings"] == "supported"
    assert names["share"] <= 0.12
    assert len(list(names["run"].folder.glob("figures/09_forgetting-*.png"))) == 6
    summed = names["summed"]
    assert (
        summed.loc["log-probability of the chosen", "after eight"]
        < summed.loc["log-probability of the chosen", "start"]
    )
    assert 0 < summed.loc["pairs, rule", "best at update"] <= names["final"]
    moves = names["moves"]
    assert set(moves.stage) == {"sft", "italian", "dpo"} and moves.lost.dropna().between(0, 1).all()
    recorded = names["run"].metrics()
    live = recorded[recorded.metric.str.startswith("live/")]
    assert len(live) and "recipe" not in set(live.arm)


def test_another_base_is_no_small_world(run_lesson):
    """The results are the small world's whatever the profile; the column of the 8B waits for its own."""
    names = run_lesson("09_forgetting", base="meta-llama/Meta-Llama-3-8B-Instruct")
    assert "supported" in set(names["judged"]["in the small world"])
    own = results.kept_file("cpu")  # the profile's name is still cpu: its own results are the very same
    assert own.is_file() and set(names["judged"]["on the 8B"]) == set(names["judged"]["in the small world"])


def test_the_made_up_results_are_of_the_shipped_arms(tmp_path):
    made_up.make_up(tmp_path, seeds=(1,))
    lines = results.read_kept(tmp_path / "ablation" / "cpu.jsonl").lines
    assert {arm for arm, _ in lines} == set(load_ablation("cpu").arms)
    assert {line["commit"] for line in lines.values()} == {"made up"}
    assert isinstance(results.read_kept(tmp_path / "ablation" / "cpu.jsonl").curve("long_dpo"), pandas.DataFrame)
