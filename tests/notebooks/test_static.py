"""What can be told of the lessons without running them. Each rule is also tried on a lesson that breaks it."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.utils.text import DollarFormatter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anita_utils import REPOSITORY

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# Every lesson there is, by name: one that appears or vanishes without this list is a failure.
LESSONS = [
    "00_start_here",
    "01_load_llama3",
    "02_supervised_fine_tuning",
    "03_qlora_italian",
    "04_dpo",
    "05_evaluation",
    "06_ablation",
    "07_zero_shot_italian",
    "08_bias_and_safety",
    "09_forgetting",
]
PARAMETERS = {"profile", "run", "seed"}
ADDRESS = "https://github.com/someone/course"
WIDTH = 88  # columns of code that a browser shows without scrolling
# What only anita_utils/course/set_up.py does: a lesson that silences more would hide what its reader should see.
SILENCES = re.compile(r"filterwarnings|simplefilter|catch_warnings|logging\.disable|set_verbosity|disable_progress_bar")


def set_up_cell(repository):
    """What every lesson has after its parameters: the course fetched on Colab, and its set-up."""
    missing = 'raise SystemExit("no public address yet: run scripts/set_repository.py first")'
    on_colab = f"!git clone --quiet --depth 1 {repository} course" if repository else missing
    return f"""if colab := "google.colab" in str(get_ipython()):
    {on_colab}
%run {{"course/scripts/colab.py" if colab else "-m anita_utils.course.set_up"}}"""


SETUP = set_up_cell(REPOSITORY)
ABSOLUTE = re.compile(r"(?<![\w.:~/<-])/(?:home|root|Users|tmp|work|mnt|var|opt|usr|content)/[\w.]|\b[A-Z]:\\\\?[A-Z]")


def problems(notebook):
    """What is wrong with a lesson, a line for each finding."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = parameter_problems(cells)
    if [cell.source for cell in cells].count(SETUP) != 1 or cells[1].source != SETUP or cells[1].outputs:
        found.append("the second code cell, and it alone, is to be the set-up, without outputs")
    if "widgets" in notebook.metadata:
        found.append("widget state is stored")
    for number, cell in enumerate(cells, start=1):
        found += [f"code cell {number}: {problem}" for problem in cell_problems(cell, number)]
    if not any(cell.outputs for cell in cells):
        found.append("no outputs are stored")
    if ABSOLUTE.search("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")):
        found.append("an absolute path in the text")
    return found


def parameter_problems(cells):
    """The first code cell, and no other, is tagged and sets the course's parameters to plain values."""
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells or tagged != cells[:1]:
        return ["the first code cell, and it alone, is to be tagged 'parameters'"]
    assigned = {
        target.id: node.value
        for node in ast.walk(ast.parse(cells[0].source))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    missing = PARAMETERS - assigned.keys()
    literal = all(isinstance(value, ast.Constant) for value in assigned.values())
    return [f"no parameter {sorted(missing)}"] * bool(missing) + ["a parameter is not a plain value"] * (not literal)


def cell_problems(cell, number):
    """The problems of one code cell, the `number`th."""
    code = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)  # magics and shell lines are not Python
    try:
        ast.parse(code)
    except SyntaxError as error:
        yield f"does not parse ({error.msg})"
    if re.search(r"\blogin\(", code):
        yield "login() would ask for an account"
    if SILENCES.search(code):
        yield "warnings are silenced: the set-up does it, and nothing else"
    if (longest := max(map(len, cell.source.splitlines()), default=0)) > WIDTH:
        yield f"a line of {longest} columns"
    yield from (f"run.show() without {word}" for word in unsaid(code))
    if cell.execution_count != number:
        yield f"execution count {cell.execution_count}: run all cells in order"
    if "injected-parameters" in cell.metadata.get("tags", []) or "papermill" in cell.metadata:
        yield "papermill's traces"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"an error is stored: {output.ename}"
        if output.get("execution_count", number) != number:
            yield "an output of another execution"
        data = output.get("data", {})
        if any(kind.startswith("application/vnd.jupyter.widget") for kind in data):
            yield "a widget is stored"
        texts = [output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))]
        if any(ABSOLUTE.search("".join(text)) for text in texts):
            yield "an absolute path in the output"
    if ABSOLUTE.search(cell.source):
        yield "an absolute path in the code"


def unsaid(code):
    """The words that the calls of run.show in a cell lack: what is drawn (alt), how to read it (caption)."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "run.show":
            words = {word.arg: word.value for word in call.keywords}
            for name in ("alt", "caption"):
                if name not in words or isinstance(words[name], ast.Constant) and not str(words[name].value).strip():
                    yield name


def test_the_lessons_are_the_listed_ones():
    assert sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb")) == LESSONS


def test_the_lessons_have_no_problems():
    found = {name: problems(nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)) for name in LESSONS}
    assert {name: problem for name, problem in found.items() if problem} == {}


def test_the_solutions_are_as_narrow_as_the_lessons():
    files = sorted(NOTEBOOKS.glob("solutions/*.py"))
    longest = {file.name: max(map(len, file.read_text("utf-8").splitlines())) for file in files}
    assert {name: columns for name, columns in longest.items() if columns > WIDTH} == {}


def lesson(
    source="print(1)",
    outputs=None,
    count=3,
    parameters='profile = "cpu"\nrun = "latest"\nseed = 42',
    setup=SETUP,
    **metadata,
):
    """A lesson without fault, but for what the arguments change."""
    outputs = [new_output("stream", text="1\n")] if outputs is None else outputs
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]}, execution_count=1)
    second = new_code_cell(setup, execution_count=2)
    third = new_code_cell(source, outputs=outputs, execution_count=count)
    text = new_markdown_cell("# Text, see a/home/b and https://x.org/tmp/a")
    return new_notebook(cells=[text, first, second, third], metadata=metadata)


def test_a_good_lesson_has_no_problems():
    assert problems(lesson()) == []
    assert problems(lesson("%matplotlib inline\n!ls\nx = 1")) == []
    assert problems(lesson("if True:\n    %matplotlib inline\nx = 1")) == []
    assert problems(lesson('run.show(fig, "x", alt="A " "bar.", caption=f"Read {it}.")')) == []


@pytest.mark.parametrize(
    ("bad", "finding"),
    [
        (lesson("print("), "does not parse"),
        (lesson("from huggingface_hub import login\nlogin()"), r"login\(\)"),
        (lesson(count=4), "execution count 4"),
        (lesson(count=None), "execution count None"),
        (lesson(outputs=[]), "no outputs"),
        (lesson(outputs=[new_output("error", ename="ValueError", evalue="", traceback=[])]), "an error is stored"),
        (lesson(outputs=[new_output("execute_result", {"text/plain": "1"}, execution_count=9)]), "another execution"),
        (lesson(outputs=[new_output("stream", text="saved to /home/someone/x")]), "absolute path in the output"),
        (lesson(outputs=[new_output("display_data", {"text/html": "/root/x"})]), "absolute path in the output"),
        (lesson(outputs=[new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})]), "a widget"),
        (lesson(source="open('/tmp/x')"), "absolute path in the code"),
        (lesson(widgets={}), "widget state"),
        (lesson(parameters='profile = "cpu"\nrun = "latest"'), r"no parameter \['seed'\]"),
        (lesson(parameters='profile = "cpu"\nrun = "latest"\nseed = int("42")'), "not a plain value"),
        (lesson(setup=SETUP.replace("course", "kit")), "is to be the set-up"),
        (lesson(source=SETUP), "is to be the set-up"),
        (lesson("x = " + 9 * "'a long text' + " + "''"), "a line of 150 columns"),
        (lesson('run.show(fig, "x", alt="A bar.", caption="")'), r"run\.show\(\) without caption"),
        (lesson('run.show(fig, "x", caption="Read it.")'), r"run\.show\(\) without alt"),
        (lesson("import warnings\nwarnings.filterwarnings('ignore')"), "warnings are silenced"),
        (lesson("import logging\nlogging.disable()"), "warnings are silenced"),
        (lesson("if True:\n    %matplotlib inline\n  x = 1"), "does not parse"),
        (new_notebook(cells=[new_code_cell("1", execution_count=1)]), "tagged 'parameters'"),
        (new_notebook(), "tagged 'parameters'"),
    ],
)
def test_each_rule_finds_what_it_is_for(bad, finding):
    assert any(re.search(finding, problem) for problem in problems(bad)), problems(bad)


def test_the_parameters_come_first_and_once():
    late, twice = lesson(), lesson()
    late.cells.reverse()
    twice.cells.append(twice.cells[1])
    for bad in (late, twice):
        assert any("tagged 'parameters'" in problem for problem in problems(bad))


@pytest.mark.parametrize(
    ("shell", "called"),
    [
        ("ipykernel.zmqshell", ["run -m anita_utils.course.set_up"]),
        ("google.colab._shell", [f"git clone --quiet --depth 1 {ADDRESS} course", "run course/scripts/colab.py"]),
    ],
)
def test_the_setup_cell_fetches_the_course_on_colab_alone(shell, called, monkeypatch):
    calls, names = [], {}

    class Shell:
        system = staticmethod(calls.append)

        def __str__(self):
            return shell

        def run_line_magic(self, magic, line):
            calls.append(f"{magic} {DollarFormatter().vformat(line, [], names)}")  # as IPython fills in braces

    monkeypatch.setattr(builtins, "get_ipython", Shell, raising=False)
    exec(TransformerManager().transform_cell(set_up_cell(ADDRESS)), names)  # as IPython reads a cell
    assert calls == called


def test_without_an_address_the_setup_cell_says_so_on_colab(monkeypatch):
    monkeypatch.setattr(builtins, "get_ipython", lambda: "google.colab._shell", raising=False)
    with pytest.raises(SystemExit, match="no public address yet"):
        exec(TransformerManager().transform_cell(set_up_cell(None)), {})


def test_the_setup_prints_nothing_and_lets_errors_through():
    """In a new process, as in a lesson's first minute: no line of its own, and an error is still one."""
    set_up = "runpy.run_module('anita_utils.course.set_up', run_name='__main__')"
    code = f"import runpy, torch, warnings; {set_up}; warnings.warn('x', FutureWarning); 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], cwd=NOTEBOOKS, capture_output=True, text=True)
    assert done.stdout == "" and "ZeroDivisionError" in done.stderr and "FutureWarning" not in done.stderr


def loads(source):
    """The calls in a cell that load a model, each with whether it says in how many bits, or takes a few layers only."""
    for node in ast.walk(ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "load_model":
            yield called, len(node.args) > 1
        elif called == "AutoModelForCausalLM.from_pretrained":
            yield called, bool({"quantization_config", "num_hidden_layers"} & {word.arg for word in node.keywords})


def test_no_lesson_loads_a_whole_model_in_bits_of_its_own():
    """In 16 bits the 8B does not fit a T4: `load_for_evaluation` asks the profile, other loads are of 4 bits."""
    assert list(loads("model = load_model(path, dtype='float16')")) == [("load_model", False)]
    for name in LESSONS:
        cells = [cell for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells]
        sources = [cell.source for cell in cells if cell.cell_type == "code"]
        assert [call for source in sources for call, in_bits in loads(source) if not in_bits] == [], name
        assert any("load_for_evaluation(" in source for source in sources) or name == "03_qlora_italian"


def test_lesson_05_follows_the_leaderboards(monkeypatch, capsys):
    """Guessing only where it is known, no facts of the small world, a title that names the suite. No network."""
    from anita_utils import stats
    from anita_utils.evaluation import benchmarks, measuring
    from anita_utils.profile import load_profile

    profile = load_profile("cpu")
    profile.evaluation.suite = "paper"
    figures = {}
    measured = [
        stats.Measurement(f"benchmark/{b.family}", b.language, None, [1.0, 0.0], [f"{b.task} {n}" for n in "01"])
        for b in benchmarks.suite_named("paper").benchmarks
    ]
    monkeypatch.setattr(measuring, "answers_of", lambda path, profile: {"chat": measuring.probes("chat")})
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names = {
        "run": SimpleNamespace(show=lambda figure, name, alt, caption: figures.update({name: figure})),
        "profile": profile,
        "paths": {"base": "one", "dpo": "other"},
        "measured": {"base": measured, "dpo": measured},
        "last": "dpo",
        "display": lambda table: None,
    }
    lesson = nbformat.read(NOTEBOOKS / "05_evaluation.ipynb", as_version=4)
    sources = {cell.id: cell.source for cell in lesson.cells}
    scores = (
        "16-rows",
        "16-scored",
        "16-guessing",
        "16-chance",
        "16",
        "17",
        "19-rows",
        "19",
        "22-facts",
        "22-same",
        "22",
    )
    for cell in ("03", *scores, "24", "24-families", "25-rows", "25-ours", "25"):
        exec(sources[f"05-cell-{cell}"], names)
    assert names["wide"].loc[("", "guessing")].tolist() == ["0.25", "0.25", "0.25", "–", "0.50", "0.00", "–"]
    assert "Not with the suite paper" in capsys.readouterr().out
    assert sorted(figures) == ["05_evaluation-benchmarks", "05_evaluation-differences", "05_evaluation-published"]
    titles = [axes.get_title() for axes in figures["05_evaluation-published"].axes]
    assert titles[2:] == ["English, this run (paper)", "Italian, this run (paper)"]
