"""Solutions to lesson 01's exercises."""

from math import exp

from anita_utils.exercises import check


def tokens_per_word(texts):
    # One ratio of two sums: a long text counts for more than a short one.
    tokens = sum(count for _, count in texts)
    words = sum(len(text.split()) for text, _ in texts)
    return tokens / words


check("tokens_per_word", tokens_per_word)

weights = 8_030_261_248
sizes_8b = (weights * 16 / 8 / 1e9, weights * 4 / 8 / 1e9)  # 16.06 and 4.02 GB

check("sizes_8b", sizes_8b)


def llama3_prompt(messages):
    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    turns = [header(turn["role"]) + turn["content"] + "<|eot_id|>" for turn in messages]
    return "<|begin_of_text|>" + "".join(turns) + header("assistant")


check("llama3_prompt", llama3_prompt)


def next_token(logits, temperature, top_p):
    weights = [exp(logit / temperature) for logit in logits]
    chances = [weight / sum(weights) for weight in weights]
    kept, reached = [], 0.0
    for number in sorted(range(len(chances)), key=lambda number: -chances[number]):
        # asked before adding, so the token that crosses top_p is kept
        if reached >= top_p:
            break
        kept.append(number)
        reached += chances[number]
    cut = [0.0] * len(chances)
    for number in kept:
        cut[number] = chances[number] / reached
    return cut


check("next_token", next_token)


def bpe(word, merges):
    tokens = list(word)
    # the order of the rules decides, not that of the letters
    for left, right in merges:
        joined, place = [], 0
        while place < len(tokens):
            if tokens[place : place + 2] == [left, right]:
                joined.append(left + right)
                place += 2
            else:
                joined.append(tokens[place])
                place += 1
        tokens = joined
    return tokens


check("bpe", bpe)
