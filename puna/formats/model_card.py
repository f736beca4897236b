"""The model card of a Hugging Face folder: README.md, whose YAML head names model and licence.

https://huggingface.co/docs/hub/model-cards. Only the two keys are read and written, as one-line
texts; a text in double quotes is the same in YAML and in JSON.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

_FILE = "README.md"
_MAX_HEAD = 1 << 16  # bytes


def read_card(folder: Path) -> dict[str, str]:
    """The one-line texts of the card's head; none where there is no card, or no head."""
    if not (folder / _FILE).is_file():
        return {}
    with open(folder / _FILE, "rb") as file:
        lines = file.read(_MAX_HEAD).decode(errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    head: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key == key.strip():
            head[key] = _unquoted(value.strip())
    return head


def write_card(folder: Path, name: str, license: str) -> None:
    """Writes the card of a model that has a name or a licence."""
    head = {"license": license, "model_name": name}
    lines = [f"{key}: {_quoted(value)}" for key, value in head.items() if value]
    if lines:
        text = "\n".join(["---", *lines, "---", "", *([f"# {name}", ""] if name else [])])
        (folder / _FILE).write_text(text, encoding="utf-8")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        with contextlib.suppress(ValueError):
            return str(json.loads(value))
    return value.strip("'")
