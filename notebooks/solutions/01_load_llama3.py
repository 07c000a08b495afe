"""Solutions to lesson 01's exercises."""

from math import exp

from anita_utils.exercises import check


def tokens_per_word(texts):
    # One ratio of two sums: a long text counts for more than a short one.
    return sum(tokens for _, tokens in texts) / sum(len(text.split()) for text, _ in texts)


check("tokens_per_word", tokens_per_word)

sizes_8b = (8_030_261_248 * 16 / 8 / 1e9, 8_030_261_248 * 4 / 8 / 1e9)  # 16.06 and 4.02 GB

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
        if reached >= top_p:  # asked before adding, so the token that crosses top_p is kept
            break
        kept.append(number)
        reached += chances[number]
    return [chance / reached if number in kept else 0.0 for number, chance in enumerate(chances)]


check("next_token", next_token)


def bpe(word, merges):
    tokens = list(word)
    for left, right in merges:  # the order of the rules decides, not that of the letters
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
