"""Thousands of damaged training files and model folders: each ends in true counts or answers, or in one line.

`make soak ARGS="-k fuzz"` runs the whole, through the functions that `anita train --check` and `anita chat` call, and
40 of them through the commands; it writes benchmarks/results/fuzz.json. `make test` runs a sample.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anita_utils import AnitaError, checkout, model
from anita_utils.cli import train
from anita_utils.paths import data_dir, write_text
from anita_utils.profile import load_profile
from anita_utils.run import where_and_when

FILES, FOLDERS, COMMANDS = 2000, 300, 40
SECONDS = 60  # for one case; more counts as a hang
WORDS = """perché il Po nasce sul Monviso e città più bella è Venezia; « dove » is the river? ¿ 🐺 日本 naïve
caffè""".split()  # noqa: SIM905


# ---------------------------------------------------------------- training files, each with what must come of it


def text(rng, least=1, most=12):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def turn(role, content):
    return {"role": role, "content": content}


def good_chat(rng):
    turns = []
    for _ in range(rng.randint(1, 3)):
        turns += [turn("user", text(rng)), turn("assistant", text(rng, 1, 30))]
    return {"messages": ([turn("system", text(rng))] if rng.random() < 0.3 else []) + turns}


def good_pair(rng):
    first = text(rng, 1, 30)
    return {"prompt": [turn("user", text(rng))], "chosen": [turn("assistant", first)],
            "rejected": [turn("assistant", first + " no")]}  # fmt: skip


def other_shape(row, rng):
    """The same row as other data sets write it."""
    if "messages" in row:
        old = {"user": "human", "assistant": "gpt", "system": "system"}
        parts = [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in row["messages"]]
        shapes = [{"conversations": [{"from": old[t["role"]], "value": t["content"]} for t in row["messages"]]},
                  {"messages": parts}, row | {"id": 7, "source": None}]  # fmt: skip
        return rng.choice(shapes)
    whole = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
    strings = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
    return rng.choice([whole, whole | {"prompt": row["prompt"][0]["content"]},
                       strings | {"question": row["prompt"][0]["content"]}, row | {"score_chosen": 3.5}])  # fmt: skip


# What teaches nothing: a row, and the reason it is counted under
LEFT_OUT = {
    "chat": [
        ({"messages": [turn("user", "Ciao")]}, "no assistant turn"),
        ({"messages": None}, "no assistant turn"),
        ({"messages": [turn("user", "Ciao"), turn("assistant", "")]}, "an empty answer"),
        ({"messages": [turn("user", "Ciao"), turn("assistant", None) | {"tool_calls": [{}]}]}, "a tool call"),
        ({"messages": [turn("user", [{"type": "image", "url": "x"}]), turn("assistant", "Sì")]}, "a tool call"),
        ({"text": " \n "}, "an empty text"),
    ],
    "pair": [
        ({"prompt": "Sì?", "chosen": "Sì", "rejected": "Sì"}, "two answers that are the same"),
        ({"prompt": None, "chosen": "Sì", "rejected": "No"}, "no prompt"),
        ({"prompt": "Sì?", "chosen": "", "rejected": "No"}, "an empty answer"),
        ({"prompt": "Sì?", "chosen": [turn("user", "Sì"), turn("assistant", "a")],
          "rejected": [turn("user", "No"), turn("assistant", "b")]}, "answers to different prompts"),
    ],
}  # fmt: skip
DAMAGED = [{"messages": "Ciao"}, {"messages": [7]}, {"messages": [{"who": "me"}]}, {"domanda": "Chi?"}, {}, {"text": 7},
           {"messages": [turn("asistant", "Ciao")]}, {"messages": [turn("user", "x"), turn("assistant", "\ud800")]},
           {"text": {"it": "Ciao"}}, {"messages": [turn("user", "x"), turn("assistant", 3.5)]}]  # fmt: skip


def damaged_bytes(raw, rng):
    """What a disk, a mail programme or an editor makes of a file; what must come of it is no traceback."""
    place = rng.randrange(len(raw))
    return rng.choice([
        lambda: raw[:place], lambda: raw[place:], lambda: raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :],
        lambda: raw[:place] + b"\x00" + raw[place:], lambda: raw.decode().encode("utf-16"),
        lambda: raw.decode().encode("latin-1", "replace"), lambda: b"", lambda: raw.replace(b"\n", b"\r"),
        lambda: raw.replace(b'"', b"'", 3), lambda: b"[" + raw.replace(b"\n", b",") + b"]", lambda: b"[" * 50_000,
        lambda: raw.replace(b"assistant", b"ass\xffistant", 1), lambda: raw[:place] + b"\n" + raw[place:],
        lambda: bytes(rng.randrange(256) for _ in range(200)), lambda: raw.replace(b": ", b": NaN, ", 1),
    ])()  # fmt: skip


def training_file(rng):
    """A file's bytes, the stage it is for, the longest row, the rows that can be read, what is left out, and whether
    it must be refused; the last is None where the bytes themselves were damaged.
    """
    stage = rng.choice(["sft", "italian", "dpo"])
    make, kind = (good_pair, "pair") if stage == "dpo" else (good_chat, "chat")
    rows, left_out, refused = [], Counter(), False
    lines = []
    for _ in range(rng.randint(1, 12)):
        draw = rng.random()
        if draw < 0.7:
            row = make(rng)
            rows.append(row)
            lines.append(other_shape(row, rng) if rng.random() < 0.5 else row)
        elif draw < 0.985:
            row, why = rng.choice(LEFT_OUT[kind])
            left_out[why] += 1
            lines.append(row)
        else:
            lines.append(rng.choice(DAMAGED))
            refused = True
    newline = rng.choice(["\n", "\r\n", "\n\n", "\n \n"])
    ascii_only = refused or rng.random() < 0.5  # a lone surrogate can be written in no other way
    raw = newline.join(json.dumps(line, ensure_ascii=ascii_only) for line in lines).encode()
    raw = (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + raw + newline.encode() * rng.randint(0, 2)
    if rng.random() < 0.2:
        raw, refused = damaged_bytes(raw, rng), None
    return raw, stage, rng.choice([12, 24, 48, 96, 256]), rows, left_out, refused


@cache
def tokenizer():
    return model.load_tokenizer(data_dir() / "tiny-llama-3-instruct")


def expected_fit(rows, longest):
    """Whole, cut and unfit rows, by rendering each chat once as a whole and once up to its answers."""
    found = Counter()
    for row in rows:
        render = tokenizer().apply_chat_template
        if "messages" in row:
            ids = render(row["messages"], return_dict=False)
            first = next(n for n, t in enumerate(row["messages"]) if t["role"] == "assistant")
            start = len(render(row["messages"][:first], add_generation_prompt=True, return_dict=False))
            found["unfit" if start >= longest else "whole" if len(ids) <= longest else "cut"] += 1
            continue
        sides = [render(row["prompt"] + row[side], return_dict=False) for side in ("chosen", "rejected")]
        start = len(render(row["prompt"], add_generation_prompt=True, return_dict=False))
        same = sides[0][:longest] == sides[1][:longest]
        size = max(map(len, sides))
        found["unfit" if start >= longest or same else "whole" if size <= longest else "cut"] += 1
    return found


def check_file(case, folder):
    """Runs one case in process; returns how it ended. AssertionError for a wrong count, any other error as it is."""
    raw, stage, longest, rows, left_out, refused = case
    file = folder / "rows.jsonl"
    file.write_bytes(raw)
    changes = [f"data={json.dumps(str(file))}", "examples=null", f"max_length={longest}"]
    changes += ["row_length=256"] if stage != "dpo" else []
    start = time.monotonic()
    try:
        counts = train.check_rows(stage, train.changed(load_profile("cpu"), stage, None, changes), 42)
    except AnitaError as error:
        assert "\n" not in str(error) and len(str(error)) < 600, error
        fit = expected_fit(rows, longest)
        assert refused is not False or not (fit["whole"] + fit["cut"]), f"refused without need: {error}"
        return "one line"
    assert time.monotonic() - start < SECONDS
    assert counts.read == counts.left_out.total() + counts.unfit.total() + counts.cut + counts.whole
    assert counts.whole + counts.cut > 0
    if refused is None:
        return "counts"
    assert refused is False, "a damaged row was passed over"
    fit = expected_fit(rows, longest)
    found = Counter({why.partition(",")[0]: number for why, number in counts.left_out.items()})
    assert found == left_out and counts.read == len(rows) + left_out.total()
    assert (counts.whole, counts.cut, counts.unfit.total()) == (fit["whole"], fit["cut"], fit["unfit"])
    return "counts, all of them right"


# ---------------------------------------------------------------- model folders


def change_json(file, rng):
    """One value of a JSON file is another, or gone."""
    values = json.loads(file.read_text("utf-8"))
    key = rng.choice(sorted(values))
    others = [None, "", 0, -1, 7, 1e9, "nan", [], {}, True, values[key]]
    if rng.random() < 0.3:
        del values[key]
    else:
        values[key] = rng.choice(others)
    file.write_text(json.dumps(values), "utf-8")


def change_weights(file, rng):
    """A tensor is not finite, of another shape, of another name, missing, or one too many."""
    weights = load_file(file)
    name = rng.choice(sorted(weights))
    tensor = weights[name]
    action = rng.choice(["nan", "inf", "shape", "name", "missing", "more"])
    if action in ("nan", "inf"):
        weights[name] = torch.full_like(tensor, float(action))
    elif action == "shape":
        weights[name] = tensor[:-1].contiguous()
    elif action in ("name", "missing"):
        del weights[name]
        if action == "name":
            weights[f"x.{name}"] = tensor
    else:
        weights["one.too.many"] = torch.zeros(3)
    save_file(weights, file, {"format": "pt"})
    return action


def mutate_folder(folder, rng):
    """Damages a model's folder in one way or two; returns what was done."""
    done = []
    for _ in range(rng.randint(1, 2)):
        files = sorted(file for file in folder.iterdir() if file.name != "README.md")
        file = rng.choice(files)
        action = rng.choice(["delete", "cut", "byte", "json", "json", "weights", "weights", "template", "template"])
        if action == "delete":
            file.unlink()
        elif action == "cut":
            os.truncate(file, rng.randrange(file.stat().st_size + 1))
        elif action == "byte":
            raw = bytearray(file.read_bytes())
            if raw:
                raw[rng.randrange(min(len(raw), 4000))] = rng.randrange(256)
            file.write_bytes(raw)
        elif action == "json":
            jsons = [file for file in files if file.suffix == ".json" and file.name != "tokenizer.json"]
            file = rng.choice(jsons or files)
            with suppress(ValueError, IndexError, AttributeError, TypeError):  # damaged by the first change
                change_json(file, rng)
        elif action == "weights":
            file = folder / "model.safetensors"
            with suppress(Exception):  # damaged by the first change
                action = f"weights, {change_weights(file, rng)}"
        else:
            file = folder / "chat_template.jinja"
            file.write_text(rng.choice(templates()), "utf-8")
        done.append(f"{action} of {file.name}")
    return "; ".join(done)


@cache
def templates():
    """Those that TRL ships, of which nobody here wrote one, and some that are broken."""
    import trl

    shipped = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    broken = ["", "{{ messages", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ 1 / 0 }}", "{{ x.y.z }}",
              "{{ raise_exception('no') }}", "{{ messages[9].content }}", "ciao"]  # fmt: skip
    return [file.read_text("utf-8") for file in shipped] + broken


def check_folder(folder):
    """Asks the model in a folder something; returns how it ended."""
    from anita_utils.cli.chat import Models, ask
    from anita_utils.conversation import Chat, Decoding

    start = time.monotonic()
    try:
        partner = Models.chosen(str(folder), "cpu").open(str(folder), Chat())
        answers = list(ask(["Ciao"], "", partner, Decoding(max_new_tokens=2)))
    except AnitaError as error:
        assert "\n" not in str(error) and len(str(error)) < 600, error
        return "one line"
    assert time.monotonic() - start < SECONDS and len(answers) == 1
    return "an answer"


# ---------------------------------------------------------------- the campaigns


def fuzz_files(count, folder, seed):
    """How the cases ended; the first that ended otherwise stops it, and says its number."""
    ended = Counter()
    for number in range(count):
        case = training_file(random.Random(f"file {seed} {number}"))
        try:
            ended[check_file(case, folder)] += 1
        except Exception as error:
            raise AssertionError(f"training file {number}: {error!r}\n{case[0][:2000]!r}") from error
    return ended


def fuzz_folders(count, folder, base, seed):
    ended = Counter()
    for number in range(count):
        rng = random.Random(f"folder {seed} {number}")
        copy = folder / "model"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)
        done = mutate_folder(copy, rng)
        try:
            ended[check_folder(copy)] += 1
        except Exception as error:
            raise AssertionError(f"model folder {number} ({done}): {error!r}") from error
    return ended


def by_command(count, folder, base, seed):
    """The same through the commands: exit code 0, or 2 with one line and no traceback."""
    ended = Counter()
    for number in range(count):
        if number % 2:
            raw, stage, longest, *_ = training_file(random.Random(f"file {seed} {number}"))
            (folder / "rows.jsonl").write_bytes(raw)
            command = ["train", stage, "--check", "--set", f"data={json.dumps(str(folder / 'rows.jsonl'))}", "--set",
                       "examples=null", "--set", f"max_length={longest}"]  # fmt: skip
        else:
            shutil.rmtree(folder / "model", ignore_errors=True)
            shutil.copytree(base, folder / "model")
            mutate_folder(folder / "model", random.Random(f"folder {seed} {number}"))
            command = ["chat", str(folder / "model"), "--prompt", "Ciao", "--max-new-tokens", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "anita_utils.cli.main", *command], capture_output=True, text=True, timeout=SECONDS
        )
        said = [line for line in done.stderr.splitlines() if line.startswith("anita: ")]
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (number, done.stderr)
        assert len(said) == (done.returncode == 2), (number, done.stderr)
        ended[f"exit {done.returncode}"] += 1
    return ended


@pytest.fixture
def quick(monkeypatch):
    """One tokenizer for all files; a folder's is read each time."""
    checked = model.checked_tokenizer
    of_base = cache(lambda: checked(data_dir() / "tiny-llama-3-instruct"))
    base = str(data_dir() / "tiny-llama-3-instruct")
    monkeypatch.setattr(
        model, "checked_tokenizer", lambda path, *a, **k: of_base() if str(path) == base else checked(path, *a, **k)
    )


def test_a_sample_of_damaged_files_ends_in_true_counts_or_one_line(runs, tmp_path, quick):
    ended = fuzz_files(80, tmp_path, seed=1)
    assert ended["counts, all of them right"] > 20 and ended["one line"] > 10


def test_a_sample_of_damaged_models_ends_in_an_answer_or_one_line(runs, tmp_path, tiny_path):
    ended = fuzz_folders(12, tmp_path, tiny_path, seed=1)
    assert ended.total() == 12


@pytest.mark.soak
def test_fuzz(runs, tmp_path, tiny_path, quick):
    """2,000 training files and 300 model folders, and 40 through the commands."""
    files, folders = fuzz_files(FILES, tmp_path, 42), fuzz_folders(FOLDERS, tmp_path, tiny_path, 42)
    commands = by_command(COMMANDS, tmp_path, tiny_path, 43)
    result = {"training files": files, "model folders": folders, "commands": commands} | where_and_when()
    write_text(checkout() / "benchmarks" / "results" / "fuzz.json", json.dumps(result, indent=1) + "\n")
    assert (files.total(), folders.total(), commands.total()) == (FILES, FOLDERS, COMMANDS)
