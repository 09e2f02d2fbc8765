"""``DatagramServer``: serving datagrams.

Owns: its endpoints, their start and their end.
Leaves: addresses and sockets to ``server``, the datagrams to the protocols: nothing
of ours stands between a transport and ``datagram_received``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from ..errors import ImproperlyConfigured
from ..sockets import close_sockets
from .kinds import Kind
from .server import Address, Server

__all__ = ["DatagramServer"]

# Seconds between looks at what is still to be sent by a server that stops.
_DRAIN_CHECK = 0.05


class DatagramServer(Server):
    """Serves datagrams: UDP.

    :param protocol_factory: a ``DatagramProtocol`` class or factory, pulsar's or
        asyncio's; one protocol is made for each socket
    :param max_requests: close after that many datagrams
    :param kw: see ``TcpServer``
    """

    socket_type: ClassVar[socket.SocketKind] = socket.SOCK_DGRAM

    def __init__(
        self,
        protocol_factory: Callable[..., Any],
        loop: asyncio.AbstractEventLoop | None = None,
        address: Address | None = None,
        name: str | None = None,
        sockets: Sequence[socket.socket] | None = None,
        max_requests: int | None = None,
        logger: logging.Logger | None = None,
        *,
        kind: str | Kind = "auto",
    ) -> None:
        super().__init__(
            protocol_factory, loop, address, name, sockets, max_requests, logger, kind=kind
        )
        self._transports: list[asyncio.DatagramTransport] = []

    async def start(self) -> None:
        """``create_endpoint``, as ``async with`` calls it."""
        await self.create_endpoint()

    async def create_endpoint(self) -> None:
        """Bind, and receive datagrams.

        Raises ``ImproperlyConfigured`` for what cannot be served or bound.
        """
        sockets = self._open(0)
        loop = self._loop
        assert loop is not None
        if self.kind is not Kind.DATAGRAM:
            close_sockets(self._sockets)
            raise ImproperlyConfigured(
                f"{self.name} serves datagrams: accepted is a DatagramProtocol class or factory"
            )
        try:
            for sock in sockets:
                sock.setblocking(False)
                # Made here: uvloop leaves its transport behind when a factory raises.
                protocol = self.create_protocol()
                transport, _ = await loop.create_datagram_endpoint(
                    partial(_same, protocol), sock=sock
                )
                self._transports.append(transport)
        except BaseException:
            self.abort()
            close_sockets(sockets)
            raise
        self.fire_event("start")

    def create_protocol(self, **kw: Any) -> asyncio.DatagramProtocol:
        """Called for each socket: the protocol that serves it."""
        assert self._maker is not None
        self.sessions += 1
        protocol: Any = self._maker(session=self.sessions, producer=self, loop=self._loop, **kw)
        if self.max_requests is not None:
            # Only then: without a limit nothing stands in the way of a datagram.
            self._count_datagrams(protocol)
        return protocol  # type: ignore[no-any-return]

    def _count_datagrams(self, protocol: Any) -> None:
        received = protocol.datagram_received

        def counted(data: bytes, addr: Any) -> None:
            self.requests_processed += 1
            self.count_request()
            received(data, addr)

        try:
            protocol.datagram_received = counted
        except AttributeError:  # it has __slots__: see Hosted
            cls = type(protocol)
            names = {"__slots__": (), "datagram_received": staticmethod(counted)}
            protocol.__class__ = type(cls.__name__, (cls,), names)

    def abort(self) -> None:
        """Close at once; what was not sent is dropped."""
        for transport in self._transports:
            transport.abort()

    async def close(self, timeout: float | None = 30.0) -> None:
        """Stop receiving, send what is buffered, close the sockets.

        :param timeout: seconds until what is still buffered is dropped; None: wait
            for ever
        """
        if self._ending:
            await self.event("finish")  # type: ignore[misc]
            return
        self._ending = True
        for transport in self._transports:
            transport.close()
        deadline = None if timeout is None or self._loop is None else self._loop.time() + timeout
        for transport, sock in zip(self._transports, self._sockets, strict=False):
            # A transport closes its socket when it has sent everything.
            while sock.fileno() != -1 and _buffered(transport):
                if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                    transport.abort()
                    break
                await asyncio.sleep(_DRAIN_CHECK)
        await asyncio.sleep(0)  # connection_lost is a callback away
        close_sockets(self._sockets)
        self.fire_event("finish")


def _same(protocol: asyncio.DatagramProtocol) -> asyncio.DatagramProtocol:
    return protocol


def _buffered(transport: Any) -> int:
    return int(transport.get_write_buffer_size())
