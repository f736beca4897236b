"""Llama 2's chat format: dialog -> token ids and loss mask.

Exactly Meta's (facebookresearch/llama, `llama/generation.py`): each turn is encoded by itself,
BOS and EOS are ids, and text that forges a tag is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puna.tokenizer import Tokenizer

INST, END_INST = "[INST]", "[/INST]"
SYS, END_SYS = "<<SYS>>", "<</SYS>>"
TAGS = (INST, END_INST, SYS, END_SYS)

# The same format as Hugging Face's Jinja templates say it, for files that carry one. Its special
# tokens are text to a template; only what Puna encodes itself is safe from forged ones.
LLAMA2_TEMPLATE = r"""
{%- set system, turns = '', messages -%}
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' -%}
  {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
  {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
    {{- raise_exception('user and assistant must take turns, beginning with user') -}}
  {%- elif message['role'] == 'user' -%}
    {%- set text = system + message['content'] if loop.first else message['content'] -%}
    {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + message['content'].strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
""".strip()
TEMPLATES = {"llama2": LLAMA2_TEMPLATE}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialog; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class EncodedDialog:
    """Token ids, and for each whether it is a model's answer (or its EOS), to be learned."""

    ids: list[int]
    loss_mask: list[bool]


def open_turn_text(user: str) -> str:
    """The text of a turn that waits for its answer."""
    return f"{INST} {user.strip()} {END_INST}"


def encode_dialog(tokenizer: Tokenizer, dialog: Sequence[Message]) -> EncodedDialog:
    """Encodes a dialog that ends with the user (an open turn) or the assistant (all answered).

    Raises ValueError for roles out of order, and for text that forges a tag.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for user, answer in _turns(dialog):
        turn = open_turn_text(user)
        prompt = tokenizer.encode(turn, bos=True)
        if answer is None:
            ids += prompt
            mask += [False] * len(prompt)
            continue
        # Prompt and answer are one text, as Meta encodes them; they part where the prompt ends.
        whole = tokenizer.encode(f"{turn} {answer.strip()} ", bos=True, eos=True)
        ids += whole
        mask += [position >= len(prompt) for position in range(len(whole))]
    return EncodedDialog(ids, mask)


def check_dialog(dialog: Sequence[Message]) -> None:
    """Raises ValueError for roles out of order, and for text that forges a tag."""
    _turns(dialog)


def fit(
    tokenizer: Tokenizer, dialog: Sequence[Message], max_tokens: int
) -> tuple[list[Message], EncodedDialog]:
    """The dialog without its oldest turns, as many as must go for it to take `max_tokens`.

    The system prompt and the last turn always stay; ValueError if these alone are too long.
    """
    system = [message for message in dialog[:1] if message.role == "system"]
    rest = list(dialog[len(system) :])
    while True:
        kept = [*system, *rest]
        encoded = encode_dialog(tokenizer, kept)
        if len(encoded.ids) <= max_tokens:
            return kept, encoded
        if len(rest) <= 2:
            raise ValueError(
                f"the message takes {len(encoded.ids)} tokens, {max_tokens} are left in the "
                "context; shorten it"
            )
        rest = rest[2:]


def _turns(dialog: Sequence[Message]) -> list[tuple[str, str | None]]:
    """(user text, answer or None for the open turn), the system prompt put into the first."""
    messages = list(dialog)
    for message in messages:
        for tag in TAGS:
            if tag in message.content:
                raise ValueError(f"the {message.role} message contains {tag}, which is reserved")
    system = None
    if messages and messages[0].role == "system":
        system = messages.pop(0).content
    roles = [message.role for message in messages]
    expected = ["user", "assistant"] * len(roles)
    if not roles or roles != expected[: len(roles)]:
        raise ValueError(
            "a dialog is an optional system message, then user and assistant in turn, "
            f"beginning with user; this one goes: {', '.join(m.role for m in dialog) or 'nothing'}"
        )
    texts: list[str] = [message.content for message in messages]
    if system is not None:
        texts[0] = f"{SYS}\n{system}\n{END_SYS}\n\n{texts[0]}"
    answers: list[str | None] = [*texts[1::2], None]
    return list(zip(texts[0::2], answers, strict=False))
