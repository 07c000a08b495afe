"""The `anita` command: arguments handed on, output for people and for programs, errors in one line."""

import json
import subprocess
import sys
import types

import pytest

from anita_utils import AnitaError
from anita_utils.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("course", "--profile", "nonsense"), "anita: no profile 'nonsense': choose colab-t4"),
        (("course", "--only", "99"), "anita: no lesson"),
        (("report", "nowhere"), "anita: no run 'nowhere'"),
        (("chat", "sft", "--prompt", "x"), "anita: no run yet"),
        (("chat", "./nowhere", "--prompt", "x"), "anita: no model folder nowhere"),
        (("chat", "--prompts", "nowhere.txt"), "anita: nowhere.txt: no such file"),
        (("chat", "--prompt", "x", "--prompts", "y"), "anita: --prompt, --prompts and --web exclude"),
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
