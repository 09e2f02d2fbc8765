"""The consumer of a connection's bytes: the class that users of pulsar write.

Owns: ``ProtocolConsumer`` and ``AbortRequest``; the states of one request.
Leaves: when a consumer is made, fed and finished to ``Connection``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from ..events import AbortEvent, EventHandler, OneTime
from .flow import LOST, WRITTEN, Written
from .protocol import default_logger

if TYPE_CHECKING:
    from .connection import Connection  # which uses this module
    from .producer import Producer

__all__ = ["AbortRequest", "ProtocolConsumer"]

T = TypeVar("T")

# The states of a consumer, in their only order.
NEW = 0  # nothing has happened
STARTED = 1  # pre_request has fired
FINISHING = 2  # finished() was called; post_request is due
DONE = 3  # post_request has fired


# What Connection may leave out when it makes a consumer: see ``shape``.
PLAIN = 1
MUTE = 2

# What a connection holds while a consumer is being fed and has written nothing.
NOTHING = b""


class AbortRequest(AbortEvent):
    """Raised by ``abort_request``: the request shall not be served."""


class ProtocolConsumer(EventHandler):
    """Receives the bytes of one request, or of a whole connection.

    A server's consumer implements ``data_received``; a client's implements
    ``start_request`` too. Call ``finished`` when the request is done: the
    connection then makes a new consumer for the next one. A consumer that never
    calls it lives as long as its connection.

    One-time events: ``pre_request``, before the first byte; ``post_request``,
    when the request is done. Many-times events: ``data_received`` and
    ``data_processed``, around each call of the method ``data_received``;
    callbacks get ``(consumer, exc=None, data=data)``.
    """

    ONE_TIME_EVENTS: ClassVar[tuple[str, ...]] = ("pre_request", "post_request")
    MANY_TIMES_EVENTS: ClassVar[tuple[str, ...]] = ("data_received", "data_processed")

    # _result and _exc are unset until finished(): a consumer is made for each
    # message, and every assignment here is paid each time.
    __slots__ = ("_exc", "_result", "_state", "connection", "request")

    connection: Connection | None
    request: Any
    _result: Any
    _exc: BaseException | None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        one_time_events: Iterable[str] | None = None,
        many_times_events: Iterable[str] | None = None,
    ) -> None:
        """``loop`` is accepted for the sake of old code: a consumer uses its connection's."""
        self._events = None
        self._state = NEW
        self.connection = None
        self.request = None
        if one_time_events is not None or many_times_events is not None:
            self._add_events(one_time_events or (), many_times_events or ())

    # What users implement

    def connection_made(self, connection: Connection) -> None:
        """Called when ``connection`` starts using this consumer. Does nothing."""

    def data_received(self, data: bytes) -> bytes | bytearray | memoryview | None:
        """Called with the bytes that have arrived, never empty.

        Returns the bytes that follow the end of this request, if there are any:
        the connection gives them to the next consumer, once this one is finished.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement data_received(data)")

    def start_request(self) -> None:
        """Clients: write ``self.request`` to the server. Called by ``start``."""
        raise NotImplementedError(f"{type(self).__name__} must implement start_request()")

    def eof_received(self) -> None:
        """Called when the peer has ended its side of the connection. Does nothing.

        A request in progress may still be answered; the connection is closed
        when it is finished.
        """

    def goodbye(self) -> bool:
        """Called once per connection when its server begins to stop. Returns False.

        On the consumer whose request is in progress or, while the connection is idle, on
        the one that will get the next request: that has not started, and may ``write``.

        Returns True when the peer has been told and ends the connection itself: what it
        still sends is answered, and the connection is closed when it has been silent for
        the server's ``linger``. False: the connection is closed after the answer to the
        request in progress, or else to the next one; that answer can say so, because
        ``connection.ending`` is true while it is made. An error in here is treated as
        one in ``data_received``.
        """
        return False

    def check_deadlines(self, now: float, silent: float, stall_timeout: float | None) -> None:
        """Called now and then while a request is in progress that waits for its peer.

        Does nothing. It may answer and close; else the connection is closed when it has
        been silent for ``stall_timeout``.

        :param now: the loop's clock, in seconds
        :param silent: for how many seconds nothing has come or gone
        :param stall_timeout: how many of them are too many; None or 0: there is no limit
        """

    def give_way(self) -> bool:
        """Called while a request is in progress and the server has no room for others.

        Only of a connection that has been silent. Returns False: the request goes on. One that
        the peer has not sent to its end may be refused: close the connection, and return True.
        """
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called when the connection is gone, with the reason if there is one.

        By default ``finished``; a client whose response is not complete then
        raises ``ConnectionClosed``, or ``exc``, to whoever awaits it.
        """
        self.finished(exc=exc)

    # What users call

    @property
    def transport(self) -> Any:
        """The connection's transport; None without a connection."""
        connection = self.connection
        return connection.transport if connection is not None else None

    @property
    def producer(self) -> Producer | None:
        """The server or client that this consumer works for."""
        connection = self.connection
        return connection.producer if connection is not None else None

    @property
    def logger(self) -> logging.Logger:
        """The connection's logger."""
        connection = self.connection
        return connection.logger if connection is not None else default_logger

    @property
    def _loop(self) -> asyncio.AbstractEventLoop | None:
        connection = self.connection
        return connection._loop if connection is not None else None

    @property
    def address(self) -> Any:
        """The peer's address."""
        connection = self.connection
        return connection.address if connection is not None else None

    @property
    def result(self) -> Any:
        """What ``finished`` was called with; None before."""
        return self._result if self._state >= FINISHING else None

    @property
    def on_finished(self) -> OneTime:
        """The ``post_request`` event: await it for the result of the request."""
        event = self.event("post_request")
        assert isinstance(event, OneTime)
        return event

    def start(self, request: Any = None) -> None:
        """Start the request: fire ``pre_request``, then, in a client, ``start_request``.

        A server's connection does this by itself when the first byte arrives.
        What goes wrong ends the request: ``on_finished`` raises it.

        Raises ``RuntimeError`` without a connection and a transport, and when
        the request has been started already.
        """
        connection = self.connection
        if connection is None or connection._transport is None:
            raise RuntimeError(f"{type(self).__name__} cannot start: it has no connection")
        if self._state != NEW:
            raise RuntimeError(f"{type(self).__name__} has already been started")
        self.request = request
        connection.start_consumer(self)

    def write(self, data: bytes | bytearray | memoryview) -> Written | asyncio.Future[None]:
        """Write ``data`` to the connection (see ``Connection.write``)."""
        connection = self.connection
        if connection is None:
            return LOST
        if connection._out is NOTHING and type(data) is bytes:
            # The most common write of all: the only one of this data_received.
            connection._out = data
            return WRITTEN
        return connection.write(data)

    def finished(self, result: Any = None, exc: BaseException | None = None) -> None:
        """The request is done: fire ``post_request`` with ``result``, or with ``exc``.

        Called inside ``data_received`` it only marks: the connection fires
        ``post_request`` after ``data_processed``. Further calls do nothing.
        """
        state = self._state
        if state == STARTED:
            self._state = FINISHING
            self._result = result
            self._exc = exc
            connection = self.connection
            if connection._out is None:  # type: ignore[union-attr]  # it was started there
                connection.finish_consumer(self)  # type: ignore[union-attr]
        elif state == NEW:
            # No request to account for, but somebody may wait for it.
            self._state = DONE
            self._result = result
            self._exc = exc
            connection = self.connection
            if connection is not None and connection._consumer is self:
                connection._consumer = None
            if self._events is not None and "post_request" in self._events:
                self._events["post_request"].fire(self if result is None else result, exc)

    def conclude(self, data: bytes) -> None:
        """``write`` and ``finished`` in one, for an answer that is all there."""
        connection = self.connection
        if self._state == STARTED and connection._out is NOTHING:  # type: ignore[union-attr]
            connection._out = data  # type: ignore[union-attr]
            self._state = FINISHING
            self._result = self._exc = None
        else:
            ProtocolConsumer.write(self, data)
            self.finished()

    def abort_request(self) -> NoReturn:
        """Refuse the request: raises ``AbortRequest``.

        For callbacks of ``pre_request``, and for ``data_received``. A server
        closes the connection, for it cannot know where the next request starts;
        in a client ``on_finished`` raises ``AbortRequest``.
        """
        raise AbortRequest(f"{type(self).__name__} aborted the request")

    def create_task(self, coro: Coroutine[Any, Any, T], *, hold: bool = True) -> asyncio.Task[T]:
        """Run a coroutine as part of this request.

        While it runs the connection is not idle. It is cancelled when the
        connection is lost; an error in it is treated as one in ``data_received``:
        logged once, and the connection is closed.

        :param hold: keep what arrives while it runs, and go on with it afterwards;
            False: it goes on to ``data_received``

        Raises ``RuntimeError`` without a connection.
        """
        if self.connection is None:
            coro.close()
            raise RuntimeError(f"{type(self).__name__} cannot run a task: it has no connection")
        return self.connection.create_task(self, coro, hold)

    def _past_event(self, name: str) -> tuple[Any, BaseException | None] | None:
        if name == "pre_request":
            # An aborted request has fired it too: STARTED was reached.
            return (self, None) if self._state != NEW else None
        if name == "post_request" and self._state == DONE:
            result = self._result
            return (self if result is None else result), self._exc
        return None


def shape(factory: Callable[[], ProtocolConsumer]) -> int:
    """What need not be called for the consumers that ``factory`` makes.

    PLAIN: the constructor, MUTE: ``connection_made``; for classes that keep those
    of ``ProtocolConsumer``. Asked for each connection: a class may be patched.
    """
    if not isinstance(factory, type) or not issubclass(factory, ProtocolConsumer):
        return 0
    plain = factory.__init__ is ProtocolConsumer.__init__ and factory.__new__ is object.__new__
    mute = factory.connection_made is ProtocolConsumer.connection_made
    return PLAIN * plain | MUTE * mute


def may_say_goodbye(factory: Callable[[], ProtocolConsumer]) -> bool:
    """False when the consumers that ``factory`` makes are known not to implement ``goodbye``."""
    while isinstance(factory, partial):
        factory = factory.func
    if not isinstance(factory, type) or not issubclass(factory, ProtocolConsumer):
        return True
    return factory.goodbye is not ProtocolConsumer.goodbye
