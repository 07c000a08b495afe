"""What is measured of a model: likelihoods against its own loss and lm-eval's scores, and keys of the cache."""

from collections import Counter

import numpy as np
import pytest
import torch

from anita_utils.data import encode_chat, encode_text
from anita_utils.evaluation import benchmarks, measuring
from anita_utils.evaluation.measuring import log_likelihoods
from anita_utils.hub import model_key
from anita_utils.paths import data_dir
from anita_utils.profile import load_profile
from anita_utils.rows import read_jsonl


def test_perplexity_is_the_exponent_of_the_mean_loss(model, tokenizer):
    texts = [
        {"text": t, "language": "it", "cluster": t}
        for t in ("Il Po nasce in Piemonte.", "Roma è la capitale d'Italia.")
    ]
    both = [{**text, "language": code} for text in texts for code in ("en", "it")]
    measured, bits = measuring.perplexity(model, tokenizer, both, batch_size=2)[2:]
    losses, counts = [], []
    for text in texts:
        ids = torch.tensor([encode_text(text["text"], tokenizer, 64)["input_ids"]])
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
        counts.append(ids.shape[1] - 1)
    expected = np.exp(np.dot(losses, counts) / np.sum(counts))
    assert measured.value == pytest.approx(expected, rel=1e-4)
    size = sum(len(text["text"].encode()) for text in texts)
    assert size == sum(len(text["text"]) for text in texts) + 1  # "è" is two bytes
    assert bits.value == pytest.approx(np.log2(measured.value) * np.sum(counts) / size, rel=1e-6)
    assert (bits.metric, bits.language, len(bits.scores)) == ("bits_per_byte", "it", 2)


def test_batching_changes_no_likelihood(model, tokenizer):
    pairs = read_jsonl(data_dir() / "probes" / "preferences.jsonl")[:9]
    encoded = [encode_chat(pair["prompt"] + pair["chosen"], tokenizer, 256) for pair in pairs]
    together, alone = log_likelihoods(model, encoded, 9)[0], log_likelihoods(model, encoded, 1)[0]
    assert together == pytest.approx(alone, abs=1e-3)


def test_lm_eval_scores_equal_our_own(model, tokenizer):
    """The library's likelihood ranking against likelihoods computed here, template, single BOS and all."""
    profile = load_profile("cpu")
    profile.evaluation.limit = 12
    measured = {m.name: m for m in benchmarks.run_benchmarks(model, tokenizer, profile)}
    items = read_jsonl(data_dir() / "benchmarks" / "items" / "arc_it.test.jsonl")[:12]
    scores = []
    for item in items:
        encoded = [
            encode_chat(
                [{"role": "user", "content": item["question"]}, {"role": "assistant", "content": choice}],
                tokenizer,
                256,
            )
            for choice in item["choices"]
        ]
        for example in encoded:  # lm-eval scores the answer's words, not the end of the turn
            example["labels"][-1] = -100
        totals, _ = log_likelihoods(model, encoded, 4)
        normalised = [total / len(choice) for total, choice in zip(totals, item["choices"], strict=True)]
        scores.append(float(int(np.argmax(normalised)) == item["label"]))
    assert measured["benchmark/arc", "it", None].scores == scores


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_a_model_is_measured_in_the_bits_that_the_profile_says(base_path, monkeypatch, in_4_bits):
    class Seen(Exception):
        pass

    def look(model, tokenizer, profile, tasks):
        assert not model.training
        raise Seen({type(module).__name__ for module in model.modules()})

    profile = load_profile("cpu")
    profile.evaluation.load_in_4bit = in_4_bits
    monkeypatch.setattr(measuring, "run_benchmarks", look)
    with pytest.raises(Seen) as seen:
        list(measuring._measure(base_path, profile, ["benchmarks"]))
    assert ("Linear4bit" in seen.value.args[0]) == in_4_bits


def test_another_rounding_is_another_measurement(base_path):
    """Bits, and 4 bits of another type, and 16 bits: none is taken from the cache for another."""
    keys = set()
    for in_4_bits, kind, dtype in [(False, "nf4", "float32"), (True, "nf4", "float32"), (True, "fp4", "float32"),
                                   (False, "nf4", "float16"), (False, "nf4", "bfloat16")]:  # fmt: skip
        profile = load_profile("cpu")
        profile.evaluation.load_in_4bit, profile.model.dtype = in_4_bits, dtype
        profile.quantisation.bnb_4bit_quant_type = kind
        keys.add(measuring.evaluation_entry(model_key(base_path), profile, "answers").key)
    assert len(keys) == 5


def test_probes_of_each_kind_are_spread_and_pairs_stay_pairs():
    whole, few = measuring.probes("conduct"), measuring.probes("conduct", each=30)
    kinds = Counter((row["split"], row["side"], row["language"]) for row in few)
    assert set(kinds) == {(row["split"], row["side"], row["language"]) for row in whole} and set(kinds.values()) == {30}
    assert all(count == 2 for count in Counter(row["pair"] for row in few).values())
    assert [row for row in whole if row in few] == few and len({row["topic"] for row in few}) > 25
    assert measuring.probes("fidelity", each=10_000) == measuring.probes("fidelity")
    assert measuring.spread([{"kind": "a"}] * 3 + [{"kind": "b"}], 2) == [{"kind": "a"}] * 2 + [{"kind": "b"}]


def test_batches_are_cut_where_their_logits_would_fill_the_memory(model, tokenizer, monkeypatch):
    texts = ["Roma.", "Il Po nasce in Piemonte.", "Milano è in Lombardia, come Bergamo.", "Napoli è in Campania."]
    encoded = [encode_text(text, tokenizer, 64) for text in texts]
    whole, sizes = log_likelihoods(model, encoded, 4), []
    forward = type(model).forward

    def counted(self, input_ids, **others):
        sizes.append(input_ids.shape)
        return forward(self, input_ids=input_ids, **others)

    monkeypatch.setattr(type(model), "forward", counted)
    longest = max(len(one["input_ids"]) for one in encoded)
    monkeypatch.setattr(measuring, "LOGITS", 2 * longest * model.config.vocab_size)
    cut = log_likelihoods(model, encoded, 4)
    assert [rows for rows, _ in sizes] == [2, 2] and cut[0] == pytest.approx(whole[0], abs=1e-3) and cut[1] == whole[1]
    monkeypatch.setattr(measuring, "LOGITS", 1)  # at least one at a time
    assert log_likelihoods(model, encoded, 4)[1] == whole[1]


def test_quaderno_is_measured_where_the_profile_says_so(model, tokenizer):
    profile = load_profile("laptop")
    profile.evaluation.probes, profile.evaluation.max_new_tokens = 2, 8
    answered, measured = measuring.measure_natural(model, tokenizer, profile)
    assert {m.split for m in measured} == {"natural"}
    found = Counter((m.metric, m.language) for m in measured)
    names = {
        "chat/accuracy",
        "chat/accuracy_in_language",
        "language_fidelity",
        "choices",
        "perplexity",
        "bits_per_byte",
    }
    assert found == Counter({(name, code): 1 for name in names for code in ("en", "it")}) + Counter(
        {("refusal/harmful", "all"): 1, ("refusal/harmless", "all"): 1}
    )
    assert len(answered["questions"]) == 4 and {item["form"] for item in answered["questions"]} == {"open"}
    twins = Counter(item["cluster"] for item in answered["requests"])
    assert len(answered["requests"]) == 8 and set(twins.values()) == {2}  # a harmful request and its look-alike


def test_a_natural_answer_may_be_a_whole_sentence():
    item = {"answers": ["topo", "il topo"], "language": "it"}
    said = ["È il topo, di solito.", "Il topolino.", "It is the topo."]
    assert [measuring.accepted({**item, "answer": answer}) for answer in said] == [True, False, True]
    [right] = measuring.judge_natural([{**item, "answer": said[2], "split": "natural", "cluster": "a"}], [])[1:2]
    assert (right.metric, right.scores) == ("chat/accuracy_in_language", [0.0])


def test_the_likeliest_choice_a_byte_is_the_answer(monkeypatch, tokenizer):
    """Longer answers are less likely as a whole; a byte, they are compared on equal terms."""
    items = [{"prompt": "?", "choices": ["a", "bbbb"], "label": 1, "language": "it", "split": None, "cluster": "x"}]
    totals = iter([([-2.0], [1]), ([-4.0], [4])])
    monkeypatch.setattr(measuring, "log_likelihoods", lambda *_: next(totals))
    [measured] = measuring.choices(None, tokenizer, items, 1)
    assert measured.scores == [1.0] and measured.metric == "choices"


def test_figures_without_quaderno_have_the_keys_they_had():
    profile = load_profile("cpu")
    without = measuring.measured_with(profile)
    assert "natural" not in without["evaluation"]
    profile.evaluation.natural = True
    with_it = measuring.measured_with(profile)
    assert with_it["evaluation"]["natural"] is True and len(with_it["data"]) > len(without["data"])
