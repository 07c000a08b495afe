"""The results of an ablation that are kept with the course."""

import json

import numpy as np
import pytest

from anita_utils import AnitaError
from anita_utils.ablation import results
from anita_utils.stats import Measurement


def test_results_that_are_missing_or_damaged_are_one_line(kept_results):
    with pytest.raises(AnitaError, match=r"no results of the ablation at .*cpu.jsonl: make some with `anita ablate"):
        results.load_kept("cpu")
    kept_results.parent.mkdir(parents=True)
    for text in ("{", '{"arm": "sft", "seed": 1}', '{"arm":"sft","seed":1,"weights":"x","scores":{"a en":[1]}}'):
        kept_results.write_text(text, "utf-8")
        with pytest.raises(AnitaError, match=r"cpu.jsonl, line 1: no result of an ablation .*restore the file"):
            results.load_kept("cpu")


def test_a_line_gives_back_what_was_measured():
    """Figures, effects and their items: a line read again against the measurements it was made of."""
    random = np.random.default_rng(3)
    clusters = [str(n // 2) for n in range(40)]
    shares = Measurement("chat/accuracy", "en", "seen", [float(x) for x in random.random(40) > 0.4], clusters)
    weights = list(random.integers(5, 20, 40).astype(float))
    text = Measurement("perplexity", "it", None, list(random.random(40) * 30), clusters, weights)
    margins = Measurement("preference_margin", "all", None, list(random.normal(size=40)), clusters)
    binned = Measurement("benchmark_calibration_error", "en", None, [0.1] * 40, clusters, bins=[0] * 40)
    line, weighed = results.make_line({"arm": "sft", "seed": 1}, [], [shares, text, margins, binned], [])
    back = {m.metric: m for m in results.measurements(json.loads(json.dumps(line)), {line["weights"]: weighed})}
    assert set(back) == {"chat/accuracy", "perplexity", "preference_accuracy_logprob"}
    assert back["chat/accuracy"].value == shares.value and back["perplexity"].value == pytest.approx(
        text.value, rel=1e-5
    )
    assert back["preference_accuracy_logprob"].value == np.mean(np.array(margins.scores) > 0)
    for old in (shares, text):
        for ours, theirs in zip(back[old.metric].totals()[:2], old.totals()[:2], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)  # cluster by cluster, in the same order
