"""What does a tokenizer's chat template do, and can it be trained on? Found by rendering, not by reading the template.

>>> template = inspect_template(load_tokenizer("data/tiny-llama-3-instruct"))
>>> template.end_of_turn, template.system, template.default_system
('<|eot_id|>', 'a turn of its own', 0)

`model.checked_tokenizer` loads a tokenizer and asks all of this; `data.encode_chat` takes from here which tokens of a
chat are scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Literal

from anita_utils import AnitaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Words that no template writes by itself, so that a rendering shows where the template puts what was said.
SYSTEM, QUESTION, AGAIN = "Parla come un vocabolario.", "Quale mirtillo?", "E quale ginepro?"
ANSWER, MORE = "Mirtillo nero.", "Ginepro rosso."
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
    """What a chat template does.

    system: where a system turn's text goes; "none" where the template refuses it or leaves it out.
    bos: the token that a chat begins with once, if it is the tokenizer's BOS.
    default_system: tokens of the system prompt that the template adds by itself to a chat that has none.
    end_of_turn, end_of_turn_id: the special token right after an answer's words.
    overhang: by how many tokens the generation prompt goes beyond what it shares with the answered chat; 0 where it is
        a prefix, as it should be. What overhangs (a `<think>`) is read when answering, and never in training.
    before_answer: what the template writes between the generation prompt and an answer; it is read, never scored.
    grows: whether an answer stays as it was when turns are added.
    alternates: whether two user turns in a row are refused.
    """

    system: Literal["a turn of its own", "the first user turn", "none"]
    bos: str | None
    default_system: int
    end_of_turn: str
    end_of_turn_id: int
    overhang: int
    before_answer: str
    grows: bool
    alternates: bool

    @property
    def prompt_is_prefix(self) -> bool:
        return self.overhang == 0

    def __str__(self) -> str:
        """The facts in one line, for people."""
        known = [
            f"begins with {self.bos}" if self.bos else "no BOS",
            {"none": "no system role"}.get(self.system, f"system text in {self.system}"),
            f"a turn ends with {self.end_of_turn}",
        ]
        if self.default_system:
            known.append(f"adds a system prompt of {self.default_system} tokens to each chat without one")
        if self.overhang:
            known.append(f"the last {self.overhang} of the generation prompt's tokens are in no answered chat")
        if self.before_answer:
            known.append(f"{self.before_answer!r} stands before an answer, not scored")
        if not self.grows:
            known.append("rewrites earlier turns, so only chats of one answer can be trained on")
        if self.alternates:
            known.append("roles must alternate")
        return "; ".join(known)


def without_system_role(template: str) -> str:
    """The template with a system turn's text put before the first user turn's, a blank line between.

    For templates that know no system role (Gemma's). `model.load_tokenizer` does it where its `system_in_user` says so.
    """
    return template if template.startswith(SYSTEM_IN_USER) else SYSTEM_IN_USER + template


def render_text(messages: list[dict], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """The chat as the text that is tokenized.

    AnitaError, one line, where the template refuses the chat, fails, or leaves out what the user or the system says.
    """
    if not tokenizer.chat_template:
        raise AnitaError("the tokenizer has no chat template: take a model that was tuned to chat")
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except Exception as error:  # a template is a program of somebody else's: it can fail in any way
        said = " ".join(str(error).split()) or type(error).__name__
        has_system = any(message.get("role") == "system" for message in messages)
        if has_system and not str(tokenizer.chat_template).startswith(SYSTEM_IN_USER):
            remedy = "where it knows no system role, set model.system_in_user: true in the profile"
        else:
            remedy = "correct the chat (each turn a role and a text, user and assistant in turn), or the template"
        raise AnitaError(f"the chat template cannot render a chat ({said}): {remedy}") from error
    for message in messages:
        role, words = message.get("role"), message.get("content")
        if role != "assistant" and isinstance(words, str) and words.strip() not in text:
            raise AnitaError(
                f"the chat template leaves out or changes the words of the role '{role}': drop such turns, or set "
                "model.system_in_user: true in the profile where they are the system's"
            )
    return text


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The text's tokens, without any that the tokenizer would add by itself."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def scored_tokens(messages: list[dict], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[tuple[int, int]]]:
    """The chat's token ids, and where each answer is scored: from its first token up to and with the end of its turn.

    An answer's tokens begin where the tokens of the text before it cease to be those of the whole: a space that the
    template puts before the words, and which the model has to write too, is scored with them.

    AnitaError as in `render_text`, and when the template does not write an answer's words as they are, rewrites
    earlier turns, or ends a turn with no special token.
    """
    text = render_text(messages, tokenizer)
    ids = token_ids(text, tokenizer)
    spans = []
    for turn, message in enumerate(messages):
        if message.get("role") == "assistant":
            start, end = _answer(messages, turn, text, tokenizer)
            spans.append((_first_token(text[:start], ids, tokenizer), len(token_ids(text[:end], tokenizer))))
    return ids, spans


def _answer(messages: list[dict], turn: int, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Where the answer of a turn begins in the chat's text, and where the end of its turn ends."""
    said = messages[turn].get("content")
    if not isinstance(said, str):
        raise AnitaError("an assistant's turn has no text: give its `content` as a string, or leave the chat out")
    upto = text if turn + 1 == len(messages) else render_text(messages[: turn + 1], tokenizer)
    before, after = _around(messages, turn, tokenizer)
    written = upto[len(before) : len(upto) - len(after)]
    if not (upto.startswith(before) and upto.endswith(after)) or written.strip() != said.strip():
        raise AnitaError(
            "the chat template does not write the answer's words as they are: leave out what it drops, or "
            + ANOTHER_MODEL
        )
    end = len(upto) - len(after) + len(_end_of_turn(after, tokenizer)[0])
    if text[:end] != upto[:end]:
        raise AnitaError(
            "the chat template rewrites earlier turns: train on chats of one answer, or use a template that only adds"
        )
    prompt = render_text(messages[:turn], tokenizer, add_generation_prompt=True)
    shared = len(commonprefix([prompt, before]))
    # White space between prompt and words is for the model to write; words there are the template's own
    return (len(before) if before[shared:].strip() else shared), end


def _around(messages: list[dict], turn: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the template writes before and after the answer of that turn, as the chat's last."""
    text = render_text([*messages[:turn], {**messages[turn], "content": ANSWER}], tokenizer)
    before, found, after = text.rpartition(ANSWER)
    if not found:
        raise AnitaError(f"the chat template does not write the assistant's words: {ANOTHER_MODEL}")
    return before, after


def _end_of_turn(after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """The end of a turn at the beginning of what follows an answer's words, white space before it included; its id."""
    follows = after.lstrip()
    [first, *_] = token_ids(follows, tokenizer) or [None]
    token = "" if first is None else tokenizer.decode([first])
    # A special token is left out of decoded answers, as the end of a turn should be
    if not token.strip() or not follows.startswith(token) or tokenizer.decode([first], skip_special_tokens=True):
        raise AnitaError(
            f"no special token of the tokenizer ends an answer in the chat template ({follows[:20]!r} follows it): "
            f"{ANOTHER_MODEL}, or add that token to the tokenizer"
        )
    return after[: len(after) - len(follows)] + token, first


def _first_token(before: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of the first token that is not all of the text `before` an answer.

    AnitaError where that token holds more of this text than white space: it can be neither scored nor left out.
    """
    own = token_ids(before, tokenizer)
    first = len(commonprefix([own, ids]))
    if tokenizer.decode(own[first:]).strip():
        raise AnitaError(
            f"the answer's first token begins before the answer ({tokenizer.decode(own[first:])!r}): use a template "
            "with a special token, a space or a line break there"
        )
    return first


def inspect_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Renders a few short chats and says what the template does.

    AnitaError, one line with its remedy, where chats cannot be trained on: no template, one that fails, no padding or
    padding with the end of a text or turn, two BOS, an answer that is not written as it is, a turn that does not end
    with one special token.
    """
    ask, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    again, more = {"role": "user", "content": AGAIN}, {"role": "assistant", "content": MORE}
    ids, [(first, end)] = scored_tokens([ask, answer], tokenizer)
    if tokenizer.decode(ids[first : end - 1]).strip() != ANSWER:
        raise AnitaError("the tokenizer does not keep an answer's words: take the tokenizer that the model came with")
    before, after = _around([ask, answer], 1, tokenizer)
    turn_end, end_id = _end_of_turn(after, tokenizer)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, end_id):
        raise AnitaError("the tokenizer pads with nothing, or with what ends a text or turn: set another pad_token")
    bos = tokenizer.bos_token if ids[0] == tokenizer.bos_token_id else None
    if bos and ids[1] == ids[0]:
        raise AnitaError(f"the chat template begins with {bos} twice: take one of them out of chat_template.jinja")

    prompt = render_text([ask], tokenizer, add_generation_prompt=True)
    prompt_ids = token_ids(prompt, tokenizer)
    answered = before + ANSWER + turn_end
    longer = render_text([ask, answer, again, more], tokenizer)
    gap = before[len(commonprefix([prompt, before])) :].strip()
    return ChatTemplate(
        system=_system_place(tokenizer, before.partition(QUESTION)[0]),
        bos=bos,
        default_system=_default_system(longer, turn_end.strip(), bos, tokenizer),
        end_of_turn=turn_end.strip(),
        end_of_turn_id=end_id,
        overhang=len(prompt_ids) - len(commonprefix([prompt_ids, ids])),
        before_answer=gap,
        grows=longer.startswith(answered),
        alternates=not _renders([ask, again], tokenizer),
    )


def _renders(messages: list[dict], tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        render_text(messages, tokenizer)
    except AnitaError:
        return False
    return True


def _system_place(tokenizer: PreTrainedTokenizerBase, opening: str) -> str:
    """Where a system turn's text goes; `opening` is what stands before the question of a chat without a system turn.

    It has a turn of its own where the user's turn opens between its text and the question.
    """
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    if not _renders(messages, tokenizer):
        return "none"
    between = render_text(messages, tokenizer).partition(SYSTEM)[2].partition(QUESTION)[0]
    return "a turn of its own" if _common_suffix(between.rstrip(), opening.rstrip()) else "the first user turn"


def _default_system(text: str, turn_end: str, bos: str | None, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a chat without a system turn begins with, besides its BOS and what opens any user turn."""
    first = text.partition(QUESTION)[0]
    later = text.partition(ANSWER)[2].partition(AGAIN)[0].lstrip().removeprefix(turn_end)
    opening = _common_suffix(first, later).lstrip()
    added = first[: len(first) - len(opening)]
    if bos and not opening.startswith(bos):  # SmolLM2's BOS opens every turn
        added = added.removeprefix(bos)
    return len(token_ids(added, tokenizer))


def _common_suffix(one: str, other: str) -> str:
    return commonprefix([one[::-1], other[::-1]])[::-1]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, embedding_rows: int | None) -> None:
    """AnitaError for an id beyond the model's embedding: of the vocabulary, of padding, BOS or EOS, or of a chat.

    An added token that nothing writes may lie beyond it: Gemma 3's image token does. embedding_rows: None where they
    are not known; then nothing is checked.
    """
    added = tokenizer.added_tokens_decoder
    used = {number for number in tokenizer.get_vocab().values() if number not in added}
    used |= {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    if tokenizer.chat_template:
        ask = [{"role": "user", "content": QUESTION}]
        used |= set(token_ids(render_text(ask, tokenizer, add_generation_prompt=True), tokenizer))
        used |= set(token_ids(render_text([*ask, {"role": "assistant", "content": ANSWER}], tokenizer), tokenizer))
    if embedding_rows is not None and (last := max(used)) >= embedding_rows:
        raise AnitaError(
            f"the tokenizer's {tokenizer.convert_ids_to_tokens(last)!r} has the id {last:,}, and the model's embedding "
            f"{embedding_rows:,} rows: take the tokenizer that belongs to the model"
        )
