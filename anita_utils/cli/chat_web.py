"""How does the chat look in a browser? `anita chat --web`: one model or two side by side, on this machine alone.

Made with gradio, an extra (`web`). No analytics, no fonts or scripts from elsewhere: it works without a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from anita_utils import AnitaError
from anita_utils.conversation import Chat, Decoding, Partner, answer

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"
INSTALL = "pip install --constraint constraints.txt --editable '.[web]'"


@dataclass
class Column:
    """What a model sees of its chat, and all that is shown of it: what was dropped too, and notes."""

    chat: Chat = field(default_factory=Chat)
    shown: list[dict] = field(default_factory=list)


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
    _, address, _ = app.launch(server_name=HOST, share=False, prevent_thread_lock=True, **options)
    print(f"the chat is at {address}; Ctrl-C ends it", flush=True)
    app.block_thread()


def page(partners: list[Partner], system: str, decoding: Decoding) -> Blocks:
    """The page; nothing is served yet."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import gradio as gr

    with gr.Blocks(title="anita chat", analytics_enabled=False) as app:
        columns = gr.State([Column() for _ in partners])
        with gr.Row():
            # As plain text: what a model writes is neither run nor fetched from elsewhere
            plain = {"render_markdown": False, "buttons": ["copy"], "feedback_options": None}
            boxes = [gr.Chatbot(label=one.name, height="55vh", min_width=300, **plain) for one in partners]
        question = gr.Textbox(label="Question", placeholder="Ask something", submit_btn="Ask", stop_btn=True)
        new = gr.Button("New chat")
        with gr.Accordion("Settings", open=False), gr.Row():
            settings = [
                gr.Textbox(system, label="System prompt"),
                gr.Number(decoding.temperature, label="Temperature (0: greedy)", step=0.1),
                gr.Number(decoding.top_p, label="Top-p", step=0.05),
                gr.Number(decoding.max_new_tokens, label="Tokens an answer may have", precision=0, minimum=1),
                gr.Number(decoding.seed, label="Seed", precision=0),
            ]

        def ask(*given):
            typed = ""  # the question is cleared once; what is typed while answers come stays
            for changed in reply(partners, *given):
                yield typed, changed, *(column.shown for column in changed)
                typed = gr.skip()

        def forget(number, kept):
            return [Column() if place == number else column for place, column in enumerate(kept)]

        asking = question.submit(ask, [question, columns, *settings], [question, columns, *boxes])
        question.stop(None, cancels=[asking])
        new.click(lambda: ([Column() for _ in boxes], *([] for _ in boxes)), None, [columns, *boxes], cancels=[asking])
        for number, box in enumerate(boxes):  # its own button would empty the box alone, and the model remember
            box.clear(partial(forget, number), columns, columns, cancels=[asking])
    return app


def reply(
    partners: list[Partner],
    question: str,
    columns: list[Column],
    system: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
) -> Iterator[list[Column]]:
    """What every column shows, after each piece of an answer: the models answer one after the other."""
    decoding = Decoding(temperature, top_p, int(max_new_tokens), int(seed))
    if not question.strip():
        raise AnitaError("no question: write one")
    for partner, column in zip(partners, columns, strict=True):
        column.chat = replace(column.chat, system=system.strip())
        column.chat.check(partner.tokenizer)
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
    return {"role": "assistant", "content": "", "metadata": {"title": line}}
