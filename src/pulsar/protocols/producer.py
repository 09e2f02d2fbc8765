"""Producers: what creates protocols, and counts them and their requests.

Owns: ``Producer``, the base of servers and clients.
Leaves: listening to ``servers``, connecting to ``clients``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from ..events import Event, EventHandler
from .consumer import ProtocolConsumer
from .protocol import PulsarProtocol, default_logger

__all__ = ["Producer"]

# The events of a consumer that can be bound on its producer.
_CONSUMER_EVENTS = ("pre_request", "data_received", "data_processed", "post_request")


class Producer(EventHandler):
    """Creates protocols with ``protocol_factory`` and counts what they do.

    Its many-times events are those of all its connections and their consumers. A
    callback bound here is called for each of them, with the connection or the
    consumer as its argument, also for ``post_request``: the result is
    ``consumer.result``.

    :param loop: the event loop; by default the one that runs when it is needed
    :param protocol_factory: called with ``session``, ``producer``, ``loop`` and
        ``logger`` for each new protocol
    :param name: for logs; by default the name of the class, in lower case
    :param max_requests: requests after which ``max_requests_reached`` is called
    :param logger: by default ``pulsar.protocols``
    """

    ONE_TIME_EVENTS: ClassVar[tuple[str, ...]] = ("start", "finish")
    MANY_TIMES_EVENTS: ClassVar[tuple[str, ...]] = (
        "connection_made",
        *_CONSUMER_EVENTS,
        "connection_lost",
    )

    # Counted, or looked at, for each request: a slot is found faster than a dict's key.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "attentive",
        "forwards",
        "max_requests",
        "requests_processed",
    )

    # True once somebody has asked for an event of this producer's consumers.
    forwards: bool
    # True when protocol_connected shall be called.
    attentive: bool

    # True: its connections answer requests; False: they make them.
    server_side: ClassVar[bool] = False

    # A subclass may declare its factory as a class attribute, as the echo client does.
    protocol_factory: Callable[..., asyncio.BaseProtocol] | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        protocol_factory: Callable[..., asyncio.BaseProtocol] | None = None,
        name: str | None = None,
        max_requests: int | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        super().__init__()
        self.forwards = False
        self.attentive = False
        self._loop = loop
        if protocol_factory is not None:
            self.protocol_factory = protocol_factory
        self.name = name or type(self).__name__.lower()
        self.max_requests = max_requests or None
        self.logger = logger or default_logger
        self.sessions = 0
        self.requests_processed = 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        factory = cls.__dict__.get("protocol_factory")
        if isinstance(factory, partial):
            # From Python 3.14 on, a partial in the body of a class is a method.
            cls.protocol_factory = staticmethod(factory)

    def create_protocol(self, **kw: Any) -> asyncio.BaseProtocol:
        """A new protocol from ``protocol_factory``; one session more.

        Raises ``RuntimeError`` without a factory.
        """
        if self.protocol_factory is None:
            raise RuntimeError(f"{type(self).__name__} has no protocol_factory")
        self.sessions += 1
        return self.protocol_factory(
            session=self.sessions, producer=self, loop=self._loop, logger=self.logger, **kw
        )

    def event(self, name: str) -> Event:
        """See ``EventHandler.event``."""
        if name in _CONSUMER_EVENTS:
            self.forwards = True
        elif name == "connection_made":
            self.attentive = True
        return super().event(name)

    def build_consumer(self, consumer_factory: Callable[[], ProtocolConsumer]) -> ProtocolConsumer:
        """A new consumer that fires this producer's events too, where somebody listens."""
        consumer = consumer_factory()
        if self.forwards and self._events is not None:
            for name in _CONSUMER_EVENTS:
                if name in self._events:
                    fire = self._events[name].fire
                    if name == "post_request":
                        # On the consumer it is fired with the result.
                        fire = partial(_fire_with, fire, consumer)
                    consumer.bind_event(name, fire)
        return consumer

    def protocol_connected(self, protocol: PulsarProtocol) -> None:
        """Called by a protocol when its connection is made, if the producer is attentive."""
        if self._events is not None and "connection_made" in self._events:
            self.fire_event("connection_made", protocol)

    def protocol_lost(self, protocol: PulsarProtocol, exc: BaseException | None) -> None:
        """Called by a protocol of this producer when its connection is lost."""
        if self._events is not None and "connection_lost" in self._events:
            self.fire_event("connection_lost", protocol, exc)

    def count_request(self) -> None:
        """Called after each request, when there is a limit to them."""
        if self.requests_processed == self.max_requests:
            self.max_requests_reached()

    def max_requests_reached(self) -> None:
        """Called once, when ``max_requests`` have been processed. Does nothing here."""


def _fire_with(
    fire: Callable[..., None],
    consumer: ProtocolConsumer,
    arg: Any,
    exc: BaseException | None = None,
) -> None:
    fire(consumer, exc)
