"""Kinds of callable: what each thing that a user may give us is taken for, or why not."""

from __future__ import annotations

import abc
import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.protocols import (
    Connection,
    DatagramProtocol,
    Kind,
    Producer,
    Protocol,
    ProtocolConsumer,
)
from pulsar.protocols.kinds import ACCEPTED, classify, is_datagram_class, protocol_maker

if TYPE_CHECKING:
    from collections.abc import Callable


class Consumer(ProtocolConsumer):
    pass


class NeedyConsumer(ProtocolConsumer):
    def __init__(self, database: Any) -> None:
        super().__init__()


class AbstractConsumer(ProtocolConsumer, abc.ABC):
    pass


class Stream(asyncio.Protocol):
    pass


class Buffered(asyncio.BufferedProtocol):
    pass


class Datagrams(asyncio.DatagramProtocol):
    pass


class OursDatagrams(DatagramProtocol):
    pass


class Ours(Protocol):
    pass


class OursConnection(Connection):
    pass


class Needy(asyncio.Protocol):
    def __init__(self, database: Any) -> None:
        self.database = database


class VeryNeedy(asyncio.Protocol):
    def __init__(self, database: Any, cache: Any, name: str = "") -> None:
        pass


class Slotted(asyncio.Protocol):
    __slots__ = ("transport",)


class DuckStream:
    def connection_made(self, transport: Any) -> None: ...
    def data_received(self, data: bytes) -> None: ...


class DuckBuffered:
    def connection_made(self, transport: Any) -> None: ...
    def buffer_updated(self, size: int) -> None: ...


class DuckDatagrams:
    def connection_made(self, transport: Any) -> None: ...
    def datagram_received(self, data: bytes, addr: Any) -> None: ...


class Service:
    """Holds handlers and factories as methods."""

    async def handle(self, reader: Any, writer: Any) -> None: ...

    def make(self) -> asyncio.Protocol:
        return Stream()

    @staticmethod
    async def static(reader: Any, writer: Any) -> None: ...

    @classmethod
    async def of_class(cls, reader: Any, writer: Any) -> None: ...


class AsyncCallable:
    async def __call__(self, reader: Any, writer: Any) -> None: ...


class FactoryCallable:
    def __call__(self) -> asyncio.Protocol:
        return Stream()


async def handler(reader: Any, writer: Any) -> None: ...


async def handler_with_option(
    reader: Any, writer: Any, *, size: int = 1, timeout: float = 1
) -> None: ...


async def handler_with_default(reader: Any, writer: Any, size: int = 1) -> None: ...


async def configured(database: Any, reader: Any, writer: Any) -> None: ...


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kw: Any) -> Any:
        return await function(*args, **kw)

    return wrapper


def make_stream(name: str = "default") -> asyncio.Protocol:
    return Stream()


def make_with_keywords(**kw: Any) -> Protocol:
    return Protocol(**kw)


KINDS: dict[str, tuple[Any, Kind]] = {
    "a consumer class": (Consumer, Kind.CONSUMER),
    "an abstract consumer class": (AbstractConsumer, Kind.CONSUMER),
    "a partial of a consumer class": (functools.partial(NeedyConsumer, "db"), Kind.CONSUMER),
    "a consumer lambda": (lambda: Consumer(), Kind.CONSUMER),
    "a connection class": (OursConnection, Kind.CONNECTION),
    "a partial of a connection": (functools.partial(Connection, Consumer), Kind.CONNECTION),
    "a lambda of a connection": (lambda: Connection(Consumer), Kind.CONNECTION),
    "a protocol class of ours": (Ours, Kind.PROTOCOL),
    "a protocol class": (Stream, Kind.PROTOCOL),
    "a protocol class with slots": (Slotted, Kind.PROTOCOL),
    "a buffered protocol class": (Buffered, Kind.PROTOCOL),
    "a partial of a protocol class": (functools.partial(Needy, "db"), Kind.PROTOCOL),
    "a partial of a partial": (
        functools.partial(functools.partial(VeryNeedy, "db"), "cache"),
        Kind.PROTOCOL,
    ),
    "a partial with keywords": (functools.partial(Needy, database="db"), Kind.PROTOCOL),
    "a protocol lambda": (lambda: Needy("db"), Kind.PROTOCOL),
    "a protocol function with defaults": (make_stream, Kind.PROTOCOL),
    "a protocol function with keywords": (make_with_keywords, Kind.PROTOCOL),
    "a method that makes a protocol": (Service().make, Kind.PROTOCOL),
    "an object that makes protocols": (FactoryCallable(), Kind.PROTOCOL),
    "a class that quacks like a protocol": (DuckStream, Kind.PROTOCOL),
    "a class that quacks like a buffered one": (DuckBuffered, Kind.PROTOCOL),
    "a lambda of what quacks": (lambda: DuckStream(), Kind.PROTOCOL),
    "a datagram class": (Datagrams, Kind.DATAGRAM),
    "a datagram class of ours": (OursDatagrams, Kind.DATAGRAM),
    "a class that quacks like datagrams": (DuckDatagrams, Kind.DATAGRAM),
    "a datagram lambda": (lambda: Datagrams(), Kind.DATAGRAM),
    "a stream handler": (handler, Kind.STREAM),
    "a stream handler with an option": (handler_with_option, Kind.STREAM),
    "a stream handler with a default": (handler_with_default, Kind.STREAM),
    "a partial of a stream handler": (functools.partial(configured, "db"), Kind.STREAM),
    "a partial with an option": (functools.partial(handler_with_option, size=2), Kind.STREAM),
    "a wrapped stream handler": (logged(handler), Kind.STREAM),
    "a method that handles streams": (Service().handle, Kind.STREAM),
    "a static method": (Service.static, Kind.STREAM),
    "a class method": (Service.of_class, Kind.STREAM),
    "an object that handles streams": (AsyncCallable(), Kind.STREAM),
}


@pytest.mark.parametrize("what", KINDS)
def test_what_is_served(what: str) -> None:
    thing, kind = KINDS[what]
    assert classify(thing) is kind


@pytest.mark.parametrize("what", KINDS)
def test_what_is_served_may_be_stated(what: str) -> None:
    thing, kind = KINDS[what]
    assert classify(thing, kind) is kind
    assert classify(thing, kind.value) is kind


# -- what is not served, and the sentence that says so


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


class WsgiApplication:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


class AsgiApplication:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


async def one_argument(reader: Any) -> None: ...


async def no_argument() -> None: ...


def three_arguments(a: Any, b: Any, c: Any) -> None: ...


def one_positional(transport: Any) -> asyncio.Protocol:
    return Stream()


def broken() -> asyncio.Protocol:
    raise LookupError("no database")


def makes_a_coroutine() -> Any:
    return no_argument()


def makes_a_class() -> Any:
    return Stream


WSGI = "a function of two arguments looks like a WSGI application, which is served by WSGIServer"
ASGI = (
    "a coroutine function of three arguments looks like an ASGI application, "
    "which uvicorn, hypercorn or granian serve"
)
HANDLER = "a stream handler takes two arguments: reader and writer"

REFUSED: dict[str, tuple[Any, str, str]] = {
    "a number": (5, "5", "an object of type int cannot be called"),
    "None": (None, "None", "an object of type NoneType cannot be called"),
    "text": ("module:app", "'module:app'", "an object of type str cannot be called"),
    "a class that is no protocol": (dict, "dict", "the class dict is no protocol"),
    "a WSGI function": (wsgi, "wsgi", WSGI),
    "a WSGI object": (WsgiApplication(), "<", WSGI),
    "an ASGI function": (asgi, "asgi", ASGI),
    "an ASGI object": (AsgiApplication(), "<", ASGI),
    "a coroutine function of one argument": (one_argument, "one_argument", HANDLER),
    "a coroutine function of none": (no_argument, "no_argument", HANDLER),
    "a function of three arguments": (
        three_arguments,
        "three_arguments",
        "it needs 3 arguments",
    ),
    "a factory of one argument": (one_positional, "one_positional", "it needs 1 argument"),
    "a class with one argument": (
        Needy,
        "Needy",
        "Needy needs 1 argument: bind them with functools.partial",
    ),
    "a class with two": (
        VeryNeedy,
        "VeryNeedy",
        "VeryNeedy needs 2 arguments: bind them with functools.partial",
    ),
    "a consumer with one": (
        NeedyConsumer,
        "NeedyConsumer",
        "NeedyConsumer needs 1 argument: bind them with functools.partial",
    ),
    "a partial that binds too little": (
        functools.partial(VeryNeedy, "db"),
        "functools.partial",
        "VeryNeedy needs 1 argument: bind them with functools.partial",
    ),
    "an instance of a protocol": (Stream(), "<", "it is an instance: give its class"),
    "an instance of a consumer": (Consumer(), "<", "it is an instance: give its class"),
    "an instance of what quacks": (DuckStream(), "<", "it is an instance: give its class"),
    "a factory that raises": (broken, "broken", "calling it raised LookupError: no database"),
    "a factory of a coroutine": (makes_a_coroutine, "makes_a_coroutine", "it made a coroutine"),
    "a factory of nothing": (lambda: None, "<lambda>", "it made a NoneType"),
    "a factory of a class": (makes_a_class, "makes_a_class", "it made a type"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    thing, name, why = REFUSED[what]
    with pytest.raises(ImproperlyConfigured) as raised:
        classify(thing)
    message = str(raised.value)
    assert message.startswith("cannot serve ")
    assert name in message.partition(": ")[0] + ":" + message.partition(": ")[2]
    assert message.endswith(f": {why}; accepted is {ACCEPTED}")


def test_the_cause_of_a_factory_that_raises_is_kept() -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        classify(broken)
    assert isinstance(raised.value.__cause__, LookupError)


def test_what_is_accepted_is_said_in_full() -> None:
    for name in ("ProtocolConsumer", "BufferedProtocol", "DatagramProtocol", "(reader, writer)"):
        assert name in ACCEPTED


# -- what is stated


STATED: dict[str, tuple[Any, str]] = {
    "a stream handler behind a plain function": (lambda reader, writer: None, "stream"),
    "a stream handler of any arguments": (lambda *streams: None, "stream"),
    "a factory that must not be called now": (broken, "protocol"),
    "a consumer factory": (broken, "consumer"),
    "a datagram factory": (broken, "datagram"),
    "a class of both": (type("Both", (Stream, Datagrams), {}), "protocol"),
}


@pytest.mark.parametrize("what", STATED)
def test_what_cannot_be_told_may_be_stated(what: str) -> None:
    thing, kind = STATED[what]
    assert classify(thing, kind) is Kind(kind)


CONTRADICTIONS: dict[str, tuple[Any, str]] = {
    "a protocol is no consumer": (Stream, "consumer"),
    "a consumer is no protocol": (Consumer, "protocol"),
    "a consumer is no handler": (Consumer, "stream"),
    "a protocol is no handler": (Stream, "stream"),
    "a protocol has no datagrams": (Stream, "datagram"),
    "a dict is no protocol": (dict, "protocol"),
    "a handler is no protocol": (handler, "protocol"),
    "a handler is no consumer": (handler, "consumer"),
    "a handler has no datagrams": (handler, "datagram"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_what_is_plainly_something_else_may_not(what: str) -> None:
    thing, kind = CONTRADICTIONS[what]
    with pytest.raises(ImproperlyConfigured, match=f"it cannot be of the kind {kind}"):
        classify(thing, kind)


def test_what_cannot_be_called_is_refused_whatever_is_stated() -> None:
    for kind in Kind:
        with pytest.raises(ImproperlyConfigured, match="cannot serve 5: it cannot be called"):
            classify(5, kind)


def test_a_kind_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        classify(Consumer, "nonsense")


def test_a_factory_is_tried_once_and_only_if_it_must_be() -> None:
    made: list[Stream] = []

    def factory() -> Stream:
        made.append(Stream())
        return made[-1]

    classify(factory)
    assert len(made) == 1
    classify(factory, "protocol")
    assert len(made) == 1

    class Counting(Stream):
        def __init__(self) -> None:
            made.append(self)

    classify(Counting)
    assert len(made) == 1


def test_a_factory_is_tried_inside_the_loop(run: Callable[..., Any]) -> None:
    class Looping(asyncio.Protocol):
        def __init__(self) -> None:
            self.done = asyncio.get_running_loop().create_future()

    async def main() -> None:
        assert classify(lambda: Looping()) is Kind.PROTOCOL

    run(main())


@pytest.mark.parametrize(
    ("thing", "yes"),
    [
        (Datagrams, True),
        (OursDatagrams, True),
        (DuckDatagrams, True),
        (functools.partial(Datagrams), True),
        (Stream, False),
        (Consumer, False),
        (lambda: Datagrams(), False),  # it would have to be called
        (handler, False),
        (None, False),
    ],
)
def test_is_datagram_class(thing: Any, yes: bool) -> None:
    assert is_datagram_class(thing) is yes


# -- makers


def keywords(**more: Any) -> dict[str, Any]:
    return {"session": 7, "producer": Producer(), "loop": None, "timeout": 3.0, **more}


@pytest.mark.parametrize("thing", [Stream, Buffered, DuckStream, make_stream, lambda: Needy("db")])
def test_foreign_protocols_are_made_without_our_keywords(thing: Any) -> None:
    kind, make = protocol_maker(thing)
    assert kind is Kind.PROTOCOL
    first, second = make(**keywords()), make(**keywords())
    assert first is not second
    assert not isinstance(first, Protocol)


@pytest.mark.parametrize(
    "thing",
    [
        Ours,
        lambda: Ours(),
        make_with_keywords,
        functools.partial(Connection, Consumer),
        lambda: Connection(Consumer),
    ],
)
def test_protocols_of_ours_get_their_place(thing: Any) -> None:
    _, make = protocol_maker(thing)
    options = keywords()
    protocol: Any = make(**options)
    assert protocol.producer is options["producer"]
    assert protocol.session == 7
    assert protocol.timeout == 3.0


@pytest.mark.parametrize(
    "thing",
    [
        lambda: Connection(Consumer, timeout=9.0),
        lambda: Ours(timeout=9.0),
        functools.partial(Connection, Consumer, timeout=9.0),
        functools.partial(Ours, timeout=9.0),
    ],
)
def test_a_timeout_that_the_user_gave_stays(thing: Any) -> None:
    _, make = protocol_maker(thing)
    protocol: Any = make(**keywords())
    assert protocol.timeout == 9.0
    protocol = make(**keywords(timeout=None))
    assert protocol.timeout == 9.0


@pytest.mark.parametrize("thing", [OursDatagrams, lambda: OursDatagrams()])
def test_datagram_protocols_of_ours_get_their_place(thing: Any) -> None:
    kind, make = protocol_maker(thing)
    assert kind is Kind.DATAGRAM
    options = keywords()
    del options["timeout"]
    protocol: Any = make(**options)
    assert (protocol.producer, protocol.session) == (options["producer"], 7)


def test_consumers_and_handlers_are_given_back() -> None:
    with_timeout = functools.partial(handler_with_option, timeout=3)
    for thing, kind in (
        (Consumer, Kind.CONSUMER),
        (handler, Kind.STREAM),
        (with_timeout, Kind.STREAM),
    ):
        assert protocol_maker(thing) == (kind, thing)
