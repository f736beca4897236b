"""/v1/completions: continues texts.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from puna.engine.output import Completion, Delta, RequestOutput
from puna.engine.prompts import EncodedPrompt
from puna.engine.sampling import TokenLogprobs
from puna.serve.errors import APIError
from puna.serve.events import Event, EventStream, WholeAnswer
from puna.serve.logprobs import CompletionLogprobs
from puna.serve.requests import CompletionRequest
from puna.serve.responses import CompletionResponse, answers
from puna.serve.service import Limits, Task, answer_head, prompts_of, service_of, task_of, usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's
KIND = "text_completion"  # an answer's `object`

router = APIRouter(tags=["Answers"])


@router.post("/completions", responses=answers(CompletionResponse, CompletionResponse))
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continues a text or token ids, or several at once."""
    service = service_of(request)
    _check(body)
    served = service.models.find(body.model)
    await service.vet(served, {"regex": body.regex, "grammar": body.grammar})
    params = body.sampling(
        max_tokens=_max_tokens(body, service.limits),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    task = await task_of(service, request, served, prompts_of(body.prompt), params)
    if body.stream:
        return EventStream(_events(task, body))
    return WholeAnswer(_whole(task, body))


def _max_tokens(body: CompletionRequest, limits: Limits) -> int:
    if body.max_tokens is not None:
        return body.max_tokens
    most = limits.max_new_tokens
    return DEFAULT_MAX_TOKENS if most is None else min(DEFAULT_MAX_TOKENS, most)


def _check(body: CompletionRequest) -> None:
    if body.suffix:
        raise APIError(
            400, "suffix is not supported: a Llama only continues its prompt", param="suffix"
        )
    if body.stream and body.echo and body.logprobs is not None:
        raise APIError(400, "echo with logprobs cannot be streamed", param="stream")


async def _whole(task: Task, body: CompletionRequest) -> Event:
    results = await task.results()
    choices: list[Event] = []
    for result, prompt in zip(results, task.prompts, strict=True):
        for output in result.outputs:
            choices.append(_choice(task, body, len(choices), prompt, result, output))
    counts = usage(
        sum(len(result.prompt_token_ids) for result in results),
        sum(len(output.token_ids) for result in results for output in result.outputs),
        sum(result.num_cached_tokens for result in results),
    )
    return {**answer_head("cmpl", KIND, task.served.name), "choices": choices, "usage": counts}


def _choice(
    task: Task,
    body: CompletionRequest,
    index: int,
    prompt: EncodedPrompt,
    result: RequestOutput,
    output: Completion,
) -> Event:
    logprobs = None
    if output.logprobs is not None:
        tokens = list(output.token_ids)
        values: list[TokenLogprobs | None] = [*output.logprobs]
        if body.echo:
            tokens = [*result.prompt_token_ids, *tokens]
            values = [*(result.prompt_logprobs or []), *values]
        decoder = task.served.backend.tokenizer.stream(
            strip_space=prompt.strip_space or bool(body.echo)
        )
        logprobs = CompletionLogprobs(task.served.backend.tokenizer, decoder).push(tokens, values)
    return {
        "index": index,
        "text": (_text_of(task, prompt) if body.echo else "") + output.text,
        "logprobs": logprobs,
        "finish_reason": output.finish_reason,
    }


async def _events(task: Task, body: CompletionRequest) -> AsyncGenerator[Event, None]:
    head = answer_head("cmpl", KIND, task.served.name)
    counted = body.counts_usage
    if counted:
        head["usage"] = None
    tokenizer, n = task.served.backend.tokenizer, task.params.n
    writers = {
        number: CompletionLogprobs(
            tokenizer, tokenizer.stream(strip_space=task.prompts[number // n].strip_space)
        )
        for number in range(n * len(task.prompts))
        if body.logprobs is not None
    }
    waiting = set(range(n * len(task.prompts))) if body.echo else set()
    async for number, delta in task.deltas():
        text = delta.text
        if number in waiting:
            waiting.remove(number)
            text = _text_of(task, task.prompts[number // n]) + text
        if text or delta.logprobs or delta.finish_reason:
            yield {**head, "choices": [_piece(number, text, delta, writers.get(number))]}
    if counted:
        facts = task.facts
        counts = usage(facts.prompt_tokens, facts.completion_tokens)
        yield {**head, "choices": [], "usage": counts}


def _piece(number: int, text: str, delta: Delta, writer: CompletionLogprobs | None) -> Event:
    return {
        "index": number,
        "text": text,
        "logprobs": writer and writer.push(delta.token_ids, delta.logprobs),
        "finish_reason": delta.finish_reason,
    }


def _text_of(task: Task, prompt: EncodedPrompt) -> str:
    if prompt.text is not None:
        return prompt.text
    return task.served.backend.tokenizer.decode(prompt.ids)
