"""A checkpoint of any layout is read in any other, and opens as a model; torch reads it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

from puna.config import ModelConfig
from puna.formats import open_checkpoint
from puna.formats.run_folder import checkpoint_path
from puna.model import empty
from puna.parallel.fsdp import box_of
from puna.parallel.part import Options, cut_part
from puna.parallel.place import take_place
from puna.plan.layout import Layout
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import write_model
from puna.train import checkpoints
from puna.train.checkpoints import RunState, restore
from puna.train.loop import make_optimizer
from puna.train.single import Single
from tests.parallel.pool import Pool
from tests.train import resharded
from tests.train.resharded import CONFIG, SETTINGS, whole

QUICK = ["dp=2 fsdp=2", "fsdp=2 tp=2", "cp=2 pp=2"]
ALL = [
    *(f"{kind}=4" for kind in ("dp", "fsdp", "cp", "tp", "pp")),
    *("dp=2 fsdp=2", "dp=2 tp=2", "dp=2 cp=2", "dp=2 pp=2", "fsdp=2 tp=2", "fsdp=2 cp=2"),
    *("fsdp=2 pp=2", "tp=2 cp=2", "tp=2 pp=2", "cp=2 pp=2"),
]


def alone() -> tuple[Single, torch.optim.Optimizer]:
    model = empty(CONFIG)
    model.to_empty(device="cpu")
    stage: Any = None
    return Single(model, stage, SETTINGS), make_optimizer(model, SETTINGS)


def from_any_to_any(folder: Path, vocabulary: Vocabulary, layouts: list[str], dtype: str) -> None:
    """Four ranks save in each layout and read each other's; one process reads and is read."""
    (folder / "tokenizer.model").write_bytes(write_model(vocabulary))
    if dtype == "fp32":  # one process trains no other
        trainee, optimizer = alone()
        with torch.no_grad():
            for name, weight in trainee.network.named_parameters():
                weight.copy_(whole(name, "weight", weight.shape, weight.dtype))
                for key in resharded.KEYS:
                    value = whole(name, key, weight.shape, weight.dtype)
                    optimizer.state[weight][key] = value[0] if key == "step" else value
        checkpoints.save(
            folder / "single", trainee.network, optimizer, RunState(3, 123), vocabulary, keep=1
        )
    with Pool(4) as pool:
        pool.run(resharded.main, folder, layouts, dtype, timeout=1000)


def test_layouts_read_each_other(tmp_path: Path, vocabulary: Vocabulary) -> None:
    from_any_to_any(tmp_path, vocabulary, QUICK, "fp32")
    for line in QUICK:
        read_by_one(tmp_path / line)
        opens_as_a_model(tmp_path / line, vocabulary)
        torch_reads_it(checkpoint_path(tmp_path / line, 3))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_all_layouts_read_each_other(tmp_path: Path, vocabulary: Vocabulary, dtype: str) -> None:
    """python -m pytest -m slow tests/train/test_resharding.py"""
    from_any_to_any(tmp_path, vocabulary, ALL, dtype)


def read_by_one(run: Path) -> None:
    trainee, optimizer = alone()
    assert restore(run, trainee, optimizer) == RunState(3, 123)
    for name, weight in trainee.network.named_parameters():
        found = {"weight": weight.detach(), **optimizer.state[weight]}
        for key, tensor in found.items():
            expected = whole(name, key, weight.shape, weight.dtype)
            assert torch.equal(tensor, expected[0] if key == "step" else expected)


def opens_as_a_model(run: Path, vocabulary: Vocabulary) -> None:
    for path in (run, checkpoint_path(run, 3)):
        checkpoint = open_checkpoint(path)
        assert checkpoint.format == "sharded" and checkpoint.path == checkpoint_path(run, 3)
        assert checkpoint.config == CONFIG and checkpoint.vocabulary == vocabulary
        for name, tensor in checkpoint.tensors.items():
            expected = whole(name, "weight", tensor.shape, torch.float32)
            assert np.array_equal(tensor.read_float32(), expected.numpy())


def torch_reads_it(path: Path) -> None:
    """torch's own reader of sharded safetensors finds the same tensors."""
    pytest.importorskip("safetensors", reason="torch reads safetensors with it")
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    into = {
        f"{'' if key == 'weight' else key + '.'}{name}": torch.zeros(
            (1,) if key == "step" else shape
        )
        for name, shape in CONFIG.tensor_shapes().items()
        for key in ("weight", *resharded.KEYS)
    }
    with pytest.warns(UserWarning, match="single process"):
        load(into, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    for full_name, tensor in into.items():
        key, _, name = full_name.partition(".")
        if key not in resharded.KEYS:
            key, name = "weight", full_name
        assert torch.equal(tensor, whole(name, key, tensor.shape, torch.float32)), full_name


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        ("fsdp=3", 1),
        ("fsdp=5", 4),
        ("dp=2 fsdp=7 tp=2", 26),
        ("fsdp=125 tp=2", 3),
        ("fsdp=120 tp=2", 239),
        ("cp=4 fsdp=2 tp=4", 30),
        ("pp=2 tp=2 fsdp=6", 23),
    ],
)
def test_boxes_are_those_that_dtensor_says(line: str, rank: int) -> None:
    """Where rows do not divide, and where a rank has none; torch keeps one rank of each mesh."""
    config = ModelConfig(48, 4, 8, 4, 40, vocab_size=420, context_length=64)
    layout = Layout.parse(line)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.num_ranks)
    try:
        part = cut_part(config, take_place(layout, "cpu"), Options())
        for name, weight in part.network.named_parameters():
            assert isinstance(weight, DTensor)
            box = box_of(weight, part.place)
            shape, begin = compute_local_shape_and_global_offset(
                weight.shape, weight.device_mesh, weight.placements
            )
            assert box.shape == tuple(shape) == tuple(weight.to_local().shape), name
            assert box.begin == tuple(begin) or 0 in shape, name
    finally:
        dist.destroy_process_group()
