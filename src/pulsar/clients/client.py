"""Clients: producers that connect.

Owns: ``AbstractClient``, ``AbstractUdpClient`` and ``task``; how one call works
inside a running loop and outside one.
Leaves: keeping connections to ``pool``, requests to the consumers, the loop of
blocking calls to ``blocking``.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import socket
import ssl
import weakref
from collections.abc import Callable, Coroutine
from ssl import SSLError
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ..errors import ConnectTimeout
from ..net import connect_address, format_address
from ..protocols import Producer, PulsarProtocol
from ..tls import client_context
from .blocking import PrivateLoop, run_blocking, running_loop
from .pool import Pool

__all__ = ["AbstractClient", "AbstractUdpClient", "task"]

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound="_Client")

# How long a connection may take to be established, in seconds.
CONNECT_TIMEOUT = 30.0

# Seconds between attempts at a Unix socket whose queue is full.
_UNIX_RETRY = 0.01


def task(
    method: Callable[Concatenate[C, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[C, P], Any]:
    """Decorate a coroutine method of a client, so that it can be called anywhere.

    Inside a running loop the call returns an ``asyncio.Task``; outside one it
    blocks and returns the value. Raises ``RuntimeError`` when the client is used
    from a second loop.
    """

    @functools.wraps(method)
    def call(self: C, /, *args: P.args, **kw: P.kwargs) -> Any:
        return self.run(method(self, *args, **kw))

    return call


class _Client(Producer):
    """What clients of streams and of datagrams share: a loop of their own, or yours."""

    pool: Pool[Any] | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        protocol_factory: Callable[..., asyncio.BaseProtocol] | None = None,
        name: str | None = None,
        max_requests: int | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._bound: asyncio.AbstractEventLoop | None = None
        self._private: PrivateLoop | None = None
        self._used = False
        super().__init__(loop, protocol_factory, name, max_requests, logger)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop of this client's connections: bound at first sight.

        The running one if there is one, else a loop of the client's own.
        """
        if self._bound is None:
            self._bound = running_loop()
            if self._bound is None:
                self._private = PrivateLoop(self)
                self._bound = self._private.loop
        return self._bound

    @_loop.setter
    def _loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._bound = loop

    def create_protocol(self, **kw: Any) -> asyncio.BaseProtocol:
        """See ``Producer.create_protocol``.

        Where calls block, the ``producer`` of the protocol is a weak proxy: the loop
        keeps its connections, and they would keep a client that nobody uses any more.
        """
        protocol = super().create_protocol(**kw)
        if self._private is not None and isinstance(protocol, PulsarProtocol):
            protocol.producer = weakref.proxy(self)
        return protocol

    def run(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T] | T:
        """Run ``coro``: a Task inside a running loop, else block and return its value.

        Raises ``RuntimeError`` when this client belongs to another loop.
        """
        running = running_loop()
        if running is not None and self._private is not None and not self._used:
            # Its own loop has not been used yet: there is nothing to give up.
            self._private.close()
            self._private = self._bound = None
        loop = self._loop
        if running is not None and running is not loop:
            coro.close()
            raise RuntimeError(
                f"{type(self).__name__} belongs to another event loop: "
                "make one client for each loop, or use it from the loop it was first used in"
            )
        self._used = True
        if running is None:
            return run_blocking(loop, coro)
        return loop.create_task(coro)

    def close(self) -> Any:
        """Close the connections. Awaitable inside a running loop, else it blocks.

        A client that was used by blocking calls closes its own loop too.
        """
        private = self._private
        if private is not None and not self._used:
            private.close()
            self._private = self._bound = None
            private = None
        closed = self.run(self._close())
        if private is not None and running_loop() is None:
            private.close()
            self._private = self._bound = None
            self._used = False
        return closed

    async def _close(self) -> None:
        """What ``close`` does, for subclasses to extend."""
        if self.pool is not None:
            await self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class AbstractClient(_Client):
    """A client of stream servers: TCP, TLS, Unix sockets.

    A subclass sets ``protocol_factory``, for example ``partial(Connection,
    MyConsumer)``, makes its connections with ``create_connection``, usually keeps
    them in a ``Pool`` (as ``self.pool``, which ``close`` closes), and decorates its
    calls with ``task``.

    :param loop: see ``Producer``; by default the loop of the first use, or one of
        the client's own for blocking calls
    """

    def connect(self) -> Any:
        """Connect to the server: for subclasses, as the creator of their pool."""
        raise NotImplementedError(f"{type(self).__name__} must implement connect()")

    async def create_connection(
        self,
        address: object,
        protocol_factory: Callable[..., asyncio.BaseProtocol] | None = None,
        *,
        ssl: ssl.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        timeout: float | None = CONNECT_TIMEOUT,
        **kw: Any,
    ) -> Any:
        """A new connection to ``address``; returns its protocol.

        :param address: ``(host, port)``, ``"host:port"`` or ``"unix:path"``
        :param protocol_factory: by default ``create_protocol``
        :param ssl: True for TLS with the certificate verified, or a context of yours
        :param server_hostname: the name to verify; by default the host
        :param timeout: seconds, TLS handshake included; None: unlimited
        :param kw: for the loop's ``create_connection``

        Raises ``ConnectTimeout``; ``OSError`` (``ConnectionRefusedError``, ...) with
        the address in its message; ``ssl.SSLError`` when the handshake fails, with
        the address in a note.
        """
        loop = self._loop
        where = connect_address(address)
        # Made before there is a socket, which the loops forget when a factory fails.
        protocol = (protocol_factory or self.create_protocol)()
        context = client_context() if ssl is True else (ssl or None)
        if context is not None:
            kw["ssl"] = context
            if server_hostname is not None:
                kw["server_hostname"] = server_hostname
        try:
            async with asyncio.timeout(timeout):
                if isinstance(where, str):
                    if context is not None:
                        kw.setdefault("server_hostname", "localhost")
                    kw["sock"] = await _connect_unix(where)
                    transport, _ = await loop.create_unix_connection(lambda: protocol, **kw)
                else:
                    transport, _ = await loop.create_connection(lambda: protocol, *where, **kw)
        except TimeoutError as exc:
            if exc.errno is not None:  # the kernel's own ETIMEDOUT
                raise _explained(exc, where) from exc
            raise ConnectTimeout(
                f"no connection to {format_address(where)} within {timeout:g} seconds"
            ) from exc
        except SSLError as exc:
            exc.add_note(f"while connecting to {format_address(where)}")
            raise
        except OSError as exc:
            raise _explained(exc, where) from exc
        if self._private is not None:
            self._private.track(transport)
        return protocol


class AbstractUdpClient(_Client):
    """A client of datagram servers. A subclass sets ``protocol_factory``."""

    async def create_endpoint(
        self,
        address: object = None,
        protocol_factory: Callable[..., asyncio.BaseProtocol] | None = None,
        **kw: Any,
    ) -> Any:
        """A new datagram endpoint; returns its protocol.

        :param address: the peer it is connected to, as for ``create_connection``;
            None: it may send anywhere
        :param protocol_factory: by default ``create_protocol``
        :param kw: for the loop's ``create_datagram_endpoint``
        """
        if address is not None:
            kw["remote_addr"] = connect_address(address)
        protocol: Any = (protocol_factory or self.create_protocol)()  # as for streams
        try:
            transport, _ = await self._loop.create_datagram_endpoint(lambda: protocol, **kw)
        except OSError as exc:
            if address is None:
                raise
            raise _explained(exc, kw["remote_addr"]) from exc
        if self._private is not None:
            self._private.track(transport)
        return protocol


async def _connect_unix(path: str) -> socket.socket:
    """A socket connected to ``path``.

    The loops' own way differs: asyncio's takes a server whose queue is full for
    connected, uvloop's fails then, and does not know abstract names.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await asyncio.sleep(_UNIX_RETRY)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


def _explained(exc: OSError, where: Any) -> OSError:
    """``exc`` with the address in its message: of the same class, or of that of its errno."""
    address = format_address(where)
    number = exc.errno
    if number is None:
        # Several addresses were tried: asyncio joins their messages, we want the cause.
        numbers = {int(found) for found in re.findall(r"\[Errno (-?\d+)\]", str(exc))}
        number = numbers.pop() if len(numbers) == 1 else None
    if number is None:
        reason = str(exc) or "the server closed the connection"
        return type(exc)(f"cannot connect to {address}: {reason}")
    if isinstance(exc, socket.gaierror):
        return socket.gaierror(number, f"cannot connect to {address}: {exc.strerror}")
    return OSError(number, f"cannot connect to {address}: {os.strerror(number)}")
