"""Which files of a repository a model needs: one form of its weights, and what goes with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.ggml", "*.msgpack", "*.h5")
_NOT_WEIGHTS = ("tokenizer.bin", "training_args.bin", "optimizer.*", "scheduler.*", "*.index.json")
# Forms of whole models: the first that a repository has is taken, the others are left.
_FORMS: tuple[tuple[str, ...], ...] = (
    ("model.safetensors",),
    ("model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    ("adapter_model.safetensors",),
    ("gptq_model*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model-?????-of-?????.bin", "pytorch_model.bin.index.json"),
    ("adapter_model.bin",),
    ("consolidated.[0-9][0-9].pth",),
    ("*.safetensors",),
)
# Files that are a model each: which one is the user's choice.
_SINGLE = ("*.gguf", "*.ggml", "*.bin")
_COMPANIONS = (
    "config.json", "generation_config.json", "params.json", "adapter_config.json",
    "quantize_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "chat_template.*", "checklist.chk",
    "README.md", "LICENSE*", "USE_POLICY*", "Notice*", "NOTICE*",
)  # fmt: skip


class SeveralModelsError(ValueError):
    """Several files are a model each and none was chosen; `files` has them."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__("several models in one repository")
        self.files = files


def model_files(names: Iterable[str], pattern: str = "") -> list[str]:
    """What to download of a repository with these files: companions first, weights last.

    `pattern` is one file's name or has `*` in it; a part of a split file brings the others. An
    empty result means that nothing matches, or that there are no weights. SeveralModelsError if the
    choice is the user's.
    """
    present = sorted(names)
    top = [name for name in present if "/" not in name]
    weights = matching_files(present, pattern) if pattern else _best_form(top)
    if not weights:
        return []
    companions = [name for name in top if _matches(name, _COMPANIONS)]
    return [name for name in companions if name not in weights] + weights


def matching_files(names: Sequence[str], pattern: str) -> list[str]:
    """The names that `pattern` is or matches, and the other parts of those that are split."""
    stems = {_stem(name) for name in names if name == pattern or fnmatchcase(name, pattern)}
    return [name for name in names if _stem(name) in stems]


def first_files(names: Iterable[str]) -> list[str]:
    """Files that are a model each, by their first part where they are split."""
    first: dict[str, str] = {}
    for name in sorted(names):
        if is_single(name):
            first.setdefault(_stem(name), name)
    return list(first.values())


def missing_parts(names: Iterable[str]) -> list[str]:
    """The parts that the names of split files promise and that are not among them."""
    present = set(names)
    missing = set()
    for name in present:
        if part := _PART.fullmatch(name):
            for number in range(1, int(part["count"]) + 1):
                other = f"{part['stem']}-{number:05}-of-{part['count']}{part['suffix']}"
                missing.update({other} - present)
    return sorted(missing)


def is_single(name: str) -> bool:
    """Whether a file is a model by itself (GGUF, GGML, llama2.c), not a part of a folder."""
    return (
        _matches(name, _SINGLE)
        and is_weight(name)
        and not any(_matches(name, form) for form in _FORMS)
    )


def is_weight(name: str) -> bool:
    """Whether a file looks like weights, of any library."""
    return _matches(name, _WEIGHTS) and not _matches(name, _NOT_WEIGHTS)


def _best_form(names: Sequence[str]) -> list[str]:
    for form in _FORMS:
        found = [name for name in names if _matches(name, form)]
        if any(map(is_weight, found)):
            return found
    single = first_files(names)
    if len(single) > 1:
        raise SeveralModelsError(single)
    return matching_files(names, single[0]) if single else []


def _stem(name: str) -> str:
    part = _PART.fullmatch(name)
    return name if part is None else f"{part['stem']}-of-{part['count']}{part['suffix']}"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    base = name.rpartition("/")[2]
    return any(fnmatchcase(base, pattern) for pattern in patterns)
