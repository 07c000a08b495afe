"""Each family's scoring by hand, over twenty items: the same decisions as lm-eval's on the same log-likelihoods.

The likelihoods are drawn, not a model's: every kind of lead, narrow or wide, for the right answer or a wrong one. What
is written here knows nothing of lm-eval: it reads the items from their files. And lm-eval's own command on our tasks:
the same figures as `anita eval`.
"""

import json
import math
import os
import re
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from anita_utils.evaluation import benchmarks
from anita_utils.evaluation.benchmarks import FAMILIES, SCORES, SUITES
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile

ITEMS = 20
LIMIT = 6  # items a task, where lm-eval's own command is run
LANGUAGES = ("en", "it")


def read_items(family, language):
    file = data_dir() / "benchmarks" / "items" / f"{family}_{language}.test.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()[:ITEMS]]


def by_hand(family, item, heard):
    """The decision on one item. heard: the log-likelihood of each answer, or what was written."""
    if family == "gsm8k":
        numbers = re.findall(r"#### (-?\d+)", heard)
        return float(bool(numbers) and numbers[0] == item["answer"].split("#### ")[1])
    if family == "truthfulqa":
        chances = [math.exp(value) for value in heard]
        return sum(c for c, true in zip(chances, item["labels"], strict=True) if true) / sum(chances)
    if family in ("arc", "hellaswag"):  # a longer answer has more to lose
        heard = [value / len(choice) for value, choice in zip(heard, item["choices"], strict=True)]
    return float(max(range(len(heard)), key=heard.__getitem__) == item["label"])


class Drawn:
    """Stands in for a model: answers lm-eval's requests with drawn likelihoods and writings, and remembers them."""

    rank, world_size, tokenizer_name = 0, 1, "drawn"

    def __init__(self, seed):
        self.random, self.likelihoods, self.written = Random(seed), {}, {}

    def apply_chat_template(self, turns, add_generation_prompt=True):
        return turns[-1]["content"]

    def chat_template(self, chat_template=False):
        return ""

    def loglikelihood(self, requests, **_):
        for request in requests:
            question, answer = request.args
            self.likelihoods[question.strip(), answer.strip()] = -self.random.uniform(1, 4) * len(answer.split())
        return [(self.likelihoods[tuple(part.strip() for part in request.args)], False) for request in requests]

    def generate_until(self, requests, **_):
        for request in requests:
            number = request.doc["answer"].split("#### ")[1]
            other = str(int(number) + 1)
            kinds = [f"3 + 4 = 7. #### {number}", f"So it is {number}.", f"#### {other}", f"#### {number}. Ciao #### 1",
                     f"#### {number}{number}", "", f"####{number}"]  # fmt: skip
            self.written[request.args[0].strip()] = self.random.choice(kinds)
        return [self.written[request.args[0].strip()] for request in requests]


@pytest.fixture(scope="module")
def decisions():
    """lm-eval's decision and what it heard of each item: {(family, language): [(score, heard), …]}."""
    from lm_eval.api.model import LM

    drawn = type("DrawnLM", (Drawn, LM), {"loglikelihood_rolling": lambda *_: None})(7)
    suite, found = SUITES["piccola"], {}
    with benchmarks.without_bars():
        manager = benchmarks.task_manager(suite)
        loaded = [(one, benchmarks.load_tasks(one, manager)) for one in suite.benchmarks]
        tasks = [task for _, own in loaded for task in own]
        with pytest.MonkeyPatch.context() as patch:  # lm-eval must not index what it brings: that takes seconds
            patch.setattr("lm_eval.evaluator.TaskManager", None)
            samples = benchmarks._samples(drawn, tasks, ITEMS, num_fewshot=0, apply_chat_template=True)
    for benchmark, (task,) in loaded:
        items = benchmarks._items(benchmark, {task.task_name: samples[task.task_name]})
        [measured] = [m for m in benchmarks._scored(benchmark, items) if m.metric == benchmark.metric]
        heard = [
            drawn.written[sample["doc"]["question"].strip()]
            if benchmark.family == "gsm8k"
            else [drawn.likelihoods[sample["doc"]["question"].strip(), c.strip()] for c in sample["doc"]["choices"]]
            for _, sample in items
        ]
        found[benchmark.family, benchmark.language] = list(zip(measured.scores, heard, strict=True))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_decisions_are_those_by_hand(decisions, family, language):
    items, found = read_items(family, language), decisions[family, language]
    assert len(found) == len(items) == ITEMS
    expected = [by_hand(family, item, heard) for item, (_, heard) in zip(items, found, strict=True)]
    assert [score for score, _ in found] == pytest.approx(expected, abs=1e-9)
    assert len({round(value, 6) for value in expected}) > 1  # right and wrong ones among them


# ---- lm-eval's own command


@pytest.fixture(scope="module")
def samples(base_path, tmp_path_factory):
    """What `lm_eval` wrote of each item, by family; one item after the other, as it does by default."""
    out = tmp_path_factory.mktemp("harness")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args",
               f"pretrained={base_path},dtype=float32", "--include_path", str(data_dir() / "benchmarks"), "--tasks",
               "piccola_it", "--apply_chat_template", "--limit", str(LIMIT), "--log_samples", "--output_path",
               str(out)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    [summary] = out.rglob("results_*.json")
    assert "piccola_it" in json.loads(summary.read_text("utf-8"))["group_subtasks"]
    found = {}
    for family in FAMILIES:
        [file] = out.rglob(f"samples_piccola_{family}_it_*.jsonl")
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        found[family] = sorted(rows, key=lambda row: row["doc_id"])
    return found


def margin(sample, by_length):
    """By how much the first of the ranked answers leads the second."""
    scores = np.array([float(score) for score, _ in sample["filtered_resps"]])
    if by_length:
        scores = scores / [len(choice) for choice in sample["doc"]["choices"]]
    return np.diff(np.sort(scores)[-2:])[0]


def test_it_gives_the_same_figures(samples, model, tokenizer):
    profile = load_profile("cpu")
    profile.evaluation.suite, profile.evaluation.limit = "piccola", LIMIT
    measured = {m.name: m for m in benchmarks.run_benchmarks(model, tokenizer, profile)}
    for family, rows in samples.items():
        ours = measured[f"benchmark/{family}", "it", None]
        theirs = [float(row[SCORES[family]]) for row in rows]
        assert len(theirs) == len(ours.scores) == LIMIT
        assert ours.clusters == [row["doc"]["cluster"] for row in rows]
        if family in ("truthfulqa", "gsm8k"):
            assert ours.scores == pytest.approx(theirs, abs=1e-4)
            continue
        for row, one, other in zip(rows, ours.scores, theirs, strict=True):
            assert one == other or margin(row, SCORES[family] == "acc_norm") < 1e-4, row["doc"]
