"""pulsar: serve any protocol on sockets, and call it.

The front door: what users import, brought in when they ask for it. Nothing inside
pulsar imports it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .doors import lazy
from .system import refuse_mixed_installation
from .version import __version__

refuse_mixed_installation(Path(__file__).parent)

if TYPE_CHECKING:
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
else:
    __getattr__ = lazy(
        __name__,
        {
            "AbortEvent": "events",
            "AbortRequest": "protocols",
            "AbstractClient": "clients",
            "AbstractUdpClient": "clients",
            "Actor": "actors.actor",
            "ActorError": "errors",
            "ActorGone": "errors",
            "ActorProxy": "actors.proxy",
            "Application": "application",
            "ClientError": "errors",
            "CommandNotFound": "errors",
            "Config": "config",
            "ConnectTimeout": "errors",
            "Connection": "protocols",
            "ConnectionClosed": "errors",
            "DatagramProtocol": "protocols",
            "DatagramServer": "protocols",
            "Event": "events",
            "EventHandler": "events",
            "FlowControl": "protocols",
            "FrameTooLarge": "errors",
            "ImproperlyConfigured": "errors",
            "MultiApp": "application",
            "OneTime": "events",
            "Pool": "clients",
            "PoolClosed": "errors",
            "PoolConnection": "clients",
            "PoolTimeout": "errors",
            "Producer": "protocols",
            "Protocol": "protocols",
            "ProtocolConsumer": "protocols",
            "ProtocolError": "errors",
            "PulsarException": "errors",
            "PulsarProtocol": "protocols",
            "RemoteError": "errors",
            "Setting": "config",
            "TcpServer": "protocols",
            "arbiter": "actors.tree",
            "command": "actors.commands",
            "get_actor": "actors.current",
            "get_application": "application",
            "send": "actors.current",
            "spawn": "actors.current",
            "task": "clients",
            "actors": "",
            "apps": "",
            "clients": "",
            "config": "",
            "errors": "",
            "events": "",
            "framing": "",
            "protocols": "",
            "testing": "",
        },
    )

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


def __dir__() -> list[str]:
    return [*globals(), *__all__]
