"""Structured output: only tokens that a JSON schema, regular expression or grammar allows.

llguidance computes the masks (https://github.com/guidance-ai/llguidance); of the two libraries made
for it, it is the one that needs no torch (`benchmarks/structured_output.py` measures both).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from puna.engine.params import SamplingParams
from puna.tokenizer import PieceType, Tokenizer

if TYPE_CHECKING:
    import llguidance


class Structure:
    """What may follow in one output. Tokens are masked, chosen, and pushed, in turn."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros(-(-vocab_size // 32), np.int32)

    @property
    def finished(self) -> bool:
        """Whether nothing may follow any more."""
        return self._matcher.is_stopped()

    def masked(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the logits, -inf for tokens that must not be next."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        problem = self._matcher.get_error()
        if problem:
            raise ValueError(f"no token can follow ({problem.splitlines()[0]})")
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: len(logits_V)]
        return np.where(bits, logits_V, np.float32(-np.inf))

    def push(self, token: int) -> None:
        """The token that was chosen."""
        self._matcher.consume_token(token)

    def copy(self) -> Structure:
        """One that goes on from here by itself."""
        return Structure(self._matcher.deep_copy(), len(self._mask) * 32)


class Structures:
    """Makes structures over one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ll: llguidance.LLTokenizer | None = None

    def start(self, params: SamplingParams) -> Structure | None:
        """What the parameters ask for, None if nothing.

        Raises ValueError for what is no schema, expression or grammar, or that no text fits, and
        where llguidance is missing.
        """
        asked = {name: getattr(params, name) for name in ("json_schema", "regex", "grammar")}
        given = [(name, text) for name, text in asked.items() if text is not None]
        if not given:
            return None
        ((name, text),) = given
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise ValueError(
                f"{name} needs llguidance; install puna[structured] (or pip install llguidance)"
            ) from None
        makers: dict[str, Callable[[str], str]] = {
            "json_schema": LLMatcher.grammar_from_json_schema,
            "regex": LLMatcher.grammar_from_regex,
            "grammar": LLMatcher.grammar_from_lark,
        }
        try:
            matcher = LLMatcher(self._vocabulary(), makers[name](text), log_level=0)
            problem = matcher.get_error()
        except ValueError as error:
            problem = str(error)
        if problem:
            raise ValueError(f"{name}: {' '.join(problem.split())}")
        structure = Structure(matcher, self._tokenizer.vocab_size)
        try:
            structure.masked(np.zeros(self._tokenizer.vocab_size, np.float32))
        except ValueError:
            raise ValueError(f"{name}: there is no text that fits it") from None
        return structure

    def _vocabulary(self) -> llguidance.LLTokenizer:
        if self._ll is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            self._ll = LLTokenizer(TokenizerWrapper(_Tokens(self._tokenizer)))
        return self._ll


class _Tokens:
    """A tokenizer as llguidance asks it: bytes by id, which ids are no text, text -> ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.vocabulary
        self._tokenizer = tokenizer
        self._line_end = tokenizer.encode("\n")
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, tokenizer.eos_id
        self.tokens = [vocabulary.piece_bytes(i) for i in range(len(vocabulary))]
        text = (PieceType.NORMAL, PieceType.BYTE, PieceType.USER_DEFINED)
        self.special_token_ids = [i for i, kind in enumerate(vocabulary.types) if kind not in text]

    def __call__(self, text: bytes) -> list[int]:
        # After a line end, for words that begin there get no space of their own.
        return self._tokenizer.encode(f"\n{text.decode()}")[len(self._line_end) :]
