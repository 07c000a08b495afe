"""The exercises' checks: they pass the solutions, and explain the mistakes that students make.

The wrong answers here are written as a student would write them, not taken from the checks' own list of mistakes.
"""

import ast
import inspect
import math
import re
import runpy
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import combinations
from math import exp, log
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from test_exercises_audit import WRONG as WRONG_08

from anita_utils import AnitaError, exercises
from anita_utils.exercises.checking import Between, Exercise, judge, plain, same, written

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOLUTIONS = {name: runpy.run_path(str(NOTEBOOKS / "solutions" / f"{name}.py")) for name in exercises.LESSONS}
ALL = [(lesson, name) for lesson, members in exercises.LESSONS.items() for name in members]


def header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>"


def prompt_with_one_line_end(messages):
    text = "<|begin_of_text|>"
    for turn in messages:
        text += header(turn["role"]) + "\n" + turn["content"] + "<|eot_id|>"
    return text + header("assistant") + "\n"


def prompt_never_opened(messages):
    text = "<|begin_of_text|>"
    for turn in messages:
        text += f"{header(turn['role'])}\n\n{turn['content']}<|eot_id|>"
    return text


def hot_instead_of_cold(logits, temperature, top_p):
    return SOLUTIONS["01_load_llama3"]["next_token"](logits, 1 / temperature, top_p)


def not_divided_again(logits, temperature, top_p):
    chances = np.exp(np.array(logits) / temperature)
    chances = chances / chances.sum()
    kept = np.zeros(len(chances))
    for number in np.argsort(-chances, kind="stable"):
        if kept.sum() >= top_p:
            break
        kept[number] = chances[number]
    return kept


def by_replacing_text(word, merges):
    text = " ".join(word)
    for pair in merges:
        text = text.replace(" ".join(pair), "".join(pair))
    return text.split(" ")


def first_place_only(word, merges):
    tokens = list(word)
    for left, right in merges:
        for place in range(len(tokens) - 1):
            if tokens[place] == left and tokens[place + 1] == right:
                tokens = tokens[:place] + [left + right] + tokens[place + 2 :]
                break
    return tokens


def mean_of_everything(probabilities, labels):
    return float(np.mean([-log(p) for p in probabilities]))


def wrong_divisor(probabilities, labels):
    return sum(-log(p) for p, label in zip(probabilities, labels, strict=True) if label != -100) / len(labels)


def end_not_scored(turns, end):
    labels = []
    for role, head, words in turns:
        labels += [-100] * len(head) + (words if role == "assistant" else [-100] * len(words)) + [-100]
    return labels


def labels_moved(turns, end):
    labels = SOLUTIONS["02_supervised_fine_tuning"]["chat_labels"](turns, end)
    return labels[1:] + [-100]


def filled_to_the_longest_of_all(lengths, batch):
    places = max(lengths) * len(lengths)
    return (places - sum(lengths)) / places


def share_in_use(lengths, batch):
    return 1 - SOLUTIONS["02_supervised_fine_tuning"]["padding_share"](lengths, batch)


def constant_after_warmup(step, warmup, steps):
    return 1.0 if step > warmup else step / warmup


def jumps(step, warmup, steps):
    return step / warmup if step < warmup else (steps - step) / steps


def without_shift(logits, labels):
    ids = torch.tensor(labels)
    return torch.nn.functional.cross_entropy(torch.tensor(logits), ids)


def shift_the_wrong_way(logits, labels):
    return torch.nn.functional.cross_entropy(torch.tensor(logits)[1:], torch.tensor(labels)[:-1])


def largest_not_in_magnitude(weights, levels):
    scale = max(weights)
    return [levels[int(np.abs(np.array(levels) - w / scale).argmin())] * scale for w in weights]


def level_below(weights, levels):
    scale = max(abs(w) for w in weights)
    return [max(level for level in levels if level <= w / scale) * scale for w in weights]


def the_other_product(W, A, B, alpha):
    return W + alpha / len(A) * (A @ B)


def tokens_averaged(policy, reference, beta):
    margin = np.mean(policy[0]) - np.mean(policy[1]) - np.mean(reference[0]) + np.mean(reference[1])
    return -np.log(1 / (1 + np.exp(-beta * margin)))


def without_reference(policy, reference, beta):
    return -np.log(1 / (1 + np.exp(-beta * (sum(policy[0]) - sum(policy[1])))))


def divided_by_words(lls, answers):
    normed = [value / len(answer.split()) for value, answer in zip(lls, answers, strict=True)]
    return lls.index(max(lls)), normed.index(max(normed))


def smallest(lls, answers):
    normed = [value / len(answer) for value, answer in zip(lls, answers, strict=True)]
    return lls.index(min(lls)), normed.index(min(normed))


def apostrophe_deleted(answer):
    text = unicodedata.normalize("NFD", answer.lower())
    text = "".join(letter for letter in text if letter.isalnum() or letter.isspace())
    return " ".join(w for w in text.split() if w not in {"il", "lo", "la", "l", "i", "gli", "le", "un", "uno", "una"})


def articles_kept(answer):
    text = unicodedata.normalize("NFD", answer.lower())
    text = "".join(letter if letter.isalnum() else " " for letter in text if not unicodedata.combining(letter))
    return " ".join(text.split())


def two_separate_errors(before, after):
    errors = [np.std(each, ddof=1) / np.sqrt(len(each)) for each in (before, after)]
    return np.mean(after) - np.mean(before), np.hypot(*errors)


def divided_by_n(before, after):
    differences = np.array(after) - np.array(before)
    return differences.mean(), differences.std() / np.sqrt(len(differences))


def drawn_twice_counted_once(scores, clusters, drawn):
    return np.mean([s for s, name in zip(scores, clusters, strict=True) if name in drawn])


def mean_of_means(scores, clusters, drawn):
    means = {n: np.mean([s for s, c in zip(scores, clusters, strict=True) if c == n]) for n in clusters}
    return np.mean([means[name] for name in drawn])


def items_drawn_alone(scores, clusters, generator):
    means = [generator.choice(scores, size=len(scores)).mean() for _ in range(2000)]
    return np.percentile(means, [2.5, 97.5])


def clusters_drawn(scores, generator, ends):
    sums = np.array(scores).reshape(25, 4).sum(1) if len(set(map(str, scores[:4]))) == 1 else np.array(scores)
    draws = generator.choice(sums, size=(2000, len(sums)))
    return np.percentile(draws.mean(1) * len(sums) / len(scores), ends)


def ninety_per_cent(scores, clusters, generator):
    return clusters_drawn(scores, generator, [5, 95])


def shuffled_only(scores, clusters, generator):
    means = [generator.permutation(scores).mean() for _ in range(50)]
    return np.percentile(means, [2.5, 97.5])


WRONG = [
    ("tokens_per_word", lambda texts: np.mean([n / len(text.split()) for text, n in texts]), "averaged a ratio"),
    ("tokens_per_word", lambda t: sum(len(x.split()) for x, _ in t) / sum(n for _, n in t), "Upside down"),
    ("tokens_per_word", lambda t: sum(n for _, n in t) / sum(len(x) for x, _ in t), "characters"),
    ("sizes_8b", (8_030_261_248 * 16 / 1e9, 8_030_261_248 * 4 / 1e9), "a byte has 8 bits"),
    ("sizes_8b", (14.96, 3.74), "GiB"),
    ("llama3_prompt", prompt_with_one_line_end, "One line end"),
    ("llama3_prompt", prompt_never_opened, "Open the assistant's turn"),
    ("next_token", hot_instead_of_cold, "multiplied by the temperature"),
    ("next_token", not_divided_again, "does not add up to 1"),
    ("bpe", by_replacing_text, "cuts through finished tokens"),
    ("bpe", first_place_only, "first place only"),
    ("masked_loss", mean_of_everything, "leave out the positions"),
    ("masked_loss", wrong_divisor, "wrong divisor"),
    ("chat_labels", end_not_scored, "never learns to stop"),
    ("chat_labels", labels_moved, "moved the labels"),
    ("padding_share", filled_to_the_longest_of_all, "longest of *all*"),
    ("padding_share", share_in_use, "share in use"),
    ("warmed_up", constant_after_warmup, "never falls"),
    ("warmed_up", jumps, "jumps down"),
    ("next_token_loss", without_shift, "without the shift"),
    ("next_token_loss", shift_the_wrong_way, "Shifted the wrong way"),
    ("lora_size", lambda shapes, r: r * sum(rows * columns for rows, columns in shapes), "multiplied the widths"),
    ("lora_size", lambda shapes, r: r * sum(columns for _, columns in shapes), "A alone"),
    ("lora_scale", lambda alpha, r, rank_stabilised: alpha / r, "divide by r"),
    ("lora_scale", lambda alpha, r, rank_stabilised: alpha * r**-0.5, "cannot divide by √r"),
    ("nf4_round", largest_not_in_magnitude, "largest *magnitude*"),
    ("nf4_round", level_below, "take the nearest"),
    ("merge_lora", the_other_product, "the other way round"),
    ("merge_lora", lambda W, A, B, alpha: W + alpha * (B @ A), "r is not always 1"),
    ("nf4_bytes", lambda matrices, others: matrices // 2 + 4 * matrices // 64 + 2 * others, "without double"),
    ("nf4_bytes", lambda n, m: (n + m) / 2 + n / 64 + n / 4096, "are not quantised"),
    ("bradley_terry", lambda a, b: exp(b) / (exp(a) + exp(b)), "*second* wins"),
    ("bradley_terry", lambda a, b: a / (a + b), "exponentials first"),
    ("pair_loss", tokens_averaged, "averaged over the tokens"),
    ("pair_loss", without_reference, "reference is not in it"),
    ("reward_accuracy", lambda ours, theirs: np.mean(np.array(ours) > 0), "*more than the reference*"),
    ("reward_accuracy", lambda ours, theirs: np.mean(np.array(ours) >= theirs), "Ties"),
    ("needed_margin", lambda p, beta: beta * log(p / (1 - p)), "multiplied by beta"),
    ("needed_margin", lambda p, beta: (p / (1 - p)) / beta, "no logarithm"),
    ("best_policy", lambda p, r, beta: torch.tensor(r).div(beta).softmax(0), "reference is not in it"),
    ("best_policy", lambda p, r, beta: np.array(p) * np.exp(np.array(r) / beta), "do not add up to 1"),
    ("chosen_twice", divided_by_words, "divided by words"),
    ("chosen_twice", smallest, "took the smallest"),
    ("normal_italian", apostrophe_deleted, "apostrophe was deleted"),
    ("normal_italian", articles_kept, "articles are still there"),
    ("paired_error", two_separate_errors, "*different* sets of items"),
    ("paired_error", divided_by_n, "n - 1"),
    ("one_resample", drawn_twice_counted_once, "counts twice"),
    ("one_resample", mean_of_means, "averaged the clusters' means"),
    ("cluster_interval", items_drawn_alone, "Too narrow"),
    ("cluster_interval", ninety_per_cent, "90 %"),
    ("cluster_interval", shuffled_only, "*with* replacement"),
    *WRONG_08,
]


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

    from anita_utils.evaluation import normalise

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

    nf4 = Quantisation(bits=4, type="nf4", double=True)
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
    others = [c.source for c in notebook.cells if c.cell_type == "code" and c not in cells and "!git" not in c.source]
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
