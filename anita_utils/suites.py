"""Benchmarks through lm-eval: the course's own, Piccola Italia, and those of the leaderboards that the authors name.

>>> measured = run_benchmarks(model, tokenizer, profile)     # profile.evaluation.suite says which
>>> measured[0].name
('benchmark/arc', 'en', None)

Both suites have the same families, so a figure has the same name whichever of them it is from; the run's profile tells.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, NamedTuple

from anita_utils import AnitaError
from anita_utils.hub import data_dir
from anita_utils.intervals import Measurement
from anita_utils.profile import Profile

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FAMILIES = ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k")
# The leaderboard's choice for each: normalised by length for ARC and HellaSwag, the true share for TruthfulQA.
SCORES = {"arc": "acc_norm", "hellaswag": "acc_norm", "mmlu": "acc", "truthfulqa": "acc", "winogrande": "acc",
          "gsm8k": "exact_match"}  # fmt: skip


class Board(NamedTuple):
    """A leaderboard's benchmark: how it is called here and by lm-eval, and how many solved examples are shown."""

    family: str
    language: str
    task: str
    shots: int
    filter: str = "none"  # how an answer is read off what the model wrote; nothing is to be read off a choice


# English: the Open LLM Leaderboard's first version, with its shots. Italian: as the authors ran them.
BOARDS = (
    Board("arc", "en", "arc_challenge", 25),
    Board("hellaswag", "en", "hellaswag", 10),
    Board("mmlu", "en", "mmlu", 5),
    Board("truthfulqa", "en", "truthfulqa_mc2", 0),  # whose prompt holds six questions of its own
    Board("winogrande", "en", "winogrande", 5),
    Board("gsm8k", "en", "gsm8k", 5, "strict-match"),
    Board("arc", "it", "arc_it", 0),  # in its second version; the published figures are of the first
    Board("hellaswag", "it", "hellaswag_it", 0),
    Board("mmlu", "it", "m_mmlu_it", 5),
)

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


def run_benchmarks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, profile: Profile) -> list[Measurement]:
    """The benchmarks of the profile's suite. AnitaError when a leaderboard's data cannot be had."""
    from lm_eval.models.huggingface import HFLM

    suite = {"piccola-italia": piccola_italia, "leaderboards": leaderboards}[profile.evaluation.suite]
    with without_bars():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=profile.evaluation.batch_size)
        return suite(lm, profile.evaluation.limit)


def piccola_italia(lm: LM, limit: int | None) -> list[Measurement]:
    """The six families in both languages, with the chat template, no shots."""
    from lm_eval.tasks import TaskManager

    # include_defaults=False: indexing every built-in task takes 6 to 16 seconds
    manager = TaskManager(include_path=str(data_dir() / "benchmarks"), include_defaults=False)
    tasks = [f"piccola_{family}_{language}" for language in ("en", "it") for family in FAMILIES]
    measured = []
    for task, samples in _samples(lm, tasks, limit, task_manager=manager, apply_chat_template=True).items():
        _, family, language = task.split("_")
        scores = [float(sample[SCORES[family]]) for sample in samples]
        clusters = [sample["doc"]["cluster"] for sample in samples]
        measured.append(Measurement(f"benchmark/{family}", language, None, scores, clusters))
    return measured


def leaderboards(lm: LM, limit: int | None) -> list[Measurement]:
    """The benchmarks of BOARDS as plain text, for when the authors measured, lm-eval knew no chat templates.

    limit: items a task, of which MMLU has one for each of its 57 subjects. Every item is a cluster of its own.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    loaded = [(board, load_board(board, manager)) for board in BOARDS]  # all, before hours are spent on the first
    measured = []
    for board, tasks in loaded:
        scores, clusters = [], []
        for task, samples in _samples(lm, tasks, limit, num_fewshot=board.shots).items():
            samples = [sample for sample in samples if sample["filter"] == board.filter]
            scores += [float(sample[SCORES[board.family]]) for sample in samples]
            clusters += [f"{task} {sample['doc_id']}" for sample in samples]
        measured.append(Measurement(f"benchmark/{board.family}", board.language, None, scores, clusters))
    return measured


def load_board(board: Board, manager: TaskManager) -> list[Task]:
    """lm-eval's tasks of a benchmark, with their data from the Hub. AnitaError when these cannot be had."""
    try:
        return list(manager.load([board.task])["tasks"].values())
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise AnitaError(
            f"evaluation.suite: leaderboards: the data of {board.task} cannot be had ({reason}): check the network and "
            "HF_HUB_OFFLINE, or set evaluation.suite to piccola-italia"
        ) from error


def _samples(lm: LM, tasks: list, limit: int | None, **options) -> dict[str, list[dict]]:
    """lm-eval's record of every item of the tasks, by task, in the order of the items."""
    import lm_eval

    results = lm_eval.simple_evaluate(
        model=lm, tasks=tasks, limit=limit, log_samples=True, bootstrap_iters=0,
        random_seed=0, numpy_random_seed=0, torch_random_seed=0, fewshot_random_seed=0, **options,
    )  # fmt: skip
    return {task: sorted(found, key=lambda one: one["doc_id"]) for task, found in results["samples"].items()}
