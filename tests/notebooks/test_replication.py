"""The kept results of the ablation against this course and this machine: are they of these data, do they come again?"""

from importlib.metadata import version

import pytest

from anita_utils.ablation import campaign, results
from anita_utils.ablation.arms import load_ablation
from anita_utils.ablation.report import results_table
from anita_utils.machine import LIBRARIES
from anita_utils.profile import load_profile

RESULTS = results.read_kept(results.kept_file("cpu"))
AGAIN = ("sft", "dpo")  # one stage each, so that two arms take some minutes
# What these two stages move most, and what they should leave as it is. Stated before any result. Of these, only
# figures count whose interval is narrower than a third of their range: into a wider one nearly anything would fall.
MEASURES = ["chat/accuracy_in_language en seen", "refusal/harmful all held_out_wordings", "benchmark/mean it",
            "preference_accuracy_logprob all"]  # fmt: skip
made = pytest.mark.skipif(not RESULTS.lines, reason="no results are kept yet")


@made
def test_the_kept_results_are_of_these_data_and_settings():
    """After a change of a corpus, a profile or the base, run `anita ablate --keep` again."""
    profile, found = load_profile("cpu"), load_ablation("cpu")
    installed = {name: version(name) for name in LIBRARIES}
    plan = {(cell.arm, cell.seed): cell.made for cell in campaign.dry_plan(profile, found, RESULTS.seeds)}
    stale = [
        key for key, line in RESULTS.lines.items() if line["versions"] == installed and line["made"] != plan.get(key)
    ]
    assert not stale
    assert all(RESULTS.seeds_of(arm) for arm in found.arms)
    assert not [line for line in RESULTS.lines.values() if line["commit"] in ("made up", "unknown")]


def named(table):
    names = table[["metric", "language", "split"]].fillna("").agg(" ".join, axis=1).str.strip()
    return table.assign(name=names).set_index(["arm", "name"])


@made
@pytest.mark.soak
def test_two_arms_with_a_new_seed_fall_where_one_new_seed_should(tmp_path, monkeypatch):
    """The committed 99 % prediction intervals, bounded; and a control: an arm does not fit another arm's interval."""
    monkeypatch.setenv("ANITA_RUNS", str(tmp_path))
    monkeypatch.delenv("ANITA_CACHE", raising=False)
    new = max(RESULTS.seeds) + 1  # always the same one, so that chance does not decide again each day
    run, _ = campaign.ablate(load_profile("cpu"), load_ablation("cpu"), [new], AGAIN, afresh=True)
    expected = named(results_table(RESULTS))
    measured = named(results_table(results.read_kept(run.folder / "results.jsonl")))["mean"]
    wrong, told = [], 0
    for arm in AGAIN:
        for measure in MEASURES:
            low, high, tells = expected.loc[(arm, measure), ["new_low", "new_high", "tells"]]
            told += tells
            if tells and not low <= measured[arm, measure] <= high:
                wrong.append((arm, measure, measured[arm, measure], (low, high)))
    assert not wrong, wrong
    assert told > len(MEASURES), f"{told} of {2 * len(MEASURES)} figures tell anything: more than half should"
    refusal = "refusal/harmful all held_out_wordings"
    assert measured["dpo", refusal] > expected.loc[("sft", refusal), "new_high"]
