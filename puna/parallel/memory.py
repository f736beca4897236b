"""How much memory a rank of a layout needs, counted without the machines.

One process plays one rank of any number, with process groups that deliver nothing and tensors that
have shapes but no memory, and takes a whole optimizer step of the real code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puna.config import ModelConfig
from puna.parallel.fsdp import local
from puna.parallel.layout import Layout, check_model
from puna.parallel.part import Options, Part, cut_part
from puna.parallel.place import take_place


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
    rank: int = 0,
) -> Memory:
    """What rank `rank` needs for a step of pieces of `micro_batch_size` windows.

    `loss_sum` makes the loss of hidden states, a part and targets. ValueError where the layout does
    not fit the model, or has a pipeline, whose passes need their neighbours.
    """
    check_model(layout, config)
    if layout.pp > 1:
        raise ValueError("memory is counted of layouts without a pipeline")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.num_ranks)
    try:
        place = take_place(layout, "cpu")
        part = cut_part(config, place, options)
        with FakeTensorMode(allow_non_fake_inputs=True), _Watch() as watch:
            part.to_empty("cpu")
            weights = list(part.network.parameters())
            optimizer = make_optimizer(weights)
            ids = torch.zeros(micro_batch_size, config.context_length, dtype=torch.int64)
            # Twice, as pieces are: the second adds to gradients that are there.
            for _ in range(2):
                tokens, targets, positions, mask = part.windows(ids, ids)
                loss_sum(part.chunks[0](tokens, positions, mask), part, targets).backward()
            gradients = _bytes(weight.grad for weight in weights)
            optimizer.step()
            states = (s for state in optimizer.state.values() for s in state.values())
            return Memory(_bytes(weights), gradients, _bytes(states), watch.peak)
    finally:
        dist.destroy_process_group()


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
