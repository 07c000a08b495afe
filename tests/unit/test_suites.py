"""What the two suites ask of lm-eval, and what is made of its answers. No network."""

from pathlib import Path

import lm_eval
import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from anita_utils import AnitaError, evaluation, suites
from anita_utils.hub import data_dir
from anita_utils.profile import load_profile
from anita_utils.suites import BOARDS, FAMILIES, SCORES, Board, load_board

FOLDERS = ("arc", "hellaswag", "mmlu/default", "truthfulqa", "winogrande", "gsm8k", "okapi")
AUTHORS = {  # task and shots, as paper.md has them from the card and the repository
    "en": "arc_challenge 25 hellaswag 10 mmlu 5 truthfulqa_mc2 0 winogrande 5 gsm8k 5",
    "it": "arc_it 0 hellaswag_it 0 m_mmlu_it 5",
}


@pytest.fixture(scope="module")
def built_in():
    """lm-eval's own index of its tasks, of the folders that matter: all of them take long to read."""
    root = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[root / folder for folder in FOLDERS], include_defaults=False)


def leaves(manager, name):
    """The settings of the tasks that a name stands for: its own, or those of all tasks in a group or with a tag."""
    if name in manager.all_subtasks:
        return [manager.task_index[name].cfg]
    if name in manager.all_tags:
        return [entry.cfg for entry in manager.task_index.values() if name in entry.tags]
    return [cfg for member in manager.task_index[name].cfg["task"] for cfg in leaves(manager, member)]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.task)
def test_lm_eval_has_the_task_with_score_shots_and_filter(built_in, board):
    configs = leaves(built_in, board.task)
    assert len(configs) == (57 if board.task == "mmlu" else 1)
    for config in configs:
        assert SCORES[board.family] in {metric["metric"] for metric in config["metric_list"]}
        assert board.filter in {each["name"] for each in config.get("filter_list", [{"name": "none"}])}
        if board.shots:
            assert config.get("num_fewshot") != 0  # such a zero lm-eval does not let anyone change
            assert config.get("fewshot_split") or config.get("training_split")
        assert board.language == "en" or config["dataset_name"] == "it"


def test_they_are_the_authors():
    for language, wanted in AUTHORS.items():
        assert " ".join(f"{board.task} {board.shots}" for board in BOARDS if board.language == language) == wanted
    assert [board.family for board in BOARDS] == [*FAMILIES, "arc", "hellaswag", "mmlu"]


def test_without_a_network_it_ends_in_one_line(built_in):
    with pytest.raises(AnitaError) as error:
        load_board(BOARDS[0], built_in)
    message = str(error.value)
    assert message.startswith("evaluation.suite: leaderboards: the data of arc_challenge cannot be had (")
    assert message.endswith("or set evaluation.suite to piccola-italia") and "\n" not in message
    with pytest.raises(AnitaError, match="the data of no_such_task cannot be had"):
        load_board(Board("arc", "en", "no_such_task", 0), built_in)


@pytest.fixture
def asked(monkeypatch):
    """The calls of lm-eval, which are let through: (options, what it returned)."""
    calls = []
    evaluate = lm_eval.simple_evaluate

    def note(**options):
        calls.append((options, evaluate(**options)))
        return calls[-1][1]

    monkeypatch.setattr(lm_eval, "simple_evaluate", note)
    return calls


def run(suite, limit, model, tokenizer):
    profile = load_profile("cpu")
    profile.evaluation.suite, profile.evaluation.limit = suite, limit
    return evaluation.run_benchmarks(model, tokenizer, profile)


def test_piccola_italia_is_one_call_with_the_chat_template(asked, model, tokenizer):
    measured = run("piccola-italia", 1, model, tokenizer)
    [(options, results)] = asked
    assert options["tasks"] == [f"piccola_{family}_{code}" for code in ("en", "it") for family in FAMILIES]
    assert options["apply_chat_template"] and "num_fewshot" not in options
    assert {m.name for m in measured} == {(f"benchmark/{f}", code, None) for code in ("en", "it") for f in FAMILIES}
    for m in measured:
        family = m.metric.removeprefix("benchmark/")
        [sample] = results["samples"][f"piccola_{family}_{m.language}"]
        assert (m.scores, m.clusters) == ([sample[SCORES[family]]], [sample["doc"]["cluster"]])


def test_leaderboards_are_asked_with_their_shots_and_as_plain_text(asked, model, tokenizer, tmp_path, monkeypatch):
    """Tasks of the small world stand in: one that ranks answers, a group, and one whose answer a filter reads."""
    (tmp_path / "two.yaml").write_text("group: two\ntask: [piccola_mmlu_it, piccola_winogrande_it]\n", "utf-8")
    folders = [data_dir() / "benchmarks", tmp_path]
    manager = TaskManager(include_path=folders, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: manager)
    boards = (
        Board("arc", "en", "piccola_arc_en", 3),
        Board("gsm8k", "en", "piccola_gsm8k_en", 2, "number"),
        Board("mmlu", "it", "two", 0),
    )
    monkeypatch.setattr(suites, "BOARDS", boards)
    measured = run("leaderboards", 4, model, tokenizer)
    assert [m.name for m in measured] == [(f"benchmark/{board.family}", board.language, None) for board in boards]
    assert [options["num_fewshot"] for options, _ in asked] == [3, 2, 0]
    assert not any(options.get("apply_chat_template") for options, _ in asked)
    for m, board, (_, results) in zip(measured, boards, asked, strict=True):
        names = ["piccola_mmlu_it", "piccola_winogrande_it"] if board.task == "two" else [board.task]
        assert len(m.scores) == 4 * len(names) == len(set(m.clusters))
        means = [results["results"][name][f"{SCORES[board.family]},{board.filter}"] for name in names]
        assert m.value == pytest.approx(sum(means) / len(means))
