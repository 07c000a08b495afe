"""Folders of texts to make a corpus of: the Italian Constitution's first articles, and beside them what is left out."""

from anita_utils.corpus.sieve import benchmark_files
from anita_utils.studies.contamination import read_items

ARTICLES = [
    "L'Italia è una Repubblica democratica, fondata sul lavoro. La sovranità appartiene al popolo, che la esercita "
    "nelle forme e nei limiti della Costituzione.",
    "La Repubblica riconosce e garantisce i diritti inviolabili dell'uomo, sia come singolo, sia nelle formazioni "
    "sociali ove si svolge la sua personalità, e richiede l'adempimento dei doveri inderogabili di solidarietà "
    "politica, economica e sociale.",
    "Tutti i cittadini hanno pari dignità sociale e sono eguali davanti alla legge, senza distinzione di sesso, di "
    "razza, di lingua, di religione, di opinioni politiche, di condizioni personali e sociali.",
    "È compito della Repubblica rimuovere gli ostacoli di ordine economico e sociale, che, limitando di fatto la "
    "libertà e l'eguaglianza dei cittadini, impediscono il pieno sviluppo della persona umana.",
    "La Repubblica riconosce a tutti i cittadini il diritto al lavoro e promuove le condizioni che rendano effettivo "
    "questo diritto.",
    "Ogni cittadino ha il dovere di svolgere, secondo le proprie possibilità e la propria scelta, una attività o una "
    "funzione che concorra al progresso materiale o spirituale della società.",
    "La Repubblica, una e indivisibile, riconosce e promuove le autonomie locali; attua nei servizi che dipendono "
    "dallo Stato il più ampio decentramento amministrativo.",
    "La Repubblica tutela con apposite norme le minoranze linguistiche, che vivono nelle regioni di confine e altrove.",
]
ENGLISH = "Italy is a democratic Republic founded on labour. Sovereignty belongs to the people."
MAIL = "Chi trova un errore in questa traduzione scriva per favore a Mario Rossi, mario.rossi@azienda.it, e grazie."


def leaked():
    """An item of the kit's own benchmarks, with its answer, and its name."""
    item = read_items(next(file for file in benchmark_files() if file.name == "arc_it.test.jsonl"))[7]
    return f"Alla lavagna si legge: {item.question} {item.answers[0]} Così dice il maestro ai bambini.", item.name


# One word of the last is another: of 34 sequences of three words 33 are in both, an index of 33/35
BROKEN, CHANGED = "citt\u00c3\u00a0 " + ARTICLES[0], ARTICLES[1].replace("economica e sociale", "economica e civile")
FILES = {"read": 5, "without text": 1, "not UTF-8": 1, "of another kind: .png": 1}
LEFT_OUT = {"another language": 1, "an e-mail address": 1, "a near-duplicate": 1, "tables and code": 1,
            "broken characters": 1, "a benchmark's question with its answer": 1}  # fmt: skip


def write_folder(folder):
    """Every kind of file, every reason for a paragraph to be left out: FILES and LEFT_OUT count them."""
    table = "pacchetto | V:12, I:398 | 623 | 17 | 12 | 3 | 4"
    files = {
        "a.txt": "\n\n".join(["Articoli", *ARTICLES[:3]]),
        "b/uno.md": "\n\n".join([ARTICLES[3], ENGLISH, MAIL, CHANGED]),
        "b/due.html": f"<html><body><p>{ARTICLES[4]}</p><pre>x = 1</pre><p>{ARTICLES[5]}</p></body></html>",
        "c.txt": leaked()[0],
        "d.txt": "\n\n".join([*ARTICLES[6:], table, BROKEN]),
        "vuota.html": "<html><body></body></html>",
        "figura.png": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    (folder / "vecchio.txt").write_bytes("La città è già lì da più di mille anni, e perciò è antica.".encode("cp1252"))
    return folder
