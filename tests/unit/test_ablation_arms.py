"""Arms and claims as data: files that start from another, broken ones refused in one line, what an arm changes."""

import pytest
from few_arms import ARMS

from anita_utils import AnitaError
from anita_utils.ablation.arms import arm_profile, as_measured, load_ablation
from anita_utils.ablation.campaign import dry_plan
from anita_utils.profile import load_profile


def test_the_eight_arms_of_the_factorial_are_found_by_their_orders():
    found = load_ablation("cpu")
    assert found.factorial()[frozenset({"sft", "dpo"})] == "sft_dpo"
    assert found.factorial()[frozenset({"sft", "italian", "dpo"})] == "summary"
    found.arms = {name: arm for name, arm in found.arms.items() if name != "dpo"}
    assert found.factorial() == {}


def test_a_file_can_start_from_another(arms):
    cpu, own = load_ablation("cpu"), ARMS["arms"]["sft"] | {"asks": "Other?"}
    dropped = {"replay": None, "no_replay": None}
    found = load_ablation(
        arms({"like": "cpu", "arms": {"sft": own} | dropped, "claims": dropped | {"no_replay": None}})
    )
    assert found.arms["sft"].asks == "Other?" and found.arms["dpo"] == cpu.arms["dpo"]
    assert set(cpu.arms) - set(found.arms) == {"no_replay"} and set(cpu.claims) - set(found.claims) == {"replay"}
    assert found.measures == cpu.measures and found.digest != cpu.digest
    with pytest.raises(AnitaError, match="no arms for 'nowhere'"):
        load_ablation(arms({"like": "nowhere"}))


@pytest.mark.parametrize("name", ["cpu", "h100"])
def test_every_arm_that_is_shipped_can_be(name):
    found, profile = load_ablation(name), load_profile(name)
    orders = {arm: arm_profile(profile, arm, settings)[1] for arm, settings in found.arms.items()}
    assert (
        len(orders) == {"cpu": 17, "h100": 18}[name]
        and orders["journal"] == ["sft", "dpo", "italian"]
        and orders["base"] == []
    )


def test_an_arm_is_the_profile_but_for_what_it_sets(tiny):
    found = load_ablation("cpu")
    for name, arm in found.arms.items():
        profile, order = arm_profile(tiny, name, arm)
        assert order == ([] if name == "base" else profile.order)
        before, after = tiny.model_dump(), profile.model_dump()
        for key in arm.set:
            *path, last = key.split(".")
            for values in (before, after):
                for part in path:
                    values = values[part]
                values.pop(last)
        assert before == after


def test_arms_are_measured_on_as_many_items_as_their_file_says(arms):
    cpu, h100 = load_profile("cpu"), load_profile("h100")
    measured = as_measured(cpu, load_ablation("cpu"))
    assert (cpu.evaluation.limit, measured.evaluation.limit) == (50, 300)
    assert measured.model_dump(exclude={"evaluation"}) == cpu.model_dump(exclude={"evaluation"})
    assert as_measured(h100, load_ablation("h100")).evaluation.limit is None  # all
    assert as_measured(cpu, load_ablation(arms(ARMS))) == cpu  # a file that does not say
    [trial, *_] = dry_plan(cpu, load_ablation("cpu"), [1], ["dpo"])
    assert trial.profile.evaluation.limit == 300


# ---------------------------------------------------------------- broken files


def changed(**arm):
    return ARMS | {"arms": ARMS["arms"] | {"new": {"asks": "What?"} | arm}}


def claiming(**changes):
    return ARMS | {"claims": {"gain": ARMS["claims"]["gain"] | changes}}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("arms: [", "arms.yaml is not YAML"),
        ("just words", "arms.yaml holds no keys: start from"),
        ({"claims": {}}, "arms.yaml: arms: missing: add it"),
        (ARMS | {"amrs": {}}, "arms.yaml: amrs: unknown key: known here: arms, measures, claims"),
        (ARMS | {"arms": {"a/b": {"asks": "What?"}}}, "arms.yaml: arms.a/b: String should match pattern"),
        ({"arms": {"sft": {"set": {}}}}, "arms.yaml: arms.sft.asks: missing: add it"),
        (
            changed(set={"stages.italian.lora.rank": 8}),
            "arm 'new': stages.italian.lora.rank: unknown key: remove it; known here: r, lora_alpha",
        ),
        (changed(set={"stages.italain.beta": 2}), "stages.italain: no such section: did you mean 'italian'?"),
        (
            changed(set={"stages.dpo.epochs": 2}),
            "arm 'new': stages.dpo.epochs: unknown key: did you mean 'num_train_epochs'?",
        ),
        (changed(set={"stages.sft.lora.r": -1}), "arm 'new': stages.sft.lora.r: -1 will not do"),
        (changed(set={"order": ["sft", "rlhf"]}), "arm 'new': order: 'rlhf' has no settings"),
        (
            changed(set={"order": "paper", "stages.sft.data": "mine.jsonl"}),
            "arm 'new': order: paper has SFT on English and Italian",
        ),
        (changed(set={"order": ["sft"], "stages.dpo.beta": 1}), "changes nothing, as the arm runs sft"),
        (changed(set={"evaluation.limit": 3}), "arm 'new': evaluation.limit: must be the same in all arms"),
        (changed(set={"seed": 3}), "arm 'new': seed: must be the same in all arms"),
        (changed(set={"precision": "fp16", "model.dtype": "float16"}), "arm 'new': precision: fp16 on a CPU"),
        (changed(set={"stages.sft.data": "nowhere"}), "stages.sft.data: no corpus 'nowhere': choose sft, italian, dpo"),
        (claiming(contrast={"sft_dpo": 1, "stf": -1}), "claims.gain.contrast: no arm 'stf': choose base, sft"),
        (claiming(contrast={"sft_dpo": 1, "sft": 1}), "claims.gain.contrast: the weights must add up to 0"),
        (ARMS | {"items": 0}, "arms.yaml: items: Input should be greater than 0"),
        (claiming(kind="lower"), "claims.gain.kind: Input should be 'higher', 'kept' or 'differs'"),
    ],
)
def test_broken_arms_are_one_line_and_leave_nothing(runs, anita, arms, values, complaint):
    code, out, err = anita("ablate", "--arms", arms(values))
    assert (code, out) == (2, "")
    assert complaint in err and err.startswith("anita: ") and err.count("\n") == 1
    assert not runs.exists()
