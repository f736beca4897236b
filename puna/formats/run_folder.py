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


def newest(path: Path) -> Path:
    """The newest checkpoint of a run that has a manifest, which is written last."""
    steps = [n for n in steps_saved(path) if (checkpoint_path(path, n) / MANIFEST).is_file()]
    return checkpoint_path(path, (steps or steps_saved(path))[-1])


def read(path: Path) -> Checkpoint:
    """The newest checkpoint; its path is the step's."""
    step = newest(path)
    if peft.detect(step):
        problem = f"the run trained a LoRA adapter: open its base, with --lora {path}"
        raise FormatError(path, step.name, 0, problem)
    checkpoint = sharded.read(step) if sharded.detect(step) else huggingface.read(step)
    note = f"this is {step.name}, the newest checkpoint of the run"
    return replace(checkpoint, notes=(*checkpoint.notes, note))
