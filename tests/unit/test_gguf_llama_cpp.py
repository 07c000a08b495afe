"""What llama.cpp itself makes of exported files, beside transformers and the model's own folder: the shipped model, and
SmolLM2-135M where the cache has it (`anita fetch smollm2`)."""

import json
import random
from itertools import islice

import numpy as np
import pytest
import torch

from anita_utils import weights
from anita_utils.data import render
from anita_utils.gguf_export import export_gguf
from anita_utils.model import chat, load_model, load_tokenizer
from anita_utils.paths import data_dir, read_lines

pytestmark = pytest.mark.soak
WHY = "llama-cpp-python is not installed: `pip install llama-cpp-python` builds it, with cmake and a C++ compiler"
llama_cpp = pytest.importorskip("llama_cpp", reason=WHY)

NEW = 32  # tokens of an answer that are compared


@pytest.fixture(scope="module", params=["tiny-llama-3-instruct", "smollm2"])
def folder(request):
    found = weights.kept(request.param) if request.param in weights.KNOWN else data_dir() / request.param
    return found or pytest.skip(f"the cache has no {request.param}: `anita fetch {request.param}`")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder).eval()


@pytest.fixture(scope="module")
def opened(folder, tmp_path_factory):
    """Exports the model as a type, once, and opens it in llama.cpp."""
    files = {}

    def open_as(kind, **options):
        if kind not in files:
            files[kind] = export_gguf(folder, tmp_path_factory.mktemp(kind), "exported", kind)
        return llama_cpp.Llama(str(files[kind]), n_ctx=512, verbose=False, **options)

    return open_as


def probes(name):
    return [json.loads(line) for _, line in read_lines(data_dir() / "probes" / f"{name}.jsonl")]


PIECES = [
    *("città", "Perché", "È", "così", "l'", "dell'", "un po'", "PIÙ", "don't", "I'LL", "ß", "naïve", "e\u0301"),
    *("7", "42", "1.234,56", "1861", "12345678", "½", "x²", "٣", "3°", "€ 5", "100%", "2026-01-31"),
    *("\n", "\n\n", "\r\n", " \n", "\n  ", "\t", "\t\t", " ", "  ", "     ", "\u00a0", "\u3000"),
    *("🙂", "👩‍🔬", "🇮🇹", "❤️", "…", "«", "»", "—", "?!", "...", "://", "_", "#", "中文", "Ωμέγα", "да"),
]  # fmt: skip


def texts():
    """500: probes in Italian and English, and pieces of all kinds one after the other."""
    asked = [row["prompt"] for row in probes("chat")[:120]] + [row["text"] for row in probes("perplexity")[:80]]
    draw = random.Random(0)
    return asked + ["".join(draw.choices(PIECES, k=draw.randint(1, 24))) for _ in range(300)]


def test_texts_have_the_same_tokens(opened, tokenizer):
    llama, ends = opened("f16", vocab_only=True), tokenizer.all_special_tokens
    own = [*texts(), *(f"A{end}{end}\n B" for end in ends)]
    assert len(own) >= 500
    found = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in own]
    expected = tokenizer(own)["input_ids"]
    assert [text for text, one, other in zip(own, found, expected, strict=True) if one != other] == []


def until_the_end(ids, ends):
    """The ids up to and with the first that ends an answer."""
    return next((ids[: place + 1] for place, number in enumerate(ids) if number in ends), ids)


def test_greedy_answers_in_f16_are_those_of_transformers(opened, model, tokenizer):
    asked = [row["prompt"] for name, count in (("chat", 30), ("new_kinds", 20)) for row in probes(name)[:count]]
    prompts = [render([{"role": "user", "content": prompt}], tokenizer, add_generation_prompt=True) for prompt in asked]
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**batch, max_new_tokens=NEW, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    made = made[:, batch["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends)
    llama, same = opened("f16"), 0
    for prompt, expected in zip(prompts, made, strict=True):
        found = list(islice(llama.generate(prompt, temp=0.0, repeat_penalty=1.0), NEW))
        same += until_the_end(found, ends) == until_the_end(expected, ends)
    print(f"{same} of {len(asked)} answers are the same")
    assert len(asked) == 50 and same >= 48


def test_chats_by_the_template_in_the_file_are_the_courses(opened, model, tokenizer):
    asked, llama = [row["prompt"] for row in probes("chat")[30:40]], opened("f16")
    for system in (None, "Be brief."):
        opening = [{"role": "system", "content": system}] if system else []
        found = [
            llama.create_chat_completion([*opening, {"role": "user", "content": one}], temperature=0, max_tokens=NEW)
            for one in asked
        ]
        found = [answer["choices"][0]["message"]["content"].strip() for answer in found]
        expected = chat(model, tokenizer, asked, system, max_new_tokens=NEW)
        assert sum(one == other for one, other in zip(found, expected, strict=True)) >= 9


def perplexity(logits, rows):
    """Of texts, by the logits at their tokens, in natural units; rows: the texts' ids, BOS among them or not."""
    losses = []
    for ids in rows:
        scores = torch.log_softmax(logits(ids)[:-1].double(), -1)
        losses.append(-scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])
    return torch.cat(losses).mean().exp().item()


def test_perplexity_in_8_bits_is_within_a_hundredth(opened, model, tokenizer):
    rows = [tokenizer(row["text"])["input_ids"] for row in probes("perplexity")[::4]]
    llama = opened("q8_0", logits_all=True)

    def by_llama(ids):
        llama.reset()
        llama.eval(ids)
        return torch.from_numpy(np.array(llama.scores[: len(ids)]))

    with torch.inference_mode():
        expected = perplexity(lambda ids: model(input_ids=torch.tensor([ids])).logits[0], rows)
        found = perplexity(by_llama, rows)
    print(f"perplexity {expected:.4f} in fp32, {found:.4f} in q8_0")
    assert found == pytest.approx(expected, rel=0.01)
