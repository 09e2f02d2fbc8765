"""``DatagramServer``: serving datagrams.

Owns: its endpoints, their start and their end, and who still has answers to send.
Leaves: addresses and sockets to ``server``, the end of an endpoint's reading and sending
to ``endpoint``, the datagrams to the protocols: nothing of ours stands between a loop's
transport and ``datagram_received``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from weakref import WeakSet

from ..errors import ImproperlyConfigured
from ..sockets import close_sockets
from .endpoint import Endpoint
from .kinds import Kind
from .server import Address, Server

__all__ = ["DatagramServer"]

# Seconds between looks at what a server that stops still has to do.
_CHECK = 0.05

# Seconds for which a server that stops waits for answers that are still being made.
_LINGER = 1.0

# Whose tasks are no handlers of datagrams.
_NOT_THE_USERS = ("asyncio", "pulsar")


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
        self._transports: list[Endpoint] = []
        # Tasks that were there before the first datagram.
        self._before: WeakSet[asyncio.Task[Any]] = WeakSet()
        # Tasks that may have an answer to a datagram from an endpoint that reads no more.
        self._answering: set[asyncio.Task[Any]] = set()
        # When endpoints that were released are closed, unless the server is before.
        self._leaving: dict[Endpoint, asyncio.TimerHandle] = {}

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
        self._before.update(asyncio.all_tasks())
        try:
            await self._open_endpoints(sockets)
        except BaseException:
            self._close_sockets()
            raise
        self.fire_event("start")

    async def _open_endpoints(self, sockets: Sequence[socket.socket]) -> None:
        assert self._loop is not None
        opened: list[Endpoint] = []
        try:
            for sock in sockets:
                # Made here: uvloop leaves its transport behind when a factory raises.
                protocol = self.create_protocol()
                opened.append(await Endpoint.open(self._loop, protocol, sock))
        except BaseException:
            for endpoint in opened:
                endpoint.abort()
            raise
        self._transports += opened

    async def adopt(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on ``sockets``, too, with a protocol each: see ``Server.adopt``."""
        newcomers = self._newcomers(sockets)
        for sock in newcomers:
            if sock.type != socket.SOCK_DGRAM:
                raise ImproperlyConfigured(
                    f"{self.name} cannot adopt a socket that is not for datagrams: {sock!r}"
                )
        self._take_in(newcomers)
        try:
            await self._open_endpoints(newcomers)
        except BaseException:
            self._let_out(newcomers)
            raise

    async def release(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Read no more from ``sockets``, or from any: see ``Server.release``.

        Not one more datagram is read from them. Their protocols can send, from the same
        address, what is still to be answered, until ``close``, or for ``graceful_timeout``
        seconds.
        """
        leavers = self._let_out(sockets)
        endpoints = [endpoint for endpoint in self._transports if endpoint.sock in leavers]
        self._end_reading(endpoints)
        loop = asyncio.get_running_loop()
        for endpoint in endpoints:
            if endpoint not in self._leaving and not self._ending:
                timer = loop.call_later(self.graceful_timeout, self._let_go, endpoint)
                self._leaving[endpoint] = timer
        # asyncio's loop closes its descriptors a turn later.
        await asyncio.sleep(0)

    def _end_reading(self, endpoints: Sequence[Endpoint]) -> None:
        reading = [endpoint for endpoint in endpoints if endpoint.reading]
        if not reading:
            return
        for endpoint in reading:
            endpoint.release()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        self._answering = {task for task in self._answering if not task.done()}
        self._answering |= {t for t in tasks if t not in self._before and _is_the_users(t)}

    def _let_go(self, endpoint: Endpoint) -> None:
        del self._leaving[endpoint]
        self._transports.remove(endpoint)
        endpoint.close()

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

        Tasks that were running when the last datagram was read have a second in which
        they may send their answers.

        :param timeout: seconds until what is still buffered is dropped; None: wait
            for ever
        """
        if self._ending:
            await self.event("finish")  # type: ignore[misc]
            return
        self._ending = True
        endpoints = self._transports
        self._end_reading(endpoints)
        await self._linger(_LINGER if timeout is None else min(_LINGER, timeout))
        for timer in self._leaving.values():
            timer.cancel()
        for endpoint in endpoints:
            endpoint.close()
        lost = [endpoint.lost for endpoint in endpoints]
        if lost:
            await asyncio.wait(lost, timeout=timeout)
            self.abort()
            await asyncio.wait(lost)
        await asyncio.sleep(0)  # connection_lost is a callback away
        self._close_sockets()
        self.fire_event("finish")

    async def _linger(self, seconds: float) -> None:
        """Let those who are answering send, unless the server is aborted meanwhile."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (left := deadline - loop.time()) > 0:
            answering = [task for task in self._answering if not task.done()]
            if not answering or all(endpoint.is_closing() for endpoint in self._transports):
                break
            await asyncio.wait(answering, timeout=min(_CHECK, left))


def _is_the_users(task: asyncio.Task[Any]) -> bool:
    """False for what asyncio and pulsar do themselves: none of it answers datagrams."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    module = "" if frame is None else str(frame.f_globals.get("__name__"))
    return module.partition(".")[0] not in _NOT_THE_USERS
