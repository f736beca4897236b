"""A small corpus of which everything is known: what is wrong with each document, and how much."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import zstandard

_NOUNS = [
    "llama",
    "shepherd",
    "river",
    "mountain",
    "village",
    "market",
    "blanket",
    "weaver",
    "valley",
    "storm",
    "winter",
    "traveler",
    "bridge",
    "garden",
    "letter",
    "harbor",
    "captain",
    "island",
    "forest",
    "lantern",
    "teacher",
    "window",
    "kitchen",
    "journey",
    "violin",
    "orchard",
    "baker",
    "miller",
    "tower",
    "meadow",
    "candle",
    "story",
    "winner",
    "painter",
    "doctor",
    "farmer",
]
_VERBS = [
    "followed",
    "watched",
    "remembered",
    "carried",
    "found",
    "painted",
    "left",
    "crossed",
    "described",
    "visited",
    "measured",
    "repaired",
    "counted",
    "admired",
    "forgot",
    "opened",
    "reached",
    "guarded",
]
_ADJECTIVES = [
    "quiet",
    "old",
    "golden",
    "narrow",
    "distant",
    "heavy",
    "curious",
    "patient",
    "wooden",
    "frozen",
    "gentle",
    "early",
    "bright",
    "careful",
    "hidden",
    "broken",
    "famous",
    "lonely",
]
_PLACES = [
    "beyond the hills",
    "near the lake",
    "in the morning",
    "with great care",
    "before the rain",
    "at the station",
    "under the stars",
    "for many years",
    "along the coast",
    "behind the church",
    "without a word",
]

GERMAN = (
    "Der alte Hirte führte seine Tiere jeden Morgen über die Brücke und durch das enge Tal. "
    "Die Kinder im Dorf hörten die Glocken und liefen ihm bis zur letzten Wiese nach. "
    "Im Winter blieb er zu Hause, flickte die Decken und erzählte Geschichten von den Bergen. "
) * 3
FRENCH = (
    "Le vieux berger menait chaque matin ses bêtes par le pont et à travers la vallée étroite. "
    "Les enfants du village entendaient les cloches et le suivaient jusqu'au dernier pré. "
    "En hiver, il restait chez lui et racontait des histoires de la montagne à ses voisins. "
) * 3
QUESTION = (
    "Which of these animals was first kept by people in the high grassland of the Andes "
    "for its wool, its meat and its strength on long paths between the villages?"
)
SHORT_QUESTION = "How many sheep does the third brother own after the fair?"
HEADER = (
    "The Project Gutenberg EBook of A Walk, by Nobody\n\nThis eBook is for the use of anyone "
    "anywhere at no cost.\n\nTitle: A Walk\n\n*** START OF THIS PROJECT GUTENBERG EBOOK A WALK ***"
    "\n\nProduced by Some One and the Online Distributed Proofreading Team\n\n"
)
FOOTER = (
    "\n\nEnd of Project Gutenberg's A Walk, by Nobody\n\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK A WALK ***\n\nUpdated editions will replace it."
)


def prose(seed: int, sentences: int = 14) -> str:
    """English that no other seed repeats: about 10 words a sentence."""
    pick = random.Random(seed)
    made = []
    for _ in range(sentences):
        a, b, c = pick.sample(_NOUNS, 3)
        made.append(
            f"The {pick.choice(_ADJECTIVES)} {a} and the {b} {pick.choice(_VERBS)} the "
            f"{pick.choice(_ADJECTIVES)} {c} {pick.choice(_PLACES)}."
        )
    return " ".join(made)


def wrapped(text: str, width: int = 70) -> str:
    """The text cut at a width, as Project Gutenberg's are."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def web() -> list[dict[str, str]]:
    """Pages, each with what should become of it."""
    near = prose(2, 40).split()
    near[200] = "wonderful"
    people = {"url": "https://people.example/a"}
    return [
        {"label": "kept", "text": prose(1)},
        {"label": "kept", "text": prose(2, 40)},
        {"label": "kept", "text": prose(3)},
        {"label": "exact", "text": prose(1)},
        {"label": "near", "text": " ".join(near)},
        {"label": "german", "text": GERMAN},
        {"label": "french", "text": FRENCH},
        {"label": "short", "text": prose(4, 2)},
        {"label": "bullets", "text": "\n".join(f"- {line}" for line in prose(5, 20).split(". "))},
        {"label": "repeats", "text": f"{prose(6, 2)} " * 12},
        {"label": "lorem ipsum", "text": prose(7) + " Here the Lorem Ipsum stands for text."},
        {
            "label": "scrubbed: 2 e-mails, 2 phones, 1 IP",
            "text": prose(8, 30)
            + " Write to jane.doe@mail.example.org or j+d@x.io. Call +44 20 7946 0958 or "
            "(202) 265-2800 today. The host is 93.184.216.34 and not 192.168.0.1, says version "
            "1.2.3.4.5.",
        },
        {
            "label": "personal",
            "text": prose(9, 5) + " ".join(f" Reach me at p{i}@mail.com." for i in range(6)),
        },
        {"label": "site", "text": prose(10, 20) + " Ask a@b.org, c@d.org, e@f.org now."} | people,
        {"label": "site", "text": prose(11, 20) + " Ask g@b.org, h@d.org, i@f.org now."} | people,
        {"label": "empty", "text": " \n"},
        {"label": "binary", "text": "\0\1\2PK\3\4" * 30},
        {"label": "cut", "text": f"{prose(12)}\nAsk it again. {QUESTION}\n{prose(13)}"},
        {"label": "cut", "text": f"{prose(14)}\n{prose(15)} {SHORT_QUESTION}\n" + prose(16, 60)},
        {"label": "contaminated", "text": f"{QUESTION} {prose(17, 5)}"},
        {"label": "kept", "text": prose(18)},
    ]


def write_corpus(folder: Path) -> Path:
    """Writes the sources, an evaluation set and the configuration, whose path it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    book = "\n\n".join(wrapped(prose(seed)) for seed in (21, 22, 23, 24))
    verse = "\n\nThe llama is a woolly sort\nof fleecy, hairy goat,\nwith an indolent expression\n"
    books = [
        {"title": "A Walk", "text": f"{HEADER}{book}{verse}{FOOTER}".replace("\n", "\r\n")},
        {"title": "Nothing", "text": HEADER + FOOTER},
    ]
    country = {
        "Introduction": {"Background": {"text": f"<p>{prose(31)}</p>"}},
        "Government": {"Country name": {"conventional short form": {"text": "Punaland"}}},
        "Economy": {"Exports": {"total": {"text": "$1 &amp; more"}, "note": "<b>note:</b> wool"}},
    }
    (folder / "books.jsonl.zst").write_bytes(zstandard.compress(_jsonl(books)))
    (folder / "web.jsonl.gz").write_bytes(gzip.compress(_jsonl(web())))
    (folder / "facts.jsonl").write_bytes(_jsonl([{"facts": country}]))
    (folder / "more.txt").write_text(f"{prose(1)}\n<>\n{prose(41)}\n<>\n{prose(42)}\n<>\n")
    evaluation = folder / "eval" / "animals"
    evaluation.mkdir(parents=True)
    questions = [{"question": QUESTION, "choices": ["llama", "horse"]}, {"q": SHORT_QUESTION}]
    (evaluation / "test.jsonl").write_bytes(_jsonl(questions))
    (folder / "eval" / "README.md").write_text(prose(1))
    path = folder / "corpus.toml"
    path.write_text(CONFIG)
    return path


CONFIG = """
[[source]]
name = "books"
path = "books*.zst"
licence = "public domain"
kind = "gutenberg"
steps = { c4 = false }

[[source]]
name = "web"
path = ["web.jsonl.gz"]
licence = "ODC-By-1.0"

[[source]]
name = "facts"
path = "facts.jsonl"
licence = "CC0"
kind = "factbook"
upsample = 4
steps = { c4 = false, gopher = { min_alphabetic_words = 0.5 } }

[[source]]
name = "more"
path = "more.txt"
licence = "MIT"
separator = "<>"

[steps]
sites = { min_found = 6 }
decontaminate = { evaluation = ["eval"] }
"""


def _jsonl(records: list[dict[str, object]] | list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
