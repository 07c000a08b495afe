"""The benchmark of the evaluation: what it times, what it says, and (as a soak test) that it runs from end to end."""

import importlib.util
import json
import subprocess
import sys

import pytest

from anita_utils import AnitaError, checkout

SCRIPT = checkout() / "benchmarks" / "evaluation_speed.py"


@pytest.fixture(scope="module")
def speed():
    spec = importlib.util.spec_from_file_location("evaluation_speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ratio_is_taken_within_each_round(speed, monkeypatch, tmp_path):
    times = iter([30.0, 60.0, 10.0, 4.0, 50.0, 100.0, 20.0, 8.0, 10.0, 40.0, 5.0, 2.0])
    monkeypatch.setattr(speed, "timed", lambda command, folder: next(times))
    result = speed.measure(3, None, tmp_path)
    assert result["ratios"] == {"benchmarks": [6.0, 5.0, 8.0], "piccola": [2.0, 2.0, 4.0]}
    assert result["median"] == {"piccola_seconds": 30.0, "ratio": 6.0, "whole_ratio": 2.0, "quick_seconds": 4.0}
    page = speed.as_markdown(result)
    assert "| how many times faster than `lm_eval` | 6.0 | at least 5 |" in page and "a trial" not in page
    assert "a trial, no result" in speed.as_markdown(result | {"limit": 2})


def test_both_sides_are_asked_the_same_tasks(speed, tmp_path):
    found = speed.commands(tmp_path, 3, tmp_path / "out")
    assert list(found) == ["piccola", "lm_eval", "benchmarks", "quick"]
    assert found["lm_eval"][found["lm_eval"].index("--tasks") + 1] == "piccola_en,piccola_it"
    assert all(command[-2:] == ["--limit", "3"] for command in found.values())
    assert not {"--batch_size", "--device"} & set(found["lm_eval"])  # its defaults


def test_a_command_that_fails_ends_it_in_one_line(speed, tmp_path):
    with pytest.raises(AnitaError, match="failed: no luck$"):
        speed.timed([sys.executable, "-c", "import sys; sys.exit('first\\nno luck')"], tmp_path)


@pytest.mark.soak
def test_the_benchmark_of_the_evaluation_runs(tmp_path):
    command = [sys.executable, SCRIPT, "--rounds", "1", "--limit", "1", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "evaluation_speed.json").read_text())
    assert set(found["seconds"]) == {"piccola", "lm_eval", "benchmarks", "quick"} and found["limit"] == 1
    assert (tmp_path / "evaluation_speed.md").read_text().startswith("# Evaluation, on ")
