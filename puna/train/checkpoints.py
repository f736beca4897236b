"""A run's checkpoints: written by one process, found, checked and read back by any number.

`checkpoints/step-00001000/` of one process is a Hugging Face folder that also holds the optimizer;
of several (`sharded_saves.py`) each rank's pieces. Both have a manifest (`formats.manifest`) and
open like any model, and either is read in any layout.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from puna import lora
from puna.formats import huggingface
from puna.formats.adapters import peft
from puna.formats.manifest import Manifest, file_facts, first_damage, read_manifest
from puna.formats.names import HUGGINGFACE
from puna.formats.network import state_tensors, weights_as_checkpoint
from puna.formats.pieces import Pieced, find_pieces, put_together
from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.formats.safetensors_file import write_safetensors
from puna.formats.sharded import shapes_of
from puna.heads import heads_of
from puna.model import Llama
from puna.parallel.fsdp import Box, local
from puna.tokenizer import Vocabulary
from puna.train.commit import CheckpointError, begin, commit, discard, flush_file, unsaved

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of each weight
_OPTIMIZER = "optimizer"  # what the names of its files begin with
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}
_T = TypeVar("_T")


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


class Restorable(Protocol):
    """What of `contracts.Trainee` is needed to read a checkpoint."""

    @property
    def network(self) -> Llama: ...

    @property
    def rank(self) -> int: ...

    def everyone(self, value: _T) -> list[_T]: ...

    def box(self, weight: Tensor) -> Box: ...

    def settle(self) -> None: ...


def save(
    run: Path,
    model: Llama,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    vocabulary: Vocabulary,
    *,
    keep: int,
    chat_template: str | None = None,
) -> None:
    """Writes one process's checkpoint and drops all but the newest `keep` up to it.

    CheckpointError where the disk does not take it; what was there before is there then.
    """
    path = checkpoint_path(run, state.step)
    try:
        folder = begin(path)
        if lora.layers_of(model):
            _write_adapter(model, folder)
        else:
            weights = dict(model.named_parameters())
            checkpoint = weights_as_checkpoint(model.config, weights, path, vocabulary)
            checkpoint = dataclasses.replace(checkpoint, chat_template=chat_template)
            huggingface.write_into(checkpoint, folder)
        with open(folder / f"{_OPTIMIZER}.safetensors", "xb") as file:
            write_safetensors(file, state_tensors(dict(moments_of(model, optimizer))), {})
        files = {}
        for written in folder.iterdir():
            flush_file(written)
            files[written.name] = file_facts(written)
        commit(path, Manifest(model.config, dataclasses.asdict(state), files), keep=keep)
    except OSError as error:
        discard(path)
        raise unsaved(path, error) from None
    except BaseException:
        discard(path)
        raise


def _write_adapter(model: Llama, folder: Path) -> None:
    """The pairs, as PEFT has them, and beside them the heads that are trained too."""
    layers = lora.layers_of(model)
    pairs = {
        name: state_tensors({"a": layer.lora_a, "b": layer.lora_b})
        for name, layer in layers.items()
    }
    settings = next(iter(layers.values())).settings
    peft.write_into(folder, pairs, rank=settings.rank, alpha=settings.alpha)
    names = {f"{head}.weight" for head in heads_of(model)}
    heads = {name: weight for name, weight in lora.trained(model).items() if name in names}
    if heads:
        with open(folder / "heads.safetensors", "xb") as file:
            write_safetensors(file, state_tensors(heads), {})


def restore(run: Path, trainee: Restorable, optimizer: torch.optim.Optimizer) -> RunState | None:
    """Loads the newest valid checkpoint into a trainee and its optimizer; where the run stood then.

    For a resume and a rollback alike, in any layout. All ranks call it: they wait for what is being
    saved, share the checking of sizes and checksums and agree on the verdict; each reads only the
    bytes of its own share. A damaged checkpoint is named on stderr, and the one before is taken.
    None where the run has no checkpoint; CheckpointError where all are damaged.
    """
    trainee.settle()
    listed = trainee.everyone(steps_saved(run))
    problems: list[str] = []
    for step in reversed(listed[0]):
        path = checkpoint_path(run, step)

        def check(path: Path = path) -> None:
            verify(path, trainee.rank, len(listed))

        def read(path: Path = path) -> None:
            _fill(path, trainee, optimizer)

        problem = _first_problem(trainee, check) or _first_problem(trainee, read)
        if not problem:
            return run_state(read_manifest(path))
        problems.append(problem)
        if trainee.rank == 0:
            print(f"note: {path.name} is damaged and passed over: {problem}", file=sys.stderr)
    if problems:
        raise CheckpointError(f"{run} has no checkpoint to resume from: {problems[0]}")
    return None


def verify(path: Path, rank: int = 0, num_ranks: int = 1) -> RunState:
    """Holds this rank's share of a checkpoint's files against its manifest; ValueError says what is
    damaged.
    """
    manifest = read_manifest(path)
    state = run_state(manifest)
    if path != checkpoint_path(path.parent.parent, state.step):
        raise ValueError(f"{path} has the manifest of step {state.step}")
    # The largest are dealt out first, so that ranks have as much to read.
    names = sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name))
    if damage := first_damage(path, manifest.files, names[rank::num_ranks]):
        raise ValueError(damage)
    return state


def run_state(manifest: Manifest) -> RunState:
    """ValueError where a field is unknown, or missing and without a default."""
    try:
        return RunState(**manifest.state)
    except TypeError as error:
        raise ValueError(f"the checkpoint's state does not fit this version: {error}") from None


def moments_of(model: Llama, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What AdamW knows of each weight, by `step.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME`."""
    for name, weight in lora.trained(model).items():
        for key, tensor in optimizer.state[weight].items():
            yield f"{key}.{name}", tensor.reshape(1) if tensor.ndim == 0 else tensor


def _first_problem(trainee: Restorable, action: Callable[[], None]) -> str:
    """What is wrong for the first rank for which something is; "" where nothing is for any."""
    problem = ""
    try:
        action()
    except (ValueError, OSError) as error:
        problem = str(error)
    return next(filter(None, trainee.everyone(problem)), "")


@torch.no_grad()
def _fill(path: Path, trainee: Restorable, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's weights, moments and step counts where they belong, bit for bit."""
    manifest, network = read_manifest(path), trainee.network
    if manifest.model != network.config:
        raise ValueError(f"{path} is of a model of another shape than the run's config.json says")
    trained = lora.trained(network)
    pairs = {name: tuple(weight.shape) for name, weight in trained.items()}
    saved = saved_tensors(path, manifest, pairs if lora.layers_of(network) else None)
    if missing := [name for name in trained if name not in saved]:
        raise ValueError(f"{path} lacks {missing[0]}, which this run trains")
    for name, weight in trained.items():
        box = trainee.box(weight)
        local(weight).copy_(_read(saved[name], box, weight.dtype))
        state: dict[str, Any] = {}
        for key in _MOMENTS:
            tensor = saved[f"{key}.{name}"]
            if key == "step":
                # AdamW counts steps in a 0-dimensional tensor; fused, it is where the weight is.
                count = _read(tensor, Box((0,), (1,)), torch.float32)
                state[key] = count[0].to(weight.device)
            else:
                state[key] = torch.zeros_like(weight)
                local(state[key]).copy_(_read(tensor, box, weight.dtype))
        optimizer.state[weight] = state


def saved_tensors(
    path: Path, manifest: Manifest, pairs: Mapping[str, tuple[int, ...]] | None = None
) -> Mapping[str, Pieced]:
    """A checkpoint's weights by Meta's names, and moments as `moments_of` names them.

    Of an adapter's the `pairs`, by their names in the network and with their shapes.
    """
    files = [path / name for name in sorted(manifest.files) if name.endswith(".safetensors")]
    found = find_pieces(
        files, lambda name: HUGGINGFACE.canonical(name) or peft.in_network(name) or name
    )
    shapes = dict(pairs) if pairs is not None else shapes_of(manifest.model, found)
    moments = {
        f"{key}.{name}": (1,) if key == "step" else shape
        for key in _MOMENTS
        for name, shape in shapes.items()
    }
    return put_together(found, shapes | moments, path)


def _read(tensor: Pieced, box: Box, dtype: torch.dtype) -> Tensor:
    """A box of a saved tensor; ValueError where it was saved in another precision."""
    if _DTYPES.get(tensor.dtype) != dtype:
        raise ValueError(f"{tensor.name} was saved as {tensor.dtype}, and is trained as {dtype}")
    if 0 in box.shape:
        return torch.empty(box.shape, dtype=dtype)
    return torch.from_numpy(tensor.read(box.begin, box.shape)).view(dtype)
