"""uvicorn on a socket, and an orderly end: SIGTERM drains, a second signal stops at once."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from puna.serve.asgi import App
from puna.serve.connections import timed_protocol
from puna.serve.deadlines import Stopping
from puna.serve.listening import BACKLOG, url_of

POLL_SECONDS = 0.02  # how often a stopping server looks whether its requests are done
CUT_SECONDS = 1.0  # for requests whose time is over to send their error event
FLUSH_SECONDS = 1.0  # for the last bytes to leave


@dataclass(frozen=True)
class RunOptions:
    """Times in seconds. `tls_cert` and `tls_key` are PEM files; both or none."""

    drain_timeout: float = 30.0
    drain_delay: float = 0.0  # in which `/ready` says 503 and connections are still accepted
    header_timeout: float = 10.0
    stall_timeout: float = 60.0  # of a client that does not read its answer
    keep_alive: int = 5
    max_header_bytes: int = 32 * 1024
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Server(uvicorn.Server):
    """uvicorn, but for how it ends and what it says."""

    def __init__(
        self,
        config: uvicorn.Config,
        stopping: Stopping,
        options: RunOptions,
        announce: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.stopping = stopping
        self.options = options
        self.announce = announce
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, and the process ends with 0; the second stops at once."""
        if self.should_exit:
            self.force_exit = True
            self.exit_code = 128 + sig
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stopping.begin()
        await self._wait(lambda: False, self.options.drain_delay)
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        await self._wait(lambda: not state.tasks, self.options.drain_timeout)
        if state.tasks:
            self.stopping.cut()
            await self._wait(lambda: not state.tasks, CUT_SECONDS, even_forced=True)
        await self._wait(lambda: not state.connections, FLUSH_SECONDS, even_forced=True)
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        closing = asyncio.ensure_future(self.lifespan.shutdown())
        await self._wait(closing.done, math.inf)
        await self._wait(closing.done, CUT_SECONDS, even_forced=True)
        closing.cancel()

    async def _wait(
        self, is_done: Callable[[], bool], seconds: float, even_forced: bool = False
    ) -> None:
        end = time.monotonic() + seconds
        while not is_done() and time.monotonic() < end and (even_forced or not self.force_exit):
            await asyncio.sleep(POLL_SECONDS)


def make_server(
    app: App,
    listener: socket.socket,
    stopping: Stopping,
    options: RunOptions,
    announce: Callable[[str], None],
) -> Server:
    """uvicorn as Puna runs it: one worker, no words but errors, bounded headers."""
    url = url_of(listener, tls=options.tls_cert is not None)
    config = uvicorn.Config(
        app,
        # h11 bounds what headers take; httptools, where it is installed, does not.
        http=timed_protocol(options.header_timeout, options.stall_timeout),
        h11_max_incomplete_event_size=options.max_header_bytes,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,  # its lines have query strings in them
        server_header=False,
        proxy_headers=False,
        forwarded_allow_ips="",
        workers=1,
        backlog=BACKLOG,
        timeout_keep_alive=options.keep_alive,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    return Server(config, stopping, options, lambda: announce(url))


def run(
    app: App,
    listener: socket.socket,
    stopping: Stopping,
    options: RunOptions,
    announce: Callable[[str], None],
) -> int:
    """Serves until a signal. `announce` gets the URL when requests are taken.

    Returns the exit code: 0 after a drain, 128 + the signal's number after a second signal.
    """
    server = make_server(app, listener, stopping, options, announce)
    server.run(sockets=[listener])
    return server.exit_code
