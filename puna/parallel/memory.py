"""How much memory a rank of a layout needs, counted without the machines.

One process plays one rank of any number, with process groups that deliver nothing and tensors that
have shapes but no memory, and takes a whole optimizer step of the real code.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puna.config import ModelConfig
from puna.parallel.fsdp import local
from puna.parallel.part import Options, Part, cut_part
from puna.parallel.place import take_place
from puna.plan.layout import SCHEDULES, Layout, check_model


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank. `peak` is the most that there were at once, in a step's passes or update;
    `working` what of it is beside weights, gradients and optimizer: activations, gathered weights.
    """

    weights: int
    gradients: int
    optimizer: int
    peak: int

    @property
    def working(self) -> int:
        return self.peak - self.weights - self.gradients - self.optimizer


def count_memory(
    config: ModelConfig,
    layout: Layout,
    options: Options,
    *,
    micro_batch_size: int,
    loss_sum: Callable[[Tensor, Part, Tensor], Tensor],
    make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    num_pieces: int = 2,
    rank: int = 0,
) -> Memory:
    """What rank `rank` needs for a step of `num_pieces` pieces of `micro_batch_size` windows.

    `loss_sum` makes the loss of hidden states, a part and targets. Without a pipeline two pieces
    are as good as more; in one each has its buffers. Torch remembers tensor groups of the same
    ranks from one call to the next: count their layouts in a process each. ValueError where the
    layout does not fit the model, and for an interleaved pipeline.
    """
    check_model(layout, config, options.schedule)
    if layout.pp > 1 and SCHEDULES[options.schedule] > 1:
        raise ValueError(f"memory is not counted of {options.schedule} pipelines; it is of 1f1b's")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.num_ranks)
    try:
        place = take_place(layout, "cpu")
        part = cut_part(config, place, options)
        with FakeTensorMode(allow_non_fake_inputs=True), _Watch() as watch:
            part.to_empty("cpu")
            weights = list(part.network.parameters())
            optimizer = make_optimizer(weights)
            # From the second step on its moments are there during the passes.
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            optimizer.step()
            optimizer.zero_grad()
            ids = torch.zeros(micro_batch_size, config.context_length, dtype=torch.int64)
            _passes(part, ids, num_pieces, loss_sum)
            gradients = _bytes(weight.grad for weight in weights)
            optimizer.step()
            states = (s for state in optimizer.state.values() for s in state.values())
            return Memory(_bytes(weights), gradients, _bytes(states), watch.peak)
    finally:
        dist.destroy_process_group()


def _passes(
    part: Part, ids: Tensor, num_pieces: int, loss_sum: Callable[[Tensor, Part, Tensor], Tensor]
) -> None:
    """Forward and backward passes of a step in the order of a pipeline's stage, of one else.

    The neighbours' messages are buffers, of which torch's stages have one a piece either way.
    """
    (chunk,), place = part.chunks, part.place
    sharded = cast(FSDPModule, chunk)
    tokens, targets, positions, mask = part.windows(ids, ids)
    pp, stage = place.layout.pp, place.stage
    # Of how many pieces there are activations before the first backward pass.
    depth = min(num_pieces, pp - stage) if part.schedule == "1f1b" else num_pieces
    depth = depth if pp > 1 else 1
    inputs = [part.hidden_like(tokens).requires_grad_() for _ in range(num_pieces * (stage > 0))]
    slopes = [part.hidden_like(tokens) for _ in range(num_pieces * (stage < pp - 1))]
    under_way: deque[Tensor] = deque()

    def backward(number: int) -> None:
        last = number == num_pieces - 1
        sharded.set_requires_all_reduce(last)  # as `train.several` has it
        if pp > 1:
            sharded.set_is_last_backward(last)
            sharded.set_reshard_after_backward(last)
            sharded.set_requires_gradient_sync(last)
        result = under_way.popleft()
        result.backward(slopes[number] if slopes else None)
        if inputs:
            inputs[number].grad = None  # sent, and gone

    for number in range(num_pieces):
        hidden = chunk(inputs[number] if inputs else tokens, positions, mask)
        under_way.append(hidden if slopes else loss_sum(hidden, part, targets))
        del hidden  # a pass that ended keeps nothing of its own
        if len(under_way) == depth:
            backward(number + 1 - depth)
    for number in range(num_pieces + 1 - depth, num_pieces):
        backward(number)


class _Watch(TorchDispatchMode):
    """The most bytes that tensors held at once, of all that operations took and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._bound = 0  # on what there is: what was freed since the last sum counts still

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.device.type != "meta":
                self._see(local(value).untyped_storage())
        if self._bound > self.peak:
            self._bound = self._sum()
            self.peak = max(self.peak, self._bound)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        """Notes a storage; FSDP empties and fills those of gathered weights."""
        reference, size = self._storages.get(storage._cdata, (None, 0))
        if reference is None or reference() is not storage:
            reference, size = weakref.ref(storage), 0
        self._bound += storage.nbytes() - size
        self._storages[storage._cdata] = (reference, storage.nbytes())

    def _sum(self) -> int:
        living = {}
        for key, (reference, _) in self._storages.items():
            storage = reference()
            if storage is not None:
                living[key] = (reference, storage.nbytes())
        self._storages = living
        return sum(size for _, size in living.values())


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(local(t).nbytes for t in tensors if isinstance(t, Tensor))
