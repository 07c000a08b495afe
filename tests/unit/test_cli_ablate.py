"""`anita ablate`: arms listed, printed for a cluster, and seeds in processes of their own."""

import shlex
import subprocess

import pytest

from anita_utils import AnitaError
from anita_utils.ablation import campaign
from anita_utils.ablation.arms import ABLATIONS


def test_a_dry_run_lists_arms_and_what_remains_and_writes_nothing(runs, anita, tiny, done, arms, monkeypatch):
    file = arms()
    monkeypatch.setattr("anita_utils.profile.load_profile", lambda name: tiny)
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ("ablate", "--arms", file, "--seeds", 2, "--seed", 1)
    code, out, err = anita(*arguments, "--dry-run")
    assert (code, err) == (0, "") and not runs.exists()
    assert "What does SFT do?" in out and "sft (shared with 2), then dpo" in out
    assert out.endswith("trainings that remain: 6 of 6\nevaluations that remain: 7 of 7\n")

    code, out, err = anita("ablate", "--arms", file, "--seed", 1, "--only", "sft")
    assert code == 0 and out.endswith("ablation-cpu/ablation.md\n")
    out = anita(*arguments, "--dry-run")[1]
    assert out.endswith("trainings that remain: 5 of 6\nevaluations that remain: 6 of 7\n")
    assert anita(*arguments, "--dry-run", "--only", "base")[1].endswith(
        "trainings that remain: 0 of 0\nevaluations that remain: 1 of 1\n"
    )


def test_the_slurm_array_has_a_task_for_each_seed(runs, anita, tmp_path):
    code, script, _ = anita("ablate", "--all", "--seed", 7, "--arms", ABLATIONS / "cpu.yaml", "--slurm")
    file = tmp_path / "array.sh"
    file.write_text(script, "utf-8")
    assert code == 0 and "#SBATCH --array=7-11\n" in script
    subprocess.run(["bash", "-n", str(file)], check=True)
    recorder = 'anita() { printf "%s\\n" "$@"; }\nSLURM_ARRAY_TASK_ID=9\n'
    told = subprocess.run(["bash", "-c", recorder + script], capture_output=True, text=True, check=True).stdout.split()
    assert told[:3] == ["ablate", "--profile", "cpu"]
    assert told[-6:] == shlex.split("--seed 9 --seeds 1 --run ablation-cpu-9")
    code, out, err = anita(*told, "--only", "base", "--dry-run", "--afresh")
    assert (code, err) == (0, "") and "evaluations that remain: 1 of 1" in out and not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--all", "--seeds", 2], "--all is every arm with five seeds"),
        (["--all", "--only", "sft"], "--all is every arm with five seeds"),
        (["--dry-run", "--slurm"], "exclude each other"),
        (["--only", "stf"], "no arm 'stf': choose base, sft, italian"),
        (
            ["--arms", "nowhere.yaml"],
            "no arms for 'nowhere.yaml', only for cpu, h100: write some and name them",
        ),
        (["--profile", "laptop"], "no arms for 'laptop', only for cpu, h100: write some and name them with --arms"),
    ],
)
def test_wrong_arguments_are_one_line(runs, anita, arguments, complaint):
    code, out, err = anita("ablate", *arguments)
    assert (code, out) == (2, "") and complaint in err and err.count("\n") == 1 and not runs.exists()


@pytest.fixture
def called(monkeypatch):
    """What was called, in place of calling it: the words after `ablate`, with the threads allowed. Seed 3 fails."""
    calls = []

    def run(command, env, check):
        assert command[1:4] == ["-m", "anita_utils.cli.main", "ablate"] and not check
        calls.append((" ".join(command[4:]), env["OMP_NUM_THREADS"]))
        return subprocess.CompletedProcess(command, int("--seed 3 " in " ".join(command)))

    monkeypatch.setattr(campaign.subprocess, "run", run)
    return calls


def test_each_seed_is_a_call_of_its_own_with_one_thread(called):
    campaign.in_processes(["--profile", "cpu"], [1, 2], 2, "x")
    assert sorted(called) == [(f"--profile cpu --seed {n} --seeds 1 --run x-{n}", "1") for n in (1, 2)]


def test_a_seed_that_fails_is_named_when_the_others_have_ended(called):
    with pytest.raises(AnitaError, match="failed with seed 3, as said above.*call it again"):
        campaign.in_processes([], [2, 3, 4], 2, "x")
    assert len(called) == 3


def test_the_command_gathers_what_the_processes_made(anita, called, monkeypatch, runs):
    gathered = []

    def ablate(profile, arms, seeds, only, name, say, keep, afresh):
        gathered.append((seeds, list(only), keep, len(called)))
        raise AnitaError("far enough")

    monkeypatch.setattr(campaign, "ablate", ablate)
    code, _, err = anita("ablate", "--jobs", "2", "--seeds", "2", "--only", "sft", "--keep")
    assert code == 2 and "far enough" in err
    assert gathered == [([42, 43], ["sft"], True, 2)]  # after both calls
    assert all("--keep" not in words and "--only sft" in words for words, _ in called)


def test_an_arm_that_cannot_be_is_reported_before_any_process_begins(anita, called, runs):
    code, _, err = anita("ablate", "--jobs", "2", "--only", "stf")
    assert code == 2 and err.startswith("anita: no arm 'stf'") and not called
