"""One line of progress that is rewritten where that can be done, and does not flood elsewhere."""

import sys
from types import SimpleNamespace

import IPython
import pytest

from anita_utils import watching
from anita_utils.watching import Progress


def show_three(progress):
    for number in range(3):
        progress.show(f"line {number}", last=number == 2)


def test_a_terminals_line_is_rewritten(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_three(Progress())
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("\n") and out.count("\r") == 3


@pytest.mark.parametrize(("every", "lines"), [(3600, ["line 2"]), (0, ["line 0", "line 1", "line 2"])])
def test_elsewhere_a_line_comes_now_and_then_and_the_last_always(monkeypatch, capsys, every, lines):
    monkeypatch.setattr(watching, "EVERY", every)
    show_three(Progress())
    assert capsys.readouterr().out.splitlines() == lines


def test_a_notebook_holds_one_output_that_is_rewritten(monkeypatch, capsys):
    shown = []

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return SimpleNamespace(update=lambda content, raw: shown.__setitem__(0, content["text/plain"]))

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", display)
    show_three(Progress())
    assert shown == ["line 2"] and capsys.readouterr().out == ""
