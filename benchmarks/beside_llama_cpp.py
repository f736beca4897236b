"""Puna's CPU engine beside llama.cpp: the same GGUF file, one process, alternating short bursts.

    python benchmarks/beside_llama_cpp.py [--shape 1b] [--dtypes q4_0 q4_k] [--rounds 9]

Makes a file of random weights of a preset's shape, loads it in both, and prints medians of tokens
a second, and of the ratios of neighbouring bursts: decoding one token after another for one and
for eight sequences, and reading a prompt of 512. Puna is asked through its public API,
`LLM.generate`, text included; llama.cpp through its C functions and an argmax, which is the least
that it can do. "read" is the bandwidth at which the threads together just read memory, measured
between the bursts, "of it" what share of that Puna's decoding reached (weights over time).
`--folder` keeps the files for another time.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import llama_cpp
import numpy as np
from convert_7b import random_checkpoint

from puna import LLM, SamplingParams
from puna.config import PRESETS, ModelConfig
from puna.engine.bench import read_bandwidth
from puna.formats import open_checkpoint, save_checkpoint
from puna.kernels.step import physical_cores
from puna.tokenizer import PieceType, Vocabulary
from puna.tokenizer.vocabulary import byte_piece

PROMPT, MANY = 512, 8
_REST = 0.05  # seconds, in which the other side's threads stop waiting for more work
# The shapes of llama2.c's models, beside the presets.
SHAPES = {
    "15m": ModelConfig(288, 6, 6, 6, 768, context_length=1024, tied=True),
    "110m": ModelConfig(768, 12, 12, 12, 2048, context_length=1024, tied=True),
    **PRESETS,
}
KV_TOKENS = (PROMPT + 128) * (MANY + 1)


class Side(Protocol):
    def answer(self, prompts: list[list[int]], num_tokens: int) -> None:
        """Reads the prompts, all of one length, and continues each by so many tokens, greedily."""
        ...


class Puna:
    def __init__(self, path: Path, threads: int) -> None:
        self.llm = LLM(path, num_threads=threads, kv_tokens=KV_TOKENS, max_rows=PROMPT)

    def answer(self, prompts: list[list[int]], num_tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        results = self.llm.generate(prompts, params)
        assert all(len(result.outputs[0].token_ids) == num_tokens for result in results)


class LlamaCpp:
    def __init__(self, path: Path, threads: int, vocab_size: int) -> None:
        llama_cpp.llama_log_set(_SILENT, None)
        self.vocab_size = vocab_size
        model_options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = KV_TOKENS
        options.n_batch = options.n_ubatch = PROMPT
        options.n_seq_max = MANY
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.batch = llama_cpp.llama_batch_init(PROMPT, 0, MANY)

    def answer(self, prompts: list[list[int]], num_tokens: int) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        position, tokens = 0, prompts
        for _ in range(num_tokens):
            tokens = self._next(tokens, position)
            position += len(prompts[0]) if position == 0 else 1

    def _next(self, tokens: list[list[int]], begin: int) -> list[list[int]]:
        batch, row, wanted = self.batch, 0, []
        for sequence, some in enumerate(tokens):
            for i, token in enumerate(some):
                batch.token[row], batch.pos[row] = token, begin + i
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence
                batch.logits[row] = i == len(some) - 1
                wanted += [row] if batch.logits[row] else []
                row += 1
        batch.n_tokens = row
        assert llama_cpp.llama_decode(self.context, batch) == 0
        found = []
        for row in wanted:
            logits = llama_cpp.llama_get_logits_ith(self.context, row)
            found.append([int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())])
        return found


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp's log, dropped."""


_SILENT = _silent


def speed(side: Side, prompts: list[list[int]], num_tokens: int) -> float:
    """Tokens a second: those that were made, or for a single one those of the prompt."""
    time.sleep(_REST)
    started = time.perf_counter()
    side.answer(prompts, num_tokens)
    counted = num_tokens * len(prompts) if num_tokens > 1 else len(prompts[0])
    return counted / (time.perf_counter() - started)


def made_up_vocabulary(config: ModelConfig) -> Vocabulary:
    """Pieces that stand for nothing; llama.cpp opens no file without."""
    special = {"<unk>": PieceType.UNKNOWN, "<s>": PieceType.CONTROL, "</s>": PieceType.CONTROL}
    kinds = special | {byte_piece(b): PieceType.BYTE for b in range(256)}
    kinds |= {f"p{i}": PieceType.NORMAL for i in range(config.vocab_size - len(kinds))}
    scores = tuple(-float(i) for i in range(len(kinds)))
    return Vocabulary(tuple(kinds), scores, tuple(kinds.values()))


def compare(path: Path, threads: int, rounds: int, steps: int) -> None:
    checkpoint = open_checkpoint(path)
    vocab_size, num_bytes = checkpoint.config.vocab_size, checkpoint.num_bytes
    if not checkpoint.config.tied:  # an embedding that is no head is not read
        num_bytes -= checkpoint.tensors["tok_embeddings.weight"].num_bytes
    ours, peer = Puna(path, threads), LlamaCpp(path, threads, vocab_size)
    generator = np.random.default_rng(0)
    # A prompt of one token leaves nothing but decoding.
    jobs = {
        "decode 1": (1, 1, steps),
        f"decode {MANY}": (MANY, 1, max(4, steps // 2)),
        f"prefill {PROMPT}": (1, PROMPT, 1),
    }
    for name, (count, length, num_tokens) in jobs.items():
        pairs, bandwidths = [], []
        for number in range(rounds + 1):
            bandwidths.append(read_bandwidth(threads))
            # New ones each time, so that no cache of prompts knows them.
            prompts = generator.integers(300, vocab_size, (count, length)).tolist()
            sides: tuple[Side, ...] = (ours, peer) if number % 2 else (peer, ours)
            speeds = {side: speed(side, prompts, num_tokens) for side in sides}
            pairs.append((speeds[ours], speeds[peer]))
        del pairs[0], bandwidths[0]  # to wake up
        puna, llama = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        line = f"  {name:12} Puna {puna:8.1f}   llama.cpp {llama:8.1f} tokens/s   ratio {ratio:.2f}"
        if name == "decode 1":
            shares = [a * num_bytes / b for (a, _), b in zip(pairs, bandwidths, strict=True)]
            read = statistics.median(bandwidths) / 1e9
            line += f"   read {read:.1f} GB/s, {statistics.median(shares):.0%} of it"
        print(line, flush=True)


@contextlib.contextmanager
def model_file(folder: Path | None, shape: str, dtype: str) -> Iterator[Path]:
    """A GGUF file of random weights; kept in `folder`, if given, and taken from there."""
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)) / f"{shape}-{dtype}.gguf"
        if not path.exists():
            config = SHAPES[shape]
            checkpoint = random_checkpoint(config).with_vocabulary(made_up_vocabulary(config))
            save_checkpoint(checkpoint, path, "gguf", dtype=dtype, pure=True)
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--dtypes", nargs="+", default=["q4_0", "q4_k", "q8_0"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=16, help="tokens of a burst")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--folder", type=Path, help="where files are kept")
    args = parser.parse_args()
    number = SHAPES[args.shape].num_parameters / 1e6
    print(f"{args.shape}, {number:.0f}M, {args.threads} threads", flush=True)
    print(f"  llama.cpp: {llama_cpp.llama_print_system_info().decode()}")
    for dtype in args.dtypes:
        with model_file(args.folder, args.shape, dtype) as path:
            print(dtype, flush=True)
            compare(path, args.threads, args.rounds, args.steps)


if __name__ == "__main__":
    main()
