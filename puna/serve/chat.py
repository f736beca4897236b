"""/v1/chat/completions: answers dialogs, in Llama 2's chat format.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from puna.engine.output import Completion, Delta
from puna.engine.sampling import TokenLogprobs
from puna.serve.errors import APIError
from puna.serve.events import Event, EventStream, WholeAnswer
from puna.serve.logprobs import chat_logprobs
from puna.serve.requests import ChatRequest
from puna.serve.response_format import response_schema
from puna.serve.responses import ChatEvent, ChatResponse, answers
from puna.serve.service import Task, answer_head, service_of, task_of, usage
from puna.serve.tool_messages import dialog_of
from puna.serve.tool_stream import Answer, ArgumentsDelta, CallStart, TextDelta
from puna.serve.tools import Tools, read_tools

router = APIRouter(tags=["Answers"])


@router.post("/chat/completions", responses=answers(ChatResponse, ChatEvent))
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answers a dialog: with text, with JSON of a given form, or with calls of tools."""
    service = service_of(request)
    if body.top_logprobs is not None and not body.logprobs:
        raise APIError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    served = service.models.find(body.model)
    given = body.model_dump(by_alias=True, exclude_none=True)
    await service.vet(served, given)
    tools = read_tools(
        given.get("tools"), given.get("tool_choice"), given.get("parallel_tool_calls")
    )
    params = body.sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **tools.constraint(response_schema(given.get("response_format"))),
    )
    dialog = dialog_of(given["messages"], tools)
    task = await task_of(service, request, served, [dialog], params)
    if body.stream:
        return EventStream(_events(task, body, tools))
    return WholeAnswer(_whole(task, tools))


async def _whole(task: Task, tools: Tools) -> Event:
    (result,) = await task.results()
    counts = usage(
        len(result.prompt_token_ids),
        sum(len(output.token_ids) for output in result.outputs),
        result.num_cached_tokens,
    )
    choices = [_choice(task, tools, number, output) for number, output in enumerate(result.outputs)]
    return {
        **answer_head("chatcmpl", "chat.completion", task.served.name),
        "choices": choices,
        "usage": counts,
    }


def _choice(task: Task, tools: Tools, index: int, output: Completion) -> Event:
    answer = Answer(tools.choice)
    answer.push(output.text)
    _, reason = answer.finish(output.finish_reason or "stop")
    message: Event = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in answer.calls]
    logprobs = None
    if output.logprobs is not None:
        content = None if answer.calls else _ended(task, output.logprobs)
        logprobs = _logprobs(task, content, first=True)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


def _call(name_id: str, name: str, arguments: str) -> Event:
    function = {"name": name, "arguments": arguments}
    return {"id": name_id, "type": "function", "function": function}


def _ended(task: Task, logprobs: list[TokenLogprobs]) -> list[TokenLogprobs]:
    """Without the token that ended the answer, which is no part of it."""
    params = task.params
    ends = set(params.stop_ids)
    if not params.ignore_eos:
        ends.add(task.served.backend.tokenizer.eos_id)
    return logprobs[:-1] if logprobs and logprobs[-1].token in ends else logprobs


def _logprobs(task: Task, content: list[TokenLogprobs] | None, *, first: bool) -> Event:
    strip = first and task.prompts[0].strip_space
    tokenizer = task.served.backend.tokenizer
    shown = None if content is None else chat_logprobs(tokenizer, content, strip_space=strip)
    return {"content": shown, "refusal": None}


async def _events(task: Task, body: ChatRequest, tools: Tools) -> AsyncGenerator[Event, None]:
    head = answer_head("chatcmpl", "chat.completion.chunk", task.served.name)
    counted = body.counts_usage
    if counted:
        head["usage"] = None
    choices: dict[int, _Streamed] = {}
    async for index, delta in task.deltas():
        if index not in choices:
            choices[index] = _Streamed(task, tools, index)
            yield {**head, "choices": [choices[index].begin()]}
        for piece in choices[index].push(delta):
            yield {**head, "choices": [piece]}
    if counted:
        counts = usage(task.facts.prompt_tokens, task.facts.completion_tokens)
        yield {**head, "choices": [], "usage": counts}


class _Streamed:
    """One choice of a streamed answer: deltas in, pieces of events out."""

    def __init__(self, task: Task, tools: Tools, index: int) -> None:
        self._task, self._tools, self._index = task, tools, index
        self._answer = Answer(tools.choice)
        # Of tokens whose text has not been sent; None where none were asked for.
        self._logprobs: list[TokenLogprobs] | None = None
        self._first = True
        if task.params.logprobs is not None:
            self._logprobs = []

    def begin(self) -> Event:
        """The piece that all others follow."""
        content = "" if self._tools.choice == "none" else None
        # As OpenAI's: empty, not null, so that clients may go through all of them.
        logprobs: Event | None = None
        if self._logprobs is not None:
            logprobs = {"content": [], "refusal": None}
        return self._piece({"role": "assistant", "content": content}, logprobs=logprobs)

    def push(self, delta: Delta) -> list[Event]:
        """What a delta adds."""
        if self._logprobs is not None:
            self._logprobs += delta.logprobs
            if delta.finish_reason:
                self._logprobs = _ended(self._task, self._logprobs)
        events = self._answer.push(delta.text)
        reason = None
        if delta.finish_reason:
            last, reason = self._answer.finish(delta.finish_reason)
            events += last
        pieces = []
        for event in events:
            if isinstance(event, TextDelta):
                pieces.append(self._piece({"content": event.text}, logprobs=self._taken()))
            elif isinstance(event, CallStart):
                call = {"index": event.index, **_call(event.id, event.name, "")}
                pieces.append(self._piece({"tool_calls": [call]}))
            elif isinstance(event, ArgumentsDelta):
                call = {"index": event.index, "function": {"arguments": event.text}}
                pieces.append(self._piece({"tool_calls": [call]}))
        if reason:
            pieces.append(self._piece({}, reason, None if self._answer.calls else self._taken()))
        return pieces

    def _taken(self) -> Event | None:
        """The log-probabilities that were not sent yet."""
        if not self._logprobs:
            return None
        shown = _logprobs(self._task, self._logprobs, first=self._first)
        self._logprobs, self._first = [], False
        return shown

    def _piece(
        self, delta: Event, finish_reason: str | None = None, logprobs: Event | None = None
    ) -> Event:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
