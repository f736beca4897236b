"""Schemas, expressions and grammars from strangers, tried first where they can do no harm.

A body of some kilobytes can ask for an automaton with more states than there is time or memory, and
llguidance's own limits do not count them all (`multipleOf`, `allOf` of patterns). So a process of
its own reads each first, within limits of the operating system. What it survives, the engine gets.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import resource
import sys
import weakref
from collections.abc import Callable, Mapping
from subprocess import PIPE, Popen
from typing import Any

from puna.engine.params import SamplingParams
from puna.engine.structure import Structures
from puna.serve.response_format import response_schema
from puna.serve.tools import read_tools
from puna.tokenizer import Tokenizer

FIELDS = ("regex", "grammar", "response_format", "tools", "tool_choice", "parallel_tool_calls")
CPU_SECONDS = 2
MEMORY_BYTES = 4 << 30
MAX_KNOWN = 1024
MAX_MESSAGE = 2000  # characters
TOO_MUCH = "the schema, expression or grammar takes too much to read; make it simpler"


def constraint_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SamplingParams that a body's `FIELDS` ask for; ValueError as their readers."""
    tools = read_tools(
        given.get("tools"), given.get("tool_choice"), given.get("parallel_tool_calls")
    )
    found = tools.constraint(response_schema(given.get("response_format")))
    return {**found, **{name: given[name] for name in ("regex", "grammar") if name in given}}


class Vetting:
    """Tries what bodies ask for over one tokenizer, one by one; knows what it has tried."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = asyncio.Lock()
        self._known: dict[bytes, str | None] = {}
        self._process: Popen[bytes] | None = None
        self._end: Callable[[], object] | None = None

    async def check(self, body: Mapping[str, Any]) -> None:
        """Raises ValueError for what is no schema or grammar, and what takes too much to read."""
        given = {name: body[name] for name in FIELDS if body.get(name) is not None}
        if not given:
            return
        # Goes on where the request is given up, for the process answers one after the other.
        problem = await asyncio.shield(self._problem(json.dumps(given).encode() + b"\n"))
        if problem is not None:
            raise ValueError(problem)

    def close(self) -> None:
        """Ends the process."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    async def _problem(self, line: bytes) -> str | None:
        key = hashlib.sha256(line).digest()
        async with self._lock:
            if key not in self._known:
                while len(self._known) >= MAX_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[key] = await asyncio.to_thread(self._ask, line)
            return self._known[key]

    def _ask(self, line: bytes) -> str | None:
        """What is wrong with it."""
        try:
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:  # it died of this one
            self.close()
            return TOO_MUCH
        found: str | None = json.loads(answer)
        return found

    def _started(self) -> Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-m", "puna.serve.vetting"]
            process = Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True)
            self._process, self._end = process, weakref.finalize(self, _end, process)
            assert process.stdin is not None
            process.stdin.write(pickle.dumps(self._tokenizer.vocabulary))
        return self._process


def _end(process: Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _limit() -> None:
    """Allows the process so much more of the processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _problem_of(structures: Structures, line: bytes) -> str | None:
    try:
        structures.start(SamplingParams(**constraint_of(json.loads(line))))
    except RecursionError:
        return TOO_MUCH
    except ValueError as error:
        return str(error)[:MAX_MESSAGE]
    return None


def main() -> None:
    """Reads a vocabulary, then bodies, a line each; writes what is wrong with each."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    structures = Structures(Tokenizer(pickle.load(sys.stdin.buffer)))
    for line in sys.stdin.buffer:
        _limit()
        print(json.dumps(_problem_of(structures, line)), flush=True)


if __name__ == "__main__":
    main()
