"""Batches so large that tiles are unpacked for all rows: the same bits as a row alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna.engine.cpu.runner import NativeRunner
from puna.formats import open_checkpoint, save_checkpoint
from puna.formats.network import as_checkpoint
from puna.kernels import native
from tests.engine.cpu.test_runner import singles
from tests.samples import random_model, small_config

pytestmark = pytest.mark.skipif(not native.available(), reason="native code was not built")

ROWS = 75  # six at a time, then two, then one


@pytest.mark.parametrize(
    "dtype", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
)
def test_many_rows_are_single_rows(dtype: str, level: str, tmp_path: Path) -> None:
    # Rows of 2304 are a run of 64 groups and a rest; 97 outputs are an odd number of tiles.
    config = small_config(dim=256, num_heads=8, num_kv_heads=4, ffn_dim=2304, context_length=96)
    source = as_checkpoint(random_model(config, seed=2), tmp_path, None)
    save_checkpoint(source, tmp_path / "model.gguf", "gguf", dtype=dtype, pure=True)
    runner = NativeRunner(open_checkpoint(tmp_path / "model.gguf"), num_pages=ROWS, num_threads=2)
    tokens = np.random.default_rng(0).integers(0, 97, ROWS).astype(np.int32)
    together = runner.step(singles(tokens)).logits
    alone = [runner.step(singles(tokens[i : i + 1])).logits[0] for i in range(ROWS)]
    assert np.array_equal(together, np.stack(alone))
