"""GGUF files that Puna writes run in llama.cpp, and those that llama.cpp quantizes run in Puna.

llama.cpp rounds what it multiplies with a quantized matrix to eight bits, Puna's network does not,
so the two part in near ties whoever wrote the file. Agreement is therefore asked of what llama.cpp
itself reads from a file (`as_f32`), and of the file as it is that they part in near ties only.
"""

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
NEAR_TIE = 0.5  # of logits whose deviation is 2.3


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


def as_f32(path: Path) -> Path:
    """The same weights as F32, dequantized by llama.cpp."""
    plain = path.with_suffix(".f32.gguf")
    quantize(path, plain, FILE_TYPES["f32"], allow_requantize=True)
    return plain


def assert_agree(path: Path, tokens: list[list[int]]) -> None:
    """llama.cpp and the torch network hold the same token the likeliest, in 99 of 100 places."""
    network = load_model(open_checkpoint(path))
    ours = np.concatenate([puna_logits(network, row) for row in tokens])
    plain, direct = (
        np.concatenate([Model(file).logits(row).argmax(-1) for row in tokens])
        for file in (as_f32(path), path)
    )
    same = float((plain == ours.argmax(-1)).mean())
    print(f"{same:.4f} dequantized by llama.cpp, {(direct == ours.argmax(-1)).mean():.4f} as it is")
    assert same >= 0.99
    behind = ours.max(-1) - np.take_along_axis(ours, direct[:, None], -1)[:, 0]
    assert behind.max() < NEAR_TIE


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
    assert_agree(tmp_path / "a.gguf", tokens)


@pytest.mark.parametrize("mix", [name for name in MIXES if name != "q2_k_s"])
def test_what_llama_cpp_writes_runs_in_puna(
    tmp_path: Path, tokens: list[list[int]], mix: str
) -> None:
    quantize(resolve("cria").path, tmp_path / "a.gguf", FILE_TYPES[mix])
    assert_agree(tmp_path / "a.gguf", tokens)


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
