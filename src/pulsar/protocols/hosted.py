"""Hosting of protocols that are not pulsar's: any asyncio protocol, stream handlers.

Owns: ``Hosted``, what a server knows of one foreign connection, and
``stream_protocol``, which runs an ``async def handler(reader, writer)``.
Leaves: the bytes alone. ``transport.get_protocol()`` is the user's own object, and
nothing of ours is called between it and the transport. Only ``connection_made``
and ``connection_lost``, once per connection each, pass through here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ..net import format_address
from .timeout import Watched

__all__ = ["Hosted", "stream_protocol"]

StreamHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# The methods that are stood before, until each has been called once.
_OURS = ("connection_made", "connection_lost")


class Host(Protocol):
    """What a server is to the connections that it hosts."""

    attentive: bool

    def hosted_connected(self, hosted: Hosted) -> None:
        """The connection was made; called if ``attentive``."""

    def hosted_lost(self, hosted: Hosted) -> None:
        """The connection is lost."""


class Hosted(Watched):
    """One connection of a foreign protocol, as its server sees it.

    Attributes on the protocol *instance* stand before its methods until each has
    been called once; then they are removed. A protocol that takes no attributes
    (``__slots__``) gets a subclass of its own class instead, made once per class.
    """

    __slots__ = ("_own", "protocol", "server", "timeout", "transport")

    def __init__(self, protocol: Any, server: Host, timeout: float | None = None) -> None:
        self.protocol = protocol
        self.server = server
        self.timeout = timeout
        self.transport: Any = None
        attributes = getattr(protocol, "__dict__", {})
        # What the instance itself brings, to be put back; hardly any does.
        self._own = {name: attributes[name] for name in _OURS if name in attributes} or None
        try:
            protocol.connection_made = self._connection_made
            protocol.connection_lost = self._connection_lost
        except AttributeError:
            _subclass(protocol, self)

    def _connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._put_back("connection_made")
        self.transport = transport
        try:
            self.protocol.connection_made(transport)
        except BaseException:
            # uvloop would leave it open, and deaf, for ever.
            transport.abort()  # type: ignore[attr-defined]
            self.server.hosted_lost(self)
            raise
        if self.server.attentive:
            self.server.hosted_connected(self)

    def _connection_lost(self, exc: BaseException | None) -> None:
        self._put_back("connection_lost")
        try:
            self.protocol.connection_lost(exc)
        finally:
            self.server.hosted_lost(self)

    def _put_back(self, name: str) -> None:
        delattr(self.protocol, name)
        if self._own is not None and name in self._own:
            setattr(self.protocol, name, self._own[name])

    @property
    def address(self) -> Any:
        """The peer's address as the socket gives it; None when it is closed."""
        try:
            return self.transport.get_extra_info("peername")
        except AttributeError:
            return None  # one of uvloop's

    @property
    def made(self) -> bool:
        """True once the connection was made: a TLS handshake comes before that."""
        return self.transport is not None

    @property
    def gone(self) -> bool:
        """True when the connection was closed after its protocol had been replaced.

        Then ``connection_lost`` was called on the other protocol.
        """
        transport = self.transport
        return transport.is_closing() and transport.get_protocol() is not self.protocol

    def check_deadlines(self, now: float, stall_timeout: float | None) -> None:
        """See ``Watched``; also notices when the connection is gone."""
        if self.gone:
            self.server.hosted_lost(self)
        else:
            super().check_deadlines(now, stall_timeout)

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()


_subclasses: dict[type, type] = {}
# Protocols without a __dict__ cannot carry their Hosted; ids are unique while they live,
# and they are removed when the connection is lost.
_slotted: dict[int, Hosted] = {}


def _subclass(protocol: Any, hosted: Hosted) -> None:
    cls = type(protocol)
    if cls not in _subclasses:

        def connection_made(self: Any, transport: asyncio.BaseTransport) -> None:
            hosted = _slotted[id(self)]
            hosted.transport = transport
            cls.connection_made(self, transport)
            if hosted.server.attentive:
                hosted.server.hosted_connected(hosted)

        def connection_lost(self: Any, exc: BaseException | None) -> None:
            hosted = _slotted.pop(id(self))
            try:
                cls.connection_lost(self, exc)
            finally:
                self.__class__ = cls
                hosted.server.hosted_lost(hosted)

        _subclasses[cls] = type(
            cls.__name__,
            (cls,),
            {
                "__slots__": (),
                "__module__": cls.__module__,
                "__qualname__": cls.__qualname__,
                "connection_made": connection_made,
                "connection_lost": connection_lost,
            },
        )
    protocol.__class__ = _subclasses[cls]
    _slotted[id(protocol)] = hosted


def stream_protocol(
    handler: StreamHandler,
    loop: asyncio.AbstractEventLoop,
    tasks: set[asyncio.Task[Any]],
    logger: logging.Logger,
) -> asyncio.StreamReaderProtocol:
    """A protocol that runs ``handler(reader, writer)`` as ``asyncio.start_server`` does.

    The task is in ``tasks`` while it runs. An error is logged once and closes the
    connection; a handler that returns without closing leaves it open.
    """

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception as exc:
            # When the peer has gone, that it has is no news.
            if not (isinstance(exc, ConnectionError) and writer.transport.is_closing()):
                peer = format_address(writer.get_extra_info("peername"))
                name = getattr(handler, "__qualname__", repr(handler))
                logger.error(
                    "connection from %s closed: error in %s",
                    peer,
                    name,
                    exc_info=exc,
                )
            writer.close()
        finally:
            tasks.discard(task)

    reader = asyncio.StreamReader(loop=loop)
    return asyncio.StreamReaderProtocol(reader, guarded, loop=loop)
