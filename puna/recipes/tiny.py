"""`tiny`: a base model in under half an hour on two cores, of any corpus. All of it is *ours*."""

from __future__ import annotations

from puna.config import preset
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig

_CHECKPOINTS = 12  # all kept, to see what more tokens give


def tiny() -> PretrainConfig:
    """8.8M tokens: 1,080 steps of 16 windows of 512, learning rate as `cria`'s.

    Saved each 737,280 tokens. The 300 windows held out of each source hold whole books.
    """
    steps = 1080
    settings = Settings(
        steps=steps,
        learning_rate=2e-3,
        warmup_steps=100,
        compile=True,
        loss_chunk=512,
        eval_every=steps // 4,
        checkpoint_every=steps // _CHECKPOINTS,
        keep_checkpoints=_CHECKPOINTS,
    )
    return PretrainConfig(
        model=preset("tiny"),
        settings=settings,
        batch_size=16,
        micro_batch_size=8,
        held_out_windows=300,
    )
