"""PulsarProtocol, Protocol, DatagramProtocol and Producer: sessions, events, the end."""

from __future__ import annotations

import asyncio
import errno
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.protocols import (
    Connection,
    DatagramProtocol,
    Producer,
    Protocol,
    ProtocolConsumer,
    PulsarProtocol,
)
from pulsar.protocols.datagram import MAX_DATAGRAM
from tests.support.transport import FakeTransport, connect

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeDatagramTransport(FakeTransport):
    def __init__(self, protocol: Any = None) -> None:
        super().__init__(protocol)
        self.datagrams: list[tuple[bytes, Any]] = []

    def sendto(self, data: bytes, addr: Any = None) -> None:
        self.datagrams.append((data, addr))


# What the loop calls is the same for all of them.
every_protocol = pytest.mark.parametrize(
    "factory", [PulsarProtocol, Protocol, DatagramProtocol, partial(Connection, ProtocolConsumer)]
)


# -- the life of a protocol


@every_protocol
def test_the_events_of_a_protocol(factory: Callable[..., Any]) -> None:
    seen: list[Any] = []
    protocol = factory()
    for name in ("connection_made", "connection_lost"):
        protocol.bind_event(name, lambda arg, exc, name=name: seen.append((name, arg, exc)))
    transport = FakeTransport(protocol)
    assert protocol.transport is None
    protocol.connection_made(transport)
    assert protocol.transport is transport
    error = ConnectionResetError()
    protocol.connection_lost(error)
    protocol.connection_lost(error)
    assert seen == [("connection_made", protocol, None), ("connection_lost", protocol, error)]


@every_protocol
def test_past_events_need_no_event_objects(factory: Callable[..., Any]) -> None:
    protocol = factory()
    assert not protocol.fired_event("connection_made")
    transport = connect(protocol)
    assert protocol.fired_event("connection_made")
    assert not protocol.fired_event("connection_lost")
    error = ConnectionResetError()
    transport.lost(error)
    assert protocol.fired_event("connection_lost")
    assert protocol._events is None
    seen: list[Any] = []
    for name in ("connection_made", "connection_lost"):
        protocol.bind_event(name, lambda arg, exc, name=name: seen.append((name, arg, exc)))
    assert seen == [("connection_made", protocol, None), ("connection_lost", protocol, error)]


@every_protocol
def test_awaiting_the_end_never_raises(
    factory: Callable[..., Any], run: Callable[..., Any]
) -> None:
    async def main() -> None:
        protocol = factory()
        transport = connect(protocol)
        closed = protocol.close()
        assert transport.closing
        asyncio.get_running_loop().call_soon(transport.lost, ConnectionResetError())
        assert await closed is protocol
        assert await protocol.close() is protocol
        assert await protocol.event("connection_lost") is protocol

    run(main())


@every_protocol
def test_one_that_was_never_connected_is_closed_at_once(
    factory: Callable[..., Any], run: Callable[..., Any]
) -> None:
    async def main() -> None:
        for end in ("close", "abort"):
            protocol = factory()
            assert protocol.closed
            getattr(protocol, end)()
            assert protocol.fired_event("connection_lost")
            assert await protocol.close() is protocol

    run(main())


@every_protocol
def test_abort(factory: Callable[..., Any]) -> None:
    protocol = factory()
    transport = connect(protocol)
    protocol.abort()
    assert transport.aborted


@every_protocol
def test_after_the_end_there_is_nothing_to_abort(factory: Callable[..., Any]) -> None:
    """asyncio's transports cannot bear it."""
    protocol = factory()
    transport = connect(protocol)
    transport.lost()
    protocol.abort()
    assert not transport.aborted


@every_protocol
def test_repr_tells_the_state(factory: Callable[..., Any]) -> None:
    protocol = factory(session=3)
    name = type(protocol).__name__
    assert repr(protocol) == f"<{name} 3 new>"
    transport = connect(protocol)
    assert repr(protocol) == f"<{name} 3 open, 192.0.2.1:4321>"
    assert not protocol.closed
    protocol.close()
    assert repr(protocol) == f"<{name} 3 closing, 192.0.2.1:4321>"
    assert protocol.closed
    transport.lost()
    assert repr(protocol) == f"<{name} 3 lost, 192.0.2.1:4321>"
    assert protocol.closed


def test_repr_of_one_that_was_never_connected() -> None:
    protocol = Protocol()
    protocol.close()
    assert repr(protocol) == "<Protocol 1 lost>"


@every_protocol
def test_the_loop_is_the_one_that_runs(
    factory: Callable[..., Any], run: Callable[..., Any]
) -> None:
    async def main() -> None:
        protocol = factory()
        assert protocol._loop is None
        connect(protocol)
        assert protocol._loop is asyncio.get_running_loop()

    run(main())


def test_a_loop_that_was_given_stays(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop: Any = object()
        protocol = Protocol(loop=loop)
        connect(protocol)
        assert protocol._loop is loop

    run(main())


@every_protocol
def test_what_is_known_of_a_protocol(factory: Callable[..., Any]) -> None:
    protocol = factory(session=5)
    assert protocol.session == 5
    assert protocol.producer is None
    assert protocol.address is None
    connect(protocol)
    assert protocol.address == ("192.0.2.1", 4321)
    info = protocol.info()
    assert (info["session"], info["address"], info["closed"]) == (5, ("192.0.2.1", 4321), False)


@every_protocol
def test_whose_logger_it_is(factory: Callable[..., Any]) -> None:
    mine, its = logging.getLogger("tests.mine"), logging.getLogger("tests.producers")
    assert factory().logger.name == "pulsar.protocols"
    assert factory(producer=Producer(logger=its)).logger is its
    assert factory(producer=Producer(logger=its), logger=mine).logger is mine


def test_a_protocol_has_a_timeout() -> None:
    assert Protocol().timeout is None
    assert Protocol(timeout=2.5).timeout == 2.5
    assert Connection(ProtocolConsumer, 2.5).timeout == 2.5


# -- datagrams


def test_a_datagram_protocol_sends() -> None:
    protocol = DatagramProtocol()
    protocol.sendto(b"nobody is there yet")
    transport = FakeDatagramTransport(protocol)
    protocol.connection_made(transport)
    protocol.sendto(b"to the one")
    protocol.sendto(b"to some", ("192.0.2.7", 7))
    protocol.sendto(b"x" * MAX_DATAGRAM)
    protocol.sendto(b"")
    assert [addr for _, addr in transport.datagrams] == [None, ("192.0.2.7", 7), None, None]
    protocol.connection_lost(None)
    protocol.sendto(b"too late")
    assert len(transport.datagrams) == 4


def test_a_datagram_that_no_socket_could_send_is_refused() -> None:
    protocol = DatagramProtocol()
    transport = FakeDatagramTransport(protocol)
    protocol.connection_made(transport)
    with pytest.raises(ValueError, match="65508 bytes cannot be sent: the largest has 65507"):
        protocol.sendto(b"x" * 65_508)
    assert transport.datagrams == []


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (OSError(errno.EMSGSIZE, "Message too long"), logging.WARNING),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), logging.DEBUG),
    ],
)
def test_an_error_of_an_endpoint_is_logged(
    error: OSError, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pulsar")
    protocol = DatagramProtocol()
    protocol.connection_made(FakeDatagramTransport(protocol))
    protocol.error_received(error)
    assert [entry.levelno for entry in caplog.records] == [level]
    assert not protocol.closed


# -- producers


def test_a_producer_counts_sessions() -> None:
    producer = Producer(protocol_factory=partial(Connection, ProtocolConsumer), name="mine")
    first: Any = producer.create_protocol()
    second: Any = producer.create_protocol(timeout=3)
    assert producer.sessions == 2
    assert (first.session, second.session) == (1, 2)
    assert first.producer is producer
    assert (first.timeout, second.timeout) == (None, 3)
    assert first.logger is producer.logger
    assert producer.name == "mine"


def test_a_producer_without_a_factory_says_so() -> None:
    producer = Producer()
    with pytest.raises(RuntimeError, match="Producer has no protocol_factory"):
        producer.create_protocol()
    assert producer.sessions == 0
    assert producer.name == "producer"


def test_a_producers_class_may_name_its_factory() -> None:
    class Mine(Producer):
        protocol_factory = partial(Connection, ProtocolConsumer)

    assert isinstance(Mine().create_protocol(), Connection)
    other = Mine(protocol_factory=Protocol)
    assert type(other.create_protocol()) is Protocol


def test_a_producer_fires_the_events_of_its_connections() -> None:
    seen: list[Any] = []
    producer = Producer(protocol_factory=Protocol)
    for name in ("connection_made", "connection_lost"):
        producer.bind_event(name, lambda arg, exc, name=name: seen.append((name, arg, exc)))
    error = ConnectionResetError()
    protocols: list[Any] = [producer.create_protocol() for _ in range(2)]
    for protocol in protocols:
        connect(protocol).lost(error)
    assert seen == [
        (name, protocol, reason)
        for protocol in protocols
        for name, reason in (("connection_made", None), ("connection_lost", error))
    ]


def test_a_producer_of_which_nobody_listens_has_no_events() -> None:
    producer = Producer(protocol_factory=Protocol)
    protocol: Any = producer.create_protocol()
    connect(protocol).lost()
    assert producer._events is None


class Served(Producer):
    server_side = True


class Word(ProtocolConsumer):
    def data_received(self, data: bytes) -> bytes | None:
        word, _, tail = data.partition(b" ")
        self.finished(word)
        return tail


CONSUMER_EVENTS = ("pre_request", "data_received", "data_processed", "post_request")


def test_a_producer_fires_the_events_of_its_consumers() -> None:
    seen: list[Any] = []
    producer = Served(protocol_factory=partial(Connection, Word))
    for name in CONSUMER_EVENTS:
        producer.bind_event(
            name, lambda arg, exc, name=name, **kw: seen.append((name, arg, exc, kw))
        )
    connection: Any = producer.create_protocol()
    connect(connection)
    consumer = connection.current_consumer()
    connection.data_received(b"one two")
    data = {"data": b"one two"}
    assert seen[:4] == [
        ("pre_request", consumer, None, {}),
        ("data_received", consumer, None, data),
        ("data_processed", consumer, None, data),
        ("post_request", consumer, None, {}),
    ]
    assert consumer.result == b"one"
    assert [event[0] for event in seen[4:]] == list(CONSUMER_EVENTS)
    assert seen[-1][1].result == b"two"


def test_a_producer_builds_consumers_with_its_events_only_where_somebody_listens() -> None:
    producer = Served()
    assert producer.build_consumer(Word)._events is None
    producer.bind_event("connection_made", lambda arg, exc: None)
    assert producer.build_consumer(Word)._events is None
    producer.bind_event("post_request", lambda arg, exc: None)
    assert list(producer.build_consumer(Word)._events or ()) == ["post_request"]


def test_a_callback_that_is_bound_late_hears_of_later_consumers() -> None:
    producer = Served(protocol_factory=partial(Connection, Word))
    connection: Any = producer.create_protocol()
    connect(connection)
    connection.data_received(b"one")
    seen: list[Any] = []
    producer.bind_event("post_request", lambda arg, exc: seen.append(arg))
    connection.data_received(b"two")
    connection.data_received(b"three")
    assert seen[-1].result == b"three"
    producer.unbind_event("post_request", seen.append)


def test_a_producers_callback_may_abort_a_request() -> None:
    producer = Served(protocol_factory=partial(Connection, Word))
    producer.bind_event("pre_request", lambda arg, exc: arg.abort_request())
    connection: Any = producer.create_protocol()
    transport = connect(connection)
    connection.data_received(b"one")
    assert transport.closing


def test_a_producer_counts_requests() -> None:
    reached: list[int] = []

    class Limited(Served):
        def max_requests_reached(self) -> None:
            reached.append(self.requests_processed)

    producer = Limited(protocol_factory=partial(Connection, Word), max_requests=3)
    connections: list[Any] = [producer.create_protocol() for _ in range(2)]
    for connection in connections:
        connect(connection)
        connection.data_received(b"one two")
    assert producer.requests_processed == 4
    assert reached == [3]
    assert [connection.requests_processed for connection in connections] == [2, 2]


@pytest.mark.parametrize("none", [0, None])
def test_no_limit_of_requests(none: int | None) -> None:
    producer = Served(max_requests=none)
    assert producer.max_requests is None
