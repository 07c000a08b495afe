"""How does a file of a folder become paragraphs? Text as it is laid out, Markdown without code, HTML by trafilatura.

>>> paragraphs_of(Path("guida.html"))
(['La rete di casa\\nIl nome della macchina si scrive nel file', …], 'utf-8')

A line too short to stand alone, a heading say, is one paragraph with what follows it.
"""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from anita_utils import AnitaError
from anita_utils.paths import os_failure
from anita_utils.rows import INVISIBLE

if TYPE_CHECKING:
    from lxml.etree import _Element

SHORTEST = 8  # words of a paragraph; fewer do not tell their language
UNWRAPPED = 120  # columns: where lines are longer, each is a paragraph
BOX = 50  # columns: verses are shorter
CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
DECLARED_IN = 1024  # bytes: where HTML has to say its encoding
BORDER = re.compile(r"\n(?:[^\w\n]*\n)+")  # blank lines, and those without a letter or digit: "---", "%"
# Front matter, fenced code, comments
MARKUP = re.compile(r"\A---\n.*?\n---\n|^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1|\Z)|<!--.*?-->", re.DOTALL | re.MULTILINE)
BLOCKS = {"doc", "main", "div", "p", "head", "list", "item", "quote", "table", "row", "cell"}  # trafilatura's names


class Unread(Exception):
    """A file that gives no text; its message is the reason it is counted under."""


def find_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The files to read, in the order of their names, and how many others there are, by suffix.

    A folder that holds a corpus made before is left out.
    """
    files, others = [], Counter()
    for root, folders, names in os.walk(folder):
        if {"train.jsonl", "counts.json"} <= set(names):
            folders.clear()
            continue
        for file in (Path(root) / name for name in names):
            if file.suffix.lower() in READERS:
                files.append(file)
            else:
                others[file.suffix.lower() or "no suffix"] += 1
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix()), others


def paragraphs_of(file: Path, encoding: str | None = None) -> tuple[list[str], str]:
    """The paragraphs of a file and the encoding it was read in: UTF-8, else the one it declares, else `encoding`.

    Unread where it is in none of them, or holds no text.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise AnitaError(os_failure(error, file, write=False)) from None
    suffix = file.suffix.lower()
    text, found = decoded(raw, encoding, declared=suffix in (".html", ".htm"))
    paragraphs = merged(filter(None, map(tidy, READERS[suffix](text))))
    if not paragraphs:
        raise Unread("without text")
    return paragraphs, found


def decoded(raw: bytes, encoding: str | None, declared: bool) -> tuple[str, str]:
    """The text in these bytes and its encoding. declared: whether to look for the name of one in the text."""
    try:
        return raw.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        said = CHARSET.search(raw[:DECLARED_IN]) if declared else None
    name = said[1].decode() if said else encoding
    try:
        name = codecs.lookup(name or "").name
        name = {"iso8859-1": "cp1252", "ascii": "cp1252"}.get(name, name)  # as browsers read these two
        return raw.decode(name), name
    except (LookupError, UnicodeError):
        raise Unread("not UTF-8") from None


def known_encoding(name: str) -> str:
    """The name, or AnitaError where Python has no such encoding."""
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise AnitaError(f"no encoding '{name}': for instance latin-1, cp1252, utf-16") from None


def plain(text: str) -> Iterator[str]:
    """The paragraphs of a text: its lines where these are long, else what stands between blank lines.

    In the latter, a line break that stands only because the next word did not fit is taken out.
    """
    text = re.sub("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]", "\n", text).expandtabs()
    lines = [line.rstrip() for line in text.split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    width = lengths[len(lengths) * 19 // 20] if lengths else 0  # of the page: one line in twenty may stick out
    if width > UNWRAPPED:
        yield from lines
        return
    for chunk in BORDER.split("\n".join(lines)):
        if chunk.strip():
            yield unwrapped(chunk.strip("\n").split("\n"), width)


def unwrapped(lines: list[str], width: int) -> str:
    """Lines in one, but for breaks where the next word would have fitted within `width` columns.

    Of a narrower box, where no word would have fitted within its own longest line, all breaks are taken out.
    """
    own, text = max(map(len, lines)), lines[0]
    ends = [len(before) + 1 + len(line.split(maxsplit=1)[0]) for before, line in pairwise(lines)]
    if len(ends) > 1 and own >= BOX and min(ends) > own:
        width = own
    for end, line in zip(ends, lines[1:], strict=True):
        text += (" " if end > width else "\n") + line
    return text


def markdown(text: str) -> Iterator[str]:
    """The paragraphs of Markdown, with its marks, but without code, comments and front matter."""
    return plain(MARKUP.sub("\n\n", text.replace("\r\n", "\n")))


def html(text: str) -> Iterator[str]:
    """The paragraphs of a page's main text, as trafilatura finds it; a table's row is one, preformatted text none."""
    import trafilatura
    from lxml import etree
    from lxml.html import HTMLParser, document_fromstring

    try:
        page = document_fromstring(text.encode(), parser=HTMLParser(encoding="utf-8"))
    except etree.ParserError:  # there is nothing in it
        return
    for code in list(page.iter("pre")):
        code.drop_tree()
    # Without favor_recall it loses the beginnings of paragraphs in <div>, and some lists
    found = trafilatura.extract(page, include_comments=False, favor_recall=True, output_format="xml")
    if found:
        yield from (block.replace("\n", " ") for block in blocks(etree.fromstring(found.encode())))


def blocks(element: _Element) -> Iterator[str]:
    """The texts between the borders of block elements, in order."""
    if element.tag == "row":
        cells = (" ".join("".join(cell.itertext()).split()) for cell in element)
        yield " | ".join(filter(None, cells))
        return
    text = [element.text or ""]
    for child in element:
        if child.tag in BLOCKS:
            yield "".join(text)
            yield from blocks(child)
            text = []
        else:
            text += child.itertext()
        text.append(child.tail or "")
    yield "".join(text)


READERS = {".txt": plain, ".md": markdown, ".html": html, ".htm": html}


def tidy(text: str) -> str:
    """A text in composed characters, with single spaces, without invisible characters and blank lines."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text)).replace("\u00ad", "")
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.split("\n"))))


def merged(paragraphs: Iterable[str]) -> list[str]:
    """Paragraphs of `SHORTEST` words or more: shorter ones together with what follows, the last with what precedes."""
    whole, short = [], []
    for paragraph in paragraphs:
        short.append(paragraph)
        if sum(len(part.split()) for part in short) >= SHORTEST:
            whole.append("\n".join(short))
            short = []
    return whole[:-1] + ["\n".join([*whole[-1:], *short])] if short else whole
