"""Deadlines: the sweep, the marks of a connection, and what the kernel knows of silence."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.protocols import Connection, Producer, Protocol, ProtocolConsumer
from pulsar.protocols.timeout import Sweep, silence
from tests.support.transport import FakeTransport, connect

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeLoop:
    """A clock that the test turns, and the timers set on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        timer = (self.now + delay, callback)
        self.timers.append(timer)

        class Handle:
            def cancel(handle) -> None:
                self.timers.remove(timer)

        return Handle()

    def advance(self, seconds: float) -> None:
        """Turn the clock, calling what is due at its time."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end + 1e-9]:
            when, callback = timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = max(self.now, when)
            callback()
        self.now = end


class Sweeps:
    """A sweep on a fake loop, and the times at which it looked."""

    def __init__(self, *deadlines: float | None) -> None:
        self.loop = FakeLoop()
        self.times: list[float] = []
        self.more = True
        loop: Any = self.loop
        self.sweep = Sweep(loop, self.check, *deadlines)

    def check(self, now: float) -> bool:
        self.times.append(round(now - 100.0, 6))
        return self.more


# -- the sweep


def test_a_sweep_sleeps_until_it_is_armed() -> None:
    sweeps = Sweeps(1.0)
    sweeps.loop.advance(10)
    assert sweeps.times == []
    sweeps.sweep.arm()
    sweeps.sweep.arm()
    sweeps.loop.advance(0.3)
    assert sweeps.times == [0.0 + 10.1, 10.2, 10.3]


def test_a_sweep_ends_when_there_is_nothing_to_look_at() -> None:
    sweeps = Sweeps(1.0)
    sweeps.sweep.arm()
    sweeps.more = False
    sweeps.loop.advance(5)
    assert sweeps.times == [0.1]
    assert sweeps.loop.timers == []
    sweeps.sweep.arm()
    sweeps.loop.advance(5)
    assert sweeps.times == [0.1, 5.1]


@pytest.mark.parametrize("armed", [True, False])
def test_a_sweep_is_cancelled_for_good(armed: bool) -> None:
    sweeps = Sweeps(1.0)
    if armed:
        sweeps.sweep.arm()
    sweeps.sweep.cancel()
    sweeps.sweep.cancel()
    assert sweeps.loop.timers == []
    sweeps.sweep.arm()
    sweeps.loop.advance(5)
    assert sweeps.times == []


@pytest.mark.parametrize(
    ("deadlines", "interval"),
    [
        ((1.0,), 0.1),
        ((75.0, 60.0), 1.0),  # no longer than a second
        ((75.0, 2.0), 0.2),  # the shortest counts
        ((None, 5.0), 0.5),
        ((0, 5.0), 0.5),
        ((0.001,), 0.02),  # no shorter than it makes sense
        ((None, None), None),
        ((0,), None),
        ((), None),
    ],
)
def test_how_often_it_looks(deadlines: tuple[float | None, ...], interval: float | None) -> None:
    sweeps = Sweeps(*deadlines)
    sweeps.sweep.arm()
    sweeps.loop.advance(2)
    assert sweeps.times[:1] == ([] if interval is None else [interval])


# -- what silence means for a connection


class Server(Producer):
    server_side = True


class Line(ProtocolConsumer):
    """One line is one request; what starts with "slow" is answered later."""

    def data_received(self, data: bytes) -> bytes | None:
        line, end, tail = data.partition(b"\n")
        if end and not line.startswith(b"slow"):
            self.write(line)
            self.finished()
        return tail


class Endless(ProtocolConsumer):
    def data_received(self, data: bytes) -> None:
        if data != b"?":
            self.write(data)


class Swept:
    """A connection that a sweep looks at every tenth of a second."""

    def __init__(
        self,
        factory: Any = Line,
        timeout: float | None = 2.0,
        stall_timeout: float | None = 5.0,
    ) -> None:
        self.connection = Connection(factory, timeout, producer=Server())
        self.transport = connect(self.connection)
        self.now = 100.0
        self.stall_timeout = stall_timeout

    def silent(self, seconds: float) -> Swept:
        """So many seconds go by, in which nothing happens but the sweep."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += 0.1
            self.connection.check_deadlines(self.now, self.stall_timeout)
        return self

    def send(self, data: bytes) -> Swept:
        self.connection.data_received(data)
        return self

    @property
    def state(self) -> str:
        if self.transport.aborted:
            return "aborted"
        return "closed" if self.transport.closing else "open"


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pulsar")


def test_one_who_says_nothing_at_all_is_closed() -> None:
    swept = Swept()
    assert swept.silent(2.0).state == "open"
    assert swept.silent(0.2).state == "closed"


def test_silence_between_requests() -> None:
    swept = Swept()
    for _ in range(5):
        assert swept.send(b"x\n").silent(1.9).state == "open"
    assert swept.silent(0.3).state == "closed"


def test_silence_between_the_messages_of_a_consumer_that_never_finishes() -> None:
    swept = Swept(Endless)
    for _ in range(5):
        assert swept.send(b"x").silent(1.9).state == "open"
    assert swept.silent(0.3).state == "closed"


def test_what_the_server_says_unasked_is_no_silence() -> None:
    swept = Swept(Endless)
    for _ in range(5):
        swept.connection.write(b"tick")
        assert swept.silent(1.9).state == "open"
        swept.connection.transport.write(b"tock")
        assert swept.silent(1.9).state == "open"


@pytest.mark.parametrize("never", [None, 0])
def test_without_a_timeout_silence_is_for_ever(never: float | None) -> None:
    swept = Swept(timeout=never, stall_timeout=never)
    assert swept.silent(200).send(b"x\n").silent(200).send(b"x").silent(200).state == "open"


def test_half_a_request_and_silence(caplog: pytest.LogCaptureFixture) -> None:
    swept = Swept().send(b"hal")
    assert swept.silent(5.0).state == "open"  # the idle timeout is not for it
    assert swept.silent(0.2).state == "closed"
    (entry,) = [entry for entry in caplog.records if entry.levelno >= logging.INFO]
    assert entry.levelno == logging.INFO
    message = "connection from 192.0.2.1:4321 closed: a request has stalled, silent for 5."
    assert entry.getMessage().startswith(message)


def test_half_a_request_that_goes_on_slowly() -> None:
    swept = Swept()
    for _ in range(5):
        assert swept.send(b"x").silent(4.9).state == "open"


def test_half_a_request_behind_a_whole_one() -> None:
    for timeout in (2.0, None):
        swept = Swept(timeout=timeout).send(b"whole\nhal")
        assert swept.transport.sent == b"whole"
        assert swept.silent(5.0).state == "open"
        assert swept.silent(0.2).state == "closed"


def test_a_request_stalls_after_its_own_deadline() -> None:
    swept = Swept(timeout=10.0, stall_timeout=5.0).send(b"hal")
    assert swept.silent(4.9).state == "open"
    assert swept.silent(0.4).state == "closed"


def test_a_request_that_is_being_computed(run: Callable[..., Any]) -> None:
    class Computing(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.create_task(self.compute())

        async def compute(self) -> None:
            await gate.wait()
            self.write(b"done")
            self.finished()

    gate = asyncio.Event()

    async def main() -> None:
        swept = Swept(Computing).send(b"x")
        assert swept.silent(500).state == "open"
        gate.set()
        await asyncio.wait(swept.connection._tasks or ())
        await asyncio.sleep(0)
        assert swept.transport.sent == b"done"
        assert swept.silent(1.9).state == "open"
        assert swept.silent(0.3).state == "closed"

    run(main())


def test_a_question_to_a_consumer_that_never_finishes_is_waited_for() -> None:
    swept = Swept(Endless).send(b"?")
    assert swept.silent(5.0).state == "open"
    assert swept.silent(0.2).state == "closed"


def test_taking_the_transport_counts_as_writing() -> None:
    """What is written there is not seen: better to close than to hold a connection for ever."""

    class Direct(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    assert not Swept(Direct).send(b"x").connection.busy


# -- a peer that does not read


def clogged(**options: Any) -> Swept:
    swept = Swept(Endless, **options)
    swept.transport.clogged = True
    return swept.send(b"x" * 70_000)


def test_a_peer_that_never_reads_is_aborted(caplog: pytest.LogCaptureFixture) -> None:
    swept = clogged()
    assert swept.connection.writing_paused
    assert swept.silent(5.0).state == "open"
    assert swept.silent(0.3).state == "aborted"
    assert "connection from 192.0.2.1:4321 closed: the peer does not read" in caplog.text


def test_a_peer_that_reads_slowly_is_not() -> None:
    swept = clogged()
    for _ in range(10):
        swept.transport.drain(100)
        assert swept.silent(4.9).state == "open"
    assert swept.silent(0.3).state == "aborted"


def test_a_peer_that_reads_again() -> None:
    swept = clogged()
    swept.silent(4.0)
    swept.transport.drain()
    assert swept.silent(1.9).state == "open"
    assert swept.silent(0.3).state == "closed"


@pytest.mark.parametrize("never", [None, 0])
def test_without_a_stall_timeout_a_peer_that_never_reads_stays(never: float | None) -> None:
    assert clogged(stall_timeout=never).silent(500).state == "open"


def test_a_closed_connection_whose_peer_never_reads_is_aborted() -> None:
    swept = clogged()
    swept.connection.close()
    assert swept.silent(5.0).state == "closed"
    assert swept.silent(0.3).state == "aborted"


def test_a_closed_connection_whose_peer_reads_slowly_is_not() -> None:
    swept = clogged()
    swept.connection.close()
    for _ in range(10):
        swept.transport.drain(100)
        assert swept.silent(4.9).state == "closed"


def test_a_task_does_not_save_a_peer_that_never_reads(run: Callable[..., Any]) -> None:
    async def main() -> None:
        swept = clogged()
        task = swept.connection.current_consumer().create_task(asyncio.Event().wait())
        assert swept.silent(5.3).state == "aborted"
        swept.transport.lost()
        await asyncio.wait([task])

    run(main())


# -- a half-closed connection


def test_a_peer_that_has_ended_its_side_is_waited_for_less() -> None:
    swept = Swept(Endless, timeout=60.0).send(b"?")
    assert swept.connection.eof_received()
    assert swept.silent(4.9).state == "open"  # the answer may be due
    swept.connection.write(b"answer")
    assert swept.silent(4.9).state == "open"
    assert swept.silent(0.4).state == "closed"


# -- what the kernel knows


linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is read on Linux only")


class SocketTransport(FakeTransport):
    """A transport that has a socket to ask."""

    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__()
        self._extra["socket"] = sock  # type: ignore[attr-defined]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


@linux
def test_the_kernel_knows_how_long_a_connection_has_been_silent() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        transport = SocketTransport(ours)
        ours.sendall(b"x")
        times = silence(transport)
        assert times is not None
        assert all(0 <= seconds < 5 for seconds in times)


@linux
def test_it_knows_who_spoke_last() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        protocol = Protocol()
        protocol.connection_made(SocketTransport(ours))
        ours.sendall(b"x")
        assert theirs.recv(10) == b"x"
        deadline = asyncio.new_event_loop()
        try:
            start = deadline.time()
            # Two milliseconds must lie between, for the kernel counts in them.
            while deadline.time() - start < 0.02:
                pass
        finally:
            deadline.close()
        theirs.sendall(b"answer")
        assert ours.recv(10) == b"answer"
        assert protocol.busy
        received, sent = silence(protocol.transport) or (0.0, 0.0)
        assert received < sent


def test_it_does_not_know_unix_sockets_nor_no_socket() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert silence(SocketTransport(one)) is None
    assert silence(SocketTransport(None)) is None


@linux
def test_it_does_not_know_a_closed_socket() -> None:
    ours, theirs = tcp_pair()
    ours.close()
    theirs.close()
    assert silence(SocketTransport(ours)) is None


class Quiet:
    """``silence`` as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: tuple[float, float] | None = (0.0, 0.0)
        monkeypatch.setattr("pulsar.protocols.timeout.silence", lambda transport: self.times)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Quiet:
    return Quiet(monkeypatch)


@pytest.mark.parametrize(
    ("times", "timeout", "open_"),
    [
        ((9.9, 9.9), 10.0, True),
        ((10.0, 10.0), 10.0, False),
        ((99.0, 9.0), 10.0, True),  # we speak
        ((9.0, 99.0), 10.0, True),  # the peer speaks
        ((99.0, 99.0), None, True),
        ((99.0, 99.0), 0, True),
        (None, 10.0, True),  # nobody knows
    ],
)
def test_a_protocol_of_ones_own_is_closed_after_silence_either_way(
    times: Any, timeout: float | None, open_: bool, quiet: Quiet
) -> None:
    quiet.times = times
    protocol = Protocol(timeout)
    transport = connect(protocol)
    protocol.check_deadlines(123.0, 5.0)
    assert transport.closing is not open_


@pytest.mark.parametrize(("times", "busy"), [((1.0, 2.0), True), ((2.0, 1.0), False), (None, True)])
def test_a_protocol_of_ones_own_is_finished_when_it_spoke_last(
    times: Any, busy: bool, quiet: Quiet
) -> None:
    quiet.times = times
    protocol = Protocol()
    transport = connect(protocol)
    assert protocol.busy is busy
    protocol.finish()
    assert transport.closing is not busy
    protocol.close()
    assert not protocol.busy
