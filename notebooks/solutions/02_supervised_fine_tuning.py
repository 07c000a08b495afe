"""Solutions to lesson 02's exercises."""

from math import exp, log

from anita_utils.exercises import check


def only_the_last(labels):
    end = max(place for place, label in enumerate(labels) if label != -100) + 1
    start = end
    while start > 0 and labels[start - 1] != -100:
        start -= 1
    return [-100] * start + labels[start:end] + [-100] * (len(labels) - end)


check("only_the_last", only_the_last)


def masked_loss(probabilities, labels):
    losses = []
    for probability, label in zip(probabilities, labels, strict=True):
        if label != -100:
            losses.append(-log(probability))
    return sum(losses) / len(losses)


check("masked_loss", masked_loss)


def chat_labels(turns, end):
    labels = []
    for role, header, words in turns:
        labels += [-100] * len(header)  # the template writes it
        whole = [*words, end]  # the end is scored too: the model must learn to stop
        labels += whole if role == "assistant" else [-100] * len(whole)
    return labels


check("chat_labels", chat_labels)


def padding_share(lengths, batch):
    places = 0
    for start in range(0, len(lengths), batch):
        rows = lengths[start : start + batch]
        places += max(rows) * len(rows)
    return (places - sum(lengths)) / places


check("padding_share", padding_share)


def warmed_up(step, warmup, steps):
    if step < warmup:
        return step / warmup
    return (steps - step) / (steps - warmup)


check("warmed_up", warmed_up)


def next_token_loss(logits, labels):
    losses = []
    # position t predicts token t + 1
    for row, target in zip(logits[:-1], labels[1:], strict=True):
        if target != -100:
            losses.append(log(sum(exp(logit) for logit in row)) - row[target])
    return sum(losses) / len(losses)


check("next_token_loss", next_token_loss)
