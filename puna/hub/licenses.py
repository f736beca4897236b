"""Licences that are accepted before their weights are downloaded, and that this was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from puna.catalog import find


@dataclass(frozen=True, slots=True)
class License:
    """`terms` is a summary for people, `notice` what redistributed copies must carry."""

    key: str
    title: str
    url: str
    terms: tuple[str, ...]
    notice: str


# By the name that a model card has for it. Source: https://ai.meta.com/llama/license/
LICENSES: Mapping[str, License] = {
    "llama2": License(
        key="llama2",
        title="LLAMA 2 Community License Agreement of July 18, 2023",
        url="https://ai.meta.com/llama/license",
        terms=(
            "You may use, reproduce, distribute and modify the model, also commercially.",
            "If the products of you and your affiliates had more than 700 million monthly active "
            "users in the month before July 18, 2023, you must ask Meta for a licence of its own.",
            "Your use must follow the Acceptable Use Policy (https://ai.meta.com/llama/use-policy).",
            "You may not use the model or its output to improve any other large language model, "
            "Llama 2 and its derivatives excluded.",
            "Copies that you pass on come with the agreement and the notice below.",
        ),
        notice="Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta "
        "Platforms, Inc. All Rights Reserved.",
    )
}


def license_of(repository: str, card: str) -> License | None:
    """The licence to accept for a repository whose card names `card`, None if there is none.

    Meta's repositories and the catalogued copies are known without a card.
    """
    known = find(repository)
    key = "llama2" if known is not None and known.family == "Llama 2" else card.lower()
    return LICENSES.get(key)


def is_accepted(license: License, file: Path) -> bool:
    """Whether `file` remembers that the user accepted `license`."""
    return license.key in _accepted(file)


def accept(license: License, file: Path) -> None:
    """Remembers it in `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    accepted = sorted({*_accepted(file), license.key})
    file.write_text(json.dumps({"accepted": accepted}, indent=2) + "\n", encoding="utf-8")


def _accepted(file: Path) -> list[str]:
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))["accepted"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged; remove it, and accept the licences again") from None
