"""Hosting: somebody else's protocols and stream handlers, unmodified and not interposed."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import loops
from tests.support.conformance import echoes, frame
from tests.support.flavours import Flavour, eventually, served

if TYPE_CHECKING:
    from collections.abc import Callable


class Plain(asyncio.Protocol):
    """Notes what it is told, and echoes."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.told.append("lost")


class Slotted(asyncio.Protocol):
    """The same without a ``__dict__``."""

    __slots__ = ("__weakref__", "told", "transport")

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.transport: Any = None

    connection_made = Plain.connection_made
    data_received = Plain.data_received
    connection_lost = Plain.connection_lost


class Duck:
    """The same without a base."""

    __init__ = Plain.__init__
    connection_made = Plain.connection_made
    data_received = Plain.data_received
    connection_lost = Plain.connection_lost

    def eof_received(self) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Made:
    """A factory that remembers what it made."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.all: list[Any] = []

    def __call__(self) -> Any:
        self.all.append(self.cls())
        return self.all[-1]

    @property
    def served(self) -> list[Any]:
        """Without the one that was thrown away to see what it is."""
        return self.all[1:]


every_class = pytest.mark.parametrize("cls", [Plain, Slotted, Duck])


@every_class
def test_the_transports_protocol_is_the_users_object(
    cls: type, flavour: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        made = Made(cls)
        async with served(flavour, made) as server:
            with await flavour.connect(server) as peer:
                await echoes(peer)
                (protocol,) = made.served
                assert protocol.transport.get_protocol() is protocol
                assert isinstance(protocol, cls)
                assert protocol.told == ["made"]
                # The methods are those of its class again, as it would be without us.
                assert protocol.connection_made.__func__ is cls.connection_made or cls is Slotted
                assert protocol.data_received.__func__ is cls.data_received
                assert type(protocol).__qualname__ == cls.__qualname__
                await peer.end()
                await peer.rest()
            await eventually(lambda: server.connections == 0)
            assert protocol.told == ["made", "lost"]
            assert type(protocol) is cls
            assert "connection_made" not in getattr(protocol, "__dict__", {})
            assert "connection_lost" not in getattr(protocol, "__dict__", {})

    run(main())


@every_class
def test_connections_that_have_ended_are_not_kept(
    cls: type, tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        protocols: list[weakref.ref[Any]] = []

        def factory() -> Any:
            protocol = cls()
            protocols.append(weakref.ref(protocol))
            return protocol

        async with served(tcp, factory) as server:
            for _ in range(3):
                with await tcp.connect(server) as peer:
                    await echoes(peer)
            await eventually(lambda: server.connections == 0)
            await asyncio.sleep(0)
            gc.collect()
            assert [protocol() for protocol in protocols] == [None] * 4

    run(main())


def test_methods_that_an_instance_brings_are_kept(tcp: Flavour, run: Callable[..., Any]) -> None:
    """An instance may have methods of its own: callbacks given to its constructor."""
    told: list[Any] = []

    class Bound(asyncio.Protocol):
        def __init__(self) -> None:
            self.connection_made = told.append  # type: ignore[method-assign]
            self.connection_lost = told.append  # type: ignore[method-assign]

    async def main() -> None:
        async with served(tcp, Bound) as server:
            with await tcp.connect(server):
                await eventually(lambda: server.connections == 1)
                await eventually(lambda: told)
            await eventually(lambda: server.connections == 0)
        assert len(told) == 2

    run(main())


def test_a_protocol_that_hands_over_to_another(tcp: Flavour, run: Callable[..., Any]) -> None:
    """As for STARTTLS, or an upgrade: ``connection_lost`` is called on the other."""
    lost: list[Any] = []

    class Second(Plain):
        def connection_lost(self, exc: BaseException | None) -> None:
            lost.append(self)

    class First(Plain):
        def data_received(self, data: bytes) -> None:
            second = Second()
            second.transport = self.transport
            self.transport.set_protocol(second)
            second.data_received(data)

    async def main() -> None:
        async with served(tcp, First, max_connections=2, stall_timeout=0.2) as server:
            for number in range(5):
                with await tcp.connect(server) as peer:
                    await echoes(peer)
                    await echoes(peer)
                await eventually(lambda number=number: len(lost) == number + 1)
            await eventually(lambda: server.connections == 0)

    run(main())


def test_closing_with_a_protocol_that_has_handed_over(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    class First(Plain):
        def data_received(self, data: bytes) -> None:
            second = Plain()
            second.transport = self.transport
            self.transport.set_protocol(second)
            second.data_received(data)

    async def main() -> None:
        async with served(tcp, First) as server:
            with await tcp.connect(server) as peer:
                await echoes(peer)
                async with asyncio.timeout(10):
                    await server.close(60, linger=0)
                assert await peer.gone() == b""
                assert server.connections == 0

    run(main())


def test_an_error_in_data_received_costs_one_connection(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    """The loop's exception handler is told, as without us."""

    class Failing(Plain):
        def data_received(self, data: bytes) -> None:
            if data.endswith(b"bad"):
                raise ZeroDivisionError("in user code")
            super().data_received(data)

    async def main() -> None:
        async with served(tcp, Failing) as server:
            with await tcp.connect(server) as peer, await tcp.connect(server) as other:
                await peer.send(frame(b"bad"))
                assert await peer.gone() == b""
                await echoes(other)
                await eventually(lambda: server.connections == 1)
        (context,) = loops.take_errors()
        assert isinstance(context["exception"], ZeroDivisionError)

    run(main())


def test_an_error_in_connection_made_does_not_hold_a_place(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    class Failing(Plain):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise ZeroDivisionError("in user code")

    async def main() -> None:
        async with served(tcp, Failing) as server:
            with await tcp.connect(server):
                await eventually(lambda: server.sessions == 1)
            await eventually(lambda: server.connections == 0)
        errors = loops.take_errors()
        assert [type(context["exception"]) for context in errors] == [ZeroDivisionError]

    run(main())


def test_an_error_in_connection_lost_does_not_hold_a_place(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    class Failing(Plain):
        def connection_lost(self, exc: BaseException | None) -> None:
            raise ZeroDivisionError("in user code")

    class FailingSlotted(Slotted):
        __slots__ = ()

        def connection_lost(self, exc: BaseException | None) -> None:
            raise ZeroDivisionError("in user code")

    async def main() -> None:
        for cls in (Failing, FailingSlotted):
            async with served(tcp, cls) as server:
                with await tcp.connect(server) as peer:
                    await echoes(peer)
                await eventually(lambda server=server: server.connections == 0)
            errors = loops.take_errors()
            assert [type(context["exception"]) for context in errors] == [ZeroDivisionError]

    run(main())


def test_connections_count_as_requests(tcp: Flavour, run: Callable[..., Any]) -> None:
    """Requests cannot be seen in a foreign protocol."""

    async def main() -> None:
        for thing in (Plain, Slotted, echo_handler):
            async with served(tcp, thing, max_requests=2) as server:
                for _ in range(2):
                    with await tcp.connect(server) as peer:
                        await echoes(peer)
                        await echoes(peer)
                        await peer.end()
                        await peer.rest()
                await eventually(lambda server=server: server.fired_event("finish"))
                assert server.requests_processed == 2

    run(main())


def test_silence_ends_a_hosted_connection_when_asked_to(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        for thing in (Plain, Slotted, echo_handler):
            async with served(tcp, thing, keep_alive=0.15) as server:
                with await tcp.connect(server) as peer:
                    await echoes(peer)
                    assert await peer.farewell() == b""
                await eventually(lambda server=server: server.connections == 0)

    run(main())


def test_a_hosted_connection_whose_peer_never_reads_is_ended_when_asked_to(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    if flavour.unix:
        return  # the kernel does not know how long a Unix socket has been silent

    class Flooding(Plain):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(bytes(12 * 1024 * 1024))

    async def main() -> None:
        async with served(flavour, Flooding, keep_alive=0.15, stall_timeout=0.15) as server:
            with await flavour.connect(server, receive_buffer=4096):
                await eventually(lambda: server.sessions == 1)
                await eventually(lambda: server.connections == 0)

    run(main())


# -- stream handlers


async def echo_handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def test_a_handler_gets_reader_and_writer(flavour: Flavour, run: Callable[..., Any]) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        body = await reader.readexactly(3)
        writer.writelines([body, line])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with served(flavour, handler) as server:
            with await flavour.connect(server) as peer:
                await peer.send(b"line\nabc")
                assert await peer.farewell() == b"abcline\n"
            await eventually(lambda: server.connections == 0)

    run(main())


def test_an_object_may_be_a_handler(tcp: Flavour, run: Callable[..., Any]) -> None:
    class Service:
        async def __call__(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await echo_handler(reader, writer)

        async def method(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await echo_handler(reader, writer)

    async def main() -> None:
        for thing in (Service(), Service().method):
            async with served(tcp, thing) as server:
                with await tcp.connect(server) as peer:
                    await echoes(peer)

    run(main())


def test_an_error_in_a_handler_is_logged_once_and_costs_one_connection(
    flavour: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(3) == b"bad":
            writer.write(b"half an answer")
            raise ZeroDivisionError("in user code")
        await echo_handler(reader, writer)

    async def main() -> None:
        async with served(flavour, failing) as server:
            with await flavour.connect(server) as peer, await flavour.connect(server) as other:
                await peer.send(b"bad")
                assert await peer.farewell() == b"half an answer"
                await other.send(b"yes")
                await echoes(other)
                await eventually(lambda: server.connections == 1)

    run(main())
    (entry,) = caplog.records
    assert (entry.name, entry.levelno) == ("pulsar.protocols", logging.ERROR)
    assert entry.getMessage().endswith("failing")
    assert entry.exc_info is not None
    assert isinstance(entry.exc_info[1], ZeroDivisionError)


def test_a_peer_that_vanishes_from_a_handler_is_no_error(
    tcp: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[BaseException] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readexactly(1)
        except BaseException as exc:
            ended.append(exc)
            raise

    async def main() -> None:
        async with served(tcp, handler) as server:
            peer = await tcp.connect(server)
            await peer.send(b"x")
            await eventually(lambda: server.connections == 1)
            peer.reset()
            await eventually(lambda: ended)
            await eventually(lambda: server.connections == 0)

    run(main())
    assert isinstance(ended[0], ConnectionResetError)
    assert not caplog.records


def test_a_connection_error_of_the_handlers_own_is_logged(
    tcp: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One to a database, say: it has nothing to do with the peer."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise ConnectionRefusedError("no database")

    async def main() -> None:
        async with served(tcp, handler) as server:
            with await tcp.connect(server) as peer:
                assert await peer.gone() == b""
            await eventually(lambda: server.connections == 0)

    run(main())
    assert "no database" in caplog.text


def test_a_handler_that_returns_leaves_the_connection_open(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    """As with ``asyncio.start_server``: somebody else may use the writer now."""
    writers: list[asyncio.StreamWriter] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async def main() -> None:
        async with served(tcp, handler) as server:
            with await tcp.connect(server) as peer:
                await eventually(lambda: writers)
                await eventually(lambda: not server._tasks)
                writers[0].write(b"later")
                assert await peer.receive(5) == b"later"
                writers[0].close()
                assert await peer.farewell() == b""

    run(main())


def test_closing_waits_for_a_handler_and_cancels_one_that_is_stuck(
    tcp: Flavour, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = asyncio.Event()
        ended: list[str] = []

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                name = (await reader.readline()).decode().strip()
                await (release if name == "slow" else asyncio.Event()).wait()
                ended.append(name)
                writer.write(b"done")
                writer.close()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        async with served(tcp, handler) as server:
            with await tcp.connect(server) as slow, await tcp.connect(server) as stuck:
                await slow.send(b"slow\n")
                await stuck.send(b"stuck\n")
                await eventually(lambda: len(server._tasks) == 2)
                closing = loop.create_task(server.close(0.5, linger=0))
                await eventually(lambda: not server.accepting)
                release.set()
                assert await slow.farewell() == b"done"
                await closing
                assert await stuck.gone() == b""
                assert ended == ["slow", "cancelled"]
                assert server.connections == 0
                assert not server._tasks

    run(main())
    assert "1 connections aborted" in caplog.text


def test_closing_has_done_with_a_handler_that_will_not_end(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    """The deadline is a deadline, also for those who will not be cancelled."""

    async def main() -> None:
        release = asyncio.Event()
        tasks: list[Any] = []

        async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(asyncio.current_task())
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    pass

        async with served(tcp, stubborn) as server:
            with await tcp.connect(server):
                await eventually(lambda: tasks)
                try:
                    async with asyncio.timeout(8):
                        await server.close(0.1)
                finally:
                    release.set()
                    await asyncio.wait(tasks)
            assert server.fired_event("finish")

    run(main())
