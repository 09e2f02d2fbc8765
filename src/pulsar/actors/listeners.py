"""The listening sockets of a process tree: opened once, kept across workers and reloads.

Owns: ``Listeners``: the sockets of one application, shared by its workers or one for
each slot.
Leaves: opening to ``pulsar.sockets``, who listens when to ``monitor``.

What stays open in the arbiter loses nothing: connections that nobody accepts yet wait
in the queue of a socket that does not close.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from ..net import Bind, format_address, parse_bind
from ..protocols.backlog import refuse_new
from ..sockets import UnixListener, close_sockets, open_sockets
from .served import Listen, Listening

__all__ = ["Listeners"]

_UNIX = getattr(socket, "AF_UNIX", None)

# Binds whose sockets were somebody else's before they were ours.
_FOREIGN = ("fd", "systemd")


class _Bound:
    """The sockets of one bind: one list for everybody, or one for each slot."""

    def __init__(self, listen: Listen) -> None:
        self.listen = listen
        self.bind = parse_bind(listen.bind)
        self.own_slots = listen.reuse_port and self.bind.scheme in ("inet", "tcp", "udp")
        self.slots: dict[int, list[Listening]] = {}

    def of_slot(self, slot: int) -> list[Listening]:
        key = slot if self.own_slots else 0
        if key not in self.slots:
            self.slots[key] = self._open()
        return self.slots[key]

    def _open(self) -> list[Listening]:
        listen, bind = self.listen, self.bind
        kind = socket.SOCK_DGRAM if listen.datagram else socket.SOCK_STREAM
        if self.slots:
            return [
                self._listening(sock)
                for first in self.slots[min(self.slots)]
                for sock in open_sockets(
                    _same_address(bind, first.sock),
                    type=kind,
                    backlog=listen.backlog,
                    reuse_port=True,
                )
            ]
        sockets = open_sockets(bind, type=kind, backlog=listen.backlog, reuse_port=self.own_slots)
        return [self._listening(sock) for sock in sockets]

    def _listening(self, sock: socket.socket) -> Listening:
        bind = self.bind
        return Listening(sock, self.listen.bind, bind.tls is False, bind.scheme in _FOREIGN)

    def all(self) -> Iterable[Listening]:
        for listening in self.slots.values():
            yield from listening

    def close(self) -> None:
        close_sockets(one.sock for one in self.all())


class Binds(NamedTuple):
    """What a reload changes: the binds to have from now on, and those to have no more."""

    now: dict[Listen, _Bound]
    opened: list[_Bound]
    dropped: list[_Bound]


class Listeners:
    """The sockets that the workers of one application listen on."""

    def __init__(self) -> None:
        self._bound: dict[Listen, _Bound] = {}

    def prepare(self, listens: Sequence[Listen]) -> Binds:
        """Open what is not open yet, for slot 0 at least; nothing is given up yet.

        Raises ``ImproperlyConfigured``; then nothing was opened.
        """
        now: dict[Listen, _Bound] = {}
        opened: list[_Bound] = []
        # A new backlog is no new address.
        known = {_address(listen): bound for listen, bound in self._bound.items()}
        try:
            for listen in listens:
                bound = known.pop(_address(listen), None)
                if bound is None:
                    bound = _Bound(listen)
                    bound.of_slot(0)
                    opened.append(bound)
                elif bound.listen.backlog != listen.backlog and not listen.datagram:
                    for one in bound.all():
                        one.sock.listen(listen.backlog)
                now[listen] = bound
        except BaseException:
            for bound in opened:
                bound.close()
            raise
        return Binds(now, opened, list(known.values()))

    def commit(self, binds: Binds) -> None:
        """Have ``binds`` from now on; what was dropped is the caller's to close."""
        self._bound = binds.now

    def discard(self, binds: Binds) -> None:
        """Close what ``prepare`` has opened: it is not wanted."""
        for bound in binds.opened:
            bound.close()

    def of_slot(self, slot: int, binds: Binds | None = None) -> list[Listening]:
        """The sockets of a worker slot: its own and the shared ones. May raise
        ``ImproperlyConfigured``."""
        bound = self._bound if binds is None else binds.now
        return [one for each in bound.values() for one in each.of_slot(slot)]

    def own_of_slot(self, slot: int) -> list[Listening]:
        """The sockets that belong to a worker slot alone, as far as they are open."""
        return [
            one
            for each in self._bound.values()
            if each.own_slots
            for one in each.slots.get(slot, ())
        ]

    @property
    def slots(self) -> set[int]:
        """The slots that have sockets of their own."""
        return {slot for each in self._bound.values() if each.own_slots for slot in each.slots}

    @property
    def shared(self) -> bool:
        """True when all workers listen on one socket, and the quickest may take all."""
        return any(not each.own_slots for each in self._bound.values())

    @property
    def binds(self) -> list[str]:
        """The binds, as they were written."""
        return [listen.bind for listen in self._bound]

    @property
    def names(self) -> list[tuple[object, bool]]:
        """The names of the sockets of slot 0, and whether they never speak TLS."""
        return [
            (one.sock.getsockname(), one.plain)
            for each in self._bound.values()
            for one in each.of_slot(0)
        ]

    @property
    def addresses(self) -> list[str]:
        """Where they listen, for people."""
        return [format_address(name) for name, _ in self.names]

    @property
    def paths(self) -> list[str]:
        """The files of Unix sockets."""
        found = []
        for each in self._bound.values():
            for one in each.all():
                name = one.sock.getsockname() if one.sock.family == _UNIX else None
                if isinstance(name, str) and name and not name.startswith("\0"):
                    found.append(name)
        return found

    def shut_the_door(self) -> None:
        """Let nobody new in, so that the workers can empty the queues.

        What somebody else may go on listening on stays open.
        """
        for each in self._bound.values():
            for one in each.all():
                if one.foreign or each.listen.datagram:
                    continue
                if not refuse_new(one.sock) and isinstance(one.sock, UnixListener):
                    # No SYN can be dropped, but nobody connects to a path that is gone.
                    one.sock.remove_file()

    def close(self) -> None:
        """Close all."""
        for bound in self._bound.values():
            bound.close()
        self._bound = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def close_bound(bounds: Iterable[_Bound]) -> None:
    """Close binds that were dropped."""
    for bound in bounds:
        bound.close()


def _address(listen: Listen) -> tuple[str, bool, bool]:
    return listen.bind, listen.datagram, listen.reuse_port


def _same_address(bind: Bind, sock: socket.socket) -> Bind:
    """The address that a socket of ``bind`` got, to bind another one to."""
    host, port = sock.getsockname()[:2]
    return Bind(bind.scheme, host, port, tls=bind.tls)
