"""Whole networks, layer by layer: against hooks on the whole network, and stopped anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from puna.attention import causal
from puna.commands.models import resolve
from puna.evaluate.perplexity import chunk_windows, network_logits, perplexity
from puna.formats.network import load_model, read_tensor
from puna.model import Llama
from puna.quantize.calibration import STEPS, calibration_sequences, importance
from puna.quantize.gptq import GPTQSettings, Hessian, factorize, quantize_factored, refitted
from puna.quantize.gptq_model import quantize_model
from puna.quantize.grouped import Grouped
from puna.quantize.rounding import round_to_nearest
from puna.quantize.work import load_grouped
from tests.samples import positions_like, random_model, small_config

SETTINGS = GPTQSettings(bits=3, group_size=16, search_range=False)
MODEL = small_config(num_layers=3)
FIELDS = ("codes", "scales", "zeros", "groups")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(97, (6, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def inputs_of(model: Llama, name: str, tokens: Tensor) -> Tensor:
    """What a linear layer sees when the whole network runs."""
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(tokens, positions_like(tokens), causal)
    handle.remove()
    return seen[0]


def quantized(
    model: Llama, tokens: Tensor, settings: GPTQSettings, work: Path, **options
) -> dict[str, Grouped]:
    read = model.state_dict().__getitem__
    return dict(quantize_model(model.config, read, tokens, settings, work, **options))


def same(ours: dict[str, Grouped], theirs: dict[str, Grouped]) -> bool:
    return list(ours) == list(theirs) and all(
        np.array_equal(getattr(ours[name], field), getattr(theirs[name], field))
        for name in ours
        for field in FIELDS
    )


@pytest.mark.parametrize("refit", [0.0, 0.5])
def test_each_step_sees_what_the_rounded_network_gives(
    refit: float, tokens: Tensor, tmp_path: Path
) -> None:
    model = random_model(MODEL)
    settings = replace(SETTINGS, refit=refit)
    found = quantized(model, tokens, settings, tmp_path / "work")
    rounded = random_model(MODEL)
    expected = {}
    for layer in range(MODEL.num_layers):
        for step in STEPS:
            first = f"layers.{layer}.{step[0]}"
            x, y = inputs_of(rounded, first, tokens), inputs_of(model, first, tokens)
            hessian, cross = Hessian(x.shape[-1]), Hessian(x.shape[-1])
            for part_x, part_y in zip(x.split(4), y.split(4), strict=True):
                hessian.add(part_x)
                cross.add(part_x, part_y)
            factor = factorize(hessian.matrix, settings)
            for part in step:
                name = f"layers.{layer}.{part}.weight"
                weight = model.get_parameter(name).detach()
                wanted = refitted(weight, hessian.matrix, cross.matrix, factor, refit)
                expected[name] = quantize_factored(wanted, factor, settings)
            for part in step:
                name = f"layers.{layer}.{part}.weight"
                dequantized = torch.from_numpy(expected[name].dequantize())
                rounded.get_parameter(name).data.copy_(dequantized)
    assert list(found) == list(expected)
    for name, grouped in expected.items():
        # Sums in another order may tip a weight that lies between two codes.
        assert (found[name].codes == grouped.codes).mean() > 0.99, name
        np.testing.assert_array_equal(found[name].groups, grouped.groups)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", [0, 3, 7, 13, 20])
@pytest.mark.parametrize("activations", ["f32", "bf16"])
def test_a_stopped_run_goes_on_with_the_same_bits(
    at: int, activations: str, tokens: Tensor, tmp_path: Path
) -> None:
    model = random_model(MODEL)
    whole = quantized(model, tokens, SETTINGS, tmp_path / "whole", activations=activations)
    seen: list[str] = []

    def stop(name: str) -> None:
        if len(seen) == at:
            raise StoppedError
        seen.append(name)

    work = tmp_path / "work"
    with pytest.raises(StoppedError):
        quantized(model, tokens, SETTINGS, work, activations=activations, on_linear=stop)
    told: list[str] = []
    again = quantized(model, tokens, SETTINGS, work, activations=activations, on_linear=told.append)
    assert same(again, whole) and told == list(whole)
    assert same({name: load_grouped(work, name) for name in whole}, whole)
    # Besides the integers, only what a further layer would see.
    files = {path.name for path in work.iterdir()}
    assert files == {"run.json", "hidden-003.npy", *(f"layer-00{i}.npz" for i in range(3))}


def test_a_finished_run_is_read_again_without_work(tokens: Tensor, tmp_path: Path) -> None:
    model = random_model(MODEL)
    whole = quantized(model, tokens, SETTINGS, tmp_path / "work")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert same(quantized(model, tokens, SETTINGS, tmp_path / "work"), whole)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}


def test_a_leftover_of_a_kill_does_no_harm(tokens: Tensor, tmp_path: Path) -> None:
    model = random_model(MODEL)
    whole = quantized(model, tokens, SETTINGS, tmp_path / "whole")
    work = tmp_path / "work"
    iterator = quantize_model(MODEL, model.state_dict().__getitem__, tokens, SETTINGS, work)
    for _ in range(7):
        next(iterator)
    (work / ".layer-001.npz.partial").write_bytes(b"half")
    (work / ".hidden-002.npy.partial").write_bytes(b"half")
    assert same(quantized(model, tokens, SETTINGS, work), whole)


def test_another_run_in_the_folder_is_refused(tokens: Tensor, tmp_path: Path) -> None:
    model, work = random_model(MODEL), tmp_path / "work"
    quantized(model, tokens, SETTINGS, work)
    with pytest.raises(ValueError, match="differs in settings"):
        quantized(model, tokens, replace(SETTINGS, bits=4), work)
    with pytest.raises(ValueError, match="differs in embedded text, text"):
        quantized(model, tokens.flip(1), SETTINGS, work)
    with pytest.raises(ValueError, match="differs in activations"):
        quantized(model, tokens, SETTINGS, work, activations="bf16")
    with torch.no_grad():
        model.layers["1"].feed_forward.w2.weight[3, 4] += 1
    with pytest.raises(ValueError, match="over other weights"):
        quantized(model, tokens, SETTINGS, work)
    with torch.no_grad():
        model.tok_embeddings.weight += 1
    with pytest.raises(ValueError, match="differs in embedded text"):
        quantized(model, tokens, SETTINGS, work)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        quantized(model, tokens, SETTINGS, tmp_path / "other")


def test_a_damaged_folder_is_told_of(tokens: Tensor, tmp_path: Path) -> None:
    model, work = random_model(MODEL), tmp_path / "work"
    quantized(model, tokens, SETTINGS, work)
    layer = work / "layer-001.npz"
    whole = layer.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * len(whole)):
        layer.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"layer-001\.npz is missing or damaged"):
            quantized(model, tokens, SETTINGS, work)
    layer.unlink()
    with pytest.raises(ValueError, match=r"hidden-001\.npy is missing or damaged"):
        quantized(model, tokens, SETTINGS, work)
    with pytest.raises(ValueError, match="has not come to"):
        load_grouped(work, "layers.1.attention.wq.weight")
    (work / "run.json").write_text("[")
    with pytest.raises(ValueError, match=r"run\.json is missing or damaged"):
        quantized(model, tokens, SETTINGS, work)
    with pytest.raises(ValueError, match="f32 or bf16, not f64"):
        quantized(model, tokens, SETTINGS, tmp_path / "new", activations="f64")


def test_raised_damping_is_told(tmp_path: Path) -> None:
    model = random_model(MODEL)
    notes: list[str] = []
    few = torch.zeros(1, 2, dtype=torch.int64)
    tiny = replace(SETTINGS, damping=1e-12)
    quantized(model, few, tiny, tmp_path / "work", on_note=notes.append)
    assert notes and "damping raised to" in notes[0] and notes[0].startswith("layer 0")


def test_importance_is_the_mean_square_of_every_input(tokens: Tensor) -> None:
    model = random_model(MODEL)
    found = importance(MODEL, model.state_dict().__getitem__, tokens)
    linears = [n for n, w in model.named_parameters() if n.startswith("layers") and w.ndim == 2]
    assert set(found) == set(linears)
    for name in linears:
        x = inputs_of(model, name.removesuffix(".weight"), tokens).double()
        expected = x.square().flatten(0, 1).mean(0).numpy()
        assert found[name].dtype == np.float32 and found[name].shape == expected.shape
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def test_sequences_are_spread_over_the_text() -> None:
    found = calibration_sequences(list(range(100, 200)), count=3, length=5, bos_id=1)
    assert found.tolist() == [[1, *range(b + 1, b + 5)] for b in (100, 133, 166)]
    plain = calibration_sequences(list(range(10)), count=2, length=5)
    assert plain.flatten().tolist() == list(range(10))
    with pytest.raises(ValueError, match="3 sequences of 5 tokens cannot be cut from 14"):
        calibration_sequences(list(range(14)), count=3, length=5)


def test_tokens_outside_the_vocabulary(tokens: Tensor) -> None:
    model = random_model(MODEL)
    with pytest.raises(ValueError, match="below 97"):
        importance(MODEL, model.state_dict().__getitem__, tokens + 90)


def test_the_shipped_model_loses_half_as_much_as_by_plain_rounding(
    shared: Path, tmp_path: Path
) -> None:
    checkpoint = resolve("cria")
    tokenizer = checkpoint.tokenizer()
    text = (shared / "pretrain" / "tinystories-sample.txt").read_text()
    text = text.replace("<|endoftext|>", "")
    ids = tokenizer.encode(text[:400_000], bos=True)
    held_out = tokenizer.encode(text[-40_000:], bos=True)[: 8 * 512]

    def read(name: str) -> Tensor:
        return read_tensor(checkpoint.tensors[name])

    def loss(weights: Iterator[tuple[str, Grouped]]) -> float:
        model = load_model(checkpoint)
        for name, grouped in weights:
            model.get_parameter(name).data.copy_(torch.from_numpy(grouped.dequantize()))
        windows = chunk_windows(held_out, context=512, bos_id=tokenizer.bos_id)
        return perplexity(network_logits(model), windows).value

    def plainly(bits: int) -> Iterator[tuple[str, Grouped]]:
        for name, shape in checkpoint.config.tensor_shapes().items():
            if name.startswith("layers.") and len(shape) == 2:
                yield name, round_to_nearest(read(name).float().numpy(), bits, 128, True)

    original = loss(iter(()))
    for bits, share, count in ((3, 0.5, 48), (4, 0.8, 24)):
        tokens = calibration_sequences(ids, count=count, length=256, bos_id=tokenizer.bos_id)
        settings = GPTQSettings(bits=bits)
        work = tmp_path / f"{bits}"
        ours = loss(quantize_model(checkpoint.config, read, tokens, settings, work))
        plain = loss(plainly(bits))
        assert math.isfinite(ours) and original < ours
        assert ours - original < share * (plain - original), (bits, original, ours, plain)
