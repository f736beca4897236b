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
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
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
        self._process: Process | None = None

    async def check(self, body: Mapping[str, Any]) -> None:
        """Raises ValueError for what is no schema or grammar, and what takes too much to read."""
        given = {name: body[name] for name in FIELDS if body.get(name) is not None}
        if not given:
            return
        line = json.dumps(given).encode() + b"\n"
        key = hashlib.sha256(line).digest()
        async with self._lock:
            if key not in self._known:
                while len(self._known) >= MAX_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[key] = await self._ask(line)
        problem = self._known.get(key)
        if problem is not None:
            raise ValueError(problem)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._process = None

    async def _ask(self, line: bytes) -> str | None:
        """What is wrong with it."""
        answer = b""
        try:
            process = await self._started()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died of this one, as where there is no answer
        finally:
            if not answer:
                self.close()
        found: str | None = json.loads(answer) if answer else TOO_MUCH
        return found

    async def _started(self) -> Process:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE, start_new_session=True
            )
            assert self._process.stdin is not None
            self._process.stdin.write(pickle.dumps(self._tokenizer.vocabulary))
        return self._process


def _limit() -> None:
    """Allows the process so much more of the processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _problem(structures: Structures, line: bytes) -> str | None:
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
        print(json.dumps(_problem(structures, line)), flush=True)


if __name__ == "__main__":
    main()
