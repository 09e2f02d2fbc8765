"""Actors: things with a name, a loop to live in, and commands to obey.

Owns: ``Actor``, its life from ``run`` to the end, its hooks and its heartbeat, and
which actor runs now.
Leaves: where it lives to ``hosts`` and ``worker``, its messages to ``router``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar

from ..config import Config
from ..errors import ActorGone
from ..events import EventHandler
from .proxy import ActorProxy, address_of
from .router import Router
from .state import State, check_move

__all__ = [
    "ACTOR_HOOKS",
    "Actor",
    "StoppedEarly",
    "current_actor",
    "log_loop_error",
    "set_process_actor",
]

logger = logging.getLogger("pulsar.actors")

ACTOR_HOOKS = ("start", "stopping", "stop", "periodic_task", "on_info", "on_params")

# Seconds that an actor's unfinished tasks may take to be cancelled.
_TASK_PATIENCE = 1.0

# The actor whose code runs: set in everything that an actor starts ...
_current: ContextVar[Actor | None] = ContextVar("pulsar_actor", default=None)
# ... and the actor of this process, for code that was started by nobody in particular.
_of_this_process: Actor | None = None


def current_actor() -> Actor | None:
    """The actor whose code runs; None when no actor lives in this process."""
    return _current.get() or _of_this_process


def set_process_actor(actor: Actor | None) -> None:
    """``actor`` is what code of this process belongs to that no actor has started."""
    global _of_this_process
    _of_this_process = actor


class Actor(EventHandler):
    """Something that lives in a loop, has a name, and obeys commands.

    One-time events: ``start``, when it runs; ``stopping``, when it is about to end;
    ``stop``, when it has ended. Many-times events: ``periodic_task``, with each
    heartbeat; ``on_info``, whose callbacks may add to the keyword ``info``;
    ``on_params``, whose callbacks may change the keyword ``params`` of an actor that
    this one is about to spawn. Callbacks get the actor.

    :param name: how others may call it; by default its class's name in small letters
    :param aid: its id, unique in the tree
    :param cfg: settings
    :param slot: which of its monitor's workers it is, from 0 on; None for others
    :param hooks: functions, plain or ``async``, by the names of events, each called
        as ``hook(actor, exc=None, **kw)``; an ``async`` ``start`` or ``stopping``
        hook is waited for
    :param params: anything; kept in ``actor.params``
    """

    ONE_TIME_EVENTS: ClassVar[tuple[str, ...]] = ("start", "stopping", "stop")
    MANY_TIMES_EVENTS: ClassVar[tuple[str, ...]] = ("periodic_task", "on_info", "on_params")

    # Seconds between heartbeats.
    heartbeat = 5.0

    def __init__(
        self,
        name: str | None = None,
        *,
        aid: str | None = None,
        cfg: Config | None = None,
        slot: int | None = None,
        router: Router | None = None,
        hooks: Mapping[str, Callable[..., Any]] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name or type(self).__name__.lower()
        self.aid = aid or f"{self.name}-{os.urandom(4).hex()}"
        self.cfg = cfg if cfg is not None else Config()
        self.slot = slot
        self.params: dict[str, Any] = dict(params or {})
        # What others have told with the command notify, by their ids.
        self.notices: dict[str, Any] = {}
        # Anything that the application wants to keep with its actor.
        self.extra: dict[str, Any] = {}
        self.state = State.INITIAL
        # How late the last heartbeat was: what a callback waits for the loop, in seconds.
        self.lag = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        self._router = router
        self._stopping: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hook_tasks: set[asyncio.Task[Any]] = set()
        self._beat: asyncio.TimerHandle | None = None
        self._beat_due = 0.0
        self._started_at = 0.0
        self.children: dict[str, Child] = {}
        # Called when it runs and its start hooks are done, for whoever waits for that.
        self.on_running: Callable[[], None] | None = None
        for event, hook in (hooks or {}).items():
            self.bind_event(event, self._as_callback(hook))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state.name.lower()}>"

    @property
    def proxy(self) -> ActorProxy:
        """What others know this actor by; it can be sent to them."""
        return ActorProxy(self.aid, self.name)

    @property
    def router(self) -> Router:
        """Finds the way of messages in this actor's loop."""
        if self._router is None:
            self._router = Router()
        return self._router

    @property
    def running(self) -> bool:
        """True from its start until it is asked to stop."""
        return self.state is State.RUNNING

    # What others use

    def send(
        self, target: str | ActorProxy | Actor, command: str, *args: Any, **kwargs: Any
    ) -> asyncio.Task[Any]:
        """Send a command to ``target``: an actor, a proxy, a name, or an id.

        Returns an awaitable of the result; the message is on its way whether it is
        awaited or not. Awaiting raises what the command raised; ``ActorGone`` when
        there is no such actor, or it ends meanwhile; ``CommandNotFound``.
        """
        request = self.router.request(self.aid, address_of(target), command, args, kwargs)
        return self.create_task(request)

    def create_task(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as part of this actor: it is cancelled when the actor ends."""
        with self.current():
            task = asyncio.get_running_loop().create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self, graceful: bool = True) -> None:
        """End; callable from the actor's own loop."""
        if self._stopping is not None:
            self._stopping.set()

    def info(self) -> dict[str, Any]:
        """What there is to know about the actor, as plain data; times in seconds."""
        loop = self.loop
        info: dict[str, Any] = {
            "name": self.name,
            "aid": self.aid,
            "slot": self.slot,
            "pid": os.getpid(),
            "thread": threading.current_thread().name,
            "state": self.state.name.lower(),
            "uptime": 0.0 if loop is None else loop.time() - self._started_at,
            "lag": self.lag,
            "children": sorted(child.actor.name for child in self.children.values()),
        }
        self.fire_event("on_info", self, info=info)
        return info

    async def kill_actor(self, aid: str) -> str:
        """End an actor that hangs below this one at once. Raises ``ActorGone``."""
        for child in self.children.values():
            if aid in (child.actor.aid, child.actor.name):
                child.kill()
                return child.actor.aid
        raise ActorGone(f"{self.name} has nobody below it who is called {aid!r}")

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Whatever is started inside belongs to this actor."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    # Its life

    async def run(self) -> None:
        """Live: start, obey until it is told to stop, end.

        Raises what ``starting`` raises, and ``StoppedEarly`` when it is told to stop
        before that is over.
        """
        with self.current():
            loop = self.loop = asyncio.get_running_loop()
            self._started_at = loop.time()
            self._stopping = self._stopping or asyncio.Event()
            self._move(State.STARTING)
            self.router.add(self)
            try:
                await self._start_unless_stopped(self._stopping)
                self._move(State.RUNNING)
                self.fire_event("start", self)
                await self._hooks_done()
                self.started()
                if self.on_running is not None:
                    self.on_running()
                self._beat_due = loop.time() + self.heartbeat
                self._beat = loop.call_at(self._beat_due, self._on_beat)
                await self._stopping.wait()
                self._move(State.STOPPING)
                self.fire_event("stopping", self)
                await self._hooks_done()
                await self.ending()
            finally:
                await self._end()

    async def _start_unless_stopped(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        start = loop.create_task(self.starting())
        stop = loop.create_task(stopping.wait())
        try:
            await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            start.cancel()
        if not start.done():
            await asyncio.wait({start})
        if start.cancelled():
            raise StoppedEarly
        start.result()

    async def starting(self) -> None:
        """What a kind of actor does before it runs. Nothing here."""

    def started(self) -> None:
        """Called when it runs. Does nothing here."""

    async def ending(self) -> None:
        """What a kind of actor does before it has ended. Nothing here."""

    def on_heartbeat(self) -> None:
        """Called with each heartbeat. Does nothing here."""

    async def _end(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        for child in list(self.children.values()):
            await child.end()
        await self._cancel_tasks()
        self.router.remove(self)
        self._move(State.CLOSED)
        self.fire_event("stop", self)
        await self._hooks_done()

    async def _cancel_tasks(self) -> None:
        # Not the one that we are in: a command may have asked for the end.
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=_TASK_PATIENCE)
            if stubborn:
                logger.warning("%s: %d tasks will not be cancelled", self.name, len(stubborn))

    def _move(self, state: State) -> None:
        self.state = check_move(self.state, state)

    def _on_beat(self) -> None:
        assert self.loop is not None
        now = self.loop.time()
        self.lag = max(0.0, now - self._beat_due)
        self._beat_due = now + self.heartbeat
        self._beat = self.loop.call_at(self._beat_due, self._on_beat)
        self.on_heartbeat()
        self.fire_event("periodic_task", self)

    def _as_callback(self, hook: Callable[..., Any]) -> Callable[..., None]:
        def callback(arg: Any, exc: BaseException | None = None, **kw: Any) -> None:
            result = hook(arg, exc=exc, **kw)
            if inspect.isawaitable(result):
                task = asyncio.get_running_loop().create_task(_awaited(result))
                self._hook_tasks.add(task)
                task.add_done_callback(self._hook_tasks.discard)

        return callback

    async def _hooks_done(self) -> None:
        """Wait for ``async`` hooks; an error in one is logged, as one in a plain hook is."""
        if not self._hook_tasks:
            return
        done, _ = await asyncio.wait(list(self._hook_tasks))
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                logger.error("a hook of %s failed", self.name, exc_info=task.exception())


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a loop has to say where the server logs, and not where asyncio does."""
    exc = context.get("exception")
    logger.error("%s", context.get("message", "an error in the event loop"), exc_info=exc)


class StoppedEarly(Exception):  # noqa: N818 - it is no error
    """The end of an actor came before its start was over."""


class Child:
    """An actor that lives in this process, below the one that has spawned it.

    :param kill: ends it at once
    :param end: a coroutine function that ends it gracefully
    """

    def __init__(
        self,
        actor: ActorProxy,
        kill: Callable[[], None],
        end: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.actor = actor
        self.kill = kill
        self.end = end


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
