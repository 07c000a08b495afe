"""Merging an adapter into the weights that it was trained on, and checking that the saved result is what was trained.

>>> merge_adapter("data/tiny-llama-3-instruct", "adapter", "merged")
>>> check_merged("data/tiny-llama-3-instruct", "adapter", "merged", "float32", tokenizer)["weights"]
{'compared': 38, 'largest_difference': 0.0}
"""
# MERGED DOC:
# """What is saved beside a model's weights, made fit for others: older libraries, other users, other machines.
#
# >>> readable_by_older("merged")     # transformers 4 reads it as transformers 5 does
# True
# >>> modes_by_umask("merged")        # safetensors writes files that only their owner may read
# >>> public_name("cache/models--meta-llama--Meta-Llama-3-8B/snapshots/5f0b02c")
# 'meta-llama/Meta-Llama-3-8B'
# """

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError, shown
from anita_utils.hub import on_hub, weight_files
from anita_utils.machine import free_memory
from anita_utils.model import give_back_memory, load_tokenizer
from anita_utils.paths import write_text

if TYPE_CHECKING:
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PART = 10**9  # bytes in one file of a merged model, and so roughly what merging holds in memory
GIB = 2**30
OF_A_FILE = {"_name_or_path", "transformers_version"}  # settings of a configuration that say where it was read
AGAIN = "train the stage again, and report this if it comes back"


class Diverged(AnitaError):
    """The training left numbers that are none."""


def read_weight(path: str | Path, name: str) -> torch.Tensor:
    """One weight as a model's files hold it, without the rest of the model. AnitaError when there is none of that name.

    name: as `named_parameters` has it, such as "model.layers.0.mlp.up_proj.weight".
    """
    places = _places(Path(path))
    if name not in places:
        raise AnitaError(f"{shown(path)}: no weight '{name}': restore the model, or take another")
    return _read(places[name], name)


def merge_adapter(base: str | Path, adapter: str | Path, out: str | Path, dtype: str = "float32") -> None:
    """Adds a LoRA adapter into the unquantised weights of `base` and saves the result, with its tokenizer, in `out`.

    Merging into the 4-bit model would quantise the sum again and lose part of what was learnt. The weights are read,
    merged (by PEFT, matrix after matrix) and written in parts of about `PART` bytes, on the CPU: an 8B model, 16 GB in
    16 bits, never needs to be in memory as a whole.

    AnitaError, and no file in `out`, for weights that are missing, not finite or not merged by adding; `Diverged` where
    it is the adapter that makes a weight nan or inf.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    base, out = Path(base), Path(out)
    merge = Merge.of(base, Path(adapter), dtype)
    if merge.left_out:
        count, names = len(merge.left_out), ", ".join(merge.left_out[:3]) + (", …" if len(merge.left_out) > 3 else "")
        print(f"{shown(base)}: {count} weights are left out, for which the model has no place: {names}")
    parts = split_torch_state_dict_into_shards(merge.weights, max_shard_size=PART)
    with _whole(out) as new:
        for part, names in parts.filename_to_tensors.items():
            save_file({name: merge.merged(name) for name in names}, new / part, {"format": "pt"})
        if parts.is_sharded:
            index = {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}
            (new / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")
        if (base / "generation_config.json").is_file():
            shutil.copyfile(base / "generation_config.json", new / "generation_config.json")
        load_tokenizer(base).save_pretrained(new)
        merge.config.save_pretrained(new)
        readable_by_older(new)
        modes_by_umask(new)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write to; its files are moved into `out` when the block has ended without an error."""
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        out.mkdir(exist_ok=True)
        for old in out.glob("model*.safetensors*"):  # of a model in another number of files
            old.unlink()
        for file in new.iterdir():
            file.replace(out / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@dataclass
class Merge:
    """What merging an adapter into a base reads and writes; each weight is computed when it is asked for."""

    base: Path
    adapter: Path
    config: object  # the merged model's: untied where the base's files hold a head of its own
    weights: dict[str, torch.Tensor]  # what is written, by name, on torch's meta device: shapes and types only
    places: dict[str, tuple[Path, str]]  # the file of the base in which each lies, and its name there
    layers: dict[str, tuple[str, LoraLayer]]  # those that the adapter changes, by the name of their weight
    left_out: list[str]  # weights in the base's files for which the model has no place

    @classmethod
    def of(cls, base: Path, adapter: Path, dtype: str) -> Merge:
        """AnitaError where the base lacks a weight, or where the adapter holds what cannot be added into one."""
        files = _places(base)
        model = _without_weights(base, dtype, files)
        # named_parameters has a weight that two layers share once, as the files do
        kept = model.state_dict().keys()
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
        weights = dict(model.named_parameters()) | buffers
        tied = model.all_tied_weights_keys
        places = {name: (file, name) for name, file in files.items()}
        for copy, original in tied.items():  # files may hold a shared weight under either name
            if original not in places and copy in places:
                places[original] = places[copy]
        if missing := [name for name in weights if name not in places]:
            raise AnitaError(f"{shown(base)}: no weights for {missing[0]}: restore the model, or take another")
        layers = {f"{name}.weight": (name, layer) for name, layer in _adapted_layers(model, adapter).items()}
        if shared := [name for weight, (name, _) in layers.items() if weight in {*tied, *tied.values()}]:
            raise AnitaError(f"{shared[0]} shares its weights with another layer: leave it out of target_modules")
        _check_adapter(adapter, [name for name, _ in layers.values()])
        left_out = sorted(files.keys() - weights.keys() - tied.keys())
        return cls(base, adapter, model.config, weights, places, layers, left_out)

    def merged(self, name: str) -> torch.Tensor:
        """The weight `name` of the base, in the type that is written, plus the adapter's update of it if there is one.

        AnitaError where it holds nan or inf.
        """
        weight = self.before(name)
        if name in self.layers:
            weight += _update(self.adapter, *self.layers[name])
            give_back_memory()  # matrices of many sizes, each freed at once, would leave a heap of holes
        if not weight.isfinite().all():
            raise self.why_not_finite(name)
        return weight

    def before(self, name: str) -> torch.Tensor:
        """The weight `name` of the base, in the type that is written."""
        return _read(*self.places[name]).to(self.weights[name].dtype)

    def why_not_finite(self, name: str) -> AnitaError:
        """Whether it is the base, the type that is written or the adapter that makes a merged weight nan or inf."""
        weight = _read(*self.places[name])
        if not weight.isfinite().all():
            return AnitaError(f"{shown(self.base)}: {name} holds nan or inf: restore the model, or take another")
        if not self.before(name).isfinite().all():
            kind = str(self.weights[name].dtype).removeprefix("torch.")
            return AnitaError(f"{shown(self.base)}: {name} is too large for {kind}: set model.dtype to float32")
        return Diverged(f"{name} is nan or inf once the adapter is merged: lower the learning rate")


def _without_weights(base: Path, dtype: str, files: dict[str, Path]) -> PreTrainedModel:
    """The model in a folder as an empty shell: layers and shapes, on torch's meta device.

    Where its configuration says that two layers share a weight but the files hold one for each, with different values,
    they are untied, as transformers 5 does when it loads the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def shell():
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    model = shell()
    twice = [pair for pair in model.all_tied_weights_keys.items() if files.keys() >= set(pair)]
    if any(not torch.equal(*(_read(files[name], name) for name in pair)) for pair in twice):
        config.tie_word_embeddings = False
        model = shell()
    return model


def _adapted_layers(model: PreTrainedModel, adapter: Path) -> dict[str, LoraLayer]:
    """The layers of an empty model that an adapter changes, by name; PEFT gives them their scale."""
    from peft import PeftConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    config = PeftConfig.from_pretrained(adapter)
    config.base_model_name_or_path = None  # PEFT would warn that an empty model has another name
    modules = get_peft_model(model, config, low_cpu_mem_usage=True).get_base_model().named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLayer)}


def _check_adapter(adapter: Path, layers: list[str]) -> None:
    """AnitaError where an adapter's file is not just the two matrices of each of its `layers`: the rest would be lost.

    A copy of the weight that a layer had before, which PEFT saves with some, is no loss.
    """
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        found = set(file.keys())
    prefixes = [f"base_model.model.{name}" for name in layers]
    wanted = {f"{prefix}.{side}.weight" for prefix in prefixes for side in ("lora_A", "lora_B")}
    if missing := sorted(wanted - found):
        raise AnitaError(f"{shown(adapter)}: no weights for {missing[0]}: save the adapter again")
    if other := sorted(found - wanted - {f"{prefix}.base_layer.weight" for prefix in prefixes}):
        remedy = "train without modules_to_save, trainable_token_indices, bias and use_dora, on linear layers only"
        raise AnitaError(f"{shown(adapter)}: {len(other)} weights cannot be merged by adding ({other[0]}): {remedy}")


def _places(base: Path) -> dict[str, Path]:
    """The file in which each weight of a model lies."""
    from safetensors import safe_open

    places = {}
    for file in weight_files(base):
        with safe_open(file, framework="pt") as weights:
            places |= dict.fromkeys(weights.keys(), file)
    return places


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(name)


def _update(adapter: Path, name: str, layer: LoraLayer) -> torch.Tensor:
    """What the adapter adds to the weight of the layer called `name`: B A times its scale, in fp32."""
    import torch

    for side in ("lora_A", "lora_B"):
        matrix = _read(adapter / "adapter_model.safetensors", f"base_model.model.{name}.{side}.weight")
        getattr(layer, side)["default"].weight = torch.nn.Parameter(matrix.float(), requires_grad=False)
    update = layer.get_delta_weight("default")
    layer.delete_adapter("default")  # its matrices are not needed again
    return update


# Two texts in the languages of the course; of each the first `LENGTH` tokens are compared.
TEXTS = (
    "The river Po rises in Piedmont and flows east, past Turin, Piacenza and Cremona, to the Adriatic Sea. In spring, "
    "when the snow melts, its water is high; in a dry August one can wade through it. What would you like to know?",
    "Il fiume Po nasce in Piemonte e scorre verso est, passando per Torino, Piacenza e Cremona, fino all'Adriatico. In "
    "primavera, quando la neve si scioglie, l'acqua è alta; in un agosto secco lo si guada. Che cosa vuoi sapere?",
)
LENGTH = 64
# How far the logits may be apart: the standard deviation of their difference over their own. Measured after all three
# stages on the shipped model, and on 32 random layers: 3e-7 to 5e-6 in float32, .0008 to .023 in bfloat16, 5e-5 to .003
# in float16; at a hundred times the recipe's learning rates, once, 2e-5, .067 and .015. A rope_theta
# of 10,000 makes .27 on the shipped model, a head that is lost 1.0. What one layer's update makes, .002 to .2, can be
# less than what 16 bits round away: the comparison of the weights sees it.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.05}


def check_merged(
    base: str | Path, adapter: str | Path, merged: str | Path, dtype: str, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Reads a merged model back and compares it with the base and the adapter that it was made of.

    First the tokenizer, and every weight with what merging would write. Then, where the machine's free memory holds the
    model in fp32, the logits of two short texts: those of the model as anyone would load it with those of the base with
    the adapter put on it, not merged; on the CPU, one after the other. Elsewhere the configurations are compared.
    Random numbers drawn later are the same as without it.

    dtype: what the merged weights are held in. tokenizer: the one that the adapter was trained with.

    Returns how many weights and tokens were compared and the largest differences: of a weight as a share of what the
    adapter changed in it, of a logit in logits. AnitaError, one line, where rounding does not explain them, or where
    the saved tokenizer is another one; `Diverged` where the logits are nan or inf.
    """
    base, adapter, merged = Path(base), Path(adapter), Path(merged)
    _check_tokenizer(merged, tokenizer)
    merge = Merge.of(base, adapter, dtype)
    needed, free = 1.25 * 4 * sum(weight.numel() for weight in merge.weights.values()), free_memory()  # bytes
    checked = {"weights": _compare_weights(merge, merged)}
    if needed > free:
        _check_config(merge, merged)  # else the logits show it
        return checked | {"logits": f"not compared: {needed / GIB:,.1f} GiB needed, {max(0, free) / GIB:,.1f} GiB free"}
    texts = [tokenizer(text)["input_ids"][:LENGTH] for text in TEXTS]
    return checked | {"logits": _compare_logits(base, adapter, merged, dtype, texts)}


def _check_tokenizer(merged: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """AnitaError where the saved tokenizer makes other tokens of a text, or another text of a chat."""
    turns = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]

    def made_by(tokenizer):
        chat = tokenizer.chat_template and tokenizer.apply_chat_template(turns, tokenize=False)
        return [tokenizer(text)["input_ids"] for text in TEXTS], chat

    if made_by(load_tokenizer(merged)) != made_by(tokenizer):
        raise AnitaError(f"{shown(merged)}: the saved tokenizer is not the one trained with: keep that of the base")


def _check_config(merge: Merge, merged: Path) -> None:
    """AnitaError where a setting of the model, such as rope_theta or whether the head is tied, is read as another."""
    from transformers import AutoConfig

    found, expected = (
        json.loads(json.dumps(config.to_dict(), default=str))
        for config in (AutoConfig.from_pretrained(merged, trust_remote_code=False), merge.config)
    )
    if other := sorted(key for key in expected.keys() - OF_A_FILE if found.get(key) != expected[key]):
        raise AnitaError(f"{shown(merged)}: {other[0]} of config.json is not the trained model's: {AGAIN}")


def _compare_weights(merge: Merge, merged: Path) -> dict:
    """AnitaError where a weight is missing, too many, or not what merging makes of it."""
    places, largest = _places(merged), 0.0
    if other := sorted(places.keys() ^ merge.weights.keys()):
        raise AnitaError(f"{shown(merged)}: {other[0]} is saved but not in the model, or the other way round: {AGAIN}")
    for name in merge.weights:
        found, expected = _read(places[name], name), merge.merged(name)
        if found.dtype == expected.dtype and found.equal(expected):
            continue
        changed = (expected.double() - merge.before(name).double()).norm()
        share = ((found.double() - expected.double()).norm() / changed).item()  # inf where nothing was to change
        if not share <= 0.01:  # not a bit is off by rights; another order of adding might round some the other way
            raise AnitaError(f"{shown(merged)}: {name} is not base plus update when read back: {AGAIN}")
        largest = max(largest, share)
    return {"compared": len(merge.weights), "largest_difference": largest}


def _compare_logits(base: Path, adapter: Path, merged: Path, dtype: str, texts: list[list[int]]) -> dict:
    import torch

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        expected, found = _logits(base, texts, adapter), _logits(merged, texts)
    if not expected.isfinite().all():
        raise Diverged("the trained model's logits are nan or inf: lower the learning rate")
    difference = found - expected
    share = (difference.std() / expected.std()).item()
    if not share <= TOLERANCE[dtype]:
        raise AnitaError(
            f"{shown(merged)}: read back, its logits differ from the trained model's by {share:.2g} of their spread, "
            f"where rounding to {dtype} explains {TOLERANCE[dtype]:g}: lower the learning rate if the loss rose; else "
            f"{AGAIN}"
        )
    largest = difference.abs().max().item()
    return {"compared": len(expected), "largest_difference": largest, "share": share, "tolerance": TOLERANCE[dtype]}


def _logits(path: Path, texts: list[list[int]], adapter: Path | None = None) -> torch.Tensor:
    """A model's logits at all places of the texts, in fp32; with an adapter put on it where one is given."""
    import gc

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    gc.collect()  # the model before this one: PEFT's is part of a circle of references
    options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
    model.eval()
    return torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in texts])


# ---------------------------------------------------------------- saving


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
