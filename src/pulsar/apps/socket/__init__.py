"""Serving any protocol on sockets: ``SocketServer`` streams, ``UdpSocketServer`` datagrams."""

from typing import TYPE_CHECKING

from ...doors import lazy

if TYPE_CHECKING:
    from .server import SocketServer
    from .udp import UdpSocketServer
else:
    __getattr__ = lazy(__name__, {"SocketServer": "server", "UdpSocketServer": "udp"})

__all__ = ["SocketServer", "UdpSocketServer"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
