"""What the recipe does to a true pretrained Llama of 135M weights, offline, on this machine's cores.

    python benchmarks/real_model.py                     # `make real`: about two hours on two quiet cores
    python benchmarks/real_model.py --profile my.yaml --run mine --out /tmp/trial

Plans each stage from a few updates, runs lessons 00 to 05 as a student would, then measures base and stages in full:
the course's own items and Quaderno's, and bits a byte of software manuals out of Debian's packages, which are fetched
for this and never kept. Also the Italian stage alone. Killed, it goes on where it was: what is there is taken.
Writes real_model.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from anita_utils import AnitaError, training
from anita_utils.cache import cached
from anita_utils.cli.plan import foreseen, measured_apart
from anita_utils.corpus.reading import Unread, paragraphs_of
from anita_utils.course.set_up import quieten
from anita_utils.evaluation import measuring, metrics
from anita_utils.evaluation.judges import language_of
from anita_utils.hub import model_key, resolve_model
from anita_utils.memory import GIB
from anita_utils.model import load_for_evaluation, load_tokenizer
from anita_utils.paths import runs_dir, write_text
from anita_utils.profile import Profile, load_profile, override
from anita_utils.run import Run, where_and_when
from anita_utils.stages import find_stage
from anita_utils.stats import Measurement, compare, rows

LESSONS = ("00", "01", "02", "03", "04", "05")
# The same manuals in both languages, by Debian's package
MANUALS = {
    "it": ("debian-faq-it", "debian-reference-it", "developers-reference-it", "maint-guide-it", "debian-edu-doc-it",
           "aptitude-doc-it"),
    "en": ("debian-faq", "debian-reference-en", "developers-reference", "maint-guide", "debian-edu-doc-en",
           "aptitude-doc-en"),
}  # fmt: skip
WORDS = 100  # of a text; short ones are joined
EACH = 12  # texts of a manual
PROSE = 0.9  # the share of letters and spaces: what has fewer is a listing


# ---------------------------------------------------------------- manuals


def manuals() -> list[dict]:
    """Texts of Debian's manuals, `EACH` of a manual: {"text", "language", "cluster"}; empty where apt is not there."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        print("no apt-get here: bits a byte of manuals are left out", file=sys.stderr)
        return []
    items = []
    for language, packages in MANUALS.items():
        for package in packages:
            with tempfile.TemporaryDirectory() as folder:
                texts = texts_of(unpacked(package, Path(folder)), language)
            few = random.Random(1).sample(texts, min(EACH, len(texts)))
            items += [{"text": text, "language": language, "cluster": package} for text in few]
    return items


def unpacked(package: str, folder: Path) -> Path:
    done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
    files = list(folder.glob("*.deb"))
    if not files:
        raise AnitaError(f"{package} cannot be fetched ({done.stderr.strip()[:200]}): run `apt-get update`, then again")
    subprocess.run(["dpkg-deb", "-x", str(files[0]), str(folder / "package")], check=True, capture_output=True)
    return folder / "package"


def texts_of(folder: Path, language: str) -> list[str]:
    """Running text of that language from the HTML in a package, in pieces of about `WORDS`; nothing twice."""
    texts, held, seen = [], [], set()
    for file in sorted(folder.rglob("*.html")):
        try:
            paragraphs, _ = paragraphs_of(file)
        except Unread:
            continue
        held.clear()  # no text runs from one page into the next
        for paragraph in paragraphs:
            prose = sum(c.isalpha() or c.isspace() for c in paragraph) / len(paragraph)
            if paragraph in seen or prose < PROSE or language_of(paragraph) != language:
                continue
            seen.add(paragraph)
            held.append(paragraph)
            if sum(len(one.split()) for one in held) >= WORDS:
                texts.append("\n".join(held))
                held.clear()
    return texts


def of_manuals(path: str, profile: Profile, items: list[dict]) -> list[Measurement]:
    """Bits a byte of the manuals, cached."""
    entry = cached("evaluations/manuals", model_key(path), items, profile.model.dtype)

    def measure() -> list[dict]:
        model, tokenizer = load_for_evaluation(path, profile), load_tokenizer(path)
        found = measuring.perplexity(model, tokenizer, items, profile.evaluation.batch_size)
        return [vars(m) | {"split": "manuals"} for m in found if m.metric == "bits_per_byte"]

    return [Measurement(**row) for row in entry.value(measure)] if items else []


# ---------------------------------------------------------------- steps


def planned(profile: Profile) -> dict[str, dict]:
    """What `anita plan --here` foresees of each stage."""
    found = {}
    for stage in profile.order:
        found[stage] = measured_apart(profile, stage)
        print(foreseen(stage, found[stage]), flush=True)
    return found


def lessons(profile: str, run: str) -> dict:
    """Lessons 00 to 05 as `anita course` runs them: seconds in all, and the most memory that a process took."""
    only = [part for number in LESSONS for part in ("--only", number)]
    command = [sys.executable, "-m", "anita_utils.cli.main", "course", "--profile", profile, "--run", run, "--resume"]
    began = time.monotonic()
    subprocess.run([*command, "--timeout", "3600", *only], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": round(time.monotonic() - began, 1), "peak_memory_bytes": peak}


def in_full(profile: Profile) -> Profile:
    """The profile, measuring all items there are."""
    return override(profile, {"evaluation.limit": None, "evaluation.probes": None}, "the full measure")


def alone(profile: Profile, stage: str, run: str) -> str:
    """The merged model of one stage, trained on the base."""
    only = override(profile, {"order": [stage]}, f"{stage} alone")
    only.name = f"{profile.name}-{stage}-alone"
    lone = Run.open(f"{run}-{stage}-alone", only, profile.seed, newest=False)
    return training.train_stage(find_stage(lone, stage)).merged


def measure(profile: Profile, run: Run) -> dict[str, list[Measurement]]:
    """Base, stages, and the Italian stage alone, on everything."""
    full, items = in_full(profile), manuals()
    paths = {"base": resolve_model(profile.model.base, profile.model.revision)}
    paths |= {stage: find_stage(run, stage).merged for stage in profile.order}
    if "italian" in profile.order[1:]:
        paths["italian alone"] = alone(profile, "italian", run.folder.name)
    found = {}
    for stage, path in paths.items():
        began = time.monotonic()
        found[stage] = [*measuring.evaluate(path, full), *of_manuals(path, profile, items)]
        print(f"{stage}: measured in {time.monotonic() - began:.0f} s", flush=True)
    return found


# ---------------------------------------------------------------- results


def steps(profile: Profile, measured: dict[str, list[Measurement]]) -> list[dict]:
    """Paired differences: of the whole recipe, of each stage's own step, and of the Italian stage alone."""
    stages = ["base", *profile.order]
    pairs = [*zip(stages, stages[1:], strict=False), ("base", stages[-1])]
    pairs += [("base", "italian alone")] if "italian alone" in measured else []
    return [
        {"from": one, "to": other} | row
        for one, other in dict.fromkeys(pairs)
        for row in compare(measured[one], measured[other])
    ]


def markdown(outcome: dict) -> str:
    """The tables that people read."""
    table = defaultdict(dict)
    for row in outcome["figures"]:
        low, high = (metrics.text(row["metric"], row[end]) for end in ("ci_low", "ci_high"))
        name = metrics.words(row["metric"], row["language"], row["split"])
        table[name][row["stage"]] = f"{metrics.text(row['metric'], row['value'])} [{low}, {high}]"
    stages = list(dict.fromkeys(row["stage"] for row in outcome["figures"]))
    lines = ["| | " + " | ".join(stages) + " |", "|---|" + "---:|" * len(stages)]
    lines += [f"| {name} | " + " | ".join(cells.get(one, "") for one in stages) + " |" for name, cells in table.items()]
    times = ["| stage | planned | took | memory planned | memory |", "|---|---:|---:|---:|---:|"]
    for stage, trained in outcome["stages"].items():
        plan = outcome["planned"][stage]
        times.append(
            f"| {stage} | {plan['seconds'] / 60:.1f} min | {trained['seconds'] / 60:.1f} min | "
            f"{plan['peak_memory_bytes'] / GIB:.2f} GiB | {trained['peak_memory_bytes'] / GIB:.2f} GiB |"
        )
    machine, course, where = outcome["where"]["machine"], outcome["lessons"], outcome["where"]
    on = f"{machine['cpu']}, {machine['cores']} cores, commit {where['commit']}, {where['when']}"
    took = f"{course['seconds'] / 60:.0f} minutes, {course['peak_memory_bytes'] / GIB:.2f} GiB at most"
    return "\n".join([
        f"# The recipe on {outcome['base']}", "",
        f"Profile `{outcome['profile']}`, seed {outcome['seed']}. {on}.", "",
        f"Lessons 00 to 05: {took}.", "",
        *times, "", "Shares in per cent, with 95 % intervals; every item there is.", "", *lines, "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--run", default="real")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(arguments)
    quieten()
    profile, kept = load_profile(given.profile), runs_dir() / given.run / "real_model.json"
    outcome = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    for part, make in (("planned", lambda: planned(profile)), ("lessons", lambda: lessons(given.profile, given.run))):
        if part not in outcome:
            outcome[part] = make()
            write_text(kept, json.dumps(outcome))
    run = Run.load(given.run)
    measured = measure(profile, run)
    of_stage = ("steps", "tokens", "seconds", "tokens_per_second", "peak_memory_bytes", "rows", "cut_tokens")
    outcome |= {
        "base": profile.model.base,
        "profile": profile.name,
        "seed": run.seed,
        "where": where_and_when(),
        "stages": {name: {key: find_stage(run, name).info[key] for key in of_stage} for name in profile.order},
        "figures": [row for stage, found in measured.items() for row in rows(found, stage)],
        "steps": steps(profile, measured),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "real_model.json", json.dumps(outcome, indent=1) + "\n")
    write_text(given.out / "real_model.md", markdown(outcome))
    print(markdown(outcome))


if __name__ == "__main__":
    main()
