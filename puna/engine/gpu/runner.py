"""The runner of GPUs: the network with fused blocks, compiled; decoding captured in CUDA graphs.

A step's numbers are written to one buffer that is always at the same place, padded to one of few
shapes (`rows.py`). Batches in which every sequence has one row are replayed from a graph of
their shape; those with chunks of prompts run block by block. Works on any device; `TorchRunner` is
what it must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.engine.batch import Batch, Output
from puna.engine.draws import answered
from puna.engine.gpu.fused import FusedAttention, Moved, PagedAttend, fuse
from puna.engine.gpu.rows import Shape, bucket, fill, is_decode, split, splits_for
from puna.engine.gpu.weights import places
from puna.heads import next_token_logits
from puna.kernels.paged import Rows
from puna.model import Block, Llama

if TYPE_CHECKING:
    from puna.formats.adapters import Pair
    from puna.formats.checkpoint import LazyTensor

Floats = NDArray[np.float32]

DECODE_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
MIXED_BUCKETS = (16, 64, 256)
_LINES = 32  # rows of a prompt, times heads that share keys, that are attended together
_PROGRAMS = 528  # of attention, that fill a large GPU four times
_SPLITS = 16
_WARM_UPS = 3  # steps before a capture, in which kernels are compiled


class GPURunner:
    """Runs batches with a network that it takes over and rewrites.

    Its linear layers may be `QuantizedLinear`s. `compiled` compiles blocks, `graphs` captures
    decoding; None: on CUDA. Keys and values are held in `dtype`, that of the norms if None.
    """

    page_size = 16

    def __init__(
        self,
        model: Llama,
        *,
        num_pages: int,
        dtype: torch.dtype | None = None,
        compiled: bool | None = None,
        graphs: bool | None = None,
    ) -> None:
        self.config, self.num_pages = model.config, num_pages
        self._device = model.norm.weight.device
        on_cuda = self._device.type == "cuda"
        # The page after the last is scratch, for rows of padding.
        fuse(model, num_pages + 1, self.page_size, dtype or model.norm.weight.dtype)
        self.model = model.eval()
        blocks = cast("list[Block]", list(model.layers.values()))
        self._attentions = [cast(FusedAttention, block.attention) for block in blocks]
        devices = [attention.keys.device for attention in self._attentions]
        self._others = {device for device in devices if device != self._device}
        self._width = -(-self.config.context_length // self.page_size)
        self._staging: dict[Shape, tuple[Tensor, Tensor]] = {}
        self._graphs: dict[Shape, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # A graph holds what one GPU does.
        self._uses_graphs = (on_cuda if graphs is None else graphs) and not self._others
        # A tile of 1 stands for decoding.
        self._tile = max(2, _LINES // (self.config.num_heads // self.config.num_kv_heads))
        # Triton and captures use the GPU that is a thread's current one, not that of their tensors.
        self._current: AbstractContextManager[object] = nullcontext()
        if on_cuda:
            self._current = torch.cuda.device(self._device)
            torch.cuda.empty_cache()  # the parts of joined matrices
        if on_cuda if compiled is None else compiled:
            model.norm.compile(fullgraph=True, dynamic=False)
            for block, device in zip(blocks, devices, strict=True):
                if device == self._device:
                    block.compile(fullgraph=True, dynamic=False)
        if self._others:
            for name, device in zip(list(model.layers), devices, strict=True):
                model.layers[name] = Moved(model.layers[name], device)

    def warm_up(self, buckets: tuple[int, ...] = DECODE_BUCKETS) -> None:
        """Compiles and, where that is done, captures decoding of these batch sizes."""
        for size in buckets:
            each = np.arange(size, dtype=np.int32)
            table = np.full((size, 1), self.num_pages, np.int32)  # the scratch page
            self.step(Batch(np.zeros_like(each), np.zeros_like(each), each, table, each))

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of a token, on this process's devices."""
        sizes = (pages[0, 0].nbytes for a in self._attentions for pages in (a.keys, a.values))
        return sum(sizes)

    def step(self, batch: Batch) -> Output:
        """Runs all rows; tokens and logits of `batch.outputs`, states of `batch.hidden`."""
        return answered(batch, *self.run(batch))

    def load_adapter(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        """ValueError: the fused layers of a GPU take none."""
        raise ValueError(
            "adapters run on the CPU alone; for a GPU, merge them: puna convert --lora"
        )

    def unload_adapter(self, slot: int) -> None:
        """Does nothing: there are none."""

    @torch.no_grad()
    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """See `Runner`; in place, where graphs read them. ValueError, before any is changed, for
        layers that are packed.
        """
        from puna.formats.network import read_tensor

        held = places(self.model)
        if missing := weights.keys() - held.keys():
            raise ValueError(f"{min(missing)} is packed and cannot be updated")
        for name, tensor in weights.items():
            held[name].copy_(read_tensor(tensor))

    @torch.no_grad()
    def run(self, batch: Batch) -> tuple[Floats, Floats]:
        """Logits (L, V) of the rows `batch.outputs`, hidden states (N, D) of `batch.hidden`."""
        with self._current:
            return self._run(batch)

    def _run(self, batch: Batch) -> tuple[Floats, Floats]:
        for source, target in batch.copies:
            for attention in self._attentions:
                for pages in (attention.keys, attention.values):
                    pages[target] = pages[source]
        if is_decode(batch) and not len(batch.hidden):  # which graphs do not give
            return self._decode(batch), np.empty((0, self.config.dim), np.float32)
        shape = self._shape(bucket(len(batch.tokens), MIXED_BUCKETS), self._tile)
        hidden = self._hidden(self._staged(batch, shape), shape)
        outputs, wanted = (
            torch.from_numpy(rows.astype(np.int64)).to(self._device)
            for rows in (batch.outputs, batch.hidden)
        )
        states = hidden[wanted].float().cpu().numpy()
        if len(batch.outputs) == 0:
            return np.empty((0, self.config.vocab_size), np.float32), states
        return self._logits(hidden[outputs]).cpu().numpy(), states

    def _decode(self, batch: Batch) -> Floats:
        shape = self._shape(bucket(len(batch.tokens), DECODE_BUCKETS), 1)
        if self._uses_graphs and shape not in self._graphs:
            self._graphs[shape] = self._captured(shape)
        numbers = self._staged(batch, shape)
        if self._uses_graphs:
            graph, logits = self._graphs[shape]
            graph.replay()
        else:
            logits = self._logits(self._hidden(numbers, shape))
        return logits[: len(batch.tokens)].cpu().numpy()[batch.outputs]

    def _shape(self, rows: int, tile: int) -> Shape:
        splits = splits_for(rows, self.config.num_kv_heads, _PROGRAMS, _SPLITS) if tile == 1 else 1
        return Shape(rows, tile, self._width, splits)

    def _staged(self, batch: Batch, shape: Shape) -> Tensor:
        """The batch's numbers on the device, always at the same place for a shape."""
        if shape not in self._staging:
            pinned = self._device.type == "cuda"
            host = torch.zeros(shape.num_numbers, dtype=torch.int32, pin_memory=pinned)
            self._staging[shape] = host, torch.zeros_like(host, device=self._device)
        host, numbers = self._staging[shape]
        fill(host.numpy(), batch, shape, self.page_size, self.num_pages)
        # Waits: a step without outputs returns early, and the next one fills `host` again.
        return numbers.copy_(host)

    def _hidden(self, numbers: Tensor, shape: Shape) -> Tensor:
        """Hidden states (rows, D) of a step's numbers."""
        tokens, rows = _described(numbers, shape)
        host = self._staging[shape][0]
        others = {
            device: PagedAttend(_described(host.to(device), shape)[1]) for device in self._others
        }
        attend = cast(Callable[..., Tensor], PagedAttend(rows, others))
        # One shape of compiled code for each bucket: more than dynamo expects of a function.
        with torch._dynamo.config.patch(recompile_limit=64, accumulated_recompile_limit=1024):
            return self.model(tokens[None], rows.positions[None], attend)[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        return next_token_logits(self.model, hidden).float()

    def _captured(self, shape: Shape) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph of a decoding step, and the logits that it writes."""
        each = np.arange(0, dtype=np.int32)
        nothing = Batch(each, each, each, np.zeros((0, 1), np.int32), each)
        numbers = self._staged(nothing, shape)
        # Nothing may be compiled or allocated anew inside the capture.
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._logits(self._hidden(numbers, shape))
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        # Other threads (a collective's watchdog) may ask the GPU things meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits = self._logits(self._hidden(numbers, shape))
        return graph, logits


def _described(numbers: Tensor, shape: Shape) -> tuple[Tensor, Rows]:
    """The tokens of a step's numbers, and where its rows lie."""
    fields, tables = split(numbers, shape)
    tiles = (fields["starts"], fields["counts"], fields["owners"])
    rows = Rows(
        fields["positions"], fields["slots"], tables, *tiles, tile=shape.tile, splits=shape.splits
    )
    return fields["tokens"], rows
