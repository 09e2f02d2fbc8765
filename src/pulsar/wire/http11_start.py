"""Start lines: the request line with its target, the status line, and the Host.

Owns: their grammar (RFC 9112 sections 3 and 4, RFC 3986), in and out.
Leaves: their length and control characters to the parser, which cuts the lines.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address

from ..errors import InvalidMessage
from .headers import TOKEN
from .http11_limits import MessageRefused

__all__ = ["RequestLine", "read_request_line", "read_status_line", "split_host"]

#: A request line, taken apart; text is as it was sent, nothing is decoded. The method, of
#: which case matters (RFC 9110 section 9.1); the whole target; its path, which begins with
#: "/", or is "*" for the server itself, or empty for CONNECT; the query behind the "?"; the
#: host and port in the target, which overrule Host, or None; and the minor version: 0 for
#: HTTP/1.0, 1 for HTTP/1.1 and what calls itself newer than that.
RequestLine = tuple[str, str, str, str, str | None, int]

# The path and query of a target. Stricter than what is around on "#", which no target has,
# and laxer on the printable characters that a browser does not escape.
_PATH = r"/[!-\"$->@-~]*"
_QUERY = r"[!-\"$-~]*"
_NAME = r"[A-Za-z0-9\-._~!$&'()*+,;=]*"
_REG_NAME = rf"{_NAME}(?:%[0-9A-Fa-f]{{2}}{_NAME})*"

#: The method and target of nearly every request, for a single look: groups as in _origin.
plain_target = re.compile(rf"((?!CONNECT )[A-Z]+) (({_PATH})(?:\?({_QUERY}))?)").fullmatch
_request_line = re.compile(rf"({TOKEN}) ([!-~]+) HTTP/([0-9])\.([0-9])").fullmatch
_origin = re.compile(rf"({_PATH})(?:\?({_QUERY}))?").fullmatch
_absolute = re.compile(rf"(?i:https?)://([^/?#@]+)({_PATH}|)(?:\?({_QUERY}))?").fullmatch
_host = re.compile(rf"(\[([0-9A-Fa-f:.]+)\]|{_REG_NAME})(?::([0-9]*))?").fullmatch
_status_line = re.compile(
    r"HTTP/([0-9])\.([0-9]) ([1-9][0-9][0-9])(?: ([\t -~\x80-\xff]*))?"
).fullmatch


def read_request_line(line: str) -> RequestLine:
    """Take a request line apart. Raises ``MessageRefused``: 400, 501 or 505."""
    match = _request_line(line)
    if match is None:
        raise MessageRefused(400, "The request line is malformed.")
    method, target, major, minor = match.groups()
    version = _minor(major, minor)
    if method == "CONNECT":
        host = split_host(target)
        if host is None or not all(host):
            raise MessageRefused(400, "The target of CONNECT is not a host and a port.")
        return (method, target, "", "", target, version)
    found = _origin(target)
    if found is not None:
        return (method, target, found[1], found[2] or "", None, version)
    if target == "*":
        if method != "OPTIONS":
            raise MessageRefused(400, "The target * is for OPTIONS only.")
        return (method, target, "*", "", None, version)
    found = _absolute(target)
    host = split_host(found[1]) if found else None
    if found is None or host is None or not host[0]:
        raise MessageRefused(400, "The request target is malformed.")
    # RFC 9112 section 3.2.4: what a proxy would have sent on as "*".
    root = "*" if method == "OPTIONS" and found[3] is None else "/"
    return (method, target, found[2] or root, found[3] or "", found[1], version)


def read_status_line(line: str) -> tuple[int, int, str]:
    """The minor version, the status and the reason in a status line.

    Raises ``MessageRefused``. The blank in front of an empty reason may be missing.
    """
    match = _status_line(line)
    if match is None:
        raise MessageRefused(400, "The status line is malformed.")
    major, minor, status, reason = match.groups()
    return _minor(major, minor), int(status), reason or ""


def _minor(major: str, minor: str) -> int:
    # RFC 9110 section 2.5: a newer minor version is processed as the newest we know.
    if major != "1":
        raise MessageRefused(505, "The version is not HTTP/1.0 or HTTP/1.1.")
    return 0 if minor == "0" else 1


def split_host(value: str) -> tuple[str, str] | None:
    """The host and the port in ``value``, empty where there is none; None: malformed.

    The host may be empty (RFC 9112 section 3.2).
    """
    match = _host(value)
    if match is None:
        return None
    host, literal, port = match.groups("")
    if literal:
        try:
            IPv6Address(literal)
        except ValueError:
            return None
    if port and (len(port) > 5 or int(port) > 65535):
        return None
    return host, port


def request_line(method: str, target: str) -> bytes:
    """The line that begins a request. Raises ``InvalidMessage``."""
    line = f"{method} {target} HTTP/1.1"
    if _request_line(line) is None or "#" in target:
        raise InvalidMessage(
            f"{method!r} {target!r} cannot begin a request: "
            "it takes a token and a target without white space, escaped to ASCII"
        )
    return f"{line}\r\n".encode("ascii")


def status_line(status: str, minor: int = 1) -> bytes:
    """The line that begins a response, from a status like "200 OK". Raises ``InvalidMessage``."""
    line = f"HTTP/1.{minor} {status}"
    if _status_line(line) is None:
        raise InvalidMessage(
            f"{status!r} is not a status: it takes three digits, a blank and a reason "
            "of Latin-1 without control characters"
        )
    return f"{line}\r\n".encode("latin-1")
