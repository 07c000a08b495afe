"""The lessons that train hold with 16 rows a stage: one update of SFT, two of the others."""

import json
import os
import re
import subprocess
import sys

import pytest

from anita_utils.profile import PROFILES


@pytest.mark.soak
def test_lessons_hold_with_16_rows(tmp_path):
    """Fewer updates than logging_steps ended lesson 04 in a KeyError and lesson 02 in a ZeroDivisionError: Soup#899."""
    text = re.sub(r"(    examples: )\d+", r"\g<1>16", (PROFILES / "cpu.yaml").read_text("utf-8"))
    (tmp_path / "small.yaml").write_text(text.replace("name: cpu ", "name: small "), "utf-8")
    command = [sys.executable, "-m", "anita_utils.cli.main", "course", "--profile", str(tmp_path / "small.yaml")]
    command += [word for number in ("02", "03", "04") for word in ("--only", number)]
    environment = os.environ | {"ANITA_RUNS": str(tmp_path / "runs")}
    environment.pop("ANITA_CACHE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage, updates in {"sft": 1, "dpo": 2}.items():
        info = json.loads((tmp_path / "runs" / "small" / "models" / stage / "stage.json").read_text("utf-8"))
        assert info["steps"] == updates == len(info["history"]) and info["rows"]["whole"] == 16
