"""An HTTP client that trusts nobody: raw bytes out, and every answer looked at closely.

Owns: ``Answer``; ``Answers``, which cuts them out of bytes by the letter of RFC 9112,
without a line of the server's code; ``Client`` and ``BlockingClient``, connections.
Leaves: what is sent, and what should come, to the tests.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support.process import PATIENCE

# RFC 9112 section 4, RFC 9110 section 5.5: what a server may send, and no more.
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-9][0-9][0-9]) ([\t -~\x80-\xff]*)").fullmatch
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*").fullmatch
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)").fullmatch
_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT").fullmatch

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """A response, whose framing is sound."""

    status: int
    reason: str
    headers: Headers
    body: bytes
    #: The head, as it came.
    head: bytes
    #: The interim responses before it.
    interim: list[int] = field(default_factory=list)
    trailers: Headers = field(default_factory=list)
    #: It ends with the connection.
    until_close: bool = False

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        """The value of a header that is there once."""
        [value] = self.get_all(name)
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.get_all(name))

    @property
    def chunked(self) -> bool:
        return "Transfer-Encoding" in self

    @property
    def closes(self) -> bool:
        """It says that nothing comes behind it."""
        return "close" in self.get_all("Connection")


class Answers:
    """Answers, in the order of their requests; bytes are put in with ``feed``."""

    def __init__(self) -> None:
        # What has come and was not looked at.
        self.buffer = bytearray()
        self.ended = False
        self._reading: Generator[None, None, Answer] | None = None

    def feed(self, data: bytes) -> None:
        self.buffer += data
        self.ended = self.ended or not data

    def take(self, method: str = "GET") -> Answer | None:
        """The next answer; None while it is not complete.

        Raises ``EOFError`` when it never will be, and ``AssertionError`` for what is no answer.
        """
        if self._reading is None:
            self._reading = self._answer(method)
        try:
            next(self._reading)
        except StopIteration as found:
            self._reading = None
            answer: Answer = found.value
            return answer
        return None

    # Each of these gives None for as long as it needs more bytes, and then returns.

    def _answer(self, method: str) -> Generator[None, None, Answer]:
        interim: list[int] = []
        while True:
            head: list[bytes] = []
            line = yield from self._line(head)
            match = _STATUS_LINE(line)
            assert match, f"not a status line: {line!r}"
            status = int(match[1])
            headers = yield from self._fields(head)
            if not 100 <= status < 200 or status == 101:
                break
            interim.append(status)
        framed = _framing(status, headers)
        trailers: Headers = []
        until_close = False
        if method == "HEAD" or status in {101, 204, 304}:
            body = b""
        elif framed == "chunked":
            body, trailers = yield from self._chunks()
        elif framed:
            body = yield from self._bytes(int(framed))
        else:
            until_close = True
            while not self.ended:
                yield
            body = yield from self._bytes(len(self.buffer))
        reason = match[2].decode("latin-1")
        return Answer(status, reason, headers, body, b"".join(head), interim, trailers, until_close)

    def _bytes(self, size: int) -> Generator[None, None, bytes]:
        while len(self.buffer) < size:
            self._wait()
            yield
        data = bytes(memoryview(self.buffer)[:size])
        del self.buffer[:size]
        return data

    def _line(self, seen: list[bytes]) -> Generator[None, None, bytes]:
        while (end := self.buffer.find(b"\n")) < 0:
            self._wait()
            yield
        line = yield from self._bytes(end + 1)
        assert line.endswith(b"\r\n"), f"a bare LF behind {line!r}"
        seen.append(line)
        return line[:-2]

    def _fields(self, seen: list[bytes]) -> Generator[None, None, Headers]:
        headers = []
        while line := (yield from self._line(seen)):
            match = _FIELD(line)
            assert match, f"not a header line: {line!r}"
            headers.append((match[1].decode(), match[2].decode("latin-1")))
        return headers

    def _chunks(self) -> Generator[None, None, tuple[bytes, Headers]]:
        pieces = []
        while True:
            line = yield from self._line([])
            match = _CHUNK(line)
            assert match, f"not the size of a chunk: {line!r}"
            size = int(match[1], 16)
            if not size:
                trailers = yield from self._fields([])
                return b"".join(pieces), trailers
            pieces.append((yield from self._bytes(size)))
            ending = yield from self._bytes(2)
            assert ending == b"\r\n", "a chunk is not as long as it says"

    def _wait(self) -> None:
        if self.ended:
            raise EOFError(f"the server has ended in an answer, behind {bytes(self.buffer)!r}")


def _framing(status: int, headers: Headers) -> str:
    """The length, or "chunked", or nothing; there is no doubt about it."""
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    codings = [value for name, value in headers if name.lower() == "transfer-encoding"]
    assert len(lengths) + len(codings) <= 1, f"framed more than once: {headers}"
    assert codings in ([], ["chunked"]), codings
    assert all(re.fullmatch("[0-9]+", length) for length in lengths), lengths
    if status == 204:
        assert not lengths + codings, "RFC 9110 section 8.6 forbids it for 204"
    for name in ("date", "server"):
        assert len([one for one, _ in headers if one.lower() == name]) <= 1, headers
    for name, value in headers:
        assert name.lower() != "date" or _DATE(value), value
    return "".join(lengths + codings)


def _refuse_to_read_on(sock: socket.socket) -> None:
    """Let the end of ``sock`` be a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Client:
    """A connection for tests whose server runs in the same loop; closed by ``async with``."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answers = Answers()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, address: Any, *, window: int | None = None) -> Self:
        """:param window: how much the kernel keeps for us that we have not read, in bytes"""
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.setblocking(False)
        if window is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        if not isinstance(address, str):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.sock.close()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    def end(self) -> None:
        """End our side."""
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Go away without a word."""
        _refuse_to_read_on(self.sock)
        self.sock.close()

    def widen(self) -> None:
        """Read as fast as others do, from now on, whatever the window was."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)

    async def read(self) -> bytes:
        """What is there; nothing at the end."""
        data = await self._loop.sock_recv(self.sock, 256 * 1024)
        self.answers.feed(data)
        return data

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer. Raises ``EOFError``, ``ConnectionResetError``, ``AssertionError``."""
        while (answer := self.answers.take(method)) is None:
            await self.read()
        return answer

    async def until(self, text: bytes) -> bytes:
        """Everything that has come and was not taken, once ``text`` is in it."""
        while text not in self.answers.buffer:
            assert await self.read(), f"no {text!r} in {self.answers.buffer!r}"
        return bytes(self.answers.buffer)

    async def rest(self) -> bytes:
        """What comes until the server ends its side."""
        while not self.answers.ended:
            await self.read()
        rest = bytes(self.answers.buffer)
        self.answers.buffer.clear()
        return rest

    async def get(self, target: str = "/", *fields: str, method: str = "GET") -> Answer:
        """Ask, and wait for the answer."""
        await self.send(request(target, *fields, method=method))
        return await self.answer(method)


class TlsClient:
    """As ``Client``, as far as it goes, over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.answers = Answers()

    @classmethod
    async def connect(cls, address: tuple[str, int], context: ssl.SSLContext) -> Self:
        streams = await asyncio.open_connection(*address, ssl=context, server_hostname="localhost")
        return cls(*streams)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._writer.transport.abort()
        try:
            await self._writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass

    @property
    def ssl_object(self) -> ssl.SSLObject:
        found: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        return found

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        while (answer := self.answers.take(method)) is None:
            self.answers.feed(await self._reader.read(256 * 1024))
        return answer

    async def rest(self) -> bytes:
        while not self.answers.ended:
            self.answers.feed(await self._reader.read(256 * 1024))
        return bytes(self.answers.buffer)


class BlockingClient:
    """A connection for tests whose server is another process; closed by ``with``."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = Answers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, method: str = "GET") -> Answer:
        while (answer := self.answers.take(method)) is None:
            self.answers.feed(self.sock.recv(256 * 1024))
        return answer

    def get(self, target: str = "/", *fields: str, method: str = "GET") -> Answer:
        self.send(request(target, *fields, method=method))
        return self.answer(method)

    def rest(self) -> bytes:
        while not self.answers.ended:
            self.answers.feed(self.sock.recv(256 * 1024))
        return bytes(self.answers.buffer)


def request(
    target: str = "/",
    *fields: str,
    method: str = "GET",
    version: str = "1.1",
    body: bytes | None = None,
) -> bytes:
    """The bytes of a request with a Host, and, with ``body``, a Content-Length."""
    lines = [f"{method} {target} HTTP/{version}", "Host: testserver", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
