"""How long a body is, and whether the connection stays open.

Owns: the decisions of RFC 9112 sections 6.3 and 9.3, for what is received and
for what is to be sent, as pure functions.
Leaves: reading and writing the body.

A framing is an int: the length of the body in bytes, or ``CHUNKED``, or
``UNTIL_CLOSE``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from .http11_limits import MessageRefused
from .http11_start import split_host

if TYPE_CHECKING:
    from .http11_limits import Limits

__all__ = [
    "CHUNKED",
    "UNTIL_CLOSE",
    "RequestFraming",
    "answer_framing",
    "has_body",
    "has_framing_fields",
    "keeps_alive",
    "options",
    "request_framing",
    "response_framing",
]

#: The body is in chunks, and ends with an empty one.
CHUNKED: Final = -1
#: The body ends where the connection does. Only for responses.
UNTIL_CLOSE: Final = -2

# Longer than any length that is ever accepted, and short enough for int().
_MOST_DIGITS = 18
_is_length = re.compile(r"[0-9]+").fullmatch
# Hosts that are well-formed. Full, it is emptied: what is in use comes back at once.
_hosts: set[str] = set()
_KNOWN_HOSTS = 256
_KNOWN_HOST_LENGTH = 256

#: What follows a request's head. The body: its length or CHUNKED; whether the peer wants
#: to send another request behind it; whether it waits for 100 before it sends the body;
#: the protocols that it offers to change to, as it names them, or nothing.
RequestFraming = tuple[int, bool, bool, str]


def request_framing(method: str, minor: int, cgi: dict[str, str], limits: Limits) -> RequestFraming:
    """Judge a request's head as a whole; ``cgi`` are its fields.

    Raises ``MessageRefused``: 400, 413, 417 or 501.
    """
    host = cgi.get("HTTP_HOST")
    if host is None:
        if minor:
            raise MessageRefused(400, "Host is missing.")
    elif host not in _hosts:
        _look_at_host(host)
    connection = options(cgi.get("HTTP_CONNECTION"))
    keep_alive = keeps_alive(minor, connection)
    coding = cgi.get("HTTP_TRANSFER_ENCODING")
    length = cgi.get("CONTENT_LENGTH")
    if method == "CONNECT":
        if not limits.connect:
            raise MessageRefused(501, "CONNECT is not served here.")
        if coding is not None or length is not None:
            raise MessageRefused(400, "CONNECT has no body.")  # RFC 9110 section 9.3.6
    if coding is not None:
        _check_coding(coding, length, minor)
        body = CHUNKED
    elif length is not None:
        body = _content_length(length, limits.body)
    else:
        body = 0
    expect_continue = False
    upgrade = ""
    if minor:
        expect = cgi.get("HTTP_EXPECT")
        if expect is not None:
            if expect.lower() != "100-continue":
                raise MessageRefused(417, "Only 100-continue can be expected.")
            expect_continue = body != 0
        if "upgrade" in connection:
            upgrade = cgi.get("HTTP_UPGRADE", "")
    return body, keep_alive, expect_continue, upgrade


def _look_at_host(host: str) -> None:
    if split_host(host) is None:
        raise MessageRefused(400, "Host is malformed.")
    if len(host) <= _KNOWN_HOST_LENGTH:
        if len(_hosts) >= _KNOWN_HOSTS:
            _hosts.clear()
        _hosts.add(host)


def response_framing(
    method: str, minor: int, status: int, cgi: dict[str, str], limits: Limits
) -> tuple[int, bool]:
    """The body of a received response, and whether the connection may be used again.

    :param method: of the request that it answers
    :param cgi: the response's fields

    Raises ``MessageRefused``.
    """
    keep_alive = keeps_alive(minor, options(cgi.get("HTTP_CONNECTION")))
    if not has_body(method, status):
        return 0, keep_alive
    coding = cgi.get("HTTP_TRANSFER_ENCODING")
    length = cgi.get("CONTENT_LENGTH")
    if coding is not None:
        _check_coding(coding, length, minor)
        return CHUNKED, keep_alive
    if length is not None:
        return _content_length(length, limits.body), keep_alive
    return UNTIL_CLOSE, False


def answer_framing(
    method: str, minor: int, status: int, length: int | None, keep_alive: bool
) -> tuple[int, bool]:
    """How to send the body of an answer, and whether the connection stays open behind it.

    :param method: of the request, as ``minor``, its version
    :param length: of the body in bytes; None: not known yet
    :param keep_alive: False where the connection is to be closed anyway
    """
    if not has_body(method, status):
        return 0, keep_alive
    if length is not None:
        return length, keep_alive
    if minor:
        return CHUNKED, keep_alive
    return UNTIL_CLOSE, False


def has_body(method: str, status: int) -> bool:
    """True when a response with ``status`` to ``method`` has a body, if an empty one."""
    if method == "HEAD" or status < 200 or status in {204, 304}:
        return False
    return not (method == "CONNECT" and status < 300)


def has_framing_fields(status: int) -> bool:
    """True when Content-Length and Transfer-Encoding may be sent with ``status``.

    They may be with an answer to HEAD, and with 304, which have no body.
    """
    return status >= 200 and status != 204


def keeps_alive(minor: int, connection: frozenset[str]) -> bool:
    """True when the sender of a message wants to keep the connection (RFC 9112 section 9.3)."""
    return "close" not in connection and (minor == 1 or "keep-alive" in connection)


def options(connection: str | None) -> frozenset[str]:
    """The options in a Connection field, in lower case."""
    if connection is None:
        return _NO_OPTIONS
    return _OPTIONS.get(connection) or frozenset(
        [option.strip(" \t") for option in connection.lower().split(",")]
    )


_NO_OPTIONS: frozenset[str] = frozenset()
_OPTIONS = {one: frozenset([one.lower()]) for one in ("keep-alive", "Keep-Alive", "close")}


def _check_coding(coding: str, length: str | None, minor: int) -> None:
    if not minor:
        raise MessageRefused(400, "Transfer-Encoding is not part of HTTP/1.0.")
    if length is not None:
        raise MessageRefused(400, "Content-Length and Transfer-Encoding exclude each other.")
    *others, last = [one.strip(" \t") for one in coding.lower().split(",")]
    if last != "chunked":
        raise MessageRefused(400, "Transfer-Encoding does not end in chunked.")
    if "chunked" in others:
        raise MessageRefused(400, "Transfer-Encoding names chunked more than once.")
    if "" in others:
        raise MessageRefused(400, "Transfer-Encoding is malformed.")
    if others:
        raise MessageRefused(501, "No transfer coding but chunked is understood.")


def _content_length(length: str, limit: int) -> int:
    if not _is_length(length):
        if "," in length:
            raise MessageRefused(400, "Content-Length is given more than once.")
        raise MessageRefused(400, "Content-Length is not a number.")
    digits = length.lstrip("0") or "0"
    if len(digits) > _MOST_DIGITS or int(digits) > limit:
        raise MessageRefused(413, "The body is too large.")
    return int(digits)
