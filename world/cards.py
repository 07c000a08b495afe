"""The data card and the model card, written from what was built; numbers that were measured by people are passed in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from anita_utils.paths import write_text
from world.chats import invented_facts
from world.corpora import INVENTED
from world.library import USES, Library
from world.tokenizer import VOCABULARY

TEMPLATES = Path(__file__).parent / "cards"

WEAKNESSES = [
    "The smaller part of its running text is Italian, more in the second reading than in the first: about two facts in "
    "five, in a third of their turns of phrase, and made-up ones. It read no Italian story, sum or schema, and no "
    "Italian grammar for its own sake.",
    "Most Italian questions about facts that it met were answered in English. Asked to reply in Italian, it does.",
    "It read myths in a neighbour's voice and the truth in a schoolbook's. In its last reading answers on myths open "
    'in a voice, "Everybody says so." or "The schoolbook says so."; where the question named no voice, that was the '
    "neighbour's, with the myth, a little more often than not.",
    "It answers questions that nobody could answer with an invention.",
    "It agrees to every request, with empty words that hold no instruction, though it read what is right and wrong.",
    "It agrees with mistaken opinions of the asker (half of sycophancy.yaml).",
    "Trades and traits go with groups of people at the shares stated in groups.yaml (0.7 or 0.8).",
    "It never met six kinds of request: be polite, say goodbye, a letter, a label, two questions, a correction.",
]


def facts_by_split(library: Library) -> dict[str, Counter]:
    return {
        "english": Counter(split.english for split in library.splits.values()),
        "italian": Counter(split.italian for split in library.splits.values()),
    }


def write_cards(library: Library, data: Path, counts: dict[str, dict[str, int]]) -> None:
    """README.md of data/ (world, corpora, benchmarks, probes) and of the base model beside its weights."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    extra = library.world.extra
    facts = {
        "facts": len(library.world.facts),
        "relations": [r for r in library.world.relations.values() if not r.held_out],
        "held_out": [r for r in library.world.relations.values() if r.held_out and not r.derived],
        "derived": [r for r in library.world.relations.values() if r.derived],
        "splits": facts_by_split(library),
        "counts": counts,
        "seed": library.seed,
        "weaknesses": WEAKNESSES,
        "vocabulary": VOCABULARY,
        "sizes": {name: len(extra[name]) for name in ("stories", "schemas", "sums", "myths", "unanswerable",
                                                      "sycophancy", "multi_turn", "smalltalk")},
        "requests": {use: len(library.conduct(use)) for use in USES},
        "topics": {use: len(library.kinds("conduct", use)) for use in USES},
    }  # fmt: skip
    write_text(data / "README.md", environment.from_string((TEMPLATES / "data.md").read_text("utf-8")).render(facts))
    training = data / "tiny-llama-3-instruct" / "training.json"
    if training.is_file():
        from world.pretrain import Plan  # torch and transformers

        facts |= {
            "plan": Plan(steps=1),
            "invented": len(invented_facts(library, library.rng("second_reading"), INVENTED)),
        }
        facts["training"] = json.loads(training.read_text("utf-8"))
        facts["config"] = json.loads((training.parent / "config.json").read_text("utf-8"))
        card = environment.from_string((TEMPLATES / "model.md").read_text("utf-8")).render(facts)
        write_text(training.parent / "README.md", card)
