"""What a rank needs, counted without its machines."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from puna.config import ModelConfig, preset
from puna.parallel.memory import Memory, _Watch, count_memory
from puna.parallel.part import Options, Part
from puna.plan.layout import Layout
from puna.train.losses import chunked_next_token_loss_sum

CONFIG = ModelConfig(64, 4, 8, 4, 128, vocab_size=256, context_length=128)


def loss_sum(hidden: Tensor, part: Part, targets: Tensor) -> Tensor:
    return chunked_next_token_loss_sum(
        hidden, part.head(), targets, chunk=64, group=part.place.tensor
    )


def adamw(weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, fused=True)


def count(
    config: ModelConfig,
    line: str,
    recompute: str = "none",
    windows: int = 1,
    pieces: int = 2,
    rank: int = 0,
    schedule: str = "1f1b",
) -> Memory:
    options = Options("bf16", recompute, schedule=schedule)
    return count_memory(
        config, Layout.parse(line), options, micro_batch_size=windows, num_pieces=pieces,
        loss_sum=loss_sum, make_optimizer=adamw, rank=rank,
    )  # fmt: skip


def test_the_most_that_was_there_at_once() -> None:
    with _Watch() as watch:
        kept = [torch.zeros(1000, dtype=torch.uint8) for _ in range(3)]
        assert watch.peak == 3000
        view = kept[0].view(10, 100)
        del kept[1:]
        kept.append(torch.zeros(1500, dtype=torch.uint8))
        assert watch.peak == 3000 and view.numel() == 1000
        kept.append(torch.zeros(600, dtype=torch.uint8))
        assert watch.peak == 3100
        kept[1].untyped_storage().resize_(0)
        kept.append(torch.zeros(1400, dtype=torch.uint8))
    assert watch.peak == 3100


def test_shares_and_recomputation_take_less() -> None:
    whole = count(CONFIG, "fsdp=2")
    # fp32 master weights and gradients, two moments and the counts of steps.
    size = CONFIG.num_parameters * 4 // 2
    assert (whole.weights, whole.gradients) == (size, size)
    assert 0 <= whole.optimizer - 2 * size < 1000
    assert 1.9 < whole.weights / count(CONFIG, "fsdp=4").weights < 2.1
    shared = count(CONFIG, "fsdp=2 tp=2")
    assert shared.weights < 0.52 * whole.weights and shared.working < 0.8 * whole.working
    full, selective = count(CONFIG, "fsdp=2", "full"), count(CONFIG, "fsdp=2", "selective")
    assert full.working < selective.working < whole.working
    assert count(CONFIG, "fsdp=2", windows=4).working > 2 * whole.working
    assert not dist.is_initialized()


def test_stages_of_a_pipeline_hold_the_pieces_under_way() -> None:
    stages = [count(CONFIG, "pp=4", pieces=6, rank=rank) for rank in range(4)]
    weights = sum(stage.weights for stage in stages)
    assert weights == CONFIG.num_parameters * 4
    # Activations of 4, 3 and 2 pieces, which the stages in between have alone.
    assert stages[0].working > stages[1].working > stages[2].working
    longer = count(CONFIG, "pp=4", pieces=12, rank=1)
    state = CONFIG.context_length * CONFIG.dim * 2
    assert longer.working - stages[1].working == 6 * 2 * state  # buffers alone
    gpipe = count(CONFIG, "pp=4", pieces=12, rank=1, schedule="gpipe")
    assert gpipe.working > 2 * longer.working
    with pytest.raises(ValueError, match="not counted of interleaved pipelines"):
        count(CONFIG, "pp=2", schedule="interleaved")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("line", "rank", "pieces"),
    [("dp=2 fsdp=125 tp=8", 0, 2), ("pp=5 fsdp=50 tp=8", 0, 20), ("pp=5 fsdp=50 tp=8", 1999, 20)],
    ids=["no pipeline", "first stage", "last stage"],
)
def test_the_70b_recipe_fits_gpus_of_80_gb(line: str, rank: int, pieces: int) -> None:
    """1000 windows a step, one a piece."""
    with multiprocessing.get_context("spawn").Pool(1) as own:
        options = {"rank": rank, "pieces": pieces}
        memory = own.apply(count, (preset("70b"), line), options)
    print(f"\n{line}, rank {rank}: {memory}, working {memory.working}")
    assert memory.peak < 80e9
