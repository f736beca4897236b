"""Where a run's records go besides its log: TensorBoard, Weights & Biases.

A run that began with one goes on with it when it is resumed: what a sink needs for that is in the
run's folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.train.log import Record

Sink = Callable[["Record"], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """`package` is what it needs, `state` what a run's folder holds that has one; `open` gets the
    run, the steps done before and what the user said of it."""

    package: str
    state: str
    open: Callable[[Path, int, str], contextlib.AbstractContextManager[Sink]]


@contextlib.contextmanager
def _tensorboard(run: Path, steps_done: int, _: str) -> Iterator[Sink]:
    from torch.utils.tensorboard import SummaryWriter

    # Steps after the checkpoint that is gone on from will come again.
    with SummaryWriter(str(run / "tensorboard"), purge_step=steps_done + 1) as writer:

        def write(record: Record) -> None:
            for name, value in scalars(record).items():
                writer.add_scalar(name, value, record["step"])

        yield write


@contextlib.contextmanager
def _wandb(run: Path, steps_done: int, project: str) -> Iterator[Sink]:
    import wandb

    state = run / "wandb.json"
    if not state.is_file():
        state.write_text(json.dumps({"project": project, "id": secrets.token_hex(4)}) + "\n")
    saved = json.loads(state.read_text())
    try:
        session = wandb.init(
            project=saved["project"],
            id=saved["id"],
            name=run.resolve().name,
            dir=str(run),
            resume="allow",
            config=json.loads((run / "config.json").read_text()),
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.errors.Error as error:
        raise ValueError(
            f"Weights & Biases: {error}; log in by: wandb login, or set WANDB_MODE=offline"
        ) from None
    with session:
        # Its own step only grows; a resumed run goes back to its checkpoint.
        session.define_metric("*", step_metric="step")
        yield lambda record: session.log({"step": record["step"]} | scalars(record))


SINKS: dict[str, Kind] = {
    "tensorboard": Kind("tensorboard", "tensorboard", _tensorboard),
    "wandb": Kind("wandb", "wandb.json", _wandb),
}


def chosen(run: Path, asked: Mapping[str, str]) -> dict[str, str]:
    """Those asked for and those that the run has, with what was said of each.

    ValueError where the package of one is missing.
    """
    found = {
        name: asked.get(name, "")
        for name, kind in SINKS.items()
        if name in asked or (run / kind.state).exists()
    }
    for name in found:
        package = SINKS[name].package
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:  # a folder of that name is none
            raise ValueError(f"--{name} needs {package}; install it by: pip install {package}")
    return found


@contextlib.contextmanager
def opened(run: Path, kinds: Mapping[str, str]) -> Iterator[tuple[Callable[[int], None], Sink]]:
    """Those that were `chosen`: what to call with the number of steps done before, and then with
    each record. Of several processes one has them."""
    sinks: list[Sink] = []
    with contextlib.ExitStack() as stack:

        def begin(steps_done: int) -> None:
            for name, said in kinds.items():
                sinks.append(stack.enter_context(SINKS[name].open(run, steps_done, said)))

        def write(record: Record) -> None:
            for sink in sinks:
                sink(record)

        yield begin, write


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record but its step, those of nested ones as "outer/inner"."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and (prefix or name != "step"):
            found[prefix + name] = value
    return found
