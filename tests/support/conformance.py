"""What every flavour of stream must do, as checks that any server or client can be put to.

Owns: ``CALLABLE_CHECKS`` (each flavour with each kind of callable), ``SERVER_CHECKS``
and ``CLIENT_CHECKS`` (each flavour), and the consumers and protocols that they serve.
Leaves: sockets and TLS to flavours.py, which loop and which flavour to the tests that
run the checks.

A check is a coroutine function of a ``Flavour``. Its first line says what must hold.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from pulsar.errors import ConnectionClosed
from pulsar.protocols import Connection, ProtocolConsumer
from tests.support.flavours import Flavour, Peer, connected, eventually, logged, served

Check = Callable[[Flavour], Awaitable[None]]
CallableCheck = Callable[[Flavour, Any], Awaitable[None]]

CALLABLE_CHECKS: list[CallableCheck] = []
SERVER_CHECKS: list[Check] = []
CLIENT_CHECKS: list[Check] = []

# A kernel holds more than it is asked to; this is certainly more than it holds.
LARGE = 12 * 1024 * 1024
# Bytes that the kernel is asked to hold for a peer that shall soon be full.
SMALL_BUFFER = 4096


# -- what is served: all of these echo, and all understand frames


def frame(payload: bytes) -> bytes:
    """A message of the checks: four bytes of length, then ``payload``."""
    return struct.pack(">I", len(payload)) + payload


class Echo(ProtocolConsumer):
    """One for each connection: echoes bytes."""

    def data_received(self, data: bytes) -> None:
        self.write(data)


class FramedEcho(ProtocolConsumer):
    """One for each message: echoes a frame once it is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray()

    def data_received(self, data: bytes) -> bytes | None:
        self.buffer += data
        if len(self.buffer) < 4:
            return None
        end = 4 + int.from_bytes(self.buffer[:4], "big")
        if len(self.buffer) < end:
            return None
        self.answer(bytes(self.buffer[:end]))
        return bytes(self.buffer[end:])

    def answer(self, message: bytes) -> None:
        """Answer and finish."""
        self.write(message)
        self.finished(message)


class EchoProtocol(asyncio.Protocol):
    """Somebody else's protocol."""

    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class EchoBuffered(asyncio.BufferedProtocol):
    """Somebody else's protocol, with buffers of its own."""

    transport: Any

    def __init__(self) -> None:
        self.buffer = bytearray(65536)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        # asyncio's TLS slices it, and a slice of a bytearray would be a copy.
        return memoryview(self.buffer)

    def buffer_updated(self, size: int) -> None:
        self.transport.write(bytes(self.buffer[:size]))


async def echo_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A stream handler."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


CALLABLES = {
    "per_connection": Echo,
    "per_message": FramedEcho,
    "protocol": EchoProtocol,
    "buffered": EchoBuffered,
    "stream": echo_streams,
}


async def echoes(peer: Peer, payload: bytes = b"hello") -> None:
    """Send a frame and get it back; both at once, for it may be larger than all buffers."""
    message = frame(payload)
    sending = asyncio.get_running_loop().create_task(peer.send(message))
    assert await peer.receive(len(message)) == message
    await sending


def made(server: Any) -> list[Connection]:
    """The connections of a server, in the order in which they will be made."""
    connections: list[Connection] = []
    server.bind_event("connection_made", lambda connection, exc: connections.append(connection))
    return connections


# -- every kind of callable


def callable_check(check: CallableCheck) -> CallableCheck:
    CALLABLE_CHECKS.append(check)
    return check


@callable_check
async def echo_of_every_size(at: Flavour, thing: Any) -> None:
    """What is sent comes back, from nothing to more than all buffers hold."""
    async with served(at, thing) as server:
        with await at.connect(server) as peer:
            for size in (0, 1, 2, 1000, 16384, 65536, 65537, 300_000, 2 * 1024 * 1024):
                await echoes(peer, bytes(range(256)) * (size // 256) + bytes(size % 256))
        await eventually(lambda: server.connections == 0)


@callable_check
async def many_at_once(at: Flavour, thing: Any) -> None:
    """Connections do not disturb each other."""
    async with served(at, thing) as server:
        peers = [await at.connect(server) for _ in range(20)]
        await eventually(lambda: server.connections == 20)
        for _ in range(3):
            await asyncio.gather(*(echoes(peer, b"%d" % n) for n, peer in enumerate(peers)))
        assert server.sessions == 20
        for peer in peers[:10]:
            await peer.end()
            assert await peer.rest() == b""
            peer.close()
        await asyncio.gather(*(echoes(peer) for peer in peers[10:]))
        for peer in peers[10:]:
            peer.reset()
        await eventually(lambda: server.connections == 0)


@callable_check
async def a_peer_that_ends_is_answered_first(at: Flavour, thing: Any) -> None:
    """What was sent before the end comes back, then the connection ends in good order."""
    async with served(at, thing) as server:
        with await at.connect(server) as peer:
            await peer.send(frame(b"last words"))
            if not at.tls:
                await peer.end()
            message = frame(b"last words")
            assert await peer.receive(len(message)) == message
            if at.tls:
                await peer.end()  # TLS has no half-close: nobody answers behind it
            assert await peer.farewell() == b""
        await eventually(lambda: server.connections == 0)


@callable_check
async def a_peer_that_vanishes(at: Flavour, thing: Any) -> None:
    """A reset costs one connection, and makes no noise."""
    with logged() as records:
        async with served(at, thing) as server:
            with await at.connect(server) as peer:
                vanishing = await at.connect(server)
                await echoes(vanishing)
                await vanishing.send(frame(b"x" * 1000))
                vanishing.reset()
                await eventually(lambda: server.connections == 1)
                await echoes(peer)
            await eventually(lambda: server.connections == 0)
    assert records == []


@callable_check
async def no_more_than_max_connections(at: Flavour, thing: Any) -> None:
    """One more waits in the queue, and is served when one leaves; none is lost."""
    async with served(at, thing, max_connections=3) as server:
        peak = 0

        async def visit() -> None:
            nonlocal peak
            with await at.connect(server) as peer:
                for _ in range(2):
                    await echoes(peer)
                    peak = max(peak, server.connections)
                await peer.end()
                assert await peer.rest() == b""

        await asyncio.gather(*(visit() for _ in range(25)))
        await eventually(lambda: server.connections == 0)
        assert server.sessions == 25
        assert peak == 3
        await eventually(lambda: server.accepting)


@callable_check
async def closing_ends_idle_connections(at: Flavour, thing: Any) -> None:
    """``close`` ends what is idle in good order, long before its deadline."""
    if at.unix and not (isinstance(thing, type) and issubclass(thing, ProtocolConsumer)):
        return  # nobody knows who spoke last there, so they have until the deadline
    async with served(at, thing) as server:
        with await at.connect(server) as peer:
            await echoes(peer)
            closing = asyncio.get_running_loop().create_task(server.close(60, linger=0))
            assert await peer.farewell() == b""
            await peer.end()
            await closing
            assert server.connections == 0


@callable_check
async def a_deadline_of_zero_aborts(at: Flavour, thing: Any) -> None:
    """``close(0)`` waits for nobody."""
    async with served(at, thing) as server:
        with await at.connect(server) as peer:
            await echoes(peer)
            await server.close(0)
            assert server.connections == 0
            assert await peer.gone() == b""


# -- servers


def server_check(check: Check) -> Check:
    SERVER_CHECKS.append(check)
    return check


@server_check
async def requests_in_pieces(at: Flavour) -> None:
    """How bytes are cut on their way makes no difference."""
    messages = b"".join(frame(b"x" * size) for size in (0, 1, 5, 30))
    async with served(at, FramedEcho) as server:
        with await at.connect(server) as peer:
            for byte in messages:
                await peer.send(bytes([byte]))
            assert await peer.receive(len(messages)) == messages
            assert server.requests_processed == 4


@server_check
async def a_pipeline_is_answered_in_order(at: Flavour) -> None:
    """Requests that are sent without waiting for answers."""
    messages = b"".join(frame(b"%d" % number) for number in range(10_000))
    async with served(at, FramedEcho) as server:
        with await at.connect(server) as peer:
            sending = asyncio.get_running_loop().create_task(peer.send(messages))
            assert await peer.receive(len(messages)) == messages
            await sending
            assert server.requests_processed == 10_000


class Held(FramedEcho):
    """Answers when the test says so."""

    async def reply(self, message: bytes) -> None:
        await RELEASE.get().wait()
        self.write(message)
        self.finished(message)


class HeldTask(Held):
    """In a task of the request."""

    def answer(self, message: bytes) -> None:
        self.create_task(self.reply(message))


class HeldElsewhere(Held):
    """In a task that the connection does not know of."""

    def answer(self, message: bytes) -> None:
        self.task = asyncio.get_running_loop().create_task(self.reply(message))


class _Release:
    """The event that the answers of the running check wait for."""

    def __init__(self) -> None:
        self._events: dict[asyncio.AbstractEventLoop, asyncio.Event] = {}

    def get(self) -> asyncio.Event:
        loop = asyncio.get_running_loop()
        for other in [other for other in self._events if other is not loop]:
            del self._events[other]
        return self._events.setdefault(loop, asyncio.Event())


RELEASE = _Release()


async def half_close_is_noticed(connection: Connection) -> None:
    await eventually(lambda: connection._last_request, "the server notices the half-close")


async def nth(connections: list[Connection], number: int) -> Connection:
    """The connection with that index, once it is made."""
    await eventually(lambda: len(connections) > number, f"connection {number} is made")
    return connections[number]


@server_check
async def a_half_closed_connection_gets_its_answer(at: Flavour) -> None:
    """Also an answer that comes later, from a task, and those to what waits behind it."""
    if at.tls:
        return  # TLS has no half-close
    for consumer in (HeldTask, HeldElsewhere):
        RELEASE.get().clear()
        async with served(at, consumer) as server:
            connections = made(server)
            with await at.connect(server) as peer:
                messages = frame(b"one") + frame(b"two")
                await peer.send(messages)
                connection = await nth(connections, 0)
                await eventually(partial(getattr, connection, "busy"))
                # Reading is paused while a request waits behind another.
                RELEASE.get().set()
                await peer.end()
                assert await peer.rest() == messages
            RELEASE.get().clear()
            with await at.connect(server) as peer:
                await peer.send(frame(b"one"))
                await peer.end()
                await half_close_is_noticed(await nth(connections, 1))
                RELEASE.get().set()
                assert await peer.rest() == frame(b"one")
            await eventually(lambda: server.connections == 0)


@server_check
async def a_half_closed_connection_gets_a_long_answer(at: Flavour) -> None:
    """One that needs the peer to read: the end is not told again when it does."""
    if at.tls:
        return  # TLS has no half-close
    ends: list[object] = []

    class Long(Echo):
        def data_received(self, data: bytes) -> None:
            self.task = asyncio.get_running_loop().create_task(self.stream())

        def eof_received(self) -> None:
            ends.append(self)

        async def stream(self) -> None:
            await RELEASE.get().wait()
            for _ in range(LARGE // 65536):
                await self.write(bytes(65536))
            self.finished()

    class LongTask(Long):
        def data_received(self, data: bytes) -> None:
            self.create_task(self.stream())

    for consumer in (Long, LongTask):
        ends.clear()
        RELEASE.get().clear()
        async with served(at, consumer) as server:
            connections = made(server)
            with await at.connect(server, receive_buffer=SMALL_BUFFER) as peer:
                await peer.send(b"x")
                await peer.end()
                connection = await nth(connections, 0)
                await half_close_is_noticed(connection)
                RELEASE.get().set()
                await eventually(partial(getattr, connection, "writing_paused"))
                assert len(await peer.rest()) == LARGE
                assert len(ends) == 1


@server_check
async def a_half_close_ends_an_idle_connection(at: Flavour) -> None:
    """Before the first request and behind the last one."""
    async with served(at, FramedEcho, keep_alive=60.0) as server:
        for requests in (0, 1):
            with await at.connect(server) as peer:
                for _ in range(requests):
                    await echoes(peer)
                await peer.end()
                assert await peer.rest() == b""
                assert peer.ended_well
                await eventually(lambda: server.connections == 0)


async def send_without_end(peer: Peer, message: bytes) -> None:
    """Send until the connection breaks."""
    try:
        while True:
            await peer.send(message)
    except OSError:
        pass


@server_check
async def a_peer_that_never_reads(at: Flavour) -> None:
    """Its connection stops reading, costs little memory, and is aborted in the end."""
    with logged(20) as records:
        async with served(at, FramedEcho, stall_timeout=0.5) as server:
            connections = made(server)
            with (
                await at.connect(server, receive_buffer=SMALL_BUFFER) as peer,
                await at.connect(server) as other,
            ):
                sending = asyncio.get_running_loop().create_task(
                    send_without_end(peer, frame(bytes(50_000)))
                )
                connection = await nth(connections, 0)
                await eventually(lambda: connection.writing_paused, "it stops")
                buffered = connection.transport.get_write_buffer_size()
                assert buffered < 1024 * 1024
                processed = connection.requests_processed
                for _ in range(10):
                    await echoes(other)
                assert connection.requests_processed == processed
                assert connection.transport.get_write_buffer_size() <= buffered
                await eventually(lambda: connection.fired_event("connection_lost"))
                await sending
                await echoes(other)
                assert server.connections == 1
    assert [record.levelname for record in records] == ["INFO"]
    assert "the peer does not read" in records[0].getMessage()


@server_check
async def a_peer_that_reads_slowly(at: Flavour) -> None:
    """It gets everything, and whoever writes waits for it."""
    size = LARGE // 65536

    class Streaming(Echo):
        def data_received(self, data: bytes) -> None:
            self.create_task(self.stream())

        async def stream(self) -> None:
            for number in range(size):
                await self.write(struct.pack(">I", number) * 16384)
                sent.append(number)
            assert self.connection is not None
            await self.connection.close()

    sent: list[int] = []
    async with served(at, Streaming, stall_timeout=60.0) as server:
        connections = made(server)
        with await at.connect(server, receive_buffer=SMALL_BUFFER) as peer:
            await peer.send(b"x")
            connection = await nth(connections, 0)
            await eventually(lambda: connection.writing_paused)
            assert len(sent) < size
            for number in range(size):
                assert await peer.receive(65536) == struct.pack(">I", number) * 16384
            assert await peer.farewell() == b""


@server_check
async def a_write_after_close(at: Flavour) -> None:
    """It is dropped without noise, and whoever awaits it is told."""
    told: list[BaseException] = []
    returned: list[object] = []

    class Last(Echo):
        def data_received(self, data: bytes) -> None:
            self.write(b"bye")
            assert self.connection is not None
            self.connection.close()
            returned.extend(self.write(b"more") for _ in range(20))
            asyncio.get_running_loop().call_soon(self.later)
            self.task = asyncio.get_running_loop().create_task(self.wait())

        def later(self) -> None:
            returned.extend(self.write(b"more") for _ in range(20))

        def connection_lost(self, exc: BaseException | None) -> None:
            self.later()

        async def wait(self) -> None:
            try:
                await self.write(b"more")
            except ConnectionClosed as exc:
                told.append(exc)

    with logged() as records:
        async with served(at, Last) as server:
            with await at.connect(server) as peer:
                await peer.send(b"x")
                assert await peer.rest() == b"bye"
                assert peer.ended_well
            await eventually(lambda: server.connections == 0)
    assert len(told) == 1
    assert len(returned) == 60
    assert not any(returned)
    assert records == []


@server_check
async def a_write_to_a_peer_that_has_vanished(at: Flavour) -> None:
    """As after a close: nobody has to check first."""
    with logged() as records:
        async with served(at, Echo) as server:
            connections = made(server)
            peer = await at.connect(server)
            await echoes(peer)
            consumer = connections[0].current_consumer()
            peer.reset()
            await eventually(lambda: server.connections == 0)
            for _ in range(20):
                assert not consumer.write(b"x")
                assert not connections[0].write(b"x")
    assert records == []


@server_check
async def a_close_during_a_write(at: Flavour) -> None:
    """What was written before arrives, all of it, and then the end, in good order."""
    blob = bytes(range(256)) * (LARGE // 256)

    class Last(Echo):
        def data_received(self, data: bytes) -> None:
            self.write(blob)
            assert self.connection is not None
            self.connection.close()

    async with served(at, Last) as server:
        with await at.connect(server, receive_buffer=SMALL_BUFFER) as peer:
            await peer.send(b"x")
            assert await peer.rest() == blob
            assert peer.ended_well
        await eventually(lambda: server.connections == 0)


@server_check
async def an_abort(at: Flavour) -> None:
    """It waits for nobody: what was not sent is dropped."""
    lost: list[object] = []

    class Aborting(Echo):
        def data_received(self, data: bytes) -> None:
            assert self.connection is not None
            self.connection.bind_event("connection_lost", lambda arg, exc: lost.append(arg))
            self.write(bytes(LARGE))
            asyncio.get_running_loop().call_soon(self.connection.abort)

    async with served(at, Aborting) as server:
        connections = made(server)
        with await at.connect(server, receive_buffer=SMALL_BUFFER) as peer:
            await peer.send(b"x")
            await eventually(lambda: lost)
            assert lost == connections
            assert server.connections == 0
            assert len(await peer.gone()) < LARGE
            assert not (at.tls and peer.ended_well)


@server_check
async def a_peer_that_vanishes_while_we_write(at: Flavour) -> None:
    """Whoever waits for it is told."""
    told: list[BaseException] = []

    class Waiting(Echo):
        def data_received(self, data: bytes) -> None:
            self.task = asyncio.get_running_loop().create_task(self.stream())

        async def stream(self) -> None:
            try:
                while True:
                    await self.write(bytes(65536))
            except ConnectionClosed as exc:
                told.append(exc)

    with logged() as records:
        async with served(at, Waiting) as server:
            connections = made(server)
            peer = await at.connect(server, receive_buffer=SMALL_BUFFER)
            await peer.send(b"x")
            connection = await nth(connections, 0)
            await eventually(lambda: connection.writing_paused)
            peer.reset()
            await eventually(lambda: told)
            await eventually(lambda: server.connections == 0)
    assert records == []


@server_check
async def silence_between_requests(at: Flavour) -> None:
    """It ends the connection in good order, before the first request and behind one."""
    async with served(at, FramedEcho, keep_alive=0.1, stall_timeout=60.0) as server:
        with await at.connect(server) as silent, await at.connect(server) as peer:
            assert await silent.rest() == b""
            assert silent.ended_well
            if peer.ended_well:
                return
        with await at.connect(server) as peer:
            for _ in range(3):
                await echoes(peer)
            assert await peer.farewell() == b""
        await eventually(lambda: server.connections == 0)


@server_check
async def a_request_that_is_being_answered_is_no_silence(at: Flavour) -> None:
    """However long it takes: another connection's idle timeout is the clock here."""
    for consumer in (HeldTask, HeldElsewhere):
        RELEASE.get().clear()
        async with served(at, consumer, keep_alive=0.1, stall_timeout=60.0) as server:
            connections = made(server)
            with await at.connect(server) as peer:
                await peer.send(frame(b"slow"))
                connection = await nth(connections, 0)
                await eventually(partial(getattr, connection, "busy"))
                for _ in range(2):
                    with await at.connect(server) as silent:
                        assert await silent.rest() == b""
                RELEASE.get().set()
                assert await peer.receive(8) == frame(b"slow")
                assert await peer.rest() == b""


@server_check
async def half_a_request_and_silence(at: Flavour) -> None:
    """The stall timeout ends it, behind whole requests as well."""
    with logged(20) as records:
        async with served(at, FramedEcho, keep_alive=None, stall_timeout=0.15) as server:
            for before in (b"", frame(b"whole"), frame(b"whole") * 3):
                with await at.connect(server) as peer:
                    await peer.send(before + frame(b"half")[:6])
                    assert await peer.farewell() == before
                await eventually(lambda: server.connections == 0)
    assert ["a request has stalled" in record.getMessage() for record in records] == [True] * 3


@server_check
async def pausing_and_resuming(at: Flavour) -> None:
    """Connections wait in the queue meanwhile; those that are made go on."""
    loop = asyncio.get_running_loop()

    async def visit() -> None:
        with await at.connect(server) as peer:
            await echoes(peer)

    async with served(at, FramedEcho) as server:
        with await at.connect(server) as peer:
            await echoes(peer)
            for _ in range(3):
                server.pause()
                assert not server.accepting
                visits = [loop.create_task(visit()) for _ in range(3)]
                sessions = server.sessions
                for _ in range(20):
                    await echoes(peer)
                assert server.sessions == sessions
                assert server._server is None
                server.resume()
                assert server.info()["accepting"]
                await asyncio.gather(*visits)
                assert server.sessions == sessions + 3


@server_check
async def after_max_requests(at: Flavour) -> None:
    """The server closes; what it was asked before is answered."""
    with logged() as records:
        async with served(at, FramedEcho, max_requests=3) as server:
            with await at.connect(server) as peer, await at.connect(server) as other:
                await echoes(peer)
                await echoes(other)
                messages = frame(b"three") + frame(b"four")
                await peer.send(messages)
                assert await peer.receive(len(messages)) == messages
                await eventually(lambda: not server.accepting)
                for last in (peer, other):
                    await last.send(frame(b"last"))
                    assert await last.farewell() == frame(b"last")
                await eventually(lambda: server.fired_event("finish"))
                assert server.requests_processed == 6
    assert [record.levelname for record in records] == ["WARNING"]


class Noted(FramedEcho):
    """Notes what happens to it in ``seen``, as the events do."""

    seen: list[str]

    def connection_made(self, connection: Connection) -> None:
        for name in ("pre_request", "data_received", "data_processed", "post_request"):
            self.bind_event(name, lambda *args, name=name, **kw: self.seen.append(name))

    def data_received(self, data: bytes) -> bytes | None:
        self.seen.append("the consumer's")
        return super().data_received(data)


PIECE = ["data_received", "the consumer's", "data_processed"]
REQUEST = ["pre_request", *PIECE, "post_request"]


@server_check
async def the_order_of_events(at: Flavour) -> None:
    """As promised, for one request, for one in two pieces, and for a pipeline."""

    class Here(Noted):
        seen = []

    async with served(at, Here) as server:
        for name in ("connection_made", "connection_lost"):
            server.bind_event(name, lambda arg, exc, name=name: Here.seen.append(name))
        with await at.connect(server) as peer:
            await eventually(lambda: server.connections)
            await echoes(peer)
            await peer.send(frame(b"x" * 10)[:5])
            await eventually(lambda: Here.seen[-1] == "data_processed")
            await peer.send(frame(b"x" * 10)[5:])
            await peer.receive(14)
            await peer.send(frame(b"1") + frame(b"2"))
            await peer.receive(10)
            await peer.end()
            await peer.rest()
        await eventually(lambda: server.connections == 0)
        assert Here.seen == [
            "connection_made",
            *REQUEST,
            *("pre_request", *PIECE, *PIECE, "post_request"),
            *REQUEST,
            *REQUEST,
            "connection_lost",
        ]


@server_check
async def an_error_costs_one_connection(at: Flavour) -> None:
    """It is logged once, with its traceback; the others go on."""

    class Failing(FramedEcho):
        def answer(self, message: bytes) -> None:
            if message.endswith(b"bad"):
                raise ZeroDivisionError("in user code")
            super().answer(message)

    with logged() as records:
        async with served(at, Failing) as server:
            with await at.connect(server) as peer, await at.connect(server) as other:
                await peer.send(frame(b"good") + frame(b"bad") + frame(b"good"))
                assert await peer.rest() == frame(b"good")
                assert peer.ended_well
                await echoes(other)
                await other.end()
            await eventually(lambda: server.connections == 0)
    (record,) = records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


@server_check
async def draining_answers_what_was_asked(at: Flavour) -> None:
    """What is in progress is answered, then closed; idle ones may ask once more."""
    RELEASE.get().clear()
    async with served(at, HeldTask) as server:
        connections = made(server)
        with await at.connect(server) as peer, await at.connect(server) as idle:
            await peer.send(frame(b"slow"))
            await eventually(lambda: len(connections) == 2 and connections[0].busy)
            closing = asyncio.get_running_loop().create_task(server.close(60, linger=60))
            await eventually(lambda: not server.accepting)
            RELEASE.get().set()
            assert await peer.farewell() == frame(b"slow")
            assert not closing.done()
            await idle.send(frame(b"once more"))
            assert await idle.farewell() == frame(b"once more")
            await closing
        assert server.fired_event("finish")


@server_check
async def draining_has_a_deadline(at: Flavour) -> None:
    """What is stuck is aborted; the log says how many."""
    RELEASE.get().clear()
    with logged() as records:
        async with served(at, HeldTask) as server:
            connections = made(server)
            with await at.connect(server) as peer:
                await peer.send(frame(b"stuck"))
                connection = await nth(connections, 0)
                await eventually(lambda: connection.busy)
                await server.close(0.15)
                assert server.connections == 0
                assert await peer.gone() == b""
    (record,) = records
    assert "1 connections aborted after 0." in record.getMessage()


# -- clients


def client_check(check: Check) -> Check:
    CLIENT_CHECKS.append(check)
    return check


class Asking(FramedEcho):
    """Sends a frame, and takes the first frame that comes for the answer."""

    def start_request(self) -> None:
        self.write(frame(self.request))

    def answer(self, message: bytes) -> None:
        self.finished(message[4:])


def ask(connection: Connection, payload: bytes) -> ProtocolConsumer:
    consumer = connection.current_consumer()
    consumer.start(payload)
    return consumer


@client_check
async def questions_and_answers(at: Flavour) -> None:
    """One after the other on one connection, in any size and any pieces."""
    async with connected(at, Asking) as (connection, peer):
        for size in (0, 1, 70_000, 1_000_000):
            payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
            consumer = ask(connection, payload)
            assert await peer.receive(size + 4) == frame(payload)
            sending = asyncio.get_running_loop().create_task(peer.send(frame(payload)))
            assert await consumer.on_finished == payload
            await sending
        consumer = ask(connection, b"?")
        assert await peer.receive(5) == frame(b"?")
        for byte in frame(b"pieces"):
            await peer.send(bytes([byte]))
        assert await consumer.on_finished == b"pieces"
        assert connection.requests_processed == 5
        assert not connection.closed


@client_check
async def the_order_of_a_clients_events(at: Flavour) -> None:
    """``pre_request`` comes before the request is written."""

    class Here(Noted, Asking):
        seen = []

        def start_request(self) -> None:
            self.seen.append("start_request")
            super().start_request()

    async with connected(at, Here) as (connection, peer):
        for _ in range(2):
            Here.seen.clear()
            consumer = ask(connection, b"?")
            assert Here.seen == ["pre_request", "start_request"]
            await peer.receive(5)
            await peer.send(frame(b"!"))
            assert await consumer.on_finished == b"!"
            assert Here.seen == ["pre_request", "start_request", *PIECE, "post_request"]


@client_check
async def an_answer_that_is_cut_off(at: Flavour) -> None:
    """Whoever waits for it is told, by an end as well as by a reset."""
    for part in (b"", frame(b"!" * 100)[:50]):
        async with connected(at, Asking) as (connection, peer):
            consumer = ask(connection, b"?")
            await peer.receive(5)
            await peer.send(part)
            await peer.end()
            with pytest.raises(ConnectionClosed, match="before the response was complete"):
                await consumer.on_finished
            assert await connection.close() is connection
            assert await peer.rest() == b""
    async with connected(at, Asking) as (connection, peer):
        consumer = ask(connection, b"?")
        await peer.receive(5)
        peer.reset()
        with pytest.raises(ConnectionError):
            await consumer.on_finished


@client_check
async def an_idle_connection_that_the_server_ends(at: Flavour) -> None:
    """The client closes its side, and cannot ask any more."""
    async with connected(at, Asking) as (connection, peer):
        await peer.end()
        assert await peer.rest() == b""
        assert await connection.event("connection_lost") is connection  # type: ignore[misc]
        assert connection.closed
        with pytest.raises(ConnectionClosed):
            await ask(connection, b"?").on_finished


@client_check
async def what_nobody_asked_for(at: Flavour) -> None:
    """Bytes without a request would be taken for the next answer: the connection ends."""
    async with connected(at, Asking) as (connection, peer):
        await peer.send(b"surprise")
        await eventually(lambda: connection.closed)
    async with connected(at, Asking) as (connection, peer):
        consumer = ask(connection, b"?")
        await peer.receive(5)
        await peer.send(frame(b"!") + b"surprise")
        assert await consumer.on_finished == b"!"
        await eventually(lambda: connection.closed)


@client_check
async def a_server_that_never_reads(at: Flavour) -> None:
    """Whoever writes waits, little is buffered; when the server reads, all goes on."""
    size = LARGE // 65536

    class Uploading(Asking):
        def start_request(self) -> None:
            self.create_task(self.stream())

        async def stream(self) -> None:
            for number in range(size):
                await self.write(struct.pack(">I", number) * 16384)
                sent.append(number)

    sent: list[int] = []
    async with connected(at, Uploading, receive_buffer=SMALL_BUFFER) as (connection, peer):
        consumer = ask(connection, b"")
        await eventually(lambda: connection.writing_paused)
        assert connection.transport.get_write_buffer_size() < 1024 * 1024
        assert len(sent) < size
        for number in range(size):
            assert await peer.receive(65536) == struct.pack(">I", number) * 16384
        await peer.send(frame(b"thanks"))
        assert await consumer.on_finished == b"thanks"


@client_check
async def a_client_that_closes_while_it_writes(at: Flavour) -> None:
    """What was written before arrives; what is written behind is dropped."""
    blob = bytes(range(256)) * (LARGE // 256)
    with logged() as records:
        async with connected(at, Asking, receive_buffer=SMALL_BUFFER) as (connection, peer):
            connection.write(blob)
            closed = connection.close()
            for _ in range(20):
                late = connection.write(b"late")
                assert not late
            with pytest.raises(ConnectionClosed):
                await late
            assert await peer.rest() == blob
            assert peer.ended_well
            await peer.end()
            peer.close()
            assert await closed is connection
    assert records == []


@client_check
async def a_client_that_aborts(at: Flavour) -> None:
    """It waits for nobody, and its request fails."""
    async with connected(at, Asking, receive_buffer=SMALL_BUFFER) as (connection, peer):
        consumer = ask(connection, bytes(LARGE))
        connection.abort()
        assert await connection.close() is connection
        with pytest.raises(ConnectionClosed):
            await consumer.on_finished
        assert len(await peer.gone()) < LARGE
