"""Connection: which consumer gets which bytes, what is written, and what ends it."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.errors import ConnectionClosed, ProtocolError
from pulsar.protocols import AbortRequest, Connection, Producer, ProtocolConsumer
from tests.support.transport import FakeTransport, connect

if TYPE_CHECKING:
    from collections.abc import Callable


class Server(Producer):
    server_side = True


class Line(ProtocolConsumer):
    """One line is one request; the answer is the line in capitals."""

    buffer = b""

    def data_received(self, data: bytes) -> bytes | None:
        assert type(data) is bytes
        line, end, tail = (self.buffer + data).partition(b"\n")
        if not end:
            self.buffer = line
            return None
        self.write(line.upper() + b"\n")
        self.finished(line)
        return tail


class Endless(ProtocolConsumer):
    """Lives as long as its connection; echoes."""

    def data_received(self, data: bytes) -> None:
        self.write(data)


class Slow(Line):
    """Answers when the test says so: ``current.answer()``."""

    line = b""
    made: list[Slow]  # of each subclass

    def connection_made(self, connection: Connection) -> None:
        self.made.append(self)

    def data_received(self, data: bytes) -> bytes | None:
        assert type(data) is bytes
        line, end, tail = (self.buffer + data).partition(b"\n")
        if not end:
            self.buffer = line
            return None
        self.line = line
        return tail

    def answer(self) -> None:
        self.write(self.line.upper() + b"\n")
        self.finished(self.line)


def slow() -> type[Slow]:
    class Mine(Slow):
        made = []

    return Mine


def serve(factory: Any, **options: Any) -> tuple[Connection, FakeTransport]:
    """A server's connection and its transport."""
    server = Server()
    tls = options.pop("tls", False)
    connection = Connection(factory, producer=server, **options)
    return connection, connect(connection, tls=tls)


def request(factory: Any, **options: Any) -> tuple[Connection, FakeTransport]:
    """A client's connection and its transport."""
    connection = Connection(factory, producer=Producer(), **options)
    return connection, connect(connection)


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [entry for entry in caplog.records if entry.levelno >= logging.WARNING]


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pulsar")


# -- made


def test_a_consumer_is_made_before_the_first_byte() -> None:
    class Greeting(Endless):
        def connection_made(self, connection: Connection) -> None:
            assert self.connection is connection
            self.write(b"220 ready\r\n")

    connection, transport = serve(Greeting)
    assert transport.take() == [b"220 ready\r\n"]
    assert isinstance(connection.current_consumer(), Greeting)
    assert not connection.busy
    connection.data_received(b"x")
    assert transport.take() == [b"x"]


def test_a_client_has_no_consumer_until_it_asks_for_one() -> None:
    connection, _ = request(Endless)
    assert connection._consumer is None
    consumer = connection.current_consumer()
    assert connection.current_consumer() is consumer
    assert consumer.connection is connection


def test_a_factory_that_raises_costs_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    error = LookupError("no consumer today")

    def factory() -> ProtocolConsumer:
        raise error

    connection, transport = serve(factory)
    assert transport.closing
    (entry,) = errors(caplog)
    assert entry.exc_info is not None
    assert entry.exc_info[1] is error
    assert "cannot make a consumer" in entry.getMessage()
    connection.data_received(b"x")
    assert len(errors(caplog)) == 1


def test_a_factory_that_raises_for_a_later_request(caplog: pytest.LogCaptureFixture) -> None:
    made: list[Line] = []

    def factory() -> Line:
        if made:
            raise LookupError("one is enough")
        made.append(Line())
        return made[0]

    connection, transport = serve(factory)
    connection.data_received(b"one\ntwo\n")
    assert transport.sent == b"ONE\n"
    assert transport.closing
    assert len(errors(caplog)) == 1
    assert errors(caplog)[0].exc_info is not None


def test_a_connection_without_a_factory_says_so(caplog: pytest.LogCaptureFixture) -> None:
    connection = Connection(producer=Server())
    transport = connect(connection)
    assert transport.closing
    assert "this connection has no consumer_factory" in caplog.text


def test_a_consumer_that_raises_in_connection_made(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Endless):
        def connection_made(self, connection: Connection) -> None:
            raise ZeroDivisionError

    _, transport = serve(Broken)
    assert transport.closing
    assert [entry.exc_info is not None for entry in errors(caplog)] == [True]


def test_a_callback_of_connection_made_may_close() -> None:
    made: list[Endless] = []

    def factory() -> Endless:
        made.append(Endless())
        return made[-1]

    connection = Connection(factory, producer=Server())
    connection.bind_event("connection_made", lambda protocol, exc: protocol.close())
    assert connect(connection).closing
    assert made == []


# -- requests


def test_one_request_in_pieces() -> None:
    connection, transport = serve(Line)
    for byte in b"hello":
        connection.data_received(bytes([byte]))
        assert connection.busy
    assert transport.written == []
    connection.data_received(b"\n")
    assert transport.written == [b"HELLO\n"]
    assert not connection.busy
    assert connection.requests_processed == connection._processed == 1
    assert connection.producer.requests_processed == 1  # type: ignore[union-attr]


def test_each_request_has_a_consumer_of_its_own() -> None:
    made: list[ProtocolConsumer] = []

    def factory() -> Line:
        made.append(Line())
        return made[-1]  # type: ignore[return-value]

    connection, transport = serve(factory)
    for number in range(3):
        connection.data_received(b"%d\n" % number)
    assert len(set(made)) == 3
    assert transport.sent == b"0\n1\n2\n"
    assert connection.requests_processed == 3


def test_a_consumer_that_never_finishes_is_the_only_one() -> None:
    made: list[Endless] = []

    def factory() -> Endless:
        made.append(Endless())
        return made[-1]

    connection, transport = serve(factory)
    for number in range(3):
        connection.data_received(b"%d" % number)
    assert len(made) == 1
    assert transport.written == [b"0", b"1", b"2"]
    assert connection.requests_processed == 0


def test_ten_thousand_requests_in_one_chunk() -> None:
    connection, transport = serve(Line)
    lines = [b"%d\n" % number for number in range(10_000)]
    connection.data_received(b"".join(lines))
    assert transport.sent == b"".join(lines)
    # Coalesced: far fewer writes than answers.
    assert len(transport.written) <= len(lines) // 64 + 1
    assert connection.requests_processed == 10_000
    assert transport.reading
    assert not connection.busy


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_any_kind_of_tail_is_taken(convert: Callable[[bytes], Any]) -> None:
    """The next consumer gets bytes, whatever the one before it returned."""

    class Converting(Line):
        def data_received(self, data: bytes) -> Any:
            return convert(super().data_received(data) or b"")

    connection, transport = serve(Converting)
    # Longer than a piece, so that tails of pieces come along too.
    lines = b"".join(b"line %d\n" % number for number in range(5_000))
    connection.data_received(lines)
    assert transport.sent == lines.upper()
    assert connection.requests_processed == 5_000


def test_requests_of_any_size_split_anywhere() -> None:
    chance = random.Random(7)
    lines = [b"x" * chance.choice([0, 1, 100, 16_383, 16_384, 20_000, 70_000]) for _ in range(60)]
    stream = b"".join(line + b"\n" for line in lines)
    connection, transport = serve(Line)
    while stream:
        size = chance.choice([1, 100, 16_384, 16_385, 50_000, 200_000])
        connection.data_received(stream[:size])
        stream = stream[size:]
    assert transport.sent.split(b"\n")[:-1] == [line.upper() for line in lines]
    assert connection.requests_processed == len(lines)


def test_what_follows_waits_while_a_request_is_being_answered() -> None:
    Consumer = slow()
    connection, transport = serve(Consumer)
    connection.data_received(b"one\ntwo\nthr")
    assert connection.busy
    assert not transport.reading
    assert transport.written == []
    # What the loop had read before reading was paused.
    connection.data_received(b"ee\n")
    assert len(Consumer.made) == 1
    Consumer.made[0].answer()
    assert transport.take() == [b"ONE\n"]
    assert not transport.reading
    Consumer.made[1].answer()
    assert transport.take() == [b"TWO\n"]
    assert transport.reading  # the third has no tail behind it
    Consumer.made[2].answer()
    assert transport.take() == [b"THREE\n"]
    assert not connection.busy
    assert connection.requests_processed == 3


def test_a_long_pipeline_behind_a_slow_request() -> None:
    class Mixed(Slow):
        made = []

        def data_received(self, data: bytes) -> bytes | None:
            tail = super().data_received(data)
            if self.line and self.line != b"slow":
                self.answer()
            return tail

    connection, transport = serve(Mixed)
    lines = b"quick\n" * 5_000
    connection.data_received(b"slow\n" + lines + b"slow\n" + lines)
    assert transport.sent == b""
    Mixed.made[0].answer()
    assert transport.sent == b"SLOW\n" + lines.upper()
    assert not transport.reading
    Mixed.made[-1].answer()
    assert transport.sent == (b"SLOW\n" + lines.upper()) * 2
    assert transport.reading


def test_a_consumer_that_does_nothing_with_a_request_keeps_the_tail_but_not_the_loop() -> None:
    """A tail without ``finished``: it is held, not given again and again."""
    seen: list[bytes] = []

    class Lazy(ProtocolConsumer):
        def data_received(self, data: bytes) -> bytes:
            seen.append(data)
            return data[1:]

    connection, transport = serve(Lazy)
    connection.data_received(b"abc")
    assert seen == [b"abc"]
    assert not transport.reading


def test_consumers_get_their_bytes_in_the_order_of_arrival_when_they_finish_late() -> None:
    """``finished`` outside ``data_received``, with nothing behind the request."""
    Consumer = slow()
    connection, transport = serve(Consumer)
    for number in range(3):
        connection.data_received(b"%d\n" % number)
        Consumer.made[-1].answer()
    assert transport.written == [b"0\n", b"1\n", b"2\n"]


# -- how consumers are made


def test_a_consumer_with_a_constructor_of_its_own() -> None:
    class Counting(Line):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def data_received(self, data: bytes) -> bytes | None:
            self.count += 1
            assert self.request is None
            return super().data_received(data)

    connection, transport = serve(Counting)
    connection.data_received(b"one\ntwo\n")
    connection.data_received(b"three\n")
    assert transport.sent == b"ONE\nTWO\nTHREE\n"


def test_a_constructor_that_comes_with_a_mixin() -> None:
    class Counting:
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

    class Mixed(Counting, Line):
        def data_received(self, data: bytes) -> bytes | None:
            self.count += 1
            return super().data_received(data)

    connection, transport = serve(Mixed)
    connection.data_received(b"one\ntwo\n")
    assert transport.sent == b"ONE\nTWO\n"


def test_a_constructor_below_a_class_that_hooks_its_subclasses() -> None:
    """A registry in ``__init_subclass__`` need not know of ours."""
    registry: list[type] = []

    class Registering(Line):
        def __init_subclass__(cls) -> None:
            registry.append(cls)

    class Counting(Registering):
        greeted = False

        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def connection_made(self, connection: Connection) -> None:
            self.greeted = True

        def data_received(self, data: bytes) -> bytes | None:
            assert self.greeted
            self.count += 1
            return super().data_received(data)

    connection, transport = serve(Counting)
    connection.data_received(b"one\ntwo\n")
    assert transport.sent == b"ONE\nTWO\n"
    assert registry == [Counting]


def test_a_class_that_is_patched_after_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users' tests do such things."""
    greeted: list[Any] = []

    class Plain(Line):
        pass

    monkeypatch.setattr(Plain, "connection_made", lambda self, connection: greeted.append(self))
    connection, _ = serve(Plain)
    connection.data_received(b"one\ntwo\n")
    assert len(greeted) == 2


def test_a_consumer_with_slots() -> None:
    class Slotted(ProtocolConsumer):
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            self.write(data)
            self.finished(data)

    connection, transport = serve(Slotted)
    consumer = connection.current_consumer()
    connection.data_received(b"x")
    connection.data_received(b"y")
    assert transport.written == [b"x", b"y"]
    assert not hasattr(consumer, "__dict__")


def test_a_factory_that_is_a_function() -> None:
    connection, transport = serve(lambda: Line())
    connection.data_received(b"one\ntwo\n")
    assert transport.sent == b"ONE\nTWO\n"


def test_a_consumer_is_new_for_each_request() -> None:
    """Nothing of one request is found in the next."""

    class Marking(Line):
        def data_received(self, data: bytes) -> bytes | None:
            assert self.request is None
            assert not self.fired_event("post_request")
            self.request = data
            self.bind_event("post_request", lambda arg, exc: None)
            return super().data_received(data)

    connection, transport = serve(Marking)
    connection.data_received(b"one\ntwo\n")
    assert transport.sent == b"ONE\nTWO\n"


# -- the order of events


def listen(target: Any, names: tuple[str, ...], seen: list[str]) -> None:
    for name in names:
        target.bind_event(name, lambda *args, name=name, **kw: seen.append(name))


SERVER_EVENTS = ("connection_made", "connection_lost")
REQUEST_EVENTS = ("pre_request", "data_received", "data_processed", "post_request")


class Noting(Line):
    seen: list[str]

    def connection_made(self, connection: Connection) -> None:
        self.seen.append("consumer made")
        listen(self, REQUEST_EVENTS, self.seen)

    def data_received(self, data: bytes) -> bytes | None:
        self.seen.append(f"data {data!r}")
        tail = super().data_received(data)
        self.seen.append("data done")
        return tail


def noting() -> type[Noting]:
    class Mine(Noting):
        seen = []

    return Mine


ONE_CALL = ["data_received", "data {!r}", "data done", "data_processed"]


def call(data: bytes) -> list[str]:
    return [step.format(data) for step in ONE_CALL]


def test_the_order_of_a_request() -> None:
    Consumer = noting()
    connection = Connection(Consumer, producer=Server())
    listen(connection, SERVER_EVENTS, Consumer.seen)
    transport = connect(connection)
    connection.data_received(b"on")
    connection.data_received(b"e\n")
    transport.lost()
    assert Consumer.seen == [
        "connection_made",
        "consumer made",
        "pre_request",
        *call(b"on"),
        *call(b"e\n"),
        "post_request",
        "connection_lost",
    ]


def test_the_order_of_pipelined_requests() -> None:
    Consumer = noting()
    connection = Connection(Consumer, producer=Server())
    transport = connect(connection)
    connection.data_received(b"1\n2\n3")
    transport.lost()
    assert Consumer.seen == [
        "consumer made",
        "pre_request",
        *call(b"1\n2\n3"),
        "post_request",
        "consumer made",
        "pre_request",
        *call(b"2\n3"),
        "post_request",
        "consumer made",
        "pre_request",
        *call(b"3"),
        "post_request",
    ]


def test_the_order_of_a_request_that_closes_its_connection() -> None:
    """``finished`` inside ``data_received`` only marks, also behind a ``close``."""
    for first in ("close", "finished"):
        seen: list[str] = []

        class Last(ProtocolConsumer):
            def connection_made(self, connection: Connection) -> None:
                listen(self, REQUEST_EVENTS, seen)  # noqa: B023 - used in this turn

            def data_received(self, data: bytes) -> None:
                self.write(b"bye")
                steps = [self.connection.close, self.finished]  # type: ignore[union-attr]
                for step in steps if first == "close" else reversed(steps):  # noqa: B023
                    step()

        connection, transport = serve(Last)
        connection.data_received(b"x")
        assert seen == list(REQUEST_EVENTS)
        assert transport.written == [b"bye"]
        assert transport.closing
        assert connection.requests_processed == 1


def test_the_order_of_a_clients_request() -> None:
    class Asking(Noting):
        seen = []

        def start_request(self) -> None:
            self.seen.append("start_request")
            self.write(self.request)

    connection, transport = request(Asking)
    consumer = connection.current_consumer()
    consumer.start(b"question\n")
    assert transport.written == [b"question\n"]
    connection.data_received(b"ans")
    connection.data_received(b"wer\n")
    assert Asking.seen == [
        "consumer made",
        "pre_request",
        "start_request",
        *call(b"ans"),
        *call(b"wer\n"),
        "post_request",
    ]


def test_callbacks_get_consumer_and_data() -> None:
    seen: list[Any] = []

    class Bound(Line):
        def connection_made(self, connection: Connection) -> None:
            self.bind_event("data_received", lambda *args, **kw: seen.append((args, kw)))

    connection, _ = serve(Bound)
    consumer = connection.current_consumer()
    connection.data_received(b"x\n")
    assert seen == [((consumer,), {"exc": None, "data": b"x\n"})]


def test_a_consumer_that_nobody_listens_to_has_no_events() -> None:
    connection, _ = serve(Line)
    consumer = connection.current_consumer()
    connection.data_received(b"x\n")
    assert consumer._events is None
    assert connection._events is None
    assert consumer.fired_event("pre_request")
    assert consumer.fired_event("post_request")


@pytest.mark.parametrize("name", REQUEST_EVENTS)
def test_a_callback_that_raises_does_not_break_the_connection(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(consumer: Any, exc: Any = None, **kw: Any) -> None:
        raise ZeroDivisionError

    class Bound(Line):
        def connection_made(self, connection: Connection) -> None:
            self.bind_event(name, fail)

    connection, transport = serve(Bound)
    connection.data_received(b"one\ntwo\n")
    assert transport.sent == b"ONE\nTWO\n"
    assert not transport.closing
    assert len(errors(caplog)) == 2


# -- writing


def test_writes_inside_one_data_received_are_joined() -> None:
    class Many(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            for piece in (b"head", b"", b" ", b"body"):
                assert not self.write(piece)

    connection, transport = serve(Many)
    connection.data_received(b"x")
    assert transport.written == [b"head body"]


def test_long_answers_are_not_joined() -> None:
    """Joining copies: many bytes go to ``writelines`` instead, all but the last piece."""
    pieces = [bytes([65 + number]) * 100_000 for number in range(3)]

    class Long(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            for piece in pieces:
                self.write(piece)

    connection, transport = serve(Long)
    connection.data_received(b"x")
    assert transport.written == [b"".join(pieces[:-1]), pieces[-1]]
    # There are versions of asyncio in which writelines never pauses writing, but write does.
    assert transport.calls == ["writelines", "write"]


def test_long_answers_on_a_connection_that_is_lost(run: Callable[..., Any]) -> None:
    """From 3.12 on, asyncio would go on watching a descriptor that is somebody else's by then."""

    class Long(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            # As a reset does it: the connection is told a turn of the loop later.
            self.connection._transport.abort()
            for _ in range(3):
                self.write(b"x" * 100_000)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            transport, connection = await loop.create_connection(
                lambda: Connection(Long, producer=Server()), sock=ours
            )
            descriptor = ours.fileno()
            theirs.sendall(b"x")
            await connection.event("connection_lost")
            await asyncio.sleep(0)
            if isinstance(loop, asyncio.SelectorEventLoop):
                assert descriptor not in loop._selector.get_map()
            assert transport.is_closing()

    run(main())


def test_one_long_answer_is_written_as_it_is() -> None:
    answer = b"x" * 300_000

    class Long(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(answer)

    connection, transport = serve(Long)
    connection.data_received(b"x")
    assert transport.written == [answer]
    assert transport.calls == ["write"]


def test_answers_of_a_pipeline_are_joined() -> None:
    connection, transport = serve(Line)
    connection.data_received(b"a\nb\nc\n")
    assert transport.written == [b"A\nB\nC\n"]


def test_writes_outside_of_data_received_go_out_at_once() -> None:
    connection, transport = serve(Endless)
    assert not connection.write(b"1")
    assert not connection.current_consumer().write(b"2")
    assert transport.written == [b"1", b"2"]


def test_writes_through_the_transport_keep_their_place() -> None:
    class Mixed(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(b"1")
            self.transport.write(b"2")
            self.write(b"3")
            self.write(b"4")
            self.connection.transport.write(b"5")  # type: ignore[union-attr]
            self.transport.write(b"6")
            self.write(b"7")

    connection, transport = serve(Mixed)
    connection.data_received(b"x")
    assert transport.sent == b"1234567"
    connection.data_received(b"x")
    assert transport.sent == b"1234567" * 2


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("convert", [bytearray, lambda data: memoryview(bytearray(data))])
def test_a_buffer_may_be_used_again_after_a_write(
    convert: Callable[[bytes], Any], inside: bool
) -> None:
    class Kept(FakeTransport):
        """Keeps what it is given until the end of the turn, as uvloop does."""

        kept: list[Any] = []

        def write(self, data: Any) -> None:
            self.kept.append(data)

        def writelines(self, list_of_data: Any) -> None:
            self.kept.extend(list_of_data)

    class Reusing(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            if inside:
                self.fill()

        def fill(self) -> None:
            buffer = convert(b"....")
            for text in (b"one.", b"two."):
                buffer[:] = text
                self.write(buffer)

    connection = Connection(Reusing, producer=Server())
    transport = Kept(connection)
    transport.kept = []
    connection.connection_made(transport)
    consumer: Any = connection.current_consumer()
    connection.data_received(b"x")
    if not inside:
        consumer.fill()
    assert b"".join(transport.kept) == b"one.two."


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]])
def test_what_is_no_bytes_is_refused(data: Any, inside: bool) -> None:
    raised: list[BaseException] = []

    class Wrong(ProtocolConsumer):
        def data_received(self, received: bytes) -> None:
            if inside:
                self.fill()

        def fill(self) -> None:
            try:
                self.write(data)
            except TypeError as exc:
                raised.append(exc)

    connection, transport = serve(Wrong)
    consumer: Any = connection.current_consumer()
    connection.data_received(b"x")
    if not inside:
        consumer.fill()
    assert len(raised) == 1
    assert transport.sent == b""


def test_an_unconnected_connection_cannot_write() -> None:
    with pytest.raises(RuntimeError, match="Connection cannot write: it is not connected yet"):
        Connection(Endless).write(b"x")


def test_a_write_can_be_awaited_whatever_it_returned(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = serve(Endless)
        assert connection.write(b"x") == ()
        await connection.write(b"y")
        transport.clogged = True
        connection.write(b"z" * 70_000)
        waiter = connection.write(b"more")
        assert waiter
        assert isinstance(waiter, asyncio.Future)
        assert not waiter.done()
        transport.drain()
        assert await waiter is None
        assert not connection.write(b"x")

    run(main())


def test_the_write_that_clogs_says_so(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = serve(Endless, high_limit=10)
        transport.clogged = True
        waiter = connection.write(b"z" * 11)
        assert isinstance(waiter, asyncio.Future)
        transport.drain()
        await waiter

    run(main())


def test_a_write_inside_data_received_while_the_peer_does_not_read(
    run: Callable[..., Any],
) -> None:
    """Data may arrive after the pause: TLS had decrypted it already."""
    returned: list[Any] = []

    class Kept(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            returned.append(self.write(data))

    async def main() -> None:
        connection, transport = serve(Kept, high_limit=10)
        transport.clogged = True
        connection.data_received(b"x" * 11)
        assert connection.writing_paused
        connection.data_received(b"y")
        assert isinstance(returned[1], asyncio.Future)
        transport.drain()
        await returned[1]
        assert transport.sent == b"x" * 11 + b"y"

    run(main())


# -- back-pressure


def test_reading_pauses_while_the_peer_does_not_read() -> None:
    connection, transport = serve(Endless, high_limit=1000, low_limit=100)
    assert (transport.high, transport.low) == (1000, 100)
    transport.clogged = True
    connection.data_received(b"x" * 1000)
    assert transport.reading
    connection.data_received(b"x")
    assert connection.writing_paused
    assert not transport.reading
    transport.drain(900)
    assert not transport.reading
    transport.drain(1)
    assert transport.reading
    assert not connection.writing_paused


def test_a_pipeline_stops_while_the_peer_does_not_read() -> None:
    """The memory for answers is bounded, however many requests one chunk brings."""

    class Long(Line):
        def data_received(self, data: bytes) -> bytes | None:
            _, _, tail = data.partition(b"\n")
            self.write(b"x" * 1000)
            self.finished()
            return tail

    connection, transport = serve(Long)
    transport.clogged = True
    connection.data_received(b"\n" * 10_000)
    assert connection.requests_processed < 200
    assert transport.get_write_buffer_size() < 200_000
    assert not transport.reading
    rounds = 0
    while connection.requests_processed < 10_000:
        rounds += 1
        transport.drain(transport.get_write_buffer_size())
        assert transport.get_write_buffer_size() < 200_000
        assert rounds < 200
    transport.drain()
    assert transport.reading
    assert len(transport.sent) == 10_000 * 1000


def test_a_request_that_ends_while_the_peer_does_not_read(run: Callable[..., Any]) -> None:
    async def main() -> None:
        Consumer = slow()
        connection, transport = serve(Consumer)
        connection.data_received(b"one\ntwo\n")
        transport.clogged = True
        Consumer.made[0].write(b"x" * 70_000)
        Consumer.made[0].answer()
        assert len(Consumer.made) == 1  # the next one waits until the peer reads
        assert not transport.reading
        transport.drain()
        await asyncio.sleep(0)
        assert Consumer.made[1].line == b"two"

    run(main())


def test_what_waits_for_the_peer_fails_with_the_connection(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = serve(Endless)
        transport.clogged = True
        connection.write(b"x" * 70_000)
        waiters = [connection.write(b"y") for _ in range(3)]
        waiters[1].cancel()  # type: ignore[union-attr]
        transport.lost(ConnectionResetError())
        for waiter in (waiters[0], waiters[2]):
            with pytest.raises(ConnectionClosed, match="the connection was lost"):
                await waiter
        assert not connection.writing_paused

    run(main())


def test_what_nobody_awaits_leaves_no_noise(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = serve(Endless)
        transport.clogged = True
        for _ in range(100):
            connection.write(b"x" * 70_000)
        kept = connection.write(b"x")
        assert len(connection._write_waiters or ()) == 1  # the others are forgotten
        del kept
        transport.lost()

    run(main())


# -- the end


def test_close_returns_an_awaitable(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = serve(Endless)
        closed = connection.close()
        assert connection.close() is closed
        assert transport.closing
        assert connection.closed
        assert not transport.aborted
        assert not closed.fired()
        asyncio.get_running_loop().call_soon(transport.lost, ConnectionResetError())
        assert await closed is connection
        assert await connection.close() is connection

    run(main())


def test_what_is_written_before_a_close_goes_out() -> None:
    class Last(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(b"good")
            self.write(b"bye")
            self.connection.close()  # type: ignore[union-attr]
            self.write(b"dropped")

    connection, transport = serve(Last)
    connection.data_received(b"x")
    assert transport.written == [b"goodbye"]
    assert transport.closing
    connection.data_received(b"x")
    assert transport.written == [b"goodbye"]


def test_what_is_written_before_an_abort_may_be_dropped() -> None:
    class Last(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(b"good")
            self.connection.abort()  # type: ignore[union-attr]
            self.write(b"bye")

    connection, transport = serve(Last)
    connection.data_received(b"x")
    assert transport.aborted
    assert transport.written == []


def end_by_close(connection: Connection, transport: FakeTransport) -> None:
    connection.close()


def end_by_abort(connection: Connection, transport: FakeTransport) -> None:
    connection.abort()


def end_by_peer(connection: Connection, transport: FakeTransport) -> None:
    transport.lost()


every_end = pytest.mark.parametrize("end", [end_by_close, end_by_abort, end_by_peer])


@every_end
def test_a_write_after_the_end_is_dropped_and_awaiting_it_raises(
    end: Callable[..., None], run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        connection, transport = serve(Endless)
        consumer = connection.current_consumer()
        end(connection, transport)
        for target in (connection, consumer):
            returned = target.write(b"x")
            assert not returned
            with pytest.raises(ConnectionClosed, match="nothing can be written"):
                await returned
        transport.lost()
        with pytest.raises(ConnectionClosed):
            await consumer.write(b"x")
        assert transport.written == []
        assert not errors(caplog)

    run(main())


@every_end
def test_nothing_is_read_after_the_end(end: Callable[..., None]) -> None:
    seen: list[bytes] = []

    class Reading(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            seen.append(data)

    connection, transport = serve(Reading)
    connection.data_received(b"1")
    end(connection, transport)
    connection.data_received(b"2")
    assert seen == [b"1"]


@every_end
def test_the_rest_of_a_pipeline_is_dropped_with_the_end(end: Callable[..., None]) -> None:
    class Last(Line):
        def data_received(self, data: bytes) -> bytes | None:
            tail = super().data_received(data)
            assert self.connection is not None
            end(self.connection, self.connection._transport)
            return tail

    connection, _ = serve(Last)
    connection.data_received(b"1\n2\n3\n")
    assert connection.requests_processed == 1


@every_end
def test_a_held_tail_is_dropped_with_the_end(end: Callable[..., None]) -> None:
    Consumer = slow()
    connection, transport = serve(Consumer)
    connection.data_received(b"1\n2\n")
    end(connection, transport)
    Consumer.made[0].answer()
    assert len(Consumer.made) == 1
    assert not transport.written


def test_connection_lost_reaches_consumer_and_events() -> None:
    seen: list[Any] = []

    class Last(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            pass

        def connection_lost(self, exc: BaseException | None) -> None:
            seen.append(("consumer", exc))
            super().connection_lost(exc)

    connection, transport = serve(Last)
    connection.bind_event("connection_lost", lambda arg, exc: seen.append((arg, exc)))
    connection.data_received(b"x")
    consumer = connection.current_consumer()
    consumer.bind_event("post_request", lambda arg, exc: seen.append(("post", exc)))
    error = ConnectionResetError()
    transport.lost(error)
    assert seen == [("consumer", error), ("post", error), (connection, error)]
    transport.lost(error)
    assert len(seen) == 3
    assert consumer.fired_event("post_request")


def test_post_request_fires_although_connection_lost_of_the_consumer_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Endless):
        def connection_lost(self, exc: BaseException | None) -> None:
            raise ZeroDivisionError

    connection, transport = serve(Broken)
    connection.data_received(b"x")
    consumer = connection.current_consumer()
    transport.lost()
    assert consumer.fired_event("post_request")
    assert connection.fired_event("connection_lost")
    (entry,) = errors(caplog)
    assert entry.exc_info is not None


def test_post_request_fires_although_connection_lost_of_the_consumer_forgets_it() -> None:
    class Forgetful(Endless):
        def connection_lost(self, exc: BaseException | None) -> None:
            pass

    connection, transport = serve(Forgetful)
    connection.data_received(b"x")
    consumer = connection.current_consumer()
    transport.lost()
    assert consumer.fired_event("post_request")


# -- half-close


def test_a_half_close_closes_an_idle_connection() -> None:
    connection, transport = serve(Line)
    connection.data_received(b"x\n")
    assert not connection.eof_received()
    assert transport.closing


def test_a_half_close_in_a_request_is_answered_first() -> None:
    Consumer = slow()
    connection, transport = serve(Consumer)
    connection.data_received(b"one\ntwo\n")
    assert connection.eof_received()
    assert not transport.closing
    Consumer.made[0].answer()
    assert not transport.closing
    Consumer.made[1].answer()
    assert transport.sent == b"ONE\nTWO\n"
    assert transport.closing


def test_a_half_close_that_the_consumer_answers() -> None:
    class Count(ProtocolConsumer):
        """Answers with the number of bytes once they have all come."""

        size = 0

        def data_received(self, data: bytes) -> None:
            self.size += len(data)

        def eof_received(self) -> None:
            self.write(b"%d" % self.size)
            self.finished()

    connection, transport = serve(Count)
    connection.data_received(b"abc")
    assert not connection.eof_received()
    assert transport.written == [b"3"]
    assert transport.closing


class Counting(ProtocolConsumer):
    """A line that begins with a bang is answered when it is told to; keeps what it hears."""

    heard: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.line = b""

    def data_received(self, data: bytes) -> bytes | None:
        line, end, rest = data.partition(b"\n")
        self.line += line
        self.heard.append(f"{data!r}")
        if end and self.line.startswith(b"!"):
            self.connection.hold()
        elif end:
            self.finished()
        return rest or None

    def answer(self) -> None:
        self.finished()
        self.connection.release()

    def eof_received(self) -> None:
        self.heard.append("end")
        if not self.line.startswith(b"!"):
            self.connection.close()


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (b"", ["b'!\\n'", "end"]),
        # It is told to whom nothing else will tell that there is no more to come.
        (b"two", ["b'!\\n'", "b'two'", "end"]),
        (b"!\ntwo\nthr", ["b'!\\n'", "b'!\\ntwo\\nthr'", "b'two\\nthr'", "b'thr'", "end"]),
    ],
)
def test_a_half_close_behind_what_is_held(held: bytes, told: list[str]) -> None:
    heard: list[str] = []
    made: list[Counting] = []

    def factory() -> Counting:
        made.append(Counting())
        made[-1].heard = heard
        return made[-1]

    connection, transport = serve(factory)
    connection.data_received(b"!\n")
    if held:
        connection.data_received(held)
    assert connection.eof_received()
    for index in range(2 if held.startswith(b"!") else 1):
        made[index].answer()
    assert heard == told
    assert transport.closing


def test_a_half_close_in_a_long_answer(run: Callable[..., Any]) -> None:
    """Reading does not start again, for a loop would tell of the same end once more."""

    async def main() -> None:
        Consumer = slow()
        connection, transport = serve(Consumer)
        connection.data_received(b"one\n")
        assert connection.eof_received()
        transport.clogged = True
        waiter = Consumer.made[0].write(b"x" * 70_000)
        assert not transport.reading
        transport.drain()
        await waiter
        await asyncio.sleep(0)
        assert not transport.reading
        assert not transport.closing  # whoever has waited may write more
        Consumer.made[0].answer()
        assert transport.sent.endswith(b"xONE\n")
        assert transport.closing

    run(main())


def test_a_pipeline_that_ends_the_connection_when_the_peer_reads_again(
    run: Callable[..., Any],
) -> None:
    """asyncio's transports cannot bear to be closed inside ``resume_writing``."""

    class Ending(Line):
        def data_received(self, data: bytes) -> bytes | None:
            if data.startswith(b"end"):
                assert self.connection is not None
                self.connection.close()
                return None
            _, _, tail = data.partition(b"\n")
            self.write(b"x" * 2000)
            self.finished()
            return tail

    class Strict(FakeTransport):
        resuming = False

        def drain(self, size: int | None = None) -> None:
            self.resuming = True
            super().drain(size)
            self.resuming = False

        def close(self) -> None:
            assert not self.resuming
            super().close()

    async def main() -> None:
        connection = Connection(Ending, producer=Server())
        transport = Strict(connection)
        connection.connection_made(transport)
        transport.clogged = True
        connection.data_received(b"\n" * 64 + b"end\n")
        assert connection.writing_paused
        assert connection.requests_processed == 64
        transport.drain()
        assert not transport.closing
        await asyncio.sleep(0)
        assert transport.closing

    run(main())


def test_a_half_close_under_tls_closes() -> None:
    """There is no half-close in TLS: the transport closes in any case."""
    Consumer = slow()
    connection, transport = serve(Consumer, tls=True)
    connection.data_received(b"one\n")
    assert not connection.eof_received()
    assert transport.closing


def test_a_consumer_that_raises_in_eof_received(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            pass

        def eof_received(self) -> None:
            raise ZeroDivisionError

    connection, transport = serve(Broken)
    connection.data_received(b"x")
    assert not connection.eof_received()
    assert transport.closing
    assert len(errors(caplog)) == 1


def test_a_consumer_without_a_request_is_not_told_of_the_end_of_the_bytes() -> None:
    class Broken(Endless):
        def eof_received(self) -> None:
            raise ZeroDivisionError

    connection, _ = serve(Broken)
    assert not connection.eof_received()


# -- errors


class Failing(Line):
    error: BaseException

    def data_received(self, data: bytes) -> bytes | None:
        tail = super().data_received(data)
        if self._state != 1:  # it has finished
            raise self.error
        return tail


def test_a_consumer_that_raises_costs_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    error = ZeroDivisionError("in user code")

    class Broken(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(b"half an answer")
            raise error

    connection, transport = serve(Broken)
    other, its_transport = serve(Line)
    consumer = connection.current_consumer()
    connection.data_received(b"x")
    assert transport.closing
    assert not transport.aborted
    assert transport.sent == b"half an answer"
    (entry,) = errors(caplog)
    assert entry.levelno == logging.ERROR
    assert entry.getMessage() == "connection from 192.0.2.1:4321 closed: error in Broken"
    assert entry.exc_info is not None
    assert entry.exc_info[1] is error
    assert consumer.fired_event("post_request")
    outcomes: list[Any] = []
    consumer.bind_event("post_request", lambda arg, exc: outcomes.append(exc))
    assert outcomes == [error]
    other.data_received(b"x\n")
    assert its_transport.written == [b"X\n"]
    transport.lost()
    assert len(errors(caplog)) == 1


def test_a_consumer_that_raises_after_finishing_has_finished(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ZeroDivisionError()
    outcomes: list[Any] = []

    class Broken(ProtocolConsumer):
        def connection_made(self, connection: Connection) -> None:
            self.bind_event("post_request", lambda arg, exc: outcomes.append((arg, exc)))

        def data_received(self, data: bytes) -> None:
            self.finished("result")
            raise error

    connection, transport = serve(Broken)
    connection.data_received(b"x")
    assert outcomes == [("result", None)]
    assert connection.requests_processed == 1
    assert transport.closing
    assert len(errors(caplog)) == 1


def test_the_rest_of_a_pipeline_is_dropped_with_an_error() -> None:
    class Broken(Line):
        def data_received(self, data: bytes) -> bytes | None:
            if data.startswith(b"bad"):
                raise ZeroDivisionError
            return super().data_received(data)

    connection, transport = serve(Broken)
    connection.data_received(b"good\nbad\ngood\n")
    assert transport.sent == b"GOOD\n"
    assert transport.closing


def test_a_protocol_error_is_the_peers_fault(caplog: pytest.LogCaptureFixture) -> None:
    class Strict(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(b"400 bad\n")
            raise ProtocolError("a request starts with a letter")

    connection, transport = serve(Strict)
    connection.data_received(b"1")
    assert transport.closing
    assert transport.sent == b"400 bad\n"
    (entry,) = caplog.records
    assert entry.levelno == logging.INFO
    assert (
        entry.getMessage()
        == "connection from 192.0.2.1:4321 closed: a request starts with a letter"
    )
    assert entry.exc_info is None


def test_an_unimplemented_consumer_says_what_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Empty(ProtocolConsumer):
        pass

    connection, transport = serve(Empty)
    connection.data_received(b"x")
    assert transport.closing
    assert "Empty must implement data_received(data)" in caplog.text


@pytest.mark.parametrize("by", ["pre_request", "data_received"])
def test_abort_request(by: str, caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Any] = []
    seen: list[bytes] = []

    class Refusing(Line):
        def connection_made(self, connection: Connection) -> None:
            self.bind_event("post_request", lambda arg, exc: outcomes.append(exc))
            if by == "pre_request":
                self.bind_event("pre_request", lambda arg, exc: self.abort_request())

        def data_received(self, data: bytes) -> bytes | None:
            seen.append(data)
            self.abort_request()

    connection, transport = serve(Refusing)
    consumer = connection.current_consumer()
    connection.data_received(b"one\ntwo\n")
    assert seen == ([] if by == "pre_request" else [b"one\ntwo\n"])
    assert transport.closing
    assert [type(outcome) for outcome in outcomes] == [AbortRequest]
    assert "Refusing aborted the request" in str(outcomes[0])
    assert consumer.fired_event("pre_request")
    assert not errors(caplog)


def test_a_fatal_signal_passes_through() -> None:
    class Ending(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            raise KeyboardInterrupt

    connection, _ = serve(Ending)
    with pytest.raises(KeyboardInterrupt):
        connection.data_received(b"x")


# -- clients


class Asking(Line):
    def start_request(self) -> None:
        self.write(self.request)


def test_a_client_asks_and_gets_the_answer(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = request(Asking)
        consumer = connection.current_consumer()
        consumer.start(b"question\n")
        assert connection.busy
        asyncio.get_running_loop().call_soon(connection.data_received, b"answer\n")
        assert await consumer.on_finished == b"answer"
        assert not connection.busy
        second = connection.current_consumer()
        assert second is not consumer
        second.start(b"again\n")
        connection.data_received(b"more\n")
        assert await second.on_finished == b"more"
        assert connection.requests_processed == 2
        assert not transport.closing

    run(main())


def test_a_client_that_loses_the_connection_before_the_answer(run: Callable[..., Any]) -> None:
    async def main() -> None:
        for error in (None, ConnectionResetError("gone")):
            connection, transport = request(Asking)
            consumer = connection.current_consumer()
            consumer.start(b"question\n")
            connection.data_received(b"ans")
            asyncio.get_running_loop().call_soon(transport.lost, error)
            with pytest.raises(ConnectionClosed) as raised:
                await consumer.on_finished
            assert raised.value.__cause__ is error
            assert str(raised.value) == (
                "the server 192.0.2.1:4321 closed the connection before the response was complete"
            )
        connection, transport = request(Asking)
        consumer = connection.current_consumer()
        consumer.start(b"question\n")
        other = OSError("no route")
        transport.lost(other)
        with pytest.raises(OSError, match="no route") as other_raised:
            await consumer.on_finished
        assert other_raised.value is other

    run(main())


def test_a_client_that_starts_on_a_lost_connection_is_told(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = request(Asking)
        consumer = connection.current_consumer()
        transport.lost()
        late = connection.current_consumer()
        late.start(b"question\n")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(late.on_finished, 1)
        assert consumer is not late

    run(main(), timeout=5)


def test_a_client_that_starts_on_a_closing_connection_is_told(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = request(Asking)
        connection.close()
        late = connection.current_consumer()
        late.start(b"question\n")
        asyncio.get_running_loop().call_soon(transport.lost)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(late.on_finished, 1)

    run(main(), timeout=5)


def test_a_client_whose_start_request_raises(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Asking):
        def start_request(self) -> None:
            raise LookupError("no such question")

    async def main() -> None:
        connection, transport = request(Broken)
        consumer = connection.current_consumer()
        consumer.start(b"question\n")
        with pytest.raises(LookupError, match="no such question"):
            await consumer.on_finished
        assert transport.aborted
        assert not errors(caplog)  # whoever awaits is told

    run(main())


def test_a_client_that_fails_to_understand_the_answer(run: Callable[..., Any]) -> None:
    class Broken(Asking):
        def data_received(self, data: bytes) -> bytes | None:
            raise ProtocolError("no such answer")

    async def main() -> None:
        connection, transport = request(Broken)
        consumer = connection.current_consumer()
        consumer.start(b"question\n")
        connection.data_received(b"?")
        with pytest.raises(ProtocolError, match="no such answer"):
            await consumer.on_finished
        assert transport.aborted

    run(main())


def test_a_client_that_aborts_its_request(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, transport = request(Asking)
        consumer = connection.current_consumer()
        consumer.bind_event("pre_request", lambda arg, exc: arg.abort_request())
        consumer.start(b"question\n")
        with pytest.raises(AbortRequest):
            await consumer.on_finished
        assert transport.written == []
        assert transport.aborted

    run(main())


def test_what_a_client_did_not_ask_for_ends_the_connection() -> None:
    """It would be taken for the answer to the next request."""
    connection, transport = request(Asking)
    connection.data_received(b"surprise\n")
    assert transport.aborted
    connection, transport = request(Asking)
    connection.current_consumer().start(b"question\n")
    connection.data_received(b"answer\nsurprise\n")
    assert transport.aborted
    assert connection.requests_processed == 1


def test_a_client_closes_when_the_server_has_ended_its_side() -> None:
    connection, transport = request(Asking)
    connection.current_consumer().start(b"question\n")
    assert not connection.eof_received()
    assert transport.closing


# -- start


def test_a_servers_start_fires_pre_request_only() -> None:
    seen: list[str] = []
    connection, _ = serve(Line)
    consumer = connection.current_consumer()
    listen(consumer, REQUEST_EVENTS, seen)
    consumer.start("request")
    assert seen == ["pre_request"]
    assert consumer.request == "request"
    connection.data_received(b"x\n")
    assert seen == list(REQUEST_EVENTS)


@pytest.mark.parametrize("make", [serve, request])
def test_a_request_is_started_once(make: Callable[..., Any]) -> None:
    connection, _ = make(Asking)
    consumer = connection.current_consumer()
    consumer.start(b"x")
    with pytest.raises(RuntimeError, match="Asking has already been started"):
        consumer.start(b"x")


def test_a_consumer_without_connection_cannot_start() -> None:
    consumer = Line()
    with pytest.raises(RuntimeError, match="Line cannot start: it has no connection"):
        consumer.start()
    consumer.connection = Connection(Line)  # without a transport
    with pytest.raises(RuntimeError, match="Line cannot start: it has no connection"):
        consumer.start()
    assert not consumer.fired_event("pre_request")


# -- upgrade


class Shouting(ProtocolConsumer):
    def data_received(self, data: bytes) -> None:
        self.write(data.upper() + b"!")


class Upgrading(Line):
    def data_received(self, data: bytes) -> bytes | None:
        tail = super().data_received(data)
        assert self.connection is not None
        self.connection.upgrade(Shouting)
        return tail


def test_an_upgrade_takes_the_bytes_that_follow() -> None:
    connection, transport = serve(Upgrading)
    connection.data_received(b"upgrade\nand more")
    assert transport.sent == b"UPGRADE\nAND MORE!"
    assert isinstance(connection.current_consumer(), Shouting)
    connection.data_received(b"x")
    assert transport.sent == b"UPGRADE\nAND MORE!X!"
    assert connection.requests_processed == 1


def test_an_upgrade_builds_the_next_consumer_with_post_request() -> None:
    made: list[Connection] = []

    class Greeting(Shouting):
        def connection_made(self, connection: Connection) -> None:
            made.append(connection)
            self.write(b"welcome ")

    class Switching(Line):
        def data_received(self, data: bytes) -> bytes | None:
            assert self.connection is not None
            self.connection.upgrade(Greeting)
            return super().data_received(data)

    connection, transport = serve(Switching)
    connection.data_received(b"go\n")
    assert made == [connection]
    assert transport.written == [b"GO\nwelcome "]
    assert isinstance(connection.current_consumer(), Greeting)


def test_an_upgrade_before_the_request_is_at_once() -> None:
    connection, transport = serve(Line)
    connection.upgrade(Shouting)
    assert isinstance(connection.current_consumer(), Shouting)
    connection.data_received(b"x")
    assert transport.sent == b"X!"


def test_an_upgrade_of_a_slow_request_waits_for_its_answer() -> None:
    Consumer = slow()
    connection, transport = serve(Consumer)
    connection.data_received(b"one\nrest")
    connection.upgrade(Shouting)
    assert connection.current_consumer() is Consumer.made[0]
    Consumer.made[0].answer()
    assert transport.sent == b"ONE\nREST!"


def test_a_client_upgrades_too(run: Callable[..., Any]) -> None:
    class Tunnel(ProtocolConsumer):
        got = b""

        def data_received(self, data: bytes) -> None:
            self.got += data

    class Connect(Asking):
        def data_received(self, data: bytes) -> bytes | None:
            assert self.connection is not None
            self.connection.upgrade(Tunnel)
            line, _, tail = data.partition(b"\n")
            self.finished(line)
            return tail

    async def main() -> None:
        connection, transport = request(Connect)
        consumer = connection.current_consumer()
        consumer.start(b"connect\n")
        connection.data_received(b"done\nfirst")
        assert await consumer.on_finished == b"done"
        tunnel = connection.current_consumer()
        assert isinstance(tunnel, Tunnel)
        assert tunnel.got == b"first"
        assert not transport.closing

    run(main())


def test_a_request_that_failed_is_not_upgraded() -> None:
    class Broken(Line):
        def data_received(self, data: bytes) -> bytes | None:
            assert self.connection is not None
            self.connection.upgrade(Shouting)
            raise ZeroDivisionError

    connection, transport = serve(Broken)
    connection.data_received(b"x")
    assert connection._consumer is None
    assert transport.closing


# -- finished


def test_finished_twice_is_finished_once() -> None:
    outcomes: list[Any] = []

    class Twice(ProtocolConsumer):
        def connection_made(self, connection: Connection) -> None:
            self.bind_event("post_request", lambda arg, exc: outcomes.append((arg, exc)))

        def data_received(self, data: bytes) -> None:
            self.finished("first")
            self.finished("second")

    connection, _ = serve(Twice)
    consumer = connection.current_consumer()
    connection.data_received(b"x")
    consumer.finished("third")
    assert outcomes == [("first", None)]
    assert connection.requests_processed == 1


def test_a_consumer_that_has_finished_does_not_end_the_next_request() -> None:
    Consumer = slow()
    connection, transport = serve(Consumer)
    connection.data_received(b"one\n")
    Consumer.made[0].answer()
    connection.data_received(b"two\n")
    Consumer.made[0].finished("late")
    assert connection.current_consumer() is Consumer.made[1]
    assert connection.busy
    Consumer.made[1].answer()
    assert transport.sent == b"ONE\nTWO\n"


def test_the_result_of_a_request(run: Callable[..., Any]) -> None:
    async def main() -> None:
        connection, _ = serve(Line)
        consumer = connection.current_consumer()
        assert not consumer.on_finished.fired()
        connection.data_received(b"line\n")
        assert await consumer.on_finished == b"line"

        consumer = connection.current_consumer()
        connection.data_received(b"more\n")
        assert await consumer.on_finished == b"more"  # asked for after the fact

        class Plain(ProtocolConsumer):
            def data_received(self, data: bytes) -> None:
                self.finished()

        connection, _ = serve(Plain)
        consumer = connection.current_consumer()
        connection.data_received(b"x")
        assert await consumer.on_finished is consumer

    run(main())


def test_a_consumer_that_finishes_before_its_request_started(run: Callable[..., Any]) -> None:
    """Nothing to account for, but whoever awaits it is woken."""

    async def main() -> None:
        connection, _ = request(Asking)
        consumer = connection.current_consumer()

        async def wait() -> Any:
            return await consumer.on_finished

        waiting = asyncio.get_running_loop().create_task(wait())
        await asyncio.sleep(0)
        consumer.finished("early")
        assert await waiting == "early"
        assert connection.requests_processed == 0

    run(main())


def test_the_next_request_gets_the_bytes_when_a_consumer_finished_before_it_started() -> None:
    connection, transport = serve(Line)
    connection.current_consumer().finished()
    connection.data_received(b"one\n")
    assert transport.sent == b"ONE\n"
    assert connection.requests_processed == 1


# -- tasks


def test_a_task_of_a_request(run: Callable[..., Any]) -> None:
    class Answering(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.create_task(self.answer(data))

        async def answer(self, data: bytes) -> None:
            await asyncio.sleep(0)
            await self.write(data)
            self.finished()

    async def main() -> None:
        connection, transport = serve(Answering)
        assert not connection.busy
        connection.data_received(b"x")
        assert connection.busy
        (task,) = connection._tasks or ()
        await task
        await asyncio.sleep(0)
        assert transport.sent == b"x"
        assert not connection.busy
        assert not connection._tasks

    run(main())


def test_a_connection_is_busy_while_a_task_runs(run: Callable[..., Any]) -> None:
    class Talking(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(b"answered, as far as one can see")
            self.create_task(self.work())

        async def work(self) -> str:
            await gate.wait()
            return "done"

    gate = asyncio.Event()

    async def main() -> None:
        connection, _ = serve(Talking)
        connection.data_received(b"x")
        (task,) = connection._tasks or ()
        await asyncio.sleep(0)
        assert connection.busy
        assert connection.eof_received()  # hence a half-close waits
        gate.set()
        assert await task == "done"
        await asyncio.sleep(0)
        assert connection.closed

    run(main())


@every_end
def test_a_task_is_cancelled_with_the_connection(
    end: Callable[..., None], run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Waiting(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.task = self.create_task(asyncio.Event().wait())

    async def main() -> None:
        connection, transport = serve(Waiting)
        connection.data_received(b"x")
        consumer: Any = connection.current_consumer()
        end(connection, transport)
        transport.lost()
        with pytest.raises(asyncio.CancelledError):
            await consumer.task
        await asyncio.sleep(0)
        assert not errors(caplog)

    run(main())


def test_an_error_in_a_task_costs_the_connection(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    error = ZeroDivisionError("in a task")

    class Broken(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.create_task(self.fail())

        async def fail(self) -> None:
            raise error

    async def main() -> None:
        connection, transport = serve(Broken)
        connection.data_received(b"x")
        consumer = connection.current_consumer()
        with pytest.raises(ZeroDivisionError):
            await consumer.on_finished
        assert transport.closing
        (entry,) = errors(caplog)
        assert entry.exc_info is not None
        assert entry.exc_info[1] is error

    run(main())


def test_a_task_that_writes_when_the_peer_has_gone_is_not_an_error(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that goes away is no mistake in the code that serves it."""

    class Streaming(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.task = self.create_task(self.stream())

        async def stream(self) -> None:
            while True:
                await self.write(b"x" * 1000)
                await asyncio.sleep(0)

    async def main() -> None:
        connection, transport = serve(Streaming)
        connection.data_received(b"x")
        consumer: Any = connection.current_consumer()
        await asyncio.sleep(0)
        connection.close()  # the task learns of it before connection_lost cancels it
        with pytest.raises(ConnectionClosed):
            await consumer.task
        transport.lost()
        assert not errors(caplog)

    run(main())


def test_a_task_that_is_cancelled_by_its_own_code(run: Callable[..., Any]) -> None:
    Consumer = slow()

    async def main() -> None:
        connection, transport = serve(Consumer)
        connection.data_received(b"one\ntwo\n")
        task = Consumer.made[0].create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert not transport.closing
        Consumer.made[0].answer()
        assert Consumer.made[1].line == b"two"

    run(main())


def test_a_consumer_without_connection_runs_no_task(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="Line cannot run a task: it has no connection"):
            Line().create_task(asyncio.sleep(0))

    run(main())


# -- going away in good order


def test_last_request_answers_once_more() -> None:
    connection, transport = serve(Line)
    connection.last_request()
    assert not transport.closing
    connection.data_received(b"one\ntwo\n")
    assert transport.sent == b"ONE\nTWO\n"  # two had arrived when one was answered
    assert transport.closing


def test_finish_closes_an_idle_connection_and_no_other() -> None:
    Consumer = slow()
    connection, transport = serve(Consumer)
    connection.finish()
    assert transport.closing

    Consumer = slow()
    connection, transport = serve(Consumer)
    connection.data_received(b"one\n")
    connection.finish()
    assert not transport.closing
    Consumer.made[0].answer()
    assert transport.sent == b"ONE\n"
    assert transport.closing


def test_finish_inside_data_received_waits_for_the_answer() -> None:
    class Last(Line):
        def data_received(self, data: bytes) -> bytes | None:
            assert self.connection is not None
            self.connection.finish()
            return super().data_received(data)

    connection, transport = serve(Last)
    connection.data_received(b"one\n")
    assert transport.sent == b"ONE\n"
    assert transport.closing


# -- what is known of it


def test_info_is_plain_data() -> None:
    connection, _ = serve(Line, session=7)
    connection.data_received(b"x\ny")
    assert connection.info() == {
        "session": 7,
        "address": ("192.0.2.1", 4321),
        "closed": False,
        "requests_processed": 1,
        "busy": True,
    }


def test_a_consumer_knows_its_surroundings() -> None:
    consumer = Line()
    assert consumer.transport is consumer.producer is consumer.address is None
    assert consumer.logger.name == "pulsar.protocols"
    assert not consumer.write(b"dropped")
    connection, transport = serve(Line)
    consumer = connection.current_consumer()  # type: ignore[assignment]
    assert consumer.transport is transport
    assert consumer.producer is connection.producer
    assert consumer.address == ("192.0.2.1", 4321)
    assert consumer.logger is connection.logger


def test_a_consumer_may_have_events_of_its_own() -> None:
    seen: list[Any] = []

    class Custom(ProtocolConsumer):
        def __init__(self) -> None:
            super().__init__(one_time_events=["authenticated"], many_times_events=["frame"])
            self.bind_event("frame", lambda arg, exc: seen.append(arg))

        def data_received(self, data: bytes) -> None:
            self.fire_event("frame", data)

    connection, _ = serve(Custom)
    connection.data_received(b"x")
    assert seen == [b"x"]
    assert not connection.current_consumer().fired_event("authenticated")


def test_partial_of_a_connection_is_a_protocol_factory() -> None:
    factory = partial(Connection, Line, producer=Server())
    connection = factory()
    transport = connect(connection)
    connection.data_received(b"x\n")
    assert transport.sent == b"X\n"
