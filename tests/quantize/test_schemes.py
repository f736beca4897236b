"""Packed layers against plain float arithmetic, forwards and backwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.attention import causal, sdpa
from puna.quantize.fp8 import _rounded_rows, check_scaled_product
from puna.quantize.gptq import GPTQSettings, quantize_matrix
from puna.quantize.grouped import Grouped
from puna.quantize.linear import QuantizedLinear, replace_linears
from puna.quantize.rounding import round_to_nearest
from puna.quantize.schemes import CACHE_SCHEMES, SCHEMES, scheme_for_bits
from tests.samples import positions_like, random_model, small_config

# Layers of 1,100 outputs are unpacked in two parts.
SHAPES = [(1100, 256), (24, 96)]
STORED = ["int8", "int4", "fp8"]
CASES = [
    ("int8", -1),
    ("int8", 32),
    ("int8", 128),
    ("int4", -1),
    ("int4", 32),
    ("int4", 64),
    ("int4", 128),
    ("fp8", None),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gptq(bits: int, *, num_outputs: int = 40, symmetric: bool = False) -> Grouped:
    """Integers whose inputs are not in the order of their groups."""
    x = (
        normal(400, 96, seed=1)
        * torch.linspace(0.1, 2, 96)[torch.randperm(96, generator=torch.Generator().manual_seed(2))]
    )
    settings = GPTQSettings(bits=bits, group_size=32, symmetric=symmetric)
    return quantize_matrix(normal(num_outputs, 96), x.T @ x, settings)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_a_layer_is_its_unpacked_weight_forwards_and_backwards(
    name: str, group_size: int | None, shape: tuple[int, int]
) -> None:
    weight = normal(*shape)
    layer = QuantizedLinear.from_weight(weight, name, group_size)
    dense = layer.dequantize()
    assert dense.shape == shape and (layer.out_features, layer.in_features) == shape
    x = normal(2, 3, shape[1], seed=1).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    out, expected = layer(x), F.linear(plain, dense)
    torch.testing.assert_close(out, expected)
    grad = normal(*out.shape, seed=2)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-4)
    assert not list(layer.parameters())


@pytest.mark.parametrize(
    ("name", "group_size", "bound"),
    [
        ("int8", -1, 0.012),
        ("int8", 32, 0.008),
        ("int4", 128, 0.13),
        ("int4", 32, 0.09),
        ("fp8", None, 0.04),
    ],
)
def test_error_bounds(name: str, group_size: int | None, bound: float) -> None:
    weight = normal(64, 256)
    found = QuantizedLinear.from_weight(weight, name, group_size).dequantize()
    assert 0.1 * bound < float((found - weight).norm() / weight.norm()) < bound


def test_integers_err_by_at_most_half_a_scale() -> None:
    weight = normal(64, 256)
    for name, group_size in (("int8", 64), ("int4", 64)):
        layer = QuantizedLinear.from_weight(weight, name, group_size)
        scales = layer.scales.float().repeat_interleave(group_size, 1)
        error = (layer.dequantize() - weight).abs() / scales
        # The range has 127.5 steps a side, and a scale in float16 moves its end by 0.06 more; an
        # int4 zero is rounded as well.
        assert error.max() < (0.57 if name == "int8" else 1.02)


def test_fp8_errs_by_at_most_a_sixteenth() -> None:
    weight = normal(64, 256)
    layer = QuantizedLinear.from_weight(weight, "fp8")
    assert layer.codes.dtype == torch.float8_e4m3fn
    error = (layer.dequantize() - weight).abs()
    smallest = layer.scales * 2**-9
    assert (error <= torch.maximum(weight.abs() / 16, smallest / 2) * 1.001).all()
    largest = weight.abs().amax(1)
    torch.testing.assert_close(layer.dequantize().abs().amax(1), largest)
    assert (QuantizedLinear.from_weight(weight * 0, "fp8").dequantize() == 0).all()


@pytest.mark.parametrize(
    ("bits", "name"), [(2, "int4"), (3, "int4"), (4, "int4"), (4, "int8"), (8, "int8")]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_integers_run_as_they_are(bits: int, name: str, symmetric: bool) -> None:
    grouped = gptq(bits, symmetric=symmetric)
    assert not grouped.in_order
    layer = QuantizedLinear.from_grouped(grouped, name)
    dense = torch.from_numpy(grouped.dequantize())
    assert torch.equal(layer.dequantize(), dense)
    x = normal(5, 96, seed=3).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    out, expected = layer(x), F.linear(plain, dense)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-5)
    assert scheme_for_bits(bits) == ("int4" if bits <= 4 else "int8")


def test_shuffled_columns_give_the_same_layer() -> None:
    plain = round_to_nearest(normal(16, 96).numpy(), 4, 32, False)
    order = np.random.default_rng(0).permutation(96)
    shuffled = replace(plain, codes=plain.codes[:, order], groups=plain.groups[order])
    layer, other = (QuantizedLinear.from_grouped(g, "int4") for g in (plain, shuffled))
    x = normal(3, 96, seed=4)
    assert "order" in other.state_dict() and "order" not in layer.state_dict()
    torch.testing.assert_close(layer(x), other(x[:, order]))


def test_the_documented_layouts() -> None:
    codes = np.arange(64, dtype=np.uint8)[None] % 16
    grouped = Grouped(
        4,
        32,
        codes,
        np.array([[0.5, 2]], np.float16),
        np.array([[8, 3]], np.int16),
        np.arange(64, dtype=np.int32) // 32,
    )
    packed = SCHEMES["int4"].pack_grouped(grouped)
    assert set(packed) == {"codes", "scales", "zeros"} and packed["codes"].shape == (1, 32)
    assert packed["codes"][0, 5] == 5 | 5 << 4  # inputs 5 and 21, both with code 5
    codes[0, 16:32] = 9
    packed = SCHEMES["int4"].pack_grouped(grouped)
    assert packed["codes"][0].tolist()[:16] == [j | 9 << 4 for j in range(16)]
    assert packed["zeros"].tolist() == [[8, 3]] and packed["zeros"].dtype == torch.uint8
    wide = SCHEMES["int8"].pack_grouped(grouped)
    assert wide["codes"].tolist() == codes.tolist()
    groups = np.array([1, 0] * 32, np.int32)
    sorted_by_group = SCHEMES["int8"].pack_grouped(replace(grouped, groups=groups))
    assert sorted_by_group["order"].tolist() == [*range(1, 64, 2), *range(0, 64, 2)]


@pytest.mark.parametrize("name", STORED)
def test_state_dict_round_trip(name: str) -> None:
    model = random_model(small_config(dim=64, ffn_dim=96))
    other = random_model(model.config, seed=1)
    assert replace_linears(model, name) == replace_linears(other, name)
    tokens = torch.arange(24).view(2, 12)
    assert not torch.equal(*(m(tokens, positions_like(tokens), causal) for m in (model, other)))
    other.load_state_dict(model.state_dict())
    ours, theirs = (m(tokens, positions_like(tokens), causal) for m in (model, other))
    assert torch.equal(ours, theirs)


def test_a_network_of_integers_needs_no_float_weights() -> None:
    config = small_config(dim=64, ffn_dim=96)
    model, dense = random_model(config), random_model(config)
    integers = {
        name: round_to_nearest(weight.detach().numpy(), 4, 32, False)
        for name, weight in dense.named_parameters()
        if name.startswith("layers.") and weight.ndim == 2
    }
    for name, grouped in integers.items():
        dense.get_parameter(name).data.copy_(torch.from_numpy(grouped.dequantize()))
    for module in model.layers.modules():
        if isinstance(module, nn.Linear):
            module.to("meta")
    names = replace_linears(model, "int4", grouped=integers.get)
    assert [f"{name}.weight" for name in names] == list(integers) and len(names) == 14
    assert isinstance(model.output, nn.Linear)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        ours, expected = (m(tokens, positions_like(tokens), causal) for m in (model, dense))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in model.named_parameters() if name.startswith("layers.")} == {
        f"layers.{i}.{norm}.weight" for i in range(2) for norm in ("attention_norm", "ffn_norm")
    }


def test_the_output_head_can_be_chosen_too() -> None:
    model = random_model(small_config(dim=64, ffn_dim=96))
    assert replace_linears(model, "int8", select=lambda name: name == "output") == ["output"]
    assert isinstance(model.output, QuantizedLinear)


@pytest.mark.parametrize("name", STORED)
def test_autocast_gives_bfloat16_and_gradients(name: str) -> None:
    layer = QuantizedLinear.from_weight(normal(40, 96), name)
    dense = nn.Linear(96, 40, bias=False)
    dense.weight.data = layer.dequantize()
    x, plain = (normal(3, 96, seed=1).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = layer(x), dense(plain)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)
    out.float().sum().backward()
    expected.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, plain.grad, rtol=0.02, atol=0.05)


def test_without_gradients_nothing_is_recorded() -> None:
    layer = QuantizedLinear.from_weight(normal(40, 96), "int4", 32)
    with torch.no_grad():
        assert layer(normal(3, 96)).grad_fn is None
    assert layer(normal(3, 96).bfloat16()).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_fp8_products_on_a_gpu_that_has_them() -> None:
    layer = QuantizedLinear.from_weight(normal(64, 128).cuda().bfloat16(), "fp8_dynamic")
    x = normal(16, 128, seed=1).cuda().bfloat16()
    expected = F.linear(x.float(), layer.dequantize())
    assert ((layer(x).float() - expected).norm() / expected.norm()) < 0.04


def test_fp8_products_are_refused_elsewhere() -> None:
    layer = QuantizedLinear.from_weight(normal(32, 64), "fp8_dynamic")
    with pytest.raises(ValueError, match=r"compute capability 9\.0 or later, not cpu"):
        layer(normal(16, 64))
    with pytest.raises(ValueError, match="not meta"):
        check_scaled_product(torch.device("meta"))


def test_fp8_rows_multiply_to_nearly_the_product() -> None:
    x, weight = normal(16, 64), normal(32, 64, seed=1)
    (x_codes, x_scales), (codes, scales) = _rounded_rows(x), _rounded_rows(weight)
    product = (x_codes.float() @ codes.float().T) * x_scales * scales.T
    expected = x @ weight.T
    assert (product - expected).norm() / expected.norm() < 0.05


def test_keys_and_values_in_int8() -> None:
    cache = CACHE_SCHEMES["int8"]
    x = normal(2, 7, 4, 16) * torch.tensor([0.01, 1, 30, 0])[:, None]
    codes, scales = cache.quantize(x)
    assert (codes.dtype, codes.shape) == (torch.int8, x.shape)
    assert (scales.dtype, scales.shape) == (torch.float16, x.shape[:-1])
    back = cache.dequantize(codes, scales, torch.float32)
    largest = x.abs().amax(-1, keepdim=True)
    assert ((back - x).abs() <= largest * 0.505 / 127 + 1e-9).all() and (back[:, :, 3] == 0).all()
    assert cache.dequantize(codes, scales, torch.bfloat16).dtype == torch.bfloat16


def test_attention_over_an_int8_cache() -> None:
    q, k, v = (normal(1, 40, 4, 32, seed=seed) for seed in range(3))
    cache = CACHE_SCHEMES["int8"]
    k8, v8 = (cache.dequantize(*cache.quantize(x), torch.float32) for x in (k, v))
    expected = sdpa(q, k, v)
    error = (sdpa(q, k8, v8) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.01


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda: QuantizedLinear.from_weight(normal(4, 32), "int5"), "no scheme 'int5'"),
        (lambda: QuantizedLinear.from_weight(normal(4, 32), "fp8", 32), "scale for each row"),
        (lambda: QuantizedLinear.from_weight(normal(4, 40), "int4", 8), "multiples of 32"),
        (lambda: QuantizedLinear.from_weight(normal(4, 32) / 0, "fp8"), "not finite"),
        (lambda: QuantizedLinear.from_grouped(gptq(8), "int4"), "8 bits do not fit int4"),
        (lambda: QuantizedLinear.from_grouped(gptq(4), "fp8"), "does not hold integers"),
        (
            lambda: QuantizedLinear.from_grouped(
                replace(gptq(4), groups=np.zeros(96, np.int32)), "int4"
            ),
            "unequal sizes",
        ),
        (
            lambda: replace_linears(
                random_model(small_config()), "int8", grouped=lambda n: gptq(4)
            ),
            r"shape \(32, 32\), its integers \(40, 96\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(run, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run()
