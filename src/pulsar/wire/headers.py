"""Header fields: names, values, and the fields of one message.

Owns: the grammar of a field line (RFC 9110 section 5, RFC 9112 section 5), in
and out; ``Fields``; the name of a field in a CGI environment (RFC 3875).
Leaves: lines and their limits to the parser, what a field means to the framing.

Fields come in by ``add_field``, one by one, or by ``split_fields``, all at once.
Most lines have come before, in this head or in another: they are looked up.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import InvalidMessage
from .http11_limits import MessageRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Fields", "add_field", "field_line", "split_fields"]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - RFC 9110's word
_is_token = re.compile(TOKEN).fullmatch
# Visible characters, white space and obs-text: all but the controls.
_is_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch
_WHITE = " \t"

# Caches are emptied when they are full: what is in use comes back at once, and a
# peer that sends something new each time costs no memory.
_CACHED = 1024
_CACHED_LENGTH = 256
_names: dict[str, str] = {}
_fields: dict[str, tuple[str, str]] = {}
_lines: dict[tuple[str, str], bytes] = {}


class Fields:
    """The header fields, or the trailers, of one message. Do not change it: it is shared.

    Iterating gives (name in lower case, value) in the order of the message. Text
    is Latin-1, as everywhere in a head.
    """

    __slots__ = ("_lines", "cgi")

    def __init__(self, lines: list[str], cgi: dict[str, str]) -> None:
        self._lines = lines
        #: CGI name -> value; values of one name are joined. A name with an underscore
        #: is missing here: in CGI ``X_Real_IP`` would pass for ``X-Real-IP``.
        self.cgi = cgi

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for line in self._lines:
            name, _, value = line.partition(":")
            yield name.lower(), value.strip(_WHITE)

    def __len__(self) -> int:
        return len(self._lines)

    def __repr__(self) -> str:
        return f"<Fields {', '.join(name for name, _ in self) or 'none'}>"

    def get_all(self, name: str) -> list[str]:
        """The values of the fields ``name``, in any case, in their order."""
        wanted = name.lower()
        return [value for name, value in self if name == wanted]

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the field ``name``, in any case; several are joined with commas."""
        values = self.get_all(name)
        return ", ".join(values) if values else default


def split_fields(block: bytes) -> Fields:
    """The fields in ``block``, which is their lines and the empty line.

    Raises ``MessageRefused``.
    """
    lines = block.decode("latin-1").split("\r\n")
    del lines[-2:]
    cgi: dict[str, str] = {}
    known = _fields.get
    for line in lines:
        key, value = known(line) or _read(line)
        cgi[key] = value
    if len(cgi) != len(lines) or "" in cgi:
        # A name came twice, or CGI has none for it.
        lines, cgi, again = [], {}, lines
        for line in again:
            add_field(lines, cgi, line)
    return Fields(lines, cgi)


def add_field(lines: list[str], cgi: dict[str, str], line: str) -> None:
    """Add the field of one ``line``, without its CRLF. Raises ``MessageRefused``."""
    key, value = _fields.get(line) or _read(line)
    lines.append(line)
    if key in cgi:
        value = _joined(key, cgi[key], value)
    if key:
        cgi[key] = value


def _read(line: str) -> tuple[str, str]:
    """The CGI name and the value in a line. The name is empty where CGI has none for it."""
    name, colon, value = line.partition(":")
    key = _names.get(name)
    if key is None:
        _check_name(name, colon)
        key = "" if "_" in name else name.upper().replace("-", "_")
        if key and key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
            key = f"HTTP_{key}"
        if len(name) <= _CACHED_LENGTH:
            if len(_names) >= _CACHED:
                _names.clear()
            _names[name] = key
    if not colon:
        raise MessageRefused(400, "A header line has no colon.")
    if not _is_value(value):
        raise MessageRefused(400, "There is a control character in a header's value.")
    found = key, value.strip(_WHITE)
    if len(line) <= _CACHED_LENGTH:
        if len(_fields) >= _CACHED:
            _fields.clear()
        _fields[line] = found
    return found


def _check_name(name: str, colon: str) -> None:
    if name[:1] in {" ", "\t"}:
        # RFC 9112 section 5.2, and section 2.2 for the first line.
        raise MessageRefused(400, "A header line begins with white space: folding is obsolete.")
    if not colon:
        raise MessageRefused(400, "A header line has no colon.")
    if name.endswith((" ", "\t")):
        raise MessageRefused(400, "There is white space between a header's name and the colon.")
    if not _is_token(name):
        raise MessageRefused(400, "A header's name is not a token.")


def _joined(key: str, first: str, second: str) -> str:
    if key == "HTTP_HOST":
        raise MessageRefused(400, "Host is given more than once.")
    # RFC 9110 section 5.3, and RFC 6265 section 5.4 for cookies.
    return f"{first}; {second}" if key == "HTTP_COOKIE" else f"{first}, {second}"


def field_line(name: str, value: str) -> bytes:
    """The line for one field that is to be sent, with its CRLF.

    Raises ``InvalidMessage`` when the name is no token, when there is a control
    character in the value, or when that is not Latin-1.
    """
    try:
        line = _lines.get((name, value))
        if line is not None:
            return line
        if not _is_token(name):
            raise InvalidMessage(f"{name!r} is not the name of a header: a name is a token")
        legal = _is_value(value)
    except TypeError:  # not a str
        legal = None
    if legal is None:
        raise InvalidMessage(
            f"the header {name!r} cannot have the value {value!r}: "
            "both are str, and a value is Latin-1 without control characters"
        )
    line = f"{name}: {value}\r\n".encode("latin-1")
    if len(line) <= _CACHED_LENGTH:
        if len(_lines) >= _CACHED:
            _lines.clear()
        _lines[name, value] = line
    return line
