"""Compiles every Triton kernel to machine code for a Hopper GPU, without one: what the interpreter
does not see.

The launches are those that a model of 7B makes, on tensors of the CPU, through a driver that only
compiles. A program of its own, as the tests' process interprets: python -m tests.kernels.aot, or
each `OF`th launch from the `FIRST`: python -m tests.kernels.aot FIRST OF
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from puna.kernels.layouts import LAYOUTS
from puna.kernels.paged import Rows
from puna.kernels.triton.dense_linear import dense_linear
from puna.kernels.triton.packed_linear import packed_linear
from puna.kernels.triton.paged_attention import attend, store
from puna.quantize.block_schemes import BLOCK_SCHEMES
from puna.quantize.schemes import SCHEMES

MOST_SHARED = 227 * 1024  # bytes of shared memory that a program may have
INPUTS, OUTPUTS = 4096, 64

Launch = tuple[str, Callable[[], object]]


class Driver:
    """What Triton asks of a GPU's driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def launches() -> Iterator[Launch]:
    for name in LAYOUTS:
        scheme = BLOCK_SCHEMES.get(name) or SCHEMES[name]
        group = INPUTS if scheme.group_size == -1 else scheme.group_size
        tensors = scheme.pack(torch.ones(OUTPUTS, INPUTS), scheme.group_size)
        for num_rows, dtype in ((1, torch.bfloat16), (2, torch.float16), (64, torch.bfloat16)):
            x = torch.ones(num_rows, INPUTS, dtype=dtype)
            yield (
                f"packed linear, {name}, {num_rows} rows",
                lambda x=x, t=tensors, n=name, g=group: packed_linear(x, t, n, g),
            )
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = torch.ones(1, INPUTS, dtype=dtype), torch.ones(OUTPUTS, INPUTS, dtype=dtype)
        yield f"dense row, {dtype}", lambda x=x, w=weight: dense_linear(x, w)
    for heads, kv_heads, tile, splits, dtype in (
        (32, 32, 1, 16, torch.bfloat16),
        (32, 4, 1, 16, torch.float16),
        (8, 1, 4, 1, torch.bfloat16),
        (8, 1, 4, 1, torch.float32),
        (32, 32, 32, 1, torch.float32),
    ):
        q, pages = torch.ones(64, heads, 128, dtype=dtype), torch.ones(9, 16, kv_heads, 128)
        keys = pages.to(dtype)
        numbers = [torch.ones(64, dtype=torch.int32) for _ in range(6)]
        numbers[2] = torch.ones(64, 256, dtype=torch.int32)
        rows = Rows(*numbers, tile=tile, splits=splits)  # type: ignore[arg-type]
        name = f"attention, {heads}/{kv_heads} heads, tiles of {tile}, {dtype}"
        yield name, lambda q=q, k=keys, r=rows: attend(q, k, k, r)
        k = torch.ones(64, 3, kv_heads, 128, dtype=dtype)[:, 1]
        yield f"store, {dtype}", lambda k=k, p=keys, s=rows.slots: store(k, k, p, p, s)


def main(first: int = 0, step: int = 1) -> None:
    built: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert all(1 <= size < 65536 for size in grid[1:]) and grid[0] >= 1, grid
        built.append((self.__name__, run(self, *arguments, grid=grid, warmup=True, **options)))

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(Driver())
    for name, launch in itertools.islice(launches(), first, None, step):
        built.clear()
        launch()
        assert built, name
        for kernel, made in built:
            ptx, shared = made.asm["ptx"], made.metadata.shared
            # Vectors, or asynchronous copies, of what decoding reads.
            wide = ptx.count("ld.global.v4") + ptx.count("cp.async.cg")
            assert len(made.asm["cubin"]) > 1000 and shared <= MOST_SHARED, (name, shared)
            assert wide or "linear" not in name, f"{name}: {kernel} loads in small pieces"
            print(f"{name}: {kernel}, {wide} wide loads, {shared} bytes shared")
    print("all compiled")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
