"""Spelling. English: codespell's lists of mistakes, and its American forms turned round, for the course is British.
Italian: the glossary's column and the small world's sentences, held against pyspellchecker's words.

words.txt, one word a line, holds what these lists take for a mistake and is none.
"""

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import nbformat
import pytest
import yaml
from spellchecker import SpellChecker

from anita_utils.course import glossary

ROOT = Path(__file__).resolve().parents[2]
LINES = Path(__file__).with_name("words.txt").read_text("utf-8").splitlines()
ALLOWED = {line for line in LINES if line and not line.startswith("#")}
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|https?://\S+|\$[^$]*\$|<[^>]+>", re.DOTALL)
WORD = re.compile(r"[^\W\d_]+(?!['’\w])")  # not what an apostrophe follows: the "dell" of "dell'effetto"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def codespell_list(name: str) -> Iterator[tuple[str, list[str]]]:
    """A word and what it should become, from one of codespell's lists."""
    for line in (files("codespell_lib") / "data" / name).read_text("utf-8").splitlines():
        word, _, better = line.partition("->")
        yield word.lower(), [one.strip() for one in better.split(",") if one.strip()]


MISTAKES = {
    word: better[0] for name in ("dictionary.txt", "dictionary_rare.txt") for word, better in codespell_list(name)
}
MISTAKES |= {us: gb for gb, forms in codespell_list("dictionary_en-GB_to_en-US.txt") for us in forms}


def english_mistakes(text: str) -> list[str]:
    """The words of a text that are misspelt or American, each with what codespell would write."""
    words = {word.lower() for word in WORD.findall(CODE.sub(" ", text))} - ALLOWED
    return sorted(f"{word}: {MISTAKES[word]}" for word in words & MISTAKES.keys())


def italian_mistakes(text: str) -> list[str]:
    """The words of a text that the Italian list lacks; names, with a capital, are left out."""
    words = {word for word in WORD.findall(re.sub(r"\{[^}]*\}", " ", text)) if word.islower()} - ALLOWED
    return sorted(SpellChecker(language="it").unknown(words))


def english_texts() -> Iterator[tuple[str, str]]:
    """Where it stands, and the text: lessons, READMEs, the glossary's meanings, docstrings."""
    for file in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = nbformat.read(file, as_version=4).cells
        yield file.name, "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for file in (ROOT / "README.md", ROOT / "data" / "README.md"):
        yield str(file.relative_to(ROOT)), file.read_text("utf-8")
    yield "glossary.yaml", "\n".join(f"{term.english}: {term.means}" for term in glossary.terms())
    for file in sorted(ROOT.glob("anita_utils/**/*.py")):
        nodes = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, DOCUMENTED)]
        yield str(file.relative_to(ROOT)), "\n".join(ast.get_docstring(node) or "" for node in nodes)


def italian_in(value, inside: bool = False) -> Iterator[str]:
    """The texts of a file of the world that stand under a key "it" or one that ends in "_it"."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from italian_in(part, inside or str(key) == "it" or str(key).endswith("_it"))
    elif isinstance(value, list):
        for part in value:
            yield from italian_in(part, inside)
    elif inside and isinstance(value, str):
        yield value


def test_english_is_spelt_the_british_way():
    found = {place: english_mistakes(text) for place, text in english_texts()}
    assert {place: words for place, words in found.items() if words} == {}


def test_italian_of_the_glossary_is_spelt_right():
    assert italian_mistakes("\n".join(term.italian for term in glossary.terms())) == []


def test_italian_of_the_world_is_spelt_right():
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    world = [yaml.load(file.read_text("utf-8"), loader) for file in sorted(ROOT.glob("data/world/**/*.yaml"))]
    texts = [text for part in world for text in italian_in(part)]
    assert len(texts) > 1000
    assert italian_mistakes("\n".join(texts)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("They recieve it.", ["recieve: receive"]),
        ("The color is Grey.", ["color: colour"]),
        ("Its behavior, not `color` nor [this](color.md).", ["behavior: behaviour"]),
        ("The colour is organised.", []),
    ],
)
def test_english_mistakes_are_found(text, found):
    assert english_mistakes(text) == found


def test_italian_mistakes_are_found():
    assert italian_mistakes("La citta di {s} è bela, dell'acqua a Gubbio") == ["bela", "citta"]
