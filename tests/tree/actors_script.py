"""A script of actors: ``python actors_script.py STORY`` tells one of its stories.

A story is a coroutine function that the arbiter runs when it starts. It ends the tree; when
everything in it was as it should be, the script says "the end".
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pulsar import (
    Actor,
    ActorError,
    ActorGone,
    ActorProxy,
    CommandNotFound,
    RemoteError,
    arbiter,
    command,
    get_actor,
    send,
    spawn,
)
from pulsar.actors.commands import CommandRequest
from pulsar.actors.message import RemoteTraceback
from pulsar.system import resident_memory

MIB = 2**20


class OwnError(Exception):
    """Can be sent."""


class Stubborn(Exception):
    """Cannot be made anew from its arguments."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


@command()
def add(request: CommandRequest, one: int, other: int = 0) -> int:
    return one + other


@command()
async def who_asks(request: CommandRequest) -> tuple[str, str, str]:
    await asyncio.sleep(0)
    return request.caller.aid, request.actor.name, request.command


@command(name="rename")
def some_name(request: CommandRequest) -> str:
    return "renamed"


@command(ack=False)
def collect(request: CommandRequest, number: int, ballast: bytes) -> None:
    request.actor.extra.setdefault("numbers", []).append(number)


@command()
def fail(request: CommandRequest, kind: str) -> None:
    if kind == "own":
        raise OwnError("no", 7)
    if kind == "stubborn":
        raise Stubborn("no", "way")
    raise KeyError(kind)


@command()
def unpicklable(request: CommandRequest) -> Any:
    return threading.Lock()


def process_id(actor: Actor) -> int:
    return os.getpid()


async def never(actor: Actor) -> None:
    await asyncio.Event().wait()


def collected(actor: Actor) -> list[int]:
    numbers: list[int] = actor.extra.get("numbers", [])
    return numbers


def stand_still(actor: Actor, seconds: float) -> None:
    time.sleep(seconds)


def memory(actor: Actor) -> int:
    return resident_memory()


async def raises(kind: type[BaseException], awaitable: Awaitable[Any]) -> Any:
    """The error of that kind that ``awaitable`` raises."""
    try:
        async with asyncio.timeout(20):
            result = await awaitable
    except kind as exc:
        return exc
    raise AssertionError(f"no {kind.__name__}, but {result!r}")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# The stories


async def talk(root: Actor, concurrency: str) -> None:
    """What can be asked of an actor, wherever it lives."""
    proxy = await spawn("anna", concurrency=concurrency, colour="red")
    assert (proxy.name, proxy == ActorProxy(proxy.aid)) == ("anna", True)
    for target in (proxy, proxy.aid, "anna"):
        assert await send(target, "ping") == "pong"
    message = {"text": "über", "data": b"\0" * MIB, "proxy": proxy, "tuple": (1, None)}
    assert await send(proxy, "echo", message) == message
    assert await send(proxy, "add", 1, other=2) == 3
    assert await send(proxy, "rename") == "renamed"
    assert await send(proxy, "who_asks") == ("arbiter", "anna", "who_asks")
    info = await send(proxy, "info")
    own_process = concurrency == "process"
    assert (info["name"], info["state"], info["slot"]) == ("anna", "running", None)
    assert (info["pid"] == os.getpid()) != own_process
    assert (info["thread"] == "MainThread") == (concurrency != "thread")
    assert await send(proxy, "run", process_id) == info["pid"]
    assert await send(proxy, "run", param, "colour") == "red"
    assert await send(proxy, "notify", {"mood": "good"}) is None
    assert await send(proxy, "run", notices) == {"arbiter": {"mood": "good"}}
    answers = await asyncio.gather(*(send(proxy, "echo", number) for number in range(500)))
    assert answers == list(range(500))
    missing = await raises(CommandNotFound, send(proxy, "pign"))
    assert "did you mean 'ping'?" in str(missing)
    await raises(TypeError, send(proxy, "add"))
    running = send(proxy, "run", never)
    assert await send(proxy, "stop") is None
    await raises(ActorGone, running)
    await until(lambda: proxy.aid not in root.router.below and "anna" not in root.router.actors)
    gone = await raises(ActorGone, send(proxy, "ping"))
    assert "no actor is called" in str(gone)


def param(actor: Actor, name: str) -> Any:
    return actor.params[name]


def notices(actor: Actor) -> dict[str, Any]:
    return actor.notices


async def errors(root: Actor) -> None:
    """What goes wrong there is raised here."""
    for concurrency in ("process", "thread", "loop"):
        proxy = await spawn(concurrency=concurrency)
        own = await raises(OwnError, send(proxy, "fail", "own"))
        assert own.args == ("no", 7)
        cause = own.__cause__
        assert isinstance(cause, RemoteTraceback)
        assert 'raise OwnError("no", 7)' in cause.text
        assert "in fail" in str(cause)
        stubborn = await raises(RemoteError, send(proxy, "fail", "stubborn"))
        assert "Stubborn: no way" in str(stubborn)
        assert "in fail" in str(stubborn.__cause__)
        await raises(KeyError, send(proxy, "fail", "other"))
        unsent = await raises(ActorError, send(proxy, "echo", threading.Lock()))
        assert "must be picklable" in str(unsent)
        unsent = await raises(ActorError, send(proxy, "run", lambda actor: 1))
        assert "must be picklable" in str(unsent)
        unanswered = await raises(ActorError, send(proxy, "unpicklable"))
        assert "must be picklable" in str(unanswered)
        assert await send(proxy, "ping") == "pong"
    await raises(ActorGone, send("nobody", "ping"))
    await raises(ActorError, spawn(concurrency="fibre"))
    await raises(ActorError, spawn(threading_lock=threading.Lock()))


async def killed(root: Actor) -> None:
    """Who is killed answers no more, and whoever waits for it is told at once."""
    for concurrency in ("process", "thread", "loop"):
        proxy = await spawn("bert", concurrency=concurrency)
        waiting = [send(proxy, "run", never) for _ in range(3)]
        await send(proxy, "ping")
        assert await send("arbiter", "kill_actor", "bert") == proxy.aid
        for each in waiting:
            await raises(ActorGone, each)
        await until(lambda: "bert" not in {*root.router.below, *root.router.actors})
        await raises(ActorGone, send("bert", "ping"))
        await raises(ActorGone, send("arbiter", "kill_actor", "bert"))
    proxy = await spawn()
    pid = await send(proxy, "run", process_id)
    waiting = [send(proxy, "run", never)]
    await send(proxy, "ping")
    os.kill(pid, signal.SIGKILL)
    gone = await raises(ActorGone, waiting[0])
    assert "gone meanwhile" in str(gone)


async def neighbours(root: Actor) -> None:
    """Actors talk to each other, wherever they live, through the arbiter."""
    one, other = await spawn("one"), await spawn("other")
    below = await send(one, "run", spawn_below, "thread")
    beside = await send(one, "run", spawn_below, "loop")
    far = await send(other, "run", spawn_below, "process")
    everybody = [one, other, below, beside, far]
    pids = [await send(each, "run", process_id) for each in everybody]
    assert pids[0] == pids[2] == pids[3]
    assert len(set(pids)) == 3
    for each in everybody:
        for target in [*everybody, "arbiter"]:
            aid, name, _ = await send(each, "run", ask, target, "who_asks")
            assert aid == each.aid
            assert target in ("arbiter", ActorProxy(name), *everybody)
        error = await send(each, "run", error_of, "nobody", "ping")
        assert isinstance(error, ActorGone)
    waiting = send(below, "run", ask, far, "run", never)
    await send(below, "ping")
    await send(far, "ping")
    pid = await send(far, "run", process_id)
    os.kill(pid, signal.SIGKILL)
    await raises(ActorGone, waiting)
    # Whoever ends takes those below with it.
    await send(one, "stop")
    await until(lambda: below.aid not in root.router.below)
    await raises(ActorGone, send(below, "ping"))
    assert await send(other, "ping") == "pong"


async def spawn_below(actor: Actor, concurrency: str) -> ActorProxy:
    assert get_actor() is actor
    return await spawn(f"{actor.name}-{concurrency}", concurrency=concurrency)


async def ask(actor: Actor, target: Any, name: str, *args: Any) -> Any:
    return await send(target, name, *args)


async def error_of(actor: Actor, target: Any, name: str) -> Exception:
    try:
        await send(target, name)
    except Exception as exc:
        return exc
    raise AssertionError("no error")


class Counter(Actor):
    """An actor with a class of its own."""

    heartbeat = 0.05

    def info(self) -> dict[str, Any]:
        return {**super().info(), "beats": self.extra.get("beats", 0)}


def on_start(actor: Actor, exc: BaseException | None = None) -> None:
    actor.extra["started"] = True
    note(actor, "start")


async def on_stopping(actor: Actor, exc: BaseException | None = None) -> None:
    await asyncio.sleep(0)
    note(actor, "stopping")


def on_stop(actor: Actor, exc: BaseException | None = None) -> None:
    note(actor, "stop")


def on_beat(actor: Actor, exc: BaseException | None = None) -> None:
    actor.extra["beats"] = actor.extra.get("beats", 0) + 1


def more_info(actor: Actor, exc: BaseException | None = None, *, info: dict[str, Any]) -> None:
    info["mood"] = "good"


def broken(actor: Actor, exc: BaseException | None = None) -> None:
    raise RuntimeError("it cannot start")


def note(actor: Actor, text: str) -> None:
    with Path(actor.params["notes"]).open("a") as notes:
        notes.write(f"{text}\n")


async def hooks(root: Actor) -> None:
    """Hooks of an actor are called where it lives."""

    def more_params(
        actor: Actor, exc: BaseException | None = None, *, params: dict[str, Any]
    ) -> None:
        params["size"] = 3

    root.bind_event("on_params", more_params)
    for concurrency in ("process", "thread", "loop"):
        notes = f"notes-{concurrency}"
        proxy = await spawn(
            actor_class=Counter,
            concurrency=concurrency,
            notes=notes,
            start=on_start,
            stopping=on_stopping,
            stop=on_stop,
            periodic_task=on_beat,
            on_info=more_info,
        )
        assert proxy.name.startswith("actor-" if concurrency == "process" else "counter")
        assert await send(proxy, "run", param, "size") == 3
        assert (await send(proxy, "info"))["mood"] == "good"
        async with asyncio.timeout(20):
            while (await send(proxy, "info"))["beats"] < 3:
                await asyncio.sleep(0.01)
        await send(proxy, "stop")
        texts = ["start", "stopping", "stop"]
        await until(lambda: Path(notes).read_text().split() == texts)  # noqa: B023
        # A hook that fails is logged, and the actor lives on.
        proxy = await spawn(concurrency=concurrency, start=broken)
        assert await send(proxy, "ping") == "pong"


class Failing(Actor):
    async def starting(self) -> None:
        raise RuntimeError("it cannot start")


async def cannot_start(root: Actor) -> None:
    """Who spawns what cannot start is told."""
    for concurrency in ("process", "thread", "loop"):
        error = await raises(ActorError, spawn(actor_class=Failing, concurrency=concurrency))
        reason = str(error) + str(error.__cause__)
        assert "it cannot start" in reason, reason
    assert not root.children


async def pressure(root: Actor) -> None:
    """One who sends faster than another one works waits; nothing is lost, nothing piles up."""
    slow, fast = await spawn("slow"), await spawn("fast")
    before = [await send(each, "run", memory) for each in (fast, slow, root)]
    still = send(slow, "run", stand_still, 1.0)
    # Two hundred times what a mailbox holds before its senders wait.
    flood = send(fast, "run", send_many, slow, 800, MIB // 8)
    await still
    peak = max(await asyncio.gather(*(send(each, "run", memory) for each in (fast, root))))
    await flood
    after = [await send(each, "run", memory) for each in (fast, slow, root)]
    # On the way are a few of them, at most: buffers, and what is being unpacked.
    assert peak - max(before) < 40 * MIB, (before, peak)
    for old, new in zip(before, after, strict=True):
        assert new - old < 40 * MIB, (before, after)
    assert await send(slow, "run", collected) == list(range(800))


async def send_many(actor: Actor, target: ActorProxy, count: int, size: int) -> None:
    ballast = bytes(size)
    for number in range(count):
        await actor.send(target, "collect", number, ballast)


async def crowd(root: Actor) -> None:
    """However many commands wait for answers, the answers get through."""
    one, other = await spawn("one"), await spawn("other")
    for target, concurrency in ((one, "process"), (other, "thread"), (one, "loop")):
        asked = await spawn(concurrency=concurrency)
        requests = [send(target, "run", ask, asked, "echo", number) for number in range(3000)]
        assert await asyncio.gather(*requests) == list(range(3000))
    # In both directions at once, and round in a circle.
    pairs = [(one, other), (other, one)]
    both = [send(a, "run", ask, b, "run", ask, a, "ping") for a, b in pairs * 1500]
    assert await asyncio.gather(*both) == ["pong"] * 3000


async def serve_until_stopped(root: Actor) -> None:
    """Until somebody from outside ends it."""
    for concurrency in ("process", "thread", "loop"):
        await spawn(f"a-{concurrency}", concurrency=concurrency)
    sys.stderr.write("all are there\n")
    await asyncio.Event().wait()


STORIES: dict[str, Callable[[Actor], Awaitable[None]]] = {
    "talk-process": lambda root: talk(root, "process"),
    "talk-thread": lambda root: talk(root, "thread"),
    "talk-loop": lambda root: talk(root, "loop"),
    "errors": errors,
    "killed": killed,
    "neighbours": neighbours,
    "hooks": hooks,
    "cannot-start": cannot_start,
    "pressure": pressure,
    "crowd": crowd,
    "serve": serve_until_stopped,
}


async def main(root: Actor, exc: BaseException | None = None) -> None:
    assert arbiter() is root is get_actor()

    async def tell() -> None:
        try:
            async with asyncio.timeout(50):
                await STORIES[sys.argv[1]](root)
            sys.stderr.write("the end\n")
        finally:
            root.stop()

    root.create_task(tell())


if __name__ == "__main__":
    arbiter(start=main).start()
