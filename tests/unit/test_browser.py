"""`make browser` without a browser, and what it takes for an error. With one it is run by hand: see the Makefile."""

import importlib.util
import sys

import pytest

from anita_utils import AnitaError, checkout
from anita_utils.run import Run


@pytest.fixture(scope="module")
def browser():
    spec = importlib.util.spec_from_file_location("browser", checkout() / "scripts" / "browser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(browser, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["browser.py", *map(str, arguments)])
    return browser.main()


def test_without_a_browser_it_says_so_and_ends_well(browser, monkeypatch, capsys, runs):
    assert call(browser, monkeypatch, "--chromium", "no-such-browser") == 0
    said = capsys.readouterr().out
    assert said.startswith("skipped: no browser 'no-such-browser'") and "CHROMIUM=" in said and said.count("\n") == 1


def test_a_run_without_a_report_is_one_line(browser, monkeypatch, runs):
    Run.open("trial", "cpu")
    with pytest.raises(AnitaError, match=r"index\.html is not there: run `anita report trial`"):
        call(browser, monkeypatch, "--run", "trial", "--chromium", sys.executable)


def test_errors_of_the_page_are_told_from_other_events(browser):
    page = browser.Browser(0, 0)
    page.events = [
        {"method": "Page.loadEventFired", "params": {}},
        {"method": "Log.entryAdded", "params": {"entry": {"level": "warning", "text": "slow"}}},
        {
            "method": "Log.entryAdded",
            "params": {"entry": {"level": "error", "text": "not found", "url": "file:///x.png"}},
        },
        {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": {"text": "Uncaught"}}},
        {"method": "Runtime.consoleAPICalled", "params": {"type": "log", "args": [{"value": "fine"}]}},
        {"method": "Runtime.consoleAPICalled", "params": {"type": "error", "args": [{"value": "bad"}, {"value": 3}]}},
        {"method": "Network.requestWillBeSent", "params": {"request": {"url": "file:///run/index.html"}}},
        {"method": "Network.requestWillBeSent", "params": {"request": {"url": "https://example.org/a.css"}}},
    ]
    expected = ["not found file:///x.png", "Uncaught", "bad 3", "the page asks for https://example.org/a.css"]
    assert page.errors() == expected
