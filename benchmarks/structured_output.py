"""The time of a token's mask, llguidance beside xgrammar: the same schema, vocabulary and text.

    python benchmarks/structured_output.py [TOKENIZER]

xgrammar (pip install xgrammar) brings torch, transformers and Triton. Both follow a JSON text token
by token; printed are medians of compiling the schema and of one mask, in microseconds, alternating.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xgrammar

from puna.engine.params import SamplingParams
from puna.engine.structure import Structures
from puna.formats.vocabularies import load_vocabulary
from puna.hub.locate import shipped_path
from puna.tokenizer import PieceType, Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
}
VALUE = {
    "name": "A llama of the puna",
    "age": 12,
    "tags": ["red", "blue"],
    "home": {"city": "Cusco"},
}


def ours(tokenizer: Tokenizer) -> tuple[Callable[[], Any], Callable[[Any, int], None]]:
    structures = Structures(tokenizer)
    params = SamplingParams(json_schema=SCHEMA)

    def step(matcher: Any, token: int) -> None:
        matcher._matcher.unsafe_compute_mask_ptr(matcher._mask.ctypes.data, matcher._mask.nbytes)
        matcher.push(token)

    return lambda: structures.start(params), step


def theirs(tokenizer: Tokenizer) -> tuple[Callable[[], Any], Callable[[Any, int], None]]:
    pieces = tokenizer.vocabulary.pieces
    info = xgrammar.TokenizerInfo(
        list(pieces),
        xgrammar.VocabType.BYTE_FALLBACK,
        stop_token_ids=[tokenizer.eos_id],
        add_prefix_space=False,
    )
    mask = xgrammar.allocate_token_bitmask(1, len(pieces))

    def start() -> Any:
        # A compiler keeps what it compiled; each start gets a fresh one.
        compiled = xgrammar.GrammarCompiler(info).compile_json_schema(json.dumps(SCHEMA))
        return xgrammar.GrammarMatcher(compiled)

    def step(matcher: Any, token: int) -> None:
        matcher.fill_next_token_bitmask(mask)
        assert matcher.accept_token(token)

    return start, step


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else shipped_path("cria")
    tokenizer = Tokenizer(load_vocabulary(path))
    torch.set_num_threads(1)
    head = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + json.dumps(VALUE))[len(head) :]
    assert all(tokenizer.vocabulary.types[i] != PieceType.UNKNOWN for i in ids)
    sides = {"llguidance": ours(tokenizer), "xgrammar": theirs(tokenizer)}
    starts: dict[str, list[float]] = {name: [] for name in sides}
    masks: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(20):
        for name, (start, step) in sides.items():
            began = time.perf_counter()
            matcher = start()
            starts[name].append(time.perf_counter() - began)
            for token in ids:
                began = time.perf_counter()
                step(matcher, token)
                masks[name].append(time.perf_counter() - began)
    print(f"{tokenizer.vocab_size} pieces, {len(ids)} tokens")
    for name in sides:
        start, mask = statistics.median(starts[name]), statistics.median(masks[name])
        worst = float(np.percentile(masks[name], 99))
        print(
            f"{name:11} schema {start * 1e6:8.0f} µs   mask {mask * 1e6:6.1f} µs, "
            f"99th percentile {worst * 1e6:7.1f} µs"
        )


if __name__ == "__main__":
    main()
