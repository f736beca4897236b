"""What a request asks of sampling, checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What one request asks for. Raises ValueError for a value out of its range.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 leave all tokens
    in. The defaults are those of Meta's chat example: 0.6 and 0.9.

    - `repetition_penalty` (CTRL, arXiv 1909.05858) divides the logits of tokens in prompt and
      output; it multiplies negative ones, as transformers does, so that above 1 always lowers.
    - `presence_penalty`, `frequency_penalty` (OpenAI): subtracted once from tokens in the output,
      and once for each time that they are in it.
    - `logit_bias`: added to the logits of these ids; -inf bans one.
    - `max_tokens` None: 256, or as many as the context has room for; 0: just reads the prompt.
    - `stop`, `stop_ids`, `ignore_eos`: what ends the output before `max_tokens`.
    - `n` outputs, of `best_of` the ones with the highest mean log-probability.
    - `logprobs`, `prompt_logprobs`: how many alternatives to report for each token of the output
      and of the prompt; None reports nothing, 0 the token alone.
    - `json_schema` (a mapping, or JSON), `regex` or `grammar` (Lark): what the output must be;
      it ends where nothing more may follow.
    - `seed` None draws another output each time.
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 0.9
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    json_schema: str | Mapping[str, Any] | None = field(default=None, hash=False)
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name, (is_valid, meaning) in _RULES.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise ValueError(f"{name} must be {meaning}, not {value!r}")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of must be at least n ({self.n}), not {self.best_of}")
        if [self.json_schema, self.regex, self.grammar].count(None) < 2:
            raise ValueError("json_schema, regex and grammar exclude each other; give one")
        if isinstance(self.json_schema, Mapping):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        # The caller's mapping may change later.
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))


_Rule = Callable[[object], bool]


def _integer(low: int, high: int = sys.maxsize) -> _Rule:
    # A bool is an int in Python, but nobody means True by 1 here.
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def _number(low: float, high: float, *, above: bool = False) -> _Rule:
    """Real numbers from `low` (with `above`: above it) to `high`; NaN compares as False."""
    return lambda x: (
        isinstance(x, int | float)
        and not isinstance(x, bool)
        and low <= x <= high
        and not (above and x == low)
    )


def _optional(rule: _Rule) -> _Rule:
    return lambda x: x is None or rule(x)


def _tuple_of(rule: _Rule) -> _Rule:
    return lambda x: isinstance(x, tuple) and all(rule(item) for item in x)


def _is_bias(x: object) -> bool:
    is_id, is_value = _integer(0), _number(-MAX_BIAS, MAX_BIAS)
    return isinstance(x, Mapping) and all(
        is_id(token) and (is_value(value) or value == float("-inf")) for token, value in x.items()
    )


# Ours: far above what has an effect, far below what float32 logits overflow from.
MAX_BIAS = 1e9
MAX_REPETITION_PENALTY = 1000.0
DEFAULT_MAX_TOKENS = 256

_COUNT = _integer(0)
_RULES: dict[str, tuple[_Rule, str]] = {
    "temperature": (_number(0, sys.float_info.max), "0 or more"),
    "top_k": (_COUNT, "0 (off) or more"),
    "top_p": (_number(0, 1, above=True), "above 0 and at most 1"),
    "seed": (_optional(_integer(0, 2**64 - 1)), "None or an integer from 0 to 2**64 - 1"),
    "min_p": (_number(0, 1), "from 0 (off) to 1"),
    "typical_p": (_number(0, 1, above=True), "above 0 and at most 1"),
    "repetition_penalty": (
        _number(1 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
        "from 0.001 to 1000",
    ),
    "presence_penalty": (_number(-2, 2), "from -2 to 2"),
    "frequency_penalty": (_number(-2, 2), "from -2 to 2"),
    "logit_bias": (_is_bias, "a mapping from token ids to numbers from -1e9 to 1e9 or -inf"),
    "max_tokens": (_optional(_integer(0)), "None or 0 or more"),
    "stop": (
        _tuple_of(lambda x: isinstance(x, str) and x != ""),
        "a tuple of strings that are not empty",
    ),
    "stop_ids": (_tuple_of(_COUNT), "a tuple of token ids"),
    "ignore_eos": (lambda x: isinstance(x, bool), "True or False"),
    "n": (_integer(1), "1 or more"),
    "best_of": (_optional(_integer(1)), "None or 1 or more"),
    "logprobs": (_optional(_COUNT), "None or 0 or more"),
    "prompt_logprobs": (_optional(_COUNT), "None or 0 or more"),
    "json_schema": (lambda x: x is None or isinstance(x, str | Mapping), "a mapping or JSON text"),
    "regex": (lambda x: x is None or isinstance(x, str), "None or a text"),
    "grammar": (lambda x: x is None or isinstance(x, str), "None or a text"),
}
