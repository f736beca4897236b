"""Tensor and sequence parallel for training (arXiv 1909.08053, 2205.05198), by DTensor.

As `tensor.py` cuts for generation: what makes heads and the gate by outputs, what follows by
inputs. Between them, norms and sums run on a share of the positions, so that a block gathers and
scatters where it would have summed, and activations are shared too. Embedding and head are cut by
tokens of the vocabulary.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from puna.model import Llama


def share_matrices(network: Llama, mesh: DeviceMesh) -> None:
    """Makes the weights DTensors over `mesh`, and the modules compute with this rank's shares."""
    ends: dict[str, ParallelStyle] = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(use_local_output=True),
        # The loss multiplies with the share itself: `losses.chunked_next_token_loss_sum`.
        "output": ColwiseParallel(),
    }
    # A stage of a pipeline lacks some of them.
    present = {name: style for name, style in ends.items() if _has_weights(getattr(network, name))}
    parallelize_module(network, mesh, present)
    if "tok_embeddings" in present:
        # What a collective has yet to deliver loses its gradient in a compiled block (torch 2.13).
        network.tok_embeddings.register_forward_hook(lambda module, inputs, output: output.clone())
    whole, parts = Replicate(), Shard(1)
    for block in network.layers.values():
        block_plan: dict[str, ParallelStyle] = {
            "attention_norm": SequenceParallel(),
            "attention": PrepareModuleInput(
                input_layouts=(parts, None, None, None),
                desired_input_layouts=(whole, None, None, None),
            ),
            "attention.wq": ColwiseParallel(),
            "attention.wk": ColwiseParallel(),
            "attention.wv": ColwiseParallel(),
            "attention.wo": RowwiseParallel(output_layouts=parts),
            "ffn_norm": SequenceParallel(),
            "feed_forward": PrepareModuleInput(
                input_layouts=(parts,), desired_input_layouts=(whole,)
            ),
            "feed_forward.w1": ColwiseParallel(),
            "feed_forward.w3": ColwiseParallel(),
            "feed_forward.w2": RowwiseParallel(output_layouts=parts),
        }
        parallelize_module(block, mesh, block_plan)


def _has_weights(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in module.parameters())
