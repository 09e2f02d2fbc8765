"""Monitors: one for each application, it keeps the workers that there should be.

Owns: ``Monitor``: its slots, who serves in each, replacement, scaling, liveness, and
who listens on the sockets of a slot without a worker.
Leaves: when to start again to ``restart``, forking to the arbiter, the sockets to
``listeners``.

A slot is the place of one worker, with a number that stays. A worker is replaced by
starting another one in its slot, waiting until that serves, and draining the old one:
so nothing is lost, one worker or many. Only a crash leaves a slot empty, and for as
long as it does, another worker listens on the sockets that belong to the slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..config import Config
from ..errors import ImproperlyConfigured
from ..protocols.balance import Table
from .actor import Actor
from .listeners import Binds, Listeners
from .message import Note
from .processes import BootFailed, Process
from .proxy import ActorProxy
from .restart import HISTORY, Exit, GiveUp, Start, Wait, decide
from .served import Listen, Listening, Served

if TYPE_CHECKING:
    from .arbiter import Arbiter
    from .generation import Generation

__all__ = ["Monitor"]

logger = logging.getLogger("pulsar.server")

# Seconds beyond its graceful timeout after which a worker that drains is killed.
_DRAIN_SLACK = 2.0

# Seconds that a slot may be without a worker before another one listens on its sockets.
_ADOPT_AFTER = 0.1

# Seconds for a worker to accept no more when it is asked to end.
_DRAIN_PATIENCE = 1.0

# Seconds for a worker to stop reading from sockets that another one takes over.
_RELEASE_PATIENCE = 5.0

# So often a new worker is tried that was killed from outside while it started.
_BOOT_ATTEMPTS = 3

# Seconds after which it is tried again to replace a worker, at first and at most.
_RETRY_FIRST, _RETRY_MOST = 1.0, 60.0

# Seconds until a signal to one worker is taken for that, and not for one to all.
_SIGNAL_TO_ALL = 0.25

# How often workers tell that they live, at least, in seconds; and parts of the timeout.
_HEARTBEAT, _HEARTBEAT_LEAST, _BEATS = 5.0, 0.05, 6


# What a reload may have to take back.
_State = tuple[dict[str, list[Any]], list[Listen], bool, bool]


class Slot:
    """The place of one worker."""

    def __init__(self, number: int) -> None:
        self.number = number
        # Who serves, or will: it may still be starting.
        self.current: Process | None = None
        # Who will replace it.
        self.successor: Process | None = None
        self.history: list[Exit] = []
        self.restarts = 0
        # When the next attempt is due, if there is a pause before it.
        self.waiting: asyncio.TimerHandle | None = None
        self.adopting: asyncio.TimerHandle | None = None
        # Who listens on the slot's own sockets meanwhile, under which number.
        self.adopter: tuple[Process, int] | None = None

    @property
    def ready(self) -> bool:
        """True when a worker serves in it."""
        return self.current is not None and self.current.serving

    def cancel(self) -> None:
        """Start nothing more."""
        for timer in (self.waiting, self.adopting):
            if timer is not None:
                timer.cancel()
        self.waiting = self.adopting = None


class Monitor(Actor):
    """Keeps the workers of one application.

    It lives in the arbiter's loop. Its name is the application's. Many-times event,
    beside those of every actor: ``worker_exit``, when a worker has ended, with the
    keywords ``worker``, its proxy, ``slot``, ``asked``, whether that was wanted, and
    ``reason``, a sentence.

    :param index: of the application among those of its generation
    :param report: what the fork server has told of the application
    :param application: the application itself, where its code is in this process
    """

    MANY_TIMES_EVENTS: ClassVar[tuple[str, ...]] = (*Actor.MANY_TIMES_EVENTS, "worker_exit")

    def __init__(
        self,
        arbiter: Arbiter,
        index: int,
        report: dict[str, Any],
        application: Served | None,
    ) -> None:
        name = report["name"]
        cfg = application.cfg if application is not None else Config()
        super().__init__(name, aid=name, cfg=cfg, router=arbiter.router)
        self.arbiter = arbiter
        self.index = index
        self.application = application
        self.listeners = Listeners()
        self.slots: dict[int, Slot] = {}
        self.settings: dict[str, list[Any]] = {}
        self.wanted = 0
        # Workers that were asked to end, and have not yet.
        self.draining: set[Process] = set()
        self.last_failure: str | None = None
        self._datagram = False
        self._numbers = itertools.count(1)
        self._adoptions = itertools.count(1)
        self._stopped = False
        # Slots that are not wanted any more, whose sockets others listen on.
        self._left: dict[int, Slot] = {}
        # Where the workers count their connections; None: they do not.
        self._table: Table | None = None
        self._before: _State | None = None
        # What new workers listen on while a reload is under way.
        self._binds: Binds | None = None
        # One slot at a time, whatever the reason.
        self._replacing = asyncio.Lock()
        # Where new workers come from.
        self.generation = arbiter.generation
        self._take(report)
        self.wanted = max(1, int(self.setting("workers")))

    def setting(self, name: str) -> Any:
        """The value of a setting of the generation that serves."""
        return self.settings[name][0]

    def _take(self, report: dict[str, Any]) -> None:
        fresh = report["settings"]
        # What takes a restart is not in force before that.
        kept = {n: value for n, value in self.settings.items() if value[2] == "restart"}
        self.settings = {**fresh, **{n: v for n, v in kept.items() if n in fresh}}
        self.listens = [Listen(*listen) for listen in report["listen"]]
        self._datagram = any(listen.datagram for listen in self.listens)
        self.secure = bool(report["secure"])

    # What others use

    @property
    def sockets(self) -> list[Any]:
        """The sockets that the workers listen on; those of the first slot, if each has its own."""
        return [one.sock for one in self.listeners.of_slot(0)]

    @property
    def ready(self) -> int:
        """How many slots have a worker that serves."""
        return sum(slot.ready for slot in self.slots.values())

    @property
    def waiting(self) -> bool:
        """True while a slot has no worker because those before have crashed too often."""
        return any(slot.waiting is not None for slot in self.slots.values())

    @property
    def restarts(self) -> int:
        """How many workers have been started because another one had crashed."""
        return sum(slot.restarts for slot in self.slots.values())

    @property
    def processes(self) -> list[Process]:
        """All its processes, those that start and those that drain among them."""
        found = [
            process
            for slot in self.slots.values()
            for process in (slot.current, slot.successor)
            if process is not None
        ]
        return [*found, *self.draining]

    def open(self) -> None:
        """Open the sockets. Raises ``ImproperlyConfigured``."""
        self.listeners.commit(self.listeners.prepare(self.listens))
        for number in range(self.wanted):
            self.listeners.of_slot(number)
        if self.listeners.shared and not self._datagram:
            try:
                self._table = Table()
            except OSError as exc:
                logger.debug("connections are not evened out: %s", exc)

    async def ending(self) -> None:
        """Give the sockets up."""
        self.listeners.close()
        if self._table is not None:
            self._table.close()
            self._table = None

    async def boot(self) -> None:
        """Start all workers; returns when all are ready, however often that takes."""
        for number in range(self.wanted):
            self.slots[number] = slot = Slot(number)
            self._start(slot)
        await self._until_ready()

    async def _until_ready(self) -> None:
        while not self._stopped and self.ready < self.wanted:
            await self.arbiter.next_change()

    def info(self) -> dict[str, Any]:
        """What there is to know about the monitor, as plain data."""
        return {**super().info(), **self.status()}

    def status(self) -> dict[str, Any]:
        """What the control socket tells of this application."""
        return {
            "name": self.name,
            "workers": self.wanted,
            "ready": self.ready,
            "addresses": self.listeners.addresses,
            "restarts": self.restarts,
            "last_failure": self.last_failure,
            "slots": [self._status_of(slot) for _, slot in sorted(self.slots.items())],
        }

    def _status_of(self, slot: Slot) -> dict[str, Any]:
        process = slot.current
        state = "waiting" if process is None else process.state
        if slot.successor is not None:
            state = "replacing"
        figures = {} if process is None else process.figures
        uptime = None
        if process is not None and self.loop is not None:
            uptime = self.loop.time() - process.started_at
        return {
            "slot": slot.number,
            "pid": None if process is None else process.pid,
            "state": state,
            "generation": self.generation.number if process is None else process.generation.number,
            "uptime": uptime,
            "connections": figures.get("connections"),
            "requests": figures.get("requests"),
            "lag": figures.get("lag"),
            "memory": figures.get("memory"),
        }

    # Starting, and starting again

    def _fork(
        self, slot: Slot, generation: Generation, *, hold: bool, binds: Binds | None = None
    ) -> Process:
        if self._stopped:
            # Nobody would tell it to end.
            raise BootFailed("the server is stopping")
        timeout = float(self.setting("timeout"))
        beat = min(_HEARTBEAT, max(_HEARTBEAT_LEAST, timeout / _BEATS)) if timeout else _HEARTBEAT
        if not generation.alive:
            raise BootFailed(f"there is no fork server: {generation.title} has ended")
        cell = 0
        if self._table is not None:
            with contextlib.suppress(LookupError):
                cell = self._table.take()
        try:
            process = self.arbiter.fork(
                name=f"{self.name}.{slot.number}",
                number=next(self._numbers),
                application=self.index,
                slot=slot.number,
                hold=hold,
                heartbeat=beat,
                listening=self.listeners.of_slot(slot.number, binds or self._binds),
                generation=generation,
                noted=self._noted,
                cell=cell,
                table=-1 if self._table is None else self._table.descriptor,
            )
        except (ImproperlyConfigured, OSError) as exc:
            self._free(cell)
            # No descriptors, most likely.
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise BootFailed(f"a worker cannot be forked: {why}") from exc
        if self._table is not None and cell:
            process.exited.add_done_callback(lambda _: self._free(cell))
        return process

    def _free(self, cell: int) -> None:
        if self._table is not None and cell:
            self._table.free(cell)

    def _start(self, slot: Slot) -> None:
        """Start the worker of a slot that has none."""
        slot.waiting = None
        if self._stopped or slot.current is not None:
            return
        generation = self.generation
        if not generation.alive:
            return  # see fill
        hold = self._datagram and slot.adopter is not None
        try:
            process = self._fork(slot, generation, hold=hold)
        except BootFailed as exc:
            logger.error("%s: %s", self.name, exc)
            slot.waiting = self._later(_RETRY_FIRST, lambda: self._start(slot))
            return
        slot.current = process
        process.exited.add_done_callback(lambda _: self._on_exit(slot, process))
        self.create_task(self._see_it_start(slot, process, hold))

    async def _see_it_start(self, slot: Slot, process: Process, hold: bool) -> None:
        timeout = float(self.setting("boot_timeout"))
        try:
            if hold:
                await process.until_booted(timeout)
                await self._take_back(slot)
                process.tell("serve")
            await process.until_ready(timeout)
        except BootFailed:
            return  # its exit is seen to
        await self._take_back(slot)
        await self._adopt_the_rest()
        self.arbiter.changed()

    def fill(self) -> None:
        """Start what is missing, now that there is a fork server again."""
        for slot in self.slots.values():
            if slot.current is None and slot.waiting is None:
                self._start(slot)

    def _on_exit(self, slot: Slot, process: Process) -> None:
        """The worker of a slot has ended, asked for or not."""
        self._adopt_again(process)
        self.notices.pop(process.aid, None)
        with self.current():
            self.fire_event(
                "worker_exit",
                self,
                worker=ActorProxy(process.aid, process.name),
                slot=slot.number,
                asked=process.asked,
                reason=process.describe_end(),
            )
        if process in self.draining:
            self.draining.discard(process)
            if process.killed_for is not None:
                logger.warning("%s", process.describe_end())
            elif process.failure is not None and process.ready_at is not None:
                logger.error("%s: %s", process.title, process.failure)
            else:
                logger.debug("%s", process.describe_end())
            self.arbiter.changed()
            return
        if slot.current is not process:
            self.arbiter.changed()
            return
        slot.current = None
        self._record(slot, process)
        self.arbiter.changed()
        if self._stopped or self.slots.get(slot.number) is not slot:
            return
        self._start_again(slot, process)

    def _record(self, slot: Slot, process: Process) -> None:
        assert self.loop is not None
        # What we have killed because it does not start has failed by itself.
        ours = process.killed_for is not None and process.ready_at is None
        status = -1 if ours or process.status is None else process.status
        slot.history.append(
            Exit(
                self.loop.time(), process.started_at, process.ready_at, status, asked=process.asked
            )
        )
        del slot.history[:-HISTORY]
        if not process.asked and not self._stopped:
            self.last_failure = process.describe_end()

    def _log_failure(self, slot: Slot, process: Process) -> None:
        if not process.asked and not self._stopped:
            if process.ready_at is None:
                logger.error(
                    "%s: worker %d could not start: %s", self.name, slot.number, self.last_failure
                )
            else:
                logger.error("%s", self.last_failure)

    def _start_again(self, slot: Slot, ended: Process | None = None) -> None:
        assert self.loop is not None
        was_ready = self.arbiter.was_ready
        decision = decide(slot.history, self.loop.time(), tree_was_ready=was_ready)
        if ended is not None and not isinstance(decision, GiveUp):
            self._log_failure(slot, ended)
        match decision:
            case Start():
                slot.restarts += 1
                # A fork of the same generation takes milliseconds; a longer gap is filled.
                slot.adopting = self._later(_ADOPT_AFTER, lambda: self._adopt(slot))
                self._start(slot)
            case Wait(seconds):
                logger.info(
                    "%s: worker %d is started again in %.1f s", self.name, slot.number, seconds
                )
                slot.restarts += 1
                self._adopt(slot)
                slot.waiting = self._later(seconds, lambda: self._start(slot))
            case GiveUp():
                # The reason is told where a user sees it: last, and with the exit code.
                self.arbiter.give_up(self.last_failure or "a worker could not start")

    def _later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        assert self.loop is not None
        return self.loop.call_later(seconds, call)

    # Replacing

    async def replace(
        self, slot: Slot, generation: Generation | None = None, binds: Binds | None = None
    ) -> None:
        """Start another worker in ``slot``; when it serves, drain the old one.

        Raises ``BootFailed``, and then the old one goes on.
        """
        attempts = _BOOT_ATTEMPTS
        while True:
            attempts -= 1
            try:
                await self._replace(slot, generation or self.generation, binds)
            except BootFailed as exc:
                # What was killed from outside says nothing about its code.
                if not exc.signalled or not attempts or self._stopped:
                    raise
            else:
                return

    async def _replace(self, slot: Slot, generation: Generation, binds: Binds | None) -> None:
        timeout = float(self.setting("boot_timeout"))
        process = self._fork(slot, generation, hold=self._datagram, binds=binds)
        slot.successor = process
        process.exited.add_done_callback(lambda _: self._on_exit(slot, process))
        try:
            if self._datagram:
                # Two who read from one socket would share out one peer's datagrams.
                await process.until_booted(timeout)
                await self._take_back(slot)
                if slot.current is not None and slot.current.serving:
                    await self._release(slot.current, 0)
                process.tell("serve")
            await process.until_ready(timeout)
        except BootFailed as exc:
            self.last_failure = str(exc)
            slot.successor = None
            if self._stopped:
                pass  # all were asked to end
            elif slot.current is None:
                self._start_again(slot)  # it has crashed meanwhile
            elif self._datagram and process.booted.done():
                # It reads no more, and nobody else does.
                slot.current.kill("its successor has failed in its place")
            raise
        old, slot.current, slot.successor = slot.current, process, None
        if slot.waiting is not None:
            slot.waiting.cancel()
            slot.waiting = None
        await self._take_back(slot)
        if old is not None:
            await self._move_adopted(old)
            self.drain(old)
            # So that whoever connects from now on meets the new one.
            await old.until_draining(_DRAIN_PATIENCE)
        self.arbiter.changed()

    async def renew(
        self,
        generation: Generation,
        report: dict[str, Any],
        binds: Binds,
        progress: Callable[[str], None],
    ) -> None:
        """Let every slot be served by ``generation``, one after the other.

        Raises ``BootFailed`` when a worker does not start; ``go_back`` then.
        """
        async with self._replacing:
            self._before = self._state()
            self.generation = generation
            self._binds = binds
            old_workers = self.setting("workers")
            self._take(report)
            for number in sorted(self.slots):
                slot = self.slots.get(number)
                if slot is not None and not self._served_by(slot, generation):
                    await self.replace(slot, generation, binds)
                    progress(f"{self.name}: worker {number} serves")
        self.listeners.commit(binds)
        self._binds = None
        if self.setting("workers") != old_workers:
            self.wanted = max(1, int(self.setting("workers")))
        self._before = None
        await self._arrange()

    async def go_back(self, generation: Generation, failed: Generation) -> None:
        """Undo a ``renew`` with ``failed``, as far as it got; ``generation`` serves again."""
        self.generation = generation
        self._binds = None
        if self._before is not None:
            self.settings, self.listens, self._datagram, self.secure = self._before
            self._before = None
        async with self._replacing:
            for slot in list(self.slots.values()):
                if self._stopped:
                    return
                if slot.current is not None and slot.current.generation is failed:
                    try:
                        await self.replace(slot, generation)
                    except BootFailed as exc:
                        logger.error(
                            "%s: worker %d cannot be taken back: %s", self.name, slot.number, exc
                        )
        self.fill()

    def _state(self) -> _State:
        return self.settings, self.listens, self._datagram, self.secure

    def _served_by(self, slot: Slot, generation: Generation) -> bool:
        return slot.current is not None and slot.current.generation is generation

    def recycle(self, process: Process, reason: str) -> None:
        """Replace a worker that wants to end, or was told to by somebody else."""
        if not self._stopped and process.serving:
            logger.info("%s is replaced: %s", process.title, reason)
            self.create_task(self._recycle(process))

    async def _recycle(self, process: Process) -> None:
        retry = _RETRY_FIRST
        while not self._stopped and process.serving:
            async with self._replacing:
                slot = self._slot_of(process)
                if slot is None or not process.serving:
                    return
                try:
                    await self.replace(slot)
                except BootFailed as exc:
                    logger.error(
                        "%s: worker %d goes on, for its replacement cannot start: %s",
                        self.name,
                        slot.number,
                        exc,
                    )
                else:
                    return
            await asyncio.sleep(retry)
            retry = min(retry * 2, _RETRY_MOST)

    def _slot_of(self, process: Process) -> Slot | None:
        for slot in self.slots.values():
            if slot.current is process:
                return slot
        return None

    # Ending

    def drain(self, process: Process, *, final: bool = False) -> None:
        """Ask a worker to end gracefully; kill it when it takes too long.

        :param final: nobody serves after it: it empties the queues
        """
        timeout = float(self.setting("graceful_timeout"))
        self.draining.add(process)
        # One that has not begun to serve has nothing to finish.
        patience = _DRAIN_SLACK + (0.0 if process.state == "starting" else timeout)
        # What is listened on no more is drained by those who still do.
        process.stop(timeout, [] if final else self.listeners.binds)
        if process.alive:
            self._later(patience, lambda: self._too_late(process, patience))

    def _too_late(self, process: Process, patience: float) -> None:
        if process.alive:
            process.kill(f"it has not ended within {patience:g} s (graceful_timeout)")

    def stop_workers(self) -> None:
        """Ask all to end, for good."""
        self._stopped = True
        for slot in self.slots.values():
            slot.cancel()
            for process in (slot.current, slot.successor):
                if process is not None:
                    self.drain(process, final=True)
        for process in self.draining:
            # Asked before, to leave the queue to others who now end as well: no matter,
            # they are not gone before it is empty.
            if process.alive and not process.asked:
                process.stop(float(self.setting("graceful_timeout")), [])

    def stop_now(self) -> None:
        """Ask all to end at once."""
        for process in self.processes:
            process.stop(0.0, [])

    # Scaling

    async def scale(self, workers: int) -> None:
        """Have so many workers from now on; returns when that is so.

        Raises ``ImproperlyConfigured`` below 1.
        """
        if workers < 1:
            raise ImproperlyConfigured(
                f"workers cannot be {workers}: give a whole number, 1 or more"
            )
        self.wanted = workers
        await self._arrange()
        while not self._stopped and self.wanted == workers and self.ready < workers:
            await self.arbiter.next_change()

    async def _arrange(self) -> None:
        """Start and end what it takes to have as many workers as are wanted."""
        async with self._replacing:
            for number in range(self.wanted):
                if number not in self.slots and not self._stopped:
                    self._add(number)
            for number in sorted(self.slots, reverse=True):
                if number >= self.wanted and not self._stopped:
                    await self._remove(number)
        self.arbiter.changed()

    def _add(self, number: int) -> None:
        try:
            self.listeners.of_slot(number)
        except ImproperlyConfigured as exc:
            logger.error("%s: worker %d: %s", self.name, number, exc)
            return
        slot = self.slots[number] = Slot(number)
        left = self._left.pop(number, None)
        if left is not None:
            slot.adopter = left.adopter
        self._start(slot)

    async def _remove(self, number: int) -> None:
        """End the worker of a slot; from now on others listen on what sockets it had."""
        slot = self._left[number] = self.slots.pop(number)
        slot.cancel()
        process = slot.current
        if process is None:
            await self._adopt_slot(slot)
            return
        if self._datagram and self.listeners.own_of_slot(number):
            await self._release(process, 0)
        await self._adopt_slot(slot)
        await self._move_adopted(process)
        self.drain(process)

    # The sockets of slots without a worker

    def _adopt(self, slot: Slot) -> None:
        if not slot.ready and not self._stopped:
            self.create_task(self._adopt_slot(slot))

    async def _adopt_slot(self, slot: Slot, but: Process | None = None) -> None:
        """Have another worker, ``but`` not that one, listen on the sockets of ``slot``."""
        listening = self.listeners.own_of_slot(slot.number)
        if not listening or slot.adopter is not None or self._stopped:
            return
        load: dict[Process, int] = {}
        for other in self.slots.values():
            current = other.current
            if other is not slot and current is not None and other.ready and current is not but:
                load[current] = 0
        for other in self.slots.values():
            if other.adopter is not None and other.adopter[0] in load:
                load[other.adopter[0]] += 1
        if not load:
            return
        adopter = min(load, key=load.__getitem__)
        number = next(self._adoptions)
        slot.adopter = (adopter, number)
        await adopter.ask(
            "adopt",
            "adopted",
            number,
            {"sockets": described(listening)},
            *(one.sock.fileno() for one in listening),
        )

    async def _adopt_the_rest(self) -> None:
        """Find somebody for sockets that nobody listens on: there was nobody before."""
        waiting = [slot for slot in self.slots.values() if slot.waiting is not None]
        for slot in [*waiting, *self._left.values()]:
            await self._adopt_slot(slot)

    async def _move_adopted(self, process: Process) -> None:
        """Let others listen on what ``process``, which is about to end, has adopted."""
        for slot in [*self.slots.values(), *self._left.values()]:
            if slot.adopter is not None and slot.adopter[0] is process:
                number = slot.adopter[1]
                if self._datagram:
                    # Two who read from one socket would share out one peer's datagrams.
                    await self._release(process, number)
                slot.adopter = None
                await self._adopt_slot(slot, but=process)

    async def _take_back(self, slot: Slot) -> None:
        """The slot has a worker again: nobody else listens on its sockets any more."""
        if slot.adopting is not None:
            slot.adopting.cancel()
            slot.adopting = None
        if slot.adopter is not None:
            (process, number), slot.adopter = slot.adopter, None
            await self._release(process, number)

    async def _release(self, process: Process, number: int) -> None:
        """Have ``process`` stop listening on what it has adopted; 0: on all of its own."""
        try:
            async with asyncio.timeout(_RELEASE_PATIENCE):
                await process.ask("release", "released", number, {})
        except TimeoutError:
            logger.warning("%s does not let go of sockets: it is killed", process.title)
            process.kill("it has not let go of the sockets of another worker")

    def _adopt_again(self, process: Process) -> None:
        """What ``process`` had adopted needs somebody else."""
        for slot in [*self.slots.values(), *self._left.values()]:
            if slot.adopter is not None and slot.adopter[0] is process:
                slot.adopter = None
                self._adopt(slot)

    # News from workers

    def _noted(self, process: Process, note: Note) -> None:
        match note.name:
            case "retire":
                self.recycle(process, note.data["reason"])
            case "signal":
                self._later(_SIGNAL_TO_ALL, lambda: self._signalled(process, note.data["name"]))

    def _signalled(self, process: Process, name: str) -> None:
        if not self.arbiter.stopping:
            self.recycle(process, f"it got {name}")

    def check_liveness(self, now: float, lag: float) -> None:
        """Kill workers that have not been heard of for too long.

        :param lag: for how long we have not listened ourselves, in seconds
        """
        timeout = float(self.setting("timeout"))
        if not timeout:
            return
        for process in self.processes:
            if process.state not in ("running", "draining") or process.killed_for is not None:
                continue
            silent = process.silent(now, timeout) - lag
            if silent > timeout:
                reason = f"it has been silent for {silent:.1f} s (timeout is {timeout:g} s)"
                logger.error("%s is stuck: %s", process.title, reason)
                self.create_task(self._kill_stuck(process, reason))

    async def _kill_stuck(self, process: Process, reason: str) -> None:
        await process.kill_with_stacks(reason)


def described(listening: Sequence[Listening]) -> list[list[Any]]:
    """What a worker must know of sockets that are sent to it."""
    return [[one.bind, one.plain, one.foreign] for one in listening]
