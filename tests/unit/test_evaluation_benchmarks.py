"""What the suites ask of lm-eval, and what is made of its answers. No network."""

import shutil
from pathlib import Path
from typing import get_args

import lm_eval
import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from anita_utils import AnitaError, stats
from anita_utils.evaluation import benchmarks
from anita_utils.evaluation.benchmarks import (
    FAMILIES,
    PICCOLA,
    SCORES,
    SUITES,
    Benchmark,
    Suite,
    load_tasks,
    resolve,
    task_manager,
)
from anita_utils.paths import data_dir
from anita_utils.profile import Evaluation, load_profile

FOLDERS = ("arc", "hellaswag", "mmlu/default", "truthfulqa", "winogrande", "gsm8k", "okapi", "belebele", "xcopa",
           "multiblimp", "lambada_multilingual", "evalita_llm", "global_mmlu/default/it")  # fmt: skip
AUTHORS = {  # task and shots, as paper.md has them from the card and the repository
    "en": "arc_challenge 25 hellaswag 10 mmlu 5 truthfulqa_mc2 0 winogrande 5 gsm8k 5",
    "it": "arc_it 0 hellaswag_it 0 m_mmlu_it 5",
}


@pytest.fixture(scope="module")
def built_in():
    """lm-eval's own index of its tasks, of the folders that matter: all of them take long to read."""
    root = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[root / folder for folder in FOLDERS], include_defaults=False)


@pytest.mark.parametrize("name", ["paper", "italian"])
def test_lm_eval_has_the_tasks_with_scores_shots_versions_and_filters(built_in, name):
    rows = resolve(name, built_in)
    assert [row["task"] for row in rows] == [benchmark.task for benchmark in SUITES[name].benchmarks]
    assert {row["task"]: row["problem"] for row in rows if row["problem"]} == {}
    numbers = {row["task"]: row["tasks"] for row in rows}
    if name == "paper":
        assert numbers.pop("mmlu") == 57 and set(numbers.values()) == {1}
        assert [row["task"] for row in rows if row["kind"] == "generate_until"] == ["gsm8k"]
    else:
        assert numbers["global_mmlu_it"] == numbers["evalita-mp_te"] == 6 and numbers["belebele_ita_Latn"] == 1
        kinds = {row["kind"] for row in rows}
        assert kinds == {"multiple_choice", "loglikelihood", "generate_until"}


def test_the_suites_of_the_small_world_resolve_by_themselves():
    for name in ("quick", "piccola"):
        rows = resolve(name)
        assert len(rows) == 12 and not any(row["problem"] for row in rows)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"task": "arc_italiana"}, "lm-eval has no such task"),
        ({"version": "1.0"}, "version 2.0, not 1.0"),
        ({"score": "f1"}, "no score f1, only acc, acc_norm"),
        ({"filter": "strict-match"}, "no filter strict-match, only none"),
        (
            {"task": "truthfulqa_mc2", "shots": 5, "score": "acc", "version": "3.0"},
            "no examples can be shown; there are",
        ),
        ({"task": "hellaswag_it", "shots": 5, "version": "1.0"}, "there are no examples to show"),
    ],
)
def test_what_does_not_fit_is_said(built_in, monkeypatch, change, problem):
    benchmark = Benchmark("arc", "it", "arc_it", 0, "acc_norm", "2.0")._replace(**change)
    monkeypatch.setitem(benchmarks.SUITES, "trial", Suite((benchmark,)))
    [row] = resolve("trial", built_in)
    assert row["problem"].startswith(problem)


def test_they_are_the_authors():
    boards = SUITES["paper"].benchmarks
    for language, wanted in AUTHORS.items():
        assert " ".join(f"{board.task} {board.shots}" for board in boards if board.language == language) == wanted
    assert [board.family for board in boards] == [*FAMILIES, "arc", "hellaswag", "mmlu"]
    assert all(board.score == SCORES[board.family] for board in boards)
    assert not any(board.chat for board in boards)


def test_profiles_know_the_suites():
    assert list(get_args(Evaluation.model_fields["suite"].annotation)) == list(SUITES)


def test_only_other_suites_index_what_lm_eval_brings(monkeypatch):
    made = []
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: made.append(options))
    for suite in SUITES.values():
        task_manager(suite)
    ours = {"include_path": str(data_dir() / "benchmarks"), "include_defaults": False}
    assert made == [ours, ours, {}, {}]


def test_without_a_network_it_ends_in_one_line(built_in):
    with pytest.raises(AnitaError) as error:
        load_tasks(SUITES["paper"].benchmarks[0], built_in)
    message = str(error.value)
    assert message.startswith("evaluation.suite: the data of arc_challenge cannot be had (")
    assert message.endswith("or set evaluation.suite to piccola") and "\n" not in message
    with pytest.raises(AnitaError, match="the data of no_such_task cannot be had"):
        load_tasks(Benchmark("arc", "en", "no_such_task", 0, "acc", "1.0"), built_in)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the folder of benchmarks, to be spoilt."""
    for entry in data_dir().iterdir():
        if entry.name != "benchmarks":
            (tmp_path / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    shutil.copytree(data_dir() / "benchmarks", tmp_path / "benchmarks")
    monkeypatch.setenv("ANITA_DATA", str(tmp_path))
    return tmp_path / "benchmarks"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "piccola_arc_it.yaml",
            "include: [_choice.yaml\ntask: x",
            r"piccola_arc_it.yaml: no benchmark .* parsing a flow",
        ),
        ("_choice.yaml", "a: b: c", r"piccola_arc_it.yaml: no benchmark .*_choice.yaml"),
        ("piccola_arc_it.yaml", None, r"piccola_arc_it.yaml: no benchmark can be made of it \(.*\): restore the file"),
        ("piccola.py", "def load(:", r"piccola_arc_it.yaml: no benchmark .*invalid syntax"),
        ("items/arc_it.test.jsonl", "", r"items/arc_it.test.jsonl holds no items: restore the file"),
        ("items/arc_it.test.jsonl", None, r"items/arc_it.test.jsonl holds no items: restore the file"),
        ("items/arc_it.test.jsonl", '{"question": ', r"piccola_arc_it.yaml: no benchmark"),
    ],
)
def test_a_broken_benchmark_is_one_line_that_names_the_file(copied, file, text, message):
    if text is None:
        (copied / file).unlink()
    else:
        (copied / file).write_text(text, "utf-8")
    [benchmark] = [one for one in PICCOLA if one.task == "piccola_arc_it"]
    with benchmarks.without_bars(), pytest.raises(AnitaError, match=message) as error:
        load_tasks(benchmark, task_manager(SUITES["piccola"]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "piccola_arc_it.yaml",
            "include: [_choice.yaml\ntask: x",
            "piccola_arc_it.yaml: no benchmark can be made of it",
        ),
        ("items/mmlu_en.test.jsonl", "", "items/mmlu_en.test.jsonl holds no items"),
    ],
)
def test_a_broken_or_empty_benchmark_ends_the_command_in_one_line(copied, anita, runs, file, text, said):
    (copied / file).write_text(text, "utf-8")
    code, out, err = anita("eval", data_dir() / "tiny-llama-3-instruct", "--suite", "quick", "--limit", "1")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("anita: ") and said in err
    assert not list(runs.rglob("*.json"))  # nothing half-measured is kept


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
    return benchmarks.run_benchmarks(model, tokenizer, profile)


def test_piccola_is_one_call_with_the_chat_template(asked, model, tokenizer):
    measured = run("piccola", 1, model, tokenizer)
    [(options, results)] = asked
    assert [task.task_name for task in options["tasks"]] == [benchmark.task for benchmark in PICCOLA]
    assert options["apply_chat_template"] and options["num_fewshot"] == 0
    names = {(f"benchmark/{f}", code, None) for code in ("en", "it") for f in FAMILIES}
    names |= {(kind, code, None) for kind in ("overconfidence", "benchmark_calibration_error") for code in ("en", "it")}
    for code in ("en", "it"):
        names |= {(f"benchmark_acc/{f}", code, None) for f in ("arc", "hellaswag")}
        names |= {(f"benchmark_norm/{f}", code, None) for f in ("mmlu", "winogrande")}
    assert {m.name for m in measured} == names and len(measured) == len(names)
    scores = {"benchmark_acc": "acc", "benchmark_norm": "acc_norm"}
    for m in measured:
        kind, _, family = m.metric.partition("/")
        if family:
            [sample] = results["samples"][f"piccola_{family}_{m.language}"]
            assert (m.scores, m.clusters) == ([sample[scores.get(kind, SCORES[family])]], [sample["doc"]["cluster"]])


def test_overconfidence_is_the_share_of_the_first_less_the_share_right(asked, model, tokenizer):
    import torch

    measured = {m.name: m for m in run("quick", 2, model, tokenizer)}
    [(_, results)] = asked
    gaps, sure = [], []
    for family in ("arc", "hellaswag", "mmlu", "winogrande"):
        for sample in results["samples"][f"piccola_{family}_it"]:
            likelihoods = torch.tensor([likelihood for likelihood, _ in sample["filtered_resps"]])
            shares = torch.softmax(likelihoods.double(), 0)
            gaps.append(float(shares.max() - (shares.argmax() == sample["target"]).double()))
            sure.append(float(shares.max()))
    assert measured["overconfidence", "it", None].scores == pytest.approx(gaps, abs=1e-6)
    binned = measured["benchmark_calibration_error", "it", None]
    by_bin = [sum(g for g, s in zip(gaps, sure, strict=True) if low <= 10 * s < low + 1) for low in range(11)]
    assert binned.value == pytest.approx(sum(map(abs, by_bin)) / 8, abs=1e-6) and len(binned.scores) == 8


def test_others_are_asked_with_their_shots_and_as_plain_text(asked, model, tokenizer, tmp_path, monkeypatch):
    """Tasks of the small world stand in: one that ranks answers, a group, and one whose answer a filter reads."""
    (tmp_path / "two.yaml").write_text("group: two\ntask: [piccola_mmlu_it, piccola_winogrande_it]\n", "utf-8")
    folders = [data_dir() / "benchmarks", tmp_path]
    manager = TaskManager(include_path=folders, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **own: TaskManager(**own) if own else manager)
    boards = (
        Benchmark("arc", "en", "piccola_arc_en", 3, "acc_norm", "1.0", split="version 2.0"),
        Benchmark("gsm8k", "en", "piccola_gsm8k_en", 2, "exact_match", "1.0", "number"),
        Benchmark("culture", "it", "two", 0, "acc", "1.0"),
    )
    monkeypatch.setitem(benchmarks.SUITES, "paper", Suite(boards, limit=4))
    measured = run("paper", 9, model, tokenizer)
    assert [m.name for m in measured] == [
        ("benchmark/arc", "en", "version 2.0"),
        ("benchmark_acc/arc", "en", "version 2.0"),
        ("benchmark/gsm8k", "en", None),
        ("italian/culture", "it", None),
        ("overconfidence", "en", None),
        ("benchmark_calibration_error", "en", None),
        ("overconfidence", "it", None),
        ("benchmark_calibration_error", "it", None),
    ]
    assert [options["num_fewshot"] for options, _ in asked] == [3, 2, 0]
    assert not any(options["apply_chat_template"] for options, _ in asked)
    figures = [m for m in measured if m.metric.startswith(("benchmark/", "italian/"))]
    for m, board, (_, results) in zip(figures, boards, asked, strict=True):
        names = ["piccola_mmlu_it", "piccola_winogrande_it"] if board.task == "two" else [board.task]
        assert len(m.scores) == 4 * len(names)
        means = [results["results"][name][f"{board.score},{board.filter}"] for name in names]
        assert m.value == pytest.approx(sum(means) / len(means))
    [row] = [row for row in stats.rows(measured, "base") if row["metric"] == "benchmark/mean"]
    assert (row["language"], row["n"]) == ("en", 4)  # of the sums alone: another version is in no mean


def test_prompts_of_the_same_item_are_one_cluster():
    board = Benchmark("entailment", "it", "evalita-mp_te", 0, "acc", "1")
    sample = {"doc": {}, "doc_id": 7, "filter": "none"}
    names = ["evalita-mp_te_prompt-1", "evalita-mp_te_prompt-6", "evalita-sp_sum_task_fp-small_p2", "mmlu_anatomy"]
    clusters = [cluster for cluster, _ in benchmarks._items(board, {name: [sample] for name in names})]
    assert clusters == ["evalita-mp_te 7", "evalita-mp_te 7", "evalita-sp_sum_task_fp-small 7", "mmlu_anatomy 7"]


def test_the_f1_of_substitutions_is_lm_evals(built_in):
    """As the task adds it up over the corpus, which here is a ratio of two sums."""
    board = next(one for one in SUITES["italian"].benchmarks if one.score == "f1")
    values = [(0.5, 1, 1), (0.0, 1, 0), (0.25, 1, 1), (0.0, 0, 1), (1.0, 1, 1)]
    items = [(str(n), {"f1": value, "filter": "none"}) for n, value in enumerate(values)]
    [measured] = benchmarks._scored(board, items)
    metrics = Path(lm_eval.tasks.__file__).parent / "evalita_llm" / "metrics.py"
    namespace = {}
    exec(metrics.read_text("utf-8"), namespace)
    assert measured.value == pytest.approx(namespace["_aggreg_ls"](values))


def test_brackets_in_the_courses_path_are_no_pattern(tmp_path, monkeypatch):
    """In a folder `corso [copia]` no benchmark could be read, and the remedy was wrong: datasets#7468."""
    folder = tmp_path / "corso [copia] *"
    shutil.copytree(data_dir() / "benchmarks", folder / "benchmarks")
    monkeypatch.setenv("ANITA_DATA", str(folder))
    for benchmark, tasks in benchmarks.load_suite("quick"):
        assert sum(len(task.dataset["test"]) for task in tasks) > 100, benchmark.task


def test_the_page_of_commands_says_what_lm_eval_must_be_given():
    """Without it lm_eval computes in bfloat16, and some figures differ from `anita eval`'s: lm-eval#3055."""
    page = (data_dir().parent / "docs" / "commands.md").read_text("utf-8")
    assert "lm_eval --model hf --model_args pretrained=data/tiny-llama-3-instruct,dtype=float32 " in page
