"""Chats of several turns: what the model is given, by the template's own rendering; what is dropped, drawn, cut off."""

import re
from threading import Event

import pandas
import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from anita_utils import AnitaError
from anita_utils.conversation import DECODINGS, Chat, Decoding, Partner, _generate, answer
from anita_utils.model import chat as answers_at_once
from anita_utils.model import load_model
from anita_utils.paths import data_dir

QUESTIONS = ["Qual è la capitale del Piemonte?", "What is the capital of Tuscany?", "E quale fiume passa di lì?"]


@pytest.fixture
def partner(model, tokenizer):
    return Partner("base", tokenizer, lambda: model)


@pytest.fixture(scope="session")
def small_model(tiny_path):
    return load_model(tiny_path).eval()


@pytest.fixture
def small(small_model, tokenizer):
    """A random model with a context of 512 tokens, which goes on to the limit and knows no like from unlike."""
    return Partner("tiny", tokenizer, lambda: small_model)


@pytest.fixture
def given(monkeypatch):
    """The prompts' tokens, as the models get them."""
    seen = []

    def spy(partner):
        generate = type(partner.model).generate

        def spying(self, ids, **options):
            seen.append(ids[0].tolist())
            return generate(self, ids, **options)

        monkeypatch.setattr(partner.model, "generate", spying.__get__(partner.model), raising=False)
        return seen

    return spy


def turn(role, content):
    return {"role": role, "content": content}


def by_the_template(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]


@pytest.mark.parametrize("system", ["", "Rispondi in italiano."])
def test_each_turn_is_given_the_whole_chat_as_the_template_renders_it(partner, given, system):
    seen, chat = given(partner), Chat(system)
    messages = [turn("system", system)] if system else []
    for number, question in enumerate(QUESTIONS):
        said = "".join(answer(chat, partner, f" {question}\n")).strip()
        messages.append(turn("user", question))
        assert seen[number] == by_the_template(partner.tokenizer, messages)
        assert seen[number].count(partner.tokenizer.bos_token_id) == 1
        messages.append(turn("assistant", said))
    assert chat.turns == messages[bool(system) :] and chat.answers == 3


def test_what_was_said_changes_the_next_answer(partner):
    chat = Chat()
    first, then = ["".join(answer(chat, partner, question)) for question in (QUESTIONS[1], "And of Piedmont?")]
    assert "Florence" in first and then != "".join(answer(Chat(), partner, "And of Piedmont?"))


def test_in_pieces_it_is_the_greedy_answer(partner, small):
    for one, limit in ((partner, 128), (small, 60)):
        whole = answers_at_once(one.model, one.tokenizer, QUESTIONS, None, limit, batch_size=1)
        for question, expected in zip(QUESTIONS, whole, strict=True):
            chat = Chat()
            pieces = list(answer(chat, one, question, Decoding(max_new_tokens=limit), lambda _: None))
            assert len(pieces) > 2 and all(pieces)
            assert "".join(pieces).strip() == chat.turns[1]["content"] == expected


def test_an_answer_closed_early_is_kept_as_far_as_it_was_said(small):
    decoding = Decoding(max_new_tokens=200)
    chat, whole = Chat(), Chat()
    "".join(answer(whole, small, "Ciao", decoding, lambda _: None))
    pieces = answer(chat, small, "Ciao", decoding)
    first = next(pieces)
    pieces.close()
    kept, all_of_it = chat.turns[1]["content"], whole.turns[1]["content"]
    assert kept.startswith(first.strip()) and all_of_it.startswith(kept[:-4]) and len(kept) < len(all_of_it)


def test_an_error_reaches_the_reader_and_the_chat_stays_as_it_was(partner, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("too long")

    monkeypatch.setattr(partner.model, "generate", fail, raising=False)
    chat = Chat()
    with pytest.raises(MemoryError, match="too long"):
        list(answer(chat, partner, "Ciao"))
    assert chat == Chat()


@pytest.mark.parametrize(("tokens", "said"), [([], "the answer is empty"), ([40, 41], "cut off after 2 tokens")])
def test_an_answer_that_is_empty_or_cut_off_is_said(partner, monkeypatch, tokens, said):
    """A stand-in for `generate`: at once the end of the turn, or two tokens and no end."""

    def generate(ids, streamer, max_new_tokens, **_):
        assert max_new_tokens == 2
        streamer.put(ids)
        new = torch.tensor([tokens or [partner.tokenizer.convert_tokens_to_ids("<|eot_id|>")]])
        streamer.put(new[0])
        return torch.cat([ids, new], dim=1)

    monkeypatch.setattr(partner.model, "generate", generate, raising=False)
    notes, chat = [], Chat()
    list(answer(chat, partner, "Ciao", Decoding(max_new_tokens=2), notes.append))
    assert len(notes) == 1 and said in notes[0] and len(chat.turns) == 2


# ---- what fits


def test_the_oldest_turns_go_when_the_context_is_full_no_more_than_needed_and_counted(small, given):
    seen, chat, notes = given(small), Chat("Sii breve."), []
    wanted, said, dropped = 20, [], 0
    for number in range(8):
        before = len(notes)
        question = f"Domanda {number}: dove nasce il Po? " * 8
        list(answer(chat, small, question, Decoding(max_new_tokens=wanted), notes.append))
        said += chat.turns[-2:]
        told = [line for line in notes[before:] if "context is full" in line]
        new = (len(said) - len(chat.turns)) // 2 - dropped
        assert bool(told) == bool(new) and len(seen[-1]) + wanted <= 512
        dropped += new
        seen_turns = said[2 * dropped : -1]
        assert seen[-1] == by_the_template(small.tokenizer, [turn("system", "Sii breve."), *seen_turns])
        if new:
            one_more = [turn("system", "Sii breve."), *said[2 * (dropped - 1) : -1]]
            assert len(by_the_template(small.tokenizer, one_more)) + wanted > 512
            whole = by_the_template(small.tokenizer, [turn("system", "Sii breve."), *said[2 * (dropped - new) : -1]])
            count = f"the oldest {new} of {number - dropped + new} answers and their questions are dropped"
            assert count in told[0] and told[0].endswith(f" {len(whole) - len(seen[-1])} tokens")
            assert f"{len(whole)} tokens and 20 for an answer are more than 512" in told[0]
    assert dropped > 3 and chat.answers == 8


def test_a_question_without_room_is_refused_and_nothing_is_dropped(small):
    chat = Chat()
    list(answer(chat, small, "Ciao", Decoding(max_new_tokens=5), lambda _: None))
    before = list(chat.turns)
    with pytest.raises(AnitaError, match=r"too long \([\d,]+ tokens with the system .* context has 512\): shorten it"):
        answer(chat, small, "Il Po nasce sul Monviso. " * 100, Decoding(max_new_tokens=5))
    assert chat.turns == before


def test_a_shorter_answer_is_said_and_ends_with_the_context(small):
    notes, chat = [], Chat()
    list(answer(chat, small, "Ciao", Decoding(max_new_tokens=5000), notes.append))
    size = len(by_the_template(small.tokenizer, [turn("user", "Ciao")]))
    assert notes[0] == f"the context leaves {512 - size} tokens for the answer, of the 5,000 wanted"
    assert notes[1:] == [f"the answer is cut off after {512 - size} tokens (max_new_tokens)"]


# ---- how tokens are drawn


def drawn(partner, chat, decoding):
    return ["".join(answer(chat, partner, question, decoding, lambda _: None)) for question in QUESTIONS]


def test_a_seed_draws_the_same_chat_and_another_seed_another(small):
    decoding = Decoding(temperature=0.8, top_p=0.9, max_new_tokens=12, seed=1)
    first = drawn(small, Chat(), decoding)
    torch.rand(5)
    assert drawn(small, Chat(), decoding) == first
    assert drawn(small, Chat(), Decoding(0.8, 0.9, 12, seed=9)) != first
    greedy = drawn(small, Chat(), Decoding(max_new_tokens=12))
    assert greedy == drawn(small, Chat(), Decoding(max_new_tokens=12, seed=9)) != first


def test_tokens_are_drawn_from_the_nucleus_and_from_no_less(small, monkeypatch):
    """The first token's distribution, from the model's logits: no top-k of a library's cuts it."""
    ids = torch.tensor([by_the_template(small.tokenizer, [turn("user", "Ciao")])])
    with torch.inference_mode():
        logits = small.model(ids).logits[0, -1]

    def first_tokens(decoding):
        drawn = (_generate(small, ids[0].tolist(), 1, decoding, n, BaseStreamer(), Event()) for n in range(120))
        return {token for [token] in drawn}

    monkeypatch.setattr(BaseStreamer, "put", lambda *_: None)
    monkeypatch.setattr(BaseStreamer, "end", lambda *_: None)
    assert len(first_tokens(Decoding(1.0))) > 50  # where top-k is left on
    shares, order = (logits / 0.6).softmax(-1).sort(descending=True)
    nucleus = order[: int((shares.cumsum(-1) < 0.5).sum()) + 1].tolist()
    assert len(nucleus) > 5 and first_tokens(Decoding(0.6, 0.5)) <= set(nucleus)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": 1e-9},
                                   {"top_p": 0}, {"top_p": 1.1}, {"top_p": float("nan")}])  # fmt: skip
def test_settings_that_cannot_be_are_one_line(wrong):
    with pytest.raises(AnitaError, match=f"^{next(iter(wrong)).replace('_', '-')} .*: give "):
        Decoding(**wrong)


def test_the_authors_settings_are_those_of_their_repository():
    facts = pandas.read_csv(data_dir() / "paper" / "hyperparameters.csv", dtype=str)
    facts = facts[(facts["column"] == "authors' last script") & (facts.certainty == "confirmed")]
    value = facts.set_index("parameter")["value"]
    temperature, top_p = re.fullmatch(r"temperature ([\d.]+), top_p ([\d.]+)", value["sampling"]).groups()
    assert DECODINGS["anita"] == Decoding(float(temperature), float(top_p), int(value["max_new_tokens"]))


def test_weights_are_loaded_once_and_when_they_are_needed(model, tokenizer):
    loaded = []
    partner = Partner("base", tokenizer, lambda: loaded.append(1) or model)
    assert loaded == []
    assert [partner.context, partner.model.num_parameters() > 0, loaded] == [1024, True, [1]]
