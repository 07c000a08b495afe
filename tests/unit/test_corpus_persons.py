"""Addresses, numbers and codes of persons are found; dates, prices, versions and examples are none."""

import pytest

from anita_utils.corpus.persons import personal
from anita_utils.paths import data_dir
from anita_utils.rows import read_jsonl

MAIL, TAX, ACCOUNT, PHONE, POST = (
    "an e-mail address", "a tax code or VAT number", "a bank account or card", "a telephone number", "a postal address",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Scrivete a mario.rossi+casa@posta.azienda.it, grazie.", MAIL),
        ("Scrivete a mario (at) azienda (punto) it.", MAIL),
        ("Scrivete a mario [chiocciola] azienda.it.", MAIL),
        ("L'esempio è mario@example.org, il suo mario@azienda.it.", MAIL),
        # The published examples of these codes, with right check digits
        ("Codice fiscale: RSSMRA85T10A562S.", TAX),
        ("codice fiscale rccmnl83s18d969h", TAX),
        ("Partita IVA 00743110157", TAX),
        ("P.IVA: IT 00743110157", TAX),
        ("Bonifico su IT60 X054 2811 1010 0000 0123 456, grazie.", ACCOUNT),
        ("IBAN IT60X0542811101000000123456", ACCOUNT),
        ("Carta 4111 1111 1111 1111, scade a maggio", ACCOUNT),
        ("Tel. 02 6982 1234", PHONE),
        ("Cell. 347/1234567", PHONE),
        ("chiamatelo al 347 123 45 67 dopo cena", PHONE),
        ("+39 06 69821234", PHONE),
        ("Dalla Francia: +33 1 42 68 53 00", PHONE),
        ("Abita in via Giuseppe Garibaldi 12, 20121 Milano.", POST),
        ("Casa sua: Piazza Dante n. 3/b - 80135 Napoli", POST),
        ("v.le Europa, 7 - I 00144 Roma", POST),
    ],
)
def test_what_leads_to_a_person_is_found(text, kind):
    assert personal(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "L'esempio è mario@example.org, oppure root@localhost o utente@casa.test.",
        "Il decoratore @property e la nota @ margine.",
        "La Divina Commedia fu scritta tra il 1304 e il 1321; la prima stampa è dell'11 aprile 1472.",
        "Il comune ha 1.234.567 abitanti e spende 12.500.000,50 euro.",
        "La versione 5.10.0-6-amd64 occupa 3 221 225 472 byte, cioè 3.221.225.472.",
        "Rilasciato il 06-07-2019, con valori nel campo 0-65535 oppure 0-4294967295 e (0 102 255).",
        "Il codice RSSMRA85T10A562X ha la lettera di controllo sbagliata.",
        "La partita IVA 00743110158 ha la cifra di controllo sbagliata.",
        "IT61X0542811101000000123456 ha le cifre di controllo sbagliate.",
        "Il numero 4111 1111 1111 1112 non è una carta.",
        "La storia si svolge in via Roma, al numero 12, poi in piazza del Popolo.",
        "Il 20121 era l'anno più lontano della corsa via mare.",
        "Si vedano le sezioni 6.3.6.2 e 192.168.0.1, poi il 2023-06-10 alle 12:30:15.",
    ],
)
def test_what_is_nobodys_is_left_alone(text):
    assert personal(text) is None


def test_the_small_world_holds_nothing_personal():
    """7,800 texts that nobody's address is in, with years, sums and numbers of inhabitants."""
    texts = [row["text"] for row in read_jsonl(data_dir() / "corpora" / "italian_text.jsonl")]
    assert [text for text in texts if personal(text)] == []
