"""What a request may ask for, and how the rest is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from puna.engine.params import SamplingParams

INF = float("inf")
NUMBER = [float("nan"), True, "1", None]
COUNT = [-1, 1.0, True, "1"]
REFUSED: dict[str, tuple[list[Any], str]] = {
    "temperature": ([*NUMBER, -0.1, INF, 10**400], "0 or more"),
    "top_k": ([*COUNT, None], r"0 \(off\) or more"),
    "top_p": ([*NUMBER, 0.0, 1.1], "above 0 and at most 1"),
    "seed": ([*COUNT, 2**64], r"None or an integer from 0 to 2\*\*64 - 1"),
    "min_p": ([*NUMBER, -0.1, 1.1], r"from 0 \(off\) to 1"),
    "typical_p": ([*NUMBER, 0.0, 1.1], "above 0 and at most 1"),
    "repetition_penalty": ([*NUMBER, 0.0, -1, INF, 1001], "from 0.001 to 1000"),
    "presence_penalty": ([*NUMBER, -2.1, 2.1], "from -2 to 2"),
    "frequency_penalty": ([*NUMBER, -2.1, 2.1], "from -2 to 2"),
    "max_tokens": (COUNT, "None or 0 or more"),
    "stop": (["a", ("a", ""), (1,), None], "a tuple of strings that are not empty"),
    "stop_ids": ([2, (-1,), (True,), (2.0,), None], "a tuple of token ids"),
    "ignore_eos": ([1, 0, None, "no"], "True or False"),
    "n": ([*COUNT, 0, None], "1 or more"),
    "best_of": ([*COUNT, 0], "None or 1 or more"),
    "logprobs": (COUNT, "None or 0 or more"),
    "prompt_logprobs": (COUNT, "None or 0 or more"),
    "json_schema": ([3, ["a"]], "a mapping or JSON text"),
    "regex": ([3, b"a"], "None or a text"),
    "grammar": ([3, b"a"], "None or a text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_senseless_settings_are_refused(name: str) -> None:
    values, meaning = REFUSED[name]
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be {meaning}, not "):
            SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "value",
    [None, [(1, 1.0)], {-1: 1.0}, {True: 1.0}, {"1": 1.0}, {1: float("nan")}, {1: INF}, {1: "1"},
     {1: 2e9}],
    ids=str,
)  # fmt: skip
def test_a_senseless_bias_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^logit_bias must be a mapping from token ids to num"):
        SamplingParams(logit_bias=value)


def test_best_of_is_at_least_n() -> None:
    with pytest.raises(ValueError, match=r"best_of must be at least n \(3\), not 2"):
        SamplingParams(n=3, best_of=2)
    assert SamplingParams(n=3, best_of=3).best_of == 3


def test_every_setting_has_its_checks_and_its_limits_are_allowed() -> None:
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert names == {*REFUSED, "logit_bias"}
    assert list(SamplingParams.__slots__)[:4] == ["temperature", "top_k", "top_p", "seed"]
    SamplingParams(
        0, 0, 1, 2**64 - 1, min_p=1, presence_penalty=-2, frequency_penalty=2, max_tokens=1,
        repetition_penalty=1000, logit_bias={0: -INF, 1: -1e9, 2: 1e9}, stop=("a",), stop_ids=(0,),
        logprobs=0, prompt_logprobs=0, best_of=1,
    )  # fmt: skip


def test_settings_do_not_change() -> None:
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 2.0
    assert params.logit_bias == {1: 1.0}
    assert hash(params) == hash(SamplingParams(logit_bias={1: 1.0}))
    assert params == SamplingParams(logit_bias={1: 1.0}) != SamplingParams()
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 3  # type: ignore[misc]
