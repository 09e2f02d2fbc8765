"""Serving any protocol on sockets: ``SocketServer`` streams, ``UdpSocketServer`` datagrams."""

from .server import SocketServer
from .udp import UdpSocketServer

__all__ = ["SocketServer", "UdpSocketServer"]
