"""One row of training data, whatever its shape, in the course's own; and what is left out, counted by reason.

>>> read_row({"conversations": [{"from": "human", "value": "Ciao"}, {"from": "gpt", "value": "Ciao!"}]})
{'messages': [{'role': 'user', 'content': 'Ciao'}, {'role': 'assistant', 'content': 'Ciao!'}]}

A row comes out as {"messages": …}, {"text": …} or {"prompt", "chosen", "rejected"}, beside whatever else it holds. One
that teaches nothing is left out and counted; one that is damaged is an error, for the others may be so too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anita_utils import AnitaError, shown
from anita_utils.paths import read_lines

# Names that older chat data gives to the roles
ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ("system", "user", "assistant", "tool")}
PROMPT_WORDS = 4  # a shorter prompt may well be the beginning of an answer: "Ciao"
NO_ANSWER, EMPTY = "no assistant turn", "an empty answer"
NO_TEXT, NO_PROMPT, SAME = "an empty text", "no prompt", "two answers that are the same"
NOT_ONE_PROMPT, NO_WORDS = "answers to different prompts", "a tool call, a picture or a sound"
NOT_TO_BE_TRAINED, BAD = "a turn marked as not to be trained", "a completion marked as bad"
THINKING, EARLIER = "a turn with its thinking", "earlier turns in a column of their own"
BEYOND = ("tools", "history")  # columns that change what a row means, and that are not read
UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff]")


class LeftOut(Exception):
    """A row that teaches nothing; its message is the reason it is counted under."""


# ---------------------------------------------------------------- one shape each


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
        raise LeftOut(BAD)
    return chat({"messages": _chat_of(row["prompt"], "user") + _chat_of(row["completion"], "assistant")})


def text(row: dict) -> dict:
    """Running text: clean_mc4_it."""
    said = words(row["text"])
    if not _says(said):
        raise LeftOut(NO_TEXT)
    return {"text": said}


def preference(row: dict) -> dict:
    """Two answers to one prompt: ultrafeedback_binarized and orpo-dpo-mix-40k as whole chats, evol-dpo-ita as strings.

    Where both chats repeat the prompt, it is taken out of them, so that it is rendered once. Chats that differ before
    their last turn are no two answers to one prompt.
    """
    chosen, rejected = (_chat_of(said, "assistant") for said in without_prompt(row))
    if not chosen or not rejected:
        raise LeftOut(EMPTY)
    if chosen == rejected:
        raise LeftOut(SAME)
    if chosen[:-1] != rejected[:-1]:
        raise LeftOut(NOT_ONE_PROMPT)
    prompt, answers = chosen[:-1], chosen[-1:] + rejected[-1:]
    given = _system(row) + _chat_of(row.get("question") or row.get("prompt"), "user")
    prompt = _joined([turn for turn in given if turn["content"].strip()], prompt)
    if not any(turn["content"].strip() for turn in prompt):
        raise LeftOut(NO_PROMPT)
    if {answer["role"] for answer in answers} != {"assistant"}:
        raise LeftOut(NO_ANSWER)
    if not all(_says(turn["content"]) for turn in prompt + answers):
        raise LeftOut(EMPTY)
    if answers[0]["content"].strip() == answers[1]["content"].strip():
        raise LeftOut(SAME)
    return {"prompt": prompt, "chosen": answers[:1], "rejected": answers[1:]}


def _joined(given: list[dict], opening: list[dict]) -> list[dict]:
    """The prompt in a column of its own, with the turns that both chats begin with.

    Chats that begin with an answer go on after it; else they hold the prompt, or the end of it.
    """
    if not opening or opening[0]["role"] == "assistant":
        return given + opening
    return given if given[-len(opening) :] == opening else opening


def without_prompt(row: dict) -> list[Any]:
    """Both answers; where both are strings that begin with the prompt, word for word, they are cut behind it."""
    said, prompt = [row["chosen"], row["rejected"]], row.get("question") or row.get("prompt")
    whole = isinstance(prompt, str) and len(prompt.split()) >= PROMPT_WORDS
    if whole and all(isinstance(one, str) and re.match(re.escape(prompt.rstrip()) + r"\s", one) for one in said):
        return [one[len(prompt.rstrip()) :].strip() for one in said]
    return said


# The columns that must be there, those that are read beside them, and what reads them; the first that fits is taken.
SHAPES: list[tuple[tuple[str, ...], tuple[str, ...], Callable[[dict], dict]]] = [
    (("chosen", "rejected"), ("prompt", "question", "system"), preference),
    (("messages",), ("system",), chat),
    (("conversations",), ("system",), chat),
    (("instruction", "output"), ("input", "system"), instruction),
    (("prompt", "completion"), ("label",), completion),
    (("text",), (), text),
]


def shape(columns: set[str]) -> tuple[set[str], Callable[[dict], dict]]:
    """Which of these columns are read, and what reads them. AnitaError that lists those expected where nothing does."""
    for needed, beside, read in SHAPES:
        if columns.issuperset(needed):
            return {*needed, *beside}, read
    expected = ", or ".join(" + ".join(needed) for needed, *_ in SHAPES)
    raise AnitaError(f"the columns are {', '.join(sorted(columns)) or 'none'}: expected {expected}")


def shape_of(row: dict) -> tuple[set[str], Callable[[dict], dict]]:
    """As `shape`, by the columns that are not null where those are enough. LeftOut where more is meant than is read."""
    if any(row.get(column) for column in BEYOND):
        raise LeftOut(NO_WORDS if row.get("tools") else EARLIER)
    try:
        return shape({column for column, value in row.items() if value is not None})
    except AnitaError:
        return shape(set(row))


def read_row(row: dict) -> dict:
    """The row in the course's own shape, with its other columns. LeftOut with the reason; AnitaError where damaged."""
    columns, read = shape_of(row)
    return {column: value for column, value in row.items() if column not in columns} | read(row)


# ---------------------------------------------------------------- turns and words


def turns(messages: Any) -> list[dict]:
    """The turns of a chat as {"role", "content"}, without an empty system prompt."""
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise AnitaError(f"a chat is {_shape_of(messages)}: expected a list of turns")
    named = []
    for message in messages:
        keys = ("from", "value") if isinstance(message, dict) and "from" in message else ("role", "content")
        if not isinstance(message, dict) or not set(keys) <= message.keys():
            raise AnitaError(f"a turn is {_shape_of(message)}: expected role and content, or from and value")
        role = message[keys[0]]
        if not isinstance(role, str) or role not in ROLES:
            raise AnitaError(f"a turn has the role {role!r}: expected system, user or assistant")
        if message.get("weight") == 0 or message.get("train") is False:
            raise LeftOut(NOT_TO_BE_TRAINED)
        if any(message.get(key) for key in ("reasoning_content", "thinking")):
            raise LeftOut(THINKING)
        if message.get("tool_calls") or message.get("function_call") or ROLES[role] == "tool":
            raise LeftOut(NO_WORDS)
        named.append(_turn(ROLES[role], message[keys[1]]))
    return [turn for turn in named if turn["role"] != "system" or turn["content"].strip()]


def words(content: Any) -> str:
    """What a content says: a text, or a list of parts joined. LeftOut where a part is no text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise AnitaError(f"a content is {_shape_of(content)}: expected text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise AnitaError("a text holds half a character (a lone surrogate, \\ud800 to \\udfff): correct it") from None
    return content


def _part(part: Any) -> str:
    if isinstance(part, str):
        return words(part)
    if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return words(part["text"])
    if isinstance(part, dict):
        raise LeftOut(NO_WORDS)
    raise AnitaError(f"a part of a content is {_shape_of(part)}: expected text")


def _system(row: dict) -> list[dict]:
    """The system prompt that stands in a column of its own, if there is one."""
    system = words(row.get("system"))
    return [_turn("system", system)] if system.strip() else []


def _says(text: str) -> bool:
    """Whether a text holds more than white space and characters that are not seen."""
    return bool(UNSEEN.sub("", text).strip())


def _chat_of(said: Any, role: str) -> list[dict]:
    """A chat as it is, or a single turn of that role."""
    return turns(said) if isinstance(said, list) else [_turn(role, said)]


def _turn(role: str, content: Any) -> dict:
    return {"role": role, "content": words(content)}


def _shape_of(value: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(str, value)) or 'none'}"
    return "a list" if isinstance(value, list) else json.dumps(value, ensure_ascii=True)[:40]


# ---------------------------------------------------------------- files


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a JSON Lines file as they are. AnitaError naming file and line for one that is not a JSON object."""
    return [row for _, row in _numbered(path)]


def read_rows(path: str | Path) -> tuple[list[dict], Counter[str]]:
    """The rows of a JSON Lines file in the course's own shape, and how many were left out, by reason.

    AnitaError naming file and line for a row that is damaged, of unknown columns, or no JSON.
    """
    rows, left_out = [], Counter()
    for number, row in _numbered(path):
        try:
            rows.append(read_row(row))
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except AnitaError as error:
            raise AnitaError(f"{shown(path)}, line {number}: {error}") from None
    return rows, left_out


def _once(pairs: list[tuple[str, Any]]) -> dict:
    """An object whose keys stand in it once; json would take the last value without a word."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands in it twice")
    return dict(pairs)


def _numbered(path: str | Path) -> list[tuple[int, dict]]:
    if not Path(path).is_file():
        raise AnitaError(
            f"{shown(path)}: no such file: check the name, or build it with `anita world build --no-train`"
        )
    rows = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
            said = getattr(error, "msg", None) or str(error)
            raise AnitaError(f"{shown(path)}, line {number}: not JSON ({said}): correct or delete that line") from None
        if isinstance(row, list):
            raise AnitaError(f"{shown(path)}, line {number}: a JSON array: write one object a line (jq -c '.[]')")
        if not isinstance(row, dict):
            raise AnitaError(f"{shown(path)}, line {number}: not a JSON object: correct or delete that line")
        rows.append((number, row))
    return rows
