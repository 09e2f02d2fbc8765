"""Generations: how a fork server comes to be, and the arbiter's handle on it.

Owns: ``fork_first``, ``run_again``, ``inherited``, and ``Generation``.
Leaves: what a fork server does to ``forkserver``, when to make one to the arbiter.

The first one is forked from the process that was started, before it has a loop or a
thread, with whatever the script has built. The next ones are made by running the
command line of that process again, in a fresh interpreter, which comes to the same
place, finds in its environment that it is to be a fork server, and becomes one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ReloadFailed
from .mailbox import Mailbox, mailbox_pair
from .message import Message, Note
from .restart import describe_exit
from .served import BOOT_FAILED

__all__ = [
    "Generation",
    "Inherited",
    "LoadFailed",
    "fork_first",
    "inherited",
    "is_fork_server",
    "run_again",
]

logger = logging.getLogger("pulsar.server")

# Where a fresh interpreter learns that it is to be a fork server: the numbers of its
# generation, of the descriptor of its mailbox, and of that of standard error.
_VARIABLE = "_PULSAR_GENERATION"

# What belongs to this process alone.
_NOT_FOR_OTHERS = frozenset(
    {
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)

# So much of what a new generation says on standard error is kept for who asked for it.
_KEPT_ERRORS = 64 * 1024

_READ_SIZE = 64 * 1024


def _directory_of_start() -> str:
    """Where we were started; by the name that the shell used, so that a link is followed anew."""
    here = Path.cwd()
    name = os.environ.get("PWD")
    if name:
        with contextlib.suppress(OSError):
            if Path(name).samefile(here):
                return name
    return str(here)


# As they are when pulsar is imported, which is before anybody changes them.
_DIRECTORY = _directory_of_start()
_ENVIRONMENT = dict(os.environ)


class LoadFailed(ReloadFailed):
    """A fork server could not load the application.

    :param text: what it has said
    :param code: the exit code that this deserves
    :param said: the operator has read it already, on standard error
    """

    def __init__(self, text: str, code: int = BOOT_FAILED, *, said: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.said = said


class Inherited(NamedTuple):
    """What a process that is to be a fork server has been given."""

    generation: int
    control: socket.socket
    stderr: int


def is_fork_server() -> bool:
    """True in a process that was started to be a fork server, whatever its settings say."""
    return _VARIABLE in os.environ


def inherited() -> Inherited | None:
    """What this process was given if it is to be a fork server; None if it is not."""
    value = os.environ.pop(_VARIABLE, None)
    if value is None:
        return None
    generation, control, stderr = map(int, value.split(":"))
    os.set_inheritable(control, False)
    os.set_inheritable(stderr, False)
    return Inherited(generation, socket.socket(fileno=control), stderr)


def fork_first(become: Callable[[socket.socket], Any]) -> tuple[socket.socket, int]:
    """Fork the first fork server; ``become`` is called there, and does not return.

    Returns the arbiter's end of its mailbox, and its pid.
    """
    ours, theirs = mailbox_pair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        become(theirs)
        os._exit(1)  # it does not come back
    theirs.close()
    return ours, pid


def run_again(generation: int) -> tuple[socket.socket, int, int]:
    """Run the command line of this process again, as the fork server of ``generation``.

    Returns our end of its mailbox, its pid, and the descriptor from which to read
    what it says on standard error until it is ready. Raises ``ReloadFailed``.
    """
    ours, theirs = mailbox_pair()
    errors, their_errors = os.pipe()
    real_stderr = os.dup(2)
    environment = {k: v for k, v in _ENVIRONMENT.items() if k not in _NOT_FOR_OTHERS}
    environment[_VARIABLE] = f"{generation}:{theirs.fileno()}:{real_stderr}"
    try:
        process = subprocess.Popen(  # noqa: S603 - what was started before
            [sys.executable, *sys.orig_argv[1:]],
            cwd=_DIRECTORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=their_errors,
            pass_fds=[theirs.fileno(), real_stderr],
        )
    except OSError as exc:
        ours.close()
        os.close(errors)
        raise ReloadFailed(f"the program cannot be run again: {exc}") from exc
    finally:
        theirs.close()
        os.close(their_errors)
        os.close(real_stderr)
    # The arbiter reaps all its children itself.
    process.returncode = 0
    return ours, process.pid, errors


class Generation:
    """A fork server, as the arbiter sees it.

    :param number: 1 for the first
    :param noted: called with this object and each note of the fork server
    :param lost: called when it has gone
    :param errors: see ``run_again``
    """

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        pid: int,
        noted: Callable[[Generation, Note], None],
        lost: Callable[[Generation], None],
        errors: int | None = None,
    ) -> None:
        self.number = number
        self.pid = pid
        self.alive = True
        # Told to end; its going is no news.
        self.ending = False
        # What it has reported when it was loaded.
        self.report: dict[str, Any] | None = None
        self.loaded: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        # Workers of this generation that have not ended: when there are none, it ends.
        self.workers = 0
        self._status: int | None = None
        self._noted = noted
        self._lost = lost
        self._errors = errors
        self._said = bytearray()
        self._mailbox = Mailbox(sock, self._received, self._gone)
        if errors is not None:
            os.set_blocking(errors, False)
            asyncio.get_running_loop().add_reader(errors, self._hear)

    @property
    def title(self) -> str:
        """For logs."""
        return f"fork server {self.number} ({self.pid})"

    def tell(self, name: str, data: dict[str, Any] | None = None, *descriptors: int) -> None:
        """Send an order."""
        self._mailbox.post(Note(name, data or {}), descriptors)

    def end(self) -> None:
        """Let it end, now that it has no workers."""
        self.ending = True
        self.tell("end")

    def kill(self) -> None:
        """End it at once."""
        self.ending = True
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Hang up."""
        self._mailbox.close()

    async def wait_until_loaded(self, timeout: float) -> dict[str, Any]:
        """Its report.

        Raises ``LoadFailed`` with what it has said when it has failed, or has taken
        longer than ``timeout`` seconds (0: unlimited); then it is killed.
        """
        try:
            async with asyncio.timeout(timeout or None):
                return await asyncio.shield(self.loaded)
        except TimeoutError:
            self.kill()
            raise LoadFailed(
                f"importing the application has taken longer than {timeout:g} s (boot_timeout)"
            ) from None

    def exited(self, status: int) -> None:
        """It was reaped."""
        self.alive = False
        self._status = status

    def reap(self) -> None:
        """Wait for its end, which is near: it was killed, or has hung up."""
        if self._status is None:
            with contextlib.suppress(ChildProcessError):
                self.exited(os.waitpid(self.pid, 0)[1])

    def _received(self, mailbox: Mailbox, message: Message, descriptors: list[int]) -> None:
        if not isinstance(message, Note):
            return
        if message.name == "loaded":
            self.report = message.data
            self._stop_hearing()
            if not self.loaded.done():
                self.loaded.set_result(message.data)
        elif message.name == "failed":
            self._fail(message.data["text"], message.data["code"], message.data["said"])
        else:
            self._noted(self, message)

    def _gone(self, mailbox: Mailbox) -> None:
        if not self.loaded.done():
            # If it is ending, that says how; if it has only hung up, it must end.
            self.kill()
            self.reap()
        self._fail("", BOOT_FAILED, False)
        self._lost(self)

    def _fail(self, text: str, code: int, said: bool) -> None:
        self._stop_hearing()
        if not self.loaded.done():
            # What it has written is there already, but for what Python code said itself.
            heard = self._said.decode(errors="backslashreplace").strip()
            text = text.strip()
            if heard and text not in heard:
                text = f"{heard}\n{text}" if text else heard
            elif heard:
                text = heard
            said = said or bool(heard)
            if not text:
                how = "has ended" if self._status is None else describe_exit(self._status)
                text = f"the process that loads the application {how}"
            self.loaded.set_exception(LoadFailed(text, code, said=said))
            # Perhaps nobody waits for it any more.
            self.loaded.exception()

    def _hear(self) -> None:
        assert self._errors is not None
        try:
            data = os.read(self._errors, _READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._stop_hearing(drain=False)
            return
        self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._said += data
        del self._said[:-_KEPT_ERRORS]
        # It is for the operator as well.
        with contextlib.suppress(OSError):
            os.write(2, data)

    def _stop_hearing(self, drain: bool = True) -> None:
        if self._errors is None:
            return
        asyncio.get_running_loop().remove_reader(self._errors)
        while drain:
            try:
                data = os.read(self._errors, _READ_SIZE)
            except BlockingIOError:
                break
            if not data:
                break
            self._keep(data)
        os.close(self._errors)
        self._errors = None
