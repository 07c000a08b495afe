"""`anita chat`: prompts by themselves, a chat piped in or typed, its commands; with the small model, loaded once."""

import gc
import json
import shutil
import signal
import sys
import weakref

import pytest
from safetensors.torch import load_file, save_file

from anita_utils import conversation
from anita_utils import model as loading
from anita_utils.cli.chat import HELP
from anita_utils.conversation import DECODINGS, Chat, Decoding, Partner, answer
from anita_utils.model import chat as answers_at_once
from anita_utils.model import load_model
from anita_utils.profile import load_profile
from anita_utils.run import Run

CAPITALS = ["What is the capital of Tuscany?", "And of Piedmont?", "Qual è la capitale del Piemonte?"]


@pytest.fixture
def held(monkeypatch, runs, model, base_path):
    """What models were loaded from, and how they were held; the small model is taken from memory."""
    calls = []

    def load(path, profile):
        calls.append((str(path), profile))
        return model if str(path) == str(base_path) else load_model(path).eval()

    monkeypatch.setattr(loading, "load_for_evaluation", load)
    return calls


@pytest.fixture
def partner(model, tokenizer):
    return Partner("base", tokenizer, lambda: model)


class Piped(list):
    """Standard input from a pipe."""

    def isatty(self):
        return False


@pytest.fixture
def piped(anita, monkeypatch, held):
    """Pipes lines into the chat; returns exit code, stdout and stderr."""

    def call(*lines, options=("base",)):
        monkeypatch.setattr(sys, "stdin", Piped(f"{line}\n" for line in lines))
        return anita("chat", *options)

    return call


@pytest.fixture
def typed(anita, monkeypatch, held):
    """Types lines; a KeyboardInterrupt among them is a Ctrl-C at the prompt, the end a Ctrl-D."""

    def call(*lines, options=("base",)):
        waiting = iter(lines)

        def read(prompt):
            line = next(waiting, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        class Keyboard:
            isatty = staticmethod(lambda: True)

        monkeypatch.setattr(sys, "stdin", Keyboard())
        monkeypatch.setattr("builtins.input", read)
        return anita("chat", *options)

    return call


def said(chat, partner, *questions, decoding=DECODINGS["greedy"]):
    """The answers of a chat, as they go to standard output."""
    answers = ["".join(answer(chat, partner, question, decoding, lambda _: None)) for question in questions]
    return "".join(f"{one}\n" for one in answers)


# ---- prompts by themselves


def test_prompts_from_the_command_line(anita, held, model, tokenizer):
    options = ["--prompt", CAPITALS[0], "--prompt", CAPITALS[2], "--system", "Be brief", "--max-new-tokens", "20"]
    code, out, err = anita("chat", "base", *options)
    first, second = answers_at_once(model, tokenizer, [CAPITALS[0], CAPITALS[2]], "Be brief", 20)
    assert (code, err) == (0, "")
    assert out == f"> {CAPITALS[0]}\n{first}\n> {CAPITALS[2]}\n{second}\n"


def test_prompts_from_a_file_give_json_lines(anita, held, tmp_path, model, tokenizer):
    file = tmp_path / "prompts.txt"
    file.write_text("Dov'è la città di Perugia?\n\n  What is a river?  \n", "utf-8")
    code, out, _ = anita("chat", "base", "--prompts", str(file))
    assert code == 0 and "è" in out
    found = [json.loads(line) for line in out.splitlines()]
    asked = ["Dov'è la città di Perugia?", "What is a river?"]
    assert [row["prompt"] for row in found] == asked
    assert [row["answer"] for row in found] == answers_at_once(model, tokenizer, asked, None, 128)


def test_sampled_prompts_each_have_a_chat_of_their_own(anita, held, partner):
    options = ["--temperature", "0.9", "--top-p", "0.8", "--seed", "3", "--max-new-tokens", "9"]
    code, out, _ = anita("chat", "base", "--prompt", "Ciao!", "--prompt", "Ciao!", *options)
    one = said(Chat(), partner, "Ciao!", decoding=Decoding(0.9, 0.8, 9, 3)).strip()
    assert code == 0 and out == f"> Ciao!\n{one}\n" * 2


def test_a_prompt_that_does_not_fit_is_one_line(anita, held):
    code, out, err = anita("chat", "base", "--prompt", "Il Po nasce sul Monviso. " * 400)
    assert (code, out) == (2, "") and err.startswith("anita: the question is too long (") and err.count("\n") == 1


def test_the_last_stage_of_the_latest_run_is_the_default(anita, held, runs, base_path, tiny_path):
    code, _, err = anita("chat", "--prompt", "Ciao", "--max-new-tokens", "1")
    assert code == 0 and "model 'base'" in err
    run = Run.open("trial", "cpu")
    run.model_dir("italian").mkdir(parents=True)
    (run.model_dir("italian") / "merged").symlink_to(tiny_path)
    (run.model_dir("italian") / "stage.json").write_text("{}")
    code, _, err = anita("chat", "--prompt", "Ciao", "--max-new-tokens", "1")
    assert code == 0 and "model 'italian'" in err and "run 'trial'" in err
    assert [path for path, _ in held] == [str(base_path), str(run.model_dir("italian") / "merged")]


def test_a_stage_whose_merged_model_was_deleted_says_how_it_comes_back(anita, typed, held, runs, partner):
    run = Run.open("trial", "cpu")
    run.model_dir("italian").mkdir(parents=True)
    (run.model_dir("italian") / "stage.json").write_text("{}")
    line = "the merged model of 'italian' was deleted for room: `anita train italian --run trial` merges it again"
    for options in (["--prompt", "Ciao"], ["italian"]):
        code, out, err = anita("chat", *options)
        assert (code, out) == (2, "") and err.splitlines()[-1] == f"anita: run 'trial': {line}"
    code, out, err = typed("/model italian", CAPITALS[0])
    assert code == 0 and line in err and out.startswith(said(Chat(), partner, CAPITALS[0]))
    assert len(held) == 1  # the base, once


def test_a_model_is_held_as_the_latest_run_or_the_profile_named_says(anita, held, runs):
    ask = ["chat", "base", "--prompt", "Ciao", "--max-new-tokens", "1"]
    anita(*ask)
    profile = load_profile("cpu")
    profile.evaluation.load_in_4bit = True
    Run.open("trial", profile)
    anita(*ask)
    anita(*ask, "--profile", "h100")
    assert [profile.name for _, profile in held] == ["cpu", "cpu", "h100"]
    assert [profile.evaluation.load_in_4bit for _, profile in held] == [False, True, False]


# ---- a chat


def test_piped_lines_are_turns_of_one_chat_and_answers_alone_are_printed(piped, partner):
    code, out, err = piped(CAPITALS[0], "", CAPITALS[1], options=["base", "--system", "Be brief."])
    assert (code, err) == (0, "")
    assert out == said(Chat("Be brief."), partner, *CAPITALS[:2])
    assert out != said(Chat("Be brief."), partner, CAPITALS[0]) + said(Chat("Be brief."), partner, CAPITALS[1])


def test_an_empty_input_is_no_question(piped, anita, monkeypatch):
    assert piped() == piped("", "  ") == (0, "", "")
    monkeypatch.setattr(sys, "stdin", None)  # closed by the shell: <&-
    assert anita("chat", "base") == (0, "", "")


def test_the_authors_settings_by_name_and_changed(piped, partner):
    _, out, _ = piped("Ciao!", "E tu?", options=["base", "--sampling", "anita", "--max-new-tokens", "9"])
    assert out == said(Chat(), partner, "Ciao!", "E tu?", decoding=Decoding(0.6, 0.9, 9))
    _, out, _ = piped("Ciao!", options=["base", "--sampling", "anita", "--seed", "8", "--temperature", "2"])
    assert out == said(Chat(), partner, "Ciao!", decoding=Decoding(2.0, 0.9, 512, 8))


def test_reset_begins_a_new_chat_with_the_same_draws(piped):
    options = ["base", "--temperature", "1", "--max-new-tokens", "9", "--system", "Be brief."]
    _, out, err = piped("Ciao!", "Hello!", "/reset", "Ciao!", "Hello!", options=options)
    lines = out.splitlines()
    assert len(lines) == 4 and lines[:2] == lines[2:]
    assert "a new chat; dropped: 2 answers, with what was asked" in err


def test_the_system_prompt_is_set_and_removed(piped, partner):
    _, out, err = piped(CAPITALS[0], "/system Rispondi in italiano.", CAPITALS[1], "/system", CAPITALS[2])
    chat = Chat()
    expected = said(chat, partner, CAPITALS[0])
    chat.system = "Rispondi in italiano."
    expected += said(chat, partner, CAPITALS[1])
    chat.system = ""
    assert out == expected + said(chat, partner, CAPITALS[2])
    assert "system prompt set; kept: 1 answer, with" in err and "system prompt removed; kept: 2 answers" in err


def test_another_model_goes_on_with_the_chat(piped, partner, tiny_path, tokenizer, held):
    other = Partner("tiny", tokenizer, lambda: load_model(tiny_path).eval())
    lines = [CAPITALS[0], f"/model {tiny_path}", CAPITALS[1], "/model base", CAPITALS[2]]
    _, out, err = piped(*lines, options=["base", "--max-new-tokens", "9"])
    chat, decoding = Chat(), Decoding(max_new_tokens=9)
    turns = zip(CAPITALS, (partner, other, partner), strict=True)
    assert out == "".join(said(chat, one, question, decoding=decoding) for question, one in turns)
    assert f"model '{tiny_path}', a context of 512 tokens; kept: 1 answer, with" in err and len(held) == 3


def test_only_one_model_is_in_memory(piped, tiny_path, monkeypatch):
    alive = []

    def load(path, profile):
        gc.collect()
        assert [one for one in alive if one() is not None] == []
        loaded = load_model(path).eval()
        alive.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(loading, "load_for_evaluation", load)
    swap = [f"/model {tiny_path}", "Ciao"]
    code, *_ = piped("Ciao", *swap, *swap, options=[str(tiny_path), "--max-new-tokens", "2"])
    assert code == 0 and len(alive) == 3


def test_a_model_whose_weights_cannot_be_read_leaves_the_chat_with_the_one_before(
    typed, partner, held, tiny_path, tmp_path
):
    damaged = shutil.copytree(tiny_path, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    code, out, err = typed(CAPITALS[0], f"/model {damaged}", CAPITALS[1])
    assert code == 0 and "damaged: no weights for model.norm.weight (1 missing)" in err and len(held) == 3
    assert out.startswith(said(Chat(), partner, *CAPITALS[:2]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "no command '/nonsense': /help lists them"),
        ("/model", "no command '/model'"),
        ("/model ./nowhere", "no model folder nowhere"),
        ("/model dpo", "no run yet"),
        ("word " * 3000, "the question is too long ("),
    ],
)
def test_a_mistake_ends_what_is_piped_in_but_not_a_chat_at_the_keyboard(piped, typed, partner, line, message):
    code, out, err = piped(line, CAPITALS[0])
    assert (code, out) == (2, "") and err.startswith(f"anita: {message}") and err.count("\n") == 1
    code, out, err = typed(line, CAPITALS[0])
    assert code == 0 and out.startswith(said(Chat(), partner, CAPITALS[0])) and message in err


def test_a_system_prompt_that_the_template_refuses_changes_nothing(typed, partner, monkeypatch):
    def refuse(self, tokenizer):
        if self.system:
            raise conversation.AnitaError("no system role")

    monkeypatch.setattr(Chat, "check", refuse)
    _, out, err = typed("/system Be brief.", CAPITALS[0])
    assert out.startswith(said(Chat(), partner, CAPITALS[0])) and "no system role" in err


def test_what_is_dropped_and_cut_off_is_said_on_standard_error(piped, tiny_path):
    asked = [f"Domanda {number}: dove nasce il Po? " * 8 for number in range(6)]
    code, out, err = piped(*asked, options=[str(tiny_path), "--max-new-tokens", "9"])
    assert code == 0 and err.count("the answer is cut off after 9 tokens (max_new_tokens)") == 6
    assert "the context is full (" in err and "context" not in out


def test_ctrl_c_ends_an_answer_and_not_the_chat(typed, partner, monkeypatch):
    """A real signal, after the first piece."""
    whole = said(Chat(), partner, CAPITALS[2])
    make = conversation.answer

    def interrupted(chat, one, question, *options):
        pieces = make(chat, one, question, *options)

        def first_alone():
            try:
                yield next(pieces)
                signal.raise_signal(signal.SIGINT)
                yield from pieces
            finally:
                pieces.close()
                kept.append(list(chat.turns))

        return first_alone() if question == CAPITALS[2] else pieces

    kept = []
    monkeypatch.setattr(conversation, "answer", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    code, out, err = typed(KeyboardInterrupt, CAPITALS[2], CAPITALS[0])
    assert code == 0 and "Ctrl-D or /quit ends the chat" in err
    first, rest = out.split("\n", 1)
    assert whole.startswith(first) and first and len(first) < len(whole) - 1
    assert "(stopped; what was said stays in the chat)" in err
    [turns] = kept
    chat = Chat(turns=turns[:2], answers=1)
    assert turns[0]["content"] == CAPITALS[2] and rest.startswith(said(chat, partner, CAPITALS[0]))


def test_help_quit_and_the_end_of_input(typed):
    code, out, err = typed("/help", "", "/quit", "unread")
    assert (code, out) == (0, "") and HELP in err and "a context of 1,024 tokens. Ask something" in err
    assert typed()[:2] == (0, "\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--top-p 0.9", "--top-p and --seed change nothing in greedy answers: add --temperature"),
        ("--seed 1", "--top-p and --seed change nothing"),
        ("--sampling anita --temperature 0 --seed 1", "--top-p and --seed change nothing"),
        ("--temperature -1", "temperature -1.0: give 0"),
        ("--temperature 1 --top-p 2", "top-p 2.0: give a share"),
        ("--prompt x --web", "--prompt, --prompts and --web exclude each other"),
        ("--against base", "--against shows a second model in the browser: add --web"),
    ],
)
def test_options_that_cannot_be_are_one_line(anita, held, options, message):
    code, out, err = anita("chat", "base", *options.split())
    assert (code, out) == (2, "") and err.startswith(f"anita: {message}") and err.count("\n") == 1
    assert held == []
