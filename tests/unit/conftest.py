"""What unit tests share: the shipped small model, loaded once; random ones that train in no time; arms to try."""

import sys
from types import SimpleNamespace

import pytest
import yaml
from few_arms import ARMS

from anita_utils.paths import data_dir


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
        stage.per_device_train_batch_size = 4
    return profile


@pytest.fixture
def anita(monkeypatch, capsys):
    """Calls the command in this process; returns exit code, stdout and stderr."""

    from anita_utils.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anita", *map(str, arguments)])
        code = 0
        try:
            main.main()
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


@pytest.fixture(scope="session")
def random_model(base_path, tmp_path_factory):
    """A model of one layer with random weights, and the course's tokenizer: nothing to learn from, but quick."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from anita_utils.model import load_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("random"), load_tokenizer(base_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(random_model):
    """The cpu profile with that model and a handful of examples: a stage takes a second."""
    from anita_utils.profile import load_profile

    profile = load_profile("cpu")
    profile.model.base = str(random_model)
    for stage in profile.stages.values():
        stage.examples, stage.per_device_train_batch_size = 8, 4
        stage.warmup_steps = 0  # so few updates are all warm-up otherwise
    profile.evaluation.limit, profile.evaluation.max_new_tokens = 1, 4
    return profile


@pytest.fixture
def done(monkeypatch):
    """Counts what is trained and measured; measuring is replaced by figures drawn from the model's own hash."""
    import numpy as np

    from anita_utils import training
    from anita_utils.evaluation import measuring
    from anita_utils.hub import model_key
    from anita_utils.stats import Measurement

    counts = SimpleNamespace(trained=[], measured=[])
    build = training.build_trainer

    def building(stage):
        counts.trained.append(f"{stage.name} {stage.run.seed}")
        return build(stage)

    def measured(path, profile, parts):
        random = np.random.default_rng(int(model_key(path), 16))
        clusters = [str(n) for n in range(20)]
        made = [Measurement(f"benchmark/{family}", code, None, list(random.random(20)), clusters)
                for code in ("en", "it") for family in ("arc", "mmlu")]  # fmt: skip
        if "benchmarks" in parts:
            yield "benchmarks", {}, made
        if "answers" not in parts:
            return
        counts.measured.append(model_key(path))
        perplexity = Measurement("perplexity", "it", None, list(random.random(20)), clusters, [1.0] * 20)
        margins = Measurement("preference_margin", "all", None, list(random.normal(size=20)), clusters)
        yield "answers", {}, [perplexity, margins]

    monkeypatch.setattr(training, "build_trainer", building)
    monkeypatch.setattr(measuring, "_measure", measured)
    return counts


@pytest.fixture
def arms(tmp_path):
    """Writes arms to a file; returns its path."""

    def write(values=ARMS):
        file = tmp_path / "arms.yaml"
        file.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False), "utf-8")
        return file

    return write


@pytest.fixture
def kept_results(tmp_path, monkeypatch):
    """The file of committed results, in a folder of its own."""
    from anita_utils.ablation import results

    file = tmp_path / "data" / "ablation" / "cpu.jsonl"
    monkeypatch.setattr(results, "data_dir", lambda: tmp_path / "data")  # nothing but this: else they are overwritten
    return file


@pytest.fixture
def ax():
    """Empty axes to draw on, closed afterwards."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)
