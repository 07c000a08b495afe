"""Merging part by part gives what PEFT gives in one piece, needs less memory, and is checked when it is read back."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from anita_utils import AnitaError, merging, model, stages, training
from anita_utils.hub import check_model_folder
from anita_utils.merging import check_merged, merge_adapter
from anita_utils.model import load_tokenizer
from anita_utils.paths import environment
from anita_utils.run import Run


def on_cpu(folder, dtype="float32"):
    """The model in one piece, where PEFT computes as merging does: on the CPU."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def make_adapter(base, folder, **settings):
    """A LoRA adapter with random updates on every linear layer, saved."""
    torch.manual_seed(0)
    settings = {"target_modules": "all-linear", "init_lora_weights": False, "lora_alpha": 7} | settings
    get_peft_model(on_cpu(base), LoraConfig(task_type="CAUSAL_LM", **settings)).save_pretrained(folder)
    return folder


def untied(base_path, folder):
    """The small model with a head of its own, in several files."""
    config = AutoConfig.from_pretrained(base_path, tie_word_embeddings=False)
    other = AutoModelForCausalLM.from_pretrained(base_path, config=config, dtype=torch.bfloat16)
    torch.manual_seed(1)
    torch.nn.init.normal_(other.lm_head.weight)
    other.save_pretrained(folder, max_shard_size="3MB")
    load_tokenizer(base_path).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("r", "rslora"), [(4, False), (6, True)])
@pytest.mark.parametrize("shape", ["one file", "many files"])
def test_it_is_bit_for_bit_what_peft_merges(base_path, tmp_path, monkeypatch, dtype, r, rslora, shape):
    base = base_path
    if shape == "many files":
        base = untied(base_path, tmp_path / "base")
        assert len(list(base.glob("*.safetensors"))) > 2
        monkeypatch.setattr(merging, "PART", 2_000_000)
    adapter = make_adapter(base, tmp_path / "adapter", r=r, use_rslora=rslora)
    expected = PeftModel.from_pretrained(on_cpu(base, dtype), adapter).merge_and_unload()
    merge_adapter(base, adapter, tmp_path / "merged", dtype)

    merged = on_cpu(check_model_folder(tmp_path / "merged"), dtype)
    assert (len(list((tmp_path / "merged").glob("*.safetensors"))) > 2) == (shape == "many files")
    wanted, found = expected.state_dict(), merged.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert not torch.equal(found["model.layers.0.mlp.up_proj.weight"],
                           on_cpu(base, dtype).state_dict()["model.layers.0.mlp.up_proj.weight"])  # fmt: skip

    expected.save_pretrained(tmp_path / "peft")
    for file in ("config.json", "generation_config.json"):
        wanted, found = (json.loads((tmp_path / where / file).read_text("utf-8")) for where in ("peft", "merged"))
        assert found.items() >= wanted.items()
        assert found.keys() - wanted.keys() <= {"rope_theta", "torch_dtype"}  # for transformers 4


def test_weights_that_two_layers_share_are_written_once_and_not_merged_into(base_path, tmp_path):
    merge_adapter(base_path, make_adapter(base_path, tmp_path / "a", r=2), tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    adapter = make_adapter(base_path, tmp_path / "b", r=2, target_modules=["lm_head"])
    with pytest.raises(
        AnitaError, match=r"cannot be merged by adding \(.*lm_head.*on linear layers only that share no weights"
    ):
        merge_adapter(base_path, adapter, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_base_that_lacks_a_layer_is_named(base_path, tmp_path):
    base = untied(base_path, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", r=2)
    index = base / "model.safetensors.index.json"
    values = json.loads(index.read_text("utf-8"))
    last = sorted(set(values["weight_map"].values()))[-1]
    values["weight_map"] = {name: file for name, file in values["weight_map"].items() if file != last}
    index.write_text(json.dumps(values), "utf-8")
    with pytest.raises(AnitaError, match="no weights for .*: restore the model"):
        merge_adapter(base, adapter, tmp_path / "merged")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="the peak of a process can be reset on Linux")
def test_it_holds_a_part_of_the_model_only(base_path, tmp_path, monkeypatch):
    config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8,
                         num_key_value_heads=8, vocab_size=256, tie_word_embeddings=False)  # fmt: skip
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    large.to_empty(device="cpu")
    for parameter in large.parameters():
        parameter.data.fill_(0.5)  # what the numbers are does not matter, but they must be some
    large.save_pretrained(tmp_path / "base")  # 270 MB
    load_tokenizer(base_path).save_pretrained(tmp_path / "base")
    size = sum(parameter.nbytes for parameter in large.parameters())
    get_peft_model(large, LoraConfig(r=2, target_modules=["q_proj", "up_proj"])).save_pretrained(tmp_path / "adapter")
    del large
    monkeypatch.setattr(merging, "PART", size // 10)

    model.keep_freed_memory()  # as training does before
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts again from here
    before = memory("VmRSS")
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", "bfloat16")
    assert sum(file.stat().st_size for file in (tmp_path / "merged").glob("*.safetensors")) > size
    assert memory("VmHWM") - before < size / 3


# ---- tied or untied, as the weights are


def said_to_be_tied(untied_base):
    """Makes its configuration say that the head is the embedding, though its files hold another head."""
    file = untied_base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"tie_word_embeddings": True}), "utf-8")
    return untied_base


def all_weights(folder):
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def test_a_head_of_its_own_is_kept_though_the_configuration_says_tied(base_path, tmp_path, tokenizer):
    base = said_to_be_tied(untied(base_path, tmp_path / "base"))
    adapter = make_adapter(base, tmp_path / "adapter", r=2)
    merge_adapter(base, adapter, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False
    head = all_weights(base)["lm_head.weight"]
    assert torch.equal(all_weights(tmp_path / "merged")["lm_head.weight"], head.float())

    ids = torch.arange(200, 232).view(1, 32)
    with torch.no_grad():
        used = on_cpu(base)  # transformers 5 takes the head in the files, whatever the configuration says
        assert torch.equal(used.lm_head.weight, head.float())
        expected = PeftModel.from_pretrained(used, adapter).eval()(input_ids=ids).logits
        found = on_cpu(tmp_path / "merged")(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    check_merged(base, adapter, tmp_path / "merged", "float32", tokenizer)


@pytest.mark.parametrize("names", [["model.embed_tokens.weight", "lm_head.weight"], ["lm_head.weight"]],
                         ids=["under both names", "under the head's alone"])  # fmt: skip
def test_equal_matrices_stay_tied_under_whichever_name_they_are_saved(base_path, tmp_path, tokenizer, names, capsys):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    weights = load_file(base / "model.safetensors")
    embedding = weights.pop("model.embed_tokens.weight")
    save_file(weights | {name: embedding.clone() for name in names}, base / "model.safetensors", {"format": "pt"})
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base, adapter, tmp_path / "merged")
    merge_adapter(base_path, adapter, tmp_path / "plain")
    found, wanted = all_weights(tmp_path / "merged"), all_weights(tmp_path / "plain")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is True
    assert capsys.readouterr().out == ""
    check_merged(base, adapter, tmp_path / "merged", "float32", tokenizer)


def test_an_untied_model_without_a_head_is_refused(base_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    values = json.loads((base / "config.json").read_text("utf-8")) | {"tie_word_embeddings": False}
    (base / "config.json").write_text(json.dumps(values), "utf-8")
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    with pytest.raises(AnitaError, match=r"no weights for lm_head\.weight: restore the model"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_an_adapter_on_a_shared_embedding_is_refused(base_path, tmp_path):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2, target_modules=["embed_tokens"])
    with pytest.raises(AnitaError, match=r"cannot be merged by adding \(.*embed_tokens.* share no weights"):
        merge_adapter(base_path, adapter, tmp_path / "merged")


def test_an_adapter_on_a_head_of_its_own_is_merged(base_path, tmp_path):
    base = said_to_be_tied(untied(base_path, tmp_path / "base"))
    config = AutoConfig.from_pretrained(base, tie_word_embeddings=False)
    own = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(
        own, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    expected = adapted.merge_and_unload().lm_head.weight
    assert torch.equal(all_weights(tmp_path / "merged")["lm_head.weight"], expected)


def test_what_the_model_has_no_place_for_is_left_out(base_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    odd = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(4)}
    save_file(load_file(base / "model.safetensors") | odd, base / "model.safetensors", {"format": "pt"})
    merge_adapter(base, make_adapter(base_path, tmp_path / "adapter", r=2), tmp_path / "merged")
    assert not odd.keys() & all_weights(tmp_path / "merged").keys()


@pytest.mark.parametrize("settings", [
    {"target_modules": ["q_proj"], "modules_to_save": ["up_proj"]},
    {"target_modules": ["q_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "lora_bias": True},
    {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
], ids=["a whole matrix", "dora", "bias", "tokens"])  # fmt: skip
def test_an_adapter_that_is_more_than_two_matrices_a_layer_is_refused(base_path, tmp_path, settings):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2, **settings)
    with pytest.raises(AnitaError, match=r"\d+ weights cannot be merged by adding .*: train without modules_to_save"):
        merge_adapter(base_path, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_is_there_already_is_refused_and_left_as_it_is(base_path, tmp_path):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "note.txt").touch()
    with pytest.raises(AnitaError, match="merged exists already: delete it, or name another folder"):
        merge_adapter(base_path, adapter, tmp_path / "merged")
    assert [file.name for file in (tmp_path / "merged").iterdir()] == ["note.txt"]


# ---- finite


def scaled(adapter, factor, side="lora_B"):
    """Multiplies one matrix of each layer of a saved adapter."""
    file = adapter / "adapter_model.safetensors"
    weights = {name: matrix * factor if side in name else matrix for name, matrix in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    return adapter


@pytest.mark.parametrize(("factor", "dtype"), [(float("nan"), "float32"), (1e39, "float32"), (1e6, "float16")])
def test_an_adapter_that_diverged_is_one_line_and_leaves_nothing(base_path, tmp_path, factor, dtype):
    adapter = scaled(make_adapter(base_path, tmp_path / "adapter", r=2), factor)
    with pytest.raises(
        merging.Diverged, match=r"^model\.layers\.\d\.\S+weight is nan or inf .*: lower the learning rate$"
    ):
        merge_adapter(base_path, adapter, tmp_path / "merged", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_base_that_is_not_finite_or_too_large_is_not_blamed_on_the_training(base_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    weights = load_file(base / "model.safetensors")
    for value, remedy in (
        (float("nan"), "holds nan or inf in float16: restore"),
        (1e30, "set model.dtype to float32 where it is too large"),
    ):
        weights["model.norm.weight"][3] = value
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(AnitaError, match=f"base: model.norm.weight .*{remedy}"):
            merge_adapter(base, adapter, tmp_path / "merged", "float16")
        assert not (tmp_path / "merged").exists()


def test_one_update_at_a_rate_of_1e30_is_one_line_and_leaves_nothing(runs, tiny_profile):
    tiny_profile.order = ["sft"]
    tiny_profile.stages["sft"].learning_rate, tiny_profile.stages["sft"].warmup_steps = 1e30, 0
    tiny_profile.stages["sft"].per_device_train_batch_size, tiny_profile.stages["sft"].examples = 64, 32
    stage = stages.find_stage(Run.open("t", tiny_profile, 42), "sft")
    with pytest.raises(AnitaError, match=r"^stage 'sft': model\.\S+ is nan or inf .*: lower the learning rate$"):
        training.train_stage(stage)
    assert not stage.done and [path for path in stage.folder.parent.iterdir() if path.suffix != ".lock"] == []


# ---- read back and compared


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The shipped model's first stage, a few updates long: parent, adapter, settings of the run."""
    from anita_utils.profile import load_profile

    profile = load_profile("cpu")
    profile.order, profile.stages["sft"].examples = ["sft"], 160
    with environment(ANITA_RUNS=str(tmp_path_factory.mktemp("runs"))):
        stage = training.train_stage(stages.find_stage(Run.open("t", profile, 42), "sft"))
        return stage.parent_path, stage.folder / "adapter", stage.info


def test_a_finished_stage_says_what_was_checked(trained):
    checked = trained[2]["checked"]
    assert checked["weights"] == {"compared": 38, "largest_difference": 0.0}
    assert 100 < checked["logits"]["compared"] <= 128
    assert 0 < checked["logits"]["largest_difference"] < 1e-3 and checked["logits"]["share"] < 1e-5


def changed_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def changed_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lose_the_head(base, folder):
    changed_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    changed_config(folder, tie_word_embeddings=True)


def shorten_the_rope(base, folder):
    changed_config(folder, rope_theta=10_000.0, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})


def lose_a_layer(base, folder):
    def change(weights):
        before = all_weights(Path(base))
        weights.update({name: before[name].to(weights[name].dtype) for name in weights if ".layers.2." in name})

    changed_weights(folder, change)


def lose_a_matrix(base, folder):
    name = "model.layers.3.self_attn.k_proj.weight"
    changed_weights(
        folder, lambda weights: weights.update({name: all_weights(Path(base))[name].to(weights[name].dtype)})
    )


def lose_a_norm(base, folder):
    changed_weights(folder, lambda weights: weights["model.norm.weight"].fill_(1.0))


SABOTAGES = [shorten_the_rope, lose_a_layer, lose_a_matrix, lose_a_norm]


@pytest.fixture
def merged(trained, tmp_path, request):
    dtype = request.param
    merge_adapter(*trained[:2], tmp_path / "merged", dtype)
    return trained[0], trained[1], tmp_path / "merged", dtype


DTYPES = pytest.mark.parametrize("merged", ["float32", "bfloat16", "float16"], indirect=True)


@DTYPES
def test_an_untouched_model_is_far_below_the_tolerance(merged, tokenizer):
    checked = check_merged(*merged, tokenizer)
    assert checked["weights"]["largest_difference"] == 0.0
    assert checked["logits"]["share"] < merging.TOLERANCE[merged[3]] / 10


@DTYPES
@pytest.mark.parametrize("memory", ["enough memory", "too little memory"])
@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_what_is_not_as_trained_is_one_line(merged, tokenizer, monkeypatch, sabotage, memory):
    if memory == "too little memory":
        monkeypatch.setattr(merging, "free_memory", lambda: 0)
    check_merged(*merged, tokenizer)
    sabotage(merged[0], merged[2])
    with pytest.raises(AnitaError, match=r"merged: .*train the stage again, and report this if it comes back$"):
        check_merged(*merged, tokenizer)


@DTYPES
def test_the_logits_alone_show_a_short_rope_and_in_fp32_one_layer(merged, tokenizer):
    """Effects against noise: the tolerance lies between, at least a factor of two from the effect."""
    texts = [tokenizer(text)["input_ids"][: merging.LENGTH] for text in merging.TEXTS]
    expected = merging._logits(Path(merged[0]), texts, merged[1]).detach()

    def effect(sabotage):
        folder = merged[2].with_name("sabotaged")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(merged[2], folder)
        sabotage(merged[0], folder)
        found = merging._logits(folder, texts).detach()
        return ((found - expected).std() / expected.std()).item()

    tolerance = merging.TOLERANCE[merged[3]]
    assert effect(shorten_the_rope) > 2 * tolerance
    if merged[3] == "float32":
        assert effect(lose_a_layer) > 20 * tolerance and effect(lose_a_matrix) > 20 * tolerance


@pytest.mark.parametrize("memory", ["enough memory", "too little memory"])
def test_a_lost_head_is_one_line(base_path, tmp_path, tokenizer, monkeypatch, memory):
    if memory == "too little memory":
        monkeypatch.setattr(merging, "free_memory", lambda: 0)
    base = said_to_be_tied(untied(base_path, tmp_path / "base"))
    adapter = make_adapter(base, tmp_path / "adapter", r=2)
    merge_adapter(base, adapter, tmp_path / "merged", "bfloat16")
    lose_the_head(base, tmp_path / "merged")
    with pytest.raises(AnitaError, match="merged: .* train the stage again"):
        check_merged(base, adapter, tmp_path / "merged", "bfloat16", tokenizer)
    texts = [tokenizer(text)["input_ids"][: merging.LENGTH] for text in merging.TEXTS]
    expected, found = merging._logits(base, texts, adapter), merging._logits(tmp_path / "merged", texts)
    assert (found - expected).std() > 2 * merging.TOLERANCE["bfloat16"] * expected.std()


def test_without_memory_it_says_that_the_logits_were_not_compared(base_path, tmp_path, tokenizer, monkeypatch):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    monkeypatch.setattr(merging, "free_memory", lambda: 1_000_000)
    checked = check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)
    assert checked["weights"]["compared"] == 38
    assert re.fullmatch(r"not compared: 0\.\d GiB needed, 0\.0 GiB free", checked["logits"])


def test_another_tokenizer_or_template_is_one_line(base_path, tmp_path, tokenizer):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    template = tmp_path / "merged" / "chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("| trim", ""), "utf-8")
    check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)  # the same text in this chat
    template.write_text(template.read_text("utf-8").replace("{{ bos_token }}", ""), "utf-8")
    with pytest.raises(AnitaError, match="merged: the saved tokenizer is not the one trained with"):
        check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)


def test_logits_that_are_no_numbers_are_a_divergence(base_path, tmp_path, tokenizer):
    adapter = scaled(make_adapter(base_path, tmp_path / "adapter", r=2), 1e30)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    with pytest.raises(merging.Diverged, match="logits are nan or inf: lower the learning rate"):
        check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)


def test_checking_draws_no_random_numbers(base_path, tmp_path, tokenizer):
    adapter = make_adapter(base_path, tmp_path / "adapter", r=2)
    merge_adapter(base_path, adapter, tmp_path / "merged")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_merged(base_path, adapter, tmp_path / "merged", "float32", tokenizer)
    assert torch.equal(torch.rand(4), expected)


def memory(key):
    """A figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
