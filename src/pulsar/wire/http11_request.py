"""Requests, as a server reads them.

Owns: ``Request``; ``RequestHeads``, the quick way to one; ``RequestParser``, the
careful way, and the way to its body.
Leaves: the environment of an application, and every answer, to the server.

Theory of operation. Nearly every head arrives whole, is well-formed, and has come
before: clients repeat themselves. So heads that came twice are looked up by
their bytes, first as a whole, then without the request line. What is new is
split by a few calls that only ever accept. What they do not accept goes through
``RequestParser``, line by line: it alone refuses, and it accepts the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from .headers import Fields, split_fields
from .http11_framing import RequestFraming, request_framing
from .http11_limits import Limits, MessageRefused
from .http11_message import MessageParser
from .http11_start import RequestLine, plain_target, read_request_line

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KNOWN_LENGTH", "Request", "RequestHeads", "RequestParser"]

# Heads up to this many bytes are kept, so many of them, and so many without their
# targets. Full, a cache is emptied: what is in use comes back at once.
KNOWN_LENGTH = 2048
_CACHED = 256
_SEEN = 2048

_VERSIONS = ("HTTP/1.0", "HTTP/1.1")


class Request:
    """The head of a request. Do not change it: equal heads share one."""

    __slots__ = (
        "authority",
        "body",
        "environ",
        "expect_continue",
        "extra",
        "fields",
        "keep_alive",
        "method",
        "minor",
        "path",
        "query",
        "size",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        line: RequestLine,
        fields: Fields,
        framing: RequestFraming,
        size: int,
        constants: Mapping[str, Any],
    ) -> None:
        #: See ``RequestLine``, and ``RequestFraming`` for the next four.
        method, target, path, query, authority, minor = line
        self.method = method
        self.target = target
        self.path = path
        self.query = query
        self.authority = authority
        self.minor = minor
        self.body, self.keep_alive, self.expect_continue, self.upgrade = framing
        self.fields = fields
        #: For servers: what they make of this head, once for all that are equal.
        self.extra: Any = None
        #: Of the head, in bytes, from the request line on.
        self.size = size
        #: The constants, what CGI has for the head (RFC 3875 section 4.1), and ``RAW_URI``.
        #: Copied, it is an application's environment but for what belongs to the connection.
        self.environ: dict[str, Any] = {**constants, **fields.cgi}
        environ = self.environ
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = target
        environ["QUERY_STRING"] = query
        environ["SERVER_PROTOCOL"] = _VERSIONS[minor]
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        environ["PATH_INFO"] = path if path != "*" else ""
        if authority is not None:
            environ["HTTP_HOST"] = authority

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target}>"


class RequestHeads:
    """Finds requests by the bytes of their heads. One serves many connections."""

    __slots__ = ("_longest", "_rests", "_seen", "constants", "known", "limits")

    def __init__(
        self, limits: Limits | None = None, constants: Mapping[str, Any] | None = None
    ) -> None:
        """``constants``: what the environment of every request begins with."""
        self.constants = dict(constants or {})
        self.limits = limits = Limits() if limits is None else limits
        #: Some that were found, by their whole heads: for who cannot spare a call.
        self.known: dict[bytes, Request] = {}
        # The hashes of what has come once.
        self._seen: set[int] = set()
        # By what follows "HTTP/1." in a head.
        self._rests: dict[bytes, tuple[int, Fields, RequestFraming]] = {}
        # No line in a head up to this length is too long.
        self._longest = min(limits.start_line, limits.field, limits.head)

    def find(self, data: bytes) -> Request | None:
        """The request whose head ``data`` begins with.

        None when the head is not complete, and when it needs a closer look: give
        ``data`` to a ``RequestParser`` then. The body begins at ``request.size``.
        """
        size = len(data)
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > self._longest:
            return None
        if end < size:
            data = data[:end]
        request = self.known.get(data) if end <= KNOWN_LENGTH else None
        if request is not None:
            return request
        begin, _, rest = data.partition(b" HTTP/1.")
        match = plain_target(begin.decode("latin-1"))
        if match is None:
            return None
        known = self._rests.get(rest) or self._split(rest)
        if known is None:
            return None
        minor, fields, framing = known
        method, target, path, query = match.groups("")
        line = method, target, path, query, None, minor
        request = Request(line, fields, framing, end, self.constants)
        if end <= KNOWN_LENGTH and self._again(data):
            if len(self.known) >= _CACHED:
                self.known.clear()
            self.known[data] = request
        return request

    def _again(self, key: bytes) -> bool:
        """True when it has come before: what never comes again is not worth keeping."""
        number = hash(key)
        if number in self._seen:
            return True
        if len(self._seen) >= _SEEN:
            self._seen.clear()
        self._seen.add(number)
        return False

    def _split(self, rest: bytes) -> tuple[int, Fields, RequestFraming] | None:
        """What follows from ``rest``: the minor version, a line end, and the fields."""
        version = rest[:3]
        if version not in {b"1\r\n", b"0\r\n"}:
            return None
        minor = 1 if version == b"1\r\n" else 0
        try:
            fields = split_fields(rest[3:])
            framing = request_framing("", minor, fields.cgi, self.limits)
        except MessageRefused:
            return None
        if len(fields) > self.limits.fields:
            return None
        known = minor, fields, framing
        if len(rest) <= KNOWN_LENGTH and self._again(rest):
            if len(self._rests) >= _CACHED:
                self._rests.clear()
            self._rests[rest] = known
        return known


class RequestParser(MessageParser):
    """Reads one request, from its head or from its body on."""

    __slots__ = ("_heads", "_request_line", "request")

    def __init__(self, heads: RequestHeads, request: Request | None = None) -> None:
        """``request``: where its head has been found already; what is fed is its body."""
        super().__init__(heads.limits)
        self._heads = heads
        self._request_line: RequestLine | None = None
        #: Once the head is complete and accepted.
        self.request = request
        if request is not None:
            self.begin_body(request.body)

    def feed(self, data: bytes) -> bytes:
        if self._fresh:
            request = self._heads.find(data)
            if request is not None:
                self.request = request
                self.begin_body(request.body)
                data = data[request.size :]
        return super().feed(data)

    def eof(self) -> None:
        """The peer has ended its side; before a request it may.

        Raises ``IncompleteMessage`` when that was inside the request.
        """
        if self.started or self._error is not None:
            super().eof()

    def _start_line(self, line: str) -> None:
        self._request_line = read_request_line(line)

    def _head(self, fields: Fields) -> int:
        line = self._request_line
        assert line is not None
        method, *_, minor = line
        framing = request_framing(method, minor, fields.cgi, self._limits)
        self.request = Request(line, fields, framing, self._size, self._heads.constants)
        return framing[0]

    def _too_long(self, line: bytes, status: int, what: str) -> MessageRefused:
        if status == 414 and b" " not in line:
            # RFC 9112 section 3: a method longer than any.
            return MessageRefused(501, "The method is too long.")
        return super()._too_long(line, status, what)
