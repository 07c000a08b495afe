"""What does a model answer? `anita chat`: single prompts, or a chat: typed, piped in, or in the browser.

anita chat dpo                              # a chat; /help inside it
anita chat dpo --web                        # beside the base, in the browser
anita chat base --prompts questions.txt     # each question by itself, answers as JSON lines
printf 'Ciao!\nE tu?\n' | anita chat dpo    # a chat of two turns, answers alone on standard output
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anita_utils import AnitaError, shown
from anita_utils.cli import ModelName, RunName
from anita_utils.paths import read_lines
from anita_utils.rows import words

if TYPE_CHECKING:
    from anita_utils.conversation import Chat, Decoding, Partner
    from anita_utils.profile import Profile
    from anita_utils.run import Run

HELP = """\
/reset          begins a new chat; the system prompt stays
/system TEXT    sets the system prompt, without TEXT removes it; what was said stays
/model NAME     goes on with another model: base, sft, italian, dpo, a folder or a Hub name; what was said stays
/help           this list
/quit           ends the chat, as Ctrl-D does; Ctrl-C ends an answer"""


def chat(
    model: ModelName = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to ask; can be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt a line; answers as JSON lines.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    sampling: Annotated[
        Literal["greedy", "anita"], typer.Option(help="anita: as its authors, temperature 0.6, top-p 0.9, 512 tokens.")
    ] = "greedy",
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token, above it is drawn.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draws from the likeliest that have this share.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of the draws; else 42.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where an answer is cut off; else 128, or the sampling's.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Whose evaluation.load_in_4bit holds; else the run's.")] = None,
    run: RunName = None,
    web: Annotated[bool, typer.Option("--web", help="In the browser, on this machine alone.")] = False,
    against: Annotated[str | None, typer.Option(help="With --web: the model beside it; else base.")] = None,
) -> None:
    """Ask a model; without prompts, a chat."""
    if bool(prompt) + bool(prompts) + web > 1:
        raise AnitaError("--prompt, --prompts and --web exclude each other: give one of them")
    if against and not web:
        raise AnitaError("--against shows a second model in the browser: add --web")
    asked = [line.strip() for _, line in read_lines(prompts)] if prompts else [words(one) for one in prompt or []]
    if prompts and not asked:
        raise AnitaError(f"{shown(prompts)} holds no prompt: write one a line")
    settings = {"temperature": temperature, "top_p": top_p, "seed": seed, "max_new_tokens": max_new_tokens}
    decoding = chosen_decoding(sampling, {key: value for key, value in settings.items() if value is not None})
    if web:
        from anita_utils.cli.chat_web import check_installed, serve

        check_installed()
    from anita_utils.conversation import Chat

    opening = Chat(words(system).strip())
    models = Models.chosen(model, profile, run)
    if web:
        serve([models.open(name, opening) for name in models.beside(against)], opening.system, decoding)
        return
    if not asked:
        Terminal(opening, models.open(models.name, opening), models, decoding).run()
        return
    answers = ask(asked, opening.system, models.open(models.name, opening), decoding)
    for question, said in zip(asked, answers, strict=True):
        if prompts:
            print(json.dumps({"prompt": question, "answer": said}, ensure_ascii=False))
        else:
            print(f"> {question}\n{said}")


def chosen_decoding(name: str, given: dict) -> Decoding:
    """The settings of that name with those that are given instead. AnitaError where one would change nothing."""
    from anita_utils.conversation import DECODINGS

    decoding = replace(DECODINGS[name], **given)
    if decoding.temperature == 0 and given.keys() & {"top_p", "seed"}:
        raise AnitaError("--top-p and --seed change nothing in greedy answers: add --temperature, or --sampling anita")
    return decoding


@dataclass
class Models:
    """The models that can be talked to, by name, and how they are held."""

    name: str
    run: Run | None
    settings: Profile

    @classmethod
    def chosen(cls, name: str | None, profile: str | None = None, run_name: str | None = None) -> Models:
        """The run, profile and model that the options mean; without a name, the run's last stage, which is said."""
        from anita_utils.hub import STAGES
        from anita_utils.profile import load_profile
        from anita_utils.run import Run, chosen_run

        of_a_run = run_name or name is None or name in STAGES
        run = chosen_run(run_name) if of_a_run else Run.latest()
        settings = load_profile(profile or "cpu") if profile or run is None else run.profile
        if name is None:
            name = run.last_stage() if run else "base"
            print(f"model '{name}'", file=sys.stderr)
        return cls(name, run, settings)

    def beside(self, against: str | None) -> list[str]:
        """The models shown side by side: one where the base would be beside itself."""
        return list(dict.fromkeys([against or "base", self.name]))

    def open(self, name: str, chat: Chat) -> Partner:
        """The model called `name`. AnitaError, before any weights are loaded, where it cannot go on with the chat."""
        from anita_utils.hub import resolve_model

        path = resolve_model(name, run=self.run)  # before the slow imports, so that a wrong name is reported at once

        from transformers.utils import logging

        from anita_utils.conversation import Partner
        from anita_utils.model import checked_tokenizer, load_for_evaluation

        logging.disable_progress_bar()  # a model is loaded in the middle of a chat, too
        tokenizer = checked_tokenizer(path, self.settings.model.system_in_user)
        # A chat that is too long is said, or its oldest turns go: the library's own warning would come before
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        chat.check(tokenizer)
        return Partner(name, tokenizer, lambda: load_for_evaluation(path, self.settings))


def ask(prompts: list[str], system: str, partner: Partner, decoding: Decoding) -> Iterator[str]:
    """An answer to each prompt by itself; greedy ones, to prompts that leave room for them, are made in batches."""
    from anita_utils.conversation import Chat, answer, fitted
    from anita_utils.model import chat as answers

    rooms = [fitted(Chat(system), partner, one, decoding.max_new_tokens, lambda _: None)[1] for one in prompts]
    if decoding.temperature == 0 and min(rooms) == decoding.max_new_tokens:
        yield from answers(partner.model, partner.tokenizer, prompts, system, decoding.max_new_tokens)
    else:
        for prompt in prompts:
            yield "".join(answer(Chat(system), partner, prompt, decoding)).strip()


@dataclass
class Terminal:
    """A chat by lines: typed, or piped in. Answers go to standard output, all else to standard error."""

    chat: Chat
    partner: Partner
    models: Models
    decoding: Decoding

    def run(self) -> None:
        """Takes line after line to the end. A mistake ends what is piped in, but not a chat at the keyboard."""
        if sys.stdin is None:  # closed by the shell: <&-
            return
        keyboard = sys.stdin.isatty()
        if keyboard:
            say(f"{self.introduced()}. Ask something; /help lists the commands, Ctrl-D ends the chat.")
        for line in typed() if keyboard else sys.stdin:
            try:
                if not self.take(line.strip()):
                    return
            except KeyboardInterrupt:
                if not keyboard:
                    raise
                say("(stopped; what was said stays in the chat)")
            except AnitaError as error:
                if not keyboard:
                    raise
                say(" ".join(str(error).split()))

    def take(self, line: str) -> bool:
        """Answers a line, or does what it commands; False where it ends the chat."""
        command, _, rest = line.partition(" ")
        match command, rest.strip():
            case "", _:
                pass
            case "/quit", "":
                return False
            case "/help", "":
                say(HELP)
            case "/reset", "":
                say(f"a new chat; dropped: {self.said()}")
                self.chat = replace(self.chat, turns=[], answers=0)
            case "/system", text:
                changed = replace(self.chat, system=words(text))
                changed.check(self.partner.tokenizer)
                self.chat = changed
                say(f"system prompt {'set' if text else 'removed'}; kept: {self.said()}")
            case "/model", name if name:
                self.change(name)
                say(f"{self.introduced()}; kept: {self.said()}")
            case _ if command.startswith("/"):
                raise AnitaError(f"no command {line!r}: /help lists them")
            case _:
                self.answer(line)
        return True

    def introduced(self) -> str:
        """The model's name and size; loads it."""
        return f"model '{self.partner.name}', a context of {self.partner.context:,} tokens"

    def change(self, name: str) -> None:
        """Goes on with another model; with the one before, loaded again when it is asked, where that one cannot be."""
        before, self.partner = self.partner, self.models.open(name, self.chat)
        before.unload()  # memory may not hold both
        try:
            self.introduced()
        except AnitaError:
            self.partner = before
            raise

    def said(self) -> str:
        """How much was said of what the model still sees."""
        number = len(self.chat.turns) // 2
        return f"{number} answer{'' if number == 1 else 's'}, with what was asked"

    def answer(self, question: str) -> None:
        """Prints the answer, piece by piece."""
        from anita_utils.conversation import answer

        notes: list[str] = []
        pieces = answer(self.chat, self.partner, question, self.decoding, notes.append)
        say(*notes)
        notes.clear()
        with closing(pieces):
            try:
                for piece in pieces:
                    print(piece, end="", flush=True)
            finally:
                print(flush=True)
        say(*notes)


def say(*lines: str) -> None:
    """What is no answer: on standard error, so that answers alone can be kept in a file."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def typed() -> Iterator[str]:
    """The lines that are typed, until Ctrl-D."""
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  (arrow keys, and the lines typed before)
    while True:
        try:
            line = input("> ")
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /quit ends the chat)")
        except EOFError:
            print()
            return
        else:
            yield line
