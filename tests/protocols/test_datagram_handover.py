"""DatagramServer that is replaced: when its reading ends, and when its sending."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.protocols import DatagramProtocol, DatagramServer
from tests.support import loops
from tests.support.flavours import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCAL = ("127.0.0.1", 0)


class Echo(DatagramProtocol):
    """Answers at once, and says who it is."""

    name = b""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.sendto(data + self.name, addr)


class Foreign(asyncio.DatagramProtocol):
    """Somebody else's; keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.peers: list[Any] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.peers.append(addr)
        self.transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        self.told.append(exc)

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.told.append(("lost", exc))


@contextlib.contextmanager
def bound(count: int = 1) -> Iterator[list[socket.socket]]:
    """Sockets for datagrams, on which nobody reads yet."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(LOCAL)
            sockets.append(sock)
        yield sockets


@contextlib.contextmanager
def peer_of(sock: socket.socket) -> Iterator[socket.socket]:
    """A socket that takes datagrams from the address of ``sock`` only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.setblocking(False)
        peer.connect(sock.getsockname())
        yield peer


async def receive(peer: socket.socket) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.get_running_loop().sock_recv(peer, 65536)


async def answers(peer: socket.socket, data: bytes = b"?") -> bytes:
    peer.send(data)
    return await receive(peer)


def protocol_of(server: DatagramServer, index: int = 0) -> Any:
    return server._transports[index].get_protocol()


# -- adopting and releasing


def test_sockets_are_adopted_and_released_while_serving(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with bound(3) as (own, *others), contextlib.ExitStack() as stack:
            peers = [stack.enter_context(peer_of(sock)) for sock in (own, *others)]
            server = DatagramServer(Echo, sockets=[own])
            await server.create_endpoint()
            peers[1].send(b"early")
            for _ in range(2):
                await server.adopt(others)
                assert server.addresses == [sock.getsockname() for sock in (own, *others)]
                assert server.sessions == 3
            assert await receive(peers[1]) == b"early"
            for peer in peers:
                assert await answers(peer) == b"?"
            for _ in range(2):
                await server.release(others[:1])
                assert server.addresses == [sock.getsockname() for sock in (own, others[1])]
            # It is the caller's again, with what is queued there.
            peers[1].send(b"queued")
            assert await answers(peers[2]) == b"?"
            assert others[0].recv(100) == b"queued"
            await server.adopt(others)
            assert server.sessions == 4
            for peer in peers:
                assert await answers(peer) == b"?"
            await server.release(others[1:])
            await server.close()
            assert (own.fileno(), others[0].fileno()) == (-1, -1)
            assert others[1].fileno() != -1

    run(main())


def test_what_cannot_be_adopted(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with bound() as (sock,), socket.socket() as stream:
            server = DatagramServer(Echo, address=LOCAL, name="mine")
            with pytest.raises(RuntimeError, match="mine does not serve, so it adopts no sockets"):
                await server.adopt([sock])
            await server.create_endpoint()
            with pytest.raises(
                ImproperlyConfigured, match="mine cannot adopt a socket that is not"
            ):
                await server.adopt([sock, stream])
            assert len(server.addresses) == 1
            await server.close()
            with pytest.raises(RuntimeError, match="mine does not serve"):
                await server.adopt([sock])
            await server.release([sock])

    run(main())


def test_a_factory_that_raises_while_sockets_are_adopted(run: Callable[..., Any]) -> None:
    async def main() -> None:
        calls: list[None] = []

        def factory() -> DatagramProtocol:
            calls.append(None)
            if len(calls) == 4:  # one to see what it makes, one for each socket before
                raise LookupError("no protocol today")
            return Echo()

        with bound(3) as (own, *others), peer_of(own) as peer:
            server = DatagramServer(factory, sockets=[own])
            await server.create_endpoint()
            with pytest.raises(LookupError, match="no protocol today"):
                await server.adopt(others)
            assert server.addresses == [own.getsockname()]
            assert await answers(peer) == b"?"
            await server.adopt(others)
            assert len(server.addresses) == 3
            await server.close()

    run(main())


# -- the end of reading, and the end of sending


def test_no_datagram_is_read_behind_a_release(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with bound() as (sock,), peer_of(sock) as peer:
            server = DatagramServer(Echo, sockets=[sock])
            await server.create_endpoint()
            assert await answers(peer) == b"?"
            for number in range(50):
                peer.send(b"%d" % number)
            releasing = asyncio.get_running_loop().create_task(server.release())
            await releasing
            got = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    assert peer.recv(100) == b"%d" % got
                    got += 1
            for _ in range(20):
                await asyncio.sleep(0)
            for number in range(got, 50):
                assert sock.recv(100) == b"%d" % number
            with pytest.raises(BlockingIOError):
                peer.recv(100)
            await server.close()

    run(main())


def test_a_protocol_sends_from_its_address_until_the_close(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with bound() as (sock,), peer_of(sock) as peer:
            server = DatagramServer(Foreign, sockets=[sock])
            await server.create_endpoint()
            protocol = protocol_of(server)
            transport = protocol.transport
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("sockname") == sock.getsockname()
            assert transport.get_extra_info("socket").getsockname() == sock.getsockname()
            assert transport.get_extra_info("nonsense", 7) == 7
            transport.set_write_buffer_limits(5000, 1000)
            assert transport.get_write_buffer_limits() == (1000, 5000)
            assert await answers(peer) == b"?"
            await server.release()
            assert not transport.is_closing()
            for number in range(3):
                transport.sendto(b"%d" % number, protocol.peers[0])
                assert await receive(peer) == b"%d" % number
            transport.sendto(b"x" * 70_000, protocol.peers[0])
            transport.sendto(b"to nobody")
            assert [type(error) for error in protocol.told[1:]] == [OSError, OSError]
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("sockname") == sock.getsockname()
            assert transport.get_extra_info("socket").getsockname() == sock.getsockname()
            assert transport.get_extra_info("nonsense", 7) == 7
            assert transport.get_write_buffer_size() == 0
            transport.set_write_buffer_limits(1, 0)
            del protocol.told[1:]
            await server.close()
            assert protocol.told == ["made", ("lost", None)]
            assert transport.is_closing()
            assert transport.get_extra_info("sockname") is None
            transport.sendto(b"late", protocol.peers[0])
            transport.close()
            transport.abort()
            await asyncio.sleep(0)
            assert protocol.told == ["made", ("lost", None)]
            assert sock.fileno() != -1

    run(main())


def test_another_protocol_takes_over_the_endpoint(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with bound() as (sock,), peer_of(sock) as peer:
            server = DatagramServer(Foreign, sockets=[sock])
            await server.create_endpoint()
            first, second, third = protocol_of(server), Foreign(), Foreign()
            second.transport = first.transport
            first.transport.set_protocol(second)
            assert await answers(peer) == b"?"
            assert (len(first.peers), len(second.peers)) == (0, 1)
            await server.release()
            first.transport.set_protocol(third)
            assert first.transport.get_protocol() is third
            await server.close()
            assert (first.told, second.told, third.told) == (["made"], [], [("lost", None)])

    run(main())


def test_a_protocol_that_closes_its_endpoint(run: Callable[..., Any]) -> None:
    """Before a release or behind it: it hears of it once."""

    async def main() -> None:
        for released in (False, True):
            for name in ("close", "abort"):
                with bound() as (sock,):
                    server = DatagramServer(Foreign, sockets=[sock])
                    await server.create_endpoint()
                    protocol = protocol_of(server)
                    if released:
                        await server.release()
                    getattr(protocol.transport, name)()
                    assert protocol.transport.is_closing()
                    told = protocol.told
                    await eventually(lambda told=told: told == ["made", ("lost", None)])
                    await server.release()
                    await server.close()
                    assert protocol.told == ["made", ("lost", None)]

    run(main())


def test_what_is_buffered_at_a_release_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio's loop is made to buffer: real sockets hardly ever are full."""
    full = True
    sendto = socket.socket.sendto

    def fill(self: socket.socket, data: Any, *args: Any) -> int:
        if full:
            raise BlockingIOError
        return sendto(self, data, *args)

    async def main() -> None:
        nonlocal full
        with bound() as (sock,), peer_of(sock) as peer:
            server = DatagramServer(Foreign, sockets=[sock])
            await server.create_endpoint()
            protocol = protocol_of(server)
            protocol.transport.set_write_buffer_limits(100, 50)
            monkeypatch.setattr(socket.socket, "sendto", fill)
            for number in range(3):
                protocol.transport.sendto(b"%d" % number * 50, peer.getsockname())
            assert protocol.told == ["made", "pause"]
            await server.release()
            assert protocol.transport.get_write_buffer_size() > 0
            protocol.transport.sendto(b"dropped", peer.getsockname())  # as the network might
            full = False
            assert [await receive(peer) for _ in range(3)] == [b"0" * 50, b"1" * 50, b"2" * 50]
            await eventually(lambda: protocol.told == ["made", "pause", "resume"])
            await server.close()
            assert protocol.told[3:] == [("lost", None)]

    loops.run(main(), loop="asyncio")


def test_what_is_buffered_is_dropped_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: socket.socket, data: Any, *args: Any) -> int:
        raise BlockingIOError

    async def main() -> None:
        for released in (False, True):
            with bound() as (sock,), peer_of(sock) as peer, monkeypatch.context() as patch:
                server = DatagramServer(Foreign, sockets=[sock])
                await server.create_endpoint()
                protocol = protocol_of(server)
                patch.setattr(socket.socket, "sendto", full)
                protocol.transport.sendto(b"x", peer.getsockname())
                if released:
                    await server.release()
                await server.close(0.05)
                assert protocol.told == ["made", ("lost", None)]

    loops.run(main(), loop="asyncio")


def test_an_endpoint_that_was_released_ends_though_its_server_goes_on(
    run: Callable[..., Any],
) -> None:
    async def main() -> None:
        with bound(2) as (own, other):
            server = DatagramServer(Foreign, sockets=[own, other])
            server.graceful_timeout = 0.1
            await server.create_endpoint()
            protocol = protocol_of(server, 1)
            await server.release([other])
            assert protocol.told == ["made"]
            await eventually(lambda: protocol.told == ["made", ("lost", None)])
            assert len(server._transports) == 1
            await server.close()

    run(main())


# -- answers that take their time


class Slow(DatagramProtocol):
    """Answers when it is told to, in a task."""

    def __init__(self, release: asyncio.Event, **kw: Any) -> None:
        super().__init__(**kw)
        self.release = release

    def datagram_received(self, data: bytes, addr: Any) -> None:
        asyncio.get_running_loop().create_task(self.answer(data, addr))

    async def answer(self, data: bytes, addr: Any) -> None:
        await self.release.wait()
        self.sendto(data, addr)


@pytest.mark.parametrize("released", [True, False])
def test_a_late_answer_is_waited_for(released: bool, run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = asyncio.Event()
        with bound() as (sock,), peer_of(sock) as peer:
            server = DatagramServer(lambda **kw: Slow(release, **kw), sockets=[sock])
            await server.create_endpoint()
            before = len(asyncio.all_tasks())
            peer.send(b"?")
            await eventually(lambda: len(asyncio.all_tasks()) > before)
            if released:
                await server.release()
            closing = loop.create_task(server.close())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not closing.done()
            release.set()
            assert await receive(peer) == b"?"
            await closing

    run(main())


def test_an_answer_that_never_comes_is_not_waited_for_long(run: Callable[..., Any]) -> None:
    """A second, the deadline if that is sooner, or until the server is aborted."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = asyncio.Event()
        for how in ("second", "deadline", "abort"):
            with bound() as (sock,), peer_of(sock) as peer:
                server = DatagramServer(lambda **kw: Slow(release, **kw), sockets=[sock])
                await server.create_endpoint()
                before = len(asyncio.all_tasks())
                peer.send(b"?")
                await eventually(lambda before=before: len(asyncio.all_tasks()) > before)
                start = loop.time()
                closing = loop.create_task(server.close(0.05 if how == "deadline" else 30))
                if how == "abort":
                    await asyncio.sleep(0)
                    server.abort()
                await closing
                if how == "second":
                    assert 0.9 < loop.time() - start < PATIENCE
        release.set()
        await asyncio.sleep(0)

    run(main())


def test_tasks_that_answer_nobody_are_not_waited_for(run: Callable[..., Any]) -> None:
    """Those that were there before the first datagram, and those of asyncio and pulsar."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        never = asyncio.Event()

        async def before() -> None:
            await never.wait()

        tasks = [loop.create_task(before())]
        server = DatagramServer(Echo, address=LOCAL)
        await server.create_endpoint()
        tasks.append(loop.create_task(never.wait()))  # type: ignore[arg-type]
        tasks.append(asyncio.ensure_future(asyncio.wait_for(never.wait(), None)))
        await asyncio.sleep(0)
        assert server._answering == set()
        await server.release()
        assert server._answering == set()
        await server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


# -- a successor


def test_every_datagram_is_answered_once_while_servers_follow_each_other(
    run: Callable[..., Any],
) -> None:
    """Two in one process, each with its own duplicate of one socket, under load."""
    handovers = 20

    async def main() -> None:
        sent = 0
        answered: list[int] = []
        stop = threading.Event()

        class Server(Echo):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                # Half of the answers come later.
                if int(data) % 2:
                    self.sendto(data, addr)
                else:
                    asyncio.get_running_loop().create_task(self.later(data, addr))

            async def later(self, data: bytes, addr: Any) -> None:
                await asyncio.sleep(0.001)
                self.sendto(data, addr)

        def ask() -> None:
            """Numbered datagrams, as many at a time as no buffer drops."""
            nonlocal sent
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.settimeout(PATIENCE)
                peer.connect(sock.getsockname())
                while not stop.is_set():
                    for _ in range(20):
                        peer.send(b"%d" % sent)
                        sent += 1
                    while len(answered) < sent - 10:
                        answered.append(int(peer.recv(100)))
                while len(answered) < sent:
                    answered.append(int(peer.recv(100)))
                peer.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        answered.append(int(peer.recv(100)))

        with bound() as (sock,):
            thread = threading.Thread(target=ask)
            current = DatagramServer(Server, sockets=[sock.dup()])
            await current.create_endpoint()
            thread.start()
            try:
                for _ in range(handovers):
                    before = len(answered)
                    await eventually(lambda before=before: len(answered) > before + 20)
                    (left,) = current._sockets
                    await current.release()
                    successor = DatagramServer(Server, sockets=[sock.dup()])
                    await successor.create_endpoint()
                    await current.close()
                    left.close()
                    current = successor
            finally:
                stop.set()
            await asyncio.to_thread(thread.join)
            await current.close()
        assert len(answered) == sent
        assert sorted(answered) == list(range(sent))

    run(main())


def test_an_endpoint_has_a_descriptor_left_when_the_process_has_none(
    run: Callable[..., Any],
) -> None:
    async def main() -> None:
        with bound() as (sock,), peer_of(sock) as peer:
            server = DatagramServer(Foreign, sockets=[sock])
            await server.create_endpoint()
            protocol = protocol_of(server)
            before = set(os.listdir("/proc/self/fd"))
            await server.release()
            assert set(os.listdir("/proc/self/fd")) <= before
            protocol.transport.sendto(b"x", peer.getsockname())
            assert await receive(peer) == b"x"
            await server.close()

    run(main())
