"""The end of a stream server: nothing that has begun is cut off.

Owns: ``Drain``, the order and the deadlines of a graceful stop.
Leaves: what a last request is to ``Connection``, accepting to ``accept``.

In this order: new connections are kept out; those that the kernel has queued are
accepted; every consumer is asked to say goodbye; requests in progress are answered; a
connection that is idle may bring one more request for a short while, after whose answer
it is closed, or as many as it likes, where the peer was told to end it; what is left at
the deadline is aborted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
from collections.abc import Callable, MutableMapping, Sequence

from .accept import Acceptor
from .connection import Connection
from .hosted import Hosted
from .protocol import Protocol

__all__ = ["Drain", "Member"]

Member = Protocol | Hosted

# Seconds between looks at the queue, and at the connections.
_CHECK = 0.02

# So many looks may pass until an aborted connection tells that it is lost. One whose
# protocol was replaced tells the other protocol.
_LAST_LOOKS = 25

# After so many looks at an empty queue, no handshake that was under way will fill it.
_QUIET_LOOKS = 2


class Drain:
    """One graceful stop. Tell ``changed`` when a connection is lost.

    :param members: the server's connections; it drops the lost ones itself
    :param stopped: called once, when nothing is accepted any more
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        acceptor: Acceptor,
        members: MutableMapping[Member, float],
        stopped: Callable[[], None],
        logger: logging.Logger,
    ) -> None:
        self.changed = asyncio.Event()
        self.running = False
        self._loop = loop
        self._acceptor = acceptor
        self._members = members
        self._stopped = stopped
        self._logger = logger
        self._quiet = 0
        self._accepting = not acceptor.closed
        # When each connection was first seen idle.
        self._idle: dict[Member, float] = {}

    async def run(
        self, name: str, shared: Sequence[socket.socket], timeout: float | None, linger: float
    ) -> None:
        """Stop within ``timeout`` seconds (None: unlimited), giving the idle ``linger``.

        :param name: of the server, for the log
        :param shared: sockets whose queue is left to others
        """
        self.running = True
        try:
            await self._run(name, shared, timeout, linger)
        finally:
            self.running = False

    async def _run(
        self, name: str, shared: Sequence[socket.socket], timeout: float | None, linger: float
    ) -> None:
        loop = self._loop
        start = loop.time()
        deadline = math.inf if timeout is None else start + timeout
        linger = linger if timeout is None else min(linger, timeout / 2)
        if deadline > start:
            await self._acceptor.shut_the_door(shared)
            while (self._members or self._accepting) and loop.time() < deadline:
                if self._accepting:
                    await self._look_at_the_queue()
                self._look_at_the_members(loop.time(), start, linger)
                self.changed.clear()
                if self._members or self._accepting:
                    await self._wait(_CHECK)
        if self._accepting:
            await self._stop_accepting()
        if self._members:
            self._logger.warning(
                "%s: %d connections aborted after %.1f s",
                name,
                len(self._members),
                loop.time() - start,
            )

    async def _look_at_the_queue(self) -> None:
        self._quiet = 0 if self._acceptor.has_queued() else self._quiet + 1
        if self._quiet >= _QUIET_LOOKS:
            await self._stop_accepting()

    async def _stop_accepting(self) -> None:
        self._accepting = False
        await self._acceptor.stop()
        self._stopped()

    def _look_at_the_members(self, now: float, start: float, linger: float) -> None:
        for member in list(self._members):
            if not member.made:
                if now - start >= linger:
                    del self._members[member]  # a handshake that takes its time
                continue
            if isinstance(member, Connection):
                member.say_goodbye()
            elif isinstance(member, Hosted) and member.gone:
                del self._members[member]
                continue
            if member.busy:
                self._idle.pop(member, None)
                continue
            idle_since = self._idle.setdefault(member, now)
            if isinstance(member, Connection):
                # A request that came and was answered between two looks counts, too.
                idle_since = max(idle_since, member.quiet_since(now))
            if now - idle_since >= linger:
                member.finish()
                if member.transport.is_closing():
                    _end_reading(member)

    async def forget_the_aborted(self) -> None:
        """Wait for the end of connections that were aborted: a turn of the loop or two."""
        for _ in range(_LAST_LOOKS):
            if not any(member.made for member in self._members):
                break
            self.changed.clear()
            await self._wait(_CHECK)
        self._members.clear()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            pass


def _end_reading(member: Member) -> None:
    """Let a TLS connection that is closing do without its peer's close_notify.

    A client that keeps it in a pool, and does not look at it, never sends one, and
    the loops wait for it for 30 seconds. What is still to be sent is sent.
    """
    transport = member.transport
    if transport.get_extra_info("sslcontext") is None:
        return
    try:
        # uvloop's stand-in for a socket cannot do it.
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    except (AttributeError, OSError):
        return  # closed meanwhile
    with sock:
        try:
            sock.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # the peer was faster
