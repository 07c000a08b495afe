"""Opens a run's report in Chromium at three widths, looks for errors and overflow, and saves screenshots.

python scripts/browser.py                               # what `make browser` does: the latest run
python scripts/browser.py --run trial --chromium /usr/bin/chromium

Screenshots and a PDF, as printed, go into runs/NAME/browser/. Exit code 1 where the page has an error in the console, a
picture that does not load, or is wider than the window. Without a browser it says so and ends well.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anita_utils import AnitaError, shown
from anita_utils.run import Run

WIDTHS = {"phone": 360, "tablet": 768, "desktop": 1280}
SECONDS = 120  # after which the browser counts as hung
PROBE = """JSON.stringify({
  width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.getAttribute("src")),
  nameless: [...document.images].filter(i => !i.alt).map(i => i.getAttribute("src"))})"""


class Browser:
    """Chromium without a window, spoken to through two pipes: its DevTools protocol, which needs no other program."""

    def __init__(self, sending: int, reading: int) -> None:
        self.sending, self.reading = sending, reading
        self.number, self.rest, self.events = 0, b"", []
        self.session: str | None = None

    def call(self, method: str, **parameters) -> dict:
        """What the browser answers; events that come in between are kept. AnitaError when it refuses."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise AnitaError(f"the browser refuses {method}: {answer['error']['message']}")
        return answer["result"]

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict:
        while b"\0" not in self.rest:
            piece = os.read(self.reading, 2**20)
            if not piece:
                raise AnitaError("the browser ended early: start it by hand to see why")
            self.rest += piece
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def errors(self) -> list[str]:
        """What went wrong on the page so far, in words."""
        said = []
        for event in self.events:
            details = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                said.append(details["exceptionDetails"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled" and details["type"] == "error":
                said.append(" ".join(str(part.get("value", "")) for part in details["args"]))
            elif event.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
                said.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
            elif event.get("method") == "Network.requestWillBeSent":
                url = details["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    said.append(f"the page asks for {url}")
        return said


@contextmanager
def started(chromium: str, seconds: int = SECONDS) -> Iterator[Browser]:
    """The browser, with a page open. It is ended with the block, or after so many seconds, when it hangs."""
    to_browser, sending = os.pipe()
    reading, from_browser = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        # The protocol's pipes are descriptors 3 and 4; a root user, as in a container, has no sandbox
        shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        options = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
                   "--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}"]  # fmt: skip
        process = subprocess.Popen(["timeout", str(seconds), "bash", "-c", shell, chromium, *options],
                                   pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        try:
            browser = Browser(sending, reading)
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            yield browser
        finally:
            process.terminate()
            process.wait()
            os.close(sending)
            os.close(reading)


def look_at(browser: Browser, page: Path, folder: Path, name: str, width: int) -> list[str]:
    """Loads the page at that width and saves a screenshot; returns what is wrong."""
    browser.events.clear()
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.call(f"{domain}.enable")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait_for("Page.loadEventFired")
    found = json.loads(browser.call("Runtime.evaluate", expression=PROBE)["result"]["value"])
    clip = {"x": 0, "y": 0, "width": width, "height": min(found["height"], 16_000), "scale": 1}
    picture = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    (folder / f"{page.stem}-{name}-{width}.png").write_bytes(base64.b64decode(picture["data"]))
    wrong = [*browser.errors(), *(f"picture {source} does not load" for source in found["broken"])]
    wrong += [f"picture {source} has no alternative text" for source in found["nameless"]]
    if found["width"] > width:
        wrong.append(f"the page is {found['width']} pixels wide in a window of {width}")
    return wrong


def browser_path(chromium: str) -> str | None:
    """The path of that browser; where there is none, None, and it is said that nothing was looked at."""
    path = shutil.which(chromium)
    if path is None:
        print(f"skipped: no browser '{chromium}': apt install chromium, or name one: make browser CHROMIUM=path")
    return path


def ended(main: Callable[[], int]) -> int:
    """A script's exit code; an AnitaError becomes one line."""
    try:
        return main()
    except AnitaError as error:
        print(f"browser: {error}", file=sys.stderr)
        return 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default="latest")
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM", "chromium"))
    options = parser.parse_args()
    chromium = browser_path(options.chromium)
    if chromium is None:
        return 0
    run = Run.load(options.run)
    page, folder = run.folder / "index.html", run.folder / "browser"
    if not page.is_file():
        raise AnitaError(f"{shown(page)} is not there: run `anita report {options.run}` first")
    folder.mkdir(exist_ok=True)
    bad = 0
    with started(chromium) as browser:
        for name, width in WIDTHS.items():
            start = time.monotonic()
            wrong = look_at(browser, page, folder, name, width)
            bad += len(wrong)
            print(f"{name}, {width} pixels: {'; '.join(wrong) or 'no error'} ({time.monotonic() - start:.1f} s)")
        printed = browser.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        (folder / "index.pdf").write_bytes(base64.b64decode(printed["data"]))
    print(f"To be looked at: {shown(folder)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(ended(main))
