"""One request and its response: between the bytes of a connection and an application.

Owns: ``HttpServerResponse``: reading the request, calling the application as PEP 3333
wants it, sending what it returns, errors.
Leaves: the grammar to ``wire.http11``, heads to ``head``, environments to ``environ``,
settings and threads to ``Site``.

Theory of operation. ``data_received`` finds the head of a request, and its body, if it
has one, is kept until it is complete. Then the application is called. What most of
them return, a list with one piece of bytes, is written at once, head and body. An
iterable is sent piece by piece for as long as the client reads; when it does not, or
when the application returns something to await, a task goes on from there.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from ...errors import PulsarException
from ...protocols.consumer import ProtocolConsumer
from ...wire.http11 import (
    CHUNKED,
    CONTINUE,
    IncompleteMessage,
    MessageRefused,
    Request,
    RequestParser,
    answer_framing,
    has_body,
    last_chunk,
    render_chunk,
)
from .environ import NO_INPUT, EmptyInput, connection_environ, new_input
from .head import Plan
from .site import Site

if TYPE_CHECKING:
    from ...config import Config
    from ...protocols.connection import Connection

__all__ = ["HttpServerResponse"]

logger = logging.getLogger("pulsar.wsgi")

_END = object()

# Seconds for which a client that was refused may go on sending before we hang up: what
# it has sent and we have not read would take our answer away from it.
_LINGER = 2.0

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


class HttpServerResponse(ProtocolConsumer):
    """Server side of one HTTP/1.1 request: a ``ProtocolConsumer``.

    :param wsgi_callable: the application
    :param cfg: the settings of a ``WSGIServer``
    :param server_software: for the field ``Server``
    """

    # Classes made by ``bound`` have what their constructor would get.
    site: Site

    # Set when it is needed: one of these objects is made for each request.
    _parser: RequestParser | None = None
    _input: IO[bytes] | EmptyInput = NO_INPUT
    _plan: Plan | None = None
    _framing = 0
    _left = 0
    _keep_alive = False
    _result: Any = None
    _sent = False
    _refused = False
    _expects = False

    #: The response line and the headers, as they were sent; None before.
    headers_sent: bytes | None = None

    def __init__(
        self,
        wsgi_callable: Callable[..., Any],
        cfg: Config,
        server_software: str | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(loop)
        self.site = Site(wsgi_callable, cfg, server_software)

    @classmethod
    def bound(cls, site: Site) -> type[HttpServerResponse]:
        """A subclass for ``site``, which a connection can make without calling anything."""
        return type(cls.__name__, (cls,), {"site": site, "__init__": ProtocolConsumer.__init__})

    @property
    def wsgi_callable(self) -> Callable[..., Any]:
        """The application."""
        return self.site.application

    # Reading the request

    def data_received(self, data: bytes) -> bytes | None:
        """Read the request; when it is complete, have it answered."""
        parser = self._parser
        if parser is None:
            request = self.site.heads.find(data)
            if request is not None:
                size = request.size
                if not request.body:
                    self._serve(request, NO_INPUT)
                    return data[size:] if size < len(data) and self._keep_alive else None
                data = data[size:]
            parser = self._parser = RequestParser(self.site.heads, request)
        if self._refused:
            return None  # see _refuse
        try:
            rest = parser.feed(data)
        except MessageRefused as exc:
            self._refuse(exc.status, exc.reason)
            return None
        request = parser.request
        if request is None:
            return None
        if not parser.complete:
            self._wait_for_the_body(parser, request)
            return None
        body = parser.read()
        if self._input is NO_INPUT:
            if body:
                self._input = new_input()
                self._input.write(body)
                self._input.seek(0)
        else:
            self._input.write(body)  # type: ignore[union-attr]
            self._input.seek(0)  # type: ignore[union-attr]
        self._serve(request, self._input)
        return rest if rest and self._keep_alive else None

    def _wait_for_the_body(self, parser: RequestParser, request: Request) -> None:
        body = parser.read()
        if request.expect_continue and not self._expects:
            self._expects = True
            if not body:
                self._put(CONTINUE)
        if body:
            if self._input is NO_INPUT:
                self._input = new_input()
            self._input.write(body)  # type: ignore[union-attr]

    def eof_received(self) -> None:
        """The client has ended its side; in the middle of a request that is an error."""
        parser = self._parser
        if parser is not None and not parser.complete and not self._refused:
            try:
                parser.eof()
            except (IncompleteMessage, MessageRefused) as exc:
                self._refuse(400, str(exc))

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone: the application is told by the end of its iterable."""
        self._close_all()
        self.finished(exc=exc)

    # Calling the application

    def _serve(self, request: Request, body: IO[bytes] | EmptyInput) -> None:
        connection = self.connection
        assert connection is not None
        site = self.site
        environ = request.environ.copy()
        environ.update(connection.extra or _of_connection(connection))
        environ["wsgi.input"] = body
        self.request = request
        self._keep_alive = request.keep_alive and not connection.ending
        if site.root_path:
            site.mount(environ)
        if site.pool is not None:
            self.create_task(self._serve_in_thread(environ))
            return
        try:
            result = site.application(environ, self.start_response)
            if type(result) is list and len(result) == 1 and type(result[0]) is bytes:
                self._send_whole(result[0])
                self._end()
            else:
                self._deliver(result)
        except Exception as exc:
            self._fail(exc)

    def _deliver(self, result: Any) -> None:
        """Send what the application has returned, for as long as nobody has to wait."""
        if inspect.isawaitable(result) or hasattr(result, "__aiter__"):
            self.create_task(self._deliver_later(result))
            return
        self._result = result
        if isinstance(result, list | tuple) and not any(map(inspect.isawaitable, result)):
            self._send_whole(b"".join(result))
            self._end()
            return
        pieces = iter(result)
        while True:
            piece = next(pieces, _END)
            if piece is _END:
                self._end()
                return
            if inspect.isawaitable(piece):
                self.create_task(self._deliver_rest(pieces, piece, None))
                return
            waiter = self._send(piece)  # type: ignore[arg-type]
            if waiter:
                self.create_task(self._deliver_rest(pieces, None, waiter))
                return

    async def _deliver_later(self, result: Any) -> None:
        try:
            if hasattr(result, "__aiter__"):
                self._result = result
                async for piece in result:
                    await self._send(piece)
                self._end()
                return
            result = await result
            if inspect.isawaitable(result) or hasattr(result, "__aiter__"):
                await self._deliver_later(result)
                return
        except Exception as exc:
            self._fail(exc)
            return
        try:
            self._deliver(result)
        except Exception as exc:
            self._fail(exc)

    async def _deliver_rest(self, pieces: Iterator[Any], piece: Any, waiter: Any) -> None:
        try:
            if waiter is not None:
                await waiter
            while True:
                if piece is None:
                    piece = next(pieces, _END)
                if piece is _END:
                    self._end()
                    return
                if inspect.isawaitable(piece):
                    piece = await piece
                await self._send(piece)
                piece = None
        except Exception as exc:
            self._fail(exc)

    # In a thread

    async def _serve_in_thread(self, environ: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        try:
            whole = await loop.run_in_executor(self.site.pool, self._run_in_thread, environ, loop)
            if inspect.isawaitable(whole) or hasattr(whole, "__aiter__"):
                await self._deliver_later(whole)
            elif whole is not None:
                self._send_whole(whole)
                self._end()
            else:
                self._end()
        except Exception as exc:
            self._fail(exc)

    def _run_in_thread(self, environ: dict[str, Any], loop: asyncio.AbstractEventLoop) -> Any:
        """Call the application and drain what it returns; a whole body is left to the loop."""
        result = self._result = self.site.application(environ, self.start_response)
        if inspect.isawaitable(result) or hasattr(result, "__aiter__"):
            return result
        if isinstance(result, list | tuple):
            return b"".join(result)
        for piece in result:
            asyncio.run_coroutine_threadsafe(self._send_and_wait(piece), loop).result()
        return None

    async def _send_and_wait(self, piece: bytes) -> None:
        await self._send(piece)
        transport = self.transport  # everything written is handed to it
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")

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
                if self._sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._plan is not None:
            raise PulsarException("start_response was called before, and there is no exc_info")
        self._plan = self.site.responses.plan(status, response_headers)
        return self.write

    def write(self, data: bytes, force: bool = False) -> Any:  # type: ignore[override]
        """Send a piece of the body, as PEP 3333 wants it from ``start_response``.

        :param force: send the head even if there is no data yet

        Returns an awaitable that is done when more can be written.
        """
        return self._send(data, force)

    # Sending

    def _put(self, data: bytes) -> Any:
        return ProtocolConsumer.write(self, data)

    def _head(self, plan: Plan, length: int | None) -> bytes:
        """The head of the response, for a body of ``length`` bytes; None: not known yet."""
        request = self.request
        own = [plan.head, self.site.responses.own_lines(plan)]
        announced = plan.length if plan.length is not None else length
        framing, keep_alive = answer_framing(
            request.method, request.minor, plan.code, announced, self._keep_alive
        )
        self._framing = framing
        self._keep_alive = keep_alive
        if has_body(request.method, plan.code):
            if framing == CHUNKED:
                own.append(b"Transfer-Encoding: chunked\r\n")
            elif framing >= 0 and plan.length is None:
                own.append(b"Content-Length: %d\r\n" % framing)
        if not keep_alive:
            own.append(b"Connection: close\r\n")
        elif not request.minor:
            own.append(b"Connection: keep-alive\r\n")
        own.append(b"\r\n")
        self._sent = True
        self._left = framing
        head = self.headers_sent = b"".join(own)
        return head

    def _send_whole(self, body: bytes) -> None:
        """Send a response whose body is all there."""
        if self._sent:
            self._send(body)
            return
        plan = self._plan
        if plan is None:
            raise PulsarException("the application has returned without start_response")
        head = self._head(plan, len(body))
        if self._framing != len(body):
            body = self._fit(body)
        elif body:
            self._left = 0
        self._put(head + body if body else head)

    def _fit(self, data: bytes) -> bytes:
        """What of ``data`` fits into the length that was announced."""
        request, plan = self.request, self._plan
        assert plan is not None
        if self._framing < 0:
            return render_chunk(data) if self._framing == CHUNKED else data
        if not has_body(request.method, plan.code):
            return b""
        if len(data) > self._left:
            logger.error(
                "%s %s: the body is longer than its Content-Length: cut off",
                request.method,
                request.target,
            )
            data = data[: self._left]
        self._left -= len(data)
        return data

    def _send(self, data: bytes, force: bool = False) -> Any:
        """Send a piece of the body, and the head before the first one."""
        if type(data) is not bytes and not isinstance(data, bytes):
            raise TypeError(f"an application's body is made of bytes, not of {type(data).__name__}")
        if self._sent:
            # Each piece is on its way before the next one is asked for.
            if self.transport is None:
                return ()
            return self._put(self._fit(data)) if data else ()
        plan = self._plan
        if plan is None:
            raise PulsarException("the application has sent a body before start_response")
        if not data and not force:
            return ()
        head = self._head(plan, None)
        return self._put(head + self._fit(data))

    def _end(self) -> None:
        """The response is complete."""
        if self._plan is None:
            raise PulsarException("the application has returned without start_response")
        if not self._sent:
            self._send_whole(b"")
        if self._framing == CHUNKED:
            self._put(last_chunk())
        elif self._left > 0 and has_body(self.request.method, self._plan.code):
            self._close_all()
            raise PulsarException(f"the body is {self._left} bytes shorter than its Content-Length")
        self._close_all()
        self._done()

    def _done(self) -> None:
        connection = self.connection
        if self._keep_alive:
            self.finished()
        elif connection is not None:
            connection.last_request()
            self.finished()

    def _close_all(self) -> None:
        """Close what the application has returned, and what it has read from."""
        result, self._result = self._result, None
        if result is not None and hasattr(result, "close"):
            try:
                result.close()
            except Exception:
                logger.exception("close() of what the application has returned failed")
        if self._input is not NO_INPUT:
            self._input.close()
            self._input = NO_INPUT

    # Errors

    def _fail(self, exc: BaseException) -> None:
        """The application has failed: a plain 500, if nothing has been sent yet."""
        connection = self.connection
        request = self.request
        self._close_all()
        if connection is None or connection.closing:
            return  # the client has gone, and the error is about that
        logger.error("%s %s failed", request.method, request.target, exc_info=exc)
        if self._sent:
            connection.abort()
            return
        self._plan = None
        self._keep_alive = False
        self._answer_error(500, "The application has failed.")
        self._done()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer what is no request, and read nothing of what follows."""
        connection = self.connection
        assert connection is not None
        self._refused = True
        self._keep_alive = False
        logger.info("request from %s refused: %d %s", connection.address, status, reason)
        self._answer_error(status, reason)
        self._close_all()
        connection.close_gently(_LINGER)

    def _answer_error(self, status: int, reason: str) -> None:
        text = f"{reason}\n".encode("latin-1", "replace")
        phrase = _REASONS.get(status, "Error")
        plan = self.site.responses.plan(
            f"{status} {phrase}",
            (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))),
        )
        lines = (plan.head, self.site.responses.own_lines(plan), b"Connection: close\r\n\r\n")
        head = self.headers_sent = b"".join(lines)
        self._sent = True
        self._put(head + text)


def _of_connection(connection: Connection) -> dict[str, Any]:
    """The connection's part of an environment; kept with it."""
    transport = connection.transport
    extra = connection.extra = connection_environ(
        transport.get_extra_info("sockname"),
        transport.get_extra_info("peername"),
        secure=transport.get_extra_info("sslcontext") is not None,
    )
    return extra
