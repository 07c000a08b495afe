"""A handful of arms, and a listener that takes no notice: what the tests of ablations share."""

ARMS = {
    "measures": ["benchmark/mean it", "perplexity it", "preference_accuracy_logprob"],
    "arms": {
        "base": {"asks": "What is there?", "set": {"order": []}},
        "sft": {"asks": "What does SFT do?", "set": {"order": ["sft"]}},
        "sft_dpo": {"asks": "And then DPO?", "set": {"order": ["sft", "dpo"]}},
        "rank_2": {"asks": "And with a smaller rank?", "set": {"order": ["sft", "dpo"], "stages.dpo.lora.r": 2}},
    },
    "claims": {
        "gain": {"says": "DPO gains.", "contrast": {"sft_dpo": 1, "sft": -1}, "worth": 0.01,
                 "measures": ["benchmark/mean it"]},
    },
}  # fmt: skip


def quiet(line):
    pass
