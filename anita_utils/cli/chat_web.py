"""How does the chat look in a browser? `anita chat --web`: one model or two side by side, on this machine alone.

Made with gradio, an extra (`web`). No analytics, no fonts or scripts from elsewhere: it works without a network.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from anita_utils import AnitaError
from anita_utils.conversation import Chat, Decoding, Partner, answer, fitted

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"
INSTALL = "pip install --constraint constraints.txt --editable '.[web]'"


# In a narrow window the boxes stand one below the other: both, and the question, fit into it
STYLE = "@media (max-width: 700px) { .side { height: 32vh !important } }"


@dataclass
class Column:
    """What a model sees of its chat, and all that is shown of it: what was dropped too, and notes."""

    chat: Chat = field(default_factory=Chat)
    shown: list[dict] = field(default_factory=list)

    def escaped(self) -> list[dict]:
        """What is shown, for gradio, which takes a text for HTML: what a model writes is neither run nor fetched."""
        return [one | {"content": html.escape(one["content"], quote=False)} for one in self.shown]


def check_installed() -> None:
    """AnitaError, which says how to install it, without gradio."""
    if find_spec("gradio") is None:
        raise AnitaError(f"--web needs gradio, which is not installed: {INSTALL}")


def serve(partners: list[Partner], system: str, decoding: Decoding) -> None:
    """Loads the models, serves the page and says where, until Ctrl-C."""
    for partner in partners:
        print(f"model '{partner.name}', a context of {partner.context:,} tokens", flush=True)
    # A proxy, of a university say, would be asked for this machine's own page
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), HOST]))
    app = page(partners, system, decoding)
    options = {"footer_links": [], "run_history": False, "ssr_mode": False, "quiet": True, "show_error": True}
    _, address, _ = app.launch(server_name=HOST, share=False, prevent_thread_lock=True, css=STYLE, **options)
    print(f"the chat is at {address}; Ctrl-C ends it", flush=True)
    app.block_thread()


def page(partners: list[Partner], system: str, decoding: Decoding) -> Blocks:
    """The page; nothing is served yet."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import gradio as gr

    with gr.Blocks(title="anita chat", analytics_enabled=False, fill_width=True) as app:
        columns = gr.State([Column() for _ in partners])
        with gr.Row():
            # No Markdown, and no button to copy: it would copy the escaped text
            plain = {"render_markdown": False, "buttons": [], "feedback_options": None, "elem_classes": "side"}
            boxes = [gr.Chatbot(label=one.name, height="55vh", min_width=300, **plain) for one in partners]
        question = gr.Textbox(label="Question", placeholder="Ask something", submit_btn="Ask", stop_btn="Stop")
        new = gr.Button("New chat")
        with gr.Accordion("Settings", open=False), gr.Row():
            settings = [
                gr.Textbox(system, label="System prompt"),
                gr.Number(decoding.temperature, label="Temperature (0: greedy)", step=0.1),
                gr.Number(decoding.top_p, label="Top-p", step=0.05),
                gr.Number(decoding.max_new_tokens, label="Tokens, at most", precision=0, minimum=1),
                gr.Number(decoding.seed, label="Seed", precision=0, minimum=0, maximum=2**32 - 1),
            ]

        def ask(*given: Any) -> Iterator[Sequence]:
            """What changes on the page after each piece. The question is cleared once: the next may be typed then."""
            typed = ""
            try:
                for changed in reply(partners, *given):
                    yield typed, changed, *(column.escaped() for column in changed)
                    typed = gr.skip()
            except AnitaError as error:
                gr.Warning(html.escape(str(error)))  # an Error would be drawn over the chats
                yield [gr.skip()] * (2 + len(boxes))

        def forget(numbers: list[int], kept: list[Column]) -> tuple:
            """What changes on the page where the columns of these numbers begin anew."""
            columns = [Column() if number in numbers else column for number, column in enumerate(kept)]
            return columns, *(column.escaped() for column in columns)

        asking = question.submit(ask, [question, columns, *settings], [question, columns, *boxes])
        question.stop(None, cancels=[asking])
        # First the answer ends, then its chat: else its last piece would bring the chat back. A box's own button alone
        # would empty what is shown, and the model remember.
        everything = range(len(boxes))
        for begun, numbers in ((new.click, everything), *((box.clear, [number]) for number, box in enumerate(boxes))):
            ended = begun(None, cancels=[asking])
            ended.then(partial(forget, numbers), columns, [columns, *boxes])
    return app


def reply(
    partners: list[Partner],
    question: str,
    columns: list[Column],
    system: str,
    temperature: float | None,
    top_p: float | None,
    max_new_tokens: int | None,
    seed: int | None,
) -> Iterator[list[Column]]:
    """What every column shows, after each piece of an answer: the models answer one after the other."""
    if None in (temperature, top_p, max_new_tokens, seed):
        raise AnitaError("a setting is empty: give it a number")
    decoding = Decoding(temperature, top_p, int(max_new_tokens), int(seed))
    if not question.strip():
        raise AnitaError("no question: write one")
    chats = [replace(column.chat, system=system.strip(), turns=[*column.chat.turns]) for column in columns]
    for partner, chat in zip(partners, chats, strict=True):  # before any answers: the chats stay of the same questions
        chat.check(partner.tokenizer)
        fitted(replace(chat, turns=[*chat.turns]), partner, question.strip(), decoding.max_new_tokens, lambda _: None)
    for column, chat in zip(columns, chats, strict=True):
        column.chat = chat
    for partner, column in zip(partners, columns, strict=True):
        notes: list[str] = []
        pieces = answer(column.chat, partner, question, decoding, notes.append)
        written = {"role": "assistant", "content": ""}
        column.shown += [*map(_note, notes), {"role": "user", "content": question}, written]
        notes.clear()
        yield columns
        for piece in pieces:
            written["content"] += piece
            yield columns
        column.shown += map(_note, notes)
        yield columns


def _note(line: str) -> dict:
    """A line about the chat, as gradio shows what is no answer."""
    return {"role": "assistant", "content": "", "metadata": {"title": line}}
