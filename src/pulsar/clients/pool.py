"""A pool of open connections to one place.

Owns: ``Pool``, ``PoolConnection`` and ``Poolable``, what a pool asks of a connection.
Leaves: opening a connection to the ``creator``, requests to the client.

Theory of operation. A pool has ``pool_size`` slots. A slot is *available* (it
holds an idle connection), *in use* (by one caller, from the moment it is given
to him, so also while he opens or checks a connection), or empty. Two methods
move slots: ``_take`` and ``_give_back``. Both are synchronous, complete, and
only return what is to be closed; whatever has to be awaited is awaited by a
caller who owns his slot already. So there are three cases to ``connect``:

1. a connection is available: the one released last, which is checked first;
2. a slot is empty: the caller opens a connection;
3. neither: the caller waits, and a slot that comes back goes to the first in
   the queue, with its connection or without.

While somebody waits every slot is in use: a newcomer can overtake nobody.

A connection is checked when it is handed out, not before, by looking at its
descriptor, because the loop of a blocking client does not run between calls and
has noticed nothing. An idle connection has nothing to say: one that is readable
has been closed by its peer, or has sent what would be taken for the answer to
the next request. It is aborted. TLS is the exception, where session tickets and
other records are not for us: there the loop may read first, and the connection
is used if it is still open and has become quiet.
"""

# The classes in this file are one machine.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import select
import sys
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast

from ..errors import ClientError, ConnectTimeout, PoolClosed, PoolTimeout, PulsarException

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable

__all__ = ["Pool", "PoolConnection", "Poolable"]

# Turns of the loop in which a TLS transport reads what has arrived, and closes.
_TLS_TURNS = 8


class Poolable(Protocol):
    """What a pool asks of a connection; pulsar's ``Connection`` has it."""

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        """The transport; None: there is no descriptor to look at."""

    @property
    def closed(self) -> bool:
        """True once the connection is closing or lost."""

    def close(self) -> Awaitable[Any]:
        """Start closing; awaiting the result, which nobody has to, waits for the end of it."""

    def abort(self) -> None:
        """Close at once."""


class _HasConsumer(Protocol):
    def current_consumer(self) -> Any: ...


C = TypeVar("C", bound=Poolable)


class Pool(Generic[C]):
    """Up to ``pool_size`` open connections, which callers use in turn.

    ``creator``: called without arguments for a connection; returns an awaitable.
    ``loop``: the event loop; by default, or when it was closed before it was
    needed, the one of the first ``connect``.
    ``timeout``: seconds to wait for a slot; None: for ever.
    ``connect_timeout``: seconds that the creator may take; None: for ever.
    ``idle_timeout``: seconds after which an unused connection is closed, at the
    next ``connect`` or release; None: never.
    ``name``: what messages call this pool, such as the address behind it.

    Connections are reused in last-in, first-out order, callers are served in the
    order in which they came. Not thread-safe.
    """

    def __init__(
        self,
        creator: Callable[[], Awaitable[C]],
        pool_size: int = 10,
        loop: asyncio.AbstractEventLoop | None = None,
        timeout: float | None = None,
        *,
        connect_timeout: float | None = None,
        idle_timeout: float | None = None,
        name: str = "",
    ) -> None:
        if pool_size < 1:
            raise PulsarException(f"pool_size is {pool_size}: a pool needs at least 1 connection")
        self._creator = creator
        self._pool_size = pool_size
        self._loop = loop
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._name = name
        self._used = False
        self._closed = False
        self._in_use = 0
        # Connections and the times of their release, the last one last.
        self._idle: deque[tuple[C, float]] = deque()
        # Ordered by arrival. The result is a slot: with a connection, or None.
        self._waiters: OrderedDict[asyncio.Future[C | None], None] = OrderedDict()
        # What close() waits for: the ends of the last few connections that were closed.
        self._closing: deque[Awaitable[Any]] = deque(maxlen=pool_size)

    def __repr__(self) -> str:
        name = f" {self._name}" if self._name else ""
        return (
            f"<{type(self).__name__}{name} {'closed' if self._closed else 'open'}, "
            f"{self._in_use} in use, {len(self._idle)} available of {self._pool_size}, "
            f"{len(self._waiters)} waiting>"
        )

    @property
    def pool_size(self) -> int:
        """The largest number of connections that are open at one time."""
        return self._pool_size

    @property
    def in_use(self) -> int:
        """The number of slots that callers have: connections in use or being opened."""
        return self._in_use

    @property
    def available(self) -> int:
        """The number of idle connections."""
        return len(self._idle)

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return self._closed

    def connect(self) -> _Connecting[C]:
        """A connection of this pool: ``await pool.connect()`` gives a ``PoolConnection``.

        ``async with pool.connect() as connection:`` releases it at the end of the
        block. Nothing happens before the result is awaited or entered; then raises
        ``PoolTimeout`` when no slot became free in time, ``ConnectTimeout`` when
        the creator took too long, whatever the creator raises, ``PoolClosed``, and
        ``RuntimeError`` in another event loop than before.
        """
        return _Connecting(self)

    def close(self) -> Awaitable[None]:
        """Close the idle connections, and refuse to hand out more.

        Who waits for a connection gets ``PoolClosed``. Connections in use are
        closed when they are released. Awaiting the result, which nobody has to,
        waits until the connections closed so far are closed completely.
        """
        self._closed = True
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(self._refusal())
        while self._idle:
            connection, _ = self._idle.pop()
            self._close([connection])
        return _Closing(tuple(self._closing))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # Moving slots

    def _take(
        self, loop: asyncio.AbstractEventLoop
    ) -> tuple[C | None, asyncio.Future[C | None] | None, list[C]]:
        """Give a slot to the caller: with a connection, or empty; or a place in the queue.

        Also returns the connections to close.
        """
        expired = self._expired(loop.time())
        if self._in_use < self._pool_size:
            self._in_use += 1
            return self._pop_idle(), None, expired
        waiter: asyncio.Future[C | None] = loop.create_future()
        self._waiters[waiter] = None
        return None, waiter, expired

    def _give_back(self, connection: C | None, discard: bool = False) -> list[C]:
        """Take a slot from the caller, with its connection or empty; the next in the queue gets it.

        Returns the connections to close.
        """
        assert self._loop is not None
        now = self._loop.time()
        surplus = self._expired(now)
        if connection is not None and (discard or self._closed or connection.closed):
            surplus.append(connection)
            connection = None
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return surplus
        self._in_use -= 1
        if connection is not None:
            self._idle.append((connection, now))
        return surplus

    def _pop_idle(self) -> C | None:
        return self._idle.pop()[0] if self._idle else None

    def _expired(self, now: float) -> list[C]:
        expired: list[C] = []
        if self._idle_timeout is not None:
            while self._idle and now - self._idle[0][1] >= self._idle_timeout:
                expired.append(self._idle.popleft()[0])
        return expired

    # Acting on it

    async def _acquire(self) -> PoolConnection[C]:
        loop = self._running_loop()
        connection, waiter, expired = self._take(loop)
        if waiter is not None:
            connection = await self._wait(waiter, loop)
        # From here on the caller owns a slot, which he keeps or gives back.
        try:
            self._close(expired)
            while connection is not None and not await _is_usable(connection):
                dead, connection = connection, self._pop_idle()
                dead.abort()
                self._close([dead])
            if connection is None:
                connection = await self._open()
            if self._closed:
                raise self._refusal()
        except BaseException:
            self._release(connection)
            raise
        return PoolConnection(self, connection)

    async def _wait(
        self, waiter: asyncio.Future[C | None], loop: asyncio.AbstractEventLoop
    ) -> C | None:
        """Wait for a slot."""
        timer = None
        if self._timeout is not None:
            timer = loop.call_later(self._timeout, self._expire, waiter)
        try:
            return await waiter
        except BaseException:
            self._waiters.pop(waiter, None)
            # A slot may have come in the very moment of a cancellation.
            if _has_result(waiter):
                self._release(waiter.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, waiter: asyncio.Future[C | None]) -> None:
        if not waiter.done():
            del self._waiters[waiter]
            waiter.set_exception(
                PoolTimeout(f"no connection became free within {self._timeout:g} s: {self!r}")
            )

    async def _open(self) -> C:
        if self._closed:
            raise self._refusal()
        opening = self._creator()
        try:
            async with asyncio.timeout(self._connect_timeout) as deadline:
                return await opening
        except BaseException as error:
            # Where the creator gave a future, a connection may have come in the same moment.
            if isinstance(opening, asyncio.Future) and _has_result(opening):
                self._close([opening.result()])
            if isinstance(error, TimeoutError) and deadline.expired():
                raise ConnectTimeout(
                    f"no connection was made within {self._connect_timeout:g} s: {self!r}"
                ) from error
            raise

    def _release(self, connection: C | None, discard: bool = False) -> None:
        self._close(self._give_back(connection, discard))

    def _close(self, connections: Iterable[C]) -> None:
        for connection in connections:
            self._closing.append(connection.close())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop, if this pool may be used in it."""
        if self._closed:
            raise self._refusal()
        loop = asyncio.get_running_loop()
        if not self._used and (self._loop is None or self._loop.is_closed()):
            # Closed: a client that was made outside a loop gives up its own inside one.
            self._loop = loop
        self._used = True
        if self._loop is not loop:
            raise RuntimeError(
                f"{self!r} belongs to another event loop: "
                "a pool works only in the loop in which it was first used"
            )
        return loop

    def _refusal(self) -> PoolClosed:
        return PoolClosed(f"{self!r} hands out no connections any more")


class PoolConnection(Generic[C]):
    """A connection of a pool while one caller has it.

    As a context manager, ``with`` or ``async with``, it goes back to the pool at
    the end of the block; it is closed instead when the block raised, for then
    nobody knows what is still under way on it.
    """

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool[C], connection: C) -> None:
        self._pool = pool
        self._connection: C | None = connection

    def __repr__(self) -> str:
        if self._connection is None:
            return f"<{type(self).__name__} released>"
        state = "lost" if self._connection.closed else "in use"
        return f"<{type(self).__name__} {state}: {self._connection!r}>"

    @property
    def pool(self) -> Pool[C]:
        """The pool that handed out this connection."""
        return self._pool

    @property
    def connection(self) -> C:
        """The connection itself. Raises ``ClientError`` after the release."""
        if self._connection is None:
            raise ClientError(
                "this connection was released to its pool: use what a new connect() gives"
            )
        return self._connection

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        """The transport of the connection. Raises ``ClientError`` after the release."""
        return self.connection.transport

    @property
    def closed(self) -> bool:
        """True after the release, and when the connection is closing or lost."""
        return self._connection is None or self._connection.closed

    def current_consumer(self) -> Any:
        """The connection's current consumer, as ``Connection.current_consumer`` gives it.

        Raises ``ClientError`` after the release.
        """
        return cast("_HasConsumer", self.connection).current_consumer()

    def close(self, discard: bool = False) -> None:
        """Release the connection to the pool; the second time, do nothing.

        ``discard``: close it rather than let it be used again.
        """
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._pool._release(connection, discard)

    def detach(self, discard: bool = True) -> C:
        """Take the connection out of the pool, which may open another one in its place.

        ``discard``: close it, too. Returns the connection, of which the pool knows
        nothing any more. Raises ``ClientError`` after the release.
        """
        connection = self.connection
        self._connection = None
        self._pool._release(None)
        if discard:
            self._pool._close([connection])
        return connection

    def __enter__(self) -> Self:
        self.connection  # noqa: B018  (raises after the release)
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self.close(discard=exc_type is not None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self.__exit__(exc_type)


class _Connecting(Generic[C]):
    """What ``Pool.connect`` returns: to be awaited, or entered with ``async with``."""

    __slots__ = ("_entered", "_pool")

    def __init__(self, pool: Pool[C]) -> None:
        self._pool = pool
        self._entered: PoolConnection[C] | None = None

    def __await__(self) -> Generator[Any, None, PoolConnection[C]]:
        return self._pool._acquire().__await__()

    async def __aenter__(self) -> PoolConnection[C]:
        self._entered = await self
        return self._entered

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        entered, self._entered = self._entered, None
        assert entered is not None
        entered.close(discard=exc_type is not None)


class _Closing:
    """What ``Pool.close`` returns: may be awaited; a coroutine would have to be."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[Awaitable[Any], ...]) -> None:
        self._parts = parts

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        for part in self._parts:
            # How a connection that nobody has any more came to its end is of no interest.
            with suppress(OSError):
                await part


async def _is_usable(connection: Poolable) -> bool:
    """Look whether a connection that was idle still is one."""
    transport = connection.transport
    if transport is not None and _is_readable(transport):
        if transport.get_extra_info("sslcontext") is None:
            return False
        for _ in range(_TLS_TURNS):
            await asyncio.sleep(0)
        if _is_readable(transport):
            return False
    return not connection.closed


def _is_readable(transport: asyncio.BaseTransport) -> bool:
    """True when the descriptor has bytes, its end, or an error to read."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    descriptor: int = sock.fileno()
    if descriptor < 0:
        return True
    if sys.platform == "win32":
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()  # select() cannot see descriptors from 1024 on
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _has_result(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
