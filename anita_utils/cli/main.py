"""What can the `anita` command do? Its short verbs are here; a longer one has a file of its own beside this one.

anita course --only 02
anita eval dpo --suite quick --against base
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Literal

import typer

from anita_utils import IDLE_THREADS, AnitaError, __version__, shown
from anita_utils.cli import Json, ModelName, ProfileName, RunName
from anita_utils.cli.ablate import ablate
from anita_utils.cli.chat import chat
from anita_utils.cli.corpus import corpus
from anita_utils.cli.doctor import doctor
from anita_utils.cli.export import export
from anita_utils.cli.plan import plan
from anita_utils.cli.train import train
from anita_utils.paths import FULL, LOCKED, cache_dir, os_failure, runs_dir

# What takes long to import (torch, pandas, papermill) is imported by the verb that needs it: `anita --help` is instant.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the course or a part of it: look at the machine, plan, train, ask and measure models, report.",
)
app.command()(doctor)
app.command()(plan)
app.command()(corpus)
app.command()(train)
app.command()(chat)
app.command()(ablate)
app.add_typer(export, name="export")
world = typer.Typer(no_args_is_help=True, help="Piccola Italia: the small world and the base model made from it.")
app.add_typer(world, name="world")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def course(
    profile: ProfileName = "cpu",
    run: Annotated[str, typer.Option(help="The run's name under runs/; by default the newest is taken up.")] = "latest",
    seed: Annotated[int, typer.Option(help="The seed of everything drawn at random.")] = 42,
    only: Annotated[list[str] | None, typer.Option(help="A lesson's number or name; can be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out the lessons this run has already done.")] = False,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds after which a cell counts as hung.")] = 600,
    update: Annotated[bool, typer.Option("--update", help="Write the outputs back into the lessons.")] = False,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="With the shipped model and data, few steps.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="No lessons: try all but weights, data, GPU.")] = False,
) -> None:
    """Run the lessons in order and write runs/NAME/index.html."""
    if update + rehearse + dry > 1:
        raise AnitaError("--update, --rehearse and --dry-run exclude each other: give one of them")
    if dry:
        from anita_utils.course.dry_run import dry_run

        raise typer.Exit(dry_run(profile))
    from anita_utils.course import lessons, rehearsal

    options = (profile, run, seed, only or [], resume, timeout)
    raise typer.Exit(rehearsal.rehearse_course(*options) if rehearse else lessons.run_course(*options, update))


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="smollm2, a name on the Hub, or a GGUF file.")],
) -> None:
    """Bring a base model here once, so that all else works offline; print its folder and where it comes from."""
    from anita_utils.hub import resolve_model
    from anita_utils.weights import origin

    folder = resolve_model(model)
    print(f"{shown(folder)}: {origin(folder) or model}")


@app.command()
def pin(profile: Annotated[str, typer.Argument(help="A profile's name, or the path of a .yaml file.")]) -> None:
    """Print today's commits on the Hub of what a profile leaves unpinned, ready to paste into it."""
    import yaml

    from anita_utils.hub import todays_pins
    from anita_utils.profile import load_profile

    pins = todays_pins(load_profile(profile))
    print(yaml.safe_dump(pins, sort_keys=False).rstrip() if pins else "# nothing to pin: no revision is null")


@app.command("eval")
def evaluate(
    model: ModelName = None,
    suite: Annotated[str | None, typer.Option(help="quick, piccola, paper or italian; else the profile's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items a task; else the suite's or profile's.")] = None,
    only: Annotated[
        Literal["benchmarks", "answers"] | None, typer.Option(help="The benchmarks alone, or all other measures.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another model: paired tests of the differences to it.")] = None,
    profile: Annotated[str | None, typer.Option(help="How to load and ask; else the run's, or cpu.")] = None,
    run: RunName = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="No model: hold the suite against lm-eval.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a model: benchmarks, free answers, perplexity, language, refusal, with intervals."""
    from anita_utils.cli.evaluate import evaluate_models

    raise typer.Exit(evaluate_models(model, against, suite, limit, only, profile, run, dry, as_json))


@app.command()
def report(
    runs: Annotated[list[str] | None, typer.Argument(help="A run under runs/, or two to be compared.")] = None,
    run: RunName = None,
) -> None:
    """Build index.html of a run again; of two runs, a page with their paired differences."""
    from anita_utils.course.report import write_report
    from anita_utils.course.side_by_side import write_comparison
    from anita_utils.run import Run, say_which

    names = [*(runs or []), *([run] if run else [])] or ["latest"]
    if len(names) > 2:
        raise AnitaError(f"{len(names)} runs named: give one, or two to be compared")
    loaded = [say_which(Run.load(name)) for name in names]
    print(shown(write_comparison(*loaded) if len(loaded) == 2 else write_report(loaded[0])))


@app.command()
def cache(
    prune: Annotated[bool, typer.Option("--prune", help="Delete what is not taken any more and no run uses.")] = False,
    drop: Annotated[
        bool,
        typer.Option("--drop-merged", help="Delete merged models; the adapters stay, and are merged again."),
    ] = False,
) -> None:
    """List what the cache holds: how much of each kind, what runs use, what an older version of the course left."""
    from anita_utils.cache import contents, drop_merged
    from anita_utils.cache import prune as delete

    if prune:
        deleted = list(delete())
        print(f"deleted: {len(deleted)} entries, {megabytes(deleted)} MB")
    if drop:
        sizes = list(drop_merged())
        print(f"deleted: {len(sizes)} merged models, {sum(sizes) / 1e6:,.1f} MB")
    found = contents()
    print(f"{shown(cache_dir())}: {len(found)} entries, {megabytes(found)} MB")
    for kind in dict.fromkeys(one.kind for one in found):
        own = [one for one in found if one.kind == kind]
        old, used = [one for one in own if one.old], [one for one in own if one.runs]
        left = f", {len(old)} not taken any more ({megabytes(old)} MB)" if old else ""
        print(f"{kind}: {len(own)} entries, {megabytes(own)} MB, {len(used)} used by runs{left}")
    for reason in dict.fromkeys(one.old for one in found if one.old):
        print(f"- not taken: {reason}")


def megabytes(contents: list) -> str:
    return f"{sum(one.size for one in contents) / 1e6:,.1f}"


@world.command("build")
def build_world(
    seed: Annotated[int, typer.Option(help="The seed of everything drawn at random.")] = 42,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of the base model; else all.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint, if there is one.")] = True,
    train: Annotated[bool, typer.Option(help="Train the base model, not only make the data.")] = True,
) -> None:
    """Make corpora, benchmarks, tokenizer and base model again."""
    try:
        from world.build import main
    except ModuleNotFoundError as error:
        if error.name not in ("world", "world.build"):
            raise
        raise AnitaError("the small world is built from a checkout: clone the course, then run it there") from None
    main(seed=seed, resume=resume, train=train, **({"steps": steps} if steps else {}))


def main() -> None:
    """The entry point. An AnitaError, a file that cannot be used, too little memory: one line, and exit code 2."""
    os.environ.update(IDLE_THREADS | os.environ)  # before torch is imported; what the user set stays
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a console cannot read or print, an accent say, is replaced
            stream.reconfigure(errors="replace")
    try:
        app()
    except BrokenPipeError:  # the reader of our output, `head` say, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = in_a_line(error)
        if line is None:
            raise
        print(f"anita: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(2)


def in_a_line(error: Exception) -> str | None:
    """What a user can do about an error; None for one that is a fault of the course's own."""
    if isinstance(error, AnitaError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL | LOCKED:
        reading = error.filename is not None and os.path.exists(error.filename)
        return os_failure(error, error.filename or runs_dir(), write=not reading)
    if "torch" in sys.modules:  # else it cannot have been torch that ran out of memory
        from anita_utils.model import no_memory

        if no_memory(error):
            return "out of memory: lower evaluation.batch_size, or set evaluation.load_in_4bit (see `anita plan`)"
    return None


if __name__ == "__main__":
    main()
