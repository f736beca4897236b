"""`puna serve` beside llama.cpp's servers under load: the same GGUF file, alternating bursts.

    python benchmarks/server_load.py FILE [--llama-server PATH] [--clients 1 8 32] [--rounds 5]

Starts each server in a process of its own on this machine: Puna's; `llama_cpp.server` of
llama-cpp-python, which answers one request after another; and, if a path is given, llama.cpp's
llama-server, which batches as Puna does. Each burst lets so many clients ask for streamed
completions at once, each `--requests` times in turn, of new prompts of `--prompt` random tokens
(with `--shared`, all but the last 16 of them the same in all) and exactly `--tokens` greedy tokens.
Prints medians over the rounds: tokens a second, and the median and 95th percentile of the time to
the first token and of that between tokens (tokens that arrive together share the time since those
before them); then the median ratio of neighbouring bursts. A connection serves one request.
`--engine` adds what `LLM.generate` makes of the same work without a server, before each burst.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna import LLM, SamplingParams
from puna.formats import open_checkpoint
from puna.kernels.step import physical_cores
from puna.tokenizer import Tokenizer

REST = 0.3  # seconds, in which another server's threads stop waiting for more work
OWN = 16  # tokens in which prompts differ that share their beginning
START_SECONDS = 120
LETTERS = "abcdefghijklmnoqrstuvwxyz"


@dataclass(frozen=True)
class Server:
    """A command that serves at a port, and what its requests need beside OpenAI's fields."""

    name: str
    command: list[str]
    fields: dict[str, Any]
    port: int


@dataclass
class Stream:
    """One answer: when it was asked for, and when how many events of it came."""

    started: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return [
            (after - before) / count for (before, _), (after, count) in pairs for _ in range(count)
        ]


@dataclass(frozen=True)
class Burst:
    """What a burst showed; seconds."""

    tokens_per_second: float
    first: tuple[float, float]  # time to the first token: median, 95th percentile
    between: tuple[float, float]  # time between tokens


class Reader(asyncio.Protocol):
    """Sends a request and notes when events come; reads until the server closes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.stream = Stream(time.perf_counter())
        self.body = bytearray()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        # What else is looked at waits for the end: a client must not be what is measured.
        if count := data.count(b"data: {"):
            self.stream.arrivals.append((time.perf_counter(), count))
        self.body += data

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def ask(server: Server, prompt: str, num_tokens: int) -> Stream:
    """One streamed completion."""
    fields = {
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "stream": True,
        **server.fields,
    }
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    reader = Reader(head.encode() + body)
    transport, _ = await loop.create_connection(lambda: reader, "127.0.0.1", server.port)
    await reader.over
    transport.close()
    whole = reader.body
    # With EOS ruled out, this end is that of an answer with all its tokens.
    ended = b'"finish_reason":"length"' in whole.replace(b" ", b"")
    if b" 200 " not in whole[:20] or b"data: [DONE]" not in whole or not ended:
        raise SystemExit(f"{server.name} answered {whole[-2000:].decode('utf-8', 'replace')}")
    return reader.stream


async def burst(server: Server, prompts: list[list[str]], num_tokens: int) -> Burst:
    """So many clients at once, each with its prompts in turn."""

    async def client(own: list[str]) -> list[Stream]:
        return [await ask(server, prompt, num_tokens) for prompt in own]

    started = time.perf_counter()
    streams = [s for own in await asyncio.gather(*map(client, prompts)) for s in own]
    seconds = time.perf_counter() - started
    return Burst(
        len(streams) * num_tokens / seconds,
        spread([stream.arrivals[0][0] - stream.started for stream in streams]),
        spread([gap for stream in streams for gap in stream.gaps()]),
    )


def spread(values: list[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]


def made_prompt(tokenizer: Tokenizer, num_tokens: int, generator: random.Random) -> str:
    """Random letters that are so many tokens, give or take two."""
    text = ""
    while (missing := num_tokens - len(tokenizer.encode(text))) > 0:
        text += "".join(generator.choices(LETTERS, k=max(1, missing // 2)))
    return text


def made_prompts(
    tokenizer: Tokenizer, args: argparse.Namespace, clients: int, generator: random.Random
) -> list[list[str]]:
    """The prompts of each client."""
    length = OWN if args.shared else args.prompt
    shared = made_prompt(tokenizer, args.prompt - OWN, generator) if args.shared else ""
    return [
        [shared + made_prompt(tokenizer, length, generator) for _ in range(args.requests)]
        for _ in range(clients)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def servers(args: argparse.Namespace, eos: int) -> list[Server]:
    """Those to compare: Puna's first."""
    path, threads, most = str(args.file), str(args.threads), max(args.clients)
    context = -(-(args.prompt + args.tokens + 32) // 256) * 256  # of one sequence
    ports = [free_port() for _ in range(3)]
    python = [sys.executable, "-m"]
    found = [
        Server(
            "Puna",
            [*python, "puna", "serve", path, "--port", str(ports[0]), "--threads", threads],
            {"ignore_eos": True},
            ports[0],
        )
    ]
    if not args.no_python:
        arguments = {
            "--model": path, "--port": str(ports[1]), "--host": "127.0.0.1",
            "--n_ctx": str(context), "--n_threads": threads, "--n_threads_batch": threads,
            "--verbose": "False", "--interrupt_requests": "False",
        }  # fmt: skip
        command = [*python, "llama_cpp.server", *(a for pair in arguments.items() for a in pair)]
        found.append(
            Server("llama-cpp-python", command, {"logit_bias": {str(eos): -100}}, ports[1])
        )
    if args.llama_server:
        arguments = {
            "--model": path, "--port": str(ports[2]), "--host": "127.0.0.1",
            "--parallel": str(most), "--ctx-size": str(context * most),
            "--threads": threads, "--threads-batch": threads,
        }  # fmt: skip
        command = [str(args.llama_server), *(a for pair in arguments.items() for a in pair)]
        command += ["--cont-batching", "--log-disable"]
        found.append(Server("llama-server", command, {"ignore_eos": True}, ports[2]))
    return found


@contextlib.contextmanager
def running(server: Server) -> Iterator[None]:
    """The server, until the end."""
    process = subprocess.Popen(server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(server.port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{server.name} did not start: {' '.join(server.command)}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    """Whether the models can be asked for, which llama-server refuses while it loads."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as it:
        it.sendall(b"GET /v1/models HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        return b" 200 " in it.recv(64)
    return False


def engine_speed(llm: LLM, prompts: list[list[str]], num_tokens: int) -> float:
    """Tokens a second of the same work without a server: the clients' turns one after another."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    time.sleep(REST)
    started = time.perf_counter()
    for turn in zip(*prompts, strict=True):
        llm.generate(list(turn), params)
    return sum(map(len, prompts)) * num_tokens / (time.perf_counter() - started)


def compare(args: argparse.Namespace, sides: list[Server], tokenizer: Tokenizer) -> None:
    generator = random.Random(args.seed)
    llm = LLM(args.file, num_threads=args.threads, kv_tokens=1 << 15) if args.engine else None
    for clients in args.clients:
        bursts: dict[str, list[Burst]] = {side.name: [] for side in sides}
        alone = []
        for number in range(args.rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                # New ones each time, so that no cache of prompts knows them.
                prompts = made_prompts(tokenizer, args, clients, generator)
                if llm is not None and side is sides[0]:
                    alone.append(engine_speed(llm, prompts, args.tokens))
                time.sleep(REST)
                bursts[side.name].append(asyncio.run(burst(side, prompts, args.tokens)))
        print(f"{clients} clients", flush=True)
        ours = bursts[sides[0].name]
        for name, each in bursts.items():
            ratio = statistics.median(
                a.tokens_per_second / b.tokens_per_second
                for a, b in zip(ours[1:], each[1:], strict=True)
            )
            print(f"  {name:17}{shown(each[1:])}   Puna is {ratio:.2f} x", flush=True)
        if alone:
            shares = [a.tokens_per_second / b for a, b in zip(ours[1:], alone[1:], strict=True)]
            speed, share = statistics.median(alone[1:]), statistics.median(shares)
            print(f"  LLM.generate     {speed:8.0f} tokens/s; Puna's server {share:.0%} of it")


def shown(bursts: list[Burst]) -> str:
    """A line of medians; times in milliseconds."""

    def middle(values: list[tuple[float, float]]) -> str:
        median, high = (statistics.median(column) * 1000 for column in zip(*values, strict=True))
        return f"{median:8.1f} {high:8.1f}"

    speed = statistics.median(each.tokens_per_second for each in bursts)
    first, between = middle([b.first for b in bursts]), middle([b.between for b in bursts])
    return f"{speed:8.0f} tokens/s   first {first} ms   between {between} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-server", type=Path, help="the program")
    parser.add_argument("--no-python", action="store_true", help="without llama-cpp-python's")
    parser.add_argument("--engine", action="store_true", help="also without a server")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=2, help="of each client, in turn")
    parser.add_argument("--prompt", type=int, default=96, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--shared", action="store_true", help="prompts that begin alike")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = open_checkpoint(args.file).tokenizer()
    sides = servers(args, tokenizer.eos_id)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{args.file.name}, {args.threads} threads, prompts of {args.prompt}"
        f"{' (begun alike)' if args.shared else ''}, answers of {args.tokens} tokens, "
        f"{args.requests} requests a client, {args.rounds} rounds; load before: {load}",
        flush=True,
    )
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.enter_context(running(side))
        compare(args, sides, tokenizer)


if __name__ == "__main__":
    main()
