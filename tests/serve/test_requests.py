"""Bodies that are wrong in very many places: each error costs time, so few are told apart."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from puna.serve.errors import MAX_MESSAGE, APIError
from puna.serve.requests import (
    MAX_ERRORS,
    MAX_MESSAGES,
    MAX_STOP_IDS,
    MAX_STOPS,
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)

MANY = 5000
HI = [{"role": "user", "content": "hi"}]
UNKNOWN = {f"x{i}": 1 for i in range(MANY)}
WRONG: dict[str, tuple[type[Body], dict[str, Any]]] = {
    "fractions as ids": (CompletionRequest, {"prompt": [1.5] * MANY}),
    "empty prompts": (CompletionRequest, {"prompt": [[]] * MANY}),
    "wrong ids": (CompletionRequest, {"prompt": [["a"] * MANY]}),
    "wrong inputs": (EmbeddingRequest, {"input": [None] * MANY}),
    "wrong tokens": (DetokenizeRequest, {"tokens": [None] * MANY}),
    "wrong stops": (CompletionRequest, {"prompt": "a", "stop": [1] * MANY}),
    "wrong stop ids": (CompletionRequest, {"prompt": "a", "stop_token_ids": [-1] * MANY}),
    "wrong biases": (CompletionRequest, {"prompt": "a", "logit_bias": dict.fromkeys(UNKNOWN, 1e5)}),
    "unknown fields": (CompletionRequest, {"prompt": "a", **UNKNOWN}),
    "unknown fields within": (ChatRequest, {"messages": [{**HI[0], **UNKNOWN}]}),
    "empty messages": (ChatRequest, {"messages": [{}] * MANY}),
    "empty parts": (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
    "empty calls": (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * MANY}]}),
    "empty tools": (ChatRequest, {"messages": HI, "tools": [{}] * MANY}),
    "modalities": (ChatRequest, {"messages": HI, "modalities": ["x"] * MANY}),
    "empty messages to encode": (TokenizeRequest, {"messages": [{}] * MANY}),
}


@pytest.mark.parametrize("name", WRONG)
def test_few_errors_are_told_apart(name: str) -> None:
    kind, body = WRONG[name]
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() <= MAX_ERRORS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", ["a"] * (MAX_STOPS + 1)),
        ("stop_token_ids", [1] * (MAX_STOP_IDS + 1)),
        ("messages", HI * (MAX_MESSAGES + 1)),
    ],
)
def test_what_all_others_would_wait_for_is_bounded(field: str, value: list[Any]) -> None:
    with pytest.raises(ValidationError, match="at most"):
        ChatRequest.model_validate({"messages": HI, field: value})
    assert ChatRequest.model_validate({"messages": HI, field: value[:-1]})


def test_no_error_repeats_a_whole_body() -> None:
    said = APIError(400, "a" * 10**6, param="b" * 10**6).body()["error"]
    assert len(said["message"]) <= MAX_MESSAGE
    assert len(said["param"]) <= MAX_MESSAGE
