"""Lesson 01's exercises: wrong answers as a student would write them, and what each is to be told."""

import numpy as np
from students import SOLUTIONS


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
]
