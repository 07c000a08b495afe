"""How is an adapter added into the weights it was trained on, and is what is saved what was trained?

>>> merge_adapter("data/tiny-llama-3-instruct", "adapter", "merged")
>>> check_merged("data/tiny-llama-3-instruct", "adapter", "merged", "float32", tokenizer)["weights"]
{'compared': 38, 'largest_difference': 0.0}
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from anita_utils import AnitaError, shown
from anita_utils.hub import on_hub, weight_files
from anita_utils.machine import free_memory
from anita_utils.model import give_back_memory, load_tokenizer
from anita_utils.paths import modes_by_umask, write_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


PART = 10**9  # bytes in one file of a merged model, and so roughly what merging holds in memory
GIB = 2**30
AGAIN = "train the stage again, and report this if it comes back"


class Diverged(AnitaError):
    """The training ended in weights that are nan or inf."""


def read_weight(path: str | Path, name: str) -> torch.Tensor:
    """One weight as a model's files hold it, without the rest of the model.

    name: as `named_parameters` has it, such as "model.layers.0.mlp.up_proj.weight"; AnitaError when there is none.
    """
    files = _files(Path(path))
    if name not in files:
        raise AnitaError(f"{shown(path)}: no weight '{name}': restore the model, or take another")
    return _read(files[name], name)


def _files(folder: Path) -> dict[str, Path]:
    return {name: file for file in weight_files(folder) for name in _names(file)}


def _names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as weights:
        return set(weights.keys())


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(name)


# ---------------------------------------------------------------- merging


def merge_adapter(base: str | Path, adapter: str | Path, out: str | Path, dtype: str = "float32") -> None:
    """Adds a LoRA adapter into the unquantised weights of `base` and saves the result, with its tokenizer, in `out`.

    The weights are bit for bit those of PEFT's `merge_and_unload()`, which holds the whole model in memory (16 GB for
    an 8B in 16 bits); here they are read, merged and checked one by one, and written in files of about `PART` bytes.
    Merging into the 4-bit model would quantise the sum again and lose part of what was learnt.

    AnitaError, and no `out`, for weights that are missing, not finite or not merged by adding; `Diverged` where it is
    the adapter that makes a weight nan or inf.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    base, out = Path(base), Path(out)
    if out.exists():
        raise AnitaError(f"{shown(out)} exists already: delete it, or name another folder for the merged model")
    merge = Merge(base, Path(adapter), dtype)
    parts = split_torch_state_dict_into_shards(merge.weights, max_shard_size=PART)
    out.mkdir(parents=True)
    try:
        for part, names in parts.filename_to_tensors.items():
            save_file({name: merge.merged(name) for name in names}, out / part, {"format": "pt"})
        if parts.is_sharded:
            index = {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}
            (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")
        if (base / "generation_config.json").is_file():
            shutil.copyfile(base / "generation_config.json", out / "generation_config.json")
        load_tokenizer(base).save_pretrained(out)
        merge.config.save_pretrained(out)
        readable_by_older(out)
        modes_by_umask(out)
    except BaseException:
        shutil.rmtree(out)
        raise


class Merge:
    """What merging an adapter into a base reads and writes; each weight is computed when it is asked for.

    weights: what is written, by name, on torch's meta device: shapes and types only.
    config: the merged model's, untied where the base's files hold a head of their own.
    changed: the weights that the adapter changes, each with what the names of its two matrices begin with.
    """

    def __init__(self, base: Path, adapter: Path, dtype: str) -> None:
        from peft import PeftConfig

        self.base, self.adapter = base, adapter / "adapter_model.safetensors"
        files = _files(base)
        model = _without_weights(base, dtype, files)
        self.config = model.config
        # named_parameters has a weight that two layers share once, as the files do
        kept, named = model.state_dict().keys(), [*model.named_parameters(), *model.named_buffers()]
        self.weights = {name: weight for name, weight in named if name in kept}
        self.places = {name: (file, name) for name, file in files.items()}
        for copy, original in model.all_tied_weights_keys.items():  # files may hold a shared weight under either name
            if original not in self.places and copy in self.places:
                self.places[original] = self.places[copy]
        if missing := [name for name in self.weights if name not in self.places]:
            raise AnitaError(f"{shown(base)}: no weights for {missing[0]}: restore the model, or take another")
        self.lora = PeftConfig.from_pretrained(adapter)
        self.changed = self._changed()

    def _changed(self) -> dict[str, str]:
        """AnitaError where the adapter's file is not just two matrices a weight, as the rest would be lost."""
        found = _names(self.adapter)
        prefixes = {name.partition(".lora_")[0] for name in found if ".lora_" in name}
        changed = {prefix.removeprefix("base_model.model.") + ".weight": prefix for prefix in prefixes}
        changed = {name: prefix for name, prefix in changed.items() if name in self.weights}
        wanted = {f"{prefix}.{side}.weight" for prefix in changed.values() for side in ("lora_A", "lora_B")}
        copies = {f"{prefix}.base_layer.weight" for prefix in changed.values()}  # what a layer was before: no loss
        if other := sorted((found - copies) ^ wanted):
            said = f"{len(other)} weights cannot be merged by adding ({other[0]})"
            way = "train linear layers that share no weights, with neither modules_to_save, tokens, bias nor use_dora"
            raise AnitaError(f"{shown(self.adapter.parent)}: {said}: {way}")
        return changed

    def before(self, name: str) -> torch.Tensor:
        """The weight `name` of the base, in the type that is written."""
        return _read(*self.places[name]).to(self.weights[name].dtype)

    def update(self, name: str) -> torch.Tensor:
        """What the adapter adds to the weight `name`: B A times its scale, in fp32."""
        from peft.utils.other import get_pattern_key

        prefix, alphas = self.changed[name], self.lora.alpha_pattern
        a, b = (_read(self.adapter, f"{prefix}.{side}.weight").float() for side in ("lora_A", "lora_B"))
        alpha = alphas.get(get_pattern_key(alphas, name.removesuffix(".weight")), self.lora.lora_alpha)
        return (b @ a) * (alpha / (math.sqrt(len(a)) if self.lora.use_rslora else len(a)))

    def merged(self, name: str) -> torch.Tensor:
        """The weight `name` with the adapter's update, if there is one. AnitaError where it holds nan or inf."""
        weight = self.before(name)
        if not weight.isfinite().all():
            kind = str(weight.dtype).removeprefix("torch.")
            remedy = "restore the model, or set model.dtype to float32 where it is too large"
            raise AnitaError(f"{shown(self.base)}: {name} holds nan or inf in {kind}: {remedy}")
        if name in self.changed:
            weight += self.update(name)
            give_back_memory()  # matrices of many sizes, each freed at once, would leave a heap of holes
            if not weight.isfinite().all():
                raise Diverged(f"{name} is nan or inf once the adapter is merged: lower the learning rate")
        return weight


def _without_weights(base: Path, dtype: str, files: dict[str, Path]) -> PreTrainedModel:
    """The model in a folder as an empty shell: layers and shapes, on torch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    options = {"dtype": getattr(torch, dtype), "trust_remote_code": False}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **options)
    for pair in model.all_tied_weights_keys.items():
        if files.keys() >= set(pair) and not torch.equal(*(_read(files[name], name) for name in pair)):
            config.tie_word_embeddings = False  # two matrices that are not one: what transformers 5 does when it loads
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, **options)
    return model


# ---------------------------------------------------------------- checking


# Two texts in the languages of the course; of each the first `LENGTH` tokens are compared.
TEXTS = (
    "The river Po rises in Piedmont and flows east, past Turin, Piacenza and Cremona, to the Adriatic Sea. In spring, "
    "when the snow melts, its water is high; in a dry August one can wade through it. What would you like to know?",
    "Il fiume Po nasce in Piemonte e scorre verso est, passando per Torino, Piacenza e Cremona, fino all'Adriatico. In "
    "primavera, quando la neve si scioglie, l'acqua è alta; in un agosto secco lo si guada. Che cosa vuoi sapere?",
)
LENGTH = 64
# How far the logits may be apart: the standard deviation of their difference over their own. Measured on the shipped
# model and on 32 random layers: up to 5e-6, .023 and .003; at a hundred times the recipe's rates 2e-5, .067 and .015.
# A rope_theta of 10,000 makes .27, a lost head 1.0. What one layer's update makes, .002 to .2, the weights show.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.05}


def check_merged(base: str | Path, adapter: str | Path, merged: str | Path, dtype: str, tokenizer: Tokenizer) -> dict:
    """Reads a merged model back and compares it with the base and the adapter that it was made of.

    First the tokenizer, and every weight with what merging would write. Then, where the free memory holds the model in
    fp32, the logits of two short texts, on the CPU: the merged model's, as anyone would load it, and the base's with
    the adapter put on it. Elsewhere the configurations are compared.

    dtype: what the merged weights are held in. tokenizer: the one that the adapter was trained with.

    Returns how many weights and tokens were compared and the largest differences: of a weight as a share of what the
    adapter changed in it, of a logit in logits. AnitaError where rounding does not explain them; `Diverged` where the
    logits are nan or inf.
    """
    base, adapter, merged = Path(base), Path(adapter), Path(merged)
    _check_tokenizer(merged, tokenizer)
    merge = Merge(base, adapter, dtype)
    checked = {"weights": _compare_weights(merge, merged)}
    needed, free = 1.25 * 4 * sum(weight.numel() for weight in merge.weights.values()), free_memory()  # bytes
    if needed > free:
        _check_config(merge, merged)  # else the logits show it
        return checked | {"logits": f"not compared: {needed / GIB:,.1f} GiB needed, {max(0, free) / GIB:,.1f} GiB free"}
    texts = [tokenizer(text)["input_ids"][:LENGTH] for text in TEXTS]
    return checked | {"logits": _compare_logits(base, adapter, merged, dtype, texts)}


def _check_tokenizer(merged: Path, tokenizer: Tokenizer) -> None:
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

    configs = AutoConfig.from_pretrained(merged, trust_remote_code=False), merge.config
    found, expected = (json.loads(json.dumps(config.to_dict(), default=str)) for config in configs)
    of_a_file = {"_name_or_path", "transformers_version"}  # where and by what it was written
    if other := sorted(key for key in expected.keys() - of_a_file if found.get(key) != expected[key]):
        raise AnitaError(f"{shown(merged)}: {other[0]} of config.json is not the trained model's: {AGAIN}")


def _compare_weights(merge: Merge, merged: Path) -> dict:
    """AnitaError where a weight is missing, too many, or not what merging makes of it."""
    files, largest = _files(merged), 0.0
    if other := sorted(files.keys() ^ merge.weights.keys()):
        raise AnitaError(f"{shown(merged)}: {other[0]} is saved but not in the model, or the other way round: {AGAIN}")
    for name in merge.weights:
        found, expected = _read(files[name], name), merge.merged(name)
        if found.dtype == expected.dtype and found.equal(expected):
            continue
        changed = (expected.double() - merge.before(name).double()).norm()
        share = ((found.double() - expected.double()).norm() / changed).item()  # inf where nothing was to change
        if not share <= 0.01:  # not a bit should be off; another order of adding might round some the other way
            raise AnitaError(f"{shown(merged)}: {name} is not base plus update when read back: {AGAIN}")
        largest = max(largest, share)
    return {"compared": len(merge.weights), "largest_difference": largest}


def _compare_logits(base: Path, adapter: Path, merged: Path, dtype: str, texts: list[list[int]]) -> dict:
    import torch

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        expected, found = _logits(base, texts, adapter), _logits(merged, texts)
    if not expected.isfinite().all():
        raise Diverged("the trained model's logits are nan or inf: lower the learning rate")
    difference, tolerance = found - expected, TOLERANCE[dtype]
    share = (difference.std() / expected.std()).item()
    if not share <= tolerance:
        differ = f"read back, its logits differ from the trained model's by {share:.2g} of their spread"
        remedy = f"lower the learning rate if the loss rose; else {AGAIN}"
        raise AnitaError(f"{shown(merged)}: {differ}, where rounding to {dtype} explains {tolerance:g}: {remedy}")
    largest = difference.abs().max().item()
    return {"compared": len(expected), "largest_difference": largest, "share": share, "tolerance": tolerance}


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


# ---------------------------------------------------------------- fit for others


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
    config = _read_json(Path(folder) / "config.json")
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    apart = "text_config" in config or any(isinstance(value, dict) for value in rope.values())  # for each kind of layer
    readable = kind in AS_BEFORE and not apart
    if readable:
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        config |= {key: value for key, value in rope.items() if key not in scaling}
        config |= {"rope_scaling": scaling} if kind != "default" else {}
    else:
        config["requires"] = "transformers>=5"
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    _write_json(Path(folder) / "config.json", config)
    if (Path(folder) / "tokenizer_config.json").is_file():
        _tokenizer_as_before(Path(folder))
    return readable


def _tokenizer_as_before(folder: Path) -> None:
    """The tokenizer's settings in words that both versions know, without those of the machine that saved it."""
    settings = _read_json(folder / "tokenizer_config.json")
    settings = {key: value for key, value in settings.items() if key not in OF_THE_MACHINE}
    if (folder / "tokenizer.json").is_file():
        # The class that takes the file as it is: version 4's LlamaTokenizerFast adds tokens by rules of its own
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.setdefault("model_input_names", ["input_ids", "attention_mask"])  # its own hold token_type_ids too
    if isinstance(settings.get("extra_special_tokens"), list):  # version 4 takes a dictionary under this name
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    _write_json(folder / "tokenizer_config.json", settings)


def _read_json(file: Path) -> dict:
    return json.loads(file.read_text("utf-8"))


def _write_json(file: Path, values: dict) -> None:
    write_text(file, json.dumps(dict(sorted(values.items())), indent=2, ensure_ascii=False) + "\n")


def public_name(model: str | Path) -> str:
    """The name by which a model can be known elsewhere: the Hub's or the shipped one; of a folder, its last part."""
    if on_hub(str(model)):
        return str(model)
    path = Path(os.path.abspath(Path(model).expanduser()))
    of_the_hub = [part for part in path.parts if part.startswith("models--")]  # a folder in the Hub's cache
    return of_the_hub[0].removeprefix("models--").replace("--", "/") if of_the_hub else path.name


def publish(stage: Path, base: str, before: list[str], revision: str | None = None) -> str:
    """Cards for a stage's folders `adapter` and `merged`, and the adapter's base under its public name.

    base: the name of the model that the first stage began with; before: the stages that were merged into it first.
    Returns a sentence that says which model the adapter belongs on.
    """
    adapter = _read_json(stage / "adapter" / "adapter_config.json")
    # After the first stage this is no model's name on purpose: PEFT's AutoPeftModel would add it to the wrong weights.
    adapter["base_model_name_or_path"] = "+".join([base, *before])
    adapter["revision"] = None if before else revision
    adapter["target_modules"] = sorted(adapter["target_modules"])
    _write_json(stage / "adapter" / "adapter_config.json", adapter)
    parent = f"{base} with the adapters of {', then '.join(before)} merged into it" if before else base
    needs = _read_json(stage / "merged" / "config.json").get("requires", "transformers 4.57 or 5")
    sentence = f"The adapter belongs on {parent}."
    put = "`PeftModel.from_pretrained(model, folder)` puts it there; in `../merged` the two are added up."
    sum_of = f"The weights of {parent}, plus the adapter in `../adapter`. Reading it needs {needs}."
    _write_card(stage / "adapter", base, "peft", "A LoRA adapter", f"{sentence} {put}")
    _write_card(stage / "merged", base, "transformers", "A merged model", sum_of)
    return sentence


def _write_card(folder: Path, base: str, library: str, title: str, text: str) -> None:
    front = ["---", f"base_model: {base}", f"library_name: {library}", "pipeline_tag: text-generation", "---"]
    write_text(folder / "README.md", "\n".join([*front, "", f"# {title}", "", text, ""]))
