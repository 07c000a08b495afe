"""Data sets in their own columns, read from fixtures by the path that also streams from the Hub."""

import warnings
from collections import Counter

import pytest

from anita_utils import AnitaError, stages, training
from anita_utils.data import encode
from anita_utils.hub import fetch, rows
from anita_utils.paths import data_dir
from anita_utils.profile import HubData, load_profile
from anita_utils.rows import read_jsonl
from anita_utils.run import Run

FIXTURES = data_dir() / "fixtures"
# data set on the Hub: its fixture, the columns of a row in the course's format, how many of the rows teach something
KNOWN = {
    "HuggingFaceH4/ultrachat_200k": ("ultrachat_200k.jsonl", {"messages"}, 4),
    "HuggingFaceH4/ultrafeedback_binarized": ("ultrafeedback_binarized.jsonl", {"prompt", "chosen", "rejected"}, 3),
    "mlabonne/orpo-dpo-mix-40k": ("orpo_dpo_mix_40k.jsonl", {"prompt", "chosen", "rejected"}, 5),
    "Chat-Error/wizard_alpaca_dolly_orca": ("wizard_alpaca_dolly_orca.jsonl", {"messages"}, 3),
    "gsarti/clean_mc4_it": ("clean_mc4_it.json.gz", {"text"}, 4),
    "efederici/evol-dpo-ita": ("evol_dpo_ita.jsonl", {"prompt", "chosen", "rejected"}, 3),
    "efederici/capybara-claude-15k-ita": ("capybara_claude_15k_ita.jsonl", {"messages"}, 3),
}


def local(file, **changes):
    """Settings that read a fixture, or a file at a path, in place of the repository."""
    values = {"revision": None, "split": "train", "licence": "MIT", "files": str(FIXTURES / file), "sample": None}
    return HubData(**values | changes)


def refusal(name, settings):
    with pytest.raises(AnitaError) as error:
        list(rows(name, settings))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", KNOWN)
def test_every_schema_comes_out_in_the_courses_format(name, tokenizer):
    file, columns, count = KNOWN[name]
    found = list(rows(name, local(file)))
    assert len(found) == count
    for row in found:
        assert set(row) == columns
        for turn in (turn for column in columns - {"text"} for turn in row[column]):
            assert set(turn) == {"role", "content"} and turn["content"]
        if "prompt" not in row:
            assert any(label != -100 for label in encode(row, tokenizer, 512)["labels"])


def test_the_profiles_name_only_data_sets_with_a_fixture():
    for profile in ("laptop-hub", "colab-t4-1b", "colab-t4", "h100"):
        assert set(load_profile(profile).datasets) <= set(KNOWN)
    assert set(load_profile("h100").datasets) == set(KNOWN)


@pytest.mark.parametrize("name", [name for name, (_, columns, _) in KNOWN.items() if "chosen" in columns])
def test_a_prompt_stands_in_a_pair_once(name, tokenizer):
    for row in rows(name, local(KNOWN[name][0])):
        assert row["prompt"][-1]["role"] == "user"
        assert [turn["role"] for turn in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
        assert row["chosen"] != row["rejected"]
        whole = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)
        assert whole.count(row["prompt"][-1]["content"]) == 1
        assert whole.count(tokenizer.bos_token) == 1


def test_several_turns_of_prompt_are_kept_in_order():
    first = min(rows("mlabonne/orpo-dpo-mix-40k", local("orpo_dpo_mix_40k.jsonl")), key=lambda row: -len(row["prompt"]))
    assert [turn["role"] for turn in first["prompt"]] == ["user", "assistant", "user"]
    assert first["chosen"][0]["content"].startswith("The Mole")


def test_toxic_and_truthy_rows_can_be_left_out():
    name, settings = "mlabonne/orpo-dpo-mix-40k", local("orpo_dpo_mix_40k.jsonl", without=["toxic-dpo", "truthy-dpo"])
    kept = [row["prompt"][0]["content"] for row in rows(name, settings)]
    assert len(kept) == 3
    counts = Counter()
    assert len(list(rows(name, settings, counts))) == 3
    assert counts == {"of a source that is left out (without)": 2}
    assert not any("unkind" in prompt or "bulls" in prompt for prompt in kept)
    assert len(list(rows(name, settings.model_copy(update={"without": ["toxic-dpo"]})))) == 4


def test_a_switch_without_its_column_is_refused():
    message = refusal("efederici/evol-dpo-ita", local("evol_dpo_ita.jsonl", without=["toxic-dpo"]))
    assert message == "datasets.efederici/evol-dpo-ita.without: its rows have no `source` to choose by: set it to []"


def test_samples_are_as_large_as_asked_and_the_same_for_a_seed():
    def sample(seed, size):
        settings = local("ultrachat_200k.jsonl", seed=seed, sample=size)
        return [row["messages"][0]["content"] for row in rows("HuggingFaceH4/ultrachat_200k", settings)]

    assert len(sample(1, 2)) == 2
    assert sample(1, 4) == sample(1, 4)
    assert sample(1, 4)[:2] == sample(1, 2)
    assert len({tuple(sample(seed, 4)) for seed in range(5)}) > 1
    assert len(sample(1, 100)) == 4  # all there are


def test_left_out_rows_do_not_count_towards_the_sample():
    settings = local("orpo_dpo_mix_40k.jsonl", without=["toxic-dpo", "truthy-dpo"], sample=3)
    for seed in range(5):
        found = rows("mlabonne/orpo-dpo-mix-40k", settings.model_copy(update={"seed": seed}))
        assert len(list(found)) == 3


def test_unknown_columns_are_listed_beside_those_expected(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"domanda": "Chi?", "risposta": "Io."}\n', "utf-8")
    message = refusal("some/one", local(file))
    assert message.startswith("data set 'some/one': the columns are domanda, risposta: expected chosen + rejected")
    for expected in ("messages", "conversations", "instruction + output", "text"):
        assert f"or {expected}" in message


@pytest.mark.parametrize("content", ["", '{"text": "uno"}\n{"text": \n'])
def test_empty_and_damaged_files_are_one_line(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_text(content, "utf-8")
    assert "data set 'some/one'" in refusal("some/one", local(file))


def test_missing_files_and_an_unreachable_hub_are_one_line(tmp_path):
    assert "no file at" in refusal("some/one", local(tmp_path / "*.json.gz"))
    for settings in (local("x", files=None), local("x", files="hf://datasets/some/one/*.json.gz", revision="abc")):
        assert "data set 'some/one' cannot be read" in refusal("some/one", settings)


def test_a_pinned_revision_reaches_the_library(monkeypatch):
    import datasets

    asked = []

    def load(*args, **options):
        asked.append((args, options))
        raise FileNotFoundError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", load)
    refusal("some/one", local("x", files=None, revision="abc", config="tiny", split="train_sft"))
    refusal("some/one", local("x", files="hf://datasets/some/one/**/c4-it.*.json.gz", revision="abc"))
    (args, options), (_, by_file) = asked
    assert args == ("some/one", "tiny")
    assert options == {"split": "train_sft", "revision": "abc", "streaming": True}
    assert by_file["data_files"] == {"train": "hf://datasets/some/one@abc/**/c4-it.*.json.gz"}


# ---------------------------------------------------------------- the cache, and training


def test_a_sample_is_fetched_once_and_survives_the_odd_separators_of_the_web(runs):
    file = fetch("gsarti/clean_mc4_it", local("clean_mc4_it.json.gz"))
    texts = [row["text"] for row in read_jsonl(file)]
    assert len(texts) == 4 and any("\u2028" in text for text in texts)
    stamp = file.stat().st_mtime_ns
    assert fetch("gsarti/clean_mc4_it", local("clean_mc4_it.json.gz")) == file
    assert file.stat().st_mtime_ns == stamp
    assert fetch("gsarti/clean_mc4_it", local("clean_mc4_it.json.gz", sample=2)) != file
    assert len(list(file.parent.glob("*.jsonl"))) == 2


def test_a_changed_local_file_is_another_sample(runs, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "uno"}\n', "utf-8")
    first = fetch("some/one", local(file))
    file.write_text('{"text": "due"}\n', "utf-8")
    assert fetch("some/one", local(file)) != first


def test_a_broken_download_leaves_nothing(runs, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"nothing": "known"}\n', "utf-8")
    with pytest.raises(AnitaError):
        fetch("some/one", local(file))
    assert [file.suffix for file in (runs / "cache" / "datasets").iterdir()] == [".lock"]


def test_a_non_commercial_licence_is_said_before_the_download(runs):
    name = "Chat-Error/wizard_alpaca_dolly_orca"
    licence = load_profile("h100").datasets[name].licence
    with pytest.warns(UserWarning, match="CC-BY-NC-SA-4.0: not for commercial use"), pytest.raises(AnitaError):
        fetch(name, local("no such file", licence=licence))  # said although nothing could be read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch("gsarti/clean_mc4_it", local("clean_mc4_it.json.gz", licence="ODC-BY"))


def test_a_stage_trains_on_a_data_set_of_the_hub(runs, small_profile, tokenizer):
    small_profile.datasets = {name: local(KNOWN[name][0]) for name in KNOWN}
    small_profile.stages["sft"].data = ["HuggingFaceH4/ultrachat_200k", "efederici/capybara-claude-15k-ita"]
    small_profile.stages["dpo"].data = ["efederici/evol-dpo-ita"]
    run = Run.open("t", small_profile, 42)
    sft, dpo = stages.find_stage(run, "sft"), stages.find_stage(run, "dpo")
    assert len(sft.documents()) == 7
    assert sum(training.training_rows(sft, tokenizer)["input_ids"], []).count(tokenizer.bos_token_id) == 7
    pairs = training.training_rows(dpo, tokenizer)
    assert pairs.column_names == ["prompt", "chosen", "rejected"] and len(pairs) == 3
    before = sft.key
    small_profile.datasets["HuggingFaceH4/ultrachat_200k"].sample = 2
    assert stages.find_stage(Run.open("t", small_profile, 42), "sft").key != before


def test_chats_are_no_preference_pairs(runs, small_profile, tokenizer):
    small_profile.stages["dpo"].data = ["sft"]
    with pytest.raises(AnitaError, match="stages.dpo.data: 160 rows of sft are no preference pairs"):
        training.training_rows(stages.find_stage(Run.open("t", small_profile, 42), "dpo"), tokenizer)


def test_brackets_in_a_path_are_no_pattern(runs, tmp_path):
    """Files of a stranger's folder were taken for a pattern: datasets#7468."""
    folder = tmp_path / "corso [copia]"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"text": "uno"}\n', "utf-8")
    assert [row["text"] for row in rows("some/one", local(folder / "rows.jsonl"))] == ["uno"]
