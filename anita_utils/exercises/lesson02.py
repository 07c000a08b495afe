"""The exercises of lesson 02: the last answer, masked loss, labels, padding, the schedule of the rate, the shift."""

from __future__ import annotations

from math import cos, exp, log, log2, pi

from anita_utils.data import IGNORED
from anita_utils.exercises.checking import Exercise

_X = IGNORED


def _last_run(labels):
    """Where the last run of scored labels begins and ends."""
    end = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
    return max((place + 1 for place in range(end) if labels[place] == IGNORED), default=0), end


def _moved(labels, front):
    start, end = _last_run(labels)
    rest = [IGNORED] * (len(labels) - end + start)
    return labels[start:end] + rest if front else rest + labels[start:end]


only_the_last = Exercise(
    cases=[
        (([_X, _X, 5, 6, _X, _X, 7, 8],), [_X, _X, _X, _X, _X, _X, 7, 8]),
        (([_X, 5, _X, 6, 7, _X],), [_X, _X, _X, 6, 7, _X]),
        (([_X, 3, 4],), [_X, 3, 4]),
    ],
    mistakes=[
        (lambda labels: labels, "All answers are still scored: what comes before the last run becomes -100."),
        (lambda labels: _moved(labels, front=True),
         "The answer has moved to the front: every label stays in its place."),
        (lambda labels: _moved(labels, front=False),
         "The answer has moved to the end: a list may end in -100, and every label stays in its place."),
        (lambda labels: labels[slice(*_last_run(labels))],
         "As many labels as tokens: those that are not scored become -100, they are not left out."),
        (lambda labels: [IGNORED] * (len(labels) - 1) + labels[-1:],
         "Only the last token is left; the last answer is the whole last run of scored labels."),
    ],
    hint="Find the last place that is not -100, walk back from there to where the labels turn -100, and set all others "
    "to -100.",
    right="only the last answer is scored.",
)  # fmt: skip


def _losses(probabilities, labels, function=log):
    return [-function(p) for p, label in zip(probabilities, labels, strict=True) if label != IGNORED]


def _mean_loss(probabilities, labels, function=log):
    losses = _losses(probabilities, labels, function)
    return sum(losses) / len(losses)


masked_loss = Exercise(
    cases=[
        (([0.9, 0.25, 1.0], [IGNORED, 7, 8]), log(4) / 2),
        (([0.5, 0.5, 0.1, 0.125], [5, 0, IGNORED, 7]), 5 * log(2) / 3),
    ],
    mistakes=[
        (lambda p, labels: -sum(map(log, p)) / len(p),
         "The user's tokens are in it: leave out the positions labelled -100."),
        (lambda p, labels: _mean_loss(p, [label or IGNORED for label in labels]),
         "Label 0 is a token like any other: only -100 is left out."),
        (lambda p, labels: sum(_losses(p, labels)) / len(p),
         "Right sum, wrong divisor: the mean is over the *scored* positions, not over all."),
        (lambda p, labels: sum(_losses(p, labels)), "That is the sum; the loss is the mean over the scored positions."),
        (lambda p, labels: -_mean_loss(p, labels),
         "The sign: log p is negative, and the loss is -log p."),
        (lambda p, labels: _mean_loss(p, labels, log2),
         "Those are bits: the loss uses the natural logarithm, math.log."),
        (lambda p, labels: _mean_loss(p, labels, lambda x: x - 1),
         "You averaged 1 - p. The loss is -log p, which punishes a sure mistake far more."),
    ],
    hint="For each position whose label is not -100, take -log of its probability; then the mean of those.",
    right="what the trainer prints as `loss` is this, over a batch.",
)  # fmt: skip


def _labels(turns, end, ending=True, header=False, ignored=IGNORED, roles=("assistant",), last_only=False):
    made = []
    for number, (role, head, words) in enumerate(turns):
        scored = role in roles and (not last_only or number == len(turns) - 1)
        whole = head + words + [end]
        first = 0 if header else len(head)
        final = len(whole) if ending else len(whole) - 1
        made += [token if scored and first <= n < final else ignored for n, token in enumerate(whole)]
    return made


_CHAT = [("user", [1, 2], [11, 12]), ("assistant", [3, 4], [21, 22, 23])]

chat_labels = Exercise(
    cases=[
        ((_CHAT, 9), [_X, _X, _X, _X, _X, _X, _X, 21, 22, 23, 9]),
        (([("assistant", [3], [21]), ("user", [1], [11]), ("assistant", [3], [22])], 9),
         [_X, 21, 9, _X, _X, _X, _X, 22, 9]),
        (([("system", [3], [31]), ("user", [1], [11]), ("assistant", [3], [22])], 9),
         [_X, _X, _X, _X, _X, _X, _X, 22, 9]),
    ],
    mistakes=[
        (lambda t, e: _labels(t, e, ending=False),
         "The end of the answer is not scored, so the model never learns to stop. Keep the end mark of the "
         "assistant's turns."),
        (lambda t, e: [label for turn in t for label in [*_labels([turn], e)[:-1], e]],
         "The end marks of the others are scored too: those are not for the model to write."),
        (lambda t, e: [label for turn in t for label in _labels([turn], e)[:-1]],
         "There are fewer labels than tokens: the end mark after every turn is a token too."),
        (lambda t, e: _labels(t, e, header=True),
         "You score the assistant's header too: the template writes it, the model need not learn to."),
        (lambda t, e: _labels(t, e, roles=("assistant", "user")),
         "The user's words are scored as well: the model would learn to ask. Look at the role."),
        (lambda t, e: _labels(t, e, roles=("assistant", "system")),
         "A system message is scored as well: only the assistant's turns are for the model to write."),
        (lambda t, e: _labels(t, e, last_only=True), "Only the last answer is scored; every assistant turn counts."),
        (lambda t, e: _labels(t, e, ignored=0), "0 is a token like any other. PyTorch leaves out the label -100."),
        (lambda t, e: [*_labels(t, e)[1:], IGNORED],
         "You moved the labels by one. The model does that itself when it computes the loss; done twice, it learns "
         "to skip a token."),
        (lambda t, e: [token for turn in t for token in turn[1] + turn[2] + [e]],
         "Everything is scored: replace what the model need not write by -100."),
    ],
    hint="Go turn by turn: -100 for each token of the header; for an assistant its words and the end mark, for "
    "anybody else -100 for each of those.",
    right="as many labels as tokens, and only what the model is to write is scored.",
)  # fmt: skip


def _batches(lengths, size):
    return [lengths[start : start + size] for start in range(0, len(lengths), size)]


def _wasted(lengths, size):
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in _batches(lengths, size))


def _mean_of_batches(lengths, size):
    shares = [_wasted(batch, size) for batch in _batches(lengths, size)]
    return sum(shares) / len(shares)


padding_share = Exercise(
    cases=[
        (([2, 4, 8, 6], 2), 4 / 24),
        (([3, 1, 2], 2), 2 / 8),
    ],
    mistakes=[
        (lambda lengths, size: 1 - sum(lengths) / (max(lengths) * len(lengths)),
         "You filled all rows up to the longest of *all* examples: each batch is filled up to its own longest."),
        (lambda lengths, size: 1 - _wasted(lengths, size), "That is the share in use; padding is the rest."),
        (_mean_of_batches,
         "You averaged the batches' shares, as if all were of one size. Count places over all batches, then divide "
         "once."),
        (lambda lengths, size: 1 - sum(lengths) / sum(max(batch) * size for batch in _batches(lengths, size)),
         "The last batch is not full: count the rows it has, not the batch size."),
        (lambda lengths, size: sum(max(batch) * len(batch) for batch in _batches(lengths, size)) - sum(lengths),
         "That is the number of padding tokens; a share is asked for: divide by all places."),
        (lambda lengths, size: sum(max(batch) * len(batch) for batch in _batches(lengths, size)) / sum(lengths) - 1,
         "You divided by the real tokens; the share is of all places in the rectangles."),
        (lambda lengths, size: _wasted(sorted(lengths), size),
         "You sorted them first: the batches are cut in this order."),
        (lambda lengths, size: _wasted(lengths[: len(lengths) // size * size], size),
         "The last batch was dropped; it is smaller, but it counts."),
        (lambda lengths, size: 100 * _wasted(lengths, size), "Those are per cent; a share lies between 0 and 1."),
    ],
    hint="A batch has (its longest × its number of rows) places. Add up the places, subtract all real tokens, "
    "divide by the places.",
    right="packing exists to bring this near 0.",
)  # fmt: skip


def _rate(step, warmup, steps):
    return step / warmup if step < warmup else (steps - step) / (steps - warmup)


warmed_up = Exercise(
    cases=[
        ((0, 10, 110), 0.0),
        ((5, 10, 110), 0.5),
        ((10, 10, 110), 1.0),
        ((35, 10, 110), 0.75),
        ((60, 10, 110), 0.5),
        ((110, 10, 110), 0.0),
    ],
    mistakes=[
        (lambda step, warmup, steps: min(1, step / warmup),
         "The warm-up is right, but the rate never falls: after it go down to 0 at the last step."),
        (lambda step, warmup, steps: 1 - step / steps,
         "There is no warm-up: before step `warmup` the rate climbs from 0."),
        (lambda step, warmup, steps: step / warmup if step < warmup else 1 - step / steps,
         "The rate jumps down at the end of the warm-up: the way down has (steps - warmup) steps, not all of them."),
        (lambda step, warmup, steps: step / warmup if step < warmup else 1 - (step - warmup) / steps,
         "The rate does not reach 0 at the end: the way down has (steps - warmup) steps."),
        (lambda step, warmup, steps: step / steps if step < warmup else _rate(step, warmup, steps),
         "The climb is too slow: it reaches 1 at step `warmup`, not at the last step."),
        (lambda step, warmup, steps: step / warmup if step < warmup
         else (1 + cos(pi * (1 - _rate(step, warmup, steps)))) / 2,
         "It starts and ends right, but falls along a cosine; here it is a straight line."),
    ],
    hint="Two straight lines: from 0 at step 0 up to 1 at step `warmup`, then down to 0 at step `steps`.",
    right="times the peak rate, this is the linear schedule of the authors' scripts.",
)  # fmt: skip


def _text_loss(logits, labels, shift=1, all_positions=False, normalised=True, everything=False):
    rows = logits[: len(logits) - shift] if shift >= 0 else logits[1:]
    targets = labels[shift:] if shift >= 0 else labels[:-1]
    losses = [
        (log(sum(map(exp, row))) if normalised else 0) - row[target]
        for row, target in zip(rows, targets, strict=True)
        if target != IGNORED
    ]
    return sum(losses) / (len(logits) if everything else len(rows) if all_positions else len(losses))


_ROWS = [[0.0, 0.0], [log(3), 0.0], [0.0, log(9)], [log(4), 0.0]]

next_token_loss = Exercise(
    cases=[
        ((_ROWS, [IGNORED, IGNORED, 0, 1]), (log(4 / 3) + log(10 / 9)) / 2),
        (([[0.0, 0.0], [0.0, log(3)], [0.0, 0.0]], [0, 1, 0]), (log(2) + log(4)) / 2),
    ],
    mistakes=[
        (lambda x, y: _text_loss(x, y, shift=0),
         "Position by position, without the shift: the logits at position t predict the token at t + 1. Pair "
         "logits[:-1] with labels[1:]."),
        (lambda x, y: _text_loss(x, y, shift=-1),
         "Shifted the wrong way: each token is paired with the logits *after* it, which have seen it. Pair "
         "logits[:-1] with labels[1:]."),
        (lambda x, y: _text_loss(x, y, all_positions=True), "Divide by the number of scored tokens, not by all pairs."),
        (lambda x, y: _text_loss(x, y, everything=True),
         "Divide by the number of scored tokens, not by all positions."),
        (lambda x, y: _text_loss(x, y, normalised=False),
         "Logits are no log-probabilities yet: subtract the logarithm of the sum of their exponentials."),
        (lambda x, y: _text_loss(x, y) * sum(label != IGNORED for label in y[1:]),
         "That is the sum; the loss is the mean over the scored tokens."),
        (lambda x, y: -_text_loss(x, y), "The sign: log p is negative, and the loss is -log p."),
    ],
    hint="For each pair of logits[t] and labels[t + 1] that is not -100: log of the sum of exp of the logits, less "
    "the logit of the label; then the mean.",
    right="this is what `model(input_ids, labels=labels).loss` computes.",
)  # fmt: skip

EXERCISES = {
    "masked_loss": masked_loss,
    "only_the_last": only_the_last,
    "chat_labels": chat_labels,
    "padding_share": padding_share,
    "warmed_up": warmed_up,
    "next_token_loss": next_token_loss,
}
