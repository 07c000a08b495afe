"""What does a model answer? `anita chat`: prompts from the command line, from a file or from the keyboard.

anita chat dpo --prompt "Qual è la capitale del Piemonte?"
anita chat base --prompts questions.txt     # answers as JSON lines
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from anita_utils import AnitaError, shown
from anita_utils.cli import ModelName, RunName
from anita_utils.paths import read_lines
from anita_utils.rows import words


def chat(
    model: ModelName = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to ask; can be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt a line; answers as JSON lines.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut off.")] = 128,
    profile: Annotated[str | None, typer.Option(help="Whose evaluation.load_in_4bit holds; else the run's.")] = None,
    run: RunName = None,
) -> None:
    """Ask a model; without prompts, an interactive chat."""
    if prompt and prompts:
        raise AnitaError("--prompt and --prompts exclude each other: give one of them")
    asked = [line.strip() for _, line in read_lines(prompts)] if prompts else [words(one) for one in prompt or []]
    if prompts and not asked:
        raise AnitaError(f"{shown(prompts)} holds no prompt: write one a line")
    ask = load_chat(model, system, max_new_tokens, profile, run)
    if not asked:
        converse(ask)
        return
    for question, answer in zip(asked, ask(asked), strict=True):
        if prompts:
            print(json.dumps({"prompt": question, "answer": answer}, ensure_ascii=False))
        else:
            print(f"> {question}\n{answer}")


def load_chat(
    name: str | None, system: str | None, max_new_tokens: int, profile: str | None = None, run_name: str | None = None
) -> Callable[[list[str]], list[str]]:
    """Loads a model, named as for `anita chat`; returns a function from prompts to answers."""
    from anita_utils.chat_template import render_text
    from anita_utils.hub import STAGES, resolve_model
    from anita_utils.profile import load_profile
    from anita_utils.run import Run, chosen_run

    of_a_run = run_name or name is None or name in STAGES
    run = chosen_run(run_name) if of_a_run else Run.latest()
    settings = load_profile(profile or "cpu") if profile or run is None else run.profile
    if name is None:
        name = run.last_stage() if run else "base"
        print(f"model '{name}'", file=sys.stderr)
    path = resolve_model(name, run=run)  # before the slow imports, so that a wrong name is reported at once

    from anita_utils.model import chat as generate
    from anita_utils.model import checked_tokenizer, load_for_evaluation

    tokenizer, opening = checked_tokenizer(path, settings.model.system_in_user), words(system)
    if opening:  # a template that refuses or drops it says so before the weights are loaded
        render_text([{"role": "system", "content": opening}, {"role": "user", "content": "?"}], tokenizer)
    model = load_for_evaluation(path, settings)
    return lambda prompts: generate(model, tokenizer, [words(one) for one in prompts], opening, max_new_tokens)


def converse(ask: Callable[[list[str]], list[str]]) -> None:
    """Reads prompts from the keyboard until an empty line or the end of input; each is answered by itself."""
    if sys.stdin is None:  # closed by the shell: <&-
        return
    console = Console()
    console.print("Ask something; an empty line ends the chat. Each question is answered by itself.")
    while True:
        try:
            question = console.input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        console.print(ask([question])[0], markup=False, highlight=False)
