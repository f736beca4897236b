"""A socket, uvicorn on it, and an orderly end: SIGTERM drains, a second signal stops at once."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import ssl
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from puna.serve.connections import timed_protocol
from puna.serve.deadlines import Stopping
from puna.serve.errors import App

BACKLOG = 2048  # connections that the kernel holds until they are accepted
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


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises ValueError if it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError):
        raise ValueError(f"--host {host}, --port {port}: there is no such address") from None
    # IPv4 first: "localhost" is both, and not every client tries the other.
    family, kind, protocol, _, address = min(found, key=lambda row: row[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hints = {
            errno.EADDRINUSE: "is in use: give another --port, or --port 0 for a free one",
            errno.EACCES: "is not yours to open: give a --port above 1023",
            errno.EADDRNOTAVAIL: "is no address of this machine: give another --host",
        }
        hint = hints.get(error.errno or 0, f"cannot be opened: {error.strerror}")
        raise ValueError(f"port {port} of {host} {hint}") from None
    return listener


def bind_unix(path: Path) -> socket.socket:
    """A listening Unix socket that only its owner may open; takes the place of a dead one."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise ValueError(f"--uds {path} is there and is no socket: give another path")
            if _is_answered(path):
                raise ValueError(f"--uds {path} is in use: give another path")
            path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ValueError(f"--uds {path} cannot be opened: {error.strerror or error}") from None
    except ValueError:
        listener.close()
        raise
    return listener


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def url_of(listener: socket.socket, tls: bool = False) -> str:
    """Where a client finds the socket: `http://127.0.0.1:8000`, `unix:/run/puna.sock`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{host}:{port}"


def check_tls(cert: Path | None, key: Path | None) -> None:
    """Raises ValueError unless both files are given and fit, or none."""
    if cert is None and key is None:
        return
    if cert is None or key is None:
        raise ValueError("--tls-cert and --tls-key go together: give both PEM files")

    def no_password() -> str:
        raise ValueError(f"--tls-key {key} has a password: give a key without one")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise ValueError(f"--tls-cert {cert}, --tls-key {key}: {reason}") from None


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
    check_tls(options.tls_cert, options.tls_key)
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
    path = listener.getsockname() if listener.family == socket.AF_UNIX else None
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        if path is not None:
            with suppress(FileNotFoundError):
                Path(path).unlink()
    return server.exit_code
