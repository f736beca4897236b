"""A handful of countries in the Factbook's form, and stories, written for these tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# folder, name, capital as the Factbook writes it, languages, currency, adjective
COUNTRIES = (
    ("europe", "France", "Paris", "French (official) 100%, some dialects", "euros", "French"),
    ("europe", "Hungary", "Budapest", "Hungarian (official) 98.8%", "forints (HUF)", "Hungarian"),
    ("europe", "Switzerland", "Bern", "German 62.1%, French 22.8%", "Swiss francs (CHF)", "Swiss"),
    ("africa", "Egypt", "Cairo", "Arabic (official); English", "Egyptian pounds (EGP)", "Egyptian"),
    ("africa", "The Gambia", "Banjul", "", "dalasis (GMD)", "Gambian"),
    ("east-n-southeast-asia", "Japan", "Tokyo", "Japanese", "yen (JPY)", "Japanese"),
    ("east-n-southeast-asia", "Singapore", "Singapore", "English", "dollars", "Singapore"),
    ("south-america", "Peru", "Lima", "Spanish (official) 82.9%", "nuevo sol (PEN)", "Peruvian"),
    ("south-america", "Chile", "Santiago; note - a city", "Spanish 99.5%", "pesos", "Chilean"),
    ("south-asia", "Bhutan", "Thimphu", "", "ngultrum (BTN)", "Bhutanese"),
)  # fmt: skip
# Not a state, and a state without a short name.
LEFT_OUT = (("europe", "Atlantis", "Deep", "", "", ""), ("africa", "none", "Bangui", "", "", ""))

_WHO = ("dog", "cat", "bird", "bear", "fish", "frog", "horse", "lion", "boat", "train")
_NAMES = ("Mia", "Ben", "Zoe", "Tom", "Ida", "Max", "Eva", "Leo", "Ana", "Sam")


def country(row: tuple[str, ...], organizations: str) -> dict[str, Any]:
    """One document as the Factbook has it."""
    folder, name, capital, languages, currency, adjective = row
    per_dollar = f"{currency} per US dollar -" if currency else ""
    return {
        "region": folder,
        "code": name[:2].lower(),
        "facts": {
            "Government": {
                "Country name": {"conventional short form": {"text": name}},
                "Capital": {"name": {"text": f"<strong>{capital}</strong>"}},
                "International organization participation": {"text": organizations},
            },
            "People and Society": {
                "Languages": {"Languages": {"text": languages}},
                "Nationality": {"adjective": {"text": adjective}},
            },
            "Economy": {"Exchange rates": {"Currency": {"text": per_dollar}}},
        },
    }


def story(number: int) -> str:
    """A story of five sentences; every fifth has speech in its opening."""
    who, name = _WHO[number % len(_WHO)], _NAMES[number * 3 % len(_NAMES)]
    second = f'"I am happy," said {name}.' if number % 5 == 4 else f"It was called {name}."
    return (
        f"Once upon a time there was a {who} on hill {number}. {second} "
        f"One day the {who} found a ball. {name} played with it until the evening! "
        f"Then the {who} went home and slept.\n"
    )


def write_sources(folder: Path) -> Path:
    """The folder, with both files in it."""
    rows = [country(row, "FAO, UN (member), WHO") for row in COUNTRIES]
    rows += [country(LEFT_OUT[0], "FAO, UNESCO"), country(LEFT_OUT[1], "UN")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "factbook.jsonl").write_text(text, encoding="utf-8")
    stories = "<|endoftext|>\n".join(story(number) for number in range(40))
    (folder / "tinystories-sample.txt").write_text(stories, encoding="utf-8")
    return folder
