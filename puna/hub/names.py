"""How a model on a hub is called: `OWNER/REPOSITORY[@REVISION][:FILE]`, or a catalogued name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from puna.catalog import find, present_repository

MAIN = "main"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", flags=re.ASCII)
# What git allows in a branch, less what no hub has; no part may be empty or begin with a dot.
_REVISION = re.compile(r"(?!.*\.\.)[\w+-][\w.+=-]*(/[\w+-][\w.+=-]*)*", flags=re.ASCII)
_GRAMMAR = "OWNER/REPOSITORY[@REVISION][:FILE]"


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, a branch, tag or commit of it, and perhaps one file (or a pattern with `*`)."""

    repository: str
    revision: str = MAIN
    file: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{self.repository}{revision}{self.file and ':' + self.file}"


def parse(text: str) -> HubName:
    """Reads a hub name; a catalogued name or a moved owner becomes the present repository.

    Raises ValueError for what is none, and for a catalogued model that was never released.
    """
    head, _, file = text.partition(":")
    owner_and_name, at, revision = head.partition("@")
    repository = present_repository(owner_and_name)
    if "/" not in repository and (known := find(repository)):
        if not known.repository:
            problem = f"is on no hub ({known.license})" if known.released else "was never released"
            raise ValueError(f"{known.name} {problem}")
        repository = known.repository
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"'{text}' names no model on a hub: write {_GRAMMAR}")
    if at and not _REVISION.fullmatch(revision):
        raise ValueError(f"'{text}': '{revision}' is no revision; write {_GRAMMAR}")
    return HubName(repository, revision or MAIN, file)
