"""`LLM`: a model to ask, from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from puna.chat import Message
from puna.engine.endings import Likelihood
from puna.engine.engine import MAX_ROWS, MAX_SEQUENCES, Engine
from puna.engine.loading import load_runner
from puna.engine.output import Delta, Embedding, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.prompts import Dialog, EncodedPrompt, Prompt, encode
from puna.engine.request import Request
from puna.engine.speculate import PROMPT_LOOKUP, Drafter, DraftModel, PromptLookup
from puna.formats import open_checkpoint
from puna.formats.adapters import Adapter, Pair, added, open_adapter, read_pairs
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.vocabularies import load_vocabulary
from puna.hub.locate import locate

AdapterSource = str | Path | Adapter


class LLM:
    """A model, loaded and ready: `LLM("cria").generate("Once upon a time")`.

    `model` is a path in any format, a shipped model's name, a hub's that was pulled, or an opened
    checkpoint. Keys and values of `kv_tokens` tokens are held (default: what suits the memory that
    is free), as `kv_dtype` (`load_runner`), for up to `max_sequences` at once. `draft`,
    "prompt-lookup" or a smaller model of the same vocabulary, guesses tokens ahead, which changes
    the speed alone. `adapters` are loaded as by `load_adapter`. With a `cache_folder`, a large
    model's weights are kept there as the processor wants them, and the next start is immediate
    (the commands use ~/.cache/puna). With `tensor_parallel` the processes that torchrun started
    share the model; in all but the first, this does not return. May be used from several threads.
    """

    def __init__(
        self,
        model: str | Path | Checkpoint,
        *,
        tokenizer: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        kv_dtype: str = "auto",
        kv_tokens: int | None = None,
        num_threads: int | None = None,
        max_rows: int = MAX_ROWS,
        max_sequences: int = MAX_SEQUENCES,
        draft: str | Path | Checkpoint | None = None,
        cache_folder: str | Path | None = None,
        adapters: Mapping[str, AdapterSource | Sequence[AdapterSource]] | None = None,
        tensor_parallel: bool = False,
    ) -> None:
        model = _opened(model, tokenizer)
        self.config, self._path = model.config, model.path
        pairs = {name: self.read_adapter(source) for name, source in (adapters or {}).items()}
        self.tokenizer = model.tokenizer()
        limits = {"max_rows": max_rows, "max_sequences": max_sequences}
        options: dict[str, Any] = {
            "kv_dtype": kv_dtype,
            "num_threads": num_threads,
            "cache_folder": None if cache_folder is None else Path(cache_folder),
        }
        runner = load_runner(
            model, device, dtype, kv_tokens=kv_tokens, tensor_parallel=tensor_parallel, **options
        )
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
        for name, pair in pairs.items():
            self.engine.load_adapter(name, pair)
        self._lock = Lock()

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that are loaded."""
        return self.engine.adapters

    def load_adapter(self, name: str, adapter: AdapterSource | Sequence[AdapterSource]) -> None:
        """Loads a LoRA adapter, while others run: requests may ask for it by `name` from now on.

        A path or a hub's name, of any kind that `puna convert --lora` merges, or an opened one; of
        several, the sum. Raises ValueError for one that does not fit, and a name that is taken.
        """
        pairs = self.read_adapter(adapter)
        with self._lock:
            self.engine.load_adapter(name, pairs)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter. ValueError where there is none, or requests of it still run."""
        with self._lock:
            self.engine.unload_adapter(name)

    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """Answers with these weights, all or some, from now on, as a policy in training needs it.

        Named and shaped as `Checkpoint.tensors`; `formats.network.as_checkpoint` makes them of a
        network. Requests that run keep their tokens and go on with the new weights. Raises
        ValueError, with nothing changed, where the model has no such tensors.
        """
        with self._lock:
            self.engine.update(weights)

    def read_adapter(self, adapter: AdapterSource | Sequence[AdapterSource]) -> dict[str, Pair]:
        """The pairs of an adapter for this model, for `Engine.load_adapter`."""
        several = [adapter] if isinstance(adapter, str | Path | Adapter) else adapter
        opened = (a if isinstance(a, Adapter) else open_adapter(locate(str(a))) for a in several)
        return added([read_pairs(each, self.config, self._path) for each in opened])

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[RequestOutput]:
        """What follows each prompt, texts or token ids; one prompt gives a list of one.

        `params` are for all prompts, or one for each; so is `adapter`, the name of a loaded one.
        Raises ValueError, before anything runs, for a prompt or parameters that cannot be, and an
        adapter that is not loaded.
        """
        return self._run(_many(prompts), params, adapter)

    def chat(
        self,
        messages: Dialog | Sequence[Dialog],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[RequestOutput]:
        """The assistant's answer to a dialog, in Llama 2's chat format, or to each of several.

        Messages are `{"role": ..., "content": ...}` or `Message`s. Arguments as of `generate`;
        raises as that, and for roles out of order and text that forges a tag.
        """
        many = bool(messages) and not isinstance(messages[0], Message | Mapping)
        return self._run(messages if many else [messages], params, adapter)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        adapter: str | Sequence[str | None] | None = None,
        pooling: str = "mean",
    ) -> list[Embedding]:
        """Each prompt as one vector: the mean of its hidden states, or the "last" of them, not
        normalised.

        Arguments and errors as of `generate`.
        """
        many = _many(prompts)
        requests = self._finished(
            partial(
                self.engine.add_embedding,
                encode(self.tokenizer, prompt).ids,
                adapter=name,
                pooling=pooling,
            )
            for prompt, name in zip(many, _names(adapter, len(many)), strict=True)
        )
        return [request.embedding() for request in requests]

    def likelihoods(
        self,
        contexts: Sequence[Prompt],
        endings: Sequence[Sequence[Sequence[int]]],
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[list[Likelihood]]:
        """How likely each of the endings (token ids) of each context is.

        A context is run once for all its endings, and what it begins with as another one is not
        run again. Raises as `generate`, and for an ending of no tokens.
        """
        names = _names(adapter, len(contexts))
        requests = self._finished(
            partial(
                self.engine.add_endings, encode(self.tokenizer, context).ids, each, adapter=name
            )
            for context, each, name in zip(contexts, endings, names, strict=True)
        )
        return [request.likelihoods() for request in requests]

    def stream(
        self,
        prompt: Prompt | Dialog,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Delta]:
        """What follows a prompt, or the answer to a dialog, as it comes.

        To stop early, close the iterator or let go of it. Raises as `generate` and `chat`.
        """
        ids, params, options = self.prepare(prompt, params or SamplingParams(), adapter)
        if (params.best_of or params.n) > params.n:
            raise ValueError("with best_of above n there is nothing to stream before the end")
        self.engine.check(ids, params, adapter)
        return self._stream(ids, params, options)

    def prepare(
        self, prompt: Prompt | Dialog, params: SamplingParams, adapter: str | None = None
    ) -> tuple[list[int], SamplingParams, dict[str, Any]]:
        """Ids, parameters and options for `Engine.add`."""
        encoded = encode(self.tokenizer, prompt)
        # What must fit a structure is whole or broken; only other text may end anywhere.
        structured = (params.json_schema, params.regex, params.grammar) != (None, None, None)
        if encoded.stop and not structured:
            params = replace(params, stop=(*params.stop, *encoded.stop))
        options = {
            "adapter": adapter,
            "prompt": encoded.text,
            "strip_space": encoded.strip_space,
        }
        return list(encoded.ids), params, options

    def _run(
        self,
        prompts: Sequence[Any],
        params: SamplingParams | Sequence[SamplingParams] | None,
        adapter: str | Sequence[str | None] | None,
    ) -> list[RequestOutput]:
        each = (
            params if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        )
        if len(each) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(each)} SamplingParams")
        names = _names(adapter, len(prompts))
        requests = self._finished(
            self._adding(*one) for one in zip(prompts, each, names, strict=True)
        )
        return [request.result() for request in requests]

    def _adding(
        self, prompt: Any, params: SamplingParams, adapter: str | None
    ) -> Callable[[], Request]:
        ids, params, options = self.prepare(prompt, params, adapter)
        return partial(self.engine.add, ids, params, **options)

    def _finished(self, adding: Iterable[Callable[[], Request]]) -> list[Request]:
        """The requests that these add to the engine, run to their ends."""
        requests: list[Request] = []
        try:
            for add in adding:
                with self._lock:
                    requests.append(add())
            for request in requests:
                while not request.finished:
                    self._step()
            return requests
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


def _names(adapter: str | Sequence[str | None] | None, count: int) -> Sequence[str | None]:
    """The adapter of each of so many prompts."""
    names = [adapter] * count if adapter is None or isinstance(adapter, str) else adapter
    if len(names) != count:
        raise ValueError(f"there are {count} prompts and {len(names)} adapters")
    return names


def _many(prompts: Prompt | Sequence[Prompt]) -> Sequence[Any]:
    if isinstance(prompts, str | EncodedPrompt) or (prompts and isinstance(prompts[0], int)):
        return [prompts]
    return prompts
