"""Checkpoints in pieces: put together, cut out again, converted, and refused where damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.cli import puna
from puna.formats import FormatError, open_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.manifest import (
    MANIFEST,
    FileFacts,
    Manifest,
    file_facts,
    first_damage,
    read_manifest,
)
from puna.formats.pieces import OFFSETS_KEY, find_pieces, put_together
from puna.formats.run_folder import checkpoint_path
from puna.formats.safetensors_file import write_arrays
from puna.quantize.storage import STORAGE
from puna.tokenizer.sentencepiece_model import write_model
from tests.formats.conftest import make_checkpoint

NAMES = {"f32": "F32", "bf16": "BF16"}
Cuts = list[tuple[int, int, int, int]]  # rows and columns of a file, as quarters of the whole
GRID: Cuts = [(0, 1, 0, 2), (1, 4, 0, 2), (0, 1, 2, 4), (1, 4, 2, 4)]


def write_sharded(folder: Path, checkpoint: Checkpoint, cuts: Cuts = GRID) -> Path:
    """A checkpoint's folder; matrices are cut, norms are whole in the first file."""
    folder.mkdir(parents=True)
    for number, (top, bottom, left, right) in enumerate(cuts):
        specs, offsets, arrays = {}, {}, []
        for name, tensor in checkpoint.tensors.items():
            values = tensor.read()
            if len(tensor.shape) == 1:
                if number == 0:
                    specs[name], offsets[name] = (NAMES[tensor.dtype], tensor.shape), [0]
                    arrays.append(values)
                continue
            (rows, columns), size = tensor.shape, STORAGE[tensor.dtype].num_bytes((1,))
            begin, end = (
                (top * rows // 4, left * columns // 4),
                (
                    bottom * rows // 4,
                    right * columns // 4,
                ),
            )
            specs[name] = (NAMES[tensor.dtype], (end[0] - begin[0], end[1] - begin[1]))
            offsets[name] = list(begin)
            arrays.append(values[begin[0] : end[0], begin[1] * size : end[1] * size])
        info = json.dumps({name: {"saved_offsets": begin} for name, begin in offsets.items()})
        with open(folder / f"weights-{number:05}.safetensors", "wb") as file:
            write_arrays(file, specs, arrays, {OFFSETS_KEY: info})
    if checkpoint.vocabulary is not None:
        (folder / "tokenizer.model").write_bytes(write_model(checkpoint.vocabulary))
    files = {path.name: file_facts(path) for path in folder.iterdir()}
    write_manifest(folder, Manifest(checkpoint.config, {"step": 1, "tokens": 2}, files))
    return folder


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.to_json())


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_pieces_make_up_the_whole(tmp_path: Path, dtype: str) -> None:
    source = make_checkpoint(dtype)
    opened = open_checkpoint(write_sharded(tmp_path / "model", source))
    assert (opened.format, opened.config) == ("sharded", source.config)
    assert opened.vocabulary == source.vocabulary
    for name, tensor in source.tensors.items():
        assert opened.tensors[name].dtype == dtype
        assert np.array_equal(opened.tensors[name].read(), tensor.read())
        assert opened.tensors[name].origin is not None


def test_a_box_is_cut_out_of_the_pieces_that_it_meets(tmp_path: Path) -> None:
    source = make_checkpoint()
    folder = write_sharded(tmp_path / "model", source)
    found = find_pieces(sorted(folder.glob("weights-*")))
    saved = put_together(found, source.config.tensor_shapes(), folder)
    generator = np.random.default_rng(0)
    for name, tensor in source.tensors.items():
        values = tensor.read_float32()
        for _ in range(20):
            edges = [sorted(generator.choice(size + 1, 2, replace=False)) for size in values.shape]
            begin = tuple(int(low) for low, _ in edges)
            shape = tuple(int(high - low) for low, high in edges)
            box = saved[name].read(begin, shape)
            expected = values[tuple(slice(low, high) for low, high in edges)]
            assert np.array_equal(box.view(np.float32).reshape(shape), expected)


def test_commands_take_a_checkpoint_or_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_checkpoint()
    run = tmp_path / "run"
    write_sharded(checkpoint_path(run, 5), make_checkpoint(seed=3))
    newest = write_sharded(checkpoint_path(run, 20), source)
    checkpoint_path(run, 30).mkdir()  # no manifest: not whole
    (run / "config.json").write_text('{"stage": "pretrain"}')

    def command(*words: object) -> str:
        puna.main([str(word) for word in words], standalone_mode=False)
        return capsys.readouterr().out

    facts = json.loads(command("info", run, "--json"))
    assert (facts["format"], facts["dtype"]) == ("sharded", ["f32"])
    assert facts["notes"] == ["this is step-00000020, the newest checkpoint of the run"]
    for asked in (run, newest):
        for name, format in (("meta", "meta"), ("hf", "hf"), ("model.gguf", "gguf")):
            destination = tmp_path / asked.name / name
            destination.parent.mkdir(exist_ok=True)
            command("convert", asked, destination, "--format", format, "--overwrite")
            written = open_checkpoint(destination)
            assert written.vocabulary is not None
            for key, tensor in source.tensors.items():
                assert np.array_equal(written.tensors[key].read_float32(), tensor.read_float32())
    text = command("complete", "--model", run, "--prompt", "llama", "--max-tokens", "3")
    assert text.strip()


def test_what_does_not_match_its_manifest_is_named(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "model", make_checkpoint())
    files = read_manifest(folder).files
    assert first_damage(folder, files, files) == ""
    path = folder / "weights-00002.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "weights-00002.safetensors does not have its checksum" in first_damage(
        folder, files, files
    )
    path.write_bytes(data[:-7])
    assert f"has {len(data) - 7} bytes of {len(data)}" in first_damage(folder, files, files)
    path.unlink()
    assert "weights-00002.safetensors is missing" in first_damage(folder, files, files)
    assert first_damage(folder, files, ["tokenizer.model"]) == ""


def forged(change: Callable[[Manifest], Manifest]) -> Callable[[Path], None]:
    """A manifest that was changed by someone who knows its checksum."""
    return lambda folder: write_manifest(folder, change(read_manifest(folder)))


def edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / MANIFEST).read_text()
        assert old in text
        (folder / MANIFEST).write_text(text.replace(old, new, 1))

    return edit


def offsets_of(number: int, value: Any) -> Callable[[Path], None]:
    """Other offsets of one tensor in a shard, which keeps its data."""

    def edit(folder: Path) -> None:
        path = folder / f"weights-{number:05}.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        info = json.loads(header["__metadata__"][OFFSETS_KEY])
        info["layers.0.attention.wq.weight"] = value
        header["__metadata__"][OFFSETS_KEY] = json.dumps(info)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edited('"tokens": 2', '"tokens": 3'), "checksum .*was changed or damaged"),
        (edited('"version": 1', '"version": 2'), "no puna checkpoint of version 1"),
        (forged(lambda m: replace(m, files={"../x": FileFacts(1, "")})), "outside its folder"),
        (forged(lambda m: replace(m, files={"..": FileFacts(1, "")})), "outside its folder"),
        (forged(lambda m: replace(m, files={})), "the file lacks|there are 0"),
        (forged(lambda m: replace(m, model=replace(m.model, num_layers=10**6))), "there are"),
        (forged(lambda m: replace(m, model=replace(m.model, ffn_dim=100))), "make up|ends at"),
        (lambda folder: (folder / "weights-00003.safetensors").unlink(), "cannot be read"),
        (offsets_of(1, {"saved_offsets": [0, 0]}), "the same piece is there twice|make up"),
        (offsets_of(1, {"saved_offsets": [15, 0]}), "ends at|make up"),
        (offsets_of(1, {"saved_offsets": [16]}), "cannot begin at"),
        (offsets_of(1, {"saved_offsets": [-16, 0]}), "cannot begin at"),
        (offsets_of(1, [16, 0]), "cannot begin at"),
        (offsets_of(1, None), "cannot begin at"),
    ],
)
def test_damage_is_a_format_error(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = write_sharded(tmp_path / "model", make_checkpoint())
    damage(folder)
    with pytest.raises(FormatError, match=words):
        open_checkpoint(folder)
