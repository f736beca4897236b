"""The official client chats: text, JSON of a given form, calls of tools, and vectors."""

from __future__ import annotations

import asyncio
import base64
import json
from enum import StrEnum
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from puna import LLM, SamplingParams
from puna.engine.output import RequestOutput
from tests.serve.servers import Running

DIALOG: list[Any] = [
    {"role": "system", "content": "Tell short stories."},
    {"role": "user", "content": "Tell me of a llama."},
]


class Color(StrEnum):
    red = "red"
    green = "green"


class Llama(BaseModel):
    name: str = Field(max_length=12)
    color: Color
    woolly: bool
    legs: int = Field(ge=0, le=9)


class Feed(BaseModel):
    """Feed a llama."""

    amount: int = Field(ge=0, le=99)
    food: Color


TOOL: Any = openai.pydantic_function_tool(Feed)


def direct(llm: LLM, dialog: list[Any] = DIALOG, **params: Any) -> RequestOutput:
    """The engine's own answer, with OpenAI's defaults."""
    (result,) = llm.chat(dialog, SamplingParams(**{"temperature": 1.0, "top_p": 1.0} | params))
    return result


def chat(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "cria", "messages": DIALOG, "temperature": 0, "max_tokens": 16} | fields
    )


def accumulated(client: OpenAI, **fields: Any) -> Any:
    """What the client's own helper makes of a stream."""
    fields = {"model": "cria", "messages": DIALOG, "temperature": 0, "max_tokens": 16} | fields
    with client.chat.completions.stream(**fields) as stream:
        for _ in stream:
            pass
        try:
            return stream.get_final_completion()
        except openai.LengthFinishReasonError as error:  # a whole answer that was cut short
            return error.completion


def contents(answer: Any) -> list[Any]:
    return [choice.message.content for choice in answer.choices]


@pytest.mark.parametrize(
    "dialog",
    [
        DIALOG,
        DIALOG[1:],
        [*DIALOG, {"role": "assistant", "content": "It ran."}, {"role": "user", "content": "And?"}],
    ],
    ids=["system", "user", "turns"],
)
def test_a_dialog_is_answered_as_the_engine_does(
    client: OpenAI, llm: LLM, dialog: list[Any]
) -> None:
    expected = direct(llm, dialog, temperature=0, max_tokens=16)
    answer = chat(client, messages=dialog)
    (choice,) = answer.choices
    assert choice.message.content == expected.outputs[0].text
    assert choice.message.role == "assistant" and not choice.message.tool_calls
    assert choice.finish_reason == expected.outputs[0].finish_reason
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == len(expected.outputs[0].token_ids)
    assert answer.id.startswith("chatcmpl-")


def test_other_ways_to_say_the_same(client: OpenAI) -> None:
    expected = contents(chat(client))
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "of a llama."}]
    developer = {"role": "developer", "content": DIALOG[0]["content"]}
    assert (
        contents(chat(client, messages=[DIALOG[0], {"role": "user", "content": parts}])) == expected
    )
    assert contents(chat(client, messages=[developer, DIALOG[1]])) == expected
    named = {**DIALOG[1], "name": "Ana"}
    assert contents(chat(client, messages=[DIALOG[0], named])) == expected
    assert contents(chat(client, max_tokens=None, max_completion_tokens=16)) == expected
    unused = {
        "user": "u",
        "store": False,
        "metadata": {"a": "b"},
        "response_format": {"type": "text"},
    }
    assert contents(chat(client, **unused)) == expected


def test_an_answer_may_fill_the_context(client: OpenAI, llm: LLM) -> None:
    prompt = len(direct(llm, temperature=0, max_tokens=1).prompt_token_ids)
    room = llm.config.context_length - prompt
    answer = chat(client, max_tokens=None, extra_body={"ignore_eos": True}, logit_bias={"2": -100})
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.completion_tokens <= room + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3, "seed": 7, "temperature": 1},
        {"stop": ["."], "max_tokens": 60},
        {"seed": -1, "temperature": 0.8, "top_p": 0.9},
        {"presence_penalty": 1.5, "frequency_penalty": 1},
        {"logit_bias": {"350": 100}},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_sampling_is_the_engines_whole_and_streamed(
    client: OpenAI, llm: LLM, fields: dict[str, Any]
) -> None:
    params = {"temperature": 0, "max_tokens": 16} | fields
    if "stop" in params:
        params["stop"] = tuple(params["stop"])
    if "seed" in params:
        params["seed"] %= 2**64
    if "logit_bias" in params:
        params["logit_bias"] = {int(key): value for key, value in params["logit_bias"].items()}
    expected = [output.text for output in direct(llm, **params).outputs]
    whole, streamed = chat(client, **fields), accumulated(client, **fields)
    assert contents(whole) == contents(streamed) == expected
    ends = [choice.finish_reason for choice in whole.choices]
    assert [choice.finish_reason for choice in streamed.choices] == ends


def test_logprobs_are_the_engines(client: OpenAI, llm: LLM) -> None:
    output = direct(llm, temperature=0, max_tokens=12, logprobs=4).outputs[0]
    assert output.logprobs
    whole = chat(client, max_tokens=12, logprobs=True, top_logprobs=4).choices[0]
    shown = whole.logprobs.content
    assert [each.logprob for each in shown] == [each.logprob for each in output.logprobs]
    assert [[top.logprob for top in each.top_logprobs] for each in shown] == [
        [logprob for _, logprob in each.top] for each in output.logprobs
    ]
    assert "".join(each.token for each in shown) == whole.message.content
    assert b"".join(bytes(each.bytes) for each in shown).decode() == whole.message.content
    streamed = accumulated(client, max_tokens=12, logprobs=True, top_logprobs=4).choices[0]
    assert streamed.logprobs.content == shown
    first = next(iter(chat(client, stream=True, logprobs=True)))
    assert first.choices[0].logprobs.content == []
    plain = chat(client, max_tokens=12, logprobs=True).choices[0].logprobs.content
    assert [each.logprob for each in plain] == [each.logprob for each in shown]
    assert all(each.top_logprobs == [] for each in plain)
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        chat(client, top_logprobs=2)


def test_usage_comes_last_where_it_is_asked_for(client: OpenAI) -> None:
    whole = chat(client)
    events = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert all(event.usage is None for event in events[:-1]) and events[-1].choices == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(events[-1].usage, name) == getattr(whole.usage, name)
    assert events[0].choices[0].delta.role == "assistant"
    assert all(event.choices for event in chat(client, stream=True))


def test_json_of_a_given_form(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["llama", "alpaca", None]}, "n": {"const": None}},
        "required": ["kind", "n"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    fields = {"response_format": form, "max_tokens": 60}
    for answer in (chat(client, **fields), accumulated(client, **fields)):
        found = json.loads(answer.choices[0].message.content)
        assert found["kind"] in ("llama", "alpaca", None) and found["n"] is None
        assert answer.choices[0].finish_reason == "stop"
    form = {"type": "json_object", "schema": {"const": "42"}}  # llama.cpp's way to say it
    assert contents(chat(client, response_format=form)) == ['"42"']
    text = chat(client, response_format={"type": "json_object"}, max_tokens=60).choices[0]
    assert text.message.content.startswith("{")
    if text.finish_reason == "stop":
        assert isinstance(json.loads(text.message.content), dict)


def test_parse_into_a_model(client: OpenAI, server: Running) -> None:
    fields: dict[str, Any] = {
        "model": "cria", "messages": DIALOG, "response_format": Llama, "seed": 1,
    }  # fmt: skip
    parsed = client.chat.completions.parse(**fields).choices[0].message.parsed
    assert isinstance(parsed, Llama)
    streamed = accumulated(client, **fields, temperature=1, max_tokens=100)
    assert streamed.choices[0].message.parsed == parsed

    async def ask() -> Any:
        asking = server.async_client()
        async with asking, asking.chat.completions.stream(**fields) as stream:
            async for _ in stream:
                pass
            return await stream.get_final_completion()

    assert asyncio.run(ask()).choices[0].message.parsed == parsed
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**fields, max_tokens=3)


def test_tools_are_called(client: OpenAI) -> None:
    fields = {
        "tools": [TOOL],
        "tool_choice": "required",
        "max_tokens": 80,
        "parallel_tool_calls": False,
    }
    whole, streamed = chat(client, **fields), accumulated(client, **fields)
    for answer in (whole, streamed):
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.type == "function" and call.function.name == "Feed" and call.id
        assert Feed.model_validate_json(call.function.arguments)
    assert (
        whole.choices[0].message.tool_calls[0].function.arguments
        == streamed.choices[0].message.tool_calls[0].function.arguments
    )
    named = {"type": "function", "function": {"name": "Feed"}}
    parsed = client.chat.completions.parse(
        model="cria", messages=DIALOG, tools=[TOOL], tool_choice=named, max_tokens=80, seed=2
    )
    (call,) = parsed.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Feed)


def test_a_tools_result_goes_back(client: OpenAI) -> None:
    asked = chat(client, tools=[TOOL], tool_choice="required", max_tokens=100).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "It was fed."}
        for call in asked.tool_calls
    ]
    dialog = [*DIALOG, asked.model_dump(exclude_unset=True), *results]
    answer = chat(client, messages=dialog, tools=[TOOL], tool_choice="none", max_tokens=4)
    assert answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="tool_call_id"):
        chat(client, messages=[*DIALOG, {"role": "tool", "tool_call_id": "x", "content": "y"}])


def test_tools_need_not_be_called(client: OpenAI) -> None:
    for choice in ("auto", "none"):
        (answer,) = chat(client, tools=[TOOL], tool_choice=choice).choices
        assert answer.message.content or answer.message.tool_calls


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "x/../y"}, openai.NotFoundError, "does not exist"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, openai.BadRequestError, "role"),
        (
            {"messages": [{"role": "assistant", "content": "a"}]},
            openai.BadRequestError,
            "beginning",
        ),
        ({"messages": [{"role": "user", "content": None}]}, openai.BadRequestError, "content"),
        ({"messages": [DIALOG[1], DIALOG[1]]}, openai.BadRequestError, "in turn"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            openai.BadRequestError,
            "content",
        ),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tools"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "json_schema"),
        (
            {"messages": [{"role": "user", "content": "hi " * 3000}]},
            openai.BadRequestError,
            "token",
        ),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors_are_the_clients_exceptions(
    client: OpenAI, fields: dict[str, Any], error: type[Exception], words: str, stream: bool
) -> None:
    with pytest.raises(error, match=words):
        chat(client, stream=stream, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "hi " * 3000}]},
        {"max_tokens": 100_000},
    ],
    ids=["prompt", "max_tokens"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_too_long_for_the_context_has_its_code(
    client: OpenAI, fields: dict[str, Any], stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, stream=stream, **fields)
    assert caught.value.code == "context_length_exceeded"


def test_answers_name_the_build(client: OpenAI) -> None:
    whole, events = chat(client), list(chat(client, stream=True))
    text = client.completions.create(model="cria", prompt="A", max_tokens=1)
    assert whole.system_fingerprint
    assert {each.system_fingerprint for each in (whole, text, *events)} == {
        whole.system_fingerprint
    }


def test_embeddings(client: OpenAI, lenient: OpenAI, llm: LLM) -> None:
    texts = ["A llama.", "Tax law", ""]
    answer = client.embeddings.create(model="cria", input=texts, encoding_format="float")
    plain = [each.embedding for each in answer.data]
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert {len(vector) for vector in plain} == {llm.config.dim}
    expected = [each.vector / np.linalg.norm(each.vector) for each in llm.embed(texts)]
    np.testing.assert_array_equal(np.float32(plain), expected)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    # base64 is what the client asks for by itself; it decodes it after it has checked the types.
    by_default = lenient.embeddings.create(model="cria", input=texts)
    assert [each.embedding for each in by_default.data] == plain
    raw = lenient.embeddings.create(model="cria", input=texts[0], encoding_format="base64")
    data = base64.b64decode(raw.data[0].embedding)  # type: ignore[arg-type]
    assert np.frombuffer(data, "<f4").tolist() == plain[0]
    ids = [llm.tokenizer.encode(text, bos=True) for text in texts]
    by_ids = lenient.embeddings.create(model="cria", input=ids)
    assert [each.embedding for each in by_ids.data] == plain
    with pytest.raises(openai.BadRequestError, match="256"):
        client.embeddings.create(model="cria", input="a", dimensions=7)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="cria", input=[])
