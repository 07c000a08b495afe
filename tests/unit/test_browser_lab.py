"""`make browser` on a lesson: JupyterLab itself, and what is taken for an error. Chromium is played by answers."""

import importlib.util
import json
import sys
import urllib.request

import pytest

from anita_utils import AnitaError, checkout


@pytest.fixture(scope="module")
def lab():
    folder = checkout() / "scripts"
    spec = importlib.util.spec_from_file_location("browser_lab", folder / "browser_lab.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))  # where the script finds its neighbour
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


class Played:
    """Answers as Chromium would: a notebook that is ready, then what each cell came to."""

    def __init__(self, *cells):
        self.cells = list(cells)

    def call(self, method, expression="", **_):
        if method == "Page.navigate":
            return {}
        if "isReady" in expression:
            return {"result": {"value": len(self.cells)}}
        number = int(expression.split("activeCellIndex = ")[1].split(";")[0])
        return {"result": {"value": json.dumps(self.cells[number])}}


TEXT = {"code": False, "count": None, "errors": []}
RAN = {"code": True, "count": 1, "errors": []}


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ([TEXT, RAN], []),
        ([TEXT, RAN | {"errors": ["NameError: x"]}, RAN | {"count": None}], ["cell 2: NameError: x"]),
        ([RAN, RAN | {"count": None}], ["cell 2 was not run"]),
        ([TEXT], ["the lesson has no code cell"]),
    ],
)
def test_what_counts_as_wrong(lab, cells, found):
    assert lab.run_cells(Played(*cells), "http://127.0.0.1") == found


def test_jupyterlab_starts_and_shows_its_objects(lab, tmp_path):
    with lab.jupyter_lab(tmp_path) as address:
        page = urllib.request.urlopen(address % "", timeout=30).read().decode()
    assert '"exposeAppInBrowser": true' in page
    assert not lab.answers(address % "")  # it is gone with the block


def test_a_lesson_that_is_not_there_is_one_line(lab, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["browser_lab.py", "99_nothing", "--chromium", sys.executable])
    with pytest.raises(AnitaError, match="no lesson '99_nothing'"):
        lab.main()


def test_without_a_browser_it_says_so_and_ends_well(lab, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["browser_lab.py", "--chromium", "no-such-browser"])
    assert lab.main() == 0 and capsys.readouterr().out.startswith("skipped: no browser 'no-such-browser'")
