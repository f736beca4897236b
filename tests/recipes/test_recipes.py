"""Every recipe against the paper's table, written down here by hand; and what is given over it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from puna.commands.pretrain import pretrain as command
from puna.commands.render import human_count
from puna.config import PRESETS, preset
from puna.model import empty
from puna.plan.counts import flops_per_token
from puna.plan.layout import Layout
from puna.recipes import RECIPES, WITH_SOURCES
from puna.recipes.plan import counted_memory, plan
from puna.recipes.resolve import OPTIONS, resolve
from puna.train.pretrain import PretrainConfig

# "Llama 2" (arXiv 2307.09288), table 1 and section 2.2: parameters, dimension, layers, heads, heads
# of keys and values, feed-forward, peak, windows a batch (*ours* for 70B), 2T tokens in steps.
PAPER = {
    "7b": (6_738_415_616, 4096, 32, 32, 32, 11008, 3e-4, 1024, 476_838),
    "13b": (13_015_864_320, 5120, 40, 40, 40, 13824, 3e-4, 1024, 476_838),
    "34b": (32_528_943_616, 6656, 60, 52, 52, 17920, 1.5e-4, 1024, 476_838),
    "70b": (68_976_648_192, 8192, 80, 64, 8, 28672, 1.5e-4, 1000, 488_282),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_runs(name: str) -> None:
    config = RECIPES[name]()
    parameters, dim, layers, heads, kv_heads, ffn, peak, batch, steps = PAPER[name]
    model, settings = config.model, config.settings
    assert model.num_parameters == parameters
    assert sum(weight.numel() for weight in empty(model).parameters()) == parameters
    shape = (model.dim, model.num_layers, model.num_heads, model.num_kv_heads, model.ffn_dim)
    assert shape == (dim, layers, heads, kv_heads, ffn)
    assert (model.vocab_size, model.context_length, model.norm_eps) == (32_000, 4096, 1e-5)
    assert (settings.learning_rate, config.batch_size, settings.steps) == (peak, batch, steps)
    assert 0 <= steps * batch * 4096 - 2_000_000_000_000 < batch * 4096
    assert 3.9e6 < batch * 4096 < 4.2e6
    assert (settings.warmup_steps, settings.final_fraction) == (2000, 0.1)
    assert (settings.beta1, settings.beta2, settings.eps) == (0.9, 0.95, 1e-5)
    assert (settings.weight_decay, settings.grad_clip) == (0.1, 1.0)


def test_the_70b_recipe_is_for_2000_gpus() -> None:
    config = RECIPES["70b"]()
    assert config.layout == Layout(dp=8, fsdp=125, tp=2)
    assert (config.layout.num_ranks, config.layout.num_data_ranks) == (2000, 1000)
    # Each GPU's share, on a meta device: the matrices by 2 and 125 with the head dimension whole.
    found = plan(config)
    assert not dist.is_initialized()
    share = config.model.num_parameters * 4 / (2 * 125)
    assert found.memory.weights == found.memory.gradients == pytest.approx(share, rel=0.01)
    # What counting gives (`test_the_plan_is_what_counting_gives`, marked slow).
    assert found.memory.peak == pytest.approx(52.80e9, rel=0.05)
    assert found.tokens == 488_282 * 1000 * 4096
    with pytest.raises(ValueError, match=r"1024 windows does not divide by 1000 .* 1000 or 2000"):
        resolve(config, {"batch_size": 1024})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["7b", "34b", "70b"])
def test_the_plan_is_what_counting_gives(name: str) -> None:
    config = RECIPES[name]()
    with multiprocessing.get_context("spawn").Pool(1) as own:
        counted = own.apply(counted_memory, (config,))
    print(f"{name}: {plan(config).memory.peak / 1e9:.2f} GB, counted {counted.peak / 1e9:.2f} GB")
    assert plan(config).memory.peak == pytest.approx(counted.peak, rel=0.05)


def test_small_recipes() -> None:
    tiny, small, medium = (RECIPES[name]() for name in ("tiny", "110m", "1b"))
    assert tiny.model == preset("tiny") and tiny.model.num_parameters == 6_163_712
    tokens = tiny.settings.steps * tiny.last_batch_size * tiny.model.context_length
    assert tokens == 8_847_360  # 14 minutes at 10,300 tokens/s
    assert tiny.settings.steps == 12 * tiny.settings.checkpoint_every
    assert tiny.settings.keep_checkpoints == 12
    assert tiny.settings.eval_every == 3 * tiny.settings.checkpoint_every
    assert small.model.num_parameters == 109_529_856
    assert medium.model.num_parameters == 1_100_048_384
    for config in (small, medium):
        seen = config.settings.steps * config.last_batch_size * config.model.context_length
        assert seen / config.model.num_parameters == pytest.approx(20, rel=0.001)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_run_that_can_be_written_down(name: str) -> None:
    config = RECIPES[name]()
    assert PretrainConfig.from_dict(config.to_dict()) == config
    assert (name in WITH_SOURCES) == (name == "cria")


def test_the_page_says_what_the_recipes_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text()
    rows = [
        line.split("|")[1:-1] for line in page.splitlines() if re.match(r"\| `[0-9a-z]+`", line)
    ]
    told = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 6}
    assert list(told) == [name for name in RECIPES if name not in WITH_SOURCES]
    for name, (parameters, tokens, batch, peak, where) in told.items():
        config = RECIPES[name]()
        a_step = config.last_batch_size * config.model.context_length
        assert parameters == f"{config.model.num_parameters:,}"
        assert tokens == human_count(config.settings.steps * a_step)
        assert batch == f"{config.last_batch_size} x {config.model.context_length}"
        assert float(peak) == config.settings.learning_rate
        assert config.settings.parallel in where


def test_flops_of_a_token() -> None:
    # 6 x (6.738e9 - 32000 x 4096, looked up) + 12 x 32 layers x 4096 x 4096.
    assert flops_per_token(preset("7b")) == 39_644_061_696 + 6_442_450_944


def test_what_is_given_takes_the_place_of_the_recipes() -> None:
    base = RECIPES["7b"]()
    given: dict[str, Any] = {
        "steps": 5000, "learning_rate": 1e-4, "parallel": "fsdp=8", "batch_size": 64, "seed": 4,
        "held_out": 2, "document_mask": True, "mix": {"web": 1.0}, "context_length": 2048,
        "device": "cpu", "compile": False, "recompute": "full", "checkpoint_every": 7,
    }  # fmt: skip
    found = resolve(base, given)
    assert found.settings == dataclasses.replace(
        base.settings, steps=5000, warmup_steps=500, learning_rate=1e-4, parallel="fsdp=8",
        device="cpu", compile=False, recompute="full", checkpoint_every=7,
    )  # fmt: skip
    assert found == dataclasses.replace(
        base, model=dataclasses.replace(base.model, context_length=2048), settings=found.settings,
        batch_size=64, seed=4, held_out_windows=2, document_mask=True, mix={"web": 1.0},
    )  # fmt: skip
    assert resolve(base, {}) == base
    assert resolve(base, {"steps": 5000, "warmup_steps": 3}).settings.warmup_steps == 3


def test_what_follows_from_what_is_given() -> None:
    tiny = RECIPES["tiny"]()
    assert resolve(tiny, {"tokens": 1e6}).settings.steps == 123  # 122.07 batches of 8,192
    assert resolve(tiny, {"tokens": 1e6, "batch_size": 32}).settings.steps == 62
    assert resolve(tiny, {"batch_size": 32}).settings.steps == 540  # the same tokens
    assert resolve(tiny, {"context_length": 256}).settings.steps == 2160
    # Pieces are the recipe's 8 windows, or the most that divides the batch.
    pieces = {size: resolve(tiny, {"batch_size": size}).micro_batch_size for size in (24, 12, 7)}
    assert pieces == {24: 8, 12: 6, 7: 7}
    assert resolve(tiny, {"batch_size": 12, "micro_batch_size": 3}).micro_batch_size == 3
    other = resolve(tiny, {"model": "small"}, vocab_size=4096).model
    assert other == dataclasses.replace(preset("small"), vocab_size=4096)


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        ("34b", {"parallel": "fsdp=128 tp=8"}, "52 heads do not divide by tp=8"),
        ("70b", {"parallel": "fsdp=125 tp=16"}, "8 key/value heads do not divide by tp=16"),
        ("7b", {"parallel": "fsdp=8 pp=5"}, "32 layers do not divide by pp=5"),
        ("13b", {"parallel": "dp=250 tp=8"}, "1024 windows does not divide by 250"),
        ("7b", {"parallel": "fsdp=1024 pp=2"}, "needs as many pieces of a batch"),
        ("tiny", {"parallel": "pp=2"}, "ties them"),
        ("tiny", {"batch_size": 12, "micro_batch_size": 5}, "no multiple of micro_batch_size 5"),
        ("tiny", {"steps": 5, "warmup_steps": 6}, "between 0 and 5 steps"),
        ("tiny", {"colour": 1}, "has no colour"),
    ],
)
def test_what_does_not_fit_is_said(recipe: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve(RECIPES[recipe](), given)


def test_every_option_of_the_command_is_of_the_run_or_known_not_to_be() -> None:
    names = {str(parameter.name) for parameter in command.params}
    beside = {"texts", "out", "resume", "recipe", "size", "dry_run", "tokenizer", "separator"}
    beside |= {"tensorboard", "wandb", "profile", "guard", "hang_timeout"}
    assert beside <= names and names - OPTIONS == beside
    assert set(PRESETS) >= {"7b", "13b", "34b", "34b-gqa", "70b"}
