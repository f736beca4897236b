"""What a model writes after texts and dialogs, for evaluations that read it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from puna.chat import Message
from puna.engine.llm import LLM
from puna.engine.params import SamplingParams
from puna.engine.prompts import encode

Prompt = str | Sequence[Message]


def replies(llm: LLM, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[str]:
    """The continuation of each text and the answer to each dialog, without the space around it.

    Each is drawn with a seed of its own, which `sampling.seed` and the prompt make: so it does not
    depend on what is asked beside it. ValueError for a prompt that does not fit the context.
    """
    params = [replace(sampling, seed=_seed(sampling.seed or 0, prompt)) for prompt in prompts]
    encoded = [encode(llm.tokenizer, prompt) for prompt in prompts]
    found = llm.generate(encoded, params) if prompts else []
    return [result.outputs[0].text.strip() for result in found]


def fits(llm: LLM, prompt: Prompt, max_tokens: int) -> bool:
    """Whether a reply of `max_tokens` has room behind the prompt in the context."""
    return len(encode(llm.tokenizer, prompt).ids) + max_tokens <= llm.config.context_length


def _seed(seed: int, prompt: Prompt) -> int:
    text = prompt if isinstance(prompt, str) else [(m.role, m.content) for m in prompt]
    digest = hashlib.blake2b(repr((seed, text)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
