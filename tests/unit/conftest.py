"""The shipped small model and its tokenizer, loaded once."""

import sys

import pytest

from anita_utils.hub import data_dir


@pytest.fixture(scope="session")
def base_path():
    return data_dir() / "tiny-llama-3-instruct"


@pytest.fixture(scope="session")
def tokenizer(base_path):
    from anita_utils.model import load_tokenizer

    return load_tokenizer(base_path)


@pytest.fixture(scope="session")
def model(base_path):
    from anita_utils.model import load_model

    return load_model(base_path).eval()


@pytest.fixture
def small_profile():
    """The cpu profile with a handful of examples, so that a stage takes seconds."""
    from anita_utils.profile import load_profile

    profile = load_profile("cpu")
    for stage in profile.stages.values():
        stage.examples = 160
        stage.batch_size = 4
    return profile


@pytest.fixture
def anita(monkeypatch, capsys):
    """Calls the command in this process; returns exit code, stdout and stderr."""

    from anita_utils import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anita", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A random Llama of two layers that takes milliseconds a step, with the course's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from anita_utils.model import load_tokenizer

    tokenizer = load_tokenizer(data_dir() / "tiny-llama-3-instruct")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "tiny-random"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_profile(small_profile, tiny_path):
    """The small profile on the random Llama: 64 examples a stage, rows of 128."""
    small_profile.model.base, small_profile.model.revision = str(tiny_path), None
    for stage in small_profile.stages.values():
        stage.examples, stage.max_length = 64, 128
        stage.row_length = stage.row_length and 128
        stage.lora.r = 4
    return small_profile
