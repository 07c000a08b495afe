"""`anita train`: one stage outside a notebook, by the code that the lessons use.

>>> train("sft", changes=["learning_rate=1e-4", "model.dtype=float32"])
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from anita_utils import AnitaError, clock, shown
from anita_utils.profile import Profile, load_profile, override

if TYPE_CHECKING:
    from anita_utils.data import RowCounts
    from anita_utils.stages import Stage


def train(
    name: str,
    profile: str = "cpu",
    base: str | None = None,
    run: str | None = None,
    seed: int | None = None,
    changes: Iterable[str] = (),
    resume: bool = True,
) -> Stage:
    """Trains a stage, and those before it where they are missing; prints what came of it. Returns the stage.

    name: a stage of the profile's order.
    base: a model for the first stage to start from, in place of the profile's.
    run: the run's name; by default the newest of the profile, or PROFILE-train where `base` or `changes` are given, so
        that the course's own run keeps its models.
    changes: "key=value", the key as in the profile; without a section it is one of the stage's.
    resume: False begins anew where a killed training could go on.

    AnitaError, one line, for whatever the user can mend.
    """
    changes = list(changes)
    settings = chosen(name, profile, base, changes)
    quieten()
    from anita_utils.paths import runs_dir
    from anita_utils.run import Run
    from anita_utils.training import open_stage, train_stage

    own = f"{settings.name}-train" if base or changes else "latest"
    first = not (runs_dir() / "latest").exists()  # only lessons move it, but there may be none yet
    opened = Run.open(run or own, settings, settings.seed if seed is None else seed, newest=first)
    stage = open_stage(opened, name)
    kept = stage.done
    train_stage(stage, resume)
    print(summary(stage, kept))
    print(f"run '{opened.folder.name}': `anita chat {name} --run {opened.folder.name}` asks it")
    return stage


def check_rows(
    name: str, profile: str = "cpu", base: str | None = None, seed: int | None = None, changes: Iterable[str] = ()
) -> RowCounts:
    """What would become of a stage's rows: read and encoded as for training, but nothing is trained or written.

    The arguments are those of `train`. AnitaError where a row is damaged, or none can be trained on.
    """
    settings = chosen(name, profile, base, list(changes))
    quieten()
    from anita_utils.hub import resolve_model
    from anita_utils.model import checked_tokenizer
    from anita_utils.run import Run
    from anita_utils.stages import find_stage
    from anita_utils.training import training_rows

    stage = find_stage(Run(Path("unwritten"), settings, settings.seed if seed is None else seed), name)
    documents = stage.documents()  # before a model is looked for: a wrong file is said at once
    base = resolve_model(settings.model.base, settings.model.revision)
    tokenizer = checked_tokenizer(base, settings.model.system_in_user, needs_template=False)
    training_rows(stage, tokenizer, documents)
    return stage.counts


def chosen(name: str, profile: str, base: str | None, changes: list[str]) -> Profile:
    """The profile as the options change it. AnitaError where it has no such stage."""
    settings = changed(load_profile(profile), name, base, changes)
    if name not in settings.order:
        raise AnitaError(f"profile '{settings.name}' has no stage '{name}': its order is {', '.join(settings.order)}")
    return settings


def changed(profile: Profile, stage: str, base: str | None, changes: Iterable[str]) -> Profile:
    """The profile with another base model and other values, checked as a profile's file is."""
    settings: dict[str, Any] = {} if base is None else {"model.base": base, "model.revision": None}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise AnitaError(f"--set {change}: write key=value, for instance --set learning_rate=1e-4")
        key = key.strip()
        whole = key if key.partition(".")[0] in Profile.model_fields else f"stages.{stage}.{key}"
        try:
            settings[whole] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that there is not
            raise AnitaError(f"--set {change}: the value is no YAML: put it in quotes") from None
    return override(profile, settings, f"profile {profile.name} with --set")


def quieten() -> None:
    """Stills the libraries' remarks and progress bars: one line of progress is enough."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def summary(stage: Stage, kept: bool) -> str:
    """What was trained, in a line."""
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
