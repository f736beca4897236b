"""Meta's folders: shards cut with torch, params.json, and what is written read by torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.config import PRESETS, ffn_dim
from puna.formats import meta, open_checkpoint
from puna.tokenizer.sentencepiece_model import write_model
from tests.formats.conftest import (
    assert_same,
    assert_same_tensors,
    flipped,
    make_checkpoint,
    make_config,
    make_vocabulary,
    truncated,
)

# 64 -> 170 -> 192: what `multiple_of` 32 gives.
PARAMS = {
    "dim": 64, "multiple_of": 32, "n_heads": 8, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": -1,
}  # fmt: skip
CONFIG = make_config(num_heads=8, num_kv_heads=8, ffn_dim=192, context_length=4096)

# How Meta's model cuts each kind of weight (fairscale's Column- and RowParallelLinear).
COLUMN_PARALLEL = ("wq", "wk", "wv", "w1", "w3", "output")
ROW_PARALLEL = ("wo", "w2", "tok_embeddings")


def meta_weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in CONFIG.tensor_shapes().items()
    }


def to_huggingface(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """transformers' convert_llama_weights_to_hf.py, `permute`."""
    rows, columns = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def save_shards(folder: Path, weights: dict[str, torch.Tensor], count: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        shard = {"rope.freqs": torch.ones(4)}
        for name, weight in weights.items():
            part = name.split(".")[-2]
            if part in COLUMN_PARALLEL:
                weight = weight.chunk(count, dim=0)[number]
            elif part in ROW_PARALLEL:
                weight = weight.chunk(count, dim=1)[number].contiguous()
            shard[name] = weight.clone()
        torch.save(shard, folder / f"consolidated.{number:02}.pth")


def save_params(folder: Path, **changes: Any) -> None:
    (folder / "params.json").write_text(json.dumps(PARAMS | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_shards_join_to_the_same_weights(tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    weights = meta_weights(dtype)
    save_shards(tmp_path, weights, count)
    save_params(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "meta"
    assert checkpoint.config == CONFIG
    assert checkpoint.notes == ("context length 4096 assumed: params.json does not say",)
    assert checkpoint.vocabulary is None
    assert list(checkpoint.tensors) == list(weights)
    for name, weight in weights.items():
        part = name.split(".")[-2]
        expected = to_huggingface(weight, 8) if part in ("wq", "wk") else weight
        raw = checkpoint.tensors[name].read()
        assert torch.equal(torch.from_numpy(raw.copy()).view(dtype), expected), name


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_round_trip(tmp_path: Path, dtype: str, count: int) -> None:
    checkpoint = make_checkpoint(dtype, rope_theta=5e5, norm_eps=1e-6)
    seen: list[str] = []
    meta.write(checkpoint, tmp_path / "a", on_tensor=seen.append, num_shards=count)
    assert seen == list(checkpoint.tensors)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        *(f"consolidated.{number:02}.pth" for number in range(count)),
        "params.json",
        "tokenizer.model",
    ]
    again = open_checkpoint(tmp_path / "a")
    assert_same(again, checkpoint)
    assert again.notes == ()


def test_torch_reads_the_shards(tmp_path: Path) -> None:
    """And joins them to Meta's layout, whose inverse permutation gives the weights back."""
    checkpoint = make_checkpoint("bf16", num_heads=8, num_kv_heads=4)
    meta.write(checkpoint, tmp_path / "a", num_shards=4)
    shards = [
        torch.load(tmp_path / "a" / f"consolidated.{n:02}.pth", weights_only=True, mmap=True)
        for n in range(4)
    ]
    for name, tensor in checkpoint.tensors.items():
        part = name.split(".")[-2]
        pieces = [shard[name] for shard in shards]
        whole = pieces[0]
        if part in COLUMN_PARALLEL or part in ROW_PARALLEL:
            whole = torch.cat(pieces, dim=0 if part in COLUMN_PARALLEL else 1)
        if part in ("wq", "wk"):
            whole = to_huggingface(whole, 8 if part == "wq" else 4)
        assert torch.equal(whole, torch.from_numpy(tensor.read().copy()).view(torch.bfloat16)), name


def test_a_tied_head_is_written_as_a_copy(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("f16", tied=True)
    seen: list[str] = []
    meta.write(checkpoint, tmp_path / "a", on_tensor=seen.append)
    assert seen == list(checkpoint.tensors)
    again = open_checkpoint(tmp_path / "a")
    assert not again.config.tied
    output, embedding = (again.tensors[f"{n}.weight"] for n in ("output", "tok_embeddings"))
    np.testing.assert_array_equal(output.read(), embedding.read())


def test_a_missing_output_means_tied(tmp_path: Path) -> None:
    weights = meta_weights()
    del weights["output.weight"]
    save_shards(tmp_path, weights, 2)
    save_params(tmp_path)
    assert open_checkpoint(tmp_path).config.tied


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_seq_len": 123}, {"context_length": 123}),
        ({"norm_eps": 1e-6}, {"context_length": 2048, "norm_eps": 1e-6}),
        ({"rope_theta": 1000000}, {"rope_theta": 1000000}),
        ({"vocab_size": 320, "n_kv_heads": 8, "ffn_dim_multiplier": None}, {}),
        ({"multiple_of": 16, "ffn_dim_multiplier": 1.1}, {}),
    ],
)
def test_params(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    save_shards(tmp_path, meta_weights(), 1)
    save_params(tmp_path, **changes)
    config = open_checkpoint(tmp_path).config.to_dict()
    assert config == CONFIG.to_dict() | expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_scaled_rope": True}, "unknown keys.*use_scaled_rope"),
        ({"dim": 64.0}, r"params.json: dim \(byte 1\): dim = 64.0 is not plausible"),
        ({"dim": True}, "dim = True"),
        ({"dim": None}, "dim = None"),
        ({"dim": 10**400}, "not plausible"),
        ({"dim": 128}, "do not add up to dim 128"),
        ({"n_layers": 10**7}, "tensors .*there are 21; the config says 10000000 layers"),
        ({"n_layers": 3}, "lacks layers.2.attention_norm"),
        ({"n_layers": 1}, "which a Llama of this shape has not"),
        ({"n_heads": 7}, "does not divide into 7 heads"),
        (
            {"n_kv_heads": 2},
            r"consolidated.00.pth: layers.0.attention.wk.weight \(byte \d+\): has shape",
        ),
        ({"multiple_of": 0}, "multiple_of = 0"),
        ({"multiple_of": 256}, r"feed_forward.w1.weight \(byte \d+\): has shape"),
        ({"ffn_dim_multiplier": 1e-9}, "ffn_dim must be positive"),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier = inf"),
        ({"norm_eps": float("nan")}, "norm_eps = nan"),
        ({"norm_eps": "1e-5"}, "norm_eps = '1e-5'"),
        ({"vocab_size": 32000}, r"tok_embeddings.weight \(byte \d+\): has shape"),
        ({"vocab_size": -2}, "vocab_size = -2"),
    ],
)
def test_wrong_params(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_shards(tmp_path, meta_weights(), 1)
    save_params(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_wrong_shards(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    save_shards(folder, meta_weights(), 4)
    save_params(folder)
    last = folder / "consolidated.03.pth"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(ValueError, match="do not add up to dim 64; is a shard missing"):
        open_checkpoint(folder)
    last.write_bytes(kept)
    (folder / "consolidated.01.pth").rename(tmp_path / "aside.pth")
    with pytest.raises(ValueError, match=r"consolidated.01.pth \(byte 0\): the folder lacks"):
        open_checkpoint(folder)
    (tmp_path / "aside.pth").rename(folder / "consolidated.01.pth")
    open_checkpoint(folder)
    shard = torch.load(last, weights_only=True)
    for change, message in [
        ({"norm.weight": None}, r"norm.weight \(byte \d+\): it is not in both"),
        ({"x": torch.ones(1)}, r"x \(byte \d+\): it is not in both"),
        (
            {"output.weight": torch.ones(79, 64)},
            r"output.weight \(byte \d+\): the shards' parts of it do not fit",
        ),
        (
            {"output.weight": torch.ones(80, 64).half()},
            r"output.weight \(byte \d+\): the shards' parts of it do not fit",
        ),
    ]:
        changed = {name: t for name, t in (shard | change).items() if t is not None}
        last.unlink()
        torch.save(changed, last)
        with pytest.raises(ValueError, match=message):
            open_checkpoint(folder)


def test_the_tokenizer_may_lie_one_folder_up(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "llama-2-7b"
    save_shards(folder, meta_weights(), 1)
    save_params(folder)
    (tmp_path / "tokenizer.model").write_bytes(write_model(make_vocabulary()))
    assert open_checkpoint(folder).vocabulary == make_vocabulary()
    monkeypatch.chdir(folder)
    assert open_checkpoint(Path()).vocabulary == make_vocabulary()


@pytest.mark.parametrize("count", [0, 3, 4, 101])
def test_shards_that_do_not_divide(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match="shards"):
        meta.write(make_checkpoint(), tmp_path / "a", num_shards=count)
    assert not list(tmp_path.iterdir())


def test_blocks_are_refused(tmp_path: Path) -> None:
    for count in (1, 2):
        with pytest.raises(ValueError, match="give --dtype"):
            meta.write(make_checkpoint("q8_0"), tmp_path / "a", num_shards=count)
    assert not list(tmp_path.iterdir())


def test_ffn_parameters_reproduce_every_width() -> None:
    assert meta.ffn_parameters(8192, 28672) == (4096, 1.3)  # as in Meta's 70B
    assert meta.ffn_parameters(4096, 11008) == (256, None)
    generator = np.random.default_rng(0)
    pairs = [(c.dim, c.ffn_dim) for c in PRESETS.values()]
    pairs += [(int(d) * 2, int(f)) for d, f in generator.integers(1, 40000, (500, 2))]
    for dim, width in pairs:
        multiple_of, multiplier = meta.ffn_parameters(dim, width)
        assert ffn_dim(dim, multiple_of=multiple_of, multiplier=multiplier) == width


def test_damage_is_a_value_error(
    tmp_path: Path, reads: Callable[[Path, Path, bytes], bool]
) -> None:
    folder = tmp_path / "a"
    meta.write(make_checkpoint("f16", vocab_size=320), folder, num_shards=2)
    for name, begin, size in [
        ("consolidated.01.pth", 0, 6000),
        ("params.json", 0, 10**9),
        ("tokenizer.model", 0, 10**9),
    ]:
        file = folder / name
        data = file.read_bytes()
        cuts = list(truncated(data))
        if name == "params.json":
            cuts = [cut for cut in cuts if cut.strip() != data.strip()]
        if name != "tokenizer.model":  # which is whole after any piece
            assert not any(reads(folder, file, cut) for cut in cuts)
        for damaged in (*cuts, *flipped(data, begin, min(size, len(data)), 150)):
            reads(folder, file, damaged)
        assert reads(folder, file, data)


def test_what_is_read_is_ones_own(tmp_path: Path) -> None:
    """Changing it changes neither the file nor what is read again."""
    checkpoint = make_checkpoint("f16")
    meta.write(checkpoint, tmp_path / "a")
    again = open_checkpoint(tmp_path / "a")
    assert_same_tensors(again.tensors, checkpoint.tensors)
    again.tensors["output.weight"].read()[:] = 0
    assert_same_tensors(again.tensors, checkpoint.tensors)
