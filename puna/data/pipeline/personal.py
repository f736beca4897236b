"""Personal information: e-mail addresses, telephone numbers and IP addresses.

They are replaced where they stand alone; a document full of them is dropped, and so is a site
(Llama 2 left out "sites known to contain a high volume of personal information").
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from puna.data.pipeline.config import Source
from puna.data.pipeline.measured import Dropped
from puna.data.pipeline.plan import Plan
from puna.data.pipeline.settings import Personal, Sites


class Pattern(NamedTuple):
    """What one kind looks like, a sign without which it cannot occur, and a closer look."""

    expression: re.Pattern[str]
    sign: str
    is_one: Callable[[str], bool]


def _is_phone(text: str) -> bool:
    return 7 <= sum(c.isdigit() for c in text) <= 15


def _is_public_ip(text: str) -> bool:
    if ":" not in text and sum(c.isdigit() for c in text) < 6:
        return False  # 1.5.9.8 is a version, a section or a year before it is an address
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9](?:[\w.+-]{0,62}\w)?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z]{2,24}(?![\w-])",
    re.ASCII,
)
# International (+44 20 7946 0958, [213] (0) 770-08-2000) and North American (202-265-2800).
_PHONE = re.compile(
    r"(?<![\w.+$-])(?:"
    r"(?:\+\d{1,3}|\[\d{1,3}\])[ .-]?(?:\(\d{1,5}\)[ .-]?)?\d{1,5}(?:[ .-]\d{2,8}){1,5}"
    r"|(?:\+\d{1,3}|\[\d{1,3}\])[ .-]?(?:\(\d{1,5}\)[ .-]?)?\d{6,11}"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[-.]\d{4}"
    r")(?![\w-]|\.\d)"
)
_IP = re.compile(
    r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4})(?![\w:]|\.\d)"
)
_PATTERNS: dict[str, Pattern] = {
    "emails": Pattern(_EMAIL, "@", lambda text: True),
    "ips": Pattern(_IP, "", _is_public_ip),
    "phones": Pattern(_PHONE, "", _is_phone),
}


def scrub(text: str, replacements: dict[str, str]) -> tuple[str, Counter[str]]:
    """The text with what `replacements` names replaced, and how many there were of each."""
    found: Counter[str] = Counter()
    for kind, replacement in replacements.items():
        pattern = _PATTERNS[kind]
        if pattern.sign not in text:
            continue

        def replaced(match: re.Match[str], kind: str = kind, by: str = replacement) -> str:
            if match[0] == by or not _PATTERNS[kind].is_one(match[0]):
                return match[0]
            found[kind] += 1
            return by

        text = pattern.expression.sub(replaced, text)
    return text, found


class Scrub(BaseFilter):
    """Replaces, drops a document with too much of it, and counts by site for the next step."""

    name = "personal"

    def __init__(self, settings: Personal, dropped: Dropped, source: str, sites: Path) -> None:
        super().__init__(dropped)
        self.settings, self.source, self.sites = settings, source, sites
        self.replacements = {
            kind: replacement
            for kind, replacement, is_on in (
                ("emails", settings.email_replacement, settings.emails),
                ("ips", settings.ip_replacement, settings.ips),
                ("phones", settings.phone_replacement, settings.phones),
            )
            if is_on
        }
        self._found: Counter[str] = Counter()  # by site
        self._words: Counter[str] = Counter()

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        text, found = scrub(document.text, self.replacements)
        words, total = len(text.split()), found.total()
        site = site_of(document, self.source)
        self._found[site] += total
        self._words[site] += words
        per_1000 = 1000 * total / max(words, 1)
        limit = self.settings.max_per_1000_words
        if limit and total >= self.settings.min_found and per_1000 > limit:
            return False, "personal information, document"
        for kind, count in found.items():
            self.stat_update(f"{kind} replaced", value=count)
        if total:
            self.stat_update("documents with personal information")
        document.text = text
        return True

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from super().run(data, rank, world_size)
        self.sites.mkdir(parents=True, exist_ok=True)
        counts = {site: [self._found[site], words] for site, words in self._words.items()}
        (self.sites / f"{rank:05d}.json").write_text(json.dumps(counts))


class FindSites(PipelineStep):
    """Adds up what all tasks counted, and writes the sites that go (one task)."""

    type, name = "📞 - PERSONAL", "sites"

    def __init__(self, plan: Plan, sites: Path) -> None:
        super().__init__()
        self.plan, self.sites = plan, sites

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        heavy: dict[str, list[str]] = {}
        for source, steps in self.plan.config.settings.items():
            settings = steps["sites"]
            assert isinstance(settings, Sites)
            totals: Counter[str] = Counter()
            words: Counter[str] = Counter()
            for number, piece in enumerate(self.plan.pieces):
                path = self.sites / f"{number:05d}.json"
                if piece.source == source and path.exists():
                    for site, (count, length) in json.loads(path.read_text()).items():
                        totals[site] += count
                        words[site] += length
            limit = settings.max_per_1000_words
            heavy[source] = [
                site
                for site, count in totals.items()
                if limit
                and count >= settings.min_found
                and 1000 * count / max(words[site], 1) > limit
            ]
        (self.sites / "heavy.json").write_text(json.dumps(heavy))
        yield from ()


class DropSites(BaseFilter):
    """Drops the documents of the sites that `FindSites` found."""

    name = "sites"

    def __init__(self, dropped: Dropped, source: str, sites: Path) -> None:
        super().__init__(dropped)
        self.source, self.sites = source, sites
        self._heavy: set[str] | None = None

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        if self._heavy is None:
            self._heavy = set(json.loads((self.sites / "heavy.json").read_text())[self.source])
        site = site_of(document, self.source)
        return (False, f"personal information, site {site}") if site in self._heavy else True


def personal_step(
    sites: Path, settings: Personal, dropped: Dropped, source: Source
) -> PipelineStep:
    return Scrub(settings, dropped, source.name, sites)


def sites_step(sites: Path, settings: Sites, dropped: Dropped, source: Source) -> PipelineStep:
    return DropSites(dropped, source.name, sites)


def site_of(document: Document, source: str) -> str:
    """The host that a page came from; the whole source where it has no addresses."""
    host: str | None = None
    with contextlib.suppress(ValueError):
        host = urlsplit(document.metadata.get("url", "")).hostname
    return host or source
