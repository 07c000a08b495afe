"""What all tests share. No test may need the network: the Hub is switched off before anything can import it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder of runs, in place of the checkout's."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("ANITA_RUNS", str(folder))
    monkeypatch.delenv("ANITA_CACHE", raising=False)
    return folder
