"""Connections whose first bytes are a header of the PROXY protocol.

Owns: ``Arrivals``: accepting on the sockets of such binds, reading the header, refusing;
``ProxiedTransport``, whose ends are those that the header names.
Leaves: the grammar to ``wire.proxy_protocol``, limits and protocols to ``TcpServer``, when to
accept to ``Acceptor``. Other binds know nothing of it.

The header comes before anything else, before the handshake where the bind speaks TLS. So a
loop's server cannot accept here: it would take the header for the handshake. We accept
ourselves, look at what has come without taking it (``MSG_PEEK``), take the bytes of the header
alone, and give the socket to the loop with everything else still in it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import ProtocolError
from ..net import Networks, format_address
from ..wire.proxy_protocol import MAX_HEADER, HeaderReader, ProxyHeader

__all__ = ["Arrivals", "ProxiedTransport"]

# Seconds without accepting after an error, such as being out of descriptors.
_RETRY = 1.0

# What is the transport's own business, and stays it.
_OF_THE_TRANSPORT = (
    "abort",
    "can_write_eof",
    "close",
    "get_protocol",
    "get_write_buffer_limits",
    "get_write_buffer_size",
    "is_closing",
    "is_reading",
    "pause_reading",
    "resume_reading",
    "set_protocol",
    "set_write_buffer_limits",
    "write",
    "write_eof",
    "writelines",
)


class Host(Protocol):
    """What a server is to connections that have not said yet whose they are."""

    name: str
    logger: logging.Logger

    def take_place(self) -> Any:
        """A connection was accepted: it counts from now on. Returns its place."""

    def leave_place(self, place: Any, *, served: bool = False) -> bool:
        """It has gone or, ``served``, gets its protocol now; False: it was given up."""

    def create_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that serves the connection."""


class Arrivals:
    """Accepts connections and reads their headers; then they are ``host``'s like all others.

    :param trusted: who may send headers; anybody else is refused
    :param timeout: seconds that a header may take, and then a TLS handshake
    :param tasks: those that run are in here
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: Host,
        trusted: Networks,
        timeout: float,
        tasks: set[asyncio.Task[Any]],
    ) -> None:
        self._loop = loop
        self._host = host
        self._trusted = trusted
        self._timeout = timeout
        self._tasks = tasks

    def serve(self, listener: socket.socket, context: ssl.SSLContext | None) -> Listening:
        """Accept on ``listener``, which is ours from now on, until the result is closed."""
        listener.setblocking(False)
        return Listening(self._loop, listener, lambda sock: self._welcome(sock, context))

    def _welcome(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            peer = sock.getpeername()
        except OSError:
            sock.close()  # it has gone already
            return
        if (peer[0] if isinstance(peer, tuple) else "") not in self._trusted:
            self.refuse(sock, peer, "its PROXY header is not trusted (proxy_allow_from)")
            return
        arrival = _Arrival(self._host, sock, peer)
        task = self._loop.create_task(self._receive(arrival, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not in the coroutine: one that is cancelled at once never runs.
        task.add_done_callback(arrival.forget)

    def refuse(self, sock: socket.socket, peer: object, reason: str) -> None:
        """Close a connection, and say why."""
        sock.close()
        self._host.logger.info(
            "%s: connection from %s refused: %s", self._host.name, format_address(peer), reason
        )

    async def _receive(self, arrival: _Arrival, context: ssl.SSLContext | None) -> None:
        sock = arrival.sock
        try:
            async with asyncio.timeout(self._timeout):
                arrival.header = await _read_header(self._loop, sock)
        except TimeoutError:
            self.refuse(sock, arrival.peer, f"no PROXY header in {self._timeout:g} s")
        except ProtocolError as exc:
            self.refuse(sock, arrival.peer, str(exc))
        except OSError:
            sock.close()  # who looks whether somebody listens sends nothing, and goes
        else:
            if not arrival.leave(served=True):
                return
            try:
                await self._loop.connect_accepted_socket(
                    arrival.create_protocol,
                    sock,
                    ssl=context,
                    ssl_handshake_timeout=None if context is None else self._timeout,
                )
            except OSError:
                pass  # a handshake that fails is the peer's business, as on other binds


class Listening:
    """Accepts on one listening socket, one connection in a turn of the loop, as the loops do.

    :param welcome: called with each connection
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        welcome: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._welcome = welcome
        self._timer: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            self._loop.remove_reader(self._listener)
            self._timer = self._loop.call_later(_RETRY, self._listen)
            return
        sock.setblocking(False)
        self._welcome(sock)

    def close(self) -> None:
        """Accept no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()


class _Arrival:
    """One connection, until it is served or refused."""

    __slots__ = ("_given", "_host", "_place", "header", "peer", "sock")

    def __init__(self, host: Host, sock: socket.socket, peer: object) -> None:
        self.sock = sock
        self.peer = peer
        self.header = ProxyHeader(0)
        self._host = host
        self._place = host.take_place()
        # The loop has the socket now.
        self._given = False

    def leave(self, *, served: bool = False) -> bool:
        """Leave the place; False: the server has given it up, so nobody serves any more."""
        place, self._place = self._place, None
        return place is not None and self._host.leave_place(place, served=served)

    def create_protocol(self) -> asyncio.BaseProtocol:
        """Called by the loop when it has the socket."""
        self._given = True
        protocol = self._host.create_protocol()
        if self.header.source is None:
            return protocol
        return _Before(protocol, self.header, self._host)

    def forget(self, task: asyncio.Task[None]) -> None:
        """It is served, refused, or given up."""
        self.leave()
        if not self._given:
            self.sock.close()
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._host.logger.error(
                "%s: a connection cannot be served", self._host.name, exc_info=exc
            )


async def _read_header(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> ProxyHeader:
    """Take the header, and nothing else, from ``sock``.

    Raises ``ProtocolError``; ``ConnectionError`` when the peer goes without a word.
    """
    reader = HeaderReader()
    while True:
        try:
            data = sock.recv(MAX_HEADER, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            await _readable(loop, sock)
            continue
        if not data:
            if reader.started:
                raise ProtocolError("its PROXY header is not complete")
            raise ConnectionResetError
        sock.recv(reader.feed(data))
        if reader.header is not None:
            return reader.header


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


class _Before(asyncio.Protocol):
    """Stands before ``protocol`` until the loop has a transport for it."""

    def __init__(self, protocol: Any, header: ProxyHeader, host: Host) -> None:
        self._protocol = protocol
        self._header = header
        self._host = host

    def connection_made(self, transport: Any) -> None:
        protocol = self._protocol
        transport.set_protocol(protocol)
        try:
            protocol.connection_made(ProxiedTransport(transport, self._header))
        except Exception:
            # What the loops do with it differs.
            self._host.logger.exception("%s: a connection cannot be served", self._host.name)
            transport.abort()


class ProxiedTransport(asyncio.Transport):
    """A loop's transport, but for its ends.

    ``get_extra_info`` gives those of the header as ``peername`` and ``sockname``, and the
    header itself as ``proxy_header``.
    """

    __slots__ = ("_header", "_real", *_OF_THE_TRANSPORT)

    def __init__(self, real: Any, header: ProxyHeader) -> None:
        self._real = real
        self._header = header
        for name in _OF_THE_TRANSPORT:
            # The transport's own methods: nothing is called between it and who uses it.
            setattr(self, name, getattr(real, name))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See ``asyncio.BaseTransport``."""
        match name:
            case "peername":
                return self._header.source
            case "sockname":
                return self._header.destination
            case "proxy_header":
                return self._header
            case _:
                return self._real.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        # What a loop knows of its own transports.
        return getattr(self._real, name)
