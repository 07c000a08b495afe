"""What chat templates do, against renderings written by hand, and every template that TRL ships."""

import copy
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import trl
from chat_templates import CHAT, SHAPES, SYSTEM, carrier

from anita_utils import AnitaError, model, stages, training
from anita_utils.chat_template import check_tokenizer, inspect_template, render_text, without_system_role
from anita_utils.data import IGNORED, encode_chat, encode_text, render
from anita_utils.evaluation import measuring
from anita_utils.model import checked_tokenizer, embedding_rows, load_tokenizer
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl
from anita_utils.run import Run

TRLS = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
ONE_ANSWER = CHAT[:2]
NO_SYSTEM_ROLE = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


def scored_parts(messages, tokenizer):
    """The text of each run of scored tokens, and the id that it ends with."""
    encoded = encode_chat(messages, tokenizer)
    runs, before = [], IGNORED
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            if before == IGNORED:
                runs.append([])
            runs[-1].append(token)
        before = label
    return [(tokenizer.decode(run), run[-1]) for run in runs]


def assert_exact(messages, tokenizer):
    """Each answer is scored with the one special token that ends its turn, and nothing else is, but for white space."""
    answers = [turn["content"].strip() for turn in messages if turn["role"] == "assistant"]
    parts = scored_parts(messages, tokenizer)
    assert len(parts) == len(answers)
    for (text, last), answer in zip(parts, answers, strict=True):
        end = tokenizer.convert_ids_to_tokens(last)
        assert tokenizer.added_tokens_decoder[last].special
        assert text.endswith(end) and text.removesuffix(end).strip() == answer


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture
def own(tokenizer):
    """A copy of the shipped tokenizer, to change."""
    return copy.deepcopy(tokenizer)


@pytest.fixture
def shaped(shape, own):
    return carrier(shape, own)


# ---- the shapes, by hand


def test_a_chat_is_rendered_and_scored_as_written_by_hand(shape, shaped):
    assert render_text(CHAT, shaped) == shape.rendered
    assert render_text(CHAT[:1], shaped, add_generation_prompt=True).endswith(shape.prompt)
    if shape.scored is None:
        with pytest.raises(AnitaError, match="rewrites earlier turns: train on chats of one answer"):
            encode_chat(CHAT, shaped)
    else:
        encoded = encode_chat(CHAT, shaped)
        assert shaped.decode(encoded["input_ids"]) == shape.rendered
        assert shaped.decode([label for label in encoded["labels"] if label != IGNORED]) == shape.scored
    assert_exact(ONE_ANSWER, shaped)


def test_the_facts_are_those_of_the_shape(shape, shaped):
    found = asdict(inspect_template(shaped))
    assert found.pop("default_system") == len(shaped(shape.added, add_special_tokens=False)["input_ids"])
    assert found.pop("end_of_turn_id") == shaped.convert_tokens_to_ids(shape.facts["end_of_turn"])
    assert found == shape.facts


def test_a_system_turn_is_rendered_or_refused_in_one_line(shape, shaped):
    if shape.with_system is None:
        with pytest.raises(AnitaError, match=r"cannot render .*: .*set model\.system_in_user: true") as refused:
            encode_chat([SYSTEM, *ONE_ANSWER], shaped)
        assert "\n" not in str(refused.value)
        shaped.chat_template = without_system_role(shaped.chat_template)
        joined = [{"role": "user", "content": "Sii chiaro.\n\nDov'è Torino?"}, *CHAT[1:]]
        assert encode_chat([SYSTEM, *CHAT], shaped) == encode_chat(joined, shaped)
        assert render(CHAT, shaped) == shaped(shape.rendered, add_special_tokens=False)["input_ids"]
        assert inspect_template(shaped).takes_system
    else:
        assert render_text([SYSTEM, *CHAT], shaped).startswith(f"{shape.with_system}Dov'è Torino?")
        assert_exact([SYSTEM, *ONE_ANSWER], shaped)


NASTY = [
    "42", " con spazio", "a\n\nb\n", "\n\nSotto.", "…", "«Sì», disse.", "user", "assistant", "[/INST]", "人", "È 🎂!",
    "Dov'è Torino?", "Mirtillo nero.", "x<|im_end|>", "<|eot_id|>", "</s>", "<think>", "<think>\n", "a</think>b",
]  # fmt: skip


def test_an_answer_of_any_words_is_scored_exactly_or_refused(shape, shaped):
    refused = []
    for answer in NASTY:
        messages = [CHAT[0], {"role": "assistant", "content": answer}]
        try:
            assert_exact(messages if shape.scored is None else [*CHAT[:2], *messages], shaped)
        except AnitaError as error:
            assert "does not write the answer's words" in str(error)
            refused.append(answer)
    assert refused == (["a</think>b"] if "</think>" in shape.template else [])


@pytest.mark.parametrize("name", ["Mistral", "Llama 2"])
def test_a_space_between_prompt_and_words_is_scored_though_it_is_a_token_of_its_own(name, own):
    """The generation prompt ends without it, so the model has to write it."""
    own = carrier(SHAPES[name], own)
    assert own.tokenize(" 42") == ["Ġ", "4", "2"]
    [(text, _)] = scored_parts([CHAT[0], {"role": "assistant", "content": "42"}], own)
    assert text == " 42" + ("" if name == "Mistral" else " ") + "</s>"


def test_a_template_keeps_the_line_break_that_it_begins_with(own):
    plain = "\n\n" + SHAPES["Llama 3"].template
    own.chat_template = plain
    before = render_text(CHAT, own)
    own.chat_template = without_system_role(plain)
    assert render_text(CHAT, own) == before and before.startswith("\n")
    assert without_system_role(own.chat_template) == own.chat_template


# ---- every template that TRL ships


def trl_tokenizer(file, tokenizer):
    """The tokenizer with one of TRL's templates and all of the special tokens that stand in it."""
    template = file.read_text("utf-8")
    words = r"<[|｜][^<>'\" ]+?[|｜]>|</?s>|<(?:bos|eos|end_of_utterance)>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>"
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(re.findall(words, template)))})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("file", TRLS, ids=lambda file: file.stem)
def test_with_each_of_trls_templates_answers_are_scored_exactly_or_refused(file, own):
    tokenizer = trl_tokenizer(file, own)
    for messages in (ONE_ANSWER, CHAT, [SYSTEM, *CHAT]):
        try:
            assert_exact(messages, tokenizer)
        except AnitaError as refused:
            assert "\n" not in str(refused)


def test_most_of_trls_templates_can_be_trained_on(own):
    """So that the test above cannot pass because all is refused."""
    taken = []
    for file in TRLS:
        tokenizer = trl_tokenizer(file, copy.deepcopy(own))
        try:
            inspect_template(tokenizer)
            assert_exact(CHAT, tokenizer)
        except AnitaError:
            continue
        taken.append(file.stem)
    assert {"deepseek_r1_distill", "deepseekv3", "gemma", "llama3", "phi3", "qwen2_5", "qwen3_training"} <= set(taken)
    assert len(taken) > len(TRLS) * 2 / 3


# ---- the shipped model's encodings stay as they were


def full_prefix(messages, tokenizer):
    """The formula before: everything from the generation prompt's length on, up to the rendering of the turn."""

    def ids_of(turns, prompt=False):
        return tokenizer.apply_chat_template(turns, add_generation_prompt=prompt, return_dict=False)

    ids = ids_of(messages)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            first, end = len(ids_of(messages[:turn], True)), len(ids_of(messages[: turn + 1]))
            labels[first:end] = ids[first:end]
    return {"input_ids": ids, "labels": labels}


def test_the_shipped_corpora_are_encoded_as_before(tokenizer):
    rows = [row for file in sorted((data_dir() / "corpora").glob("*.jsonl")) for row in read_jsonl(file)[::11]]
    chats = [row["messages"] for row in rows if "messages" in row]
    chats += [row["prompt"] + row[side] for row in rows if "chosen" in row for side in ("chosen", "rejected")]
    texts = [row["text"] for row in rows if "text" in row]
    assert len(chats) > 500 and len(texts) > 100
    for chat in chats:
        assert encode_chat(chat, tokenizer) == full_prefix(chat, tokenizer)
    ends = tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|end_of_text|>"])
    for text in texts:
        ids = [ends[0], *tokenizer(text, add_special_tokens=False)["input_ids"], ends[1]]
        assert encode_text(text, tokenizer) == {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}


# ---- what is refused


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template: take a model that was tuned to chat"),
        ("{% for m in messages %}", r"cannot render a chat \(Unexpected end of template.*\): correct"),
        ("{{ nobody.said.this }}", r"cannot render a chat \('nobody' is undefined\): correct"),
        ("{{ 1 // 0 }}", r"cannot render a chat \(.*by zero\): correct"),
        ("{{ bos_token }}Ciao", "leaves out or changes the words of the role 'user'"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + '<|eot_id|>' }}{% endif %}{% endfor %}",
            "does not write the assistant's words: take a model",
        ),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", r"no special token .* ends an answer .*follows it\)"),
        (
            "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}",
            r"no special token .* ends an answer in the chat template \('<\|im_end\|>' follows it\): .* add that token",
        ),
        ("{{ bos_token }}" + SHAPES["Llama 3"].template, r"begins with <\|begin_of_text\|> twice: take one"),
        (
            "{% for m in messages %}{% if m.role != 'user' %}{{ m.content + '<|eot_id|>' }}{% endif %}{% endfor %}",
            "leaves out or changes the words of the role 'user'",
        ),
        (
            "{% for m in messages %}{{ m.content if m.role == 'user' else m.content | upper }}<|eot_id|>{% endfor %}",
            "does not write the assistant's words: take a model",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_one_line(own, template, words):
    own.chat_template = template
    with pytest.raises(AnitaError, match=words) as refused:
        inspect_template(own)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pad", [None, "<|eot_id|>"])
def test_padding_with_nothing_or_with_the_end_of_a_turn_is_refused(own, pad):
    own.pad_token = pad
    with pytest.raises(AnitaError, match="set another pad_token"):
        inspect_template(own)


def test_a_template_that_drops_the_system_text_is_no_system_role_and_trains_on_no_such_chat(own):
    own.chat_template = SHAPES["Llama 3"].template.replace("in messages", "in messages if m.role != 'system'")
    assert not inspect_template(own).takes_system
    with pytest.raises(AnitaError, match=r"leaves out or changes the words of the role 'system'.*system_in_user: true"):
        encode_chat([SYSTEM, *CHAT], own)


def test_a_token_that_decoding_leaves_in_an_answer_ends_no_turn(own):
    own.add_tokens(["<|im_end|>"])  # one token, but no special one: people would read it
    own.chat_template = "{% for m in messages %}{{ m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
    with pytest.raises(AnitaError, match="no special token of the tokenizer ends an answer"):
        inspect_template(own)


def test_an_answer_that_shares_a_token_with_the_prompt_is_refused(own):
    """Half of the token is the prompt's: it can be neither scored nor left out."""
    own.chat_template = (
        "{% for m in messages %}{{ '|' if m.role == 'user' else ' To' }}{{ m.content + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' To' }}{% endif %}"
    )
    assert len(own(" Torino", add_special_tokens=False)["input_ids"]) == 1
    with pytest.raises(AnitaError, match=r"first token begins before the answer \(' To'\): use a template"):
        encode_chat([CHAT[0], {"role": "assistant", "content": "rino"}], own)


def test_roles_that_do_not_alternate_are_one_line(own):
    gemma = carrier(SHAPES["Gemma"], own)
    with pytest.raises(AnitaError, match=r"cannot render a chat \(Roles must alternate\): correct the chat"):
        encode_chat([CHAT[0], *CHAT], gemma)


def test_an_answer_without_text_is_refused(tokenizer):
    for content in (None, [{"type": "text", "text": "Ciao"}]):
        with pytest.raises(AnitaError):
            encode_chat([CHAT[0], {"role": "assistant", "content": content, "tool_calls": []}], tokenizer)


# ---- running text


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen2.5", "Gemma", "Mistral", "Phi-3", "DeepSeek-R1"])
def test_running_text_has_one_bos_where_there_is_one(name, own):
    own = carrier(SHAPES[name], own)
    expected = [*([] if SHAPES[name].bos is None else [SHAPES[name].bos]), "Il Po.", "<|end_of_text|>"]
    encoded = encode_text("Il Po.", own)
    assert own.decode(encoded["input_ids"]) == "".join(expected)
    assert encoded["labels"] == [IGNORED, *encoded["input_ids"][1:]]


def words_tokenizer(folder, words, **marks):
    """A tokenizer of a few words, saved in a folder. Returns its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=marks.get("unk_token")))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, **marks).save_pretrained(folder)
    return folder


def test_tokenizers_without_bos_or_without_a_word_for_the_unknown_load_and_pad(tmp_path):
    im_end, text_end = "<|im_end|>", "<|endoftext|>"
    qwen = load_tokenizer(words_tokenizer(tmp_path / "qwen", [text_end, im_end, "Il", "Po"], eos_token=im_end,
                                          pad_token=text_end))  # fmt: skip
    assert (qwen.bos_token, qwen.unk_token, qwen.pad_token) == (None, None, text_end)
    assert qwen.convert_ids_to_tokens(encode_text("Il Po", qwen)["input_ids"]) == ["Il", "Po", im_end]
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    mistral = load_tokenizer(words_tokenizer(tmp_path / "mistral", ["<s>", "</s>", "<unk>", "Il", "Po"], **marks))
    assert mistral.pad_token == "<unk>"
    assert mistral.convert_ids_to_tokens(encode_text("Il Po", mistral)["input_ids"]) == ["<s>", "Il", "Po", "</s>"]
    marks = dict.fromkeys(("bos_token", "eos_token", "unk_token"), text_end)
    with pytest.raises(AnitaError, match="gpt2: no token to pad with: set tokenizer.pad_token"):
        load_tokenizer(words_tokenizer(tmp_path / "gpt2", [text_end, "Il", "Po"], **marks))
    with pytest.raises(AnitaError, match="alone: no token to pad with: set tokenizer.pad_token"):
        load_tokenizer(words_tokenizer(tmp_path / "alone", [text_end, "Il", "Po"], eos_token=text_end))


def test_a_damaged_tokenizer_is_one_line(base_path, tmp_path):
    shutil.copytree(base_path, tmp_path / "torn")
    whole = (tmp_path / "torn" / "tokenizer.json").read_text("utf-8")
    (tmp_path / "torn" / "tokenizer.json").write_text(whole[:5000], "utf-8")
    with pytest.raises(AnitaError, match="torn: the tokenizer cannot be read .*: restore its files"):
        load_tokenizer(tmp_path / "torn")


# ---- ids and the embedding


def test_every_id_in_use_must_have_a_row_of_the_embedding(own):
    rows = len(own)
    check_tokenizer(own, rows)
    check_tokenizer(own, None)
    with pytest.raises(AnitaError, match=r"has the id 6,143, and the model's embedding 6,143 rows: take the tokenizer"):
        own.pad_token = own.convert_ids_to_tokens(rows - 1)
        check_tokenizer(own, rows - 1)


def test_an_added_token_may_lie_beyond_the_embedding_while_nothing_writes_it(own):
    """As Gemma 3's token for images."""
    rows = len(own)
    own.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_tokenizer(own, rows)
    own.chat_template += "{{ '<image>' }}"
    with pytest.raises(AnitaError, match=r"'<image>' has the id 6,144"):
        check_tokenizer(own, rows)


def test_words_beyond_the_embedding_are_refused(own):
    words = max(number for number in own.get_vocab().values() if number not in own.added_tokens_decoder)
    own.bos_token = own.eos_token = own.pad_token = own.chat_template = None
    check_tokenizer(own, words + 1)
    with pytest.raises(AnitaError, match=f"has the id {words:,}"):
        check_tokenizer(own, words)


def test_the_embeddings_rows_are_read_from_the_weights_before_the_configuration(base_path, tmp_path):
    import torch
    from safetensors.torch import save_file

    assert embedding_rows(base_path) == 6144
    (tmp_path / "config.json").write_text('{"vocab_size": 9}')
    assert embedding_rows(tmp_path) == 9
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 8}}')
    assert embedding_rows(tmp_path) == 8
    save_file({"model.embed_tokens.weight": torch.zeros(7, 2)}, tmp_path / "model.safetensors")
    assert embedding_rows(tmp_path) == 7
    load_tokenizer(base_path).save_pretrained(tmp_path)
    with pytest.raises(AnitaError, match=r"the model's embedding 7 rows: take the tokenizer that belongs"):
        checked_tokenizer(tmp_path)


# ---- before any weights are loaded


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights fails the test."""

    def loaded(*_, **__):
        pytest.fail("the weights were loaded first")

    for where, name in ((training, "load_model"), (measuring, "load_for_evaluation"), (model, "load_for_evaluation")):
        monkeypatch.setattr(where, name, loaded)


@pytest.fixture
def without_system(tiny_path, tmp_path):
    """The random Llama with a template that refuses a system turn."""
    folder = tmp_path / "no-system"
    shutil.copytree(tiny_path, folder)
    template = folder / "chat_template.jinja"
    template.write_text(NO_SYSTEM_ROLE + template.read_text("utf-8"), "utf-8")
    return folder


def own_rows(tmp_path, rows):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return [str(file)]


def pair(answer):
    return {"prompt": [SYSTEM, CHAT[0]], "chosen": [CHAT[1]], "rejected": [{"role": "assistant", "content": answer}]}


ROWS = {"sft": [{"messages": [SYSTEM, *CHAT]}] * 8, "dpo": [pair(f"In {n}.") for n in range(8)]}


@pytest.fixture(params=ROWS)
def stage(request, runs, tiny_profile, without_system, tmp_path):
    """A stage whose rows have system turns, on that model."""
    tiny_profile.order = [request.param]
    tiny_profile.model.base = str(without_system)
    tiny_profile.stages[request.param].data = own_rows(tmp_path, ROWS[request.param])
    return stages.find_stage(Run.open("t", tiny_profile, 42), request.param)


def test_training_refuses_a_system_turn_before_the_weights_are_loaded(stage, no_weights):
    with pytest.raises(AnitaError, match=r"no system role\): .*system_in_user: true"):
        training.build_trainer(stage)


def test_with_system_in_user_it_is_trained_in_the_first_user_turn(stage):
    before = stage.key
    stage.run.profile.model.system_in_user = True
    trainer = training.build_trainer(stage)
    other = stages.find_stage(stage.run, stage.name)
    assert other.key != before and other.recipe["system_in_user"] and "system_in_user" not in stage.recipe
    row = trainer.train_dataset[0]
    ids = row["input_ids"] if stage.name == "sft" else row["prompt_ids"]
    opening = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nSii chiaro.\n\nDov'è Torino?<|eot_id|>"
    assert trainer.processing_class.decode(ids).startswith(opening)


def test_a_model_is_not_measured_nor_asked_before_its_template_is_checked(
    anita, tiny_profile, no_weights, without_system
):
    file = without_system / "chat_template.jinja"
    file.write_text(file.read_text("utf-8").replace("'<|eot_id|>'", "'<|im_end|>'"), "utf-8")
    with pytest.raises(AnitaError, match=r"no-system: no special token of the tokenizer ends an answer"):
        next(measuring._measure(without_system, tiny_profile, ["answers"]))
    code, _, err = anita("chat", without_system, "--prompt", "Ciao", "--profile", "cpu")
    assert code == 2 and err.count("\n") == 1 and "no-system: no special token" in err


def test_a_system_prompt_for_a_model_without_system_role_is_one_line(anita, without_system):
    code, out, err = anita("chat", without_system, "--prompt", "Ciao", "--system", "Sii breve", "--profile", "cpu")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "system_in_user: true" in err


def test_running_text_needs_no_chat_template(runs, tiny_profile, tiny_path, tmp_path):
    shutil.copytree(tiny_path, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    tiny_profile.order, tiny_profile.model.base = ["italian"], str(tmp_path / "plain")
    tiny_profile.stages["italian"].data = own_rows(tmp_path, [{"text": "Il Po nasce dal Monviso."}] * 8)
    trainer = training.build_trainer(stages.find_stage(Run.open("t", tiny_profile, 42), "italian"))
    assert len(trainer.train_dataset)
    tiny_profile.stages["italian"].data = own_rows(tmp_path, ROWS["sft"])
    with pytest.raises(AnitaError, match="no chat template: take a model that was tuned to chat"):
        training.build_trainer(stages.find_stage(Run.open("t", tiny_profile, 42), "italian"))
