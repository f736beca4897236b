"""Torch's zip files: against torch itself in both directions, and against what pickles can do."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.formats import pickled
from puna.formats.pickle_machine import Machine
from puna.formats.pickled import read_pickled, write_pickled
from tests.formats.conftest import flipped, make_checkpoint, truncated


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(12, 10, generator=generator)
    return {
        "f32": torch.randn(3, 4, generator=generator),
        "f16": torch.randn(7, generator=generator).half(),
        "bf16": torch.randn(2, 3, 4, generator=generator).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2, 2, generator=generator)),
        "shared": base,
        "slice of it": base[3:7],
        "columns of it": base[:, 2:5],
        "transposed": base.t(),
        "transposed bf16": base.bfloat16()[1:].t(),
        "a single row": base[:1, ::2],
        "ünïcode \n name": torch.ones(1),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_saves(tmp_path: Path, protocol: int) -> None:
    tensors = some_tensors()
    torch.save(tensors, tmp_path / "a.pth", pickle_protocol=protocol)
    read = read_pickled(tmp_path / "a.pth")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].read().tobytes() == torch_bytes(tensor), name


def test_reads_a_state_dict(tmp_path: Path) -> None:
    """Which is an OrderedDict with an attribute `_metadata`."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5, bias=False))
    state = module.state_dict()
    assert isinstance(state, OrderedDict) and hasattr(state, "_metadata")
    torch.save(state, tmp_path / "a.bin")
    read = read_pickled(tmp_path / "a.bin")
    assert {n: t.read().tobytes() for n, t in read.items()} == {
        n: torch_bytes(t) for n, t in state.items()
    }


@pytest.mark.parametrize("zip64_from", [1 << 30, 1])
def test_torch_reads_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip64_from: int
) -> None:
    monkeypatch.setattr(pickled, "_ZIP64_FROM", zip64_from)
    tensors = some_tensors()
    torch.save(tensors, tmp_path / "a.pth")
    with open(tmp_path / "b.pth", "wb") as file:
        write_pickled(file, read_pickled(tmp_path / "a.pth"))
    for mapped in (True, False):
        loaded = torch.load(tmp_path / "b.pth", weights_only=True, mmap=mapped)
        assert list(loaded) == list(tensors)
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor), name
    loaded = torch.load(tmp_path / "b.pth", weights_only=True, mmap=True)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())
    with zipfile.ZipFile(tmp_path / "b.pth") as archive:
        assert archive.testzip() is None
    again = read_pickled(tmp_path / "b.pth")
    assert again["transposed"].read().tobytes() == torch_bytes(tensors["transposed"])


def test_writes_the_same_bytes_twice_and_not_only_to_files() -> None:
    tensors = make_checkpoint("bf16").tensors
    first, second = io.BytesIO(), io.BytesIO()
    write_pickled(first, tensors)
    write_pickled(second, tensors)
    assert first.getvalue() == second.getvalue()


def test_large_numbers_are_written_so_that_torch_reads_them() -> None:
    tensor = make_checkpoint().tensors["norm.weight"]
    huge = type(tensor)((3, 1 << 31), "f16", tensor.read)
    root = Machine(Path("a.pth"), 0).run(pickled._pickle({"x": huge}))
    assert root["x"].shape == (3, 1 << 31) and root["x"].strides == (1 << 31, 1)
    assert root["x"].storage.num_elements == 3 << 31


def test_blocks_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"as q8_0; give --dtype"):
        write_pickled(io.BytesIO(), make_checkpoint("q8_0").tensors)


class Code:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def save_pickle(path: Path, data: bytes, records: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in (records or {}).items():
            archive.writestr(f"archive/{name}", content)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("place", ["root", "value", "beside"])
def test_code_is_refused_and_never_run(tmp_path: Path, protocol: int, place: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    code = Code(os.system, f"touch {marker}")
    root = {"root": code, "value": {"x": code}, "beside": {"x": torch.ones(2), "y": [code]}}[place]
    if protocol < 2:
        save_pickle(path, pickle.dumps({"y": code}, protocol))
    else:
        torch.save(root, path, pickle_protocol=protocol)
    with pytest.raises(ValueError, match="refused") as caught:
        read_pickled(path)
    if protocol >= 2:
        assert "run code (posix.system)" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"(S'touch ran'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch ran'\no.",  # OBJ
        b"cos\nsystem\n)\x81.",  # NEWOBJ
        b"\x82\x01.",  # EXT1
        b"Pid\n.",  # PERSID
        b"ctorch._utils\n_rebuild_tensor_v3\n.",
        b"cbuiltins\neval\n(X\x01\0\0\x001tR.",
    ],
)
def test_other_ways_to_code_are_refused(tmp_path: Path, body: bytes) -> None:
    save_pickle(tmp_path / "a.pth", b"\x80\x02" + body)
    with pytest.raises(ValueError, match="refused"):
        read_pickled(tmp_path / "a.pth")


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    pid = pickled._text("storage") + f"ctorch\n{kind}\n".encode() + pickled._text(key)
    return b"(" + pid + pickled._text("cpu") + pickled._integer(count) + b"tQ"


def forged(
    shape: tuple[int, ...], strides: tuple[int, ...], *, offset: int = 0, **kind: Any
) -> bytes:
    """A pickle of one tensor `x` with the numbers given, over a storage of 12 floats."""
    numbers = pickled._integer(offset) + pickled._tuple(shape) + pickled._tuple(strides)
    body = storage(**{"count": 12} | kind) + numbers
    return (
        b"\x80\x02}("
        + pickled._text("x")
        + (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + body
            + b"\x89ccollections\nOrderedDict\n)RtRu."
        )
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forged((3, 5), (5, 1)), "outside its storage"),
        (forged((3, 4), (4, 1), offset=1), "outside its storage"),
        (forged((2, 2), (1 << 40, 1)), "outside its storage"),
        (forged((1 << 20, 1 << 20), (0, 0)), "outside its storage"),  # a terabyte of one number
        (forged((12,), (1,), offset=-1), r"data.pkl \(byte \d+\): the pickle is damaged"),
        (forged((12,), (-1,)), r"data.pkl \(byte \d+\): the pickle is damaged"),
        (forged((3, 4), (1,)), r"data.pkl \(byte \d+\): the pickle is damaged"),
        (forged((), ()), "impossible shape"),
        (forged((0, 4), (4, 1)), "impossible shape"),
        (forged((1,) * 40, (1,) * 40), "impossible shape"),
        (forged((12,), (1,), count=13), "truncated"),
        (forged((12,), (1,), count=1 << 60), "truncated"),
        (forged((12,), (1,), count=-1), r"data.pkl \(byte \d+\): the pickle is damaged"),
        (forged((12,), (1,), key="7"), "truncated"),
        (forged((6,), (1,), count=6, kind="LongStorage"), "it is I64; known are F32, F16, BF16"),
        (b"\x80\x02K\x01.", "holds one int, not a dict"),
        (
            b"\x80\x02}X\x01\0\0\0xK\x01s.",
            r"x \(byte 46\): it is of type int; a dict of tensors is expected",
        ),
        (b"\x80\x02}K\x01K\x01s.", "a dict of tensors is expected"),
        (
            b"\x80\x02}" + b")\x85" * 90_000 + b"K\x01s.",
            "the pickle is damaged",
        ),  # a deep tuple as a key
        (b"\x80\x02}r\xff\xff\xff\xff.", ""),  # a memo slot that pickle would make room for
        (b"\x80\x02X\xff\xff\xff\x7fx.", r"data.pkl \(byte \d+\): the pickle is damaged"),
        (b"\x80\x02" + b"\x8a\xff" + b"\xff" * 255 + b".", "holds one int"),
        (b"\x80\x02R.", r"data.pkl \(byte \d+\): the pickle is damaged"),
        (b"\x80\x02)Q.", r"data.pkl \(byte \d+\): the pickle is damaged"),
        (b"\x80\x02h\x05.", r"data.pkl \(byte \d+\): the pickle is damaged"),
        (b"\x80\x02t.", r"data.pkl \(byte \d+\): the pickle is damaged"),
        (b"", r"data.pkl \(byte \d+\): the pickle is damaged"),
        (b"no pickle", r"data.pkl \(byte \d+\): the pickle is damaged"),
        (b"\x80\x02" + b")" * 4_000_000 + b".", "4000003 bytes are not plausible"),
        (b"\x80\x02" + b")" * 200_000 + b".", r"byte 200047\): more than 200000 steps"),
        (b"\x80\x02}X\1\0\0\0xK\1sX\1\0\0\0xK\2s.", "the key 'x' stands twice"),
    ],
)
def test_forged_pickles(tmp_path: Path, data: bytes, message: str) -> None:
    save_pickle(tmp_path / "a.pth", data, {"data/0": bytes(48)})
    if not message:
        assert read_pickled(tmp_path / "a.pth") == {}
        return
    with pytest.raises(ValueError, match=message) as caught:
        read_pickled(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value) and len(str(caught.value)) < 300


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before 1\.6"):
        read_pickled(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="not a zip"):
        read_pickled(path)
    save_pickle(path, forged((12,), (1,)), {"data/0": bytes(48), "byteorder": b"big"})
    with pytest.raises(ValueError, match="save the file again on a little-endian machine"):
        read_pickled(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", forged((12,), (1,)))
    with pytest.raises(ValueError, match="compressed"):
        read_pickled(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(ValueError, match=r"no single data.pkl"):
        read_pickled(path)


def test_damage_is_a_value_error(tmp_path: Path) -> None:
    whole = tmp_path / "a.pth"
    torch.save({"x": torch.ones(40, 3), "y": torch.ones(7).half()}, whole)
    data = whole.read_bytes()

    def attempt(number: int, damaged: bytes) -> bool:
        path = tmp_path / f"{number}.pth"
        path.write_bytes(damaged)
        try:
            for tensor in read_pickled(path).values():
                tensor.read()
        except ValueError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
            return False
        return True

    assert not any(attempt(number, cut) for number, cut in enumerate(truncated(data)))
    for number, damaged in enumerate(flipped(data, 0, len(data), 1200), start=1000):
        attempt(number, damaged)
