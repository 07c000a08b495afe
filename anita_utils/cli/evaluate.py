"""How good is a model? `anita eval`: measures it and shows its figures, or says how a suite would be asked.

anita eval dpo --suite quick --limit 20
anita eval --suite paper --dry-run
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
from anita_utils.profile import load_profile
from anita_utils.run import chosen_run
from anita_utils.stats import LEVEL, Measurement, paired_tests, rows


def dry_run(suite: str, as_json: bool) -> int:
    """Prints how each benchmark of the suite is asked, by the installed lm-eval; returns 1 where that does not fit."""
    found = resolve(suite)
    limit = SUITES[suite].limit
    if as_json:
        print(json.dumps({"suite": suite, "limit": limit, "benchmarks": found}, indent=2))
    else:
        table = Table("benchmark", "task", "tasks", "shots", "score", "filter", "version", "chat", "kind",
                      title=f"suite {suite}: " + (f"{limit} items a task" if limit else "all items"))  # fmt: skip
        for row in found:
            name, chat = words(row["metric"], row["language"], row["split"]), "yes" if row["chat"] else "no"
            asked = [str(row[key]) for key in ("task", "tasks", "shots", "score", "filter", "version")]
            table.add_row(name, *asked, chat, row["problem"] or row["kind"], style="red" if row["problem"] else None)
        _print(table, suite)
    return 1 if any(row["problem"] for row in found) else 0


def evaluate_models(
    model: str | None,
    against: str | None,
    suite: str | None,
    limit: int | None,
    only: str | None,
    profile: str | None,
    run_name: str | None,
    dry: bool,
    as_json: bool,
) -> int:
    """What `anita eval` does: measures a model, or takes it from the cache, and `against` in the same way; prints the
    figures and their paired tests. With a suite, the profile's limit no longer holds. Returns the exit code.

    AnitaError for a model, suite or benchmark that cannot be had, or a profile that this machine cannot compute.
    """
    staged = model is None or {model, against} & set(hub.STAGES)
    run = chosen_run(run_name) if staged or run_name else None
    model = model or (run.last_stage() if run else "base")
    settings = run.profile if run and not profile and model in hub.STAGES else load_profile(profile or "cpu")
    chosen = settings.evaluation
    if suite:
        suite_named(suite)
        chosen.suite, chosen.limit = suite, None
    chosen.limit = limit or chosen.limit
    if dry:
        return dry_run(chosen.suite, as_json)
    settings.check(detect_machine())
    pinned = {settings.model.base: settings.model.revision}
    paths = [hub.resolve_model(name, pinned.get(name), run) for name in ([model, against] if against else [model])]

    from anita_utils.evaluation.measuring import evaluate  # slow to import: after a wrong name was reported

    after, *others = [evaluate(path, settings, only != "answers", only != "benchmarks") for path in paths]
    tests = paired_tests(others[0], after) if others else []
    if as_json:
        outcome = {"model": model, "profile": settings.name, "evaluation": chosen.model_dump()}
        outcome |= {"figures": rows(after, model)}
        outcome |= {"against": against, "figures_against": rows(others[0], against), "tests": tests} if others else {}
        print(json.dumps(outcome, indent=2, ensure_ascii=False))
        return 0
    _print(figures_table(after, chosen.suite, model), chosen.suite)
    if others:
        Console().print(tests_table(tests, f"{model} minus {against}, paired"))
    return 0


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
        name = words(row["metric"], row["language"], row["split"])
        found = text(row["metric"], row["difference"], signed=True)
        table.add_row(name, found, f"{row['p']:.4f}", f"{row['p_holm']:.4f}{mark}", f"{row['n']:,}")
    return table
