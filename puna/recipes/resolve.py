"""A run as resolved: a recipe's, with what was given in the place of some of its values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from puna.config import ModelConfig, preset
from puna.plan.layout import Layout, usual_micro_batch
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig

_SETTINGS = {field.name for field in dataclasses.fields(Settings)}
# Option -> the run's field of it.
_FIELDS = {
    "batch_size": "batch_size",
    "seed": "seed",
    "held_out": "held_out_windows",
    "mix": "mix",
    "document_mask": "document_mask",
}
_OTHERS = {"model", "context_length", "micro_batch_size", "tokens"}
OPTIONS = frozenset(_SETTINGS | set(_FIELDS) | _OTHERS)


def resolve(
    base: PretrainConfig, given: Mapping[str, Any], *, vocab_size: int | None = None
) -> PretrainConfig:
    """`base` with options (`OPTIONS`, by the names that the command has for them) instead of its
    values. A preset given as `model` has a vocabulary of `vocab_size`.

    What depends on them follows: with another batch, as many steps as see the base's tokens; with
    fewer steps, a tenth of them as warm-up; pieces of a batch as large as the base's, or the most
    that divides it. ValueError where something does not fit the rest.
    """
    if unknown := sorted(set(given) - OPTIONS):
        raise ValueError(f"a recipe has no {', '.join(unknown)}")
    fields = {field: given[option] for option, field in _FIELDS.items() if option in given}
    settings = {name: given[name] for name in given if name in _SETTINGS}
    model = _model(base.model, given, vocab_size)
    batch_size: int = given.get("batch_size", base.last_batch_size)
    before, after = _tokens(base.last_batch_size, base.model), _tokens(batch_size, model)
    if "tokens" in given:
        settings["steps"] = _steps(given["tokens"], after)
    elif "steps" not in given and after != before:
        settings["steps"] = _steps(base.settings.steps * before, after)
    if "steps" in settings and "warmup_steps" not in given:
        settings["warmup_steps"] = min(base.settings.warmup_steps, settings["steps"] // 10)
    resolved = dataclasses.replace(base.settings, **settings)
    piece = given.get("micro_batch_size")
    if piece is None:
        layout = Layout.parse(resolved.parallel)
        piece = usual_micro_batch(
            layout, batch_size, resolved.schedule, at_most=base.micro_batch_size
        )
    return dataclasses.replace(
        base, model=model, settings=resolved, micro_batch_size=piece, **fields
    )


def steps_for(tokens: float, batch_size: int, context_length: int) -> int:
    """Steps that see `tokens` tokens at least; the last batch is whole."""
    return _steps(tokens, batch_size * context_length)


def _steps(tokens: float, tokens_a_step: int) -> int:
    return math.ceil(tokens / max(1, tokens_a_step))


def _tokens(batch_size: int, model: ModelConfig) -> int:
    return batch_size * model.context_length


def _model(base: ModelConfig, given: Mapping[str, Any], vocab_size: int | None) -> ModelConfig:
    if "model" in given:
        base = preset(given["model"])
        if vocab_size is not None:
            base = dataclasses.replace(base, vocab_size=vocab_size)
    if given.get("context_length") is not None:
        base = dataclasses.replace(base, context_length=given["context_length"])
    return base
