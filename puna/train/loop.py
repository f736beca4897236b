"""The training loop that every stage shares."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from puna.lora import trained
from puna.model import Llama
from puna.parallel.recompute import RECOMPUTE
from puna.plan.layout import SCHEDULES, Layout
from puna.tokenizer import Vocabulary
from puna.train import log
from puna.train.checkpoints import RunState, restore
from puna.train.contracts import Evaluation, OfPairs, Stage, Trainee
from puna.train.guard import BadBatchError, objection
from puna.train.interrupts import deferred
from puna.train.log import Record
from puna.train.profile import Window
from puna.train.recovery import Recovery
from puna.train.schedule import cosine
from puna.train.watch import watching


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run optimises. Defaults are Llama 2's (arXiv 2307.09288, section 2.2).

    `dtype` is what matrix products are computed in, `float8` those of the blocks instead; weights
    and optimizer stay fp32. `parallel` is the layout of several processes (`plan.layout`), ""
    for one, `schedule` that of a pipeline in it; `recompute` is what the backward pass computes
    anew (`parallel.recompute`); `loss_chunk` of how many tokens there are logits at once, 0: of a
    whole piece. Intervals are in steps; an `eval_every` of 0 means only at the end, a
    `statistics_every` of 0 never.

    A batch is bad whose loss or gradient is not finite, or whose loss is `spike_deviations` robust
    standard deviations above the median of the last `spike_window` (0: none is a spike). Bad
    batches are skipped, `max_skips` in a row; the next makes the run go back to the last
    checkpoint, `max_rollbacks` times to the same one. With both 0 the first bad batch ends the run.
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
    spike_window: int = 128
    spike_deviations: float = 10.0
    max_skips: int = 5
    max_rollbacks: int = 3

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
            "steps", "grad_clip", "checkpoint_every", "keep_checkpoints",
            "spike_window",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("learning_rate", "spike_deviations", "max_skips", "max_rollbacks"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps must be between 0 and {self.steps} steps")


def make_optimizer(model: Llama, settings: Settings) -> torch.optim.AdamW:
    """AdamW over all weights that are trained; the paper names no exception from weight decay."""
    return torch.optim.AdamW(
        trained(model).values(),
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
    on_event: Callable[[Record], None] = lambda event: None,
    on_phase: Callable[[int, int, str], None] = lambda position, step, phase: None,
    complete: Callable[[Record], bool] = lambda record: False,
    profile: Window | None = None,
    chat_template: str | None = None,
) -> bool:
    """Trains in place, logging to `run`/log.jsonl and checkpointing as it goes.

    It goes on from the newest valid checkpoint of the run, if there is one; `on_start` gets the
    number of steps done before. Of several processes all call this; the one that leads logs, gives
    records of steps and of events (`train.log`), and profiles the steps of `profile` into
    `run`/profile. `on_phase` hears what is begun: where in the data, which step, and a phase of
    `parallel.watchdog`; `complete` adds to the record of a step before it is logged, and says
    whether the run ends with it, the same on all ranks. `chat_template` is for the checkpoints.
    Returns False if a signal stopped it early (its state is saved). Raises DivergedError where bad
    batches keep coming.
    """
    optimizer = make_optimizer(trainee.network, settings)
    reload = functools.partial(restore, run, trainee, optimizer)
    state = reload() or RunState(step=0, tokens=0)
    on_start(state.step)
    judge = functools.partial(
        objection, window=settings.spike_window, deviations=settings.spike_deviations
    )
    log_path = run / "log.jsonl"

    with contextlib.ExitStack() as stack:
        stop_requested = stack.enter_context(deferred())
        file = stack.enter_context(log.opened(log_path, state.position)) if trainee.leads else None
        stack.enter_context(_settled(trainee))
        watch = stack.enter_context(watching(trainee, optimizer, settings, run, profile))
        unlogged: OSError | None = None

        def tell(record: Record) -> None:
            nonlocal unlogged
            if file is not None:
                unlogged = log.write(file, record) or unlogged
                (on_event if "event" in record else on_record)(record)

        recovery = Recovery(
            run, reload, tell, max_skips=settings.max_skips, max_rollbacks=settings.max_rollbacks
        )
        while state.step < settings.steps:
            enter = functools.partial(on_phase, state.position, state.step + 1)
            enter("data")
            watch.begin(state.step + 1)
            batches = stage.micro_batches(state.position)
            enter("gradients")
            num_tokens = trainee.count(sum(stage.num_tokens(batch) for batch in batches))
            seen = num_tokens
            if isinstance(stage, OfPairs):
                seen = trainee.count(sum(stage.num_positions(batch) for batch in batches))
            watch.lap("data")
            rate = cosine(
                state.step,
                peak=settings.learning_rate,
                warmup=settings.warmup_steps,
                total=settings.steps,
                final_fraction=settings.final_fraction,
            )
            try:
                loss, grad_norm = optimizer_step(
                    trainee,
                    optimizer,
                    batches,
                    num_tokens,
                    rate=rate,
                    grad_clip=settings.grad_clip,
                    objection=functools.partial(judge, recent=state.recent_losses),
                )
            except BadBatchError as bad:
                enter("rollback")
                state = recovery.after(bad, state)
                continue
            recovery.applied()
            state = state.after(loss, seen, remember=settings.spike_window)
            record: Record = {"step": state.step, "loss": loss, "learning_rate": rate}
            record |= {"grad_norm": grad_norm, "tokens": state.tokens}
            record |= watch.end(seen, grad_norm)
            if state.num_skipped:
                record["num_skipped"] = state.num_skipped
            last = state.step == settings.steps
            if last or (settings.eval_every and state.step % settings.eval_every == 0):
                evaluated = functools.partial(enter, "evaluation")
                with torch.no_grad():
                    record |= stage.evaluate(Evaluation(trainee, evaluated))
            last |= complete(record)
            tell(record)
            stopping = trainee.agreed(stop_requested() or unlogged is not None)
            if last or stopping or state.step % settings.checkpoint_every == 0:
                enter("checkpoint")
                trainee.save(
                    run,
                    optimizer,
                    state,
                    vocabulary,
                    keep=settings.keep_checkpoints,
                    wait=last or stopping,
                    chat_template=chat_template,
                )
                recovery.saved()
            if unlogged is not None:
                raise ValueError(
                    f"{log_path} could not be written: {unlogged.strerror}; make room on that "
                    "disk, then go on with --resume"
                )
            if last:
                return True
            if stopping:
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
    objection: Callable[[float, float], str | None] = lambda loss, grad_norm: None,
) -> tuple[float, float]:
    """One optimizer step; mean loss per token and gradient norm before clipping.

    Raises BadBatchError where there is an `objection`, before the weights are touched.
    """
    loss = trainee.accumulate(batches, num_tokens)
    grad_norm = trainee.clip(grad_clip)
    reason = objection(loss, grad_norm)
    if reason is None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if reason is not None:
        raise BadBatchError(reason, loss, grad_norm)
    return loss, grad_norm


@contextlib.contextmanager
def _settled(trainee: Trainee) -> Iterator[None]:
    """Waits for what is being saved, however training ends; not where it was broken off at once."""
    try:
        yield
    finally:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            trainee.settle()
