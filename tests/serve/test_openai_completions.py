"""The official client asks for models and completions, and gets what the engine gives."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import OpenAI

from puna import LLM, SamplingParams
from puna.engine.output import RequestOutput
from tests.serve.servers import Running

PROMPT = "Once upon a time, a little llama"
IDS = [1, 400, 500, 600, 700]


def direct(llm: LLM, prompt: Any, **params: Any) -> RequestOutput:
    """The engine's own answer, with OpenAI's defaults."""
    (result,) = llm.generate(prompt, SamplingParams(**{"temperature": 1.0, "top_p": 1.0} | params))
    return result


def texts(answer: Any) -> list[str]:
    return [choice.text for choice in answer.choices]


def complete(client: OpenAI, **fields: Any) -> Any:
    return client.completions.create(
        **{"model": "cria", "prompt": PROMPT, "temperature": 0, "max_tokens": 12} | fields
    )


def streamed(client: OpenAI, **fields: Any) -> tuple[dict[int, str], dict[int, str], list[Any]]:
    """Texts and ends by choice, and the events."""
    text: dict[int, str] = {}
    ends: dict[int, str] = {}
    events = list(complete(client, stream=True, **fields))
    for event in events:
        for choice in event.choices:
            assert choice.index not in ends, "something follows the end of a choice"
            text[choice.index] = text.get(choice.index, "") + choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    return text, ends, events


def test_models(client: OpenAI, llm: LLM) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("cria", "model", "puna")
    assert model.context_length == llm.config.context_length  # type: ignore[attr-defined]
    assert client.models.retrieve("cria") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody/here")
    assert caught.value.code == "model_not_found"


def test_a_text_is_continued_as_the_engine_does(client: OpenAI, llm: LLM) -> None:
    expected = direct(llm, PROMPT, temperature=0, max_tokens=12)
    answer = complete(client)
    assert texts(answer) == [expected.outputs[0].text]
    assert answer.choices[0].finish_reason == expected.outputs[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert complete(client).usage.prompt_tokens_details.cached_tokens % 16 == 0
    assert answer.id != complete(client).id and answer.id.startswith("cmpl-")


def test_sixteen_tokens_are_the_default(client: OpenAI) -> None:
    answer = client.completions.create(model="cria", prompt=PROMPT)
    assert answer.usage and answer.usage.completion_tokens <= 16


@pytest.mark.parametrize(
    "prompt",
    ["", IDS, ["The dog", PROMPT, ""], [IDS, [1], [1, 5, 6]], "Ein Lama — 羊驼 🦙\n\n"],
    ids=["empty", "ids", "texts", "batch of ids", "unicode"],
)
def test_prompts_of_every_kind(client: OpenAI, llm: LLM, prompt: Any) -> None:
    single = isinstance(prompt, str) or isinstance(prompt[0], int)
    each = [
        direct(llm, one, temperature=0, max_tokens=6) for one in ([prompt] if single else prompt)
    ]
    answer = complete(client, prompt=prompt, max_tokens=6)
    assert texts(answer) == [result.outputs[0].text for result in each]
    assert [choice.index for choice in answer.choices] == list(range(len(each)))
    assert answer.usage.prompt_tokens == sum(len(result.prompt_token_ids) for result in each)


def test_several_outputs_of_several_prompts_are_in_order(
    client: OpenAI, lenient: OpenAI, llm: LLM
) -> None:
    prompts = ["The dog", "A cat"]
    expected = [
        output.text
        for prompt in prompts
        for output in direct(llm, prompt, seed=3, n=3, max_tokens=8).outputs
    ]
    fields = {"prompt": prompts, "n": 3, "seed": 3, "temperature": 1, "max_tokens": 8}
    assert texts(complete(client, **fields)) == expected
    text, ends, _ = streamed(lenient, **fields)
    assert [text[i] for i in range(6)] == expected and sorted(ends) == list(range(6))


def test_a_seed_makes_a_sample_come_again(client: OpenAI, llm: LLM) -> None:
    fields = {"temperature": 1, "max_tokens": 20}
    first, again = (texts(complete(client, seed=5, **fields)) for _ in range(2))
    assert first == again == [direct(llm, PROMPT, seed=5, max_tokens=20).outputs[0].text]
    assert texts(complete(client, seed=6, **fields)) != first
    unseeded = {texts(complete(client, **fields))[0] for _ in range(4)}
    assert len(unseeded) > 1
    # OpenAI's seeds may be negative.
    negative = direct(llm, PROMPT, seed=2**64 - 5, max_tokens=20).outputs[0].text
    assert texts(complete(client, seed=-5, **fields)) == [negative]


def test_best_of_gives_the_best(client: OpenAI, llm: LLM) -> None:
    expected = direct(llm, PROMPT, seed=1, n=2, best_of=5, max_tokens=8)
    answer = complete(client, seed=1, n=2, best_of=5, max_tokens=8, temperature=1)
    assert texts(answer) == [output.text for output in expected.outputs]
    assert texts(complete(client, n=2, best_of=5, max_tokens=0)) == ["", ""]
    with pytest.raises(openai.BadRequestError, match="best_of"):
        complete(client, n=3, best_of=2)
    with pytest.raises(openai.BadRequestError, match="best_of"):
        complete(client, n=1, best_of=2, stream=True)


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"stop": "."}, {"stop": (".",)}),
        ({"stop": [" nowhere", ","]}, {"stop": (" nowhere", ",")}),
        ({"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
        ({"presence_penalty": -2.0}, {"presence_penalty": -2.0}),
        ({"logit_bias": {"350": 100}}, {"logit_bias": {350: 100.0}}),
        (
            {"temperature": 0.7, "top_p": 0.5, "seed": 9},
            {"temperature": 0.7, "top_p": 0.5, "seed": 9},
        ),
        (
            {
                "extra_body": {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3},
                "seed": 2,
                "temperature": 1,
            },
            {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3, "seed": 2, "temperature": 1.0},
        ),
        ({"extra_body": {"stop_token_ids": [350, 351, 352]}}, {"stop_ids": (350, 351, 352)}),
        ({"extra_body": {"regex": "[a-c]{4}"}}, {"regex": "[a-c]{4}"}),
    ],
    ids=lambda each: "-".join(each) if "stop_ids" not in each else "",
)
def test_sampling_is_the_engines(
    client: OpenAI, lenient: OpenAI, llm: LLM, fields: dict[str, Any], params: dict[str, Any]
) -> None:
    result = direct(llm, PROMPT, **{"temperature": 0, "max_tokens": 40} | params)
    answer = complete(client, **{"max_tokens": 40} | fields)
    assert texts(answer) == [result.outputs[0].text]
    assert answer.choices[0].finish_reason == result.outputs[0].finish_reason
    text, ends, _ = streamed(lenient, **{"max_tokens": 40} | fields)
    assert text == {0: result.outputs[0].text} and ends == {0: answer.choices[0].finish_reason}


def test_a_bias_of_minus_100_bans(client: OpenAI, llm: LLM) -> None:
    first = direct(llm, PROMPT, temperature=0, max_tokens=1).outputs[0]
    answer = complete(client, max_tokens=1, logit_bias={str(first.token_ids[0]): -100})
    assert texts(answer) != [first.text]


def test_logprobs_are_the_engines(client: OpenAI, lenient: OpenAI, llm: LLM) -> None:
    output = direct(llm, PROMPT, temperature=0, max_tokens=6, logprobs=3).outputs[0]
    assert output.logprobs
    answer = complete(client, max_tokens=6, logprobs=3)
    shown = answer.choices[0].logprobs
    assert shown.token_logprobs == [each.logprob for each in output.logprobs]
    assert "".join(shown.tokens) == answer.choices[0].text
    for top, each in zip(shown.top_logprobs, output.logprobs, strict=True):
        assert len(top) == 3
        assert sorted(top.values()) == sorted(logprob for _, logprob in each.top)
    assert [
        answer.choices[0].text[at:][: len(token)] for at, token in _placed(shown)
    ] == shown.tokens
    _, _, events = streamed(lenient, max_tokens=6, logprobs=3)
    pieces = [choice.logprobs for event in events for choice in event.choices if choice.logprobs]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for piece in pieces for x in getattr(piece, name)] == getattr(shown, name)


def _placed(shown: Any) -> list[tuple[int, str]]:
    return list(zip(shown.text_offset, shown.tokens, strict=True))


@pytest.mark.parametrize("max_tokens", [0, 4])
@pytest.mark.parametrize("prompt", [PROMPT, IDS], ids=["text", "ids"])
def test_echo_shows_the_prompts_logprobs(
    lenient: OpenAI, llm: LLM, prompt: Any, max_tokens: int
) -> None:
    result = direct(
        llm, prompt, temperature=0, max_tokens=max_tokens, logprobs=1, prompt_logprobs=1
    )
    assert result.prompt_logprobs is not None
    answer = complete(lenient, prompt=prompt, max_tokens=max_tokens, logprobs=1, echo=True)
    (choice,) = answer.choices
    head = prompt if isinstance(prompt, str) else llm.tokenizer.decode(prompt)
    assert choice.text == head + result.outputs[0].text
    shown = choice.logprobs
    scored = [*result.prompt_logprobs, *(result.outputs[0].logprobs or [])]
    assert shown.token_logprobs[0] is None and shown.top_logprobs[0] is None
    assert shown.token_logprobs == [each and each.logprob for each in scored]
    assert len(shown.tokens) == len(result.prompt_token_ids) + max_tokens
    assert shown.tokens[0] == "<s>" and shown.text_offset[0] == 0
    assert all(a <= b for a, b in zip(shown.text_offset, shown.text_offset[1:], strict=False))
    assert answer.usage.completion_tokens == max_tokens
    assert choice.finish_reason == "length"


def test_echo_without_logprobs_and_streamed(client: OpenAI, lenient: OpenAI) -> None:
    plain = texts(complete(client))[0]
    assert texts(complete(client, echo=True)) == [PROMPT + plain]
    assert streamed(lenient, echo=True)[0] == {0: PROMPT + plain}
    assert texts(complete(client, echo=True, max_tokens=0)) == [PROMPT]
    assert texts(complete(client, max_tokens=0)) == [""]
    with pytest.raises(openai.BadRequestError, match="echo"):
        complete(client, echo=True, logprobs=1, stream=True)


@pytest.mark.parametrize("prompt", [PROMPT, "", IDS, ["The dog", "A 🦙"]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_streams_equal_whole_answers(
    client: OpenAI, lenient: OpenAI, prompt: Any, temperature: float
) -> None:
    fields = {"prompt": prompt, "temperature": temperature, "seed": 4, "max_tokens": 30}
    whole = complete(client, **fields)
    text, ends, events = streamed(lenient, **fields)
    assert text == {choice.index: choice.text for choice in whole.choices}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert all(event.usage is None and event.choices for event in events)


def test_usage_comes_last_where_it_is_asked_for(client: OpenAI, lenient: OpenAI) -> None:
    whole = complete(client)
    _, _, events = streamed(lenient, stream_options={"include_usage": True})
    assert all(event.usage is None for event in events[:-1])
    assert events[-1].choices == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(events[-1].usage, name) == getattr(whole.usage, name)


def test_many_at_once_are_not_mixed_up(server: Running, llm: LLM) -> None:
    prompts = [f"The llama number {number} said" for number in range(12)]
    expected = [
        direct(llm, p, seed=i, max_tokens=12).outputs[0].text for i, p in enumerate(prompts)
    ]

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        fields: dict[str, Any] = {
            "model": "cria", "prompt": prompts[number], "seed": number, "max_tokens": 12,
        }  # fmt: skip
        if number % 2:
            return (await client.completions.create(**fields)).choices[0].text
        stream = await client.completions.create(stream=True, **fields)
        return "".join([event.choices[0].text async for event in stream])

    async def together() -> list[str]:
        async with server.async_client(_strict_response_validation=False) as client:
            assert [model.id async for model in client.models.list()] == ["cria"]
            return await asyncio.gather(*(ask(client, number) for number in range(12)))

    assert asyncio.run(together()) == expected


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "gpt-9"),
        ({"suffix": "the end"}, openai.BadRequestError, "suffix"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"top_p": 0}, openai.BadRequestError, "top_p"),
        ({"n": 0}, openai.BadRequestError, "n:"),
        ({"n": 1000}, openai.BadRequestError, "n:"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"logprobs": 1000}, openai.BadRequestError, "logprobs"),
        ({"logit_bias": {"a": 1}}, openai.BadRequestError, "no token id"),
        ({"logit_bias": {"99999999": 1}}, openai.BadRequestError, "logit_bias|99999999"),
        ({"prompt": []}, openai.BadRequestError, "prompt"),
        ({"prompt": [[]]}, openai.BadRequestError, "prompt"),
        ({"prompt": [10**6]}, openai.BadRequestError, "1000000"),
        ({"prompt": [-1]}, openai.BadRequestError, "prompt"),
        ({"prompt": "llama " * 2000}, openai.BadRequestError, "token"),
        ({"prompt": {"a": 1}}, openai.BadRequestError, "prompt"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
        ({"extra_body": {"temperatur": 1}}, openai.BadRequestError, "temperatur"),
        ({"extra_body": {"regex": "("}}, openai.BadRequestError, "regex"),
        ({"extra_body": {"grammar": "start: x"}}, openai.BadRequestError, "grammar"),
        ({"extra_body": {"regex": "a", "grammar": "start: x"}}, openai.BadRequestError, "exclude"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors_are_the_clients_exceptions(
    client: OpenAI,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    words: str,
    stream: bool,
) -> None:
    with pytest.raises(error, match=words) as caught:
        complete(client, stream=stream, **fields)
    assert caught.value.type == "invalid_request_error"


def test_pages_that_are_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a llama")
    with pytest.raises(openai.APIStatusError) as caught:
        client.get("/completions", cast_to=object)
    assert caught.value.status_code == 405


def test_log_probabilities_of_prompts_are_bounded(client: OpenAI) -> None:
    prompts = [[1] + [300] * 500] * 256
    with pytest.raises(openai.BadRequestError, match="2693376 log-probabilities") as caught:
        complete(client, prompt=prompts, echo=True, logprobs=20, max_tokens=0)
    assert caught.value.param == "logprobs"
