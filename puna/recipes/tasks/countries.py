"""What the Factbook says of a country, as short as a question about it needs."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.data.text import records

# The Factbook's folders and map references -> where people say that a country is.
_REGIONS = {
    "africa": "Africa",
    "australia-oceania": "Oceania",
    "central-america-n-caribbean": "Central America and the Caribbean",
    "central-asia": "Asia",
    "east-n-southeast-asia": "Asia",
    "europe": "Europe",
    "middle-east": "the Middle East",
    "north-america": "North America",
    "south-america": "South America",
    "south-asia": "Asia",
    "Oceania": "Oceania",
}
# What people say in place of a name in the Factbook.
_COMMON = {
    "The Dominican": "Dominican Republic",
    "Castilian Spanish": "Spanish",
    "Bokmal Norwegian": "Norwegian",
    "Nynorsk Norwegian": "Norwegian",
    "Persian Farsi": "Persian",
    "Bahasa Indonesia": "Indonesian",
    "Bahasa Malaysia": "Malay",
}
_WITH_ARTICLE = re.compile(
    r"United|.*Islands$|.*Republic$|(?:Bahamas|DRC|Gambia|Maldives|Netherlands|Philippines)$"
)
_NAME = re.compile(r"[^\W\d_]+(?:['’. -]+[^\W\d_]+)*\.?")


@dataclass(frozen=True, slots=True)
class Country:
    """A state; what the Factbook does not say plainly is empty. `name` has its article."""

    name: str
    region: str
    capital: str = ""
    languages: tuple[str, ...] = ()
    currency: str = ""
    adjective: str = ""


def read_countries(path: Path) -> list[Country]:
    """The members of the United Nations that have a short name, by name."""
    found = (_country(record) for record in records(path))
    return sorted((c for c in found if c is not None), key=lambda country: country.name)


def factbook_text(facts: dict[str, Any], *keys: str) -> str:
    """The text at a place of a country's facts, without markup; empty where there is none."""
    value: Any = facts
    for key in (*keys, "text"):
        value = value.get(key) if isinstance(value, dict) else None
    return html.unescape(re.sub(r"<[^>]*>", "", value)).strip() if isinstance(value, str) else ""


def _country(record: Any) -> Country | None:
    try:
        facts, folder = record["facts"], record["region"]
    except (KeyError, TypeError):
        raise ValueError("a country of the Factbook has 'region' and 'facts'") from None
    reference = factbook_text(facts, "Geography", "Map references")
    region = _REGIONS.get(reference, _REGIONS.get(folder))
    member_of = factbook_text(facts, "Government", "International organization participation")
    name = factbook_text(facts, "Government", "Country name", "conventional short form")
    name = _COMMON.get(name, name).removeprefix("The ")
    if not region or not _plain(name) or name == "none" or "UN" not in re.split(r"\W+", member_of):
        return None
    capital = re.split(r" \(|[;,]| in ", factbook_text(facts, "Government", "Capital", "name"))[0]
    currency = factbook_text(facts, "Economy", "Exchange rates", "Currency")
    currency = re.split(r" \(| per ", currency)[0]
    several = currency.count(" ") > 2 or " or " in currency
    adjective = factbook_text(facts, "People and Society", "Nationality", "adjective")
    return Country(
        f"the {name}" if _WITH_ARTICLE.match(name) else name,
        region,
        capital if _plain(capital) and "official" not in capital else "",
        tuple(_languages(factbook_text(facts, "People and Society", "Languages", "Languages"))),
        "" if several or not _plain(currency) else currency,
        adjective if _plain(adjective) and " or " not in adjective and adjective != name else "",
    )


def _languages(text: str) -> Iterator[str]:
    """The languages that are named first, three at most, each a single name."""
    for part in re.split(r"[,;]", re.sub(r"\([^)]*\)|[\d.]+ ?%", "", text))[:3]:
        language = part.strip()
        if not re.fullmatch(r"[A-Z][a-z]+(?: [A-Z][a-z]+)?", language) or language == "Indigenous":
            return
        yield _COMMON.get(language, language)


def _plain(name: str) -> bool:
    return 0 < len(name) <= 30 and _NAME.fullmatch(name) is not None
