"""Workers: the processes that serve, and those of spawned actors.

Owns: ``Worker``, and ``live``, which makes a forked process one.
Leaves: forking to ``forkserver``, serving to the application, when to stop to the
monitor.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from ..config import Config
from ..errors import ImproperlyConfigured
from ..log import reopen_logs, setup_logging
from ..protocols.balance import Balance
from ..system import new_event_loop, resident_memory, set_process_title
from .actor import Actor, StoppedEarly, log_loop_error, set_process_actor
from .forkserver import Order
from .hosts import connect_router
from .mailbox import Mailbox
from .message import Note, unpack
from .served import BOOT_FAILED, Listening, Served
from .signals import DUMP_SIGNAL

__all__ = ["Worker", "live"]

logger = logging.getLogger("pulsar.server")

# Seconds that the last messages may take to be written.
_LAST_WORDS = 2.0

# Lifetime and memory are limited to so much more or less, or all would end at once.
JITTER = 0.1


class Worker(Actor):
    """An actor in a process of its own that serves an application.

    ``worker.slot`` is its number among the application's workers, from 0 on; the
    environment variable ``PULSAR_WORKER_SLOT`` has it, too. ``worker.generation``
    counts the reloads.
    """

    def __init__(self, application: Served, order: Order, listening: list[Listening]) -> None:
        super().__init__(order.name, aid=order.aid, cfg=application.cfg, slot=order.slot)
        self.application = application
        self.generation = order.generation
        self.heartbeat = order.heartbeat
        self.monitor = application.name
        # The binds whose queued connections are left to others when it ends; None: all.
        self.leave: list[str] | None = []
        # Why the process ends with an error; None: it does not.
        self.failure: BaseException | None = None
        self._order = order
        self._listening = listening
        self._serve = asyncio.Event()
        self._timeout = self.cfg.graceful_timeout
        self._now = asyncio.Event()
        self._retired = False
        self._lifetime: asyncio.TimerHandle | None = None
        self._uplink: Mailbox | None = None

    def connect(self, sock: socket.socket) -> None:
        """Connect with the arbiter."""
        self._uplink = connect_router(self, sock, self._noted, self._orphaned)
        self._tell("hello", {"pid": os.getpid()})

    def stop(self, graceful: bool = True) -> None:
        """End; with the arbiter's help, so that a replacement is there first."""
        if self._uplink is None or self._uplink.closed:
            self._stop(self._timeout if graceful else 0.0)
        else:
            self.retire("it was asked to stop")

    def retire(self, reason: str) -> None:
        """Ask the arbiter for a replacement; when that serves, this worker is drained."""
        if not self._retired:
            self._retired = True
            self._tell("retire", {"reason": reason})

    def info(self) -> dict[str, Any]:
        """What there is to know about the worker, as plain data."""
        return {**super().info(), **self._figures(), "generation": self.generation}

    async def starting(self) -> None:
        """Serve, when the arbiter says so."""
        assert self.loop is not None
        self.loop.set_exception_handler(log_loop_error)
        for name in ("SIGTERM", "SIGINT"):
            self.loop.add_signal_handler(getattr(signal, name), self._on_signal, name)
        if self._order.hold:
            self._tell("booted", {})
            await self._serve.wait()
        # What it opens is there before the first connection.
        await self.application.worker_hook("on_worker_start", self)
        await self.application.worker_start(self)
        if self.cfg.max_lifetime:
            seconds = self.cfg.max_lifetime * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
            self._lifetime = self.loop.call_later(
                seconds, self.retire, f"it has lived for {seconds:.0f} s (max_lifetime)"
            )

    def started(self) -> None:
        """It serves: tell the arbiter."""
        self._tell("ready", self._figures())

    async def ending(self) -> None:
        """Drain."""
        if self._lifetime is not None:
            self._lifetime.cancel()
        await self.application.stop_listening(self.leave)
        # From now on only others accept.
        self._tell("draining", {})
        stopping = asyncio.ensure_future(self.application.worker_stop(self, self._timeout))
        now = asyncio.ensure_future(self._now.wait())
        await asyncio.wait({stopping, now}, return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        if not stopping.done():
            await self.application.worker_stop(self, 0.0)
        await stopping
        await self.application.worker_hook("on_worker_stop", self)

    def on_heartbeat(self) -> None:
        """Tell the arbiter that the loop turns, and some figures."""
        figures = self._figures()
        self._tell("beat", figures)
        limit = self.cfg.max_memory
        if limit and figures["memory"] > limit:
            mib = figures["memory"] / 2**20
            self.retire(f"it has {mib:.0f} MiB of memory (max_memory)")

    def _figures(self) -> dict[str, Any]:
        return {
            **self.application.figures(),
            "lag": self.lag,
            "memory": resident_memory(),
        }

    def _tell(self, name: str, data: dict[str, Any]) -> None:
        if self._uplink is not None:
            self._uplink.post(Note(name, data))

    async def last_words(self) -> None:
        """Tell the arbiter why the process ends, if it fails, and hang up."""
        if self.failure is not None:
            text = _explain(self.failure)
            if self._uplink is None or self._uplink.closed:
                logger.error("%s: %s", self.name, text)
            self._tell("failed", {"text": text})
        if self._uplink is not None:
            await self._uplink.flush(_LAST_WORDS)
            uplink, self._uplink = self._uplink, None
            uplink.close()

    # What the arbiter says

    def _noted(self, note: Note, descriptors: list[int]) -> None:
        data = note.data
        match note.name:
            case "serve":
                self._serve.set()
            case "stop":
                self.leave = data["leave"]
                self._stop(data["timeout"])
            case "figures":
                self._tell("beat", {**self._figures(), "id": data["id"]})
            case "adopt":
                listening = sockets_of(data["sockets"], descriptors)
                self.create_task(self._adopt(data["id"], listening))
            case "release":
                self.create_task(self._release(data["id"]))
            case "reopen logs":
                reopen_logs()
            case "logging":
                setup_logging(**data)
            case "graceful timeout":
                self._timeout = data["seconds"]

    def _stop(self, timeout: float) -> None:
        self._timeout = timeout
        self._serve.set()
        if timeout <= 0:
            self._now.set()
        super().stop()

    def _orphaned(self) -> None:
        """The arbiter has gone: let another one listen at once, and drain."""
        if self._uplink is not None and self._stopping is not None and not self._stopping.is_set():
            logger.error("%s: the arbiter has gone: draining", self.name)
            self.leave = None
            self._stop(self._timeout)

    def _on_signal(self, name: str) -> None:
        """The arbiter is told, who knows whether it was meant for all or only for us."""
        if name == "SIGTERM":
            self._tell("signal", {"name": name})

    # Sockets of workers that are not there

    async def _adopt(self, number: int, listening: list[Listening]) -> None:
        self._adopted[number] = listening
        try:
            await self.application.adopt(listening)
        except Exception:
            logger.exception("%s cannot listen on the sockets of another worker", self.name)
            for one in self._adopted.pop(number):
                one.sock.close()
        else:
            self._tell("adopted", {"id": number})

    async def _release(self, number: int) -> None:
        listening = self._adopted.pop(number, None)
        if number == 0:
            # Its own: a successor is about to read from them.
            listening = self._listening
        if listening:
            await self.application.release(listening)
            for one in listening:
                if number:
                    one.sock.close()
        self._tell("released", {"id": number})

    @property
    def _adopted(self) -> dict[int, list[Listening]]:
        return self.extra.setdefault("adopted", {})  # type: ignore[no-any-return]


def sockets_of(described: list[list[Any]], descriptors: list[int]) -> list[Listening]:
    """The sockets that came as ``descriptors``, as they were described."""
    return [
        Listening(socket.socket(fileno=descriptor), bind, plain, foreign)
        for (bind, plain, foreign), descriptor in zip(described, descriptors, strict=True)
    ]


def live(application: Served | None, order: Order, descriptors: list[int]) -> int:
    """Be the worker that ``order`` describes; returns the exit code of the process.

    :param descriptors: the mailbox, where to dump stacks, the table of connection
        counts if there is one, and the sockets to listen on
    """
    mailbox = socket.socket(fileno=descriptors[0])
    stacks, rest = descriptors[1], descriptors[2:]
    _reseed()
    if application is None:
        cfg = Config()
        actor, serve = _spawned(order), None
    else:
        cfg = application.cfg
        balance = Balance.attach(rest.pop(0), order.cell) if order.cell else None
        listening = sockets_of(order.sockets, rest)
        application.inherit(listening, balance)
        actor = serve = Worker(application, order, listening)
    set_process_title(_title(application, order))
    _register_dump(stacks, application)
    set_process_actor(actor)
    factory = lambda: new_event_loop(cfg.event_loop)  # noqa: E731
    try:
        if application is not None:
            application.forked(actor)
        with asyncio.Runner(debug=cfg.debug, loop_factory=factory) as runner:
            if serve is not None:
                runner.run(_serve(serve, mailbox))
            else:
                runner.run(_live(actor, mailbox))
    except (SystemExit, KeyboardInterrupt, ImproperlyConfigured) as exc:
        if serve is not None and serve.failure is None:
            logger.error("%s: %s", actor.name, exc)
        return BOOT_FAILED
    return BOOT_FAILED if serve is not None and serve.failure is not None else 0


async def _serve(worker: Worker, sock: socket.socket) -> None:
    worker.connect(sock)
    try:
        await worker.run()
    except StoppedEarly:
        await worker.application.worker_stop(worker, 0.0)
    except Exception as exc:
        worker.failure = exc
    finally:
        await worker.last_words()


def _spawned(order: Order) -> Actor:
    actor_class, name, hooks, params = unpack(order.payload)
    actor: Actor = actor_class(name, aid=order.aid, hooks=hooks, params=params)
    actor.name = order.name
    return actor


async def _live(actor: Actor, sock: socket.socket) -> None:
    mailbox = connect_router(actor, sock)
    mailbox.post(Note("hello", {"pid": os.getpid()}))
    actor.on_running = lambda: mailbox.post(Note("ready"))
    try:
        await actor.run()
    except StoppedEarly:
        pass
    except Exception as exc:
        mailbox.post(Note("failed", {"text": _explain(exc)}))
    finally:
        await mailbox.flush(_LAST_WORDS)
        mailbox.close()


def _explain(exc: BaseException) -> str:
    """What an operator must read: a sentence where there is one, else the traceback."""
    if isinstance(exc, ImproperlyConfigured):
        return str(exc)
    return "".join(traceback.format_exception(exc)).rstrip()


def _title(application: Served | None, order: Order) -> str:
    title = order.name
    if application is not None:
        title = f"{application.cfg.process_name or application.name}: worker {order.slot}"
    return f"pulsar: {title}" if application is None else title


def _reseed() -> None:
    """Let no two workers draw the same numbers; Python's own module sees to it itself."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        with contextlib.suppress(Exception):
            numpy.random.seed()


def _register_dump(descriptor: int, application: Served | None) -> None:
    """On DUMP_SIGNAL write every thread's stack, and then what is being served.

    The stacks are written by C code, whatever holds the interpreter up. The rest
    comes when the interpreter gets to it, which a loop without end lets it.
    """

    def say_what_is_in_hand(number: int, frame: Any) -> None:
        if application is not None and threading.current_thread() is threading.main_thread():
            lines = application.in_hand()
            text = "".join(f"in hand: {line}\n" for line in lines) or "nothing in hand\n"
            with contextlib.suppress(OSError):
                os.write(descriptor, text.encode(errors="backslashreplace"))

    signal.signal(DUMP_SIGNAL, say_what_is_in_hand)
    faulthandler.register(DUMP_SIGNAL, file=descriptor, all_threads=True, chain=True)
    if not faulthandler.is_enabled():
        faulthandler.enable()
