"""Binds with the PROXY protocol: whose connection it is, who is believed, who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.net import Bind
from pulsar.protocols import (
    Connection,
    DatagramServer,
    Protocol,
    ProtocolConsumer,
    TcpServer,
    proxied,
)
from pulsar.protocols.accept import _Listener
from pulsar.sockets import open_sockets
from pulsar.tls import client_context, server_context
from tests.support import loops
from tests.support.certs import Certificates
from tests.support.flavours import PATIENCE, UNHEARD, Flavour, Peer, eventually, logged

Run = Callable[..., Any]

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL = SIGNATURE + b"\x20\x00\0\0"
V2 = SIGNATURE + struct.pack(
    "!BBH16s16sHH", 0x21, 0x21, 36 + 5, bytes.fromhex("20010db8" + "09".zfill(24)), bytes(16), 9, 5
)
TLV = b"\x04\x00\x02hi"
SAYS = {
    V1: (("192.0.2.1", 56324), ("198.51.100.2", 443)),
    V2 + TLV: (("2001:db8::9", 9, 0, 0), ("::", 5, 0, 0)),
}


def ends(transport: Any) -> bytes:
    info = transport.get_extra_info
    secure = info("sslcontext") is not None
    header = info("proxy_header")
    tlvs = header and header.tlvs
    return b"%r" % ((info("peername"), info("sockname"), secure, tlvs),) + b"\n"


class Consumer(ProtocolConsumer):
    def data_received(self, data: bytes) -> None:
        assert self.connection is not None
        assert self.connection.address == self.connection.transport.get_extra_info("peername")
        self.write(data + ends(self.connection.transport))


class Plain(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport.get_protocol() is self
        assert self.transport.is_reading()
        assert not self.transport.is_closing()
        self.transport.writelines([data, ends(self.transport)])


class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(self.buffer[:nbytes] + ends(self.transport))


class Own(Protocol):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data + ends(self.transport))


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data + ends(writer))
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def served(
    at: Flavour, thing: Any = Consumer, *, trusted: Any = ("127.0.0.1", "unix"), **options: Any
) -> AsyncIterator[TcpServer]:
    """``thing`` behind a proxy; aborted at the end, without a word."""
    start = {name: options.pop(name) for name in ("handshake_timeout",) if name in options}
    where = at.address
    bind = Bind("unix", path=where[5:]) if at.unix else Bind("tcp", *where)
    sockets = open_sockets(bind)
    server = TcpServer(thing, sockets=sockets, **options)
    await server.start_serving(
        sslcontext=at.server_context,
        proxied_sockets=sockets,
        proxy_allow_from=trusted,
        **start,
    )
    try:
        yield server
    finally:
        server.logger = UNHEARD
        await server.close(0)
        assert server.connections == 0


async def introduced(at: Flavour, server: TcpServer, *pieces: bytes) -> Peer:
    """A connection that has begun with ``pieces``, each sent when the one before was taken."""
    peer = await at.knock(server)
    for piece in pieces:
        await asyncio.get_running_loop().sock_sendall(peer.sock, piece)
        if len(pieces) > 1:
            await asyncio.sleep(0.005)  # or they come as one
    await peer.handshake()
    return peer


async def said(peer: Peer, data: bytes = b"Hello!") -> tuple[Any, ...]:
    """What the server says of the connection."""
    await peer.send(data)
    text = b""
    while not text.endswith(b"\n"):
        text += await peer.receive(1)
    assert text.startswith(data)
    found = eval(text[len(data) :])  # the repr of what ends() has looked at
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("thing", [Consumer, Plain, Buffered, Own, stream])
def test_the_ends_are_those_of_the_header(flavour: Flavour, run: Run, thing: Any) -> None:
    async def main() -> None:
        async with served(flavour, thing) as server:
            for header, (source, destination) in SAYS.items():
                tlvs = TLV if header.endswith(TLV) else b""
                # In one piece, and split so that parts have to be waited for.
                for pieces in ([header], [header[:1], header[1:20], header[20:-1], header[-1:]]):
                    with await introduced(flavour, server, *pieces) as peer:
                        expected = (source, destination, flavour.tls, tlvs)
                        assert await said(peer) == expected
                        assert await said(peer, b"x" * 100) == expected
            # A proxy that speaks for itself.
            for header in (LOCAL, b"PROXY UNKNOWN\r\n"):
                with await introduced(flavour, server, header) as peer:
                    own = peer.sock.getsockname(), peer.sock.getpeername()
                    assert await said(peer) == (*own, flavour.tls, None)
            await eventually(lambda: server.connections == 0)

    run(main())


def test_what_stands_behind_the_header_is_not_lost(tcp: Flavour, run: Run) -> None:
    async def main() -> None:
        async with served(tcp) as server:
            with await tcp.knock(server) as peer:
                await peer.send(V1 + V1 + b"x" * 200_000)
                await peer.end()
                answer = await peer.rest()
            # A second header is nothing but data.
            assert answer.startswith(V1 + b"x")
            assert answer.count(b"x") == 200_000

    run(main())


BAD = {
    b"GET / HTTP/1.1\r\n\r\n": "there is no PROXY header",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\nHello": "the line of the PROXY header is malformed",
    SIGNATURE + b"\x21\x11\xff\xff": "the PROXY header is longer than 4096 bytes",
    b"\x16\x03\x01\x02\x00\x01\x00": "there is no PROXY header",
}


def test_who_sends_no_header_is_refused(flavour: Flavour, run: Run) -> None:
    async def main() -> None:
        served_any = []

        def factory() -> Connection:
            served_any.append(1)
            return Connection(Consumer)

        async with served(flavour, factory, kind="connection") as server:
            for data, reason in BAD.items():
                with logged(logging.INFO) as records, await flavour.knock(server) as peer:
                    await asyncio.get_running_loop().sock_sendall(peer.sock, data)
                    await closed(peer.sock)
                    await eventually(lambda: server.connections == 0)
                    [record] = records
                    text = record.getMessage()
                    assert record.levelno == logging.INFO
                    assert text.endswith(f" refused: {reason}"), text
                    if not flavour.unix:
                        assert f"from 127.0.0.1:{peer.sock.getsockname()[1]} " in text
            # One that ends in the middle says something, one that only looks does not.
            with logged(logging.INFO) as records:
                for data in (V1[:9], b""):
                    with await flavour.knock(server) as peer:
                        await asyncio.get_running_loop().sock_sendall(peer.sock, data)
                        peer.sock.shutdown(socket.SHUT_WR)
                        await closed(peer.sock)
                await eventually(lambda: server.connections == 0)
            assert [r.getMessage().partition("refused: ")[2] for r in records] == [
                "its PROXY header is not complete"
            ]
            assert not served_any

    run(main())


async def closed(sock: socket.socket) -> None:
    """The server ends the connection without a word."""
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""


def test_who_is_not_trusted_is_refused(tcp: Flavour, unix: Flavour, run: Run) -> None:
    async def main() -> None:
        for at, trusted in ((tcp, ["192.0.2.1", "unix"]), (unix, ["127.0.0.1"])):
            async with served(at, trusted=trusted) as server:
                with logged(logging.INFO) as records, await at.knock(server) as peer:
                    with contextlib.suppress(OSError):
                        await peer.send(V1 + b"Hello!")
                    await closed(peer.sock)
                    assert "not trusted (proxy_allow_from)" in records[0].getMessage()
                    await eventually(lambda: server.connections == 0)
                assert server.sessions == 0

    run(main())


def test_a_header_has_its_time(tls: Flavour, run: Run) -> None:
    async def main() -> None:
        async with served(tls, handshake_timeout=0.2) as server:
            for data in (b"", V1[:20]):
                with logged(logging.INFO) as records, await tls.knock(server) as peer:
                    await asyncio.get_running_loop().sock_sendall(peer.sock, data)
                    await closed(peer.sock)
                    assert records[0].getMessage().endswith("no PROXY header in 0.2 s")
            # So has the handshake behind it.
            with await tls.knock(server) as peer:
                await asyncio.get_running_loop().sock_sendall(peer.sock, V1)
                await closed(peer.sock)

    run(main())


def test_a_handshake_that_fails(tls: Flavour, run: Run) -> None:
    async def main() -> None:
        async with served(tls) as server:
            with await tls.knock(server) as peer:
                await asyncio.get_running_loop().sock_sendall(peer.sock, V1 + b"Hello!" * 10)
                with contextlib.suppress(ConnectionResetError):
                    while await asyncio.get_running_loop().sock_recv(peer.sock, 1000):
                        pass
            with await introduced(tls, server, V1) as peer:
                assert (await said(peer))[:2] == SAYS[V1]

    run(main(), allow=ssl.SSLError)


def test_who_has_no_header_yet_takes_a_place(tcp: Flavour, run: Run) -> None:
    async def main() -> None:
        async with served(tcp, max_connections=2) as server:
            server.logger = UNHEARD
            with await introduced(tcp, server, V1) as first:
                await said(first)
                with await tcp.knock(server) as second:
                    await eventually(lambda: server.connections == 2)
                    assert not server.accepting
                    assert server.info()["paused"] == ["max_connections"]
                    with await tcp.knock(server) as third:
                        await third.send(V1 + b"third")
                        await second.send(V1 + b"second")
                        assert await second.receive(6) == b"second"
                        assert server.connections == 2
                        second.close()
                        assert await third.receive(5) == b"third"
                        # One that is refused makes room, too.
                        with await tcp.knock(server) as fourth:
                            third.close()
                            await eventually(lambda: server.sessions == 3)
                            await fourth.send(b"nothing\n")
                            await closed(fourth.sock)
                        with await introduced(tcp, server, V1) as fifth:
                            await said(fifth)

    run(main())


def test_a_graceful_stop(tls: Flavour, run: Run) -> None:
    async def main() -> None:
        async with served(tls) as server:
            with (
                await tls.knock(server) as silent,
                await tls.knock(server) as late,
                await introduced(tls, server, V1) as idle,
            ):
                await said(idle)
                await eventually(lambda: server.connections == 3)
                closing = asyncio.ensure_future(server.close(10, linger=0.5))
                await eventually(lambda: not server.accepting)
                # Who is accepted is served to the end; who says nothing is given up.
                await asyncio.get_running_loop().sock_sendall(late.sock, V1)
                await late.handshake()
                assert (await said(late))[0] == ("192.0.2.1", 56324)
                await closed(silent.sock)
                await idle.gone()
                await late.gone()
                await closing

    run(main())


def test_a_stop_at_once(tls: Flavour, run: Run) -> None:
    async def main() -> None:
        async with served(tls) as server:
            with await tls.knock(server) as one, await introduced(tls, server, V1) as two:
                await said(two)
                await eventually(lambda: server.connections == 2)
                server.logger = UNHEARD
                await server.close(0)
                await closed(one.sock)
                await two.gone()

    run(main())


def test_pausing_and_other_sockets(tcp: Flavour, run: Run) -> None:
    async def main() -> None:
        async with served(tcp) as server:
            server.pause()
            with await tcp.knock(server) as peer:
                await peer.send(V1 + b"x")
                server.resume()
                assert await peer.receive(1) == b"x"
            plain, proxied = [open_sockets(Bind("tcp", "127.0.0.1", 0))[0] for _ in range(2)]
            await server.adopt([plain, proxied], proxied_sockets=[proxied])
            for sock, source in ((plain, None), (proxied, "192.0.2.1")):
                reader, writer = await asyncio.open_connection(*sock.getsockname())
                writer.write(V1 + b"x")
                line = await reader.readline()  # of V1 where it is none
                if source is None:
                    assert line == V1
                    line = await reader.readline()
                assert line.startswith(b"x")
                assert (source or "127.0.0.1") in line.decode()
                writer.close()
                await writer.wait_closed()
            await server.release([proxied])
            proxied.close()

    run(main())


def test_accepting_goes_on_when_it_has_failed(
    tcp: Flavour, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket.accept
    failures = [OSError(errno.EMFILE, "no descriptor is left"), BlockingIOError()]

    def failing(self: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return accept(self)

    async def main() -> None:
        async with served(tcp) as server, asyncio.timeout(PATIENCE):
            with await introduced(tcp, server, V1) as peer:
                assert (await said(peer))[0] == ("192.0.2.1", 56324)
        # What waits for its next try ends with the server.
        failures.append(OSError(errno.EMFILE, "no descriptor is left"))
        async with served(tcp) as server:
            with await tcp.knock(server):
                await eventually(lambda: not failures)

    monkeypatch.setattr(proxied, "_RETRY", 0.01)
    monkeypatch.setattr(_Listener, "accept", failing)
    run(main())


def test_the_certificate_is_renewed(tls: Flavour, run: Run, certs: Certificates) -> None:
    async def main() -> None:
        async with served(tls) as server:
            await server.renew_tls(server_context(certs.renewed_cert, certs.renewed_key))
            with await introduced(tls, server, V1) as peer:
                assert (await said(peer))[:2] == SAYS[V1]

    run(main())


def test_a_protocol_that_cannot_begin(tcp: Flavour, run: Run) -> None:
    class Broken(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            raise RuntimeError("broken on purpose")

    async def main() -> None:
        async with served(tcp, Broken) as server:
            with logged() as records, await tcp.knock(server) as peer:
                await peer.send(V1)
                await closed(peer.sock)
                await eventually(lambda: server.connections == 0)
                await eventually(lambda: records)
            assert records[0].exc_info
            assert "broken on purpose" in str(records[0].exc_info[1])

    run(main())


def test_tls_that_begins_later(tcp: Flavour, certs: Certificates) -> None:
    """A protocol that starts TLS by itself can, on asyncio's own loops."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"go\n")
        await writer.start_tls(server_context(certs.server_cert, certs.server_key))
        writer.write(ends(writer))
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with served(tcp, handler) as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(V1 + b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(client_context(certs.ca), server_hostname="localhost")
            assert b"192.0.2.1" in await reader.readline()
            writer.close()
            await writer.wait_closed()

    loops.run(main(), loop="asyncio")


@pytest.mark.parametrize("how", ["", "?proxy_protocol=on"])
def test_small_answers_are_not_held_back(run: Run, how: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        writer.write(b"%d" % sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def main() -> None:
        async with TcpServer(handler, address=f"127.0.0.1:0{how}") as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(V1)
            assert int(await reader.read(10))
            writer.close()
            await writer.wait_closed()

    run(main())


def test_an_address_says_it(run: Run) -> None:
    async def main() -> None:
        async with TcpServer(Consumer, address="127.0.0.1:0?proxy_protocol=on") as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(V1 + b"x")
            assert b"192.0.2.1" in await reader.readline()
            writer.close()
            await writer.wait_closed()
        datagrams = DatagramServer(
            asyncio.DatagramProtocol, address="127.0.0.1:0?proxy_protocol=on"
        )
        with pytest.raises(ImproperlyConfigured, match="PROXY protocol is for streams"):
            await datagrams.create_endpoint()

    run(main())
