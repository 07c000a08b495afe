"""Where models are found, and how missing and truncated ones are named."""

import json
import os
import shutil

import numpy
import pytest
from safetensors.numpy import save_file

from anita_utils import AnitaError, hub
from anita_utils.hub import check_model_folder, on_hub, resolve_model
from anita_utils.paths import data_dir
from anita_utils.run import Run


def make_model(folder):
    """A folder that looks like a saved model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    save_file({"a": numpy.ones((4, 8), "float32"), "b": numpy.ones(3, "float32")}, folder / "model.safetensors")
    return folder


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The shipped base model, in a data folder of its own."""
    monkeypatch.setenv("ANITA_DATA", str(tmp_path / "data"))
    return make_model(tmp_path / "data" / "tiny-llama-3-instruct")


def test_shipped_name_and_folder(shipped, runs):
    assert resolve_model("tiny-llama-3-instruct") == str(shipped)
    assert resolve_model(str(shipped)) == str(shipped)
    assert resolve_model("base") == str(shipped)


def test_stages_come_from_the_latest_run_or_the_one_given(shipped, runs):
    with pytest.raises(AnitaError, match="no run yet .*anita course"):
        resolve_model("sft")
    old = Run.open("old", "cpu")
    new = Run.open("new", "cpu")
    folders = [make_model(run.model_dir("sft") / "merged") for run in (old, new)]
    assert resolve_model("sft") == str(folders[1])
    assert resolve_model("sft", run=old) == str(folders[0])
    assert resolve_model("base", run=old) == str(shipped)
    with pytest.raises(AnitaError, match="run 'new' has no model 'dpo' yet"):
        resolve_model("dpo")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(shipped, file):
    (shipped / file).unlink()
    with pytest.raises(AnitaError, match=file):
        resolve_model("tiny-llama-3-instruct")


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_truncated_weights_are_named_wherever_they_end(shipped, keep):
    weights = shipped / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(AnitaError, match=r"model\.safetensors is truncated") as error:
        resolve_model("tiny-llama-3-instruct")
    assert "\n" not in str(error.value)


def test_other_files_are_not_taken_for_weights(shipped):
    weights = shipped / "model.safetensors"
    for content in (b"version https://git-lfs", (9).to_bytes(8, "little") + b"not json!"):
        weights.write_bytes(content)
        with pytest.raises(AnitaError, match=r"model\.safetensors is truncated or damaged"):
            check_model_folder(shipped)


def test_shards_are_all_checked(shipped):
    weights = shipped / "model.safetensors"
    weights.rename(shipped / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (shipped / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), "utf-8")
    with pytest.raises(AnitaError, match="model-00002-of-00002.safetensors is missing"):
        resolve_model(str(shipped))


def test_an_adapter_alone_is_told_apart(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(AnitaError, match="only a LoRA adapter"):
        resolve_model(str(tmp_path))


def test_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert on_hub("someone/some-model")
    with pytest.raises(AnitaError, match="HF_HUB_OFFLINE is set: correct the name, or unset"):
        resolve_model("someone/some-model")  # test_hub_download.py has the rest
    for path in ("./nowhere", "/no/such/folder", "a/b/c", "stf"):
        assert not on_hub(path)
        with pytest.raises(AnitaError, match="no model folder"):
            resolve_model(path)
    (tmp_path / "someone" / "some-model").mkdir(parents=True)
    assert not on_hub("someone/some-model")


def test_the_weights_of_a_base_are_read_once(tmp_path, monkeypatch):
    read = []
    hash_of = hub.file_hash
    monkeypatch.setattr(hub, "file_hash", lambda file: read.append(file.name) or hash_of(file))
    for number, content in enumerate((b"first", b"second")):
        (tmp_path / f"model-{number}.safetensors").write_bytes(content)
    whole = hub.model_key(tmp_path)
    assert hub.model_key(str(tmp_path)) == whole
    assert read == ["model-0.safetensors", "model-1.safetensors"]
    changed = tmp_path / "model-1.safetensors"
    changed.write_bytes(b"SECOND")  # as long as before
    os.utime(changed, ns=(0, 0))
    assert hub.model_key(tmp_path) != whole
    assert read == ["model-0.safetensors", "model-1.safetensors", "model-1.safetensors"]


def test_a_snapshot_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "file_hash", lambda file: pytest.fail(f"{file} was read"))
    keys = set()
    for name, commit in (("a--b", "0" * 40), ("a--b", "f" * 40), ("a--c", "0" * 40)):
        folder = tmp_path / f"models--{name}" / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"the same weights")
        keys.add(hub.model_key(folder))
    assert len(keys) == 3


def test_a_pickle_is_never_loaded(tmp_path):
    import torch

    from anita_utils.model import load_model

    shutil.copy(data_dir() / "tiny-llama-3-instruct" / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")  # which transformers would load if it were not told otherwise
    with pytest.raises(AnitaError, match=r"no file named model\.safetensors"):
        load_model(tmp_path)


def test_an_adapter_beside_a_model_is_refused(tiny_path, tmp_path):
    """transformers puts it on the model by itself, the key does not know it, and merging would leave it out."""
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(AnitaError, match="holds an adapter beside its model: merge it"):
        resolve_model(str(folder))
