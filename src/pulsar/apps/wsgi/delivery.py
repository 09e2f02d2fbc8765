"""Sending what an application has returned, on the loop, for as long as that takes.

Owns: the order of asking for a piece and sending it, back-pressure, giving way to other
connections, the closing of iterables.
Leaves: what is sent for a piece to ``response``, files to ``files``.

Each piece is on its way before the next one is asked for (PEP 3333). What needs no
waiting is done in one go; where the client does not read, where there is something to
await, and after a while, a task goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from .files import FileWrapper, send_file
from .loopless import without_loop

if TYPE_CHECKING:
    from .response import HttpServerResponse

__all__ = [
    "close_iterable",
    "deliver",
    "is_awaitable",
    "is_for_the_loop",
    "trailers_of",
    "whole_body",
]

logger = logging.getLogger("pulsar.wsgi")

_END = object()

# Seconds after which an iterable lets others have their turn.
_TURN = 0.005


def deliver(response: HttpServerResponse, result: Any) -> None:
    """Send ``result``, which an application has returned. Raises what that raises."""
    body = whole_body(result)
    if body is not None:
        response.answer(body)
        return
    if type(result) in {list, tuple}:
        result = _Awaitables(result)
        response.iterable = result
        response.create_task(_rest(response, result))
        return
    response.iterable = result
    if is_for_the_loop(result):
        response.create_task(_later(response, result))
        return
    loop = response.hidden_loop
    pieces = without_loop(loop, iter, result)
    began = 0.0
    while True:
        piece = without_loop(loop, next, pieces, _END)
        if piece is _END:
            response.end(trailers_of(result))
            return
        if is_awaitable(piece):
            response.create_task(_rest(response, pieces, piece=piece))
            return
        written = response.send(piece)
        if response.bodiless:
            response.end()
            return
        now = monotonic()
        began = began or now
        if written or now - began > _TURN or response.connection.closing:  # type: ignore[union-attr]
            response.create_task(_rest(response, pieces, written=written))
            return
        response.flush()


def whole_body(result: Any) -> bytes | None:
    """The body, if it is all there: a list of bytes. Raises ``TypeError`` for other lists."""
    kind = type(result)
    if kind is not list and kind is not tuple:
        return None
    try:
        return b"".join(result)
    except TypeError:
        if any(map(is_awaitable, result)):
            return None
        raise


def is_for_the_loop(result: Any) -> bool:
    """True for what has to be awaited, and for files, whoever has called the application."""
    kind = type(result)
    return kind is FileWrapper or hasattr(kind, "__await__") or _is_async_only(kind)


def _is_async_only(kind: type) -> bool:
    # What can be iterated plainly is: Django's responses can both ways, and collect
    # everything first when they are made of a plain generator and iterated the other way.
    return hasattr(kind, "__aiter__") and not hasattr(kind, "__iter__")


def trailers_of(iterable: Any) -> Sequence[tuple[str, str]]:
    """What the method ``trailers`` of an iterable gives, when it has one."""
    trailers = getattr(iterable, "trailers", None)
    return trailers() if callable(trailers) else ()


def close_iterable(iterable: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Call ``close`` of what an application has returned, if it has it.

    :param loop: to be hidden from it, see ``loopless``
    """
    try:
        close = getattr(iterable, "close", None)
        if close is not None:
            without_loop(loop, close)
    except Exception:
        logger.exception("close() of what the application has returned failed")


def is_awaitable(thing: Any) -> bool:
    """True for what can be awaited."""
    return hasattr(type(thing), "__await__")


class _Awaitables:
    """A list with something to await in it; what is left is closed."""

    def __init__(self, pieces: Sequence[Any]) -> None:
        self._left = deque(pieces)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        return self._left.popleft()

    def close(self) -> None:
        for piece in self._left:
            if is_awaitable(piece):
                close_iterable(piece)  # a coroutine that nobody awaits complains
        self._left.clear()


# In a task


async def _later(response: HttpServerResponse, result: Any) -> None:
    try:
        if type(result) is FileWrapper:
            if not await send_file(response, result):
                await _send_all(response, iter(result))
                response.end()
            return
        # From here on it is closed by those who use it.
        response.iterable = None
        if _is_async_only(type(result)):
            await _send_async(response, result)
        else:
            connection = response.connection
            deliver(response, await result)
            if response.iterable is None and connection is not None:
                connection.context = None  # as the response does, where it has more to do
    except BaseException as exc:
        _failed(response, exc)


async def _rest(
    response: HttpServerResponse, pieces: Iterator[Any], *, piece: Any = None, written: Any = None
) -> None:
    """Go on with ``pieces``, behind a ``piece`` to be awaited, or what ``send`` has returned."""
    try:
        if piece is not None:
            await _send(response, await piece)
        elif written is not None:
            await written
        await _send_all(response, pieces)
        response.end(trailers_of(response.iterable))
    except BaseException as exc:
        _failed(response, exc)


async def _send_all(response: HttpServerResponse, pieces: Iterator[Any]) -> None:
    loop = response.hidden_loop
    while not response.bodiless:
        piece = without_loop(loop, next, pieces, _END)
        if piece is _END:
            return
        await _send(response, await piece if is_awaitable(piece) else piece)


async def _send_async(response: HttpServerResponse, result: AsyncIterator[bytes]) -> None:
    try:
        async for piece in result:
            await _send(response, piece)
            if response.bodiless:
                break
        response.end(trailers_of(result))
    finally:
        await _close_async(result)


async def _send(response: HttpServerResponse, piece: bytes) -> None:
    written = response.send(piece)
    await written  # raises when the client has gone
    if not written:
        await asyncio.sleep(0)  # it did not wait: let others have their turn


async def _close_async(result: Any) -> None:
    if not hasattr(result, "aclose"):
        close_iterable(result)
        return
    try:
        await result.aclose()
    except Exception:
        logger.exception("aclose() of what the application has returned failed")


def _failed(response: HttpServerResponse, exc: BaseException) -> None:
    """An error in a task: the application's, or the end of the connection."""
    connection = response.connection
    if isinstance(exc, asyncio.CancelledError) and (connection is None or connection.closing):
        response.close_all()
        raise exc
    response.fail(exc)
    if isinstance(exc, KeyboardInterrupt):
        raise exc
