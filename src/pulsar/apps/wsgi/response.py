"""One request and its response: between the bytes of a connection and an application.

Owns: ``HttpServerResponse``: calling the application as PEP 3333 wants it, the order and the
framing of what is sent, errors.
Leaves: requests, until they can be served, to ``reading``, heads to ``head``, what takes longer
than a call to ``delivery`` and ``threads``, the rest to ``Site``.

Theory of operation. What most applications return, a list with one piece of bytes, is
written at once, head and body. An iterable is sent piece by piece for as long as the client
reads and others can wait; then a task goes on from there. With threads, a call has one of
them to itself, and hands what it sends to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from asyncio import _set_running_loop
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...errors import ConnectionClosed, PulsarException
from ...net import format_address
from ...protocols.consumer import ProtocolConsumer
from ...protocols.flow import LOST, WRITTEN
from ...wire.http11 import (
    CHUNKED,
    CONTINUE,
    UNTIL_CLOSE,
    Request,
    RequestParser,
    answer_framing,
    has_body,
    last_chunk,
    options,
    render_chunk,
    render_response,
)
from .delivery import close_iterable, deliver
from .environ import connection_environ
from .head import CLOSE, KEEP_ALIVE, Plan, length_line
from .incoming import Incoming
from .loopless import with_loop
from .reading import RequestReader
from .site import Site

if TYPE_CHECKING:
    from ...config import Config
    from ...protocols.connection import Connection, ConsumerFactory
    from .threads import ThreadCall

__all__ = ["HttpServerResponse"]

logger = logging.getLogger("pulsar.wsgi")

# Seconds for which a client that we hang up on may go on sending: what it has sent and
# we have not read would take our answer away from it.
_LINGER = 2.0

# Above this many bytes a body is not joined to its head, which would copy it ...
_JOINED = 16 * 1024
# ... where the loop can write both at once. In these versions of asyncio writelines never
# tells its protocol to pause (CVE-2024-12254).
_VERSION = sys.version_info[:3]
_GATHERS = not ((3, 12, 0) <= _VERSION <= (3, 12, 8) or (3, 13, 0) <= _VERSION <= (3, 13, 1))

# Close with a reset: the only way to tell that a body which ends with its connection is
# not whole.
_RESET = struct.pack("ii", 1, 0)

# What nginx and others write down where the client did not wait for its answer.
_CLIENT_GONE = 499

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


class HttpServerResponse(RequestReader):
    """Server side of one HTTP/1.1 request: a ``ProtocolConsumer``.

    :param wsgi_callable: the application
    :param cfg: the settings of a ``WSGIServer``
    :param server_software: for the field ``Server``
    """

    # See ``RequestReader`` for the others, and for when they are set.
    __slots__ = ("_framing", "threaded")

    # Classes made by ``bound`` have it themselves.
    site: Site

    #: The header line that says by which name the request is known: see ``request_id``.
    id_line: bytes = b""

    # What start_response was called with; None before.
    _plan: Plan | None
    # How the body is sent: see answer_framing; and what of its length is left. Below 0:
    # nothing is to follow the head.
    _framing: int
    _left: int
    _keep_alive: bool

    #: The thread that calls the application, as long as it does.
    call: ThreadCall | None
    #: A thread has called it. Unset where there are none.
    threaded: bool

    #: What the application has returned, as long as it has to be closed.
    iterable: Any

    #: The response line and the headers, as they were sent; None before.
    headers_sent: bytes | None

    # For the access log: the status, the bytes of the body that were sent, without the
    # chunks' own lines, when the request has begun, and its environment until it is logged.
    status: int
    body_sent: int
    began: float
    environ: dict[str, Any] | None

    def __init__(
        self,
        wsgi_callable: Callable[..., Any],
        cfg: Config,
        server_software: str | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(loop)
        self.headers_sent = None
        self.site = Site.of(wsgi_callable, cfg, server_software)

    @classmethod
    def bound(cls, site: Site) -> type[HttpServerResponse]:
        """A subclass for ``site``, which a connection can make without calling anything."""
        own = {"site": site, "__init__": ProtocolConsumer.__init__, "__slots__": ()}
        return type(cls.__name__, (cls,), own)

    @property
    def wsgi_callable(self) -> Callable[..., Any]:
        """The application."""
        return self.site.application

    def goodbye(self) -> bool:
        """The server stops. The answer says so, unless its head has been sent."""
        body = self.coming if self.request is not None else None
        if body is not None and body.discards:
            # It has been answered: nobody waits for the rest of it.
            self._cut_off()
            return True
        if self.request is None or self.headers_sent is None or not self._keep_alive:
            return False
        # The client may send one more request: that is told.
        self.site.stopping = True
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone: stop the application's iterable, and close it."""
        if self.request is not None:
            if self._body is not None:
                self._body.close()
            if self.call is not None:
                self.call.lose()  # what a thread uses, it closes
            else:
                self.close_all()
            self._log(_CLIENT_GONE)
        self.finished(exc=exc)

    # Calling the application

    def _serve(self, request: Request) -> None:
        connection = self.connection
        site = self.site
        self.request = request
        self._keep_alive = request.keep_alive
        environ = request.environ | (connection.extra or _of_connection(connection))  # type: ignore[union-attr,arg-type]
        environ["wsgi.early_hints"] = self.early_hints
        if self._input is not None:
            environ["wsgi.input"] = self._input
            if request.body == CHUNKED:
                # RFC 3875 section 4.1.2, RFC 9112 section 7.1.3: the chunks are gone.
                environ["CONTENT_LENGTH"] = str(self._body.size)  # type: ignore[union-attr]
                del environ["HTTP_TRANSFER_ENCODING"]
        elif type(self._body) is Incoming:
            environ["wsgi.input"] = self._body.input
        if request.upgrade:
            environ["pulsar.upgrade"] = self.upgrade
        if connection.context is None:  # type: ignore[union-attr]
            connection.context = site.context.copy()  # type: ignore[union-attr]
        if not site.special or not self._handed_over(environ):
            self.call_here(environ)

    def call_here(self, environ: dict[str, Any]) -> None:
        """Call the application on the loop, and send what it returns."""
        connection = self.connection
        site = self.site
        loop = connection._loop  # type: ignore[union-attr]  # noqa: SLF001 - the hot path
        try:
            # See loopless, which costs a call more.
            _set_running_loop(None if site.hides_loop else loop)
            try:
                result = connection.context.run(site.application, environ, self.start_response)  # type: ignore[union-attr]
            finally:
                _set_running_loop(loop)
            if type(result) is list and len(result) == 1 and type(result[0]) is bytes:
                self.answer(result[0])
            else:
                # In the same context: what the application sets there, its iterable resets.
                connection.context.run(deliver, self, result)  # type: ignore[union-attr]
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            self.fail(exc)

    def _handed_over(self, environ: dict[str, Any]) -> bool:
        """Do what few sites need; True: the application is called elsewhere."""
        site = self.site
        if site.adjusts:
            site.adjust(environ)
        if site.access is not None:
            self.environ = environ
            if self._body is None:  # it came in one piece
                self.began = monotonic() if site.access.timed else 0.0
                self.status = self.body_sent = 0
        if site.threads is None:
            return False
        if type(self._body) is Incoming:
            site.threads.take_early(self, environ)
        else:
            site.threads.take(self, environ)
        return True

    # What the application calls

    def start_response(
        self,
        status: str,
        response_headers: Sequence[tuple[str, str]],
        exc_info: Any = None,
    ) -> Callable[[bytes], Any]:
        """``start_response`` of PEP 3333.

        :param status: such as ``200 OK``
        :param response_headers: pairs of names and values; ``HOP_HEADERS`` are dropped
        :param exc_info: of the error that is being answered, if there is one

        Returns ``write``. Raises the error in ``exc_info`` when the head has been sent;
        ``PulsarException`` when called again without one; ``InvalidMessage`` for what
        cannot be sent.
        """
        if exc_info:
            try:
                if self.headers_sent is not None or (self.call and self.call.committed):
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._plan is not None:
            raise PulsarException("start_response was called before, and there is no exc_info")
        responses = self.site.responses
        plan = None
        if type(response_headers) is list:
            try:
                # As plan does.
                plan = responses.known.get((status, *response_headers))
            except TypeError:
                pass  # a pair is a list
        self._plan = plan or responses.plan(status, response_headers)
        return self.write

    def write(self, data: bytes, force: bool = False) -> Any:  # type: ignore[override]
        """Send a piece of the body, as PEP 3333 wants it from ``start_response``.

        :param force: send the head even if there is no data yet

        On the loop it returns an awaitable that is done when more can be written; in a
        thread it waits until then. Raises ``ConnectionClosed`` there when the client has
        gone.
        """
        if self.call is not None:
            return self.call.send(data, force)
        return with_loop(self._loop, self._write, data, force)

    def _write(self, data: bytes, force: bool) -> Any:
        written = self.send(data, force)
        self.flush()
        return written

    def early_hints(self, headers: Sequence[tuple[str, str]]) -> None:
        """``wsgi.early_hints``: tell the client what it will need (103, RFC 8297).

        :param headers: such as ``[("Link", "</style.css>; rel=preload; as=style")]``

        Does nothing for HTTP/1.0 and when the head has been sent. Raises
        ``InvalidMessage`` for what cannot be sent.
        """
        hints = render_response("103 Early Hints", headers)
        if self.call is not None:
            self.call.threads.call_soon(self._hint, hints)
        else:
            with_loop(self._loop, self._hint, hints)

    def _hint(self, hints: bytes) -> None:
        if self.request.minor and self.headers_sent is None:
            self._put(hints)

    def upgrade(
        self,
        consumer_factory: ConsumerFactory,
        protocol: str,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Change to another protocol (101, RFC 9110 section 7.8).

        What follows on the connection is for consumers that ``consumer_factory`` makes.
        For code on the loop; the application returns nothing, an empty list, then.

        :param protocol: one of those that the client has offered, such as ``websocket``
        :param headers: of the answer, beside ``Connection`` and ``Upgrade``

        Raises ``PulsarException`` when the client has not offered it, or the head has been
        sent; ``InvalidMessage`` for headers that cannot be sent.
        """
        connection = self.connection
        assert connection is not None
        if protocol.lower() not in options(self.request.upgrade):
            raise PulsarException(f"the client has not offered to change to {protocol}")
        if self.headers_sent is not None or self.call is not None:
            raise PulsarException("it is too late, or a thread's call, to change the protocol")
        own = b"Connection: upgrade\r\nUpgrade: %b\r\n" % protocol.encode("latin-1")
        head = self.headers_sent = render_response("101 Switching Protocols", headers, own)
        self.status = 101
        self._framing = self._left = self.body_sent = 0
        self._keep_alive = True
        with_loop(self._loop, self._put, head)
        with_loop(self._loop, connection.upgrade, consumer_factory)

    # Sending

    def _put_both(self, head: bytes, body: bytes) -> Any:
        if len(body) <= _JOINED:
            return self._put(head + body)
        if not _GATHERS:
            self._put(head)
            return self._put(body)
        connection = self.connection
        # See Connection._write_pieces for the last one.
        if connection is None or connection.closing or connection.transport.is_closing():
            return LOST
        connection.transport.writelines((head, body))
        return connection.write_waiter() if connection.writing_paused else WRITTEN

    def _head(self, size: int | None) -> bytes:
        """The head of the response, for a body of ``size`` bytes; None: it is not known yet."""
        request, plan, connection = self.request, self._plan, self.connection
        assert plan is not None
        assert connection is not None
        ending = connection.ending or self.site.stopping
        if ending and not (self._more or connection.pending):
            # What has been sent behind this request is still answered: the last one says it.
            self._keep_alive = False
        responses = self.site.responses
        lines = [plan.head, responses.own_lines(plan)]
        length = size if plan.length is None else plan.length
        self._framing, self._keep_alive = answer_framing(
            request.method, request.minor, plan.code, length, self._keep_alive
        )
        if not has_body(request.method, plan.code):
            self._left = -1
            if size and plan.length is None and plan.bodied:
                lines.append(length_line(size))  # RFC 9110 section 9.3.2: as GET would say
        elif length is None:
            if self._framing == CHUNKED:
                lines.append(b"Transfer-Encoding: chunked\r\n")
        else:
            self._left = length
            if plan.length is None:
                lines.append(length_line(length))
        if not self._keep_alive:
            lines.append(CLOSE)
        elif not request.minor:
            lines.append(KEEP_ALIVE)
        lines.append(b"\r\n")
        self.status = plan.code
        self.body_sent = 0
        head = self.headers_sent = b"".join(lines)
        return head

    @property
    def hidden_loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, if the application is not to see it: see ``loopless``."""
        return self._loop if self.site.hides_loop else None

    @property
    def plan(self) -> Plan | None:
        """What ``start_response`` was called with; None before."""
        return self._plan

    @property
    def bodiless(self) -> bool:
        """True when the head has been sent, and nothing is to follow it."""
        return self._left < 0

    def answer(self, body: bytes) -> None:
        """Send a response whose body is all there."""
        plan = self._plan
        if self.headers_sent is not None:
            self.send(body)
            self.end()
            return
        if plan is None:
            raise PulsarException("the application has returned without start_response")
        site = self.site
        request = self.request
        connection = self.connection
        size = len(body)
        if (
            (plan.length is None or plan.length == size)
            and plan.bodied
            and self._keep_alive
            and request.minor
            and request.method != "HEAD"
            and not connection.ending  # type: ignore[union-attr]
            and not site.stopping
        ):
            # What _head would say.
            responses = site.responses
            if plan.own is responses.own and plan.size == size and monotonic() < responses.until:
                head = plan.whole
            else:
                head = responses.whole(plan, size)
            self.headers_sent = head
            if self._input is None and self.iterable is None and self._body is None:
                # Nothing is to be closed, or to be read.
                if site.access is not None:
                    self.status = plan.code
                    self.body_sent = size
                    site.access.log(self)
                    self.environ = None
                if size <= _JOINED:
                    self.conclude(head + body)
                else:
                    self._put_both(head, body)
                    self.finished()
                return
        else:
            length = size if plan.length is None else plan.length
            if not has_body(request.method, plan.code):
                head = self._head(size)
                body = b""
            elif length > size:
                raise PulsarException(_too_short(length - size))
            else:
                head = self._head(size)
                body = self._fit(body)
        self._put_both(head, body) if body else self._put(head)
        if self.iterable is not None or self._input is not None or self._body is not None:
            self.close_all()
        if site.access is not None:
            self.status = plan.code
            self.body_sent = len(body)
        self._done()

    def send(self, data: bytes, force: bool = False) -> Any:
        """Send a piece of the body, and the head before the first one.

        Returns what ``ProtocolConsumer.write`` does.
        """
        if type(data) is not bytes and not isinstance(data, bytes):
            raise TypeError(f"an application's body is made of bytes, not of {type(data).__name__}")
        connection = self.connection
        if connection is None or connection.closing:
            return LOST
        if self.headers_sent is not None:
            data = self._fit(data)
            return self._put(data) if data else WRITTEN
        if self._plan is None:
            raise PulsarException("the application has sent a body before start_response")
        if not data and not force:
            return WRITTEN
        if self._body is not None and self.coming is not None and not self._told:
            # The application may read behind its first piece: no 100 can follow the head.
            self._go_on()
            self._put(CONTINUE)
        head = self._head(None)
        data = self._fit(data)
        return self._put_both(head, data) if data else self._put(head)

    def flush(self) -> None:
        """Let what was sent be on its way before the application is called again."""
        if self.connection is not None and not self.connection.closing:
            self.connection.transport  # noqa: B018 - asking for it does it

    def _fit(self, data: bytes) -> bytes:
        """What is sent for ``data``: a chunk, or what fits into the length that was announced."""
        if self._framing == CHUNKED:
            self.body_sent += len(data)
            return render_chunk(data)
        left = self._left
        if left < 0:
            return b""
        if self._framing >= 0:
            if len(data) > left:
                logger.error(
                    "%s %s: the body is longer than its Content-Length: cut off",
                    self.request.method,
                    self.request.target,
                )
                data = data[:left]
            self._left = left - len(data)
        self.body_sent += len(data)
        return data

    def begin(self, size: int) -> int:
        """Send the head for a body of ``size`` bytes, which is sent otherwise.

        Returns how many of them are to be sent.
        """
        if self._plan is None:
            raise PulsarException("the application has returned without start_response")
        self._put(self._head(size))
        return max(0, min(size, self._left))

    def sent_otherwise(self, size: int) -> None:
        """``size`` bytes of the body went to the socket without us."""
        self.body_sent += size
        self._left -= size

    def end(self, trailers: Sequence[tuple[str, str]] = ()) -> None:
        """The body is complete.

        :param trailers: sent behind a body in chunks, and dropped otherwise
        """
        if self.headers_sent is None:
            self.answer(b"")
            return
        if self._framing == CHUNKED and self._left >= 0:
            self._put(last_chunk(trailers))
        elif self._left > 0:
            self.fail(PulsarException(_too_short(self._left)))
            return
        if self.iterable is not None:
            self.flush()
        self.close_all()
        self._done()

    def _done(self) -> None:
        """The response is complete."""
        self._log()
        # The next request has its own.
        self.connection.context = None  # type: ignore[union-attr]
        body = None if self._body is None else self.coming
        if not self._keep_alive:
            # A client that wanted to go on may have sent more.
            linger = self._more or self.request.keep_alive or body is not None
            if body is not None:
                body.close()
            self.connection.close_gently(_LINGER if linger else 0)  # type: ignore[union-attr]
            self.finished()
        elif body is not None:
            # What is left of it is not the next request.
            body.discard()
            self._look_for_body()
        else:
            self.finished()

    def _log(self, otherwise: int = 0) -> None:
        """Write the line in the access log, if there is one, and it has not been written.

        :param otherwise: the status, where none was sent
        """
        access = self.site.access
        if access is not None and self.environ is not None:
            self.status = self.status or otherwise
            access.log(self)
            self.environ = None

    def close_all(self) -> None:
        """Close what the application has returned, and what it has read from."""
        iterable, self.iterable = self.iterable, None
        if iterable is not None:
            if self.site.threads is not None and self.threaded:
                # It may have to do with what its thread has opened, and it may wait.
                self.site.threads.submit(lambda: close_iterable(iterable))
            else:
                self._close_iterable(iterable)
        file, self._input = self._input, None
        if file is not None:
            file.close()
        if type(self._body) is Incoming:
            self._body.drop()

    def _close_iterable(self, iterable: Any) -> None:
        context = self.connection.context  # type: ignore[union-attr]
        try:
            if context is not None:
                context.run(close_iterable, iterable, self.hidden_loop)
                return
        except RuntimeError:
            pass  # we are in it already
        close_iterable(iterable, self.hidden_loop)

    # Errors

    def fail(self, exc: BaseException) -> None:
        """The application has failed: a plain 500, if nothing has been sent yet."""
        connection = self.connection
        request = self.request
        self.close_all()
        if connection is None or connection.closing:
            if isinstance(exc, ConnectionClosed | asyncio.CancelledError):
                return  # the client has gone, and the application was told
            logger.error("%s %s failed", request.method, request.target, exc_info=exc)
            return
        logger.error("%s %s failed", request.method, request.target, exc_info=exc)
        if self.headers_sent is not None:
            self._cut_off()
            return
        self._keep_alive = False
        self._answer_error(500, "The application has failed.", request.method != "HEAD")
        self._done()

    def _cut_off(self) -> None:
        """End the connection so that the client sees that the response is not whole."""
        connection = self.connection
        assert connection is not None
        if self._body is not None:
            self._body.close()
        if self.call is not None:
            self.call.lose()
        self._log()
        if self._framing == UNTIL_CLOSE:
            sock = connection.transport.get_extra_info("socket")
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except (AttributeError, OSError):
                pass  # a Unix socket, or gone meanwhile
            connection.abort()
        else:
            connection.close_gently(_LINGER)
        self.finished()

    def _refuse(self, status: int, reason: str, linger: float = _LINGER) -> None:
        """Answer what is no request, and read nothing of what follows."""
        connection = self.connection
        assert connection is not None
        if type(self.request) is RequestParser:
            self.request = self.request.request
        peer = format_address(connection.address)
        logger.info("request from %s refused: %d %s", peer, status, reason)
        if self._body is not None:
            self._body.close()
        if self.call is not None:
            self.call.lose()
        if self.headers_sent is not None:
            # It is being answered already.
            self._cut_off()
            return
        self._answer_error(status, reason, True)
        if self.site.access is not None:
            self.site.access.log(self)
            self.environ = None
        connection.close_gently(linger)

    def _answer_error(self, status: int, reason: str, with_text: bool) -> None:
        text = f"{reason}\n".encode("latin-1", "replace")
        plan = self.site.responses.plan(
            f"{status} {_REASONS[status]}",
            [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))],
        )
        own_lines = self.site.responses.own_lines(plan)
        lines = (plan.head, self.id_line, own_lines, CLOSE, b"\r\n")
        head = self.headers_sent = b"".join(lines)
        self.status = status
        self.body_sent = len(text) if with_text else 0
        self._put(head + text if with_text else head)


def _too_short(missing: int) -> str:
    return f"the body is {missing} bytes shorter than its Content-Length"


def _of_connection(connection: Connection) -> dict[str, Any]:
    """The connection's part of an environment; kept with it."""
    transport = connection.transport
    extra = connection.extra = connection_environ(
        transport.get_extra_info("sockname"),
        transport.get_extra_info("peername"),
        secure=transport.get_extra_info("sslcontext") is not None,
    )
    return extra
