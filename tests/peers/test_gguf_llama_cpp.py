"""GGUF files that Puna writes run in llama.cpp, and those that llama.cpp quantizes run in Puna."""

from __future__ import annotations

from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import torch

from puna.attention import causal
from puna.commands.models import resolve
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.gguf import FILE_TYPES
from puna.formats.names import GGUF
from puna.formats.network import load_model
from puna.heads import next_token_logits
from puna.quantize.mixes import MIXES, storage_types
from puna.quantize.storage import STORAGE
from tests.formats.conftest import make_checkpoint
from tests.peers.llama_cpp_model import Model, quantize

pytestmark = pytest.mark.peers

TEXTS = (
    "Once upon a time there was a little llama who lived on the high grassland with her mother. ",
    "The capital of Peru is Lima. The people of the country live in the mountains and by the sea. ",
    "He said that he would come back in the morning, and then the old man went to sleep by a fire.",
)
TYPES = ["f16", "bf16", *(name for name in STORAGE if STORAGE[name].block_size > 1)]


@pytest.fixture(scope="module")
def tokens() -> list[list[int]]:
    """Three texts that the shipped model continues itself, 180 tokens each."""
    checkpoint = resolve("cria")
    network = load_model(checkpoint)
    rows = []
    for text in TEXTS:
        ids = checkpoint.tokenizer().encode(text, bos=True)
        while len(ids) < 180:
            ids.append(int(puna_logits(network, ids)[-1].argmax()))
        rows.append(ids)
    return rows


@torch.inference_mode()
def puna_logits(network, tokens: list[int]) -> np.ndarray:
    ids = torch.tensor([tokens])
    hidden = network(ids, torch.arange(len(tokens))[None], causal)
    return next_token_logits(network, hidden)[0].numpy()


def agreement(path: Path, tokens: list[list[int]]) -> float:
    """How often llama.cpp and the torch network, on one file, hold the same token the likeliest."""
    peer, network = Model(path), load_model(open_checkpoint(path))
    same = [(peer.logits(row).argmax(-1) == puna_logits(network, row).argmax(-1)) for row in tokens]
    return float(np.concatenate(same).mean())


def test_f32_says_the_same(tmp_path: Path) -> None:
    save_checkpoint(resolve("cria"), tmp_path / "a.gguf", "gguf", dtype="f32")
    network = load_model(open_checkpoint(tmp_path / "a.gguf"))
    ids = resolve("cria").tokenizer().encode("Once upon a time", bos=True)
    expected = list(ids)
    for _ in range(200):
        expected.append(int(puna_logits(network, expected)[-1].argmax()))
    assert Model(tmp_path / "a.gguf").greedy(ids, 200) == expected[len(ids) :]


@pytest.mark.parametrize("dtype", TYPES)
def test_what_puna_writes_runs_in_llama_cpp(
    tmp_path: Path, tokens: list[list[int]], dtype: str
) -> None:
    save_checkpoint(resolve("cria"), tmp_path / "a.gguf", "gguf", dtype=dtype, pure=True)
    found = agreement(tmp_path / "a.gguf", tokens)
    print(f"{dtype} written by Puna: {found:.4f}")
    assert found >= 0.99


@pytest.mark.parametrize("mix", [name for name in MIXES if name != "q2_k_s"])
def test_what_llama_cpp_writes_runs_in_puna(
    tmp_path: Path, tokens: list[list[int]], mix: str
) -> None:
    quantize(resolve("cria").path, tmp_path / "a.gguf", FILE_TYPES[mix])
    found = agreement(tmp_path / "a.gguf", tokens)
    print(f"{mix} written by llama.cpp: {found:.4f}")
    assert found >= 0.99


@pytest.mark.parametrize("mix", [name for name in MIXES if name != "q2_k_s"])
@pytest.mark.parametrize("shape", ["plain", "tied", "grouped", "narrow"])
def test_mixes_are_llama_cpps(tmp_path: Path, mix: str, shape: str) -> None:
    """The type of every tensor, for 32 layers; q2_k_s is what llama.cpp writes with an imatrix."""
    changes = {
        "plain": {},
        "tied": {"tied": True},
        "grouped": {"num_heads": 8, "num_kv_heads": 2},
        "narrow": {"ffn_dim": 320},
    }[shape]
    values = {"dim": 256, "num_layers": 32, "num_kv_heads": 4, "ffn_dim": 256, **changes}
    checkpoint = make_checkpoint("f16", **values)
    save_checkpoint(checkpoint, tmp_path / "a.gguf", "gguf")
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", FILE_TYPES[mix])
    tensors = reference.GGUFReader(tmp_path / "b.gguf").tensors
    theirs = {tensor.name: tensor.tensor_type.name.lower() for tensor in tensors}
    ours, _ = storage_types(checkpoint.config, mix)
    assert {GGUF.foreign(name): dtype for name, dtype in ours.items()} == {
        name: dtype for name, dtype in theirs.items() if name in map(GGUF.foreign, ours)
    }


@pytest.mark.parametrize("dtype", ["q4_k_m", "q8_0"])
def test_general_file_type_is_the_mixs(tmp_path: Path, dtype: str) -> None:
    save_checkpoint(resolve("cria"), tmp_path / "a.gguf", "gguf", dtype=dtype)
    fields = reference.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["general.file_type"].contents() == FILE_TYPES[dtype]
