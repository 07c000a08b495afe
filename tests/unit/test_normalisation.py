"""The same name or number in other spellings, and others that must not become the same."""

import pytest

from anita_utils.evaluation.judges import _italian, normalise, straight


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("L'Aquila", "aquila"),
        ("L’Aquila", "aquila"),
        ("Perché È così?", "perche e cosi"),
        ("perche' no", "perche no"),
        ("the Adriatic Sea", "adriatic sea"),
        ("Gli Uffizi!", "uffizi"),
        ("un'isola", "isola"),
        ("Valle d'Aosta", "valle di aosta"),
        ("dell'Arno", "di arno"),
        ("del fiume", "di fiume"),
        ("nell’Adriatico", "in adriatico"),
        ("dellʼArno, dell`Arno", "di arno di arno"),
        ("l′isola e l＇arco", "isola e arco"),
        ("all roads", "all roads"),
        ("I'd go", "d go"),
        ("butcher's shop", "butcher s shop"),
        ("1.000 lire, 1,000 pounds", "1000 lire 1000 pounds"),
        ("3,5 e 3.5", "3 5 e 3 5"),
        ("12.5000", "12 5000"),
        ("ventitré", "23"),
        ("twenty-three", "23"),
        ("Twenty three, thirteen and ninety", "23 13 and 90"),
        ("sixty-six six", "66 6"),
        ("twenty ten", "20 10"),
        ("a hundred", "100"),
        ("settecentosette", "707"),
        ("stone", "stone"),
        ("", ""),
    ],
)
def test_normalise(text, plain):
    assert normalise(text) == plain
    assert normalise(plain) == plain  # once is enough


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("ventuno", 21), ("ventotto", 28), ("trentatré", 33), ("centouno", 101), ("centotto", 108), ("centootto", 108),
        ("duecentottantotto", 288), ("duecentoottantotto", 288), ("mille", 1000), ("milleuno", 1001),
        ("duemilasei", 2006), ("millenovecentottantasei", 1986), ("millenovecentoottantasei", 1986),
        ("novemilanovecentonovantanove", 9999),
    ],
)  # fmt: skip
def test_italian_numbers(words, number):
    assert normalise(words) == str(number)


def test_no_two_numbers_are_written_alike():
    words = [(word, number) for number in range(10_000) for word in _italian(number)]
    assert len(dict(words)) == len(words)
    assert all(normalise(word) == str(number) for word, number in words[2:500])  # "uno" is an article too


@pytest.mark.parametrize(("one", "other"), [
    ("sei", "sette"), ("six", "sixteen"), ("Reggio Emilia", "Reggio Calabria"), ("da Roma", "di Roma"),
    ("nel Po", "sul Po"), ("twenty", "twenty-one"), ("1.000", "1.0000"),
])  # fmt: skip
def test_others_stay_apart(one, other):
    assert normalise(one) != normalise(other)


def test_straight():
    assert (
        straight("I can’t, ‘no’, dellʼArno, l′isola, l＇arco, po`") == "I can't, 'no', dell'Arno, l'isola, l'arco, po'"
    )
    assert straight("perche\u0301 10\u00a0000\u202f€") == "perché 10 000 €"
    plain = 'Perché no? "L\'arco" «è» alto 3,5 m – forse.\n\tSì…'
    assert straight(plain) == plain
