"""Scalar heads: what they give, and that files and runs keep them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from puna.attention import causal
from puna.formats import huggingface, open_checkpoint
from puna.formats.errors import FormatError
from puna.formats.network import as_checkpoint, load_model
from puna.formats.saving import save_checkpoint
from puna.heads import attach, drop_output, heads_of, scalar
from puna.model import Llama
from puna.parallel.part import Options, take_part
from puna.parallel.place import take_place
from puna.plan.layout import Layout
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import RunState, restore
from puna.train.contracts import Trainee
from puna.train.loop import Settings, make_optimizer
from puna.train.several import Several
from puna.train.single import Single
from tests.samples import positions_like, random_model, small_config

SETTINGS = Settings(steps=4, warmup_steps=1)
NO_STAGE: Any = None


def with_heads(*heads: str, **changes: Any) -> Llama:
    model = random_model(small_config(vocab_size=420, **changes))
    attach(model, *heads)
    with torch.no_grad():
        for number, head in enumerate(heads):
            weight = model.get_submodule(head).get_parameter("weight")
            weight.normal_(generator=torch.Generator().manual_seed(number))
    return model


def scores(model: Llama, tokens: torch.Tensor, head: str = "score") -> torch.Tensor:
    with torch.no_grad():
        return scalar(model, head, model(tokens, positions_like(tokens), causal)[:, -1])


def test_a_head_is_a_product_with_the_hidden_states() -> None:
    model = random_model(small_config())
    attach(model, "value")
    assert heads_of(model) == ("value",)
    hidden = torch.arange(64.0).reshape(2, 32)
    assert scalar(model, "value", hidden).tolist() == [0, 0]
    with torch.no_grad():
        model.get_submodule("value").get_parameter("weight")[0, :2] = torch.tensor([2.0, -1.0])
    assert scalar(model, "value", hidden.bfloat16()).tolist() == [-1, 64 - 33]
    assert scalar(model, "value", hidden).dtype == torch.float32
    with pytest.raises(ValueError, match="no head 'reward'; there are: score, safety, value"):
        attach(model, "reward")


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_gives_the_same_scores(
    tmp_path: Path, vocabulary: Vocabulary, tied: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForSequenceClassification

    model = with_heads("score", tied=tied)
    drop_output(model)
    huggingface.write(as_checkpoint(model, tmp_path, vocabulary), tmp_path / "a")
    theirs, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert type(theirs).__name__ == "LlamaForSequenceClassification"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(3, 420, (2, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, -1] = 1, 2  # BOS and EOS, as in a dialog
    padded = torch.cat([tokens, torch.zeros_like(tokens[:, :3])], dim=1)
    with torch.no_grad():
        assert theirs.num_labels == 1
        for given in (tokens, padded):
            torch.testing.assert_close(
                theirs(given).logits[:, 0], scores(model, tokens), rtol=0, atol=1e-5
            )
    # And what transformers writes, which has no next-token head, opens here.
    theirs.save_pretrained(tmp_path / "b")
    checkpoint = open_checkpoint(tmp_path / "b")
    assert checkpoint.heads == ("score",) and checkpoint.config.tied
    assert torch.equal(scores(load_model(checkpoint), tokens), scores(model, tokens))


def alone(model: Llama) -> Trainee:
    return Single(model, NO_STAGE, SETTINGS)


def of_ranks(model: Llama) -> Trainee:
    """One rank, which writes pieces as each of many does."""
    place = take_place(Layout.parse("fsdp=1"), "cpu")
    part = take_part(model.config, place, Options(dtype="fp32", heads=heads_of(model)))
    part.fill(model.named_parameters())
    return Several(part, NO_STAGE)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of a group of one
@pytest.mark.parametrize(("make", "format"), [(alone, "huggingface"), (of_ranks, "sharded")])
def test_a_run_keeps_its_heads(
    tmp_path: Path, vocabulary: Vocabulary, make: Any, format: str
) -> None:
    if format == "sharded":
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        first = make(with_heads("score", "value"))
        weights = dict(first.network.named_parameters())
        optimizer = make_optimizer(first.network, SETTINGS)
        for weight in weights.values():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        first.save(tmp_path, optimizer, RunState(1, 5), vocabulary, keep=1, wait=True)

        again = make(with_heads("value", "score"))
        other = make_optimizer(again.network, SETTINGS)
        assert restore(tmp_path, again, other) == RunState(1, 5)
        found = dict(again.network.named_parameters())
        for name in ("score.weight", "value.weight"):
            for key in ("exp_avg", "exp_avg_sq", "step"):
                moments = (
                    o.state[w][key] for o, w in ((optimizer, weights[name]), (other, found[name]))
                )
                assert torch.equal(*moments), (name, key)
        checkpoint = open_checkpoint(tmp_path)
        assert checkpoint.format == format and checkpoint.heads == ("score", "value")
        opened = dict(load_model(checkpoint).named_parameters())
        for name, weight in weights.items():
            assert torch.equal(found[name], weight), name
            whole = weight.full_tensor() if format == "sharded" else weight
            assert torch.equal(opened[name], whole), name

        more = make(with_heads("score", "safety", "value"))
        with pytest.raises(ValueError, match=r"lacks safety\.weight, which this run trains"):
            restore(tmp_path, more, make_optimizer(more.network, SETTINGS))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_formats_without_a_place_for_heads_say_so(tmp_path: Path, vocabulary: Vocabulary) -> None:
    checkpoint = as_checkpoint(with_heads("value", dim=32), tmp_path, vocabulary)
    for format in ("gguf", "meta"):
        notes = save_checkpoint(checkpoint, tmp_path / format, format, dtype="f32")
        assert f"the heads are lost: {format} has no place for them" in notes
        assert open_checkpoint(tmp_path / format).heads == ()
    assert not save_checkpoint(checkpoint, tmp_path / "hf", "huggingface", dtype="f16")
    assert open_checkpoint(tmp_path / "hf").heads == ("value",)


def test_a_head_of_several_outputs_is_none_of_ours(tmp_path: Path, vocabulary: Vocabulary) -> None:
    model = with_heads("score")
    model.score = torch.nn.Linear(32, 3, bias=False)
    with pytest.raises(
        FormatError, match=r"score.weight .*has shape \(3, 32\), the config says \(1, 32\)"
    ):
        as_checkpoint(model, tmp_path, vocabulary)
