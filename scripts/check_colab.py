"""Holds the course's packages against those of Google Colab: what must be installed there, and what must stay.

python scripts/check_colab.py            # the check, from the requirements of the packages installed here
python scripts/check_colab.py --pip      # and asks pip whether each version can be had for Colab's Python
python scripts/check_colab.py --write    # writes constraints-colab.txt again

Nothing is installed, and nothing is run on Colab. What Colab has is read from scripts/colab-preinstalled.txt, which
says of what date it is. Where a version that Colab has satisfies everybody who asks for it, Colab's stays; else the
tested one of constraints.txt is installed. The libraries that the lessons are about are always the tested ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from colab import KEPT, PINS, ROOT, installed, last_words, normalised, read_pins
from packaging.requirements import Requirement

TESTED = ROOT / "constraints.txt"
PREINSTALLED = ROOT / "scripts" / "colab-preinstalled.txt"
TAUGHT = ["accelerate", "bitsandbytes", "datasets", "huggingface-hub", "lm-eval", "peft", "tokenizers",
          "transformers", "trl"]  # fmt: skip
PYTHON = "3.13"
MACHINE = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "implementation_name": "cpython",
           "platform_python_implementation": "CPython", "os_name": "posix", "sys_platform": "linux",
           "platform_system": "Linux", "platform_machine": "x86_64"}  # fmt: skip
PLATFORMS = ["manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 36))]  # glibc 2.35
SOURCE_ONLY = ["rouge-score", "sqlitedict", "word2number"]  # pure Python without a wheel; all others must have one
HEAD = """\
# What is installed on Google Colab, beside its own torch: the tested versions of constraints.txt.
# Made by `python scripts/check_colab.py --write`; edit constraints.txt or scripts/colab-preinstalled.txt instead.
"""


def applies(requirement: Requirement, extras: Iterable[str] = ()) -> bool:
    """Whether a requirement holds on Colab, for somebody who asked for these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate(MACHINE | {"extra": extra}) for extra in ["", *extras])


def asked_for(
    roots: list[str], chosen: set[str], needs: Callable[[str], list[str]]
) -> Iterator[tuple[Requirement, str]]:
    """Every requirement of the course and, however deep, of the chosen packages; each with the name of who asks."""
    waiting, seen = [(Requirement(text), "the course", frozenset()) for text in roots], set()
    while waiting:
        requirement, asker, extras = waiting.pop()
        if not applies(requirement, extras):
            continue
        yield requirement, asker
        name, extras = normalised(requirement.name), frozenset(requirement.extras)
        if name in chosen and (name, extras) not in seen:
            seen.add((name, extras))
            waiting += [(Requirement(text), name, extras) for text in needs(name)]


def choose(
    roots: list[str], tested: dict[str, str], colab: dict[str, str], needs: Callable[[str], list[str]]
) -> tuple[set[str], dict[str, str], list[str]]:
    """What to install on Colab in the tested version, all versions that the course then meets there, and the problems.

    roots: the course's requirements.
    tested, colab: versions by name.
    needs: the requirements of a package in its tested version.
    """
    chosen: set[str] = set()
    while True:
        asked = list(asked_for(roots, chosen, needs))
        wanting = {normalised(requirement.name) for requirement, _ in asked if not does(requirement, colab)}
        more = wanting.intersection(tested) - chosen.union(KEPT)
        if not more:
            break
        chosen |= more
    names = {normalised(requirement.name) for requirement, _ in asked}
    versions = {name: tested[name] if name in chosen else colab.get(name, "none") for name in names}
    return chosen, versions, clashes(asked, versions)


def does(requirement: Requirement, colab: dict[str, str]) -> bool:
    """Whether Colab's version will do."""
    name = normalised(requirement.name)
    return name in colab and name not in TAUGHT and colab[name] in requirement.specifier


def clashes(asked: Iterable[tuple[Requirement, str]], versions: dict[str, str]) -> list[str]:
    """Who asks for a package in another version than the one there would be."""
    had = [(requirement, asker, versions[normalised(requirement.name)]) for requirement, asker in asked]
    return [
        f"{asker} needs {requirement}: there would be {version}"
        for requirement, asker, version in had
        if version == "none" or version not in requirement.specifier
    ]


def pip_finds(versions: dict[str, str]) -> dict[str, list[str]]:
    """What each of these versions needs, by pip's report for Colab's Python. Raises ValueError where pip finds none."""
    with tempfile.TemporaryDirectory() as folder:  # pip wants a target for another Python, and writes nothing there
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet",
                   "--only-binary", ":all:", "--no-binary", ",".join(SOURCE_ONLY), "--target", folder,
                   "--report", str(Path(folder, "report.json")), "--python-version", PYTHON,
                   *(f"--platform={platform}" for platform in PLATFORMS),
                   *(f"{name}=={version}" for name, version in sorted(versions.items()))]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"pip: {last_words(done.stderr)}")
        report = json.loads(Path(folder, "report.json").read_text("utf-8"))
    found = [package["metadata"] for package in report["install"]]
    return {normalised(package["name"]): package.get("requires_dist", []) for package in found}


def main(arguments: list[str]) -> int:
    """Checks, or writes; returns 1 if there is a problem."""
    tested, colab = read_pins(TESTED), read_pins(PREINSTALLED)
    roots = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]

    def needs(name: str) -> list[str]:
        """The requirements of the package installed here, which must be the tested one."""
        if installed(name) != tested[name]:
            raise ValueError(f"{name}: {installed(name)} is installed, not the tested {tested[name]}: run `make test`")
        return metadata.requires(name) or []

    chosen, versions, problems = choose(roots, tested, colab, needs)
    lines = [line for line in TESTED.read_text("utf-8").splitlines() if normalised(line.partition("==")[0]) in chosen]
    text = HEAD + "".join(f"{line}\n" for line in lines)
    if "--write" in arguments:
        PINS.write_text(text, "utf-8")
    elif not PINS.is_file() or PINS.read_text("utf-8") != text:
        problems.append("constraints-colab.txt is out of date: run python scripts/check_colab.py --write")
    if "--pip" in arguments:
        found = pip_finds({name: version for name, version in versions.items() if name not in KEPT})
        asked = [(Requirement(text), name) for name, needed in found.items() for text in needed]
        asked = [(requirement, name) for requirement, name in asked if normalised(requirement.name) in chosen]
        problems += clashes([(requirement, name) for requirement, name in asked if applies(requirement)], versions)
    stay = len(versions) - len(chosen)
    print(*problems, f"{len(chosen)} packages to install on Colab, {stay} of its own stay", sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
