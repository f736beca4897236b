"""The conversion matrix: real weights through every ordered pair of formats that can hold them.

Every format first gets the weights as exactly as it can; where a pair is lossless the network that
comes out at the end gives identical logits, where not, the difference is bounded and was reported.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.attention import causal
from puna.commands.models import resolve
from puna.formats import FORMATS, open_checkpoint, save_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import load_model
from puna.heads import next_token_logits
from tests.samples import positions_like

GPTQ_TOLERANCE = 0.05  # 8 bits, as a share of the logits' deviation
WRITABLE = [row.name for row in FORMATS.values() if row.write]


@dataclass(frozen=True)
class Source:
    """A model, and the formats that can hold it: GPTQ's words do not fit stories260K's rows."""

    checkpoint: Checkpoint
    formats: list[str]


@pytest.fixture(scope="module", params=["stories260K", "cria"])
def source(request: pytest.FixtureRequest) -> Source:
    if request.param == "cria":
        return Source(resolve("cria"), WRITABLE)
    shared = request.getfixturevalue("shared")
    original = open_checkpoint(shared / "weights/stories260K/stories260K.bin")
    return Source(original, [name for name in WRITABLE if name != "gptq"])


@torch.inference_mode()
def logits(checkpoint: Checkpoint) -> torch.Tensor:
    tokens = torch.arange(96)[None] * 5 % checkpoint.config.vocab_size
    network = load_model(checkpoint)
    return next_token_logits(network, network(tokens, positions_like(tokens), causal))


def save(checkpoint: Checkpoint, source: Source, path: Path, format: str) -> list[str]:
    options: dict[str, Any] = {"bits": 8} if format == "gptq" else {"dtype": "f32"}
    return save_checkpoint(checkpoint, path, format, **options)


@pytest.fixture(scope="module")
def firsts(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The source in each format."""
    folder = tmp_path_factory.mktemp("matrix")
    opened = {}
    for name in source.formats:
        path = folder / f"{name}{FORMATS[name].suffix}"
        notes = save(source.checkpoint, source, path, name)
        told = any("to the nearest" in note for note in notes)
        assert told == (name == "gptq")
        opened[name] = open_checkpoint(path)
        assert opened[name].format == name
    return opened


def test_each_format_holds_the_weights(source: Source, firsts: dict[str, Checkpoint]) -> None:
    expected = logits(source.checkpoint)
    for name, checkpoint in firsts.items():
        found = logits(checkpoint)
        if name == "gptq":
            distance = (found - expected).std() / expected.std()
            assert 0 < distance < GPTQ_TOLERANCE
        else:
            assert torch.equal(found, expected), name


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(WRITABLE, 2)))
def test_every_pair(
    source: Source, firsts: dict[str, Checkpoint], tmp_path: Path, first: str, second: str
) -> None:
    if not {first, second} <= set(source.formats):
        pytest.skip("GPTQ cannot hold rows of 172 numbers: see the test below")
    path = tmp_path / f"b{FORMATS[second].suffix}"
    notes = save(firsts[first], source, path, second)
    again = open_checkpoint(path)
    expected, found = logits(firsts[first]), logits(again)
    if second == "gptq":
        assert any("to the nearest" in note for note in notes)
        assert 0 < (found - expected).std() / expected.std() < GPTQ_TOLERANCE
    else:
        assert torch.equal(found, expected)
    assert again.config.to_dict() == {
        **firsts[first].config.to_dict(),
        "tied": again.config.tied,
        "context_length": again.config.context_length,
    }
    assert again.vocabulary is not None
    text = "Once upon a time, a little llama saw 2 birds."
    assert again.tokenizer().encode(text) == source.checkpoint.tokenizer().encode(text)


@pytest.mark.parametrize("name", [n for n in WRITABLE if "chat_template" not in FORMATS[n].lacks])
def test_what_travels_with_the_weights(tmp_path: Path, source: Source, name: str) -> None:
    from dataclasses import replace

    from puna.chat import LLAMA2_TEMPLATE

    checkpoint = replace(
        source.checkpoint, chat_template=LLAMA2_TEMPLATE, license="llama2", name="A chat model"
    )
    if name not in source.formats:
        pytest.skip("GPTQ cannot hold rows of 172 numbers: see the test below")
    path = tmp_path / f"a{FORMATS[name].suffix}"
    save(checkpoint, source, path, name)
    again = open_checkpoint(path)
    assert (again.chat_template, again.license) == (LLAMA2_TEMPLATE, "llama2")
    assert again.config == checkpoint.config
    vocabulary = again.vocabulary
    assert vocabulary is not None
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id) == (1, 2, 0)


def test_what_cannot_travel_is_told(tmp_path: Path, source: Source) -> None:
    from dataclasses import replace

    checkpoint = replace(
        source.checkpoint,
        config=replace(source.checkpoint.config, rope_theta=5e5, norm_eps=1e-6),
        chat_template="{{ bos_token }}",
        license="llama2",
        name="A model",
    )
    for name in ("ggml", "llama2c"):
        notes = save(checkpoint, source, tmp_path / f"{name}.bin", name)
        for word in ("chat template", "license", "rotary base", "epsilon"):
            assert any(word in note for note in notes), (name, word, notes)


def test_what_gptq_cannot_hold_is_refused(tmp_path: Path, shared: Path) -> None:
    original = open_checkpoint(shared / "weights/stories260K/stories260K.bin")
    with pytest.raises(ValueError, match=r"feed_forward\.w1.*172 by 64.*choose another format"):
        save_checkpoint(original, tmp_path / "a", "gptq", bits=8, group_size=-1)
    assert list(tmp_path.iterdir()) == []
