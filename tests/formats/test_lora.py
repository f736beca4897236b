"""LoRA adapters of every kind: against plain numpy, the `gguf` package's writer, and PEFT."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from puna.formats import save_checkpoint
from puna.formats.adapters import merged, open_adapter
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.formats.names import GGUF, HUGGINGFACE
from puna.quantize.storage import STORAGE
from tests.formats.conftest import flipped, make_checkpoint, truncated
from tests.samples import random_model, small_config, transformers_twin

PARTS = (
    "attention.wq", "attention.wk", "attention.wv", "attention.wo",
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
)  # fmt: skip
EMBEDDING = "tok_embeddings.weight"
MATRICES = tuple(f"layers.{layer}.{part}.weight" for layer in range(2) for part in PARTS)

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def make_pairs(
    checkpoint: Checkpoint,
    names: tuple[str, ...] = MATRICES,
    rank: int = 3,
    dtype: Any = np.float32,
) -> Pairs:
    """{name: (A (rank, in), B (out, rank))} in Hugging Face's row order."""
    generator = np.random.default_rng(7)
    pairs = {}
    for name in names:
        rows, columns = (1, *checkpoint.tensors[name].shape)[-2:]
        a, b = generator.standard_normal((rank, columns)), generator.standard_normal((rows, rank))
        pairs[name] = a.astype(dtype), b.astype(dtype)
    return pairs


def expected(checkpoint: Checkpoint, pairs: Pairs, scale: float) -> dict[str, np.ndarray]:
    """W + scale * B A, one output row at a time, in float64."""
    out = {}
    for name, tensor in checkpoint.tensors.items():
        w = tensor.read_float32().astype(np.float64)
        if name in pairs:
            a, b = (matrix.astype(np.float64) for matrix in pairs[name])
            rows = w.reshape(len(b), -1)
            w = np.stack([rows[o] + scale * (b[o] @ a) for o in range(len(b))]).reshape(w.shape)
        out[name] = w
    return out


def assert_merged(actual: Checkpoint, wanted: dict[str, np.ndarray], atol: float = 2e-5) -> None:
    assert set(actual.tensors) == set(wanted)
    for name, w in wanted.items():
        np.testing.assert_allclose(
            actual.tensors[name].read_float32(), w, rtol=1e-5, atol=atol, err_msg=name
        )


def peft_names(pairs: Pairs) -> dict[str, np.ndarray]:
    out = {}
    for name, (a, b) in pairs.items():
        module = "base_model.model." + HUGGINGFACE.foreign(name).removesuffix(".weight")
        if name == EMBEDDING:  # looked up: A (rank, vocabulary), B (width, rank)
            out |= {f"{module}.lora_embedding_A": b.T, f"{module}.lora_embedding_B": a.T}
        else:
            out |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def write_peft(folder: Path, pairs: Pairs, **changes: Any) -> Path:
    folder.mkdir()
    rank = next(iter(pairs.values()))[0].shape[0]
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": False,
        "modules_to_save": None, "target_modules": ["q_proj"], "use_rslora": False,
        "use_dora": False, "lora_dropout": 0.05, "init_lora_weights": True, "rank_pattern": {},
        "alpha_pattern": {}, "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    save_file(peft_names(pairs), folder / "adapter_model.safetensors")
    return folder


def write_ggla(path: Path, pairs: Pairs, alpha: int = 6, gguf_names: bool = False) -> Path:
    """convert-lora-to-ggml.py of 2023: A transposed, B as it is, rows not permuted."""
    rank = next(iter(pairs.values()))[0].shape[0]
    out = bytearray(b"algg" + struct.pack("<iii", 1, rank, alpha))
    for name, (a, b) in pairs.items():
        name = GGUF.foreign(name) if gguf_names else name
        for suffix, array in (("loraA", a.T), ("loraB", b)):
            shape = array.shape if array.shape[0] > 1 else array.shape[1:]
            raw = f"{name}.{suffix}".encode()
            out += struct.pack("<iii", len(shape), len(raw), int(array.dtype == np.float16))
            out += struct.pack(f"<{len(shape)}i", *shape[::-1]) + raw
            out += bytes(-len(out) % 32)
            out += array.tobytes()  # C order, as `tofile` writes
    path.write_bytes(out)
    return path


def permuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's `permute`: Hugging Face's rows -> GGUF's."""
    heads = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def in_gguf_order(checkpoint: Checkpoint, pairs: Pairs) -> Pairs:
    heads = {"wq": checkpoint.config.num_heads, "wk": checkpoint.config.num_kv_heads}
    out = {}
    for name, (a, b) in pairs.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        out[name] = a, permuted(b, heads[part]) if part in heads else b
    return out


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    pairs: Pairs,
    alpha: float | None = 6.0,
    architecture: str = "llama",
    kind: str = "lora",
    more: dict[str, np.ndarray] | None = None,
    as_q8_0: bool = False,
) -> Path:
    """The keys and tensors of convert_lora_to_gguf.py."""
    writer = reference.GGUFWriter(path, architecture)
    writer.add_type(reference.GGUFType.ADAPTER)
    writer.add_string(reference.Keys.Adapter.TYPE, kind)
    if alpha is not None:
        writer.add_float32(reference.Keys.Adapter.LORA_ALPHA, alpha)
    tensors = {}
    for name, (a, b) in in_gguf_order(checkpoint, pairs).items():
        if name == EMBEDDING:
            # lora_embedding_A is transposed, lora_embedding_B is not.
            a, b = b, a.T
        tensors |= {f"{GGUF.foreign(name)}.lora_a": a, f"{GGUF.foreign(name)}.lora_b": b}
    q8_0 = reference.GGMLQuantizationType.Q8_0
    for name, array in (tensors | (more or {})).items():
        if as_q8_0:
            raw = reference.quants.quantize(np.ascontiguousarray(array), q8_0)
            writer.add_tensor(name, raw, raw_dtype=q8_0)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write(kind: str, path: Path, checkpoint: Checkpoint, pairs: Pairs) -> Path:
    if kind == "peft":
        return write_peft(path / "adapter", pairs)
    if kind == "gguf":
        return write_gguf(path / "adapter.gguf", checkpoint, pairs)
    return write_ggla(path / "adapter.bin", pairs, gguf_names=kind == "ggla, GGUF's names")


KINDS = ("peft", "gguf", "ggla", "ggla, GGUF's names")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_kind_adds_the_same(tmp_path: Path, kind: str, dtype: Any) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint, dtype=dtype)
    adapter = open_adapter(write(kind, tmp_path, checkpoint, pairs))
    assert set(adapter.parts) == set(MATRICES)
    assert {part.scale for part in adapter.parts.values()} == {2.0}
    assert_merged(merged(checkpoint, adapter), expected(checkpoint, pairs, 2.0), 1e-4)
    assert_merged(merged(checkpoint, adapter, -0.25), expected(checkpoint, pairs, -0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_few_matrices_and_notes(tmp_path: Path, kind: str) -> None:
    checkpoint = replace(make_checkpoint(), notes=("assumed",))
    pairs = make_pairs(checkpoint, MATRICES[2:3])
    result = merged(checkpoint, open_adapter(write(kind, tmp_path, checkpoint, pairs)), 0.5)
    assert_merged(result, expected(checkpoint, pairs, 1.0))
    assert result.notes[0] == "assumed"
    assert result.notes[1].endswith("is merged into 1 tensors, 0.5 times")
    assert len(result.notes) == 2
    for name in set(checkpoint.tensors) - set(pairs):
        assert result.tensors[name] is checkpoint.tensors[name]


@pytest.mark.parametrize("kind", ["peft", "gguf"])
def test_embedding_and_output(tmp_path: Path, kind: str) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint, (EMBEDDING, "output.weight"))
    adapter = open_adapter(write(kind, tmp_path, checkpoint, pairs))
    assert_merged(merged(checkpoint, adapter), expected(checkpoint, pairs, 2.0))
    tied = make_checkpoint(tied=True)
    for name, message in ((EMBEDDING, "also the output head"), ("output.weight", "has not")):
        with pytest.raises(FormatError, match=message):
            merged(tied, replace(adapter, parts={name: adapter.parts[name]}))


def test_llama_cpps_finetune(tmp_path: Path) -> None:
    """Its `ggla` files change everything, norms as matrices of one row, rows in GGUF's order."""
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint, tuple(checkpoint.tensors), rank=4)
    path = write_ggla(tmp_path / "lora.bin", in_gguf_order(checkpoint, pairs), gguf_names=True)
    adapter = open_adapter(path)
    assert adapter.interleaved and adapter.notes == ()
    assert_merged(merged(checkpoint, adapter), expected(checkpoint, pairs, 6 / 4), 1e-4)


def test_converted_rows_are_said_to_be_in_hugging_faces_order(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    adapter = open_adapter(write_ggla(tmp_path / "a.bin", make_pairs(checkpoint)))
    assert not adapter.interleaved
    assert any("Hugging Face's order" in note for note in merged(checkpoint, adapter).notes)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_keeps_the_storage_type(tmp_path: Path, dtype: str) -> None:
    checkpoint = make_checkpoint(dtype)
    pairs = make_pairs(checkpoint)
    result = merged(checkpoint, open_adapter(write("peft", tmp_path, checkpoint, pairs)))
    wanted = expected(checkpoint, pairs, 2.0)
    again = [note for note in result.notes if "rounded a second time" in note]
    assert len(again) == (dtype in ("q8_0", "q4_0"))
    for name in pairs:
        tensor = result.tensors[name]
        assert (tensor.dtype, tensor.shape) == (dtype, checkpoint.tensors[name].shape)
        # The bits of what the type makes of the sum, but for sums at the very edge of two codes.
        bits = STORAGE[dtype].quantize(wanted[name].astype(np.float32), None)
        assert (tensor.read() != bits).mean() < 0.001


def test_a_large_matrix_is_summed_in_chunks(tmp_path: Path, monkeypatch: Any) -> None:
    from puna.formats.adapters import merge

    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint)
    adapter = open_adapter(write("gguf", tmp_path, checkpoint, pairs))
    monkeypatch.setattr(merge, "_CHUNK", 200)
    assert_merged(merged(checkpoint, adapter), expected(checkpoint, pairs, 2.0), 1e-4)


def test_two_adapters_add_up_and_save(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint)
    first = open_adapter(write("peft", tmp_path, checkpoint, pairs))
    second = open_adapter(write("gguf", tmp_path, checkpoint, pairs))
    result = merged(merged(checkpoint, first, 0.5), second, 0.25)
    wanted = expected(checkpoint, pairs, 1.5)
    assert_merged(result, wanted, 1e-4)
    save_checkpoint(result, tmp_path / "out.gguf", "gguf")
    stored = {t.name: t.data for t in reference.GGUFReader(tmp_path / "out.gguf").tensors}
    name = "layers.1.feed_forward.w2.weight"
    np.testing.assert_allclose(stored[GGUF.foreign(name)], wanted[name], rtol=1e-5, atol=1e-4)


def test_gguf_scales_as_llama_cpp_does(tmp_path: Path) -> None:
    """alpha / rank of each pair, or 1 where there is no alpha; blocks of q8_0 are read."""
    checkpoint = make_checkpoint()
    for alpha in (None, 0.0):
        pairs = make_pairs(checkpoint, MATRICES[:1])
        adapter = open_adapter(write_gguf(tmp_path / f"{alpha}", checkpoint, pairs, alpha))
        assert adapter.parts[MATRICES[0]].scale == 1.0
    pairs = make_pairs(checkpoint, (*MATRICES, EMBEDDING), rank=32)
    adapter = open_adapter(write_gguf(tmp_path / "q8", checkpoint, pairs, 16.0, as_q8_0=True))
    wanted = expected(checkpoint, pairs, 0.5)
    for name, tensor in merged(checkpoint, adapter).tensors.items():
        np.testing.assert_allclose(tensor.read_float32(), wanted[name], atol=0.3)


def test_peft_scales(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint) | make_pairs(checkpoint, MATRICES[1:2], rank=5)
    folder = write_peft(
        tmp_path / "a", pairs, use_rslora=True,
        alpha_pattern={"v_proj": 9, "^model.layers.0.self_attn.o_proj": 12, "proj_q": 1},
        rank_pattern={"layers\\.0\\.self_attn\\.k_proj": 5},
    )  # fmt: skip
    scales = {name: part.scale for name, part in open_adapter(folder).parts.items()}
    for name in MATRICES:
        alpha = 9 if "wv" in name else 12 if name == MATRICES[3] else 6
        rank = 5 if name == MATRICES[1] else 3
        assert scales[name] == pytest.approx(alpha / rank**0.5), name


def test_peft_bin(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint)
    folder = write_peft(tmp_path / "a", pairs)
    (folder / "adapter_model.safetensors").unlink()
    tensors = {name: torch.from_numpy(array) for name, array in peft_names(pairs).items()}
    torch.save(tensors, folder / "adapter_model.bin")
    assert_merged(merged(checkpoint, open_adapter(folder)), expected(checkpoint, pairs, 2.0), 1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 5},
        {"rank_pattern": {"k_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    ],
)
def test_peft_merges_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = small_config()
    model = random_model(config)
    everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(
            transformers_twin(model),
            peft.LoraConfig(**{"r": 4, "target_modules": everything} | settings),
        )
        generator = torch.Generator().manual_seed(1)
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.data.normal_(0.0, 0.3, generator=generator)
        tuned.save_pretrained(tmp_path)
        wanted = tuned.merge_and_unload().state_dict()

    def lazy(weight: torch.Tensor) -> LazyTensor:
        raw = weight.detach().numpy().view(np.uint8)
        return LazyTensor(tuple(weight.shape), "f32", lambda: raw)

    weights = {name: lazy(weight) for name, weight in model.state_dict().items()}
    base = Checkpoint("test", tmp_path, config, weights)
    result = merged(base, open_adapter(tmp_path))
    changed = 0
    for name, tensor in result.tensors.items():
        other = wanted[HUGGINGFACE.foreign(name)].numpy()
        changed += not np.array_equal(tensor.read(), base.tensors[name].read())
        np.testing.assert_allclose(tensor.read_float32(), other, atol=1e-5, err_msg=name)
    assert changed == (4 if "target_modules" in settings else 14)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"), ("bias", "all"), ("lora_bias", True), ("use_dora", True),
        ("fan_in_fan_out", True), ("modules_to_save", ["lm_head"]), ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]), ("alora_invocation_tokens", [1, 2]),
        ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"),
        ("r", 0), ("r", 4), ("r", "3"), ("r", None), ("lora_alpha", None), ("lora_alpha", True),
        ("lora_alpha", float("nan")), ("lora_alpha", float("inf")), ("lora_alpha", 10**400),
        ("use_rslora", "yes"), ("alpha_pattern", ["q_proj"]), ("alpha_pattern", {"(a*)*b": 1}),
        ("alpha_pattern", {"q_proj": "2"}), ("rank_pattern", {"q_proj": 4}),
    ],
)  # fmt: skip
def test_peft_settings_that_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    folder = write_peft(tmp_path / "a", make_pairs(make_checkpoint()), **{key: value})
    with pytest.raises(FormatError) as caught:
        open_adapter(folder)
    assert key in str(caught.value) or "has rank 3" in caught.value.problem


def no_read() -> Any:
    raise AssertionError("a weight was read")


def unreadable(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {name: replace(t, read=no_read) for name, t in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_for_other_models_are_refused_before_reading(tmp_path: Path, kind: str) -> None:
    checkpoint = make_checkpoint()
    adapter = open_adapter(write(kind, tmp_path, checkpoint, make_pairs(checkpoint)))
    blind = replace(
        adapter,
        parts={
            name: replace(p, a=replace(p.a, read=no_read), b=replace(p.b, read=no_read))
            for name, p in adapter.parts.items()
        },
    )
    merged(unreadable(checkpoint), blind)
    with pytest.raises(FormatError, match=r"changes layers\.1\."):
        merged(unreadable(make_checkpoint(num_layers=1)), blind)
    with pytest.raises(FormatError, match=r"is for layers\.0\.feed_forward\.w\d\.weight of"):
        merged(unreadable(make_checkpoint(ffn_dim=128)), blind)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"added (nan|inf) times"):
            merged(checkpoint, blind, scale)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_no_numbers(tmp_path: Path, kind: str) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint)
    pairs[MATRICES[2]][0][0, 0] = np.nan
    result = merged(checkpoint, open_adapter(write(kind, tmp_path, checkpoint, pairs)))
    result.tensors[MATRICES[1]].read()
    with pytest.raises(FormatError, match=r"makes layers\.0\.attention\.wv\.weight no finite"):
        result.tensors[MATRICES[2]].read()


def test_a_sum_that_its_type_cannot_hold(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("f16")
    adapter = open_adapter(write("peft", tmp_path, checkpoint, make_pairs(checkpoint)))
    with pytest.raises(
        ValueError, match=r"layers\.0\.attention\.wq\.weight, with .* merged: .*f16"
    ):
        merged(checkpoint, adapter, 1e6).tensors[MATRICES[0]].read()


def renamed(old: str, new: str) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old.encode(), new.encode())


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda d: d[:4] + struct.pack("<i", 2) + d[8:], "version", "known is 1"),
        (lambda d: d[:8] + struct.pack("<i", 0) + d[12:], "r", "rank of 0"),
        (lambda d: d[:8] + struct.pack("<i", -1) + d[12:], "r", "rank of -1"),
        (renamed("0.attention.wv.weight.loraB", "0.attention.wv.weight.loraC"), None, "neither"),
        (renamed("0.attention.wv.weight.loraB", "0.attention.wo.weight.loraB"), None, "twice"),
        (renamed("0.attention.wv.weight.loraB", "0.attention.xv.weight.loraB"), None, "other half"),
        (lambda d: d + b"\0" * 32, None, "0 dimensions"),
        (lambda d: d[:-1], None, "bytes of the"),
        (lambda d: d[:16], "adapter", "no tensors"),
    ],
)
def test_damaged_ggla(
    tmp_path: Path, change: Callable[[bytes], bytes], field: str | None, message: str
) -> None:
    path = write_ggla(tmp_path / "a.bin", make_pairs(make_checkpoint()))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError, match=re.escape(message)) as caught:
        open_adapter(path)
    assert field in (None, caught.value.field)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "falcon"}, "general.architecture .*is 'falcon'"),
        ({"kind": "ia3"}, "adapter.type .*is 'ia3'"),
        ({"alpha": float("nan")}, "adapter.lora.alpha .*nan"),
        ({"more": {"blk.0.attn_norm.weight": np.ones(4, np.float32)}}, "no half"),
        ({"more": {"blk.1.ffn_up.weight.lora_c": np.ones((4, 4), np.float32)}}, "no half"),
        ({"more": {"blk.9.ffn_up.weight.lora_a": np.ones((4, 4), np.float32)}}, "other half"),
    ],
)
def test_other_gguf_adapters(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint)
    with pytest.raises(FormatError, match=message):
        open_adapter(write_gguf(tmp_path / "a.gguf", checkpoint, pairs, **settings))


def test_ranks_must_agree(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint, MATRICES[:1])
    a, b = pairs[MATRICES[0]]
    wrong = {MATRICES[0]: (a, b[:, :2])}
    for path in (
        write_gguf(tmp_path / "a.gguf", checkpoint, wrong),
        write_ggla(tmp_path / "a.bin", wrong),
        write_peft(tmp_path / "a", wrong),
    ):
        with pytest.raises(FormatError, match="no rank in common"):
            open_adapter(path)


def test_whole_matrices_in_peft_folders(tmp_path: Path) -> None:
    """The base's own embedding may lie there; a trained one is refused by its name."""
    checkpoint = make_checkpoint()
    pairs = make_pairs(checkpoint)
    folder = write_peft(tmp_path / "a", pairs)
    embedding = checkpoint.tensors[EMBEDDING].read_float32()
    prefix = "base_model.model.model.embed_tokens"
    for name, message in ((f"{prefix}.base_layer.weight", None), (f"{prefix}.weight", "no half")):
        save_file(peft_names(pairs) | {name: embedding}, folder / "adapter_model.safetensors")
        if message is None:
            assert set(open_adapter(folder).parts) == set(MATRICES)
            continue
        with pytest.raises(FormatError, match=message) as caught:
            open_adapter(folder)
        assert caught.value.field == name


def test_what_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match="is no LoRA adapter"):
            open_adapter(path)
    with pytest.raises(ValueError, match="no such file"):
        open_adapter(tmp_path / "b")
    save_checkpoint(make_checkpoint(), tmp_path / "model.gguf", "gguf")
    with pytest.raises(FormatError, match=r"general.type .*is 'model', not 'adapter'"):
        open_adapter(tmp_path / "model.gguf")
    folder = write_peft(tmp_path / "c", make_pairs(make_checkpoint()))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"nor adapter_model\.bin"):
        open_adapter(folder)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_damage_is_a_value_error(tmp_path: Path, kind: str) -> None:
    checkpoint = make_checkpoint()
    path = write(kind, tmp_path, checkpoint, make_pairs(checkpoint, MATRICES[:3]))
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        data = file.read_bytes()
        damage = [*truncated(data, 20), *flipped(data, 0, min(len(data), 1200), 150)]
        for damaged in damage:
            file.write_bytes(damaged)
            try:
                result = merged(checkpoint, open_adapter(path))
                for tensor in result.tensors.values():
                    tensor.read()
            except ValueError as error:
                assert len(str(error).splitlines()) == 1 and str(path) in str(error)
        file.write_bytes(data)
