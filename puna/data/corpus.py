"""The folder that `puna data build` leaves: token shards, their tokenizer, the declared mix."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from puna.data.manifest import MANIFEST, Manifest, read_manifest, vocabulary_hash
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import read_model

TOKENIZER, TOKENS, MIX = "tokenizer.model", "tokens", "mix.json"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Token shards in a folder. `vocabulary` is what they were made with, None where it is not
    beside them; `mix` the declared weight of each source, None where none is declared."""

    shards: Path
    manifest: Manifest
    vocabulary: Vocabulary | None
    mix: dict[str, float] | None


def open_corpus(folder: Path) -> Corpus:
    """The corpus in `folder`, or in its `tokens`.

    ValueError where there is none, its manifest is damaged, or its mix does not fit its sources.
    """
    whole = folder / TOKENS
    shards = folder if (folder / MANIFEST).is_file() or not whole.is_dir() else whole
    manifest = read_manifest(shards)
    return Corpus(shards, manifest, _vocabulary(shards, manifest), read_mix(shards, manifest))


def read_mix(shards: Path, manifest: Manifest) -> dict[str, float] | None:
    """The weights of `mix.json`, for the manifest's sources; None where there is no such file.

    ValueError where it is damaged, or speaks of other sources than the shards are of.
    """
    path = shards / MIX
    if not path.is_file():
        return None
    try:
        mix = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(mix, dict) or not all(type(w) in (int, float) for w in mix.values()):
        raise ValueError(f"{path} is damaged: it does not give a number for each source")
    known = set(manifest.sources)
    # A source of which nothing was left is in the mix, with 0, and has no shards.
    mix = {source: float(weight) for source, weight in mix.items() if weight or source in known}
    if other := sorted(set(mix) ^ known):
        raise ValueError(
            f"{path} and {MANIFEST} beside it do not have the same sources: only one has "
            f"{', '.join(other)}; build the corpus again, or give --mix"
        )
    return mix


def _vocabulary(shards: Path, manifest: Manifest) -> Vocabulary | None:
    for path in (shards / TOKENIZER, shards.parent / TOKENIZER):
        if path.is_file():
            try:
                vocabulary = read_model(path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            if vocabulary_hash(vocabulary) == manifest.vocabulary:
                return vocabulary
    return None
