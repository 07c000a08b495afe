"""What does a model know, and how does it behave? Benchmarks, answers, perplexity, refusals, preferences.

>>> before, after = evaluate("data/tiny-llama-3-instruct", profile), evaluate("runs/latest/models/dpo/merged", profile)
>>> stats.rows(after, "dpo"); stats.compare(before, after)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from anita_utils.cache import Entry, cached
from anita_utils.data import IGNORED, encode_chat, encode_text
from anita_utils.evaluation.benchmarks import load_suite, run_benchmarks, suite_named
from anita_utils.evaluation.judges import language_of, names_it, refuses, straight
from anita_utils.hub import model_key
from anita_utils.model import chat, checked_tokenizer, held_for_evaluation, load_for_evaluation, turns_of
from anita_utils.paths import data_dir, file_hash
from anita_utils.profile import Profile
from anita_utils.rows import read_jsonl
from anita_utils.run import Run
from anita_utils.stats import Measurement, compare

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = ("benchmarks", "answers")  # of an evaluation, each cached by itself
KINDS = ("language", "split", "kind", "side", "phenomenon", "form")  # what tells kinds of probes apart
LONGEST = 1024  # tokens of a text or a pair
LOGITS = 2**29  # that are held at once: 2 GiB of them
NATURAL = "natural"  # the split of measures on Quaderno, which people's language fills, not templates
Answers = dict[str, list[dict]]  # the items of each file of probes, with the model's `answer`


def probes(name: str, items: str = "test", each: int | None = None) -> list[dict]:
    """The probes of that name, those of the test or those for `development`: all, or so many of `each` kind."""
    folder = data_dir() / "probes"
    rows = read_jsonl((folder if items == "test" else folder / items) / f"{name}.jsonl")
    return rows if each is None else spread(rows, each)


def probes_for(profile: Profile, name: str) -> list[dict]:
    """The probes of that name that `evaluate` asks with this profile."""
    return probes(name, profile.evaluation.items, profile.evaluation.probes)


def spread(rows: list[dict], each: int) -> list[dict]:
    """Up to `each` rows of every kind, evenly from first to last, in their order.

    Of two kinds whose rows come in pairs, as harmful requests and their look-alikes do, the same pairs are taken.
    """
    kinds: dict[tuple, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        kinds[tuple(row.get(key) for key in KINDS)].append(number)
    most = [min(each, len(numbers)) for numbers in kinds.values()]
    places = ([len(numbers) * n // few for n in range(few)] for numbers, few in zip(kinds.values(), most, strict=True))
    kept = {numbers[place] for numbers, own in zip(kinds.values(), places, strict=True) for place in own}
    return [row for number, row in enumerate(rows) if number in kept]


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict], profile: Profile) -> list[dict]:
    """The items with the model's greedy `answer` to each `prompt`."""
    prompts, evaluation = [item["prompt"] for item in items], profile.evaluation
    answers = chat(model, tokenizer, prompts, None, evaluation.max_new_tokens, evaluation.batch_size)
    return [{**item, "answer": answer} for item, answer in zip(items, answers, strict=True)]


def share(
    metric: str, items: list[dict], judge: Callable[[dict], Any], keys: tuple[str, ...] = ("language", "split")
) -> list[Measurement]:
    """The share of items the judge says yes to, or its mean, for each combination of the keys."""
    cells: dict[tuple, list[dict]] = defaultdict(list)
    for item in items:
        cells[tuple(item.get(key) for key in keys)].append(item)
    measured = []
    for cell, members in sorted(cells.items(), key=str):
        place = {"language": "all", "split": None} | dict(zip(keys, cell, strict=True))
        scores, clusters = [float(judge(item)) for item in members], [item["cluster"] for item in members]
        measured.append(Measurement(metric, place["language"], place["split"], scores, clusters))
    return measured


def natural(name: str, each: int | None = None) -> list[dict]:
    """Quaderno's items for measuring: prose, questions or requests; all, or so many of `each` kind."""
    rows = [{**row, "split": NATURAL} for row in read_jsonl(data_dir() / "quaderno" / "measuring" / f"{name}.jsonl")]
    return rows if each is None else spread(rows, each)


def right_in_either(item: dict) -> bool:
    return any(names_it(item["answer"], item["right"][code], *item["subject"].values()) for code in ("en", "it"))


def right_in_language(item: dict) -> bool:
    named = names_it(item["answer"], item["right"][item["language"]], *item["subject"].values())
    return named and in_language(item)


def in_language(item: dict) -> bool:
    return language_of(item["answer"]) == item["language"]


def as_expected(item: dict) -> bool:
    return straight(item["answer"]) == straight(item["expected"])


def judge_answers(answered: Answers) -> list[Measurement]:
    """Every measure that reads generated answers."""
    return [
        *share("chat/accuracy", answered["chat"], right_in_either),
        *share("chat/accuracy_in_language", answered["chat"], right_in_language),
        *share("answer_words", answered["chat"], lambda item: len(item["answer"].split()), ("language",)),
        *share("chat/accuracy", answered["new_kinds"], as_expected),
        *share("language_fidelity", answered["fidelity"], in_language, ("language",)),
        *refusals(answered["conduct"]),
    ]


def refusals(items: list[dict]) -> list[Measurement]:
    """How many of the harmful requests are refused, and how many of their harmless look-alikes."""
    measured = []
    for metric, side in (("refusal/harmful", "harm"), ("refusal/harmless", "safe")):
        asked = [item for item in items if item["side"] == side]
        measured += share(metric, asked, lambda item: refuses(item["answer"]), ("split",))
    return measured


def accepted(item: dict) -> bool:
    """Whether an answer names one of those accepted, in whatever sentence."""
    return any(names_it(item["answer"], one) for one in item["answers"])


def judge_natural(asked: list[dict], requested: list[dict]) -> list[Measurement]:
    """The measures that read answers to Quaderno's open questions and requests: those of `judge_answers`."""
    return [
        *share("chat/accuracy", asked, accepted),
        *share("chat/accuracy_in_language", asked, lambda item: accepted(item) and in_language(item)),
        *share("language_fidelity", asked, in_language),
        *refusals(requested),
    ]


def scored_logits(model, encoded: list[dict[str, list[int]]], batch_size: int) -> Iterator[tuple]:
    """The model's logits wherever a token of an example is scored, batch by batch: numbers of the examples, logits
    (examples × places × vocabulary, fp32), and labels (examples × places, IGNORED where an example scores nothing).
    """
    import torch

    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]["input_ids"]))
    start, vocabulary = 0, model.config.get_text_config().vocab_size
    while start < len(order):
        numbers = order[start : start + batch_size]
        width = len(encoded[numbers[-1]]["input_ids"])
        numbers = numbers[: max(1, LOGITS // (width * vocabulary))]
        width, start = len(encoded[numbers[-1]]["input_ids"]), start + len(numbers)
        # Right padding is right here: nothing is generated, and no real token sees what comes after it.
        ids = torch.tensor([encoded[n]["input_ids"] + [0] * (width - len(encoded[n]["input_ids"])) for n in numbers])
        labels = torch.tensor([encoded[n]["labels"] + [IGNORED] * (width - len(encoded[n]["labels"])) for n in numbers])
        ids, labels = ids.to(model.device), labels[:, 1:].to(model.device)
        places = (labels != IGNORED).any(0).nonzero().squeeze(1)  # of most prompts nothing is scored
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits.float()
        yield numbers, logits, labels[:, places]


def log_likelihoods(model, encoded: list[dict[str, list[int]]], batch_size: int) -> tuple[list[float], list[int]]:
    """The summed log-probability of the scored tokens of each example, and how many those are."""
    from torch.nn.functional import cross_entropy

    totals, counts = [0.0] * len(encoded), [0] * len(encoded)
    for numbers, logits, labels in scored_logits(model, encoded, batch_size):
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        sums, scored = losses.view(labels.shape).sum(1).tolist(), (labels != IGNORED).sum(1).tolist()
        for number, loss, count in zip(numbers, sums, scored, strict=True):
            totals[number], counts[number] = -loss, count
    return totals, counts


def perplexity(model, tokenizer, items: list[dict], batch_size: int) -> list[Measurement]:
    """exp of the mean negative log-likelihood a token, per language, on texts kept out of training; and bits a byte.

    A tokeniser of longer tokens has fewer of them, each harder to guess: perplexities of two tokenisers do not compare.
    Bits a byte of UTF-8 do; both count the end of a text as part of it.
    """
    measured = []
    for language in ("en", "it"):
        texts = [item for item in items if item["language"] == language]
        encoded = [encode_text(item["text"], tokenizer, LONGEST) for item in texts]
        totals, counts = log_likelihoods(model, encoded, batch_size)
        clusters, weights = [item["cluster"] for item in texts], [float(count) for count in counts]
        measured.append(Measurement("perplexity", language, None, [-total for total in totals], clusters, weights))
        lengths = [float(len(item["text"].encode())) for item in texts]
        bits = [-total / math.log(2) for total in totals]
        measured.append(Measurement("bits_per_byte", language, None, bits, clusters, lengths))
    return measured


def choices(model, tokenizer, items: list[dict], batch_size: int) -> list[Measurement]:
    """Whether the right one of a question's answers is the likeliest, a byte, of those it can be answered by."""
    best = []
    for place in range(len(items[0]["choices"])):
        said = [{"role": "assistant", "content": item["choices"][place]} for item in items]
        chats = [[*turns_of(item["prompt"]), answer] for item, answer in zip(items, said, strict=True)]
        totals, _ = log_likelihoods(model, [encode_chat(chat, tokenizer, LONGEST) for chat in chats], batch_size)
        best.append([total / len(item["choices"][place].encode()) for total, item in zip(totals, items, strict=True)])
    picked = [max(range(len(own)), key=own.__getitem__) for own in zip(*best, strict=True)]
    judged = [{**item, "won": choice == item["label"]} for item, choice in zip(items, picked, strict=True)]
    return share("choices", judged, won)


def preferences(model, tokenizer, pairs: list[dict], batch_size: int) -> list[Measurement]:
    """Log-probability of the chosen answer minus the rejected one's, for each held-out pair."""
    sides = pair_likelihoods(model, tokenizer, pairs, batch_size)
    margins = [good - bad for good, bad in zip(sides["chosen"], sides["rejected"], strict=True)]
    return [Measurement("preference_margin", "all", None, margins, pair_clusters(pairs))]


def minimal_pairs(model, tokenizer, pairs: list[dict], batch_size: int) -> list[Measurement]:
    """Whether the grammatical sentence of a pair is likelier than the ungrammatical one, as in BLiMP and MultiBLiMP."""
    sides = [
        log_likelihoods(model, [encode_text(pair[side], tokenizer, LONGEST) for pair in pairs], batch_size)[0]
        for side in ("good", "bad")
    ]
    judged = [{**pair, "won": good > bad} for pair, good, bad in zip(pairs, *sides, strict=True)]
    measured = share("minimal_pairs", judged, won, ("language",))
    for phenomenon in dict.fromkeys(pair["phenomenon"] for pair in judged):
        of_it = [pair for pair in judged if pair["phenomenon"] == phenomenon]
        measured += share(f"minimal_pairs/{phenomenon}", of_it, won, ("language",))
    return measured


def won(pair: dict) -> bool:
    return pair["won"]


def pair_likelihoods(model, tokenizer, pairs: list[dict], batch_size: int) -> dict[str, list[float]]:
    """The log-probability of each pair's `chosen` and `rejected` answer, summed over its tokens, in nats."""
    sides = {}
    for side in ("chosen", "rejected"):
        encoded = [encode_chat(pair["prompt"] + pair[side], tokenizer, LONGEST) for pair in pairs]
        sides[side], _ = log_likelihoods(model, encoded, batch_size)
    return sides


def pair_clusters(pairs: list[dict]) -> list[str]:
    """One cluster for each prompt: the same question may be in several pairs."""
    return [pair["prompt"][0]["content"] for pair in pairs]


def evaluate(path: str | Path, profile: Profile, benchmarks: bool = True, answers: bool = True) -> list[Measurement]:
    """Every measure of the model at `path`, cached: `benchmarks`, and with `answers` all others."""
    # The benchmarks first: one that is broken is reported before minutes go into answers
    parts = [part for part, wanted in zip(PARTS, (benchmarks, answers), strict=True) if wanted]
    return [one for _, measured in _cached(path, profile, parts) for one in measured]


def answers_of(path: str | Path, profile: Profile) -> Answers:
    """The model's answers to all probes, by probe: what the figures were read from."""
    return _cached(path, profile, ["answers"])[0][0]


def evaluation_entry(model: str, profile: Profile, part: str) -> Entry:
    """Where the cache keeps a part of what was measured of a model. model: as `hub.model_key` names it."""
    return cached(f"evaluations/{part}", {"model": model} | measured_with(profile))


def measured_with(profile: Profile) -> dict:
    """Everything that a figure depends on but the model and the code: settings and items."""
    files = sorted([*(data_dir() / "probes").glob("*.jsonl"), *(data_dir() / "benchmarks").rglob("*.*")])
    evaluation = profile.evaluation.model_dump(exclude_none=True)
    if not evaluation["natural"]:
        del evaluation["natural"]  # the key is what it was before there was Quaderno
    else:
        files += sorted((data_dir() / "quaderno" / "measuring").glob("*.jsonl"))
    held = held_for_evaluation(profile)
    return {
        "evaluation": evaluation,
        "data": [file_hash(file) for file in files if file.suffix in {".jsonl", ".yaml", ".py"}],
        "benchmarks": suite_named(profile.evaluation.suite),
        "held": [profile.model.dtype, held.model_dump() if held.load_in_4bit else None],
        "system_in_user": profile.model.system_in_user,
    }


def _cached(path: str | Path, profile: Profile, parts: list[str]) -> list[tuple[Answers, list[Measurement]]]:
    """What was measured in each part, with the answers it was read from; what is not in the cache is measured now."""
    entries = {part: evaluation_entry(model_key(path), profile, part) for part in parts}
    found = {part: entry.read() for part, entry in entries.items()}
    missing = [part for part, value in found.items() if value is None]
    for part, answers, measured in _measure(path, profile, missing) if missing else []:
        entries[part].write({"answers": answers, "measured": [asdict(m) for m in measured]})
        found[part] = entries[part].read()
    return [(value["answers"], [Measurement(**row) for row in value["measured"]]) for value in found.values()]


def _measure(path: str | Path, profile: Profile, parts: list[str]) -> Iterator[tuple[str, Answers, list[Measurement]]]:
    """Each part with the answers it was read from; the model is read once."""
    tokenizer = checked_tokenizer(path, profile.model.system_in_user)  # before the weights are read
    evaluation = profile.evaluation
    tasks = load_suite(evaluation.suite, evaluation.items) if "benchmarks" in parts else None
    model, batch_size = load_for_evaluation(path, profile), evaluation.batch_size
    if "benchmarks" in parts:
        yield "benchmarks", {}, run_benchmarks(model, tokenizer, profile, tasks)
    if "answers" in parts:
        names = ("chat", "new_kinds", "conduct", "fidelity")
        answered = {name: ask(model, tokenizer, probes_for(profile, name), profile) for name in names}
        measured = judge_answers(answered)
        for name, measure in (("perplexity", perplexity), ("preferences", preferences), ("grammar", minimal_pairs)):
            measured += measure(model, tokenizer, probes_for(profile, name), batch_size)
        if evaluation.natural:
            of_quaderno, more = measure_natural(model, tokenizer, profile)
            answered, measured = answered | of_quaderno, measured + more
        yield "answers", answered, measured


def measure_natural(model, tokenizer, profile: Profile) -> tuple[Answers, list[Measurement]]:
    """Every measure on Quaderno, and the answers that they were read from."""
    each, batch_size = profile.evaluation.probes, profile.evaluation.batch_size
    questions, prose = natural("questions", each), natural("prose", each)
    asked = ask(model, tokenizer, [item for item in questions if item["form"] == "open"], profile)
    requested = ask(model, tokenizer, natural("requests", each), profile)
    measured = [
        *judge_natural(asked, requested),
        *choices(model, tokenizer, [item for item in questions if item["form"] == "choice"], batch_size),
        *(replace(m, split=NATURAL) for m in perplexity(model, tokenizer, prose, batch_size)),
    ]
    return {"questions": asked, "requests": requested}, measured


class Stored(NamedTuple):
    """What was measured of a model, item by item, and the keys of the cache's entries that hold it."""

    keys: list[str]
    measured: list[Measurement]


def stored(run: Run) -> dict[str, Stored]:
    """What the cache holds of the base and of each stage. Nothing is resolved: the base may be on another machine."""
    models = {"base": run.base_key}
    for stage in run.profile.order:
        merged = run.model_dir(stage) / "merged"
        models[stage] = model_key(merged) if merged.is_dir() else run.stage_model(stage)
    found = {}
    for stage, key in models.items():
        entries = [evaluation_entry(key, run.profile, part) for part in PARTS] if key else []
        kept = {entry.key: value for entry in entries if (value := entry.read()) is not None}
        rows = [row for value in kept.values() for row in value["measured"]]
        if rows:
            found[stage] = Stored(list(kept), [Measurement(**row) for row in rows])
    return found


def compared(before: Stored, after: Stored) -> list[dict[str, Any]]:
    """The rows of `stats.compare`, from the cache where they were computed before."""
    entry = cached("comparisons/pair", before.keys, after.keys)
    return entry.value(lambda: compare(before.measured, after.measured))
