"""Events: who is called, in which order, with what, and what it costs when nobody listens."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from pulsar.errors import PulsarException
from pulsar.events import AbortEvent, Event, EventHandler, OneTime


class Door(EventHandler):
    ONE_TIME_EVENTS = ("installed", "removed")
    MANY_TIMES_EVENTS = ("opened", "closed")
    QUIET_EVENTS = frozenset({"removed"})


class Calls:
    """A callback that remembers what it was called with."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, BaseException | None, dict[str, Any]]] = []

    def __call__(self, arg: Any, exc: BaseException | None = None, **kw: Any) -> None:
        self.made.append((arg, exc, kw))


def raising(error: BaseException) -> Callable[..., None]:
    def callback(arg: Any, exc: BaseException | None = None, **kw: Any) -> None:
        raise error

    return callback


def record(seen: list[str], name: str) -> Callable[..., None]:
    def callback(arg: Any, exc: BaseException | None = None, **kw: Any) -> None:
        seen.append(name)

    return callback


@pytest.fixture(params=[Event, OneTime])
def event(request: pytest.FixtureRequest) -> Event:
    made: Event = request.param("rang")
    return made


# -- both kinds of event


def test_a_callback_gets_what_the_event_was_fired_with(event: Event) -> None:
    calls = Calls()
    error = LookupError()
    event.bind(calls)
    event.fire("arg", error, data=b"x", more=1)
    assert calls.made == [("arg", error, {"data": b"x", "more": 1})]


def test_a_callback_without_keywords_is_enough(event: Event) -> None:
    seen: list[Any] = []

    def callback(arg: Any, exc: BaseException | None = None) -> None:
        seen.append((arg, exc))

    event.bind(callback)
    event.fire()
    assert seen == [(None, None)]


def test_callbacks_are_called_in_the_order_in_which_they_were_bound(event: Event) -> None:
    seen: list[str] = []
    for name in "abcd":
        event.bind(record(seen, name))
    event.fire()
    assert seen == ["a", "b", "c", "d"]


def test_a_callback_that_is_bound_twice_is_called_twice(event: Event) -> None:
    calls = Calls()
    event.bind(calls)
    event.bind(calls)
    assert event.callbacks == (calls, calls)
    event.fire()
    assert len(calls.made) == 2


def test_unbind_removes_every_binding_and_says_how_many(event: Event) -> None:
    gone, kept = Calls(), Calls()
    for callback in (gone, kept, gone):
        event.bind(callback)
    assert event.unbind(gone) == 2
    assert event.unbind(gone) == 0
    assert event.callbacks == (kept,)
    event.fire()
    assert (len(gone.made), len(kept.made)) == (0, 1)


def test_unbind_knows_a_bound_method_again(event: Event) -> None:
    calls = Calls()
    event.bind(calls.__call__)
    assert event.unbind(calls.__call__) == 1


def test_what_a_callback_unbinds_is_still_called_this_time(event: Event) -> None:
    calls = Calls()
    event.bind(lambda arg, exc: event.unbind(calls))
    event.bind(calls)
    event.fire()
    assert len(calls.made) == 1


def test_an_error_is_logged_with_its_traceback_and_the_rest_are_called(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = Calls(), Calls()
    error = ZeroDivisionError("in a callback")
    fail = raising(error)
    for callback in (before, fail, after):
        event.bind(callback)
    event.fire("arg")
    assert before.made == after.made == [("arg", None, {})]
    (entry,) = caplog.records
    assert (entry.name, entry.levelno) == ("pulsar.events", logging.ERROR)
    assert entry.getMessage() == f"callback {fail!r} of event 'rang' failed"
    assert entry.exc_info is not None
    assert entry.exc_info[1] is error


def test_abort_event_passes_through_to_whoever_fired(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = Calls(), Calls()
    for callback in (before, raising(AbortEvent("stop")), after):
        event.bind(callback)
    with pytest.raises(AbortEvent, match="stop"):
        event.fire()
    assert (len(before.made), len(after.made)) == (1, 0)
    assert not caplog.records


def test_abort_event_is_an_exception_of_pulsars() -> None:
    assert issubclass(AbortEvent, PulsarException)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_is_no_error_passes_through(event: Event, error: type[BaseException]) -> None:
    event.bind(raising(error()))
    with pytest.raises(error):
        event.fire()


def test_repr_names_the_event_and_counts_the_callbacks() -> None:
    event = OneTime("finish")
    event.bind(Calls())
    assert repr(event) == "<OneTime finish, 1 callbacks>"
    assert repr(Event("tick")) == "<Event tick, 0 callbacks>"


# -- many times


def test_an_event_fires_many_times() -> None:
    event, calls = Event("tick"), Calls()
    event.bind(calls)
    for number in range(3):
        event.fire(number)
    assert [arg for arg, _, _ in calls.made] == [0, 1, 2]


def test_what_is_bound_while_an_event_fires_waits_for_the_next_time() -> None:
    event, late = Event("tick"), Calls()

    def bind_once(arg: Any, exc: BaseException | None = None) -> None:
        if arg == "first":
            event.bind(late)

    event.bind(bind_once)
    event.fire("first")
    assert late.made == []
    event.fire("second")
    assert late.made == [("second", None, {})]


# -- one time


def test_a_one_time_event_fires_once() -> None:
    event, calls = OneTime("made"), Calls()
    event.bind(calls)
    assert not event.fired()
    event.fire(1)
    assert event.fired()
    with pytest.raises(RuntimeError, match="one-time event 'made' has already been fired"):
        event.fire(2)
    assert calls.made == [(1, None, {})]


def test_a_one_time_event_forgets_its_callbacks() -> None:
    event = OneTime("made")
    event.bind(Calls())
    event.fire()
    assert event.callbacks == ()


def test_a_late_callback_is_called_at_once_with_the_same() -> None:
    event, late = OneTime("made"), Calls()
    error = LookupError()
    event.fire("arg", error, data=b"x")
    event.bind(late)
    assert late.made == [("arg", error, {"data": b"x"})]
    assert event.callbacks == ()


def test_a_late_callback_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    event = OneTime("made")
    event.fire()
    event.bind(raising(ZeroDivisionError()))
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR]


def test_what_is_bound_while_a_one_time_event_fires_is_called_at_once() -> None:
    event = OneTime("made")
    seen: list[str] = []

    def first(arg: Any, exc: BaseException | None = None) -> None:
        event.bind(record(seen, "late"))
        seen.append("first")

    event.bind(first)
    event.bind(record(seen, "second"))
    event.fire()
    assert seen == ["late", "first", "second"]


def test_awaiting_gives_the_argument(run: Callable[..., Any]) -> None:
    async def main() -> None:
        event = OneTime("made")
        asyncio.get_running_loop().call_soon(event.fire, "value")
        assert await event == "value"
        assert await event == "value"  # again, now that it has fired

    run(main())


def test_awaiting_raises_the_exception(run: Callable[..., Any]) -> None:
    async def main() -> None:
        event = OneTime("made")
        error = LookupError("why")
        asyncio.get_running_loop().call_soon(event.fire, "value", error)
        for _ in range(2):
            with pytest.raises(LookupError) as raised:
                await event
            assert raised.value is error

    run(main())


def test_awaiting_a_quiet_event_raises_nothing(run: Callable[..., Any]) -> None:
    async def main() -> None:
        event, calls = OneTime("lost", quiet=True), Calls()
        error = ConnectionResetError()
        event.bind(calls)
        asyncio.get_running_loop().call_soon(event.fire, "value", error)
        assert await event == "value"
        assert calls.made == [("value", error, {})]

    run(main())


def test_callbacks_are_called_before_those_who_await_go_on(run: Callable[..., Any]) -> None:
    async def main() -> None:
        event = OneTime("made")
        seen: list[str] = []

        async def wait() -> None:
            await event
            seen.append("awaited")

        task = asyncio.get_running_loop().create_task(wait())
        await asyncio.sleep(0)
        event.bind(record(seen, "called"))
        event.fire()
        await task
        assert seen == ["called", "awaited"]

    run(main())


def test_those_who_await_go_on_although_a_callback_aborts(run: Callable[..., Any]) -> None:
    async def main() -> None:
        event = OneTime("made")
        event.bind(raising(AbortEvent()))

        async def wait() -> Any:
            return await event

        task = asyncio.get_running_loop().create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(AbortEvent):
            event.fire("value")
        assert await task == "value"

    run(main())


def test_cancelling_one_who_awaits_does_not_disturb_the_others(run: Callable[..., Any]) -> None:
    async def main() -> None:
        event = OneTime("made")

        async def wait() -> Any:
            return await event

        tasks = [asyncio.get_running_loop().create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert not event.fired()
        assert len(event._waiters) == 2  # nothing is kept for the one who left
        event.fire("value")
        assert await tasks[0] == "value"
        assert await tasks[2] == "value"

    run(main())


def test_one_who_is_cancelled_in_the_turn_of_the_firing(run: Callable[..., Any]) -> None:
    async def main() -> None:
        event = OneTime("made")

        async def wait() -> Any:
            return await event

        before, after = [asyncio.get_running_loop().create_task(wait()) for _ in range(2)]
        await asyncio.sleep(0)
        before.cancel()
        event.fire("value")
        after.cancel()
        for task in (before, after):
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


# -- handlers


def test_nothing_is_created_until_somebody_listens() -> None:
    door = Door()
    door.fire_event("opened")
    door.fire_event("opened", data=b"x")
    assert not door.fired_event("installed")
    assert not door.fired_event("opened")
    assert door._events is None
    door.bind_event("opened", Calls())
    assert list(door._events or ()) == ["opened"]


def test_an_event_is_made_once() -> None:
    door = Door()
    assert isinstance(door.event("installed"), OneTime)
    assert type(door.event("opened")) is Event
    assert door.event("installed") is door.event("installed")
    assert door.event("installed") is not Door().event("installed")


def test_a_callback_gets_the_object_when_there_is_no_other_argument() -> None:
    door, calls = Door(), Calls()
    for name in ("installed", "opened"):
        door.bind_event(name, calls)
        door.fire_event(name)
    door.fire_event("opened", "wide")
    door.fire_event("opened", 0)
    assert [arg for arg, _, _ in calls.made] == [door, door, "wide", 0]


def test_a_callback_of_a_handler_gets_exception_and_keywords() -> None:
    door, calls = Door(), Calls()
    error = LookupError()
    door.bind_event("opened", calls)
    door.fire_event("opened", "arg", exc=error, data=b"x")
    assert calls.made == [("arg", error, {"data": b"x"})]


def test_unbind_event() -> None:
    door, calls = Door(), Calls()
    door.bind_event("opened", calls)
    assert door.unbind_event("opened", calls) == 1
    assert door.unbind_event("opened", calls) == 0
    door.fire_event("opened")
    assert calls.made == []


def test_a_one_time_event_is_remembered_when_nobody_listens(run: Callable[..., Any]) -> None:
    door, late = Door(), Calls()
    error = LookupError()
    door.fire_event("installed", "arg", error, data=b"x")
    assert door.fired_event("installed")
    door.bind_event("installed", late)
    assert late.made == [("arg", error, {"data": b"x"})]
    with pytest.raises(RuntimeError, match="already been fired"):
        door.fire_event("installed")

    async def wait() -> Any:
        return await door.event("installed")  # type: ignore[misc]

    with pytest.raises(LookupError):
        run(wait())


def test_the_events_of_two_objects_are_two(run: Callable[..., Any]) -> None:
    one, other, calls = Door(), Door(), Calls()
    one.bind_event("installed", calls)
    one.fire_event("installed")
    assert not other.fired_event("installed")
    other.fire_event("installed")
    assert calls.made == [(one, None, {})]


def test_quiet_events_raise_nothing_in_those_who_await(run: Callable[..., Any]) -> None:
    async def main() -> None:
        door, calls = Door(), Calls()
        error = ConnectionResetError()
        door.bind_event("removed", calls)
        door.fire_event("removed", exc=error)
        assert await door.event("removed") is door  # type: ignore[misc]
        assert calls.made == [(door, error, {})]

    run(main())


def test_abort_event_passes_through_a_handler() -> None:
    door = Door()
    door.bind_event("opened", raising(AbortEvent("locked")))
    with pytest.raises(AbortEvent, match="locked"):
        door.fire_event("opened")


def by_event(door: Door, name: str) -> None:
    door.event(name)


def by_bind(door: Door, name: str) -> None:
    door.bind_event(name, Calls())


def by_unbind(door: Door, name: str) -> None:
    door.unbind_event(name, Calls())


def by_fire(door: Door, name: str) -> None:
    door.fire_event(name)


def by_fired(door: Door, name: str) -> None:
    door.fired_event(name)


every_use = pytest.mark.parametrize("use", [by_event, by_bind, by_unbind, by_fire, by_fired])


@every_use
def test_an_unknown_name_is_refused_with_the_nearest_right_one(use: Callable[..., None]) -> None:
    door = Door()
    with pytest.raises(LookupError) as raised:
        use(door, "openned")
    assert str(raised.value) == "Door has no event 'openned': did you mean 'opened'?"
    assert door._events is None


@every_use
def test_a_name_like_no_other_is_refused_with_all_of_them(use: Callable[..., None]) -> None:
    with pytest.raises(LookupError) as raised:
        use(Door(), "xyz")
    assert str(raised.value) == "Door has no event 'xyz': it has closed, installed, opened, removed"


@every_use
def test_the_name_of_somebody_elses_event_is_unknown(use: Callable[..., None]) -> None:
    class Window(EventHandler):
        MANY_TIMES_EVENTS = ("broken",)

    Window().bind_event("broken", Calls())
    with pytest.raises(LookupError):
        use(Door(), "broken")


def test_an_object_may_have_events_of_its_own() -> None:
    class Gate(Door):
        pass

    gate, calls = Gate(["painted"], ["rang"]), Calls()
    assert isinstance(gate.event("painted"), OneTime)
    for name in ("painted", "rang", "opened"):
        gate.bind_event(name, calls)
        gate.fire_event(name)
    gate.fire_event("rang")
    assert len(calls.made) == 4
    with pytest.raises(RuntimeError, match="painted"):
        gate.fire_event("painted")
    with pytest.raises(LookupError, match="did you mean 'painted'"):
        gate.event("paint")
    with pytest.raises(LookupError):
        Gate().event("rang")


def test_events_of_an_objects_own_are_remembered_too() -> None:
    door, late = Door(one_time_events=["painted"]), Calls()
    door.fire_event("painted", "red")
    assert door.fired_event("painted")
    door.bind_event("painted", late)
    assert late.made == [("red", None, {})]


# -- events that were recorded in cheaper ways than an event object


class Recorder(EventHandler):
    ONE_TIME_EVENTS = ("happened", "later")

    outcome: tuple[Any, BaseException | None] | None = None

    def _past_event(self, name: str) -> tuple[Any, BaseException | None] | None:
        return self.outcome if name == "happened" else None


def test_a_past_event_calls_back_at_once(run: Callable[..., Any]) -> None:
    recorder, late = Recorder(), Calls()
    error = LookupError()
    assert not recorder.fired_event("happened")
    recorder.outcome = ("value", error)
    assert recorder.fired_event("happened")
    assert not recorder.fired_event("later")
    assert recorder._events is None
    recorder.bind_event("happened", late)
    assert late.made == [("value", error, {})]

    async def wait() -> Any:
        return await recorder.event("happened")  # type: ignore[misc]

    with pytest.raises(LookupError):
        run(wait())


def test_an_event_that_was_asked_for_before_is_fired_by_hand() -> None:
    recorder, calls = Recorder(), Calls()
    recorder.bind_event("happened", calls)
    recorder.outcome = ("value", None)
    recorder.fire_event("happened", "value")
    assert calls.made == [("value", None, {})]
