"""How does a folder of texts become training text? `anita corpus`: what is kept, what is left out, and why.

anita corpus testi --out mio
anita train italian --set data=mio
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anita_utils import shown
from anita_utils.cli import Json

NAMED = 10  # names printed of each kind


def corpus(
    folder: Annotated[Path, typer.Argument(help="A folder with .txt, .md and .html files, at any depth.")],
    out: Annotated[Path, typer.Option(help="The corpus: a folder, which `data` in a profile takes.")],
    words: Annotated[int, typer.Option(min=50, help="The most words of a row.")] = 200,
    held_out: Annotated[float, typer.Option(min=0, max=0.5, help="The share of the words that is held out.")] = 0.05,
    encoding: Annotated[str | None, typer.Option(help="Of files not in UTF-8; else they are left out.")] = None,
    benchmark: Annotated[
        list[Path] | None, typer.Option(help="Items that must not leak, as in data/benchmarks/items; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make training text of a folder: Italian, no near-duplicates, no personal data, no benchmark items."""
    from anita_utils.corpus.building import build_corpus, check_out, write_corpus

    check_out(out)
    made = build_corpus(folder, words, held_out, encoding, benchmark or [])
    write_corpus(made, out)
    if as_json:
        print(json.dumps(made.counts, indent=1, ensure_ascii=False))
        return
    table = Table("", "paragraphs", "words", title=f"{shown(folder)} → {shown(out)}")
    paragraphs, sizes = made.counts["paragraphs"], made.counts["words"]
    table.add_row("read", f"{paragraphs['read']:,}", f"{sizes['read']:,}")
    for reason, count in paragraphs["left out"].items():
        table.add_row(f"left out: {reason}", f"{count:,}", f"{sizes['left out'][reason]:,}")
    table.add_row("kept", f"{paragraphs['kept']:,}", f"{sizes['kept']:,}")
    Console().print(table)
    for line in lines(made.counts, out):
        print(line)


def lines(counts: dict, out: Path) -> list[str]:
    """What the table does not say: files, languages, benchmarks, rows."""
    said = ["files: " + ", ".join(f"{count:,} {what}" for what, count in counts["files"].items())]
    for what, names in counts["named"].items():
        more = f" and {len(names) - NAMED:,} more (see counts.json)" if len(names) > NAMED else ""
        said.append(f"{what}: {', '.join(names[:NAMED])}{more}")
    if counts["named"].get("not UTF-8"):
        said.append("save these in UTF-8, or say what they are in: --encoding latin-1")
    if counts["other_languages"]:
        found = [f"{code} {count:,}" for code, count in counts["other_languages"].items()]
        said.append(f"other languages, in paragraphs: {', '.join(found[:NAMED])}")
    if counts["leaked_items"]:
        said.append(f"benchmark items found: {', '.join(counts['leaked_items'])}")
    if counts["cut_paragraphs"]:
        said.append(f"{counts['cut_paragraphs']:,} paragraphs longer than a row were cut between sentences")
    for side in ("train", "held_out"):
        documents, rows, words = counts[side].values()
        said.append(f"{side}: {rows:,} rows, {words:,} words of {documents:,} documents")
    return [*said, f"`anita train italian --set data={shown(out)} --check` says how many rows fit a stage"]
