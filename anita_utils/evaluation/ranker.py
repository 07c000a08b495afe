"""How are a question's answers ranked quickly? lm-eval's model, but each question is read once for all its answers.

lm-eval reads the question again before each answer, and scores every token of it. Here the answers follow their
question one behind the other, each at the positions that come after it, and a mask hides them from each other: the same
probabilities for a half to a quarter of the work. Import it only where benchmarks run: lm-eval takes seconds to load.

>>> Ranker(pretrained=model, tokenizer=tokenizer, batch_size=8).loglikelihood(requests)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from lm_eval import evaluator, utils
from lm_eval.models.huggingface import HFLM

Request = tuple[tuple[str, str], list[int], list[int]]  # as lm-eval hands them on: texts, and both in tokens


def spare_time() -> None:
    """Spares what lm-eval repeats for nothing: compiling a template for each item, listing installed packages."""
    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = cache(utils.env.from_string)
    evaluator.add_env_info = lambda results: None


class Row(NamedTuple):
    """A question and some of its answers, in tokens, with the requests' numbers."""

    question: list[int]
    answers: list[tuple[int, list[int]]]

    def __len__(self) -> int:
        # The last token of an answer is only predicted, never read
        return len(self.question) + sum(len(answer) - 1 for _, answer in self.answers)


class Ranker(HFLM):
    """`HFLM` for a Llama whose attention takes a mask of its own; with any other model it is `HFLM`."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The log-probability of each answer, and whether greedy decoding would give it, in the requests' order."""
        size = override_bs or self.batch_size
        config = self.model.config
        # Others may look at a part of the text only, or take no mask of ours
        masked = config.model_type == "llama" and config._attn_implementation in ("sdpa", "eager")
        longest = max((len(question) + len(answer) for _, question, answer in requests), default=0)
        if not isinstance(size, int) or not masked or longest > self.max_length + 1:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        found = {}
        for batch in batches(rows_of(requests), size):
            found |= self._score(batch)
        return [found[number] for number in range(len(requests))]

    def _score(self, rows: Sequence[Row]) -> dict[int, tuple[float, bool]]:
        """The log-probability of each answer of the rows, and whether it is the greedy one, by its request's number."""
        ids, positions, branches = (torch.tensor(each, device=self.device) for each in laid_out(rows))
        first = min(len(row.question) for row in rows) - 1  # of most of the questions nothing is scored
        kept = torch.arange(first, ids.shape[1], device=self.device)
        lines, places, answers = zip(*scored(rows), strict=True)
        targets = torch.tensor([token for _, answer in answers for token in answer], device=self.device)
        with torch.inference_mode():
            mask = mask_of(branches, self.model.dtype)
            logits = self.model(
                input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, logits_to_keep=kept
            ).logits
            line = [line for line, own in zip(lines, places, strict=True) for _ in own]
            place = [each - first for own in places for each in own]
            likely = torch.log_softmax(logits[line, place], -1, dtype=self.softmax_dtype)
            greedy = (likely.argmax(-1) == targets).cpu()  # once for the batch: each answer would make a GPU wait
            chosen = likely.gather(1, targets[:, None])[:, 0].cpu()
        numbers, sizes = [number for number, _ in answers], [len(own) for own in places]
        parts = zip(numbers, chosen.split(sizes), greedy.split(sizes), strict=True)
        return {number: (sums.sum().item(), bool(hits.all())) for number, sums, hits in parts}


def scored(rows: Sequence[Row]) -> Iterator[tuple[int, list[int], tuple[int, list[int]]]]:
    """For each answer: its row, the places whose next token is one of its own, and the answer with its number.

    >>> list(scored([Row([7, 8], [(0, [1, 2, 3]), (1, [4, 5])])]))
    [(0, [1, 2, 3], (0, [1, 2, 3])), (0, [1, 4], (1, [4, 5]))]
    """
    for line, row in enumerate(rows):
        start = len(row.question)
        for number, answer in row.answers:
            yield line, [len(row.question) - 1, *range(start, start + len(answer) - 1)], (number, answer)
            start += len(answer) - 1


def rows_of(requests: Sequence[Request]) -> list[Row]:
    """The requests in rows, a question in several where its answers are many, the longest row first.

    A row is at most twice as long as its question with the longest answer: attention costs the square of the length.
    """
    asked = defaultdict(list)
    for number, (_, question, answer) in enumerate(requests):
        asked[tuple(question)].append((number, answer))
    rows = []
    for question, answers in asked.items():
        most, row = 2 * (len(question) + max(len(answer) for _, answer in answers)), Row(list(question), [])
        for number, answer in answers:
            if row.answers and len(row) + len(answer) - 1 > most:
                rows.append(row)
                row = Row(list(question), [])
            row.answers.append((number, answer))
        rows.append(row)
    return sorted(rows, key=len, reverse=True)


def batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """The rows in batches of at most `size` answers, or of one row that has more."""
    batch: list[Row] = []
    for row in rows:
        if batch and sum(len(each.answers) for each in [*batch, row]) > size:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def laid_out(rows: Sequence[Row]) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Tokens, positions and branches of the rows, filled up to one length: 0 is the question, each answer has a number.

    >>> laid_out([Row([7, 8], [(0, [1, 2, 3]), (1, [4, 5])])])
    ([[7, 8, 1, 2, 4]], [[0, 1, 2, 3, 2]], [[0, 0, 1, 1, 2]])
    """
    width, filled = max(map(len, rows)), ([], [], [])
    for row in rows:
        before = len(row.question)
        ids, positions, branches = list(row.question), list(range(before)), [0] * before
        for branch, (_, answer) in enumerate(row.answers, 1):
            ids += answer[:-1]
            positions += range(before, before + len(answer) - 1)
            branches += [branch] * (len(answer) - 1)
        for line, values, filler in zip(filled, (ids, positions, branches), (0, 0, -1), strict=True):
            line.append(values + [filler] * (width - len(row)))
    return filled


def mask_of(branches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What each place may see: the question and its own answer, up to itself. Batch × 1 × places × places, added to
    attention's scores (0, or the least there is).
    """
    places = torch.arange(branches.shape[1], device=branches.device)
    own = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    seen = own & (places[None, :] <= places[:, None])
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
