"""`LLM`: a model to ask, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from puna.chat import TAGS, Message, encode_dialog
from puna.engine.engine import MAX_ROWS, MAX_SEQUENCES, Engine, Request
from puna.engine.loading import load_runner
from puna.engine.output import Delta, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.speculate import PROMPT_LOOKUP, Drafter, DraftModel, PromptLookup
from puna.formats import open_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.vocabularies import load_vocabulary
from puna.hub.locate import locate

Dialog = Sequence[Message | Mapping[str, str]]
Prompt = str | Sequence[int]


class LLM:
    """A model, loaded and ready: `LLM("cria").generate("Once upon a time")`.

    `model` is a path in any format, a shipped model's name, a hub's that was pulled, or an opened
    checkpoint. Keys and values of `kv_tokens` tokens are held (default: what suits the memory that
    is free), for up to `max_sequences` at once. `draft`, "prompt-lookup" or a smaller model of the
    same vocabulary, guesses tokens ahead, which changes the speed alone. With a `cache_folder`, a
    large model's weights are kept there as the processor wants them, and the next start is
    immediate (the commands use ~/.cache/puna). May be used from several threads.
    """

    def __init__(
        self,
        model: str | Path | Checkpoint,
        *,
        tokenizer: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        kv_tokens: int | None = None,
        num_threads: int | None = None,
        max_rows: int = MAX_ROWS,
        max_sequences: int = MAX_SEQUENCES,
        draft: str | Path | Checkpoint | None = None,
        cache_folder: str | Path | None = None,
    ) -> None:
        model = _opened(model, tokenizer)
        self.config = model.config
        self.tokenizer = model.tokenizer()
        limits = {"max_rows": max_rows, "max_sequences": max_sequences}
        options: dict[str, Any] = {
            "num_threads": num_threads,
            "cache_folder": None if cache_folder is None else Path(cache_folder),
        }
        runner = load_runner(model, device, dtype, kv_tokens=kv_tokens, **options)
        drafter: Drafter | None = None
        if draft == PROMPT_LOOKUP:
            drafter = PromptLookup()
        elif draft is not None:
            smaller = _opened(draft, tokenizer)
            if smaller.tokenizer().vocabulary.pieces != self.tokenizer.vocabulary.pieces:
                raise ValueError(f"{smaller.path} cannot draft: its vocabulary is another one")
            num_tokens = runner.num_pages * runner.page_size
            held = load_runner(smaller, device, dtype, kv_tokens=num_tokens, **options)
            drafter = DraftModel(held, self.tokenizer.vocab_size, **limits)
        self.engine = Engine(runner, self.tokenizer, drafter=drafter, **limits)
        self._lock = Lock()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """What follows each prompt, texts or token ids; one prompt gives a list of one.

        `params` are for all prompts, or one for each. Raises ValueError, before anything runs, for
        a prompt or parameters that cannot be.
        """
        return self._run(prompts if _is_many(prompts) else [prompts], params)

    def chat(
        self,
        messages: Dialog | Sequence[Dialog],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """The assistant's answer to a dialog, in Llama 2's chat format, or to each of several.

        Messages are `{"role": ..., "content": ...}` or `Message`s. Raises as `generate`, and for
        roles out of order and text that forges a tag.
        """
        many = bool(messages) and not isinstance(messages[0], Message | Mapping)
        return self._run(messages if many else [messages], params)

    def stream(
        self, prompt: Prompt | Dialog, params: SamplingParams | None = None
    ) -> Iterator[Delta]:
        """What follows a prompt, or the answer to a dialog, as it comes.

        To stop early, close the iterator or let go of it. Raises as `generate` and `chat`.
        """
        ids, params, options = self.prepare(prompt, params or SamplingParams())
        if (params.best_of or params.n) > params.n:
            raise ValueError("with best_of above n there is nothing to stream before the end")
        self.engine.check(ids, params)
        return self._stream(ids, params, options)

    def prepare(
        self, prompt: Prompt | Dialog, params: SamplingParams
    ) -> tuple[list[int], SamplingParams, dict[str, Any]]:
        """Ids, parameters and options for `Engine.add`."""
        if isinstance(prompt, str):
            # A word that follows a prompt keeps its space; the first of all has none.
            options: dict[str, Any] = {"prompt": prompt, "strip_space": not prompt}
            return self.tokenizer.encode(prompt, bos=True), params, options
        if prompt and isinstance(prompt[0], Message | Mapping):
            dialog = [_message(message) for message in prompt]  # type: ignore[arg-type]
            # A tag that the model writes would forge a turn when it is read again.
            params = replace(params, stop=(*params.stop, *TAGS))
            return encode_dialog(self.tokenizer, dialog).ids, params, {"strip_space": True}
        return [int(token) for token in prompt], params, {}  # type: ignore[arg-type]

    def _run(
        self,
        prompts: Sequence[Any],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[RequestOutput]:
        each = (
            params if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        )
        if len(each) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(each)} SamplingParams")
        requests: list[Request] = []
        try:
            for prompt, wanted in zip(prompts, each, strict=True):
                ids, wanted, options = self.prepare(prompt, wanted)
                with self._lock:
                    requests.append(self.engine.add(ids, wanted, **options))
            for request in requests:
                while not request.finished:
                    self._step()
            return [request.result() for request in requests]
        finally:
            self._cancel(requests)

    def _stream(
        self, ids: list[int], params: SamplingParams, options: dict[str, Any]
    ) -> Iterator[Delta]:
        with self._lock:
            request = self.engine.add(ids, params, **options)
        try:
            while True:
                while request.deltas:
                    yield request.deltas.popleft()
                if request.finished:
                    break
                self._step()
            request.result()
        finally:
            self._cancel([request])

    def _step(self) -> None:
        with self._lock:
            self.engine.step()

    def _cancel(self, requests: list[Request]) -> None:
        with self._lock:
            for request in requests:
                self.engine.cancel(request)


def _opened(model: str | Path | Checkpoint, tokenizer: str | Path | None) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    vocabulary = None if tokenizer is None else load_vocabulary(Path(tokenizer))
    return open_checkpoint(locate(str(model)), vocabulary)


def _is_many(prompts: Prompt | Sequence[Prompt]) -> bool:
    return not isinstance(prompts, str) and (not prompts or not isinstance(prompts[0], int))


def _message(message: Message | Mapping[str, str]) -> Message:
    if isinstance(message, Message):
        return message
    try:
        role, content = message["role"], message["content"]
    except KeyError as error:
        raise ValueError(f"a message needs role and content; this one has no {error}") from None
    if not isinstance(content, str):
        raise ValueError(f"a message's content must be text, not {type(content).__name__}")
    return Message(role, content)
