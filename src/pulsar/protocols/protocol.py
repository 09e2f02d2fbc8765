"""What every protocol of pulsar has: a transport, a session, events, a close.

Owns: ``PulsarProtocol`` and ``Protocol``.
Leaves: requests to ``Connection``, datagrams to ``DatagramProtocol``, counting
to the ``Producer``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from ..events import EventHandler, OneTime
from ..net import format_address
from .timeout import Watched

if TYPE_CHECKING:
    from .producer import Producer  # the two halves of one conversation

__all__ = ["Protocol", "PulsarProtocol", "default_logger"]

default_logger = logging.getLogger("pulsar.protocols")


class PulsarProtocol(EventHandler):
    """Mixin of ``Protocol`` and ``DatagramProtocol``.

    Two one-time events: ``connection_made`` and ``connection_lost``; callbacks
    get the protocol, and for ``connection_lost`` the reason as ``exc``. Awaiting
    ``connection_lost`` never raises.

    :param loop: the event loop; by default the one that runs at ``connection_made``
    :param session: which connection of its producer this is, counted from 1
    :param producer: the server or client that created this protocol
    :param logger: where this protocol logs; by default its producer's logger
    """

    ONE_TIME_EVENTS: ClassVar[tuple[str, ...]] = ("connection_made", "connection_lost")
    QUIET_EVENTS: ClassVar[frozenset[str]] = frozenset({"connection_lost"})

    __slots__ = ("_logger", "_loop", "_lost", "_lost_exc", "_transport", "producer", "session")

    # The types of transports differ; a protocol uses what its own kind offers.
    _transport: Any

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        session: int = 1,
        producer: Producer | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._events = None
        self._loop = loop
        self._logger = logger
        self._lost = False
        self._lost_exc: BaseException | None = None
        self._transport = None
        self.producer = producer
        self.session = session

    @property
    def transport(self) -> Any:
        """The transport, from ``connection_made`` on; None before."""
        return self._transport

    @property
    def logger(self) -> logging.Logger:
        """This protocol's own logger, or its producer's."""
        if self._logger is not None:
            return self._logger
        return self.producer.logger if self.producer is not None else default_logger

    @property
    def address(self) -> Any:
        """The peer's address as the socket gives it; None without a connection."""
        try:
            return self._transport.get_extra_info("peername")
        except AttributeError:
            return None  # no transport, or one of uvloop's that is closed

    @property
    def closed(self) -> bool:
        """True when there is no connection, or one that is closing or lost."""
        return self._lost or self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop: keep the transport and fire ``connection_made``."""
        self._transport = transport
        if self._loop is None:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                pass  # a test may call this without a loop
        if self._events is not None and "connection_made" in self._events:
            self.fire_event("connection_made")
        producer = self.producer
        if producer is not None and producer.attentive:
            producer.protocol_connected(self)

    def connection_lost(self, exc: BaseException | None = None) -> None:
        """Called by the loop: fire ``connection_lost`` with the reason, if there is one."""
        if self._lost:
            return
        self._lost = True
        self._lost_exc = exc
        if self._events is not None and "connection_lost" in self._events:
            self.fire_event("connection_lost", exc=exc)
        if self.producer is not None:
            self.producer.protocol_lost(self, exc)

    def close(self) -> OneTime:
        """Close the transport once what was written has been sent.

        Returns the ``connection_lost`` event: await it for complete closure.
        """
        if self._transport is not None:
            self._transport.close()
        else:
            self.connection_lost()
        event = self.event("connection_lost")
        assert isinstance(event, OneTime)
        return event

    def abort(self) -> None:
        """Close at once; what was written but not sent is dropped."""
        if self._transport is None:
            self.connection_lost()
        elif not self._lost:  # behind its end asyncio's transport cannot be aborted
            self._transport.abort()

    def info(self) -> dict[str, Any]:
        """What there is to know about this connection, as plain data."""
        return {"session": self.session, "address": self.address, "closed": self.closed}

    def _past_event(self, name: str) -> tuple[Any, BaseException | None] | None:
        if name == "connection_made" and self._transport is not None:
            return self, None
        if name == "connection_lost" and self._lost:
            return self, self._lost_exc
        return None

    def __repr__(self) -> str:
        state = "new" if self._transport is None and not self._lost else "open"
        if state == "open" and self.closed:
            state = "lost" if self._lost else "closing"
        peer = f", {format_address(self.address)}" if self._transport is not None else ""
        return f"<{type(self).__name__} {self.session} {state}{peer}>"


class Protocol(Watched, PulsarProtocol, asyncio.Protocol):
    """A ``PulsarProtocol`` for streams: subclass it and write ``data_received``.

    :param timeout: seconds of silence, either way, after which its server closes
        the connection; None or 0: never
    :param kw: see ``PulsarProtocol``
    """

    __slots__ = ("timeout",)

    def __init__(self, timeout: float | None = None, **kw: Any) -> None:
        super().__init__(**kw)
        self.timeout = timeout

    @property
    def made(self) -> bool:
        """True once the connection was made: a TLS handshake comes before that."""
        return self._transport is not None

    def close(self) -> OneTime:
        """See ``PulsarProtocol.close``."""
        return PulsarProtocol.close(self)
