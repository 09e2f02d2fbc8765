"""pulsar: serve any protocol on sockets, and call it.

The front door: explicit re-exports, no logic. Nothing inside pulsar imports it.
"""

from pathlib import Path

from .system import refuse_mixed_installation

refuse_mixed_installation(Path(__file__).parent)

from .application import Application, get_application
from .clients import AbstractClient, AbstractUdpClient, Pool, PoolConnection, task
from .config import Config, Setting
from .errors import (
    ClientError,
    ConnectionClosed,
    ConnectTimeout,
    FrameTooLarge,
    ImproperlyConfigured,
    PoolClosed,
    PoolTimeout,
    ProtocolError,
    PulsarException,
)
from .events import AbortEvent, Event, EventHandler, OneTime
from .protocols import (
    AbortRequest,
    Connection,
    DatagramProtocol,
    DatagramServer,
    FlowControl,
    Producer,
    Protocol,
    ProtocolConsumer,
    PulsarProtocol,
    TcpServer,
)
from .version import __version__

__all__ = [
    "AbortEvent",
    "AbortRequest",
    "AbstractClient",
    "AbstractUdpClient",
    "Application",
    "ClientError",
    "Config",
    "ConnectTimeout",
    "Connection",
    "ConnectionClosed",
    "DatagramProtocol",
    "DatagramServer",
    "Event",
    "EventHandler",
    "FlowControl",
    "FrameTooLarge",
    "ImproperlyConfigured",
    "OneTime",
    "Pool",
    "PoolClosed",
    "PoolConnection",
    "PoolTimeout",
    "Producer",
    "Protocol",
    "ProtocolConsumer",
    "ProtocolError",
    "PulsarException",
    "PulsarProtocol",
    "Setting",
    "TcpServer",
    "__version__",
    "get_application",
    "task",
]
