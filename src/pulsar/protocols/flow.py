"""Flow control: what a protocol does when its peer reads more slowly than it writes.

Owns: ``FlowControl``, ``WRITTEN`` and ``LOST``, the things that ``write`` returns.
Leaves: the buffer and its water marks to the transport, reading to ``Connection``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any
from weakref import WeakSet

from ..errors import ConnectionClosed, FlowControlError

__all__ = ["LOST", "WRITTEN", "FlowControl", "Written"]


class Written(tuple[()]):
    """What ``write`` returns when there is nothing to wait for.

    An empty tuple, hence false, that can be awaited all the same: so
    ``await self.write(data)`` is right whatever ``write`` returned.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield  # it makes this a generator


class Lost(Written):
    """What ``write`` returns when the connection is closed: awaiting it raises.

    Without it a loop of ``await self.write(chunk)`` would never learn that
    nobody listens any more.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        raise ConnectionClosed("the connection is closed: nothing can be written to it")
        yield  # type: ignore[unreachable]  # it makes this a generator


WRITTEN = Written()
LOST = Lost()


class FlowControl:
    """A mixin for protocols: ``pause_writing`` and ``resume_writing``.

    :param low_limit: bytes; writing resumes when the transport's buffer is at or below it
    :param high_limit: bytes; writing pauses when the buffer is above it

    With neither, the transport's own marks stay (64 KiB high).
    """

    _low_limit: int | None
    _high_limit: int | None
    _paused: bool
    _write_waiters: WeakSet[asyncio.Future[None]] | None

    def __init__(
        self, low_limit: int | None = None, high_limit: int | None = None, **kw: Any
    ) -> None:
        super().__init__(**kw)
        self._low_limit = low_limit
        self._high_limit = high_limit
        self._paused = False
        self._write_waiters = None

    @property
    def writing_paused(self) -> bool:
        """True between ``pause_writing`` and ``resume_writing``."""
        return self._paused

    def set_write_limits(self, transport: Any) -> None:
        """Give the transport the limits of this protocol, if it has any."""
        if self._low_limit is not None or self._high_limit is not None:
            transport.set_write_buffer_limits(self._high_limit, self._low_limit)

    def pause_writing(self) -> None:
        """Called by the transport when its buffer goes above the high limit.

        Raises ``FlowControlError`` when writing is paused already.
        """
        if self._paused:
            raise FlowControlError("pause_writing() called while writing is paused")
        self._paused = True

    def resume_writing(self, exc: BaseException | None = None) -> None:
        """Called by the transport when its buffer has drained to the low limit.

        :param exc: raise this in those who wait instead of letting them go on

        Raises ``FlowControlError`` when writing is not paused.
        """
        if not self._paused:
            raise FlowControlError("resume_writing() called while writing is not paused")
        self._paused = False
        waiters, self._write_waiters = self._write_waiters, None
        for waiter in waiters or ():
            if waiter.done():
                continue
            if exc is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(exc)
                # Retrieved: nobody is obliged to await what write() returned.
                waiter.exception()

    def write_waiter(self) -> asyncio.Future[None]:
        """A Future that is done when writing resumes.

        One for each caller, so that cancelling one does not disturb the others;
        held weakly, so that those whom nobody awaits cost nothing.
        """
        waiters = self._write_waiters
        if waiters is None:
            waiters = self._write_waiters = WeakSet()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.add(waiter)
        return waiter
