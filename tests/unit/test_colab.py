"""Colab's set-up and its list of packages, with a stand-in for pip: nothing is installed here."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from check_colab import PREINSTALLED, TESTED, choose, clashes  # noqa: E402
from colab import KEPT, PINS, last_words, read_pins  # noqa: E402
from packaging.requirements import Requirement  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))

PIP = """import os, sys
from pathlib import Path
with Path(os.environ["CALLS"]).open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
    if "--constraint" in sys.argv:
        calls.write(Path(sys.argv[sys.argv.index("--constraint") + 1]).read_text())
if os.environ.get("BROKEN"):
    sys.exit("ERROR: no space left\\nlater")
"""


@pytest.fixture
def session(tmp_path):
    """Runs the set-up as Colab would, with a pip that only takes notes; returns what it said and the notes."""
    others = tmp_path / "site"
    (others / "pip").mkdir(parents=True)
    (others / "pip" / "__init__.py").touch()
    (others / "pip" / "__main__.py").write_text(PIP)
    clone = tmp_path / "course"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "colab.py", clone / "scripts")
    course = clone / "anita_utils" / "course"  # the clone's own is taken, not one that is installed
    course.mkdir(parents=True)
    for package in (course.parent, course):
        (package / "__init__.py").touch()
    (course / "set_up.py").write_text("def set_up():\n    print('set up')\n")

    def run(pins, before="", torchao=False, **environment):
        (clone / PINS.name).write_text("# made by a script\n" + pins)
        if torchao:
            (others / "torchao-0.10.0.dist-info").mkdir()
            (others / "torchao-0.10.0.dist-info" / "METADATA").write_text("Name: torchao\nVersion: 0.10.0\n")
        script = str(clone / "scripts" / "colab.py")
        program = f"{before}\nimport runpy, sys\nrunpy.run_path({script!r}, run_name='__main__')"
        program += f"\nassert sys.path[0] == {str(clone)!r}"
        environment = {**os.environ, "PYTHONPATH": str(others), "CALLS": str(tmp_path / "calls"), **environment}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.is_file() else []

    return run


def test_a_session_that_has_everything_is_left_alone(session):
    done, calls = session(f"packaging=={metadata.version('packaging')}\n")
    assert (done.returncode, done.stdout, calls) == (0, "ready\nset up\n", [])


def test_what_is_missing_is_installed_beside_the_torch_that_is_there(session):
    done, calls = session("some_thing==1.0\n", torchao=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ready\nset up\n")
    install, *kept, uninstall = calls
    assert install.startswith("install ") and "constraints-colab.txt --editable" in install
    assert kept == [f"{name}=={metadata.version(name)}" for name in KEPT if name in installed_names()]
    assert {f"torch=={metadata.version('torch')}", f"numpy=={metadata.version('numpy')}"} <= set(kept)
    assert uninstall == "uninstall --quiet --yes torchao"


def installed_names():
    return {distribution.name.lower() for distribution in metadata.distributions()}


def test_what_was_in_use_asks_for_a_restart(session):
    done, calls = session("packaging==0.1\n", before="import packaging")
    assert done.returncode != 0 and len(calls) > 1
    assert "packaging" in done.stderr and "Restart session" in done.stderr and "Traceback" not in done.stderr


def test_a_failing_pip_is_one_line_with_a_remedy(session):
    done, _ = session("some_thing==1.0\n", BROKEN="yes")
    assert done.returncode != 0
    assert done.stderr == (
        "pip install failed (ERROR: no space left): choose Runtime > Disconnect and delete runtime, and run again\n"
    )
    assert last_words("a\n\n") == "a" and last_words("") == "no message"


def test_colab_gets_tested_versions_and_keeps_its_torch():
    pins, tested = read_pins(PINS), read_pins(TESTED)
    assert pins.items() <= tested.items()
    assert {"transformers", "trl", "peft", "bitsandbytes", "datasets", "lm-eval"} <= pins.keys()
    assert not pins.keys() & set(KEPT)
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "torch"))]
    colab = read_pins(PREINSTALLED)
    assert (colab["torch"], colab["datasets"], colab["torchao"]) == ("2.11.0+cu128", "4.0.0", "0.10.0")


def test_the_packages_are_chosen_by_who_needs_what():
    needs = {"new": ["old>=2", "fine", "torch>=2", "more[all]", "windows; sys_platform == 'win32'"],
             "more": ["extra; extra == 'all'", "absent; extra == 'other'"], "old": [], "extra": []}  # fmt: skip
    tested = {"new": "1.0", "old": "2.5", "fine": "9", "more": "1", "extra": "1", "torch": "2.13.0", "unused": "1"}
    colab = {"old": "1.9", "fine": "3", "torch": "2.11.0+cu128"}
    chosen, versions, problems = choose(["new", "old"], tested, colab, needs.get)
    assert chosen == {"new", "old", "more", "extra"}
    assert versions == {"new": "1.0", "old": "2.5", "fine": "3", "more": "1", "extra": "1", "torch": "2.11.0+cu128"}
    assert problems == []


def test_what_cannot_be_had_is_a_problem():
    needs = {"new": ["torch>=2.12", "old<2"], "old": []}
    tested, colab = {"new": "1", "old": "2.5", "torch": "2.13.0"}, {"old": "1.9", "torch": "2.11.0+cu128"}
    _, _, problems = choose(["new", "old>=2", "nowhere"], tested, colab, needs.get)
    assert sorted(problems) == [
        "new needs old<2: there would be 2.5",
        "new needs torch>=2.12: there would be 2.11.0+cu128",
        "the course needs nowhere: there would be none",
    ]
    assert clashes([(Requirement("old<3"), "new")], {"old": "2.5"}) == []
