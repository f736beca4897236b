"""Perplexity of a text, and what a changed model keeps of another's predictions.

A model is any `logits(tokens (T,)) -> (T, V)`; what is counted is decided by the windows, so every
figure here is over the same positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from puna.attention import causal
from puna.heads import next_token_logits
from puna.model import Llama

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens (T,) that a model sees at once, of which the predictions of `targets` count.

    `targets` (C,) are the tokens that follow the positions `first` to `first + C - 1`.
    """

    tokens: Tensor
    first: int
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`value` with its standard error; `nll` is the mean of `count` surprises, in nats a token."""

    value: float
    error: float
    nll: float
    count: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against the one it came from (`base`), over the same predictions.

    Kullback-Leibler divergence from the base's distribution, in nats; `same_top` is the share of
    predictions whose likeliest token is the same; `ratio` of the perplexities, model to base.
    """

    base: Perplexity
    model: Perplexity
    ratio: float
    ratio_error: float
    mean_kl: float
    median_kl: float
    kl_99: float
    max_kl: float
    same_top: float


def chunk_windows(
    ids: Sequence[int], *, context: int, bos_id: int | None = None
) -> Iterator[Window]:
    """Neighbouring chunks of `context` tokens, of each the second half counted: llama.cpp's way.

    As `llama-perplexity` does (tools/perplexity/perplexity.cpp): `ids` is the whole text, BOS once
    at its start; the first token of each chunk is shown as `bos_id` (None: as it is); the
    predictions of positions context // 2 to context - 2 count; a rest shorter than a chunk does
    not. ValueError for a text of fewer than two chunks, which is refused there too.
    """
    if context < 4:
        raise ValueError(f"a context of {context} leaves nothing to count; give 4 or more")
    if len(ids) < 2 * context:
        raise ValueError(
            f"the text has {len(ids)} tokens; a context of {context} needs {2 * context}"
        )
    every = torch.tensor(ids, dtype=torch.int64)
    first = context // 2
    for begin in range(0, len(ids) - context + 1, context):
        tokens = every[begin : begin + context].clone()
        if bos_id is not None:
            tokens[0] = bos_id
        yield Window(tokens, first, tokens[first + 1 :])


def strided_windows(ids: Sequence[int], *, context: int, stride: int) -> Iterator[Window]:
    """Overlapping windows that move by `stride`: every token but the first counts once.

    Each is predicted from at least context - stride tokens before it, where the text has them
    (Hugging Face's "Perplexity of fixed-length models").
    """
    if not 0 < stride < context:
        raise ValueError(f"the stride must be from 1 to {context - 1}, not {stride}")
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} tokens predicts nothing")
    every = torch.tensor(ids, dtype=torch.int64)
    counted = 1  # tokens that need no further prediction
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        yield Window(every[begin:end], counted - begin - 1, every[counted:end])
        counted = end
        if end == len(ids):
            return


def network_logits(model: Llama) -> Logits:
    """A network as a function of one window, without a cache."""

    @torch.inference_mode()
    def logits(tokens: Tensor) -> Tensor:
        tokens_1T = tokens.to(model.norm.weight.device)[None]
        positions_1T = torch.arange(len(tokens), device=tokens_1T.device)[None]
        return next_token_logits(model, model(tokens_1T, positions_1T, causal)[0])

    return logits


def perplexity(
    logits: Logits,
    windows: Iterable[Window],
    *,
    on_window: Callable[[float], None] = lambda so_far: None,
) -> Perplexity:
    """exp of the mean surprise; `on_window` gets the perplexity so far after each window."""
    parts: list[NDArray[np.float64]] = []
    total, count = 0.0, 0
    for window in windows:
        parts.append(_surprises(_log_probs(logits, window), window))
        total, count = total + float(parts[-1].sum()), count + len(parts[-1])
        on_window(_exp(total / count))
    return _summary(_joined(parts))


def compare(
    base: Logits,
    model: Logits,
    windows: Iterable[Window],
    *,
    on_window: Callable[[float], None] = lambda mean_kl: None,
) -> Comparison:
    """Runs both models over each window in turn, so that one window's logits are held at a time.

    `on_window` gets the mean divergence so far. ValueError where their vocabularies differ.
    """
    ours, theirs, divergences = [], [], []
    same_top = count = 0
    divergence = 0.0
    for window in windows:
        base_CV, model_CV = _log_probs(base, window), _log_probs(model, window)
        if base_CV.shape != model_CV.shape:
            raise ValueError(
                f"the models have {base_CV.shape[1]} and {model_CV.shape[1]} logits a token; only "
                "models of one vocabulary can be compared"
            )
        theirs.append(_surprises(base_CV, window))
        ours.append(_surprises(model_CV, window))
        same_top += int((base_CV.argmax(-1) == model_CV.argmax(-1)).sum())
        kl_C = F.kl_div(model_CV, base_CV, log_target=True, reduction="none").sum(-1)
        divergences.append(kl_C.double().cpu().numpy())
        divergence, count = divergence + float(divergences[-1].sum()), count + len(kl_C)
        on_window(divergence / count)
    base_nll, model_nll, kl = _joined(theirs), _joined(ours), _joined(divergences)
    before, after = _summary(base_nll), _summary(model_nll)
    # The two surprises of a token go together: the error of their difference is the smaller.
    change = model_nll - base_nll
    ratio = _exp(float(change.mean()))
    return Comparison(
        base=before,
        model=after,
        ratio=ratio,
        ratio_error=ratio * _standard_error(change),
        mean_kl=float(kl.mean()),
        median_kl=float(np.median(kl)),
        kl_99=float(np.quantile(kl, 0.99)),
        max_kl=float(kl.max()),
        same_top=same_top / count,
    )


def _log_probs(logits: Logits, window: Window) -> Tensor:
    """Log-probabilities (C, V), float32, of the counted positions."""
    counted = logits(window.tokens)[window.first : window.first + len(window.targets)]
    return F.log_softmax(counted.float(), dim=-1)


def _surprises(log_probs_CV: Tensor, window: Window) -> NDArray[np.float64]:
    chosen = log_probs_CV.gather(1, window.targets.to(log_probs_CV.device)[:, None])[:, 0]
    surprises: NDArray[np.float64] = -chosen.double().cpu().numpy()
    return surprises


def _joined(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    if not parts:
        raise ValueError("there are no windows of text to measure")
    return np.concatenate(parts)


def _summary(nll: NDArray[np.float64]) -> Perplexity:
    value = _exp(float(nll.mean()))
    return Perplexity(value, value * _standard_error(nll), float(nll.mean()), len(nll))


def _standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean; neighbouring tokens are taken as independent, as llama.cpp does."""
    return float(values.std() / math.sqrt(len(values) - 1)) if len(values) > 1 else 0.0


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
