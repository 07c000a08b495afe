"""Files become paragraphs: wrapped lines come back whole, pages without menus and code, encodings as they are said."""

import textwrap

import pytest

from anita_utils import AnitaError
from anita_utils.corpus.reading import (
    Unread,
    decoded,
    find_files,
    html,
    known_encoding,
    markdown,
    merged,
    paragraphs_of,
    plain,
    tidy,
)
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl

TEXTS = [row["text"] for row in read_jsonl(data_dir() / "corpora" / "italian_text.jsonl")]
LONG = [" ".join(text.split()) for text in TEXTS if len(text.split()) > 40][:40]
ACCENTS = "La città è più antica di quanto si crede, perché le mura sono già romane."

PAGE = """<html><head><title>Guida</title></head><body>
<nav><ul><li><a href="a.html">Inizio</a></li><li><a href="b.html">Contatti</a></li></ul></nav>
<div class="section"><h1>La rete di casa</h1>
<div class="para">Il nome si scrive nella variabile <code>mydestination</code> del file
di configurazione, che il programma legge quando parte e poi non guarda più.</div>
<pre>mydestination = casa
relayhost =</pre>
<p>Questa variabile contiene i nomi delle macchine, uno per riga, e nessuno di essi può comparire due volte.</p>
<ul><li>Il primo punto dell'elenco dice che cosa si deve fare prima di cominciare.</li></ul>
<table><tr><td>Server web</td><td>occupa molto spazio</td><td>85</td></tr></table>
</div><footer><a href="c.html">Privacy</a></footer></body></html>"""


def read(folder, name, content, encoding=None):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return paragraphs_of(file, encoding)


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("width", [60, 72, 80])
def test_lines_wrapped_by_another_program_come_back_whole(width):
    """Python's textwrap is what wrapped them."""
    page = "\n\n".join(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) for text in LONG)
    assert list(map(tidy, plain(page))) == LONG
    indented = textwrap.indent(page, "       ")
    assert list(map(tidy, plain(indented))) == LONG


def test_a_narrow_box_in_a_wide_page_comes_back_whole():
    wide = "\n\n".join(textwrap.fill(text, 76, break_on_hyphens=False) for text in LONG[1:])
    box = textwrap.fill(LONG[0], 58, break_on_hyphens=False)
    assert tidy(next(plain(f"{box}\n\n{wide}"))) == LONG[0]


def test_verses_lists_and_signatures_keep_their_lines():
    verses = "Nel mezzo del cammin di nostra vita\nmi ritrovai per una selva oscura,\nché la diritta via era smarrita."
    quotation = "Il cervello comincia a lavorare quando ti svegli.\n\t\t-- Robert Frost"
    page = "\n\n".join(textwrap.fill(text, 76) for text in LONG[:9])
    found = list(map(tidy, plain(f"{verses}\n%\n{quotation}\n%\n- uno\n- due\n\n{page}")))
    assert found[0] == verses and found[1] == quotation.replace("\t\t", "") and found[2] == "- uno\n- due"


def test_where_lines_are_long_each_is_a_paragraph():
    assert list(plain("\n".join(LONG))) == LONG
    assert list(filter(None, plain("\r\n".join(LONG) + "\r\n"))) == LONG


def test_markdown_loses_code_comments_and_front_matter():
    code = "```python\nx = 1\n\ny = 2\n```\n<!-- da\n\nfare -->"
    page = f"---\ntitle: x\n---\n# Titolo\n\n{LONG[0]}\n\n{code}\n\n{LONG[1]}"
    assert list(filter(None, markdown(page))) == ["# Titolo", LONG[0], LONG[1]]
    assert list(filter(None, markdown(f"{LONG[0]}\n\n~~~\nnever closed\n\nx"))) == [LONG[0]]


def test_composed_characters_single_spaces_nothing_invisible():
    assert tidy("cafe\u0301\u00a0  e pa\u00adne\u200b\n\n  qui ") == "café e pane\nqui"


def test_a_short_line_is_one_paragraph_with_what_follows():
    words = " ".join("abcdefgh")
    assert merged(["Titolo", "Sotto", words, "Fine"]) == [f"Titolo\nSotto\n{words}\nFine"]
    assert merged(["Titolo", words, words]) == [f"Titolo\n{words}", words]
    assert merged(["Titolo"]) == ["Titolo"] and merged([]) == []


# ---------------------------------------------------------------- pages


def test_a_page_gives_its_text_without_menus_and_code():
    found = "\n".join(map(tidy, html(PAGE)))
    assert "Il nome si scrive nella variabile mydestination del file di configurazione, che" in found  # the start, too
    assert "uno per riga" in found and "Il primo punto dell'elenco" in found
    assert "Server web | occupa molto spazio | 85" in found
    assert not any(word in found for word in ("relayhost", "Inizio", "Contatti", "Privacy"))


def test_a_page_that_names_its_encoding_twice_is_read_all_the_same():
    assert "uno per riga" in "\n".join(html('<?xml version="1.0" encoding="UTF-8"?>' + PAGE))


@pytest.mark.parametrize("page", ["", "   ", "<html></html>", "<!-- -->"])
def test_a_page_without_text_is_none(tmp_path, page):
    with pytest.raises(Unread, match="without text"):
        read(tmp_path, "a.html", page)


# ---------------------------------------------------------------- encodings


def test_other_encodings_are_refused_unless_they_are_named(tmp_path):
    assert read(tmp_path, "a.txt", ACCENTS) == ([ACCENTS], "utf-8")
    assert read(tmp_path, "a.txt", ACCENTS.encode("utf-8-sig")) == ([ACCENTS], "utf-8")
    for encoding in ("cp1252", "utf-16", "mac_roman"):
        raw = ACCENTS.encode(encoding)
        with pytest.raises(Unread, match="not UTF-8"):
            read(tmp_path, "a.txt", raw)
        assert read(tmp_path, "a.txt", raw, known_encoding(encoding))[0] == [ACCENTS]
    with pytest.raises(Unread, match="not UTF-8"):
        read(tmp_path, "a.txt", ACCENTS.encode("cp1252"), "utf-16")  # an odd number of bytes, so it cannot be
    with pytest.raises(AnitaError, match="no encoding 'klingon'"):
        known_encoding("klingon")


@pytest.mark.parametrize("said", ['<meta charset="ISO-8859-1">', '<meta content="text/html; charset=windows-1252">'])
def test_a_page_says_its_own_encoding_and_latin_1_means_windows_1252(tmp_path, said):
    page = PAGE.replace("<head>", f"<head>{said}").replace("Questa variabile", "Questa “variabile”")
    paragraphs, encoding = read(tmp_path, "a.html", page.encode("cp1252"))
    assert encoding == "cp1252" and "Questa “variabile” contiene" in "\n".join(paragraphs)


# ---------------------------------------------------------------- folders


def test_files_are_found_in_the_order_of_their_names_and_others_counted(tmp_path):
    for name in ("b/x.TXT", "a.md", "b.html", "a/z.htm", "c.pdf", "d/e.pdf", "Makefile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    made = tmp_path / "made before"
    made.mkdir()
    for name in ("train.jsonl", "counts.json", "README.md"):
        (made / name).touch()
    files, others = find_files(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == ["a.md", "a/z.htm", "b.html", "b/x.TXT"]
    assert others == {".pdf": 2, "no suffix": 1, "a corpus made before": 1}


def test_code_within_a_line_opens_no_fence_and_a_rule_no_front_matter():
    inline = "```ls -l``` mostra i file della cartella.\n\nPoi si legge il resto della pagina."
    assert list(markdown(inline))[-1] == "Poi si legge il resto della pagina."
    ruled = "---\n\nSopra c'è una riga, e sotto comincia il testo della pagina.\n\n---\n\nFine."
    assert any("comincia il testo" in one for one in markdown(ruled))


def test_a_page_that_declares_a_wrong_encoding_is_read_in_the_one_that_was_given():
    page = "<meta charset='utf-8'><p>La città è bella.</p>".encode("latin-1")
    text, found = decoded(page, "latin-1", declared=True)
    assert "La città è bella." in text and found == "cp1252"
