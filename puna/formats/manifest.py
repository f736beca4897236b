"""checkpoint.json: what a run's checkpoint is and which files it consists of. It is written last.

It has the model's shape, where the run stood, and of each other file its size and SHA-256; a
checksum of its own covers all of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.config import ModelConfig
from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.json_text import JsonObject, read_json

MANIFEST = "checkpoint.json"
_KIND, _VERSION = "puna checkpoint", 1
_BLOCK = 1 << 22  # bytes that are hashed at once


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file's size in bytes and the SHA-256 of all of them, in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`state` is the run's own (`train.checkpoints.RunState`), `files` what lies beside."""

    model: ModelConfig
    state: Mapping[str, Any]
    files: Mapping[str, FileFacts]

    def to_json(self) -> str:
        values: dict[str, Any] = {
            "kind": _KIND,
            "version": _VERSION,
            "state": dict(self.state),
            "model": self.model.to_dict(),
            "files": {name: asdict(facts) for name, facts in sorted(self.files.items())},
        }
        return json.dumps(values | {"checksum": _checksum(values)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint's folder; FormatError if it is damaged or of another version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FormatError(folder, MANIFEST, 0, "the folder lacks it: the checkpoint is not whole")
    values = read_json(path)
    if values.get("kind") != _KIND or values.get("version") != _VERSION:
        raise values.error("kind", f"it is no {_KIND} of version {_VERSION}")
    content = {key: value for key, value in values.items() if key != "checksum"}
    try:
        checksum = _checksum(content)
    except RecursionError:
        raise values.error("checksum", "it is nested too deep") from None
    if values.get("checksum") != checksum:
        raise values.error("checksum", "it does not fit the rest: the file was changed or damaged")
    state, model = values.get("state"), values.get("model")
    if not isinstance(state, dict) or not isinstance(model, dict):
        raise values.error("state", "state and model are not objects")
    try:
        config = ModelConfig.from_dict(model)
    except (ValueError, TypeError) as error:
        raise values.error("model", str(error)) from None
    return Manifest(config, state, _files(values))


def first_damage(folder: Path, files: Mapping[str, FileFacts], names: Iterable[str]) -> str:
    """What is wrong with the first of the named files that is not as the manifest says; "" if all
    are. Sizes first, which cost nothing; then every byte is read.
    """
    names = list(names)
    for name in names:
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != files[name].bytes:
            return f"{path} has {path.stat().st_size} bytes of {files[name].bytes}"
    for name in names:
        if file_facts(folder / name) != files[name]:
            return f"{folder / name} does not have its checksum: it was damaged"
    return ""


def file_facts(path: Path) -> FileFacts:
    """Reads a whole file."""
    file, digest = DataFile(path), hashlib.sha256()
    for begin in range(0, file.size, _BLOCK):
        digest.update(file.read(begin, min(begin + _BLOCK, file.size)).data)
    return FileFacts(file.size, digest.hexdigest())


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _files(values: JsonObject) -> dict[str, FileFacts]:
    files = values.get("files")
    if not isinstance(files, dict):
        raise values.error("files", "it is not an object")
    found = {}
    for name, facts in files.items():
        # A name from a file that others wrote must stay in this folder.
        if Path(name).name != name or name in ("", "..", MANIFEST) or "\0" in name:
            raise values.error("files", f"it names a file outside its folder: {name!r}")
        try:
            found[name] = FileFacts(**facts)
        except TypeError:
            raise values.error("files", f"{name} has no size and checksum") from None
        if type(found[name].bytes) is not int or not isinstance(found[name].sha256, str):
            raise values.error("files", f"{name} has no size and checksum")
    return found
