"""What is saved beside a model's weights, made fit for others: older libraries, other users, other machines.

>>> readable_by_older("merged")     # transformers 4 reads it as transformers 5 does
True
>>> modes_by_umask("merged")        # safetensors writes files that only their owner may read
>>> public_name("cache/models--meta-llama--Meta-Llama-3-8B/snapshots/5f0b02c")
'meta-llama/Meta-Llama-3-8B'
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

from anita_utils.hub import on_hub
from anita_utils.paths import write_text

NEEDS_5 = "transformers>=5"
# Kinds of rotary embedding with which 4.57 was seen to compute the same logits as 5.23; with longrope it does not.
AS_BEFORE = ("default", "linear", "dynamic", "yarn", "llama3")
# What a tokenizer's settings hold of the machine that saved them; each is only needed there.
OF_THE_MACHINE = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "vocab_file", "merges_file",
                  "special_tokens_map_file", "backend")  # fmt: skip


def readable_by_older(folder: str | Path) -> bool:
    """Adds to a model saved by transformers 5 what transformers 4 looks for. Returns whether 4 can then read it.

    Version 5 moved the base of the rotary embedding, renamed the type of the weights and the tokenizer's class: 4.57
    reads a rope_theta of 10,000 in place of Llama 3's 500,000, without a word, and refuses the tokenizer. Version 5
    still reads the old names. A model for which they do not suffice says so in config.json, as "requires".
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict) and "rope_parameters" in part)]
    readable = all([_rope_as_before(part) for part in parts])
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    if not readable:
        config["requires"] = NEEDS_5
    _write_json(folder / "config.json", config)
    if (folder / "tokenizer_config.json").is_file():
        _tokenizer_as_before(folder)
    return readable


def _rope_as_before(config: dict) -> bool:
    """Writes the rotary embedding's settings where transformers 4 reads them; False where it has no place for them."""
    rope = config.get("rope_parameters")
    if not rope:
        return True
    kind = rope.get("rope_type", "default")
    if kind not in AS_BEFORE or any(isinstance(value, dict) for value in rope.values()):  # a dictionary a kind of layer
        return False
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    config |= {key: value for key, value in rope.items() if key not in scaling}
    if kind != "default":
        config["rope_scaling"] = scaling
    return True


def _tokenizer_as_before(folder: Path) -> None:
    """The tokenizer's settings in words that both versions know, without those of the machine that saved it.

    Its class becomes the one that takes tokenizer.json as it is: in version 4 those of single models, such as
    LlamaTokenizerFast, put a token at the beginning by rules of their own.
    """
    settings = _read_json(folder / "tokenizer_config.json")
    settings = {key: value for key, value in settings.items() if key not in OF_THE_MACHINE}
    if (folder / "tokenizer.json").is_file():
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.setdefault("model_input_names", ["input_ids", "attention_mask"])  # its own hold token_type_ids too
    if isinstance(settings.get("extra_special_tokens"), list):  # version 4 takes a dictionary under this name
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    _write_json(folder / "tokenizer_config.json", settings)


def _read_json(file: Path) -> dict:
    return json.loads(file.read_text("utf-8"))


def _write_json(file: Path, values: dict) -> None:
    write_text(file, json.dumps(dict(sorted(values.items())), indent=2, ensure_ascii=False) + "\n")


def modes_by_umask(folder: str | Path) -> None:
    """Gives a folder, and all that is in it, the permissions that new folders and files get on this machine.

    safetensors writes files that nobody else may read. What the umask allows is seen on a folder and a file made for
    that: asking for the umask itself would change it for all threads.
    """
    folder = Path(folder)
    model = folder / f".modes.{os.getpid()}"
    model.mkdir()
    try:
        (model / "file").touch()
        of_folders, of_files = (stat.S_IMODE(made.stat().st_mode) for made in (model, model / "file"))
    finally:
        shutil.rmtree(model)
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(of_folders if path.is_dir() else of_files)


def public_name(model: str | Path) -> str:
    """The name by which a model can be known elsewhere: the Hub's or the shipped one; of a folder, its last part."""
    if on_hub(str(model)):
        return str(model)
    path = Path(os.path.abspath(Path(model).expanduser()))
    for part in path.parts:
        if part.startswith("models--"):  # a folder in the Hub's cache
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def publish(stage: Path, base: str, before: list[str], revision: str | None = None) -> str:
    """Cards for a stage's folders `adapter` and `merged`, and the adapter's base under its public name.

    base: the name of the model that the first stage began with; before: the stages that were merged into it first.
    Returns a sentence that says which model the adapter belongs on.
    """
    adapter = _read_json(stage / "adapter" / "adapter_config.json")
    parent = "+".join([base, *before])
    # After the first stage this is no model's name on purpose: PEFT's AutoPeftModel would add it to the wrong weights.
    adapter |= {"base_model_name_or_path": parent, "revision": None if before else revision}
    adapter["target_modules"] = sorted(adapter["target_modules"])
    _write_json(stage / "adapter" / "adapter_config.json", adapter)
    merged = f"{base} with the adapters of {', then '.join(before)} merged into it" if before else base
    sentence = f"The adapter belongs on {merged}."
    needs = _read_json(stage / "merged" / "config.json").get("requires", "transformers 4.57 or 5")
    write_text(stage / "adapter" / "README.md", ADAPTER.format(base=base, sentence=sentence))
    write_text(stage / "merged" / "README.md", MERGED.format(base=base, merged=merged, needs=needs))
    return sentence


ADAPTER = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
---

# A LoRA adapter

{sentence} `PeftModel.from_pretrained(model, folder)` puts it there; in `../merged` the two are added up.
"""

MERGED = """\
---
base_model: {base}
library_name: transformers
pipeline_tag: text-generation
---

# A merged model

The weights of {merged}, plus the adapter in `../adapter`. Reading it needs {needs}.
"""
