"""A run's checkpoints: Hugging Face folders that also hold the optimizer and the step.

`checkpoints/step-00001000/` opens like any model folder. It is written beside its name and renamed
when whole, so the newest one that exists is complete unless the disk damaged it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.config import ModelConfig
from puna.formats import huggingface
from puna.formats.checkpoint import Checkpoint
from puna.formats.files import atomic_directory
from puna.formats.network import read_tensor, state_tensors, weights_as_checkpoint
from puna.formats.safetensors_file import read_safetensors, write_safetensors
from puna.model import Llama
from puna.tokenizer import Vocabulary

_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of each weight


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands: optimizer steps done and tokens trained on.

    `num_skipped` batches were left out besides, and `recent_losses` tell what the next batch's may
    be (`train.guard`).
    """

    step: int
    tokens: int
    num_skipped: int = 0
    recent_losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "recent_losses", tuple(self.recent_losses))  # JSON has lists

    @property
    def position(self) -> int:
        """Of the next batch in the data."""
        return self.step + self.num_skipped

    def after(self, loss: float, num_tokens: int, *, remember: int) -> RunState:
        """After one step more, whose loss and the last `remember` in all are remembered."""
        recent = (*self.recent_losses, loss)[-remember:]
        return RunState(self.step + 1, self.tokens + num_tokens, self.num_skipped, recent)


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08}"


def steps_saved(run: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-????????"))


def save(
    run: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    state: RunState,
    vocabulary: Vocabulary,
    *,
    keep: int,
) -> None:
    """Writes a checkpoint and drops all but the newest `keep` up to it.

    `moments` are the optimizer's, named as `moments_of` does. Later checkpoints are dropped too:
    they were damaged, or this step would have come after them.
    """
    path = checkpoint_path(run, state.step)
    for unfinished in path.parent.glob(".step-*.partial*"):
        shutil.rmtree(unfinished)  # what a kill in the middle of a save left behind
    with atomic_directory(path, overwrite=True) as folder:
        huggingface.write_into(weights_as_checkpoint(config, weights, path, vocabulary), folder)
        with open(folder / _OPTIMIZER, "xb") as file:
            write_safetensors(file, state_tensors(dict(moments)), {})
        (folder / _STATE).write_text(json.dumps(dataclasses.asdict(state)) + "\n")
    saved = steps_saved(run)
    kept = [step for step in saved if step <= state.step][-keep:]
    for step in saved:
        if step not in kept:
            shutil.rmtree(checkpoint_path(run, step))


def newest(run: Path) -> tuple[Checkpoint, RunState]:
    """The newest checkpoint of a run that is whole; ValueError if there is none."""
    failures = []
    for step in reversed(steps_saved(run)):
        path = checkpoint_path(run, step)
        try:
            checkpoint = huggingface.read(path)
            saved, _ = read_safetensors(path / _OPTIMIZER)
            if any(f"{key}.{name}" not in saved for name in checkpoint.tensors for key in _MOMENTS):
                raise ValueError(f"{path / _OPTIMIZER} lacks the state of some weights")
            return checkpoint, RunState(**json.loads((path / _STATE).read_text()))
        except (ValueError, OSError, TypeError) as error:
            failures.append(str(error))
    reason = f": {failures[0]}" if failures else ""
    raise ValueError(f"{run} has no checkpoint to resume from{reason}")


def load_optimizer(
    checkpoint: Checkpoint,
    model: Llama,
    optimizer: torch.optim.Optimizer,
    share: Callable[[Tensor, Tensor], Tensor] = lambda whole, weight: whole.to(weight.device),
) -> None:
    """Puts the saved moments and step counts back, bit for bit.

    `share` makes of a whole moment what belongs to a weight of the model.
    """
    saved, _ = read_safetensors(checkpoint.path / _OPTIMIZER)
    for name, weight in model.named_parameters():
        state: dict[str, Any] = {}
        for key in _MOMENTS:
            tensor = read_tensor(saved[f"{key}.{name}"])
            # AdamW counts steps in a 0-dimensional tensor; fused, it is where the weight is.
            state[key] = tensor[0].to(weight.device) if key == "step" else share(tensor, weight)
        optimizer.state[weight] = state


def moments_of(model: Llama, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What AdamW knows of each weight, by `step.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME`."""
    for name, weight in model.named_parameters():
        for key, tensor in optimizer.state[weight].items():
            yield f"{key}.{name}", tensor.reshape(1) if tensor.ndim == 0 else tensor
