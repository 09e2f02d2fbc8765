"""Clients inside a running loop: what a call gives, and what it costs when something goes wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.clients import AbstractClient, AbstractUdpClient, Pool, task
from pulsar.errors import (
    ConnectionClosed,
    ConnectTimeout,
    FrameTooLarge,
    ImproperlyConfigured,
    PoolClosed,
)
from pulsar.framing import LineFramer
from pulsar.protocols import (
    Connection,
    DatagramProtocol,
    DatagramServer,
    ProtocolConsumer,
    TcpServer,
)
from pulsar.tls import client_context, server_context
from tests.support import loops
from tests.support.certs import Certificates, certs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

__all__ = ["certs"]

# A connection that does not come would otherwise be waited for until the test's own deadline.
SOON = 0.2


class LineProtocol(ProtocolConsumer):
    """A line is asked, a line is the answer."""

    def connection_made(self, connection: Connection) -> None:
        self.framer = LineFramer(max_size=1000)

    def start_request(self) -> None:
        self.write(self.framer.encode(self.request))

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.framer.split(data)
        if line is not None:
            self.finished(line)
        return rest


class Line(AbstractClient):
    """Asks a line server: ``await Line(address)(b"hello")``."""

    protocol_factory = partial(Connection, LineProtocol)

    def __init__(self, address: Any, pool_size: int = 4, **connect: Any) -> None:
        super().__init__()
        self.address = address
        self.connect_parameters = connect
        self.pool = Pool(self.connect, pool_size)

    def connect(self) -> Any:
        return self.create_connection(self.address, **self.connect_parameters)

    @task
    async def __call__(self, line: bytes) -> bytes:
        """Ask ``line``."""
        async with self.pool.connect() as connection:
            consumer = connection.current_consumer()
            consumer.start(line)
            answer: bytes = await consumer.on_finished
            return answer

    @task
    async def open(self) -> Connection:
        """A connection that is not the pool's."""
        connection: Connection = await self.connect()
        return connection


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line server: answers in capitals until the client goes."""
    async for line in reader:
        writer.write(line.upper())
    writer.close()


@asynccontextmanager
async def peer(
    handler: Any, address: Any = ("127.0.0.1", 0), context: ssl.SSLContext | None = None
) -> AsyncIterator[Any]:
    """A server of ``handler``; gives the address to connect to."""
    server = TcpServer(handler, address=address)
    await server.start_serving(10, context)
    try:
        yield server.address if isinstance(address, str) else server.address[:2]
    finally:
        await server.close(0)


@pytest.fixture
def closed_port() -> Any:
    """A port of 127.0.0.1 that is taken, and at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


async def drained(connection: socket.socket) -> None:
    """Read until the other end has closed."""
    try:
        while await asyncio.get_running_loop().sock_recv(connection, 65536):
            pass
    except ConnectionResetError:
        pass


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition()``; the test's deadline ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.001)


# -- calls


def test_a_call_gives_a_task(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(upper) as address, Line(address) as client:
            call = client(b"hello")
            assert isinstance(call, asyncio.Task)
            assert await call == b"HELLO"

    run(main())


def test_calls_share_the_pool(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(upper) as address, Line(address, pool_size=2) as client:
            answers = await asyncio.gather(*(client(b"line %d" % n) for n in range(10)))
            assert answers == [b"LINE %d" % n for n in range(10)]
            assert client.sessions == 2
            assert client.requests_processed == 10
            assert (client.pool.in_use, client.pool.available) == (0, 2)

    run(main())


def test_what_a_call_raises_is_raised_by_its_task(run: Callable[..., Any]) -> None:
    class Failing(AbstractClient):
        @task
        async def fail(self) -> None:
            raise LookupError("mine")

    async def main() -> None:
        async with Failing() as client:
            with pytest.raises(LookupError, match="mine"):
                await client.fail()

    run(main())


def test_a_task_method_keeps_its_name_and_its_words() -> None:
    assert Line.__call__.__name__ == "__call__"
    assert Line.__call__.__doc__ == "Ask ``line``."


def test_a_client_without_connect_says_so(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with pytest.raises(NotImplementedError, match=r"AbstractClient must implement connect\(\)"):
            AbstractClient().connect()

    run(main())


def test_a_client_without_a_factory_says_so(run: Callable[..., Any]) -> None:
    class Bare(AbstractClient):
        @task
        async def call(self, address: Any) -> None:
            await self.create_connection(address)

    async def main() -> None:
        async with peer(upper) as address:
            with pytest.raises(RuntimeError, match="Bare has no protocol_factory"):
                await Bare().call(address)

    run(main())


# -- one client, one loop


def test_a_client_made_outside_a_loop_works_inside_one(run: Callable[..., Any]) -> None:
    client = Line(None)

    async def main() -> None:
        async with peer(upper) as client.address:
            assert await client(b"a") == b"A"
            assert client._loop is asyncio.get_running_loop()
            await client.close()

    run(main())


def test_an_own_loop_that_was_never_used_is_given_up(run: Callable[..., Any]) -> None:
    client = Line(None)
    # As the seeds do it: a pool that is told the client's loop, before there is a running one.
    client.pool = Pool(client.connect, 1, client._loop)
    own = client._loop

    async def main() -> None:
        async with peer(upper) as client.address:
            assert await client(b"a") == b"A"
            assert client._loop is asyncio.get_running_loop()
            await client.close()

    run(main())
    assert own.is_closed()


def test_a_second_loop_is_refused(loop_kind: str) -> None:
    async def first() -> Line:
        async with peer(upper) as address:
            client = Line(address)
            assert await client(b"a") == b"A"
            await client.close()
            return client

    async def second(client: Line) -> None:
        with pytest.raises(RuntimeError, match="Line belongs to another event loop: make one"):
            client(b"b")
        with pytest.raises(RuntimeError, match="Line belongs to another event loop"):
            client.close()

    client = loops.run(first(), loop=loop_kind)
    loops.run(second(client), loop=loop_kind)
    with pytest.raises(RuntimeError, match="not possible: the client's event loop is closed"):
        client(b"c")


def test_a_loop_that_is_given_is_the_client_s(run: Callable[..., Any]) -> None:
    async def main() -> None:
        other = asyncio.SelectorEventLoop()
        try:
            client = AbstractClient(other)
            assert client._loop is other
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                client.close()
        finally:
            other.close()

    run(main())


# -- close


def test_close_ends_the_idle_connections(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(upper) as address:
            client = Line(address)
            lost: list[Any] = []
            client.bind_event("connection_lost", lambda arg, exc=None: lost.append(exc))
            await asyncio.gather(client(b"a"), client(b"b"))
            assert lost == []
            await client.close()
            assert lost == [None, None]
            with pytest.raises(PoolClosed, match="hands out no connections any more"):
                await client(b"c")
            await client.close()

    run(main())


def test_a_subclass_closes_more(run: Callable[..., Any]) -> None:
    class Careful(Line):
        flushed = False

        async def _close(self) -> None:
            await super()._close()
            self.flushed = True

    async def main() -> None:
        async with peer(upper) as address, Careful(address) as client:
            await client(b"a")
        assert client.flushed
        assert client.pool.closed

    run(main())


def test_with_in_a_loop_closes_behind_the_block(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(upper) as address:
            with Line(address) as client:
                assert await client(b"a") == b"A"
            await until(lambda: client.pool.closed)

    run(main())


# -- connections that are refused, or do not come


def test_nobody_listens(run: Callable[..., Any], closed_port: int) -> None:
    async def main() -> None:
        async with Line(("localhost", closed_port)) as client:
            with pytest.raises(ConnectionRefusedError) as caught:
                await client(b"a")
            assert caught.value.errno == errno.ECONNREFUSED
            assert str(caught.value) == (
                f"[Errno {errno.ECONNREFUSED}] cannot connect to localhost:{closed_port}: "
                "Connection refused"
            )
            assert repr(client.pool) == "<Pool open, 0 in use, 0 available of 4, 0 waiting>"
            async with peer(upper) as client.address:
                assert await client(b"later") == b"LATER"

    run(main())


def test_a_host_that_nobody_knows(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with Line("no-such-host.invalid:8060") as client:
            with pytest.raises(
                socket.gaierror, match=r"cannot connect to no-such-host\.invalid:8060: \w+"
            ):
                await client(b"a")
            assert client.pool.in_use == 0

    run(main())


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (("localhost", 0), "a port from 1 to 65535 is missing"),
        ("localhost", "a port from 1 to 65535 is missing"),
        (":8060", "the host is missing"),
        ("udp://localhost:53", "it is a server's bind"),
        (8060, "it is neither a text nor a (host, port) tuple"),
    ],
)
def test_an_address_that_is_none(run: Callable[..., Any], address: Any, why: str) -> None:
    async def main() -> None:
        async with Line(address) as client:
            sentence = re.escape(f"address {address!r}: {why}") + r".*; accepted are \(HOST, PORT\)"
            with pytest.raises(ImproperlyConfigured, match=sentence):
                await client(b"a")

    run(main())


def test_an_address_as_one_text(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(upper) as (host, port), Line(f"{host}:{port}") as client:
            assert await client(b"a") == b"A"

    run(main())


def test_a_server_that_does_not_accept(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            address = server.getsockname()
            fillers = [socket.socket() for _ in range(4)]
            try:
                for filler in fillers:
                    filler.setblocking(False)
                    filler.connect_ex(address)
                async with Line(address, timeout=SOON) as client:
                    sentence = rf"no connection to 127\.0\.0\.1:{address[1]} within 0\.2 seconds"
                    with pytest.raises(ConnectTimeout, match=sentence) as caught:
                        await client(b"a")
                    assert isinstance(caught.value, TimeoutError)
                    assert client.pool.in_use == 0
            finally:
                for filler in fillers:
                    filler.close()

    run(main())


def test_a_tls_server_that_does_not_answer(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            async with Line(address, ssl=True, timeout=SOON) as client:
                with pytest.raises(ConnectTimeout, match=rf"127\.0\.0\.1:{address[1]} within"):
                    await client(b"a")
                assert client.pool.in_use == 0
            # Nothing stays open: the peer sees the end.
            server.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
            with connection:
                await drained(connection)

    run(main())


# -- TLS


def test_tls_is_verified(run: Callable[..., Any], certs: Certificates) -> None:
    async def main() -> None:
        context = server_context(certs.server_cert, certs.server_key)
        async with peer(upper, context=context) as (_, port):
            address = ("localhost", port)
            async with Line(address, ssl=True) as client:
                with pytest.raises(ssl.SSLCertVerificationError) as caught:
                    await client(b"a")
                assert caught.value.__notes__ == [f"while connecting to localhost:{port}"]
                assert client.pool.in_use == 0
            async with Line(address, ssl=client_context(certs.ca)) as client:
                assert await client(b"a") == b"A"
                assert client.pool.available == 1

    run(main())


def test_the_name_in_the_certificate_is_verified(
    run: Callable[..., Any], certs: Certificates
) -> None:
    async def main() -> None:
        trusting = client_context(certs.ca)
        context = server_context(certs.elsewhere_cert, certs.elsewhere_key)
        async with peer(upper, context=context) as (_, port):
            address = ("localhost", port)
            async with Line(address, ssl=trusting) as client:
                with pytest.raises(ssl.SSLCertVerificationError, match="'localhost'"):
                    await client(b"a")
            name = "elsewhere.example"
            async with Line(address, ssl=trusting, server_hostname=name) as client:
                assert await client(b"a") == b"A"

    run(main())


def test_a_server_that_does_not_speak_tls(run: Callable[..., Any], certs: Certificates) -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        await reader.read()
        writer.close()

    async def main() -> None:
        async with peer(hello) as (_, port), Line(("localhost", port), ssl=True) as client:
            with pytest.raises(ssl.SSLError) as caught:
                await client(b"a")
            assert caught.value.__notes__ == [f"while connecting to localhost:{port}"]

    run(main())


def test_a_server_that_closes_in_the_handshake(run: Callable[..., Any]) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async def main() -> None:
        async with peer(hang_up) as (_, port), Line(("localhost", port), ssl=True) as client:
            sentence = rf"cannot connect to localhost:{port}: "
            with pytest.raises(ConnectionError, match=sentence):
                await client(b"a")
            assert client.pool.in_use == 0

    run(main())


# -- Unix sockets


def test_a_unix_socket(run: Callable[..., Any], tmp_path: Path) -> None:
    async def main() -> None:
        path = f"unix:{tmp_path}/line.sock"
        async with Line(path) as client:
            with pytest.raises(FileNotFoundError, match=re.escape(f"cannot connect to {path}: ")):
                await client(b"a")
            async with peer(upper, path):
                assert await client(b"a") == b"A"

    run(main())


def test_the_name_of_a_server_s_socket_is_an_address(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    async def main() -> None:
        async with peer(upper, f"unix:{tmp_path}/line.sock") as name, Line(name) as client:
            assert await client(b"a") == b"A"

    run(main())


@pytest.mark.skipif("sys.platform != 'linux'", reason="abstract names exist on Linux only")
def test_an_abstract_name(run: Callable[..., Any]) -> None:
    async def main() -> None:
        name = f"unix:@pulsar-test-{os.getpid()}"
        async with Line(name) as client:
            with pytest.raises(ConnectionRefusedError, match=f"cannot connect to {name}: "):
                await client(b"a")
            async with peer(upper, name):
                assert await client(b"a") == b"A"

    run(main())


def test_tls_over_a_unix_socket(
    run: Callable[..., Any], certs: Certificates, tmp_path: Path
) -> None:
    async def main() -> None:
        context = server_context(certs.server_cert, certs.server_key)
        path = f"unix:{tmp_path}/line.sock"
        async with (
            peer(upper, path, context),
            Line(path, ssl=client_context(certs.ca)) as client,
        ):
            assert await client(b"a") == b"A"

    run(main())


@pytest.mark.skipif("sys.platform != 'linux'", reason="elsewhere a full queue refuses")
def test_a_unix_server_whose_queue_is_full(run: Callable[..., Any], tmp_path: Path) -> None:
    async def main() -> None:
        path = f"{tmp_path}/busy.sock"
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as filler:
            server.bind(path)
            server.listen(0)
            filler.connect(path)
            async with Line(f"unix:{path}", timeout=SOON) as client:
                with pytest.raises(ConnectTimeout, match=re.escape(f"unix:{path} within")):
                    await client(b"a")
            async with Line(f"unix:{path}", timeout=30) as client:
                call = client.open()
                await asyncio.sleep(0)
                server.accept()[0].close()  # room for one more
                connection = await call
                server.accept()[0].close()
                await connection.close()

    run(main())


# -- in the middle of an answer


async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line server that fails in mid-answer when it is asked for that."""
    async for line in reader:
        if line == b"half\n":
            writer.write(b"HA")
            break
        writer.write(line.upper())
    writer.close()


def test_a_server_that_closes_in_mid_answer(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(half_an_answer) as (host, port), Line((host, port)) as client:
            sentence = (
                rf"the server {host}:{port} closed the connection before the response was complete"
            )
            with pytest.raises(ConnectionClosed, match=sentence) as caught:
                await client(b"half")
            assert isinstance(caught.value, ConnectionError)
            assert repr(client.pool) == "<Pool open, 0 in use, 0 available of 4, 0 waiting>"
            assert await client(b"whole") == b"WHOLE"

    run(main())


def test_a_server_that_resets_in_mid_answer(run: Callable[..., Any]) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for _ in reader:
            linger = struct.pack("ii", 1, 0)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def main() -> None:
        async with peer(reset) as (host, port), Line((host, port)) as client:
            with pytest.raises(
                ConnectionClosed, match=f"the server {host}:{port} closed"
            ) as caught:
                await client(b"a")
            assert isinstance(caught.value.__cause__, ConnectionResetError)

    run(main())


def test_the_other_calls_of_the_client_go_on(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(half_an_answer) as address, Line(address) as client:
            answers = await asyncio.gather(
                client(b"a"), client(b"half"), client(b"b"), return_exceptions=True
            )
            assert isinstance(answers[1], ConnectionClosed)
            assert answers[::2] == [b"A", b"B"]

    run(main())


def test_an_answer_over_the_cap(run: Callable[..., Any]) -> None:
    async def verbose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(line.strip() * (2000 if line == b"long\n" else 1) + b"\n")
        writer.close()

    async def main() -> None:
        async with peer(verbose) as address, Line(address) as client:
            with pytest.raises(FrameTooLarge, match="LineFramer of at most 1000 bytes: the peer"):
                await client(b"long")
            assert client.pool.available == 0
            assert await client(b"short") == b"short"

    run(main())


def test_data_that_nobody_asked_for_closes_an_idle_connection(run: Callable[..., Any]) -> None:
    pushed = asyncio.Event()

    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(line.upper())
            await pushed.wait()
            writer.write(b"by the way\n")
        writer.close()

    async def main() -> None:
        async with peer(talkative) as address, Line(address) as client:
            lost = asyncio.Event()
            client.bind_event("connection_lost", lambda arg, exc=None: lost.set())
            assert await client(b"a") == b"A"
            pushed.set()
            await lost.wait()
            assert await client(b"b") == b"B"
            assert client.sessions == 2

    run(main())


def test_data_behind_the_answer_closes_the_connection(run: Callable[..., Any]) -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(line.upper() * 2)
        writer.close()

    async def main() -> None:
        async with peer(twice) as address, Line(address) as client:
            assert await client(b"a") == b"A"
            assert await client(b"b") == b"B"
            assert client.sessions == 2

    run(main())


# -- events


def test_the_events_of_a_client_are_those_of_its_connections(run: Callable[..., Any]) -> None:
    names = (
        "connection_made",
        "pre_request",
        "data_received",
        "data_processed",
        "post_request",
        "connection_lost",
    )

    async def main() -> None:
        heard: list[tuple[str, type]] = []
        results: list[bytes] = []
        async with peer(upper) as address:
            client = Line(address)
            client.bind_event("post_request", lambda arg, exc=None: results.append(arg.result))
            for name in names:
                client.bind_event(
                    name, lambda arg, exc=None, name=name, **kw: heard.append((name, type(arg)))
                )
            await client(b"a")
            await client(b"b")
            await client.close()
        request = [(name, LineProtocol) for name in names[1:-1]]
        assert heard == [
            ("connection_made", Connection),
            *request,
            *request,
            ("connection_lost", Connection),
        ]
        assert results == [b"A", b"B"]

    run(main())


def test_post_request_tells_why_a_request_failed(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with peer(half_an_answer) as address, Line(address) as client:
            reasons: list[Any] = []
            client.bind_event("post_request", lambda arg, exc=None: reasons.append(exc))
            with pytest.raises(ConnectionClosed):
                await client(b"half")
            assert [type(reason) for reason in reasons] == [ConnectionClosed]

    run(main())


# -- the pool of a real client


def test_a_cancelled_call_leaves_nothing(run: Callable[..., Any]) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            if line == b"wait\n":
                asked.set()
                await reader.read()
                left.set()
                break
            writer.write(line.upper())
        writer.close()

    async def main() -> None:
        async with peer(slow) as address, Line(address, pool_size=1) as client:
            call = client(b"wait")
            await asked.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await left.wait()
            assert repr(client.pool) == "<Pool open, 0 in use, 0 available of 1, 0 waiting>"
            assert await client(b"later") == b"LATER"

    run(main())


def test_a_call_that_is_cancelled_in_the_handshake_leaves_nothing(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with Line(server.getsockname(), ssl=True) as client:
                call = client(b"a")
                server.setblocking(False)
                loop = asyncio.get_running_loop()
                connection, _ = await loop.sock_accept(server)
                with connection:
                    assert await loop.sock_recv(connection, 1)  # the handshake has begun
                    call.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await call
                    assert client.pool.in_use == 0
                    await drained(connection)

    run(main())


def test_an_idle_connection_that_died_is_replaced(
    run: Callable[..., Any], certs: Certificates
) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    async def main(server_tls: ssl.SSLContext | None, client_tls: ssl.SSLContext | None) -> None:
        async with (
            peer(once, context=server_tls) as (_, port),
            Line(("localhost", port), ssl=client_tls) as client,
        ):
            for session in range(1, 4):
                assert await client(b"a") == b"A"
                assert client.sessions == session

    run(main(None, None))
    run(main(server_context(certs.server_cert, certs.server_key), client_context(certs.ca)))


# -- datagrams


class Ask(DatagramProtocol):
    """One question at a time."""

    def ask(self, data: bytes) -> asyncio.Future[bytes]:
        self.answer = asyncio.get_running_loop().create_future()
        self.sendto(data)
        return self.answer

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        super().error_received(exc)
        if not self.answer.done():
            self.answer.set_exception(exc)


class Upper(DatagramProtocol):
    """Answers in capitals."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.sendto(data.upper(), addr)


class Asker(AbstractUdpClient):
    """Asks by datagrams: ``await Asker(address)(b"hello")``."""

    protocol_factory = Ask

    def __init__(self, address: Any) -> None:
        super().__init__()
        self.address = address

    @task
    async def __call__(self, data: bytes) -> bytes:
        protocol: Ask = await self.create_endpoint(self.address)
        try:
            return await protocol.ask(data)
        finally:
            await protocol.close()


@asynccontextmanager
async def datagram_peer() -> AsyncIterator[Any]:
    """A server of ``Upper``; gives the address to send to."""
    server = DatagramServer(Upper, address=("127.0.0.1", 0))
    await server.create_endpoint()
    try:
        yield server.address
    finally:
        await server.close()


def test_a_datagram_client(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with datagram_peer() as address, Asker(address) as client:
            heard: list[str] = []
            for name in ("connection_made", "connection_lost"):
                client.bind_event(name, lambda arg, exc=None, name=name: heard.append(name))
            assert await client(b"hello") == b"HELLO"
            assert heard == ["connection_made", "connection_lost"]

    run(main())


def test_a_datagram_client_to_a_closed_port(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            address = taken.getsockname()
        async with Asker(address) as client:
            with pytest.raises(ConnectionRefusedError):
                await client(b"hello")
            async with datagram_peer() as client.address:
                assert await client(b"later") == b"LATER"

    run(main())


def test_a_datagram_to_a_host_that_nobody_knows(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with Asker("no-such-host.invalid:53") as client:
            sentence = r"cannot connect to no-such-host\.invalid:53: \w+"
            with pytest.raises(socket.gaierror, match=sentence):
                await client(b"hello")

    run(main())


def test_a_datagram_that_no_socket_could_send(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with datagram_peer() as address, Asker(address) as client:
            sentence = "a datagram of 65508 bytes cannot be sent: the largest has 65507"
            with pytest.raises(ValueError, match=sentence):
                await client(b"x" * 65508)
            assert await client(b"x" * 65507) == b"X" * 65507

    run(main())
