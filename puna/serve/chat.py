"""/v1/chat/completions: answers dialogs, in Llama 2's chat format.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from puna.chat import Message
from puna.engine.output import Completion
from puna.serve.errors import APIError
from puna.serve.events import Event, EventStream, WholeAnswer
from puna.serve.requests import ChatMessage, ChatRequest
from puna.serve.responses import ChatEvent, ChatResponse, answers
from puna.serve.service import Task, new_id, now, service_of, task_of, usage

router = APIRouter()


@router.post("/chat/completions", responses=answers(ChatResponse, ChatEvent))
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answers a dialog."""
    service = service_of(request)
    if body.top_logprobs is not None and not body.logprobs:
        raise APIError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    params = body.sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    served = service.models.find(body.model)
    task = await task_of(service, request, served, [dialog_of(body.messages)], params)
    if body.stream:
        return EventStream(_events(task, body), service.time_limit)
    return WholeAnswer(_whole(task), service.time_limit)


def dialog_of(messages: list[ChatMessage]) -> list[Message]:
    return [Message(m.role, m.content if isinstance(m.content, str) else "") for m in messages]


async def _whole(task: Task) -> Event:
    (result,) = await task.results()
    counts = usage(
        len(result.prompt_token_ids),
        sum(len(output.token_ids) for output in result.outputs),
        result.num_cached_tokens,
    )
    choices = [_choice(task, number, output) for number, output in enumerate(result.outputs)]
    return {**_head(task, "chat.completion"), "choices": choices, "usage": counts}


def _choice(task: Task, index: int, output: Completion) -> Event:
    return {
        "index": index,
        "message": {"role": "assistant", "content": output.text, "refusal": None},
        "logprobs": None,
        "finish_reason": output.finish_reason,
    }


async def _events(task: Task, body: ChatRequest) -> AsyncGenerator[Event, None]:
    head = _head(task, "chat.completion.chunk")
    options = body.stream_options
    counted = bool(options and options.include_usage)
    if counted:
        head["usage"] = None
    begun: set[int] = set()
    async for index, delta in task.deltas():
        if index not in begun:
            begun.add(index)
            yield {**head, "choices": [_piece(index, {"role": "assistant", "content": ""})]}
        if delta.text:
            yield {**head, "choices": [_piece(index, {"content": delta.text})]}
        if delta.finish_reason:
            yield {**head, "choices": [_piece(index, {}, delta.finish_reason)]}
    if counted:
        counts = usage(task.facts.prompt_tokens, task.facts.completion_tokens)
        yield {**head, "choices": [], "usage": counts}


def _piece(index: int, delta: Event, finish_reason: str | None = None) -> Event:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _head(task: Task, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": now(),
        "model": task.served.name,
    }
