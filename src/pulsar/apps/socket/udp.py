"""``UdpSocketServer``: an application that serves datagrams.

Owns: what differs from ``SocketServer``.
Leaves: serving to ``DatagramServer``.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ...actors.served import Listening
from ...config import Config
from ...errors import ImproperlyConfigured
from ...net import Bind, parse_bind
from ...protocols import DatagramServer, Kind
from ...protocols.kinds import callable_name, classify
from .server import SocketServer

__all__ = ["UdpSocketServer"]


class UdpSocketServer(SocketServer):
    """Serve datagrams on sockets.

    :param callable: a ``DatagramProtocol`` class or factory, pulsar's or asyncio's
    :param load_config: see ``Application``
    :param params: settings by name, such as ``bind=":5353"``
    """

    server_factory: Callable[..., Any] = DatagramServer
    socket_type: ClassVar[socket.SocketKind] = socket.SOCK_DGRAM

    def _classify(self, factory: Any) -> Kind:
        kind = classify(factory, self.cfg.kind)
        if kind is not Kind.DATAGRAM:
            raise ImproperlyConfigured(
                f"cannot serve {callable_name(factory)} over datagrams: accepted is a "
                "DatagramProtocol class or factory; everything else is served by SocketServer"
            )
        return kind

    def _server_parameters(self, kind: Kind) -> dict[str, Any]:
        return {"kind": kind, "max_requests": self._max_requests()}

    async def _start(self, server: Any, context: ssl.SSLContext | None) -> None:
        await server.create_endpoint()

    def _reuse_port(self) -> bool:
        # So that a peer stays with its worker.
        return self.cfg.reuse_port is not False

    async def _adopt(self, server: Any, listening: Sequence[Listening]) -> None:
        await server.adopt([one.sock for one in listening])

    def _binds(self) -> list[Bind]:
        binds = [parse_bind(text) for text in self.cfg.bind]
        for bind in binds:
            if bind.scheme in ("tcp", "unix"):
                raise ImproperlyConfigured(
                    f"{bind} is for streams, which are served by SocketServer"
                )
        return binds

    def _ssl_context(
        self, cfg: Config, make: Callable[..., Any] | None = None
    ) -> ssl.SSLContext | None:
        if cfg.cert_file:
            raise ImproperlyConfigured("there is no TLS over datagrams: leave out cert_file")
        return None
