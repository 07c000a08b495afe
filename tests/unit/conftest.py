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
