"""GPTQ layers and folders: against AutoGPTQ's and GPTQModel's own classes, on a CPU.

Neither is needed to work on Puna, and AutoGPTQ is of another time than today's transformers, so
only the files of its layers are used. To run these, beside torch and transformers:

    pip install --no-deps auto-gptq==0.7.1
    pip install --no-deps gptqmodel==7.7.0 optimum==2.3.0
    pip install accelerate datasets defuser device-smi logbar protobuf pypcre tokenicer torchao
    pytest -m peers tests/peers/test_gptq_peers.py
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.formats import gptq
from puna.formats.checkpoint import Checkpoint
from puna.formats.gptq_layer import check_layer, layer_arrays, layer_specs
from puna.formats.gptq_write import write
from puna.formats.names import HUGGINGFACE
from puna.formats.stored import Stored
from puna.quantize.grouped import Grouped
from puna.quantize.packing import BITS
from tests.formats.conftest import VOCAB_SIZE, make_checkpoint, make_vocabulary
from tests.formats.gptq_folders import CONFIG, Made, make_folder, make_layer
from tests.samples import transformers_network

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
]

OUTPUTS, INPUTS = 64, 128
GROUP_SIZES = [32, 64, 128, -1]
DTYPES = {"I32": torch.int32, "F16": torch.float16}


def autogptq(kind: str) -> Any:
    """The class of AutoGPTQ's `qlinear_<kind>.py`, its package not imported."""
    package = importlib.util.find_spec("auto_gptq")
    if package is None or package.origin is None:
        pytest.skip("no auto_gptq")
    path = Path(package.origin).parent / "nn_modules" / "qlinear" / f"qlinear_{kind}.py"
    spec = importlib.util.spec_from_file_location(f"autogptq_{kind}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QuantLinear


def gptqmodel(made: Made, bits: int, group_size: int, act_order: bool) -> Any:
    linear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    return linear(
        bits=bits, group_size=group_size, sym=False, desc_act=act_order, in_features=INPUTS,
        out_features=OUTPUTS, bias=False, register_buffers=True,
    )  # fmt: skip


def pack(layer: Any, made: Made, dtype: torch.dtype) -> None:
    """Gives a peer's layer the true weight, scales and zeros, to put into words by itself."""
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=dtype)
    linear.weight.data = torch.from_numpy(made.weight()).to(dtype)
    scales = torch.from_numpy(made.scales.T.astype(np.float32)).to(dtype)
    zeros = torch.from_numpy(made.zeros.T.astype(np.float32)).to(dtype)
    layer.pack(linear, scales, zeros, torch.from_numpy(made.groups.astype(np.int32)))


def read(layer: Any, bits: int, group_size: int, version: str) -> Grouped:
    """What Puna reads of the tensors that a peer's layer holds."""
    parts = {}
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        array = getattr(layer, part).numpy()
        if part == "scales":
            array = array.astype(np.float16)
        dtype = "F16" if part == "scales" else "I32"
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        parts[part] = Stored(part, dtype, array.shape, (Path("peer"), 0), raw.copy)
    return check_layer(parts, bits, group_size, act_order=True).read(version)


def give(layer: Any, grouped: Grouped, group_size: int, version: str) -> None:
    """Puts the words that Puna makes of `grouped` into a peer's layer."""
    specs = layer_specs((OUTPUTS, INPUTS), grouped.bits, group_size)
    arrays = layer_arrays(grouped, version)
    for (part, (dtype, shape)), raw in zip(specs.items(), arrays, strict=True):
        tensor = torch.from_numpy(raw.copy()).view(DTYPES[dtype]).reshape(shape)
        setattr(layer, part, tensor)


def grouped_of(made: Made, bits: int, group_size: int) -> Grouped:
    return Grouped(
        bits,
        INPUTS if group_size == -1 else group_size,
        made.codes.T.astype(np.uint8).copy(),
        made.scales.T.copy(),
        made.zeros.T.astype(np.int16).copy(),
        made.groups.astype(np.int32),
    )


def assert_is(grouped: Grouped, made: Made) -> None:
    np.testing.assert_array_equal(grouped.codes, made.codes.T)
    np.testing.assert_array_equal(grouped.zeros, made.zeros.T)
    np.testing.assert_array_equal(grouped.scales, made.scales.T)
    np.testing.assert_array_equal(grouped.groups, made.groups)
    np.testing.assert_array_equal(grouped.dequantize(), made.weight())


def made_layer(bits: int, group_size: int, symmetric: bool, act_order: bool) -> Made:
    """Zeros from 1 on: AutoGPTQ spoils its words where one is 0."""
    made = make_layer(OUTPUTS, INPUTS, bits, group_size, symmetric, act_order)
    made.zeros = made.zeros.clip(1)
    return made


def computed(layer: Any) -> np.ndarray:
    """The weight (O, I), as the layer's forward pass has it."""
    with torch.no_grad():
        return layer(torch.eye(INPUTS)).T.numpy()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["cuda_old", "cuda"])
def test_autogptq_both_ways(kind: str, bits: int, group_size: int, symmetric: bool) -> None:
    """`cuda` knows the order of activation, `cuda_old` only groups of neighbours."""
    quant_linear = autogptq(kind)
    for act_order in (False, True)[: 1 + (kind == "cuda")]:
        made = made_layer(bits, group_size, symmetric, act_order)
        make = partial(
            quant_linear, bits, group_size, INPUTS, OUTPUTS, False, weight_dtype=torch.float32
        )
        theirs = make()
        if kind == "cuda":
            theirs.g_idx = torch.from_numpy(made.groups.astype(np.int32))
        pack(theirs, made, torch.float32)
        assert_is(read(theirs, bits, group_size, "v1"), made)
        np.testing.assert_array_equal(computed(theirs), made.weight())
        ours = make()
        give(ours, grouped_of(made, bits, group_size), group_size, "v1")
        for part in ("qweight", "qzeros", "g_idx"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
        ours.scales = ours.scales.float()
        np.testing.assert_array_equal(computed(ours), made.weight())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_autogptq_wraps_a_zero_of_0(bits: int) -> None:
    """So `cuda_old` reads the largest code, but at 3 bits; `cuda` never does."""
    made = make_layer(OUTPUTS, INPUTS, bits, 32, symmetric=False, act_order=False)
    assert (made.zeros == 0).any()
    for kind, wraps in [("cuda_old", True), ("cuda", False)]:
        layer = autogptq(kind)(bits, 32, INPUTS, OUTPUTS, False, weight_dtype=torch.float32)
        give(layer, grouped_of(made, bits, 32), 32, "v1")
        layer.scales = layer.scales.float()
        assert np.array_equal(computed(layer), made.weight()) == wraps


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_gptqmodel_both_ways(bits: int, group_size: int, symmetric: bool, act_order: bool) -> None:
    """It packs as version 2, where a zero of 0 is no case of its own."""
    made = make_layer(OUTPUTS, INPUTS, bits, group_size, symmetric, act_order)
    theirs = gptqmodel(made, bits, group_size, act_order)
    pack(theirs, made, torch.float32)
    assert_is(read(theirs, bits, group_size, "v2"), made)
    ours = gptqmodel(made, bits, group_size, act_order)
    give(ours, grouped_of(made, bits, group_size), group_size, "v2")
    for part in ("qweight", "qzeros", "g_idx", "scales"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
    ours.post_init()
    weight = ours.eval().dequantize_weight().T.float().numpy()
    np.testing.assert_array_equal(weight, made.weight().astype(np.float16))


@pytest.mark.parametrize("bits", BITS)
def test_gptqmodel_converts_version_1(bits: int) -> None:
    convert = pytest.importorskip("gptqmodel.utils.model").convert_gptq_v1_to_v2_format_module
    made = made_layer(bits, 32, symmetric=False, act_order=True)
    layer = gptqmodel(made, bits, 32, act_order=True)
    give(layer, grouped_of(made, bits, 32), 32, "v1")
    convert(layer, bits, torch.int32)
    assert_is(read(layer, bits, 32, "v2"), made)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQModel compiles its layers, which takes minutes and a C++ compiler."""
    monkeypatch.setattr(torch, "compile", lambda model, *args, **kwargs: model)


def assert_same_network(network: Any, checkpoint: Checkpoint) -> None:
    """The same float16 weight in every quantized layer, and nearly the same logits."""
    modules = dict(network.named_modules())
    names = [name for name, tensor in checkpoint.tensors.items() if tensor.packed is not None]
    assert len(names) == 7 * checkpoint.config.num_layers
    for name in names:
        layer = modules[HUGGINGFACE.foreign(name).removesuffix(".weight")]
        theirs = layer.dequantize_weight().T.float().numpy()
        ours = checkpoint.tensors[name].read_float32().astype(np.float16)
        np.testing.assert_array_equal(theirs, ours, err_msg=name)
    model = transformers_network(checkpoint.config)
    weights = {
        HUGGINGFACE.foreign(name): torch.from_numpy(tensor.read_float32()).reshape(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    }
    model.load_state_dict(weights)
    tokens = torch.tensor([[1, 30, 5, 63, 17, 8]])
    with torch.no_grad():
        ours, theirs = model.eval()(tokens).logits, network(tokens).logits.float()
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.999


def folders(tmp_path: Path, bits: int, symmetric: bool) -> list[Path]:
    """One that Puna rounded, and one that it read (in order of activation) and wrote."""
    options: dict[str, Any] = {"bits": bits, "group_size": 32, "symmetric": symmetric}
    write(make_checkpoint("f16"), tmp_path / "rounded", **options)
    config = replace(CONFIG, vocab_size=VOCAB_SIZE)
    make_folder(tmp_path / "made", bits=bits, act_order=True, symmetric=symmetric, config=config)
    kept = gptq.read(tmp_path / "made", "v1").with_vocabulary(make_vocabulary())
    write(kept, tmp_path / "kept")
    return [tmp_path / "rounded", tmp_path / "kept"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_transformers_loads_what_is_written(tmp_path: Path, bits: int, symmetric: bool) -> None:
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum.gptq")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

    for folder in folders(tmp_path, bits, symmetric):
        model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float16)
        assert_same_network(model, gptq.read(folder))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptqmodel_loads_what_is_written(tmp_path: Path, bits: int, symmetric: bool) -> None:
    library = pytest.importorskip("gptqmodel")
    for folder in folders(tmp_path, bits, symmetric):
        model = library.GPTQModel.load(
            str(folder), device="cpu", dtype=torch.float16, backend=library.BACKEND.GPTQ_TORCH
        )
        assert_same_network(model.model, gptq.read(folder))
