"""The training loop that every stage shares."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from puna.formats.checkpoint import Checkpoint
from puna.model import Llama
from puna.tokenizer import Vocabulary
from puna.train import checkpoints
from puna.train.checkpoints import RunState
from puna.train.interrupts import deferred
from puna.train.schedule import cosine

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run optimises. Defaults are Llama 2's (arXiv 2307.09288, section 2.2).

    `dtype` is what matrix products are computed in; weights and optimizer stay fp32. Intervals
    are in steps; an `eval_every` of 0 means only at the end.
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
    device: str = "cpu"
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.dtype not in ("bf16", "fp32"):
            raise ValueError(f"dtype is bf16 or fp32, not {self.dtype!r}")
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

    def num_tokens(self, batch: Tensor) -> int:
        """Tokens of a piece that the loss sums over."""
        ...

    def evaluate(self, loss: Callable[[Tensor], Tensor]) -> Record:
        """Metrics on held-out data, with `loss` as the training step computes it."""
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
    model: Llama,
    stage: Stage,
    settings: Settings,
    run: Path,
    vocabulary: Vocabulary,
    *,
    resume: tuple[Checkpoint, RunState] | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> bool:
    """Trains `model` in place, logging to `run`/log.jsonl and checkpointing as it goes.

    `resume` is the checkpoint (`checkpoints.newest`) that `model` was loaded from, to go on from.
    Returns False if a signal stopped it early (its state is saved). Raises DivergedError when the
    loss or the gradient is not finite, before the weights are touched.
    """
    optimizer = make_optimizer(model, settings)
    state = RunState(step=0, tokens=0)
    if resume is not None:
        checkpoint, state = resume
        checkpoints.load_optimizer(checkpoint, model, optimizer)
    forward = torch.compile(model) if settings.compile else model

    def loss_of(batch: Tensor) -> Tensor:
        with _autocast(settings):
            return stage.loss(forward, model, batch.to(settings.device))

    def save() -> None:
        checkpoints.save(run, model, optimizer, state, vocabulary, keep=settings.keep_checkpoints)

    with _log(run / "log.jsonl", state.step) as log, deferred() as stop_requested:
        for step in range(state.step, settings.steps):
            started = time.perf_counter()
            batches = stage.micro_batches(step)
            num_tokens = sum(stage.num_tokens(batch) for batch in batches)
            rate = cosine(
                step,
                peak=settings.learning_rate,
                warmup=settings.warmup_steps,
                total=settings.steps,
                final_fraction=settings.final_fraction,
            )
            loss, grad_norm = _step(model, optimizer, settings, loss_of, batches, num_tokens, rate)
            state = RunState(step + 1, state.tokens + num_tokens)
            record: Record = {"step": state.step, "loss": loss, "learning_rate": rate}
            record |= {"grad_norm": grad_norm, "tokens": state.tokens}
            record["tokens_per_second"] = num_tokens / (time.perf_counter() - started)
            last = state.step == settings.steps
            if last or (settings.eval_every and state.step % settings.eval_every == 0):
                with torch.no_grad():
                    record |= stage.evaluate(loss_of)
            log.write(json.dumps(record) + "\n")
            log.flush()
            on_record(record)
            stopping = stop_requested()
            if last or stopping or state.step % settings.checkpoint_every == 0:
                save()
            if stopping and not last:
                return False
    return True


def _step(
    model: Llama,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    loss_of: Callable[[Tensor], Tensor],
    batches: list[Tensor],
    num_tokens: int,
    rate: float,
) -> tuple[float, float]:
    """One optimizer step; mean loss per token and gradient norm before clipping."""
    loss = 0.0
    for batch in batches:
        piece = loss_of(batch) / num_tokens
        piece.backward()
        loss += piece.item()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip).item()
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


def _autocast(settings: Settings) -> contextlib.AbstractContextManager[Any]:
    if settings.dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16)


@contextlib.contextmanager
def _log(path: Path, steps_done: int) -> Iterator[TextIO]:
    """The log, opened to append; what it says of steps after the checkpoint is dropped."""
    kept = [record for record in read_log(path) if record["step"] <= steps_done]
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    temporary.replace(path)
    with open(path, "a") as file:
        yield file


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
