"""`puna info`: what a model file is, or what is known of a released model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from puna.catalog import KnownModel, find, present_repository
from puna.chat import INST, SYS
from puna.commands.models import resolve
from puna.commands.options import json_option
from puna.commands.render import facts_table, human_bytes, human_count
from puna.config import ModelConfig
from puna.formats.checkpoint import Checkpoint
from puna.hub.locate import SHIPPED, hub_name


@click.command()
@click.argument("model", default="cria")
@json_option
def info(model: str, as_json: bool) -> None:
    """What MODEL is: a path in any format, a shipped or pulled model, or a released one by name.

    Reads headers only; nothing is downloaded.
    """
    known = None if Path(model).exists() or model in SHIPPED or _is_pulled(model) else find(model)
    if known is not None:
        facts, title = _known_facts(known, model), known.name
    else:
        checkpoint = resolve(model, download=False)
        facts, title = _checkpoint_facts(checkpoint), str(model)
    if as_json:
        click.echo(json.dumps({key: value for key, (value, _) in facts.items()}))
    else:
        facts_table(title, {key: text for key, (_, text) in facts.items() if text})


def _is_pulled(model: str) -> bool:
    """Whether a repository's name means a model on this machine; the catalogue's own do not."""
    if "/" not in model or (name := hub_name(model)) is None:
        return False

    from puna.hub.cache import find_pulled

    return find_pulled(name) is not None


# Each fact is (value for programs, text for people); an empty text is left out of the table.
Facts = dict[str, tuple[Any, str]]


def _checkpoint_facts(checkpoint: Checkpoint) -> Facts:
    try:
        vocabulary, problem = checkpoint.vocabulary, "none"
    except ValueError as error:
        vocabulary, problem = None, str(error)
    sizes = checkpoint.dtype_bytes()
    dtypes = ", ".join(f"{name} {human_bytes(size)}" for name, size in sizes.items())
    chat_format = _chat_format(checkpoint.chat_template)
    facts: Facts = {
        "format": (checkpoint.format, checkpoint.format),
        "name": (checkpoint.name, checkpoint.name),
        **_shape_facts(checkpoint.config),
        "dtype": (list(sizes), dtypes),
        "bytes": (checkpoint.num_bytes, human_bytes(checkpoint.num_bytes)),
        "tokenizer": (
            None if vocabulary is None else len(vocabulary),
            problem if vocabulary is None else f"{len(vocabulary):,} pieces, SentencePiece BPE",
        ),
        "heads": (list(checkpoint.heads), ", ".join(checkpoint.heads)),
        "chat_format": (chat_format, chat_format),
        "license": (checkpoint.license, checkpoint.license),
        "notes": (list(checkpoint.notes), "; ".join(checkpoint.notes)),
    }
    return facts


def _shape_facts(config: ModelConfig) -> Facts:
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f", {config.num_kv_heads} for keys and values (GQA)"
    head = "tied to the embedding" if config.tied else "its own"
    return {
        "parameters": (
            config.num_parameters,
            f"{config.num_parameters:,} ({human_count(config.num_parameters)})",
        ),
        "shape": (
            config.to_dict(),
            f"{config.num_layers} layers of {config.dim}, feed-forward {config.ffn_dim}",
        ),
        "attention": (config.num_kv_heads, heads),
        "vocabulary": (config.vocab_size, f"{config.vocab_size:,}, output head {head}"),
        "context": (config.context_length, f"{config.context_length:,} tokens"),
        "rope_theta": (config.rope_theta, f"{config.rope_theta:g}"),
        "norm_eps": (config.norm_eps, f"{config.norm_eps:g}"),
    }


def _known_facts(known: KnownModel, asked: str) -> Facts:
    moved = present_repository(asked)
    renamed = moved if "/" in asked and moved != asked else ""
    kind = "chat" if known.chat else "base"
    cost = f"{known.gpu_hours:,} A100-80GB GPU-hours" if known.gpu_hours else ""
    carbon = f"{known.tco2eq} tCO2eq at {known.power_watts} W a GPU" if known.tco2eq else ""
    released = known.released or "announced in the paper, never released"
    return {
        "model": (known.family, f"{known.family} {kind}, {known.preset}"),
        "released": (known.released or None, released),
        "present_name": (renamed or None, f"{asked} is now {renamed}" if renamed else ""),
        "license": (known.license, known.license),
        **_shape_facts(known.config),
        "tokens": (known.tokens, f"{human_count(known.tokens)} tokens of pretraining"),
        "pretraining_cutoff": (known.pretraining_cutoff or None, known.pretraining_cutoff),
        "tuning_cutoff": (known.tuning_cutoff or None, known.tuning_cutoff),
        "gpu_hours": (known.gpu_hours, cost),
        "carbon": (known.tco2eq, carbon),
        "repository": (known.repository or None, known.repository),
        "other_formats": (list(known.other_formats), "\n".join(known.other_formats)),
    }


def _chat_format(template: str | None) -> str:
    if template is None:
        return "none given: a base model, or Meta's own files"
    return "Llama 2" if INST in template and SYS in template else "another (a template of its own)"
