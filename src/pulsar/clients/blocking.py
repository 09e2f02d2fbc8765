"""Calling a coroutine where no loop runs: blocking clients.

Owns: ``PrivateLoop``, the loop of a client that is used without one, and
``run_blocking``.
Leaves: which loop a client belongs to to ``client``.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..system import new_event_loop

__all__ = ["PrivateLoop", "run_blocking", "running_loop"]

T = TypeVar("T")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class PrivateLoop:
    """A loop of a client's own. It runs only during blocking calls.

    It is closed with ``close``, when the client is collected, or when the process
    ends. The transports that ``track`` was told of are closed first: uvloop waits
    for theirs, for as long as the peer likes.

    The owner is only collected when no transport leads to it: a loop keeps those
    that are open.
    """

    __slots__ = ("_finalizer", "_transports", "loop")

    def __init__(self, owner: object) -> None:
        self.loop = new_event_loop()
        self._transports: set[asyncio.BaseTransport] = set()
        self._finalizer = weakref.finalize(owner, _abandon, self.loop, self._transports)

    def track(self, transport: asyncio.BaseTransport) -> None:
        """Close ``transport`` together with the loop."""
        # No WeakSet: uvloop's TLS transports take no weak references.
        self._transports -= {known for known in self._transports if known.is_closing()}
        self._transports.add(transport)

    def close(self) -> None:
        """Close the loop and whatever is still open in it."""
        if self._finalizer.detach() is not None:
            _close_loop(self.loop, self._transports)


def _abandon(loop: asyncio.AbstractEventLoop, transports: set[asyncio.BaseTransport]) -> None:
    """Close the loop of a client that is no more."""
    for transport in transports:
        # Its own protocol would report to the client.
        transport.set_protocol(asyncio.Protocol())
    _close_loop(loop, transports)


def _close_loop(loop: asyncio.AbstractEventLoop, transports: set[asyncio.BaseTransport]) -> None:
    if loop.is_closed() or loop.is_running():
        return
    if running_loop() is None:
        _run_down(loop, transports)
    else:
        # One thread runs one loop at a time, and this one runs another: that in which
        # the client was collected, or is about to be used.
        thread = threading.Thread(target=_run_down, args=(loop, transports))
        thread.start()
        thread.join()


def _run_down(loop: asyncio.AbstractEventLoop, transports: set[asyncio.BaseTransport]) -> None:
    loop.run_until_complete(_close_all(loop, transports))
    loop.close()


async def _close_all(loop: asyncio.AbstractEventLoop, transports: set[Any]) -> None:
    rest = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest)
    for transport in transports:
        transport.abort()
    await loop.shutdown_asyncgens()
    try:
        await loop.shutdown_default_executor()
    except RuntimeError:
        # The process is ending, and CPython 3.12 starts no thread any more to wait for
        # the executor's. They have ended: threads are joined before finalizers run.
        pass
    # Transports close their sockets in callbacks.
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def run_blocking(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T]) -> T:
    """Run ``coro`` on ``loop`` until it is complete, and return its value.

    An interruption (Ctrl-C) cancels it, and waits for what it has to clean up.
    Raises ``RuntimeError`` when the loop is closed, or runs in another thread.
    """
    if loop.is_closed() or loop.is_running():
        coro.close()
        what = "is closed" if loop.is_closed() else "runs in another thread"
        raise RuntimeError(f"a blocking call is not possible: the client's event loop {what}")
    task = loop.create_task(coro)
    try:
        return loop.run_until_complete(task)
    except BaseException:
        if not task.done():
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        raise
