"""The PROXY protocol: what each header says, what is refused, and that a split changes nothing."""

import itertools
import socket
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pulsar.errors import ProtocolError
from pulsar.wire.proxy_protocol import MAX_HEADER, HeaderReader, ProxyHeader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(kind: int, block: bytes = b"", command: int = 0x21) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(block)) + block


def inet(source: str, destination: str, ports: tuple[int, int], family: int) -> bytes:
    pton = socket.inet_pton
    return pton(family, source) + pton(family, destination) + struct.pack("!HH", *ports)


INET = inet("192.0.2.1", "198.51.100.2", (56324, 443), socket.AF_INET)
INET6 = inet("2001:db8::1", "::ffff:192.0.2.7", (1, 65535), socket.AF_INET6)
UNIX = b"/run/a\xff.sock".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")
TLV = b"\x04\x00\x03abc"
ENDS = (("192.0.2.1", 56324), ("198.51.100.2", 443))

GOOD: list[tuple[bytes, ProxyHeader]] = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", ProxyHeader(1, *ENDS)),
    (
        b"PROXY TCP6 2001:DB8:0::1 ::ffff:192.0.2.7 0 65535\r\n",
        ProxyHeader(1, ("2001:db8::1", 0, 0, 0), ("::ffff:192.0.2.7", 65535, 0, 0)),
    ),
    (b"PROXY UNKNOWN\r\n", ProxyHeader(1)),
    (b"PROXY UNKNOWN ff:\rf ff 1\n 2\r\n", ProxyHeader(1)),
    (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", ProxyHeader(1)),
    (v2(0x11, INET), ProxyHeader(2, *ENDS)),
    (v2(0x12, INET + TLV), ProxyHeader(2, *ENDS, TLV)),
    (
        v2(0x21, INET6),
        ProxyHeader(2, ("2001:db8::1", 1, 0, 0), ("::ffff:192.0.2.7", 65535, 0, 0)),
    ),
    (v2(0x31, UNIX + TLV), ProxyHeader(2, "/run/a\udcff.sock", b"\0abstract", TLV)),
    (v2(0x32, bytes(216)), ProxyHeader(2, "", "")),
    (v2(0x00), ProxyHeader(2)),
    (v2(0x00, TLV), ProxyHeader(2)),
    (v2(0x00, command=0x20), ProxyHeader(2)),
    (v2(0xFF, INET, command=0x20), ProxyHeader(2)),  # who speaks for himself says nothing
    (v2(0x11, INET.ljust(MAX_HEADER - 16, b"\0")), ProxyHeader(2, *ENDS, bytes(4068))),
]

BAD: list[tuple[bytes, str]] = [
    (b"GET / HTTP/1.1\r\n", "there is no PROXY header"),
    (b"proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n", "no PROXY header"),
    (b"\x16\x03\x01\x02\x00\x01", "no PROXY header"),
    (b"\r\n\r\n\r\n", "no PROXY header"),
    (b"PROXY " + b"f" * 101, "does not end"),
    (b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n", "does not end"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n" + b"GET" * 30, "does not end"),
    (b"PROXY \r\n", "malformed"),
    (b"PROXY UNKNOWNS\r\n", "malformed"),
    (b"PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n", "malformed"),
    (b"PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n", "malformed"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n", "above 65535"),
    (b"PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n", "malformed address"),
    (b"PROXY TCP4 192.0.2.1/8 198.51.100.2 1 2\r\n", "malformed address"),
    (b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n", "malformed address"),
    (b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n", "malformed address"),
    (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "malformed address"),
    (v2(0x11, INET, command=0x11), "unknown kind"),
    (v2(0x11, INET, command=0x22), "unknown kind"),
    (v2(0x41, INET), "addresses of an unknown kind"),
    (v2(0x10, INET), "addresses of an unknown kind"),
    (v2(0x01, INET), "addresses of an unknown kind"),
    (v2(0x13, INET), "addresses of an unknown kind"),
    (v2(0x11, INET[:-1]), "too short"),
    (v2(0x21, INET6[:-1]), "too short"),
    (v2(0x31, UNIX[:-1]), "too short"),
    (v2(0x11, INET.ljust(MAX_HEADER - 15, b"\0")), "longer than 4096 bytes"),
]


def read(pieces: list[bytes]) -> tuple[ProxyHeader | None, int] | str:
    """The header and how many bytes it has, or why there is none."""
    reader = HeaderReader()
    used = 0
    for piece in pieces:
        try:
            used += reader.feed(piece)
        except ProtocolError as exc:
            return str(exc)
        if reader.header is not None:
            break
    return reader.header, used


@pytest.mark.parametrize(("data", "header"), GOOD)
def test_what_a_header_says(data: bytes, header: ProxyHeader) -> None:
    assert read([data]) == (header, len(data))
    assert read([data + b"PROXY UNKNOWN\r\n"]) == (header, len(data))
    assert read([data[:-1]]) == (None, len(data) - 1)


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_what_is_no_header_is_refused(data: bytes, reason: str) -> None:
    said = read([data])
    assert isinstance(said, str)
    assert reason in said


headers = st.sampled_from([data for data, _ in GOOD] + [data for data, _ in BAD])
broken = st.builds(
    lambda data, at, byte: data[: at % len(data)] + byte + data[at % len(data) + len(byte) :],
    headers,
    st.integers(0, 300),
    st.binary(max_size=2),
)
streams = st.builds(bytes.__add__, headers | broken | st.binary(max_size=40), st.binary())


@given(data=streams, at=st.lists(st.integers(0, 260), max_size=5))
@example(data=GOOD[4][0], at=[105, 106])
@example(data=BAD[5][0], at=[106, 107])
def test_any_split_gives_the_same(data: bytes, at: list[int]) -> None:
    cuts = [0, *sorted({cut for cut in at if cut < len(data)}), len(data)]
    assert read([data[a:b] for a, b in itertools.pairwise(cuts)]) == read([data])
    assert read([data[i : i + 1] for i in range(len(data))]) == read([data])
