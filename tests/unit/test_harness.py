"""The harness's own command on our tasks: the same figures as `anita eval`."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from anita_utils.evaluation import benchmarks
from anita_utils.evaluation.benchmarks import FAMILIES, SCORES
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile

LIMIT = 6


@pytest.fixture(scope="module")
def samples(base_path, tmp_path_factory):
    """What `lm_eval` wrote of each item, by family; one item after the other, as it does unless told otherwise."""
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
