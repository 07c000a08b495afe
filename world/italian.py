"""Italian and English noun phrases for the sentence templates: articles, elisions, fused prepositions, agreement.

>>> "{s:il} nasce {o:in}".format(s=Noun("Po", "m"), o=Noun("Piemonte", "m", place="in Piemonte"))
'il Po nasce in Piemonte'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VOWELS = "aeiouàèéìòùAEIOUÀÈÉÌÒÙ"
# lo, gli, uno stand before: s + consonant, z, gn, ps, pn, x, y, and i + vowel (lo Ionio, lo iodio)
LO_SOUND = re.compile(r"(?:s[^aeiouàèéìòù\W]|z|gn|ps|pn|x|y|[ij][aeiou])", re.IGNORECASE)
ARTICLES = {"il", "lo", "la", "l'", "i", "gli", "le"}
FUSED = {
    "di": {"il": "del", "lo": "dello", "la": "della", "l'": "dell'", "i": "dei", "gli": "degli", "le": "delle"},
    "a": {"il": "al", "lo": "allo", "la": "alla", "l'": "all'", "i": "ai", "gli": "agli", "le": "alle"},
    "da": {"il": "dal", "lo": "dallo", "la": "dalla", "l'": "dall'", "i": "dai", "gli": "dagli", "le": "dalle"},
    "in": {"il": "nel", "lo": "nello", "la": "nella", "l'": "nell'", "i": "nei", "gli": "negli", "le": "nelle"},
    "su": {"il": "sul", "lo": "sullo", "la": "sulla", "l'": "sull'", "i": "sui", "gli": "sugli", "le": "sulle"},
}  # fmt: skip


def definite_article(name: str, tag: str) -> str:
    """The definite article of `name`, whose tag is m, f, mp or fp (masculine or feminine, singular or plural)."""
    lo_sound = bool(LO_SOUND.match(name))
    starts_with_vowel = name[0] in VOWELS and not lo_sound
    if tag == "m":
        return "lo" if lo_sound else "l'" if starts_with_vowel else "il"
    if tag == "f":
        return "l'" if starts_with_vowel else "la"
    if tag == "mp":
        return "gli" if lo_sound or starts_with_vowel else "i"
    return "le"


def indefinite_article(name: str, tag: str) -> str:
    """The indefinite article, or the partitive for a plural, of `name`."""
    if tag.endswith("p"):
        return FUSED["di"][definite_article(name, tag)]
    lo_sound = bool(LO_SOUND.match(name))
    if tag == "m":
        return "uno" if lo_sound else "un"
    return "un'" if name[0] in VOWELS and not lo_sound else "una"


def join_article(article: str, name: str) -> str:
    """`article` before `name`, with no space after an apostrophe."""
    return article + name if article.endswith("'") else f"{article} {name}"


@dataclass(frozen=True)
class Noun:
    """A name in one language, which bends to the template that holds it.

    name: the bare name (Italian) or the name as it stands in a sentence (English).
    tag: m, f, mp, fp; with a trailing "-" when the Italian name takes no article (Roma, Dante).
    place: the Italian phrase for "in" it where that is irregular ("in Piemonte", "a Capri").

    Format specifications. Italian: il, un, di, a, da, in, su. English: a, the. Both: "m|f" or "m|f|mp|fp" picks by
    gender and number, "#singular|plural" by number. Empty: the name itself.
    """

    name: str
    tag: str = "m-"
    place: str = ""

    @property
    def gender(self) -> str:
        return self.tag[0]

    @property
    def plural(self) -> bool:
        return self.tag.rstrip("-").endswith("p")

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        if not spec:
            return self.name
        if "|" in spec:
            return self._choose(spec)
        if spec == "il":
            return (
                self.name if self.tag.endswith("-") else join_article(definite_article(self.name, self.tag), self.name)
            )
        if spec == "un":
            return join_article(indefinite_article(self.name, self.tag.rstrip("-")), self.name)
        if spec == "in" and self.place:
            return self.place
        if spec in FUSED:
            return self._with_preposition(spec)
        if spec == "a_an":
            return f"{'an' if re.match('[aeiou]', self.name, re.IGNORECASE) else 'a'} {self.name}"
        if spec == "the":
            return self.name if self.name.lower().startswith("the ") else f"the {self.name}"
        raise ValueError(
            f"unknown form {spec!r} for {self.name!r}: use il, un, di, a, da, in, su, the, a_an or forms with |"
        )

    def _choose(self, spec: str) -> str:
        if spec.startswith("#"):
            singular, plural = spec[1:].split("|")
            return plural if self.plural else singular
        forms = spec.split("|")
        if len(forms) == 2:
            return forms[self.gender == "f"]
        return forms[2 * self.plural + (self.gender == "f")]

    def _with_preposition(self, preposition: str) -> str:
        if self.tag.endswith("-"):
            return f"{preposition} {self.name}"
        fused = FUSED[preposition][definite_article(self.name, self.tag)]
        return join_article(fused, self.name)


class EnglishNoun(Noun):
    """The same in English, where {s:a} is the indefinite article and not the Italian preposition."""

    def __format__(self, spec: str) -> str:
        return super().__format__("a_an" if spec == "a" else spec)


def capitalise(text: str) -> str:
    """`text` with its first letter in upper case, past any opening quotation mark."""
    match = re.search(r"\w", text)
    if not match:
        return text
    return text[: match.start()] + match.group().upper() + text[match.end() :]


def sentence(template: str, **values: object) -> str:
    """`template` filled with nouns and other values, each sentence in it beginning with a capital letter.

    In Italian "a" and "e" take a d before their own vowel: "ad Anna", "ed Elia".
    """
    text = capitalise(template.format(**values))
    if any(type(value) is Noun for value in values.values()):
        text = re.sub(r"\b([ae]) (?=\1)", r"\1d ", text, flags=re.IGNORECASE)
    return re.sub(r"(?<=[.?!] )([«\"']?)(\w)", lambda m: m.group(1) + m.group(2).upper(), text)
