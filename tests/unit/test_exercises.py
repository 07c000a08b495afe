"""The exercises' checks: they pass the solutions, and explain the mistakes that students make.

The wrong answers stand in wrong_exercises_*.py, a file for each lesson, written as a student would write them,
not taken from the checks' own list of mistakes.
"""

import ast
import importlib
import inspect
import math
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from math import exp
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from students import NOTEBOOKS, SOLUTIONS

from anita_utils import AnitaError, exercises
from anita_utils.exercises.checking import Between, Exercise, judge, plain, same, written

ALL = [(lesson, name) for lesson, members in exercises.LESSONS.items() for name in members]
TRIED = sorted(file.stem for file in Path(__file__).parent.glob("*_exercises_*.py"))
WRONG = [case for module in TRIED for case in getattr(importlib.import_module(module), "WRONG", [])]


@pytest.mark.parametrize(("lesson", "name"), ALL)
def test_the_solution_is_right(lesson, name):
    found = exercises.verdict(name, SOLUTIONS[lesson][name])
    assert found.right and found.text == f"Right: {exercises.EXERCISES[name].right}"


@pytest.mark.parametrize(("name", "answer", "message"), WRONG, ids=[f"{n}-{m[:20]}" for n, _, m in WRONG])
def test_a_wrong_answer_is_explained(name, answer, message):
    found = exercises.verdict(name, answer)
    assert found.right is False and found.text.startswith("Not yet: "), found.text
    assert message in found.text.split("\n", 1)[1], found.text


def test_every_exercise_meets_two_wrong_answers_and_every_lesson_has_four_exercises():
    tried = Counter(name for name, _, _ in WRONG)
    assert all(tried[name] >= 2 for name in exercises.EXERCISES)
    assert all(len(members) >= 4 for members in exercises.LESSONS.values())


@pytest.mark.parametrize(("lesson", "name"), ALL)
def test_no_listed_mistake_is_right_or_looks_like_another(lesson, name):
    exercise = exercises.EXERCISES[name]
    assert len(exercise.mistakes) >= 3
    wanted = [value for _, value in exercise.cases]
    made = [[plain(compute(*arguments)) for arguments, _ in exercise.cases] for compute, _ in exercise.mistakes]

    def alike(one, other):
        """Whether one pair of results fits the other; a Between is tried by its middle."""
        middle = [[(v.low + v.high) / 2 if isinstance(v, Between) else v for v in r] if isinstance(r, list) else r
                  for r in one]  # fmt: skip
        return all(same(*pair, exercise.tolerance) for pair in zip(middle, other, strict=True))

    assert not any(alike(results, wanted) for results in made)
    assert not any(alike(*pair) for pair in combinations(made, 2))


# ---- the judge itself


def test_an_empty_skeleton_is_not_done_rather_than_wrong(capsys):
    exercises.check("lora_scale", lambda alpha, r, rank_stabilised: ...)
    assert capsys.readouterr().out == "Not done yet: replace the dots in lora_scale.\n"
    assert exercises.verdict("sizes_8b", (..., ...)).right is None
    assert exercises.verdict("sizes_8b", (16.06, ...)).right is None


def test_results_of_any_kind_of_number_and_rounded_ones_pass():
    assert exercises.verdict("lora_scale", lambda a, r, s: torch.tensor(a / (math.sqrt(r) if s else r))).right
    assert exercises.verdict("bradley_terry", lambda a, b: np.float32(round(1 / (1 + exp(b - a)), 3))).right
    assert exercises.verdict("sizes_8b", [16.06, 4.02]).right


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (2.0, "hand over the function itself: check('lora_scale', lora_scale)"),
        (lambda alpha, r: alpha / r, "stops with TypeError"),
        (lambda alpha, r, s: alpha / 0, "lora_scale(16, 64, True) stops with ZeroDivisionError: division by zero"),
        (lambda alpha, r, s: print(end=""), "returns nothing"),
        (lambda alpha, r, s: "two", "gives 'two'; it should be 2.\nPlain LoRA"),
        (lambda alpha, r, s: math.nan, "gives nan"),
        (lambda alpha, r, s: [2.0], "gives [2]"),
    ],
)
def test_other_answers_get_one_clear_line(answer, message):
    found = exercises.verdict("lora_scale", answer)
    assert found.right is False and message in found.text


def test_a_value_is_wanted_where_a_function_is_given():
    assert "the value, not a function" in exercises.verdict("sizes_8b", lambda: (16.06, 4.02)).text


def test_a_wrong_value_is_not_told_the_right_one():
    found = exercises.verdict("sizes_8b", (8.0, 2.0))
    assert found.right is False and found.text.startswith("Not yet: sizes_8b is [8, 2].\nWeights times bits")
    assert "16.06" not in found.text


def test_an_unknown_exercise_is_refused():
    with pytest.raises(AnitaError, match="there is no exercise 'lora': choose tokens_per_word, "):
        exercises.check("lora", 1)


def test_an_answer_that_changes_its_arguments_spoils_nothing():
    def sorts(values):
        values.sort()
        return values[0]

    exercise = Exercise([(([3, 1, 2],), 1)], [], "hint", "sorted")
    assert judge(exercise, "sorts", sorts).right and exercise.cases[0][0] == ([3, 1, 2],)


def test_values_are_written_short():
    assert written([1 / 3, "a", (1, None)]) == "[0.3333, 'a', [1, None]]"
    assert written(list(range(20))) == "[0, 1, 2, 3, 4, 5, 6, 7, …]"
    assert written(np.array([[1.0]])) == "[[1]]" and written(5_702_295_552.0) == "5,702,295,552"


def test_the_checks_are_light():
    code = "import sys, anita_utils.exercises; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the numbers against the libraries and the kit


def test_what_is_right_here_is_what_the_libraries_compute(tokenizer):
    from transformers import get_linear_schedule_with_warmup

    from anita_utils.evaluation.judges import normalise

    messages = [{"role": "system", "content": "Sii breve."}, {"role": "user", "content": "Ciao!"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert exercises.EXERCISES["llama3_prompt"].cases[1][1] == rendered

    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimiser, 10, 110).lr_lambdas[0]
    for arguments, wanted in exercises.EXERCISES["warmed_up"].cases:
        assert schedule(arguments[0]) == pytest.approx(wanted)

    for (logits, labels), wanted in exercises.EXERCISES["next_token_loss"].cases:
        loss = torch.nn.functional.cross_entropy(torch.tensor(logits)[:-1], torch.tensor(labels)[1:])
        assert loss.item() == pytest.approx(wanted, abs=1e-6)

    assert all(normalise(answer) == wanted for (answer,), wanted in exercises.EXERCISES["normal_italian"].cases)


def test_the_8b_counts_are_the_planners():
    from anita_utils.memory import Job, base_bytes, trainable
    from anita_utils.profile import Quantisation

    nf4 = Quantisation(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    job = Job(model="meta-llama/Meta-Llama-3-8B-Instruct", r=16, quantisation=nf4)
    assert sum(base_bytes(job)) == exercises.EXERCISES["nf4_bytes"].cases[1][1]
    assert trainable(job) == 32 * exercises.EXERCISES["lora_size"].cases[1][1]


# ---- the lessons


def skeletons(lesson):
    """The lesson's notebook, and its cells tagged as exercises."""
    notebook = nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4)
    return notebook, [cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", [])]


def assigned(source):
    """The names a cell gives a meaning to."""
    tree = ast.parse(source)
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("lesson", exercises.LESSONS)
def test_the_skeletons_run_and_say_that_nothing_is_done(lesson, capsys):
    notebook, cells = skeletons(lesson)
    namespace = {}
    for name, cell in zip(exercises.LESSONS[lesson], cells, strict=True):
        exec(cell.source, namespace)
        said = capsys.readouterr().out
        assert said.startswith("Not done yet: ") and f'check("{name}", {name})' in cell.source
        assert "".join(output.text for output in cell.outputs) == said  # what is stored is what it says
        if callable(namespace[name]):
            assert inspect.signature(namespace[name]) == inspect.signature(SOLUTIONS[lesson][name])
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert "run.record(" in last.source


@pytest.mark.parametrize("lesson", exercises.LESSONS)
def test_no_exercise_takes_a_name_from_the_lesson(lesson):
    notebook, cells = skeletons(lesson)
    others = [
        c.source for c in notebook.cells if c.cell_type == "code" and c not in cells and not c.id.endswith("set-up")
    ]
    used = {node.id for source in others for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert not used & set().union(*(assigned(cell.source) for cell in cells))


@pytest.mark.parametrize("lesson", exercises.LESSONS)
def test_every_exercise_is_announced_with_difficulty_and_minutes(lesson):
    notebook, cells = skeletons(lesson)
    text = [notebook.cells[notebook.cells.index(cell) - 1].source for cell in cells]
    titles = [re.search(r"^### .+ · (easy|medium|hard), \d+ minutes$", words, re.MULTILINE) for words in text]
    levels = Counter(title[1] for title in titles)
    assert levels["easy"] >= 1 and levels["medium"] >= 2 and levels["hard"] >= 1
    assert f"notebooks/solutions/{lesson}.py" in text[0]
