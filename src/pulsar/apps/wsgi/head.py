"""The heads of responses: checked, classified and rendered once for each that differs.

Owns: ``Plan``, what ``start_response`` makes of a status and headers; ``Heads``, which
keeps them, and the lines that a server adds.
Leaves: the bytes of a line to ``wire.http11``, the body to ``response``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from email.utils import formatdate

from ...errors import InvalidMessage
from ...wire.http11 import field_line, has_framing_fields
from ...wire.http11_start import status_line

__all__ = ["HOP_HEADERS", "Heads", "Plan"]

logger = logging.getLogger("pulsar.wsgi")

# RFC 9110 section 7.6.1: they are the server's business. An application's are dropped.
HOP_HEADERS = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# Full, the cache is emptied: what is in use comes back at once.
_CACHED = 512

_warned: set[str] = set()


class Plan:
    """A status and headers, ready to be sent."""

    __slots__ = ("code", "dated", "head", "length", "named")

    def __init__(self, status: str, headers: Sequence[tuple[str, str]]) -> None:
        """Raises ``InvalidMessage`` for what cannot be sent."""
        lines = [status_line(status)]
        self.code = int(status[:3])
        #: The length that the application has announced, in bytes; None: it has not.
        self.length: int | None = None
        #: It says itself when it was made.
        self.dated = False
        #: It says itself what has made it.
        self.named = False
        framed = has_framing_fields(self.code)
        for name, value in headers:
            line = field_line(name, value)
            lowered = name.lower()
            if lowered == "content-length":
                if self.length is not None or not (value.isascii() and value.isdigit()):
                    raise InvalidMessage(f"Content-Length cannot be {value!r}")
                self.length = int(value)
                if not framed:
                    continue
            elif lowered in HOP_HEADERS:
                _warn_once(name)
                continue
            elif lowered == "date":
                self.dated = True
            elif lowered == "server":
                self.named = True
            lines.append(line)
        #: The status line and the header lines.
        self.head = b"".join(lines)


def _warn_once(name: str) -> None:
    lowered = name.lower()
    if lowered not in _warned:
        _warned.add(lowered)
        logger.warning(
            "the application has set the header %s, which is between us and the client: dropped",
            name,
        )


class Heads:
    """The plans of one server, and the lines that it adds to each of them."""

    def __init__(self, server: str | None) -> None:
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._server = field_line("Server", server) if server is not None else b""
        self._second = -1
        self._date = self._both = b""

    def plan(self, status: str, headers: Sequence[tuple[str, str]]) -> Plan:
        """The plan for a status and headers. Raises ``InvalidMessage``."""
        key = (status, *headers)
        try:
            plan = self._plans.get(key)
        except TypeError:  # something is a list
            key = (status, *[(name, value) for name, value in headers])
            plan = self._plans.get(key)
        if plan is None:
            plan = Plan(status, headers)
            if len(self._plans) >= _CACHED:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def own_lines(self, plan: Plan) -> bytes:
        """``Date`` (RFC 9110 section 6.6.1) and ``Server``."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
            self._both = self._date + self._server
        if plan.dated or plan.named:
            return (b"" if plan.dated else self._date) + (b"" if plan.named else self._server)
        return self._both
