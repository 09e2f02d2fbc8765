"""The flavours of stream (TCP, TLS, Unix), and a peer for each that does what a test says.

Owns: ``Flavour``: addresses, contexts, how to connect and listen; ``Peer``: the far end
of a connection, driven by hand; ``served`` and ``connected``: our ends, closed behind
the block.
Leaves: what must hold for them to conformance.py.

A ``Peer`` reads only when it is told to. So a peer that does not read, reads slowly,
ends its side or vanishes is a peer with which a test does just that.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pulsar.clients import AbstractClient
from pulsar.protocols import Connection, TcpServer

# Seconds for anything that happens at once, on a machine that has other work.
PATIENCE = 15.0

UNHEARD = logging.getLogger("tests.unheard")
UNHEARD.setLevel(logging.CRITICAL + 1)


class Peer:
    """The far end of a stream. Errors of the socket are the test's to expect."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None = None,
        *,
        server_side: bool = False,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        # True once the other side has ended in good order: with a close_notify under TLS.
        self.ended_well = False
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._pushing = asyncio.Lock()
            self._tls = context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=server_side,
                server_hostname=None if server_side else "localhost",
            )

    @property
    def serial_number(self) -> Any:
        """That of the certificate of the other side; TLS only."""
        assert self._tls is not None
        certificate = self._tls.getpeercert()
        assert certificate is not None
        return certificate["serialNumber"]

    async def handshake(self) -> None:
        """Under TLS: shake hands. ``EOFError`` when the other side ends instead."""
        if self._tls is not None:
            await self._drive(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        """Hand all of ``data`` to the kernel, however long that takes."""
        if self._tls is None:
            await self._loop.sock_sendall(self.sock, data)
            return
        view = memoryview(data)
        while view:
            written = self._tls.write(view[:65536])
            view = view[written:]
            await self._push()

    async def receive(self, size: int) -> bytes:
        """The next ``size`` bytes. ``EOFError`` when the other side ends before."""
        data = bytearray()
        while len(data) < size:
            piece = await self._receive_some(size - len(data))
            if not piece:
                raise EOFError(f"the other side has ended after {len(data)} of {size} bytes")
            data += piece
        return bytes(data)

    async def rest(self) -> bytes:
        """Everything until the other side ends."""
        data = bytearray()
        while piece := await self._receive_some(65536):
            data += piece
        return bytes(data)

    async def farewell(self) -> bytes:
        """Everything until the other side ends, in good order; then our own end."""
        data = await self.rest()
        assert self.ended_well
        await self.end()
        return data

    async def gone(self) -> bytes:
        """Everything until the other side ends or resets; for when either is right."""
        data = bytearray()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while piece := await self._receive_some(65536):
                data += piece
        return bytes(data)

    async def end(self) -> None:
        """End our side and go on reading: a half-close; a close_notify under TLS."""
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            await self._push()
        else:
            with contextlib.suppress(OSError):  # both sides have ended
                self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish: whoever sends to us is told so (TCP), or finds nobody (Unix)."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close the socket, without a word of TLS."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def _receive_some(self, size: int) -> bytes:
        if self._tls is None:
            data = await self._loop.sock_recv(self.sock, size)
            self.ended_well = not data
            return data
        try:
            data = await self._drive(self._tls.read, size)
        except ssl.SSLZeroReturnError:
            self.ended_well = True
            return b""
        except EOFError:
            return b""
        self.ended_well = not data
        return bytes(data)

    async def _drive(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Run an operation of the TLS object, with the socket at both of its ends."""
        while True:
            try:
                result = operation(*args)
            except ssl.SSLWantReadError:
                await self._push()
                data = await self._loop.sock_recv(self.sock, 65536)
                if not data:
                    raise EOFError("the other side has ended without a close_notify") from None
                self._incoming.write(data)
            else:
                await self._push()
                return result

    async def _push(self) -> None:
        async with self._pushing:  # pieces of two tasks must not change places
            if data := self._outgoing.read():
                await self._loop.sock_sendall(self.sock, data)


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kind of stream: its name, where its sockets live, and its TLS contexts."""

    name: str
    directory: Path
    server_context: ssl.SSLContext | None = None
    client_context: ssl.SSLContext | None = None

    @property
    def tls(self) -> bool:
        """True when there is no half-close, and a handshake before everything."""
        return self.server_context is not None

    @property
    def unix(self) -> bool:
        """True when peers have no addresses."""
        return self.name == "unix"

    @property
    def address(self) -> Any:
        """Where to listen; a new one each time."""
        if not self.unix:
            return ("127.0.0.1", 0)
        return f"unix:{self.directory / str(len(list(self.directory.iterdir())))}"

    async def connect(self, server: TcpServer, *, receive_buffer: int | None = None) -> Peer:
        """Connect to ``server``, and shake hands under TLS.

        :param receive_buffer: bytes that the kernel may hold for us
        """
        peer = await self.knock(server, receive_buffer=receive_buffer)
        try:
            await peer.handshake()
        except BaseException:
            peer.close()
            raise
        return peer

    async def knock(self, server: TcpServer, *, receive_buffer: int | None = None) -> Peer:
        """Connect to ``server``, but leave the handshake to the test."""
        sock = socket.socket(socket.AF_UNIX if self.unix else socket.AF_INET)
        sock.setblocking(False)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if not self.unix:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, server.address)
        except BaseException:
            sock.close()
            raise
        return Peer(sock, self.client_context)


@contextlib.asynccontextmanager
async def served(at: Flavour, thing: Any, **options: Any) -> AsyncIterator[TcpServer]:
    """A server of ``thing``, aborted behind the block, without a word in the log.

    :param options: of ``TcpServer``, and ``handshake_timeout``
    """
    start = {name: options.pop(name) for name in ("handshake_timeout",) if name in options}
    server = TcpServer(thing, address=at.address, **options)
    await server.start_serving(sslcontext=at.server_context, **start)
    try:
        yield server
    finally:
        server.logger = UNHEARD
        async with asyncio.timeout(PATIENCE):
            await server.close(0)


@contextlib.asynccontextmanager
async def connected(
    at: Flavour, consumer: Any, *, receive_buffer: int | None = None, **options: Any
) -> AsyncIterator[tuple[Connection, Peer]]:
    """A client's connection of ``consumer`` and the peer that it is connected to.

    :param receive_buffer: bytes that the kernel may hold for the peer
    :param options: of ``Connection``
    """
    loop = asyncio.get_running_loop()
    address = at.address
    family = socket.AF_UNIX if at.unix else socket.AF_INET
    with socket.socket(family) as listener, contextlib.ExitStack() as stack:
        listener.setblocking(False)
        listener.bind(address.removeprefix("unix:") if at.unix else address)
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.listen()

        async def accept() -> Peer:
            sock, _ = await loop.sock_accept(listener)
            peer = stack.enter_context(Peer(sock, at.server_context, server_side=True))
            await peer.handshake()
            return peer

        client = AbstractClient(protocol_factory=partial(Connection, consumer, **options))
        accepting = loop.create_task(accept())
        connection = await client.create_connection(
            address if at.unix else listener.getsockname(),
            ssl=at.client_context,
            server_hostname="localhost" if at.tls else None,
        )
        try:
            yield connection, await accepting
        finally:
            connection.abort()
            await connection.close()


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait until ``condition()`` is true."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"it did not happen: {what or condition}") from None


@contextlib.contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[logging.LogRecord]]:
    """What pulsar and asyncio log inside the block, from ``level`` on."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Handler(level)
    loggers = [logging.getLogger("pulsar"), logging.getLogger("asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield records
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(before)
