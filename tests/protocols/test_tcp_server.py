"""TcpServer: its start, its limits, its end, and what TLS adds to each of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.net import parse_bind
from pulsar.protocols import Connection, DatagramProtocol, Protocol, ProtocolConsumer, TcpServer
from pulsar.tls import client_context, server_context
from tests.support.conformance import Echo, FramedEcho, echo_streams, echoes, frame
from tests.support.flavours import Flavour, Peer, eventually, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.certs import Certificates

LOCAL = ("127.0.0.1", 0)


@contextlib.contextmanager
def listening(*addresses: Any) -> Any:
    sockets = [socket.socket(socket.AF_INET) for _ in addresses]
    try:
        for sock, address in zip(sockets, addresses, strict=True):
            sock.bind(address)
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


# -- the start


def test_the_life_of_a_server(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        seen: list[Any] = []
        server = TcpServer(FramedEcho, address=LOCAL, name="mine", keep_alive=7.0, max_requests=9)
        for name in ("start", "finish"):
            server.bind_event(name, lambda arg, exc, name=name: seen.append((name, arg)))
        assert repr(server) == "<TcpServer mine new>"
        assert server.address is None
        assert server.addresses == []
        assert server._server is None
        assert not server.accepting
        before = server.info()
        assert (before["uptime"], before["kind"], before["addresses"]) == (0.0, None, [])

        await server.start_serving()
        assert seen == [("start", server)]
        host, port = server.address
        assert host == "127.0.0.1"
        assert server.addresses == [server.address]
        assert repr(server) == f"<TcpServer mine serving on 127.0.0.1:{port}>"
        assert server._server is not None
        assert server._server.is_serving()
        assert server.accepting
        with await tcp.connect(server) as peer:
            await echoes(peer)
            info = server.info()
            assert info.pop("uptime") >= 0  # uvloop counts milliseconds
            assert info == {
                "name": "mine",
                "kind": "consumer",
                "addresses": [f"127.0.0.1:{port}"],
                "sessions": 1,
                "requests_processed": 1,
                "max_requests": 9,
                "connections": 1,
                "max_connections": None,
                "keep_alive": 7.0,
                "accepting": True,
                "paused": [],
            }
            closing = asyncio.get_running_loop().create_task(server.close(linger=0))
            await asyncio.sleep(0)
            assert repr(server) == f"<TcpServer mine closing on 127.0.0.1:{port}>"
            assert not server.accepting
            await peer.rest()
            await closing
        assert seen == [("start", server), ("finish", server)]
        assert repr(server) == f"<TcpServer mine closed on 127.0.0.1:{port}>"
        assert server.info()["connections"] == 0
        assert server._server is None
        with pytest.raises(ConnectionRefusedError):
            await tcp.connect(server)

    run(main())


def test_a_server_in_an_async_with_block(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with TcpServer(FramedEcho, address=LOCAL) as server:
            with await tcp.connect(server) as peer:
                await echoes(peer)
        assert server.fired_event("finish")

    run(main())


@pytest.mark.parametrize(
    "address", [LOCAL, "127.0.0.1:0", parse_bind("127.0.0.1:0"), ("localhost", 0)]
)
def test_addresses(address: Any, tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = TcpServer(FramedEcho, address=address)
        await server.start_serving()
        try:
            with await tcp.connect(server) as peer:
                await echoes(peer)
        finally:
            await server.close(0)

    run(main())


def test_several_sockets(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        with listening(LOCAL, LOCAL, LOCAL) as sockets:
            server = TcpServer(FramedEcho, sockets=sockets)
            await server.start_serving()
            assert server.addresses == [sock.getsockname() for sock in sockets]
            assert server.address == server.addresses[0]
            for address in server.addresses:
                server._addresses = [address]
                with await tcp.connect(server) as peer:
                    await echoes(peer)
            assert server.sessions == 3
            await server.close(0)
            assert [sock.fileno() for sock in sockets] == [-1, -1, -1]

    run(main())


def test_two_servers_in_one_program(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with served(tcp, FramedEcho) as one, served(tcp, echo_streams) as other:
            assert one.address != other.address
            with await tcp.connect(one) as peer, await tcp.connect(other) as its_peer:
                await echoes(peer)
                await echoes(its_peer)
                await one.close(0)
                await echoes(its_peer)

    run(main())


def test_a_server_starts_once(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = TcpServer(Echo, address=LOCAL, name="mine")
        await server.start_serving()
        with pytest.raises(RuntimeError, match="mine has been started already"):
            await server.start_serving()
        await server.close(0)
        with pytest.raises(RuntimeError, match="mine has been started already"):
            await server.start_serving()

    run(main())


def test_a_server_without_an_address(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match="has neither an address nor sockets"):
            await TcpServer(Echo, name="mine").start_serving()

    run(main())


def test_a_port_that_is_taken(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with listening(LOCAL) as (sock,):
            sock.listen()
            server = TcpServer(Echo, address=sock.getsockname())
            with pytest.raises(ImproperlyConfigured, match=str(sock.getsockname()[1])):
                await server.start_serving()
            await server.close()

    run(main())


def test_what_cannot_be_served_leaves_no_socket_open(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with pytest.raises(ImproperlyConfigured, match="cannot serve dict"):
            await TcpServer(dict, address=LOCAL).start_serving()
        with pytest.raises(ImproperlyConfigured, match="mine serves streams, not datagrams"):
            await TcpServer(DatagramProtocol, address=LOCAL, name="mine").start_serving()

    run(main())


def test_a_server_logs_where_it_is_told_to(tcp: Flavour, run: Callable[..., Any]) -> None:
    entries: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entries.append(record)

    class Failing(Echo):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    logger = logging.getLogger("tests.protocols.own")
    logger.propagate = False
    handler = Handler()
    logger.addHandler(handler)

    async def main() -> None:
        async with served(tcp, Failing, logger=logger) as server:
            with await tcp.connect(server) as peer:
                await peer.send(b"x")
                await peer.gone()

    try:
        run(main())
    finally:
        logger.removeHandler(handler)
    assert len(entries) == 1


# -- kinds of callable that make connections of ours


def test_a_factory_of_connections(tcp: Flavour, run: Callable[..., Any]) -> None:
    class Mine(Connection):
        """Somebody's own."""

    async def main() -> None:
        for factory in (
            partial(Mine, FramedEcho),
            lambda: Mine(FramedEcho),
            lambda **kw: Mine(FramedEcho, **kw),
        ):
            connections: list[Any] = []
            async with served(tcp, factory, keep_alive=60.0) as server:
                server.bind_event("connection_made", lambda arg, exc, c=connections: c.append(arg))
                for _ in range(2):
                    with await tcp.connect(server) as peer:
                        await echoes(peer)
                assert [type(connection) for connection in connections] == [Mine, Mine]
                assert [connection.session for connection in connections] == [1, 2]
                assert {connection.producer for connection in connections} == {server}
                assert {connection.timeout for connection in connections} == {60.0}
                assert server.requests_processed == 2

    run(main())


def test_a_protocol_of_ones_own(flavour: Flavour, run: Callable[..., Any]) -> None:
    class Mine(Protocol):
        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async def main() -> None:
        seen: list[str] = []
        async with served(flavour, Mine) as server:
            for name in ("connection_made", "connection_lost"):
                server.bind_event(name, lambda arg, exc, name=name: seen.append(name))
            with await flavour.connect(server) as peer:
                await echoes(peer)
                assert server.connections == 1
            await eventually(lambda: server.connections == 0)
            assert seen == ["connection_made", "connection_lost"]

    run(main())


def test_a_protocol_that_raises_in_connection_made_holds_no_place(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    class Failing(Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    async def main() -> None:
        async with served(tcp, Failing, stall_timeout=0.1) as server:
            with await tcp.connect(server):
                await eventually(lambda: server.sessions == 1)
            await eventually(lambda: server.connections == 0)

    run(main(), allow=ZeroDivisionError)


class Fussy:
    """A factory that makes what ``factory`` does, but for the connections in ``refuses``."""

    def __init__(self, factory: Any, refuses: set[int]) -> None:
        self.factory = factory
        self.refuses = refuses
        self.calls = -1  # the first is to see what it makes

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls in self.refuses:
            raise LookupError("no protocol today")
        return self.factory()


@pytest.mark.parametrize("factory", [asyncio.Protocol, lambda: Connection(FramedEcho)])
def test_a_factory_that_raises_costs_one_connection(
    factory: Any, flavour: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        fussy = Fussy(factory, {1, 3})
        async with served(flavour, fussy, max_connections=2) as server:
            for number in range(1, 5):
                with await flavour.connect(server) as peer:
                    if number in fussy.refuses:
                        assert await peer.gone() == b""
                        assert server.connections == 0
                    else:
                        await eventually(lambda: server.connections == 1)
                await eventually(lambda: server.connections == 0)
            assert server.sessions == 4

    run(main())
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR] * 2
    assert all(entry.exc_info for entry in caplog.records)
    assert "a connection cannot be served" in caplog.records[0].getMessage()


def test_a_consumer_factory_that_raises_costs_one_connection(
    flavour: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        fussy = Fussy(FramedEcho, {1})
        async with served(flavour, fussy) as server:
            with await flavour.connect(server) as peer:
                assert await peer.gone() == b""
            with await flavour.connect(server) as peer:
                await echoes(peer)

    run(main())
    assert len(caplog.records) == 1


# -- limits


def test_reaching_the_limit_is_said_once(
    tcp: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with served(tcp, FramedEcho, max_connections=1, name="mine") as server:
            for _ in range(5):
                with await tcp.connect(server) as peer:
                    await echoes(peer)
                    assert not server.accepting
                    assert server.info()["paused"] == ["max_connections"]
                await eventually(lambda: server.accepting)

    run(main())
    (entry,) = caplog.records
    assert entry.getMessage() == "mine: accepting is paused: 1 connections (max_connections)"


def test_connections_that_left_the_queue_are_not_counted(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    """They have come and gone before they were accepted."""

    async def main() -> None:
        async with served(tcp, FramedEcho, max_connections=1) as server:
            with await tcp.connect(server) as peer:
                await echoes(peer)
                for _ in range(5):
                    (await tcp.knock(server)).reset()
                waiting = await tcp.connect(server)
            with waiting:
                await echoes(waiting)
            await eventually(lambda: server.connections == 0)
            with await tcp.connect(server) as peer:
                await echoes(peer)

    run(main())


def test_a_pause_that_is_asked_for_and_one_by_the_limit(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with served(tcp, FramedEcho, max_connections=1) as server:
            peer = await tcp.connect(server)
            await echoes(peer)
            server.pause()
            server.pause()
            assert server.info()["paused"] == ["asked to", "max_connections"]
            peer.close()
            await eventually(lambda: server.connections == 0)
            await eventually(lambda: server.info()["paused"] == ["asked to"])
            assert server._server is None
            server.resume()
            server.resume()
            with await tcp.connect(server) as peer:
                await echoes(peer)
                assert server.info()["paused"] == ["max_connections"]
                server.resume()  # forbidden by the limit
                assert not server.accepting

    run(main())


def test_pausing_and_resuming_in_one_turn(flavour: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with served(flavour, FramedEcho) as server:
            for steps in ("pr", "prp", "prprpr", "prprp"):
                for step in steps:
                    (server.pause if step == "p" else server.resume)()
                if steps.endswith("p"):
                    await asyncio.sleep(0)
                    server.resume()
                with await flavour.connect(server) as peer:
                    await echoes(peer)

    run(main())


def test_pausing_at_every_turn_of_resuming(tcp: Flavour, run: Callable[..., Any]) -> None:
    """Whatever is under way when it is paused again: nothing is accepted, nothing lost."""

    async def main() -> None:
        async with served(tcp, FramedEcho) as server:
            for turns in range(8):
                server.pause()
                for _ in range(5):
                    await asyncio.sleep(0)
                server.resume()
                for _ in range(turns):
                    await asyncio.sleep(0)
                server.pause()
                sessions = server.sessions
                with await tcp.connect(server) as peer:
                    await peer.send(frame(b"x"))
                    for _ in range(20):
                        await asyncio.sleep(0)
                    assert server.sessions == sessions
                    server.resume()
                    assert await peer.receive(5) == frame(b"x")

    run(main())


def test_closing_while_paused_serves_the_queue(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with served(tcp, FramedEcho) as server:
            server.pause()
            with await tcp.connect(server) as peer:
                await peer.send(frame(b"x"))
                await server.close(60, linger=0.1)
                assert await peer.farewell() == frame(b"x")

    run(main())


def test_closing_at_the_limit_serves_the_queue(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with served(tcp, FramedEcho, max_connections=1) as server:
            with await tcp.connect(server) as idle, await tcp.connect(server) as queued:
                await echoes(idle)
                await queued.send(frame(b"x"))
                await server.close(60, linger=0.1)
                assert await idle.farewell() == b""
                assert await queued.farewell() == frame(b"x")
            assert server.sessions == 2

    run(main())


def test_closing_serves_what_is_queued(tcp: Flavour, run: Callable[..., Any]) -> None:
    """Nobody who was let in before the close is turned away."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def visit(peer: Peer) -> bool:
            with peer:
                await peer.send(frame(b"x"))
                return await peer.receive(5) == frame(b"x")

        async with served(tcp, FramedEcho) as server:
            peers = [await tcp.knock(server) for _ in range(50)]
            visits = [loop.create_task(visit(peer)) for peer in peers]
            await server.close(60, linger=60)
            assert await asyncio.gather(*visits) == [True] * 50

    run(main())


def test_descriptors_run_short_in_a_process_that_has_few(tmp_path: Path) -> None:
    """Accepting pauses before they run out: nobody is turned away, the log says why."""
    script = tmp_path / "few.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, logging, resource, socket, sys

            logging.basicConfig(stream=sys.stdout, format="LOG %(message)s")
            resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))

            import uvloop
            from pulsar.protocols import ProtocolConsumer, TcpServer

            class Echo(ProtocolConsumer):
                def data_received(self, data):
                    self.write(data)

            async def main():
                loop = asyncio.get_running_loop()
                server = TcpServer(Echo, address=("127.0.0.1", 0), name="few")
                await server.start_serving()
                print(server.address[1], flush=True)
                await loop.run_in_executor(None, sys.stdin.readline)
                assert open("/dev/null").close() is None  # some are kept for others
                print(server.connections, server.info()["paused"], flush=True)
                await loop.run_in_executor(None, sys.stdin.readline)
                print(server.sessions, server.accepting, flush=True)
                await server.close(0)

            with asyncio.Runner(
                loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None
            ) as runner:
                runner.run(main())
            """
        )
    )
    for kind in ("asyncio", "uvloop"):
        with (
            subprocess.Popen(
                [sys.executable, str(script), kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process,
            contextlib.ExitStack() as stack,
        ):
            stack.callback(process.kill)
            assert process.stdin is not None
            assert process.stdout is not None
            port = int(process.stdout.readline())
            visitors = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), 15))
                for _ in range(150)
            ]
            for visitor in visitors:
                visitor.sendall(b"x")
            # Nobody gets an answer out of turn: when these have theirs, it has paused.
            for visitor in visitors[:20]:
                assert visitor.recv(1) == b"x"
            log = process.stdout.readline()
            assert log == "LOG few: accepting is paused: few descriptors are left (RLIMIT_NOFILE)\n"
            process.stdin.write("\n")
            process.stdin.flush()
            connections, _, paused = process.stdout.readline().partition(" ")
            assert 20 <= int(connections) <= 72
            assert paused == "['descriptors']\n"
            # As some leave, others are served, down to the last.
            for visitor in visitors[:20]:
                visitor.close()
            for visitor in visitors[20:]:
                assert visitor.recv(1) == b"x"
                visitor.close()
            process.stdin.write("\n")
            process.stdin.flush()
            sessions, _, accepting = process.stdout.readline().partition(" ")
            assert int(sessions) == 150
            assert accepting == "True\n"
            assert process.wait(15) == 0


# -- the end


def test_closing_before_the_start(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = TcpServer(Echo, address=LOCAL)
        await server.close()
        assert server.fired_event("finish")
        assert repr(server) == "<TcpServer tcpserver closed>"

    run(main())


def test_closing_twice_waits_for_the_first(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(tcp, FramedEcho) as server:
            with await tcp.connect(server) as peer:
                await echoes(peer)
                first = loop.create_task(server.close(60, linger=60))
                await eventually(lambda: not server.accepting)
                second = loop.create_task(server.close())
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not second.done()
                await peer.end()
                await asyncio.gather(first, second)
            await server.close()

    run(main())


def test_a_close_that_is_cancelled_can_be_repeated(tcp: Flavour, run: Callable[..., Any]) -> None:
    """``wait_for(server.close(None), ...)``, then at once."""

    class Stuck(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.create_task(asyncio.Event().wait())

    async def main() -> None:
        server = TcpServer(Stuck, address=LOCAL)
        await server.start_serving()
        with await tcp.connect(server) as peer:
            await peer.send(b"x")
            await eventually(lambda: server.connections == 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.close(None), 0.1)
            async with asyncio.timeout(5):
                await server.close(0)
            assert await peer.gone() == b""
        assert server.fired_event("finish")
        assert server.connections == 0

    run(main())


def test_aborting_closes_every_connection_at_once(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        for thing in (FramedEcho, asyncio.Protocol, echo_streams):
            async with served(flavour, thing) as server:
                peers = [await flavour.connect(server) for _ in range(3)]
                await eventually(lambda server=server: server.sessions == 3)
                server.abort()
                await eventually(lambda server=server: server.connections == 0)
                for peer in peers:
                    assert await peer.gone() == b""
                    peer.close()

    run(main())


def test_an_idle_connection_lingers_for_one_more_request(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(tcp, FramedEcho) as server:
            with await tcp.connect(server) as peer, await tcp.connect(server) as silent:
                await echoes(peer)
                await echoes(silent)
                closing = loop.create_task(server.close(60, linger=0.3))
                await eventually(lambda: not server.accepting)
                await peer.send(frame(b"one") + frame(b"two"))
                # Both had arrived when the first was answered.
                assert await peer.farewell() == frame(b"one") + frame(b"two")
                assert not closing.done()
                assert await silent.farewell() == b""
                await closing

    run(main())


def test_half_a_request_is_waited_for(tcp: Flavour, run: Callable[..., Any]) -> None:
    """It has begun: it is no idle connection."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(tcp, FramedEcho) as server:
            with await tcp.connect(server) as peer, await tcp.connect(server) as idle:
                await echoes(peer)
                await echoes(idle)
                await peer.send(frame(b"half")[:6])
                await eventually(lambda: any(member.busy for member in server._members))
                closing = loop.create_task(server.close(60, linger=0.1))
                assert await idle.farewell() == b""
                await peer.send(frame(b"half")[6:])
                assert await peer.farewell() == frame(b"half")
                await closing

    run(main())


# -- TLS


def test_handshakes_that_never_complete_hold_no_place(
    tls: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        for deadlines in ({}, {"stall_timeout": None, "keep_alive": None}):
            async with served(
                tls, FramedEcho, max_connections=2, handshake_timeout=0.1, **deadlines
            ) as server:
                silent = [await tls.knock(server) for _ in range(2)]
                await eventually(lambda server=server: server.sessions == 2)
                assert not server.accepting
                with await tls.connect(server) as peer:
                    await echoes(peer)
                for knocker in silent:
                    assert await Peer(knocker.sock).gone() == b""
                    knocker.close()

    run(main())


def test_handshakes_that_fail_disturb_nobody(
    tls: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with served(tls, FramedEcho, max_connections=10, stall_timeout=0.2) as server:
            with await tls.connect(server) as peer:
                for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""):
                    knocker = await tls.knock(server)
                    stranger = Peer(knocker.sock)
                    with stranger:
                        if nonsense:
                            await stranger.send(nonsense)
                            await stranger.gone()
                    await echoes(peer)
                untrusting = Peer((await tls.knock(server)).sock, ssl.create_default_context())
                with untrusting, pytest.raises(ssl.SSLCertVerificationError):
                    await untrusting.handshake()
                await echoes(peer)
                assert server.accepting

    # A loop logs it in debug mode only; what it tells its handler is no error of ours.
    run(main(), allow=(ssl.SSLError, ConnectionError))
    assert [entry for entry in caplog.records if entry.name.startswith("pulsar")] == []


def test_closing_ends_handshakes_too(tls: Flavour, run: Callable[..., Any]) -> None:
    """Neither do they hold the close up nor is one served behind it."""

    async def main() -> None:
        async with served(tls, FramedEcho) as server:
            with await tls.knock(server) as late:
                await eventually(lambda: server.sessions == 1)
                await server.close(60, linger=0.1)
                assert server.connections == 0
                with contextlib.suppress(OSError, EOFError):
                    await late.handshake()
                    assert await late.gone() == b""
            assert server.requests_processed == 0

    run(main())


def test_a_handshake_that_is_under_way_when_the_server_closes(
    tls: Flavour, run: Callable[..., Any]
) -> None:
    """It may complete, and ask one thing."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(tls, FramedEcho) as server:
            with await tls.knock(server) as peer:
                await eventually(lambda: server.sessions == 1)
                closing = loop.create_task(server.close(60, linger=60))
                await eventually(lambda: not server.accepting)
                await peer.handshake()
                await peer.send(frame(b"x"))
                assert await peer.farewell() == frame(b"x")
                await closing

    run(main())


def test_a_peer_that_does_not_answer_the_end_of_tls(
    tls: Flavour, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who uses blocking sockets does not look at an idle connection."""

    async def main() -> None:
        async with served(tls, FramedEcho) as server:
            with await tls.connect(server) as peer:
                await echoes(peer)
                async with asyncio.timeout(10):
                    await server.close(60, linger=0)
                assert await peer.gone() == b""

    run(main())


def test_certificates_are_renewed_without_dropping_a_connection(
    tls: Flavour, certs: Certificates, run: Callable[..., Any]
) -> None:
    renewed = server_context(certs.renewed_cert, certs.renewed_key)

    async def main() -> None:
        async with served(tls, FramedEcho) as server:
            with await tls.connect(server) as peer:
                await echoes(peer)
                old = peer.serial_number
                address = server.address
                await server.renew_tls(renewed)
                assert server.address == address
                with await tls.connect(server) as newcomer:
                    assert newcomer.serial_number != old
                    await echoes(newcomer)
                await echoes(peer)
            assert server.sessions == 2

    run(main())


def test_certificates_are_renewed_while_others_connect(
    tls: Flavour, certs: Certificates, run: Callable[..., Any]
) -> None:
    contexts = [
        server_context(certs.renewed_cert, certs.renewed_key),
        server_context(certs.server_cert, certs.server_key),
    ]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        going = True
        visits = 0

        async def visit() -> None:
            nonlocal visits
            while going:
                with await tls.connect(server) as peer:
                    await echoes(peer)
                    visits += 1

        async with served(tls, FramedEcho) as server:
            visitors = [loop.create_task(visit()) for _ in range(4)]
            for number in range(10):
                await server.renew_tls(contexts[number % 2])
                before = visits
                await eventually(lambda before=before: visits > before)
            going = False
            await asyncio.gather(*visitors)

    run(main())


def test_renewing_while_paused_and_when_cancelled(
    tls: Flavour, certs: Certificates, run: Callable[..., Any]
) -> None:
    renewed = server_context(certs.renewed_cert, certs.renewed_key)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(tls, FramedEcho) as server:
            with await tls.connect(server) as peer:
                old = peer.serial_number
            server.pause()
            await server.renew_tls(renewed)
            assert not server.accepting
            server.resume()
            with await tls.connect(server) as peer:
                assert peer.serial_number != old
            for turns in range(5):
                renewing = loop.create_task(server.renew_tls(renewed))
                for _ in range(turns):
                    await asyncio.sleep(0)
                renewing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await renewing
                async with asyncio.timeout(10):
                    with await tls.connect(server) as peer:
                        await echoes(peer)
        await server.renew_tls(renewed)  # it is closed: nothing to renew

    run(main())


def test_plain_sockets_beside_tls(tls: Flavour, tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        with listening(LOCAL, LOCAL) as sockets:
            server = TcpServer(FramedEcho, sockets=sockets)
            await server.start_serving(sslcontext=tls.server_context, plain_sockets=sockets[1:])
            with await tls.connect(server) as peer:
                await echoes(peer)
            server._addresses.reverse()
            with await tcp.connect(server) as peer:
                await echoes(peer)
            await server.close(0)

    run(main())


def test_a_client_certificate_that_is_required(
    tls: Flavour, certs: Certificates, run: Callable[..., Any]
) -> None:
    context = server_context(
        certs.server_cert, certs.server_key, ca_certs=certs.ca, cert_reqs="required"
    )
    names: list[Any] = []

    class Asking(FramedEcho):
        def answer(self, message: bytes) -> None:
            assert self.transport is not None
            certificate = self.transport.get_extra_info("peercert")
            names.append(certificate["subjectAltName"])
            super().answer(message)

    known = Flavour(
        "tls",
        tls.directory,
        context,
        client_context(certs.ca, cert_file=certs.client_cert, key_file=certs.client_key),
    )
    nobody = Flavour("tls", tls.directory, context, tls.client_context)

    async def main() -> None:
        async with served(known, Asking) as server:
            with await known.connect(server) as peer:
                await echoes(peer)
            with contextlib.suppress(OSError, EOFError):
                # With TLS 1.3 a client learns of it when it reads.
                with await nobody.connect(server) as stranger:
                    await echoes(stranger)
                raise AssertionError("a stranger was served")
            with await known.connect(server) as peer:
                await echoes(peer)

    run(main(), allow=(ssl.SSLError, ConnectionError))
    assert names == [(("email", "client@pulsar.example"),)] * 2
