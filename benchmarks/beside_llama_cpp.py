"""Puna's CPU engine beside llama.cpp: the same GGUF file, one process, alternating short bursts.

    python benchmarks/beside_llama_cpp.py [--shape 1b] [--dtypes q4_0 q4_k] [--rounds 9]

Makes a file of random weights of a preset's shape, loads it in both, and prints medians of tokens
a second, and of the ratios of neighbouring bursts: decoding one token after another for one and
for eight sequences, and reading a prompt of 512. Logits and the choice of the likeliest token are
part of each. "read" is the bandwidth at which the threads together just read memory, measured
between the bursts, "of it" what share of that Puna's decoding reached (weights over time).
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from convert_7b import random_checkpoint

from puna.config import PRESETS, ModelConfig
from puna.engine.batch import Batch
from puna.engine.bench import read_bandwidth
from puna.engine.native_runner import NativeRunner
from puna.formats import open_checkpoint, save_checkpoint
from puna.kernels.step import physical_cores
from puna.tokenizer import PieceType, Vocabulary
from puna.tokenizer.vocabulary import byte_piece

PROMPT, MANY = 512, 8


class Puna:
    def __init__(self, path: Path, threads: int) -> None:
        checkpoint = open_checkpoint(path)
        self.vocab_size = checkpoint.config.vocab_size
        self.num_bytes = checkpoint.num_bytes
        self.pages = (PROMPT + 128) // NativeRunner.page_size
        self.runner = NativeRunner(
            checkpoint, num_pages=self.pages * (MANY + 1), num_threads=threads
        )

    def step(self, tokens: np.ndarray, begin: int, count: int) -> np.ndarray:
        """`count` sequences get `tokens` (count, T) from position `begin` on; greedy next ones."""
        length = tokens.shape[1]
        table = np.arange(self.pages * count, dtype=np.int32).reshape(count, self.pages)
        logits = self.runner.step(
            Batch(
                tokens=tokens.reshape(-1).astype(np.int32),
                positions=np.tile(np.arange(begin, begin + length, dtype=np.int32), count),
                sequences=np.repeat(np.arange(count, dtype=np.int32), length),
                tables=table[:, : -(-(begin + length) // NativeRunner.page_size)],
                outputs=np.arange(length - 1, length * count, length, dtype=np.int32),
            )
        )
        return logits.argmax(axis=1)


class LlamaCpp:
    def __init__(self, path: Path, threads: int, vocab_size: int) -> None:
        llama_cpp.llama_log_set(_SILENT, None)
        self.vocab_size = vocab_size
        model_options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = (PROMPT + 128) * (MANY + 1)
        options.n_batch = options.n_ubatch = PROMPT
        options.n_seq_max = MANY
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.batch = llama_cpp.llama_batch_init(PROMPT, 0, MANY)

    def step(self, tokens: np.ndarray, begin: int, count: int) -> np.ndarray:
        if begin == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch, row, wanted = self.batch, 0, []
        for sequence in range(count):
            for i, token in enumerate(tokens[sequence]):
                batch.token[row], batch.pos[row] = int(token), begin + i
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence
                batch.logits[row] = i == tokens.shape[1] - 1
                wanted += [row] if batch.logits[row] else []
                row += 1
        batch.n_tokens = row
        assert llama_cpp.llama_decode(self.context, batch) == 0
        found = []
        for row in wanted:
            logits = llama_cpp.llama_get_logits_ith(self.context, row)
            found.append(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
        return np.array(found)


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp's log, dropped."""


_SILENT = _silent


def decode(side: Any, count: int, steps: int) -> float:
    """Tokens a second of `count` sequences that go on for `steps` tokens after a short prompt."""
    tokens = np.random.default_rng(0).integers(3, side.vocab_size, (count, 16))
    next_tokens = side.step(tokens, 0, count)
    started = time.perf_counter()
    for i in range(steps):
        next_tokens = side.step(next_tokens[:, None], 16 + i, count)
    return count * steps / (time.perf_counter() - started)


def prefill(side: Any) -> float:
    tokens = np.random.default_rng(0).integers(3, side.vocab_size, (1, PROMPT))
    started = time.perf_counter()
    side.step(tokens, 0, 1)
    return PROMPT / (time.perf_counter() - started)


def made_up_vocabulary(config: ModelConfig) -> Vocabulary:
    """Pieces that stand for nothing; llama.cpp opens no file without."""
    special = {"<unk>": PieceType.UNKNOWN, "<s>": PieceType.CONTROL, "</s>": PieceType.CONTROL}
    kinds = special | {byte_piece(b): PieceType.BYTE for b in range(256)}
    kinds |= {f"p{i}": PieceType.NORMAL for i in range(config.vocab_size - len(kinds))}
    scores = tuple(-float(i) for i in range(len(kinds)))
    return Vocabulary(tuple(kinds), scores, tuple(kinds.values()))


def compare(path: Path, threads: int, rounds: int, steps: int) -> None:
    ours = Puna(path, threads)
    peer = LlamaCpp(path, threads, ours.vocab_size)
    jobs: dict[str, Callable[[Any], float]] = {
        "decode 1": lambda side: decode(side, 1, steps),
        f"decode {MANY}": lambda side: decode(side, MANY, max(4, steps // 2)),
        f"prefill {PROMPT}": prefill,
    }
    for name, job in jobs.items():
        pairs, bandwidths = [], []
        for number in range(rounds + 1):
            bandwidths.append(read_bandwidth(threads))
            sides = (ours, peer) if number % 2 else (peer, ours)
            speeds = {side: job(side) for side in sides}
            pairs.append((speeds[ours], speeds[peer]))
        del pairs[0], bandwidths[0]  # to wake up
        puna, llama = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        line = f"  {name:12} Puna {puna:8.1f}   llama.cpp {llama:8.1f} tokens/s   ratio {ratio:.2f}"
        if name == "decode 1":
            shares = [a * ours.num_bytes / b for (a, _), b in zip(pairs, bandwidths, strict=True)]
            read = statistics.median(bandwidths) / 1e9
            line += f"   read {read:.1f} GB/s, {statistics.median(shares):.0%} of it"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=PRESETS, default="1b")
    parser.add_argument("--dtypes", nargs="+", default=["q4_0", "q4_k", "q8_0"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=16, help="tokens of a burst")
    parser.add_argument("--threads", type=int, default=physical_cores())
    args = parser.parse_args()
    config: ModelConfig = PRESETS[args.shape]
    print(f"{args.shape}, {config.num_parameters / 1e6:.0f}M, {args.threads} threads", flush=True)
    print(f"  llama.cpp: {llama_cpp.llama_print_system_info().decode()}")
    for dtype in args.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            checkpoint = random_checkpoint(config).with_vocabulary(made_up_vocabulary(config))
            save_checkpoint(checkpoint, path, "gguf", dtype=dtype, pure=True)
            print(dtype, flush=True)
            compare(path, args.threads, args.rounds, args.steps)


if __name__ == "__main__":
    main()
