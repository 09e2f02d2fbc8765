"""Requests as they come: from the bytes of a connection to a call of the application.

Owns: ``RequestReader``: the order of head and body, what is kept of a body before the
application is called, deadlines, and the end of a client that has not said everything.
Leaves: the grammar to ``wire.http11``, bodies to ``body`` and ``incoming``, everything from the
call on to ``response``.

Theory of operation. A request whose head and body come in one piece, as most do, is served
at once. The body of another one is kept until it is complete. Only threads may answer
earlier, and no more than half of them do, so that clients which send slowly leave the others
to those which do not: when a good piece of the body has come, or some time has passed. A body
in chunks is always complete first, for many applications read what CONTENT_LENGTH says.
"""

from __future__ import annotations

import asyncio
import logging
from io import BytesIO
from time import monotonic
from typing import IO, TYPE_CHECKING, Any

from ...protocols.consumer import ProtocolConsumer
from ...wire.http11 import (
    CHUNKED,
    CONTINUE,
    KNOWN_LENGTH,
    MessageRefused,
    Request,
    RequestParser,
)
from .body import Body
from .incoming import Incoming

if TYPE_CHECKING:
    from .site import Site
    from .threads import ThreadCall

__all__ = ["RequestReader"]

logger = logging.getLogger("pulsar.wsgi")

# A thread may be called before the body is complete when so many bytes of it have come, or
# so many seconds after its head.
_ENOUGH = 64 * 1024
_PATIENCE = 0.1

# Seconds between looks at a body that is coming.
_LOOK = 1.0


class RequestReader(ProtocolConsumer):
    """Reads one request, and has it served."""

    # One of these objects is made for each request, by the connection, which calls nothing
    # of it: all but ``request`` is unset until the first byte comes.
    __slots__ = (
        "_body",
        "_deadline",
        "_input",
        "_keep_alive",
        "_left",
        "_more",
        "_parser",
        "_plan",
        "_told",
        "began",
        "body_sent",
        "call",
        "environ",
        "headers_sent",
        "iterable",
        "site",
        "status",
    )

    #: The head of the request; before it is complete None, and then what reads it.
    request: Any

    site: Site

    # When the head has to be complete, by the monotonic clock; None: it is.
    _deadline: float | None
    # What has come of the body, and what the application reads it from.
    _body: Body | Incoming | None
    _input: IO[bytes] | None
    # What reads the rest of a body that is ``Incoming``.
    _parser: RequestParser
    # A client that waits for 100 has been told to go on. Unset where nobody asks.
    _told: bool
    # There is more behind this request.
    _more: bool
    # See ``HttpServerResponse`` for the rest.
    _keep_alive: bool
    _left: int
    _plan: Any
    call: ThreadCall | None
    iterable: Any
    headers_sent: bytes | None
    status: int
    body_sent: int
    began: float
    environ: dict[str, Any] | None

    def data_received(self, data: bytes) -> bytes | None:
        """Read the request; when it is complete, have it answered."""
        if self.request is not None:
            return self._read_on(data)
        self._body = self._input = self._plan = None
        self.call = self.iterable = self.headers_sent = None
        self._more = False
        self._left = 0
        heads = self.site.heads
        request = heads.known.get(data) if len(data) <= KNOWN_LENGTH else None
        if request is None and (request := heads.find(data)) is None:
            return self._read_first(RequestParser(heads), data)
        end = request.size
        length = request.body
        if length:
            begin = end
            end += length
            if length < 0 or end > len(data):
                return self._read_first(RequestParser(heads, request), data[begin:])
            self._input = BytesIO(data[begin:end])
        if end == len(data):
            self._serve(request)
            return None
        self._more = True
        self._serve(request)
        return data[end:] if self._keep_alive else None

    def _read_first(self, parser: RequestParser, data: bytes) -> bytes | None:
        """Begin a request that does not come in one piece, or needs a closer look."""
        self.request = self._parser = parser
        self._body = Body()
        self.environ = None
        self.status = self.body_sent = 0
        self.began = monotonic()
        self._deadline = self.began + self.site.head_timeout
        return self._read_on(data)

    def _read_on(self, data: bytes) -> bytes | None:
        parser = self._parser
        body = self._body
        assert body is not None
        try:
            rest = parser.feed(data)
        except MessageRefused as exc:
            self._refuse(exc.status, exc.reason)
            return None
        request = parser.request
        if request is None:
            return None
        try:
            enough = body.add(parser.read())
        except OSError as exc:
            logger.error("the body of a request cannot be kept: %s", exc)
            self._refuse(500, "The body cannot be kept.")
            return None
        if type(body) is Incoming and not self._told:
            self._go_on()  # it did not wait to be told
        if parser.complete:
            return self._complete(request, rest)
        if type(body) is Incoming:
            if enough:
                self.connection.transport.pause_reading()  # type: ignore[union-attr]
        elif self._deadline is not None:
            self._deadline = None
            self._wait_for_body(request)
        elif body.size >= _ENOUGH and body.size - len(data) < _ENOUGH and request.body != CHUNKED:
            self._serve_early()
        return None

    def _complete(self, request: Request, rest: bytes) -> bytes | None:
        """The request is complete; ``rest`` is behind it."""
        self._more = bool(rest)
        body = self._body
        if type(body) is Incoming:
            body.end()
            if body.discards:
                self.finished()
            elif self.call is not None:
                self.call.hold()
                self.call.threads.tell(self.call)
            return rest or None
        if request.body:
            self._input = body.open()  # type: ignore[union-attr]
        self._serve(request)
        return rest if rest and self._keep_alive else None

    def _wait_for_body(self, request: Request) -> None:
        """The head is complete, and the body is not."""
        assert self._body is not None
        asked = request.expect_continue and not self._body.size
        self._told = not asked
        if self.site.threads is not None and request.body != CHUNKED:
            if asked or self._body.size >= _ENOUGH:
                if self._serve_early():
                    return
            else:
                self._loop.call_later(_PATIENCE, self._serve_late)  # type: ignore[union-attr]
        if asked:
            self._told = True
            self._put(CONTINUE)

    # Answering while the body is still coming

    @property
    def coming(self) -> Incoming | None:
        """The body, as long as it is not complete; None: it is."""
        body = self._body
        return body if type(body) is Incoming and not body.over else None

    def _serve_late(self) -> None:
        connection = self.connection
        if self.request is self._parser and connection is not None and not connection.closing:
            self._serve_early()

    def _serve_early(self) -> bool:
        """Let a thread answer now, if one may."""
        threads = self.site.threads
        body = self._body
        if threads is None or not threads.may_wait() or type(body) is not Body:
            return False
        begun = body.taken()
        if begun is None:
            return False
        request = self._parser.request
        assert request is not None
        incoming = self._body = Incoming(begun, self._call_for_body)
        self._serve(request)
        # A client that is answered before it is told to go on may send the body, or not.
        self._keep_alive = request.keep_alive and self._told
        threads.waiting += 1
        incoming.unwanted = threads.waited  # called once: by discard() or at the end
        # Not in the coroutine: one that is cancelled at once never runs.
        self.create_task(self._attend(incoming), hold=False).add_done_callback(incoming.forgo)
        return True

    def _call_for_body(self) -> None:
        self.site.threads.call_soon(self._look_for_body)  # type: ignore[union-attr]

    def _look_for_body(self) -> None:
        """There may be room for more."""
        connection = self.connection
        body = self.coming
        if connection is None or connection.closing or body is None:
            return
        if not self._told and self.headers_sent is None:
            self._go_on()
            self._put(CONTINUE)
        if body.wants_more and not connection.writing_paused:
            connection.transport.resume_reading()

    def _go_on(self) -> None:
        """The client sends its body: what follows is the next request."""
        self._told = True
        if self.headers_sent is None:
            self._keep_alive = self.request.keep_alive

    def collect_body(self) -> bool:
        """True: the body is complete. False: it will be kept until it is, and then told."""
        body = self.coming
        if body is None:
            return True
        body.collect()
        self._look_for_body()
        return False

    async def _attend(self, incoming: Incoming) -> None:
        """See that the body does not stop coming while somebody waits for it."""
        limit = self.site.stall_timeout
        while not incoming.over:
            try:
                async with asyncio.timeout(min(_LOOK, limit / 4) if limit else None):
                    await incoming.ended.wait()
            except TimeoutError:
                if incoming.waited() >= limit:
                    self._refuse(408, "The body of the request has stopped coming.")
                    return

    # The end of a client

    def check_deadlines(self, now: float, silent: float, stall_timeout: float | None) -> None:
        """Refuse a request that takes too long to arrive."""
        parser = self.request
        if type(parser) is not RequestParser:
            return
        if self._deadline is None:
            if stall_timeout and silent >= stall_timeout:
                self._refuse(408, "The body of the request has stopped coming.")
        elif monotonic() >= self._deadline:
            if parser.started:
                self._refuse(408, "The head of the request has taken too long.")
            else:
                self.connection.close()  # type: ignore[union-attr]

    def give_way(self) -> bool:
        """Refuse a request that has not come whole: others wait for its place."""
        if type(self.request) is not RequestParser:
            return False
        self._refuse(408, "The request has taken too long, and others wait.", linger=0)
        return True

    def eof_received(self) -> None:
        """The client has ended its side; in the middle of a request that is an error."""
        parser = self.request
        if type(parser) is RequestParser:
            if parser.started:
                self._refuse(400, "The request is not complete.")
            else:  # nothing but an empty line
                self.connection.close()  # type: ignore[union-attr]
        elif type(self._body) is Incoming and not self._body.over:
            self._refuse(400, "The request is not complete.")

    # What a response does

    # What ``write`` is, where it is not PEP 3333's.
    _put = ProtocolConsumer.write

    def _serve(self, request: Request) -> None:
        """Call the application. By ``self.request`` it is known that this was done."""
        raise NotImplementedError

    def _refuse(self, status: int, reason: str, linger: float = 0) -> None:
        """Answer what is no request, and read nothing of what follows."""
        raise NotImplementedError
