"""What every handler of the API has at hand."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request

from puna import __version__
from puna.engine.output import Delta, RequestOutput, joined
from puna.engine.params import SamplingParams
from puna.engine.prompts import Dialog, EncodedPrompt, Prompt, encode
from puna.serve.concurrency import merged, together
from puna.serve.deadlines import Stopping
from puna.serve.errors import APIError
from puna.serve.facts import Facts, facts_of
from puna.serve.models import Models, Served
from puna.serve.vetting import Vetting

# What answers: a seed gives the same again from the same build. OpenAI's field; any text will do.
FINGERPRINT = f"b{__version__}"

LONG_TEXT = 1 << 14  # characters that take longer to encode than the other requests should wait


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_prompts: int = 256
    max_outputs: int = 256  # prompts times n or best_of
    # Log-probabilities of prompts' tokens and their alternatives, some 300 bytes each for a while.
    max_prompt_logprobs: int = 1 << 20
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """The models, and what is allowed."""

    models: Models
    limits: Limits
    stopping: Stopping
    vettings: dict[int, Vetting] = field(default_factory=dict)  # by the backend's identity

    async def vet(self, served: Served, body: Mapping[str, Any]) -> None:
        """Raises ValueError for a schema or grammar that is none, or takes too much to read."""
        backend = served.backend
        if id(backend) not in self.vettings:
            self.vettings[id(backend)] = Vetting(backend.tokenizer)
        await self.vettings[id(backend)].check(body)

    def close(self) -> None:
        """Ends what it has started."""
        for vetting in self.vettings.values():
            vetting.close()

    def check_prompts(self, count: int) -> None:
        """Raises APIError for more prompts than one request may have."""
        most = self.limits.max_prompts
        if count > most:
            raise APIError(400, f"the request has {count} prompts; at most {most} are allowed")


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    service: Service = request.app.state.service
    return service


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts to continue with a model, all with the same parameters."""

    served: Served
    prompts: Sequence[EncodedPrompt]
    params: SamplingParams
    facts: Facts

    async def results(self) -> list[RequestOutput]:
        """What follows each prompt. Where one fails, the others end too."""
        generate, adapter = self.served.backend.generate, self.served.adapter
        results = await together(
            generate(prompt, self.params, adapter=adapter) for prompt in self.prompts
        )
        self.facts.prompt_tokens += sum(len(result.prompt_token_ids) for result in results)
        outputs = [output for result in results for output in result.outputs]
        self.facts.completion_tokens += sum(len(output.token_ids) for output in outputs)
        return results

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(number of the choice, delta) as they come: those of prompt p begin at p x n."""
        if (self.params.best_of or self.params.n) > self.params.n:
            raise ValueError("with best_of above n there is nothing to stream before the end")
        self.facts.prompt_tokens += sum(len(prompt.ids) for prompt in self.prompts)
        streams = [self._stream(number, prompt) for number, prompt in enumerate(self.prompts)]
        async with aclosing(streams[0] if len(streams) == 1 else merged(streams)) as news:
            async for number, delta in news:
                self.facts.took_tokens(len(delta.token_ids), number)
                yield number, delta

    async def _stream(
        self, number: int, prompt: EncodedPrompt
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        parts = self.served.backend.parts(prompt, self.params, adapter=self.served.adapter)
        async with aclosing(parts):
            async for deltas in parts:
                for delta in joined(deltas):
                    yield number * self.params.n + delta.index, delta


async def task_of(
    service: Service,
    request: Request,
    served: Served,
    prompts: Sequence[Prompt | Dialog],
    params: SamplingParams,
) -> Task:
    """Encodes the prompts and holds them against the limits.

    With `params.max_tokens` None an answer may be as long as the context allows. Raises ValueError
    and APIError for what cannot run.
    """
    limits, facts = service.limits, facts_of(request.scope)
    facts.model = served.name
    service.check_prompts(len(prompts))
    outputs = len(prompts) * (params.best_of or params.n)
    if outputs > limits.max_outputs:
        raise APIError(
            400, f"the request is for {outputs} outputs; at most {limits.max_outputs} are allowed"
        )
    encoded = await encoded_prompts(served, prompts)
    if params.prompt_logprobs is not None:
        asked = sum(len(prompt.ids) for prompt in encoded) * (params.prompt_logprobs + 1)
        if asked > limits.max_prompt_logprobs:
            raise APIError(
                400,
                f"echo with logprobs asks for {asked} log-probabilities; at most "
                f"{limits.max_prompt_logprobs} are allowed: send fewer prompts at once",
                param="logprobs",
            )
    longest = max(len(prompt.ids) for prompt in encoded)
    most = limits.max_new_tokens
    if params.max_tokens is None:
        # 1 where there is no room: the engine says so in its own words.
        room = max(1, served.backend.room(longest))
        params = replace(params, max_tokens=room if most is None else min(room, most))
    elif most is not None and params.max_tokens > most:
        raise APIError(
            400,
            f"max_tokens is {params.max_tokens}; at most {most} are allowed",
            param="max_tokens",
        )
    return Task(served, encoded, params, facts)


async def encoded_prompts(
    served: Served, prompts: Sequence[Prompt | Dialog]
) -> list[EncodedPrompt]:
    """Encodes prompts; the other requests have their turn after each."""
    encoded = []
    for prompt in prompts:
        encoded.append(await encoded_prompt(served, prompt))
        await asyncio.sleep(0)
    return encoded


def prompts_of(given: str | list[int] | list[str] | list[list[int]]) -> list[Prompt]:
    """The prompts of a request: texts or token ids, one or several."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise APIError(400, "there is no prompt", param="prompt")
    if isinstance(given[0], int):
        return [given]
    return list(given)


async def encoded_prompt(served: Served, prompt: Prompt | Dialog) -> EncodedPrompt:
    """Encodes a prompt, a long one beside what else is to be done."""
    tokenizer = served.backend.tokenizer
    if isinstance(prompt, EncodedPrompt):
        return prompt
    if isinstance(prompt, str) and len(prompt) < LONG_TEXT:
        return encode(tokenizer, prompt)
    return await asyncio.to_thread(encode, tokenizer, prompt)


def answer_head(id_prefix: str, kind: str, model: str) -> dict[str, Any]:
    """What every object of an answer begins with: its own id, its `object`, when it was begun."""
    return {
        "id": f"{id_prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def usage(prompt_tokens: int, completion_tokens: int, cached: int | None = None) -> dict[str, Any]:
    """The count of tokens."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return counts
