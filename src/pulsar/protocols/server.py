"""What all servers share: addresses, sockets, a name, a beginning and an end.

Owns: ``Server``, the base of ``TcpServer`` and ``DatagramServer``.
Leaves: serving to them, binding to ``pulsar.sockets``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from ..errors import ImproperlyConfigured
from ..net import Bind, format_address, parse_bind
from ..sockets import close_sockets, open_sockets
from .kinds import Kind, Maker, protocol_maker
from .producer import Producer

__all__ = ["Address", "Server"]

Address = str | tuple[str, int] | Bind


class Server(Producer):
    """What ``TcpServer`` and ``DatagramServer`` share: addresses, a name, an end.

    One-time events: ``start``, when it listens; ``finish``, when it is closed.
    """

    server_side: ClassVar[bool] = True
    socket_type: ClassVar[socket.SocketKind]

    def __init__(
        self,
        protocol_factory: Callable[..., Any],
        loop: asyncio.AbstractEventLoop | None = None,
        address: Address | None = None,
        name: str | None = None,
        sockets: Sequence[socket.socket] | None = None,
        max_requests: int | None = None,
        logger: logging.Logger | None = None,
        *,
        kind: str | Kind = "auto",
    ) -> None:
        super().__init__(loop, protocol_factory, name, max_requests, logger)
        self._bind = address
        self._sockets = list(sockets or ())
        # Those that nobody else knows.
        self._opened: list[socket.socket] = []
        # Those of them whose connections begin with a header of the PROXY protocol.
        self._proxied: list[socket.socket] = []
        self._addresses: list[Any] = []
        self._kind_setting = kind
        self._maker: Maker | None = None
        self._started_at: float | None = None
        self._ending = False
        self._end: asyncio.Task[None] | None = None
        self.kind: Kind | None = None
        # How long a close that nobody has asked for may take, in seconds.
        self.graceful_timeout = 30.0
        # What to do instead at max_requests, where somebody shall take over first.
        self.retire: Callable[[], object] | None = None

    @property
    def address(self) -> Any:
        """The address of the first socket, as ``getsockname`` gives it; None before the start."""
        return self._addresses[0] if self._addresses else None

    @property
    def addresses(self) -> list[Any]:
        """The addresses of all sockets."""
        return list(self._addresses)

    def max_requests_reached(self) -> None:
        """Call ``retire`` or, without it, ``close``: ``max_requests`` have been processed."""
        if self.retire is not None:
            self.retire()
        elif self._end is None and not self._ending and self._loop is not None:
            self.logger.warning("%s: %s requests processed, closing", self.name, self.max_requests)
            self._end = self._loop.create_task(self.close(self.graceful_timeout))

    async def start(self) -> None:
        """Start serving, with the defaults of the method that each server has for it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self, timeout: float | None = 30.0) -> None:
        """Stop serving; returns when everything is closed, after ``timeout`` seconds at most."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close everything at once."""
        raise NotImplementedError

    async def adopt(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on ``sockets``, too; they are the server's from now on.

        Those that it has already are passed over. Raises ``RuntimeError`` when it does not
        serve, and ``ImproperlyConfigured`` for what it cannot serve: the sockets are then
        their caller's as before.
        """
        raise NotImplementedError

    async def release(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve no more on ``sockets``, or on any: they are the caller's again.

        Those that it does not have are passed over. What is queued there stays there, for
        others who serve on them.
        """
        raise NotImplementedError

    def _newcomers(self, sockets: Sequence[socket.socket]) -> list[socket.socket]:
        if self._started_at is None or self._ending:
            raise RuntimeError(f"{self.name} does not serve, so it adopts no sockets")
        return [sock for sock in dict.fromkeys(sockets) if sock not in self._sockets]

    def _take_in(self, sockets: Sequence[socket.socket]) -> None:
        self._addresses = [*self._addresses, *(sock.getsockname() for sock in sockets)]
        self._sockets = [*self._sockets, *sockets]

    def _let_out(self, sockets: Sequence[socket.socket] | None) -> list[socket.socket]:
        """Give up ``sockets``, or all; returns those that there were."""
        if self._started_at is None:
            return []
        before = self._sockets
        named = list(zip(before, self._addresses, strict=True))
        kept = [] if sockets is None else [(s, name) for s, name in named if s not in sockets]
        self._sockets = [sock for sock, _ in kept]
        self._addresses = [name for _, name in kept]
        return [sock for sock in before if sock not in self._sockets]

    def _close_sockets(self) -> None:
        close_sockets([*self._sockets, *self._opened])

    def in_hand(self) -> list[str]:
        """What it is busy with, a text for each request that can be seen."""
        return []

    def _open(self, backlog: int) -> list[socket.socket]:
        """Classify what is served, then open the sockets unless they were given."""
        if self._started_at is not None:
            raise RuntimeError(f"{self.name} has been started already")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self.kind, self._maker = protocol_maker(self.protocol_factory, self._kind_setting)
        if not self._sockets:
            if self._bind is None:
                raise ImproperlyConfigured(f"{self.name} has neither an address nor sockets")
            bind = _as_bind(self._bind)
            self._opened = open_sockets(bind, type=self.socket_type, backlog=backlog)
            self._sockets = self._opened
            self._proxied = self._opened if bind.proxy_protocol else []
        self._addresses = [sock.getsockname() for sock in self._sockets]
        self._started_at = self._loop.time()
        return self._sockets

    def info(self) -> dict[str, Any]:
        """What there is to know about this server, as plain data; times in seconds."""
        loop = self._loop
        started = self._started_at
        return {
            "name": self.name,
            "kind": None if self.kind is None else self.kind.value,
            "addresses": [format_address(address) for address in self._addresses],
            "uptime": 0.0 if loop is None or started is None else loop.time() - started,
            "sessions": self.sessions,
            "requests_processed": self.requests_processed,
            "max_requests": self.max_requests,
        }

    def __repr__(self) -> str:
        if self.fired_event("finish"):
            state = "closed"
        elif self._ending:
            state = "closing"
        else:
            state = "new" if self._started_at is None else "serving"
        where = ", ".join(format_address(address) for address in self._addresses)
        return f"<{type(self).__name__} {self.name} {state}{f' on {where}' if where else ''}>"


def _as_bind(address: Address) -> Bind:
    if isinstance(address, Bind):
        return address
    if isinstance(address, str):
        return parse_bind(address)
    host, port = address
    return parse_bind(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
