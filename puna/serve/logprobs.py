"""Log-probabilities as the two APIs show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from puna.engine.sampling import TokenLogprobs
from puna.tokenizer import PieceType, Tokenizer
from puna.tokenizer.tokenizer import StreamDecoder

IMPOSSIBLE = -9999.0  # OpenAI's; JSON has no -inf


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself: its text, the name of a control piece, or `bytes:\\x..` of half a one."""
    vocabulary = tokenizer.vocabulary
    if vocabulary.types[token] == PieceType.CONTROL:
        return vocabulary.pieces[token]
    data = vocabulary.piece_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """The number that JSON can hold."""
    return max(logprob, IMPOSSIBLE)


class CompletionLogprobs:
    """The `logprobs` of one choice of /v1/completions, piece by piece.

    `text_offset` counts characters of the choice's text, with the prompt if that is echoed.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: StreamDecoder) -> None:
        self._tokenizer, self._decoder = tokenizer, decoder
        self._offset = 0

    def push(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
    ) -> dict[str, list[Any]]:
        """Of these tokens; None where nothing came before."""
        names, offsets = [], []
        for token in tokens:
            names.append(token_text(self._tokenizer, token))
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(token))
        return {
            "tokens": names,
            "token_logprobs": [None if each is None else finite(each.logprob) for each in logprobs],
            "top_logprobs": [None if each is None else self._top(each) for each in logprobs],
            "text_offset": offsets,
        }

    def _top(self, chosen: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens, and the chosen one where it is none of them."""
        top: dict[str, float] = {}
        for token, logprob in (*chosen.top, (chosen.token, chosen.logprob)):
            top.setdefault(token_text(self._tokenizer, token), finite(logprob))
        return top


def chat_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprobs], *, strip_space: bool
) -> list[dict[str, Any]]:
    """The `content` of a chat choice's `logprobs`; `strip_space` if its text begins with these."""

    def entry(token: int, logprob: float, strip: bool) -> dict[str, Any]:
        text, data = token_text(tokenizer, token), tokenizer.vocabulary.piece_bytes(token)
        if strip:
            text, data = text.removeprefix(" "), data.removeprefix(b" ")
        return {"token": text, "logprob": finite(logprob), "bytes": list(data)}

    return [
        {
            **entry(each.token, each.logprob, strip_space and number == 0),
            "top_logprobs": [
                entry(token, logprob, strip_space and number == 0) for token, logprob in each.top
            ],
        }
        for number, each in enumerate(logprobs)
    ]
