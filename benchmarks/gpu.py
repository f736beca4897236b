"""Everything that is measured on a GPU, in one run of at most ten minutes.

    python benchmarks/gpu.py --json gpu.json [--shape 7b] [--seconds 480] [--only PART ...]
    python benchmarks/gpu.py --shape tiny --device cpu      (does it run at all)

The first time on a GPU, run it in pieces, one process a part, as an error of the GPU itself ends
all that its process does after it:

    for part in check bf16 decode-bf16; do
        python benchmarks/gpu.py --only $part --json $part.json
    done

First the bandwidth of copies, to which all else is related, and each kernel against its definition;
then matrices, decoding alone and in a batch of 64, prompts, peers in the same run, and single
questions (fp8, GPTQ, bf16). Weights are random, made on the GPU. A part that fails, or a number
that is wrong, is printed and the others go on; the exit status tells of it, and of what there was
no time for. Needs torch, Triton and numpy alone.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.attention import causal
from puna.config import PRESETS, ModelConfig
from puna.engine.batch import Batch, greedy
from puna.engine.gpu.runner import GPURunner
from puna.heads import next_token_logits
from puna.kernels import paged
from puna.kernels.layouts import LAYOUTS, SUPER, unpack
from puna.model import Llama, empty
from puna.quantize.block_schemes import BLOCK_SCHEMES
from puna.quantize.linear import QuantizedLinear, in_blocks
from puna.quantize.schemes import SCHEMES

TYPES = ("bf16", "int8", "int4", "q4_0", "q4_k")
TARGETS = {"bf16": 0.85, "int8": 0.75, "int4": 0.60}
FAILED = "failed"
MOST_ERROR = 0.02  # of a kernel in bf16
CONTEXT = 128  # tokens before those that are decoded
PROMPT = 512


@dataclass(frozen=True)
class Line:
    part: str
    name: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Job:
    """What is measured on; `steps` and `bytes` are small where nothing is to be learned."""

    device: torch.device
    config: ModelConfig
    steps: int
    copy_bytes: int
    kernels: bool  # whether Triton runs here, on the GPU or interpreted

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32


def seconds(job: Job, work: Callable[[], object], rounds: int | None = None) -> float:
    """The median time of a call, by the GPU's own clock where there is one."""
    if not job.on_gpu:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    times = []
    for _ in range((rounds or job.steps) + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[3:])


# --- parts ---


def bandwidth(job: Job) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(job.copy_bytes, dtype=torch.uint8, device=job.device)
    target = torch.empty_like(source)
    return 2 * job.copy_bytes / seconds(job, lambda: target.copy_(source))


def checks(job: Job, limit: float) -> Iterator[Line]:
    """Each kernel against its definition: largest relative error (of the norm)."""
    for name in LAYOUTS:
        yield checked(f"packed linear, {name}", partial(packed_error, job, name))
    yield checked("one row, floats", partial(dense_error, job))
    for heads, kv_heads, width in ((32, 32, 128), (32, 8, 128)) if job.on_gpu else ((4, 2, 16),):
        for tile, splits in ((1, 8), (1, 1), (32 * kv_heads // heads, 1)):
            name = f"attention, {heads}/{kv_heads} heads, tiles of {tile}, {splits} splits"
            shape = (heads, kv_heads, width)
            yield checked(name, partial(attention_error, job, shape, tile, splits))


def checked(name: str, work: Callable[[], float]) -> Line:
    """A kernel's error; one that does not run is printed, and the others go on."""
    try:
        return judged("check", name, work(), MOST_ERROR)
    except Exception as problem:
        traceback.print_exc()
        return Line("check", name, math.inf, FAILED, f"{type(problem).__name__}: {problem}"[:300])


def judged(part: str, name: str, value: float, most: float, note: str = "") -> Line:
    """A relative error; one that is not below `most`, or no number, is a failure."""
    if value < most:
        return Line(part, name, value, "relative error", note)
    return Line(part, name, value, FAILED, f"not below {most} {note}".strip())


def packed_error(job: Job, name: str) -> float:
    from puna.kernels.triton.packed_linear import packed_linear

    shape, row_counts = ((4096, 4096), (1, 2, 17, 64, 300)) if job.on_gpu else ((64, 256), (1, 3))
    tensors, group = random_packed(name, *shape, job.device)
    weight, worst = unpack(tensors, name, group), 0.0
    for num_rows in row_counts:
        x = normal(job, num_rows, shape[1]).to(job.dtype)
        found = packed_linear(x, tensors, name, group)
        worst = max(worst, error(found, F.linear(x.float(), weight)))
    return worst


def dense_error(job: Job) -> float:
    from puna.kernels.triton.dense_linear import dense_linear

    side = 4096 if job.on_gpu else 256
    weight, x = normal(job, side, side).to(job.dtype), normal(job, 1, side).to(job.dtype)
    return error(dense_linear(x, weight), F.linear(x.float(), weight.float()))


def attention_error(job: Job, shape: tuple[int, int, int], tile: int, splits: int) -> float:
    from puna.kernels.triton.paged_attention import attend

    heads, kv_heads, width = shape
    rows, num_pages = some_rows(job, tile, splits)
    pages = [normal(job, num_pages, 16, kv_heads, width).to(job.dtype) for _ in range(2)]
    q = normal(job, len(rows.positions), heads, width).to(job.dtype)
    expected = paged.attend(q.float(), *(page.float() for page in pages), rows)
    return error(attend(q, *pages, rows), expected)


def matrices(job: Job, limit: float) -> Iterator[Line]:
    """One row times the matrices of a layer, at several tile sizes: the share of the bandwidth."""
    from puna.kernels.triton import dense_linear, packed_linear

    dim, ffn = job.config.dim, job.config.ffn_dim
    shapes = ((3 * dim, dim), (2 * ffn, dim), (dim, ffn)) if job.on_gpu else ((16, 256),)
    for num_outputs, num_inputs in shapes:
        x = normal(job, 1, num_inputs).to(job.dtype)
        for name in ("float", "int8", "int4", "q4_0", "q4_k", "q6_k", "q8_0"):
            # Several copies, so that no cache holds them.
            if name == "float":
                made = [normal(job, num_outputs, num_inputs).to(job.dtype) for _ in range(3)]
                size, sweep = made[0].nbytes, dense_blocks(num_inputs)
                calls = [partial(dense_linear.dense_linear, x, weight) for weight in made]
            else:
                packed = [
                    random_packed(name, num_outputs, num_inputs, job.device) for _ in range(4)
                ]
                size = sum(t.nbytes for t in packed[0][0].values())
                sweep = one_row_blocks(num_inputs, num_outputs)
                calls = [
                    partial(packed_linear.packed_linear, x, tensors, name, group)
                    for tensors, group in packed
                ]
            found = []
            for blocks in sweep if job.on_gpu else sweep[:1]:

                def all_of_them(calls: Any = calls, blocks: Any = blocks) -> None:
                    for call in calls:
                        call(blocks)

                try:
                    took = seconds(job, graphed(job, all_of_them), 10)
                    found.append((size * len(calls) / took / limit, str(blocks)))
                except Exception as problem:  # a size that does not run here
                    print(f"{name} with {blocks}: {type(problem).__name__}: {problem}", flush=True)
                    found.append((0.0, str(blocks)))
            usual, best = found[0][0], max(found)
            yield Line("matrix", f"{name} ({num_outputs}, {num_inputs})", usual,
                       "of bandwidth" if usual else FAILED,
                       f"best {best[0]:.2f} with {best[1]}")  # fmt: skip


def decode(job: Job, limit: float, name: str) -> Iterator[Line]:
    """A token of one sequence, and of 64; then a prompt."""
    runner = runner_of(job, name)
    read = weight_bytes(runner)
    for batch in (1, 64 if job.on_gpu else 3):
        step = decoding(job, runner, batch)
        whole = seconds(job, step)
        # The last shape that was used: what the GPU does alone, without the host's part.
        alone = whole
        if runner._graphs:
            alone = seconds(job, list(runner._graphs.values())[-1][0].replay)
        kv = batch * CONTEXT * 2 * job.config.kv_dim * job.config.num_layers
        share = (read + kv * job.dtype.itemsize) / alone / limit
        note = f"{share:.2f} of bandwidth on the GPU alone ({1000 * alone:.2f} ms a step)"
        if batch == 1 and name in TARGETS:
            note += f"; target {TARGETS[name]:.2f}"
        yield Line("decode", f"{name}, batch {batch}", batch / whole, "tokens/s", note)
        if batch == 1:
            yield Line("decode", f"{name}, batch 1, share", share, "of bandwidth")
    yield Line("prompt", f"{name}, {PROMPT} tokens", reading(job, runner), "tokens/s")


def transformers_peer(job: Job, limit: float) -> Iterator[Line]:
    """transformers, static cache, compiled as its `generate` does it."""
    if importlib.util.find_spec("transformers") is None:
        print("transformers cannot be imported here: no peer", flush=True)
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    c = job.config
    with torch.device("meta"):
        peer = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=c.dim, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
                num_key_value_heads=c.num_kv_heads, intermediate_size=c.ffn_dim,
                vocab_size=c.vocab_size, max_position_embeddings=c.context_length,
                bos_token_id=1, eos_token_id=None, pad_token_id=0,
            )
        )  # fmt: skip
    peer = peer.to(job.dtype).to_empty(device=job.device).eval()
    with torch.no_grad():
        for weight in (*peer.parameters(), *peer.buffers()):
            weight.normal_(0, 0.02) if weight.is_floating_point() else weight.zero_()
    for batch in (1, 64) if job.on_gpu else (1,):
        prompt = torch.randint(3, c.vocab_size, (batch, CONTEXT // 2), device=job.device)

        def generate(count: int, prompt: Tensor = prompt) -> float:
            started = time.perf_counter()
            peer.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False,
                          cache_implementation="static")  # fmt: skip
            if job.on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() - started

        short, long = (8, 72) if job.on_gpu else (2, 4)
        generate(long)
        generate(short)
        rates = [(long - short) / (generate(long) - generate(short)) for _ in range(3)]
        note = f"transformers {importlib.import_module('transformers').__version__}, static cache"
        rate = batch * statistics.median(rates)
        yield Line("peer", f"transformers, {job.dtype}, batch {batch}", rate, "tokens/s", note)


def gpt_fast_peer(job: Job, limit: float) -> Iterator[Line]:
    """gpt-fast, where its folder is on the path."""
    found = [name for name in ("gpt_fast", "gptfast") if importlib.util.find_spec(name)]
    if not found:
        print("gpt-fast cannot be imported here: no peer", flush=True)
        return
    peer = importlib.import_module(f"{found[0]}.model")
    c = job.config
    args = peer.ModelArgs(block_size=c.context_length, vocab_size=c.vocab_size, dim=c.dim,
                          n_layer=c.num_layers, n_head=c.num_heads, n_local_heads=c.num_kv_heads,
                          intermediate_size=c.ffn_dim)  # fmt: skip
    with torch.device("meta"):
        model = peer.Transformer(args)
    model = model.to(job.dtype).to_empty(device=job.device).eval()
    with torch.no_grad(), torch.device(job.device):
        for weight in model.parameters():
            weight.normal_(0, 0.02)
        model.setup_caches(max_batch_size=1, max_seq_length=2 * CONTEXT)
        step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        token = torch.ones(1, 1, dtype=torch.int32)
        position = torch.full((1,), CONTEXT, dtype=torch.int32)
        rate = 1 / seconds(job, lambda: step(token, position))
    yield Line("peer", f"gpt-fast, {job.dtype}, batch 1", rate, "tokens/s")


def fp8(job: Job, limit: float) -> Iterator[Line]:
    """fp8 times fp8, against the same rounded numbers in float32, and how fast."""
    from puna.quantize.fp8 import _rounded_rows, check_scaled_product

    try:
        check_scaled_product(job.device)
    except ValueError as reason:
        print(f"fp8: {reason}", flush=True)
        return
    dim = job.config.dim
    weight = normal(job, dim, dim) * dim**-0.5
    layer = QuantizedLinear.from_weight(weight, "fp8_dynamic")
    dense = weight.to(torch.bfloat16)
    for num_rows in (16, 512):
        x = normal(job, num_rows, dim).to(torch.bfloat16)
        codes, scales = _rounded_rows(x)
        expected = F.linear(codes.float() * scales, layer.dequantize())
        with torch.no_grad():
            apart = error(layer(x), expected)
            speedup = seconds(job, lambda x=x: F.linear(x, dense)) / seconds(
                job, lambda x=x: layer(x)
            )
        note = f"{speedup:.2f} times as fast as bf16, rounding of x included"
        yield judged("fp8", f"fp8_dynamic, {num_rows} rows", apart, MOST_ERROR, note)


def gptq(job: Job, limit: float) -> Iterator[Line]:
    """GPTQ of one matrix on this device and on the CPU: the same error, and the time."""
    from puna.quantize.gptq import GPTQSettings, quantize_matrix

    size = min(job.config.dim, 2048)
    weight, x = normal(job, size // 2, size), normal(job, 2 * size, size)
    hessian = x.T @ x
    settings = GPTQSettings(bits=4, group_size=128)
    for device in dict.fromkeys((job.device, torch.device("cpu"))):
        w, h = weight.to(device), hessian.to(device)
        torch.linalg.cholesky(torch.eye(2, device=device))  # loads the library that solves
        started = time.perf_counter()
        grouped = quantize_matrix(w, h, settings)
        took = time.perf_counter() - started
        apart = torch.from_numpy(grouped.dequantize()) - weight.cpu()
        loss = float(((apart @ hessian.cpu()) * apart).sum())
        yield Line("gptq", f"({size // 2}, {size}) on {device.type}", took, "s", f"loss {loss:.6g}")


def bf16_network(job: Job, limit: float) -> Iterator[Line]:
    """Logits of the runner, in float32 and bf16, against the plain network in float32."""
    config = replace(PRESETS["tiny"], num_layers=4)
    generator = torch.Generator(job.device).manual_seed(0)
    model = empty(config).to_empty(device=job.device)
    with torch.no_grad():
        for weight in model.parameters():
            scale = 1.0 if weight.ndim == 1 else weight.shape[1] ** -0.5
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.1 if weight.ndim == 1 else scale,
                           generator=generator)  # fmt: skip
    prompt, token = rows_batch(config, 1, 0, 100), rows_batch(config, 1, 100, 1)
    tokens = torch.from_numpy(np.concatenate((prompt.tokens, token.tokens)))[None].to(job.device)
    positions = torch.arange(tokens.shape[1], device=job.device)[None]
    with torch.no_grad():
        hidden = model(tokens.long(), positions, causal)[0, -2:]
        expected = next_token_logits(model, hidden).cpu()
    for kind, most in (("float32", 1e-3), ("bfloat16", 0.05)):
        runner = GPURunner(copy.deepcopy(model).to(getattr(torch, kind)), num_pages=16)
        for name, batch, exact in (("prompt", prompt, expected[0]), ("token", token, expected[1])):
            apart = error(torch.from_numpy(runner.step(batch).logits[0]), exact)
            note = "captured" if runner._graphs else ""
            yield judged("bf16", f"network in {kind}, a {name}", apart, most, note)


PARTS: dict[str, Callable[[Job, float], Iterator[Line]]] = {
    "check": checks,
    "bf16": bf16_network,
    "fp8": fp8,
    "gptq": gptq,
    **{f"decode-{name}": partial(decode, name=name) for name in TYPES},
    "transformers": transformers_peer,
    "gpt-fast": gpt_fast_peer,
    "matrix": matrices,
}


# --- what they are made of ---


def normal(job: Job, *shape: int) -> Tensor:
    return torch.randn(*shape, device=job.device)


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def random_packed(
    name: str, num_outputs: int, num_inputs: int, device: torch.device
) -> tuple[dict[str, Tensor], int]:
    """Planes of random codes, whose weights are about 1/sqrt(inputs) large; and their group."""
    layout = LAYOUTS[name]
    group = (BLOCK_SCHEMES.get(name) or SCHEMES[name]).group_size
    group = num_inputs if group == -1 else group
    shape = (num_outputs, num_inputs // group)
    above = (num_outputs, num_inputs // SUPER)
    bits = sum(layout.planes)
    step = float(num_inputs**-0.5 * 2**-bits * 3.5)

    def integers(low: int, high: int, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, size, device=device, dtype=dtype)

    def words(per_word: int) -> Tensor:
        size = (num_outputs, num_inputs // per_word)
        return integers(-(1 << 31), (1 << 31) - 1, size, torch.int32)

    tensors: dict[str, Tensor] = {}
    if layout.planes[0] >= 4:
        width = num_inputs * layout.planes[0] // 8
        tensors["codes"] = integers(0, 256, (num_outputs, width), torch.uint8)
    if 2 in layout.planes:
        tensors["twos"] = words(16)
    if 1 in layout.planes:
        tensors["ones"] = words(32)
    middle = (1 << bits) // 2
    if layout.has_supers:
        signed = torch.int8 if layout.offset == "middle" else torch.uint8
        tensors["scales"] = integers(8, 64, shape, signed)
        tensors["supers"] = torch.full(above, step / 32, device=device).half()
        if layout.offset == "minimums":
            tensors["zeros"] = integers(8, 64, shape, torch.uint8)
            tensors["super_zeros"] = tensors["supers"] * middle
        return tensors, group
    tensors["scales"] = torch.full(shape, step, device=device).half()
    if layout.offset == "zeros":
        tensors["zeros"] = torch.full(shape, middle, device=device, dtype=torch.uint8)
    elif layout.offset == "minimums":
        tensors["zeros"] = tensors["scales"] * middle
    return tensors, group


def random_network(job: Job, name: str) -> Llama:
    """A network whose layers are packed as `name`, its embedding and head floats."""
    model = empty(job.config)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "bf16" and in_blocks(path):
            tensors, group = random_packed(name, *module.weight.shape, job.device)
            kind = BLOCK_SCHEMES.get(name) or SCHEMES[name]
            model.set_submodule(path, QuantizedLinear(kind, tensors, group))
            continue
        for leaf, weight in list(module.named_parameters(recurse=False)):
            made = torch.ones(weight.shape, device=job.device, dtype=job.dtype)
            if weight.ndim > 1:
                made.normal_(0, weight.shape[1] ** -0.5)
            setattr(module, leaf, nn.Parameter(made, requires_grad=False))
    return model


def runner_of(job: Job, name: str) -> GPURunner:
    tokens = 64 * 2 * CONTEXT if job.on_gpu else 4 * CONTEXT + PROMPT
    return GPURunner(random_network(job, name), num_pages=tokens // 16)


def weight_bytes(runner: GPURunner) -> int:
    """Bytes of weights that a step reads: of an embedding that is no head, only rows."""
    model = runner.model
    tensors = (*model.parameters(), *model.buffers())
    pages = {id(t) for a in runner._attentions for t in (a.keys, a.values)}
    total = sum(tensor.nbytes for tensor in tensors if id(tensor) not in pages)
    return total - (0 if model.config.tied else model.tok_embeddings.weight.nbytes)


def rows_batch(config: ModelConfig, sequences: int, begin: int, length: int) -> Batch:
    """`length` tokens of each sequence from position `begin` on."""
    width = -(-(begin + length) // GPURunner.page_size)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, sequences * length)
    return Batch(
        tokens=tokens.astype(np.int32),
        positions=np.tile(np.arange(begin, begin + length, dtype=np.int32), sequences),
        sequences=np.repeat(np.arange(sequences, dtype=np.int32), length),
        tables=np.arange(sequences * width, dtype=np.int32).reshape(sequences, width),
        outputs=np.arange(length - 1, sequences * length, length, dtype=np.int32),
    )


def decoding(job: Job, runner: GPURunner, sequences: int) -> Callable[[], object]:
    """A step that also chooses its tokens."""
    batch = rows_batch(job.config, sequences, CONTEXT, 1)
    batch = replace(batch, draws=(greedy(job.config.vocab_size),) * sequences)
    runner.step(batch)
    return lambda: runner.step(batch)


def reading(job: Job, runner: GPURunner) -> float:
    """Tokens a second of a prompt, in chunks of 256 as the engine gives them."""
    begin = {0: rows_batch(job.config, 1, 0, 256), 256: rows_batch(job.config, 1, 256, 256)}

    def work() -> None:
        for batch in begin.values():
            runner.step(batch)

    work()
    return PROMPT / seconds(job, work, 5)


def graphed(job: Job, work: Callable[[], object]) -> Callable[[], object]:
    """The same launches without the host's part in them, where there are graphs."""
    if not job.on_gpu:
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def some_rows(job: Job, tile: int, splits: int) -> tuple[paged.Rows, int]:
    """The last tokens of some sequences, as tiles of up to `tile` rows; and the pages they need."""
    lengths = (1, 17, 900, 2048) if job.on_gpu else (1, 17, 40)
    counts = [min(tile, length) for length in lengths]
    width = -(-max(lengths) // 16)
    tables = torch.randperm(width * len(lengths)).view(len(lengths), width)
    pairs = list(zip(lengths, counts, strict=True))
    positions = torch.cat([torch.arange(n - count, n) for n, count in pairs])
    owners = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)])
    slots = tables[owners, positions // 16] * 16 + positions % 16
    starts = torch.tensor([sum(counts[:i]) for i in range(len(counts))])
    tensors = (positions, slots, tables, starts, torch.tensor(counts), torch.arange(len(counts)))
    on_device = [tensor.int().to(job.device).contiguous() for tensor in tensors]
    return paged.Rows(*on_device, tile=tile, splits=splits), tables.numel()


def one_row_blocks(num_inputs: int, num_outputs: int) -> list[dict[str, int]]:
    """Tile sizes to try, the usual ones first."""
    from puna.kernels.triton.packed_linear import one_row_blocks as usual

    first = usual(num_inputs, num_outputs)
    runs = first["BLOCK_R"]
    sizes = [(2, runs, 4), (4, runs, 4), (8, runs, 4), (4, runs // 2, 2), (8, runs // 2, 2),
             (4, 2 * runs, 8), (8, 2 * runs, 8), (8, runs // 4, 1)]  # fmt: skip
    return [first, *({"BLOCK_N": n, "BLOCK_R": max(1, r), "num_warps": w} for n, r, w in sizes)]


def dense_blocks(num_inputs: int) -> list[dict[str, int]]:
    from puna.kernels.triton.dense_linear import BLOCKS

    sizes = [(1, 1024, 4), (2, 1024, 4), (8, 1024, 4), (1, 2048, 8), (2, 2048, 8), (4, 512, 2),
             (8, 512, 4), (4, 2048, 8), (1, 4096, 8)]  # fmt: skip
    return [BLOCKS, *({"BLOCK_N": n, "BLOCK_K": k, "num_warps": w} for n, k, w in sizes)]


def free(job: Job) -> None:
    torch._dynamo.reset()  # what was compiled for networks that are gone
    gc.collect()
    if job.on_gpu:
        torch.cuda.empty_cache()


def facts(job: Job) -> dict[str, str]:
    found = {"torch": torch.__version__, "device": "cpu"}
    if job.on_gpu:
        found |= {"device": torch.cuda.get_device_name(job.device), "cuda": str(torch.version.cuda)}
    with suppress(ImportError):
        found["triton"] = importlib.import_module("triton").__version__
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=PRESETS, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="where the figures go, as they come")
    parser.add_argument("--seconds", type=float, default=480, help="no part begins after these")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    started = time.perf_counter()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    job = Job(
        device,
        PRESETS[args.shape],
        steps=50 if on_gpu else 1,
        copy_bytes=1 << (32 if on_gpu else 22),
        kernels=importlib.util.find_spec("triton") is not None,
    )
    torch.manual_seed(0)
    print(facts(job), flush=True)
    limit = bandwidth(job)
    lines = [Line("copy", "read and written", limit / 1e9, "GB/s")]
    show(lines[0])
    failed = []
    for name in args.only:
        if time.perf_counter() - started > args.seconds:
            print(f"no time was left for {name}", flush=True)
            failed.append(f"{name}: no time")
            continue
        if name in ("check", "matrix") and not job.kernels:
            print(f"{name}: Triton is not installed", flush=True)
            continue
        begun = time.perf_counter()
        try:
            free(job)  # of the last part
            for line in PARTS[name](job, limit):
                lines.append(line)
                show(line)
                if line.unit == FAILED:
                    failed.append(f"{line.name}: {line.note}")
                write(args.json, job, lines, failed)
                if time.perf_counter() - started > args.seconds:
                    failed.append(f"{name}: cut short")
                    break
        except Exception as problem:  # the other parts shall still run
            traceback.print_exc()
            print(f"{name} failed: {str(problem).splitlines()[:1]}", flush=True)
            failed.append(f"{name}: {type(problem).__name__}: {problem}"[:500])
        print(f"  ({name} took {time.perf_counter() - begun:.0f} s)", flush=True)
        write(args.json, job, lines, failed)
    if failed:
        sys.exit(f"{len(failed)} parts failed: {', '.join(failed)}")


def show(line: Line) -> None:
    print(
        f"{line.part:8} {line.name:44} {line.value:>12.5g} {line.unit:14} {line.note}", flush=True
    )


def write(path: Path | None, job: Job, lines: list[Line], failed: list[str]) -> None:
    if path is not None:
        found = {"facts": facts(job), "lines": [asdict(line) for line in lines], "failed": failed}
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
