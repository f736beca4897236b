"""/tokenize, /detokenize and /tokenizer_info: the tokenizer, as vLLM and llama.cpp offer theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request

from puna.chat import LLAMA2_TEMPLATE
from puna.serve.errors import APIError
from puna.serve.requests import DetokenizeRequest, TokenizeRequest
from puna.serve.responses import DetokenizeResponse, TokenizeResponse, TokenizerInfo, answers
from puna.serve.service import encoded_prompt, service_of
from puna.serve.tool_messages import dialog_of
from puna.tokenizer import Tokenizer

router = APIRouter(tags=["Tokenizer"])


@router.post("/tokenize", responses=answers(TokenizeResponse))
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, object]:
    """The ids of a text or a dialog. No text becomes a control token."""
    served = service_of(request).models.find(body.model)
    tokenizer = served.backend.tokenizer
    if [body.prompt, body.content, body.messages].count(None) != 2:
        raise APIError(400, "give one of prompt, content and messages", param="prompt")
    text = body.content if body.prompt is None else body.prompt
    if text is None:
        messages = body.model_dump(exclude_none=True)["messages"]
        ids = list((await encoded_prompt(served, dialog_of(messages))).ids)
    else:
        ids = list((await encoded_prompt(served, text)).ids)
    if text is not None and not _wants_bos(body):
        del ids[0]
    tokens: Sequence[object] = ids
    if body.with_pieces:
        tokens = await asyncio.to_thread(lambda: [_piece(tokenizer, i) for i in ids])
    return {
        "tokens": tokens,
        "count": len(ids),
        "max_model_len": served.backend.config.context_length,
    }


def _wants_bos(body: TokenizeRequest) -> bool:
    if body.content is not None:
        return bool(body.add_special or body.add_special_tokens)
    return body.add_special_tokens is not False


def _piece(tokenizer: Tokenizer, token: int) -> dict[str, object]:
    data = tokenizer.vocabulary.piece_bytes(token)
    try:
        return {"id": token, "piece": data.decode() or tokenizer.vocabulary.pieces[token]}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(data)}


@router.post("/detokenize", responses=answers(DetokenizeResponse))
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, str]:
    """The text of ids; control tokens have none."""
    served = service_of(request).models.find(body.model)
    text = await asyncio.to_thread(served.backend.tokenizer.decode, body.tokens)
    return {"prompt": text, "content": text}


@router.get("/tokenizer_info", responses=answers(TokenizerInfo))
async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, object]:
    """What a tokenizer_config.json would say."""
    served = service_of(request).models.find(model)
    vocabulary = served.backend.tokenizer.vocabulary
    return {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": vocabulary.pieces[vocabulary.bos_id],
        "eos_token": vocabulary.pieces[vocabulary.eos_id],
        "unk_token": vocabulary.pieces[vocabulary.unk_id],
        "pad_token": None,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "vocab_size": len(vocabulary),
        "model_max_length": served.backend.config.context_length,
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": LLAMA2_TEMPLATE,
    }
