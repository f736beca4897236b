"""What a connection may do before and after its requests: uvicorn's protocol with clocks."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """Closes connections whose headers dawdle, and those whose client reads no more.

    uvicorn has a clock for idle kept-alive connections alone.
    """

    header_seconds: float
    stall_seconds: float

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._reading_due)
        self._reading_due = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._headers_due)
        self._headers_due = None
        _cancel(self._reading_due)
        self._reading_due = None

    def _watch_headers(self) -> None:
        """Runs the clock while a request's headers, or a body that nobody wants, are awaited.

        It goes on over single bytes: only whole headers stop it.
        """
        answered = self.cycle is None or self.cycle.response_complete
        if not answered or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            _cancel(self._headers_due)
            self._headers_due = None
        elif self._headers_due is None and not self.transport.is_closing():
            self._headers_due = self.loop.call_later(self.header_seconds, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def timed_protocol(header_seconds: float, stall_seconds: float) -> type[TimedProtocol]:
    """The protocol class with its times: uvicorn makes one object a connection, from a class."""

    class Protocol(TimedProtocol):
        pass

    Protocol.header_seconds = header_seconds
    Protocol.stall_seconds = stall_seconds
    return Protocol
