"""`anita pin`: today's commits of what a profile leaves unpinned, asked of a Hub of our own."""

import subprocess
import sys

import pytest
import yaml
from hub_server import HubServer, commit_of

from anita_utils.profile import PROFILES, Profile

LAPTOP = yaml.safe_load((PROFILES / "laptop-hub.yaml").read_text("utf-8"))


@pytest.fixture
def hub(tmp_path):
    for name in (LAPTOP["model"]["base"], *LAPTOP["datasets"]):
        (tmp_path / "repositories" / name).mkdir(parents=True)
    with HubServer(tmp_path / "repositories") as server:
        yield server


@pytest.fixture
def pin(hub, tmp_path):
    """Calls the command with `hub` as the Hub; returns exit code, stdout and stderr."""

    def call(profile, **environment):
        command = [sys.executable, "-m", "anita_utils.cli.main", "pin", str(profile)]
        environment = hub.environment(tmp_path / "home") | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return call


def test_every_null_gets_its_commit_and_nothing_is_left(pin, tmp_path):
    code, out, err = pin("laptop-hub")
    assert (code, err) == (0, "")
    pins = yaml.safe_load(out)
    base = LAPTOP["model"]["base"]
    assert pins["model"] == {"base": base, "revision": commit_of(base)}
    assert pins["datasets"] == {name: {"revision": commit_of(name)} for name in LAPTOP["datasets"]}

    pinned = LAPTOP | {"model": LAPTOP["model"] | pins["model"]}
    pinned["datasets"] = {name: data | pins["datasets"][name] for name, data in LAPTOP["datasets"].items()}
    Profile.model_validate(pinned)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(pinned), "utf-8")
    assert pin(tmp_path / "mine.yaml") == (0, "# nothing to pin: no revision is null\n", "")


def test_what_is_not_on_the_hub_is_not_asked_for(pin, hub, tmp_path):
    name = next(iter(LAPTOP["datasets"]))
    values = LAPTOP | {"datasets": LAPTOP["datasets"] | {name: LAPTOP["datasets"][name] | {"files": "mine.jsonl"}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values), "utf-8")
    assert name not in yaml.safe_load(pin(tmp_path / "mine.yaml")[1])["datasets"]
    hub.asked.clear()
    assert pin("cpu") == (0, "# nothing to pin: no revision is null\n", "")
    assert hub.asked == []


@pytest.mark.parametrize("trouble", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_offline_is_one_line_and_nothing_half_printed(pin, trouble):
    code, out, err = pin("laptop-hub", **trouble)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("anita: ") and ("HF_HUB_OFFLINE is set" in err or "cannot be reached" in err)
