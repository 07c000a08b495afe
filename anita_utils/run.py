"""What does a run leave behind? run.json, metrics.jsonl, figures and models, all in one folder.

>>> run = Run.open("latest", "cpu")
>>> run.record("05_evaluation", [{"stage": "dpo", "metric": "perplexity", "value": 2.9, "language": "it", "n": 500}])
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anita_utils import AnitaError, checkout, shown
from anita_utils.machine import detect_machine
from anita_utils.paths import locked, read_lines, read_text, replacing, runs_dir, write_text
from anita_utils.profile import Profile, load_profile, parse_profile

if TYPE_CHECKING:
    import pandas

RUN_NAME = re.compile(r"[\w][\w.-]*")
FORMAT = 2  # of run.json: 2 since its profile has the libraries' own names
RESERVED = {"latest", "cache"}  # other things in the folder of runs


class Metric(BaseModel):
    """One measured figure: a line of metrics.jsonl."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    notebook: str = Field("", description="The lesson that measured it; filled in by `Run.record`.")
    arm: str = Field("recipe", description="'recipe', or the name of an ablation.")
    stage: str = Field(description="The model measured: base, sft, italian, dpo; or 'difference', last minus base.")
    metric: str = Field(description="What was measured, for instance 'benchmark/arc' or 'perplexity'.")
    value: float = Field(description="The figure; shares are 0 to 1.")
    ci_low: float | None = Field(None, description="Lower end of the 95 % interval.")
    ci_high: float | None = Field(None, description="Upper end of the 95 % interval.")
    n: int | None = Field(None, description="The number of items behind it.")
    language: Literal["en", "it", "all"] = Field("all", description="The language of the items.")
    split: str | None = Field(None, description="Which part of the data, for instance 'never_in_italian'.")
    seed: int | None = Field(None, description="The seed; where there is none, `Run.record` fills in the run's.")
    profile: str | None = Field(None, description="The profile's name; filled in by `Run.record`.")


@dataclass(eq=False)
class Run:
    """A folder under `runs/`. Made by `Run.open`, read by `Run.load`."""

    folder: Path
    profile: Profile
    seed: int

    @classmethod
    def open(
        cls, name: str = "latest", profile: str | Path | Profile = "cpu", seed: int = 42, newest: bool = True
    ) -> Run:
        """Opens the run called `name`, making it if need be.

        name: "latest" is the newest run if it has this profile, else a run called after the profile.
        newest: whether `runs/latest` is to point at it; at a rehearsal it never does.

        AnitaError when a run of that name has another profile or the machine cannot do what the profile asks.
        """
        profile = profile if isinstance(profile, Profile) else load_profile(profile)
        machine = detect_machine()
        profile.check(machine)
        if name == "latest":
            latest = cls.latest()
            name = latest.folder.name if latest and latest.profile.name == profile.name else profile.name
        if name in RESERVED or not RUN_NAME.fullmatch(name):
            raise AnitaError(f"'{name}' cannot name a run: use letters, digits, '.', '_' and '-'")

        run = cls(runs_dir() / name, profile, seed)
        with run._changing() as info:
            before = info.get("profile", {}).get("name", profile.name)
            if before != profile.name:
                made = f"run '{name}' was made with profile '{before}', not '{profile.name}'"
                raise AnitaError(f"{made}: choose another name with --run")
            if (info.get("profile"), info.get("seed")) != (profile.model_dump(), seed):  # made on other terms
                for lesson in info.get("lessons", {}).values():
                    lesson["status"] = "outdated"
            info |= {
                "format": FORMAT,
                "profile": profile.model_dump(),
                "seed": seed,
                "commit": git_commit(),
                "machine": machine.model_dump(mode="json", exclude={"versions"}),
                "versions": machine.versions,
                "started": info.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
                "lessons": info.get("lessons", {}),
            }
        if newest and not profile.rehearsal_of:  # whose figures mean nothing
            _point_latest(run.folder)
        return run

    @classmethod
    def load(cls, name: str = "latest") -> Run:
        """The run called `name`, to be read: nothing is made or changed. AnitaError when there is none."""
        file = (runs_dir() / name).resolve() / "run.json"
        if not file.is_file():
            raise AnitaError(f"no run '{name}' in {shown(runs_dir())}: run `anita course` first, or choose another")
        info = _read_info(file)
        return cls(file.parent, parse_profile(info["profile"], shown(file)), info["seed"])

    @classmethod
    def latest(cls) -> Run | None:
        """The newest run, to be read; None before there is one."""
        return cls.load() if (runs_dir() / "latest").exists() else None

    @property
    def file(self) -> Path:
        """run.json. An arm of an ablation has none."""
        return self.folder / "run.json"

    def info(self) -> dict[str, Any]:
        """run.json: profile, seed, commit, machine, versions, lessons."""
        return _read_info(self.file)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """run.json, to be changed inside the block; no other process changes it meanwhile."""
        with locked(self.file):
            info = self.info() if self.file.is_file() else {}
            yield info
            write_text(self.file, json.dumps(info, indent=2, ensure_ascii=False) + "\n")

    def record(self, notebook: str, metrics: list[dict]) -> pandas.DataFrame:
        """Writes what a lesson measured into metrics.jsonl, in place of what the same lesson wrote before.

        notebook: the lesson's name, for instance "02_supervised_fine_tuning".
        metrics: the keys of `Metric`; notebook and profile are filled in, and the seed where a row has none.

        Returns the figures as a table. AnitaError for an unknown key, a wrong type, nan or infinity.
        """
        filled = {"notebook": notebook, "profile": self.profile.name}
        rows = []
        for metric in metrics:
            try:
                rows.append(Metric.model_validate({"seed": self.seed} | metric | filled))
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise AnitaError(f"{notebook}: metric {metric}: {key}: {first['msg']}: correct the row") from error
        with locked(self.folder / "metrics.jsonl"):
            kept = [row for row in self._rows() if row.notebook != notebook]
            write_text(self.folder / "metrics.jsonl", "".join(row.model_dump_json() + "\n" for row in kept + rows))
        return _table(rows)[["stage", "metric", "language", "split", "value", "ci_low", "ci_high", "n"]]

    def metrics(self) -> pandas.DataFrame:
        """All figures of the run, a column for each key of `Metric`."""
        return _table(self._rows())

    def _rows(self) -> list[Metric]:
        file = self.folder / "metrics.jsonl"
        rows = []
        for number, line in read_lines(file) if file.is_file() else []:
            try:
                rows.append(Metric.model_validate_json(line))
            except ValidationError as error:
                wrong = f"{shown(file)}, line {number}: not a metric ({error.errors()[0]['msg']})"
                raise AnitaError(f"{wrong}: delete that line and run its lesson again") from error
        return rows

    def show(self, figure, name: str, alt: str, caption: str) -> None:
        """Shows a lesson's matplotlib `figure` once, and saves it as figures/<name>.png, its texts beside it as JSON.

        name: "06_ablation-arms". alt: what is drawn, for those who cannot see it; caption: how to read it.
        """
        import matplotlib.pyplot as plt
        from IPython.display import display

        file = self.folder / "figures" / f"{name}.png"
        with replacing(file) as temporary:
            figure.savefig(temporary, dpi=150, bbox_inches="tight")
        write_text(file.with_suffix(".json"), json.dumps({"alt": alt, "caption": caption}, ensure_ascii=False) + "\n")
        display(figure, metadata={"image/png": {"alt": alt}})
        plt.close(figure)  # or the notebook would show it once more at the end of the cell

    def model_dir(self, stage: str) -> Path:
        """The folder of a stage's model: models/<stage>, with adapter/ and merged/ in it."""
        return self.folder / "models" / stage

    def stage_model(self, stage: str) -> str | None:
        """The `hub.model_key` of a trained stage's model, whose merged weights may be deleted; None without one."""
        file = self.model_dir(stage) / "stage.json"
        return json.loads(file.read_text("utf-8")).get("model") if file.is_file() else None

    @property
    def base_key(self) -> str | None:
        """The base's `hub.model_key`, so that its figures are found where the base is not; None until it is noted."""
        return self.info().get("base_key") if self.file.is_file() else None

    def note_base(self, key: str) -> None:
        if self.file.is_file() and self.base_key != key:
            with self._changing() as info:
                info["base_key"] = key

    def last_stage(self) -> str:
        """The last stage, in the profile's order, that is trained; "base" if none is."""
        last = "base"
        for stage in self.profile.order:
            link = self.model_dir(stage)
            if link.is_symlink() and not link.exists():
                lost = f"run '{self.folder.name}': its model '{stage}' is no longer in the cache"
                raise AnitaError(f"{lost}: run its lesson again")
            last = stage if (link / "stage.json").is_file() or (link / "merged").is_dir() else last
        return last

    def lesson_done(self, notebook: str, seconds: float, status: str) -> None:
        """Notes in run.json how a lesson went; `status` is "done" or "failed" (later maybe "outdated")."""
        lesson = {"seconds": round(seconds, 1), "status": status}
        with self._changing() as info:
            info["lessons"] = dict(sorted((info["lessons"] | {notebook: lesson}).items()))


def _table(rows: list[Metric]) -> pandas.DataFrame:
    import pandas  # here: it takes long to import, and most who open a run need no table

    return pandas.DataFrame([row.model_dump() for row in rows], columns=list(Metric.model_fields))


def _read_info(file: Path) -> dict[str, Any]:
    """run.json, checked for its version and the keys that reading a run needs."""
    try:
        info = json.loads(read_text(file))
        if not {"profile", "seed", "lessons"} <= info.keys():
            raise ValueError("keys are missing")
    except (ValueError, AttributeError) as error:
        raise AnitaError(f"{shown(file)} is damaged ({error}): delete the file, or the run's folder") from error
    made = info.get("format", 1)
    if made != FORMAT:
        age = "an older" if made < FORMAT else "a newer"
        remedy = f"choose another name with --run, or delete {shown(file.parent)}"
        raise AnitaError(f"run '{file.parent.name}' was made by {age} version of the course, with other keys: {remedy}")
    return info


def _point_latest(folder: Path) -> None:
    """Makes `runs/latest` a link to `folder`, in one step, so that there is always a whole one."""
    temporary = folder.with_name(f".latest.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name, target_is_directory=True)
    temporary.replace(folder.with_name("latest"))


def git_commit() -> str | None:
    """The checkout's commit, with "+" when its files were changed since; None outside a repository."""
    root = checkout()
    if root is None:
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def where_and_when() -> dict[str, Any]:
    """What a benchmark's figures hold for, to be kept with them: machine and libraries, commit, day."""
    machine = detect_machine().model_dump(mode="json")
    return {"machine": machine, "commit": git_commit(), "when": date.today().isoformat()}


def chosen_run(name: str | None = None) -> Run | None:
    """The run that a command works on, the one named or the latest; says on standard error which. None without one."""
    run = Run.load(name) if name else Run.latest()
    return run and say_which(run)


def say_which(run: Run) -> Run:
    """Says on standard error which run is used, since `latest` may be another than was meant."""
    print(f"run '{run.folder.name}' (profile {run.profile.name}, seed {run.seed})", file=sys.stderr)
    return run
