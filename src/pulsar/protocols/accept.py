"""Accepting connections: on which sockets, and when not.

Owns: ``Acceptor``: listening sockets, the loop's servers on them, pausing and
resuming.
Leaves: when to pause to ``TcpServer``; binding to ``pulsar.sockets``; accepting where each
connection begins with a header of the PROXY protocol to ``proxied``.

A loop's server cannot be paused, only closed, and closing it closes its socket,
with every connection that the kernel has queued there. So the loop is only ever
given a *duplicate* of a listening socket. Pausing closes the duplicate; the
original goes on queueing; resuming serves another duplicate. The same swap
renews a TLS context.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from .backlog import has_queued, refuse_new

__all__ = ["ASKED_TO", "STEPPED_BACK", "Accepting", "Acceptor"]

# The reason of a pause that nobody but the user ends.
ASKED_TO = "asked to"

# The reason of a pause of milliseconds, in which other workers accept: see ``balance``.
STEPPED_BACK = "stepped back"

# Seconds before a failed attempt to resume is repeated.
_RETRY = 1.0


class Accepting(Protocol):
    """What accepts on a duplicate: a loop's server, or what ``proxied`` has for one."""

    def close(self) -> None:
        """Accept no more, and close the duplicate."""


class _Listener(socket.socket):
    """A duplicate that keeps the backlog of its original.

    asyncio accepts as many connections per turn of the loop as it was given for a
    backlog, and calls ``listen`` with that number. We want the backlog long and
    the turns short: a server that pauses must not have accepted a thousand
    connections before it learns of the first.
    """

    backlog = 0

    def listen(self, backlog: int = 0, /) -> None:
        super().listen(self.backlog)


class Acceptor:
    """Accepts on listening ``sockets`` and makes a protocol for each connection.

    :param sockets: bound stream sockets; they stay their owner's, who closes them
    :param factory: makes the protocol of a connection; may call ``pause``
    :param backlog: connections that the kernel queues for each socket
    :param ssl_context: TLS for every connection, but for those on ``plain`` sockets
    :param handshake_timeout: seconds that a TLS handshake may take
    :param plain: the sockets among ``sockets`` that never speak TLS
    :param proxied: the sockets among ``sockets`` that speak the PROXY protocol
    :param arrivals: called for these with a duplicate and the TLS context; what it returns
        accepts until it is closed
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        backlog: int,
        logger: logging.Logger,
        ssl_context: ssl.SSLContext | None = None,
        handshake_timeout: float | None = None,
        plain: Sequence[socket.socket] = (),
        proxied: Sequence[socket.socket] = (),
        arrivals: Callable[[socket.socket, ssl.SSLContext | None], Accepting],
    ) -> None:
        self.sockets = list(sockets)
        self.servers: list[Accepting] = []
        self._loop = loop
        self._factory = factory
        self._backlog = backlog
        self._logger = logger
        self._ssl_context = ssl_context
        self._handshake_timeout = handshake_timeout
        self._plain = {sock.fileno() for sock in plain}
        self._proxied = {sock.fileno() for sock in proxied}
        self._arrivals = arrivals
        self._duplicates: list[int] = []
        self.closed = False
        # The servers that exist must be replaced before any of them is used again.
        self._stale = False
        # Why accepting is paused; empty when it is not.
        self.paused: set[str] = set()
        self._settling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen and accept. Raises ``OSError`` when a socket cannot listen."""
        for sock in self.sockets:
            sock.setblocking(False)
            sock.listen(self._backlog)
        await self._open()

    def pause(self, reason: str) -> None:
        """Accept nothing more until ``resume(reason)``; queued connections wait."""
        first = not self.paused
        self.paused.add(reason)
        if not first or self.closed:
            return
        self._stale = True
        self._unregister()
        # Not at once: a loop attaches the connection it is just making to its server.
        self._loop.call_soon(self._settle)

    def resume(self, reason: str) -> None:
        """Take back ``pause(reason)``; accept again when no other reason is left."""
        if reason in self.paused:
            self.paused.discard(reason)
            self._settle()

    async def swap_context(self, ssl_context: ssl.SSLContext) -> None:
        """Use ``ssl_context`` for connections accepted from now on."""
        self._ssl_context = ssl_context
        await self._renew()

    async def add(
        self,
        sockets: Sequence[socket.socket],
        plain: Sequence[socket.socket],
        proxied: Sequence[socket.socket],
    ) -> None:
        """Accept on ``sockets``, too, which listen.

        :param plain: those without TLS
        :param proxied: those with the PROXY protocol
        """
        for sock in sockets:
            sock.setblocking(False)
        self.sockets += sockets
        self._plain.update(sock.fileno() for sock in plain)
        self._proxied.update(sock.fileno() for sock in proxied)
        await self._renew()

    async def remove(self, sockets: Sequence[socket.socket]) -> None:
        """Accept no more on ``sockets``; what is queued there stays there."""
        self.sockets = [sock for sock in self.sockets if sock not in sockets]
        self._plain.difference_update(sock.fileno() for sock in sockets)
        self._proxied.difference_update(sock.fileno() for sock in sockets)
        if not self.closed:
            await self._renew()

    async def shut_the_door(self, shared: Sequence[socket.socket] = ()) -> None:
        """Let no new connection into the queues; go on accepting those that are there.

        :param shared: sockets that others listen on, too: what is queued there, and
            what comes, is for them
        """
        self.paused -= {ASKED_TO, STEPPED_BACK}
        if self.closed:
            return
        for sock in self.sockets:
            if sock not in shared:
                refuse_new(sock)
        if shared:
            await self.remove(shared)
        else:
            await self._settled()

    def has_queued(self) -> bool:
        """True when a connection waits to be accepted."""
        return any(map(has_queued, self.sockets))

    async def stop(self) -> None:
        """Stop accepting, for good. The sockets stay open, and their owner's."""
        self.closed = True
        if self._settling is not None:
            self._settling.cancel()
        # What asyncio has accepted it makes a turn later, with its server.
        self._unregister()
        await asyncio.sleep(0)
        self._close_servers()
        # uvloop closes the descriptors a turn later; until then the port is not free.
        await asyncio.sleep(0)

    async def _renew(self) -> None:
        """Replace the loop's servers, by others or by none."""
        self._stale = True
        await self._settled()

    async def _settled(self) -> None:
        self._settle()
        if self._settling is not None:
            # Whoever is cancelled here does not cancel what others wait for, too.
            await asyncio.wait([self._settling])

    def _settle(self) -> None:
        """Bring the loop's servers in line with what was asked for."""
        if self.closed:
            return
        if self.paused:
            self._close_servers()
        elif self._unsettled() and self._settling is None:
            self._settling = self._loop.create_task(self._reopen())

    def _unsettled(self) -> bool:
        return self._stale or len(self.servers) != len(self.sockets)

    async def _reopen(self) -> None:
        try:
            while not self.paused and self._unsettled():
                if self.servers:
                    # What asyncio has accepted it makes a turn later, with its server.
                    self._unregister()
                    await asyncio.sleep(0)
                self._close_servers()
                self._stale = False
                try:
                    await self._open()
                except OSError as exc:
                    self._logger.warning("cannot accept connections: %s; trying again", exc)
                    await asyncio.sleep(_RETRY)
        finally:
            self._settling = None
            if self.closed or self.paused:
                self._close_servers()

    async def _open(self) -> None:
        opened: list[Accepting] = []
        try:
            for sock in self.sockets:
                opened.append(await self._serve(sock))  # noqa: PERF401 - what was opened must be closed
        except BaseException:
            self.servers = opened
            self._close_servers()
            raise
        self.servers = opened

    async def _serve(self, sock: socket.socket) -> Accepting:
        # Its protocol is asked of the system: asyncio sets TCP_NODELAY where that is TCP, and
        # most sockets are made without naming one.
        listener = _Listener(fileno=sock.dup().detach())
        listener.backlog = self._backlog
        self._duplicates.append(listener.fileno())
        context = None if sock.fileno() in self._plain else self._ssl_context
        if sock.fileno() in self._proxied:
            return self._arrivals(listener, context)
        # asyncio's own loops: one accept per turn (see _Listener). uvloop accepts
        # one per turn in any case, and hands its number to the kernel.
        turns = 1 if isinstance(self._loop, asyncio.BaseEventLoop) else self._backlog
        try:
            return await self._loop.create_server(
                self._factory,
                sock=listener,
                backlog=turns,
                ssl=context,
                ssl_handshake_timeout=None if context is None else self._handshake_timeout,
            )
        except BaseException:
            listener.close()
            raise

    def _unregister(self) -> None:
        """Accept nothing more, and that from now on."""
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # It may have noticed the next connection already: unregistering
            # takes that back, which closing, a callback later, would not.
            for descriptor in self._duplicates:
                self._loop.remove_reader(descriptor)

    def _close_servers(self) -> None:
        servers, self.servers = self.servers, []
        self._duplicates.clear()
        for server in servers:
            server.close()
