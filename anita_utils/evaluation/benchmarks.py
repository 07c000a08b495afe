"""Which benchmarks are there, and how does lm-eval ask them? The course's own, Piccola Italia, and the leaderboards'.

>>> measured = run_benchmarks(model, tokenizer, profile)     # profile.evaluation.suite says which
>>> measured[0].name
('benchmark/arc', 'en', None)
>>> resolve("paper")[0]["problem"]      # what the installed lm-eval makes of it, without any data
''

Suites have the same families, so a figure has the same name whichever it is from; the run's profile says which.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anita_utils import AnitaError, shown
from anita_utils.paths import data_dir
from anita_utils.profile import Profile
from anita_utils.stats import Measurement

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


FAMILIES = ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k")
# The leaderboard's choice for each: normalised by length for ARC and HellaSwag, the true share for TruthfulQA.
SCORES = {"arc": "acc_norm", "hellaswag": "acc_norm", "mmlu": "acc", "truthfulqa": "acc", "winogrande": "acc",
          "gsm8k": "exact_match"}  # fmt: skip


class Benchmark(NamedTuple):
    """A benchmark: how it is called here and by lm-eval, and how it is asked and scored."""

    family: str
    language: str
    task: str  # a task of lm-eval, or a group of tasks
    shots: int  # how many solved examples are shown
    score: str  # lm-eval's name of what counts, item by item
    version: str  # of the task: another one is another benchmark
    filter: str = "none"  # how an answer is read off what the model wrote; nothing is to be read off a choice
    chat: bool = False  # whether the question is put as a user's turn, or as plain text
    split: str | None = None  # set where the figure must not be averaged with the others

    @property
    def metric(self) -> str:
        return f"benchmark/{self.family}" if self.family in FAMILIES else f"italian/{self.family}"


class Suite(NamedTuple):
    benchmarks: tuple[Benchmark, ...]
    local: bool = False  # whether tasks and items are shipped in data/benchmarks
    limit: int | None = None  # items a task; None takes all


FILTER = {"gsm8k": "number"}
PICCOLA = tuple(
    Benchmark(family, code, f"piccola_{family}_{code}", 0, SCORES[family], "1.0", FILTER.get(family, "none"), chat=True)
    for code in ("en", "it")
    for family in FAMILIES
)
# Plain text: when the leaderboards measured, lm-eval knew no chat templates. The published Italian ARC is of the first
# version, which had an empty fifth choice: ours is shown beside it, never subtracted from it, and in no mean.
AUTHORS_ITALIAN = (
    Benchmark("arc", "it", "arc_it", 0, "acc_norm", "2.0", split="version 2.0"),
    Benchmark("hellaswag", "it", "hellaswag_it", 0, "acc_norm", "1.0"),
    Benchmark("mmlu", "it", "m_mmlu_it", 5, "acc", "0.0"),
)
SUITES = {
    "quick": Suite(PICCOLA, local=True, limit=50),
    "piccola": Suite(PICCOLA, local=True),
    # English: the Open LLM Leaderboard's first version, with its shots. Italian: as the authors ran them.
    "paper": Suite(
        (
            Benchmark("arc", "en", "arc_challenge", 25, "acc_norm", "1.0"),
            Benchmark("hellaswag", "en", "hellaswag", 10, "acc_norm", "1.0"),
            Benchmark("mmlu", "en", "mmlu", 5, "acc", "1.0"),
            Benchmark("truthfulqa", "en", "truthfulqa_mc2", 0, "acc", "3.0"),  # its prompt holds six questions
            Benchmark("winogrande", "en", "winogrande", 5, "acc", "1.0"),
            Benchmark("gsm8k", "en", "gsm8k", 5, "exact_match", "3.0", "strict-match"),
            *AUTHORS_ITALIAN,
        )
    ),
    # What else there is in Italian; the last two are written answers. Of Evalita-LLM, where several prompts ask the
    # same items, those tasks whose score is a mean over items: others have an F1 over the whole corpus, no intervals.
    "italian": Suite(
        (
            *AUTHORS_ITALIAN,
            Benchmark("truthfulqa", "it", "truthfulqa_it_mc2", 0, "acc", "2.0"),
            Benchmark("global_mmlu", "it", "global_mmlu_it", 0, "acc", "0.0"),
            Benchmark("belebele", "it", "belebele_ita_Latn", 0, "acc", "0.0"),
            Benchmark("xcopa", "it", "xcopa_it", 0, "acc", "1.0"),
            Benchmark("multiblimp", "it", "multiblimp_ita", 0, "acc", "0"),
            Benchmark("lambada", "it", "lambada_openai_mt_it", 0, "acc", "1.0"),
            Benchmark("entailment", "it", "evalita-mp_te", 0, "acc", "1", chat=True),
            Benchmark("admission", "it", "evalita-mp_at", 0, "acc", "1", chat=True),
            Benchmark("faq", "it", "evalita-mp_faq", 0, "acc", "1", chat=True),
            Benchmark("substitution", "it", "evalita-mp_ls", 0, "f1", "1", chat=True),
            Benchmark("summary", "it", "evalita-mp_sum_fp_small", 0, "rouge1", "1", chat=True),
        )
    ),
}
BINS = 10  # of how sure a model is, each a tenth wide
PROMPT_NUMBER = re.compile(r"_(prompt-|p)\d+$")
# What blind guessing scores on them. ARC's is near enough: a few items have three or five answers. Not known for
# TruthfulQA, where the share of true answers is another for each item.
GUESSING = {"arc": 0.25, "hellaswag": 0.25, "mmlu": 0.25, "winogrande": 0.5, "gsm8k": 0.0}


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps the progress bars and warnings of lm-eval and datasets out of a lesson's output; errors still come out."""
    import logging

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with redirect_stderr(io.StringIO()):
        yield


def suite_named(name: str) -> Suite:
    if name not in SUITES:
        raise AnitaError(f"no suite '{name}': choose {', '.join(SUITES)}")
    return SUITES[name]


def task_manager(suite: Suite) -> TaskManager:
    """lm-eval's index of the tasks that the suite is made of."""
    from lm_eval.tasks import TaskManager

    if suite.local:  # indexing every built-in task takes 6 to 16 seconds
        return TaskManager(include_path=str(data_dir() / "benchmarks"), include_defaults=False)
    return TaskManager()


def load_suite(name: str, items: str = "test") -> list[tuple[Benchmark, list[Task]]]:
    """All tasks of a suite with their data, before hours go into the first. AnitaError as for `load_tasks`."""
    with without_bars():
        manager = task_manager(suite_named(name))
        return [(one, load_tasks(one, manager, items)) for one in SUITES[name].benchmarks]


def run_benchmarks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, profile: Profile, loaded: list | None = None
) -> list[Measurement]:
    """The benchmarks of the profile's suite, the other of acc and acc_norm where there is one, and calibration.

    loaded: what `load_suite` returned, if that was done before. A limit, the profile's or the suite's, is of items a
    task, of which MMLU has one for each of its 57 subjects. AnitaError as for `load_tasks`.
    """
    from anita_utils.evaluation.ranker import Ranker, spare_time

    limits = (profile.evaluation.limit, suite_named(profile.evaluation.suite).limit)
    limit = min(filter(None, limits), default=None)
    measured, confidence = [], []
    loaded = loaded or load_suite(profile.evaluation.suite, profile.evaluation.items)
    spare_time()
    with without_bars():
        lm = Ranker(pretrained=model, tokenizer=tokenizer, batch_size=profile.evaluation.batch_size)
        for (shots, chat), group in groupby(loaded, lambda pair: (pair[0].shots, pair[0].chat)):
            group = list(group)
            asked = [task for _, tasks in group for task in tasks]
            found = _samples(lm, asked, limit, num_fewshot=shots, apply_chat_template=chat)
            for benchmark, tasks in group:
                items = _items(benchmark, {task.task_name: found[task.task_name] for task in tasks})
                measured += _scored(benchmark, items)
                if benchmark.score in ("acc", "acc_norm") and benchmark.family != "truthfulqa":  # one answer is right
                    ranked = [pair for pair in items if "acc" in pair[1] and len(pair[1]["filtered_resps"]) > 1]
                    confidence += [(benchmark.language, *pair) for pair in ranked]
    return [*measured, *_calibration(confidence)]


def load_tasks(benchmark: Benchmark, manager: TaskManager, items: str = "test") -> list[Task]:
    """lm-eval's tasks of a benchmark, with their data; of ours, the items of that set. AnitaError when these cannot be
    had or are empty.
    """
    local = benchmark.task.startswith("piccola_")
    file = data_dir() / "benchmarks" / f"{benchmark.task}.yaml"
    try:
        # By its path where lm-eval has passed over a file that it could not read: this time it says why
        known = benchmark.task in manager.task_index or not local
        tasks = list(manager.load([benchmark.task if known else str(file)])["tasks"].values())
        if local and items != "test":
            for task in tasks:
                task.dataset = task.config.custom_dataset(**task.config.dataset_kwargs, items=items)
        return tasks
    except Exception as error:  # whatever a task file, its Python or a download can do wrong
        reason = " ".join(str(error).split()).replace(str(data_dir()), shown(data_dir())) or type(error).__name__
        items = file.parent / "items" / f"{benchmark.task.removeprefix('piccola_')}.test.jsonl"
        said = f"{shown(file)}: no benchmark can be made of it ({reason}): restore the file (git checkout)"
        if not local:
            said = (
                f"evaluation.suite: the data of {benchmark.task} cannot be had ({reason}): check the network and "
                "HF_HUB_OFFLINE, or set evaluation.suite to piccola"
            )
        elif not (items.is_file() and items.read_text("utf-8").strip()):
            said = f"{shown(items)} holds no items: restore the file (git checkout)"
        raise AnitaError(said) from error


def _samples(lm: LM, tasks: list, limit: int | None, **options) -> dict[str, list[dict]]:
    """lm-eval's record of every item of the tasks, by task, in the order of the items."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)  # the tasks are loaded: by itself it would index all that it brings
    options |= dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0)
    results = lm_eval.simple_evaluate(
        model=lm, tasks=tasks, task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0, **options
    )
    return {task: sorted(found, key=lambda one: one["doc_id"]) for task, found in results["samples"].items()}


def _items(benchmark: Benchmark, found: dict[str, list[dict]]) -> list[tuple[str, dict]]:
    """The samples of a benchmark, each with its cluster: what our items name, else the item, however it is prompted."""
    return [
        (sample["doc"].get("cluster") or f"{PROMPT_NUMBER.sub('', task)} {sample['doc_id']}", sample)
        for task, samples in found.items()
        for sample in samples
        if sample["filter"] == benchmark.filter
    ]


def _scored(benchmark: Benchmark, items: list[tuple[str, dict]]) -> list[Measurement]:
    """The benchmark's figure, and beside it that of the other of acc and acc_norm, where lm-eval gives both."""
    names = {benchmark.metric: benchmark.score}
    other = {"acc_norm": "acc", "acc": "acc_norm"}.get(benchmark.score)
    if benchmark.family in FAMILIES and all(other in sample for _, sample in items):
        kind = "benchmark_acc" if other == "acc" else "benchmark_norm"
        names[f"{kind}/{benchmark.family}"] = other
    made = []
    for metric, score in names.items():
        values, weights = [sample[score] for _, sample in items], None
        if score == "f1":  # Evalita's substitution: precision, whether answered, whether there was an answer to give
            weights = [(answered + given) / 2 for _, answered, given in values]
            values = [precision for precision, _, _ in values]
        scores, clusters = [float(value) for value in values], [cluster for cluster, _ in items]
        made.append(Measurement(metric, benchmark.language, benchmark.split, scores, clusters, weights))
    return made


def _calibration(items: list[tuple[str, str, dict]]) -> list[Measurement]:
    """How much surer the model is than it is right: its probability of the answer it ranks first, minus acc.

    On average, where too sure here and too careful there cancel; and within bins of equal width by how sure it is,
    where they do not: the expected calibration error (Naeini and others, 2015).
    """
    measured = []
    for language in sorted({language for language, _, _ in items}):
        clusters, gaps, bins = [], [], []
        for code, cluster, sample in items:
            if code == language:
                likelihoods = np.array([likelihood for likelihood, _ in sample["filtered_resps"]])
                sure = float(1 / np.exp(likelihoods - likelihoods.max()).sum())
                clusters.append(cluster)
                gaps.append(sure - sample["acc"])
                bins.append(min(int(sure * BINS), BINS - 1))
        measured.append(Measurement("overconfidence", language, None, gaps, clusters))
        measured.append(Measurement("benchmark_calibration_error", language, None, gaps, clusters, bins=bins))
    return measured


def resolve(name: str, manager: TaskManager | None = None) -> list[dict]:
    """The settings of each benchmark of a suite held against the installed lm-eval, without data, model or network.

    With `tasks` (how many it is made of), `kind` (lm-eval's output type) and `problem`: what does not fit, in words.
    """
    suite = suite_named(name)
    with without_bars():
        manager = manager or task_manager(suite)
    rows = []
    for benchmark in suite.benchmarks:
        configs = _configs(manager, benchmark.task)
        kinds = sorted({config.get("output_type", "generate_until") for config in configs})
        problems = dict.fromkeys(problem for config in configs for problem in _problems(benchmark, config))
        problem = "; ".join(problems) if configs else "lm-eval has no such task"
        found = {"metric": benchmark.metric, "tasks": len(configs), "kind": ", ".join(kinds), "problem": problem}
        rows.append(benchmark._asdict() | found)
    return rows


def _configs(manager: TaskManager, name: str) -> list[dict]:
    """The settings of the tasks behind a name: its own, or those of all tasks in a group or with a tag."""
    entry = manager.task_index.get(name)
    if entry is None:
        return []
    if name in manager.all_subtasks:
        return [entry.cfg]
    if name in manager.all_tags:
        return [other.cfg for other in manager.task_index.values() if name in other.tags and other.cfg]
    members = [member if isinstance(member, str) else member.get("task") for member in entry.cfg["task"]]
    return [config for member in members for config in _configs(manager, member)]


def _problems(benchmark: Benchmark, config: dict) -> Iterator[str]:
    """What in a task's settings does not fit the benchmark."""
    scores = [metric["metric"] for metric in config.get("metric_list", [])]
    filters = [each["name"] for each in config.get("filter_list", [{"name": "none"}])]
    version = str(config.get("metadata", {}).get("version"))
    if benchmark.score not in scores:
        yield f"no score {benchmark.score}, only {', '.join(scores)}"
    if benchmark.filter not in filters:
        yield f"no filter {benchmark.filter}, only {', '.join(filters)}"
    if version != benchmark.version:
        yield f"version {version}, not {benchmark.version}"
    if benchmark.shots and config.get("num_fewshot") == 0:  # such a zero lm-eval does not let anyone change
        yield "no examples can be shown"
    if benchmark.shots and not (config.get("fewshot_split") or config.get("training_split")):
        yield "there are no examples to show"
