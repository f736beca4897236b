"""A model with an adapter, merged or beside it, says what the two say in llama.cpp together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.commands.models import resolve
from puna.engine.cpu.runner import NativeRunner
from puna.formats import save_checkpoint
from puna.formats.adapters import merged, open_adapter, read_pairs
from puna.formats.checkpoint import Checkpoint
from tests.engine.cpu.test_runner import rows
from tests.formats.test_lora import EMBEDDING, PARTS, Pairs, make_pairs, write_gguf, write_peft

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = pytest.mark.peers

TEXT = "Once upon a time there was a little llama"
COUNT = 24


def run(path: Path, prompt: list[int], lora: Path | None = None, scale: float = 1.0) -> Any:
    """Logits after each token of the prompt and its greedy continuation, and that continuation."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=128, n_batch=128, n_threads=1, n_threads_batch=1, type_k=0, type_v=0,
        logits_all=True, verbose=False, lora_path=lora and str(lora), lora_scale=scale,
    )  # fmt: skip
    llama.eval(prompt)
    out: list[int] = []
    for _ in range(COUNT):
        out.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(out[-1:])
    return llama.scores[: llama.n_tokens].copy(), out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """The shipped model with an output head of its own, in F32."""
    cria = resolve("cria")
    tensors = {name: tensor.converted("f32") for name, tensor in cria.tensors.items()}
    tensors["output.weight"] = tensors[EMBEDDING]
    config = replace(cria.config, tied=False)
    checkpoint = replace(cria, config=config, tensors=tensors)
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    save_checkpoint(checkpoint, path, "gguf")
    return checkpoint, path


def pairs_for(checkpoint: Checkpoint, kind: str) -> Pairs:
    layers = range(checkpoint.config.num_layers)
    matrices = tuple(f"layers.{layer}.{part}.weight" for layer in layers for part in PARTS)
    names = {
        "queries and keys": tuple(n for n in matrices if n.endswith(("wq.weight", "wk.weight"))),
        "all": matrices,
        "embedding and output": (EMBEDDING, "output.weight"),
    }[kind]
    return {n: (a * 0.03, b * 0.2) for n, (a, b) in make_pairs(checkpoint, names, rank=8).items()}


@pytest.mark.parametrize("source", ["gguf", "peft"])
@pytest.mark.parametrize("kind", ["queries and keys", "all", "embedding and output"])
def test_merged_is_base_and_adapter(
    tmp_path: Path, base: tuple[Checkpoint, Path], kind: str, source: str
) -> None:
    checkpoint, base_path = base
    prompt = checkpoint.tokenizer().encode(TEXT, bos=True)
    pairs = pairs_for(checkpoint, kind)
    lora = write_gguf(tmp_path / "lora.gguf", checkpoint, pairs, 12.0)
    path = lora
    if source == "peft":
        path = write_peft(tmp_path / "lora", pairs, lora_alpha=12)
    save_checkpoint(merged(checkpoint, open_adapter(path), 0.75), tmp_path / "merged.gguf", "gguf")
    plain, _ = run(base_path, prompt)
    together, said_together = run(base_path, prompt, lora, 0.75)
    as_one, said_as_one = run(tmp_path / "merged.gguf", prompt)
    assert said_as_one == said_together
    assert np.abs(plain[: len(prompt)] - together[: len(prompt)]).max() > 0.5  # it does something
    assert np.abs(as_one - together).max() < 2e-3
    # Puna's engine with the adapter beside the weights, fed the same tokens.
    adapter = open_adapter(path).scaled(0.75)
    runner = NativeRunner(checkpoint, num_pages=8)
    runner.load_adapter(0, read_pairs(adapter, checkpoint.config, checkpoint.path))
    tokens = np.array(prompt + said_together, np.int32)
    batch = rows(tokens, 0, len(tokens), list(range(8)))
    beside = runner.step(replace(batch, adapters=np.array([0], np.int32))).logits
    assert np.abs(beside - together).max() < 2e-3
