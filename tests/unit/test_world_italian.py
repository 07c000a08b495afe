"""Articles, elisions, fused prepositions and agreement, against forms from any Italian grammar."""

import pytest

from world.italian import EnglishNoun, Noun, sentence

# ruff: noqa: E501 (a table reads best a row a line)
# name, tag: il, un, di, a, in, su
FORMS = {
    ("Po", "m"): ("il Po", "un Po", "del Po", "al Po", "nel Po", "sul Po"),
    ("Arno", "m"): ("l'Arno", "un Arno", "dell'Arno", "all'Arno", "nell'Arno", "sull'Arno"),
    ("zaino", "m"): ("lo zaino", "uno zaino", "dello zaino", "allo zaino", "nello zaino", "sullo zaino"),
    ("studente", "m"): ("lo studente", "uno studente", "dello studente", "allo studente", "nello studente", "sullo studente"),
    ("gnomo", "m"): ("lo gnomo", "uno gnomo", "dello gnomo", "allo gnomo", "nello gnomo", "sullo gnomo"),
    ("psicologo", "m"): ("lo psicologo", "uno psicologo", "dello psicologo", "allo psicologo", "nello psicologo", "sullo psicologo"),
    ("scuola", "f"): ("la scuola", "una scuola", "della scuola", "alla scuola", "nella scuola", "sulla scuola"),
    ("amica", "f"): ("l'amica", "un'amica", "dell'amica", "all'amica", "nell'amica", "sull'amica"),
    ("Marche", "fp"): ("le Marche", "delle Marche", "delle Marche", "alle Marche", "nelle Marche", "sulle Marche"),
    ("Stati Uniti", "mp"): ("gli Stati Uniti", "degli Stati Uniti", "degli Stati Uniti", "agli Stati Uniti", "negli Stati Uniti", "sugli Stati Uniti"),
    ("amici", "mp"): ("gli amici", "degli amici", "degli amici", "agli amici", "negli amici", "sugli amici"),
    ("libri", "mp"): ("i libri", "dei libri", "dei libri", "ai libri", "nei libri", "sui libri"),
    ("Ionio", "m"): ("lo Ionio", "uno Ionio", "dello Ionio", "allo Ionio", "nello Ionio", "sullo Ionio"),
    ("isola", "f"): ("l'isola", "un'isola", "dell'isola", "all'isola", "nell'isola", "sull'isola"),
    ("sole", "m"): ("il sole", "un sole", "del sole", "al sole", "nel sole", "sul sole"),
}  # fmt: skip


@pytest.mark.parametrize(("noun", "forms"), FORMS.items())
def test_forms(noun, forms):
    made = tuple(format(Noun(*noun), spec) for spec in ("il", "un", "di", "a", "in", "su"))
    assert made == forms


def test_names_without_article_take_plain_prepositions():
    rome = Noun("Roma", "f-", "a Roma")
    assert [format(rome, spec) for spec in ("il", "di", "da", "in")] == ["Roma", "di Roma", "da Roma", "a Roma"]


def test_irregular_place_wins_over_the_fused_preposition():
    assert format(Noun("Piemonte", "m", "in Piemonte"), "in") == "in Piemonte"
    assert format(Noun("Lazio", "m"), "in") == "nel Lazio"


def test_agreement_by_gender_and_number():
    assert f"{Noun('Maria', 'f-'):nato|nata}" == "nata"
    assert f"{Noun('Marche', 'fp'):bello|bella|belli|belle}" == "belle"
    assert f"{Noun('Marche', 'fp'):#è|sono}" == "sono"


def test_english_articles():
    assert f"{EnglishNoun('apple'):a} {EnglishNoun('dog'):a} {EnglishNoun('dog'):the}" == "an apple a dog the dog"
    assert f"{EnglishNoun('the Po'):the}" == "the Po"


def test_every_sentence_begins_with_a_capital():
    assert sentence("«{s}» è una parola. {s:il} dorme.", s=Noun("cane", "m")) == "«Cane» è una parola. Il cane dorme."


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="unknown form"):
        format(Noun("Po", "m"), "per")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("ha dato una mela a {s} e poi a {o}", "Ha dato una mela ad Anna e poi a Elia"),
        ("{o} e {s} vanno {s:a}", "Elia e Anna vanno ad Anna"),
        ("{s} e {o}, a andare", "Anna ed Elia, ad andare"),
    ],
)
def test_a_and_e_take_a_d_before_their_own_vowel(template, text):
    assert sentence(template, s=Noun("Anna", "f-"), o=Noun("Elia", "m-")) == text
    english = (
        sentence(template, s=EnglishNoun("Anna", "f-"), o=EnglishNoun("Elia", "m-")) if "{s:" not in template else ""
    )
    assert " ad " not in english and " ed " not in english
