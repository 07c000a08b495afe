"""The 16-bit branches of the trainers: bf16 trained on a CPU, slowly but truly; fp16, which needs a GPU, up to that."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, SFTConfig

from anita_utils import AnitaError, stages, training
from anita_utils.machine import detect_machine
from anita_utils.model import load_tokenizer
from anita_utils.profile import load_profile
from anita_utils.run import Run

LONG = {"bf16": "bfloat16", "fp16": "float16"}


@pytest.fixture(params=["sft", "dpo"])
def stage_in(request, tmp_path, base_path, runs):
    """Makes the first stage of a run in a precision, on a random Llama of one layer and as many rows as two updates."""

    def make(precision):
        tokenizer = load_tokenizer(base_path)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=256, **shape)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        profile = load_profile("cpu")
        profile.model.base, profile.model.dtype = str(tmp_path / "base"), LONG[precision]
        profile.precision, profile.order = precision, [request.param]
        settings = profile.stages[request.param]
        settings.per_device_train_batch_size, settings.examples, settings.row_length = 2, 4, None
        if request.param == "sft":
            settings.examples = 24  # packed: a few rows
        # Not by Run.open, which refuses such a profile where the machine computes so slowly
        return stages.find_stage(Run(tmp_path / "run", profile, 42), request.param)

    return make


def trained(trainer):
    return {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def test_bf16_trains_adapters_held_in_fp32(stage_in):
    trainer = training.build_trainer(stage_in("bf16"))
    assert trainer.accelerator.mixed_precision == "bf16"
    assert {weight.dtype for weight in trained(trainer).values()} == {torch.float32}
    assert trainer.model.get_input_embeddings().weight.dtype == torch.bfloat16
    before = {name: weight.detach().clone() for name, weight in trained(trainer).items()}
    seen = []
    layer = next(module for name, module in trainer.model.named_modules() if name.endswith("q_proj.lora_A.default"))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.args.max_steps = 2
    loss = trainer.train().training_loss
    assert trainer.state.global_step == 2 and math.isfinite(loss) and loss > 0
    assert set(seen) == {torch.bfloat16}  # autocast is on: fp32 weights, 16-bit products
    after = trained(trainer)
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_fp16_is_asked_for_and_its_adapters_are_held_in_fp32(stage_in, monkeypatch):
    """The gradient scaler of fp16 refuses adapters in 16 bits. Training itself needs a GPU and is not tried here."""
    stage, arguments_of = stage_in("fp16"), training.training_arguments
    arguments = arguments_of(stage)
    assert (arguments["fp16"], arguments["bf16"]) == (True, False)
    config = DPOConfig(beta=0.1, **arguments) if stage.name == "dpo" else SFTConfig(**arguments, **training.PREPACKED)
    assert config.mixed_precision == "fp16"
    monkeypatch.setattr(training, "training_arguments", lambda stage: arguments_of(stage) | {"fp16": False})
    trainer = training.build_trainer(stage)
    assert {weight.dtype for weight in trained(trainer).values()} == {torch.float32}
    assert trainer.model.get_input_embeddings().weight.dtype == torch.float16
    packed = next(module for name, module in trainer.model.named_modules() if name.endswith("q_proj.base_layer"))
    assert packed.compute_dtype == torch.float16 and packed.weight.dtype == torch.uint8


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_fp16_on_a_cpu_is_refused_in_one_line(runs):
    profile = load_profile("colab-t4")
    assert detect_machine().gpu is None
    with pytest.raises(AnitaError) as refusal:
        Run.open("trial", profile)
    message = str(refusal.value)
    assert "precision: fp16 on a CPU" in message and "set it to fp32" in message and "\n" not in message
    assert not runs.exists()
