"""GGUF models in parts: those of the gguf package load in llama.cpp, those of llama.cpp in Puna."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna.formats import open_checkpoint
from puna.formats.gguf import FILE_TYPES
from tests.formats.conftest import assert_same, assert_same_tensors, make_checkpoint
from tests.formats.test_gguf import write_reference
from tests.peers.llama_cpp_model import Model, quantize

pytestmark = pytest.mark.peers


def test_parts_of_both(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("f32", seed=3)
    write_reference(checkpoint, tmp_path / "a.gguf", split_max_tensors=8)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    write_reference(checkpoint, tmp_path / "whole.gguf")
    tokens = [1, 260, 261, 270]
    split, whole = Model(parts[0], 64), Model(tmp_path / "whole.gguf", 64)
    np.testing.assert_array_equal(split.logits(tokens), whole.logits(tokens))
    quantize(parts[0], tmp_path / "b", FILE_TYPES["q8_0"], keep_split=True)
    quantize(tmp_path / "whole.gguf", tmp_path / "c.gguf", FILE_TYPES["q8_0"])
    expected = open_checkpoint(tmp_path / "c.gguf")
    theirs = sorted(tmp_path.glob("b-*.gguf"))
    assert [path.name for path in theirs] == [f"b-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for path in theirs:
        assert_same_tensors(open_checkpoint(path).tensors, expected.tensors)
    assert_same(open_checkpoint(theirs[1]), expected)
