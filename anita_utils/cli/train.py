"""How is one stage trained outside a notebook? `anita train`: by the code that the lessons use.

anita train dpo --set beta=0.2 --set model.dtype=float32
anita train sft --set data=mine.jsonl --check     # trains nothing: what would become of each row
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from anita_utils import AnitaError, clock, shown
from anita_utils.cli import ProfileName
from anita_utils.course.set_up import quieten
from anita_utils.paths import runs_dir
from anita_utils.profile import Profile, load_profile, override

if TYPE_CHECKING:
    from anita_utils.data import RowCounts
    from anita_utils.stages import Stage


def train(
    stage: Annotated[str, typer.Argument(help="sft, italian or dpo; the stages before it are trained if missing.")],
    profile: ProfileName = "cpu",
    base: Annotated[str | None, typer.Option(help="A model for the first stage, in place of the profile's.")] = None,
    run: Annotated[
        str | None, typer.Option(help="The run's name; else the newest, or PROFILE-train with --base or --set.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of all draws; else the profile's.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the stage, or section.key=value; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last good checkpoint, if there is one.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Train nothing: count rows whole, cut or left out.")] = False,
) -> None:
    """Train a stage outside a notebook; what is trained already is taken from the cache."""
    changes = change or []
    settings = changed(load_profile(profile), stage, base, changes)
    seed = settings.seed if seed is None else seed
    if check:
        table = Table("rows", "", title=f"stage {stage}")
        for what, count in check_rows(stage, settings, seed).rows():
            table.add_row(what, f"{count:,}")
        Console().print(table)
        return
    quieten()
    from anita_utils.run import Run
    from anita_utils.training import open_stage, train_stage

    own = f"{settings.name}-train" if base or changes else "latest"  # so that the course's own run keeps its models
    first = not (runs_dir() / "latest").exists()  # only lessons move it, but there may be none yet
    wanted = open_stage(Run.open(run or own, settings, seed, newest=first), stage)
    kept, name = wanted.done, wanted.run.folder.name
    train_stage(wanted, resume)
    wanted.merged  # noqa: B018 (merged again, where it was deleted)
    print(summary(wanted, kept))
    print(f"run '{name}': `anita chat {stage} --run {name}` asks it")


def check_rows(name: str, settings: Profile, seed: int) -> RowCounts:
    """What would become of a stage's rows: read and encoded as for training, but nothing is trained or written."""
    quieten()
    from anita_utils.run import Run
    from anita_utils.stages import find_stage
    from anita_utils.training import tokenizer_of, training_rows

    stage = find_stage(Run(Path("unwritten"), settings, seed), name)
    stage.before = None  # which need not be trained: the base's tokenizer is that of all stages
    documents = stage.documents()  # before a model is looked for: a wrong file is reported at once
    training_rows(stage, tokenizer_of(stage), documents)
    return stage.counts


def changed(profile: Profile, stage: str, base: str | None, changes: list[str]) -> Profile:
    """The profile with another base model and other values, checked as a profile's file is.

    changes: "key=value", the value as in YAML; a key without a section is one of the stage's.

    AnitaError, one line, for a change that cannot be, or where the profile has no such stage.
    """
    values = {} if base is None else {"model.base": base, "model.revision": None}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise AnitaError(f"--set {change}: write key=value, for instance --set learning_rate=1e-4")
        key = key.strip()
        whole = key if key.partition(".")[0] in Profile.model_fields else f"stages.{stage}.{key}"
        try:
            values[whole] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
            raise AnitaError(f"--set {change}: the value is no YAML: put it in quotes") from None
    settings = override(profile, values, f"profile {profile.name} with --set")
    if stage not in settings.order:
        raise AnitaError(f"profile '{settings.name}' has no stage '{stage}': its order is {', '.join(settings.order)}")
    return settings


def summary(stage: Stage, kept: bool) -> str:
    """What was trained, in two lines."""
    from anita_utils.data import RowCounts
    from anita_utils.memory import GIB

    info, where = stage.info, shown(stage.run.model_dir(stage.name))
    cut = f", {info['cut_tokens']:,} tokens cut off" if info.get("cut_tokens") else ""
    return (
        f"{stage.name}: {'in the cache, unchanged' if kept else 'trained'}: {info['steps']:,} updates, "
        f"{info['tokens']:,} tokens{cut}, {info['tokens_per_second']:,.0f} tokens/s, {clock(info['seconds'])}, "
        f"peak memory {info['peak_memory_bytes'] / GIB:.2f} GiB: {where}\n"
        f"rows: {RowCounts(**info['rows'])}"
    )
