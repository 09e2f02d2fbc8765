"""Between a transport and your code: connections, consumers, producers, servers.

Usable in a bare asyncio program: no application, no settings, no process tree.
"""

from .connection import Connection
from .consumer import AbortRequest, ProtocolConsumer
from .datagram import DatagramProtocol
from .flow import FlowControl
from .kinds import Kind
from .producer import Producer
from .protocol import Protocol, PulsarProtocol
from .tcpserver import TcpServer
from .udpserver import DatagramServer

__all__ = [
    "AbortRequest",
    "Connection",
    "DatagramProtocol",
    "DatagramServer",
    "FlowControl",
    "Kind",
    "Producer",
    "Protocol",
    "ProtocolConsumer",
    "PulsarProtocol",
    "TcpServer",
]
