"""The dial: parameters or tokens of a new model set everything else about its run.

- Tokens: 20 a parameter ("Chinchilla", arXiv 2203.15556, section 3: parameters and tokens grow
  alike), where they are not given; and so the parameters where only tokens are.
- Learning rate and batch: the power laws of "DeepSeek LLM" (arXiv 2401.02954, section 3.1), peak
  0.3118 C^-0.1250 and 0.2920 C^0.3271 tokens a batch for C = FLOPs a token, embeddings left out,
  times tokens. They gave that paper's 7B, of 2T tokens, 4.2e-4 and 9.4M. *Ours*: the batch is the
  nearest power of two in windows, as it is to divide over ranks; the rate has two digits, and
  grows no more below 1e17 FLOPs, where the fit begins.
- Shape, *ours*: about 32 (dim / 4096)^0.6 layers, which is within one layer of `tiny`, `110m`,
  `1b`, `7b` and `34b-gqa`, more or fewer to meet the size; widths whose heads divide by 4 at least,
  and the feed-forward of Llama's rule.
- The rest is Llama 2's (`Settings`), or in the table below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from puna.config import ModelConfig, ffn_dim
from puna.plan.counts import flops_per_token
from puna.plan.layout import Layout, usual_micro_batch
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig

TOKENS_PER_PARAMETER = 20
_NEAR = 0.1  # how far from the size that was asked for a model may be
_FITTED_FROM = 1e17  # FLOPs
_TOKENS_AT_ONCE = 8192  # in a piece of a batch


@dataclass(frozen=True, slots=True)
class _Kind:
    """What models below so many parameters are like, *ours*. Llama 2 shares keys and values, by 8
    heads, from 34B on; widths are multiples of `width`."""

    below: float
    context_length: int
    tied: bool
    head_dim: int
    num_kv_heads: int | None
    width: int
    device: str = "cuda"
    recompute: str = "none"
    loss_chunk: int = 0


_KINDS = (
    _Kind(20e6, 512, True, 32, None, 256, device="cpu"),
    _Kind(60e6, 1024, True, 64, None, 256, device="cpu"),
    _Kind(300e6, 2048, True, 64, None, 256, loss_chunk=2048),
    _Kind(1e9, 2048, False, 64, None, 256, loss_chunk=2048),
    _Kind(4e9, 4096, False, 64, None, 512, loss_chunk=2048),
    _Kind(20e9, 4096, False, 128, None, 512, recompute="selective", loss_chunk=1024),
    _Kind(math.inf, 4096, False, 128, 8, 1024, recompute="selective", loss_chunk=1024),
)


def dial(
    vocab_size: int, *, size: float | None = None, tokens: float | None = None
) -> PretrainConfig:
    """The run of a model of about `size` parameters on `tokens` tokens; one may be left out.

    Within 10 % of the size; ValueError where no shape is, a vocabulary being large beside it.
    """
    if size is None:
        if tokens is None:
            raise ValueError("the dial needs a size or a number of tokens")
        size = tokens / TOKENS_PER_PARAMETER
    model = shape(size, vocab_size)
    return scaled(model, tokens or TOKENS_PER_PARAMETER * model.num_parameters)


def scaled(model: ModelConfig, tokens: float, *, parallel: str = "") -> PretrainConfig:
    """The run of a model on so many tokens, by the rules above."""
    kind = _kind(model.num_parameters)
    head = 6 * model.vocab_size * model.dim  # which their law leaves out
    compute = tokens * (flops_per_token(model) - head)
    windows = 0.2920 * compute**0.3271 / model.context_length
    batch_size = 2 ** max(0, round(math.log2(windows)))
    steps = math.ceil(tokens / (batch_size * model.context_length))
    settings = Settings(
        steps=steps,
        learning_rate=float(f"{0.3118 * max(compute, _FITTED_FROM) ** -0.1250:.2g}"),
        warmup_steps=min(2000, steps // 10),
        compile=True,
        device=kind.device,
        parallel=parallel,
        recompute=kind.recompute,
        loss_chunk=kind.loss_chunk,
        eval_every=min(1000, max(1, steps // 10)),
        checkpoint_every=min(1000, max(1, steps // 10)),
    )
    at_once = max(1, _TOKENS_AT_ONCE // model.context_length)
    piece = usual_micro_batch(Layout.parse(parallel), batch_size, at_most=at_once)
    return PretrainConfig(model, settings, batch_size, piece, held_out_windows=32)


def shape(size: float, vocab_size: int) -> ModelConfig:
    """The Llama of about `size` parameters whose depth fits its width; ValueError where there is
    none within 10 %."""
    kind = _kind(size)
    nearest: list[ModelConfig] = []
    width = kind.width
    while (least := _model(kind, width, 1, vocab_size)).num_parameters < size * (1 + _NEAR):
        block = _model(kind, width, 2, vocab_size).num_parameters - least.num_parameters
        exact = 1 + (size - least.num_parameters) / block
        # Deep networks have layers that pipelines can share.
        unit = 4 if exact >= 16 else 1
        for layers in {unit * math.floor(exact / unit), unit * math.ceil(exact / unit)}:
            nearest += [_model(kind, width, layers, vocab_size)] if layers > 0 else []
        width += kind.width
    fitting = [model for model in nearest if abs(model.num_parameters / size - 1) <= _NEAR]
    if not fitting:
        raise ValueError(
            f"no model of {size:,.0f} parameters has a vocabulary of {vocab_size} pieces; the "
            f"smallest has {_smallest(vocab_size):,}"
        )
    return min(fitting, key=lambda model: _misfit(model, size))


def _misfit(model: ModelConfig, size: float) -> float:
    usual = 32 * (model.dim / 4096) ** 0.6
    return abs(math.log(model.num_layers / usual)) + 4 * abs(math.log(model.num_parameters / size))


def _model(kind: _Kind, dim: int, layers: int, vocab_size: int) -> ModelConfig:
    heads = dim // kind.head_dim
    return ModelConfig(
        dim, layers, heads, kind.num_kv_heads or heads, ffn_dim(dim), vocab_size,
        context_length=kind.context_length, tied=kind.tied,
    )  # fmt: skip


def _smallest(vocab_size: int) -> int:
    return _model(_KINDS[0], _KINDS[0].width, 1, vocab_size).num_parameters


def _kind(size: float) -> _Kind:
    return next(kind for kind in _KINDS if size < kind.below)
