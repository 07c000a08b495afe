"""`anita doctor`: what is ok, a warning or a failure, with which remedy, and what is recommended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer, commit_of

from anita_utils.cli.doctor import GIB, hardware, packages, recommend
from anita_utils.machine import Machine
from anita_utils.profile import PROFILES, load_profile

DATA = Path(__file__).parents[2] / "data"
MODEL = "tiny-llama-3-instruct"  # the shipped model, as the repository data/tiny-llama-3-instruct
NAMES = ["python", "packages", "versions", "torchao", "cores", "memory", "gpu", "precision", "disk", "hub", "token"]


def machine(gpu=None, memory=12.7, cores=2, bf16=None):
    """A machine; gpu: name, GiB and compute capability."""
    name, gib, capability = gpu or (None, None, None)
    return Machine(
        cpu="some",
        cores=cores,
        memory_bytes=int(memory * GIB),
        gpu=name,
        gpu_memory_bytes=gib and int(gib * GIB),
        gpu_capability=capability,
        bf16=capability >= (8, 0) if bf16 is None and capability else bool(bf16),
        avx512_bf16=False,
        system="Linux",
        python="3.13",
        versions={},
    )


T4, H100, RTX4090 = ("Tesla T4", 14.74, (7, 5)), ("H100", 79.1, (9, 0)), ("RTX 4090", 23.5, (8, 9))
V100 = ("V100", 31.7, (7, 0))


@pytest.mark.parametrize(
    ("found", "hub", "profile"),
    [
        (machine(), True, "cpu"),
        (machine(cores=8, memory=15.4), True, "laptop"),
        (machine(cores=8, memory=15.4), False, "cpu"),
        (machine(cores=8, memory=6), True, "cpu"),
        (machine(T4), True, "colab-t4"),
        (machine(T4), False, "cpu"),
        (machine(RTX4090, memory=31), True, "colab-t4"),
        (machine(V100, memory=31), True, "colab-t4"),
        (machine(("GTX 1080", 7.9, (6, 1)), memory=31), True, "colab-t4-1b"),
        (machine(("small", 3.9, (8, 6)), memory=31, cores=8), True, "laptop"),
        (machine(H100, memory=128), True, "h100"),
        (machine(("V100 with the memory of an H100", 79.1, (7, 0)), memory=128), True, "colab-t4"),
    ],
)
def test_what_is_recommended(found, hub, profile):
    assert recommend(found, hub) == profile


def look(found, name="cpu", **changes):
    """The findings about a machine's hardware, by name, for the cpu profile with changes."""
    profile = load_profile("cpu").model_copy(update={"name": name, **changes})
    return {finding.name: finding for finding in hardware(found, profile)}


def test_a_small_machine_is_enough_for_the_small_model():
    found = look(machine())
    assert {finding.status for finding in found.values()} == {"ok"}
    assert not any(finding.remedy for finding in found.values())
    found = look(machine(memory=2, cores=1))
    assert {name: finding.status for name, finding in found.items()} == {
        "cores": "warning",
        "memory": "warning",
        "gpu": "ok",
        "precision": "ok",
        "disk": "ok",
    }
    assert "about 4 GiB are needed" in found["memory"].remedy


def test_a_t4_has_no_true_bf16():
    found = look(machine(T4), "colab-t4", precision="bf16")
    assert found["gpu"].found == "Tesla T4, 14.7 GiB, capability 7.5"
    assert found["precision"].status == "failure"
    assert "Tesla T4 (capability 7.5) has no bf16" in found["precision"].found
    assert found["precision"].remedy == "set it to fp16 or fp32"
    assert look(machine(T4), "colab-t4", precision="fp16")["precision"].status == "ok"


def test_a_profile_for_a_gpu_without_one_or_with_a_smaller_one():
    found = look(machine(), "h100")["gpu"]
    assert (found.status, found.found) == ("failure", "none; needed: 60 GiB")
    assert found.remedy == "take --profile cpu, or a machine with such a GPU"
    found = look(machine(T4), "h100")["gpu"]
    assert found.status == "failure"
    assert "--profile colab-t4" in found.remedy


def test_two_gpus_in_sight_as_on_kaggle(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    found = look(machine(T4), "colab-t4")["gpu"]
    assert found.status == "warning"
    assert "the first of 2" in found.found
    assert "CUDA_VISIBLE_DEVICES=0" in found.remedy


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a package seem installed, in place of the true one if there is one."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, version, *requires):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]))

    return make


def test_packages_as_colab_brings_them(install):
    install("datasets", "4.0.0")
    install("torchao", "0.10.0")
    install("anita-utils", "0.1.0", "datasets>=4.7", "numpy", "no-such-package>=1", 'ruff-x; extra == "dev"')
    found = {finding.name: finding for finding in packages()}
    assert found["packages"].status == "failure"
    assert found["packages"].found == "datasets is 4.0.0, needed >=4.7; no-such-package is missing"
    assert "constraints.txt" in found["packages"].remedy
    assert found["versions"].status == "warning"
    assert "datasets 4.0.0 (tested: 5.2.0)" in found["versions"].found
    assert found["torchao"].status == "failure"
    assert "pip uninstall --yes torchao" in found["torchao"].remedy


def test_a_newer_torchao_and_a_build_of_torch_are_no_matter(install):
    install("torchao", "0.16.0")
    install("torch", "2.13.0+cu128")
    found = {finding.name: finding for finding in packages()}
    assert found["torchao"].status == "ok"
    assert "torch " not in found["versions"].found


def anita_doctor(*arguments, environment=None, first=""):
    """The real command in a process of its own: exit code and what it printed."""
    program = f"import sys\n{first}\nfrom anita_utils.cli.main import main\nsys.argv[0] = 'anita'\nmain()"
    command = [sys.executable, "-c", program, "doctor", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def by_name(out):
    return {finding["name"]: finding for finding in json.loads(out)["findings"]}


def test_the_command_offline():
    done = subprocess.run(
        [sys.executable, "-m", "anita_utils.cli.main", "doctor", "--json"], capture_output=True, text=True
    )
    found = by_name(done.stdout)
    assert list(found) == [*NAMES, "model"]
    assert found["hub"]["status"] == "warning"
    assert "HF_HUB_OFFLINE is set" in found["hub"]["found"]
    assert found["model"]["status"] == "ok"
    assert all(bool(finding["remedy"]) == (finding["status"] != "ok") for finding in found.values())
    assert done.returncode == any(finding["status"] == "failure" for finding in found.values())
    assert json.loads(done.stdout)["recommended"] == "cpu"


def test_the_table_says_the_same():
    code, out = anita_doctor()
    assert code == 0
    assert all(name in out for name in NAMES)
    assert "--profile cpu" in out


def test_without_torch_the_rest_is_still_reported():
    code, out = anita_doctor("--json", first="sys.modules['torch'] = None")
    assert code == 1
    assert by_name(out)["machine"]["status"] == "failure"
    assert "torch" in by_name(out)["machine"]["found"]
    assert "pip install" in by_name(out)["machine"]["remedy"]


LOOK_AT_THE_HUB = """
import json, sys
from anita_utils.cli import doctor
profile = doctor.load_profile(sys.argv[1])
print(json.dumps({finding.name: finding._asdict() for finding in doctor.online(profile)}))
"""


@pytest.fixture
def ask(tmp_path):
    """What is found about the Hub for a profile whose model is on a Hub of our own, by name; no torch here."""
    (tmp_path / "hub" / "anita").mkdir(parents=True)
    (tmp_path / "hub" / "anita" / "tiny").symlink_to(DATA / MODEL)
    values = yaml.safe_load((PROFILES / "cpu.yaml").read_text("utf-8"))
    profile = tmp_path / "mine.yaml"
    with HubServer(tmp_path / "hub") as hub:

        def call(revision, **environment):
            values["model"] |= {"base": "anita/tiny", "revision": revision}
            profile.write_text(yaml.safe_dump(values), "utf-8")
            command = [sys.executable, "-c", LOOK_AT_THE_HUB, str(profile)]
            environment = hub.environment(tmp_path / "home") | environment
            return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

        call.hub, call.profile, call.environment = hub, str(profile), hub.environment(tmp_path / "home")
        yield call


def test_access_to_the_model_on_the_hub(ask):
    commit = commit_of("anita/tiny")
    found = ask(commit)
    assert found["hub"]["status"] == found["model"]["status"] == "ok"
    assert found["token"]["status"] == "warning"
    assert found["model"]["found"] == f"anita/tiny may be downloaded, {commit}"
    found = ask(None)
    assert found["model"]["status"] == "warning"
    assert found["model"]["remedy"] == f"set model.revision to {commit}, its commit today"
    found = ask("0" * 40)
    assert found["model"]["status"] == "failure"
    assert "has no revision" in found["model"]["found"]


def test_no_access_to_a_gated_model(ask):
    ask.hub.gated["anita/tiny"] = {"member"}
    ask.hub.known_tokens = {"stranger"}
    found = ask(commit_of("anita/tiny"))
    assert found["model"]["status"] == "failure"
    assert found["model"]["found"] == "anita/tiny is gated and you are not logged in"
    assert found["model"]["remedy"].startswith("ask for access at ")
    found = ask(commit_of("anita/tiny"), HF_TOKEN="stranger")
    assert found["token"]["status"] == "ok"
    assert "stranger" not in str(found)
    assert "not on its list" in found["model"]["found"]
    assert ask(commit_of("anita/tiny"), HF_TOKEN="member")["model"]["status"] == "ok"
    code, out = anita_doctor("--profile", ask.profile, "--json", environment=ask.environment)
    assert code == 1
    assert by_name(out)["model"]["status"] == "failure"


def test_a_hub_out_of_reach_matters_until_the_model_is_here(ask):
    commit, nowhere = commit_of("anita/tiny"), {"HF_ENDPOINT": "http://127.0.0.1:9"}
    found = ask(commit, **nowhere)
    assert found["hub"]["status"] == "failure"
    assert "cannot be reached" in found["hub"]["found"]
    assert "model" not in found
    fetch = f"from anita_utils.hub import resolve_model; resolve_model('anita/tiny', '{commit}')"
    subprocess.run([sys.executable, "-c", fetch], env=ask.environment, check=True)
    found = ask(commit, **nowhere)
    assert found["hub"]["status"] == "warning"
    assert found["model"]["found"] == "anita/tiny is in the local cache"


def test_a_full_disk_is_a_failure(monkeypatch):
    for free, status in ((2e9, "ok"), (8e8, "warning"), (1e8, "failure")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert look(machine())["disk"].status == status
