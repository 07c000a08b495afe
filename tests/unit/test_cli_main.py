"""The `anita` command: arguments handed on, output for people and for programs, errors in one line."""

import io
import json
import subprocess
import sys
import types

import pytest

from anita_utils import AnitaError
from anita_utils.cli import main
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("course", "--profile", "nonsense"), "anita: no profile 'nonsense': choose colab-t4"),
        (("course", "--only", "99"), "anita: no lesson"),
        (("report", "nowhere"), "anita: no run 'nowhere'"),
        (("chat", "sft", "--prompt", "x"), "anita: no run yet"),
        (("chat", "./nowhere", "--prompt", "x"), "anita: no model folder nowhere"),
        (("chat", "--prompts", "nowhere.txt"), "anita: nowhere.txt: no such file"),
        (("chat", "--prompt", "x", "--prompts", "y"), "anita: --prompt and --prompts exclude"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(anita, runs, arguments, message, monkeypatch, tmp_path):
    lesson = tmp_path / "notebooks" / "00_start.ipynb"
    lesson.parent.mkdir()
    parameters = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None}
    cell = parameters | {"id": "p", "source": 'profile = "cpu"\nrun = "latest"\nseed = 42'}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    lesson.write_text(json.dumps(notebook), "utf-8")
    monkeypatch.setattr("anita_utils.course.lessons.lessons_folder", lambda: lesson.parent)
    code, out, err = anita(*arguments)
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_course_hands_its_options_on(anita, monkeypatch):
    given = []
    monkeypatch.setattr("anita_utils.course.lessons.run_course", lambda *arguments: given.append(arguments) or 1)
    options = "--profile p --run r --seed 3 --only 02 --only 04 --resume --timeout 9 --update"
    code, *_ = anita("course", *options.split())
    assert code == 1
    assert given == [("p", "r", 3, ["02", "04"], True, 9, True)]


def test_world_build_hands_its_options_on(anita, monkeypatch):
    given = []
    fake = types.ModuleType("world.build")
    fake.main = lambda **options: given.append(options)
    monkeypatch.setitem(sys.modules, "world.build", fake)
    assert anita("world", "build", "--seed", "3", "--steps", "7", "--no-resume", "--no-train")[0] == 0
    assert anita("world", "build")[0] == 0
    assert given == [
        {"seed": 3, "steps": 7, "resume": False, "train": False},
        {"seed": 42, "resume": True, "train": True},
    ]


def test_without_a_checkout_the_world_is_not_built(anita, monkeypatch):
    """A wheel holds the kit alone."""
    monkeypatch.setitem(sys.modules, "world", None)
    monkeypatch.delitem(sys.modules, "world.build", raising=False)
    code, out, err = anita("world", "build")
    assert (code, out) == (2, "")
    assert err == "anita: the small world is built from a checkout: clone the course, then run it there\n"


def test_a_long_message_is_still_one_line(anita, monkeypatch):
    def fail():
        raise AnitaError("first\nsecond")

    monkeypatch.setattr(main, "app", fail)
    assert anita()[::2] == (2, "anita: first second\n")


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "anita_utils.cli.main", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
