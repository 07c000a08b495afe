"""Answers made comparable: the same name or number, however it is written in English or Italian.

>>> normalise("Vicino alle foci dell'Arno: ventitré città")
'vicino al foci di arno 23 citta'
>>> normalise("It has twenty-three.") == normalise("it has 23")
True
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

ARTICLES = {"the", "a", "an", "il", "lo", "la", "l", "i", "gli", "gl", "le", "un", "uno", "una"}
# A preposition that has swallowed an article is the preposition: "dell'Aquila" is "di L'Aquila". That of "a" stays
# another word than "a", which as an English article is dropped.
PREPOSITIONS = {
    "di": "del dello della dei degli delle",
    "al": "allo alla ai agli alle",
    "da": "dal dallo dalla dai dagli dalle",
    "in": "nel nello nella nei negli nelle",
    "su": "sul sullo sulla sui sugli sulle",
    "con": "col coi",
}
CONTRACTED = {form: plain for plain, forms in PREPOSITIONS.items() for form in forms.split()}
ELIDED = {"d": "di", "dell": "di", "all": "al", "dall": "da", "nell": "in", "sull": "su"}  # before an apostrophe only
ELISION = re.compile(rf"\b({'|'.join(ELIDED)})'(?=\w)")
SEPARATOR = re.compile(r"(?<=\d)[.,](?=\d{3}(?!\d))")  # of thousands: 1.000 in Italian, 1,000 in English

# What is written for an apostrophe, and spaces that no line may break at
LOOK_ALIKES = str.maketrans(dict.fromkeys("’‘‛ʼ′＇`´", "'") | dict.fromkeys("\u00a0\u2007\u202f", " "))

UNITS = [
    "zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove", "dieci", "undici", "dodici",
    "tredici", "quattordici", "quindici", "sedici", "diciassette", "diciotto", "diciannove",
]  # fmt: skip
TENS = ["venti", "trenta", "quaranta", "cinquanta", "sessanta", "settanta", "ottanta", "novanta"]
ENGLISH_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def straight(text: str) -> str:
    """The text with straight apostrophes, plain spaces, and each accented letter as one character (NFC).

    What reads an answer by a pattern reads it in this form: many models write "I can’t" and "dell’Arno".
    """
    return unicodedata.normalize("NFC", text).translate(LOOK_ALIKES)


def normalise(text: str) -> str:
    """Lower case, no accents, apostrophes, marks or articles, numbers in digits, prepositions without their articles.

    "L'Aquila" and "aquila" are the same name, "sei" and "six" the same number. Words of both languages are replaced
    without asking which language it is: texts that were the same stay the same, and few others become so ("sei" is
    also "you are").
    """
    plain = "".join(c for c in unicodedata.normalize("NFD", straight(text).lower()) if not unicodedata.combining(c))
    plain = ELISION.sub(lambda found: f"{ELIDED[found[1]]} ", SEPARATOR.sub("", plain))
    words = [CONTRACTED.get(word, word) for word in re.findall(r"[a-z0-9]+", plain) if word not in ARTICLES]
    return " ".join(_digits(words))


def _digits(words: list[str]) -> list[str]:
    """The words with numbers in digits; English writes a number below 100 in two words: "twenty-three"."""
    numbers, found, open_ten = _numbers(), [], False
    for word in words:
        number = numbers.get(word)
        if open_ten and word in ENGLISH_UNITS[1:10]:
            found[-1] = str(int(found[-1]) + number)
        else:
            found.append(word if number is None else str(number))
        open_ten = word in ENGLISH_TENS
    return found


@cache
def _numbers() -> dict[str, int]:
    """Numbers in words: Italian ones below 10,000, each a word, and English ones below 20, the tens and 100."""
    numbers = {word: number for number in range(10_000) for word in _italian(number)}
    numbers |= {word: number for number, word in enumerate(ENGLISH_UNITS)}
    return numbers | {word: 10 * ten for ten, word in enumerate(ENGLISH_TENS, 2)} | {"hundred": 100}


def _italian(number: int) -> list[str]:
    """A number in Italian words, without accents; both "centotto" and "centootto" are in use."""
    if number < 20:
        return [UNITS[number]]
    if number < 100:
        ten, unit = TENS[number // 10 - 2], number % 10
        return [(ten[:-1] if unit in (1, 8) else ten) + (UNITS[unit] if unit else "")]
    size, one, many = (100, "cento", "cento") if number < 1000 else (1000, "mille", "mila")
    head = one if number < 2 * size else UNITS[number // size] + many
    rests = _italian(number % size) if number % size else [""]
    found = [head + rest for rest in rests]
    return found + [head[:-1] + rest for rest in rests if size == 100 and rest.startswith("o")]
