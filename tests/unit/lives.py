"""Trains a profile's stages in processes that are killed from outside, and compares what comes out in the end.

    python lives.py PROFILE.yaml FOLDER kill TIMES     # SIGKILL at random moments, every second one inside a write
    python lives.py PROFILE.yaml FOLDER race           # two processes ask for the first stage at once

The libraries are imported once: each life is a fork of this process. The last line printed is the findings as JSON.
"""

import os

os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

import json
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import peft  # noqa: F401
import torch
from trl import DPOTrainer, SFTTrainer  # noqa: F401

from anita_utils import stages, training
from anita_utils.course.set_up import quieten
from anita_utils.paths import environment, file_hash
from anita_utils.profile import load_profile
from anita_utils.run import Run
from anita_utils.stages import MANIFEST, checkpoints, damage

TRAINED, FOUND = 10, 11  # how a life ends


def live(stage):
    """A process that trains the stage, or finds it trained. Returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        built, build = [], training.build_trainer
        training.build_trainer = lambda stage: built.append(stage) or build(stage)
        training.train_stage(stage)
        sys.stdout.flush()
        os._exit(TRAINED if built else FOUND)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def end_of(child):
    """How a process ended; None while it lives."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def kill(child, stage, moment):
    """Kills the life after `moment` seconds, or within the next write if None. Returns its end if it came before."""
    start = time.monotonic()
    torn_before = set(checkpoints(stage.work))
    while (end := end_of(child)) is None:
        if moment is None:
            there = checkpoints(stage.work)
            torn_before &= set(there)  # the new life deletes them, and may write them again
            ready = any(folder not in torn_before and not (folder / MANIFEST).exists() for folder in there)
        else:
            ready = time.monotonic() - start >= moment
        if ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.001)
    return end


def essence(stage):
    """What must be the same, however often a stage was killed: the history and the merged weights."""
    return stage.info["history"], file_hash(Path(stage.merged) / "model.safetensors")


def kill_stage(open_stage, name, times, rng):
    """Trains a stage undisturbed, then `times` killed; returns how many kills, and whether all ends were the same."""
    with environment(ANITA_CACHE=str(FOLDER / "unbroken")):
        start = time.monotonic()
        assert os.waitstatus_to_exitcode(os.waitpid(live(open_stage(name)), 0)[1]) == TRAINED
        duration = time.monotonic() - start
        expected = essence(open_stage(name))
    found = {"kills": 0, "inside_a_write": 0, "finished": 0, "as_unbroken": 0}
    with environment(ANITA_CACHE=str(FOLDER / "killed")):
        stage = open_stage(name)
        last = False
        while not last:
            last = found["kills"] == times
            moment = 3600 if last else None if found["kills"] % 2 == 0 else rng.uniform(0, duration)
            end = kill(live(stage), stage, moment)
            assert end in (None, TRAINED), f"{name} ended with {end}"
            if end is None:
                found["kills"] += 1
                found["inside_a_write"] += any(damage(folder) for folder in checkpoints(stage.work)[:1])
            if stage.done:
                found["finished"] += 1
                found["as_unbroken"] += essence(stage) == expected
                if not last:  # quicker than the kill, or killed at the very end: once more from the beginning
                    shutil.rmtree(stage.folder)
    return found


def race(open_stage):
    """How each of two processes that ask for a stage at once came by it."""
    with environment(ANITA_CACHE=str(FOLDER / "race")):
        ends = [os.waitpid(child, 0)[1] for child in (live(open_stage()), live(open_stage()))]
    return [{TRAINED: "trained", FOUND: "found"}.get(os.waitstatus_to_exitcode(end), "failed") for end in ends]


def main():
    profile = load_profile(sys.argv[1])
    os.environ["ANITA_RUNS"] = str(FOLDER / "runs")
    torch.set_num_threads(1)
    quieten()
    training.LOG_EVERY, training.SAVE_EVERY = 1, 2

    def open_stage(name=profile.order[0]):
        return stages.find_stage(Run.open("lives", profile, 42), name)

    if sys.argv[3] == "race":
        print(json.dumps(race(open_stage)))
        return
    rng = random.Random(int(sys.argv[4]))
    print(json.dumps({name: kill_stage(open_stage, name, int(sys.argv[4]), rng) for name in profile.order}))


FOLDER = Path(sys.argv[2])
if __name__ == "__main__":
    main()
