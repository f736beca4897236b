"""GGUF models cut into files, `NAME-00001-of-00003.gguf`: any of them opens all.

Each part is a GGUF file with the keys `split.no` (from 0), `split.count` and
`split.tensors.count`; all other keys stand in the first. llama.cpp, tools/gguf-split.
"""

from __future__ import annotations

import re
from pathlib import Path

from puna.formats.checkpoint import LazyTensor
from puna.formats.gguf_file import Header, read_header, read_tensors

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def read_whole(path: Path) -> tuple[Header, dict[str, LazyTensor]]:
    """The header with the model's keys, and the tensors of all parts, by the file's names.

    Raises FormatError where a part is missing, damaged, or belongs to another model.
    """
    header = read_header(path)
    if header.metadata.get("split.count", 1) in (0, 1):
        return header, read_tensors(header)
    parts = _read_parts(header)
    tensors: dict[str, LazyTensor] = {}
    for part in parts:
        for name, tensor in read_tensors(part).items():
            if name in tensors:
                raise part.error(name, "this tensor is in an earlier part too")
            tensors[name] = tensor
    total = parts[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        problem = f"it says {total} tensors, the {len(parts)} parts hold {len(tensors)}"
        raise parts[0].error("split.tensors.count", problem)
    return parts[0], tensors


def _read_parts(opened: Header) -> list[Header]:
    path, count = opened.file.path, opened.metadata["split.count"]
    match = _NAME.fullmatch(path.name)
    if match is None or type(count) is not int or int(match[3]) != count:
        problem = (
            f"the file is one of {count} parts, but its name does not end in "
            "-00001-of-NNNNN.gguf for that many, by which the others are found"
        )
        raise opened.error("split.count", problem)
    parts = []
    for number in range(count):
        sibling = path.with_name(f"{match[1]}-{number + 1:05}-of-{count:05}.gguf")
        if not sibling.is_file():
            raise opened.error("split.count", f"part {number + 1}, {sibling.name}, is missing")
        part = opened if sibling == path else read_header(sibling)
        if part.metadata.get("split.no") != number:
            problem = f"it is {part.metadata.get('split.no')!r}, in part {number + 1} of {count}"
            raise part.error("split.no", problem)
        for key in ("split.count", "split.tensors.count"):
            if part.metadata.get(key) != opened.metadata.get(key):
                problem = f"it differs between {path.name} and {sibling.name}"
                raise part.error(key, problem)
        parts.append(part)
    return parts
