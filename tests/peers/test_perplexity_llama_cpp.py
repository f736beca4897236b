"""Perplexity of the shipped model, from llama.cpp's logits and from Puna's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from puna.commands.models import resolve
from puna.evaluate.perplexity import chunk_windows, network_logits, perplexity
from puna.formats.network import load_model
from tests.peers.llama_cpp_model import Model

pytestmark = pytest.mark.peers
CONTEXT, CHUNKS = 512, 4


def test_the_shipped_model_has_the_perplexity_that_llama_cpp_finds(shared: Path) -> None:
    checkpoint = resolve("cria")
    text = (shared / "pretrain" / "wikitext-2-test.txt").read_text()[:12000]
    ids = checkpoint.tokenizer().encode(text, bos=True)[: CONTEXT * CHUNKS]
    peer = Model(checkpoint.path, CONTEXT)
    assert peer.llama.tokenize(text.encode(), add_bos=True)[: len(ids)] == ids
    surprises = []
    for begin in range(0, len(ids), CONTEXT):
        chunk = ids[begin : begin + CONTEXT]
        logits = peer.logits([checkpoint.tokenizer().bos_id, *chunk[1:]]).astype(np.float64)
        for position in range(CONTEXT // 2, CONTEXT - 1):
            row = logits[position] - logits[position].max()
            surprises.append(math.log(np.exp(row).sum()) - row[chunk[position + 1]])
    assert len(surprises) == CHUNKS * 255
    windows = chunk_windows(ids, context=CONTEXT, bos_id=checkpoint.tokenizer().bos_id)
    found = perplexity(network_logits(load_model(checkpoint)), windows)
    assert found.count == len(surprises)
    # llama.cpp multiplies in F16 here.
    assert found.nll == pytest.approx(np.mean(surprises), abs=2e-3)
