"""A datagram transport whose reading can end before its sending.

Owns: ``Endpoint``: what the protocols of a ``DatagramServer`` have for a transport.
Leaves: reading, sending and buffering to the loop's transport, without standing in its way:
the loop calls the protocol itself, and ``sendto`` is the loop's own method.

Two processes that read from one socket take each other's datagrams, so one that is replaced
stops reading before its successor starts; what it has read it still has to answer, from the
same address. No loop has a transport that only sends. So the loop's transport is closed, which
ends the reading at once, and what is sent from then on goes to a duplicate of the socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self

__all__ = ["Endpoint"]


class Endpoint(asyncio.DatagramTransport):
    """The transport of ``protocol`` on ``sock``, which stays its owner's; made by ``open``."""

    __slots__ = (
        "_aside",
        "_ended",
        "_late",
        "_loop",
        "_protocol",
        "_real",
        "_told",
        "lost",
        "sendto",
        "sock",
    )

    # The method of the loop's transport, as long as that is open.
    sendto: Callable[..., None]

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any, sock: socket.socket) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self.sock = sock
        # Taken now, for there may be no descriptor left when it is needed.
        self._late = sock.dup()
        self._real: Any = None
        # Who hears the loop's transport once the protocol shall not.
        self._aside: _Aside | None = None
        self._ended = False
        self._told = False
        #: Done when the loop's transport is closed and what it had buffered was sent.
        self.lost: asyncio.Future[None] = loop.create_future()

    @classmethod
    async def open(
        cls, loop: asyncio.AbstractEventLoop, protocol: Any, sock: socket.socket
    ) -> Self:
        """Receive datagrams for ``protocol``. Raises ``OSError`` where that cannot be done."""
        endpoint = cls(loop, protocol, sock)
        duplicate = None
        try:
            sock.setblocking(False)
            duplicate = sock.dup()
            await loop.create_datagram_endpoint(lambda: _Aside(endpoint), sock=duplicate)
        except BaseException:
            endpoint.abort()
            if duplicate is not None:
                duplicate.close()
            raise
        return endpoint

    @property
    def reading(self) -> bool:
        """True until ``release`` or the end."""
        return self._aside is None and not self._real.is_closing()

    def release(self) -> None:
        """Read not one more datagram; what is sent until ``close`` is sent all the same."""
        if self.reading:
            self.sendto = self._send_late
            self._close_real(abort=False)

    def close(self) -> None:
        """Send what is buffered; then the protocol's ``connection_lost`` is called."""
        self._end(abort=False)

    def abort(self) -> None:
        """Drop what is buffered; then the protocol's ``connection_lost`` is called."""
        self._end(abort=True)

    def _end(self, abort: bool) -> None:
        if not self._ended:
            self._ended = True
            self.sendto = _send_nowhere
            self._late.close()
            if self.lost.done():
                self._loop.call_soon(self._tell, None)
        self._close_real(abort)

    def _close_real(self, abort: bool) -> None:
        real = self._real
        if self._aside is None:
            if real is None or real.is_closing():
                # It was never made, or the loop has closed it for an error and tells the protocol.
                self._told = True
                self._set_lost()
                return
            self._aside = _Aside(self)
            real.close()
            real.set_protocol(self._aside)
        if abort and not self.lost.done():
            real.abort()

    def _send_late(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        try:
            if addr is None:
                self._late.send(data)
            else:
                self._late.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            pass  # the network may lose a datagram, too
        except OSError as exc:
            self._protocol.error_received(exc)

    # Called by what stands aside

    def made(self, real: Any) -> None:
        """The loop has made its transport, ``real``."""
        self._real = real
        self.sendto = real.sendto
        real.set_protocol(self._protocol)
        self._protocol.connection_made(self)

    def real_lost(self, exc: BaseException | None) -> None:
        """The loop has closed its transport."""
        self._set_lost()
        if self._ended:
            self._tell(exc)

    def _set_lost(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def _tell(self, exc: BaseException | None) -> None:
        if not self._told:
            self._told = True
            self._protocol.connection_lost(exc)

    # The rest of a transport

    def is_closing(self) -> bool:
        """See ``asyncio.BaseTransport``."""
        return self._ended or (self._aside is None and self._real.is_closing())

    def get_protocol(self) -> Any:
        """See ``asyncio.BaseTransport``."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See ``asyncio.BaseTransport``."""
        self._protocol = protocol
        if self._aside is None:
            self._real.set_protocol(protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See ``asyncio.BaseTransport``."""
        if self._aside is None:
            return self._real.get_extra_info(name, default)
        if self._ended:
            return default
        match name:
            case "socket":
                return self._late
            case "sockname":
                return self._late.getsockname()
            case _:
                return default

    def get_write_buffer_size(self) -> int:
        """See ``asyncio.WriteTransport``."""
        return int(self._real.get_write_buffer_size())

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """See ``asyncio.WriteTransport``."""
        limits: tuple[int, int] = self._real.get_write_buffer_limits()
        return limits

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See ``asyncio.WriteTransport``."""
        if self._aside is None:
            self._real.set_write_buffer_limits(high, low)


class _Aside(asyncio.DatagramProtocol):
    """What the loop's transport has for a protocol before the user's and after it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._endpoint.made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._endpoint.real_lost(exc)

    def error_received(self, exc: Exception) -> None:
        self._endpoint.get_protocol().error_received(exc)

    def pause_writing(self) -> None:
        self._endpoint.get_protocol().pause_writing()

    def resume_writing(self) -> None:
        self._endpoint.get_protocol().resume_writing()


def _send_nowhere(data: bytes | bytearray | memoryview, addr: Any = None) -> None:
    """Where everything goes that is sent behind the end."""
