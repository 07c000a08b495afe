"""What a rehearsal changes of a profile, and that it changes nothing else."""

import json

import pytest
import yaml

from anita_utils import AnitaError
from anita_utils.course.rehearsal import NEEDS_A_GPU, few, possible, rehearse, rehearse_course, small_data, summary
from anita_utils.hub import SHIPPED_BASE
from anita_utils.machine import Machine
from anita_utils.paths import data_dir, environment
from anita_utils.profile import PROFILES, load_profile
from anita_utils.run import Run

NAMES = sorted(file.stem for file in PROFILES.glob("*.yaml"))
# The keys a rehearsal may change, the last part of each
CHANGED = {"name", "rehearsal_of", "base", "revision", "dtype", "precision", "files", "sample", "without", "examples"}
CHANGED |= {"num_train_epochs", "max_length", "row_length", "optim", "limit", "suite", "max_new_tokens"}
KIND = ("language", "split", "kind", "side")
REST = {"cpu": "some", "cores": 2, "memory_bytes": 8 * 2**30, "system": "Linux", "python": "3.11", "versions": {}}


def machine(bf16=False, capability=None):
    gpu = {"gpu": "GPU", "gpu_memory_bytes": 2**34, "gpu_capability": capability} if capability else {}
    return Machine(**REST, **gpu, bf16=bf16, avx512_bf16=False)


MACHINES = {
    "laptop": machine(),
    "new laptop": machine(True),
    "T4": machine(False, (7, 5)),
    "H100": machine(True, (9, 0)),
}


def flat(values, path=""):
    """A profile's keys and values, however deep."""
    if not isinstance(values, dict):
        return {path: values}
    return {key: value for name, inner in values.items() for key, value in flat(inner, f"{path}.{name}").items()}


@pytest.mark.parametrize("where", MACHINES)
@pytest.mark.parametrize("name", NAMES)
def test_only_what_must_be_is_changed_and_the_machine_can_run_it(name, where):
    profile, computer = load_profile(name), MACHINES[where]
    untouched = profile.model_dump()
    rehearsed = rehearse(profile, computer)
    assert profile.model_dump() == untouched
    rehearsed.check(computer)
    assert (rehearsed.name, rehearsed.model.base) == (f"rehearsal-{name}", SHIPPED_BASE)
    before, after = flat(profile.model_dump()), flat(rehearsed.model_dump())
    assert before.keys() == after.keys()
    assert {key.rpartition(".")[2] for key in before if before[key] != after[key]} <= CHANGED
    for stage in rehearsed.stages.values():
        assert stage.examples == 32 and stage.max_length <= 256 and (stage.row_length or 0) <= 256
        assert computer.gpu or not NEEDS_A_GPU.search(stage.optim)
    assert "\n" not in summary(rehearsed) and "None" not in summary(rehearsed)


def test_the_large_profile_on_a_laptop():
    rehearsed = rehearse(load_profile("h100"), machine())
    dpo = rehearsed.stages["dpo"]
    assert (dpo.lora.r, dpo.lora.lora_alpha, dpo.lora.use_rslora) == (64, 16, True)
    assert (dpo.per_device_train_batch_size, dpo.gradient_accumulation_steps) == (8, 12)
    assert (dpo.lr_scheduler_type, dpo.learning_rate) == ("linear", 5e-5)
    assert dpo.gradient_checkpointing and dpo.optim == "adamw_torch" and dpo.row_length is None
    assert rehearsed.stages["sft"].row_length == 256
    assert rehearsed.evaluation.suite == "piccola" and rehearsed.evaluation.limit == 4
    assert summary(rehearsed).startswith(
        "rehearsal-h100, whose figures mean nothing: tiny-llama-3-instruct, the shipped corpora and benchmarks, fp32 "
        "on weights in float32, adamw_torch, 32 examples and 5 epochs a stage, at most 256 tokens a row, "
    )


def test_a_gpu_keeps_the_optimisers_and_what_precision_it_has():
    on_large = rehearse(load_profile("h100"), MACHINES["H100"])
    assert (on_large.precision, on_large.model.dtype) == ("bf16", "bfloat16")
    assert on_large.stages["sft"].optim == "paged_adamw_8bit"
    on_t4 = rehearse(load_profile("h100"), MACHINES["T4"])
    assert (on_t4.precision, on_t4.model.dtype) == ("fp16", "float16")


@pytest.mark.parametrize(
    ("wanted", "where", "found"),
    [
        ("fp16", "laptop", "fp32"),
        ("fp16", "new laptop", "bf16"),
        ("bf16", "new laptop", "bf16"),
        ("fp16", "H100", "fp16"),
        ("fp32", "H100", "fp32"),
    ],
)
def test_the_nearest_precision_is_taken(wanted, where, found):
    assert possible(wanted, MACHINES[where]) == found


def test_data_sets_come_through_the_adapters_from_the_shipped_corpora(runs):
    """Without `kind` and `language`, which rows of the Hub do not have either."""
    from anita_utils.stages import find_stage

    rehearsed = rehearse(load_profile("colab-t4"), machine())
    run = Run.open("trial", rehearsed)
    columns = {"sft": {"messages"}, "italian": {"text"}, "dpo": {"prompt", "chosen", "rejected"}}
    for name, expected in columns.items():
        settings = rehearsed.stages[name]
        stage = find_stage(Run(run.folder, rehearsed.model_copy(update={"order": [name]}), 42), name)
        rows = stage.documents()
        assert len(rows) == settings.examples
        assert all(set(row) == expected for row in rows)


def test_every_kind_of_probe_is_kept_and_twins_stay_together(tmp_path):
    folder = small_data(tmp_path / "data")
    for file in (data_dir() / "probes").glob("*.jsonl"):
        whole, small = (
            [json.loads(line) for line in (root / "probes" / file.name).read_text("utf-8").splitlines()]
            for root in (data_dir(), folder)
        )
        kinds = [{tuple(row.get(key) for key in KIND) for row in rows} for rows in (whole, small)]
        assert kinds[0] == kinds[1] and len(kinds[0]) <= len(small) <= 2 * len(kinds[0])
        assert all(row in whole for row in small)
    conduct = [json.loads(line) for line in (folder / "probes" / "conduct.jsonl").read_text("utf-8").splitlines()]
    for language in ("en", "it"):
        sides = [
            {r["cluster"] for r in conduct if (r["language"], r["side"]) == (language, s)} for s in ("harm", "safe")
        ]
        assert sides[0] & sides[1]
    with environment(ANITA_DATA=str(folder)):
        assert data_dir() == folder and (data_dir() / "benchmarks" / "items").is_dir()
    small_data(folder)  # a second time, over the first
    assert (data_dir() / "corpora" / "sft.jsonl").is_file() and len(few([{}] * 9, each=3)) == 3


def lesson(folder):
    """A lesson that prints what it was given."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    folder.mkdir()
    first = new_code_cell('profile = "cpu"\nrun = "latest"\nseed = 42', metadata={"tags": ["parameters"]})
    second = new_code_cell(
        "from anita_utils.paths import data_dir\nfrom anita_utils.run import Run\n"
        'run = Run.open(run, profile, seed)\nrun.record("00_first", [{"stage": "base", "metric": "x", "value": 1}])\n'
        "print(run.profile.stages['dpo'].gradient_accumulation_steps, data_dir().name, data_dir().parent.name)"
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[first, second], metadata=kernel), folder / "00_first.ipynb")
    return folder


def test_a_rehearsal_has_a_run_of_its_own_and_the_latest_stays(runs, tmp_path, capsys):
    import nbformat

    kept = Run.open("mine", "cpu")
    assert rehearse_course("h100", notebooks=lesson(tmp_path / "notebooks")) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("rehearsal-h100, whose figures mean nothing: tiny-llama-3-instruct, the shipped corpora")
    folder = runs / "rehearsal-h100"
    assert (runs / "latest").resolve() == kept.folder
    assert yaml.safe_load((folder / "rehearsal-h100.yaml").read_text("utf-8"))["model"]["base"] == SHIPPED_BASE
    executed = nbformat.read(folder / "notebooks" / "00_first.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.strip() == "12 data rehearsal-h100"
    assert json.loads((folder / "metrics.jsonl").read_text("utf-8"))["profile"] == "rehearsal-h100"
    info = json.loads((folder / "run.json").read_text("utf-8"))
    assert info["profile"]["name"] == "rehearsal-h100" and info["lessons"]["00_first"]["status"] == "done"


def test_mistakes_write_nothing(runs, tmp_path):
    notebooks = lesson(tmp_path / "notebooks")
    with pytest.raises(AnitaError, match="no lesson '07'"):
        rehearse_course("h100", only=["07"], notebooks=notebooks)
    assert not runs.exists()
    Run.open("mine", "cpu")
    with pytest.raises(AnitaError, match="run 'mine' was made with profile 'cpu', not 'rehearsal-h100'"):
        rehearse_course("h100", run_name="mine", notebooks=notebooks)
    assert not (runs / "mine" / "data").exists()
