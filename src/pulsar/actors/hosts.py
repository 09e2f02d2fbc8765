"""Where an actor lives: in this loop, in a thread, in a process of its own.

Owns: spawning in this loop and in threads, and what travels to a new process.
Leaves: processes to the arbiter and its fork server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ActorError
from ..system import new_event_loop
from .actor import ACTOR_HOOKS, Actor, Child
from .mailbox import Mailbox, mailbox_pair
from .message import Message, Note, pack
from .proxy import ActorProxy
from .router import Router

if TYPE_CHECKING:
    import socket

__all__ = ["CONCURRENCIES", "connect_router", "spawn", "spawn_in_loop"]

logger = logging.getLogger("pulsar.actors")

CONCURRENCIES = ("process", "thread", "loop")

# Seconds that a thread may take to end when it is asked to.
_THREAD_PATIENCE = 10.0


async def spawn(
    parent: Actor,
    name: str | None = None,
    *,
    concurrency: str = "process",
    actor_class: type[Actor] = Actor,
    **params: Any,
) -> ActorProxy:
    """A new actor, started by ``parent``; returns when it runs.

    :param concurrency: ``process``, a process of its own; ``thread``, a thread of this
        process, with a loop of its own; ``loop``, this very loop
    :param actor_class: what to make; for a process it must be importable
    :param params: hooks by the names of ``Actor``'s events; the rest is kept in
        ``actor.params``. What goes to a process must be importable, or have
        existed before the fork.

    Raises ``ActorError`` when it cannot be started.
    """
    if concurrency not in CONCURRENCIES:
        raise ActorError(
            f"concurrency is {concurrency!r}: choose {', '.join(CONCURRENCIES[:-1])} or "
            f"{CONCURRENCIES[-1]}"
        )
    parent.fire_event("on_params", parent, params=params)
    hooks = {key: params.pop(key) for key in ACTOR_HOOKS if key in params}
    if concurrency == "process":
        payload = pack((actor_class, name, hooks, params))
        aid, name = await parent.send("arbiter", "spawn_process", payload, name)
        return ActorProxy(aid, name)
    router = parent.router if concurrency == "loop" else None
    actor = actor_class(name, cfg=parent.cfg, router=router, hooks=hooks, params=params)
    return await (spawn_in_loop if router is not None else _spawn_thread)(parent, actor)


async def spawn_in_loop(parent: Actor, actor: Actor) -> ActorProxy:
    """Let ``actor``, which has ``parent``'s router, live in this loop."""
    running = asyncio.Event()
    actor.on_running = running.set
    task = asyncio.get_running_loop().create_task(actor.run())

    def ended(task: asyncio.Task[None]) -> None:
        parent.children.pop(actor.aid, None)
        running.set()
        if not task.cancelled():
            task.exception()  # whoever waits for its start is told

    def kill() -> None:
        task.cancel()

    async def end() -> None:
        actor.stop()
        await asyncio.wait([task])

    parent.children[actor.aid] = Child(actor.proxy, kill, end)
    task.add_done_callback(ended)
    await running.wait()
    if task.done() and not task.cancelled() and task.exception() is not None:
        raise ActorError(f"{actor.name} could not be started") from task.exception()
    return actor.proxy


async def _spawn_thread(parent: Actor, actor: Actor) -> ActorProxy:
    ours, theirs = mailbox_pair()
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[None] = loop.create_future()
    ended = asyncio.Event()
    kind = str(parent.cfg.get("event_loop", "auto"))

    def report(exc: BaseException | None) -> None:
        # Everybody may have gone while the thread was still at it.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, outcome, exc)

    def live() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: new_event_loop(kind)) as runner:
                runner.run(_live_below(actor, theirs, report))
        except BaseException as exc:
            report(exc)
        finally:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

    def lost(mailbox: Mailbox) -> None:
        parent.router.unlink(mailbox)
        parent.children.pop(actor.aid, None)

    def received(mailbox: Mailbox, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Note):
            parent.router.noted(mailbox, message)
        else:
            parent.router.receive(mailbox, message)

    mailbox = Mailbox(ours, received, lost)
    thread = threading.Thread(target=live, name=f"actor {actor.name}", daemon=True)

    async def end() -> None:
        mailbox.post(Note("stop"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_THREAD_PATIENCE):
                await ended.wait()
        if not ended.is_set():
            logger.warning("the thread of %s does not end", actor.name)
        mailbox.close()

    parent.children[actor.aid] = Child(actor.proxy, mailbox.close, end)
    thread.start()
    try:
        await outcome
    except Exception as exc:
        mailbox.close()
        raise ActorError(f"{actor.name} could not be started") from exc
    return actor.proxy


def _settle(outcome: asyncio.Future[None], exc: BaseException | None) -> None:
    if not outcome.done():
        if exc is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(exc)


async def _live_below(
    actor: Actor, sock: socket.socket, report: Callable[[BaseException | None], None]
) -> None:
    """The life of an actor that hangs by a mailbox: when that is lost, it ends."""
    actor.on_running = lambda: report(None)
    mailbox = connect_router(actor, sock)
    try:
        await actor.run()
    finally:
        await mailbox.flush(_THREAD_PATIENCE)
        mailbox.close()


def connect_router(
    actor: Actor,
    sock: socket.socket,
    noted: Callable[[Note, list[int]], None] | None = None,
    lost: Callable[[], None] | None = None,
) -> Mailbox:
    """Connect ``actor``'s router with the one above it, through ``sock``.

    :param noted: called with notes from above that are not for the router
    :param lost: called when the one above is gone; by default the actor is stopped
    """
    router: Router = actor.router

    def received(mailbox: Mailbox, message: Message, descriptors: list[int]) -> None:
        if not isinstance(message, Note):
            router.receive(mailbox, message)
        elif noted is not None:
            noted(message, descriptors)
        elif message.name == "stop":
            actor.stop()

    def gone(mailbox: Mailbox) -> None:
        router.unlink(mailbox)
        if lost is not None:
            lost()
        else:
            actor.stop()

    mailbox = Mailbox(sock, received, gone)
    router.uplink = mailbox
    return mailbox
