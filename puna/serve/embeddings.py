"""/v1/embeddings: the mean of a text's hidden states, of length 1 as OpenAI's are.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from puna.engine.output import Embedding
from puna.serve.concurrency import together
from puna.serve.errors import APIError
from puna.serve.events import Event, WholeAnswer
from puna.serve.facts import facts_of
from puna.serve.requests import EmbeddingRequest
from puna.serve.responses import EmbeddingResponse, answers
from puna.serve.service import encoded_prompts, prompts_of, service_of

router = APIRouter(tags=["Embeddings"])


@router.post("/embeddings", responses=answers(EmbeddingResponse))
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """The vector of a text or token ids, or of several at once."""
    service, facts = service_of(request), facts_of(request.scope)
    served = service.models.find(body.model)
    facts.model = served.name
    width = served.backend.config.dim
    if body.dimensions not in (None, width):
        raise APIError(
            400, f"this model's vectors have {width} numbers, no other count", param="dimensions"
        )
    prompts = prompts_of(body.input)
    service.check_prompts(len(prompts))

    async def whole() -> Event:
        encoded = await encoded_prompts(served, prompts)
        embed = served.backend.embed
        made = await together(embed(prompt, adapter=served.adapter) for prompt in encoded)
        facts.prompt_tokens = sum(len(each.prompt_token_ids) for each in made)
        return {
            "object": "list",
            "model": served.name,
            "data": [
                {"object": "embedding", "index": index, "embedding": _numbers(body, each)}
                for index, each in enumerate(made)
            ],
            "usage": {"prompt_tokens": facts.prompt_tokens, "total_tokens": facts.prompt_tokens},
        }

    return WholeAnswer(whole())


def _numbers(body: EmbeddingRequest, embedding: Embedding) -> list[float] | str:
    length = np.linalg.norm(embedding.vector)
    unit = embedding.vector / (length or 1)
    if body.encoding_format == "base64":
        return base64.b64encode(unit.astype("<f4").tobytes()).decode()
    return [float(x) for x in unit]
