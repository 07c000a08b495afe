"""How does a model get into other programs? `anita export gguf`: into llama.cpp, Ollama and LM Studio.

anita export gguf dpo
anita export gguf smollm2 --type q8_0 --out elsewhere
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from anita_utils import shown
from anita_utils.cli import ModelName, RunName

LICENCES = {"tiny-llama-3-instruct": "apache-2.0", "smollm2": "apache-2.0"}  # of the bases that the course knows

export = typer.Typer(no_args_is_help=True, help="Write a model for other programs.")


@export.command("gguf")
def export_model(
    model: ModelName = None,
    kind: Annotated[
        Literal["f16", "q8_0", "f32"], typer.Option("--type", help="16 bits a weight, 8 (with scales), or 32.")
    ] = "f16",
    out: Annotated[Path | None, typer.Option(help="The folder to write to; else exports/NAME.")] = None,
    licence: Annotated[str | None, typer.Option(help='Such as "apache-2.0"; else the base\'s, if known.')] = None,
    run: RunName = None,
) -> None:
    """Write a GGUF file for llama.cpp, Ollama and LM Studio, and a Modelfile for Ollama beside it."""
    from anita_utils.hub import STAGES, resolve_model
    from anita_utils.run import chosen_run

    chosen = chosen_run(run) if run or model is None or model in STAGES else None
    name = model or (chosen.last_stage() if chosen else "base")
    folder = resolve_model(name, run=chosen)

    from anita_utils.gguf_export import export_gguf  # slow to import: after a wrong name was reported
    from anita_utils.merging import public_name

    base = name
    if name in STAGES:
        base = chosen.profile.model.base if chosen else "tiny-llama-3-instruct"
    licence = licence or LICENCES.get(base)
    if licence is None:
        print("no licence is written, as that of the base is not known here: --licence gives one", file=sys.stderr)
    own = public_name(base).rpartition("/")[2].removesuffix(".gguf")
    title = own if name in (base, "base") else f"{own}-{name}"
    file = export_gguf(folder, out or Path("exports") / title, title, kind, licence)
    print(f"{shown(file)}: {file.stat().st_size / 1e6:,.1f} MB")
    print(f"for Ollama: `ollama create {title.lower()} -f {shown(file.with_name('Modelfile'))}`")
