"""Does a text say how a person is reached or registered? Addresses, numbers and codes; names alone are not found.

>>> personal("Scrivete a mario.rossi@azienda.it")
'an e-mail address'
"""

from __future__ import annotations

import re

# "(at)" and "chiocciola" keep programs away, not readers
AT = r"\s*(?:@|[(\[{]\s*(?:at|chiocciola)\s*[)\]}])\s*"
DOT = r"\s*(?:\.|[(\[{]\s*(?:dot|punto)\s*[)\]}])\s*"
EMAIL = re.compile(rf"[\w.+-]+{AT}((?:[\w-]+{DOT})+[a-z]{{2,}})\b", re.IGNORECASE)
NOBODYS = re.compile(r"(?:^|\.)(?:example(?:\.\w+)?|test|invalid|localhost)$", re.IGNORECASE)  # RFC 2606
DIGITS = 6  # fewer are no telephone number
# What Google's rules take for one: 3.221.225.472, 0-65535, 06-07-2019
NUMBER = re.compile(r"[1-9]\d{0,2}(?:[. ]\d{3})+|0\D.*|\d\d([-./])\d\d\1\d{4}")
TAX_CODE = re.compile(r"\b[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPR-T][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]\b", re.IGNORECASE)
VAT = re.compile(r"\b(?:P(?:artita)?\.?\s?IVA|VAT)\b\D{0,12}(\d{11})\b", re.IGNORECASE)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
CARD = re.compile(r"(?<![\d.])[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\d.])")
STREET = r"(?:via|viale|v\.le|piazza|piazzale|p\.zza|corso|largo|vicolo|strada|contrada|borgo|lungomare)"
# Street, number and post code: a museum's too, but "via Roma" alone is also where a story is set
ADDRESS = re.compile(
    rf"\b(?i:{STREET}) (?:[\w.'’]+ ){{0,4}}?[A-Z][\w'’]+,? (?:n\.? ?)?\d{{1,4}}(?:/?\w)?\b[^\d]{{0,40}}\b\d{{5}}\b"
)


def personal(text: str) -> str | None:
    """What the text holds of a person, in words; None where nothing is found.

    Codes are found by their check digits (python-stdnum), telephone numbers by Google's rules for Italy, or any
    country where they begin with +. Addresses under names that are reserved for examples are nobody's.
    """
    if any(not NOBODYS.search(re.sub(r"\s", "", found[1])) for found in EMAIL.finditer(text)):
        return "an e-mail address"
    if has_tax_code(text):
        return "a tax code or VAT number"
    if has_account(text):
        return "a bank account or card"
    if has_phone(text):
        return "a telephone number"
    return "a postal address" if ADDRESS.search(text) else None


def has_tax_code(text: str) -> bool:
    from stdnum.it import codicefiscale, iva

    codes = any(codicefiscale.is_valid(found[0]) for found in TAX_CODE.finditer(text))
    return codes or any(iva.is_valid(found[1]) for found in VAT.finditer(text))


def has_account(text: str) -> bool:
    from stdnum import iban, luhn

    accounts = any(iban.is_valid(found[0]) for found in IBAN.finditer(text))
    return accounts or any(luhn.is_valid(re.sub(r"\D", "", found[0])) for found in CARD.finditer(text))


def has_phone(text: str) -> bool:
    import phonenumbers

    if sum(map(str.isdigit, text)) < DIGITS:  # the library is slow
        return False
    found = (match.raw_string.strip("()") for match in phonenumbers.PhoneNumberMatcher(text, "IT"))
    return any(not NUMBER.fullmatch(number) for number in found)
