"""Where the server listens: a TCP port or a Unix socket, in the clear or with TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BACKLOG = 2048  # connections that the kernel holds until they are accepted


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

    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ValueError(f"{option} {path}: {error.strerror}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        hint = "are no PEM certificate and its key"
        if error.reason == "KEY_VALUES_MISMATCH":
            hint = "do not belong together"
        raise ValueError(f"--tls-cert {cert} and --tls-key {key} {hint}") from None


@contextmanager
def closed_after(listener: socket.socket) -> Iterator[socket.socket]:
    """Closes it at the end of the block; the file of a Unix socket goes with it."""
    path = listener.getsockname() if listener.family == socket.AF_UNIX else None
    try:
        yield listener
    finally:
        listener.close()
        if path is not None:
            Path(path).unlink(missing_ok=True)
