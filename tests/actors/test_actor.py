"""The life of an actor: its states, hooks, tasks, children, and who is the current one."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pulsar.actors.actor import Actor, StoppedEarly, current_actor, set_process_actor
from pulsar.actors.current import get_actor, send, spawn
from pulsar.actors.hosts import spawn as spawn_from
from pulsar.actors.state import State, check_move
from pulsar.errors import ActorError, ActorGone

Run = Callable[..., Any]


@asynccontextmanager
async def living(actor: Actor) -> Any:
    """``actor`` runs; it is stopped at the end."""
    started = asyncio.Event()
    actor.bind_event("start", lambda _actor, exc=None: started.set())
    life = asyncio.create_task(actor.run())
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({life, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield actor
    finally:
        actor.stop()
        await life


# States


LEGAL = {
    (State.INITIAL, State.STARTING),
    (State.INITIAL, State.CLOSED),
    (State.STARTING, State.RUNNING),
    (State.STARTING, State.STOPPING),
    (State.STARTING, State.CLOSED),
    (State.RUNNING, State.STOPPING),
    (State.RUNNING, State.CLOSED),
    (State.STOPPING, State.CLOSED),
}


def test_states_have_one_order() -> None:
    for old, new in itertools.product(State, State):
        if (old, new) in LEGAL:
            assert check_move(old, new) is new
        else:
            with pytest.raises(ActorError, match="an actor cannot go from"):
                check_move(old, new)


def test_a_life(run: Run) -> None:
    seen: list[tuple[str, str]] = []

    class Noting(Actor):
        async def starting(self) -> None:
            seen.append(("starting", self.state.name))

        def started(self) -> None:
            seen.append(("started", self.state.name))

        async def ending(self) -> None:
            seen.append(("ending", self.state.name))

    def hook(name: str) -> Callable[..., None]:
        return lambda actor, exc=None: seen.append((f"hook {name}", actor.state.name))

    async def main() -> None:
        actor = Noting(hooks={name: hook(name) for name in ("start", "stopping", "stop")})
        assert (actor.name, actor.aid.startswith("noting-")) == ("noting", True)
        assert (repr(actor), actor.running) == ("<Noting noting initial>", False)
        actor.stop()  # nothing runs yet
        async with living(actor):
            assert actor.running
            assert actor.loop is asyncio.get_running_loop()
            info = actor.info()
            assert (info["state"], info["thread"]) == ("running", "MainThread")
            assert info["uptime"] >= 0.0
        assert actor.state is State.CLOSED
        with pytest.raises(ActorError, match="cannot go from closed to starting"):
            await actor.run()

    run(main())
    assert seen == [
        ("starting", "STARTING"),
        ("hook start", "RUNNING"),
        ("started", "RUNNING"),
        ("hook stopping", "STOPPING"),
        ("ending", "STOPPING"),
        ("hook stop", "CLOSED"),
    ]


def test_async_hooks_are_waited_for(run: Run) -> None:
    seen: list[str] = []

    def hook(name: str) -> Callable[..., Any]:
        async def waits(actor: Actor, exc: BaseException | None = None) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            seen.append(f"{name} {actor.state.name}")

        return waits

    class Noting(Actor):
        def started(self) -> None:
            seen.append("started")

        async def ending(self) -> None:
            seen.append("ending")

    async def main() -> None:
        async with living(
            Noting(hooks={name: hook(name) for name in ("start", "stopping", "stop")})
        ):
            while "started" not in seen:
                await asyncio.sleep(0)

    run(main())
    assert seen == ["start RUNNING", "started", "stopping STOPPING", "ending", "stop CLOSED"]


@pytest.mark.parametrize("wait", [False, True], ids=["plain", "async"])
def test_a_hook_that_fails_is_logged_and_the_actor_lives(
    run: Run, caplog: pytest.LogCaptureFixture, wait: bool
) -> None:
    def fails(actor: Actor, exc: BaseException | None = None) -> Any:
        async def later() -> None:
            raise RuntimeError("no")

        if wait:
            return later()
        raise RuntimeError("no")

    async def main() -> None:
        async with living(Actor(hooks={"start": fails, "stopping": fails})) as actor:
            assert await actor.send(actor, "ping") == "pong"

    run(main())
    assert caplog.text.count("RuntimeError: no") == 2


def test_unknown_hooks_are_refused() -> None:
    with pytest.raises(Exception, match="begin"):
        Actor(hooks={"begin": print})


def test_a_start_that_fails(run: Run) -> None:
    seen: list[str] = []

    class Failing(Actor):
        async def starting(self) -> None:
            raise OSError("no disk")

        async def ending(self) -> None:
            seen.append("ending")

    async def main() -> None:
        actor = Failing(hooks={"stop": lambda actor, exc=None: seen.append("stop")})
        with pytest.raises(OSError, match="no disk"):
            await actor.run()
        assert actor.state is State.CLOSED
        assert actor.aid not in actor.router.actors

    run(main())
    assert seen == ["stop"]


def test_stopped_before_its_start_is_over(run: Run) -> None:
    class Slow(Actor):
        async def starting(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.extra["cleaned up"] = True

    async def main() -> None:
        actor = Slow()
        life = asyncio.create_task(actor.run())
        while actor.state is not State.STARTING:
            await asyncio.sleep(0)
        actor.stop()
        with pytest.raises(StoppedEarly):
            await life
        assert actor.extra["cleaned up"]
        assert actor.state is State.CLOSED

    run(main())


def test_heartbeats_measure_the_lag(run: Run) -> None:
    class Quick(Actor):
        heartbeat = 0.01

    async def main() -> None:
        beats = asyncio.Semaphore(0)
        actor = Quick(hooks={"periodic_task": lambda actor, exc=None: beats.release()})
        async with living(actor):
            for _ in range(3):
                await beats.acquire()
            # The loop stands still for longer than the next beat is away.
            threading.Event().wait(0.2)
            lag = 0.0
            for _ in range(3):
                await beats.acquire()
                lag = max(lag, actor.lag)
            assert 0.15 < lag < 10.0
            assert actor.info()["lag"] >= 0.0

    run(main())


def test_tasks_end_with_their_actor(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn(stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                pass

    async def main() -> None:
        stop = asyncio.Event()
        async with living(Actor("anna")) as actor:
            seen = []

            async def work() -> None:
                seen.append(get_actor())
                await asyncio.Event().wait()

            task = actor.create_task(work())
            deaf = actor.create_task(stubborn(stop))
            await asyncio.sleep(0)
            assert seen == [actor]
        assert task.cancelled()
        stop.set()
        await deaf

    run(main())
    assert "anna: 1 tasks will not be cancelled" in caplog.text


def test_info_can_be_added_to(run: Run) -> None:
    def more(actor: Actor, exc: BaseException | None = None, *, info: dict[str, Any]) -> None:
        info["mood"] = "good"

    async def main() -> None:
        async with living(Actor("anna", slot=3, hooks={"on_info": more})) as actor:
            info = await actor.send("anna", "info")
            assert (info["mood"], info["slot"], info["children"]) == ("good", 3, [])

    run(main())


# Children


@pytest.mark.parametrize("concurrency", ["loop", "thread"])
def test_children_end_with_their_parent(run: Run, concurrency: str) -> None:
    ended: list[str] = []

    async def main() -> None:
        async with living(Actor("parent")) as parent:
            for name in ("one", "other"):
                proxy = await spawn_from(
                    parent,
                    name,
                    concurrency=concurrency,
                    stop=lambda actor, exc=None: ended.append(actor.name),
                )
                assert await parent.send(proxy, "ping") == "pong"
            assert parent.info()["children"] == ["one", "other"]
        assert sorted(ended) == ["one", "other"]
        assert parent.children == {}

    run(main())


@pytest.mark.parametrize("concurrency", ["loop", "thread"])
def test_children_are_killed(run: Run, concurrency: str) -> None:
    async def main() -> None:
        async with living(Actor("parent")) as parent:
            child = await spawn_from(parent, "child", concurrency=concurrency)
            assert await parent.kill_actor("child") == child.aid
            while parent.children:
                await asyncio.sleep(0.001)
            with pytest.raises(ActorGone):
                await parent.send(child, "ping")
            with pytest.raises(ActorGone):
                await parent.kill_actor("child")

    run(main())


@pytest.mark.parametrize("concurrency", ["loop", "thread"])
def test_a_child_that_cannot_start(run: Run, concurrency: str) -> None:
    class Failing(Actor):
        async def starting(self) -> None:
            raise OSError("no disk")

    async def main() -> None:
        async with living(Actor("parent")) as parent:
            with pytest.raises(ActorError, match="failing could not be started") as caught:
                await spawn_from(parent, actor_class=Failing, concurrency=concurrency)
            assert isinstance(caught.value.__cause__, OSError)
            assert parent.children == {}

    run(main())


def test_what_cannot_be_spawned(run: Run) -> None:
    async def main() -> None:
        async with living(Actor("parent")) as parent:
            with pytest.raises(ActorError, match="choose process, thread or loop"):
                await spawn_from(parent, concurrency="fibre")
            # There is no arbiter who could make a process.
            with pytest.raises(ActorGone):
                await spawn_from(parent)

    run(main())


def test_parameters_on_their_way(run: Run) -> None:
    def more(actor: Actor, exc: BaseException | None = None, *, params: dict[str, Any]) -> None:
        params["colour"] = "red"

    async def main() -> None:
        async with living(Actor(hooks={"on_params": more})) as parent:
            await spawn_from(parent, "child", concurrency="loop", size=3)
            child = next(a for a in parent.router.actors.values() if a.name == "child")
            assert child.params == {"colour": "red", "size": 3}

    run(main())


# Who runs


def is_current(actor: Actor) -> bool:
    return get_actor() is actor


def test_the_current_actor(run: Run) -> None:
    assert get_actor() is None
    with pytest.raises(ActorError, match="no actor runs here to send a command"):
        send("arbiter", "ping")

    async def main() -> None:
        with pytest.raises(ActorError, match="no actor runs here to spawn an actor"):
            await spawn("child")
        one, other = Actor("one"), Actor("other")
        async with living(one), living(other):
            assert get_actor() is None
            for actor in (one, other):
                assert await actor.send(actor, "run", is_current)
            set_process_actor(one)
            try:
                assert current_actor() is one
                assert await send(one, "ping") == "pong"
                with other.current():
                    assert get_actor() is other
                    child = await spawn("child", concurrency="loop")
                assert other.children.keys() == {child.aid}
            finally:
                set_process_actor(None)

    run(main())


def test_logging_is_quiet(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with living(Actor()) as actor:
            await actor.send(actor, "ping")

    run(main())
    assert not [record for record in caplog.records if record.name.startswith("pulsar")]
