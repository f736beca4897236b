"""LoRA adapters: `open_adapter` reads any kind, `merged` adds one to a checkpoint.

`read_pairs` is for an engine that adds them as it runs.
"""

from __future__ import annotations

from pathlib import Path

from puna.formats.adapters import ggla, gguf, peft
from puna.formats.adapters.adapter import Adapter, LowRank
from puna.formats.adapters.fit import Pair, added, read_pairs
from puna.formats.adapters.merge import merged
from puna.formats.errors import FormatError, printable

__all__ = ["Adapter", "LowRank", "Pair", "added", "merged", "open_adapter", "read_pairs"]

_READERS = (peft, gguf, ggla)


def open_adapter(path: Path) -> Adapter:
    """Opens a PEFT folder, a GGUF adapter or a `ggla` file, reading no weight.

    Raises ValueError if it is not there, of no known kind, damaged, or more than a plain LoRA.
    """
    try:
        if not path.exists():
            raise ValueError(f"no such file or folder: {path}")
        for reader in _READERS:
            if reader.detect(path):
                return reader.read(path)
        problem = "is no LoRA adapter: no folder with adapter_config.json, no GGUF or ggla file"
        raise FormatError(path, "adapter", 0, problem)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except FormatError:
        raise
    except ValueError as error:
        raise ValueError(printable(str(error))) from error  # names in it may come from the file
