"""The GPU runner against `TorchRunner`; on a CPU it runs the definitions of its kernels."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from puna.engine.batch import Batch
from puna.engine.engine import Engine
from puna.engine.gpu.fused import Joined, Moved, PagedAttend, Separate, joined
from puna.engine.gpu.rows import Shape, bucket, fill, is_decode, split, splits_for
from puna.engine.gpu.runner import GPURunner
from puna.engine.gpu.weights import places
from puna.engine.params import SamplingParams
from puna.engine.torch_runner import TorchRunner
from puna.formats.network import as_checkpoint
from puna.model import Llama
from puna.quantize import linear as quantized_linear
from puna.quantize.gptq import GPTQSettings, quantize_matrix
from puna.quantize.linear import QuantizedLinear, replace_linears
from puna.tokenizer import Tokenizer
from tests.samples import random_model, small_config

PAGES = 24
SETTINGS = GPTQSettings(group_size=32)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network(**changes: Any) -> Llama:
    shape = {"dim": 64, "ffn_dim": 96, "num_layers": 3, "context_length": 64}
    return random_model(small_config(**shape | changes), seed=1)


def runners(model: Llama, **options: Any) -> tuple[GPURunner, TorchRunner]:
    expected = TorchRunner(copy.deepcopy(model), num_pages=PAGES)
    return GPURunner(model.to(DEVICE), num_pages=PAGES, **options), expected


def tokens_of(length: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 97, length).astype(np.int32)


def batch_of(*parts: tuple[int, int, list[int]], copies: Any = (), every: bool = False) -> Batch:
    """Tokens begin:end of sequences with these pages; logits of each one's last, or of all."""
    counts = [end - begin for begin, end, _ in parts]
    width = max(len(table) for *_, table in parts)
    ends = np.cumsum(counts)
    return Batch(
        tokens=np.concatenate([tokens_of(64, table[0])[a:b] for a, b, table in parts]),
        positions=np.concatenate([np.arange(a, b, dtype=np.int32) for a, b, _ in parts]),
        sequences=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        tables=np.array([table + [0] * (width - len(table)) for *_, table in parts], np.int32),
        outputs=(np.arange(ends[-1]) if every else ends - 1).astype(np.int32),
        copies=copies,
    )


STEPS = (
    batch_of((0, 40, [3, 9, 1]), every=True),  # a prompt alone, more than a tile
    replace(batch_of((0, 3, [6])), outputs=np.array([], np.int32)),  # only a prompt's beginning
    batch_of((40, 41, [3, 9, 1]), (0, 5, [4])),  # a decoding row and a chunk
    batch_of((41, 42, [3, 9, 1]), (5, 20, [4, 8]), (0, 1, [11])),
    batch_of((42, 43, [3, 9, 1]), (20, 21, [4, 8]), (1, 2, [11])),  # decoding, 3 in a bucket of 4
    batch_of((20, 24, [4, 8]), (43, 44, [3, 9, 1]), every=True),  # guesses, checked
    batch_of((44, 45, [3, 9, 12]), (2, 3, [11]), copies=((1, 12),)),
    batch_of((45, 46, [3, 9, 12])),
)


@pytest.mark.parametrize(
    "changes", [{}, {"num_kv_heads": 4}, {"num_kv_heads": 1, "tied": True}], ids=str
)
def test_steps_equal_the_networks(changes: dict[str, Any]) -> None:
    runner, expected = runners(network(**changes))
    for step in STEPS:
        np.testing.assert_allclose(
            runner.step(step).logits, expected.step(step).logits, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("graphs", [False, True])
def test_states_equal_the_networks(graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside tokens and alone; of steps of one row each too, whose graphs give only logits."""

    def captured(self: GPURunner, shape: Shape) -> Any:
        raise AssertionError("a graph was asked for")

    monkeypatch.setattr(GPURunner, "_captured", captured)
    runner, expected = runners(network(), compiled=False, graphs=graphs)
    for step in STEPS:
        every = np.arange(len(step.tokens), dtype=np.int32)
        for hidden, outputs in ((every[::-1].copy(), step.outputs), (every[-1:], every[:0])):
            both = replace(step, hidden=hidden, outputs=outputs)
            found, other = runner.step(both), expected.step(both)
            assert found.hidden.shape == (len(hidden), 64)
            np.testing.assert_allclose(found.hidden, other.hidden, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.logits, other.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("scheme", "group"), [("int8", -1), ("int4", 32)])
def test_quantized_layers_stay_packed(scheme: str, group: int) -> None:
    model = network()
    replace_linears(model, scheme, group_size=group)
    runner, expected = runners(model)
    packed = [m for m in runner.model.modules() if isinstance(m, QuantizedLinear)]
    # Queries, keys and values are one matrix, gate and what it lets through another.
    assert len(packed) == 4 * 3
    for step in STEPS:
        np.testing.assert_allclose(
            runner.step(step).logits, expected.step(step).logits, rtol=0, atol=1e-4
        )


def test_a_page_that_is_not_in_a_batch_is_not_touched() -> None:
    runner, _ = runners(network())
    pages = [page for a in runner._attentions for page in (a.keys, a.values)]
    for page in pages:
        page.fill_(7)
    runner.step(batch_of((0, 1, [3]), (0, 1, [5]), (0, 1, [9])))  # padded to 4 rows
    runner.step(batch_of((1, 20, [3, 4])))  # padded to 64
    for page in pages:
        changed = (page != 7).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == [3, 4, 5, 9, PAGES]  # the last is scratch
        assert (page[5, 1:] == 7).all() and (page[3, :16] != 7).any()
    assert runner.num_pages == PAGES


def test_results_do_not_depend_on_the_bucket() -> None:
    runner, _ = runners(network())
    each = np.arange(5, dtype=np.int32)
    together = Batch(tokens_of(5), np.zeros_like(each), each, each[:, None], each)
    logits = runner.step(together).logits
    for row in range(5):
        only = np.array([0], np.int32)
        alone = Batch(tokens_of(5)[row : row + 1], only, only, only[:, None] + row, only)
        np.testing.assert_allclose(runner.step(alone).logits[0], logits[row], atol=1e-5)


class NoStream:
    def wait_stream(self, other: Any) -> None:
        pass


class NoGraph:
    """Stands for a CUDA graph; what a replay does is set from outside."""

    replay: Any

    def pool(self) -> None:
        return None


def test_decoding_is_captured_once_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: NoStream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: NoStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", NoGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())
    capture, shapes, replays = GPURunner._captured, [], []

    def recorded(self: GPURunner, shape: Shape) -> Any:
        graph, logits = capture(self, shape)
        numbers = self._staging[shape][1]
        shapes.append(shape.rows)

        def replay() -> None:  # reads and writes what the capture saw, at the same places
            replays.append(shape.rows)
            logits.copy_(self._logits(self._hidden(numbers, shape)))

        graph.replay = replay
        return graph, logits

    monkeypatch.setattr(GPURunner, "_captured", recorded)
    model = network()
    expected = TorchRunner(copy.deepcopy(model), num_pages=PAGES)
    runner = GPURunner(model, num_pages=PAGES, compiled=False, graphs=True)
    for step in (*STEPS, *STEPS[-4:]):
        np.testing.assert_allclose(
            runner.step(step).logits, expected.step(step).logits, rtol=0, atol=1e-4
        )
    assert shapes == [4, 2, 1] and replays == [4, 2, 1, 4, 2, 1]
    runner.warm_up((1, 8))
    assert shapes == [4, 2, 1, 8]


@pytest.mark.parametrize("packed", [False, True])
def test_layers_are_compiled_once_for_all(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    model = network()
    if packed:  # as on a GPU, through the operator of the kernels
        replace_linears(model, "int4", group_size=32)
        monkeypatch.setattr(quantized_linear, "runs_packed", lambda *arguments: True)
    runner, expected = runners(model, compiled=False)
    counter = CompileCounterWithBackend("aot_eager")
    for block in runner.model.layers.values():
        block.compile(backend=counter, fullgraph=True, dynamic=False)
    for step in STEPS:
        np.testing.assert_allclose(
            runner.step(step).logits, expected.step(step).logits, rtol=0, atol=1e-4
        )
    # Rows of 64, 16 and a prompt's; decoding in 4, 2 and 1.
    shapes = {
        (bucket(len(s.tokens), (1, 2, 4) if is_decode(s) else (16, 64)), is_decode(s))
        for s in STEPS
    }
    assert counter.frame_count == len(shapes) < 3 * len(shapes)
    torch._dynamo.reset()


def test_the_engine_writes_the_same(tokenizer: Tokenizer) -> None:
    model = network(vocab_size=tokenizer.vocab_size, context_length=128)
    texts = []
    for runner in runners(model):
        engine = Engine(runner, tokenizer, max_rows=24, max_sequences=5)
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        requests = [engine.add([1, *range(10, 10 + n)], params) for n in (1, 3, 30, 17, 16, 2, 40)]
        while engine.has_work:
            engine.step()
        texts.append([request.result().outputs[0].token_ids for request in requests])
    assert texts[0] == texts[1]


def test_what_is_of_different_kinds_stays_apart() -> None:
    def made(name: str) -> QuantizedLinear:
        return QuantizedLinear.from_weight(torch.randn(32, 64), name)

    int8, other, int4 = made("int8"), made("int8"), made("int4")
    x = torch.randn(2, 64)
    with torch.no_grad():
        for linears, kind in (([int8, other], Joined), ([int8, int4], Separate)):
            module = joined(linears)
            assert isinstance(module, kind)
            for found, linear in zip(module(x), linears, strict=True):
                torch.testing.assert_close(found, linear(x))


def test_inputs_in_the_same_order_are_read_once() -> None:
    def made(seed: int, order: int) -> QuantizedLinear:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(16, 128, generator=generator)
        x = torch.linspace(2, 0.1, 128).roll(order) * torch.randn(256, 128, generator=generator)
        grouped = quantize_matrix(weight, torch.diag((x.T @ x).diag()), SETTINGS)
        return QuantizedLinear.from_grouped(grouped, "int4")

    x = torch.randn(3, 128)
    same = made(0, 0)
    with torch.no_grad():
        for other, kind in ((copy.deepcopy(same), Joined), (made(1, 40), Separate)):
            other.scales *= 2
            module = joined([same, other])
            assert isinstance(module, kind) and "order" in dict(same.named_buffers())
            for found, linear in zip(module(x), (same, other), strict=True):
                torch.testing.assert_close(found, linear(x))


@pytest.mark.parametrize(("kv_heads", "tile"), [(8, 32), (2, 8), (1, 4)])
def test_a_tile_has_as_many_lines_however_many_heads_share_keys(kv_heads: int, tile: int) -> None:
    runner, _ = runners(network(num_heads=8, num_kv_heads=kv_heads))
    for step in STEPS[:2]:
        runner.step(step)
    assert {shape.tile for shape in runner._staging} == {tile}


def test_a_step_runs_where_its_gpu_is_current() -> None:
    runner, _ = runners(network(), graphs=False)
    current, hidden, seen = [], runner._hidden, []

    class Current:
        def __enter__(self) -> None:
            current.append(self)

        def __exit__(self, *problem: object) -> None:
            current.remove(self)

    def watched(numbers: torch.Tensor, shape: Shape) -> torch.Tensor:
        seen.append(len(current))
        return hidden(numbers, shape)

    runner._current, runner._hidden = Current(), watched  # type: ignore[method-assign]
    for step in STEPS:
        runner.step(step)
    assert seen == [1] * len(STEPS) and not current


def test_buckets_and_splits() -> None:
    assert [bucket(n, (1, 2, 8)) for n in (1, 2, 3, 8, 9, 100)] == [1, 2, 8, 8, 16, 128]
    assert splits_for(1, 32, 528, 16) == 16 and splits_for(1, 64, 528, 16) == 8
    assert splits_for(64, 32, 528, 16) == 1


@pytest.mark.parametrize("rows", [1, 2, 6, 8])
def test_fields_begin_at_sixteen_bytes_and_do_not_overlap(rows: int) -> None:
    shape = Shape(rows, tile=1, width=5, splits=1)
    out = np.zeros(shape.num_numbers, np.int32)
    fields, tables = split(out, shape)
    parts = [*fields.values(), tables]
    for number, part in enumerate(parts, start=1):
        assert (part.ctypes.data - out.ctypes.data) % 16 == 0
        part += number
    assert sum(part.size for part in parts) == rows * 11
    assert all((part == number).all() for number, part in enumerate(parts, start=1))


def test_the_numbers_of_a_step() -> None:
    shape = Shape(rows=8, tile=4, width=3, splits=1)
    out = np.full(shape.num_numbers, -1, np.int32)
    batch = batch_of((17, 18, [5, 2]), (0, 5, [7]))
    fill(out, batch, shape, page_size=16, scratch=30)
    fields, tables = split(out, shape)
    found = {name: field.tolist() for name, field in fields.items()}
    assert found.pop("tokens") == [*batch.tokens, 0, 0]
    assert found == {
        "positions": [17, 0, 1, 2, 3, 4, 0, 0],
        "slots": [2 * 16 + 1, 112, 113, 114, 115, 116, 480, 480],
        "starts": [0, 1, 5, 0, 0, 0, 0, 0],
        "counts": [1, 4, 1, 0, 0, 0, 0, 0],
        "owners": [0, 1, 1, 0, 0, 0, 0, 0],
    }
    assert tables[:2].tolist() == [[5, 2, 0], [7, 0, 0]] and not tables[2:].any()


@dataclass
class Placed:
    """Stands for a tensor, of which only the device counts."""

    device: torch.device

    def to(self, device: torch.device) -> Placed:
        return Placed(device)


def test_blocks_on_two_devices_get_what_they_read_there() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    seen = []

    class Watched(nn.Module):
        def __init__(self, device: torch.device) -> None:
            super().__init__()
            self.device = device

        def forward(self, *read: Any) -> Placed:
            *tensors, attend = read
            assert {tensor.device for tensor in tensors} == {self.device}
            seen.append((self.device, attend))
            return Placed(self.device)

    near = PagedAttend(None, {cpu: (far := PagedAttend(None))})  # type: ignore[arg-type]
    x, cos, sin = Placed(cuda), Placed(cuda), Placed(cuda)
    for device in (cpu, cpu, cuda, cuda):
        x = Moved(Watched(device), device)(x, cos, sin, near)
    assert seen == [(cpu, far), (cpu, far), (cuda, near), (cuda, near)] and x.device == cuda


def test_what_is_moved_is_computed_the_same() -> None:
    runner, expected = runners(network(), graphs=False)
    here = runner.model.norm.weight.device
    for name, block in list(runner.model.layers.items()):
        runner.model.layers[name] = Moved(block, here)
    runner._others = {here}  # so that the rows are described once more
    for step in STEPS:
        np.testing.assert_allclose(
            runner.step(step).logits, expected.step(step).logits, rtol=0, atol=1e-4
        )


def test_what_fused_layers_cannot_is_said() -> None:
    runner, _ = runners(network())
    with pytest.raises(ValueError, match="puna convert --lora"):
        runner.load_adapter(0, {})
    # Keys and values, 3 layers of 2 heads of 16 numbers.
    assert runner.token_bytes == 2 * 3 * 2 * 16 * 4


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_updated_where_they_lie(tied: bool, tmp_path: Path) -> None:
    runner, _ = runners(network(tied=tied))
    batch = batch_of((0, 30, [2, 0]), every=True)
    runner.step(batch)
    other = random_model(runner.config, seed=9)
    places_before = {name: place.data_ptr() for name, place in places(runner.model).items()}
    assert set(places_before) == set(runner.config.tensor_shapes())
    runner.update(as_checkpoint(other, tmp_path, None).tensors)
    expected = TorchRunner(other, num_pages=PAGES).step(batch).logits
    np.testing.assert_allclose(runner.step(batch).logits, expected, atol=1e-4)
    after = {name: place.data_ptr() for name, place in places(runner.model).items()}
    assert after == places_before  # a captured graph reads them there


def test_packed_weights_are_not_updated(tmp_path: Path) -> None:
    model = network()
    replace_linears(model, "int4", group_size=32)
    runner, _ = runners(model)
    batch = batch_of((0, 30, [2, 0]), every=True)
    before = runner.step(batch).logits
    other = as_checkpoint(random_model(runner.config, seed=9), tmp_path, None).tensors
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.wk\.weight is packed"):
        runner.update(other)
    assert np.array_equal(runner.step(batch).logits, before)
    runner.update({"norm.weight": other["norm.weight"], "output.weight": other["output.weight"]})
    assert not np.array_equal(runner.step(batch).logits, before)
