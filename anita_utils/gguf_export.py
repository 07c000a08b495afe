"""How does a model get into llama.cpp, Ollama or LM Studio? As a GGUF file, with a Modelfile for Ollama beside it.

>>> export_gguf("data/tiny-llama-3-instruct", "exports", "tiny-llama-3-instruct", "q8_0", "apache-2.0")
PosixPath('exports/tiny-llama-3-instruct-q8_0.gguf')

Names and layout are those of llama.cpp's own convert_hf_to_gguf.py, which asks for a checkout of llama.cpp.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

from anita_utils import AnitaError, shown
from anita_utils.chat_template import AGAIN, ANSWER, MORE, QUESTION, inspect_template, render_text
from anita_utils.hub import weight_files
from anita_utils.memory import meta_model
from anita_utils.model import checked_tokenizer
from anita_utils.paths import replacing, write_text

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers import PreTrainedTokenizerBase as Tokenizer

Kind = Literal["f32", "f16", "q8_0"]
FILE_TYPES = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ANOTHER_WAY = "use a program that reads the model's folder (transformers, vLLM)"

# How a text is split before merging, and whether a piece that is a token whole is left unmerged: llama.cpp has a name
# for each such pair, and its own regular expressions behind the name (src/llama-vocab.cpp, there by `tokenizer_pre`).
# "smaug-bpe" splits as "llama-bpe" does and merges every piece, as the shipped model's tokenizer.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2, DIGIT, BYTES = "ByteLevel's own", r"\p{N}", "bytes"
PRE_TOKENIZERS = {
    ((LLAMA_3, BYTES), True): "llama-bpe",
    ((LLAMA_3, BYTES), False): "smaug-bpe",
    ((GPT_2, BYTES), False): "gpt-2",
    ((DIGIT, GPT_2, BYTES), False): "smollm",
}


def export_gguf(
    folder: str | Path, out: str | Path, title: str, kind: Kind = "f16", licence: str | None = None
) -> Path:
    """Writes the Llama in `folder` as `out`/`title`-`kind`.gguf, and `out`/Modelfile; returns the former's path.

    kind: how matrices are held: in fp32, in fp16, or in 8 bits with a scale for each 32 (8.5 bits a weight together).
        Norms stay in fp32. A matrix whose rows are no multiple of 32 wide stays in fp16 in a q8_0 file.
    licence: an identifier such as "apache-2.0"; None writes none.

    AnitaError, and nothing written, for another architecture, a tokenizer of which llama.cpp would make another, or
    weights that are missing, no numbers or too large for the kind.
    """
    folder, file = Path(folder).absolute(), Path(out) / f"{title}-{kind}.gguf"
    model = meta_model(str(folder))
    tokenizer = checked_tokenizer(folder, needs_template=False)
    writer = GGUFWriter(None, "llama")
    writer.add_type("model")
    writer.add_name(title)
    if licence:
        writer.add_license(licence)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    try:
        _add_shape(writer, model.config)
        _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    except AnitaError as error:
        raise AnitaError(f"{shown(folder)}: {error}") from error
    beside = modelfile(file.name, tokenizer, licence)
    with replacing(file) as temporary, closing(writer):
        _write(writer, temporary, _tensors(folder, model, kind))
        write_text(file.with_name("Modelfile"), beside)  # before the other has its name: both or none
    return file


def _add_shape(writer: GGUFWriter, config: LlamaConfig) -> None:
    """The model's sizes. AnitaError where it computes what llama.cpp's Llama does not."""
    for key, value, known in (
        ("hidden_act", config.hidden_act, ("silu",)),
        ("rope_type", config.rope_parameters["rope_type"], ("default", "llama3")),
    ):
        if value not in known:
            raise AnitaError(f"{key} '{value}' is not written as GGUF here ({', '.join(known)}): {ANOTHER_WAY}")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


# ---------------------------------------------------------------- weights


def rope_factors(config: LlamaConfig) -> np.ndarray | None:
    """By how much Llama 3.1 and later slow each frequency of the rotary embedding; (head_dim / 2,), None for others."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        return None
    slowed, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    plain = rope["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    return (plain / slowed).float().numpy()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """A query or key projection, or its bias, with the rows of each head in llama.cpp's order.

    The rotary embedding turns pairs of dimensions. In transformers the i-th is paired with the one half a head further
    on, in llama.cpp's Llama with its neighbour: row 2i + s of a head is what was row i + s * (head_dim / 2).
    """
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


class Tensor(NamedTuple):
    """One tensor of a GGUF file; its weights are read when they are asked for."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    read: Callable[[], np.ndarray]  # in fp32


def _write(writer: GGUFWriter, file: Path, tensors: list[Tensor]) -> None:
    """Writes a file tensor by tensor, holding one at a time."""
    for name, shape, kind, _ in tensors:
        weights, size = gguf.GGML_QUANT_SIZES[kind]  # of a block: how many, and its bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), prod(shape) // weights * size, raw_dtype=kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(gguf.quantize(tensor.read(), tensor.kind))
    writer.close()


def _tensors(folder: Path, model: LlamaForCausalLM, kind: Kind) -> list[Tensor]:
    """The model's tensors under llama.cpp's names. A tied head is not among them: llama.cpp takes the embedding."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names, tensors = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers), []
    factors = rope_factors(config)
    if factors is not None:
        tensors.append(Tensor("rope_freqs.weight", factors.shape, GGMLQuantizationType.F32, lambda: factors))
    for name, file in _places(folder, [name for name, _ in model.named_parameters()]).items():
        shape = tuple(model.get_parameter(name).shape)
        of, theirs = _kind(shape, kind), names.get_name(name, (".weight", ".bias"))
        tensors.append(Tensor(theirs, shape, of, partial(_read, file, name, of, heads.get(name.split(".")[-2], 0))))
    if narrow := sum(kind == "q8_0" and tensor.kind == GGMLQuantizationType.F16 for tensor in tensors):
        print(f"{shown(folder)}: {narrow} matrices stay in f16: their rows are no multiple of 32 wide", file=sys.stderr)
    return tensors


def _kind(shape: tuple[int, ...], kind: Kind) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[kind.upper()]
    return GGMLQuantizationType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] else wanted


def _places(folder: Path, names: list[str]) -> dict[str, Path]:
    """The file that each weight is in, in the model's order; with the head where the files hold one of its own."""
    from safetensors import safe_open

    files = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            files |= dict.fromkeys(weights.keys(), file)
    if missing := [name for name in names if name not in files]:
        raise AnitaError(f"{shown(folder)}: no weights for {missing[0]} ({len(missing)} missing): restore its files")
    if HEAD in files and HEAD not in names:  # said to be tied; two matrices that differ are not
        head, embedding = (_read(files[name], name, GGMLQuantizationType.F32) for name in (HEAD, EMBEDDING))
        names = names if np.array_equal(head, embedding) else [*names, HEAD]
    rest = [name for name in files if name not in (*names, HEAD) and not name.endswith("rotary_emb.inv_freq")]
    if rest:
        left_out = f"{len(rest)} weights are left out, for which a Llama has no place: {rest[0]}"
        print(f"{shown(folder)}: {left_out}", file=sys.stderr)
    return {name: files[name] for name in names}


def _read(file: Path, name: str, kind: GGMLQuantizationType, heads: int = 0) -> np.ndarray:
    """A weight in fp32, `interleaved` where it has heads. AnitaError where `kind` cannot hold it: nan, inf, large."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        weight = weights.get_tensor(name).float().numpy()
    found, largest = np.abs(weight).max(), np.finfo(np.float16 if kind == GGMLQuantizationType.F16 else np.float32).max
    if not found <= largest:
        remedy = "restore the model, or export it with --type f32 where it is a number"
        raise AnitaError(f"{shown(file)}: {name} holds {found:g}, which {kind.name} cannot: {remedy}")
    return interleaved(weight, heads) if heads else weight


# ---------------------------------------------------------------- tokenizer


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    """Tokens, merges, special tokens and chat template. rows: of the embedding; what no token has is padded.

    AnitaError for a tokenizer of which llama.cpp would make another.
    """
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in made["added_tokens"]}
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for any byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer(made))
    tokens = {number: token for token, number in made["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    for number, token in added.items():
        tokens[number] = token["content"]
        types[number] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if max(tokens) >= rows:
        raise AnitaError(f"the token {tokens[max(tokens)]!r} has no row in the embedding: {ANOTHER_WAY}")
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types([types.get(number, TokenType.UNUSED) for number in range(rows)])
    writer.add_token_merges([" ".join(pair) for pair in made["model"]["merges"]])
    _add_special_tokens(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(without_generation(tokenizer.get_chat_template()))


def _add_special_tokens(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """Which tokens begin and end texts and turns, and which of them llama.cpp is to add to a text by itself."""
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    ids |= {"pad": tokenizer.pad_token_id}
    ids |= {"eot": inspect_template(tokenizer).end_of_turn_id} if tokenizer.chat_template else {}
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    plain, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    bos, eos = whole[:1] == [tokenizer.bos_token_id], whole[-1:] == [tokenizer.eos_token_id]
    if whole != [tokenizer.bos_token_id] * bos + plain + [tokenizer.eos_token_id] * eos:
        raise AnitaError(f"the tokenizer adds other tokens to a text than BOS and EOS: {ANOTHER_WAY}")
    writer.add_add_bos_token(bos)
    writer.add_add_eos_token(eos)


def pre_tokenizer(made: dict[str, Any]) -> str:
    """The name under which llama.cpp splits texts as the tokenizer does; made: the contents of its tokenizer.json.

    AnitaError where none does, or where llama.cpp has no way to do what the tokenizer does.
    """
    model = made["model"]
    name = PRE_TOKENIZERS.get((_patterns(made["pre_tokenizer"]), bool(model.get("ignore_merges"))))
    parts = {"model": model["type"] != "BPE", "pre_tokenizer": name is None, "normalizer": made["normalizer"]}
    parts["model's affixes"] = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    parts["added_tokens"] = any(
        token[option] for token in made["added_tokens"] for option in ("lstrip", "rstrip", "single_word")
    )
    if wrong := [part for part, is_wrong in parts.items() if is_wrong]:
        known = ", ".join(PRE_TOKENIZERS.values())
        why = f"llama.cpp would split texts otherwise than the tokenizer ({wrong[0]}; known are {known})"
        raise AnitaError(f"{why}: {ANOTHER_WAY}")
    return name


def _patterns(part: dict[str, Any] | None) -> tuple[str, ...]:
    """What a pre-tokenizer does, one step after the other."""
    match part:
        case {"type": "Sequence", "pretokenizers": parts}:
            return tuple(pattern for one in parts for pattern in _patterns(one))
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return (DIGIT,)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": splits}:
            return (GPT_2, BYTES) if splits else (BYTES,)
    return (str(part),)


def without_generation(template: str) -> str:
    """The template without the tags that show trainers the answers: Jinja itself, and so most readers, has no such tag.

    They become an `if` that always holds, so that what they say of white space around them still does.
    """
    template = re.sub(r"(\{%[-+]?\s*)generation\b", r"\1if true", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration\b", r"\1endif", template)


# ---------------------------------------------------------------- Ollama


def modelfile(file: str, tokenizer: Tokenizer, licence: str | None = None) -> str:
    """The text of a Modelfile: answers as the course's own, the likeliest token each time, and where they end.

    Where the chat template does more than put words around turns, TEMPLATE is left out, with a word on standard error.
    """
    lines = [f"FROM ./{file}"]
    ends = [tokenizer.eos_token]
    if tokenizer.chat_template:
        ends.append(inspect_template(tokenizer).end_of_turn)
        if template := ollama_template(tokenizer):
            lines.append(f'TEMPLATE """{template}"""')
        else:
            left = "Modelfile: no TEMPLATE, as the chat template does more than put words around turns"
            print(f"{left}: Ollama takes the one in the GGUF file, where it can", file=sys.stderr)
    lines += [f'PARAMETER stop "{end}"' for end in dict.fromkeys(ends) if end]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    lines += [f"LICENSE {licence}"] if licence else []
    return "\n".join(lines) + "\n"


def ollama_template(tokenizer: Tokenizer) -> str | None:
    """The chat template in the words of Ollama (Go's text/template), found by rendering chats; None where it has none.

    Without the BOS at the beginning where the tokenizer adds one, since llama.cpp then does too.
    """
    system = {"role": "system", "content": "Parla di lamponi."}
    chats = [[QUESTION, ANSWER, AGAIN, MORE, QUESTION], [system, QUESTION, ANSWER, AGAIN]]
    try:
        plain, opened = (render_text(chat, tokenizer, add_generation_prompt=True) for chat in chats)
    except AnitaError:  # it knows no system role
        return None
    bos = tokenizer.bos_token
    if bos and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        plain, opened = plain.removeprefix(bos), opened.removeprefix(bos)
    asked, answered = QUESTION["content"], ANSWER["content"]
    before, _, rest = plain.partition(asked)
    to_answer, _, rest = rest.partition(answered)
    to_question = rest.partition(AGAIN["content"])[0]
    start, _, rest = opened.partition(system["content"])
    after_system = rest.partition(asked)[0]
    first = f"{asked}{to_answer}{answered}{to_question}{AGAIN['content']}{to_answer}"
    again = f"{MORE['content']}{to_question}{asked}{to_answer}"
    simple = (before + first + again, start + system["content"] + after_system + first) == (plain, opened)
    if not simple or re.search(r'\{\{|"""', before + to_answer + to_question + start + after_system):
        return None
    opening = f"{{{{ if .System }}}}{start}{{{{ .System }}}}{after_system}{{{{ else }}}}{before}{{{{ end }}}}"
    user = f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{to_answer}'
    assistant = f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{to_question}{{{{ end }}}}'
    return f"{opening}{{{{ range .Messages }}}}{user}{assistant}{{{{ end }}}}"
