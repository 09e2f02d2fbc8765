"""DatagramServer, and UDP endpoints of clients: the part of the conformance set for datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest

from pulsar.clients import AbstractUdpClient
from pulsar.errors import ImproperlyConfigured
from pulsar.net import parse_bind
from pulsar.protocols import DatagramProtocol, DatagramServer, ProtocolConsumer
from tests.support import loops
from tests.support.flavours import PATIENCE, UNHEARD, eventually, logged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOCAL = ("127.0.0.1", 0)

# As large as a datagram can be on IPv4.
LARGEST = 65_507


class Echo(DatagramProtocol):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.sendto(data, addr)


class Foreign(asyncio.DatagramProtocol):
    """Somebody else's."""

    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


class Slotted(DatagramProtocol):
    """Without a ``__dict__``."""

    __slots__ = ()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.sendto(data, addr)


class ForeignSlotted(asyncio.DatagramProtocol):
    __slots__ = ("transport",)

    transport: Any

    connection_made = Foreign.connection_made
    datagram_received = Foreign.datagram_received


every_protocol = pytest.mark.parametrize("cls", [Echo, Foreign, Slotted, ForeignSlotted])


@contextlib.asynccontextmanager
async def serving(thing: Any, **options: Any) -> AsyncIterator[DatagramServer]:
    options.setdefault("address", LOCAL)
    server = DatagramServer(thing, **options)
    await server.create_endpoint()
    try:
        yield server
    finally:
        server.logger = UNHEARD
        async with asyncio.timeout(PATIENCE):
            await server.close(0)


class Peer:
    """A plain UDP socket, connected to a server."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect(address)

    def send(self, data: bytes) -> None:
        self.sock.send(data)

    async def receive(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self.sock, 65536)

    async def echoed(self, data: bytes) -> None:
        self.send(data)
        assert await self.receive() == data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()


# -- serving


@every_protocol
def test_datagrams_of_every_size(cls: Any, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serving(cls) as server:
            with Peer(server.address) as peer:
                for size in (1, 2, 500, 1472, 1473, 9000, LARGEST):
                    await peer.echoed(bytes(range(256)) * (size // 256) + bytes(size % 256))

    run(main())


def test_an_empty_datagram_is_a_datagram(run: Callable[..., Any]) -> None:
    seen: list[bytes] = []

    class Counting(Echo):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            seen.append(data)
            self.sendto(b"got %d" % len(data), addr)

    async def main() -> None:
        async with serving(Counting) as server:
            with Peer(server.address) as peer:
                peer.send(b"")
                assert await peer.receive() == b"got 0"
                assert seen == [b""]

    run(main())


def test_peers_do_not_disturb_each_other(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serving(Echo) as server:
            with contextlib.ExitStack() as stack:
                peers = [stack.enter_context(Peer(server.address)) for _ in range(20)]
                for number, peer in enumerate(peers):
                    peer.send(b"%d" % number)
                for number, peer in enumerate(peers):
                    assert await peer.receive() == b"%d" % number
                assert server.sessions == 1

    run(main())


def test_several_sockets_have_a_protocol_each(run: Callable[..., Any]) -> None:
    async def main() -> None:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        for sock in sockets:
            sock.bind(LOCAL)
        addresses = [sock.getsockname() for sock in sockets]
        async with serving(Echo, sockets=sockets, address=None) as server:
            assert server.addresses == addresses
            assert server.address == addresses[0]
            assert server.sessions == 3
            protocols = [transport.get_protocol() for transport in server._transports]
            assert [protocol.session for protocol in protocols] == [1, 2, 3]
            assert {protocol.producer for protocol in protocols} == {server}
            for address in addresses:
                with Peer(address) as peer:
                    await peer.echoed(b"x")
        assert [sock.fileno() for sock in sockets] == [-1, -1, -1]

    run(main())


@every_protocol
def test_the_transports_protocol_is_the_users_object(cls: Any, run: Callable[..., Any]) -> None:
    async def main() -> None:
        made: list[Any] = []

        def factory() -> Any:
            made.append(cls())
            return made[-1]

        async with serving(factory) as server:
            (transport,) = server._transports
            assert transport.get_protocol() is made[-1]
            assert type(made[-1]) is cls
            assert "datagram_received" not in getattr(made[-1], "__dict__", {})

    run(main())


def test_the_life_of_a_server(run: Callable[..., Any]) -> None:
    async def main() -> None:
        seen: list[Any] = []
        server = DatagramServer(Echo, address=parse_bind("127.0.0.1:0"), name="mine")
        for name in ("start", "finish", "connection_made", "connection_lost"):
            server.bind_event(name, lambda arg, exc, name=name: seen.append(name))
        assert repr(server) == "<DatagramServer mine new>"
        assert server.address is None
        await server.create_endpoint()
        port = server.address[1]
        assert repr(server) == f"<DatagramServer mine serving on 127.0.0.1:{port}>"
        assert seen == ["connection_made", "start"]
        info = server.info()
        assert info.pop("uptime") >= 0
        assert info == {
            "name": "mine",
            "kind": "datagram",
            "addresses": [f"127.0.0.1:{port}"],
            "sessions": 1,
            "requests_processed": 0,
            "max_requests": None,
        }
        with pytest.raises(RuntimeError, match="mine has been started already"):
            await server.create_endpoint()
        await server.close()
        assert seen == ["connection_made", "start", "connection_lost", "finish"]
        assert repr(server) == f"<DatagramServer mine closed on 127.0.0.1:{port}>"
        await server.close()

    run(main())


def test_a_server_in_an_async_with_block(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with DatagramServer(Echo, address=LOCAL) as server:
            with Peer(server.address) as peer:
                await peer.echoed(b"x")
        assert server.fired_event("finish")

    run(main())


def test_what_cannot_be_served(run: Callable[..., Any]) -> None:
    async def main() -> None:
        for thing in (ProtocolConsumer, asyncio.Protocol):
            with pytest.raises(ImproperlyConfigured, match="mine serves datagrams: accepted is"):
                await DatagramServer(thing, address=LOCAL, name="mine").create_endpoint()
        with pytest.raises(ImproperlyConfigured, match="has neither an address nor sockets"):
            await DatagramServer(Echo).create_endpoint()

    run(main())


def test_a_factory_that_raises_leaves_nothing_behind(run: Callable[..., Any]) -> None:
    async def main() -> None:
        calls: list[None] = []

        def factory() -> DatagramProtocol:
            calls.append(None)
            if len(calls) == 3:  # the first to see what it makes, then one for each socket
                raise LookupError("no protocol today")
            return Echo()

        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for sock in sockets:
            sock.bind(LOCAL)
        server = DatagramServer(factory, sockets=sockets)
        with pytest.raises(LookupError, match="no protocol today"):
            await server.create_endpoint()
        await server.close(0)

    run(main())


# -- errors


@every_protocol
def test_an_error_in_datagram_received_costs_one_datagram(
    cls: Any, run: Callable[..., Any]
) -> None:
    class Failing(cls):  # type: ignore[misc]
        def datagram_received(self, data: bytes, addr: Any) -> None:
            if data == b"bad":
                raise ZeroDivisionError("in user code")
            super().datagram_received(data, addr)

    async def main() -> None:
        for options in ({}, {"max_requests": 100}):
            async with serving(Failing, **options) as server:
                with Peer(server.address) as peer:
                    await peer.echoed(b"good")
                    peer.send(b"bad")
                    await peer.echoed(b"good")
                    await peer.echoed(b"good")
            # Told to the loop's handler, once, with the traceback.
            (context,) = loops.take_errors()
            assert isinstance(context["exception"], ZeroDivisionError)

    run(main())


def test_a_peer_that_has_gone_disturbs_nobody(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with logged() as records:
            async with serving(Echo) as server:
                with Peer(server.address) as peer:
                    gone = Peer(server.address)
                    for _ in range(3):
                        gone.send(b"x")
                    gone.sock.close()  # the answers find nobody
                    for _ in range(5):
                        await peer.echoed(b"good")
        assert records == []

    run(main())


def test_an_answer_that_is_too_large(run: Callable[..., Any]) -> None:
    """It is refused where it is written, and the endpoint goes on."""

    class Doubling(Echo):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.sendto(data * 2, addr)

    async def main() -> None:
        async with serving(Doubling) as server:
            with Peer(server.address) as peer:
                peer.send(b"x" * 40_000)
                peer.send(b"x")
                assert await peer.receive() == b"xx"
        (context,) = loops.take_errors()
        assert isinstance(context["exception"], ValueError)

    run(main())


# -- limits and the end


@every_protocol
def test_after_max_requests_the_server_closes(
    cls: Any, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(cls, max_requests=3, name="mine") as server:
            with Peer(server.address) as peer, Peer(server.address) as other:
                await peer.echoed(b"1")
                await other.echoed(b"2")
                assert not server.fired_event("finish")
                await peer.echoed(b"3")
                await eventually(lambda: server.fired_event("finish"))
                assert server.requests_processed == 3
                peer.send(b"4")
                with pytest.raises(ConnectionRefusedError):
                    await peer.receive()

    run(main())
    (entry,) = caplog.records
    assert (entry.levelno, entry.getMessage()) == (
        logging.WARNING,
        "mine: 3 requests processed, closing",
    )


def test_closing_frees_the_address_and_ends_the_protocols(run: Callable[..., Any]) -> None:
    async def main() -> None:
        lost: list[Any] = []

        class Noting(Echo):
            def connection_lost(self, exc: BaseException | None) -> None:
                super().connection_lost(exc)
                lost.append(exc)

        async with serving(Noting) as server:
            (transport,) = server._transports
            protocol: Any = transport.get_protocol()
            address = server.address
            await asyncio.gather(server.close(), server.close())
            assert lost == [None]
            assert protocol.closed
            assert protocol.fired_event("connection_lost")
            protocol.sendto(b"dropped", address)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(address)

    run(main())


def test_closing_before_the_start(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = DatagramServer(Echo, address=LOCAL)
        await server.close()
        assert server.fired_event("finish")

    run(main())


def test_what_was_sent_before_the_close_goes_out(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serving(Echo) as server:
            (transport,) = server._transports
            protocol: Any = transport.get_protocol()
            with Peer(server.address) as peer:
                for number in range(20):
                    protocol.sendto(b"%d" % number, peer.sock.getsockname())
                await server.close()
                assert [await peer.receive() for _ in range(20)] == [
                    b"%d" % number for number in range(20)
                ]

    run(main())


def test_aborting(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serving(Echo) as server:
            (transport,) = server._transports
            protocol: Any = transport.get_protocol()
            server.abort()
            await eventually(lambda: protocol.closed)

    run(main())


def test_a_protocol_can_close_its_endpoint(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serving(Echo) as server:
            (transport,) = server._transports
            protocol: Any = transport.get_protocol()
            assert await protocol.close() is protocol
            await server.close()
            assert server.fired_event("finish")

    run(main())


def test_two_servers_in_one_program(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serving(Echo) as one, serving(partial(Foreign)) as other:
            with Peer(one.address) as peer, Peer(other.address) as its_peer:
                await peer.echoed(b"x")
                await its_peer.echoed(b"y")
                await one.close()
                await its_peer.echoed(b"y")

    run(main())


# -- clients


class Asking(DatagramProtocol):
    """Sends a datagram and waits for the next that comes."""

    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self.answers: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    async def ask(self, data: bytes, addr: Any = None) -> bytes:
        self.sendto(data, addr)
        answer = await asyncio.wait_for(self.answers.get(), PATIENCE)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answers.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        super().error_received(exc)
        self.answers.put_nowait(exc)


def test_a_client_asks_one_server_or_many(run: Callable[..., Any]) -> None:
    async def main() -> None:
        client = AbstractUdpClient(protocol_factory=Asking)
        async with serving(Echo) as server:
            endpoint = await client.create_endpoint(server.address)
            for size in (1, 1472, LARGEST):
                assert await endpoint.ask(b"x" * size) == b"x" * size
            anywhere = await client.create_endpoint(local_addr=LOCAL)
            assert await anywhere.ask(b"question", server.address) == b"question"
            assert client.sessions == 2
            for protocol in (endpoint, anywhere):
                assert protocol.producer is client
                assert await protocol.close() is protocol
            assert endpoint.address is None or endpoint.address == server.address
        await client.close()

    run(main())


def test_a_client_of_a_server_that_is_not_there(run: Callable[..., Any]) -> None:
    """It is told, and can go on: a server may come back."""

    async def main() -> None:
        client = AbstractUdpClient(protocol_factory=Asking)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(LOCAL)
            address = sock.getsockname()
        with logged() as records:
            endpoint = await client.create_endpoint(address)
            with pytest.raises(ConnectionRefusedError):
                await endpoint.ask(b"x")
            async with serving(Echo, address=address):
                assert await endpoint.ask(b"x") == b"x"
            await endpoint.close()
        assert records == []
        await client.close()

    run(main())
