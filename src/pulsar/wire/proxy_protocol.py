"""The PROXY protocol: what a proxy says of its client ahead of the client's bytes.

Owns: the grammar of versions 1 and 2, as HAProxy's ``proxy-protocol.txt`` has it:
``HeaderReader`` reads a header from bytes that are split at any place, ``ProxyHeader`` is
what it says.
Leaves: whom to believe, and what stands behind the header, to whoever has the connection.

It is strict: of a header that is not to the letter nothing is taken over. A connection whose
bytes might be misread is better closed.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from ..errors import ProtocolError

__all__ = ["MAX_HEADER", "HeaderReader", "ProxyHeader"]

#: No header is longer, in bytes.
MAX_HEADER = 4096

# An end of a connection, as ``getpeername`` gives it: an abstract Unix name is in bytes.
Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"

# Section 2.1: with the two bytes that end the line.
_MAX_LINE = 107

# Section 2.2: signature, version and command, family and transport, length.
_FIXED = 16

_tcp = re.compile(
    r"TCP([46]) ([^ ]+) ([^ ]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})", re.ASCII
).fullmatch

# The transports of each family; and the bytes that its two addresses, and ports, take.
_STREAM_OR_DATAGRAM = (1, 2)
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_SIZES = {_INET: 12, _INET6: 36, _UNIX: 216}


class ProxyHeader(NamedTuple):
    """What a proxy has said.

    ``source`` is the client's end of the connection that the proxy has accepted, and
    ``destination`` the proxy's, as ``getpeername`` and ``getsockname`` would give them. Both
    are None where the proxy speaks for itself (LOCAL), or does not know (UNKNOWN, UNSPEC):
    then the connection's own ends count. ``tlvs`` are the bytes behind the addresses in
    version 2 (section 2.2.2), as they were sent.
    """

    version: int
    source: Address | None = None
    destination: Address | None = None
    tlvs: bytes = b""


class HeaderReader:
    """Reads one header from the first bytes of a connection."""

    def __init__(self) -> None:
        self._data = b""
        #: The header, once it is complete.
        self.header: ProxyHeader | None = None

    @property
    def started(self) -> bool:
        """True when there was a byte."""
        return bool(self._data)

    def feed(self, data: bytes) -> int:
        """Read more bytes; returns how many of them belong to the header.

        All of them do until ``header`` is there; what stands behind it is somebody else's.
        Raises ``ProtocolError`` for what cannot become a header.
        """
        before = len(self._data)
        self._data += data
        end = self._read(self._data)
        if end is None:
            return len(data)
        self._data = self._data[:end]
        return end - before

    def _read(self, data: bytes) -> int | None:
        """The length of the header, which is complete; None: it is not."""
        if _V1.startswith(data[: len(_V1)]):
            return self._read_line(data)
        if _V2.startswith(data[: len(_V2)]):
            return self._read_binary(data)
        raise ProtocolError("there is no PROXY header")

    def _read_line(self, data: bytes) -> int | None:
        found = data.find(b"\r\n", 0, _MAX_LINE)
        if found < 0:
            if len(data) >= _MAX_LINE:
                raise ProtocolError("the line of the PROXY header does not end")
            return None
        self.header = _from_line(data[len(_V1) : found])
        return found + 2

    def _read_binary(self, data: bytes) -> int | None:
        if len(data) < _FIXED:
            return None
        end = _FIXED + int.from_bytes(data[14:16], "big")
        if end > MAX_HEADER:
            raise ProtocolError(f"the PROXY header is longer than {MAX_HEADER} bytes")
        version, command = divmod(data[12], 16)
        if version != 2 or command > 1:
            raise ProtocolError(f"the PROXY header is of an unknown kind ({data[12]:#04x})")
        if len(data) < end:
            return None
        # A proxy that checks whether we are there: what else it says means nothing.
        self.header = _from_block(data[13], data[_FIXED:end]) if command else ProxyHeader(2)
        return end


def _from_line(line: bytes) -> ProxyHeader:
    """The header of version 1 in what stands behind ``PROXY``."""
    if line == b"UNKNOWN" or line.startswith(b"UNKNOWN "):
        return ProxyHeader(1)
    match = _tcp(line.decode("latin-1"))
    if match is None:
        raise ProtocolError("the line of the PROXY header is malformed")
    read = _ipv4 if match[1] == "4" else _ipv6
    try:
        source, destination = read(match[2], int(match[4])), read(match[3], int(match[5]))
    except AddressValueError:
        raise ProtocolError("the PROXY header has a malformed address") from None
    if max(source[1], destination[1]) > 65535:
        raise ProtocolError("the PROXY header has a port above 65535")
    return ProxyHeader(1, source, destination)


def _ipv4(address: str | bytes, port: int) -> tuple[str, int]:
    return str(IPv4Address(address)), port


def _ipv6(address: str | bytes, port: int) -> tuple[str, int, int, int]:
    found = IPv6Address(address)
    if found.scope_id is not None:
        raise AddressValueError(address)
    mapped = found.ipv4_mapped
    # As the system writes it.
    return str(found) if mapped is None else f"::ffff:{mapped}", port, 0, 0


def _from_block(kind: int, block: bytes) -> ProxyHeader:
    """The header of version 2 with a family and transport, and what follows the length."""
    family, transport = divmod(kind, 16)
    if family == _UNSPEC and transport == 0:
        return ProxyHeader(2)
    size = _SIZES.get(family)
    if size is None or transport not in _STREAM_OR_DATAGRAM:
        raise ProtocolError(f"the PROXY header has addresses of an unknown kind ({kind:#04x})")
    if len(block) < size:
        raise ProtocolError("the PROXY header is too short for its addresses")
    tlvs = block[size:]
    if family == _UNIX:
        return ProxyHeader(2, _path(block[:108]), _path(block[108:216]), tlvs)
    half = size // 2 - 2
    read = _ipv4 if family == _INET else _ipv6
    return ProxyHeader(
        2,
        read(block[:half], int.from_bytes(block[size - 4 : size - 2], "big")),
        read(block[half : 2 * half], int.from_bytes(block[size - 2 : size], "big")),
        tlvs,
    )


def _path(raw: bytes) -> str | bytes:
    if raw.startswith(b"\0"):
        return raw.rstrip(b"\0") or ""
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
