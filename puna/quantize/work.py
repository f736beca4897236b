"""The folder of a quantization run: what an interrupted one needs to go on with the same bits.

`run.json` says what is quantized and how; `hidden-NNN.npy` is what layer NNN sees, and
`layer-NNN.npz` its integers. A layer is done when its file is there; all are written beside their
name and renamed when whole.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from puna.quantize.grouped import Grouped

_IDENTITY = "run.json"
_DIGEST = "digest"  # of the weights that a layer's integers came from
_FIELDS = ("codes", "scales", "zeros", "groups")
_NUMBERS = ("bits", "group_size")


def open_work(folder: Path, identity: Mapping[str, Any]) -> None:
    """Begins a run in `folder`, or finds the one of the same `identity` (JSON values) there.

    ValueError, naming what differs, if another is there.
    """
    path = folder / _IDENTITY
    wanted = json.loads(json.dumps(identity))
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds other files; give a new folder to work in")
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(wanted, indent=2) + "\n"
        _write(path, lambda file: file.write(text.encode()))
        return
    try:
        found = json.loads(path.read_text())
    except ValueError:
        raise _damaged(path) from None
    keys = {*found, *wanted} if isinstance(found, dict) else {"everything"}
    differing = sorted(
        k for k in keys if not isinstance(found, dict) or found.get(k) != wanted.get(k)
    )
    if differing:
        raise ValueError(
            f"{folder} holds a run that differs in {', '.join(differing)}; go on as it began, or "
            "give another folder"
        )


def num_layers_done(folder: Path) -> int:
    """How many layers are done, from the first on."""
    layer = 0
    while _layer_path(folder, layer).exists():
        layer += 1
    return layer


def save_layer(folder: Path, layer: int, grouped: Mapping[str, Grouped], digest: str) -> None:
    """Marks a layer as done; `digest` is that of the weights it had."""
    arrays: dict[str, NDArray[Any]] = {_DIGEST: np.array(digest)}
    for name, matrix in grouped.items():
        for field in (*_FIELDS, *_NUMBERS):
            arrays[f"{name}/{field}"] = np.asarray(getattr(matrix, field))
    _write(_layer_path(folder, layer), lambda file: np.savez(file, allow_pickle=False, **arrays))


def load_layer(folder: Path, layer: int) -> tuple[dict[str, Grouped], str]:
    """What `save_layer` saved; ValueError if it is damaged."""
    path = _layer_path(folder, layer)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
            names = [key.removesuffix("/codes") for key in saved.files if key.endswith("/codes")]
            return {name: _grouped(saved, name) for name in names}, str(saved[_DIGEST])
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
        raise _damaged(path) from None


def _grouped(saved: Mapping[str, NDArray[Any]], name: str) -> Grouped:
    bits, group_size = (int(saved[f"{name}/{field}"]) for field in _NUMBERS)
    return Grouped(bits, group_size, *(saved[f"{name}/{field}"] for field in _FIELDS))


def load_grouped(folder: Path, name: str) -> Grouped:
    """One matrix of a finished run by its canonical name, `layers.3.attention.wq.weight`."""
    layer = int(name.split(".")[1])
    path = _layer_path(folder, layer)
    if not path.exists():
        raise ValueError(f"{path} is not there: the run has not come to {name}")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
            return _grouped(saved, name)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
        raise _damaged(path) from None


def save_hidden(
    folder: Path,
    layer: int,
    shape: tuple[int, ...],
    fill: Callable[[NDArray[Any]], None],
    dtype: str,
) -> None:
    """Writes what `layer` sees: `fill` gets the mapped array, so that it never is in memory."""
    path = hidden_path(folder, layer)
    partial = _partial(path)
    mapped = np.lib.format.open_memmap(partial, "w+", dtype=np.dtype(dtype), shape=shape)
    fill(mapped)
    mapped.flush()
    del mapped
    partial.replace(path)


def open_hidden(folder: Path, layer: int) -> NDArray[Any]:
    """What `layer` sees, mapped from disk; ValueError if it is not there or damaged."""
    path = hidden_path(folder, layer)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise _damaged(path) from None


def hidden_path(folder: Path, layer: int) -> Path:
    return folder / f"hidden-{layer:03}.npy"


def _layer_path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03}.npz"


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _write(path: Path, save: Callable[[BinaryIO], Any]) -> None:
    with open(_partial(path), "wb") as file:
        save(file)
        file.flush()
        os.fsync(file.fileno())
    _partial(path).replace(path)


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is missing or damaged; remove the folder and begin again")
