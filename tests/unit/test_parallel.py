"""`anita ablate --jobs`: seeds in processes of their own, then one call that gathers what they left in the cache."""

import subprocess

import pytest

from anita_utils import AnitaError
from anita_utils.ablation import campaign


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

    def ablate(profile, arms, seeds, only, name, say, keep, anew):
        gathered.append((seeds, list(only), keep, len(called)))
        raise AnitaError("far enough")

    monkeypatch.setattr(campaign, "ablate", ablate)
    code, _, err = anita("ablate", "--jobs", "2", "--seeds", "2", "--only", "sft", "--keep")
    assert code == 2 and "far enough" in err
    assert gathered == [([42, 43], ["sft"], True, 2)]  # after both calls
    assert all("--keep" not in words and "--only sft" in words for words, _ in called)


def test_an_arm_that_cannot_be_is_told_before_any_process_begins(anita, called, runs):
    code, _, err = anita("ablate", "--jobs", "2", "--only", "stf")
    assert code == 2 and err.startswith("anita: no arm 'stf'") and not called
