"""Questions read once for all their answers: what lm-eval's own model makes of the same requests."""

import copy
import random

import pytest
import torch
from exact import in_float64

from anita_utils.evaluation import ranker
from anita_utils.evaluation.ranker import Ranker, Row, batches, laid_out, mask_of, rows_of, scored


@pytest.fixture(scope="module")
def lm(model, tokenizer):
    return Ranker(pretrained=in_float64(copy.deepcopy(model)), tokenizer=tokenizer, batch_size=5)


def requests(count, answers, longest, seed=0):
    """Questions with several answers each, mixed; some answers are one token, some questions are asked twice."""
    drawn = random.Random(seed)

    def tokens(most):
        return [drawn.randrange(300, 2000) for _ in range(drawn.randint(1, most))]

    asked = [tokens(longest) for _ in range(count)]
    made = [(("", ""), question, tokens(8)) for question in [*asked, asked[0]] for _ in range(answers)]
    drawn.shuffle(made)
    return made


def theirs(lm, asked):
    """What lm-eval makes of them, a request at a time."""
    parent = super(Ranker, lm)
    return [parent._loglikelihood_tokens([one], disable_tqdm=True)[0] for one in asked]


@pytest.mark.parametrize(("count", "answers", "longest"), [(1, 1, 1), (7, 4, 30), (3, 9, 5), (6, 1, 40)])
def test_answers_get_lm_evals_own_figures(lm, count, answers, longest):
    asked = requests(count, answers, longest)
    for (value, greedy), (wanted, first) in zip(lm._loglikelihood_tokens(asked), theirs(lm, asked), strict=True):
        assert value == pytest.approx(wanted, abs=1e-4) and greedy == first


def test_greedy_answers_are_known(lm, model, tokenizer):
    """The model's own next token, and any other: one is what greedy decoding gives."""
    question = tokenizer("What is the capital of Italy?")["input_ids"]
    with torch.inference_mode():
        best = model(torch.tensor([question])).logits[0, -1].argmax().item()
    found = lm._loglikelihood_tokens([(("", ""), question, [best]), (("", ""), question, [best + 1])])
    assert [greedy for _, greedy in found] == [True, False] and found[0][0] > found[1][0]


def test_no_requests(lm):
    assert lm._loglikelihood_tokens([]) == []


def test_text_that_runs_on_is_scored_too(lm):
    """lm-eval's rolling likelihood gives each window the same first token: those windows do not make one long row."""
    windows = [(("", ""), [1], list(range(300, 300 + length))) for length in (40, 41, 42, 43)]
    assert max(map(len, rows_of(windows))) <= 2 * 44
    found = lm._loglikelihood_tokens(windows)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in theirs(lm, windows)], abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "value"), [("_attn_implementation", "flash_attention_2"), ("model_type", "gemma3")]
)
def test_a_model_that_takes_no_mask_of_ours_is_left_to_lm_eval(lm, monkeypatch, setting, value):
    calls = []
    monkeypatch.setattr(type(lm.model.config), setting, property(lambda config: value))
    monkeypatch.setattr(Ranker, "_score", lambda self, rows: pytest.fail("one was scored here"))
    monkeypatch.setattr(Ranker, "_model_call", lambda self, ids: calls.append(ids) or torch.zeros(*ids.shape, 2000))
    found = lm._loglikelihood_tokens(requests(3, 2, 9), disable_tqdm=True)
    assert calls and len(found) == 8


def test_what_is_too_long_is_cut_as_lm_eval_cuts_it(lm, monkeypatch):
    asked = requests(4, 2, 30)
    monkeypatch.setattr(lm, "_max_length", 16)
    assert lm.max_length == 16 and max(len(question) + len(answer) for _, question, answer in asked) > 17
    monkeypatch.setattr(Ranker, "_score", lambda self, rows: pytest.fail("one was scored here"))
    found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in theirs(lm, asked)], abs=1e-4)


def test_every_request_stands_in_one_row_with_its_question():
    asked = requests(20, 6, 12, seed=3)
    rows = rows_of(asked)
    placed = {number: (row.question, answer) for row in rows for number, answer in row.answers}
    assert placed == {number: (question, answer) for number, (_, question, answer) in enumerate(asked)}
    assert sum(len(row.answers) for row in rows) == len(asked)
    assert [len(row) for row in rows] == sorted(map(len, rows), reverse=True)


def test_batches_hold_as_many_answers_as_they_may():
    rows = [Row([1], [(0, [2])] * count) for count in (3, 2, 4, 9, 1, 1)]
    assert [[len(row.answers) for row in batch] for batch in batches(rows, 5)] == [[3, 2], [4], [9], [1, 1]]
    assert list(batches([], 5)) == []


def test_a_row_by_hand():
    """Question 7 8, answers 1 2 3 and 4 5, beside a shorter row: the last token of an answer is not read."""
    rows = [Row([7, 8], [(0, [1, 2, 3]), (1, [4, 5])]), Row([9], [(2, [6])])]
    ids, positions, branches = laid_out(rows)
    assert ids == [[7, 8, 1, 2, 4], [9, 0, 0, 0, 0]]
    assert positions == [[0, 1, 2, 3, 2], [0, 0, 0, 0, 0]]
    assert branches == [[0, 0, 1, 1, 2], [0, -1, -1, -1, -1]]
    assert list(scored(rows)) == [(0, [1, 2, 3], (0, [1, 2, 3])), (0, [1, 4], (1, [4, 5])), (1, [0], (2, [6]))]
    seen = (mask_of(torch.tensor(branches), torch.float32) == 0)[:, 0].int().tolist()
    assert seen[0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert all(any(line) for line in seen[1])  # attention over nothing would not be a number


def test_lm_eval_makes_a_template_once():
    from lm_eval import evaluator, utils

    ranker.spare_time()
    ranker.spare_time()
    template = "{{question}} of a test"
    assert utils.apply_template(template, {"question": "one"}) == "one of a test"
    before = utils.env.from_string.cache_info().hits
    assert utils.apply_template(template, {"question": "two"}) == "two of a test"
    assert utils.env.from_string.cache_info().hits == before + 1
    results = {}
    evaluator.add_env_info(results)
    assert results == {}
