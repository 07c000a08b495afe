"""What does the cache hold, and what of it is no longer used? `anita cache`.

anita cache
anita cache --prune --older-than 30
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anita_utils import AnitaError, shown
from anita_utils.paths import cache_dir


def cache(
    prune: Annotated[bool, typer.Option("--prune", help="Delete what is not taken any more and no run uses.")] = False,
    days: Annotated[
        float | None,
        typer.Option("--older-than", min=0, help="With --prune: all that no run uses and is so many days old."),
    ] = None,
) -> None:
    """List what the cache holds: how much of each kind, what runs use, what an older version of the course left."""
    from anita_utils.cache import contents
    from anita_utils.cache import prune as delete

    if days is not None and not prune:
        raise AnitaError("--older-than chooses what --prune deletes: give both")
    if prune:
        deleted = list(delete(days))
        print(f"deleted: {len(deleted)} entries, {megabytes(deleted)} MB")
    found = contents()
    table = Table("kind", "entries", "MB", "used by runs", "not taken any more", title=shown(cache_dir()))
    for kind in dict.fromkeys(one.kind for one in found):
        own = [one for one in found if one.kind == kind]
        old = [one for one in own if one.old]
        used = sum(bool(one.runs) for one in own)
        table.add_row(
            kind, str(len(own)), megabytes(own), str(used), f"{len(old)} ({megabytes(old)} MB)" if old else ""
        )
    console = Console()
    console.print(table)
    for reason in dict.fromkeys(one.old for one in found if one.old):
        console.print(f"- not taken: {reason}", markup=False, highlight=False)


def megabytes(contents: list) -> str:
    return f"{sum(one.size for one in contents) / 1e6:,.1f}"
