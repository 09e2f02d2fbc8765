"""The pool: who gets which connection, in which order, and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import gc
import queue
import random
import select
import socket
import ssl
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest

from pulsar.clients.pool import Pool, PoolConnection
from pulsar.errors import ClientError, ConnectTimeout, PoolClosed, PoolTimeout, PulsarException
from pulsar.protocols.connection import Connection
from pulsar.protocols.consumer import ProtocolConsumer
from pulsar.protocols.producer import Producer
from tests.support import loops
from tests.support.certs import Certificates, certs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

__all__ = ["certs"]


class Ended:
    """What FakeConnection.close returns: done once the test says so."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def __await__(self) -> Generator[Any, None, Any]:
        return self.event.wait().__await__()


class FakeConnection:
    """A connection without a socket."""

    transport: Any = None

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = False
        self.ended = Ended()
        self.ended.event.set()

    def __repr__(self) -> str:
        return f"<fake {self.number}>"

    def close(self) -> Ended:
        self.closed = True
        return self.ended

    def abort(self) -> None:
        self.closed = True

    def current_consumer(self) -> str:
        return f"consumer of {self.number}"


class Creator:
    """Makes FakeConnections, and remembers them; ``turns``: how long each takes."""

    def __init__(self, turns: int = 0) -> None:
        self.turns = turns
        self.made: list[FakeConnection] = []

    async def __call__(self) -> FakeConnection:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return self.make()

    def make(self) -> FakeConnection:
        self.made.append(FakeConnection(len(self.made) + 1))
        return self.made[-1]

    @property
    def open(self) -> int:
        return sum(not connection.closed for connection in self.made)


def settled(pool: Pool[Any], creator: Creator) -> None:
    """Nobody has or wants a connection: what is open is available."""
    size, available = pool.pool_size, pool.available
    assert repr(pool) == f"<Pool open, 0 in use, {available} available of {size}, 0 waiting>"
    assert creator.open == available <= size


def resolve(future: asyncio.Future[Any], make: Callable[[], Any]) -> None:
    if not future.done():
        future.set_result(make())


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def held(pool: Pool[Any]) -> asyncio.Task[Any]:
    """Somebody who connects and keeps what he gets."""

    async def connect() -> PoolConnection[Any]:
        return await pool.connect()

    return asyncio.get_running_loop().create_task(connect())


# -- connect and release


def test_a_connection_is_opened_then_reused(run: Callable[..., Any]) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator)
        assert repr(pool) == "<Pool open, 0 in use, 0 available of 10, 0 waiting>"
        connection = await pool.connect()
        assert isinstance(connection, PoolConnection)
        assert connection.pool is pool
        assert connection.connection is creator.made[0]
        assert connection.transport is None
        assert connection.current_consumer() == "consumer of 1"
        assert (pool.in_use, pool.available, pool.pool_size) == (1, 0, 10)
        connection.close()
        assert (pool.in_use, pool.available) == (0, 1)
        assert (await pool.connect()).connection is creator.made[0]
        assert len(creator.made) == 1
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 10, 0 waiting>"

    run(main())


def test_the_connection_released_last_is_reused_first(run: Callable[..., Any]) -> None:
    async def main() -> None:
        pool = Pool(Creator())
        one, two, three = [await pool.connect() for _ in range(3)]
        last = two.connection
        for connection in (three, one, two):
            connection.close()
        assert repr(pool) == "<Pool open, 0 in use, 3 available of 10, 0 waiting>"
        assert (await pool.connect()).connection is last
        assert repr(pool) == "<Pool open, 1 in use, 2 available of 10, 0 waiting>"

    run(main())


def test_async_with_releases(run: Callable[..., Any]) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator)
        async with pool.connect() as connection:
            assert connection.connection.number == 1
            assert pool.in_use == 1
        settled(pool, creator)
        with await pool.connect() as connection:
            assert connection.connection.number == 1
        settled(pool, creator)
        async with await pool.connect() as connection:
            assert connection.connection.number == 1
        settled(pool, creator)
        assert pool.available == 1

    run(main())


async def in_async_with_connect(pool: Pool[Any], action: Callable[[Any], None]) -> None:
    async with pool.connect() as connection:
        action(connection.connection)


async def in_with(pool: Pool[Any], action: Callable[[Any], None]) -> None:
    with await pool.connect() as connection:
        action(connection.connection)


async def in_async_with(pool: Pool[Any], action: Callable[[Any], None]) -> None:
    async with await pool.connect() as connection:
        action(connection.connection)


every_block = pytest.mark.parametrize("block", [in_async_with_connect, in_with, in_async_with])


@every_block
def test_a_block_that_raises_discards(block: Callable[..., Any]) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator)

        def fail(connection: FakeConnection) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            await block(pool, fail)
        settled(pool, creator)
        assert pool.available == 0
        assert creator.made[0].closed

    loops.run(main())


@every_block
def test_a_connection_that_was_lost_in_the_block_is_not_kept(block: Callable[..., Any]) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator)
        await block(pool, FakeConnection.abort)
        settled(pool, creator)
        assert pool.available == 0

    loops.run(main())


def test_a_connect_that_nobody_awaits_does_nothing() -> None:
    creator = Creator()
    pool = Pool(creator)
    pool.connect()
    gc.collect()
    settled(pool, creator)


def test_close_twice_is_harmless() -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator)
        first = await pool.connect()
        first.close()
        second = await pool.connect()
        first.close()
        first.close(discard=True)
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 10, 0 waiting>"
        assert not second.closed
        second.close(discard=True)
        second.close()
        settled(pool, creator)
        assert pool.available == 0

    loops.run(main())


def test_use_after_release_is_refused() -> None:
    async def main() -> None:
        connection = await Pool(Creator()).connect()
        assert repr(connection) == "<PoolConnection in use: <fake 1>>"
        connection.connection.abort()
        assert repr(connection) == "<PoolConnection lost: <fake 1>>"
        assert connection.closed
        connection.close()
        assert repr(connection) == "<PoolConnection released>"
        assert connection.closed
        uses: list[Callable[[], object]] = [
            lambda: connection.connection,
            lambda: connection.transport,
            connection.current_consumer,
            connection.detach,
            connection.__enter__,
        ]
        for use in uses:
            with pytest.raises(ClientError, match="was released to its pool"):
                use()

    loops.run(main())


@pytest.mark.parametrize("discard", [True, False])
def test_detach_takes_the_connection_out_of_the_pool(discard: bool) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=1)
        connection = await pool.connect()
        waiting = held(pool)
        await turns()
        bare = connection.detach() if discard else connection.detach(discard=False)
        assert bare is creator.made[0]
        assert bare.closed is discard
        assert (await waiting).connection is creator.made[1]
        connection.close()
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 1, 0 waiting>"

    loops.run(main())


def test_a_pool_has_room_and_may_have_a_name() -> None:
    with pytest.raises(PulsarException, match="pool_size is 0"):
        Pool(Creator(), pool_size=0)
    pool = Pool(Creator(), 3, name="localhost:8060")
    assert repr(pool) == "<Pool localhost:8060 open, 0 in use, 0 available of 3, 0 waiting>"


# -- the queue


def test_those_who_wait_are_served_in_order(run: Callable[..., Any]) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=2)
        one, two = await pool.connect(), await pool.connect()
        waiting = [held(pool) for _ in range(3)]
        await turns()
        assert repr(pool) == "<Pool open, 2 in use, 0 available of 2, 3 waiting>"
        served: list[int] = []
        for task in waiting:
            task.add_done_callback(lambda task: served.append(waiting.index(task)))

        one.close()
        # The slot is promised already: who comes now waits behind the others.
        newcomer = held(pool)
        await turns()
        assert served == [0]
        assert repr(pool) == "<Pool open, 2 in use, 0 available of 2, 3 waiting>"
        two.close()
        waiting[0].result().close()
        await turns()
        assert served == [0, 1, 2]
        assert not newcomer.done()
        waiting[2].result().close()
        assert (await newcomer).connection in creator.made
        newcomer.result().close()
        waiting[1].result().close()
        settled(pool, creator)
        assert len(creator.made) == 2

    run(main())


def test_a_discarded_connection_hands_on_its_empty_slot() -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=1)
        connection = await pool.connect()
        waiting = held(pool)
        await turns()
        connection.close(discard=True)
        assert (await waiting).connection is creator.made[1]
        assert creator.made[0].closed

    loops.run(main())


def test_a_connect_error_reaches_its_caller_only() -> None:
    async def main() -> None:
        opening: list[asyncio.Future[FakeConnection]] = []

        async def create() -> FakeConnection:
            opening.append(asyncio.get_running_loop().create_future())
            return await opening[-1]

        pool = Pool(create, pool_size=1)
        first, second, third = held(pool), held(pool), held(pool)
        await turns()
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 1, 2 waiting>"
        opening[0].set_exception(ConnectionRefusedError("nobody there"))
        with pytest.raises(ConnectionRefusedError, match="nobody there"):
            await first
        await turns()
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 1, 1 waiting>"
        opening[1].set_result(FakeConnection(1))
        (await second).close()
        assert (await third).connection.number == 1
        assert len(opening) == 2

    loops.run(main())


def test_a_creator_that_fails_at_once_frees_its_slot() -> None:
    def create() -> Awaitable[FakeConnection]:
        raise LookupError("no such host")

    async def main() -> None:
        pool = Pool(create, pool_size=1)
        for _ in range(2):
            with pytest.raises(LookupError):
                await pool.connect()
        assert repr(pool) == "<Pool open, 0 in use, 0 available of 1, 0 waiting>"

    loops.run(main())


def test_a_waiter_that_was_cancelled_is_passed_over() -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=1)
        connection = await pool.connect()
        first, second = held(pool), held(pool)
        await turns()
        first.cancel()  # it is still in the queue when the connection comes
        connection.close()
        assert (await second).connection is creator.made[0]
        assert first.cancelled()
        second.result().close()
        settled(pool, creator)

    loops.run(main())


def test_a_waiter_that_gives_up_leaves_the_queue() -> None:
    async def main() -> None:
        pool = Pool(Creator(), pool_size=1)
        await pool.connect()
        first, second = held(pool), held(pool)
        await turns()
        first.cancel()
        await asyncio.wait([first])
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 1, 1 waiting>"
        second.cancel()
        await asyncio.wait([second])
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 1, 0 waiting>"

    loops.run(main())


# -- timeouts


def test_pool_timeout(run: Callable[..., Any]) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, 1, None, 0.01, name="echo")
        connection = await pool.connect()
        with pytest.raises(PoolTimeout) as caught:
            await pool.connect()
        assert str(caught.value) == (
            "no connection became free within 0.01 s: "
            "<Pool echo open, 1 in use, 0 available of 1, 0 waiting>"
        )
        assert isinstance(caught.value, TimeoutError)
        connection.close()
        assert (await pool.connect()).connection is creator.made[0]

    run(main())


def test_a_slot_in_time_cancels_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        call_later = loop.call_later

        def recorded(*args: Any) -> asyncio.TimerHandle:
            timers.append(call_later(*args))
            return timers[-1]

        pool = Pool(Creator(), pool_size=1, timeout=20)
        connection = await pool.connect()
        monkeypatch.setattr(loop, "call_later", recorded)
        waiting = held(pool)
        await turns()
        assert len(timers) == 1
        connection.close()
        await waiting
        assert timers[0].cancelled()

    loops.run(main())


def test_connect_timeout_frees_the_slot(run: Callable[..., Any]) -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def create() -> FakeConnection:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()
            raise AssertionError

        pool = Pool(create, connect_timeout=0.01)
        with pytest.raises(ConnectTimeout, match=r"no connection was made within 0\.01 s: <Pool"):
            await pool.connect()
        assert cancelled.is_set()
        assert repr(pool) == "<Pool open, 0 in use, 0 available of 10, 0 waiting>"

    run(main())


def test_a_timeout_of_the_creator_is_its_own() -> None:
    async def create() -> FakeConnection:
        raise TimeoutError("the system gave up")

    async def main() -> None:
        with pytest.raises(TimeoutError, match="the system gave up") as caught:
            await Pool(create, connect_timeout=20).connect()
        assert not isinstance(caught.value, ConnectTimeout)

    loops.run(main())


def test_idle_connections_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        now = 0.0
        monkeypatch.setattr(loop, "time", lambda: start + now)
        creator = Creator()
        pool = Pool(creator, idle_timeout=2)
        old, young, busy = [await pool.connect() for _ in range(3)]
        old.close()
        now = 1.5
        young.close()
        now = 1.9
        assert pool.available == 2
        now = 2.0  # at a release
        busy.close()
        assert [connection.closed for connection in creator.made] == [True, False, False]
        assert repr(pool) == "<Pool open, 0 in use, 2 available of 10, 0 waiting>"
        now = 3.5  # at a hand-out
        assert (await pool.connect()).connection.number == 3
        assert [connection.closed for connection in creator.made] == [True, True, False]
        assert repr(pool) == "<Pool open, 1 in use, 0 available of 10, 0 waiting>"

    loops.run(main())


def test_when_all_have_expired_a_new_one_is_opened() -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=1, idle_timeout=0)
        (await pool.connect()).close()
        assert pool.available == 1
        assert (await pool.connect()).connection.number == 2
        assert creator.made[0].closed

    loops.run(main())


# -- closing


def test_close_refuses_and_fails_those_who_wait() -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=2)
        idle, busy = await pool.connect(), await pool.connect()
        used = held(pool)
        idle.close()
        await used
        waiting = held(pool)
        await turns()
        used.result().connection.ended.event.clear()
        pool.close()
        assert pool.closed
        assert repr(pool) == "<Pool closed, 2 in use, 0 available of 2, 0 waiting>"
        with pytest.raises(PoolClosed, match=r"<Pool closed, .*> hands out no connections"):
            await waiting
        with pytest.raises(PoolClosed):
            await pool.connect()
        busy.close()
        assert creator.made[1].closed
        assert not creator.made[0].closed
        used.result().close()
        assert creator.made[0].closed
        assert repr(pool) == "<Pool closed, 0 in use, 0 available of 2, 0 waiting>"

    loops.run(main())


def test_close_can_be_awaited_until_all_is_closed(run: Callable[..., Any]) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator)
        connections = [await pool.connect() for _ in range(3)]
        for connection in connections:
            connection.connection.ended.event.clear()
        connections[0].close(discard=True)  # before the pool
        connections[1].close()
        closing = asyncio.ensure_future(pool.close())
        await turns()
        assert creator.made[1].closed
        creator.made[1].ended.event.set()
        await turns()
        assert not closing.done()
        creator.made[0].ended.event.set()
        await closing
        # Whoever releases later can wait, too.
        connections[2].close()
        closing = asyncio.ensure_future(pool.close())
        await turns()
        assert not closing.done()
        creator.made[2].ended.event.set()
        await closing

    run(main())


def test_close_need_not_be_awaited() -> None:
    creator = Creator()
    pool = Pool(creator)

    async def main() -> None:
        (await pool.connect()).close()

    loops.run(main())
    pool.close()  # no loop runs here
    gc.collect()
    assert creator.open == 0
    pool.close()


def test_a_pool_is_a_context_manager() -> None:
    async def main() -> None:
        creator = Creator()
        async with Pool(creator) as pool, pool.connect() as connection:
            assert not connection.closed
        assert pool.closed
        assert creator.open == 0

    loops.run(main())


def test_how_a_connection_ended_does_not_disturb_close() -> None:
    class Failing(FakeConnection):
        def close(self) -> Any:
            super().close()
            future = asyncio.get_running_loop().create_future()
            future.set_exception(ConnectionResetError())
            return future

    async def main() -> None:
        async def create() -> FakeConnection:
            return Failing(1)

        async with Pool(create) as pool:
            (await pool.connect()).close()

    loops.run(main())


def test_a_connection_opened_while_the_pool_was_closed_is_closed() -> None:
    async def main() -> None:
        creator = Creator(turns=3)
        pool = Pool(creator)
        opening = held(pool)
        await turns(2)
        assert pool.in_use == 1
        await pool.close()
        with pytest.raises(PoolClosed):
            await opening
        assert len(creator.made) == 1
        assert creator.open == 0
        assert repr(pool) == "<Pool closed, 0 in use, 0 available of 10, 0 waiting>"

    loops.run(main())


@pytest.mark.parametrize("discard", [True, False])
def test_a_slot_on_its_way_when_the_pool_closes_is_not_used(discard: bool) -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=1)
        connection = await pool.connect()
        waiting = held(pool)
        await turns()
        connection.close(discard)  # now the waiter has the slot, and does not know yet
        pool.close()
        with pytest.raises(PoolClosed):
            await waiting
        assert len(creator.made) == 1
        assert creator.open == 0
        assert pool.in_use == 0

    loops.run(main())


# -- the loop


def test_a_pool_belongs_to_one_loop() -> None:
    async def main() -> None:
        (await pool.connect()).close()

    pool = Pool(Creator())
    loops.run(main())
    with pytest.raises(RuntimeError, match=r"<Pool open, .*> belongs to another event loop"):
        loops.run(main())

    loop = asyncio.new_event_loop()
    try:
        pool = Pool(Creator(), loop=loop)
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            loops.run(main())
        loop.run_until_complete(main())
    finally:
        loop.close()
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        loops.run(main())


def test_a_loop_that_was_closed_before_any_use_does_not_count() -> None:
    async def main() -> None:
        (await pool.connect()).close()

    loop = asyncio.new_event_loop()
    pool = Pool(Creator(), loop=loop)
    loop.close()
    loops.run(main())
    assert pool.available == 1


# -- cancellation at every await


class CancelAt:
    """Awaits ``awaitable`` and cancels the task at its ``step``-th suspension.

    ``late``: not at once, but in the moment in which it would have gone on.
    """

    def __init__(self, awaitable: Awaitable[Any], step: int, late: bool) -> None:
        self.awaitable = awaitable
        self.step = step
        self.late = late
        self.suspensions = 0

    def __await__(self) -> Generator[Any, None, Any]:
        steps = self.awaitable.__await__()
        resume: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                awaited = resume()
            except StopIteration as stop:
                return stop.value
            self.suspensions += 1
            if self.suspensions == self.step:
                task = asyncio.current_task()
                assert task is not None
                if self.late and awaited is not None:
                    # Called before the task's own callback, which is added later.
                    awaited.add_done_callback(lambda _, task=task: task.cancel())
                else:
                    task.cancel()
            try:
                yield awaited
            except BaseException as error:
                resume = partial(steps.throw, error)
            else:
                resume = partial(next, steps)


def cancel_everywhere(
    scenario: Callable[[Callable[[Awaitable[Any]], Awaitable[Any]]], Coroutine[Any, Any, None]],
    late: bool,
) -> int:
    """Run ``scenario`` once for each suspension of what it passes to its argument.

    Returns how many there were.
    """
    for step in range(1, 50):
        cancelling: list[CancelAt] = []

        def cancelled(
            awaitable: Awaitable[Any],
            step: int = step,
            cancelling: list[CancelAt] = cancelling,
        ) -> Awaitable[Any]:
            cancelling.append(CancelAt(awaitable, step, late))
            return cancelling[0]

        loops.run(scenario(cancelled))
        (used,) = cancelling
        if used.suspensions < step:
            return step - 1
    raise AssertionError("it never ends")


async def victim(awaitable: Awaitable[PoolConnection[Any]]) -> None:
    with await awaitable:
        pass


each_moment = pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])


@each_moment
@pytest.mark.parametrize("connect_timeout", [None, 20])
def test_cancelled_while_opening(late: bool, connect_timeout: float | None) -> None:
    class Slow(Creator):
        async def __call__(self) -> FakeConnection:
            loop = asyncio.get_running_loop()
            for _ in range(3):
                future = loop.create_future()
                loop.call_soon(resolve, future, lambda: None)
                try:
                    await future
                except asyncio.CancelledError:
                    await asyncio.sleep(0)  # tidying up
                    raise
            return self.make()

    async def scenario(cancelled: Callable[..., Awaitable[Any]]) -> None:
        creator = Slow()
        pool = Pool(creator, pool_size=1, connect_timeout=connect_timeout)
        task = asyncio.ensure_future(victim(cancelled(pool.connect())))
        behind = held(pool)
        await asyncio.wait([task])
        (await behind).close()
        settled(pool, creator)
        assert pool.available == 1

    assert cancel_everywhere(scenario, late) >= 3


@each_moment
@pytest.mark.parametrize("connect_timeout", [None, 20])
def test_cancelled_while_a_future_brings_the_connection(
    late: bool, connect_timeout: float | None
) -> None:
    class Promising(Creator):
        def __call__(self) -> Any:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            # Unless the future was cancelled there is a connection, wanted or not.
            loop.call_soon(resolve, future, self.make)
            return future

    async def scenario(cancelled: Callable[..., Awaitable[Any]]) -> None:
        creator = Promising()
        pool = Pool(creator, pool_size=1, connect_timeout=connect_timeout)
        task = asyncio.ensure_future(victim(cancelled(pool.connect())))
        behind = held(pool)
        await asyncio.wait([task])
        (await behind).close()
        settled(pool, creator)
        assert pool.available == 1

    assert cancel_everywhere(scenario, late) == 1


@each_moment
@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize("timeout", [None, 20])
def test_cancelled_while_waiting(late: bool, discard: bool, timeout: float | None) -> None:
    async def scenario(cancelled: Callable[..., Awaitable[Any]]) -> None:
        creator = Creator(turns=2)
        pool = Pool(creator, pool_size=1, timeout=timeout)
        connection = await pool.connect()
        task = asyncio.ensure_future(victim(cancelled(pool.connect())))
        behind = held(pool)
        await asyncio.sleep(0)
        assert pool.in_use == 1
        connection.close(discard)
        await asyncio.wait([task])
        (await behind).close()
        settled(pool, creator)
        assert pool.available == 1

    # In the queue; and, given an empty slot, in each turn of opening.
    assert cancel_everywhere(scenario, late) == (3 if discard else 1)


class TlsTransport:
    """A transport over a socket on which something is always to be read."""

    def __init__(self, sock: socket.socket) -> None:
        self.extra = {"socket": sock, "sslcontext": "there is one"}

    def get_extra_info(self, name: str) -> Any:
        return self.extra[name]


def test_cancelled_while_a_connection_is_checked() -> None:
    async def scenario(cancelled: Callable[..., Awaitable[Any]]) -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=1)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            (await pool.connect()).close()
            creator.made[0].transport = TlsTransport(ours)
            theirs.send(b"x")
            task = asyncio.ensure_future(victim(cancelled(pool.connect())))
            behind = held(pool)
            await asyncio.wait([task])
            assert (await behind).connection.number == 2
            behind.result().close()
            settled(pool, creator)
            assert pool.available == 1

    assert cancel_everywhere(scenario, late=False) > 1


def test_a_connection_without_a_descriptor_is_not_handed_out() -> None:
    async def main() -> None:
        creator = Creator()
        pool = Pool(creator, pool_size=1)
        (await pool.connect()).close()
        with socket.socket() as sock:
            creator.made[0].transport = TlsTransport(sock)
        async with pool.connect() as connection:
            assert connection.connection.number == 2
        settled(pool, creator)

    loops.run(main())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nothing_is_lost(seed: int) -> None:
    """Many users who use, lose, discard, detach, give up and time out, in any order."""
    chance = random.Random(seed)

    class Unreliable(Creator):
        async def __call__(self) -> FakeConnection:
            await turns(chance.randrange(4))
            if chance.random() < 0.2:
                raise ConnectionRefusedError
            assert self.open <= 3
            return self.make()

    async def user(pool: Pool[Any]) -> None:
        await turns(chance.randrange(10))
        async with pool.connect() as connection:
            await turns(chance.randrange(5))
            if chance.random() < 0.2:
                connection.connection.abort()
            if chance.random() < 0.2:
                connection.close(discard=chance.random() < 0.5)
            elif chance.random() < 0.1:
                connection.detach()
            elif chance.random() < 0.1:
                raise LookupError

    async def main() -> None:
        creator = Unreliable()
        pool = Pool(creator, pool_size=3, timeout=0.002 if seed % 2 else None)
        users = [asyncio.ensure_future(user(pool)) for _ in range(60)]
        while not all(task.done() for task in users):
            assert pool.in_use + pool.available <= 3
            assert creator.open <= 3
            if chance.random() < 0.3:
                chance.choice(users).cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*users, return_exceptions=True)
        expected = (LookupError, ConnectionRefusedError, PoolTimeout, asyncio.CancelledError)
        assert all(result is None or isinstance(result, expected) for result in results)
        assert None in results
        settled(pool, creator)

    loops.run(main())


# -- dead connections, with real sockets; the loop runs only during the calls


class Bare(asyncio.Protocol):
    """The least that can be pooled."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)

    @property
    def closed(self) -> bool:
        return self.lost.done() or self.transport.is_closing()

    def close(self) -> asyncio.Future[None]:
        self.transport.close()
        return self.lost

    def abort(self) -> None:
        self.transport.abort()


class Consumer(ProtocolConsumer):
    def start_request(self) -> None:
        self.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.finished(data)


def pulsars() -> Connection:
    producer = Producer(protocol_factory=partial(Connection, Consumer))
    protocol = producer.create_protocol()
    assert isinstance(protocol, Connection)
    return protocol


each_kind = pytest.mark.parametrize("factory", [Bare, pulsars], ids=["bare", "Connection"])


class BlockingPool:
    """A pool, its loop, which runs in ``connect`` and ``close`` only, and its server."""

    def __init__(self, loop_kind: str, factory: Callable[[], Any], certs: Certificates | None):
        self.runner = asyncio.Runner(loop_factory=loops.KINDS[loop_kind])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.factory = factory
        self.client_tls: ssl.SSLContext | None = None
        self.server_tls: ssl.SSLContext | None = None
        if certs is not None:
            self.client_tls = ssl.create_default_context(cafile=str(certs.ca))
            self.server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.server_tls.load_cert_chain(certs.server_cert, certs.server_key)
        self.peers: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self.taken: list[socket.socket] = []
        self.pool = Pool[Any](self.create)

    async def create(self) -> Any:
        _, protocol = await asyncio.get_running_loop().create_connection(
            self.factory, *self.listener.getsockname(), ssl=self.client_tls
        )
        return protocol

    def accept(self) -> None:
        peer, _ = self.listener.accept()
        if self.server_tls is not None:
            peer = self.server_tls.wrap_socket(peer, server_side=True)
        self.peers.put(peer)

    def connect(self, opens: bool) -> tuple[PoolConnection[Any], socket.socket | None]:
        """A connection, and where it was opened for this the server's side of it."""

        async def main() -> PoolConnection[Any]:
            return await self.pool.connect()

        if not opens:
            return self.runner.run(main()), None
        thread = threading.Thread(target=self.accept)
        thread.start()
        try:
            connection = self.runner.run(main())
        finally:
            thread.join()
        self.taken.append(self.peers.get(timeout=10))
        return connection, self.taken[-1]

    def wait_readable(self, connection: Any) -> None:
        poll = select.poll()
        poll.register(connection.transport.get_extra_info("socket").fileno(), select.POLLIN)
        assert poll.poll(10_000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        async def main() -> None:
            await self.pool.close()

        for peer in self.taken:
            peer.close()
        self.runner.run(main())
        self.runner.close()
        self.listener.close()


@each_kind
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_a_quiet_connection_is_used_again(
    loop_kind: str, factory: Callable[[], Any], tls: bool, certs: Certificates
) -> None:
    with BlockingPool(loop_kind, factory, certs if tls else None) as blocking:
        connection, _ = blocking.connect(opens=True)
        bare = connection.connection
        connection.close()
        if tls:
            # The server's session tickets, which nobody has read.
            blocking.wait_readable(bare)
        for _ in range(3):
            connection, _ = blocking.connect(opens=False)
            assert connection.connection is bare
            connection.close()


@each_kind
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_a_connection_that_the_server_closed_is_not_handed_out(
    loop_kind: str, factory: Callable[[], Any], tls: bool, certs: Certificates
) -> None:
    with BlockingPool(loop_kind, factory, certs if tls else None) as blocking:
        connection, peer = blocking.connect(opens=True)
        bare = connection.connection
        connection.close()
        assert peer is not None
        peer.close()
        blocking.wait_readable(bare)
        assert not bare.closed  # the loop has not run
        connection, _ = blocking.connect(opens=True)
        assert connection.connection is not bare
        assert bare.closed
        assert repr(blocking.pool) == "<Pool open, 1 in use, 0 available of 10, 0 waiting>"
        connection.close()


@each_kind
def test_a_connection_that_was_reset_is_not_handed_out(
    loop_kind: str, factory: Callable[[], Any]
) -> None:
    with BlockingPool(loop_kind, factory, None) as blocking:
        connection, peer = blocking.connect(opens=True)
        bare = connection.connection
        connection.close()
        assert peer is not None
        # Closing with a linger time of zero sends a reset.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        blocking.wait_readable(bare)
        connection, _ = blocking.connect(opens=True)
        assert connection.connection is not bare
        connection.close()


@each_kind
def test_a_connection_with_unsolicited_bytes_is_not_handed_out(
    loop_kind: str, factory: Callable[[], Any]
) -> None:
    with BlockingPool(loop_kind, factory, None) as blocking:
        connection, peer = blocking.connect(opens=True)
        bare = connection.connection
        connection.close()
        assert peer is not None
        peer.sendall(b"an answer to the next request")
        blocking.wait_readable(bare)
        connection, _ = blocking.connect(opens=True)
        assert connection.connection is not bare
        assert bare.closed
        connection.close()


def test_nor_is_one_with_unsolicited_bytes_under_tls(loop_kind: str, certs: Certificates) -> None:
    # There it takes the Connection, which refuses bytes that no request asked for.
    with BlockingPool(loop_kind, pulsars, certs) as blocking:
        connection, peer = blocking.connect(opens=True)
        bare = connection.connection
        connection.close()
        assert peer is not None
        blocking.wait_readable(bare)  # the tickets
        again, _ = blocking.connect(opens=False)
        assert again.connection is bare
        again.close()
        peer.sendall(b"an answer to the next request")
        blocking.wait_readable(bare)
        connection, _ = blocking.connect(opens=True)
        assert connection.connection is not bare
        assert bare.closed
        connection.close()


@each_kind
def test_dead_ones_are_skipped_until_one_is_alive(
    loop_kind: str, factory: Callable[[], Any]
) -> None:
    with BlockingPool(loop_kind, factory, None) as blocking:
        pairs = [blocking.connect(opens=True) for _ in range(3)]
        bare = [connection.connection for connection, _ in pairs]
        for connection, _ in pairs:
            connection.close()
        for index in (1, 2):
            peer = pairs[index][1]
            assert peer is not None
            peer.close()
            blocking.wait_readable(bare[index])
        connection, _ = blocking.connect(opens=False)
        assert connection.connection is bare[0]
        assert repr(blocking.pool) == "<Pool open, 1 in use, 0 available of 10, 0 waiting>"
        connection.close()


def test_requests_with_a_pulsar_connection(run: Callable[..., Any]) -> None:
    class Echo(Bare):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            served.append(self)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    served: list[Echo] = []

    async def ask(pool: Pool[Connection], message: bytes) -> bytes:
        async with pool.connect() as connection:
            consumer = connection.current_consumer()
            consumer.start(message)
            answer: bytes = await consumer.on_finished
            return answer

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        async def create() -> Connection:
            return (await loop.create_connection(pulsars, *address))[1]

        async with server, Pool(create, pool_size=2) as pool:
            messages = [b"%d" % number for number in range(20)]
            assert await asyncio.gather(*(ask(pool, m) for m in messages)) == messages
            assert repr(pool) == "<Pool open, 0 in use, 2 available of 2, 0 waiting>"
        assert len(served) == 2
        for connection in served:
            await connection.lost

    run(main())
