"""What producers of data need of a model: answers to dialogs, and scores of answered ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from puna.chat import Message, encode_dialog
from puna.engine.params import SamplingParams
from puna.tokenizer import Tokenizer

if TYPE_CHECKING:
    from puna.engine.llm import LLM

Dialog = Sequence[Message]
# Whole dialogs, each ending in the assistant's answer -> their raw rewards.
Scorer = Callable[[Sequence[Dialog]], list[float]]


class Answer(NamedTuple):
    """An answer; `finished` is False where it was cut off at the limit of tokens."""

    text: str
    finished: bool = True

    @property
    def usable(self) -> bool:
        """Whether it can be learned: no end that was cut off, no saying nothing, no bytes that are
        no text."""
        return self.finished and bool(self.text) and "\ufffd" not in self.text


class Sampler(Protocol):
    """Draws `count` answers to each dialog, which ends with the user: those of dialog i are a
    function of it and `seeds[i]`, whatever stands beside it. Temperature 0 is greedy."""

    def __call__(
        self, dialogs: Sequence[Dialog], *, count: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[Answer]]: ...


def engine_sampler(llm: LLM, *, max_tokens: int, top_p: float = 1.0) -> Sampler:
    """Answers of at most `max_tokens` from the engine, by default from the whole distribution."""

    def sample(
        dialogs: Sequence[Dialog], *, count: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[Answer]]:
        params = [
            SamplingParams(temperature, top_p=top_p, seed=seed, max_tokens=max_tokens, n=count)
            for seed in seeds
        ]
        results = llm.chat(list(dialogs), params) if dialogs else []
        return [
            [Answer(o.text.strip(), o.finish_reason == "stop") for o in result.outputs]
            for result in results
        ]

    return sample


def fits(tokenizer: Tokenizer, dialog: Dialog, max_tokens: int, context: int) -> bool:
    """Whether an answer of `max_tokens` has room behind the dialog in a context."""
    return len(encode_dialog(tokenizer, dialog).ids) + max_tokens <= context


def fitted(scorer: Scorer, tokenizer: Tokenizer, context: int) -> Scorer:
    """The scorer, of dialogs as far as its context goes: an answer that was sampled within it can
    take more tokens when it is read again (broken characters), and then loses its end (ours)."""

    def score(dialogs: Sequence[Dialog]) -> list[float]:
        return scorer([_shortened(tokenizer, dialog, context) for dialog in dialogs])

    return score


def _shortened(tokenizer: Tokenizer, dialog: Dialog, context: int) -> Dialog:
    answer = dialog[-1].content
    while answer and len(encode_dialog(tokenizer, dialog).ids) > context:
        answer = answer[: len(answer) * 9 // 10]
        dialog = answered(dialog[:-1], answer)
    return dialog


def seed_of(seed: int, *names: str | int) -> int:
    """A seed of its own for each thing that is drawn in a run."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def rewards_of(scorer: Scorer, dialogs: Sequence[Dialog]) -> list[float]:
    """The dialogs' raw rewards; ValueError for one that is no number, with its dialog."""
    if not dialogs:
        return []
    rewards = [float(reward) for reward in scorer(dialogs)]
    if len(rewards) != len(dialogs):
        raise ValueError(f"the reward model gave {len(rewards)} rewards for {len(dialogs)} dialogs")
    for reward, dialog in zip(rewards, dialogs, strict=True):
        if not math.isfinite(reward):
            raise ValueError(
                f"the reward model gave {reward} for an answer to {dialog[-2].content[:60]!r}; its "
                "weights are damaged, or overflow in this type"
            )
    return rewards


def answered(dialog: Dialog, answer: str) -> list[Message]:
    """The dialog with the assistant's answer."""
    return [*dialog, Message("assistant", answer)]


def example(dialog: Dialog, answer: str) -> list[dict[str, Any]]:
    """Messages for fine-tuning (`weight` as OpenAI has it): only the last answer is learned."""
    messages: list[dict[str, Any]] = [
        {"role": message.role, "content": message.content}
        | ({"weight": 0} if message.role == "assistant" else {})
        for message in dialog
    ]
    return [*messages, {"role": "assistant", "content": answer, "weight": 1}]
