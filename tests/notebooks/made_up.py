"""Results of an ablation that nobody made: known effects, so that the lessons' verdicts can be held against the truth.

    python tests/notebooks/made_up.py FOLDER            # writes FOLDER/ablation/cpu.jsonl

Never to be committed as results: the lines say "made up" where a commit belongs.
"""

import sys
from pathlib import Path

import numpy as np

from anita_utils.ablation import results
from anita_utils.ablation.arms import load_ablation
from anita_utils.profile import ORDERS
from anita_utils.stats import Measurement

FAMILIES = ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k")
SHARES = {
    ("chat/accuracy_in_language", "en", "seen"): 0.9,
    ("chat/accuracy_in_language", "it", "adapted"): 0.1,
    ("chat/accuracy_in_language", "it", "never_in_italian"): 0.1,
    ("language_fidelity", "it", None): 0.2,
    ("refusal/harmful", "all", "held_out_wordings"): 0.05,
    ("refusal/harmless", "all", "held_out_wordings"): 0.05,
    ("preference_accuracy_logprob", "all", None): 0.5,
    ("chat/accuracy", "it", "never_in_italian"): 0.8,
    ("minimal_pairs", "en", None): 0.8,
    ("minimal_pairs", "it", None): 0.6,
}
# What a stage adds to a share. Italian text costs English where nothing is replayed; too much DPO costs everything.
ADDED = {
    "sft": {("chat/accuracy_in_language", "en", "seen"): 0.05},
    "italian": {("benchmark", "it", None): 0.15, ("chat/accuracy_in_language", "it", "adapted"): 0.5,
                ("chat/accuracy_in_language", "it", "never_in_italian"): 0.3, ("language_fidelity", "it", None): 0.6,
                ("chat/accuracy", "it", "never_in_italian"): -0.2},
    "dpo": {("refusal/harmful", "all", "held_out_wordings"): 0.7, ("preference_accuracy_logprob", "all", None): 0.3},
}  # fmt: skip
ARMS = {
    "text_only": {("chat/accuracy_in_language", "en", "seen"): -0.4, ("benchmark", "en", None): -0.1},
    "no_replay": {("chat/accuracy_in_language", "en", "seen"): -0.4, ("benchmark", "en", None): -0.1},
    "text_only_gentle": {("chat/accuracy_in_language", "en", "seen"): -0.15, ("benchmark", "it", None): -0.08},
    "text_only_rank_8": {("chat/accuracy_in_language", "en", "seen"): -0.4, ("benchmark", "en", None): -0.1},
    "long_dpo": {("chat/accuracy_in_language", "it", "adapted"): -0.3, ("benchmark", "en", None): -0.15,
                 ("refusal/harmless", "all", "held_out_wordings"): 0.3},
}  # fmt: skip


def stages_of(arm):
    order = arm.set["order"]
    return ORDERS[order] if isinstance(order, str) else order


def measured(name, arm, random, noise=0.02):
    """Measurements of an arm with one seed: item by item, around what its stages add."""

    def share(key):
        first = 0.45 if key[0].startswith("benchmark") else SHARES[key]
        plain = ("benchmark", key[1], None) if key[0].startswith("benchmark") else key
        added = [ADDED[stage].get(plain, 0) for stage in stages_of(arm)] + [ARMS.get(name, {}).get(plain, 0)]
        return float(np.clip(first + sum(added) + random.normal(0, noise), 0.01, 0.99))

    found = []
    keys = [(f"benchmark/{family}", code, None) for family in FAMILIES for code in ("en", "it")] + list(SHARES)
    for key in keys:
        n = 50 if key[0].startswith("benchmark") else 120
        difficulty = np.random.default_rng(sum(map(ord, str(key)))).random(n)  # the same items for every arm
        scores = [float(one) for one in difficulty < share(key)]
        found.append(Measurement(*key, scores, [str(number) for number in range(n)]))
    for code, logarithm in (("en", 1.1), ("it", 3.5 - 1.5 * ("italian" in stages_of(arm)))):
        losses = list(logarithm + random.normal(0, 0.02) + np.linspace(-0.3, 0.3, 60))
        found.append(Measurement("perplexity", code, None, losses, [str(n) for n in range(60)], [1.0] * 60))
    return found


def curve(random):
    """A long DPO: first better, then worse; entropy and the chosen answers' likelihood fall all the way."""
    made = []
    for number in range(9):
        past = max(0, number - 2) / 6
        figures = {
            ("pairs/accuracy", "all", "rule"): 0.5 + 0.4 * min(number, 2) / 2,
            ("pairs/accuracy", "all", "fact"): 0.5,
            ("pairs/chosen_logp", "all", None): -10 - 5 * number,
            ("pairs/rejected_logp", "all", None): -10 - 15 * number,
            ("entropy", "all", None): 0.5 - 0.05 * number,
            ("answer_words", "en", None): 7 + number,
            ("answer_words", "it", None): 7 + number,
            ("chat/accuracy_in_language", "en", "seen"): 0.9 - 0.3 * past,
            ("chat/accuracy_in_language", "it", "adapted"): 0.6 - 0.3 * past,
            ("refusal/harmful", "all", "held_out_wordings"): 0.05 + 0.7 * min(number, 2) / 2,
            ("refusal/harmless", "all", "held_out_wordings"): 0.05 + 0.4 * past,
            ("perplexity", "en", None): 3 + number,
            ("perplexity", "it", None): 6 + number,
        }
        if number:
            figures |= {("train/loss", "all", None): 0.7 / number, ("train/pairs_accuracy", "all", None): 1.0,
                        ("train/chosen_logp", "all", None): -10 - 4 * number}  # fmt: skip
        made += [{"update": 125 * number, "metric": key[0], "language": key[1], "split": key[2],
                  "value": value + random.normal(0, 0.005), "n": 60} for key, value in figures.items()]  # fmt: skip
    return made


def make_up(folder, seeds=(42, 43, 44, 45, 46), only=(), noise=0.02):
    """Writes made-up results of the shipped arms; returns the file."""
    kept, ablation = results.Kept({}, {}), load_ablation("cpu")
    for seed in seeds:
        random = np.random.default_rng(seed)
        for name, arm in ablation.arms.items():
            if only and name not in only:
                continue
            found, stages = measured(name, arm, random, noise), stages_of(arm)
            costs = [{"stage": "x", "metric": f"train/{what}", "language": "all", "split": None, "n": None,
                      "value": each * (len(stages) + 7 * (name == "long_dpo"))}
                     for what, each in (("tokens", 100_000), ("seconds", 50))]  # fmt: skip
            place = {"arm": name, "seed": seed, "profile": "cpu", "made": f"{name} {seed}" if stages else "base",
                     "commit": "made up", "arms": ablation.digest, "machine": "none", "versions": {}}  # fmt: skip
            points = curve(random) if arm.points else []
            figures = [{"stage": "x", **dict(zip(("metric", "language", "split"), m.name, strict=True)),
                        "value": m.value, "n": len(m.scores)} for m in found]  # fmt: skip
            for code in ("en", "it"):
                values = [m.value for m in found if m.metric.startswith("benchmark/") and m.language == code]
                figures.append(figures[0] | {"metric": "benchmark/mean", "language": code, "value": np.mean(values)})
            kept = results.add(kept, *results.make_line(place, figures + costs, found, points))
    file = Path(folder) / "ablation" / "cpu.jsonl"
    results.write_kept(file, kept)
    return file


if __name__ == "__main__":
    print(make_up(sys.argv[1]))
