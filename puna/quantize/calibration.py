"""Runs calibration text through a network one layer at a time: what do its linear layers see?

Weights come from `read(name) -> Tensor`, canonical names, so that one layer's are held at a time.
N sequences of T tokens, D model width, I inputs of a linear layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from puna.attention import causal
from puna.config import ModelConfig
from puna.model import Block, rotary_table
from puna.quantize.block_type import Floats

ReadWeight = Callable[[str], Tensor]

# The linear layers of a block in the order of its forward pass; those of a row share their input.
STEPS: tuple[tuple[str, ...], ...] = (
    ("attention.wq", "attention.wk", "attention.wv"),
    ("attention.wo",),
    ("feed_forward.w1", "feed_forward.w3"),
    ("feed_forward.w2",),
)
SEQUENCES_AT_ONCE = 4


def calibration_sequences(
    ids: Sequence[int], *, count: int, length: int, bos_id: int | None = None
) -> Tensor:
    """`count` sequences (N, T), int64, evenly spread over a text's ids, none overlapping.

    Each begins with `bos_id` unless that is None. ValueError where the text is too short.
    """
    if len(ids) < count * length or count < 1 or length < 2:
        raise ValueError(
            f"{count} sequences of {length} tokens cannot be cut from {len(ids)} tokens; give more "
            "text or ask for fewer"
        )
    every = torch.tensor(ids, dtype=torch.int64)
    sequences = every.unfold(0, len(ids) // count, len(ids) // count)[:count, :length].clone()
    if bos_id is not None:
        sequences[:, 0] = bos_id
    return sequences


def embed(read: ReadWeight, tokens_NT: Tensor) -> Tensor:
    """What the first layer sees, (N, T, D) in float32, on the CPU."""
    weight = read("tok_embeddings.weight")
    if tokens_NT.ndim != 2 or not 0 <= int(tokens_NT.min()) <= int(tokens_NT.max()) < len(weight):
        raise ValueError(
            f"calibration needs tokens of shape (sequences, tokens) below {len(weight)}"
        )
    return weight[tokens_NT].float().cpu()


def load_block(config: ModelConfig, layer: int, read: ReadWeight, device: str) -> Block:
    """One layer of the network, its weights in float32."""
    with torch.device("meta"):
        block = Block(layer, config)
    for name in [name for name, _ in block.named_parameters()]:
        weight = read(f"layers.{layer}.{name}").to(device=device, dtype=torch.float32, copy=True)
        owner, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(weight, requires_grad=False)
        setattr(block.get_submodule(owner), leaf, parameter)
    return block


class Runner:
    """A block's forward pass over sequences of one length."""

    def __init__(self, config: ModelConfig, num_tokens: int, device: str) -> None:
        positions_1T = torch.arange(num_tokens, device=device)[None]
        self._cos, self._sin = rotary_table(positions_1T, config.head_dim, config.rope_theta)

    def __call__(self, block: Block, hidden_BTD: Tensor) -> Tensor:
        return block(hidden_BTD.to(self._cos.device), self._cos, self._sin, causal)

    def until(self, block: Block, linear: str, hidden_BTD: Tensor) -> Tensor:
        """The input (B, T, I) of one of the block's linear layers; what follows it is not run."""
        seen: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Tensor]) -> None:
            seen.append(args[0])
            raise _Reached

        handle = block.get_submodule(linear).register_forward_pre_hook(stop)
        with contextlib.suppress(_Reached):
            self(block, hidden_BTD)
        handle.remove()
        return seen[0]


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """The forward pass came to the layer in question."""


@torch.no_grad()
def importance(
    config: ModelConfig,
    read: ReadWeight,
    tokens_NT: Tensor,
    *,
    device: str = "cpu",
    on_layer: Callable[[int], None] = lambda layer: None,
) -> dict[str, Floats]:
    """Mean square of each input (I,) of every linear layer in the blocks, by canonical name.

    What llama.cpp calls an importance matrix. Memory: one layer and all of N, T, D in float32.
    """
    hidden_NTD = embed(read, tokens_NT)
    run = Runner(config, tokens_NT.shape[1], device)
    found: dict[str, Floats] = {}
    for layer in range(config.num_layers):
        block = load_block(config, layer, read, device)
        with _summing_squares(block) as sums:
            for batch in hidden_NTD.split(SEQUENCES_AT_ONCE):
                batch.copy_(run(block, batch))
        for step in STEPS:
            mean_square = (sums[step[0]] / tokens_NT.numel()).float().cpu().numpy()
            found |= {f"layers.{layer}.{name}.weight": mean_square for name in step}
        on_layer(layer)
    return found


@contextlib.contextmanager
def _summing_squares(block: Block) -> Iterator[dict[str, Tensor]]:
    """Collects sums of squares (I,), float64, under the first name of each step."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(module: nn.Module, args: tuple[Tensor]) -> None:
            square = args[0].double().square().sum((0, 1))
            sums[name] = sums[name] + square if name in sums else square

        return add

    handles = [
        block.get_submodule(step[0]).register_forward_pre_hook(watch(step[0])) for step in STEPS
    ]
    yield sums
    for handle in handles:
        handle.remove()
