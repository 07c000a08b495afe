"""The authors' figures and settings: nothing without a source, nothing uncertain in the authors' name."""

import pandas
import pytest

from anita_utils.paths import data_dir
from anita_utils.profile import PROFILES, Profile, load_profile
from anita_utils.studies.settings import FIRST, LAST, UNKNOWN, comments, settings_table

NAMES = sorted(file.stem for file in PROFILES.glob("*.yaml"))
FACTS = pandas.read_csv(data_dir() / "paper" / "hyperparameters.csv", dtype=str, keep_default_na=False)
RESULTS = pandas.read_csv(data_dir() / "paper" / "results.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def table():
    return settings_table("h100")


def test_settings_are_tidy():
    assert list(FACTS.columns) == ["parameter", "stage", "column", "value", "source", "certainty"]
    assert set(FACTS.certainty) == {"confirmed", "inferred", "not confirmed"}
    assert set(FACTS["column"]) == {FIRST, LAST}
    assert set(FACTS.stage) == {"sft", "italian", "dpo", "all"}
    assert not FACTS.duplicated(["parameter", "stage", "column"]).any()
    assert (FACTS != "").all(axis=None)
    assert (FACTS.groupby(["stage", "parameter"]).size() == 2).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_is_without_its_source(name):
    table = settings_table(name)
    assert list(table.columns.get_level_values(0).unique()) == [FIRST, LAST, f"ours ({name})"]
    assert table.map(lambda cell: isinstance(cell, str) and bool(cell.strip())).all(axis=None)
    assert not table[f"ours ({name})", "source"].str.contains("gives no source").any()


def test_what_is_not_confirmed_says_so(table):
    for fact in FACTS[FACTS.certainty == UNKNOWN].itertuples():
        assert table.loc[(fact.stage, fact.parameter), (fact.column, "value")] == "not confirmed"
    for fact in FACTS[FACTS.certainty == "inferred"].itertuples():
        assert table.loc[(fact.stage, fact.parameter), (fact.column, "value")].endswith("(inferred)")


def test_the_settings_that_changed(table):
    first, last, ours = (table[name, "value"] for name in (FIRST, LAST, "ours (h100)"))
    assert (first["sft", "learning_rate"], last["sft", "learning_rate"]) == ("8e-6", "2e-4")
    assert (first["dpo", "learning_rate"], last["dpo", "learning_rate"]) == ("5e-6", "5e-5")
    assert (first["dpo", "num_train_epochs"], last["dpo", "num_train_epochs"]) == ("2", "1")
    assert last["italian", "learning_rate"] == "2e-5 (inferred)"
    assert (ours["sft", "learning_rate"], ours["dpo", "lora.use_rslora"]) == ("2e-4", "yes")
    assert ours["italian", "starts_from"] != ours["sft", "starts_from"] == load_profile("h100").model.base
    assert ours["sft", "lora.target_modules"] == first["sft", "lora.target_modules"]


def test_a_profile_that_says_nothing_is_told_apart(tmp_path):
    file = tmp_path / "mine.yaml"
    lines = (PROFILES / "cpu.yaml").read_text("utf-8").splitlines()
    file.write_text("\n".join(line.partition(" #")[0] for line in lines if not line.lstrip().startswith("#")), "utf-8")
    mine = settings_table(file)["ours (mine)"]
    assert mine.loc[("sft", "per_device_train_batch_size")].tolist() == ["4", "ours: the profile gives no source"]


def test_a_loaded_profile_keeps_its_sources(table):
    profile = load_profile("h100")
    assert settings_table(profile).equals(table)
    unread = settings_table(Profile.model_validate(profile.model_dump()))["ours (h100)"]
    assert unread.loc[("sft", "lora.r")].tolist() == ["16", "ours: the profile gives no source"]


def test_comments_are_read_over_several_lines(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# header\n"
        "a: 1      # HF#1: one\n"
        "          # and more\n"
        "b:        # of a section\n"
        "  c: [x]  # ours\n"
        "  # a remark of its own\n"
        "  d: 'e # f'\n",
        "utf-8",
    )
    assert comments(file) == {"a": "HF#1: one and more", "b.c": "ours", "b.d": ""}


def test_results_agree_with_the_published_averages():
    """The averages are not kept in the file, so they check it. Shares; the English card prints percentages."""
    families = RESULTS[~RESULTS.benchmark.str.contains("/")]
    means = families.groupby(["language", "model"]).value.mean()
    assert means["en", "LLaMAntino-3-ANITA-8B-Inst-DPO-ITA"] == pytest.approx(0.7512, abs=5e-5)
    assert means["en", "Meta-Llama-3-8B-Instruct"] == pytest.approx(0.6687, abs=5e-5)
    italian = {
        "LLaMAntino-3-ANITA-8B-Inst-DPO-ITA": 0.6160,
        "Meta-Llama-3-8B-Instruct": 0.5342,
        "Llama-3.1-8B-Instruct": 0.5697,
        "DeepMount00/Llama-3-8b-Ita": 0.5903,
        "DeepMount00/Llama-3.1-8b-Ita": 0.6002,
        "maestrale-chat-v0.4-beta": 0.5970,
        "LLaMAntino-2-70b UltraChat": 0.5885,
        "LLaMAntino-2-chat-13b UltraChat": 0.4742,
        "LLaMAntino-2-7b": 0.4193,
        "zefiro-7b-dpo v0.7": 0.5414,
        "Mistral-7B-v0.1": 0.5175,
        "Minerva-7B-instruct": 0.4852,
        "gemma-2-9b-it": 0.6341,
    }
    assert means["it"].to_dict() == pytest.approx(italian, abs=1e-4)  # two of them are cut off, not rounded


def test_results_say_how_sure_they_are():
    assert set(RESULTS.certainty) == {"confirmed", "not confirmed"}
    base = RESULTS[(RESULTS.model == "Meta-Llama-3-8B-Instruct") & (RESULTS.language == "en")]
    assert set(base.certainty) == {"not confirmed"}
    board = RESULTS[(RESULTS.source == "Open ITA LLM leaderboard") & (RESULTS.benchmark == "arc")]
    assert len(board) == 13 and board.note.str.contains("arc_it at task version 1").all()
