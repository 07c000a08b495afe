"""What chat templates do, against renderings written by hand, and every template that TRL ships."""

import copy
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import trl
from chat_templates import CHAT, SHAPES, SYSTEM, carrier

from anita_utils import AnitaError
from anita_utils.chat_template import inspect_template, render_text, without_system_role
from anita_utils.data import IGNORED, encode_chat, encode_text, render
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl

TRLS = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
ONE_ANSWER = CHAT[:2]


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
    """The tokenizer with one of TRL's templates and all of the special tokens in it."""
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


def test_a_template_that_drops_the_system_text_trains_on_no_such_chat(own):
    own.chat_template = SHAPES["Llama 3"].template.replace("in messages", "in messages if m.role != 'system'")
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
