"""Responses, as a client reads them.

Owns: ``Response`` and ``ResponseParser``.
Leaves: what to do with it to the client, also with one that is not the last:
after a status of 100 to 199, but 101, another response follows.
"""

from __future__ import annotations

from typing import NamedTuple

from .headers import Fields
from .http11_framing import response_framing
from .http11_limits import Limits, MessageRefused
from .http11_message import MessageParser
from .http11_start import read_status_line

__all__ = ["Response", "ResponseParser"]


class Response(NamedTuple):
    """The head of a response."""

    #: 0 for HTTP/1.0, 1 for HTTP/1.1 and what calls itself newer than that.
    minor: int
    #: From 100 to 999.
    status: int
    #: May be empty.
    reason: str
    fields: Fields
    #: The length of the body, CHUNKED or UNTIL_CLOSE.
    body: int
    #: The connection may be used for another request once the body has been read.
    keep_alive: bool


class ResponseParser(MessageParser):
    """Reads one response."""

    __slots__ = ("_method", "_status_line", "response")

    def __init__(self, method: str = "GET", limits: Limits | None = None) -> None:
        """``method``: of the request that it answers; it decides whether there is a body."""
        super().__init__(Limits() if limits is None else limits)
        self._method = method
        self._status_line = (1, 0, "")
        #: Once the head is complete and accepted.
        self.response: Response | None = None

    def _start_line(self, line: str) -> None:
        self._status_line = read_status_line(line)

    def _head(self, fields: Fields) -> int:
        minor, status, reason = self._status_line
        body, keep_alive = response_framing(self._method, minor, status, fields.cgi, self._limits)
        self.response = Response(minor, status, reason, fields, body, keep_alive)
        return body

    def _blame(self, error: MessageRefused) -> MessageRefused:
        return MessageRefused(502, error.reason)  # what a gateway answers (RFC 9110 section 15.6.3)
