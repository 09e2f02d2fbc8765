"""pulsar: serve any protocol on sockets, and call it.

The front door: explicit re-exports, no logic. Nothing inside pulsar imports it.
"""

from pathlib import Path

from .system import refuse_mixed_installation

refuse_mixed_installation(Path(__file__).parent)

from .actors.actor import Actor
from .actors.commands import command
from .actors.current import get_actor, send, spawn
from .actors.proxy import ActorProxy
from .actors.tree import arbiter
from .application import Application, MultiApp, get_application
from .clients import AbstractClient, AbstractUdpClient, Pool, PoolConnection, task
from .config import Config, Setting
from .errors import (
    ActorError,
    ActorGone,
    ClientError,
    CommandNotFound,
    ConnectionClosed,
    ConnectTimeout,
    FrameTooLarge,
    ImproperlyConfigured,
    PoolClosed,
    PoolTimeout,
    ProtocolError,
    PulsarException,
    RemoteError,
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
    "Actor",
    "ActorError",
    "ActorGone",
    "ActorProxy",
    "Application",
    "ClientError",
    "CommandNotFound",
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
    "MultiApp",
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
    "RemoteError",
    "Setting",
    "TcpServer",
    "__version__",
    "arbiter",
    "command",
    "get_actor",
    "get_application",
    "send",
    "spawn",
    "task",
]
