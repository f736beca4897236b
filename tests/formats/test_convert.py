"""Opening and saving across formats: what is kept, what is said, what is never destroyed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puna.formats import FORMATS, open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.files import atomic_directory, atomic_file
from puna.quantize.storage import Bytes
from tests.formats.conftest import (
    CHAT_TEMPLATE,
    assert_same,
    assert_same_tensors,
    make_checkpoint,
    make_vocabulary,
)

# Formats that can say all of a config; test_matrix.py tells of the others.
WRITABLE = ("huggingface", "meta", "gguf")


def save_name(folder: Path, format: str) -> Path:
    return folder / f"model{FORMATS[format].suffix}"


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(WRITABLE, 2)))
def test_there_and_back_is_exact(tmp_path: Path, first: str, second: str, dtype: str) -> None:
    checkpoint = make_checkpoint(num_kv_heads=4, norm_eps=1e-6, rope_theta=3e4)
    save_checkpoint(checkpoint, save_name(tmp_path, first), first, dtype=dtype)
    opened = open_checkpoint(save_name(tmp_path, first))
    assert opened.format == first
    save_checkpoint(opened, save_name(tmp_path / "b", second), second)
    again = open_checkpoint(save_name(tmp_path / "b", second))
    matrices = {n: t for n, t in checkpoint.tensors.items() if len(t.shape) == 2}
    assert_same_tensors(
        {name: again.tensors[name] for name in matrices},
        {name: tensor.converted(dtype) for name, tensor in matrices.items()},
    )
    assert again.config == checkpoint.config
    assert again.vocabulary == checkpoint.vocabulary
    for name in set(checkpoint.tensors) - set(matrices):
        # GGUF keeps norms in f32, in which they are still what `dtype` made of them or better.
        norm = again.tensors[name].converted(dtype).read()
        np.testing.assert_array_equal(norm, checkpoint.tensors[name].converted(dtype).read())
    assert again.chat_template == (CHAT_TEMPLATE if "meta" not in (first, second) else None)


@pytest.mark.parametrize(
    ("format", "dtype", "norms"),
    [
        ("huggingface", "f16", "f16"),
        ("hf", "bf16", "bf16"),
        ("meta", "f32", "f32"),
        ("gguf", "f16", "f32"),
        ("gguf", "q8_0", "f32"),
    ],
)
def test_storage_types(tmp_path: Path, format: str, dtype: str, norms: str) -> None:
    save_checkpoint(make_checkpoint("bf16"), tmp_path / "a", format, dtype=dtype)
    for tensor in open_checkpoint(tmp_path / "a").tensors.values():
        assert tensor.dtype == (dtype if len(tensor.shape) == 2 else norms)


def test_rows_that_blocks_do_not_fill_fall_back(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(ffn_dim=172)
    notes = save_checkpoint(checkpoint, tmp_path / "a.gguf", "gguf", dtype="q8_0")
    assert notes == [
        "2 tensors have rows of 172 numbers, which q8_0's blocks do not fill; stored as f16"
    ]
    opened = open_checkpoint(tmp_path / "a.gguf")
    for name, tensor in opened.tensors.items():
        expected = {1: "f32", 172: "f16", 64: "q8_0"}[tensor.shape[-1] if tensor.shape[1:] else 1]
        assert tensor.dtype == expected, name
        assert_same_tensors({name: tensor}, {name: checkpoint.tensors[name].converted(expected)})


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    assert save_checkpoint(checkpoint, tmp_path / "a.gguf", "gguf") == []
    assert save_checkpoint(checkpoint, tmp_path / "a", "hf") == []
    bare = replace(checkpoint, load_vocabulary=lambda: None, license="")
    assert save_checkpoint(bare, tmp_path / "b", "meta") == [
        "the chat template is lost: meta has no place for it",
        "there is no tokenizer to write",
    ]
    assert open_checkpoint(tmp_path / "b").vocabulary is None


@pytest.mark.parametrize("format", WRITABLE)
def test_a_failure_leaves_nothing_behind(tmp_path: Path, format: str) -> None:
    def fail() -> Bytes:
        raise KeyboardInterrupt

    checkpoint = make_checkpoint()
    broken = dict(checkpoint.tensors)
    broken["norm.weight"] = LazyTensor((64,), "f32", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(replace(checkpoint, tensors=broken), tmp_path / "a", format)
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(checkpoint, tmp_path / "a", format)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(replace(checkpoint, tensors=broken), tmp_path / "a", format, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert_same(open_checkpoint(tmp_path / "a"), checkpoint)


@pytest.mark.parametrize("format", WRITABLE)
def test_overwriting_is_asked_for(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    save_checkpoint(make_checkpoint(seed=1), path, format)
    with pytest.raises(ValueError, match="exists already"):
        save_checkpoint(make_checkpoint(seed=2), path, format)
    save_checkpoint(make_checkpoint(seed=2), path, format, overwrite=True)
    assert_same(open_checkpoint(path), make_checkpoint(seed=2))
    # Even by what is read from it.
    save_checkpoint(open_checkpoint(path), path, format, overwrite=True)
    assert_same(open_checkpoint(path), make_checkpoint(seed=2))


def test_only_checkpoints_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for format in WRITABLE:
        with pytest.raises(ValueError, match=r"papers is a folder"):
            save_checkpoint(make_checkpoint(), folder, format, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    for format in ("huggingface", "meta"):
        with pytest.raises(ValueError, match=r"thesis.txt is a file"):
            save_checkpoint(make_checkpoint(), folder / "thesis.txt", format, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_checkpoint(make_checkpoint(), tmp_path / "empty", "hf", overwrite=True)
    with pytest.raises(ValueError, match="cannot be written"):
        save_checkpoint(make_checkpoint(), folder / "thesis.txt" / "a", "gguf")


def test_files_and_folders_do_not_replace_each_other(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    with pytest.raises(ValueError, match="is a folder"), atomic_file(folder, overwrite=True):
        pass
    with pytest.raises(ValueError, match="is a file"), atomic_directory(file, overwrite=True):
        pass


@pytest.mark.parametrize("format", ["onnx", "GGUF", ""])
def test_formats_that_are_not_there(tmp_path: Path, format: str) -> None:
    with pytest.raises(ValueError, match=r"give one of .*huggingface, meta, gguf"):
        save_checkpoint(make_checkpoint(), tmp_path / "a", format)


def test_unknown_types(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no storage or mix 'q4'"):
        save_checkpoint(make_checkpoint(), tmp_path / "a", "gguf", dtype="q4")
    assert list(tmp_path.iterdir()) == []
    notes = save_checkpoint(make_checkpoint(), tmp_path / "a", "meta", dtype="q8_0")
    assert notes[-1] == "meta cannot hold q8_0: 16 tensors are stored as f16"


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder: .*absent"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "file.txt").write_text("GGU")
    (tmp_path / "empty.bin").touch()
    for path in (tmp_path, tmp_path / "file.txt", tmp_path / "empty.bin"):
        with pytest.raises(ValueError, match=r"no known format; known are .*huggingface.*llama2c"):
            open_checkpoint(path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match="no known format"):
        open_checkpoint(tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 64, "n_heads": 4, "n_layers": 2}')
    (tmp_path / "consolidated.00.pth").mkdir()
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        open_checkpoint(tmp_path)
    (tmp_path / "params.json").write_bytes(b'{"\x1b[31m\n": 1}')
    with pytest.raises(ValueError, match=r"params\.json") as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    save_checkpoint(make_checkpoint(), path, "gguf")
    path.chmod(0)
    with pytest.raises(ValueError, match="Permission denied"):
        open_checkpoint(path)


def test_a_vocabulary_given_replaces_the_files_own(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    save_checkpoint(checkpoint, tmp_path / "a", "hf")
    other = replace(make_vocabulary(), add_space_prefix=False)
    assert open_checkpoint(tmp_path / "a", other).vocabulary == other
    pieces = make_vocabulary()
    small = replace(pieces, pieces=pieces.pieces[:50], scores=pieces.scores[:50],
                    types=tuple(t if t < 6 else t.NORMAL for t in pieces.types[:50]))  # fmt: skip
    with pytest.raises(ValueError, match="do not belong together"):
        open_checkpoint(tmp_path / "a", small)


def test_only_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    """Each is read once, and the one before it is gone by then."""
    checkpoint = make_checkpoint()
    alive: list[int] = [0]

    class Watched(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            if self.base is not None and type(self.base) is not Watched:
                alive[0] -= 1

    def watched(tensor: LazyTensor) -> LazyTensor:
        def read() -> Bytes:
            assert alive[0] <= 1
            alive[0] += 1
            return tensor.read().copy().view(Watched)

        return replace(tensor, read=read)

    tensors = {name: watched(tensor) for name, tensor in checkpoint.tensors.items()}
    for format in WRITABLE:
        save_checkpoint(replace(checkpoint, tensors=tensors), tmp_path / format, format)
        assert alive == [0]
        assert_same(open_checkpoint(tmp_path / format), checkpoint)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys; from puna.formats import open_checkpoint; "
        "assert not {'torch', 'transformers', 'safetensors', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_checkpoint_is_exported() -> None:
    import puna.formats

    assert puna.formats.Checkpoint is Checkpoint
