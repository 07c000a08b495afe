"""The `anita` command, a file a verb; here are the options that several verbs share."""

from typing import Annotated

import typer

ProfileName = Annotated[str, typer.Option("--profile", help="A profile's name, or the path of a .yaml file.")]
RunName = Annotated[str | None, typer.Option("--run", help="The run that is meant, under runs/; else the latest.")]
ModelName = Annotated[
    str | None, typer.Argument(help="A stage (base, sft, italian, dpo), a folder, or a Hub name; else the last stage.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
