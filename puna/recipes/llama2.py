"""Llama 2's own runs: 2T tokens, 4M tokens a batch, windows of 4096 ("Llama 2", arXiv 2307.09288).

AdamW, its betas, eps, weight decay and clipping, 2000 warm-up steps and the cosine to 10 % are
`Settings`' defaults. *Ours*: the layouts, pieces, recomputation, chunks of the loss, intervals and
held-out windows, of which the paper says nothing.
"""

from __future__ import annotations

from puna.config import preset
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig

_TOKENS = 2_000_000_000_000


def base_7b() -> PretrainConfig:
    return _run("7b", 3e-4, "dp=128 fsdp=8")


def base_13b() -> PretrainConfig:
    return _run("13b", 3e-4, "dp=128 fsdp=8")


def base_34b() -> PretrainConfig:
    """The published table's 34B; the one that was released is `--model 34b-gqa`."""
    return _run("34b", 1.5e-4, "dp=8 fsdp=128", recompute="selective")


def base_70b() -> PretrainConfig:
    """On the paper's 2000 GPUs, in what `puna plan train` finds with room to spare: one window for
    two of them. Its 4M tokens would be 1024 windows, which do not divide: 1000 are *ours*."""
    layout = "dp=8 fsdp=125 tp=2"
    return _run("70b", 1.5e-4, layout, batch_size=1000, recompute="selective")


def _run(
    name: str,
    learning_rate: float,
    parallel: str,
    *,
    batch_size: int = 1024,
    recompute: str = "none",
) -> PretrainConfig:
    model = preset(name)
    settings = Settings(
        # Rounded up: the last batch is whole.
        steps=-(-_TOKENS // (batch_size * model.context_length)),
        learning_rate=learning_rate,
        compile=True,
        device="cuda",
        parallel=parallel,
        recompute=recompute,
        loss_chunk=1024,
        eval_every=1000,
        checkpoint_every=500,
    )
    return PretrainConfig(
        model, settings, batch_size=batch_size, micro_batch_size=1, held_out_windows=64
    )
