"""The access log: a line for each request, written together with its neighbours.

Owns: ``AccessLog``: the format, with gunicorn's atoms, or JSON; the file.
Leaves: what has happened to the responses.

The lines of one turn of the loop are written with one system call: a crash loses no more
than those. What clients send is escaped: nothing in it
ends a line, or a value in quotes. It is also cut, so that a line with a few of them stays
below ``PIPE_BUF``: then the lines of several processes do not mix, in a pipe either.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import os
import re
import select
import stat
from collections.abc import Callable
from pathlib import Path
from time import localtime, monotonic, strftime, time
from typing import TYPE_CHECKING

from ...errors import ImproperlyConfigured
from .request_id import ENVIRON_KEY

if TYPE_CHECKING:
    from ...wire.http11 import Request
    from .response import HttpServerResponse

__all__ = ["COMBINED", "AccessLog", "access_format"]

logger = logging.getLogger("pulsar.wsgi")

#: gunicorn's default, and Apache's combined format.
COMBINED = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'

_JSON = (
    '{"time": %(iso)s, "pid": %(pid)s, "remote_addr": %(h)s, "method": %(m)s, '
    '"target": %(target)s, "protocol": %(H)s, "status": %(s)s, "bytes": %(B)s, '
    '"seconds": %(L)s, "referer": %(f)s, "user_agent": %(a)s, "request_id": %({x-request-id}i)s}'
)

_atom = re.compile(r"%(?:\(([^)]*)\)s|(.?))")
_with_name = re.compile(r"\{([^}]+)\}([ioe])").fullmatch

# What is kept of a value that comes from outside, in characters, escapes included: and of
# one that is nothing but escapes.
_KEPT = 1000
_KEPT_OF_ESCAPES = _KEPT // 6
_odd = re.compile(r"[^ !#-\[\]-~]")

# So many values, and addresses, are kept as they are written, if they are this long at most.
_CACHED = 512
_CACHED_LENGTH = 256

# Lines are written when the turn of the loop ends or, if it is a long one, so many. Where a
# reader is slow it is tried again after so many seconds, and so many bytes may wait for it.
_LINES = 250
_FLUSH = 0.1
_WAITING = 1024 * 1024

# Seconds between looks whether the file has been moved, and between complaints.
_LOOK = 1.0
_COMPLAIN = 60.0

OfRequest = Callable[["Request"], str | None]
OfResponse = Callable[["HttpServerResponse"], object]


def access_format(value: object) -> str:
    """A setting's value: ``json``, or a text with atoms. Raises ``ValueError``."""
    if not isinstance(value, str) or not value:
        raise ValueError("give json, or a text with atoms such as %(h)s")
    if value != "json":
        if "%(" not in value:
            raise ValueError("there is no atom in it, such as %(h)s, and it is not json")
        for match in _atom.finditer(value):
            if match[2] != "%" and not _is_known(match[1]):
                raise ValueError(f"there is no atom {match[0]}")
    return value


def _is_known(atom: str | None) -> bool:
    return (
        atom in _CONSTANT
        or atom in _REQUEST
        or atom in _RESPONSE
        or bool(atom and _with_name(atom))
    )


class AccessLog:
    """Writes a line for each response it is told of.

    :param path: of the file, which is appended to; ``-``: standard output
    :param layout: see ``access_format``
    :param id_header: the header that names requests, which may be given a name by us

    Raises ``ImproperlyConfigured`` when the file cannot be opened.
    """

    def __init__(self, path: str, layout: str = COMBINED, id_header: str | None = None) -> None:
        self._path = None if path == "-" else path
        self._descriptor = 1 if self._path is None else _open(self._path)
        self._whole = _takes_whole_lines(self._descriptor)
        self._json = layout == "json"
        self._escape = _as_json if self._json else _as_text
        self._id_header = (id_header or "").lower()
        if self._json:
            layout = _JSON.replace("x-request-id", self._id_header or "x-request-id")
        self._frame, self._asks, self._gets = self._compile(layout)
        #: It says how long requests take.
        self.timed = any(f"%({atom})s" in layout for atom in "TMDL")
        # What has been escaped; clients repeat themselves.
        self._escaped: dict[str | None, str] = {}
        self._lines: list[str] = []
        self._waiting = b""
        self._looked = self._complained = monotonic() - _COMPLAIN

    def _compile(self, layout: str) -> tuple[str, list[OfRequest], list[OfResponse]]:
        """A line with %s for what gets escaped, %%s for the rest, and what gives the two."""
        texts: list[str] = []
        asks: list[OfRequest] = []
        gets: list[OfResponse] = []
        position = 0
        for match in _atom.finditer(layout):
            texts.append(layout[position : match.start()].replace("%", "%%%%"))
            position = match.end()
            atom = match[1]
            if atom is None:
                texts.append("%%%%")
            elif atom in _CONSTANT:
                texts.append(_CONSTANT[atom]().replace("%", "%%%%"))
            elif atom in _REQUEST:
                texts.append("%s")
                asks.append(_REQUEST[atom])
            elif atom in _RESPONSE:
                texts.append("%%s")
                gets.append(self._response_getter(atom))
            else:
                name, kind = _with_name(atom).groups()  # type: ignore[union-attr]
                if kind == "i" and name.lower() == self._id_header:
                    name, kind = ENVIRON_KEY, "e"
                if kind == "i":
                    texts.append("%s")
                    asks.append(_field_getter(name))
                else:
                    texts.append("%%s")
                    gets.append(self._named_getter(name, kind))
        texts.append(layout[position:].replace("%", "%%%%") + "\n")
        return "".join(texts), asks, gets

    def _response_getter(self, atom: str) -> OfResponse:
        if atom != "h":
            return _RESPONSE[atom]
        escape = self._escape
        known: dict[object, str] = {}

        def escaped(response: HttpServerResponse) -> str:
            environ = response.environ
            address = environ.get("REMOTE_ADDR") if environ is not None else _peer(response)
            found = known.get(address)
            if found is None:
                if len(known) >= _CACHED:
                    known.clear()
                found = known[address] = escape(str(address or ""))
            return found

        return escaped

    def _named_getter(self, name: str, kind: str) -> OfResponse:
        escape = self._escape
        get = _sent_field if kind == "o" else _variable
        return lambda response: escape(get(response, name))

    def log(self, response: HttpServerResponse) -> None:
        """Write the line for a response that is complete, or has ended otherwise."""
        request = response.request
        partial = (request and request.extra) or self._partial(request)
        self._lines.append(partial % tuple([get(response) for get in self._gets]))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_soon(self.flush)
        elif len(self._lines) >= _LINES:
            self.flush()

    def _partial(self, request: Request | None) -> str:
        """A request's line, with a %s for each of ``_gets``; kept with it."""
        known = self._escaped.get
        texts = []
        for ask in self._asks:
            value = ask(request) if request is not None else None
            texts.append(known(value) or self._remember(value))
        partial = self._frame % tuple(texts)
        if request is not None:
            request.extra = partial
        return partial

    def _remember(self, value: str | None) -> str:
        escaped = self._escape(value).replace("%", "%%")
        if value is None or len(value) <= _CACHED_LENGTH:
            if len(self._escaped) >= _CACHED:
                self._escaped.clear()
            self._escaped[value] = escaped
        return escaped

    def flush(self) -> None:
        """Write what there is."""
        if not (self._lines or self._waiting):
            return
        data = self._waiting + "".join(self._lines).encode("ascii", "backslashreplace")
        self._lines.clear()
        self._waiting = b""
        if self._path is not None and monotonic() - self._looked > _LOOK:
            self._look()
        try:
            while data:
                size = len(data)
                if self._whole and size > select.PIPE_BUF:
                    # Behind the last line that fits, or behind the first.
                    size = data.rfind(b"\n", 0, select.PIPE_BUF) + 1 or data.find(b"\n") + 1
                data = data[os.write(self._descriptor, data[:size]) :]
        except BlockingIOError:
            self._waiting = data if len(data) <= _WAITING else b""
            with contextlib.suppress(RuntimeError):  # the last lines, behind the loop's end
                asyncio.get_running_loop().call_later(_FLUSH, self.flush)
        except OSError as exc:
            self._complain("the access log cannot be written: %s", exc)

    def _look(self) -> None:
        """Go on in a new file when the old one has been moved or removed, as logrotate does."""
        self._looked = monotonic()
        assert self._path is not None
        try:
            there, ours = Path(self._path).stat(), os.fstat(self._descriptor)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except OSError:
            pass
        try:
            descriptor = _open(self._path)
        except ImproperlyConfigured as exc:
            self._complain("%s; the old file is written on", exc)
            return
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _complain(self, text: str, exc: Exception) -> None:
        if monotonic() - self._complained >= _COMPLAIN:
            self._complained = monotonic()
            logger.error(text, exc)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self.flush()
        if self._path is not None:
            os.close(self._descriptor)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise ImproperlyConfigured(f"cannot write the access log {path}: {exc.strerror}") from exc


def _takes_whole_lines(descriptor: int) -> bool:
    """True for what may mix the lines of several processes, if they are not written singly."""
    try:
        return not stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


# Escapes


def _as_text(value: str | None) -> str:
    if not value:
        return "-"
    if len(value) <= _KEPT and _odd.search(value) is None:
        return value
    escaped = _odd.sub(_escaped, value[:_KEPT])
    if len(escaped) > _KEPT:
        escaped = _odd.sub(_escaped, value[:_KEPT_OF_ESCAPES])
    return escaped


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in '"\\':
        return f"\\{character}"
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code & 0xFFFF:04x}"


def _as_json(value: str | None) -> str:
    if not value:
        return "null"
    escaped = json.dumps(value[:_KEPT])
    if len(escaped) > _KEPT + 2:
        escaped = json.dumps(value[:_KEPT_OF_ESCAPES])
    return escaped.replace("\x7f", "\\u007f")


# Atoms


def _field_getter(name: str) -> OfRequest:
    return lambda request: request.fields.get(name)


def _user(request: Request) -> str | None:
    authorization = request.fields.cgi.get("HTTP_AUTHORIZATION")
    if authorization is None:
        return None
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(credentials.strip()).decode("latin-1").partition(":")[0]
    except (binascii.Error, ValueError):
        return None


def _protocol(request: Request) -> str:
    return "HTTP/1.1" if request.minor else "HTTP/1.0"


def _peer(response: HttpServerResponse) -> str:
    address = response.address
    return str(address[0]) if isinstance(address, tuple) and address else ""


class _Clock:
    """The date, made once for each second."""

    __slots__ = ("_stamp", "_until")

    def __init__(self) -> None:
        self._until = 0.0
        self._stamp = ""

    def __call__(self, response: HttpServerResponse) -> str:
        if monotonic() >= self._until:
            now = time()
            self._until = monotonic() + 1 - now % 1
            self._stamp = strftime("[%d/%b/%Y:%H:%M:%S %z]", localtime(now))
        return self._stamp


def _iso_date(response: HttpServerResponse) -> str:
    now = time()
    return strftime(f'"%Y-%m-%dT%H:%M:%S.{int(now % 1 * 1000):03d}%z"', localtime(now))


def _seconds(response: HttpServerResponse) -> float:
    return monotonic() - response.began if response.began else 0.0


def _sent_field(response: HttpServerResponse, name: str) -> str | None:
    wanted = name.lower().encode("latin-1", "replace")
    for line in (response.headers_sent or b"").split(b"\r\n")[1:]:
        key, _, value = line.partition(b": ")
        if key.lower() == wanted:
            return value.decode("latin-1")
    return None


def _variable(response: HttpServerResponse, name: str) -> str | None:
    value = (response.environ or {}).get(name)
    return None if value is None else str(value)


_CONSTANT: dict[str | None, Callable[[], str]] = {
    "l": lambda: "-",
    "p": lambda: f"<{os.getpid()}>",
    "pid": lambda: str(os.getpid()),
}

_REQUEST: dict[str | None, OfRequest] = {
    "r": lambda request: f"{request.method} {request.target} {_protocol(request)}",
    "m": lambda request: request.method,
    "U": lambda request: request.path,
    "target": lambda request: request.target,
    "q": lambda request: request.query,
    "H": _protocol,
    "f": lambda request: request.fields.cgi.get("HTTP_REFERER"),
    "a": lambda request: request.fields.cgi.get("HTTP_USER_AGENT"),
    "u": _user,
}

_RESPONSE: dict[str | None, OfResponse] = {
    "h": _peer,
    "t": _Clock(),
    "iso": _iso_date,
    "s": lambda response: response.status,
    "B": lambda response: response.body_sent,
    "b": lambda response: response.body_sent or "-",
    "T": lambda response: int(_seconds(response)),
    "M": lambda response: int(_seconds(response) * 1e3),
    "D": lambda response: int(_seconds(response) * 1e6),
    "L": lambda response: f"{_seconds(response):.6f}",
}
