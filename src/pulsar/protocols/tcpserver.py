"""``TcpServer``: serving streams on TCP and Unix sockets, with TLS or without.

Owns: its connections, their limits, the start and the end.
Leaves: accepting to ``accept`` and ``proxied``, stopping to ``drain``, foreign protocols
to ``hosted``, deadlines to ``timeout``, addresses and sockets to ``server``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from ..errors import ImproperlyConfigured
from ..net import NEARBY, Networks, format_address
from ..sockets import (
    close_sockets,
    descriptor_ceiling,
    has_spare_descriptors,
    lowest_free_descriptor,
)
from .accept import ASKED_TO, STEPPED_BACK, Accepting, Acceptor
from .balance import Balance
from .connection import Connection
from .drain import Drain, Member
from .hosted import Hosted, stream_protocol
from .kinds import Kind
from .producer import Producer
from .protocol import Protocol, PulsarProtocol
from .proxied import Arrivals
from .server import Address, Server
from .timeout import Sweep

__all__ = ["TcpServer"]

# Seconds between looks at the descriptors while accepting is paused for want of them.
_DESCRIPTOR_CHECK = 0.1

# A look at the descriptors costs two system calls: one for so many connections, which
# is far less than the reserve of descriptor_ceiling, unless there are few to begin with.
_DESCRIPTOR_SAMPLE = 8
_FEW_DESCRIPTORS = 480

# A connection without a handshake that was accepted and not made yet, at the first
# look and at the second.
_ACCEPTED = 0.0
_OVERDUE = -1.0

# At max_connections, one connection in so many may make room for others, after so many
# seconds of silence.
_GIVING_WAY = 64
_SILENCE = 1.0

# Seconds that a handler may take to be cancelled.
_TASK_PATIENCE = 1.0

# Seconds past its deadline after which a handshake that nobody has told us of is over.
_HANDSHAKE_SLACK = 1.0


_OWN_CONNECTION_MADE = (Protocol.connection_made, Connection.connection_made)


class TcpServer(Server):
    """Serves streams: TCP, Unix sockets, and TLS over both.

    :param protocol_factory: a ``ProtocolConsumer`` class or factory, a factory of
        ``Connection``, any asyncio protocol class or factory, or a coroutine
        function ``handler(reader, writer)``
    :param loop: the event loop; by default the one that runs ``start_serving``
    :param address: where to listen, when no ``sockets`` are given: ``(host, port)``
        or a bind text such as ``":8080"`` or ``"unix:/run/my.sock"``
    :param name: for logs
    :param sockets: bound sockets to listen on; they are the server's from now on
    :param max_requests: close after that many requests; connections are counted
        where requests cannot be seen
    :param keep_alive: seconds of silence between requests after which a connection
        is closed; where requests cannot be seen, seconds of silence; None or 0: never
    :param max_connections: stop accepting at that many connections; None: unlimited
    :param stall_timeout: seconds of silence in the middle of a request, or while the
        peer does not read, after which a connection is closed; None or 0: never
    :param kind: what ``protocol_factory`` is, where it cannot be told: ``consumer``,
        ``protocol`` or ``stream``
    :param balance: this worker's part in an even share of the connections, where others
        accept on all of its sockets, too
    """

    socket_type: ClassVar[socket.SocketKind] = socket.SOCK_STREAM

    def __init__(
        self,
        protocol_factory: Callable[..., Any],
        loop: asyncio.AbstractEventLoop | None = None,
        address: Address | None = None,
        name: str | None = None,
        sockets: Sequence[socket.socket] | None = None,
        max_requests: int | None = None,
        keep_alive: float | None = None,
        logger: logging.Logger | None = None,
        *,
        max_connections: int | None = None,
        stall_timeout: float | None = 60.0,
        kind: str | Kind = "auto",
        balance: Balance | None = None,
    ) -> None:
        super().__init__(
            protocol_factory, loop, address, name, sockets, max_requests, logger, kind=kind
        )
        # Looked at when the server starts.
        self.balance = balance
        # From the start to the end of accepting.
        self._balance: Balance | None = None
        self._balance_timer: asyncio.TimerHandle | None = None
        self.keep_alive = keep_alive
        self.max_connections = max_connections or None
        self.stall_timeout = stall_timeout
        # Those of what is served, in seconds: looked at when the server starts, for how often
        # to call check_deadlines.
        self.deadlines: Sequence[float] = ()
        self._acceptor: Acceptor | None = None
        # Every connection, from the accept on. A TLS handshake that fails calls nobody:
        # the value is the loop's time at which a connection that was not made is
        # given up, or one of the marks below.
        self._members: dict[Member, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._drain: Drain | None = None
        self._sweep: Sweep | None = None
        self._shared: Sequence[socket.socket] = ()
        self._tls = False
        self._handshake_deadline = _HANDSHAKE_SLACK
        self._descriptor_ceiling = descriptor_ceiling()
        few = self._descriptor_ceiling < _FEW_DESCRIPTORS
        self._descriptor_sample = 1 if few else _DESCRIPTOR_SAMPLE
        self._descriptor_timer: asyncio.TimerHandle | None = None
        self._warned_at: dict[str, float] = {}

    @property
    def _server(self) -> Accepting | None:
        """The loop's server; None before ``start_serving`` and while accepting is paused."""
        servers = self._acceptor.servers if self._acceptor is not None else None
        return servers[0] if servers else None

    @property
    def connections(self) -> int:
        """How many connections there are, handshakes in progress included."""
        return len(self._members)

    @property
    def accepting(self) -> bool:
        """False before the start, after the end, and while accepting is paused."""
        return self._acceptor is not None and not self._ending and not self._why_paused()

    def _why_paused(self) -> list[str]:
        """Why nothing is accepted, but for the milliseconds in which others accept."""
        return [] if self._acceptor is None else sorted(self._acceptor.paused - {STEPPED_BACK})

    async def start(self) -> None:
        """``start_serving`` without TLS, as ``async with`` calls it."""
        await self.start_serving()

    async def start_serving(
        self,
        backlog: int = 2048,
        sslcontext: ssl.SSLContext | None = None,
        *,
        handshake_timeout: float = 10.0,
        plain_sockets: Sequence[socket.socket] = (),
        shared_sockets: Sequence[socket.socket] = (),
        proxied_sockets: Sequence[socket.socket] = (),
        proxy_allow_from: Iterable[str] = NEARBY,
    ) -> None:
        """Listen and accept connections.

        :param backlog: connections that the kernel queues for each socket
        :param sslcontext: speak TLS
        :param handshake_timeout: seconds that a TLS handshake may take, and a header of
            the PROXY protocol
        :param plain_sockets: those of ``sockets`` that do not speak TLS
        :param shared_sockets: those of ``sockets`` on which others listen, too: at
            ``close`` their queued connections are left to them
        :param proxied_sockets: those of ``sockets`` whose connections have to begin with a
            header of the PROXY protocol; an ``address`` says it itself
        :param proxy_allow_from: who may send such headers, as ``pulsar.net.Networks`` takes it

        Raises ``ImproperlyConfigured`` for what cannot be served or bound.
        """
        sockets = self._open(backlog)
        assert self._loop is not None
        if self.kind is Kind.DATAGRAM:
            close_sockets(self._sockets)
            raise ImproperlyConfigured(f"{self.name} serves streams, not datagrams")
        deadlines = [self.keep_alive, self.stall_timeout, *self.deadlines]
        if sslcontext is not None:
            self._tls = True
            self._handshake_deadline += handshake_timeout
            deadlines.append(handshake_timeout)
        self._sweep = Sweep(self._loop, self._check_deadlines, *deadlines)
        self._shared = shared_sockets
        self._acceptor = Acceptor(
            self._loop,
            sockets,
            self.create_protocol,
            backlog=backlog,
            logger=self.logger,
            ssl_context=sslcontext,
            handshake_timeout=handshake_timeout,
            plain=plain_sockets,
            proxied=self._proxied or proxied_sockets,
            arrivals=Arrivals(
                self._loop, self, Networks(proxy_allow_from), handshake_timeout, self._tasks
            ).serve,
        )
        await self._acceptor.start()
        if self.balance is not None:
            self._balance = self.balance
            self._balance.join()
        self.fire_event("start")

    async def adopt(
        self,
        sockets: Sequence[socket.socket],
        *,
        plain_sockets: Sequence[socket.socket] = (),
        proxied_sockets: Sequence[socket.socket] = (),
    ) -> None:
        """Accept on ``sockets``, too, which listen already: see ``Server.adopt``.

        :param plain_sockets: those of ``sockets`` that do not speak TLS
        :param proxied_sockets: those of ``sockets`` that speak the PROXY protocol
        """
        newcomers = self._newcomers(sockets)
        for sock in newcomers:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ImproperlyConfigured(
                    f"{self.name} cannot adopt a socket that does not listen: {sock!r}"
                )
        if newcomers:
            assert self._acceptor is not None
            self._take_in(newcomers)
            await self._acceptor.add(newcomers, plain_sockets, proxied_sockets)

    async def release(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Accept no more on ``sockets``, or on any: see ``Server.release``.

        Connections that were accepted go on.
        """
        leavers = self._let_out(sockets)
        if leavers and self._acceptor is not None:
            await self._acceptor.remove(leavers)

    async def renew_tls(self, sslcontext: ssl.SSLContext) -> None:
        """Use ``sslcontext`` for new connections; the present ones go on undisturbed."""
        if self._acceptor is not None and not self._ending:
            await self._acceptor.swap_context(sslcontext)

    def pause(self) -> None:
        """Stop accepting; connections wait in the kernel's queue until ``resume``."""
        if self._acceptor is not None:
            self._acceptor.pause(ASKED_TO)

    def resume(self) -> None:
        """Accept again, unless a limit forbids it."""
        if self._acceptor is not None:
            self._acceptor.resume(ASKED_TO)

    async def close(
        self,
        timeout: float | None = 30.0,
        *,
        linger: float = 1.0,
        shared: Sequence[socket.socket] = (),
    ) -> None:
        """Stop accepting, let requests in progress finish, close every connection.

        Connections that the kernel has queued are accepted and served; new ones
        are kept out meanwhile.

        :param timeout: seconds until the connections that are left are aborted;
            0: at once; None: wait for ever
        :param linger: seconds for which an idle connection may still bring a request,
            which is answered before the connection is closed
        :param shared: sockets on which others listen, too: what is queued there, and what
            comes, is left to them, as with the ``shared_sockets`` of ``start_serving``
        """
        if self.fired_event("finish"):
            return
        if self._drain is not None and self._drain.running:
            if timeout is not None and timeout <= 0:
                self.abort()
            await self.event("finish")  # type: ignore[misc]
            return
        self._ending = True
        loop, acceptor = self._loop, self._acceptor
        if self._balance is not None:
            self._balance.leave()
            self._balance = None
        if loop is not None and acceptor is not None:
            # A handshake may end after we have: see protocol_connected.
            self.attentive = True
            self._drain = Drain(loop, acceptor, self._members, self._close_sockets, self.logger)
            await self._drain.run(self.name, [*self._shared, *shared], timeout, linger)
            await self._abort_the_rest(self._drain)
        self._close_sockets()
        for timer in (self._sweep, self._descriptor_timer, self._balance_timer):
            if timer is not None:
                timer.cancel()
        self.fire_event("finish")

    async def _abort_the_rest(self, drain: Drain) -> None:
        self.abort()
        if self._tasks:
            _, stubborn = await asyncio.wait(self._tasks, timeout=_TASK_PATIENCE)
            if stubborn:
                self.logger.warning(
                    "%s: %d handlers will not be cancelled", self.name, len(stubborn)
                )
        await drain.forget_the_aborted()

    def abort(self) -> None:
        """Close every connection at once; what was not sent is dropped."""
        for member in list(self._members):
            if member.made:
                member.abort()
            else:
                del self._members[member]  # when it is made: see protocol_connected
                self.attentive = True
        self._tell_balance()
        for task in self._tasks:
            task.cancel()

    def in_hand(self) -> list[str]:
        """The peers whose requests are in progress, as far as that can be seen.

        Each with the class of the consumer that has it, as ``127.0.0.1:50000 Echo``.
        Callable from any thread, for a loop that is stuck.
        """
        found = []
        for member in list(self._members):
            if member.made and member.busy:
                peer = format_address(member.address)
                consumer = member._consumer if isinstance(member, Connection) else None
                found.append(peer if consumer is None else f"{peer} {type(consumer).__name__}")
        return found

    def info(self) -> dict[str, Any]:
        """What there is to know about this server, as plain data; times in seconds."""
        return {
            **super().info(),
            "connections": self.connections,
            "max_connections": self.max_connections,
            "keep_alive": self.keep_alive,
            "accepting": self.accepting,
            "paused": self._why_paused(),
        }

    # Connections: accepted, made, lost. What is here is paid for each of them.

    def create_protocol(self, **kw: Any) -> asyncio.BaseProtocol:
        """Called by the loop for each accepted connection: the protocol that serves it."""
        loop = self._loop
        maker = self._maker
        assert loop is not None
        assert maker is not None
        session = self.sessions + 1
        self.sessions = session
        member: Member
        protocol: Any
        try:
            if self.kind is Kind.CONSUMER:
                # What is served makes consumers: its connections are made here.
                protocol = member = Connection(
                    maker,  # type: ignore[arg-type]
                    self.keep_alive,
                    None,
                    None,
                    loop,
                    session,
                    self,
                )
            elif self.kind is Kind.STREAM:
                protocol = stream_protocol(maker, loop, self._tasks, self.logger)  # type: ignore[arg-type]
                member = Hosted(protocol, self, self.keep_alive)
            else:
                protocol = maker(
                    session=session, producer=self, loop=loop, timeout=self.keep_alive, **kw
                )
                if isinstance(protocol, Protocol):
                    member = protocol
                    self._guard(protocol)
                else:
                    member = Hosted(protocol, self, self.keep_alive)
        except Exception:
            # A loop may close its server for an exception here.
            self.logger.exception("%s: a connection cannot be served", self.name)
            return Protocol(producer=_Refusal(), session=session)
        members = self._members
        members[member] = loop.time() + self._handshake_deadline if self._tls else _ACCEPTED
        sweep = self._sweep
        if sweep is not None and sweep.idle:
            sweep.arm()
        if self.max_connections is not None and len(members) >= self.max_connections:
            self._at_the_limit()
        elif session % self._descriptor_sample == 0 and self._short_of_descriptors():
            self._pause_for_descriptors()
        balance = self._balance
        if balance is not None:
            seconds = balance.accepted(len(members), session)
            if seconds:
                self._step_back(seconds)
        return protocol  # type: ignore[no-any-return]

    def _guard(self, protocol: Protocol) -> None:
        """See to it that an error in a subclass's ``connection_made`` ends the connection.

        uvloop would leave it open, and deaf, for ever.
        """
        made = protocol.connection_made
        if made.__func__ in _OWN_CONNECTION_MADE or not hasattr(protocol, "__dict__"):  # type: ignore[attr-defined]
            return

        def connection_made(transport: asyncio.BaseTransport) -> None:
            del protocol.connection_made
            try:
                made(transport)
            except BaseException:
                transport.abort()  # type: ignore[attr-defined]
                self._lost(protocol)
                raise

        protocol.connection_made = connection_made  # type: ignore[method-assign]

    # Connections that have not said yet whose they are: see ``proxied``

    def take_place(self) -> Member:
        """Called for each accepted connection whose PROXY header is still to be read.

        It counts from now on. Returns what stands for it.
        """
        place = Protocol()
        self._members[place] = math.inf
        if not self._has_room():
            self._at_the_limit()
        elif self._short_of_descriptors():
            self._pause_for_descriptors()
        return place

    def leave_place(self, place: Member, *, served: bool = False) -> bool:
        """The connection is gone or, ``served``, gets its protocol now.

        False: the server has given it up already.
        """
        there = self._members.pop(place, None) is not None
        if there and not served:
            self._tell_balance()
            if self._drain is not None:
                self._drain.changed.set()
            self._resume_if_there_is_room()
        return there

    def protocol_connected(self, protocol: PulsarProtocol) -> None:
        """See ``Producer.protocol_connected``."""
        super().protocol_connected(protocol)
        self._made_late(protocol)  # type: ignore[arg-type]

    def protocol_lost(self, protocol: PulsarProtocol, exc: BaseException | None) -> None:
        """Called by a connection of this server when it is lost."""
        if self._events is not None:
            super().protocol_lost(protocol, exc)
        self._lost(protocol)  # type: ignore[arg-type]

    def hosted_connected(self, hosted: Hosted) -> None:
        """See ``Host``."""
        self._made_late(hosted)

    def hosted_lost(self, hosted: Hosted) -> None:
        """See ``Host``."""
        self._lost(hosted)

    def _made_late(self, member: Member) -> None:
        if member not in self._members:
            member.abort()  # its handshake has outlasted a drain, or an abort
        elif self._drain is not None and self._drain.running and isinstance(member, Connection):
            member.say_goodbye()

    def _lost(self, member: Member) -> None:
        if self._members.pop(member, None) is None:
            return
        if self._balance is not None:
            self._balance.lost(len(self._members))
        if self.max_requests is not None and not isinstance(member, Connection):
            # Its requests cannot be seen: the connection counts as one.
            self.requests_processed += 1
            self.count_request()
        if self._drain is not None:
            self._drain.changed.set()
        if self._acceptor is not None and self._acceptor.paused:
            self._resume_if_there_is_room()

    # Limits

    def _has_room(self) -> bool:
        return self.max_connections is None or self.connections < self.max_connections

    def _at_the_limit(self) -> None:
        """Pause accepting, unless some of the connections are gone, and make room."""
        self._forget_the_gone()
        if not self._has_room():
            self._pause("max_connections", f"{self.connections} connections (max_connections)")
            self._make_room()

    def _make_room(self) -> None:
        """Close those that nothing is in hand for, first who has been silent for longest."""
        assert self._loop is not None
        now = self._loop.time()
        silent = [
            (since, index, member)
            for index, member in enumerate(self._members)
            if isinstance(member, Connection)
            and member.made
            and now - (since := member.quiet_since(now)) >= _SILENCE
        ]
        wanted = 1 + self.connections // _GIVING_WAY
        for _, _, member in sorted(silent):
            wanted -= member.give_way()
            if not wanted:
                break

    def _resume_if_there_is_room(self) -> None:
        if self._acceptor is not None and self._has_room():
            self._acceptor.resume("max_connections")

    def _pause(self, reason: str, why: str) -> None:
        assert self._acceptor is not None
        assert self._loop is not None
        now = self._loop.time()
        # A server at its limit pauses and resumes with every connection.
        if now - self._warned_at.get(reason, -60.0) >= 60.0:
            self._warned_at[reason] = now
            self.logger.warning("%s: accepting is paused: %s", self.name, why)
        self._acceptor.pause(reason)

    def _forget_the_gone(self, *, sweeping: bool = False) -> None:
        """Drop handshakes that have failed, and connections lost behind our back."""
        assert self._loop is not None
        now = self._loop.time()
        members = self._members
        for member, until in list(members.items()):
            if member.made:
                if isinstance(member, Hosted) and member.gone:
                    self._lost(member)
            elif until == _ACCEPTED:
                # Its connection_made is a turn of the loop away, or will never come.
                if sweeping:
                    members[member] = _OVERDUE
            elif until < now:
                del members[member]
        self._tell_balance()

    def _short_of_descriptors(self) -> bool:
        try:
            # None is left where all sockets were released meanwhile.
            return any(
                lowest_free_descriptor(sock) >= self._descriptor_ceiling
                for sock in self._sockets[:1]
            )
        except OSError:
            return True

    def _pause_for_descriptors(self) -> None:
        self._pause("descriptors", "few descriptors are left (RLIMIT_NOFILE)")
        self._watch_descriptors()

    def _watch_descriptors(self) -> None:
        if self._descriptor_timer is None and self._loop is not None:
            self._descriptor_timer = self._loop.call_later(_DESCRIPTOR_CHECK, self._look_for_more)

    def _look_for_more(self) -> None:
        assert self._acceptor is not None
        self._descriptor_timer = None
        sockets = self._acceptor.sockets
        # Resuming takes one for each socket, and then the next connection one.
        if not sockets or has_spare_descriptors(sockets[0], len(sockets) + 1):
            self._acceptor.resume("descriptors")
        else:
            self._watch_descriptors()

    # The share of others

    def _tell_balance(self) -> None:
        if self._balance is not None:
            self._balance.lost(len(self._members))

    def _step_back(self, seconds: float) -> None:
        """Let others accept what is queued."""
        assert self._acceptor is not None
        assert self._loop is not None
        self._acceptor.pause(STEPPED_BACK)
        if self._balance_timer is None:
            self._balance_timer = self._loop.call_later(seconds, self._look_whether_others_accept)

    def _look_whether_others_accept(self) -> None:
        assert self._acceptor is not None
        self._balance_timer = None
        balance = self._balance
        seconds = balance.longer(self._acceptor.has_queued()) if balance is not None else 0.0
        if seconds:
            self._step_back(seconds)
        else:
            self._acceptor.resume(STEPPED_BACK)

    def _check_deadlines(self, now: float) -> bool:
        """The sweep. False when there is nothing left to look at."""
        stall_timeout = self.stall_timeout
        pending = False
        for member in list(self._members):
            if member.made:
                member.check_deadlines(now, stall_timeout)
            else:
                pending = True
        if pending:
            self._forget_the_gone(sweeping=True)
            self._resume_if_there_is_room()
        if not self._has_room():
            self._make_room()
        return bool(self._members)


class _Refusal(Producer):
    """The producer of a connection that nobody can serve: it is closed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.attentive = True

    def protocol_connected(self, protocol: PulsarProtocol) -> None:
        protocol.abort()
