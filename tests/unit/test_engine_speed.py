"""The benchmark of the engine runs from end to end; what it finds on a busy machine in a moment means nothing."""

import json
import subprocess
import sys

import pytest

from anita_utils import checkout

pytestmark = pytest.mark.soak


def test_the_benchmark_of_the_engine_runs(tmp_path):
    command = [sys.executable, checkout() / "benchmarks" / "engine_speed.py", "--rounds", "1", "--tokens", "600"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "engine_speed.json").read_text())
    arms = {"authors", "packing", "bare", "limit", "unquantised", "packed, with a mask", "padded, sorted by length"}
    assert set(found["stages"]["sft"]["course_to"]) == arms
    assert all(speed > 0 for stage in found["stages"].values() for speed in stage["tokens_per_second"].values())
    assert all(peak["measured"] > 0 and peak["planned"] > 0 for peak in found["peaks"].values())
    assert (tmp_path / "engine_speed.md").read_text().startswith("# Speed") and (
        tmp_path / "engine_speed.png"
    ).is_file()
