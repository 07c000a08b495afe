"""How does a chat of several turns go: what does the model see of it, what no longer fits, and what does it answer?

>>> chat = Chat(system="Rispondi in italiano.")
>>> for piece in answer(chat, partner, "Qual è la capitale del Piemonte?"):
...     print(piece, end="")

The terminal and the browser show it; neither is known here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING

from anita_utils import AnitaError
from anita_utils.chat_template import render_text
from anita_utils.data import render
from anita_utils.model import end_tokens
from anita_utils.rows import words

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TextIteratorStreamer
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class Decoding:
    """How an answer's tokens are chosen: at temperature 0 the likeliest, else drawn from those that make up `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 42  # of a chat's first answer; the next ones count on from it

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 0.01 <= self.temperature < math.inf):
            raise AnitaError(f"temperature {self.temperature}: give 0, which is greedy, or 0.01 and more")
        if not 0 < self.top_p <= 1:
            raise AnitaError(f"top-p {self.top_p}: give a share above 0, up to 1")

    def options(self) -> dict:
        """For `generate`. transformers would keep the 50 likeliest tokens beside: here top-p alone cuts."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


# By name; the authors' as data/paper/hyperparameters.csv has them from their repository, where no top-k is given.
DECODINGS = {"greedy": Decoding(), "anita": Decoding(temperature=0.6, top_p=0.9, max_new_tokens=512)}


@dataclass
class Partner:
    """A model to talk to. Its weights are loaded when they are first needed, so that its name can be wrong cheaply."""

    name: str
    tokenizer: Tokenizer
    load: Callable[[], PreTrainedModel]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded when it is first asked for."""
        return self.load()

    def unload(self) -> None:
        """Frees the memory of the weights, until they are needed again."""
        self.__dict__.pop("model", None)

    @property
    def context(self) -> float:
        """How many tokens the model was made for, question and answer together; inf where it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or math.inf

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return end_tokens(self.model, self.tokenizer)


@dataclass
class Chat:
    """What was said, as the model sees it."""

    system: str = ""
    turns: list[dict] = field(default_factory=list)  # a question and its answer, by turns
    answers: int = 0  # since the beginning, those that are no longer seen too

    def messages(self, question: str, dropped: int = 0) -> list[dict]:
        """The chat with a new question, without its oldest turns, for the chat template."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns[dropped:], {"role": "user", "content": question}]

    def check(self, tokenizer: Tokenizer) -> None:
        """AnitaError where the template refuses or drops the system prompt, or what was said."""
        render_text(self.messages("?"), tokenizer, add_generation_prompt=True)

    def remember(self, question: str, said: str) -> None:
        """Adds a question and its answer."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        self.answers += 1


def note(line: str) -> None:
    """Says something about the chat that is no part of it."""
    print(f"({line})", file=sys.stderr, flush=True)


def fitted(
    chat: Chat, partner: Partner, question: str, wanted: int, say: Callable[[str], None] = note
) -> tuple[list[int], int]:
    """The tokens of the chat with a new question, and how many its answer may have: `wanted`, or fewer.

    Where they are more than the model was made for together, the oldest questions and answers are dropped from the
    chat, no more than needed. say: is told what is dropped, in numbers.

    AnitaError, and nothing is dropped, where the question alone leaves no room for an answer.
    """

    def rendered(dropped: int) -> list[int]:
        """The chat's tokens without so many of its oldest turns."""
        return render(chat.messages(question, dropped), partner.tokenizer, add_generation_prompt=True)

    whole, dropped = rendered(0), 0
    ids = whole
    while len(ids) + wanted > partner.context and dropped < len(chat.turns):
        dropped += 2
        ids = rendered(dropped)
    room = min(wanted, partner.context - len(ids))
    if room < 1:
        size = f"{len(ids):,} tokens with the system prompt, and the model's context has {partner.context:,}"
        raise AnitaError(f"the question is too long ({size}): shorten it")
    if dropped:
        gone = f"the oldest {dropped // 2} of {len(chat.turns) // 2} answers and their questions"
        size = f"{len(whole):,} tokens and {wanted:,} for an answer are more than {partner.context:,}"
        say(f"the context is full ({size}): {gone} are dropped, {len(whole) - len(ids):,} tokens")
        del chat.turns[:dropped]
    if room < wanted:
        say(f"the context leaves {room:,} tokens for the answer, of the {wanted:,} wanted")
    return ids, room


def answer(
    chat: Chat,
    partner: Partner,
    question: str,
    decoding: Decoding = DECODINGS["greedy"],
    say: Callable[[str], None] = note,
) -> Iterator[str]:
    """The answer to a question, in pieces as they come; then the chat holds both. Closed early, it holds what was said.

    say: is told at once what is dropped from the chat, and at the end where an answer is cut off or empty.

    AnitaError, at once, where there is no room for an answer.
    """
    from transformers import TextIteratorStreamer

    question = words(question).strip()
    ids, room = fitted(chat, partner, question, decoding.max_new_tokens, say)
    streamer = TextIteratorStreamer(partner.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def pieces() -> Iterator[str]:
        """What the streamer gives, while the model works in a thread of its own; then the chat holds it."""
        stopped, ended = Event(), False
        with ThreadPoolExecutor(1) as pool:
            generating = pool.submit(_generate, partner, ids, room, decoding, chat.answers, streamer, stopped)
            try:
                yield from filter(None, streamer)
                ended = True
            finally:
                stopped.set()
                tokens = generating.result()
                said = partner.tokenizer.decode(tokens, skip_special_tokens=True).strip()
                if said or ended:
                    chat.remember(question, said)
        if tokens[-1] not in partner.ends:
            say(f"the answer is cut off after {len(tokens):,} tokens (max_new_tokens)")
        elif not said:
            say("the answer is empty: the model ended its turn at once")

    return pieces()


def _generate(
    partner: Partner,
    ids: list[int],
    room: int,
    decoding: Decoding,
    number: int,
    streamer: TextIteratorStreamer,
    stopped: Event,
) -> list[int]:
    """The tokens of an answer, handed to `streamer` one by one until `stopped` is set. number: of the answer."""
    import torch

    def stop(tokens: torch.Tensor, *_, **__) -> torch.Tensor:
        """For `generate`, after each token: whether each row has to end."""
        return torch.full((len(tokens),), stopped.is_set(), device=tokens.device)

    try:
        prompt = torch.tensor([ids], device=partner.model.device)
        torch.manual_seed(decoding.seed + number)  # an answer's draws hang on no other answer's length
        with torch.inference_mode():
            output = partner.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=room,
                pad_token_id=partner.tokenizer.pad_token_id,
                eos_token_id=partner.ends,
                streamer=streamer,
                stopping_criteria=[stop],
                **decoding.options(),
            )
        return output[0, len(ids) :].tolist()
    finally:
        streamer.end()  # or who reads it waits for ever after an error
