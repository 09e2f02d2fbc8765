"""A stream connection that serves one request after another.

Owns: ``Connection``: routing bytes to the current consumer, the order of events,
joining of writes, half-close, and what silence means for it.
Leaves: the meaning of the bytes to the consumer, counting and limits to the
producer, the clock to the sweep.

Theory of operation. Bytes arrive in ``data_received`` and go to the current
consumer; when there is none, the factory makes one. A consumer that calls
``finished`` while it is being fed is only marked; the loop in ``_feed`` then
fires ``post_request`` and gives the unconsumed tail to the next consumer, so a
deep pipeline costs no stack. A consumer that returns a tail without having
finished is still working: the tail is held, and reading pauses, until it is.
What is written meanwhile is joined and written once, at the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConnectionClosed, ProtocolError
from ..events import AbortEvent
from ..net import format_address
from .consumer import (
    DONE,
    FINISHING,
    MUTE,
    NEW,
    NOTHING,
    PLAIN,
    STARTED,
    ProtocolConsumer,
    may_say_goodbye,
    shape,
)
from .flow import LOST, WRITTEN, FlowControl, Written
from .protocol import Protocol
from .timeout import READ, SEEN, WROTE

if sys.platform != "win32":
    import fcntl
    import termios

if TYPE_CHECKING:
    from .producer import Producer  # which knows protocols only by their base

__all__ = ["Connection", "ConsumerFactory"]

T = TypeVar("T")
ConsumerFactory = Callable[[], ProtocolConsumer]
Data = bytes | bytearray | memoryview

# What FIONREAD says where nothing is to be read: an int.
_NO_BYTES = bytes(4)

# Joining copies: above this many bytes the pieces go to the transport one by one.
_JOIN_LIMIT = 128 * 1024

# A pipeline is consumed in pieces of so many bytes: each request copies the bytes
# behind it when it hands them on, and a read of 256 KiB may hold 100,000 requests.
_PIPELINE_PIECE = 16 * 1024

# Above this many bytes that wait for a request to be answered, reading pauses.
_HOLD_LIMIT = 64 * 1024

# After this many answers of one pipeline, write them, see whether the peer reads, and let
# other connections have their turn.
_PIPELINE_BATCH = 64

# Seconds that a peer who has ended its side may still be silent before we end ours.
_EOF_LINGER = 5.0


_new = object.__new__
_SIMPLE = PLAIN | MUTE


def _no_factory() -> ProtocolConsumer:
    raise RuntimeError("this connection has no consumer_factory")


class Connection(FlowControl, Protocol):
    """Routes the bytes of a transport to ``ProtocolConsumer`` objects, in both directions.

    :param consumer_factory: called without arguments for each new consumer
    :param timeout: seconds of silence between requests after which the server
        closes the connection; None or 0: never
    :param low_limit: see ``FlowControl``
    :param high_limit: see ``FlowControl``
    :param loop: and the rest: see ``PulsarProtocol``
    """

    __slots__ = (
        "_activity",
        "_buffered",
        "_client",
        "_closing",
        "_consumer",
        "_consumer_factory",
        "_eof",
        "_goodbye_said",
        "_high_limit",
        "_holds",
        "_last_request",
        "_low_limit",
        "_out",
        "_paused",
        "_processed",
        "_shape",
        "_since",
        "_tail",
        "_tail_for_next",
        "_tasks",
        "_write_waiters",
        "context",
        "extra",
    )

    def __init__(
        self,
        consumer_factory: ConsumerFactory = _no_factory,
        timeout: float | None = None,
        low_limit: int | None = None,
        high_limit: int | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        session: int = 1,
        producer: Producer | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        # Everything that the bases' constructors do, without calling four of them:
        # this is paid for each connection.
        self._events = None
        self._loop = loop
        self._logger = logger
        self._lost = False
        self._lost_exc = None
        self._transport = None
        self.producer = producer
        self.session = session
        self.timeout = timeout
        self._low_limit = low_limit
        self._high_limit = high_limit
        self._paused = False
        self._write_waiters = None

        self._consumer_factory = consumer_factory
        self._shape = shape(consumer_factory)
        self._processed = 0
        # For consumers: what lasts as long as the connection.
        self.extra: Any = None
        # What their tasks run in; None: in a copy of the one that makes them, as usual.
        self.context: Context | None = None
        self._consumer: ProtocolConsumer | None = None
        self._client = producer is not None and not producer.server_side
        # What was written while a consumer is being fed: nothing yet (empty bytes),
        # one piece, or a list of them. None outside: writes go to the transport.
        self._out: bytes | list[bytes] | None = None
        # Bytes that wait for the current consumer to finish, or for the peer to read;
        # empty when closing. None: what arrives goes to the consumer.
        self._tail: bytes | None = None
        # The tail belongs to the next consumer: the current one has returned it.
        self._tail_for_next = False
        # How many tasks run during which the consumer is fed nothing.
        self._holds = 0
        self._tasks: set[asyncio.Task[Any]] | None = None
        # close() or abort() was called: nothing more is read or written.
        self._closing = False
        # Close as soon as no request is in progress.
        self._last_request = False
        self._goodbye_said = False
        # The peer has ended its side: there is nothing more to read.
        self._eof = False
        # For the sweep: the last mark, when it was first seen, and the size of
        # the transport's buffer at that time.
        self._activity = READ
        self._since = 0.0
        self._buffered = 0

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop: keep the transport and fire ``connection_made``."""
        if self._low_limit is not None or self._high_limit is not None:
            self.set_write_limits(transport)
        super().connection_made(transport)
        if not self._client and self._consumer is None and not self._closing:
            # Made before the first byte, so that a server that speaks first can
            # greet in its consumer's connection_made.
            try:
                self._new_consumer()
            except Exception as exc:
                self._consumer_failed(None, exc)

    def data_received(self, data: bytes) -> None:  # noqa: C901 - one loop, no call it can spare
        """Called by the loop: give ``data`` to consumers until it is used up or must wait."""
        if self._tail is not None:
            if not self._closing:
                # A request is being answered.
                self._tail += data
                if len(self._tail) > _HOLD_LIMIT:
                    self._transport.pause_reading()
            return
        self._activity = READ
        self._out = [] if self._paused else NOTHING
        consumer = self._consumer
        answered = written = 0
        behind: memoryview | None = None  # the pieces of a pipeline that are still to come
        try:
            while True:
                if consumer is None:
                    if self._client:
                        self._unsolicited(data)
                        break
                    producer = self.producer
                    if self._shape == _SIMPLE and (producer is None or not producer.forwards):
                        # As _new_consumer does, without calling it.
                        consumer = _new(self._consumer_factory)  # type: ignore[arg-type]
                        consumer._events = None
                        consumer._state = NEW
                        consumer.request = None
                        consumer.connection = self
                        self._consumer = consumer
                    else:
                        consumer = self._new_consumer()
                if consumer._state == NEW:
                    consumer._state = STARTED
                    if consumer._events is not None:
                        consumer.fire_event("pre_request")
                if consumer._events is None:
                    tail = consumer.data_received(data)
                else:
                    consumer.fire_event("data_received", data=data)
                    tail = consumer.data_received(data)
                    consumer.fire_event("data_processed", data=data)
                if consumer._state == FINISHING:
                    # As _complete does.
                    consumer._state = DONE
                    self._consumer = None
                    self._processed += 1
                    producer = self.producer
                    if producer is not None:
                        producer.requests_processed += 1
                        if producer.max_requests is not None:
                            producer.count_request()
                    if consumer._events is not None:
                        consumer.fire_event("post_request", consumer._result, consumer._exc)
                    if not tail and behind is None:
                        break
                    # An upgrade has built the next one already.
                    consumer = self._consumer
                    answered += 1
                    if answered % _PIPELINE_BATCH == 0:
                        self._flush()
                        if not (self._paused or self._holds or self._loop is None):
                            # Let others have their turn.
                            self._hold(tail, behind, for_next=False)
                            self._loop.call_soon(self._go_on)
                            break
                    if self._paused or self._holds:
                        self._hold(tail, behind, for_next=False)
                        break
                    written = self._pieces()
                elif not tail and behind is None:
                    break
                elif tail or self._holds:
                    self._hold(tail, behind, for_next=bool(tail))
                    break
                if self._closing:
                    break
                if not tail:
                    tail, behind = behind, None
                if len(tail) > _PIPELINE_PIECE and behind is None:  # type: ignore[arg-type]
                    view = memoryview(tail)  # type: ignore[arg-type]
                    tail, behind = view[:_PIPELINE_PIECE], view[_PIPELINE_PIECE:]
                data = bytes(tail)  # type: ignore[arg-type]  # free where it is bytes already
        except Exception as exc:
            self._consumer_failed(consumer, exc)
        unanswered = answered and self._pieces() == written
        out = self._out
        self._out = None
        if out.__class__ is bytes:
            if out:
                self._activity = WROTE
                self._transport.write(out)
        elif out:
            self._write_pieces(out)  # type: ignore[arg-type]
        if unanswered:
            self._activity = READ  # what was written answers those before the last one
        if self._last_request and not self._closing and not self.busy:
            self._close()

    def eof_received(self) -> bool:
        """Called by the loop when the peer has ended its side (a half-close).

        Returns True, which keeps our side open, while a request is in progress.
        """
        if not self._tail or self._tail_for_next:
            self._tell_of_the_end()
        if self._closing:
            return False
        # A client has nothing more to say once the server has ended the response,
        # and TLS has no half-close: the transport closes whatever we return.
        if self._client or not self.busy or self._transport.get_extra_info("sslcontext"):
            self._close()
            return False
        self._last_request = True
        self._eof = True
        return True

    def _tell_of_the_end(self) -> None:
        """Tell the request in progress, which has got all bytes, that there are no more."""
        consumer = self._consumer
        if consumer is not None and consumer._state == STARTED:
            try:
                consumer.eof_received()
            except Exception as exc:
                self._fail(consumer, exc)

    def connection_lost(self, exc: BaseException | None = None) -> None:
        """Called by the loop: end what is in progress, fire ``connection_lost``."""
        if self._lost:
            return
        if not self._closing:
            self._stop()
        if self._paused:
            self.resume_writing(ConnectionClosed("the connection was lost"))
        if self._tasks is not None:
            for task in self._tasks:
                task.cancel()
        consumer = self._consumer
        if consumer is not None:
            closed = exc is None or isinstance(exc, ConnectionError)
            if self._client and closed and consumer._state == STARTED:
                cause = exc
                exc = ConnectionClosed(
                    f"the server {format_address(self.address)} closed the connection "
                    "before the response was complete"
                )
                exc.__cause__ = cause
            try:
                consumer.connection_lost(exc)
            except Exception:
                self.logger.exception("%r: connection_lost failed", consumer)
            if consumer._state != DONE:
                consumer.finished(exc=exc)  # an override did not
            self._consumer = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Called by the transport: the peer does not read; stop reading from it."""
        super().pause_writing()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self, exc: BaseException | None = None) -> None:
        """Called by the transport: the peer reads again; go on where we stopped."""
        super().resume_writing(exc)
        if not self._closing:
            self._activity = WROTE
            if self._loop is None:
                self._go_on()
            else:
                # Not in here: asyncio's transport cannot bear to be closed meanwhile.
                self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._closing:
            self._continue(writing=True)

    # Requests

    @property
    def transport(self) -> Any:
        """The transport, with everything written so far handed to it.

        So writes made through it and through ``write`` keep their order.
        """
        self._flush()
        self._activity = WROTE
        return self._transport

    @property
    def requests_processed(self) -> int:
        """How many requests this connection has finished."""
        return self._processed

    @property
    def busy(self) -> bool:
        """True while a request is in progress that has not been answered yet.

        A consumer that never finishes counts as answered once it has written
        something since the last byte arrived.
        """
        if self._holds or self._tasks or self._tail:
            return True
        consumer = self._consumer
        if consumer is None or consumer._state == NEW:
            return False
        return self._client or bool(self._activity & READ)  # READ, or READ + SEEN

    @property
    def ending(self) -> bool:
        """True when this connection will be closed after the answer that is being made.

        So the answer can say it, where the protocol has words for that.
        """
        return self._last_request or self._closing

    @property
    def closing(self) -> bool:
        """True when nothing is read or written any more."""
        return self._closing

    @property
    def pending(self) -> bool:
        """True when bytes have arrived behind the request in progress, and are held."""
        return bool(self._tail)

    def current_consumer(self) -> ProtocolConsumer:
        """The consumer that handles incoming bytes; a new one if there is none."""
        consumer = self._consumer
        return self._new_consumer() if consumer is None else consumer

    def upgrade(self, consumer_factory: ConsumerFactory) -> None:
        """Make consumers with ``consumer_factory`` from the next one on.

        For a protocol that changes in mid-connection (a WebSocket, a tunnel). The
        next consumer is built as soon as the current one is finished, and gets
        the bytes that follow.
        """
        self._consumer_factory = consumer_factory
        self._shape = shape(consumer_factory)
        consumer = self._consumer
        if consumer is None or consumer._state == NEW:
            self._consumer = None
            self._new_consumer()
        else:
            consumer.bind_event("post_request", self._build_upgraded)

    def _build_upgraded(self, arg: Any, exc: BaseException | None = None) -> None:
        if exc is None and not self._closing:
            self.current_consumer()

    def _new_consumer(self) -> ProtocolConsumer:
        """Make the next consumer."""
        producer = self.producer
        if self._shape & PLAIN and (producer is None or not producer.forwards):
            # What ProtocolConsumer.__init__ does, without calling it: this is paid
            # for each message.
            consumer: ProtocolConsumer = _new(self._consumer_factory)  # type: ignore[arg-type]
            consumer._events = None
            consumer._state = NEW
            consumer.request = None
        elif producer is None:
            consumer = self._consumer_factory()
        else:
            consumer = producer.build_consumer(self._consumer_factory)
        self._consumer = consumer
        consumer.connection = self
        if not self._shape & MUTE:
            consumer.connection_made(self)
        return consumer

    def start_consumer(self, consumer: ProtocolConsumer) -> None:
        """Start a request that did not come with data: see ``ProtocolConsumer.start``."""
        consumer._state = STARTED
        self._activity = READ
        try:
            if self._closing:
                raise ConnectionClosed("the connection is closed: no request can be started on it")
            if consumer._events is not None:
                consumer.fire_event("pre_request")
            producer = self.producer
            if producer is None or not producer.server_side:
                consumer.start_request()
        except Exception as exc:
            self._fail(consumer, exc)

    def finish_consumer(self, consumer: ProtocolConsumer) -> None:
        """End a request outside ``data_received``: see ``ProtocolConsumer.finished``."""
        self._complete(consumer)
        if self._out is None and not self._closing:
            self._continue()

    def _complete(self, consumer: ProtocolConsumer) -> None:
        """Account for a finished request and fire ``post_request``."""
        consumer._state = DONE
        self._consumer = None
        self._processed += 1
        producer = self.producer
        if producer is not None:
            producer.requests_processed += 1
            if producer.max_requests is not None:
                producer.count_request()
        if consumer._events is not None:
            consumer.fire_event("post_request", consumer._result, consumer._exc)

    def create_task(
        self, consumer: ProtocolConsumer, coro: Coroutine[Any, Any, T], hold: bool = True
    ) -> asyncio.Task[T]:
        """Run ``coro`` for ``consumer``: see ``ProtocolConsumer.create_task``."""
        task = asyncio.get_running_loop().create_task(coro, context=self.context)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        if hold:
            self.hold()

        def done(task: asyncio.Task[T]) -> None:
            assert self._tasks is not None
            self._tasks.discard(task)
            if hold:
                self._holds -= 1
            if not task.cancelled():
                exc = task.exception()
                if exc is not None:
                    self._fail(consumer, exc)
            if not self._closing:
                self._continue()

        task.add_done_callback(done)
        return task

    def hold(self) -> None:
        """Keep what arrives until ``release``; the request counts as in progress.

        For a consumer that answers later, and has no task for it.
        """
        self._holds += 1
        if self._tail is None:
            self._tail = b""

    def release(self) -> None:
        """Go on with what has arrived since ``hold``."""
        self._holds -= 1
        if not self._closing:
            self._continue()

    def cork(self) -> None:
        """Join what is written until ``uncork``; for who writes outside ``data_received``."""
        if self._out is None:
            self._out = [] if self._paused else NOTHING

    def uncork(self) -> None:
        """Write what was written since ``cork``, and end the request if it has finished."""
        self._flush()
        self._out = None
        consumer = self._consumer
        if consumer is not None and consumer._state == FINISHING:
            self.finish_consumer(consumer)

    def _pieces(self) -> int:
        """How many pieces were written in this data_received and not flushed."""
        out = self._out
        if type(out) is list:
            return len(out)
        return 1 if out else 0

    def _hold(self, tail: Data | None, behind: memoryview | None, for_next: bool = True) -> None:
        """Keep what is unconsumed until it can be consumed; read no more meanwhile.

        :param for_next: the current consumer has returned it: it is for the next one
        """
        if not self._closing:
            self._tail = b"".join((tail or b"", behind or b""))
            self._tail_for_next = for_next
            self._transport.pause_reading()

    def _continue(self, writing: bool = False) -> None:
        """Go on after a pause: the held tail first, then the transport.

        :param writing: writing has resumed, so whoever has waited for that may write more
        """
        if self._paused or self._holds or self._out is not None:
            return
        tail = self._tail
        if tail is not None:
            consumer = self._consumer
            if self._tail_for_next and consumer is not None and consumer._state != NEW:
                return  # still working on the request before it
            self._tail = None
            self._tail_for_next = False
            if tail:
                self.data_received(tail)
                if self._eof and self._tail is None:
                    self._tell_of_the_end()
        if self._closing:
            return
        if self._last_request and not self.busy and not writing:
            self._close()
        elif not self._eof and self._tail is None and not self._paused:
            self._transport.resume_reading()  # behind the end it would be told of it again

    def _unsolicited(self, data: bytes) -> None:
        # Whatever it is, it would be taken for the answer to the next request.
        self.logger.debug("%r: closed, for %d unsolicited bytes arrived", self, len(data))
        self.abort()

    def _consumer_failed(self, consumer: ProtocolConsumer | None, exc: Exception) -> None:
        if consumer is not None:
            self._fail(consumer, exc)
        else:
            # The factory failed: there is nobody to tell but the log.
            self.logger.error("%r cannot make a consumer", self, exc_info=exc)
            self.close()

    def _fail(self, consumer: ProtocolConsumer, exc: BaseException) -> None:
        """An error while serving or making a request costs this connection."""
        peer = format_address(self.address)
        if isinstance(exc, AbortEvent):
            self.logger.debug("%r: request aborted", self)
        elif self._closing and isinstance(exc, ConnectionClosed):
            self.logger.debug("%r: closed while a request was answered", self)
        elif self._client:
            pass  # whoever awaits the response is told
        elif isinstance(exc, ProtocolError):
            self.logger.info("connection from %s closed: %s", peer, exc)
        else:
            self.logger.error(
                "connection from %s closed: error in %s",
                peer,
                type(consumer).__name__,
                exc_info=exc,
            )
        if consumer._state == FINISHING:
            # It had finished before it failed: that outcome stands.
            self.finish_consumer(consumer)
        elif consumer._state == STARTED:
            consumer._state = FINISHING
            consumer._result = None
            consumer._exc = exc
            self.finish_consumer(consumer)
        if self._client:
            self.abort()
        else:
            self.close()

    # Writing and closing

    def write(self, data: Data) -> Written | asyncio.Future[None]:
        """Write ``data`` to the peer.

        Writes made inside one ``data_received`` are joined. Returns a false,
        awaitable value, or, when the peer does not read and writing is paused, a
        Future that is done when it resumes. After the connection was closed the
        data is dropped, and awaiting what is returned raises ``ConnectionClosed``.
        """
        if self._closing:
            return LOST
        self._activity = WROTE
        if type(data) is not bytes:
            data = bytes(memoryview(data))  # a mutable buffer may change before it is written
        out = self._out
        if out is not None:
            if out is NOTHING:
                self._out = data
            elif type(out) is list:
                out.append(data)
            else:
                self._out = [out, data]  # type: ignore[list-item]
        elif self._transport is None:
            raise RuntimeError(f"{type(self).__name__} cannot write: it is not connected yet")
        else:
            self._transport.write(data)
        return self.write_waiter() if self._paused else WRITTEN

    def _flush(self) -> None:
        """Hand what was written while a consumer was being fed to the transport."""
        out = self._out
        if out:
            self._out = None
            self._write_pieces(out if type(out) is list else [out])  # type: ignore[list-item]
            self._out = [] if self._paused else NOTHING

    def _write_pieces(self, pieces: list[bytes]) -> None:
        self._activity = WROTE
        if sum(map(len, pieces)) <= _JOIN_LIMIT:
            self._transport.write(b"".join(pieces))
            return
        # Not all of them at once: writelines never pauses its protocol in asyncio 3.12.0
        # to 3.12.8, 3.13.0 and 3.13.1 (CVE-2024-12254), but the next write does.
        *most, last = filter(None, pieces)
        # Of a transport that is lost, and has not told us yet, writelines has the loop watch
        # a descriptor that is closed then: whoever gets its number next would be lost, too.
        if most and not self._transport.is_closing():
            self._transport.writelines(most)
        self._transport.write(last)

    def close(self) -> Any:
        """Close once everything written has been sent; reading stops at once.

        Returns the ``connection_lost`` event: await it for complete closure.
        """
        if self._transport is None:
            self._stop()
            self.connection_lost()
        else:
            self._close()
        return self.event("connection_lost")

    def _close(self) -> None:
        """``close`` for those who do not want the event."""
        if not self._closing:
            if self._out:
                self._flush()
            self._stop()
            self._transport.close()

    def close_gently(self, linger: float) -> None:
        """Close, but not before the peer has, or ``linger`` seconds have passed.

        For an answer to what was not read to its end: a socket that is closed with
        something unread is reset, and the peer may never see the answer. With 0 seconds,
        and where there is no half-close, as with TLS: ``close``.
        """
        transport, loop = self._transport, self._loop
        if self._closing or not linger or loop is None or not transport.can_write_eof():
            self._close()
            return
        self._flush()
        self._stop()
        try:
            transport.write_eof()
        except OSError:
            transport.abort()  # reset meanwhile: asyncio's shutdown() says ENOTCONN
            return
        transport.resume_reading()
        loop.call_later(linger, transport.close)

    def abort(self) -> None:
        """Close at once; what was written but not sent is dropped."""
        self._stop()
        super().abort()

    def _stop(self) -> None:
        """Neither read nor write any more."""
        self._closing = True
        self._activity = WROTE
        self._tail = b""
        if self._out is not None:
            self._out = []  # drops what comes, but a consumer is still being fed

    def last_request(self) -> None:
        """Close after the answer to the request in progress, or else to the next one."""
        self._last_request = True

    def say_goodbye(self) -> None:
        """The server stops: let the consumer tell the peer; see ``ProtocolConsumer.goodbye``.

        What is said once is not said again.
        """
        if self._goodbye_said or self._closing:
            return
        self._goodbye_said = True
        consumer = self._consumer
        told = False
        if consumer is not None or may_say_goodbye(self._consumer_factory):
            activity = self._activity
            try:
                consumer = self.current_consumer()
                told = consumer.goodbye()
            except Exception as exc:
                self._consumer_failed(consumer, exc)
                return
            self._activity = activity  # a goodbye is no answer
        if not told:
            self.last_request()

    def finish(self) -> None:
        """Close as soon as no request is in progress: now, or after its answer."""
        self._last_request = True
        if not self._closing and self._out is None and not self.busy:
            self._close_idle()

    def _close_idle(self) -> None:
        """Close, unless a request has come that was not read yet."""
        if hang_up(self._transport):
            self.close()

    def give_way(self) -> bool:
        """The server needs room: close, unless something is in hand. True: it is closing."""
        if self._closing or self._paused or self._holds or self._tasks or self._tail:
            return False
        consumer = self._consumer
        if consumer is None or consumer._state == NEW:
            self._close_idle()
            return self._closing
        if consumer._state != STARTED or not self.busy:
            return False  # it lives as long as its connection
        try:
            return consumer.give_way()
        except Exception as exc:
            self._fail(consumer, exc)
            return True

    def quiet_since(self, now: float) -> float:
        """The time at which it was first seen that nothing came or went any more.

        :param now: the loop's clock, in seconds
        """
        if self._activity <= WROTE:
            self._activity += SEEN
            self._since = now
        return self._since

    def check_deadlines(self, now: float, stall_timeout: float | None) -> None:
        """Called by the server's sweep: close when silent for too long.

        :param now: the loop's clock, in seconds
        :param stall_timeout: seconds of silence in the middle of a request, or
            while the peer does not read; None or 0: unlimited
        """
        silent = now - self.quiet_since(now)
        if self._paused or self._closing:
            # The peer owes us reading: any progress in the buffer counts.
            size = self._transport.get_write_buffer_size()
            if size != self._buffered:
                self._buffered = size
                self._since = now
            elif stall_timeout and silent >= stall_timeout:
                self._log_timeout("the peer does not read", silent)
                self.abort()
        elif self._tasks or self._holds:
            return
        elif self.busy:
            consumer = self._consumer
            if consumer is not None and consumer._state == STARTED:
                try:
                    consumer.check_deadlines(now, silent, stall_timeout)
                except Exception as exc:
                    self._fail(consumer, exc)
                if self.closing:
                    return
            if self._eof:
                # Half a request, or an answer that is made where we do not see it.
                stall_timeout = min(stall_timeout or _EOF_LINGER, _EOF_LINGER)
            if stall_timeout and silent >= stall_timeout:
                self._log_timeout("a request has stalled", silent)
                self.close()
        else:
            timeout = self.timeout
            if self._last_request:
                timeout = min(timeout or _EOF_LINGER, _EOF_LINGER)
            if timeout and silent >= timeout:
                self.logger.debug("%r: closed after %.1f s of silence", self, silent)
                self._close_idle()

    def _log_timeout(self, reason: str, silent: float) -> None:
        peer = format_address(self.address)
        self.logger.info(
            "connection from %s closed: %s, silent for %.1f s",
            peer,
            reason,
            silent,
        )

    def info(self) -> dict[str, Any]:
        """What there is to know about this connection, as plain data."""
        return {**super().info(), "requests_processed": self._processed, "busy": self.busy}


def hang_up(transport: Any) -> bool:
    """End our side of an idle connection, this very moment. False: something is to be read.

    The loops close a turn later. A request that comes meanwhile is lost, and its peer could
    have known better. With TLS there is more to say: that is left to the transport.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or transport.is_closing() or sys.platform == "win32":
        return True
    try:
        if fcntl.ioctl(sock.fileno(), termios.FIONREAD, _NO_BYTES) != _NO_BYTES:
            return False
        plain = transport.get_extra_info("sslcontext") is None
        if plain and not transport.get_write_buffer_size():
            with socket.socket(fileno=os.dup(sock.fileno())) as own:
                own.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # gone meanwhile
    return True
