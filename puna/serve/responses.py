"""What clients get: OpenAI's response bodies, for the API's description.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """A body that is sent; nothing that is not listed is in it."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Shape):
    """What went wrong: for people, and what programs branch on."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Shape):
    """Any answer that is no success."""

    error: ErrorDetail


class CachedTokens(Shape):
    """Of a prompt's tokens, those that had been run for an earlier one."""

    cached_tokens: int


class Usage(Shape):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class CompletionLogprobs(Shape):
    """For each token its text, log-probability, the likeliest ones, and where it begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionResponse(Shape):
    """/v1/completions, and each event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(Shape):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    """Of an answer's tokens."""

    content: list[TokenLogprob] | None
    refusal: None = None


class FunctionCall(Shape):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str


class ToolCall(Shape):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(Shape):
    """An answer: text, or calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Shape):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatResponse(Shape):
    """/v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Shape):
    """What a call grew by."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Shape):
    """A call that begins, or grows."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class AnswerDelta(Shape):
    """What an answer grew by."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatDelta(Shape):
    """A piece of one answer."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatEvent(Shape):
    """An event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatDelta]
    usage: Usage | None = None


class EmbeddingItem(Shape):
    """The vector of one input; base64 holds little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Shape):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Shape):
    """/v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


class ModelCard(Shape):
    """A model that is served; `parent` names the one that an adapter is for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    context_length: int


class ModelList(Shape):
    """/v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class Piece(Shape):
    """A token and its text, or its bytes where they are no text."""

    id: int
    piece: str | list[int]


class TokenizeResponse(Shape):
    """/tokenize: ids, or with `with_pieces` ids and pieces."""

    tokens: list[int] | list[Piece]
    count: int
    max_model_len: int


class DetokenizeResponse(Shape):
    """/detokenize: the text, under the names of both who have this call."""

    prompt: str
    content: str


class TokenizerInfo(Shape):
    """/tokenizer_info: as in a tokenizer_config.json."""

    tokenizer_class: str
    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: None
    bos_token_id: int
    eos_token_id: int
    vocab_size: int
    model_max_length: int
    add_bos_token: bool
    add_eos_token: bool
    chat_template: str


class Status(Shape):
    """/health and /ready."""

    status: str


_ERRORS = {
    400: "what was asked for cannot be",
    401: "no valid key",
    403: "asked from elsewhere",
    404: "no such model",
    408: "the body came too slowly",
    413: "too large",
    429: "too many requests",
    503: "cannot run",
    504: "too slow",
}


def answers(shape: type[Shape], event: type[Shape] | None = None) -> dict[int | str, Any]:
    """What a call can give, for `responses=`: `shape`, a stream of `event`, or an error."""
    good: dict[str, Any] = {"model": shape, "description": shape.__doc__}
    if event is not None:
        good["content"] = {"text/event-stream": {"schema": _event(event)}}
    errors: dict[int | str, Any] = {
        code: {"model": ErrorResponse, "description": text} for code, text in _ERRORS.items()
    }
    return {200: good, **errors}


def _event(shape: type[Shape]) -> dict[str, Any]:
    json_data = [
        {
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": f"#/components/schemas/{each.__name__}"},
        }
        for each in (shape, ErrorResponse)
    ]
    return {
        "type": "object",
        "description": "With `stream`, server-sent events; the last one's data is [DONE].",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, *json_data]}},
        "required": ["data"],
    }
