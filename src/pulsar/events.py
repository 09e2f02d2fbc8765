"""Events: named moments in an object's life that other code can listen to.

Owns: ``Event``, ``OneTime``, ``EventHandler`` and ``AbortEvent``.
Leaves: which events exist, and when they fire, to the classes that declare them.

An ``EventHandler`` declares its events as two tuples of names. Nothing is
created for them until somebody binds, awaits or asks for one: an object that
nobody listens to carries a single ``None``. Classes on the hot path test that
``None`` themselves before they call ``fire_event`` at all.

A callback is called as ``callback(arg, exc=None, **kw)``. One that raises is
logged and the rest go on; only ``AbortEvent`` passes through, to whoever fired.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable
from typing import Any, ClassVar

from .errors import PulsarException

__all__ = ["AbortEvent", "Event", "EventCallback", "EventHandler", "OneTime"]

logger = logging.getLogger("pulsar.events")

EventCallback = Callable[..., object]


class AbortEvent(PulsarException):
    """Raised by a callback to stop what the event announces."""


class Event:
    """An event that may fire any number of times."""

    __slots__ = ("_callbacks", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._callbacks: list[EventCallback] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {len(self._callbacks)} callbacks>"

    @property
    def callbacks(self) -> tuple[EventCallback, ...]:
        """The bound callbacks, in the order in which they are called."""
        return tuple(self._callbacks)

    def bind(self, callback: EventCallback) -> None:
        """Call ``callback(arg, exc=None, **kw)`` each time the event fires."""
        self._callbacks.append(callback)

    def unbind(self, callback: EventCallback) -> int:
        """Remove every binding of ``callback``; return how many there were."""
        kept = [bound for bound in self._callbacks if bound != callback]
        removed = len(self._callbacks) - len(kept)
        self._callbacks = kept
        return removed

    def fire(self, arg: Any = None, exc: BaseException | None = None, **kw: Any) -> None:
        """Call the callbacks that are bound now, in order.

        Raises ``AbortEvent`` when a callback does; other errors are logged.
        """
        for callback in self._callbacks.copy():
            self._call(callback, arg, exc, kw)

    def _call(
        self, callback: EventCallback, arg: Any, exc: BaseException | None, kw: dict[str, Any]
    ) -> None:
        try:
            callback(arg, exc=exc, **kw)
        except AbortEvent:
            raise
        except Exception:
            logger.exception("callback %r of event %r failed", callback, self.name)


class OneTime(Event):
    """An event that fires once, and can be awaited.

    Awaiting gives the argument it was fired with, or raises the exception it
    was fired with. A callback bound after the fact is called at once. Several
    tasks may await the same event; cancelling one does not disturb the others.
    """

    __slots__ = ("_arg", "_exc", "_fired", "_kw", "_quiet", "_waiters")

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        """``quiet``: the exception goes to callbacks, awaiting never raises it."""
        super().__init__(name)
        self._fired = False
        self._quiet = quiet
        self._arg: Any = None
        self._exc: BaseException | None = None
        self._kw: dict[str, Any] = {}
        self._waiters: list[asyncio.Future[None]] = []

    def fired(self) -> bool:
        """True once the event has fired."""
        return self._fired

    def bind(self, callback: EventCallback) -> None:
        """Call ``callback`` when the event fires, at once if it has fired."""
        if self._fired:
            self._call(callback, self._arg, self._exc, self._kw)
        else:
            self._callbacks.append(callback)

    def fire(self, arg: Any = None, exc: BaseException | None = None, **kw: Any) -> None:
        """Fire, wake whoever awaits, and forget the callbacks.

        Raises ``RuntimeError`` when the event has fired before.
        """
        if self._fired:
            raise RuntimeError(f"one-time event {self.name!r} has already been fired")
        self._fired = True
        self._arg = arg
        self._exc = exc
        self._kw = kw
        callbacks, self._callbacks = self._callbacks, []
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for callback in callbacks:
            self._call(callback, arg, exc, kw)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._fired:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                yield from waiter
            finally:
                if not self._fired:
                    self._waiters.remove(waiter)
        if self._exc is not None and not self._quiet:
            raise self._exc
        return self._arg


class EventHandler:
    """An object with named events.

    Subclasses declare ``ONE_TIME_EVENTS`` and ``MANY_TIMES_EVENTS``. An instance
    may have more of its own: ``one_time_events`` and ``many_times_events``.
    ``QUIET_EVENTS`` names the one-time events that may be fired with an exception
    which awaiting them does not raise.
    """

    ONE_TIME_EVENTS: ClassVar[tuple[str, ...]] = ()
    MANY_TIMES_EVENTS: ClassVar[tuple[str, ...]] = ()
    QUIET_EVENTS: ClassVar[frozenset[str]] = frozenset()

    __slots__ = ("_events",)

    # None until somebody binds, awaits or asks: the one test on the hot path.
    _events: dict[str, Event] | None

    def __init__(
        self,
        one_time_events: Iterable[str] | None = None,
        many_times_events: Iterable[str] | None = None,
    ) -> None:
        self._events = None
        if one_time_events or many_times_events:
            self._add_events(one_time_events or (), many_times_events or ())

    def _add_events(self, one_time: Iterable[str], many_times: Iterable[str]) -> None:
        events: dict[str, Event] = {name: OneTime(name) for name in one_time}
        events.update((name, Event(name)) for name in many_times)
        self._events = events

    def event(self, name: str) -> Event:
        """The event called ``name``.

        Raises ``LookupError`` for a name that this object does not have.
        """
        events = self._events
        if events is not None and name in events:
            return events[name]
        event: Event
        if name in self.ONE_TIME_EVENTS:
            event = OneTime(name, quiet=name in self.QUIET_EVENTS)
            outcome = self._past_event(name)
            if outcome is not None:
                event.fire(*outcome)
        elif name in self.MANY_TIMES_EVENTS:
            event = Event(name)
        else:
            raise self._unknown_event(name)
        if events is None:
            events = self._events = {}
        events[name] = event
        return event

    def bind_event(self, name: str, callback: EventCallback) -> None:
        """Call ``callback(arg, exc=None, **kw)`` when event ``name`` fires.

        Binding to a one-time event that has fired calls back at once.
        Raises ``LookupError`` for a name that this object does not have.
        """
        self.event(name).bind(callback)

    def unbind_event(self, name: str, callback: EventCallback) -> int:
        """Undo ``bind_event``; return how many bindings were removed."""
        return self.event(name).unbind(callback)

    def fired_event(self, name: str) -> bool:
        """True when the one-time event ``name`` has fired."""
        events = self._events
        if events is not None and name in events:
            event = events[name]
            return isinstance(event, OneTime) and event.fired()
        if name in self.ONE_TIME_EVENTS:
            return self._past_event(name) is not None
        if name in self.MANY_TIMES_EVENTS:
            return False
        raise self._unknown_event(name)

    def fire_event(
        self, name: str, arg: Any = None, exc: BaseException | None = None, **kw: Any
    ) -> None:
        """Fire event ``name`` with ``arg``, or with this object when that is None.

        Raises ``LookupError`` for a name that this object does not have,
        ``RuntimeError`` when a one-time event fires again, and ``AbortEvent``
        when a callback does.
        """
        events = self._events
        if events is None or name not in events:
            if name in self.MANY_TIMES_EVENTS or self._past_event(name) is not None:
                return  # nobody listens, and what has to be remembered is
            self.event(name)  # a one-time event is remembered, or the name is unknown
            events = self._events
            assert events is not None
        events[name].fire(self if arg is None else arg, exc, **kw)

    def _past_event(self, name: str) -> tuple[Any, BaseException | None] | None:
        """What the one-time event ``name`` was fired with before anybody asked.

        For subclasses that record such moments in cheaper ways than an event
        object; None: it has not fired.
        """
        return None

    def _unknown_event(self, name: str) -> LookupError:
        names = {*self.ONE_TIME_EVENTS, *self.MANY_TIMES_EVENTS, *(self._events or ())}
        from difflib import get_close_matches  # only for those who mistype

        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(names))}"
        return LookupError(f"{type(self).__name__} has no event {name!r}: {hint}")
