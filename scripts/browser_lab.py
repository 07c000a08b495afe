"""Opens a lesson in a real JupyterLab, in Chromium, and runs its cells one by one, as a student would.

python scripts/browser_lab.py                                # part of `make browser`: lesson 00
python scripts/browser_lab.py 02_supervised_fine_tuning --chromium /usr/bin/chromium

The lesson is copied and its run is kept in a folder of its own, so neither the checkout nor its runs change. Exit code
1 where a cell ends in an error or was not run. Without a browser it says so and ends well.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import Browser, browser_path, ended, started

from anita_utils import AnitaError, checkout

START, LESSON = 300, 900  # seconds that JupyterLab, and the lesson, may take
# JupyterLab draws only the cells in view: so its own objects are asked, not the page; --expose-app-in-browser shows
# them.
READY = """(() => { const panel = window.jupyterapp?.shell?.currentWidget;
  return panel?.sessionContext?.isReady && panel.content?.model ? panel.content.widgets.length : 0 })()"""
RUN = """(async () => { const notebook = jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = %d;
  await jupyterapp.commands.execute("notebook:run-cell");
  const model = notebook.widgets[%d].model, code = model.type === "code";
  const errors = code ? model.outputs.toJSON().filter(each => each.output_type === "error") : [];
  return JSON.stringify({code, count: code ? model.executionCount : null,
    errors: errors.map(each => `${each.ename}: ${each.evalue}`)}) })()"""


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """JupyterLab on a port of its own, showing that folder; gives its address, %s standing for a file. Runs land in it.

    AnitaError when it does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, log = secrets.token_hex(16), folder / "lab.log"
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    own = {"ANITA_RUNS": str(folder / "runs"), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env={**os.environ, **own},
                                   stdout=output, stderr=output)  # fmt: skip
    try:
        address, begun = f"http://127.0.0.1:{port}", time.monotonic()
        while not answers(f"{address}/api/status?token={token}"):
            if process.poll() is not None or time.monotonic() - begun > START:
                last = (log.read_text("utf-8").strip().splitlines() or ["it said nothing"])[-1]
                raise AnitaError(f"JupyterLab does not start ({last}): try `make lab`")
            time.sleep(0.5)
        yield f"{address}/lab/tree/%s?token={token}"
    finally:
        process.terminate()  # it ends its kernels
        process.wait()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def value(browser: Browser, script: str):
    """What a script on the page comes to, once its promise is kept. AnitaError when it fails."""
    answer = browser.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in answer:
        raise AnitaError(f"a script fails in JupyterLab: {answer['exceptionDetails'].get('text')}")
    return answer["result"].get("value")


def run_cells(browser: Browser, address: str) -> list[str]:
    """Opens the lesson, runs its cells one after the other; returns what is wrong, a line for each cell."""
    browser.call("Page.navigate", url=address)
    begun = time.monotonic()
    while not (cells := value(browser, READY)):
        if time.monotonic() - begun > START:
            raise AnitaError("JupyterLab shows no notebook with a kernel: open it by hand with `make lab`")
        time.sleep(0.5)
    wrong, ran = [], 0
    for number in range(cells):
        found = json.loads(value(browser, RUN % (number, number)))
        wrong += [f"cell {number + 1}: {error}" for error in found["errors"]]
        if found["code"] and not found["count"]:
            wrong.append(f"cell {number + 1} was not run")
        ran += found["code"]
        if wrong:
            break  # what comes after an error tells nothing new
    return wrong or ([] if ran else ["the lesson has no code cell"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lesson", nargs="?", default="00_start_here")
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM", "chromium"))
    options = parser.parse_args()
    chromium = browser_path(options.chromium)
    if chromium is None:
        return 0
    lesson = (checkout() or Path.cwd()) / "notebooks" / f"{options.lesson}.ipynb"
    if not lesson.is_file():
        raise AnitaError(f"there is no lesson '{options.lesson}': name a notebook in notebooks/, without .ipynb")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(lesson, place)
        with jupyter_lab(Path(place)) as address, started(chromium, LESSON) as browser:
            wrong = run_cells(browser, address % lesson.name)
            if wrong:
                picture = Path(tempfile.gettempdir()) / f"{lesson.stem}-lab.png"
                picture.write_bytes(base64.b64decode(browser.call("Page.captureScreenshot")["data"]))
                wrong.append(f"what the browser shows: {picture}")
    print(f"{lesson.stem} in JupyterLab: {'; '.join(wrong) or 'no error'} ({time.monotonic() - begun:.0f} s)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(ended(main))
