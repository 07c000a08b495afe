"""The lessons rehearsed under the profiles of other machines: their settings, on the small model, for a few steps."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import pytest

from anita_utils.profile import load_profile

ROOT = Path(__file__).parents[2]
LESSONS = len(list((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")))
# Rehearsals at a time: one, where other tests run beside these
WORKERS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(4, joblib.cpu_count())
# What a stage of a rehearsal takes from the profile as it is
KEPT = ["lora", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "warmup_steps"]
KEPT += ["weight_decay", "lr_scheduler_type", "beta"]
CHATML = """{% if messages[0]['role'] != 'system' %}<|im_start|>system
Answer briefly.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def speaking_chatml(folder):
    """The course's data, whose small model speaks ChatML with the marks of SmolLM2, as far as we know them.

    Its words were never trained, so its answers are nothing; but the laptop's lessons see such a tokenizer first here.
    """
    folder.mkdir()
    for entry in (ROOT / "data").iterdir():
        (folder / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    model = folder / "tiny-llama-3-instruct"
    model.unlink()
    shutil.copytree(ROOT / "data" / model.name, model)
    marks = {"begin_of_text": "im_start", "eot_id": "im_end", "end_of_text": "endoftext"}
    marks |= {"reserved_special_token_0": "reponame"}  # nothing is reserved there
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / name).read_text("utf-8")
        for llama, other in marks.items():
            text = text.replace(f"<|{llama}|>", f"<|{other}|>")
        values = json.loads(text)
        if name == "tokenizer.json":
            values["post_processor"] = None  # no mark is added to plain text
        else:
            values |= {"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
        (model / name).write_text(json.dumps(values), "utf-8")
    (model / "chat_template.jinja").write_text(CHATML, "utf-8")
    return folder


# The lessons rehearsed in `make test`: those that train and measure; of a tokenizer with other marks, those that look
# at them. () is all of them, which `make soak` rehearses.
SAMPLE = {"h100": ("02", "03", "04", "05"), "laptop-hub": ("01", "02", "04")}
NAMES = ("h100", "colab-t4", "colab-t4-1b", "laptop-hub", "laptop")


def rehearse_all(folder: Path, wanted: dict[str, tuple[str, ...]]) -> dict[str, tuple]:
    """Rehearses profiles of other machines, a core each. Returns, by name, the folder of runs and what was said."""
    data = speaking_chatml(folder / "chatml")

    def rehearse(name):
        environment = {**os.environ, "ANITA_RUNS": str(folder / name)}
        environment.pop("ANITA_CACHE", None)
        if WORKERS > 1:
            environment["OMP_NUM_THREADS"] = "1"
        if name == "laptop-hub":
            environment["ANITA_DATA"] = str(data)
        command = [sys.executable, "-m", "anita_utils.cli.main", "course", "--profile", name, "--rehearse"]
        command += [word for lesson in wanted[name] for word in ("--only", lesson)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(WORKERS) as pool:
        done = list(pool.map(rehearse, wanted))
    return {name: (folder / name, outcome) for name, outcome in zip(wanted, done, strict=True)}


def check_rehearsal(name: str, runs: Path, done: subprocess.CompletedProcess, lessons: int) -> None:
    """All lessons ran, with the small model, the shipped data in the Hub's columns and a few steps; all else is the
    profile's.
    """
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder, profile = runs / f"rehearsal-{name}", load_profile(name)
    status = [lesson["status"] for lesson in json.loads((folder / "run.json").read_text("utf-8"))["lessons"].values()]
    assert status == ["done"] * lessons
    for stage in profile.order:
        info = json.loads((folder / "models" / stage / "stage.json").read_text("utf-8"))
        wanted = profile.stages[stage].model_dump()
        assert {key: info["recipe"]["settings"][key] for key in KEPT} == {key: wanted[key] for key in KEPT}
        every = min(5, info["steps"] // 5)  # a log at least five times
        assert 5 <= info["steps"] <= 100 and len(info["history"]) == info["steps"] // every
    assert {json.loads(line)["profile"] for line in (folder / "metrics.jsonl").open()} == {f"rehearsal-{name}"}
    assert not (runs / "latest").exists()


@pytest.fixture(scope="module")
def rehearsals(tmp_path_factory):
    return rehearse_all(tmp_path_factory.mktemp("rehearsals"), SAMPLE)


@pytest.mark.parametrize("name", SAMPLE)
def test_lessons_are_rehearsed_under_the_profiles_of_other_machines(rehearsals, name):
    check_rehearsal(name, *rehearsals[name], len(SAMPLE[name]) or LESSONS)


@pytest.mark.soak
def test_every_lesson_is_rehearsed_under_every_profile(tmp_path):
    for name, (runs, done) in rehearse_all(tmp_path, dict.fromkeys(NAMES, ())).items():
        check_rehearsal(name, runs, done, LESSONS)
