"""Packed weights that are kept: the same bits, never stale, damage noticed, room respected."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.engine.batch import Batch
from puna.engine.cpu import weights
from puna.engine.cpu.runner import NativeRunner
from puna.engine.cpu.tile_cache import TileCache
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.adapters.adapter import Adapter, LowRank
from puna.formats.adapters.merge import merged
from puna.formats.checkpoint import Checkpoint
from puna.formats.errors import FormatError
from puna.formats.network import as_checkpoint
from puna.kernels import native
from puna.kernels.tiles import checksum, pack
from tests.samples import random_model, small_config

pytestmark = pytest.mark.skipif(not native.available(), reason="native code was not built")

SHAPE = {"dim": 256, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 512, "context_length": 64}


def saved(path: Path, *, seed: int = 1, dtype: str = "q4_0", **shape: Any) -> Path:
    source = as_checkpoint(random_model(small_config(**SHAPE | shape), seed=seed), path, None)
    options: dict[str, Any] = {"dtype": dtype, "overwrite": True}
    save_checkpoint(source, path, "gguf" if path.suffix else "hf", **options)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.gguf")


@pytest.fixture
def cache(tmp_path: Path) -> TileCache:
    return TileCache(tmp_path / "cache", least=0)


def logits(
    model: Path | Checkpoint, cache: TileCache | None = None, dtype: str | None = None
) -> NDArray[np.float32]:
    checkpoint = open_checkpoint(model) if isinstance(model, Path) else model
    each = np.arange(20, dtype=np.int32)
    zeros, table = np.zeros_like(each), np.array([[0, 1]], np.int32)
    runner = NativeRunner(checkpoint, num_pages=2, dtype=dtype, cache=cache)
    return runner.step(Batch(each, each, zeros, table, each)).logits


def unreadable(path: Path) -> Checkpoint:
    """The model, of which no matrix can be read: all must come from the cache."""
    checkpoint = open_checkpoint(path)

    def fail() -> Any:
        raise AssertionError("a matrix was read")

    tensors = {
        name: tensor if len(tensor.shape) == 1 else replace(tensor, read=fail)
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)


def only_file(cache: TileCache) -> Path:
    (kept,) = cache.files()
    assert {path.name for path in cache.folder.iterdir()} == {kept.path.name}
    return kept.path


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q4_0", "q5_1", "q8_0", "q3_k", "q4_k", "q6_k"])
@pytest.mark.parametrize("tied", [False, True])
def test_kept_weights_give_the_same_bits(
    dtype: str, tied: bool, tmp_path: Path, cache: TileCache
) -> None:
    model = saved(tmp_path / "model.gguf", dtype=dtype, tied=tied)
    expected = logits(model)
    assert np.array_equal(logits(model, cache), expected)
    only_file(cache)
    assert np.array_equal(logits(unreadable(model), cache), expected)


def test_hugging_face_folders_are_kept_too(tmp_path: Path, cache: TileCache) -> None:
    model = saved(tmp_path / "hf", dtype="bf16")
    expected = logits(model)
    for checkpoint in (open_checkpoint(model), unreadable(model)):
        assert np.array_equal(logits(checkpoint, cache), expected)


@pytest.mark.parametrize("rows", [1, 16, 48, 97])
def test_threads_share_the_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.library()
    assert library is not None
    stored = np.random.default_rng(0).integers(0, 256, (rows, 36), np.uint8)
    whole = pack(library, "q4_0", stored, 64).data
    monkeypatch.setattr("puna.kernels.tiles._PART", 16 * 36)
    used = np.full_like(whole, 7)  # memory that held something else
    parts: list[int] = []

    def backwards(function: Any, begins: Any) -> list[None]:
        parts.extend(begins)
        return [function(begin) for begin in reversed(parts)]

    pack(library, "q4_0", stored, 64, used, backwards)
    assert parts == list(range(0, rows, 16))
    assert np.array_equal(used, whole)


def test_changed_weights_are_packed_anew(model: Path, cache: TileCache) -> None:
    logits(model, cache)
    status = model.stat()
    saved(model, seed=2)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copying program may
    assert model.stat().st_size == status.st_size
    assert np.array_equal(logits(model, cache), logits(model))


def test_weights_changed_in_place_are_packed_anew(model: Path, cache: TileCache) -> None:
    before = logits(model, cache)
    status = model.stat()
    with open(model, "r+b") as file:
        file.seek(status.st_size // 2)
        file.write(b"\x12\x34\x56\x78")
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = logits(model, cache)
    assert np.array_equal(after, logits(model)) and not np.array_equal(after, before)


def test_another_type_is_another_file(model: Path, cache: TileCache) -> None:
    for dtype in (None, "f32", None, "f32"):
        assert np.array_equal(logits(model, cache, dtype), logits(model, None, dtype))
    assert len(cache.files()) == 2


def test_another_version_is_another_file(
    model: Path, cache: TileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(model, cache)
    old = only_file(cache)
    monkeypatch.setattr(weights, "_version", lambda library: "next")
    with pytest.raises(AssertionError, match="a matrix was read"):
        logits(unreadable(model), cache)
    logits(model, cache)
    assert only_file(cache) != old  # which nobody could use again


def test_what_has_no_known_origin_is_not_kept(model: Path, cache: TileCache) -> None:
    network = random_model(small_config(**SHAPE), seed=1)
    logits(as_checkpoint(network, model, None), cache)
    checkpoint = open_checkpoint(model)
    name = "layers.0.feed_forward.w1.weight"
    weighed = checkpoint.tensors[name].converted("q8_0", np.ones(256, np.float32))
    logits(replace(checkpoint, tensors={**checkpoint.tensors, name: weighed}), cache)
    assert not cache.folder.exists()


def test_small_models_are_not_kept(model: Path, tmp_path: Path) -> None:
    logits(model, TileCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


DAMAGE = {
    "cut off": lambda raw: raw[:-1],
    "empty": lambda raw: b"",
    "longer": lambda raw: raw + b"\0",
    "magic": lambda raw: b"x" + raw[1:],
    "header": lambda raw: raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
    "a bit": lambda raw: raw[:-5000] + bytes([raw[-5000] ^ 1]) + raw[-4999:],
    "a hole": lambda raw: raw[: 3 << 20] + bytes(4096) + raw[(3 << 20) + 4096 :],
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_noticed(
    what: str, tmp_path: Path, cache: TileCache, caplog: pytest.LogCaptureFixture
) -> None:
    model = saved(tmp_path / "model.gguf", dtype="f32", num_layers=1)
    expected = logits(model, cache)
    path = only_file(cache)
    whole = path.read_bytes()
    damaged = DAMAGE[what](whole)
    assert damaged != whole
    path.write_bytes(damaged)
    (kept,) = cache.files()
    assert kept.model == ("" if what in ("empty", "magic", "header") else str(model))
    with caplog.at_level(logging.WARNING, "puna"):
        assert np.array_equal(logits(model, cache), expected)
    assert "cannot be used" in caplog.text
    assert path.read_bytes() == whole


def test_two_words_that_change_places_change_the_checksum() -> None:
    library = native.library()
    assert library is not None
    data = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    found = {checksum(library, data), checksum(library, data[:-1]), checksum(library, data[1:])}
    words = data.view(np.uint64)
    for a, b in ((0, 8), (0, 1), (3, 100), (117, 124)):
        words[[a, b]] = words[[b, a]]
        found.add(checksum(library, data))
        words[[a, b]] = words[[b, a]]
    assert len(found) == 7


def test_several_at_once(model: Path, cache: TileCache) -> None:
    expected = logits(model)
    results: list[bool] = []
    ready = threading.Barrier(4)

    def start() -> None:
        ready.wait()
        results.append(np.array_equal(logits(model, cache), expected))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    only_file(cache)


def test_a_killed_process_leaves_nothing_that_is_used(model: Path, cache: TileCache) -> None:
    program = f"""
import os
from pathlib import Path
from puna.engine.cpu import weights
from puna.engine.cpu.runner import NativeRunner
from puna.engine.cpu.tile_cache import TileCache
from puna.formats import open_checkpoint
packed = weights._each_packed
def dying(*arguments):
    for number, part in enumerate(packed(*arguments)):
        if number == 5:
            os.kill(os.getpid(), 9)
        yield part
weights._each_packed = dying
cache = TileCache(Path({str(cache.folder)!r}), least=0)
NativeRunner(open_checkpoint(Path({str(model)!r})), num_pages=1, cache=cache)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, check=False, timeout=120)
    assert done.returncode == -9
    (partial,) = cache.folder.iterdir()
    assert not cache.files()
    assert np.array_equal(logits(model, cache), logits(model))
    assert only_file(cache) != partial  # that is gone


def test_what_another_process_is_writing_stays(model: Path, cache: TileCache) -> None:
    cache.folder.mkdir()
    partial = cache.folder / ".being-made.tiles.0.partial"
    with open(partial, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        logits(model, cache)
        assert partial.exists() and len(cache.files()) == 1
    logits(saved(model, seed=2), cache)
    assert not partial.exists()


def test_what_this_process_is_writing_stays(cache: TileCache) -> None:
    library = native.library()
    assert library is not None
    data = np.arange(4096, dtype=np.uint64).view(np.uint8)

    def while_others_clean_up() -> Any:
        TileCache(cache.folder).clear()
        yield data

    key = {"model": str(cache.folder), "version": "1"}
    found = cache.put(library, key, [(0, data.size)], while_others_clean_up())
    assert found is not None and np.array_equal(found, data)
    assert not found.flags.writeable


def test_an_adapter_is_part_of_what_weights_are_known_by(tmp_path: Path, cache: TileCache) -> None:
    base, other = (
        open_checkpoint(saved(tmp_path / f"{seed}.gguf", seed=seed, dtype="f32")) for seed in (1, 2)
    )
    name = "layers.0.attention.wq.weight"
    square = other.tensors[name]
    changed = []
    for a, b in ((square, base.tensors[name]), (base.tensors[name], square)):
        part = LowRank(a, b, 1.0, lambda problem: FormatError(tmp_path, "part", 0, problem))
        adapter = Adapter("test", tmp_path, {name: part})
        changed += [merged(base, adapter, scale) for scale in (0.1, 0.2)]
    for checkpoint in (base, *changed):
        for _ in range(2):
            assert np.array_equal(logits(checkpoint, cache), logits(checkpoint))
    assert len(cache.files()) == 5


def test_a_full_disk_is_said_and_costs_nothing_else(
    model: Path, cache: TileCache, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((2 << 20) + 100_000, hard))
    try:
        with caplog.at_level(logging.WARNING, "puna"):
            found = logits(model, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert np.array_equal(found, expected)
    assert "are not kept" in caplog.text and "File too large" in caplog.text
    assert not list(cache.folder.iterdir())


def test_a_folder_that_cannot_be_made(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "puna"):
        found = logits(model, TileCache(tmp_path / "file" / "cache", least=0))
    assert np.array_equal(found, logits(model))
    assert "are not kept" in caplog.text


def test_those_not_used_for_longest_go_first(tmp_path: Path, cache: TileCache) -> None:
    models = [saved(tmp_path / f"{seed}.gguf", seed=seed) for seed in range(3)]
    size = 0
    for number, model in enumerate(models[:2]):
        logits(model, cache)
        size = cache.files()[0].num_bytes
        os.utime(cache.files()[0].path, ns=(number, number))
    assert [Path(kept.model).name for kept in cache.files()] == ["1.gguf", "0.gguf"]
    logits(unreadable(models[0]), cache)  # uses it again
    bounded = TileCache(cache.folder, least=0, most=5 * size // 2)
    logits(models[2], bounded)
    assert [Path(kept.model).name for kept in cache.files()] == ["2.gguf", "0.gguf"]


def test_one_that_is_too_large_displaces_none(
    tmp_path: Path, cache: TileCache, caplog: pytest.LogCaptureFixture
) -> None:
    logits(saved(tmp_path / "small.gguf"), cache)
    large = saved(tmp_path / "large.gguf", dtype="f32")
    bounded = TileCache(cache.folder, least=0, most=2 * cache.files()[0].num_bytes)
    with caplog.at_level(logging.WARNING, "puna"):
        assert np.array_equal(logits(large, bounded), logits(large))
    assert "are not kept" in caplog.text
    assert [Path(kept.model).name for kept in cache.files()] == ["small.gguf"]


def test_weights_of_a_model_that_is_gone_go_too(tmp_path: Path, cache: TileCache) -> None:
    first, second = saved(tmp_path / "1.gguf"), saved(tmp_path / "2.gguf", seed=2)
    for model in (first, second):
        logits(model, cache)
    first.unlink()
    assert cache.prune() > 0
    assert [Path(kept.model).name for kept in cache.files()] == ["2.gguf"]
    assert cache.clear() > 0 and not list(cache.folder.iterdir())
