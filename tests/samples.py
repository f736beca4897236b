"""Text and networks made on the spot, the same each time."""

from __future__ import annotations

import random
import warnings
from typing import Any

import torch

from puna.config import ModelConfig
from puna.formats.names import HUGGINGFACE
from puna.model import Llama

_WHO = ("The old llama", "A small child", "My aunt", "The herder", "Nobody", "A café owner", "Inti")
_DID = ("walked over", "looked for", "sang to", "counted", "drew", "slept beside", "found")
_WHAT = ("the high grassland", "a cold river", "12 stones", "the moon", "370 sheep", "a naïve fox")
_WHEN = ("at dawn", "in 1998", "after the rain", "before supper", "twice a day", "again")

# Where tokenizers go wrong: spaces, line ends, digits, bytes, marks, other scripts.
AWKWARD = (
    "",
    " ",
    "   ",
    "  two before, two after  ",
    "a  b   c",
    "\n",
    "one\n\ntwo\r\n\tthree\t",
    "1234567890 3.14",
    "naïve café, ¿qué?",
    "高原上的羊驼 ラマ ლამა",
    "🦙👩\u200d👩\u200d👧 flags 🇵🇪",
    "nul \0 and bell \a",
    "e\u0301 is not é",
    "<s>[INST] <<SYS>></s><unk><0x41>",
)


def story_lines(count: int) -> list[str]:
    """Simple sentences, all from a fixed seed."""
    generator = random.Random(0)
    return [
        " ".join(generator.choice(words) for words in (_WHO, _DID, _WHAT, _WHEN)) + "."
        for _ in range(count)
    ]


def small_config(**changes: Any) -> ModelConfig:
    values = {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48}
    values |= {"vocab_size": 97, "context_length": 32}
    return ModelConfig(**values | changes)


@torch.no_grad()
def random_model(config: ModelConfig, seed: int = 0) -> Llama:
    """A network whose every weight matters: matrices of unit gain, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.uniform_(0.5, 1.5, generator=generator)
        else:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    return model


def transformers_network(config: ModelConfig) -> Any:
    """Hugging Face's `LlamaForCausalLM` of the same shape, its weights its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.ffn_dim,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tied,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def transformers_twin(model: Llama) -> Any:
    """The same network as Hugging Face's `LlamaForCausalLM`."""
    config = model.config
    twin = transformers_network(config)
    weights = {HUGGINGFACE.foreign(name): w.clone() for name, w in model.state_dict().items()}
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if config.tied else [])
    return twin.eval()


def positions_like(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1]).expand_as(tokens)
