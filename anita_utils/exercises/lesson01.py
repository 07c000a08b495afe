"""The exercises of lesson 01: tokens per word, bytes, the chat template, sampling, byte-pair encoding."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

from anita_utils.exercises.checking import Exercise

WEIGHTS_8B = 8_030_261_248


def _mean_of_ratios(texts):
    return sum(tokens / len(text.split()) for text, tokens in texts) / len(texts)


def _of_totals(texts, length=lambda text: len(text.split())):
    return sum(tokens for _, tokens in texts) / sum(length(text) for text, _ in texts)


tokens_per_word = Exercise(
    cases=[
        (([("Roma è bella.", 6), ("Buongiorno!", 4)],), 2.5),
        (([("La città è grande", 6)],), 1.5),
    ],
    mistakes=[
        (_mean_of_ratios,
         "You averaged a ratio for each text, so a short text counts as much as a long one. Add up all tokens and "
         "all words first, then divide once."),
        (lambda texts: 1 / _of_totals(texts), "Upside down: those are words per token. Divide tokens by words."),
        (lambda texts: _of_totals(texts, len),
         "You divided by characters: len(text) counts letters. text.split() gives the words."),
    ],
    hint="All tokens together, divided by all words together; text.split() cuts a text into words.",
    right="where Italian has the higher figure, the same story costs more time and more context.",
)  # fmt: skip

sizes_8b = Exercise(
    cases=[((), (WEIGHTS_8B * 2 / 1e9, WEIGHTS_8B / 2 / 1e9))],
    mistakes=[
        (lambda: (WEIGHTS_8B * 16 / 1e9, WEIGHTS_8B * 4 / 1e9), "Those are gigabits: a byte has 8 bits."),
        (lambda: (WEIGHTS_8B * 2 / 2**30, WEIGHTS_8B / 2 / 2**30),
         "Those are GiB (2**30 bytes). A GB is 1e9 bytes, and mixing the two hides 7 %."),
        (lambda: (WEIGHTS_8B * 2, WEIGHTS_8B / 2), "Those are bytes: divide by 1e9."),
        (lambda: (WEIGHTS_8B * 2 / 1e9, WEIGHTS_8B * 4 / 1e9),
         "The second is 4 *bytes* a weight; 4 bits are half a byte."),
    ],
    hint="Weights times bits, divided by 8 for bytes, then by 1e9 for GB: first with 16 bits, then with 4.",
    right="a quarter. The scales of the blocks come on top; lesson 03 counts them.",
    tolerance=0.006,
)  # fmt: skip


def _turn(message, gap="\n\n", end="<|eot_id|>"):
    return f"<|start_header_id|>{message['role']}<|end_header_id|>{gap}{message['content']}{end}"


def _prompt(messages, begin="<|begin_of_text|>", last="<|start_header_id|>assistant<|end_header_id|>\n\n", **turn):
    return begin + "".join(_turn(message, **turn) for message in messages) + last


_SYSTEM, _USER = {"role": "system", "content": "Sii breve."}, {"role": "user", "content": "Ciao!"}

llama3_prompt = Exercise(
    cases=[
        (([_USER],), "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nCiao!<|eot_id|>"
                     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        (([_SYSTEM, _USER],), "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSii breve.<|eot_id|>"
                              "<|start_header_id|>user<|end_header_id|>\n\nCiao!<|eot_id|>"
                              "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
    mistakes=[
        (lambda m: _prompt(m, gap="\n", last="<|start_header_id|>assistant<|end_header_id|>\n"),
         "One line end after the header: the template writes two, an empty line."),
        (lambda m: _prompt(m, begin=""), "The text has no beginning: one <|begin_of_text|> opens it."),
        (lambda m: _prompt(m, last=""),
         "It stops after the user's turn, so the model would go on as anybody. Open the assistant's turn: its header"
         " and the empty line."),
        (lambda m: _prompt(m, end=""), "No turn ends: <|eot_id|> closes each one."),
        (lambda m: _prompt(m) + "<|eot_id|>", "You closed the assistant's turn; what follows is the model's to write."),
        (lambda m: "".join(_prompt([turn], last="") for turn in m) + _prompt([]).removeprefix("<|begin_of_text|>"),
         "A beginning mark for every turn: there is one in the whole text."),
        (lambda m: _prompt(m, last="<|start_header_id|>assistant<|end_header_id|>"),
         "Almost: the assistant's header too is followed by an empty line, or the model writes it first."),
    ],
    hint="One <|begin_of_text|>; for each turn its header, an empty line, the words, <|eot_id|>; last the header "
    "that opens the assistant's turn.",
    right="character for character what the model was trained on.",
)  # fmt: skip


def _sample(logits, temperature, top_p, kept_more=1, order=True, by=lambda x, t: x / t, cut_at=None, rescale=True):
    """Probabilities after temperature and top-p; each argument after the third turns one step into a mistake."""

    def softmax(t):
        weights = [exp(by(x, t)) for x in logits]
        return [weight / sum(weights) for weight in weights]

    chances, judged = softmax(temperature), softmax(cut_at or temperature)
    likeliest = sorted(range(len(logits)), key=lambda n: -judged[n])
    running, kept = 0.0, []
    for number in likeliest:
        if running + (0 if kept_more else judged[number]) >= top_p and kept:
            break
        running += judged[number]
        kept.append(number)
    total = sum(chances[n] for n in kept) if rescale else 1
    return [chances[n] / total if n in kept else 0.0 for n in (range(len(logits)) if order else likeliest)]


next_token = Exercise(
    cases=[
        (([log(6), log(3), log(1)], 1.0, 0.8), [2 / 3, 1 / 3, 0]),
        (([log(1), log(6), log(3)], 0.5, 0.7), [0, 1, 0]),
        (([log(2), log(4), log(4)], 0.5, 0.8), [0, 1 / 2, 1 / 2]),
    ],
    mistakes=[
        (lambda *a: _sample(*a, by=lambda x, t: x * t),
         "You multiplied by the temperature: the logits are divided by it, so a low temperature sharpens."),
        (lambda *a: _sample(*a, rescale=False), "What is kept does not add up to 1: divide it by its sum."),
        (lambda *a: _sample(*a, kept_more=0),
         "The token that crosses top-p is kept too: keep taking until the sum has *reached* top_p."),
        (lambda *a: _sample(*a, order=False),
         "Right numbers in the wrong places: you sorted them. Hand them back in the order of the logits."),
        (lambda logits, t, p: _sample(logits, t, p, cut_at=1.0),
         "You cut before the temperature was applied: first the temperature, then top-p."),
        (lambda logits, t, p: _sample(logits, t, 9.0),
         "Nothing was cut: set the unlikely to 0 once the likeliest have reached top_p."),
    ],
    hint="Divide the logits by the temperature, take exp, divide by the sum; take the likeliest until they reach "
    "top_p; set the others to 0 and divide what is left by its sum.",
    right="that is all there is to temperature and top-p.",
)  # fmt: skip


def _merge(parts, pair, all_of_them=True):
    made, at = [], 0
    while at < len(parts):
        if tuple(parts[at : at + 2]) == tuple(pair):
            made.append("".join(pair))
            at += 2
            if not all_of_them:
                return made + parts[at:]
        else:
            made.append(parts[at])
            at += 1
    return made


def _once_each(word, merges):
    parts = list(word)
    for pair in merges:
        parts = _merge(parts, pair, all_of_them=False)
    return parts


def _left_to_right(word, merges):
    parts = list(word)
    while found := [n for n, pair in enumerate(pairwise(parts)) if pair in merges]:
        parts[found[0] : found[0] + 2] = ["".join(parts[found[0] : found[0] + 2])]
    return parts


def _replaced(word, merges):
    text = " ".join(word)
    for left, right in merges:
        text = text.replace(f"{left} {right}", left + right)
    return text.split()


bpe = Exercise(
    cases=[
        (("banana", [("a", "n"), ("b", "an")]), ["ban", "an", "a"]),
        (("abc", [("b", "c"), ("a", "b")]), ["a", "bc"]),
        (("ban", [("b", "a"), ("a", "n")]), ["ba", "n"]),
        (("aaa", [("a", "a")]), ["aa", "a"]),
    ],
    mistakes=[
        (_once_each, "Each rule was applied to the first place only: a rule joins *every* such pair of neighbours."),
        (_left_to_right,
         "You went through the word from the left and joined whatever fits. The order of the *rules* decides: the "
         "first rule everywhere, then the second."),
        (_replaced,
         "Replacing in a text cuts through finished tokens: in 'ba n' it finds 'a n'. Compare whole tokens in a "
         "list."),
        (lambda word, merges: list(word), "These are still the single letters: apply the rules, one after another."),
        (lambda word, merges: "".join(word), "A list of tokens is asked for, not one text."),
    ],
    hint="Start with list(word). For each rule, walk through the list: where two neighbours are the pair, append "
    "them joined and step over both, else append one.",
    right="the tokenizer's loop, with a few thousand rules instead of two.",
)  # fmt: skip

EXERCISES = {
    "tokens_per_word": tokens_per_word,
    "sizes_8b": sizes_8b,
    "llama3_prompt": llama3_prompt,
    "next_token": next_token,
    "bpe": bpe,
}
