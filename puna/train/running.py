"""A prepared run of any stage, started or gone on with, in one process or several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from puna.data.prefetch import Prefetched
from puna.formats.run_folder import steps_saved
from puna.model import Llama
from puna.parallel.float8 import check_float8
from puna.parallel.place import HANG_TIMEOUT, Place, take_place
from puna.parallel.ranks import check_device
from puna.parallel.watchdog import watched
from puna.tokenizer import Vocabulary
from puna.train.contracts import Stage, Trainee
from puna.train.loop import train
from puna.train.run_config import RunConfig, read_vocabulary
from puna.train.single import Single
from puna.train.starting import Weights, make_trainee

Batches = Callable[[int], NDArray[np.int64]]
Check = Callable[[int, int], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Share:
    """What a process needs to know to make its batches: which data rank it is, of how many.

    `ahead` makes of a function of the position one whose next results are made meanwhile;
    `on_check` hears how much of its data is checked, of how much.
    """

    vocabulary: Vocabulary
    rank: int
    num_ranks: int
    ahead: Callable[[Batches], Batches]
    on_check: Check = lambda done, total: None


class BadDataError(ValueError):
    """What a stage is to train on is damaged, or does not fit: nothing was begun."""


def check_machine(device: str, float8: bool) -> None:
    """ValueError where this machine lacks the device, or it what float8 needs."""
    check_device(device)
    if float8:
        check_float8(torch.device(device))


def run_stage(
    run: Path,
    config: RunConfig,
    make_stage: Callable[[Share], Stage],
    weights: Weights,
    *,
    network: Callable[[], Llama] | None = None,
    heads: tuple[str, ...] = (),
    hang_timeout: float = HANG_TIMEOUT,
    on_check: Check = lambda done, total: None,
    **options: Any,
) -> bool:
    """Trains a prepared run; `options` are those of `train.loop.train`, `weights` the first ones,
    which are not asked for where a checkpoint replaces them; `heads` are the network's scalar
    heads. Where `network` makes one, that is trained instead, by one process.

    With a layout, each of its processes calls this. Where one of several does not move for
    `hang_timeout` seconds (0: however long), the others name it and end (`parallel.watchdog`);
    where one is gone they raise a LostError that names it. Raises BadDataError where one's data are
    not as they should be, of which `on_check` hears how far they are checked. Returns False if a
    signal stopped it early.
    """
    settings = config.settings
    check_machine(settings.device, settings.float8)
    with placed(config, hang_timeout) as (place, watch), contextlib.ExitStack() as stack:
        options |= watch

        def ahead(make: Batches) -> Batches:
            return stack.enter_context(contextlib.closing(Prefetched(make)))

        vocabulary = read_vocabulary(run)
        rank, num_ranks = 0, 1
        if place is not None:
            rank, num_ranks = place.data_rank, config.layout.num_data_ranks
        stage = _agreed(
            place, lambda: make_stage(Share(vocabulary, rank, num_ranks, ahead, on_check))
        )
        if network is not None:
            trainee: Trainee = Single(network(), stage, settings)
            return train(trainee, stage, settings, run, vocabulary, **options)
        resumed = of_the_first(place, bool(steps_saved(run)))
        first = None if resumed else weights
        trainee = make_trainee(config.model, settings, stage, place, first, heads)
        return train(trainee, stage, settings, run, vocabulary, **options)


@contextlib.contextmanager
def placed(
    config: RunConfig, hang_timeout: float, *, data: str = "data"
) -> Iterator[tuple[Place | None, dict[str, Any]]]:
    """This process's place in the run's layout, None where it is alone; and the `on_phase` of
    `train.loop.train` for the watch over the others, where there are any, to which making batches
    is the phase `data` of `parallel.beats`."""
    settings, num_ranks = config.settings, config.layout.num_ranks
    if not settings.parallel:
        yield None, {}
        return
    place = take_place(config.layout, settings.device, hang_timeout)
    if num_ranks == 1:
        yield place, {}
        return
    with watched(place.rank, num_ranks, timeout=hang_timeout) as watch:

        def enter(position: int, step: int, phase: str) -> None:
            watch.enter(position, step, data if phase == "data" else phase)

        yield place, {"on_phase": enter}


def of_the_first(place: Place | None, value: _T) -> _T:
    """The first rank's value: what is in files may look otherwise from another machine."""
    return value if place is None else place.everyone(value)[0]


def _agreed(place: Place | None, make: Callable[[], Stage]) -> Stage:
    """What `make` gives; what one rank finds wrong with its share of the data, all raise."""
    wrong = ""
    try:
        made = make()
    except ValueError as error:
        wrong = str(error)
    if said := [one for one in ([wrong] if place is None else place.everyone(wrong)) if one]:
        raise BadDataError(said[0])
    return made
