"""Converts a 7B-shaped checkpoint to Q4_K: Puna's peak memory, and its time beside llama.cpp's.

    python benchmarks/convert_7b.py FOLDER [--rounds 3] [--layers 32]

FOLDER gets 13 GB of random weights as Hugging Face shards, the same as an F16 GGUF, and what both
sides make of that (about 35 GB in all, kept for the next run). Two comparisons: HF shards -> Q4_K
by Puna alone, and F16 GGUF -> Q4_K by Puna and by `llama_model_quantize`, alternating. Needs
llama-cpp-python for the second.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from puna.config import PRESETS, ModelConfig
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.quantize.storage import STORAGE

NUM_THREADS = len(os.sched_getaffinity(0))
Q4_K_M = 15  # llama.h: LLAMA_FTYPE_MOSTLY_Q4_K_M


def random_checkpoint(config: ModelConfig) -> Checkpoint:
    """Normal weights of deviation 0.02 in f16; each tensor is drawn anew when it is read."""

    def lazy(number: int, shape: tuple[int, ...]) -> LazyTensor:
        def read() -> np.ndarray:
            draw = np.random.default_rng(number).standard_normal
            raw = np.empty(STORAGE["f16"].stored_shape(shape), np.uint8)
            rows = raw.reshape(-1, raw.shape[-1])
            for begin in range(0, len(rows), 512):
                part = rows[begin : begin + 512]
                values = draw((len(part), shape[-1]), np.float32) * np.float32(0.02)
                part[:] = values.astype(np.float16).view(np.uint8)
            return raw

        return LazyTensor(shape, "f16", read)

    tensors = {
        name: lazy(number, shape)
        for number, (name, shape) in enumerate(config.tensor_shapes().items())
    }
    return Checkpoint("random", Path("random-7b"), config, tensors)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a child process (the largest of all so far)."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000


def puna_convert(source: Path, destination: Path) -> list[str]:
    options = ["--format", "gguf", "--dtype", "q4_k_m", "--overwrite"]
    return [sys.executable, "-m", "puna", "convert", str(source), str(destination), *options]


def llama_cpp_quantize(source: Path, destination: Path) -> list[str]:
    return [sys.executable, __file__, "--peer", str(source), str(destination)]


def run_peer(source: str, destination: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = Q4_K_M, NUM_THREADS
    code = llama_cpp.llama_model_quantize(
        source.encode(), destination.encode(), ctypes.byref(params)
    )
    sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=32, help="fewer for a quick try")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer(*arguments.peer)
    if arguments.folder is None:
        parser.error("give a folder with room for 35 GB")
    folder = arguments.folder
    config = replace(PRESETS["7b"], num_layers=arguments.layers)
    shards, f16 = folder / "hf", folder / "f16.gguf"
    if not shards.exists():
        save_checkpoint(random_checkpoint(config), shards, "hf")
    seconds, peak = timed(puna_convert(shards, folder / "from-hf.gguf"))
    size = open_checkpoint(shards).num_bytes / 1e9
    print(f"HF shards ({size:.1f} GB) -> q4_k_m by Puna: {seconds:.0f} s, peak {peak:.0f} MB")
    if not f16.exists():
        save_checkpoint(open_checkpoint(shards), f16, "gguf")
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(timed(puna_convert(f16, folder / "puna.gguf"))[0])
        theirs.append(timed(llama_cpp_quantize(f16, folder / "llama-cpp.gguf"))[0])
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"F16 GGUF -> q4_k_m, {NUM_THREADS} threads, medians of {arguments.rounds}: "
        f"Puna {statistics.median(ours):.0f} s, llama.cpp {statistics.median(theirs):.0f} s, "
        f"ratio {ratio:.2f}"
    )
    print(json.dumps({"puna": ours, "llama_cpp": theirs}))


if __name__ == "__main__":
    main()
