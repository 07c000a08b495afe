"""The course's public address: nowhere a placeholder before it is known, everywhere the address afterwards."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import anita_utils
from anita_utils.course.lessons import cells_hash

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from set_repository import COLAB, NO_ADDRESS, badge, set_repository  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))

LESSONS = sorted(file.stem for file in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
NAMES = [
    "anita_utils/__init__.py",
    "pyproject.toml",
    "README.md",
    *(f"notebooks/{name}.ipynb" for name in LESSONS),
]


@pytest.fixture
def copy(tmp_path):
    """The files that an address goes into, and others that it must not touch."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    (tmp_path / "kept.md").write_text("https://github.com/some-one/a.course-two, some-one/a.course", "utf-8")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def texts(root):
    return {name: (root / name).read_text("utf-8") for name in [*NAMES, "kept.md"]}


@pytest.mark.skipif(anita_utils.REPOSITORY is not None, reason="this copy has its address")
def test_before_there_is_an_address_nothing_shows_one(copy):
    before = texts(copy)
    assert not any(re.search(r"OWNER|colab-badge|colab\.research", text) for text in before.values())
    lessons = [json.loads(text) for name, text in before.items() if name.endswith(".ipynb")]
    assert all([NO_ADDRESS in cell["source"] for cell in lesson["cells"]].count(True) == 1 for lesson in lessons)


@pytest.mark.skipif(anita_utils.REPOSITORY is not None, reason="this copy has its address")
def test_the_first_address_is_written_everywhere(copy):
    changed = set_repository("https://github.com/some-one/a.course.git", copy)
    assert {str(file.relative_to(copy)) for file in changed} == set(NAMES)
    after = texts(copy)
    address = "https://github.com/some-one/a.course"
    assert f'REPOSITORY: str | None = "{address}"' in after["anita_utils/__init__.py"]
    assert f'[project.urls]\nRepository = "{address}"\n' in after["pyproject.toml"]
    assert after["README.md"].count("colab-badge") == len(LESSONS) and after["README.md"].endswith(f"<{address}>.\n")
    for name in LESSONS:
        row = next(line for line in after["README.md"].splitlines() if f"(notebooks/{name}.ipynb)" in line)
        assert row.endswith(f"{badge('some-one/a.course', name)} |")
        notebook = nbformat.reads(after[f"notebooks/{name}.ipynb"], as_version=4)
        assert notebook.cells[0].source.splitlines()[2] == badge("some-one/a.course", name)
        set_up = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "course.set_up" in cell.source]
        assert len(set_up) == 1 and f"!git clone --quiet --depth 1 {address} course\n" in set_up[0]
        assert notebook.metadata.get("outputs_of") in (None, cells_hash(notebook))
        nbformat.validate(notebook)


def test_an_address_can_be_changed_but_not_by_the_first_push(copy):
    set_repository("https://github.com/some-one/a.course", copy)
    before = texts(copy)
    assert set_repository("https://github.com/else/where", copy, once=True) == [] and texts(copy) == before
    set_repository("https://github.com/else/where", copy)
    after = texts(copy)
    assert after.pop("kept.md") == before.pop("kept.md")
    assert not any("some-one" in text for text in after.values())
    assert f"{COLAB}/github/else/where/blob" in after["README.md"]
    assert set_repository("https://github.com/else/where", copy) == []


@pytest.mark.parametrize("address", ["someone/course", "https://example.org/a/b", "https://github.com/only"])
def test_other_addresses_are_refused(copy, address):
    with pytest.raises(ValueError, match="is not a repository's address"):
        set_repository(address, copy)


def test_the_first_push_sets_it():
    workflow = (ROOT / ".github" / "workflows" / "address.yml").read_text("utf-8")
    assert 'scripts/set_repository.py --once "https://github.com/$GITHUB_REPOSITORY"' in workflow


def test_every_lesson_has_its_badge_where_the_address_is_known():
    for name in LESSONS if anita_utils.REPOSITORY else []:
        repository = anita_utils.REPOSITORY.removeprefix("https://github.com/")
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert notebook.cells[0].source.splitlines()[2] == badge(repository, name)
        assert badge(repository, name) in (ROOT / "README.md").read_text("utf-8")
