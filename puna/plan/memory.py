"""How much memory a rank of a layout needs, by formulas.

Training is mixed precision under FSDP2: fp32 shards of weights, gradients and two moments; bf16
weights, gathered a block at a time, and activations. What each operation keeps and takes is that of
the network as it is written (`puna/model.py`), not compiled; compiling keeps less, if anything.
`puna.parallel.memory` counts the same by running the code without memory, and is the reference.

Shapes: n positions that a rank computes at once, D model width, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from puna.config import ModelConfig
from puna.plan.layout import Layout

RECOMPUTE = ("none", "selective", "full")
_ADAMW = 2  # moments


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank at its fullest. `gradients` its shards of them, in a pipeline whole ones;
    `gathered` bf16 weights of other ranks, and buffers for collectives; `activations` what layers
    keep for the backward pass; `working` what else a pass has at once."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    working: float

    @property
    def peak(self) -> float:
        return (
            self.weights + self.gradients + self.optimizer
            + self.gathered + self.activations + self.working
        )  # fmt: skip


def layer_parameters(config: ModelConfig) -> int:
    """Weights of one block."""
    matrices = 2 * config.dim * (config.dim + config.kv_dim) + 3 * config.dim * config.ffn_dim
    return matrices + 2 * config.dim


def activation_bytes(config: ModelConfig, recompute: str, tp: int = 1) -> float:
    """What one layer keeps of one position for the backward pass, in a rank of `tp`.

    "none": both norms' fp32 inputs, scales and normalised values, what the matrices are multiplied
    with, attention's inputs, outputs and log-sums, the gate's three factors. "selective": the
    layer's input and the results of its products and of attention. "full": its input. Between the
    matrices ranks of a tensor group have a share of the positions each, what the first matrices
    take is whole (arXiv 2205.05198).
    """
    dim, kv, ffn = config.dim, config.kv_dim, config.ffn_dim
    attention = 4 * dim + 4 * kv + 4 * config.num_heads
    if recompute == "full":
        return 2 * dim / tp
    if recompute == "selective":
        scattered = 4 * dim / tp if tp > 1 else 0
        return (2 * dim + attention + 4 * ffn) / tp + 4 * dim + scattered
    return (12 * dim + 8 + attention + 8 * ffn) / tp + 4 * dim


def rank_memory(
    config: ModelConfig,
    layout: Layout,
    *,
    micro_batch_size: int,
    num_pieces: int,
    recompute: str = "none",
    loss_chunk: int = 0,
) -> Memory:
    """What the fullest rank needs in a step of `num_pieces` pieces of `micro_batch_size` windows.

    `loss_chunk` is of how many positions there are logits at once, 0 of all. In a pipeline the
    first stage has the most pieces under way, the last the head: the one that needs more counts.
    """
    stages = (0,) if layout.pp == 1 else (0, layout.pp - 1)
    ranks = [
        _stage(config, layout, stage, micro_batch_size, num_pieces, recompute, loss_chunk)
        for stage in stages
    ]
    return max(ranks, key=lambda memory: memory.peak)


def _stage(
    config: ModelConfig,
    layout: Layout,
    stage: int,
    micro_batch_size: int,
    num_pieces: int,
    recompute: str,
    loss_chunk: int,
) -> Memory:
    tp, pp, shards = layout.tp, layout.pp, layout.fsdp * layout.cp
    n = micro_batch_size * config.context_length // layout.cp
    layers = config.num_layers // pp
    dim, ffn = config.dim, config.ffn_dim
    first, last = stage == 0, stage == pp - 1
    block = layer_parameters(config) / tp
    vocabulary = config.vocab_size * dim / tp
    ends = vocabulary * ((1 if config.tied else 2) if first and last else 1)
    here = layers * block + ends
    state = 4 * here / shards

    depth = min(num_pieces, pp - stage) if pp > 1 else 1
    kept = n * activation_bytes(config, recompute, tp)
    whole = n * activation_bytes(config, "none", tp)
    rotary = 8 * config.head_dim * n
    if layout.cp > 1:
        # Keys and values of whole windows, and what of them each position sees: once, and as a
        # number for each layer's attention.
        seen = n * (2 * config.context_length + 4 * config.kv_dim * (layout.cp - 1) / tp)
        kept, whole = kept + seen * (recompute == "none"), whole + seen
        rotary += n * config.context_length
    # Of a layer that is computed anew: what it has besides what was kept of it.
    shared = n * (2 * config.kv_dim + 2 * dim + 4 * config.num_heads + 4 * ffn) / tp
    anew = {"none": 0.0, "selective": whole - shared, "full": whole}[recompute]
    gate = anew + n * (4 * ffn / tp + 2 * dim)  # its backward pass
    loss = n * (6 * dim / tp + 4 * dim) + 4 * vocabulary
    loss += max(10 * min(loss_chunk or n, n) * config.vocab_size / tp, 6 * vocabulary)
    final_norm = 24 * n * dim / tp
    buffers = 0.0

    # When it may be fullest: gathered weights and gradients, kept activations, what else there is.
    if pp > 1:
        # Weights stay gathered from the first piece to the last. Gradients are whole, in fp32, and
        # scattered after it; the first backward pass makes them, and then one piece less is there
        # where no more follow.
        buffers = 2.0 * dim * n / tp * num_pieces * ((not first) + (not last))
        full = [(0.0, depth), (4 * here, depth if num_pieces > depth else depth - 1)]
        passes = (gate, final_norm, loss) if last else (gate,)
        moments = [
            (whole_gradients, 2 * here, kept * layers * pieces, working)
            for whole_gradients, pieces in full
            for working in passes
        ]
    else:
        under_way = kept * layers
        head = 2 * ends + 2 * vocabulary  # both ends, and the head's gradient
        last_layer = head + 2 * block * min(layers, 2) + 2 * dim * ffn / tp
        moments = [
            (state, 2 * ends, under_way, loss),
            (state, head + 2 * block, under_way, final_norm),
            (state, last_layer, under_way, gate),
            (state, 2 * ends + 4 * vocabulary + 4 * ends, 0.0, 2.0 * dim * n),
        ]
        if layers > 1:
            # In a layer before the last the fp32 sums of the one behind it are on their way: at its
            # gate, whose factors are gone at the norm before that, while its gradients are there.
            # Two layers are gathered, its own and the next, which the first has not.
            sums = last_layer + 4 * block - 2 * block * (layers == 2)
            at_norm = anew - 8 * ffn * n / tp
            moments += [
                (state, sums, kept * (layers - 1), gate),
                (
                    state,
                    sums + 4 * dim * ffn / tp,
                    kept * (layers - 1) + min(at_norm, 0.0),
                    max(at_norm, 0.0) + 20 * dim * n / tp,
                ),
            ]
    gradients, gathered, activations, working = max(moments, key=sum)
    return Memory(
        state, gradients, _ADAMW * state, gathered, activations, working + rotary + buffers
    )
