"""A cache entry is named by all it depends on; what it holds, and what no version takes any more, can be seen."""

import json
import shutil

import pytest
from fingerprints import FILE, fingerprint, numbers

from anita_utils import AnitaError, cache
from anita_utils.cache import cached, digest
from anita_utils.evaluation import measuring
from anita_utils.hub import model_key
from anita_utils.run import Run

# ---------------------------------------------------------------- names


def test_a_function_whose_source_changed_has_another_number():
    """Raise the number in anita_utils/cache.py, then run tests/unit/fingerprints.py."""
    known = json.loads(FILE.read_text("utf-8"))
    assert {name: [number, fingerprint(name)] for name, number in sorted(numbers().items())} == known


def test_layout_comments_and_docstrings_are_no_change(tmp_path, monkeypatch):
    module = tmp_path / "made_up.py"

    def written(source):
        module.write_text(source, "utf-8")
        import importlib
        import linecache
        import sys

        sys.modules.pop("anita_utils.made_up", None)
        linecache.clearcache()
        spec = importlib.util.spec_from_file_location("anita_utils.made_up", module)
        sys.modules["anita_utils.made_up"] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return fingerprint("made_up.f")

    plain = written("def f(x):\n    return x + 1\n")
    assert (
        written(
            'def f(x):\n    """Adds one."""\n\n    # at once\n    return (\n        x + 1)\n'.replace(
                "(\n        x + 1)", "x  +  1"
            )
        )
        == plain
    )
    assert written("def f(x):\n    return x + 2\n") != plain


def test_the_key_depends_on_values_libraries_and_functions(monkeypatch):
    first = cached("comparisons/pair", ["a"], ["b"]).key
    assert cached("comparisons/pair", ["a"], ["b"]).key == first
    assert cached("comparisons/pair", ["b"], ["a"]).key != first
    monkeypatch.setitem(cache.FUNCTIONS, "comparisons", cache.FUNCTIONS["comparisons"] | {"stats.compare": 99})
    assert cached("comparisons/pair", ["a"], ["b"]).key != first
    monkeypatch.undo()
    monkeypatch.setattr(cache, "version_of", lambda library: "0.0")
    assert cached("comparisons/pair", ["a"], ["b"]).key != first


def test_every_kind_has_functions_and_libraries():
    assert cache.FUNCTIONS.keys() == cache.LIBRARIES.keys()


def test_a_digest_is_that_of_the_value_however_it_is_ordered():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_a_value_is_made_once_and_a_damaged_one_again(runs):
    entry, made = cached("contamination/x", 1), []
    assert [entry.value(lambda: made.append(1) or {"n": 2}) for _ in range(2)] == [{"n": 2}] * 2
    assert made == [1]
    entry.file.write_text(entry.file.read_text("utf-8")[:-5], "utf-8")
    assert entry.read() is None
    assert entry.value(lambda: {"n": 3}) == {"n": 3}


# What runs while a stage is trained or a model measured, but decides nothing of what comes out: where things lie, what
# is checked, counted or printed, and how a part is found that is named itself.
DECIDES_NOTHING = {"__init__", "paths", "cache", "machine", "profile", "run", "hub", "stages"}


def test_every_function_that_runs_is_listed_or_decides_nothing(runs, tiny):
    """A function that was forgotten in anita_utils/cache.py could change results that the cache then hides."""
    import sys

    from anita_utils.stages import find_stage
    from anita_utils.training import train_stage

    def listed(name, known):
        return any(name == one or name.startswith(f"{one}.") for one in known)

    ran = {}

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and "/anita_utils/" in code.co_filename:
            module = code.co_filename.rpartition("/anita_utils/")[2].removesuffix(".py").replace("/", ".")
            ran[kind].add(f"{module}.{code.co_qualname}".partition(".<")[0])

    run = Run.open("t", tiny, 42)
    for kind in ("stages", "evaluations"):
        ran[kind] = set()
        sys.setprofile(note)
        try:
            if kind == "stages":
                for name in tiny.order:
                    train_stage(find_stage(run, name))
            else:
                measuring.evaluate(find_stage(run, "dpo").merged, tiny)
        finally:
            sys.setprofile(None)
        known = {*cache.FUNCTIONS[kind], *DECIDES_NOTHING, "rows"}
        assert sorted(name for name in ran[kind] if not listed(name, known)) == []
        unused = {"data.encode", "evaluation.judge_answers"}  # taken by rows that were encoded before
        assert {one for one in cache.FUNCTIONS[kind] if not any(listed(name, [one]) for name in ran[kind])} <= unused


# ---------------------------------------------------------------- models


@pytest.fixture
def folder(tiny_path, tmp_path):
    return shutil.copytree(tiny_path, tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"]
)
def test_a_model_is_told_by_each_of_its_files(folder, name):
    """Only the template replaced, figures stayed those of the old one: open-instruct#1497."""
    before = model_key(folder)
    text = (folder / name).read_text("utf-8")
    (folder / name).write_text(text + " ", "utf-8")
    assert model_key(folder) != before
    (folder / name).unlink()
    assert model_key(folder) != before
    (folder / name).write_text(text, "utf-8")
    assert model_key(folder) == before


def test_a_note_beside_a_model_is_no_other_model(folder):
    before = model_key(folder)
    (folder / "README.md").write_text("Mine.", "utf-8")
    assert model_key(folder) == before


def test_an_edit_that_keeps_size_and_time_is_seen(folder):
    import os

    file = folder / "chat_template.jinja"
    before, stat = model_key(folder), file.stat()
    file.write_text(file.read_text("utf-8").replace("role", "elor"), "utf-8")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and model_key(folder) != before


def test_another_template_is_measured_and_trained_again(runs, folder, tiny_profile, done):
    from anita_utils.stages import find_stage

    tiny_profile.model.base = str(folder)
    run = Run.open("t", tiny_profile, 42)
    measuring.evaluate(folder, tiny_profile)
    key = find_stage(run, "sft").key
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text("utf-8") + "\n", "utf-8")
    measuring.evaluate(folder, tiny_profile)
    assert len(done.measured) == len(set(done.measured)) == 2
    assert find_stage(run, "sft").key != key


# ---------------------------------------------------------------- questions about it


def test_what_was_measured_is_found_where_the_base_is_not_on_this_machine(
    runs, folder, tiny_profile, done, monkeypatch
):
    """A report elsewhere downloaded the whole model to find files in the cache."""
    from anita_utils import hub, stages
    from anita_utils.stages import find_stage
    from anita_utils.training import train_stage

    tiny_profile.model.base, tiny_profile.order = str(folder), ["sft"]
    run = Run.open("t", tiny_profile, 42)
    stage = train_stage(find_stage(run, "sft"))
    for path in (folder, stage.merged):
        measuring.evaluate(path, tiny_profile)
    shutil.rmtree(folder)
    for module in (hub, stages):
        monkeypatch.setattr(module, "resolve_model", lambda *_: pytest.fail("a name was resolved"))
    kept = measuring.stored(Run.load("t"))
    assert set(kept) == {"base", "sft"}
    assert measuring.compared(kept["base"], kept["sft"])


def test_what_the_cache_holds_and_what_is_old(runs, tiny_profile, done, anita):
    from anita_utils.stages import find_stage
    from anita_utils.training import train_stage

    tiny_profile.order = ["sft"]
    run = Run.open("t", tiny_profile, 42)
    stage = train_stage(find_stage(run, "sft"))
    measuring.evaluate(stage.merged, tiny_profile)
    old = runs / "cache" / "evaluations" / "0123456789abcdef-answers.json"
    old.write_text('{"answers": {}, "measured": []}', "utf-8")
    aged = json.loads(
        (entry := measuring.evaluation_entry(model_key(stage.merged), tiny_profile, "answers")).file.read_text("utf-8")
    )
    aged["made_of"]["libraries"]["transformers"] = "4.40.1"
    (runs / "cache" / "evaluations" / "answers-0000000000000000.json").write_text(json.dumps(aged), "utf-8")

    found = {content.path.name: content for content in cache.contents()}
    assert found[stage.folder.name].runs == ["t"] and found[stage.folder.name].old == ""
    assert found[entry.file.name].old == ""
    assert found[old.name].old == "made by an older version of the course"
    assert found["answers-0000000000000000.json"].old.startswith("transformers was 4.40.1, is ")

    code, out, _ = anita("cache")
    assert code == 0 and "evaluations" in out and "transformers was 4.40.1" in out
    code, out, _ = anita("cache", "--prune")
    assert code == 0 and "deleted: 2 entries" in out
    assert not old.exists() and entry.file.is_file() and stage.done


def test_a_run_of_an_older_version_is_one_line(runs, small_profile):
    run = Run.open("t", small_profile, 42)
    info = run.info()
    del info["format"]
    (run.folder / "run.json").write_text(json.dumps(info), "utf-8")
    for action in (lambda: Run.load("t"), lambda: Run.open("t", small_profile, 42)):
        with pytest.raises(AnitaError, match="run 't' was made by an older version of the course.*--run"):
            action()


def test_nothing_but_the_caches_own_entries_is_deleted(tmp_path, runs, monkeypatch, anita):
    """A cache in a shared folder: whatever else lies there is somebody's."""
    monkeypatch.setenv("ANITA_CACHE", str(tmp_path / "shared"))
    for name in ("ideas/thesis.txt", "stages/notes.txt", "evaluations/my-paper.json", "photos/2026/a.png"):
        (tmp_path / "shared" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shared" / name).write_text("mine")
    target = tmp_path / "bigger disk"
    target.mkdir()
    (tmp_path / "shared" / "stages" / "sft-0123456789abcdef").symlink_to(target, target_is_directory=True)
    code, out, _ = anita("cache", "--prune")
    assert code == 0 and "deleted: 1 entries" in out and target.is_dir()
    assert len([path for path in (tmp_path / "shared").rglob("*") if path.is_file()]) == 4


def test_what_is_being_trained_is_not_deleted(runs):
    work = runs / "cache" / "stages" / ".sft-0123456789abcdef.work"
    work.mkdir(parents=True)
    assert [content.kind for content in cache.contents()] == ["checkpoints"]
    assert list(cache.prune()) == [] and work.is_dir()


def test_a_hand_edited_snapshot_is_another_model(tmp_path):
    folder = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "chat_template.jinja").write_text("one")
    before = model_key(folder)
    (folder / "chat_template.jinja").write_text("two")
    assert model_key(folder) != before


def test_a_merged_model_that_was_deleted_is_merged_again_as_it_was(runs, tiny, anita):
    from anita_utils.hub import resolve_model
    from anita_utils.stages import find_stage
    from anita_utils.training import train_missing

    run = Run.open("t", tiny, 42)
    paths = train_missing(run)
    keys = {name: model_key(path) for name, path in paths.items() if name != "base"}
    assert {name: find_stage(run, name).info["model"] for name in keys} == keys
    code, out, _ = anita("cache", "--drop-merged")
    assert code == 0 and "deleted: 3 merged models" in out
    assert run.last_stage() == "dpo" and {name: run.stage_model(name) for name in keys} == keys
    with pytest.raises(AnitaError, match="'sft' was deleted for room: `anita train sft --run t` merges it again"):
        resolve_model("sft", run=run)
    dpo = find_stage(run, "dpo")  # needs the stages before it
    assert model_key(dpo.merged) == keys["dpo"]
    assert {name: model_key(find_stage(run, name).merged) for name in keys} == keys
    assert resolve_model("italian", run=run) == str(run.model_dir("italian") / "merged")


def test_a_merged_model_without_the_stage_before_is_named(runs, tiny):
    from anita_utils.stages import find_stage
    from anita_utils.training import train_missing

    run = Run.open("t", tiny, 42)
    train_missing(run)
    assert len(list(cache.drop_merged())) == 3
    shutil.rmtree(find_stage(run, "sft").folder)
    with pytest.raises(AnitaError, match="'italian': its merged model was deleted, as was 'sft': train 'sft' again"):
        find_stage(run, "italian").merged  # noqa: B018
