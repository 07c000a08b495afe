"""What is saved can be read by older libraries, other users and on other machines."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from anita_utils import checkout, merging, stages, training
from anita_utils.paths import modes_by_umask
from anita_utils.run import Run

LLAMA_3_2 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def read(file):
    return json.loads(file.read_text("utf-8"))


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Saves a random Llama with that rotary embedding as transformers 5 does, and a tokenizer with two tokens more."""

    def save(rope):
        tokens = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
        tokens.add_special_tokens({"additional_special_tokens": ["<|one|>", "<|two|>"]})
        config = LlamaConfig(vocab_size=len(tokens), initializer_range=0.2, rope_parameters=rope, **SHAPE)
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
        tokens.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def logits(folder, ids):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 500_000.0}, LLAMA_3_2], ids=["3", "3.2"])
def test_it_holds_what_transformers_4_looks_for_and_5_reads_it_as_before(saved, rope):
    folder = saved(rope)
    ids, text = torch.arange(200, 264).view(1, 64), "Perché no? <|two|> Sì. "
    before, tokens = logits(folder, ids), AutoTokenizer.from_pretrained(folder)
    assert merging.readable_by_older(folder)

    config, settings = read(folder / "config.json"), read(folder / "tokenizer_config.json")
    assert config["rope_theta"] == 500_000.0 and config["torch_dtype"] == config["dtype"] == "float32"
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert config.get("rope_scaling") == (scaling if rope is LLAMA_3_2 else None)
    assert "requires" not in config
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|one|>", "<|two|>"] and "extra_special_tokens" not in settings
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]

    assert torch.equal(logits(folder, ids), before)
    assert not torch.allclose(before, logits_with(folder, ids, rope_theta=10_000.0), atol=0.1)  # it does depend on it
    again = AutoTokenizer.from_pretrained(folder)
    assert again(text) == tokens(text) and again.all_special_tokens == tokens.all_special_tokens
    assert again.decode(again(text)["input_ids"]) == tokens.decode(tokens(text)["input_ids"])
    turns = [{"role": "user", "content": text}]
    assert again.apply_chat_template(turns) == tokens.apply_chat_template(turns)


def logits_with(folder, ids, **rope):
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = config.rope_parameters | rope
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)(input_ids=ids).logits


def test_a_second_time_changes_nothing(saved):
    folder = saved(LLAMA_3_2)
    merging.readable_by_older(folder)
    first = [(folder / file).read_text("utf-8") for file in ("config.json", "tokenizer_config.json")]
    merging.readable_by_older(folder)
    assert first == [(folder / file).read_text("utf-8") for file in ("config.json", "tokenizer_config.json")]


@pytest.mark.parametrize(
    "rope",
    [
        {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": None},
        {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]},
    ],
    ids=["each kind of layer its own", "longrope"],
)
def test_what_transformers_4_has_no_words_for_says_so(tmp_path, rope):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "rope_parameters": rope}), "utf-8")
    assert not merging.readable_by_older(tmp_path)
    config = read(tmp_path / "config.json")
    assert config["requires"] == "transformers>=5" and "rope_theta" not in config and "rope_scaling" not in config


def test_a_part_of_each_head_that_is_turned_is_written_too(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": rope}), "utf-8")
    assert merging.readable_by_older(tmp_path)
    config = read(tmp_path / "config.json")
    assert config["rope_theta"] == 2e4 and config["partial_rotary_factor"] == 0.5 and "rope_scaling" not in config


def test_a_model_of_parts_says_so(tmp_path):
    part = {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": part}), "utf-8")
    assert not merging.readable_by_older(tmp_path)
    assert read(tmp_path / "config.json")["requires"] == "transformers>=5"


@pytest.mark.parametrize(("mask", "files", "folders"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700),
                                                        (0o002, 0o664, 0o775)])  # fmt: skip
def test_modes_are_those_that_the_umask_gives(tmp_path, mask, files, folders):
    model = tmp_path / "model"
    (model / "deep").mkdir(parents=True)
    save_file({"weight": torch.ones(2)}, model / "deep" / "model.safetensors")
    (model / "closed").touch(mode=0o400)
    assert stat.S_IMODE((model / "deep" / "model.safetensors").stat().st_mode) == 0o600  # safetensors' own choice
    before = os.umask(mask)
    try:
        modes_by_umask(model)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [model, *model.rglob("*")]}
    assert modes == {"model": folders, "deep": folders, "model.safetensors": files, "closed": files}


def test_a_link_out_of_the_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "other").touch(mode=0o600)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "other")
    modes_by_umask(tmp_path / "model")
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600


@pytest.mark.parametrize(("model", "name"), [
    ("tiny-llama-3-instruct", "tiny-llama-3-instruct"),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
    ("/data/anna/my-llama/", "my-llama"),
    ("~/models/my-llama", "my-llama"),
    ("../models/my-llama", "my-llama"),
    ("/data/hub/models--meta-llama--Llama-3.2-1B/snapshots/0123abc", "meta-llama/Llama-3.2-1B"),
])  # fmt: skip
def test_a_model_is_named_as_others_know_it(model, name):
    assert merging.public_name(model) == name


@pytest.fixture(params=[0o022, 0o077], ids=["umask 022", "umask 077"])
def finished(request, runs, tiny_profile, tmp_path):
    """Two stages of a model in a folder, the first trained on a file of one's own; the second, and the umask."""
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]
    own = tmp_path / "own rows.jsonl"
    chats = ({"messages": [{"role": "user", "content": row["prompt"]},
                           {"role": "assistant", "content": row["completion"]}]} for row in rows)  # fmt: skip
    own.write_text("".join(json.dumps(chat) + "\n" for chat in chats), "utf-8")
    tiny_profile.stages["sft"].data = [str(own)]
    tiny_profile.order = ["sft", "italian"]
    before = os.umask(request.param)
    try:
        run = Run.open("t", tiny_profile, 42)
        training.train_missing(run)
        return [stages.find_stage(run, name) for name in tiny_profile.order], request.param
    finally:
        os.umask(before)


def test_a_finished_stage_has_the_modes_of_the_umask_and_no_path_of_the_machine(finished, tiny_path, tmp_path):
    stages, mask = finished
    for stage in stages:
        paths = [stage.folder, *stage.folder.rglob("*")]
        assert len(paths) > 10
        for path in paths:
            assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path
        for file in filter(lambda path: path.is_file(), paths):
            content = file.read_bytes()
            if file.suffix == ".safetensors":
                content = content[8 : 8 + int.from_bytes(content[:8], "little")]
            for place in (tmp_path, tiny_path.parent, checkout(), os.path.expanduser("~"), "/tmp"):
                assert f"{place}/".encode() not in content, file
        assert not (stage.folder / "adapter" / "training_args.bin").exists()

    sft, italian = (read(stage.folder / "adapter" / "adapter_config.json") for stage in stages)
    assert sft["base_model_name_or_path"] == "tiny-random"
    assert italian["base_model_name_or_path"] == "tiny-random+sft"
    cards = [(stage.folder / "adapter" / "README.md").read_text("utf-8") for stage in stages]
    assert "The adapter belongs on tiny-random." in cards[0]
    assert "The adapter belongs on tiny-random with the adapters of sft merged into it." in cards[1]
    assert [stage.info["adapter"] in card for stage, card in zip(stages, cards, strict=True)] == [True, True]
    assert "transformers 4.57 or 5" in (stages[0].folder / "merged" / "README.md").read_text("utf-8")
    assert stages[0].info["recipe"]["settings"]["data"] == ["own rows.jsonl"]


def test_the_revision_of_a_base_on_the_hub_is_kept_for_the_first_stage_only(tmp_path):
    for folder, text in {"adapter/adapter_config": {"target_modules": ["b", "a"]}, "merged/config": {}}.items():
        file = tmp_path / f"{folder}.json"
        file.parent.mkdir()
        file.write_text(json.dumps(text), "utf-8")
    merging.publish(tmp_path, "owner/llama", [], "0123abc")
    adapter = read(tmp_path / "adapter" / "adapter_config.json")
    assert adapter == {"base_model_name_or_path": "owner/llama", "revision": "0123abc", "target_modules": ["a", "b"]}
    merging.publish(tmp_path, "owner/llama", ["sft", "italian"], "0123abc")
    assert read(tmp_path / "adapter" / "adapter_config.json")["revision"] is None
