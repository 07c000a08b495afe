"""What does a tokenizer's chat template do, and can it be trained on? Found by rendering, not by reading the template.

>>> print(inspect_template(load_tokenizer("data/tiny-llama-3-instruct")))
begins with <|begin_of_text|>; a turn ends with <|eot_id|>
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from anita_utils import AnitaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


# Words that no template writes by itself, so that a rendering shows where the template puts what was said.
QUESTION, AGAIN = ({"role": "user", "content": words} for words in ("Quale mirtillo?", "E quale ginepro?"))
ANSWER, MORE = ({"role": "assistant", "content": words} for words in ("Mirtillo nero.", "Ginepro rosso."))
ANOTHER_MODEL = "take a model whose template does, or another chat_template.jinja for this one"
# In front of a template: the system text joins the first user turn. In the template itself, because TRL and lm-eval
# render chats too. The empty expression keeps Jinja from trimming a line break that the template begins with.
SYSTEM_IN_USER = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
    "{%- set first = {'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']} %}"
    "{%- set messages = [first] + messages[2:] %}{%- endif %}{{ '' }}"
)


@dataclass(frozen=True)
class ChatTemplate:
    """What a chat template does; printed, the facts in one line."""

    bos: str | None  # the token that a chat begins with once, if it is the tokenizer's BOS
    end_of_turn: str  # the special token right after an answer's words
    end_of_turn_id: int
    default_system: int  # tokens of the system prompt that the template adds by itself to a chat that has none

    def __str__(self) -> str:
        begins = f"begins with {self.bos}" if self.bos else "no BOS"
        adds = f"; adds a system prompt of {self.default_system} tokens to each chat without one"
        return f"{begins}; a turn ends with {self.end_of_turn}{adds if self.default_system else ''}"


def without_system_role(template: str) -> str:
    """The template (Gemma's) with a system turn's text put before the first user turn's, a blank line between."""
    return template if template.startswith(SYSTEM_IN_USER) else SYSTEM_IN_USER + template


def render_text(messages: list[dict], tokenizer: Tokenizer, add_generation_prompt: bool = False) -> str:
    """The chat as text. AnitaError where the template fails, or leaves out what the user or the system says."""
    if not tokenizer.chat_template:
        raise AnitaError("the tokenizer has no chat template: take a model that was tuned to chat")
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except Exception as error:  # a template is a program of somebody else's: it can fail in any way
        said = " ".join(str(error).split()) or type(error).__name__
        remedy = "correct the chat (each turn a role and a text, user and assistant in turn), or the template"
        has_system = any(message.get("role") == "system" for message in messages)
        if has_system and not str(tokenizer.chat_template).startswith(SYSTEM_IN_USER):
            remedy = "where it knows no system role, set model.system_in_user: true in the profile"
        raise AnitaError(f"the chat template cannot render a chat ({said}): {remedy}") from error
    for message in messages:
        role, words = message.get("role"), message.get("content")
        if role != "assistant" and isinstance(words, str) and words.strip() not in text:
            remedy = "drop such turns, or set model.system_in_user: true in the profile where they are the system's"
            raise AnitaError(f"the chat template leaves out or changes the words of the role '{role}': {remedy}")
    return text


def token_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """The text's tokens, without any that the tokenizer would add by itself."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def scored_tokens(messages: list[dict], tokenizer: Tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """The chat's token ids, and where each answer is scored: from its first token up to and with the end of its turn.

    A space that the template puts before the words, and which the model has to write too, is scored with them.

    AnitaError when the template does not write an answer's words as they are, rewrites earlier turns, or ends a turn
    with no special token.
    """
    text = render_text(messages, tokenizer)
    ids = token_ids(text, tokenizer)
    spans = []
    for turn, message in enumerate(messages):
        if message.get("role") == "assistant":
            start, end = _answer(messages, turn, text, tokenizer)
            spans.append((_first_token(text[:start], ids, tokenizer), len(token_ids(text[:end], tokenizer))))
    return ids, spans


def _answer(messages: list[dict], turn: int, text: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Where the answer of a turn begins in the chat's text, and where the end of its turn ends."""
    said = messages[turn].get("content")
    if not isinstance(said, str):
        raise AnitaError("an assistant's turn has no text: give its `content` as a string, or leave the chat out")
    upto = text if turn + 1 == len(messages) else render_text(messages[: turn + 1], tokenizer)
    before, after = _around(messages[:turn], tokenizer)
    written = upto[len(before) : len(upto) - len(after)]
    if not (upto.startswith(before) and upto.endswith(after)) or written.strip() != said.strip():
        remedy = f"leave out what it drops, or {ANOTHER_MODEL}"
        raise AnitaError(f"the chat template does not write the answer's words as they are: {remedy}")
    end = len(upto) - len(after) + len(_end_of_turn(after, tokenizer)[0])
    if text[:end] != upto[:end]:
        remedy = "train on chats of one answer, or use a template that only adds"
        raise AnitaError(f"the chat template rewrites earlier turns: {remedy}")
    prompt = render_text(messages[:turn], tokenizer, add_generation_prompt=True)
    shared = len(commonprefix([prompt, before]))
    # White space between prompt and words is for the model to write; words there are the template's own
    return (len(before) if before[shared:].strip() else shared), end


def _around(chat: list[dict], tokenizer: Tokenizer) -> tuple[str, str]:
    before, found, after = render_text([*chat, ANSWER], tokenizer).rpartition(ANSWER["content"])
    if not found:
        raise AnitaError(f"the chat template does not write the assistant's words: {ANOTHER_MODEL}")
    return before, after


def _end_of_turn(after: str, tokenizer: Tokenizer) -> tuple[str, int]:
    """The end of a turn at the beginning of what follows an answer's words, white space before it included; its id."""
    follows = after.lstrip()
    [first, *_] = token_ids(follows, tokenizer) or [None]
    token = "" if first is None else tokenizer.decode([first])
    # A special token is left out of decoded answers, as the end of a turn should be
    if not token.strip() or not follows.startswith(token) or tokenizer.decode([first], skip_special_tokens=True):
        found = f"no special token of the tokenizer ends an answer in the chat template ({follows[:20]!r} follows it)"
        raise AnitaError(f"{found}: {ANOTHER_MODEL}, or add that token to the tokenizer")
    return after[: len(after) - len(follows)] + token, first


def _first_token(before: str, ids: list[int], tokenizer: Tokenizer) -> int:
    """The number of the first token that is not all of the text `before` an answer."""
    own = token_ids(before, tokenizer)
    first = len(commonprefix([own, ids]))
    shared = tokenizer.decode(own[first:])
    if shared.strip():  # such a token can be neither scored nor left out
        remedy = "use a template with a special token, a space or a line break there"
        raise AnitaError(f"the answer's first token begins before the answer ({shared!r}): {remedy}")
    return first


def inspect_template(tokenizer: Tokenizer) -> ChatTemplate:
    """Renders a few short chats and says what the template does.

    AnitaError where chats cannot be trained on: no template, one that fails, no padding or padding with the end of a
    text or turn, two BOS, an answer that is not written as it is, a turn that ends with no special token.
    """
    ids, _ = scored_tokens([QUESTION, ANSWER], tokenizer)
    _, after = _around([QUESTION], tokenizer)
    turn_end, end_id = _end_of_turn(after, tokenizer)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, end_id):
        raise AnitaError("the tokenizer pads with nothing, or with what ends a text or turn: set another pad_token")
    bos = tokenizer.bos_token if ids[0] == tokenizer.bos_token_id else None
    if bos and ids[1] == ids[0]:
        raise AnitaError(f"the chat template begins with {bos} twice: take one of them out of chat_template.jinja")
    longer = render_text([QUESTION, ANSWER, AGAIN, MORE], tokenizer)
    default_system = token_ids(_default_system(longer, turn_end.strip(), bos), tokenizer)
    return ChatTemplate(bos, turn_end.strip(), end_id, len(default_system))


def _default_system(text: str, turn_end: str, bos: str | None) -> str:
    """What a chat without a system turn begins with, apart from its BOS and what opens any user turn."""
    opening = text.partition(ANSWER["content"])[2].partition(AGAIN["content"])[0].lstrip()
    opening = opening.removeprefix(turn_end).lstrip()
    added = text.partition(QUESTION["content"])[0].removesuffix(opening)
    return added.removeprefix(bos) if bos and not opening.startswith(bos) else added  # SmolLM2's opens every turn


def check_tokenizer(tokenizer: Tokenizer, embedding_rows: int | None) -> None:
    """AnitaError for an id beyond the model's embedding: of the vocabulary, of padding, BOS or EOS, or of a chat.

    An added token that nothing writes may lie beyond it: Gemma 3's image token does.
    """
    if embedding_rows is None:
        return
    added = tokenizer.added_tokens_decoder
    used = {number for number in tokenizer.get_vocab().values() if number not in added}
    used |= {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    if tokenizer.chat_template:
        used |= set(token_ids(render_text([QUESTION], tokenizer, add_generation_prompt=True), tokenizer))
        used |= set(token_ids(render_text([QUESTION, ANSWER], tokenizer), tokenizer))
    if (last := max(used)) >= embedding_rows:
        token = f"the tokenizer's {tokenizer.convert_ids_to_tokens(last)!r} has the id {last:,}"
        remedy = "take the tokenizer that belongs to the model"
        raise AnitaError(f"{token}, and the model's embedding {embedding_rows:,} rows: {remedy}")
