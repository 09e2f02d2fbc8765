"""What an HTTP/1.1 message may weigh, and what is raised for one that is not accepted.

Owns: ``Limits``; ``MessageRefused`` and ``IncompleteMessage``.
Leaves: finding out to the parsers, the answer and its log line to the server.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ProtocolError

__all__ = ["IncompleteMessage", "Limits", "MessageRefused"]

KIB = 1024
GIB = 1024 * 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted of a peer. Sizes in bytes, without the CRLF that ends a line."""

    #: Of the request line or status line. Above it: 414.
    start_line: int = 8190
    #: Of one field line, and of the line in front of a chunk. Above it: 431, or 400 for a chunk.
    field: int = 8190
    #: How many fields a head has, and how many trailers a body. Above it: 431.
    fields: int = 100
    #: Of a whole head, or of all trailers, line ends included. Above it: 431.
    head: int = 64 * KIB
    #: Of a body, without the chunks' own lines. Above it: 413.
    body: int = GIB
    #: Of all chunk extensions in one body. Above it: 400.
    chunk_extensions: int = 16 * KIB
    #: True: let CONNECT through, for a proxy. Otherwise it is refused with 501.
    connect: bool = False


class MessageRefused(ProtocolError):  # noqa: N818 - it says what happened
    """The peer sent a message that is not accepted: nothing behind it may be read.

    The text is one sentence that says what is wrong. It quotes nothing that the
    peer sent, so it may be shown to anybody.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        #: The status of the answer: 4xx or 5xx. 502 for what a server sent.
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class IncompleteMessage(ProtocolError):  # noqa: N818 - it says what happened
    """The peer ended its side inside a message."""
