"""Hundreds of streaming clients for minutes, many of which leave anywhere: nothing gets mixed up.

PUNA_SOAK_SECONDS (300) and PUNA_SOAK_CLIENTS (500) say how long and how many are let in at once; a
tenth more ask. With `-rP` pytest shows the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serve.servers import Running, puna_serve, until

SECONDS = float(os.environ.get("PUNA_SOAK_SECONDS", "300"))
CAPACITY = int(os.environ.get("PUNA_SOAK_CLIENTS", "500"))
CLIENTS = CAPACITY + CAPACITY // 10
LEAVING = 0.2  # the share of requests whose client leaves before the end
NUM_CASES = 160
# Too few for 64 sequences: some have to give their pages back, and all pages are soon in use.
KV_TOKENS = 3072
MEMORY_SLACK = 1.03  # the end's over the first fifth's

STARTS = ("Once upon a time", "One day, a little", "The dog", "Tim and Anna went to the", "I")
WORDS = ("the", "a", "dog", "cat", "llama", "was", "big", "and", "then", "she", "said", "Mom")
ENGINE_IDLE = (
    "puna_engine_running_sequences",
    "puna_engine_waiting_sequences",
    "puna_engine_kv_pages_used",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 600),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc"),
]


@dataclass(frozen=True)
class Case:
    """A request, and what it is answered with when it is alone."""

    path: str
    body: dict[str, Any]
    text: str
    finish_reason: str


@dataclass
class Tally:
    """What happened."""

    whole: int = 0
    left: int = 0
    refused: int = 0
    events: int = 0
    problems: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # (seconds, bytes)


def bodies(generator: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Completions and dialogs, greedy or drawn with seeds of their own; all differ."""
    found = []
    for number in range(NUM_CASES):
        words = generator.choices(WORDS, k=generator.choice([0, 3, 10, 60]))
        text = " ".join([generator.choice(STARTS), *words, f"No {number}"])
        body: dict[str, Any] = {
            "temperature": generator.choice([0, 0.8, 1.2]),
            "seed": generator.randrange(1 << 40),
            "max_tokens": generator.choice([1, 8, 24, 60, 120]),
            "stop": generator.choice([[], [], ["dog"]]),
        }
        if number % 2:
            found.append(("/v1/completions", body | {"prompt": text}))
        else:
            dialog = [{"role": "user", "content": text}]
            found.append(("/v1/chat/completions", body | {"messages": dialog}))
    return found


def answered_alone(server: Running, generator: random.Random) -> list[Case]:
    """Each request's answer, whole, with nothing beside it."""
    cases = []
    with server.http() as client:
        for path, body in bodies(generator):
            response = client.post(path, json=body)
            assert response.status_code == 200, response.text
            (choice,) = response.json()["choices"]
            text = choice["text"] if "text" in choice else choice["message"]["content"]
            cases.append(Case(path, body, text, choice["finish_reason"]))
    return cases


class RefusedError(Exception):
    """429, and the seconds after which to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


async def events(port: int, case: Case) -> AsyncGenerator[str, None]:
    """The data of an answer's events. Closing the generator hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps(case.body | {"stream": True}).encode()
        head = (
            f"POST {case.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if " 429 " in answer.splitlines()[0]:
            error = json.loads(await reader.read())["error"]
            assert error["code"] == "rate_limit_exceeded", error
            wait = re.search(r"^retry-after: (\d+)\r$", answer, re.MULTILINE)
            assert wait and 1 <= int(wait[1]) <= 60, answer
            raise RefusedError(float(wait[1]))
        assert " 200 " in answer.splitlines()[0], answer
        text = b""
        while size := int(await reader.readline(), 16):
            text += (await reader.readexactly(size + 2))[:-2]
            *whole, text = text.split(b"\n\n")
            for event in whole:
                assert event.startswith(b"data: "), event
                yield event[6:].decode()
        assert not text
    finally:
        writer.transport.abort()


async def ask(port: int, case: Case, leaves_at: int | None, tally: Tally) -> None:
    """One request, given up after so many characters; what comes must be this case's answer."""
    text, reason, ended = "", None, False
    async with aclosing(events(port, case)) as stream:
        async for data in stream:
            tally.events += 1
            assert not ended, "an event after the last"
            if data == "[DONE]":
                ended = True
                continue
            (choice,) = json.loads(data)["choices"]
            text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            reason = choice["finish_reason"]
            if leaves_at is not None and len(text) >= leaves_at:
                break
    if ended:
        tally.whole += 1
        assert (text, reason) == (case.text, case.finish_reason)
    else:
        tally.left += 1
        assert leaves_at is not None, "the stream has no end"
        assert case.text.startswith(text)


async def client(
    port: int, cases: list[Case], end: float, generator: random.Random, tally: Tally
) -> None:
    """One request after another, until the time is over."""
    while time.monotonic() < end:
        case = generator.choice(cases)
        leaves_at = leaves_in = None
        if generator.random() < LEAVING:
            # In the middle, or at any time, most often before there is an answer.
            if generator.random() < 0.7:
                leaves_at = generator.randrange(len(case.text) + 1)
            else:
                leaves_in = generator.random()
        try:
            async with asyncio.timeout(leaves_in):
                await ask(port, case, leaves_at, tally)
        except RefusedError as refused:
            tally.refused += 1
            await asyncio.sleep(refused.seconds * (0.5 + generator.random()))
        except TimeoutError:
            tally.left += 1
        except Exception as error:
            tally.problems.append(f"{case.path} {case.body}: {error!r}")


def memory_of(process_id: int) -> int:
    """Bytes of a process in memory."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def soak(server: Running, cases: list[Case], generator: random.Random) -> Tally:
    assert server.process is not None
    port, tally = int(server.url.rsplit(":", 1)[1]), Tally()
    started = time.monotonic()
    end = started + SECONDS

    async def watch(process_id: int) -> None:
        while True:
            tally.memory.append((time.monotonic() - started, memory_of(process_id)))
            await asyncio.sleep(SECONDS / 300)

    watching = asyncio.create_task(watch(server.process.pid))
    seeds = [generator.randrange(1 << 40) for _ in range(CLIENTS)]
    await asyncio.gather(*(client(port, cases, end, random.Random(s), tally) for s in seeds))
    watching.cancel()
    return tally


def metrics(server: Running) -> dict[str, float]:
    """The metrics by name, summed over their labels."""
    found: Counter[str] = Counter()
    with server.http() as client:
        for line in client.get("/metrics").text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                found[name.split("{")[0]] += float(value)  # type: ignore[assignment]
    return dict(found)


def allow_open_files(count: int) -> None:
    """For this process and those it starts."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"{count} open files are needed, ulimit -Hn allows {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def test_many_clients_for_minutes(tmp_path: Path) -> None:
    allow_open_files(2 * CLIENTS + 200)
    generator, log = random.Random(0), tmp_path / "log"
    options = ["--kv-tokens", str(KV_TOKENS), "--max-requests", str(CAPACITY)]
    with puna_serve(*options, log=log) as server:
        cases = answered_alone(server, generator)
        tally = asyncio.run(soak(server, cases, generator))
        until(lambda: not any(metrics(server)[name] for name in ENGINE_IDLE), "nothing is left")
        after = metrics(server)
        again = answered_alone(server, random.Random(0))
    early = max(size for at, size in tally.memory if at <= SECONDS / 5)
    late = max(size for at, size in tally.memory if at >= SECONDS * 4 / 5)
    print(
        f"{CLIENTS} clients, {CAPACITY} at once, {SECONDS:g} s: {tally.whole} whole, "
        f"{tally.left} left, {tally.refused} refused, {tally.events} events, "
        f"{after['puna_generated_tokens_total']:.0f} tokens, "
        f"{after['puna_engine_preemptions_total']:.0f} preemptions, memory in the first fifth "
        f"{early / 1e6:.1f} MB, in the last {late / 1e6:.1f} MB"
    )
    assert not tally.problems, "\n".join(tally.problems[:10])
    assert tally.whole and tally.left and tally.refused
    assert after["puna_requests_in_flight"] == 1  # that which asks
    assert late < early * MEMORY_SLACK, tally.memory
    assert again == cases
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert {line["status"] for line in lines} <= {200, 429, 499}
    assert "Traceback" not in log.read_text()
