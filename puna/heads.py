"""What is put on top of the network's hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from puna.model import Llama


def next_token_logits(model: Llama, hidden: Tensor) -> Tensor:
    """Hidden states (..., D) -> logits over the vocabulary (..., V), by the tied or own head."""
    if model.output is not None:
        return model.output(hidden)
    return F.linear(hidden, model.tok_embeddings.weight)
