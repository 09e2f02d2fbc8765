"""Heads and chunks to be sent.

Owns: making bytes of them, and refusing what would make other bytes of them than
was meant: a CR or LF in a header begins another header.
Leaves: which headers to send, and the framing, to the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InvalidMessage
from .headers import field_line
from .http11_start import request_line, status_line

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CONTINUE", "last_chunk", "render_chunk", "render_request", "render_response"]

#: Tells a peer that waits for it to send the body.
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_CACHED = 256
_status_lines: dict[str, bytes] = {}


def render_response(status: str, headers: Iterable[tuple[str, str]], own: bytes = b"") -> bytes:
    """The head of a response, the empty line included.

    :param status: like "200 OK"
    :param headers: names and values; Latin-1
    :param own: more header lines, each with its CRLF, which are not checked

    Raises ``InvalidMessage`` for control characters and what else cannot be sent.
    """
    line = _status_lines.get(status)
    if line is None:
        line = status_line(status)
        if len(_status_lines) >= _CACHED:
            _status_lines.clear()
        _status_lines[status] = line
    return b"".join([line, *[field_line(name, value) for name, value in headers], own, b"\r\n"])


def render_request(
    method: str, target: str, headers: Iterable[tuple[str, str]], own: bytes = b""
) -> bytes:
    """The head of a request: see ``render_response``. Raises ``InvalidMessage``."""
    lines = [field_line(name, value) for name, value in headers]
    return b"".join([request_line(method, target), *lines, own, b"\r\n"])


def render_chunk(data: bytes) -> bytes:
    """``data`` as a chunk; nothing for nothing, for an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    """The end of a chunked body. Raises ``InvalidMessage`` for a trailer that cannot be sent."""
    lines = []
    for name, value in trailers:
        if name.lower() in _NO_TRAILERS:
            raise InvalidMessage(f"{name} cannot be a trailer: it is needed before the body")
        lines.append(field_line(name, value))
    return b"".join([b"0\r\n", *lines, b"\r\n"])


# RFC 9110 section 6.5.1: what frames or routes a message.
_NO_TRAILERS = frozenset(
    {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
