"""Does every keyword that the kit, the lessons and the scripts hand to a library exist in the version installed?

A library drops or renames a keyword from one version to the next. Where its function takes `**kwargs`, nothing fails
then: a setting is ignored. So the calls are read from the source, and each keyword is looked up in the signature.
"""

import ast
import importlib
import inspect
import json
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = {
    "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "lm_eval", "huggingface_hub",
    "safetensors", "tokenizers", "papermill", "nbconvert", "nbformat", "pandas", "numpy", "scipy", "sklearn", "gguf",
}  # fmt: skip


# Keywords that go into a function's **kwargs: other tests hold what comes of them.
SWALLOWED = {
    "papermill.execute_notebook": {"config", "execution_timeout", "on_cell_start"},
    "peft.PeftModel.from_pretrained": {"torch_device"},
    "transformers.AutoConfig.from_pretrained": {"gguf_file", "trust_remote_code"},
    "transformers.AutoModelForCausalLM.from_pretrained": {
        "device_map", "dtype", "num_hidden_layers", "output_loading_info", "quantization_config", "revision",
    },
    "transformers.AutoTokenizer.from_pretrained": {"revision", "trust_remote_code"},
    "transformers.GenerationConfig": {
        "bos_token_id", "do_sample", "eos_token_id", "max_new_tokens", "pad_token_id",
    },
    "transformers.LlamaForCausalLM.from_pretrained": {"device_map", "dtype", "quantization_config", "state_dict"},
    "transformers.PreTrainedTokenizerFast": {
        "bos_token", "chat_template", "clean_up_tokenization_spaces", "eos_token", "model_input_names",
        "model_max_length", "pad_token", "tokenizer_object",
    },
    "transformers.TextIteratorStreamer": {"skip_special_tokens"},
}  # fmt: skip


def sources():
    """Each file's name with its Python source; of a notebook, that of its code cells."""
    for folder in ("anita_utils", "world", "scripts", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT), file.read_text("utf-8")
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield file.relative_to(ROOT), "\n".join(line for cell in code for line in cell.split("\n") if line[:1] != "%")


def imported(tree):
    """What each name stands for that is imported from a library: {"SFTConfig": "trl.SFTConfig", "pd": "pandas"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.asname or alias.name.partition(".")[0]: alias for alias in node.names}
            found = {name: alias.name if alias.asname else name for name, alias in found.items()}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        names |= {name: full for name, full in found.items() if full.partition(".")[0] in LIBRARIES}
    return names


def dotted(node):
    """The name of what is called, "np.random.default_rng"; None where it is no plain name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def calls(source):
    """The functions of libraries that a source calls by their own names, each with its keywords and line."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        name = dotted(node.func) if isinstance(node, ast.Call) else None
        first, _, rest = (name or "").partition(".")
        keywords = [keyword.arg for keyword in node.keywords if keyword.arg] if name else []
        if first in names and keywords:
            yield ".".join(filter(None, (names[first], rest))), keywords, node.lineno


@cache
def parameters(name):
    """The names of a library function's parameters, and whether it takes others; None where it tells no signature.

    AttributeError or ImportError where the library has no such thing any more.
    """
    parts, found = name.split("."), None
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[count:]:
        found = getattr(found, part)
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):
        return None
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return set(signature.parameters), inspect.Parameter.VAR_KEYWORD in kinds


def unknown(source):
    """The keywords that a call's signature does not have, but for those of SWALLOWED where it takes **kwargs."""
    found = []
    for name, keywords, line in calls(source):
        known, takes_others = parameters(name) or (keywords, False)
        others = SWALLOWED.get(name, set()) if takes_others else set()
        found += [f"line {line}: {name}({keyword}=)" for keyword in keywords if keyword not in {*known, *others}]
    return found


@pytest.mark.parametrize(("file", "source"), list(sources()), ids=lambda value: str(value)[:60])
def test_every_keyword_is_in_the_librarys_signature(file, source):
    assert unknown(source) == []


def test_renamed_and_swallowed_keywords_are_found():
    source = """
import torch.nn.functional as F
from transformers import BitsAndBytesConfig
from trl import SFTConfig
SFTConfig(max_seq_length=8)
BitsAndBytesConfig(load_in_4bit=True, load_in_5bit=True)
F.pad(x, (1, 0), mode="constant")
"""
    assert unknown(source) == [
        "line 5: trl.SFTConfig(max_seq_length=)",
        "line 6: transformers.BitsAndBytesConfig(load_in_5bit=)",
    ]
    with pytest.raises(AttributeError):
        unknown("import torch\ntorch.no_such_function(size=1)")
