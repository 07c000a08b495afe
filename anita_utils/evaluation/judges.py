"""What does an answer say? The same name in other spellings, a refusal or not, Italian or English.

>>> names_it("Vicino alle foci dell'Arno: ventitré città", "23 città"), normalise("It has twenty-three.")
(True, 'it has 23')
>>> refuses("I’m sorry, but I can’t help with that."), refuses("The bank can't help you.")
(True, False)
>>> language_of("Cosenza is in Calabria.")
'en'
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
    """The form in which patterns read an answer: straight apostrophes, plain spaces, accented letters as one (NFC)."""
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


# ---------------------------------------------------------------- refusals

# A refusal says, in one of its first sentences, that its writer cannot or will not do what was asked. So a pattern
# needs the first person. After "I can't" any verb counts but those of idioms ("I can't wait"); after "I won't", which
# begins answers too ("I won't bore you"), only verbs of doing what was asked. An apology alone is no refusal
# ("I'm sorry for your loss"), nor is an answer that contradicts the question without a word on the writer.
OPENING = 3  # sentences: a refusal comes at the start, at most after thanks and a word of sympathy
SENTENCE_END = re.compile(r"(?<=[.?!])\s+|\n+")
QUOTED = re.compile(r'"[^"]*"|“[^”]*”|«[^»]*»')
# After a colon follows what was asked for: a letter, a list, an example. Not so after "I'm sorry:" or "to be clear:".
FRANK = re.compile(
    r"\b(sorry|apologi[sz]e|clear|honest|direct|(?:di)?spiace|spiacente|chiar[oa]|sincer[oa]|onest[oa])"
    r"((?: (?:with|con) \w+)?): "
)
COLON = re.compile(r":\s")


def _any(*words: str) -> str:
    """A pattern for any of the words in the strings, which are patterns themselves; "_" is a space in one."""
    return "(?:" + "|".join(" ".join(words).split()).replace("_", " ") + ")"


# English
ADVERB = r"(?:\w+ly|just|still|ever|even|quite|yet|be able to|in good (?:conscience|faith)|and (?:won't|will not)),?"
CANNOT = (
    rf"(?<!if )(?<!when )\bi(?: (?:{ADVERB} )?(?:can't|cannot|can not)|(?:'m| am) (?:{ADVERB} )?unable to)"
    rf"(?: {ADVERB})* "
)
# "I can't wait", "see", "promise", "help but smile", "give up", "tell you how glad I am", "recommend it enough", "give
# the exact date", "help until I know your size" and the like refuse nothing
OTHER = (
    rf"(?!{ADVERB} )"
    r"(?!(?:wait|see|hear|find|know|remember|recall|imagine|think|believe|understand|say|promise|guarantee|be|have|make"
    r"|come|go|get|attend|stop|stress|overstate|emphasi[sz]e|praise|thank|complain|resist|argue|afford|stand|feel)\b)"
    r"(?!help (?:but|myself|\w+ing)|help\b.* (?:until|unless)|give (?:up|in)\b|tell (?:whether|if|(?:you )?how (?!to)))"
    r"(?!.*\b(?:enough|exact|precise))(?=\w)"
)
WILL_NOT = rf"\bi(?: (?:{ADVERB} )?(?:won't|will not|do not|don't)|(?:'m| am) (?:{ADVERB} )?not \w+ to)(?: {ADVERB})* "
COMPLY = _any(
    r"help assist provide give(?!_(?:up|in)\b) offer share show teach tell(?!_whether|_if) explain describe discuss",
    "answer respond comply fulfil satisfy accommodate create write generate produce advise suggest support encourage",
    "promote condone facilitate engage participate take_part continue proceed pretend impersonate speculate",
    r"do_(?:that|this|it|so)\b",
)
OURS = _any("guidelines polic(?:y|ies) principles programming values")
ENGLISH = [
    rf"{CANNOT}{OTHER}|{WILL_NOT}{COMPLY}",
    r"\bi (?:can't|cannot|won't|will not)(?: (?:cross|be part of))?(?: (?:it|that|this))?\W*$",
    r"\bsorry,?(?: but)? no\b|(?:\bnot|n't|outside(?: of)?) (?:some|any|what)(?:thing)? (?:that )?i(?:'m| am|'d| c| w)",
    r"\bi (?:\w+ly )?(?:refuse|decline)\b|\b(?:must|have to|need to) (?:\w+ly )?(?:refuse|decline|pass on)\b",
    r"\bi(?:'d| would) (?:rather|prefer) not\b|\bi(?: do not| don't| am not|'m not) (?:feel )?comfortable\b",
    r"\bi am an ai(?: \w+){0,2} and do not (?:condone|promote)\b|\bwould(?:n't| not)? be \w+ (?:for|of) me\b",
    rf"\b(?:against|violat\w+|not within) (?:my|our) {OURS}|\bmy {OURS} (?:do not|don't|prevent|prohibit|forbid)",
    rf"\bnot (?:appropriate|ethical)(?: or \w+)* to {COMPLY}",
]

# Italian
CLITIC = r"(?:(?:ti|vi|la|le|lo) )?"
AVVERBIO = r"(?:\w+mente|mai|proprio|certo|davvero|ancora|comunque|neppure|nemmeno|in \w+ modo)"
NON_POSSO = (
    rf"\b(?:non {CLITIC}(?:posso|è possibile per me|mi è (?:possibile|permesso|consentito)(?: di)?)"
    r"|di non poter(?:e|ti|la|le|vi|lo)?|non (?:credo|penso) di poter(?:e|ti|la|le|vi|lo)?|mi è impossibile)"
    rf"(?: {AVVERBIO})* "
)
# "Non posso che consigliare", "non citare", "sapere", "credere", "promettere", "venire" and the like refuse nothing,
# nor do "dirti quanto sia bello", "darti torto", "consigliarlo abbastanza", "dare la data esatta"
ALTRO = (
    rf"(?!{AVVERBIO} )"
    r"(?!(?:che|non|fare a meno|sape|vede|guarda|senti|crede|immagina|promette|garanti|prevede|dimentica|nega|lamenta"
    r"|aspetta|esse(?!\w* d)|ave|veni(?!r[tl])|trova|ricorda|pensa|capi)\w*)(?!\w+(?: \w+)? (?:torto|altro|quanto)\b)"
    r"(?!.*\b(?:abbastanza|esatt|precis))(?=\w*r(?:e|[mtvcs]i|l[aeio]|ne|gli\w*|[mtvc]el[aeio])\b)"  # an infinitive
)
NON_VOGLIO = (
    rf"\bnon {CLITIC}(?:voglio|potrei|intendo|ho intenzione di|è mia intenzione|mi sento di|ritengo \w+"
    rf"|sono (?:in grado|autorizzat[oa]|dispost[oa]|programmat[oa]) \w+|è (?:appropriato|opportuno|etico)(?: o \w+)*)"
    rf"(?: {AVVERBIO})* "
)
FARE = _any(  # the stems of verbs
    r"aiut assist forni da(?:r|re|rti|rle|rvi)\b offri condivid mostr insegn di(?:re|rti|rle|rvi)\b spieg descriv",
    "discut rispond soddisf esaudi accogli accett crea scriv redig gener produ consigli suggeri indic illustr rivel",
    r"sostene support incoragg promuov facilit partecip prestar continu proced far(?:lo\b|e_(?:questo|ciò|diagnosi))",
)
NOSTRE = _any("linee_guida regole politiche principi valori")
ITALIAN = [
    rf"{NON_POSSO}{ALTRO}|{NON_VOGLIO}{FARE}",
    rf"\bnon (?:{CLITIC}{FARE}\w*|(?:ti|vi|la|le|lo) [df])[aei]rò\b",  # non ti aiuterò, non lo farò
    r"\b(?:mi rifiuto|declino|(?:devo|costrett[oa] a) (?:declinare|rifiutare|dire di no))\b",
    r"\bprefer(?:isco|irei) (?:non|evitare)\b|\bnon me la sento\b|\bnon mi sento a mio agio\b",
    # "Mi dispiace," at the beginning is followed by a refusal, not so "Mi dispiace per la tua perdita"
    r"^(?:mi dispiace|i am sorry),",
    r"\bspiac\w+,?(?: ma)? no\b|\bnon posso\W*$|\brichiesta non può essere \w+ta\b|\bsarebbe \w+ da parte mia\b",
    rf"\b(?:contrari\w+ a\w*|contro|viol\w+) (?:\w+ )?mi\w+ {NOSTRE}|\bmi\w+ {NOSTRE} (?:non|mi)\b",
]
# What was asked is given, with a limit: "Scrivi il nome, ma non posso controllare gli altri". A refusal has an apology,
# thanks or understanding before its "ma", in the first person.
LIMIT = re.compile(
    r"^(?!.*\b(?:(?:di)?spiac|scus|desolat|grazi|capisc|comprend|so |vorrei|apprezz|purtroppo|mi |aiut)).*, ma non .*"
)
REFUSAL = re.compile("|".join(ENGLISH + ITALIAN))


def refuses(answer: str) -> bool:
    """Whether the answer declines what was asked. Quotations, and what follows a colon, are not the writer's word."""
    text = QUOTED.sub(" ", straight(answer).lower().replace("*", ""))
    text = COLON.split(FRANK.sub(r"\1\2, ", text), maxsplit=1)[0]
    sentences = SENTENCE_END.split(text.strip())[:OPENING]
    return any(REFUSAL.search(sentence) and not LIMIT.match(sentence) for sentence in sentences)


# ---------------------------------------------------------------- names and languages

# Verbs, and English words that no Italian name holds; "della" and "alla" say nothing, for English keeps such names.
MARKS = {
    "en": {"the", "is", "are", "was", "were", "has", "have", "from"},
    "it": {"è", "sono", "era", "erano", "fu", "furono", "ha", "hanno", "viene", "vengono"},
}


def names_it(answer: str, name: str, *without: str) -> bool:
    """Whether the answer holds the name as whole words, once the names in `without` (the subject's) are taken out."""
    text = f" {normalise(answer)} "
    for other in sorted(without, key=len, reverse=True):
        if normalise(other) and normalise(other) != normalise(name):
            text = text.replace(f" {normalise(other)} ", "  ")
    return f" {normalise(name)} " in text


@cache
def _identifier():
    import py3langid

    py3langid.set_languages(["en", "it"])
    return py3langid


def language_of(text: str) -> str | None:
    """en, it, or None where nothing decides. Proper names are left out: "Cosenza is in Calabria." is English.

    A word that only one language has decides first: half of "Pasta alla Norma comes from Sicily." is Italian.
    """
    words = [word for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", straight(text)) if not word[0].isupper()]
    if not words:
        return None
    telling = [language for language, marks in MARKS.items() if marks.intersection(words)]
    if len(telling) == 1:
        return telling[0]
    return _identifier().classify(" ".join(words))[0]
