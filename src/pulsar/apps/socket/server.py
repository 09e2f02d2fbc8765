"""``SocketServer``: an application that serves streams on sockets.

Owns: binding what the settings say, TLS contexts from files, creating servers.
Leaves: serving to ``TcpServer``, running to ``actors``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ...actors.served import Listen, Listening
from ...application import Application
from ...config import Config
from ...errors import ImproperlyConfigured
from ...net import Bind, format_address, parse_bind
from ...protocols import Kind, TcpServer
from ...protocols.kinds import callable_name, classify
from ...sockets import close_sockets, open_sockets
from ...tls import keep_server_context, kept_server_context, server_context
from . import settings  # noqa: F401 - declares them

__all__ = ["SocketServer"]

logger = logging.getLogger("pulsar.server")


class SocketServer(Application):
    """Serve a protocol on sockets.

    :param callable: a ``ProtocolConsumer`` class or factory, any asyncio protocol
        class or factory, or a coroutine function ``handler(reader, writer)``
    :param load_config: see ``Application``
    :param params: settings by name, such as ``bind=":8080"``
    """

    cfg_apps: ClassVar[tuple[str, ...]] = ("socket",)

    # What serves; create_server calls it with the arguments of TcpServer.
    server_factory: Callable[..., Any] = TcpServer

    # The module that TLS is made of.
    support_ssl = ssl

    socket_type: ClassVar[socket.SocketKind] = socket.SOCK_STREAM

    def __init__(self, callable: Any = None, load_config: bool = True, **params: Any) -> None:
        super().__init__(callable, load_config, **params)
        # Bound sockets, and those among them that never speak TLS ...
        self._sockets: list[socket.socket] = []
        self._plain: list[socket.socket] = []
        # ... those that speak the PROXY protocol ...
        self._proxied: list[socket.socket] = []
        # ... and those that somebody else may go on listening on.
        self._shared: list[socket.socket] = []
        self._addresses: list[Any] = []
        # In a worker of a process tree: the bind of each socket that it listens on.
        self._bind_of: dict[socket.socket, str] = {}
        self._balance: Any = None
        # What was looked at before the fork, and its kind.
        self._known: tuple[Any, Kind] | None = None
        self.servers: list[Any] = []

    @property
    def address(self) -> Any:
        """The address of the first socket, available once the application has started."""
        return self._addresses[0] if self._addresses else None

    @property
    def addresses(self) -> list[Any]:
        """The addresses of all sockets, available once the application has started."""
        return list(self._addresses)

    def protocol_factory(self) -> Any:
        """What makes the protocols that serve: by default the application's callable.

        Raises ``ImproperlyConfigured`` when there is none.
        """
        if self.callable is None:
            raise ImproperlyConfigured(
                f"{self.name} has nothing to serve: give {type(self).__name__} a callable"
            )
        return self.callable

    def check(self) -> None:
        """Look at the callable, the addresses and the TLS files, without binding."""
        self._binds()
        self._ssl_context(self.cfg)

        async def look() -> Kind:
            return self._classify(self.protocol_factory())

        asyncio.run(look())

    def prepare(self) -> None:
        """Read the TLS files, while that is allowed."""
        self._ssl_context(self.cfg, keep_server_context)

    def before_fork(self) -> None:
        """Look at what is to be served, as far as that takes no loop."""
        factory = self.callable
        if isinstance(factory, type):
            self._known = factory, self._classify(factory)

    def describe(self) -> dict[str, Any]:
        """See ``Application.describe``."""
        backlog, reuse_port = self.cfg.backlog, self._reuse_port()
        datagram = self.socket_type is socket.SOCK_DGRAM
        return {
            **super().describe(),
            "listen": [
                Listen(str(bind.absolute()), datagram, backlog, reuse_port)
                for bind in self._binds()
            ],
            "secure": self.cfg.cert_file is not None,
        }

    def _reuse_port(self) -> bool:
        return bool(self.cfg.reuse_port)

    def inherit(self, listening: Sequence[Listening], balance: Any) -> None:
        """Take the sockets that the arbiter has opened."""
        self._sockets = [one.sock for one in listening]
        self._plain = [one.sock for one in listening if one.plain]
        self._proxied = [one.sock for one in listening if parse_bind(one.bind).proxy_protocol]
        self._shared = [one.sock for one in listening if one.foreign]
        self._addresses = [sock.getsockname() for sock in self._sockets]
        self._bind_of = {one.sock: one.bind for one in listening}
        self._balance = balance

    async def adopt(self, listening: Sequence[Listening]) -> None:
        """Listen on sockets of a worker that is not there, too."""
        for one in listening:
            self._bind_of[one.sock] = one.bind
        await self._adopt(self.servers[0], listening)

    async def _adopt(self, server: Any, listening: Sequence[Listening]) -> None:
        await server.adopt(
            [one.sock for one in listening],
            plain_sockets=[one.sock for one in listening if one.plain],
            proxied_sockets=[one.sock for one in listening if parse_bind(one.bind).proxy_protocol],
        )

    async def release(self, listening: Sequence[Listening]) -> None:
        """Listen on these sockets no more; connections that were accepted go on."""
        for one in listening:
            self._bind_of.pop(one.sock, None)
        await self.servers[0].release([one.sock for one in listening])

    async def stop_listening(self, binds: Sequence[str] | None) -> None:
        """Leave the sockets of these binds (None: all) to others who listen there."""
        left = [sock for sock, bind in self._bind_of.items() if binds is None or bind in binds]
        for server in self.servers:
            await server.release(left)
        for sock in left:
            del self._bind_of[sock]
            sock.close()

    def figures(self) -> dict[str, int]:
        """Counters that the arbiter collects."""
        return {
            "connections": sum(getattr(server, "connections", 0) for server in self.servers),
            "requests": sum(server.requests_processed for server in self.servers),
        }

    def in_hand(self) -> list[str]:
        """A line for each connection with a request in progress."""
        return [
            line
            for server in self.servers
            if isinstance(server, TcpServer)
            for line in server.in_hand()
        ]

    async def monitor_start(self, monitor: Any = None) -> None:
        """Open the listening sockets of every ``bind``; in a process tree they are open.

        Raises ``ImproperlyConfigured`` when one cannot be opened; then none is.
        """
        if hasattr(monitor, "sockets"):
            self._addresses = [sock.getsockname() for sock in monitor.sockets]
            return
        opened: list[socket.socket] = []
        plain: list[socket.socket] = []
        proxied: list[socket.socket] = []
        shared: list[socket.socket] = []
        try:
            for bind in self._binds():
                sockets = open_sockets(bind, type=self.socket_type, backlog=self.cfg.backlog)
                opened += sockets
                if bind.tls is False:
                    plain += sockets
                if bind.proxy_protocol:
                    proxied += sockets
                if bind.scheme in ("fd", "systemd"):
                    shared += sockets
        except BaseException:
            close_sockets(opened)
            raise
        self._sockets = opened
        self._plain = plain
        self._proxied = proxied
        self._shared = shared
        self._addresses = [sock.getsockname() for sock in opened]

    async def monitor_stop(self, monitor: Any = None) -> None:
        """Close the listening sockets."""
        close_sockets(self._sockets)
        self._sockets = []

    async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
        """Serve: start what ``create_server`` makes, on the sockets that were bound.

        With ``exc``, the reason why the worker does not start, it does nothing.
        """
        if exc is None:
            server = await self.create_server(worker)

            def finished(arg: Any, exc: BaseException | None = None) -> None:
                # A server that ends by itself, at max_requests, ends what serves it.
                if worker is not None:
                    worker.stop()

            if hasattr(worker, "retire"):
                limit = server.max_requests
                server.retire = lambda: worker.retire(f"it has served {limit} (max_requests)")
            server.bind_event("finish", finished)

    async def worker_stop(self, worker: Any, timeout: float) -> None:
        """Drain the servers within ``timeout`` seconds."""
        if timeout <= 0:
            for server in self.servers:
                server.abort()
        await asyncio.gather(*(server.close(timeout) for server in self.servers))

    async def create_server(
        self,
        worker: Any = None,
        protocol_factory: Any = None,
        address: Any = None,
        sockets: Sequence[socket.socket] | None = None,
        idx: int = 0,
    ) -> Any:
        """A started server, for ``worker`` or, without one, for the loop that runs.

        :param worker: who serves
        :param protocol_factory: by default that of the application
        :param address: where to listen, instead of the application's sockets
        :param sockets: the sockets to listen on, instead of the application's
        :param idx: tells several servers of one worker apart, in their names

        Returns a ``TcpServer``. Raises ``ImproperlyConfigured``.
        """
        factory = protocol_factory or self.protocol_factory()
        context = self._ssl_context(self.cfg, kept_server_context)
        known = self._known
        # Looking again would cost each worker 1.5 MB of memory that it shares otherwise.
        kind = known[1] if known and known[0] is factory else self._classify(factory)
        if sockets is None and address is None:
            if all(sock.fileno() < 0 for sock in self._sockets):
                # None yet, or those of a server that is closed.
                await self.monitor_start(worker)
            sockets = self._sockets
        server = self.server_factory(
            factory,
            asyncio.get_running_loop(),
            address=address,
            sockets=sockets,
            name=f"{self.name}.{idx}" if idx else self.name,
            **self._server_parameters(kind),
        )
        server.graceful_timeout = self.cfg.graceful_timeout
        if self._balance is not None and isinstance(server, TcpServer):
            server.balance = self._balance
        self.servers.append(server)
        await self._start(server, context)
        return server

    def _classify(self, factory: Any) -> Kind:
        kind = classify(factory, self.cfg.kind)
        if kind is Kind.DATAGRAM:
            raise ImproperlyConfigured(
                f"cannot serve {callable_name(factory)} over streams: datagram protocols are "
                "served by UdpSocketServer"
            )
        return kind

    def _server_parameters(self, kind: Kind) -> dict[str, Any]:
        cfg = self.cfg
        # Where requests cannot be seen, an idle connection may be a working one.
        seen = kind in (Kind.CONSUMER, Kind.CONNECTION)
        return {
            "kind": kind,
            "max_requests": self._max_requests(),
            "keep_alive": cfg.keep_alive if seen or cfg.is_set("keep_alive") else None,
            "stall_timeout": cfg.stall_timeout,
            "max_connections": cfg.max_connections,
        }

    def _max_requests(self) -> int:
        """The limit; among several workers a little more, or all would reach it at once."""
        limit = int(self.cfg.max_requests)
        jitter = self.cfg.max_requests_jitter
        if limit and self._bind_of:
            limit += random.randint(0, limit // 10 if jitter is None else jitter)  # noqa: S311
        return limit

    async def _start(self, server: Any, context: ssl.SSLContext | None) -> None:
        await server.start_serving(
            self.cfg.backlog,
            context,
            handshake_timeout=self.cfg.handshake_timeout,
            plain_sockets=self._plain,
            shared_sockets=self._shared,
            proxied_sockets=self._proxied,
            proxy_allow_from=self.cfg.proxy_allow_from,
        )

    def _binds(self) -> list[Bind]:
        binds = [parse_bind(text) for text in self.cfg.bind]
        for bind in binds:
            if bind.scheme == "udp":
                raise ImproperlyConfigured(
                    f"{bind} is for datagrams, which are served by UdpSocketServer"
                )
            if bind.tls and not self.cfg.cert_file:
                raise ImproperlyConfigured(f"{bind} asks for TLS: give cert_file, too")
        return binds

    def _ssl_context(
        self, cfg: Config, make: Callable[..., Any] = server_context
    ) -> ssl.SSLContext | None:
        if not cfg.cert_file:
            if cfg.key_file or cfg.ca_certs:
                raise ImproperlyConfigured("TLS needs a certificate: give cert_file, too")
            return None
        return make(  # type: ignore[no-any-return]
            cfg.cert_file,
            cfg.key_file,
            key_password=cfg.key_password,
            ca_certs=cfg.ca_certs,
            cert_reqs=cfg.cert_reqs,
            alpn=cfg.alpn or (),
            minimum_version=cfg.tls_min_version,
            ciphers=cfg.tls_ciphers,
        )

    async def apply_settings(self, cfg: Config, changed: list[str]) -> None:
        """Read the certificates again, and take new ``live`` settings.

        New handshakes use them; connections that exist go on undisturbed.
        """
        context = self._ssl_context(cfg)
        await super().apply_settings(cfg, changed)
        if context is not None:
            for server in self.servers:
                await server.renew_tls(context)

    def description_lines(self) -> list[str]:
        """Where it serves."""
        secure = self.cfg.cert_file is not None
        plain = {sock.getsockname() for sock in self._plain}
        return [
            f"{self.name} serves on {format_address(address)}"
            + (" (TLS)" if secure and address not in plain else "")
            for address in self._addresses
        ]

    def info(self) -> dict[str, Any]:
        """What there is to know about this application, as plain data."""
        return {**super().info(), "servers": [server.info() for server in self.servers]}
