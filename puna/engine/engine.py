"""The engine: requests go in, steps run, tokens and text come out."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from itertools import count

import numpy as np
from numpy.typing import NDArray

from puna.engine.adapters import Adapters
from puna.engine.batch import Answer, Runner, check_update
from puna.engine.draws import draws_of, token_of
from puna.engine.endings import Endings
from puna.engine.output import Writer
from puna.engine.pages import Pages
from puna.engine.params import DEFAULT_MAX_TOKENS, SamplingParams
from puna.engine.pooling import POOLINGS
from puna.engine.request import Request
from puna.engine.sampling import logprobs_of
from puna.engine.scheduler import Scheduler
from puna.engine.sequence import Part, Sequence
from puna.engine.speculate import Drafter
from puna.engine.statistics import Statistics
from puna.engine.structure import Structures
from puna.formats.adapters import Pair
from puna.formats.checkpoint import LazyTensor
from puna.tokenizer import Tokenizer

MAX_ROWS, MAX_SEQUENCES = 256, 64


class ContextLengthError(ValueError):
    """A prompt, or a prompt and what is to follow it, for which there is no room."""


class Engine:
    """Runs many requests at once. Not for several threads at once.

    At most `max_sequences` run together, in steps of at most `max_rows` tokens. A result depends
    on its request alone (on a runner whose rows do not depend on each other), not on the others.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        max_rows: int = MAX_ROWS,
        max_sequences: int = MAX_SEQUENCES,
        drafter: Drafter | None = None,
    ) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self.pages = Pages(runner.num_pages, runner.page_size)
        self.scheduler = Scheduler(self.pages, max_rows=max_rows, max_sequences=max_sequences)
        self.num_proposed = self.num_accepted = 0  # tokens that were guessed, and that held
        self._prompt_tokens = self._cached_tokens = 0
        self._adapters = Adapters(runner)
        self._drafter = drafter
        self._structures = Structures(tokenizer)
        self._requests: dict[int, Request] = {}
        self._numbers = count()
        self._version = 0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(
        self,
        ids: Many[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        strip_space: bool = False,
        adapter: str | None = None,
    ) -> Request:
        """Takes a request for what follows the tokens `ids`; `prompt` is their text, if known.

        `strip_space` leaves out the space before the first word; `adapter` names a loaded one.
        Raises ValueError for a request that can never run: of no tokens, too long for the context
        or the pages, unknown ids, an unknown adapter.
        """
        max_tokens = self.check(ids, params, adapter)
        structure = self._structures.start(params)
        count = params.best_of or params.n
        request = Request(prompt, ids, params, next(self._numbers), adapter)
        request.writers = [
            Writer(
                index,
                params,
                self.tokenizer,
                max_tokens=max_tokens,
                # What must be a certain text is not changed.
                strip_space=strip_space and structure is None,
            )
            for index in range(count)
        ]
        copies = [structure and structure.copy() for _ in range(count - 1)]
        request.structures = [structure, *copies]
        sequence = Sequence(
            (request.number, 0),
            list(ids),
            len(ids),
            origin=self._origin(adapter),
            adapter=self._adapters.find(adapter).index,
            wanted_from=None if params.prompt_logprobs is None else 0,
            draw=draws_of(params, request.seed, 0, self.tokenizer.vocab_size),
        )
        if sequence.wanted_from is not None:
            request.prompt_logprobs = [None] * len(ids)
        return self._enter(request, sequence)

    def add_embedding(
        self, ids: Many[int], *, adapter: str | None = None, pooling: str = "mean"
    ) -> Request:
        """Takes a request for the mean of the hidden states of `ids`, or the last of them
        (`engine.pooling`), for which pages of earlier prompts are of use; raises as `add`."""
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {' or '.join(POOLINGS)}, not {pooling!r}")
        params = SamplingParams(max_tokens=0)
        self.check(ids, params, adapter)
        request = Request(None, ids, params, next(self._numbers), adapter)
        request.pooling = POOLINGS[pooling](self.runner.config.dim)
        sequence = Sequence(
            (request.number, 0),
            list(ids),
            len(ids),
            origin=self._origin(adapter),
            adapter=self._adapters.find(adapter).index,
            wanted_from=0 if pooling == "mean" else None,
            wants_hidden=True,
        )
        return self._enter(request, sequence)

    def add_endings(
        self, context: Many[int], endings: Many[Many[int]], *, adapter: str | None = None
    ) -> Request:
        """Takes a request for how likely each ending is after the tokens `context`.

        The context is run once, or found in pages of earlier prompts; each ending goes on from
        there, and its last token is not run. Raises as `add`, and for an ending of no tokens.
        """
        params, pieces = SamplingParams(max_tokens=0), self.tokenizer.vocab_size
        if not endings or not all(endings):
            raise ValueError("there is no ending, or one has no tokens")
        for ending in endings:
            self.check([*context, *ending[:-1]], params, adapter)
            if not 0 <= ending[-1] < pieces:
                known = f"the model knows 0 to {pieces - 1}"
                raise ValueError(f"an ending has token {ending[-1]}, {known}")
        request = Request(None, context, params, next(self._numbers), adapter)
        request.endings = Endings(len(context), endings)
        sequence = Sequence(
            (request.number, 0),
            list(context),
            len(context),
            origin=self._origin(adapter),
            adapter=self._adapters.find(adapter).index,
        )
        return self._enter(request, sequence)

    def check(self, ids: Many[int], params: SamplingParams, adapter: str | None = None) -> int:
        """The most tokens that each output may have. ValueError for what can never run."""
        self._adapters.find(adapter)
        context, pieces = self.runner.config.context_length, self.tokenizer.vocab_size
        if not ids:
            raise ValueError("the prompt has no tokens, not even BOS")
        if not 0 <= min(ids) <= max(ids) < self.runner.config.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self.runner.config.vocab_size)
            raise ValueError(f"the prompt has token {wrong}, the model knows 0 to {pieces - 1}")
        for name, named in (("logit_bias", params.logit_bias), ("stop_ids", params.stop_ids)):
            if named and max(named) >= pieces:
                known = f"the model knows 0 to {pieces - 1}"
                raise ValueError(f"{name} names token {max(named)}, {known}")
        room = context - len(ids)
        if room < (params.max_tokens != 0):
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, the model's context holds {context}; shorten it"
            )
        max_tokens = params.max_tokens
        if max_tokens is None:
            max_tokens = min(DEFAULT_MAX_TOKENS, room)
        if max_tokens > room:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and max_tokens is {max_tokens}, the model's "
                f"context holds {context}; shorten the prompt or set max_tokens to at most {room}"
            )
        if not self.scheduler.fits(len(ids) + max_tokens):
            held = self.pages.num_pages * self.pages.page_size
            raise ContextLengthError(
                f"the request takes up to {len(ids) + max_tokens} tokens, there is memory for the "
                f"keys and values of {held}; lower max_tokens or give the engine more (kv_tokens)"
            )
        return max_tokens

    def room(self, num_tokens: int) -> int:
        """How many tokens can follow a prompt of so many; 0 or less for one that cannot run."""
        held = self.pages.num_pages * self.pages.page_size
        return min(self.runner.config.context_length, held) - num_tokens

    def statistics(self) -> Statistics:
        """How it stands; may be asked from any thread."""
        return Statistics(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_pages=self.pages.num_pages,
            num_pages_used=self.pages.num_pages - self.pages.num_available,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            preemptions=self.scheduler.num_preemptions,
            proposed_tokens=self.num_proposed,
            accepted_tokens=self.num_accepted,
        )

    def cancel(self, request: Request) -> None:
        """Ends a request, if it has not ended; its pages are free at once."""
        while request.live:
            self._end(request.live.pop())
        self._requests.pop(request.number, None)

    def step(self) -> list[Request]:
        """Runs one step; the requests that have something new. Nothing to do: an empty list."""
        try:
            return self._step()
        except BaseException:
            # Broken off anywhere, by Ctrl-C or an error: what pages hold is no longer known.
            self.scheduler.restart(s for r in self._requests.values() for s in r.live)
            if self._drafter is not None:
                self._drafter.clear()
            raise

    def load_adapter(self, name: str, pairs: Mapping[str, Pair]) -> None:
        """Requests may name this adapter from now on; those that run go on.

        `pairs` as of `formats.adapters.read_pairs`. ValueError where the name is taken.
        """
        self._adapters.load(name, pairs)

    def unload_adapter(self, name: str) -> None:
        """Frees an adapter; ValueError where there is none, or requests of it have not ended."""
        self._adapters.find(name)
        users = sum(request.adapter == name for request in self._requests.values())
        if users:
            raise ValueError(
                f"adapter {name!r} is in use by {users} of the requests; "
                "unload it when they have ended"
            )
        self._adapters.unload(name)

    @property
    def adapters(self) -> list[str]:
        """The names of those that are loaded."""
        return self._adapters.names

    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """Runs with these weights, all or some of the model's, from now on; adapters stay.

        What requests have so far stays too, and is computed anew. ValueError, with nothing changed,
        where the model has no such tensors.
        """
        check_update(self.runner.config, weights)
        try:
            self.runner.update(weights)
        finally:  # stopped half-way, some are others already
            self.weights_changed()

    def weights_changed(self) -> None:
        """The runner's weights are others now: nothing that was computed before is used again."""
        self._version += 1
        sequences = []
        for request in self._requests.values():
            for sequence in request.live:
                sequence.rename(self._origin(request.adapter))
                sequences.append(sequence)
        self.scheduler.restart(sequences)

    def _enter(self, request: Request, sequence: Sequence) -> Request:
        request.live.append(sequence)
        self.scheduler.add(sequence)
        self._requests[request.number] = request
        return request

    def _origin(self, adapter: str | None) -> bytes:
        """What pages must have been computed with to be of use, version and adapter."""
        return f"{self._version} {self._adapters.find(adapter).number}".encode()

    def _step(self) -> list[Request]:
        if self._drafter is not None:
            self._propose(self._drafter)
        plan = self.scheduler.plan()
        if plan is None:
            return []
        output = self.runner.step(plan.batch)
        answers, place = output.answers(plan.batch, self.tokenizer.vocab_size), 0
        states = output.hidden
        changed = {}
        for part in plan.parts:
            own, place = answers[place : place + part.num_outputs], place + part.num_outputs
            hidden, states = states[: part.num_hidden], states[part.num_hidden :]
            request = self._requests.get(part.sequence.order[0])
            if request is None:  # another of its outputs failed in this step
                continue
            try:
                if part.sequence.wants_hidden:
                    self._pool(request, part, hidden)
                elif request.endings is not None:
                    self._weigh(request, request.endings, part, own)
                else:
                    self._advance(request, part, own)
            except ValueError as error:
                request.error = error  # before it counts as finished: others look from a thread
                self.cancel(request)
            if request.deltas or request.finished:
                changed[request.number] = request
            if request.finished:
                self._requests.pop(request.number, None)
        return list(changed.values())

    def _propose(self, drafter: Drafter) -> None:
        """Has the next tokens guessed of all sequences that are past their prompts."""
        asked = []
        for sequence in self.scheduler.running:
            request = self._requests[sequence.order[0]]
            if not request.writers:  # nothing is written
                continue
            # The last token is never guessed: the model's own draw follows the guesses.
            room = max(0, request.writers[sequence.order[1]].room - 1)
            if sequence.remaining == 1:
                asked.append((sequence, request, room))
        drafter.propose(asked)
        self.num_proposed += sum(len(sequence.proposals) for sequence, _, _ in asked)

    def _end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        if self._drafter is not None:
            self._drafter.forget(sequence)

    def _pool(self, request: Request, part: Part, hidden: NDArray[np.float32]) -> None:
        """Adds a part's hidden states to the request's."""
        assert request.pooling is not None
        sequence = part.sequence
        request.pooling.add(part.begin, hidden)
        self.scheduler.advance(part)
        if part.end == len(sequence.ids):
            request.live.remove(sequence)
            self._end(sequence)
            self._prompt_tokens += sequence.prompt_length

    def _weigh(self, request: Request, endings: Endings, part: Part, answers: list[Answer]) -> None:
        """Adds what a part's logits say of the endings; behind the context, these begin."""
        sequence = part.sequence
        is_context = sequence.order[1] == 0
        if is_context and part.end == len(sequence.ids):
            endings.begin(_logits(answers[-1]))
        elif not is_context:
            first = part.end - len(answers) + 1
            for position, answer in enumerate(answers, start=first):
                endings.add(sequence.order[1] - 1, position, _logits(answer))
        self.scheduler.advance(part)
        if part.end < len(sequence.ids):
            return
        if is_context:
            self._prompt_tokens += sequence.prompt_length
            self._cached_tokens += sequence.cached or 0
            for index, ids in enumerate(endings.ids, start=1):
                if len(ids) > 1:
                    request.live.append(self.scheduler.fork(sequence, index, ids[:-1]))
        request.live.remove(sequence)
        self._end(sequence)

    def _advance(self, request: Request, part: Part, answers: list[Answer]) -> None:
        """Does what the step found for a part."""
        sequence = part.sequence
        if sequence.wanted_from is not None and part.begin < sequence.prompt_length:
            _report_prompt(request, part, answers)
        if part.end < len(sequence.ids):
            self.scheduler.advance(part)
            return
        is_first = len(sequence.ids) == sequence.prompt_length
        if is_first and sequence.order[1] == 0:
            request.num_cached_tokens = sequence.cached or 0
            self._prompt_tokens += sequence.prompt_length
            self._cached_tokens += request.num_cached_tokens
            if request.writers[0].room == 0:  # max_tokens 0: only the prompt was wanted
                request.deltas.extend(writer.end() for writer in request.writers)
                self.scheduler.advance(part)
                request.live.remove(sequence)
                self._end(sequence)
                return
        followers = answers[-(part.end - len(sequence.ids) + 1) :]
        self._extend(request, sequence, followers)
        self.scheduler.advance(part)
        if is_first and sequence.order[1] == 0:
            for index in range(1, len(request.writers)):
                other = self.scheduler.fork(sequence, index)
                vocab_size = self.tokenizer.vocab_size
                other.draw = draws_of(request.params, request.seed, index, vocab_size)
                request.live.append(other)
                if other in self.scheduler.running:
                    self._extend(request, other, followers)
        for live in list(request.live):
            if request.writers[live.order[1]].completion.finish_reason:
                request.live.remove(live)
                self._end(live)

    def _extend(self, request: Request, sequence: Sequence, answers: list[Answer]) -> None:
        """Adds the tokens that a step found for a sequence, as far as its proposals hold."""
        params, index = request.params, sequence.order[1]
        writer, structure = request.writers[index], request.structures[index]
        for answer, proposal in zip(answers, [*sequence.proposals, None], strict=False):
            token = token_of(
                answer if structure is None else structure.masked(_logits(answer)),
                params,
                request.prompt_token_ids,
                writer.completion.token_ids,
                seed=request.seed,
                sample=index,
            )
            logprobs = None
            if writer.wants_logprobs:
                logprobs = logprobs_of(_logits(answer), token, params.logprobs or 0)
            if structure is not None:
                structure.push(token)
            sequence.ids.append(token)
            ends = structure is not None and structure.finished
            request.deltas.append(writer.push(token, logprobs, ends=ends))
            self.num_accepted += token == proposal
            if writer.completion.finish_reason or token != proposal:
                return


def _report_prompt(request: Request, part: Part, answers: list[Answer]) -> None:
    assert request.prompt_logprobs is not None
    num = request.params.prompt_logprobs or 0
    for position, answer in enumerate(answers, start=part.begin + 1):
        if position < part.sequence.prompt_length:
            token = request.prompt_token_ids[position]
            request.prompt_logprobs[position] = logprobs_of(_logits(answer), token, num)


def _logits(answer: Answer) -> NDArray[np.float32]:
    """The logits of an output that has no draw (`draws_of`)."""
    assert not isinstance(answer, int)
    return answer
