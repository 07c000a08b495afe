"""Tokenizers are loaded, and models seen to fit their data and their tokenizer, before any weights are read."""

import copy
import json
import shutil

import pytest
from chat_templates import CHAT, SYSTEM
from safetensors.torch import load_file, save_file

from anita_utils import AnitaError, model, stages, training
from anita_utils.chat_template import check_tokenizer
from anita_utils.data import encode_text
from anita_utils.evaluation import measuring
from anita_utils.model import checked_tokenizer, embedding_rows, load_model, load_tokenizer
from anita_utils.run import Run

NO_SYSTEM_ROLE = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.fixture
def own(tokenizer):
    """A copy of the shipped tokenizer, to change."""
    return copy.deepcopy(tokenizer)


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


def test_weights_that_the_model_has_no_place_for_are_counted(base_path, tmp_path, capsys):
    shutil.copytree(base_path, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"model.other": weights["model.norm.weight"].clone()}, file, {"format": "pt"})
    load_model(tmp_path / "base")
    assert "base: 1 weights are left out, for which the model has no place: model.other" in capsys.readouterr().err
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(AnitaError, match="base: the model's logits are no numbers .*: restore its weights"):
        load_model(tmp_path / "base")


# ---- ids and the embedding


def test_every_id_in_use_must_have_a_row_of_the_embedding(own):
    rows = len(own)
    check_tokenizer(own, rows)
    check_tokenizer(own, None)
    with pytest.raises(AnitaError, match=r"has the id 8,191, and the model's embedding 8,191 rows: take the tokenizer"):
        own.pad_token = own.convert_ids_to_tokens(rows - 1)
        check_tokenizer(own, rows - 1)


def test_an_added_token_may_lie_beyond_the_embedding_while_nothing_writes_it(own):
    """As Gemma 3's token for images."""
    rows = len(own)
    own.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_tokenizer(own, rows)
    own.chat_template += "{{ '<image>' }}"
    with pytest.raises(AnitaError, match=r"'<image>' has the id 8,192"):
        check_tokenizer(own, rows)


def test_words_beyond_the_embedding_are_refused(own):
    words = max(number for number in own.get_vocab().values() if number not in own.added_tokens_decoder)
    own.bos_token = own.eos_token = own.pad_token = own.chat_template = None
    check_tokenizer(own, words + 1)
    with pytest.raises(AnitaError, match=f"has the id {words:,}"):
        check_tokenizer(own, words)


def test_the_embeddings_rows_are_read_from_the_configuration(base_path, tmp_path):
    assert embedding_rows(base_path) == 8192
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 8}}')
    assert embedding_rows(tmp_path) == 8
    (tmp_path / "config.json").write_text('{"vocab_size": 7}')
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
