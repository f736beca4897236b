"""The training loop that every stage shares."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

import torch
from torch import Tensor

from puna.model import Llama
from puna.parallel.fsdp import Box
from puna.parallel.layout import SCHEDULES, Layout
from puna.parallel.recompute import RECOMPUTE
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import RunState, restore
from puna.train.interrupts import deferred
from puna.train.profile import Window
from puna.train.schedule import cosine
from puna.train.watch import watching

Record = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run optimises. Defaults are Llama 2's (arXiv 2307.09288, section 2.2).

    `dtype` is what matrix products are computed in, `float8` those of the blocks instead; weights
    and optimizer stay fp32. `parallel` is the layout of several processes (`parallel.layout`), ""
    for one, `schedule` that of a pipeline in it; `recompute` is what the backward pass computes
    anew (`parallel.recompute`); `loss_chunk` of how many tokens there are logits at once, 0: of a
    whole piece. Intervals are in steps; an `eval_every` of 0 means only at the end, a
    `statistics_every` of 0 never.
    """

    steps: int
    learning_rate: float = 3e-4
    warmup_steps: int = 2000
    final_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-5
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    dtype: str = "bf16"
    compile: bool = False
    float8: bool = False
    device: str = "cpu"
    parallel: str = ""
    schedule: str = "1f1b"
    recompute: str = "none"
    loss_chunk: int = 0
    eval_every: int = 0
    statistics_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.dtype not in ("bf16", "fp32"):
            raise ValueError(f"dtype is bf16 or fp32, not {self.dtype!r}")
        if self.recompute not in RECOMPUTE:
            raise ValueError(f"recompute is {', '.join(RECOMPUTE)}, not {self.recompute!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.float8 and self.dtype != "bf16":
            raise ValueError(f"float8 is for products that would be in bf16, not {self.dtype}")
        for name in ("loss_chunk", "eval_every", "statistics_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        Layout.parse(self.parallel)
        for name in (
            "steps", "learning_rate", "grad_clip", "checkpoint_every", "keep_checkpoints",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps must be between 0 and {self.steps} steps")


class Stage(Protocol):
    """What differs between stages."""

    def micro_batches(self, step: int) -> list[Tensor]:
        """The batch of a step, in pieces that fit the memory; a function of `step` alone."""
        ...

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        """Sum of the loss over a piece. `model` is `network`, perhaps compiled."""
        ...

    def windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of a piece, for several ranks to share: token ids and targets (B, T), and a mask
        (B, 1, T, T) of what may look at what, None where that is plainly causal."""
        ...

    def num_tokens(self, batch: Tensor) -> int:
        """Tokens of a piece that the loss sums over."""
        ...

    def evaluate(self, loss: Callable[[Tensor], Tensor]) -> Record:
        """Metrics on held-out data, with `loss` as the training step computes it."""
        ...


class Trainee(Protocol):
    """A network being trained, by one process (`single.py`) or several (`several.py`)."""

    @property
    def network(self) -> Llama:
        """The network, or this rank's part of it, for the optimizer."""
        ...

    @property
    def rank(self) -> int:
        """Which of the processes this is."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this process keeps the log; one does."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def num_ranks(self) -> int:
        """How many processes train together."""
        ...

    def total(self, *values: float) -> list[float]:
        """The sums of values over all ranks."""
        ...

    def largest(self, value: float) -> float:
        """The largest value of any rank."""
        ...

    def count(self, num_tokens: int) -> int:
        """The number of tokens over all ranks, where this one has `num_tokens`."""
        ...

    def agreed(self, stop: bool) -> bool:
        """Whether any rank is to stop."""
        ...

    def accumulate(self, batches: list[Tensor], num_tokens: int) -> float:
        """Adds up the gradients of the mean loss over `num_tokens`, all ranks'; that loss."""
        ...

    def loss(self, batch: Tensor) -> Tensor:
        """Sum of the loss over a piece, as the training step computes it."""
        ...

    def clip(self, limit: float) -> float:
        """Scales the gradients to a norm of `limit` at most; the norm of all of them before."""
        ...

    def save(
        self,
        run: Path,
        optimizer: torch.optim.Optimizer,
        state: RunState,
        vocabulary: Vocabulary,
        *,
        keep: int,
        wait: bool,
    ) -> None:
        """Begins a checkpoint of the run, and may go on writing it unless it is to `wait`.

        CheckpointError where this one, or the one begun before, could not be written.
        """
        ...

    def settle(self) -> None:
        """Waits until what is being saved is committed; CheckpointError as `save`."""
        ...

    def everyone(self, value: _T) -> list[_T]:
        """Each rank's value, by rank."""
        ...

    def box(self, weight: Tensor) -> Box:
        """Which part of a whole weight this process has, where `weight` is what it has."""
        ...


class DivergedError(ValueError):
    """The loss is no longer a number; the last good checkpoint is kept."""


def make_optimizer(model: Llama, settings: Settings) -> torch.optim.AdamW:
    """AdamW over all weights; the paper names no exception from weight decay."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def train(
    trainee: Trainee,
    stage: Stage,
    settings: Settings,
    run: Path,
    vocabulary: Vocabulary,
    *,
    on_start: Callable[[int], None] = lambda step: None,
    on_record: Callable[[Record], None] = lambda record: None,
    profile: Window | None = None,
) -> bool:
    """Trains in place, logging to `run`/log.jsonl and checkpointing as it goes.

    It goes on from the newest valid checkpoint of the run, if there is one; `on_start` gets the
    number of steps done before. Of several processes all call this; the one that leads logs and
    gives records, and profiles the steps of `profile` into `run`/profile. Returns False if a signal
    stopped it early (its state is saved). Raises DivergedError when the loss or the gradient is not
    finite, before the weights are touched.
    """
    optimizer = make_optimizer(trainee.network, settings)
    state = restore(run, trainee, optimizer) or RunState(step=0, tokens=0)
    on_start(state.step)
    log_path = run / "log.jsonl" if trainee.leads else None

    watched = watching(trainee, optimizer, settings, run, profile)
    with (
        _log(log_path, state.step) as log,
        deferred() as stop_requested,
        _settled(trainee),
        watched as watch,
    ):
        for step in range(state.step, settings.steps):
            watch.begin(step + 1)
            batches = stage.micro_batches(step)
            num_tokens = trainee.count(sum(stage.num_tokens(batch) for batch in batches))
            watch.lap("data")
            rate = cosine(
                step,
                peak=settings.learning_rate,
                warmup=settings.warmup_steps,
                total=settings.steps,
                final_fraction=settings.final_fraction,
            )
            loss, grad_norm = optimizer_step(
                trainee, optimizer, batches, num_tokens, rate=rate, grad_clip=settings.grad_clip
            )
            state = RunState(step + 1, state.tokens + num_tokens)
            record: Record = {"step": state.step, "loss": loss, "learning_rate": rate}
            record |= {"grad_norm": grad_norm, "tokens": state.tokens}
            record |= watch.end(num_tokens, grad_norm)
            last = state.step == settings.steps
            if last or (settings.eval_every and state.step % settings.eval_every == 0):
                with torch.no_grad():
                    record |= stage.evaluate(trainee.loss)
            unlogged = None
            if log is not None:
                unlogged = _unlogged(log, record)
                on_record(record)
            stopping = trainee.agreed(stop_requested() or unlogged is not None)
            if last or stopping or state.step % settings.checkpoint_every == 0:
                trainee.save(
                    run,
                    optimizer,
                    state,
                    vocabulary,
                    keep=settings.keep_checkpoints,
                    wait=last or stopping,
                )
            if unlogged is not None:
                raise ValueError(
                    f"{log_path} could not be written: {unlogged.strerror}; make room on that "
                    "disk, then go on with --resume"
                )
            if stopping and not last:
                return False
    return True


def optimizer_step(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    batches: list[Tensor],
    num_tokens: int,
    *,
    rate: float,
    grad_clip: float,
) -> tuple[float, float]:
    """One optimizer step; mean loss per token and gradient norm before clipping."""
    loss = trainee.accumulate(batches, num_tokens)
    grad_norm = trainee.clip(grad_clip)
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise DivergedError(
            f"training diverged: loss {loss}, gradient norm {grad_norm}; the last checkpoint is "
            "kept. Lower settings.learning_rate in the run's config.json and resume, or begin anew"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, grad_norm


@contextlib.contextmanager
def _settled(trainee: Trainee) -> Iterator[None]:
    """Waits for what is being saved, however training ends; not where it was broken off at once."""
    try:
        yield
    finally:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            trainee.settle()


@contextlib.contextmanager
def _log(path: Path | None, steps_done: int) -> Iterator[TextIO | None]:
    """The log, opened to append; what it says of steps after the checkpoint is dropped."""
    if path is None:
        yield None
        return
    kept = [record for record in read_log(path) if record["step"] <= steps_done]
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    temporary.replace(path)
    with open(path, "a") as file:
        yield file


def _unlogged(log: TextIO, record: Record) -> OSError | None:
    """Adds a line to the log; gives the error where the disk does not take it, for all to hear."""
    try:
        log.write(json.dumps(record) + "\n")
        log.flush()
    except OSError as error:
        return error
    return None


def read_log(path: Path) -> list[Record]:
    """The records of a run's log; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
