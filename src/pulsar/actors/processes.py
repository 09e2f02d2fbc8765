"""A forked process, as the arbiter sees it.

Owns: ``Process``: its mailbox, what is known of it, its stacks, its end.
Leaves: when it is started, replaced and stopped to ``monitor`` and ``arbiter``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import PulsarException
from ..system import run_delay
from .mailbox import Mailbox, mailbox_pair
from .message import Message, Note
from .restart import describe_exit
from .signals import DUMP_SIGNAL

if TYPE_CHECKING:
    from .forkserver import Order
    from .generation import Generation
    from .router import Router

__all__ = ["BootFailed", "Process"]

logger = logging.getLogger("pulsar.server")

# Seconds for which a stack dump may come in, and of silence after which it is over.
_DUMP_PATIENCE = 1.0
_DUMP_QUIET = 0.1

_READ_SIZE = 64 * 1024


class BootFailed(PulsarException):
    """A process has ended, or was killed, before it was ready.

    :param signalled: it was killed by a signal, so its code may be all right
    """

    def __init__(self, text: str, *, signalled: bool = False) -> None:
        super().__init__(text)
        self.signalled = signalled


class Process:
    """A worker, or the process of a spawned actor.

    :param noted: called with this object and each note that is not handled here
    :param reaped: tells the wait status of an orphan that was reaped before it was
        known, by its pid; None: orphans are not ours to reap
    """

    def __init__(
        self,
        order: Order,
        generation: Generation,
        router: Router,
        noted: Callable[[Process, Note], None],
        *,
        reaped: Callable[[int], int | None] | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.order = order
        self.aid = order.aid
        self.name = order.name
        self.slot = order.slot
        self.generation = generation
        self.pid: int | None = None
        # "starting", "running", "draining", "ended"
        self.state = "starting"
        # We have asked it to end: its end is no accident.
        self.asked = False
        self.started_at = loop.time()
        self.ready_at: float | None = None
        self.figures: dict[str, Any] = {}
        # What it has said of its failure.
        self.failure: str | None = None
        # Why we have killed it, when we have.
        self.killed_for: str | None = None
        self.status: int | None = None
        self.booted: asyncio.Future[None] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        # It accepts no more.
        self.drains: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._router = router
        self._noted = noted
        self._reaped = reaped
        self._answers: dict[tuple[str, int], asyncio.Future[None]] = {}
        # What the machine had kept it waiting when we began to miss it, in seconds.
        self._delay: float | None = None
        ours, theirs = mailbox_pair()
        self._stacks, their_stacks = os.pipe()
        os.set_blocking(self._stacks, False)
        self._end_of_mailbox = theirs
        self._end_of_stacks = their_stacks
        self.mailbox = Mailbox(ours, self._received, self._lost)

    def __repr__(self) -> str:
        return f"<{self.title} {self.state}>"

    @property
    def title(self) -> str:
        """For logs."""
        return f"{self.name} ({self.pid})" if self.pid else self.name

    @property
    def alive(self) -> bool:
        """False once its end is known."""
        return not self.exited.done()

    @property
    def serving(self) -> bool:
        """Ready, and not asked to end."""
        return self.state == "running"

    def fork(self, *descriptors: int) -> None:
        """Have its generation fork it, with these descriptors behind our own."""
        ends = (self._end_of_mailbox.fileno(), self._end_of_stacks)
        self.generation.workers += 1
        self.generation.tell("spawn", self.order._asdict(), *ends, *descriptors)
        self._end_of_mailbox.close()
        os.close(self._end_of_stacks)

    def tell(self, name: str, data: dict[str, Any] | None = None, *descriptors: int) -> None:
        """Send a note."""
        self.mailbox.post(Note(name, data or {}), descriptors)

    async def ask(
        self, name: str, answer: str, number: int, data: dict[str, Any], *descriptors: int
    ) -> None:
        """Send a note, and wait until it is answered with ``answer``, or the process ends."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._answers[answer, number] = future
        self.tell(name, {**data, "id": number}, *descriptors)
        try:
            await _either(future, self.exited)
        finally:
            self._answers.pop((answer, number), None)

    def stop(self, timeout: float, leave: list[str] | None = None) -> None:
        """Ask it to end within ``timeout`` seconds; it is not killed by this.

        :param leave: the binds whose queued connections are for others; None: all
        """
        self.asked = True
        if self.state != "ended":
            self.state = "draining"
        self.tell("stop", {"timeout": timeout, "leave": leave})

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        # A pid is not used again before its process was reaped, and of that we hear.
        if self.pid is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self, reason: str) -> None:
        """End it at once."""
        self.killed_for = self.killed_for or reason
        self.signal(signal.SIGKILL)
        if self.pid is None:
            # Forked or not, it has not said hello: without a mailbox it ends by itself.
            self.mailbox.close()

    async def dump(self) -> str:
        """Its stacks, and what it has in hand; empty when it does not answer."""
        if self._stacks < 0:
            return ""
        self._read_stacks()  # what is left of an earlier one
        self.signal(DUMP_SIGNAL)
        text = b""
        came = asyncio.Event()
        self._loop.add_reader(self._stacks, came.set)
        deadline = self._loop.time() + _DUMP_PATIENCE
        try:
            while (left := deadline - self._loop.time()) > 0:
                came.clear()
                try:
                    async with asyncio.timeout(min(left, _DUMP_QUIET) if text else left):
                        await came.wait()
                except TimeoutError:
                    break
                text += self._read_stacks()
        finally:
            if self._stacks >= 0:
                self._loop.remove_reader(self._stacks)
        return text.decode(errors="backslashreplace").rstrip()

    def _read_stacks(self) -> bytes:
        if self._stacks < 0:
            return b""
        try:
            return os.read(self._stacks, _READ_SIZE)
        except BlockingIOError:
            return b""

    def silent(self, now: float, timeout: float) -> float:
        """Seconds for which it has not been heard of, though it had the chance.

        Time in which the machine gave it no CPU does not count, nor time in which we
        did not listen. It is looked into from half of ``timeout`` on.
        """
        if self.mailbox.held:
            return 0.0
        silent = now - self.mailbox.heard
        if silent > timeout / 2 and self.pid is not None:
            delay = run_delay(self.pid)
            if self._delay is None:
                self._delay = delay
            silent -= delay - self._delay
        return silent

    async def until_draining(self, timeout: float) -> None:
        """Wait until it accepts no more, or has ended, for ``timeout`` seconds at most."""
        await _either(self.drains, self.exited, timeout)

    async def until_booted(self, timeout: float) -> None:
        """Wait until it waits for the note ``serve``. Raises ``BootFailed``."""
        await self._until(self.booted, timeout)

    async def until_ready(self, timeout: float) -> None:
        """Wait until it serves, for ``timeout`` seconds since its start; 0: unlimited.

        Raises ``BootFailed``; then it has ended.
        """
        await self._until(self.ready, timeout)

    async def _until(self, reached: asyncio.Future[None], timeout: float) -> None:
        while not reached.done() and self.alive:
            left = None
            if timeout:
                starved = run_delay(self.pid) if self.pid is not None else 0.0
                left = self.started_at + timeout + starved - self._loop.time()
                if left <= 0:
                    await self.kill_with_stacks(
                        f"it has taken longer than {timeout:g} s to start (boot_timeout)"
                    )
                    left = None
            await _either(reached, self.exited, left)
        if not reached.done():
            raise BootFailed(
                self.describe_end(),
                signalled=self.killed_for is None
                and self.status is not None
                and os.WIFSIGNALED(self.status),
            )

    async def kill_with_stacks(self, reason: str) -> None:
        """Kill it, and log its stacks, which are taken before."""
        self.killed_for = reason
        stacks = await self.dump()
        self.kill(reason)
        logger.error("the stacks of %s:\n%s", self.title, stacks or "it does not answer")

    def describe_end(self) -> str:
        """Why it has ended, as far as that is known."""
        if self.killed_for is not None:
            return f"{self.title} was killed: {self.killed_for}"
        if self.failure is not None:
            return self.failure
        if self.status is None:
            return f"{self.title} could not be forked"
        return f"{self.title} {describe_exit(self.status)}"

    # News of it

    def has_pid(self, pid: int) -> None:
        """Its fork server, or it itself, has told its pid."""
        self.pid = pid

    def has_exited(self, status: int | None) -> None:
        """It was reaped; None: it has never been."""
        if self.exited.done():
            return
        self.status = status
        self.state = "ended"
        # Its last words may still be in the mailbox.
        self.mailbox.read_rest()
        self.mailbox.close()
        if self._stacks >= 0:
            self._loop.remove_reader(self._stacks)
            os.close(self._stacks)
            self._stacks = -1
        self.generation.workers -= 1
        self.exited.set_result(-1 if status is None else status)

    def _received(self, mailbox: Mailbox, message: Message, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)  # nobody below sends any
        if not isinstance(message, Note):
            self._router.receive(mailbox, message)
            return
        self._delay = None
        data = message.data
        if data.get("aid") == self.aid:
            return  # that it is here we know: by its name, once it is ready
        if self._router.noted(mailbox, message):
            return
        answer = self._answers.get((message.name, data.get("id", -1)))
        if answer is not None and not answer.done():
            answer.set_result(None)
        match message.name:
            case "hello":
                self.has_pid(data["pid"])
                self._router.link(mailbox, self.aid, self.aid)
            case "booted":
                self._done(self.booted)
            case "ready":
                self.figures = data
                self.ready_at = self._loop.time()
                if self.state == "starting":
                    self.state = "running"
                # From now on it is the one who is meant by the name.
                self._router.link(mailbox, self.aid, self.name)
                self._done(self.booted)
                self._done(self.ready)
            case "beat":
                self.figures = data
            case "draining":
                self.state = "draining"
                self._done(self.drains)
            case "failed":
                self.failure = data["text"]
            case "adopted" | "released":
                pass  # it was asked for, see above
            case _:
                self._noted(self, message)

    def _done(self, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def _lost(self, mailbox: Mailbox) -> None:
        self._router.unlink(mailbox)
        self._loop.call_soon(self.is_lost)

    def is_lost(self) -> None:
        """See whether its end is known, when its fork server cannot tell us any more."""
        if not self.mailbox.closed or self.generation.alive or not self.alive:
            return
        if self.pid is None or self._reaped is None:
            self.has_exited(None)
        elif (status := self._reaped(self.pid)) is not None:
            self.has_exited(status)


async def _either(
    one: asyncio.Future[Any], other: asyncio.Future[Any], timeout: float | None = None
) -> None:
    """Wait until one of them is done; neither is cancelled."""
    await asyncio.wait({one, other}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
