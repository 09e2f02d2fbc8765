"""The heads of responses: checked, classified and rendered once for each that differs.

Owns: ``Plan``, what ``start_response`` makes of a status and headers; ``Heads``, which
keeps them, and the lines that a server adds.
Leaves: the grammar of a line to ``wire.http11``, the body to ``response``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import gmtime, monotonic, time

from ...errors import InvalidMessage
from ...wire.http11 import field_line, has_framing_fields
from ...wire.http11_start import status_line

__all__ = ["CLOSE", "HOP_HEADERS", "KEEP_ALIVE", "Heads", "Plan", "length_line"]

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
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"

# What a header is to us. One that is new each time is not worth keeping, nor is its head.
_PLAIN, _LENGTH, _HOP, _DATE, _SERVER, _NEW = range(6)
_ROLES = {
    "content-length": _LENGTH,
    "date": _DATE,
    "server": _SERVER,
    **dict.fromkeys(HOP_HEADERS, _HOP),
    **dict.fromkeys(["set-cookie", "x-request-id"], _NEW),
}

# Full, a cache is emptied: what is in use comes back at once. What is longer, in bytes, is
# not kept.
_CACHED = 512
_CACHED_LINE = 256
_CACHED_HEAD = 2048

# Pairs of names and values: their lines, and what they are to us.
_known: dict[tuple[str, str], tuple[bytes, int]] = {}
_statuses: dict[str, tuple[bytes, int]] = {}

_warned: set[str] = set()

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Plan:
    """A status and headers, ready to be sent."""

    __slots__ = (
        "bodied",
        "code",
        "dated",
        "head",
        "length",
        "named",
        "own",
        "recurs",
        "size",
        "whole",
    )

    def __init__(self, status: str, headers: Sequence[tuple[str, str]]) -> None:
        """Raises ``InvalidMessage`` for what cannot be sent."""
        line, code = _statuses.get(status) or _look_at_status(status)
        lines = [line]
        #: From 200 to 599: what informs is not sent by ``start_response``.
        self.code = code
        #: A response to GET has a body, if an empty one (RFC 9110 section 6.4.1).
        self.bodied = code not in {204, 304}
        #: The length that the application has announced, in bytes; None: it has not.
        self.length: int | None = None
        #: It says itself when it was made.
        self.dated = False
        #: It says itself what has made it.
        self.named = False
        #: It is likely to be asked for again.
        self.recurs = True
        known = _known.get
        for pair in headers:
            line, role = known(pair) or _look_at(pair)
            if role:
                if role == _HOP:
                    _warn_once(pair[0])
                    continue
                if role == _LENGTH:
                    self._announce(pair[1])
                    if not has_framing_fields(code):
                        continue
                elif role == _DATE:
                    self.dated = True
                elif role == _SERVER:
                    self.named = True
                else:
                    self.recurs = False
            lines.append(line)
        #: The status line and the header lines.
        self.head = b"".join(lines)
        # The whole head for a body of ``size`` bytes, made with ``own``: see Heads.whole.
        self.whole = self.own = b""
        self.size = -1

    def plus(self, line: bytes) -> Plan:
        """The same with a header line more, which is new each time."""
        plan = object.__new__(Plan)
        plan.head = self.head + line
        plan.code, plan.bodied, plan.length = self.code, self.bodied, self.length
        plan.dated, plan.named, plan.recurs = self.dated, self.named, False
        plan.whole = plan.own = b""
        plan.size = -1
        return plan

    def _announce(self, value: str) -> None:
        if self.length is not None or not (value.isascii() and value.isdigit()):
            raise InvalidMessage(f"Content-Length cannot be {value!r}, or be given twice")
        self.length = int(value)


def _look_at_status(status: str) -> tuple[bytes, int]:
    """The line of a status, and its code. Raises ``InvalidMessage``."""
    if not isinstance(status, str):
        raise InvalidMessage(f"a status is a str, not {status!r}")
    line = status_line(status)
    code = int(status[:3])
    if not 200 <= code <= 599:
        raise InvalidMessage(f"{status!r} cannot end a request: its code is from 200 to 599")
    if len(_statuses) >= _CACHED:
        _statuses.clear()
    _statuses[status] = found = line, code
    return found


def _look_at(pair: tuple[str, str]) -> tuple[bytes, int]:
    """The line of a header, and what it is to us. Raises ``InvalidMessage``."""
    try:
        name, value = pair
    except (TypeError, ValueError):
        raise InvalidMessage(f"a header is a pair of a name and a value, not {pair!r}") from None
    line = field_line(name, value)
    found = line, _ROLES.get(name.lower(), _PLAIN)
    if found[1] != _NEW and len(line) <= _CACHED_LINE:
        if len(_known) >= _CACHED:
            _known.clear()
        _known[name, value] = found
    return found


def _warn_once(name: str) -> None:
    lowered = name.lower()
    if lowered not in _warned:
        _warned.add(lowered)
        logger.warning(
            "the application has set the header %s, which is between us and the client: dropped",
            name,
        )


def length_line(size: int) -> bytes:
    """``Content-Length`` for a body of ``size`` bytes."""
    return b"Content-Length: %d\r\n" % size


def http_date(second: int) -> str:
    """The date of ``second``, since the epoch, as fields have it (RFC 9110 section 5.6.7)."""
    year, month, day, hour, minute, sec, weekday, *_ = gmtime(second)
    return (
        f"{_DAYS[weekday]}, {day:02d} {_MONTHS[month - 1]} {year:04d} "
        f"{hour:02d}:{minute:02d}:{sec:02d} GMT"
    )


class Heads:
    """The plans of one server, and the lines that it adds to each of them.

    :param server: for the field ``Server``; None: there is none
    """

    __slots__ = ("_date", "_server", "known", "own", "until")

    def __init__(self, server: str | None) -> None:
        #: Some that were made: for who cannot spare a call.
        self.known: dict[tuple[object, ...], Plan] = {}
        self._server = field_line("Server", server) if server is not None else b""
        self._date = b""
        #: ``Date`` and ``Server``; another object for each second.
        self.own = b""
        #: When ``own`` is out of date, by the monotonic clock.
        self.until = 0.0

    def plan(self, status: str, headers: Sequence[tuple[str, str]]) -> Plan:
        """The plan for a status and headers. Raises ``InvalidMessage``."""
        if type(headers) is not list and not isinstance(headers, list | tuple):
            raise InvalidMessage(f"headers are a list of pairs, not {type(headers).__name__}")
        key = (status, *headers)
        try:
            plan = self.known.get(key)
        except TypeError:  # a pair is a list
            return Plan(status, [tuple(pair) for pair in headers])
        if plan is None:
            plan = Plan(status, headers)
            if plan.recurs and len(plan.head) <= _CACHED_HEAD:
                if len(self.known) >= _CACHED:
                    self.known.clear()
                self.known[key] = plan
        return plan

    def tick(self) -> None:
        """Another second has begun: ``Date`` (RFC 9110 section 6.6.1) and ``Server``."""
        now = time()
        second = int(now)
        self.until = monotonic() + second + 1 - now
        self._date = f"Date: {http_date(second)}\r\n".encode()
        self.own = self._date + self._server

    def own_lines(self, plan: Plan) -> bytes:
        """What we add to ``plan``: ``Date`` and ``Server``, unless it has them."""
        if monotonic() >= self.until:
            self.tick()
        if plan.dated or plan.named:
            return (b"" if plan.dated else self._date) + (b"" if plan.named else self._server)
        return self.own

    def whole(self, plan: Plan, size: int) -> bytes:
        """The whole head for a body of ``size`` bytes, to a client that gets nothing special."""
        lines = [plan.head, self.own_lines(plan)]
        if plan.length is None:
            lines.append(length_line(size))
        lines.append(b"\r\n")
        plan.own = self.own
        plan.size = size
        plan.whole = whole = b"".join(lines)
        return whole
