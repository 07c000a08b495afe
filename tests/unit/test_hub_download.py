"""Models from the Hub, against a real HTTP server on 127.0.0.1 that speaks its routes: what is fetched, how it fails.

huggingface_hub reads its environment when it is imported, so each case is a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hub_server import HubServer, commit_of
from safetensors.numpy import save_file

from anita_utils.hub import MODEL_FILES, check_model_folder

SHIPPED = Path(__file__).parents[2] / "data" / "tiny-llama-3-instruct"
TINY, LARGE, NONE = "anita/tiny", "anita/large", "anita/none"
SCRIPT = """
import json, sys
from anita_utils import AnitaError, hub
action, waits, *arguments = json.loads(sys.argv[1])
hub.WAITS = waits  # only the pauses are shortened
try:
    print(getattr(hub, action)(*arguments))
except AnitaError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The shipped model with what must not be fetched beside it; one of 24 MB; one that has only a pickle."""
    folder = tmp_path_factory.mktemp("repositories")
    shutil.copytree(SHIPPED, folder / TINY)
    for extra in ("pytorch_model.bin", "modeling_tiny.py", "original/model.safetensors", "tokenizer.pkl"):
        (folder / TINY / extra).parent.mkdir(exist_ok=True)
        (folder / TINY / extra).write_bytes(b"not to be fetched")
    for name in (LARGE, NONE):
        (folder / name).mkdir()
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(SHIPPED / file, folder / name)
    save_file({"weight": numpy.zeros(6_000_000, "float32")}, folder / LARGE / "model.safetensors")
    (folder / NONE / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def hub(repositories):
    with HubServer(repositories) as server:
        yield server


@pytest.fixture
def ask(hub, tmp_path):
    """Calls a function of hub.py with `hub` as the Hub; returns what it printed, and stderr."""

    def call(action, *arguments, waits=(0.05, 0.05), before=(), **environment):
        done = subprocess.run(
            [*before, sys.executable, "-c", SCRIPT, json.dumps([action, waits, *arguments])],
            env=hub.environment(tmp_path / "home") | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1, done.stdout
        return done.stdout.strip(), done.stderr

    return call


def halves(home: Path) -> list[Path]:
    """Half-written files in the cache."""
    return list(home.rglob("*.incomplete"))


def test_a_pinned_model_is_fetched_once_and_is_the_shipped_one(ask, hub, tmp_path):
    commit = commit_of(TINY)
    found, told = ask("resolve_model", TINY, commit)
    folder = check_model_folder(Path(found))
    assert folder.name == commit
    assert "pinned" not in told
    fetched = {file.name for file in folder.iterdir()}
    assert fetched == {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"} | {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sorted(hub.fetched()) == sorted(fetched)  # no pickle, no Python, nothing from a subfolder
    assert all((folder / name).read_bytes() == (SHIPPED / name).read_bytes() for name in fetched)
    hub.asked.clear()
    assert ask("resolve_model", TINY, commit)[0] == found
    assert ask("resolve_model", TINY, commit, HF_HUB_OFFLINE="1")[0] == found
    assert hub.asked == []  # a pinned model that is whole here needs no Hub


def test_all_of_a_run_starts_from_the_commit_that_its_profile_pins(hub, tmp_path):
    """The main branch has moved on to other weights and another template; training must see neither."""
    then, now = tmp_path / "then", hub.folder / "anita" / "moved"
    for folder in (then, now):
        shutil.copytree(SHIPPED, folder)
    with (now / "chat_template.jinja").open("a") as template:
        template.write("of today")
    save_file({"model.norm.weight": numpy.zeros(256, "float32")}, now / "model.safetensors")
    commit = "1" * 40
    hub.history[commit] = then
    script = """
import sys
from anita_utils import hub, profile, run, stages, training
settings = profile.load_profile("cpu")
settings.model.base, settings.model.revision = "anita/moved", sys.argv[1]
opened = run.Run.open("pinned", settings)
stage = stages.find_stage(opened, "sft")
model, tokenizer = training.load_for_training(stage)
print(stage.parent_path, hub.resolve_model("base", run=opened), stage.parent_key)
print(float(model.model.norm.weight.abs().sum()) > 0, "of today" in tokenizer.chat_template)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, commit],
        env=hub.environment(tmp_path / "home") | {"ANITA_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    paths, seen = done.stdout.splitlines()
    parent, base, key = paths.split()
    assert parent == base and Path(parent).name == commit  # merging and evaluation are given this folder too
    assert key.startswith(f"models--anita--moved@{commit}-")  # and what was edited by hand
    assert seen == "True False"
    assert not any("main" in path for _, path, _ in hub.asked)


def test_no_pattern_lets_code_or_pickles_through():
    assert not any(pattern.endswith((".py", ".bin", ".pt", ".pth", ".pkl", "*")) for pattern in MODEL_FILES)


def test_an_unpinned_model_is_fetched_and_said_to_be_unpinned(ask):
    found, told = ask("resolve_model", TINY, None)
    assert Path(found).name == commit_of(TINY)
    assert f"note: {TINY} is not pinned; this is its commit {commit_of(TINY)}" in told
    assert ask("resolve_revision", TINY)[0] == commit_of(TINY)
    assert ask("resolve_revision", TINY, None, "dataset")[0] == commit_of(TINY)


def test_gated_for_one_who_is_not_logged_in(ask, hub):
    hub.gated[TINY] = {"member"}
    line, _ = ask("resolve_model", TINY, commit_of(TINY))
    assert line.startswith(
        f"refused: {TINY} is gated and you are not logged in: ask for access at {hub.endpoint}/{TINY}"
    )
    for way in ("hf auth login", "HF_TOKEN", "--profile cpu", "mirror under the same licence", "model.base"):
        assert way in line
    assert ask("check_access", TINY)[0] == line


def test_gated_for_one_who_is_not_on_the_list(ask, hub):
    hub.gated[TINY] = {"member"}
    hub.known_tokens = {"stranger"}
    line, _ = ask("resolve_model", TINY, commit_of(TINY), HF_TOKEN="stranger")
    assert f"refused: {TINY} is gated and your account is not on its list" in line
    for way in (f"ask for access at {hub.endpoint}/{TINY}", "--profile cpu", "mirror", "model.base"):
        assert way in line
    assert "hf auth login" not in line
    assert ask("check_access", TINY, HF_TOKEN="stranger")[0] == line


def test_gated_for_one_who_may_read_it_and_for_a_token_that_is_none(ask, hub):
    hub.gated[TINY] = {"member"}
    assert ask("check_access", TINY, HF_TOKEN="member")[0] == "None"
    assert Path(ask("resolve_model", TINY, commit_of(TINY), HF_TOKEN="member")[0]).is_dir()
    assert "refuses your token: log in again" in ask("check_access", TINY, HF_TOKEN="made-up")[0]


def test_missing_repository_and_revision(ask, hub):
    for token in ({}, {"HF_TOKEN": "member"}):
        line, _ = ask("resolve_model", "anita/nothing", None, **token)
        assert f"refused: there is no model anita/nothing on {hub.endpoint}, or it is private: correct the name" in line
    for revision in ("0" * 40, "a-branch"):
        line, _ = ask("resolve_model", TINY, revision)
        assert f"refused: {TINY} has no revision '{revision}': correct it" in line
    assert "cannot name a Hub repository" in ask("resolve_model", "anita/two--dashes", None)[0]


def test_offline_with_nothing_cached(ask, hub):
    line, _ = ask("resolve_model", TINY, commit_of(TINY), HF_HUB_OFFLINE="1")
    assert f"refused: {TINY} at revision {commit_of(TINY)} is no folder and not whole in the local cache" in line
    assert "HF_HUB_OFFLINE is set: correct the name, or unset HF_HUB_OFFLINE" in line
    assert "HF_HUB_OFFLINE is set" in ask("resolve_revision", TINY, HF_HUB_OFFLINE="1")[0]
    assert hub.asked == []


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense"])
def test_without_a_network(ask, endpoint):
    line, _ = ask("resolve_model", TINY, None, HF_ENDPOINT=endpoint)
    assert line.startswith(f"refused: {endpoint} cannot be reached or is no Hub (")
    assert f"{TINY} is not whole in the local cache: check connection, proxy and HF_ENDPOINT" in line


def test_something_that_is_no_hub(ask, hub):
    hub.faults["/api/"] = [200]
    line, _ = ask("resolve_model", TINY, None)
    assert (
        f"{hub.endpoint} cannot be reached or is no Hub (" in line and "check connection, proxy and HF_ENDPOINT" in line
    )


def test_a_download_that_breaks_off_goes_on_where_it_was(ask, hub, tmp_path):
    hub.cuts = [15_000_000]
    folder = check_model_folder(Path(ask("resolve_model", LARGE, commit_of(LARGE))[0]))
    assert (folder / "model.safetensors").read_bytes() == (hub.folder / LARGE / "model.safetensors").read_bytes()
    ranges = [wanted for _, path, wanted in hub.asked if path.endswith("model.safetensors") and wanted]
    assert ranges == ["bytes=10485760-"]  # huggingface_hub writes ten MiB at a time


def test_a_download_that_keeps_breaking_off_is_told_and_taken_up_by_the_next(ask, hub, tmp_path):
    hub.cuts = [4_000_000] * 6  # huggingface_hub tries six times by itself
    line, _ = ask("resolve_model", TINY, commit_of(TINY), waits=())
    assert f"refused: the download of {TINY} at revision {commit_of(TINY)} broke off (" in line
    assert "repeat the command, files that were finished are kept" in line
    assert halves(tmp_path) == []
    offline, _ = ask("resolve_model", TINY, commit_of(TINY), HF_HUB_OFFLINE="1")
    assert "not whole in the local cache" in offline
    hub.asked.clear()
    check_model_folder(Path(ask("resolve_model", TINY, commit_of(TINY))[0]))
    assert hub.fetched() == ["model.safetensors"]


def test_a_hub_in_trouble_is_tried_again(ask, hub):
    hub.faults["/revision/"] = [500, 502]
    check_model_folder(Path(ask("resolve_model", TINY, None)[0]))
    assert hub.faults["/revision/"] == []


def test_a_hub_in_trouble_in_the_middle_is_tried_again(ask, hub):
    downloads = f"GET /{TINY}/resolve/"
    hub.faults[downloads] = [None, None, 503, 503]
    check_model_folder(Path(ask("resolve_model", TINY, commit_of(TINY))[0]))
    assert hub.faults[downloads] == []


def test_a_hub_that_stays_in_trouble_is_told(ask, hub):
    hub.faults["/api/"] = [503] * 9
    line, _ = ask("resolve_model", TINY, None)
    assert line.startswith(f"refused: {hub.endpoint} does not give {TINY} (HTTP 503: ")
    assert "try again in some minutes, what was downloaded whole is kept" in line
    assert len(hub.asked) == 3


@pytest.mark.parametrize("status", [429, 418])
def test_other_refusals(ask, hub, status):
    hub.faults["/api/"] = [status] * 9
    assert f"does not give anita/tiny (HTTP {status}: " in ask("resolve_model", TINY, None)[0]


def test_a_full_disk(ask, hub, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=4m tmpfs {home} && exec "$@"', "sh"]
    limit = ["sh", "-c", 'ulimit -f 8192 && exec "$@"', "sh"]  # 4 MiB: a file too large, as on a FAT disk
    for before in (mount, limit):
        if shutil.which(before[0]) and subprocess.run([*before, "true"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("neither a small tmpfs nor a limit on file sizes can be had here")
    line, _ = ask("resolve_model", TINY, commit_of(TINY), before=before)
    assert line.startswith(f"refused: {TINY} at revision {commit_of(TINY)} cannot be stored in {home}/hub (")
    assert line.endswith("make room there, or set HF_HOME to a folder with room that you may write in")
    assert halves(tmp_path) == []


def test_a_cache_that_cannot_be_written(ask, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    line, _ = ask("resolve_model", TINY, commit_of(TINY), HF_HOME=str(tmp_path / "file"))
    assert "cannot be stored in" in line
    assert "set HF_HOME" in line


def test_a_repository_without_safetensors(ask, hub):
    line, _ = ask("resolve_model", NONE, commit_of(NONE))
    assert line.startswith(f"refused: {NONE} has no safetensors weights")
    assert "pytorch_model.bin" not in hub.fetched()


def test_weights_damaged_in_the_cache_are_to_be_deleted(ask, tmp_path):
    weights = Path(ask("resolve_model", TINY, commit_of(TINY))[0]) / "model.safetensors"
    os.truncate(weights.resolve(), 1_000_000)
    line, _ = ask("resolve_model", TINY, commit_of(TINY), HF_HUB_OFFLINE="1")
    assert "model.safetensors is truncated or damaged (1,000,000 bytes" in line
    assert f"delete {tmp_path}/home/hub/models--anita--tiny to download it again" in line
