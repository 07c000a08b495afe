"""`anita chat --web`: what each column shows after each piece, and the page as it is built; no server is started."""

import copy
import inspect
from importlib.util import find_spec

import pytest

from anita_utils import AnitaError
from anita_utils.cli import chat_web
from anita_utils.cli.chat_web import Column, page, reply, serve
from anita_utils.conversation import Chat, Decoding, Partner, answer
from anita_utils.model import load_model

QUESTIONS = ["Qual è la capitale del Piemonte?", "And of Tuscany?"]


@pytest.fixture(scope="module")
def partners(base_path, tiny_path, tokenizer):
    loaded = {"base": load_model(base_path).eval(), "tiny": load_model(tiny_path).eval()}
    return [Partner(name, tokenizer, lambda model=model: model) for name, model in loaded.items()]


def asked(partners, columns, question, system="", temperature=0, top_p=1, max_new_tokens=20, seed=42):
    """Each state on the way."""
    given = (question, columns, system, temperature, top_p, max_new_tokens, seed)
    return [copy.deepcopy(columns) for columns in reply(partners, *given)]


def plain(column):
    """What is shown, without notes."""
    return [(one["role"], one["content"]) for one in column.shown if "metadata" not in one]


def test_every_column_has_a_chat_of_its_own_that_grows_piece_by_piece(partners):
    columns, expected = [Column() for _ in partners], [[], []]
    chats = [Chat("Be brief."), Chat("Be brief.")]
    for question in QUESTIONS:
        states = asked(partners, columns, question, "Be brief.", 0.7, 0.9)
        for shown, chat, partner in zip(expected, chats, partners, strict=True):
            said = "".join(answer(chat, partner, question, Decoding(0.7, 0.9, 20), lambda _: None))
            shown += [("user", question), ("assistant", said)]
        assert [plain(column) for column in states[-1]] == expected
        left = [plain(state[0])[-1][1] for state in states]
        assert left[0] == "" and all(then.startswith(now) for now, then in zip(left, left[1:], strict=False))
        first = next(state for state in states if plain(state[0])[-1][1])
        assert len(plain(first[1])) == len(expected[1]) - 2  # the right one waits for the left
    assert [column.chat for column in columns] == chats


def test_what_is_dropped_and_cut_off_is_shown_in_its_column(partners):
    columns = [Column() for _ in partners]
    for number in range(6):
        asked(partners, columns, f"Domanda {number}: dove nasce il Po? " * 8, max_new_tokens=9)
    notes = [[one["metadata"]["title"] for one in column.shown if "metadata" in one] for column in columns]
    assert not any("context" in line for line in notes[0])  # of 1,024 tokens
    assert any("the context is full (" in line for line in notes[1])
    assert "the answer is cut off after 9 tokens (max_new_tokens)" in notes[1]
    assert len(plain(columns[1])) == 12 > len(columns[1].chat.turns)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": " \n"}, "no question: write one"),
        ({"question": "Ciao", "temperature": -1}, "temperature -1"),
        ({"question": "Ciao", "top_p": None}, "a setting is empty: give it a number"),
        ({"question": "Il Po nasce sul Monviso. " * 400}, "the question is too long"),
        (
            {"question": "Il Po nasce sul Monviso. " * 100},
            "the question is too long .* context has 512",
        ),  # the right one's
    ],
)
def test_mistakes_are_one_line_and_change_nothing(partners, given, message):
    columns = [Column() for _ in partners]
    with pytest.raises(AnitaError, match=message):
        asked(partners, columns, **given)
    assert columns == [Column() for _ in partners]


def test_what_a_model_writes_is_no_html(partners):
    column = Column(shown=[{"role": "assistant", "content": "<img src='//example.org/x'> & a"}])
    assert column.escaped() == [{"role": "assistant", "content": "&lt;img src='//example.org/x'&gt; &amp; a"}]
    assert column.shown[0]["content"].startswith("<img")
    columns = [Column() for _ in partners]
    asked(partners, columns, "<b>Ciao</b>")
    assert columns[0].escaped()[0] == {"role": "user", "content": "&lt;b&gt;Ciao&lt;/b&gt;"}
    assert columns[0].chat.turns[0]["content"] == "<b>Ciao</b>"


def test_without_gradio_one_line_says_how_to_install_it(anita, runs, monkeypatch):
    monkeypatch.setattr(chat_web, "find_spec", lambda name: None)
    code, out, err = anita("chat", "base", "--web")
    install = "pip install --constraint constraints.txt --editable '.[web]'"
    assert (code, out) == (2, "")
    assert err == f"anita: --web needs gradio, which is not installed: {install}\n"


# ---- the page

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio, of the extra `web`, is not installed")


@needs_gradio
def test_the_page_shows_the_models_side_by_side_as_plain_text(partners):
    config = page(partners, "Sii breve.", Decoding(0.6, 0.9, 512)).get_config_file()
    found = {}
    for part in config["components"]:
        found.setdefault(part["type"], []).append(part["props"])
    assert [box["label"] for box in found["chatbot"]] == ["base", "tiny"]
    assert not any(box["render_markdown"] for box in found["chatbot"])
    assert [box["value"] for box in found["number"]] == [0.6, 0.9, 512, 42]
    assert "Sii breve." in [box.get("value") for box in found["textbox"]]
    assert config["analytics_enabled"] is False
    # What empties a chat waits for the end of the answer, whose last piece would else bring it back
    assert not any(event["cancels"] and event["outputs"] for event in config["dependencies"])
    assert sum(bool(event["cancels"]) for event in config["dependencies"]) == 4  # stop, new chat, a button each box


@needs_gradio
def test_a_mistake_is_a_warning_that_leaves_question_and_chats_on_the_page(partners, monkeypatch):
    import gradio

    said = []
    monkeypatch.setattr(gradio, "Warning", said.append)
    [ask] = [block.fn for block in page(partners, "", Decoding()).fns.values() if block.name == "ask"]
    [changed] = ask("Il <Po>. " * 400, [Column() for _ in partners], "", 0, 1, 20, 42)
    assert len(said) == 1 and said[0].startswith("the question is too long (")
    assert changed == [gradio.skip()] * 4


@needs_gradio
def test_it_is_served_to_this_machine_alone_and_asks_for_nothing_elsewhere(partners, monkeypatch, capsys):
    import gradio

    given, signature = {}, inspect.signature(gradio.Blocks.launch)

    def launch(self, **options):
        signature.bind(self, **options)
        given.update(options, analytics=self.analytics_enabled)
        return None, "http://127.0.0.1:1/", None

    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda self: None)
    serve(partners, "", Decoding())
    assert (given["server_name"], given["share"], given["analytics"]) == ("127.0.0.1", False, False)
    assert "theme" not in given  # its own, whose fonts lie in the package:
    assert not any("//" in str(sheet) for sheet in gradio.themes.Default()._stylesheets)
    assert chat_web.os.environ["no_proxy"] == "example.org,127.0.0.1"
    assert capsys.readouterr().out.endswith("the chat is at http://127.0.0.1:1/; Ctrl-C ends it\n")
