"""Prompts: texts, token ids and dialogs, and what the engine makes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from puna.chat import TAGS, Message, encode_dialog
from puna.tokenizer import Tokenizer

Dialog = Sequence[Message | Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids, and how what follows them is written.

    `text` is theirs, if known. `strip_space` leaves out the space before the first word that
    follows. `stop` ends every output, beside the stops of its parameters, but for those that must
    fit a schema, regex or grammar.
    """

    ids: Sequence[int]
    text: str | None = None
    strip_space: bool = False
    stop: tuple[str, ...] = ()


Prompt = str | Sequence[int] | EncodedPrompt


def encode(tokenizer: Tokenizer, prompt: Prompt | Dialog) -> EncodedPrompt:
    """Encodes a text (after BOS), or a dialog in Llama 2's chat format; ids stay as they are.

    Raises ValueError for a dialog whose roles are out of order or whose text forges a tag.
    """
    if isinstance(prompt, EncodedPrompt):
        return prompt
    if isinstance(prompt, str):
        # A word that follows a prompt keeps its space; the first of all has none.
        return EncodedPrompt(tokenizer.encode(prompt, bos=True), prompt, strip_space=not prompt)
    if _is_dialog(prompt):
        ids = encode_dialog(tokenizer, [_message(message) for message in prompt]).ids
        # A tag that the model writes would forge a turn when it is read again.
        return EncodedPrompt(ids, strip_space=True, stop=TAGS)
    return EncodedPrompt([int(token) for token in prompt])  # type: ignore[arg-type]


def _is_dialog(prompt: Sequence[int] | Dialog) -> TypeGuard[Dialog]:
    return bool(prompt) and isinstance(prompt[0], Message | Mapping)


def _message(message: Message | Mapping[str, str]) -> Message:
    if isinstance(message, Message):
        return message
    try:
        role, content = message["role"], message["content"]
    except KeyError as error:
        raise ValueError(f"a message needs role and content; this one has no {error}") from None
    if not isinstance(content, str):
        raise ValueError(f"a message's content must be text, not {type(content).__name__}")
    return Message(role, content)
