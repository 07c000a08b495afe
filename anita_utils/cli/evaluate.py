"""What `anita eval` does: measures a model and shows its figures, or says how a suite would be asked.

>>> [measured] = measure(["dpo"], profile_for("dpo", None, "quick", 20))     # `anita eval dpo --suite quick --limit 20`
>>> Console().print(figures_table(measured, "quick", "dpo"))
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from anita_utils import hub
from anita_utils.evaluation.benchmarks import SUITES, resolve, suite_named
from anita_utils.evaluation.metrics import PUBLISHED, VERSIONS, interval_text, published, text, words
from anita_utils.machine import detect_machine
from anita_utils.profile import Profile, load_profile
from anita_utils.run import Run
from anita_utils.stats import LEVEL, Measurement, paired_tests, rows


def dry_run(suite: str, as_json: bool = False) -> int:
    """Prints how each benchmark of the suite is asked, by the installed lm-eval; returns 1 where that does not fit."""
    found = resolve(suite)
    limit = SUITES[suite].limit
    if as_json:
        print(json.dumps({"suite": suite, "limit": limit, "benchmarks": found}, indent=2))
    else:
        table = Table("benchmark", "task", "tasks", "shots", "score", "filter", "version", "chat", "kind",
                      title=f"suite {suite}: " + (f"{limit} items a task" if limit else "all items"))  # fmt: skip
        for row in found:
            cells = [words(row["metric"], row["language"], row["split"])]
            cells += [row[key] for key in ("task", "tasks", "shots", "score", "filter", "version")]
            cells += ["yes" if row["chat"] else "no", row["problem"] or row["kind"]]
            table.add_row(*map(str, cells), style="red" if row["problem"] else None)
        _print(table, suite)
    return 1 if any(row["problem"] for row in found) else 0


def profile_for(
    model: str, profile: str | None, suite: str | None, limit: int | None, run: Run | None = None
) -> Profile:
    """The profile to measure a model by: the one named, that of the run for a stage, else cpu.

    suite and limit take the place of the profile's own; with a suite, the profile's limit no longer holds.
    AnitaError for one that there is not, or that this machine cannot compute.
    """
    of_run = run is not None and profile is None and model in hub.STAGES
    settings = run.profile if of_run else load_profile(profile or "cpu")
    if suite:
        suite_named(suite)
        settings.evaluation.suite, settings.evaluation.limit = suite, None
    settings.evaluation.limit = limit or settings.evaluation.limit
    return settings


def measure(
    models: list[str], settings: Profile, only: str | None = None, run: Run | None = None
) -> list[list[Measurement]]:
    """Every measure of each model (a stage of the run, a folder, a name on the Hub), cached or new.

    only: "benchmarks", or "answers" for all others.

    AnitaError for a model that is not there or has no chat template, or a benchmark that cannot be had.
    """
    settings.check(detect_machine())
    pinned = {settings.model.base: settings.model.revision}
    paths = [hub.resolve_model(model, pinned.get(model), run) for model in models]

    from anita_utils.evaluation.measuring import evaluate  # slow to import: after a wrong name was reported

    return [evaluate(path, settings, only != "answers", only != "benchmarks") for path in paths]


def evaluate_models(
    model: str,
    against: str | None,
    settings: Profile,
    as_json: bool,
    only: str | None = None,
    run: Run | None = None,
) -> None:
    """Measures a model, and `against`, another one, in the same way; prints the figures, and their paired tests."""
    suite = settings.evaluation.suite
    after, *others = measure([model, against] if against else [model], settings, only, run)
    tests = paired_tests(others[0], after) if others else []
    if as_json:
        outcome = {"model": model, "profile": settings.name, "evaluation": settings.evaluation.model_dump()}
        outcome |= {"figures": rows(after, model)}
        outcome |= {"against": against, "figures_against": rows(others[0], against), "tests": tests} if others else {}
        print(json.dumps(outcome, indent=2, ensure_ascii=False))
        return
    _print(figures_table(after, suite, model), suite)
    if others:
        Console().print(tests_table(tests, f"{model} minus {against}, paired"))


def _print(table: Table, suite: str) -> None:
    console = Console()
    console.print(table)
    if any(benchmark.split for benchmark in SUITES[suite].benchmarks):
        console.print(VERSIONS)


def figures_table(measured: list[Measurement], suite: str, model: str) -> Table:
    """A row a figure, with its 95 % interval and n; beside the paper's benchmarks what was published of them."""
    known = {} if SUITES[suite].local else published()
    table = Table("", "value", "95 % interval", "n", *(PUBLISHED.values() if known else ()),
                  title=f"{model}, suite {suite}, shares in per cent")  # fmt: skip
    for row in rows(measured, model):
        name = (row["metric"], row["language"], row["split"])
        theirs = known.get(name[:2], {})
        beside = [theirs[one].value if one in theirs else "" for one in PUBLISHED] if known else []
        table.add_row(words(*name), text(row["metric"], row["value"]), interval_text(row), f"{row['n']:,}", *beside)
    return table


def tests_table(tests: list[dict[str, Any]], title: str) -> Table:
    """A row a difference, with its p-value, as it is and corrected by Holm; * where the latter is below 0.05."""
    table = Table("", "difference", "p", "Holm's p", "n", title=title)
    for row in tests:
        mark = " *" if row["p_holm"] < LEVEL else ""
        table.add_row(words(row["metric"], row["language"], row["split"]),
                      text(row["metric"], row["difference"], signed=True), f"{row['p']:.4f}",
                      f"{row['p_holm']:.4f}{mark}", f"{row['n']:,}")  # fmt: skip
    return table
