"""What can go wrong while training ends in one line and leaves nothing half-written."""

import ctypes
import errno
import os
import resource
from contextlib import contextmanager

import pytest
import torch
import yaml
from locks import in_use

from anita_utils import AnitaError, stages, training
from anita_utils.run import Run
from anita_utils.stages import explained


@pytest.fixture
def stage(runs, tiny_profile, monkeypatch):
    tiny_profile.order = ["sft"]
    monkeypatch.setattr(training, "SAVE_EVERY", 5)
    return stages.find_stage(Run.open("t", tiny_profile, 42), "sft")


@contextmanager
def files_up_to(size):
    """A disk on which no file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left_behind(stage):
    """What is left in the stage's cache except locks and whole checkpoints."""
    whole = {stage.work / "checkpoint-5", stage.work}
    entries = [*stage.folder.parent.iterdir(), *(stage.work.iterdir() if stage.work.is_dir() else [])]
    left = [entry.name for entry in entries if entry.suffix != ".lock" and entry not in whole]
    return [name for name in left if name != "README.md"]


@pytest.mark.parametrize("size", [20_000, 200_000, 1_000_000], ids=["adapter", "tokenizer", "merged model"])
def test_a_full_disk_is_one_line_and_training_goes_on_when_there_is_room(stage, size):
    with (
        files_up_to(size),
        pytest.raises(AnitaError, match=r"^stage 'sft': .*could not be written") as caught,
    ):
        training.train_stage(stage)
    assert "\n" not in str(caught.value) and "free some space" in str(caught.value)
    assert not stage.done and not stage.folder.exists()
    assert [name for name in left_behind(stage) if not name.startswith("checkpoint-")] == []
    assert training.train_stage(stage).done


@contextmanager
def not_almighty():
    """Takes from root, for a while, the right to read and write where the permissions do not allow it."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, rights):
        pytest.skip("the rights of this process cannot be read")
    before = rights[0]
    rights[0] = before & ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, rights) == 0
    try:
        yield
    finally:
        rights[0] = before
        libc.capset(header, rights)


def test_a_read_only_folder_is_one_line(stage):
    folder = stage.folder.parent
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    try:
        with not_almighty(), pytest.raises(AnitaError, match=r"sft-.*may not be written: .*ANITA_CACHE"):
            training.train_stage(stage)
    finally:
        folder.chmod(0o755)
    assert list(folder.iterdir()) == []


def test_a_read_only_folder_of_runs_is_one_line(runs, anita, tiny_profile, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_profile.model_dump(mode="json")))
    runs.mkdir()
    runs.chmod(0o555)
    try:
        with not_almighty():
            code, out, err = anita("train", "sft", "--profile", file)
    finally:
        runs.chmod(0o755)
    assert code == 2 and err.startswith("anita: ") and err.count("\n") == 1
    assert "may not be written: allow it, or set ANITA_RUNS" in err


def test_a_loss_that_is_no_number_is_one_line(stage):
    stage.settings.learning_rate = 1e30
    with pytest.raises(AnitaError, match=r"stage 'sft': the loss is (nan|inf) at update \d+: lower the learning rate"):
        training.train_stage(stage)
    assert not stage.done and left_behind(stage) == []


def test_out_of_memory_names_the_planners_remedy(stage):
    line = r"stage 'sft': out of memory; by the plan it needs [\d.]+ GiB at 4 x 128: .* would save [\d.]+ \(see `anita"
    with pytest.raises(AnitaError, match=line), explained(stage):
        torch.empty(2**55, dtype=torch.uint8)  # more than any machine has


def test_other_errors_are_not_explained_away(stage):
    with pytest.raises(ZeroDivisionError), explained(stage):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/big"),
            r"/tmp/big could not be written \(no room\): free",
        ),
        (
            RuntimeError("I/O error: disk quota exceeded (os error 122)"),
            r"could not be written \(perhaps no room\): free",
        ),
        (OSError(errno.EACCES, "Permission denied", "/tmp/mine"), r"/tmp/mine may not be written: .*ANITA_CACHE"),
    ],
)
def test_inside_a_training_a_failure_is_one_line_and_nothing_half_written_is_left(stage, error, line):
    with pytest.raises(AnitaError, match=f"^stage 'sft': {line}" if "/tmp" in line else line), stage.training():
        (stage.work / "checkpoint-7").mkdir(parents=True)  # without its manifest
        raise error
    assert stages.checkpoints(stage.work) == [] and not in_use(stage.folder)
