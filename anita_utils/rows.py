"""How does a row of training data, whatever its shape, become one of the course's own? And what is left out, and why?

>>> read_row({"conversations": [{"from": "human", "value": "Ciao"}, {"from": "gpt", "value": "Ciao!"}]})
{'messages': [{'role': 'user', 'content': 'Ciao'}, {'role': 'assistant', 'content': 'Ciao!'}]}

The course's rows are {"messages": …}, {"text": …} and {"prompt", "chosen", "rejected"}. A row that teaches nothing is
left out and counted; one that is damaged is an error, as the others may be damaged too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from anita_utils import AnitaError, shown
from anita_utils.paths import read_lines

# Names that older chat data gives to the roles
ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ("system", "user", "assistant", "tool")}
PROMPT_WORDS = 4  # a shorter prompt may well be the beginning of an answer: "Ciao"
NO_ANSWER, EMPTY, NO_PROMPT = "no assistant turn", "an empty answer", "no prompt"
SAME, NO_WORDS = "two answers that are the same", "a tool call, a picture or a sound"
INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff]")


class LeftOut(Exception):
    """A row that teaches nothing; its message is the reason it is counted under."""


def chat(row: dict) -> dict:
    """A row with `messages` or `conversations`: ultrachat_200k, capybara-claude-15k-ita."""
    messages = turns(row["messages"] if row.get("messages") is not None else row.get("conversations"))
    if not any(message["role"] == "system" for message in messages):
        messages = _system(row) + messages
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise LeftOut(NO_ANSWER)
    if not all(map(_says, answers)):
        raise LeftOut(EMPTY)
    if not any(_says(message["content"]) for message in messages if message["role"] != "assistant"):
        raise LeftOut(NO_PROMPT)
    return {"messages": messages}


def instruction(row: dict) -> dict:
    """A row in Alpaca's format, where `input` may be missing or empty."""
    request = "\n\n".join(part for part in (words(row["instruction"]), words(row.get("input"))) if part)
    return chat({"messages": [*_system(row), _turn("user", request), _turn("assistant", row["output"])]})


def completion(row: dict) -> dict:
    """A prompt and its completion, each a text or a chat: TRL's own format, where a `label` may call it a bad one."""
    if row.get("label") is False:
        raise LeftOut("a completion marked as bad")
    return chat({"messages": _chat_of(row["prompt"], "user") + _chat_of(row["completion"], "assistant")})


def text(row: dict) -> dict:
    """Running text: clean_mc4_it."""
    said = words(row["text"])
    if not _says(said):
        raise LeftOut("an empty text")
    return {"text": said}


def preference(row: dict) -> dict:
    """Two answers to one prompt: ultrafeedback_binarized and orpo-dpo-mix-40k as whole chats, evol-dpo-ita as strings.

    Where both chats repeat the prompt, it is taken out of them, so that it is rendered once. Chats that differ before
    their last turn are not two answers to one prompt.
    """
    chosen, rejected = (_chat_of(said, "assistant") for said in _without_prompt(row))
    if not chosen or not rejected:
        raise LeftOut(EMPTY)
    if chosen[:-1] != rejected[:-1]:
        raise LeftOut("answers to different prompts")
    given = [turn for turn in _system(row) + _chat_of(_prompt(row), "user") if turn["content"].strip()]
    opening, answers = chosen[:-1], [chosen[-1], rejected[-1]]
    if not opening or opening[0]["role"] == "assistant":  # chats that go on after the prompt
        prompt = given + opening
    else:  # chats that hold the prompt, or the end of it
        prompt = given if given[-len(opening) :] == opening else opening
    if not any(turn["content"].strip() for turn in prompt):
        raise LeftOut(NO_PROMPT)
    if any(answer["role"] != "assistant" for answer in answers):
        raise LeftOut(NO_ANSWER)
    if not all(_says(turn["content"]) for turn in prompt + answers):
        raise LeftOut(EMPTY)
    if answers[0]["content"].strip() == answers[1]["content"].strip():
        raise LeftOut(SAME)
    return {"prompt": prompt, "chosen": answers[:1], "rejected": answers[1:]}


def _prompt(row: dict) -> Any:
    return row.get("question") or row.get("prompt")


def _without_prompt(row: dict) -> list[Any]:
    """Both answers; where both are strings that begin with the prompt, word for word, they are cut behind it."""
    answers, prompt = [row["chosen"], row["rejected"]], _prompt(row)
    if isinstance(prompt, str) and len(prompt.split()) >= PROMPT_WORDS:
        repeated = re.compile(re.escape(prompt.rstrip()) + r"\s")
        if all(isinstance(answer, str) and repeated.match(answer) for answer in answers):
            return [repeated.sub("", answer, count=1).strip() for answer in answers]
    return answers


# The columns that must be there, those that are read beside them, and what reads them; the first that fits is taken.
SHAPES: list[tuple[tuple[str, ...], tuple[str, ...], Callable[[dict], dict]]] = [
    (("chosen", "rejected"), ("prompt", "question", "system"), preference),
    (("messages",), ("system",), chat),
    (("conversations",), ("system",), chat),
    (("instruction", "output"), ("input", "system"), instruction),
    (("prompt", "completion"), ("label",), completion),
    (("text",), (), text),
]


def read_row(row: dict, others: bool = True) -> dict:
    """The row in the course's own shape, with its other columns where `others` says so.

    LeftOut, with the reason, where it teaches nothing or means more than is read; AnitaError where it is damaged.
    """
    if row.get("tools"):
        raise LeftOut(NO_WORDS)
    if row.get("history"):
        raise LeftOut("earlier turns in a column of their own")
    for columns in ({column for column, value in row.items() if value is not None}, row.keys()):
        for needed, beside, read in SHAPES:
            if columns >= set(needed):
                kept = {column: row[column] for column in row if others and column not in (*needed, *beside)}
                return kept | read(row)
    expected = ", or ".join(" + ".join(needed) for needed, *_ in SHAPES)
    raise AnitaError(f"the columns are {', '.join(sorted(row)) or 'none'}: expected {expected}")


def teaching(rows: Iterable[tuple[str, dict]], left_out: Counter[str], others: bool = True) -> Iterator[dict]:
    """The rows, each given with its place, that teach something; the others are counted in `left_out`, by reason."""
    for place, row in rows:
        try:
            yield read_row(row, others)
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except AnitaError as error:
            raise AnitaError(f"{place}: {error}") from None


def turns(messages: Any) -> list[dict]:
    """The turns of a chat as {"role", "content"}, without an empty system prompt."""
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise AnitaError(f"a chat is {messages!r:.60}: expected a list of turns")
    read = map(_read_turn, messages)
    return [turn for turn in read if turn["role"] != "system" or turn["content"].strip()]


def _read_turn(message: Any) -> dict:
    """A turn in the course's form. LeftOut where it holds more than words, or is marked as not to be trained."""
    keys = ("from", "value") if isinstance(message, dict) and "from" in message else ("role", "content")
    if not isinstance(message, dict) or not message.keys() >= set(keys):
        raise AnitaError(f"a turn is {message!r:.60}: expected role and content, or from and value")
    role = message[keys[0]]
    if not isinstance(role, str) or role not in ROLES:
        raise AnitaError(f"a turn has the role {role!r}: expected system, user or assistant")
    if message.get("weight") == 0 or message.get("train") is False:
        raise LeftOut("a turn marked as not to be trained")
    if message.get("reasoning_content") or message.get("thinking"):
        raise LeftOut("a turn with its thinking")
    if message.get("tool_calls") or message.get("function_call") or role == "tool":
        raise LeftOut(NO_WORDS)
    return _turn(ROLES[role], message[keys[1]])


def words(content: Any) -> str:
    """What a content says: a text, or a list of parts joined. LeftOut where a part is no text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(words(_part(part)) for part in content)
    if not isinstance(content, str):
        raise AnitaError(f"a content is {content!r:.60}: expected text")
    if re.search("[\ud800-\udfff]", content):
        raise AnitaError("a text holds half a character (a lone surrogate, \\ud800 to \\udfff): correct it")
    return content


def _part(part: Any) -> str:
    if isinstance(part, dict):
        if not isinstance(part.get("text"), str) or part.get("type", "text") != "text":
            raise LeftOut(NO_WORDS)
        return part["text"]
    if not isinstance(part, str):
        raise AnitaError(f"a part of a content is {part!r:.60}: expected text")
    return part


def _system(row: dict) -> list[dict]:
    system = words(row.get("system"))
    return [_turn("system", system)] if system.strip() else []


def _says(text: str) -> bool:
    """Whether a text holds more than white space and invisible characters."""
    return bool(INVISIBLE.sub("", text).strip())


def _chat_of(said: Any, role: str) -> list[dict]:
    return turns(said) if isinstance(said, list) else [_turn(role, said)]


def _turn(role: str, content: Any) -> dict:
    return {"role": role, "content": words(content)}


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a JSON Lines file as they are. AnitaError, with file and line, for what is no JSON object."""
    return [row for _, row in _placed(path)]


def read_rows(path: str | Path) -> tuple[list[dict], Counter[str]]:
    """The rows of a JSON Lines file in the course's own shape, and how many were left out, by reason."""
    left_out: Counter[str] = Counter()
    return list(teaching(_placed(path), left_out)), left_out


def _once(pairs: list[tuple[str, Any]]) -> dict:
    """An object in which no key appears twice; json alone would keep the last value and say nothing."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return dict(pairs)


def _placed(path: str | Path) -> list[tuple[str, dict]]:
    """The objects of a JSON Lines file, each with its file and line."""
    rows = []
    for number, line in read_lines(path):
        place = f"{shown(path)}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
            said = getattr(error, "msg", error)
            raise AnitaError(f"{place}: not JSON ({said}): correct or delete that line") from None
        if not isinstance(row, dict):
            raise AnitaError(f"{place}: not a JSON object: write one a line (`jq -c '.[]'` does so with an array)")
        rows.append((place, row))
    return rows
