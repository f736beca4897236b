"""What clients send: OpenAI's request bodies, and what Puna takes beside them.

https://platform.openai.com/docs/api-reference. As there, a field that is not known is an error, and
one that is null is as if left out. Fields that change nothing here (`user`, `store`, ...) are
taken.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from puna.engine.params import SamplingParams

Integer = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0)]
T = TypeVar("T")
# A list is left at its first error: to report a million takes a minute and gigabytes.
Many = Annotated[list[T], Field(fail_fast=True)]
TokenIds = Annotated[list[Count], Field(min_length=1, fail_fast=True)]
Metadata = dict[str, Any] | None

MAX_CHOICES = 128
MAX_ALTERNATIVES = 20
MAX_STOPS = 64  # each is looked for after every token, while all others wait
MAX_STOP_IDS = 1024
MAX_MESSAGES = 8192
MAX_ERRORS = 64  # in a body, that are told apart


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="wrap")
    @classmethod
    def _bound_errors(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """One error for very many, such as a body of unknown fields: each costs time."""
        try:
            return handler(value)
        except ValidationError as error:
            count = error.error_count()
            if count <= MAX_ERRORS:
                raise
            raise PydanticCustomError(
                "many_errors", f"{count} fields or values are wrong"
            ) from None


class StreamOptions(Body):
    """`include_usage`: a last event that counts the tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding of events against traffic analysis: none


class Sampling(Body):
    """What completions and chat have in common. Defaults are OpenAI's: temperature 1, top-p 1."""

    model: str | None = Field(None, description="A name of /v1/models; the first if left out.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Integer | None = None
    stop: str | Annotated[Many[str], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id -> what is added to its logit; -100 bans it."
    )
    user: str | None = None
    metadata: Metadata = None
    # Puna's own, named as by others who serve Llamas.
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    stop_token_ids: Annotated[Many[Count], Field(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool | None = None
    regex: str | None = Field(None, description="What the output must match.")
    grammar: str | None = Field(None, description="What the output must fit, as Lark.")

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, **others: Any) -> SamplingParams:
        """The engine's parameters. Raises ValueError for what it refuses."""
        values = {"temperature": 1.0, "top_p": 1.0}
        values |= {
            name: value for name in _SAME_NAME if (value := getattr(self, name, None)) is not None
        }
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = None if self.seed is None else self.seed % 2**64
        bias = {_token_id(key): _bias(value) for key, value in (self.logit_bias or {}).items()}
        return SamplingParams(
            seed=seed,
            stop=tuple(stop),
            stop_ids=tuple(self.stop_token_ids or []),
            logit_bias=bias,
            **(values | others),
        )


# Those that mean the same to the engine; max_tokens and logprobs do not.
_SAME_NAME = {field.name for field in fields(SamplingParams)} - {
    "seed", "stop", "logit_bias", "max_tokens", "logprobs", "prompt_logprobs",
}  # fmt: skip


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise ValueError(f"logit_bias goes from token ids to numbers; {key!r} is no token id")
    return int(key)


def _bias(value: float) -> float:
    return float("-inf") if value == -100 else value


class CompletionRequest(Sampling):
    """/v1/completions: texts or token ids to continue."""

    prompt: str | TokenIds | Many[str] | Many[TokenIds] = Field(
        description="A text, token ids, or several of either; text gets a BOS token in front."
    )
    max_tokens: Count | None = Field(None, description="16 if left out, as OpenAI has it.")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: str | None = Field(None, description="Refused: a Llama only continues.")


class TextPart(Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that an assistant message made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    """A message of a dialog."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[TextPart] | None = None
    name: str | None = None
    tool_calls: Many[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None


class Function(Body):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of one."""

    name: str


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JSONSchema(Body):
    """A schema that an answer must fit."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must be: text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="With json_object, as llama.cpp's server takes it."
    )


class ChatRequest(Sampling):
    """/v1/chat/completions: a dialog to answer."""

    messages: Annotated[Many[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="As max_tokens; as many as the context holds if both are left out."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    tools: Many[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: Many[Literal["text"]] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class EmbeddingRequest(Body):
    """/v1/embeddings: texts or token ids to place."""

    model: str | None = None
    input: str | TokenIds | Annotated[Many[str], Field(min_length=1)] | Many[TokenIds]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = Field(None, description="Refused unless it is the model's width.")
    user: str | None = None


class TokenizeRequest(Body):
    """/tokenize: a text (`prompt`, or llama.cpp's `content`) or a dialog to encode."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[Many[ChatMessage], Field(max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = Field(None, description="BOS first; true if left out.")
    add_special: bool | None = Field(None, description="The same, with content; false if left out.")
    with_pieces: bool | None = None


class DetokenizeRequest(Body):
    """/detokenize: token ids to decode."""

    model: str | None = None
    tokens: Many[Count]
