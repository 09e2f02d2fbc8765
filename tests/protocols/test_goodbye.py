"""The goodbye of a server that stops: who says it, when, and what becomes of requests."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from pulsar.protocols import Connection, ProtocolConsumer, TcpServer
from tests.support.conformance import FramedEcho, echoes, frame
from tests.support.flavours import PATIENCE, Flavour, eventually, logged, served
from tests.support.transport import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

BYE = frame(b"bye")


class Noting(FramedEcho):
    """Notes its goodbyes: the state of the consumer, and its connection."""

    said: ClassVar[list[Any]]

    def goodbye(self) -> bool:
        self.said.append((self._state, self.connection))
        return super().goodbye()


class Leaving(FramedEcho):
    """Tells the peer, who is to end the connection."""

    def goodbye(self) -> bool:
        self.write(BYE)
        return True


class Ending(FramedEcho):
    """Its answers say whether they are the last one."""

    def answer(self, message: bytes) -> None:
        assert self.connection is not None
        super().answer(frame(b"last" if self.connection.ending else b"more"))


class Slow(FramedEcho):
    """Answers when it is told to."""

    released: ClassVar[asyncio.Event]

    def answer(self, message: bytes) -> None:
        self.create_task(self.later(message))

    async def later(self, message: bytes) -> None:
        await self.released.wait()
        super().answer(message)


class LeavingSlowly(Slow, Leaving):
    """Both."""


@contextlib.asynccontextmanager
async def closing(server: TcpServer, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """``server.close``, begun and, behind the block, ended."""
    task = asyncio.get_running_loop().create_task(server.close(60, **options))
    try:
        await eventually(lambda: not server.accepting)
        yield task
    finally:
        async with asyncio.timeout(PATIENCE):
            await task


# -- without a word


def test_the_last_answer_can_say_that_it_is(flavour: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with served(flavour, Ending) as server:
            with await flavour.connect(server) as peer, await flavour.connect(server) as other:
                for each in (peer, other):
                    await each.send(frame(b"?"))
                    assert await each.receive(8) == frame(b"more")
                async with closing(server, linger=60):
                    for each in (peer, other):
                        await each.send(frame(b"?"))
                        assert await each.farewell() == frame(b"last")

    run(main())


def test_what_arrives_with_the_last_request_is_answered(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    """Of a pipeline, each of the answers is made on a connection that ends."""

    async def main() -> None:
        async with served(flavour, Ending) as server:
            with await flavour.connect(server) as peer:
                await peer.send(frame(b"?"))
                await peer.receive(8)
                async with closing(server, linger=60):
                    await peer.send(frame(b"?") * 100)
                    assert await peer.farewell() == frame(b"last") * 100

    run(main())


def test_a_connection_that_is_accepted_while_the_server_stops(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    """Its first answer is its last, and says so."""

    async def main() -> None:
        async with served(flavour, Ending) as server:
            server.pause()
            with await flavour.knock(server) as peer:
                async with closing(server, linger=60):
                    await peer.handshake()
                    await peer.send(frame(b"?"))
                    assert await peer.farewell() == frame(b"last")

    run(main())


def test_an_end_of_the_peer_makes_its_answer_the_last(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    class SlowEnding(Slow, Ending):
        pass

    async def main() -> None:
        Slow.released = asyncio.Event()
        async with served(tcp, SlowEnding) as server:
            with await tcp.connect(server) as peer:
                await peer.send(frame(b"?"))
                await peer.end()
                await eventually(lambda: any(member.ending for member in server._members))  # type: ignore[union-attr]
                Slow.released.set()
                assert await peer.rest() == frame(b"last")

    run(main())


# -- who is asked, and how often


def test_each_connection_is_asked_once(tcp: Flavour, run: Callable[..., Any]) -> None:
    async def main() -> None:
        Noting.said = []
        async with served(tcp, Noting) as server:
            with await tcp.connect(server) as new, await tcp.connect(server) as used:
                await echoes(used)
                await eventually(lambda: server.connections == 2)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(server.close(60, linger=60), 0.1)
                async with closing(server, linger=60):
                    await eventually(lambda: len(Noting.said) == 2)
                    assert server._drain is not None
                    await eventually(lambda: not server._drain.changed.is_set())  # type: ignore[union-attr]
                    # On the consumer that gets the next request: neither has started.
                    assert [state for state, _ in Noting.said] == [0, 0]
                    assert {connection for _, connection in Noting.said} == set(server._members)
                    for peer in (new, used):
                        await peer.send(frame(b"x"))
                        assert await peer.farewell() == frame(b"x")
        assert len(Noting.said) == 2

    run(main())


def test_the_consumer_that_is_asked_gets_the_next_request(run: Callable[..., Any]) -> None:
    used: list[ProtocolConsumer] = []

    class Here(FramedEcho):
        def goodbye(self) -> bool:
            used.append(self)
            return True

        def answer(self, message: bytes) -> None:
            used.append(self)
            super().answer(message)

    async def main() -> None:
        connection = Connection(Here)
        transport = connect(connection)
        connection.data_received(frame(b"1"))
        used.clear()
        connection.say_goodbye()
        connection.say_goodbye()
        connection.data_received(frame(b"2"))
        assert len(used) == 2
        assert used[0] is used[1]
        assert transport.take() == [frame(b"1"), frame(b"2")]
        assert not connection.ending
        connection.last_request()
        assert connection.ending

    run(main())


def test_a_consumer_without_a_goodbye_is_not_made_for_it(run: Callable[..., Any]) -> None:
    """It would begin, and end, a request that there was not."""
    made: list[FramedEcho] = []

    class Counted(FramedEcho):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    class Polite(Counted):
        def goodbye(self) -> bool:
            return True

    async def main() -> None:
        for factory, count in (
            (Counted, 1),
            (partial(Counted), 1),
            (lambda: Counted(), 2),  # who knows
            (partial(partial(Polite)), 2),
        ):
            made.clear()
            connection = Connection(factory)
            transport = connect(connection)
            connection.data_received(frame(b"x"))
            connection.say_goodbye()
            assert len(made) == count
            assert connection.ending is not isinstance(made[0], Polite)
            transport.lost()

    run(main())


def test_nobody_is_asked_on_a_connection_that_is_closing(run: Callable[..., Any]) -> None:
    async def main() -> None:
        Noting.said = []
        connection = Connection(Noting)
        transport = connect(connection)
        connection.close()
        connection.say_goodbye()
        transport.lost()
        assert Noting.said == []
        assert connection.ending

    run(main())


# -- with a word


def test_a_peer_that_was_told_ends_the_connection(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    """It is answered until it does."""

    async def main() -> None:
        async with served(flavour, Leaving) as server:
            with await flavour.connect(server) as peer, await flavour.connect(server) as other:
                await echoes(peer)
                await echoes(other)
                async with closing(server, linger=60) as task:
                    assert await peer.receive(len(BYE)) == BYE
                    for _ in range(3):
                        await echoes(peer)
                    await peer.end()
                    assert await peer.rest() == b""
                    assert await other.receive(len(BYE)) == BYE
                    assert not task.done()
                    await other.end()

    run(main())


def test_a_peer_that_was_told_and_stays_is_closed_when_it_is_silent(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    """Each request begins the wait anew."""

    async def main() -> None:
        async with served(flavour, Leaving) as server:
            with await flavour.connect(server) as silent, await flavour.connect(server) as peer:
                await echoes(peer)
                await echoes(silent)
                async with closing(server, linger=0.3):
                    assert await peer.receive(len(BYE)) == BYE
                    resting = asyncio.get_running_loop().create_task(silent.farewell())
                    rounds = 0
                    while not resting.done():
                        await echoes(peer)
                        rounds += 1
                        await asyncio.sleep(0.01)
                    assert await resting == BYE
                    assert rounds > 5
                    await echoes(peer)
                    assert await peer.farewell() == b""

    run(main())


def test_a_peer_that_was_told_and_never_rests_is_cut_off_at_the_deadline(
    tcp: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        with logged() as records:
            async with served(tcp, Leaving) as server:
                with await tcp.connect(server) as peer:
                    await echoes(peer)
                    task = asyncio.get_running_loop().create_task(server.close(0.5))
                    assert await peer.receive(len(BYE)) == BYE
                    with pytest.raises((EOFError, ConnectionError)):
                        while True:
                            await echoes(peer)
                    await task
        (record,) = records
        assert "1 connections aborted after 0.5 s" in record.getMessage()

    run(main(), allow=(EOFError, ConnectionError))


def test_a_request_in_hand_when_the_peer_is_told(flavour: Flavour, run: Callable[..., Any]) -> None:
    """It is answered behind the goodbye, and so is the next one."""

    async def main() -> None:
        Slow.released = asyncio.Event()
        async with served(flavour, LeavingSlowly) as server:
            with await flavour.connect(server) as peer:
                await peer.send(frame(b"slow"))
                await eventually(lambda: any(member.busy for member in server._members))
                async with closing(server, linger=0.1):
                    assert await peer.receive(len(BYE)) == BYE
                    Slow.released.set()
                    assert await peer.receive(8) == frame(b"slow")
                    await echoes(peer)
                    await peer.end()

    run(main())


@pytest.mark.parametrize("finishes", [True, False])
def test_a_goodbye_is_no_answer(finishes: bool, flavour: Flavour, run: Callable[..., Any]) -> None:
    """Half a request is waited for, also by a consumer that lives as long as its connection."""

    class ForLife(Leaving):
        def answer(self, message: bytes) -> None:
            self.write(message)
            self.buffer.clear()

    async def main() -> None:
        async with served(flavour, Leaving if finishes else ForLife) as server:
            with await flavour.connect(server) as peer, await flavour.connect(server) as idle:
                await echoes(idle)
                await echoes(peer)
                await peer.send(frame(b"half")[:6])
                await eventually(lambda: any(member.busy for member in server._members))
                async with closing(server, linger=0.1):
                    assert await idle.farewell() == BYE
                    assert await peer.receive(len(BYE)) == BYE
                    await peer.send(frame(b"half")[6:])
                    assert await peer.receive(8) == frame(b"half")
                    assert await peer.farewell() == b""

    run(main())


def test_a_connection_that_is_accepted_while_the_server_stops_is_told(
    flavour: Flavour, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with served(flavour, Leaving) as server:
            server.pause()
            with await flavour.knock(server) as peer:
                async with closing(server, linger=60):
                    await peer.handshake()
                    assert await peer.receive(len(BYE)) == BYE
                    await echoes(peer)
                    await peer.end()

    run(main())


# -- errors


def test_an_error_costs_one_connection(flavour: Flavour, run: Callable[..., Any]) -> None:
    class Failing(FramedEcho):
        def goodbye(self) -> bool:
            if failing:
                failing.pop()
                raise ZeroDivisionError("in user code")
            return False

    failing = [True]

    async def main() -> None:
        with logged() as records:
            async with served(flavour, Failing) as server:
                with await flavour.connect(server) as peer:
                    await echoes(peer)
                    with await flavour.connect(server) as other:
                        await echoes(other)
                        async with closing(server, linger=60):
                            assert await peer.farewell() == b""
                            await other.send(frame(b"x"))
                            assert await other.farewell() == frame(b"x")
        (record,) = records
        assert record.levelname == "ERROR"
        assert "closed: error in Failing" in record.getMessage()
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ZeroDivisionError)

    run(main())


def test_an_error_while_a_request_is_answered(tcp: Flavour, run: Callable[..., Any]) -> None:
    class Failing(Slow):
        def goodbye(self) -> bool:
            raise ZeroDivisionError("in user code")

    async def main() -> None:
        Slow.released = asyncio.Event()
        with logged() as records:
            async with served(tcp, Failing) as server:
                with await tcp.connect(server) as peer:
                    await peer.send(frame(b"x"))
                    await eventually(lambda: any(member.busy for member in server._members))
                    async with closing(server, linger=60):
                        assert await peer.farewell() == b""
            assert server.requests_processed == 1
        assert len(records) == 1

    run(main())


def test_a_consumer_that_cannot_be_made(tcp: Flavour, run: Callable[..., Any]) -> None:
    made: list[FramedEcho] = []

    def factory() -> FramedEcho:
        if len(made) == 2:  # one to see what it makes, one for the first request
            raise LookupError("no consumer today")
        made.append(FramedEcho())
        return made[-1]

    async def main() -> None:
        with logged() as records:
            async with served(tcp, partial(factory)) as server:
                with await tcp.connect(server) as peer:
                    await echoes(peer)
                    async with closing(server, linger=60):
                        assert await peer.farewell() == b""
        (record,) = records
        assert "cannot make a consumer" in record.getMessage()
        assert record.exc_info is not None

    run(main())
