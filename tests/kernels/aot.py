"""Compiles every Triton kernel to machine code for a Hopper GPU, without one; prints what fails.

A program of its own, as the tests' process interprets its kernels: python -m tests.kernels.aot
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from puna.kernels.layouts import LAYOUTS
from puna.kernels.triton import dense_linear as dense
from puna.kernels.triton import packed_linear as packed
from puna.kernels.triton import paged_attention as attention
from puna.kernels.triton.nibble_row import nibble_row_kernel

TARGET = GPUTarget("cuda", 90, 32)
SIZES = ("num_outputs", "num_inputs", "num_runs", "num_groups", "num_supers", "WIDTH", "k_stride")

Case = tuple[str, Any, dict[str, str], dict[str, int]]


def packed_types(name: str, floats: str) -> dict[str, str]:
    layout = LAYOUTS[name]
    scales = zeros = "*fp16"
    if layout.has_supers:
        scales, zeros = ("*i8" if layout.offset == "middle" else "*u8"), "*u8"
    if layout.offset == "zeros":
        zeros = "*u8"
    return {
        "x": floats, "codes": "*u8", "twos": "*i32", "ones": "*i32", "scales": scales,
        "zeros": zeros, "supers": "*fp16", "super_zeros": "*fp16", "out": floats,
    }  # fmt: skip


def cases() -> Iterator[Case]:
    groups = {"int8": 4096, "int4": 128, "q2_k": 16, "q3_k": 16, "q6_k": 16}
    for name in LAYOUTS:
        options = packed.kernel_options(name, groups.get(name, 32))
        types = packed_types(name, "*bf16")
        one = options | packed.one_row_blocks(4096, 8192)
        if name == "int8":
            one["num_groups"] = 1  # a launch makes a constant of every 1
        if packed.has_nibbles(name, options["GROUP"]):
            names = nibble_row_kernel.arg_names
            yield (
                f"one row, {name}",
                nibble_row_kernel,
                {key: types.get(key, "*i32") for key in names if key in types or key == "words"},
                {key: value for key, value in one.items() if key in names},
            )
            continue
        yield f"one row, {name}", packed.one_row_kernel, types, one
    for name, floats in (("int4", "*bf16"), ("q5_k", "*fp16"), ("q6_k", "*bf16")):
        options = packed.kernel_options(name, groups.get(name, 32))
        for num_rows in (2, 64):
            many = options | packed.rows_blocks(num_rows)
            yield f"rows, {name}", packed.rows_kernel, packed_types(name, floats), many
    pointers = {"x": "*bf16", "weight": "*bf16", "out": "*bf16"}
    yield "dense", dense.dense_one_row_kernel, pointers, dense.BLOCKS
    for floats, shared, tile, splits in (("*bf16", 8, 1, 16), ("*fp16", 1, 32, 1)):
        types = dict.fromkeys(("q", "keys", "values", "out", "k", "v", "parts"), floats)
        types |= dict.fromkeys(("positions", "tables", "starts", "counts", "owners"), "*i32")
        types |= {"sums": "*fp32", "scale": "fp32", "slots": "*i32"}
        options = attention.attention_options(shared, 128, tile, 16, splits)
        if splits > 1:
            types |= {"out": "*fp32", "parts": "*fp32"}
            options["num_kv_heads"] = 1
        yield f"attention, {floats}", attention.attention_kernel, types, options
        combine = attention.combine_options(128, max(2, splits))
        yield f"combine, {floats}", attention.combine_kernel, types | {"out": floats}, combine
        yield f"store, {floats}", attention.store_kernel, types, {"BLOCK": 1024}


def compiled(kernel: Any, types: dict[str, str], options: dict[str, int]) -> Any:
    """Pointers and sizes multiples of 16, as they are in a model."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in options else types.get(n, "i32") for n in names}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n in SIZES]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(key),): value for key, value in options.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned if names[i] not in options},
    )
    return triton.compile(source, target=TARGET, options={"num_warps": 4})


def main() -> None:
    count = 0
    for name, kernel, types, options in cases():
        built = compiled(kernel, types, options)
        assert len(built.asm["cubin"]) > 1000, name
        # Wide loads, or asynchronous copies, of what decoding reads.
        wide = built.asm["ptx"].count("ld.global.v4") + built.asm["ptx"].count("cp.async.cg")
        shared = built.metadata.shared
        assert shared <= 227 * 1024, f"{name} takes {shared} bytes of shared memory"
        print(f"{name}: {wide} wide loads, {shared} bytes shared")
        assert wide or name.startswith(("store", "combine")), f"{name} loads in small pieces"
        count += 1
    print(f"{count} kernels compiled")


if __name__ == "__main__":
    main()
