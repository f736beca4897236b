"""Every file format a Llama ships in: `open_checkpoint` reads any, `save_checkpoint` writes any."""

from __future__ import annotations

from pathlib import Path

from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.formats.saving import save_checkpoint
from puna.formats.table import FORMATS, Format
from puna.tokenizer import Vocabulary

__all__ = [
    "FORMATS",
    "Checkpoint",
    "Format",
    "FormatError",
    "LazyTensor",
    "open_checkpoint",
    "save_checkpoint",
]


def open_checkpoint(
    path: Path, vocabulary: Vocabulary | None = None, **options: str | None
) -> Checkpoint:
    """Opens a file or folder of any format, reading no weight; `vocabulary` replaces its own.

    `options` other than None go to the format's reader. Raises FormatError if it is of no known
    format, damaged or not a Llama, ValueError if it is not there or has no such option.
    """
    try:
        if not path.exists():
            raise ValueError(f"no such file or folder: {path}")
        known = next((row for row in FORMATS.values() if row.detect(path)), None)
        if known is None:
            kinds = "; ".join(f"{row.name} ({row.looks_like})" for row in FORMATS.values())
            problem = f"the file or folder is of no known format; known are {kinds}"
            raise FormatError(path, "format", 0, problem)
        given = {key: value for key, value in options.items() if value is not None}
        if unknown := sorted(set(given) - set(known.read_options)):
            raise ValueError(f"{path} is {known.name}, to which {', '.join(unknown)} means nothing")
        checkpoint = known.read(path, **given)
        if vocabulary is None:
            return checkpoint
        checkpoint = checkpoint.with_vocabulary(vocabulary)
        checkpoint.tokenizer()  # says now if it does not belong to the weights
        return checkpoint
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else path
        problem = f"it cannot be read: {error.strerror or error}"
        raise FormatError(where, "file", 0, problem) from None
