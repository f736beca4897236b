"""GGUF models in parts: as the `gguf` package cuts them, opened by any part, and parts that lie."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf as reference
import pytest

from puna.formats import open_checkpoint
from puna.formats.errors import FormatError
from tests.formats.conftest import CHAT_TEMPLATE, assert_same, make_checkpoint
from tests.formats.test_gguf import write_reference


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model of 21 tensors in files of at most eight, by the gguf package."""
    write_reference(make_checkpoint(), tmp_path / "tiny.gguf", split_max_tensors=8)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return paths


def test_any_part_opens_all(parts: list[Path]) -> None:
    for path in parts:
        checkpoint = open_checkpoint(path)
        assert_same(checkpoint, make_checkpoint())
        assert (checkpoint.name, checkpoint.chat_template) == ("Tiny", CHAT_TEMPLATE)
        assert checkpoint.path == path


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_named(parts: list[Path], missing: int) -> None:
    parts[missing].unlink()
    for path in parts:
        if path.exists():
            with pytest.raises(FormatError, match=rf"part {missing + 1}, .*is missing") as caught:
                open_checkpoint(path)
            assert (caught.value.path, caught.value.field) == (path, "split.count")


def test_a_part_in_anothers_place(parts: list[Path]) -> None:
    shutil.copy(parts[2], parts[1])
    with pytest.raises(FormatError, match="it is 2, in part 2 of 3") as caught:
        open_checkpoint(parts[0])
    assert (caught.value.path, caught.value.field) == (parts[1], "split.no")
    assert caught.value.offset > 0


def test_a_part_without_a_number_in_its_name(parts: list[Path]) -> None:
    for name in ("tiny.gguf", "tiny-00001-of-00004.gguf", "tiny-1-of-3.gguf"):
        path = parts[0].rename(parts[0].with_name(name))
        with pytest.raises(FormatError, match="one of 3 parts, but its name"):
            open_checkpoint(path)
        path.rename(parts[0])


def rewrite(path: Path, tensors: list[str] | None = None, **changes: Any) -> None:
    """The part again with other `split.` keys, or other tensors of one number."""
    reader = reference.GGUFReader(path)
    writer = reference.GGUFWriter(path.with_suffix(".new"), "llama")
    for name, field in reader.fields.items():
        if name.startswith("split."):
            value = changes.get(name.removeprefix("split.").replace(".", "_"), field.contents())
            writer.add_uint16(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    for name in tensors or []:
        writer.add_tensor(name, reader.tensors[0].data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"count": 4}, "split.count", "differs between"),
        ({"tensors_count": 99}, "split.tensors.count", "differs between"),
        ({"tensors": ["blk.0.attn_q.weight"]}, "blk.0.attn_q.weight", "in an earlier part too"),
        ({"tensors": ["blk.7.x"]}, "split.tensors.count", "says 21 tensors, the 3 parts hold 22"),
    ],
)
def test_parts_that_do_not_belong_together(
    parts: list[Path], changes: dict[str, Any], field: str, message: str
) -> None:
    rewrite(parts[2], **changes)
    with pytest.raises(FormatError, match=message) as caught:
        open_checkpoint(parts[0])
    assert caught.value.field == field
