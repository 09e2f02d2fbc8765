"""Every name that is promised to users can be imported from where it is promised."""

import importlib
from types import ModuleType

import pytest

PROTOCOLS = [
    "Connection",
    "DatagramProtocol",
    "DatagramServer",
    "FlowControl",
    "Producer",
    "Protocol",
    "ProtocolConsumer",
    "PulsarProtocol",
    "TcpServer",
]
CLIENTS = ["AbstractClient", "AbstractUdpClient", "Pool", "PoolConnection"]

PROMISED: dict[str, list[str]] = {
    "pulsar": [
        *PROTOCOLS,
        *CLIENTS,
        "Actor",
        "Application",
        "Config",
        "EventHandler",
        "MultiApp",
        "Setting",
        "arbiter",
        "command",
        "get_actor",
        "get_application",
        "send",
        "spawn",
    ],
    "pulsar.protocols": PROTOCOLS,
    "pulsar.clients": CLIENTS,
    "pulsar.apps.socket": ["SocketServer", "UdpSocketServer"],
    "pulsar.apps.wsgi": ["WSGIServer"],
    "pulsar.apps.wsgi.server": ["HttpServerResponse", "test_wsgi_environ"],
    "pulsar.testing": ["Server", "serve"],
    "pulsar.framing": ["DelimiterFramer", "LengthFramer", "LineFramer"],
}
PATHS = [(module, name) for module, names in PROMISED.items() for name in names]


def exported(module: ModuleType) -> list[str]:
    names: list[str] = module.__all__
    return names


@pytest.mark.parametrize(("module", "name"), PATHS)
def test_a_promised_name_is_there_and_exported(module: str, name: str) -> None:
    room = importlib.import_module(module)
    assert hasattr(room, name)
    assert name in exported(room)
    assert name in dir(room)


@pytest.mark.parametrize("module", PROMISED)
def test_what_a_module_exports_exists_once_and_is_documented(module: str) -> None:
    room = importlib.import_module(module)
    names = exported(room)
    assert len(names) == len(set(names))
    for name in names:
        thing = getattr(room, name)
        if isinstance(thing, type) or callable(thing):
            assert thing.__doc__, f"{module}.{name} has no docstring"


@pytest.mark.parametrize(
    ("module", "name"),
    [path for path in PATHS if path[0] in {"pulsar.protocols", "pulsar.clients"}],
)
def test_a_name_at_the_front_door_is_the_same_object(module: str, name: str) -> None:
    pulsar = importlib.import_module("pulsar")
    assert getattr(pulsar, name) is getattr(importlib.import_module(module), name)


def test_an_unknown_name_is_refused_like_any_attribute() -> None:
    pulsar = importlib.import_module("pulsar")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pulsar.no_such_name
