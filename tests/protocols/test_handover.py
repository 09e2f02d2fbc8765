"""TcpServer that is one of several: sockets taken in, given back, left to others; retirement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.protocols import ProtocolConsumer, TcpServer
from tests.support import loops
from tests.support.conformance import EchoProtocol, FramedEcho, echo_streams, echoes, frame
from tests.support.flavours import PATIENCE, Flavour, Peer, eventually, logged, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def listening(at: Flavour, count: int = 1) -> Iterator[list[socket.socket]]:
    """Sockets that listen, and of which nobody accepts yet."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX if at.unix else socket.AF_INET))
            sock.bind(at.address.removeprefix("unix:") if at.unix else at.address)
            sock.listen(100)
            sockets.append(sock)
        yield sockets


async def knock(at: Flavour, sock: socket.socket) -> Peer:
    """A connection in the queue of ``sock``; under TLS, without the handshake."""
    peer = socket.socket(sock.family)
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(peer, sock.getsockname())
    return Peer(peer, at.client_context)


async def visit(at: Flavour, sock: socket.socket) -> None:
    with await knock(at, sock) as peer:
        await peer.handshake()
        await echoes(peer)


@contextlib.asynccontextmanager
async def serving(at: Flavour, *sockets: socket.socket, **options: Any) -> Any:
    server = TcpServer(FramedEcho, sockets=sockets, **options)
    await server.start_serving(sslcontext=at.server_context)
    try:
        yield server
    finally:
        await server.close(0)


# -- adopting and releasing


def test_sockets_are_adopted_and_released_while_serving(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        with listening(flavour, 3) as (own, *others):
            async with serving(flavour, own) as server:
                with await knock(flavour, own) as kept, await knock(flavour, others[0]) as queued:
                    await kept.handshake()
                    await echoes(kept)
                    for _ in range(2):
                        await server.adopt(others)
                        assert server.addresses == [s.getsockname() for s in (own, *others)]
                    for sock in (own, *others):
                        await visit(flavour, sock)
                    await queued.handshake()
                    await echoes(queued)
                    for _ in range(2):
                        await server.release(others[:1])
                        assert server.addresses == [s.getsockname() for s in (own, others[1])]
                    # What was accepted there goes on.
                    for peer in (kept, queued):
                        await echoes(peer)
                    await visit(flavour, others[1])
                    sessions = server.sessions
                    with await knock(flavour, others[0]) as waiting:
                        await visit(flavour, own)
                        assert server.sessions == sessions + 1
                        # It is the caller's again, with its queue.
                        async with serving(flavour, others[0].dup()):
                            await waiting.handshake()
                            await echoes(waiting)
                        await echoes(kept)
                        await server.adopt(others)
                        assert server.addresses == [s.getsockname() for s in (own, *others[::-1])]
                        await visit(flavour, others[0])
            assert [sock.fileno() for sock in (own, *others)] == [-1, -1, -1]

    run(main())


def test_a_server_may_be_left_without_a_socket(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        with listening(tcp) as (sock,):
            async with serving(tcp, sock, max_connections=1) as server:
                with await knock(tcp, sock) as peer:
                    await echoes(peer)
                    await server.release()
                    assert (server.address, server.addresses, server._server) == (None, [], None)
                    await echoes(peer)
                # Over the limit and back, with nothing to accept on.
                await eventually(lambda: server.connections == 0)
                assert not server._short_of_descriptors()
                server._watch_descriptors()
                await eventually(lambda: server._descriptor_timer is None)
                server.pause()
                server.resume()
                await server.adopt([sock])
                await visit(tcp, sock)
                await server.release()
            assert sock.fileno() != -1

    run(main())


def test_a_socket_that_the_server_has_opened_is_closed_though_it_was_released(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        server = TcpServer(FramedEcho, address=tcp.address)
        await server.start_serving()
        (sock,) = server._sockets
        await server.release()
        assert sock.fileno() != -1
        await server.close()
        assert sock.fileno() == -1

    run(main())


def test_adopting_and_releasing_while_paused(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        with listening(tcp, 3) as sockets:
            async with serving(tcp, *sockets[:2]) as server:
                server.pause()
                await server.adopt(sockets[2:])
                await server.release(sockets[:1])
                peers = [await knock(tcp, sock) for sock in sockets]
                for _ in range(20):
                    await asyncio.sleep(0)
                assert server.sessions == 0
                server.resume()
                for peer in peers[1:]:
                    await echoes(peer)
                assert server.sessions == 2
                for peer in peers:
                    peer.close()

    run(main())


def test_plain_sockets_are_adopted_beside_tls(
    tls: Flavour, tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        with listening(tcp, 3) as (own, secure, plain):
            async with serving(tls, own) as server:
                await server.adopt([secure, plain], plain_sockets=[plain])
                for sock in (own, secure):
                    await visit(tls, sock)
                await visit(tcp, plain)
                await server.release([plain])
                number = plain.fileno()
                plain.close()
                # Whoever gets its number next is not plain for that.
                with listening(tcp) as (another,):
                    if another.fileno() != number:
                        os.dup2(another.fileno(), number)
                        another.close()
                    another.detach()
                    with socket.socket(fileno=number) as namesake:
                        await server.adopt([namesake])
                        await visit(tls, namesake)
                        await server.release([namesake])

    run(main())


def test_what_cannot_be_adopted(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = TcpServer(FramedEcho, address=tcp.address, name="mine")
        with listening(tcp) as (sock,):
            with pytest.raises(RuntimeError, match="mine does not serve, so it adopts no sockets"):
                await server.adopt([sock])
            await server.release([sock])
            await server.start_serving()
            with (
                socket.socket() as deaf,
                pytest.raises(ImproperlyConfigured, match="mine cannot adopt a socket that does"),
            ):
                await server.adopt([sock, deaf])
            assert len(server.addresses) == 1
            await server.close()
            with pytest.raises(RuntimeError, match="mine does not serve"):
                await server.adopt([sock])
            await server.release([sock])
            assert sock.fileno() != -1

    run(main())


def test_a_release_that_is_cancelled(tcp: Flavour, run: Callable[..., Any]) -> None:
    """At whatever moment: the others are served, and what is asked for next is done."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listening(tcp, 2) as (own, other):
            async with serving(tcp, own, other) as server:
                for turns in range(6):
                    releasing = loop.create_task(server.release([other]))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    releasing.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await releasing
                    await visit(tcp, own)
                    await server.adopt([other])
                    await visit(tcp, other)

    run(main())


# -- leaving sockets to others


def test_a_successor_gets_the_queue(flavour: Flavour, run: Callable[..., Any]) -> None:
    """No connection is refused, reset or left alone while servers follow each other."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        visits = 0
        going = True

        async def keep_visiting() -> None:
            nonlocal visits
            while going:
                await visit(flavour, sock)
                visits += 1

        with listening(flavour) as (sock,):
            current = TcpServer(FramedEcho, sockets=[sock.dup()])
            await current.start_serving(sslcontext=flavour.server_context)
            visitors = [loop.create_task(keep_visiting()) for _ in range(8)]
            for _ in range(5):
                before = visits
                await eventually(lambda before=before: visits >= before + 20)
                successor = TcpServer(FramedEcho, sockets=[sock.dup()])
                await successor.start_serving(sslcontext=flavour.server_context)
                await current.close(linger=0.2, shared=list(current._sockets))
                current = successor
            going = False
            await asyncio.gather(*visitors)
            await current.close(0)

    run(main())


def test_what_is_queued_when_a_server_leaves_stays_queued(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    """Also while it is paused, and beside sockets that it does not leave."""

    async def main() -> None:
        with listening(flavour, 2) as (shared, own):
            server = TcpServer(FramedEcho, sockets=[shared.dup(), own.dup()])
            await server.start_serving(sslcontext=flavour.server_context)
            server.pause()
            await eventually(lambda: server._server is None)
            peers = [await knock(flavour, shared) for _ in range(5)]
            with await knock(flavour, own) as last:
                closing = asyncio.get_running_loop().create_task(
                    server.close(60, linger=0.2, shared=server._sockets[:1])
                )
                await last.handshake()
                await last.send(frame(b"x"))
                assert await last.farewell() == frame(b"x")
                await closing
            assert server.sessions == 1
            async with serving(flavour, shared.dup()):
                for peer in peers:
                    await peer.handshake()
                    await echoes(peer)
                    peer.close()

    run(main())


def test_two_servers_empty_one_queue(
    flavour: Flavour, loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each in a loop and a thread of its own, on one socket, and both for good."""
    results: list[int] = []
    ready = threading.Barrier(3)

    async def serve(sock: socket.socket) -> None:
        server = TcpServer(FramedEcho, sockets=[sock])
        await server.start_serving(sslcontext=flavour.server_context)
        server.pause()
        await eventually(lambda: server._server is None)
        await asyncio.to_thread(ready.wait, PATIENCE)
        await asyncio.to_thread(ready.wait, PATIENCE)  # the queue is full
        async with asyncio.timeout(PATIENCE):
            await server.close(60, linger=5)
        results.append(server.sessions)

    async def ask(sock: socket.socket) -> None:
        await asyncio.to_thread(ready.wait, PATIENCE)
        peers = [await knock(flavour, sock) for _ in range(60)]
        await asyncio.to_thread(ready.wait, PATIENCE)

        async def talk(peer: Peer) -> None:
            with peer:
                await peer.handshake()
                await peer.send(frame(b"x"))
                assert await peer.farewell() == frame(b"x")

        await asyncio.gather(*map(talk, peers))

    with listening(flavour) as (sock,):
        threads = [
            threading.Thread(
                target=loops.run, args=(serve(sock.dup()),), kwargs={"loop": loop_kind}
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        loops.run(ask(sock))
        for thread in threads:
            thread.join(PATIENCE)
    assert sum(results) == 60
    assert caplog.records == []


# -- max_requests


def test_somebody_else_decides_what_follows_max_requests(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        calls: list[int] = []
        with logged() as records:
            async with served(tcp, FramedEcho, max_requests=3) as server:
                server.retire = lambda: calls.append(server.requests_processed)
                with await tcp.connect(server) as peer:
                    for number in range(5):
                        assert calls == ([3] if number > 2 else [])
                        await echoes(peer)
                assert calls == [3]
                assert server.accepting
        assert records == []

    run(main())


# -- what is in hand


class Stuck(FramedEcho):
    """Never answers."""

    def answer(self, message: bytes) -> None:
        self.create_task(asyncio.Event().wait())


def test_the_requests_in_hand_and_their_peers(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with served(tcp, Stuck) as server:
            assert server.in_hand() == []
            with await tcp.connect(server) as idle, await tcp.connect(server) as peer:
                await eventually(lambda: server.connections == 2)
                await peer.send(frame(b"x"))
                await eventually(server.in_hand)
                host, port = peer.sock.getsockname()
                assert server.in_hand() == [f"{host}:{port} Stuck"]
                assert await asyncio.to_thread(server.in_hand) == server.in_hand()
                del idle

    run(main())


class Mute(asyncio.Protocol):
    """Never answers, and has no requests that could be seen."""


@pytest.mark.parametrize("thing", [EchoProtocol, echo_streams, Mute])
def test_what_is_in_hand_where_requests_are_not_seen(
    thing: Any, tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with served(tcp, thing) as server:
            with await tcp.connect(server) as peer:
                if thing is not Mute:
                    await echoes(peer)
                    assert server.in_hand() == []
                    return
                await peer.send(b"x")
                host, port = peer.sock.getsockname()
                await eventually(lambda: server.in_hand() == [f"{host}:{port}"])

    run(main())


def test_what_is_in_hand_over_a_unix_socket(unix: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with served(unix, Stuck) as server:
            with await unix.connect(server) as peer:
                await peer.send(frame(b"x"))
                await eventually(server.in_hand)
                assert server.in_hand() == ["unix: Stuck"]

    run(main())


def test_a_consumer_that_blocks_the_loop_is_in_hand(tcp: Flavour, run: Callable[..., Any]) -> None:
    """As somebody sees it who interrupts the loop, or looks from another thread."""
    found: list[list[str]] = []

    class Blocking(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            producer = self.producer
            assert isinstance(producer, TcpServer)
            found.append(producer.in_hand())
            # Looking changes nothing.
            assert producer.in_hand() == found[-1]
            self.write(data)
            assert producer.in_hand() == []

    async def main() -> None:
        async with served(tcp, Blocking) as server:
            with await tcp.connect(server) as peer:
                await peer.send(b"x")
                assert await peer.receive(1) == b"x"
                host, port = peer.sock.getsockname()
                assert found == [[f"{host}:{port} Blocking"]]

    run(main())
