"""A GGUF file read back by transformers' own reader; its order of rows, its names and its template by formulas and
tables of others. What llama.cpp itself makes of it: test_gguf_llama_cpp.py."""

import json
import math
import shutil

import gguf
import numpy as np
import pytest
import torch
from adapters import all_weights, said_to_be_tied, untied
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from anita_utils import AnitaError, gguf_export
from anita_utils.gguf_export import export_gguf, interleaved, pre_tokenizer, rope_factors, without_generation
from anita_utils.model import load_tokenizer
from anita_utils.paths import data_dir

CHAT = [
    {"role": "system", "content": "Sii breve."},
    {"role": "user", "content": "Perché no?"},
    {"role": "assistant", "content": "Così è. 🙂"},
    {"role": "user", "content": "E poi?\n"},
]


@pytest.fixture(scope="module", params=["f16", "q8_0"])
def exported(request, base_path, tmp_path_factory):
    """The shipped model in a file, and the type."""
    out = tmp_path_factory.mktemp("exported")
    return export_gguf(base_path, out, "tiny", request.param, "apache-2.0"), request.param


def read_back(file):
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def tokens_of(file):
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def rounding(weight):
    """How far q8_0 may be from a weight: half a step, a 127th of the largest of 32, and the rounding of 127 steps."""
    blocks = weight.abs().unflatten(-1, (-1, 32))
    step = blocks.amax(-1, keepdim=True).expand_as(blocks).flatten(-2) / 127
    return step * (0.5 + 127 * 2**-11) + 127 * 2**-25  # the step is kept in fp16: 11 bits, the last one at 2**-24


def test_weights_are_those_of_the_model_within_the_types_rounding(exported, model):
    file, kind = exported
    found, expected = read_back(file).state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        difference = (found[name] - weight).abs()
        if weight.ndim == 1:
            assert not difference.any(), name
        elif kind == "f16":
            assert found[name].equal(weight.half().float()), name
        else:
            assert (difference <= rounding(weight)).all() and difference.any(), name


def test_the_architecture_is_that_of_the_model(exported, model):
    found, expected = read_back(exported[0]).config, model.config
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings"):  # fmt: skip
        assert getattr(found, key) == getattr(expected, key), key
    assert found.rope_parameters["rope_theta"] == 500_000.0
    assert found.rms_norm_eps == pytest.approx(expected.rms_norm_eps, rel=1e-6)  # the file holds it in fp32


def words_in(value):
    """All strings of a row of a probe."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [word for one in inner for word in words_in(one)]


def test_tokens_of_all_probes_are_those_of_the_tokenizer(exported, tokenizer):
    lines = [line for file in data_dir().glob("probes/**/*.jsonl") for line in file.read_text("utf-8").splitlines()]
    texts = sorted({word for line in lines for word in words_in(json.loads(line))})
    assert len(texts) > 3000
    found = tokens_of(exported[0])
    assert found(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(found, name) == getattr(tokenizer, name), name


def test_the_template_writes_the_same_chats(exported, tokenizer):
    found = tokens_of(exported[0])
    assert "generation %" not in found.chat_template
    for turns, prompt in ((CHAT, True), (CHAT[1:3], False)):
        ids = [one.apply_chat_template(turns, add_generation_prompt=prompt)["input_ids"] for one in (found, tokenizer)]
        assert ids[0] == ids[1]


def test_names_and_ids_are_in_the_file(exported, tokenizer):
    file, kind = exported
    fields = {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}
    assert fields["general.name"] == "tiny" and fields["general.license"] == "apache-2.0"
    assert fields["general.file_type"] == {"f16": 1, "q8_0": 7}[kind]  # LLAMA_FTYPE_MOSTLY_F16 and _Q8_0 of llama.h
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "smaug-bpe"
    assert fields["tokenizer.ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (True, False)
    types = fields["tokenizer.ggml.token_type"]
    control = {number for number, kind in enumerate(types) if kind == gguf.TokenType.CONTROL}
    assert control == set(tokenizer.added_tokens_decoder) and set(types) == {1, 3}


# ---------------------------------------------------------------- shapes of others


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("shape", [(64, 5), (64,)], ids=["matrix", "bias"])
def test_neighbours_are_what_was_half_a_head_apart(heads, shape):
    """Row 2i + s of a head was row i + s d/2; and turning neighbours gives what turning halves gives."""
    weight = np.random.default_rng(0).normal(size=shape)
    found, d = interleaved(weight, heads), shape[0] // heads
    for head in range(heads):
        for i in range(d // 2):
            for s in (0, 1):
                assert np.array_equal(found[head * d + 2 * i + s], weight[head * d + s * (d // 2) + i])


def llama_with(folder, tokenizer, **values):
    """A random Llama in a folder, with the course's tokenizer."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**(shape | {"vocab_size": len(tokenizer), "initializer_range": 0.2} | values))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they begin as zeros
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("values", [
    {"head_dim": 32, "num_key_value_heads": 1},
    {"tie_word_embeddings": False},
    {"attention_bias": True, "num_key_value_heads": 2},
], ids=["wide heads", "a head of its own", "biases"])  # fmt: skip
def test_other_shapes_are_read_back_too(tmp_path, tokenizer, values):
    model = llama_with(tmp_path / "model", tokenizer, **values)
    file = export_gguf(tmp_path / "model", tmp_path, "other", "f32")
    names = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    assert ("output.weight" in names) == (not model.config.tie_word_embeddings)
    found = {} if values.get("attention_bias") else read_back(file).state_dict()  # its configuration knows no biases
    for name, weight in found.items():
        assert weight.equal(model.state_dict()[name]), name
    by_name = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    for side, heads in (("q", model.config.num_attention_heads), ("k", model.config.num_key_value_heads)):
        if values.get("attention_bias"):
            bias = model.get_parameter(f"model.layers.1.self_attn.{side}_proj.bias").detach().numpy()
            assert np.array_equal(by_name[f"blk.1.attn_{side}.bias"], interleaved(bias, heads))


def test_a_head_that_differs_from_the_embedding_is_written_whatever_the_configuration_says(tmp_path, base_path):
    folder = said_to_be_tied(untied(base_path, tmp_path / "model"))
    file = export_gguf(folder, tmp_path, "untied", "f16")
    head = next(tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "output.weight")
    assert np.array_equal(head.data, all_weights(folder)["lm_head.weight"].half().numpy())


def llama_3_factors(theta, d, factor, low, high, context):
    """The factors by Meta's `apply_scaling` (llama-models, models/llama3/model.py), one frequency after the other."""
    factors = []
    for i in range(0, d, 2):
        frequency = 1 / theta ** (i / d)
        length = 2 * math.pi / frequency
        if length < context / high:
            scaled = frequency
        elif length > context / low:
            scaled = frequency / factor
        else:
            smooth = (context / length - low) / (high - low)
            scaled = (1 - smooth) * frequency / factor + smooth * frequency
        factors.append(frequency / scaled)
    return factors


@pytest.mark.parametrize(("factor", "d"), [(8.0, 128), (32.0, 64)], ids=["Llama 3.1 8B", "Llama 3.2 1B"])
def test_rope_factors_are_metas(tmp_path, tokenizer, factor, d):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}  # fmt: skip
    expected = llama_3_factors(5e5, d, factor, 1.0, 4.0, 8192)
    model = llama_with(tmp_path / "model", tokenizer, rope_parameters=rope, head_dim=d, num_attention_heads=1)
    assert rope_factors(model.config) == pytest.approx(expected, rel=1e-5)
    assert expected[0] == 1 and expected[-1] == factor and any(1 < one < factor for one in expected)
    file = export_gguf(tmp_path / "model", tmp_path, "slow", "q8_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert tensors["rope_freqs.weight"].data == pytest.approx(expected, rel=1e-5)
    assert tensors["rope_freqs.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_matrices_that_cannot_be_cut_into_32s_stay_in_f16_and_are_counted(tmp_path, tokenizer, capsys):
    llama_with(tmp_path / "model", tokenizer, hidden_size=48, head_dim=16, intermediate_size=96)
    file = export_gguf(tmp_path / "model", tmp_path, "narrow", "q8_0")
    kinds = [tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors]
    assert (kinds.count("F16"), kinds.count("Q8_0"), kinds.count("F32")) == (12, 4, 5)
    assert "12 matrices stay in f16: their rows are no multiple of 32 wide" in capsys.readouterr().err


# ---------------------------------------------------------------- the tokenizer's name


def parts_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


def by_tokenizers(*steps):
    """What the tokenizers library writes of pre-tokenizers, as SmolLM2's and GPT-2's tokenizer.json do."""
    from tokenizers.pre_tokenizers import Sequence

    return json.loads(Sequence(list(steps)).__getstate__()) if len(steps) > 1 else json.loads(steps[0].__getstate__())


def test_names_of_llama_3s_pattern_are_transformers_too(tokenizer):
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    made = parts_of(tokenizer)
    pattern = made["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    for ignore_merges, name in ((False, "smaug-bpe"), (True, "llama-bpe")):
        made["model"]["ignore_merges"] = ignore_merges
        assert pre_tokenizer(made) == name
        assert GGUF_PRE_TOKENIZER_SPLITS[name] == pattern == gguf_export.LLAMA_3


def test_names_of_gpt_2s_pattern(tokenizer):
    from tokenizers.pre_tokenizers import ByteLevel, Digits

    made = parts_of(tokenizer)
    gpt_2 = ByteLevel(add_prefix_space=False, use_regex=True)
    made["pre_tokenizer"] = by_tokenizers(gpt_2)
    assert pre_tokenizer(made) == "gpt-2"
    made["pre_tokenizer"] = by_tokenizers(Digits(individual_digits=True), gpt_2)
    assert pre_tokenizer(made) == "smollm"


def changed_pattern(made):
    split = made["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace("{1,3}", "")


REFUSED = {
    "another pattern": (changed_pattern, "pre_tokenizer"),
    "bytes first": (lambda made: made["pre_tokenizer"]["pretokenizers"].reverse(), "pre_tokenizer"),
    "no bytes": (lambda made: made["pre_tokenizer"]["pretokenizers"].pop(), "pre_tokenizer"),
    "a space before": (lambda made: made["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
                       "pre_tokenizer"),
    "none": (lambda made: made.update(pre_tokenizer=None), "pre_tokenizer"),
    "GPT-2 without merges": (lambda made: (made.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False,
                             "use_regex": True}), made["model"].update(ignore_merges=True)), "pre_tokenizer"),
    "normalised": (lambda made: made.update(normalizer={"type": "NFC"}), "normalizer"),
    "Unigram": (lambda made: made["model"].update(type="Unigram"), "model"),
    "affixes": (lambda made: made["model"].update(end_of_word_suffix="</w>"), "model's affixes"),
    "eats spaces": (lambda made: made["added_tokens"][0].update(rstrip=True), "added_tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "part"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(tokenizer, change, part):
    made = parts_of(tokenizer)
    change(made)
    with pytest.raises(AnitaError, match=r"llama.cpp would split texts otherwise than the tokenizer") as refused:
        pre_tokenizer(made)
    assert f"({part};" in str(refused.value)


@pytest.mark.parametrize("tag", ["{% generation %}", "{%- generation -%}", "{%+ generation -%}"])
def test_tags_for_trainers_become_others_with_the_same_white_space(tokenizer, tag):
    tokenizer = load_tokenizer(tokenizer.name_or_path)
    close = tag.replace("generation", "endgeneration")
    template = f"{{% for m in messages %}} a \n {tag} \n {{{{ m.content }}}} \n {close} \n generation {{% endfor %}}"
    texts = []
    for text in (template, without_generation(template)):
        tokenizer.chat_template = text
        texts.append(tokenizer.apply_chat_template(CHAT, tokenize=False))
    assert texts[0] == texts[1] and "generation %" not in text and "generation" in texts[1]


# ---------------------------------------------------------------- whole or not at all


@pytest.fixture
def copied(base_path, tmp_path):
    return shutil.copytree(base_path, tmp_path / "model")


def reshaped(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def reweighed(folder, change):
    weights = all_weights(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


LAST = "model.layers.3.mlp.down_proj.weight"
WRONG = {
    "architecture": (lambda folder: reshaped(folder, model_type="qwen2"), "only 'llama' is known here"),
    "activation": (lambda folder: reshaped(folder, hidden_act="gelu"), "hidden_act 'gelu' is not written as GGUF here"),
    "rope": (lambda folder: reshaped(folder, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
             "rope_type 'yarn' is not written as GGUF here"),
    "missing": (lambda folder: reweighed(folder, lambda weights: weights.pop(LAST)), f"no weights for {LAST}"),
    "nan": (lambda folder: reweighed(folder, lambda weights: weights[LAST].fill_(math.nan)), "holds nan, which F16"),
    "large": (lambda folder: reweighed(folder, lambda weights: weights[LAST].fill_(1e5)), "which F16 cannot"),
    "rows": (lambda folder: reshaped(folder, vocab_size=8180), "8,180 rows"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_written_is_refused_and_what_was_there_stays(copied, tmp_path, change, said):
    change(copied)
    out = tmp_path / "out"
    out.mkdir()
    (out / "tiny-f16.gguf").write_text("before", "utf-8")
    with pytest.raises(AnitaError) as refused:
        export_gguf(copied, out, "tiny")
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert [(file.name, file.read_text("utf-8")) for file in out.iterdir()] == [("tiny-f16.gguf", "before")]


def test_what_is_too_large_for_f16_is_written_in_f32_and_other_weights_are_counted(copied, tmp_path, capsys):
    reweighed(copied, lambda weights: (weights[LAST].fill_(1e5), weights.update(extra=torch.ones(2))))
    file = export_gguf(copied, tmp_path, "large", "f32")
    found = next(tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "blk.3.ffn_down.weight")
    assert (found.data == torch.tensor(1e5).bfloat16().float().item()).all()
    assert "1 weights are left out, for which a Llama has no place: extra" in capsys.readouterr().err


def test_rows_that_no_token_has_are_padded(tmp_path, tokenizer):
    llama_with(tmp_path / "model", tokenizer, vocab_size=len(tokenizer) + 8)
    fields = gguf.GGUFReader(export_gguf(tmp_path / "model", tmp_path, "padded")).fields
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == f"[PAD{len(tokenizer) + 7}]"
    assert fields["tokenizer.ggml.token_type"].contents()[-8:] == [gguf.TokenType.UNUSED] * 8


# ---------------------------------------------------------------- Ollama

# Given to Ollama's own template package (template/template.go), it writes the chats that the tokenizer does.
MODELFILE = '''FROM ./tiny-{kind}.gguf
TEMPLATE """{{{{ if .System }}}}<|start_header_id|>system<|end_header_id|>

{{{{ .System }}}}<|eot_id|><|start_header_id|>user<|end_header_id|>

{{{{ else }}}}<|start_header_id|>user<|end_header_id|>

{{{{ end }}}}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}<|eot_id|><|start_header_id|>assistant<|end_header_id|>

{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}<|eot_id|><|start_header_id|>user<|end_header_id|>

{{{{ end }}}}{{{{ end }}}}"""
PARAMETER stop "<|eot_id|>"
PARAMETER temperature 0
PARAMETER repeat_penalty 1
LICENSE apache-2.0
'''  # noqa: E501


def test_the_modelfile_names_file_template_and_ends(exported):
    file, kind = exported
    assert file.with_name("Modelfile").read_text("utf-8") == MODELFILE.format(kind=kind)


def test_a_system_prompt_of_the_templates_own_is_there_without_another(base_path):
    tokenizer = load_tokenizer(base_path)
    turn = "{{ '<|start_header_id|>' + m.role + '\\n' + m.content + '<|eot_id|>\\n' }}"
    own = "{{ '<|start_header_id|>system\\nBe good.<|eot_id|>\\n' }}"
    default = f"{{% if messages[0].role != 'system' %}}{own}{{% endif %}}"
    prompt = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\\n' }}{% endif %}"
    tokenizer.chat_template = f"{default}{{% for m in messages %}}{turn}{{% endfor %}}{prompt}"
    opening = gguf_export.ollama_template(tokenizer).partition("{{ range")[0]
    assert opening == (
        "{{ if .System }}<|start_header_id|>system\n{{ .System }}<|eot_id|>\n<|start_header_id|>user\n{{ else }}"
        "<|start_header_id|>system\nBe good.<|eot_id|>\n<|start_header_id|>user\n{{ end }}"
    )


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ loop.index }}{{ m.content }}<|eot_id|>{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}<|eot_id|>"
    "{% endfor %}",
    "{% for m in messages %}{{ '{{ ' + m.content }}<|eot_id|>{% endfor %}",
], ids=["counts turns", "no system role", "Go's braces"])  # fmt: skip
def test_a_template_that_ollama_has_no_words_for_is_left_out_and_said(base_path, capsys, template):
    tokenizer = load_tokenizer(base_path)
    tokenizer.chat_template = template
    text = gguf_export.modelfile("a.gguf", tokenizer)
    assert text == 'FROM ./a.gguf\nPARAMETER stop "<|eot_id|>"\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n'
    assert "no TEMPLATE" in capsys.readouterr().err
