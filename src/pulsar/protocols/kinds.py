"""What kind of callable a user gave us to serve, told from what it is.

Owns: ``Kind``, ``classify`` and ``protocol_maker``, which turns any of them into
something that creates protocols.
Leaves: hosting of foreign protocols to ``hosted``, naming of modules to the
command line.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..errors import ImproperlyConfigured
from .connection import Connection
from .consumer import ProtocolConsumer
from .protocol import Protocol, PulsarProtocol

__all__ = [
    "ACCEPTED",
    "Kind",
    "Maker",
    "callable_name",
    "classify",
    "is_datagram_class",
    "protocol_maker",
]

ACCEPTED = (
    "a ProtocolConsumer class, an asyncio Protocol, BufferedProtocol or DatagramProtocol class, "
    "a factory of one of these that takes no arguments, "
    "or a coroutine function handler(reader, writer)"
)

Maker = Callable[..., asyncio.BaseProtocol]


class Kind(enum.Enum):
    """What a callable makes, or is. The values are those of the setting ``kind``,
    but for ``CONNECTION``, which nobody has to state."""

    CONSUMER = "consumer"
    CONNECTION = "connection"
    PROTOCOL = "protocol"
    DATAGRAM = "datagram"
    STREAM = "stream"


def classify(thing: Any, kind: str | Kind = "auto") -> Kind:
    """The kind of ``thing``; ``kind`` other than ``"auto"`` states it.

    A factory that takes no arguments is called once, and what it makes is thrown
    away; call this inside the loop that will serve.

    Raises ``ImproperlyConfigured`` for what cannot be served.
    """
    if kind != "auto":
        if not callable(thing):
            raise _refusal(thing, "it cannot be called")
        stated = Kind(kind)
        if _contradicts(_unwrap(thing), stated):
            raise _refusal(thing, f"it cannot be of the kind {stated.value}")
        return stated
    target = _unwrap(thing)
    if isinstance(target, type):
        found = _kind_of_class(target)
        if found is None:
            raise _refusal(thing, f"the class {target.__name__} is no protocol")
        _check_signature(thing, target)
        return found
    if not callable(target):
        instance = _kind_of_class(type(target))
        raise _refusal(
            thing,
            "it is an instance: give its class"
            if instance is not None
            else f"an object of type {type(target).__name__} cannot be called",
        )
    arguments = _required_arguments(thing)
    if _is_coroutine_function(target):
        return _kind_of_coroutine(thing, arguments)
    if arguments == 2:
        raise _refusal(
            thing,
            "a function of two arguments looks like a WSGI application, "
            "which is served by WSGIServer",
        )
    if arguments:
        raise _refusal(thing, f"it needs {_count(arguments)}")
    return _kind_of_product(thing)


def protocol_maker(thing: Any, kind: str | Kind = "auto") -> tuple[Kind, Maker]:
    """The kind of ``thing`` and a function that creates its protocols.

    The function takes the keywords of ``Protocol``; a protocol that is not
    pulsar's own is created without them. Consumers and stream handlers are no
    protocols: for them it is ``thing`` itself.
    """
    found = classify(thing, kind)
    if found in (Kind.CONSUMER, Kind.STREAM):
        return found, thing
    if _takes_keywords(thing):
        if "timeout" in getattr(thing, "keywords", ()):
            # A partial: what the user has bound, he means.
            return found, lambda timeout=None, **kw: thing(**kw)
        return found, thing

    def make(**kw: Any) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = thing()
        if isinstance(protocol, PulsarProtocol):
            adopt(protocol, **kw)
        return protocol

    return found, make


def adopt(
    protocol: PulsarProtocol,
    *,
    producer: Any,
    session: int,
    timeout: float | None = None,
    **kw: Any,  # what only a constructor takes
) -> None:
    """Give a protocol that a bare factory made its place under ``producer``."""
    protocol.producer = producer
    protocol.session = session
    if isinstance(protocol, Protocol) and protocol.timeout is None:
        protocol.timeout = timeout


def is_datagram_class(thing: Any) -> bool:
    """True when ``thing`` is, or is a partial of, a datagram protocol's class."""
    target = _unwrap(thing)
    return isinstance(target, type) and _kind_of_class(target) is Kind.DATAGRAM


def _unwrap(thing: Any) -> Any:
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing


def _contradicts(target: Any, stated: Kind) -> bool:
    """True when ``target`` is seen to be of another kind; of most callables nothing is seen."""
    if not isinstance(target, type):
        return _is_coroutine_function(target) and stated is not Kind.STREAM
    match stated:
        case Kind.CONSUMER:
            return not issubclass(target, ProtocolConsumer)
        case Kind.DATAGRAM:
            return not hasattr(target, "datagram_received")
        case Kind.STREAM:
            return not hasattr(target, "__await__")
        case _:
            fed = hasattr(target, "data_received") or hasattr(target, "buffer_updated")
            return issubclass(target, ProtocolConsumer) or not fed


def _is_coroutine_function(target: Any) -> bool:
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(
        getattr(type(target), "__call__", None)  # noqa: B004 - the method itself, not whether
    )


def _kind_of_class(cls: type) -> Kind | None:
    if issubclass(cls, ProtocolConsumer):
        return Kind.CONSUMER
    if issubclass(cls, Connection):
        return Kind.CONNECTION
    if issubclass(cls, asyncio.DatagramProtocol) or hasattr(cls, "datagram_received"):
        return Kind.DATAGRAM
    if issubclass(cls, (asyncio.Protocol, asyncio.BufferedProtocol)):
        return Kind.PROTOCOL
    # Protocols need no base class: asyncio only calls the methods.
    if hasattr(cls, "connection_made") and (
        hasattr(cls, "data_received") or hasattr(cls, "buffer_updated")
    ):
        return Kind.PROTOCOL
    return None


def _kind_of_coroutine(thing: Any, arguments: int | None) -> Kind:
    if arguments == 2:
        return Kind.STREAM
    if arguments == 3:
        raise _refusal(
            thing,
            "a coroutine function of three arguments looks like an ASGI application, "
            "which uvicorn, hypercorn or granian serve",
        )
    raise _refusal(thing, "a stream handler takes two arguments: reader and writer")


def _kind_of_product(thing: Any) -> Kind:
    try:
        product = thing()
    except Exception as exc:
        raise _refusal(thing, f"calling it raised {type(exc).__name__}: {exc}") from exc
    if inspect.iscoroutine(product):
        product.close()
        raise _refusal(thing, "it made a coroutine")
    found = _kind_of_class(type(product))
    if found is None:
        raise _refusal(thing, f"it made a {type(product).__name__}")
    return found


def _required_arguments(thing: Any) -> int | None:
    """How many positional arguments it takes: the required ones, else None unknown."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return None
    return sum(
        parameter.default is parameter.empty
        and parameter.kind
        in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        )
        for parameter in parameters
    )


def _count(arguments: int) -> str:
    return "1 argument" if arguments == 1 else f"{arguments} arguments"


def _check_signature(thing: Any, cls: type) -> None:
    if issubclass(cls, PulsarProtocol):
        return  # created with the producer's keywords
    arguments = _required_arguments(thing)
    if arguments:
        raise _refusal(
            thing,
            f"{cls.__name__} needs {_count(arguments)}: bind them with functools.partial",
        )


def _takes_keywords(thing: Any) -> bool:
    """True for what can be created with ``session=``, ``producer=`` and the rest."""
    target = _unwrap(thing)
    if isinstance(target, type):
        return issubclass(target, PulsarProtocol)
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def callable_name(thing: Any) -> str:
    """What messages call a callable."""
    return getattr(thing, "__qualname__", None) or repr(thing)


def _refusal(thing: Any, why: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"cannot serve {callable_name(thing)}: {why}; accepted is {ACCEPTED}"
    )
