"""`anita chat`: one prompt, a file of them, or a conversation, with a stand-in for the model."""

import io
import json
import sys
import types

import pytest

from anita_utils.profile import load_profile
from anita_utils.run import Run


@pytest.fixture
def model(monkeypatch, runs):
    """A model that repeats the prompt; `loaded`, `held` and `asked` are what it was called with."""
    calls = types.SimpleNamespace(loaded=[], held=[], asked=[])

    def chat(model, tokenizer, prompts, system, max_new_tokens):
        calls.asked.append((prompts, system, max_new_tokens))
        return [f"«{prompt}» è" for prompt in prompts]

    fake = types.ModuleType("anita_utils.model")
    fake.load_for_evaluation = lambda path, profile: calls.loaded.append(path) or calls.held.append(profile)
    tokenizer = types.SimpleNamespace(chat_template="all", apply_chat_template=lambda turns, **_: str(turns))
    fake.checked_tokenizer = lambda path, system_in_user: tokenizer
    fake.chat = chat
    monkeypatch.setitem(sys.modules, "anita_utils.model", fake)
    monkeypatch.setattr("anita_utils.model", fake, raising=False)
    monkeypatch.setattr("anita_utils.hub.resolve_model", lambda name, run=None: f"path of {name}")
    return calls


def test_prompts_from_the_command_line(anita, model):
    code, out, err = anita("chat", "base", "--prompt", "Ciao", "--prompt", "Hi", "--system", "Be brief")
    assert (code, err) == (0, "")
    assert out == "> Ciao\n«Ciao» è\n> Hi\n«Hi» è\n"
    assert model.loaded == ["path of base"]
    assert model.asked == [(["Ciao", "Hi"], "Be brief", 128)]


def test_prompts_from_a_file_give_json_lines(anita, model, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Perché?\n\n  Why?  \n", "utf-8")
    code, out, _ = anita("chat", "base", "--prompts", str(file), "--max-new-tokens", "5")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"prompt": "Perché?", "answer": "«Perché?» è"},
        {"prompt": "Why?", "answer": "«Why?» è"},
    ]
    assert "è" in out
    assert model.asked[0][2] == 5


def test_the_last_stage_of_the_latest_run_is_the_default(anita, model, runs):
    anita("chat", "--prompt", "Ciao")
    run = Run.open("trial", "cpu")
    (run.model_dir("italian") / "merged").mkdir(parents=True)
    anita("chat", "--prompt", "Ciao")
    assert model.loaded == ["path of base", "path of italian"]


def test_a_model_is_held_as_the_latest_run_or_the_profile_named_says(anita, model, runs):
    anita("chat", "base", "--prompt", "Ciao")
    profile = load_profile("cpu")
    profile.evaluation.load_in_4bit = True
    Run.open("trial", profile)
    anita("chat", "base", "--prompt", "Ciao")
    anita("chat", "base", "--prompt", "Ciao", "--profile", "h100")
    assert [held.name for held in model.held] == ["cpu", "cpu", "h100"]
    assert [held.evaluation.load_in_4bit for held in model.held] == [False, True, False]


def test_without_prompts_it_converses(anita, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ciao\nCome stai?\n\nunread\n"))
    code, out, _ = anita("chat", "base")
    assert code == 0
    assert "«Ciao» è" in out
    assert "«Come stai?» è" in out
    assert "unread" not in out
