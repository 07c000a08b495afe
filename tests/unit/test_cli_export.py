"""`anita export gguf`: which model, under what name, with which licence, and where to."""

import gguf
import pytest

from anita_utils.run import Run


@pytest.fixture
def here(monkeypatch, runs, tmp_path):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def field(file, name):
    fields = gguf.GGUFReader(file).fields
    return fields[name].contents() if name in fields else None


def test_a_base_goes_where_it_is_told_or_into_exports(anita, here):
    code, out, err = anita("export", "gguf", "base", "--type", "q8_0")
    file = here / "exports" / "tiny-llama-3-instruct" / "tiny-llama-3-instruct-q8_0.gguf"
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{file.relative_to(here)}: {file.stat().st_size / 1e6:,.1f} MB"
    assert "ollama create tiny-llama-3-instruct -f exports/tiny-llama-3-instruct/Modelfile" in out
    assert 5e6 < file.stat().st_size < 6.5e6  # 5.2 million weights of 8.5 bits, and the tokenizer
    assert field(file, "general.license") == "apache-2.0"
    code, out, _ = anita("export", "gguf", "tiny-llama-3-instruct", "--out", "there", "--licence", "mit")
    assert code == 0 and field(here / "there" / "tiny-llama-3-instruct-f16.gguf", "general.license") == "mit"


def test_a_stage_is_called_after_its_base_and_is_the_default(anita, here, tiny_path, tiny_profile):
    run = Run.open("trial", tiny_profile)
    (run.model_dir("sft")).mkdir(parents=True)
    (run.model_dir("sft") / "merged").symlink_to(tiny_path)
    code, out, err = anita("export", "gguf")
    file = here / "exports" / "tiny-random-sft" / "tiny-random-sft-f16.gguf"
    assert code == 0 and file.is_file() and "run 'trial'" in err
    assert "no licence is written, as that of the base is not known here: --licence gives one" in err
    assert field(file, "general.name") == "tiny-random-sft" and field(file, "general.license") is None
    code, out, _ = anita("export", "gguf", "base", "--run", "trial")
    assert code == 0 and "exports/tiny-random/tiny-random-f16.gguf" in out


@pytest.mark.parametrize(("arguments", "said"), [
    (["nowhere"], "no model folder nowhere"),
    (["dpo"], "no run yet"),
    (["base", "--type", "q4_k"], "'q4_k'"),
])  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(anita, here, arguments, said):
    code, _, err = anita("export", "gguf", *arguments)
    assert code == 2 and said in err and not (here / "exports").exists()
