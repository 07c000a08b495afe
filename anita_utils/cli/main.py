"""The `anita` command: run the course, examine the machine, plan a training, measure or ask a model, build the world.

anita course --only 02
anita plan --model meta-llama/Meta-Llama-3-8B-Instruct --length 2048
anita eval dpo --suite quick --against base
anita chat italian --prompt "Qual è la capitale del Piemonte?"
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from anita_utils import IDLE_THREADS, AnitaError, __version__, shown
from anita_utils.cli import commands
from anita_utils.paths import FULL, LOCKED, os_failure, read_lines, runs_dir
from anita_utils.rows import words

# What takes long to import (torch, papermill) is imported by the command that needs it: `anita --help` is instant.

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.partition("\n")[0]
)
world = typer.Typer(no_args_is_help=True, help="Piccola Italia: the small world and the base model made from it.")
app.add_typer(world, name="world")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def course(
    profile: Annotated[str, typer.Option(help="A profile's name, or the path of a .yaml file.")] = "cpu",
    run: Annotated[str, typer.Option(help="The run's name under runs/; by default the newest is taken up.")] = "latest",
    seed: Annotated[int, typer.Option(help="The seed of everything drawn at random.")] = 42,
    only: Annotated[list[str] | None, typer.Option(help="A lesson's number or name; can be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out the lessons this run has already done.")] = False,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds after which a cell counts as hung.")] = 600,
    update: Annotated[bool, typer.Option("--update", help="Write the outputs back into the lessons.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="The profile's lessons with the shipped model and data, in a few steps.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="No lessons: try all of the profile but weights, data sets and GPU.")
    ] = False,
) -> None:
    """Run the lessons in order and write runs/NAME/index.html."""
    if update + rehearse + dry > 1:
        raise AnitaError("--update, --rehearse and --dry-run exclude each other: give one of them")
    if dry:
        from anita_utils.course.dry_run import dry_run

        raise typer.Exit(dry_run(profile))
    if rehearse:
        from anita_utils.course.rehearsal import rehearse_course

        raise typer.Exit(rehearse_course(profile, run, seed, only or [], resume, timeout))
    from anita_utils.course.lessons import run_course

    raise typer.Exit(run_course(profile, run, seed, only or [], resume, timeout, update))


@app.command()
def doctor(
    profile: Annotated[str, typer.Option(help="A profile's name, or the path of a .yaml file.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the findings as JSON.")] = False,
) -> None:
    """Look at this machine for a profile: what is there, what is missing, and the remedy. Exit code 1 on a failure."""
    from anita_utils.cli.doctor import diagnose

    found = diagnose(profile)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        Console().print(found.table())
    raise typer.Exit(1 if found.failed else 0)


@app.command()
def pin(profile: Annotated[str, typer.Argument(help="A profile's name, or the path of a .yaml file.")]) -> None:
    """Tell today's commits on the Hub of what a profile leaves unpinned, ready to paste into it."""
    import yaml

    from anita_utils.hub import todays_pins
    from anita_utils.profile import load_profile

    pins = todays_pins(load_profile(profile))
    print(yaml.safe_dump(pins, sort_keys=False).rstrip() if pins else "# nothing to pin: no revision is null")


for command in (commands.plan, commands.train, commands.ablate, commands.report, commands.cache):
    app.command()(command)
app.command("eval")(commands.evaluate)


@app.command()
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A stage (base, sft, italian, dpo), a folder, or a name on the Hub.", show_default="last stage"
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to ask; can be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt a line; answers as JSON lines.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut off.")] = 128,
    profile: Annotated[
        str | None,
        typer.Option(help="Whose evaluation.load_in_4bit the model is held in.", show_default="the run's"),
    ] = None,
    run: commands.RunName = None,
) -> None:
    """Ask a model; without prompts, an interactive chat."""
    if prompt and prompts:
        raise AnitaError("--prompt and --prompts exclude each other: give one of them")
    from_file = read_prompts(prompts) if prompts else []
    prompt = [words(one) for one in prompt or []]
    ask = load_chat(model, system, max_new_tokens, profile, run)
    if prompts:
        for question, answer in zip(from_file, ask(from_file), strict=True):
            print(json.dumps({"prompt": question, "answer": answer}, ensure_ascii=False))
    elif prompt:
        for question, answer in zip(prompt, ask(prompt), strict=True):
            print(f"> {question}\n{answer}")
    else:
        converse(ask)


def read_prompts(file: Path) -> list[str]:
    """The lines of `file` that are not empty. AnitaError when it cannot be read or holds none."""
    lines = [line.strip() for _, line in read_lines(file)]
    if not lines:
        raise AnitaError(f"{shown(file)} holds no prompt: write one a line")
    return lines


def load_chat(
    name: str | None,
    system: str | None,
    max_new_tokens: int,
    profile: str | None = None,
    run_name: str | None = None,
):
    """Loads a model, the last stage of the run by default; returns a function from prompts to answers.

    profile: the one that says how to hold it; by default the run's, or `cpu` where there is no run.
    run_name: the run whose stages are meant; the latest by default.
    """
    from anita_utils.chat_template import render_text
    from anita_utils.hub import STAGES, resolve_model
    from anita_utils.profile import load_profile
    from anita_utils.run import Run, chosen_run

    of_a_run = run_name or name is None or name in STAGES
    run = chosen_run(run_name) if of_a_run else Run.latest()
    settings = load_profile(profile or "cpu") if profile or run is None else run.profile
    last = run.last_stage() if run else "base"
    if not name:
        print(f"model '{last}'", file=sys.stderr)
    path = resolve_model(name or last, run=run)  # before the slow imports, so that a wrong name is told at once

    from anita_utils.model import chat as generate
    from anita_utils.model import checked_tokenizer, load_for_evaluation

    tokenizer, opening = checked_tokenizer(path, settings.model.system_in_user), words(system)
    if opening:  # a template that refuses or drops it says so before the weights are loaded
        render_text([{"role": "system", "content": opening}, {"role": "user", "content": "?"}], tokenizer)
    model = load_for_evaluation(path, settings)
    return lambda prompts: generate(model, tokenizer, [words(one) for one in prompts], opening, max_new_tokens)


def converse(ask) -> None:
    """Reads prompts from the keyboard until an empty line or the end of input; each is answered by itself."""
    if sys.stdin is None:  # closed by the shell: <&-
        return
    console = Console()
    console.print("Ask something; an empty line ends the chat. Each question stands alone.")
    while True:
        try:
            question = console.input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        console.print(ask([question])[0], markup=False, highlight=False)


@world.command("build")
def build_world(
    seed: Annotated[int, typer.Option(help="The seed of everything drawn at random.")] = 42,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the base model.", show_default="all")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint, if there is one.")] = True,
    train: Annotated[bool, typer.Option(help="Train the base model, not only make the data.")] = True,
) -> None:
    """Make corpora, benchmarks, tokenizer and base model anew."""
    from world.build import main

    main(seed=seed, resume=resume, train=train, **({"steps": steps} if steps else {}))


def main() -> None:
    """The entry point: an AnitaError, or a file that cannot be read or written, becomes one line and exit code 2."""
    os.environ.update(IDLE_THREADS | os.environ)  # before torch is imported; what the user set stays
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a console cannot read or print, an accent say, is replaced
            stream.reconfigure(errors="replace")
    try:
        app()
        return
    except AnitaError as error:
        said = str(error)
    except BrokenPipeError:  # the reader of our output, `head` say, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in FULL | LOCKED:
            raise
        said = os_failure(error, error.filename or runs_dir(), write=not is_there(error.filename))
    except Exception as error:
        from anita_utils.model import no_memory

        if "torch" not in sys.modules or not no_memory(error):
            raise
        said = "out of memory: lower evaluation.batch_size, or set evaluation.load_in_4bit (see `anita plan --help`)"
    print(f"anita: {' '.join(said.split())}", file=sys.stderr)
    sys.exit(2)


def is_there(file: str | None) -> bool:
    """Whether a file that may not be used is there, so that reading it was refused, not writing it."""
    return file is not None and os.path.exists(file)


if __name__ == "__main__":
    main()
