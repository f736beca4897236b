"""A training run's folder: it opens as the newest checkpoint in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from puna.formats import huggingface, sharded
from puna.formats.adapters import peft
from puna.formats.checkpoint import Checkpoint
from puna.formats.errors import FormatError
from puna.formats.manifest import MANIFEST

NAME = "run"
_FOLDER = "checkpoints"


def checkpoint_path(run: Path, step: int) -> Path:
    return run / _FOLDER / f"step-{step:08}"


def steps_saved(run: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    names = (path.name[5:] for path in (run / _FOLDER).glob("step-????????"))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def detect(path: Path) -> bool:
    return path.is_dir() and (path / _FOLDER).is_dir() and bool(steps_saved(path))


def read(path: Path) -> Checkpoint:
    """The newest checkpoint that has a manifest, which is written last; its path is the step's."""
    steps = [n for n in steps_saved(path) if (checkpoint_path(path, n) / MANIFEST).is_file()]
    newest = checkpoint_path(path, (steps or steps_saved(path))[-1])
    if peft.detect(newest):
        problem = f"the run trained a LoRA adapter: open its base, with --lora {newest}"
        raise FormatError(path, newest.name, 0, problem)
    checkpoint = sharded.read(newest) if sharded.detect(newest) else huggingface.read(newest)
    note = f"this is {newest.name}, the newest checkpoint of the run"
    return replace(checkpoint, notes=(*checkpoint.notes, note))
