"""The fork server: imports the application once, forks workers, reaps them.

Owns: ``ForkServer``, the process between the arbiter and the workers of one
generation of the code.
Leaves: when to fork to the arbiter, what a worker does to ``worker``, how the
process itself comes to be to ``generation``.

It has one thread and no event loop, so that a fork of it is safe, and it does
nothing but wait: for orders from the arbiter, and for the ends of its children.
When the arbiter has gone it sees to it that its workers end, and ends.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import ImproperlyConfigured
from ..log import reopen_logs, setup_logging
from ..system import end_with_parent, import_event_loop, set_process_title
from ..version import __version__
from .mailbox import new_framer, receive
from .message import Note, decode, encode
from .served import BOOT_FAILED, Served
from .signals import LED_BY_THE_ARBITER, let_signals_through

__all__ = ["ForkServer", "Loaded", "Order", "leave"]

logger = logging.getLogger("pulsar.server")

_READ_SIZE = 64 * 1024

# Seconds beyond the graceful timeout after which workers without an arbiter are killed.
_LAST_PATIENCE = 2.0


class Loaded(NamedTuple):
    """What a generation serves."""

    applications: Sequence[Served]
    # What the tree is called.
    title: str
    # For the arbiter: settings by name, see ``served.settings_of``.
    settings: dict[str, list[Any]]


class Order(NamedTuple):
    """What the arbiter says of a worker that is to be forked."""

    aid: str
    name: str
    generation: int
    # The index of its application; None: an actor that somebody has spawned.
    application: int | None
    slot: int | None
    # Wait for the note "serve" before serving.
    hold: bool
    heartbeat: float
    # The cell of the table of connection counts; 0: there is no table.
    cell: int
    # (bind, stream or datagram, plain, foreign), one for each socket that comes along.
    sockets: list[list[Any]]
    # What a spawned actor is made of.
    payload: bytes


class ForkServer:
    """One generation's fork server; ``run`` never returns.

    :param control: the socket to the arbiter
    :param load: makes what is served; raises ``SystemExit`` with the exit code when it
        cannot, having said why on standard error
    :param live: what a worker does: called in a forked process with the application
        (or None), its order, the descriptors of its mailbox and its stack dumps, and
        its sockets; returns its exit code
    :param preload: False: ``load`` is called in each worker
    :param stderr: the descriptor that shall be standard error once all is loaded; until
        then it is the arbiter who reads what is written there
    """

    def __init__(
        self,
        control: socket.socket,
        load: Callable[[], Loaded],
        live: Callable[[Served | None, Order, list[int]], int],
        *,
        preload: bool = True,
        generation: int = 1,
        stderr: int | None = None,
    ) -> None:
        self._control = control
        self._load = load
        self._live = live
        self._preload = preload
        self._generation = generation
        self._stderr = stderr
        self._loaded: Loaded | None = None
        self._framer = new_framer()
        self._descriptors: list[int] = []
        self._workers: dict[int, str] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._title = "pulsar"
        self._graceful_timeout = 30.0
        self._orphaned = False
        # What to remove when the arbiter has gone: path, device, inode.
        self._files: list[list[Any]] = []

    def run(self) -> NoReturn:
        """Load, report, obey until told to end, or until the arbiter has gone."""
        code = 1
        try:
            code = self._run()
        except BaseException:
            traceback.print_exc()
        leave(code)

    def _run(self) -> int:
        self._control.setblocking(True)
        self._led()
        report = self._prepare()
        if report is None:
            return BOOT_FAILED
        if self._stderr is not None:
            sys.stderr.flush()
            os.dup2(self._stderr, 2)
            os.close(self._stderr)
        self._wakeup = socket.socketpair()
        for sock in self._wakeup:
            sock.setblocking(False)
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        set_process_title(f"{self._title}: fork server {self._generation}")
        self._tell("loaded", report)
        try:
            self._obey()
        finally:
            signal.set_wakeup_fd(-1)
        return 0

    def _led(self) -> None:
        for name in LED_BY_THE_ARBITER:
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, _nothing)
        let_signals_through()

    # Loading

    def _prepare(self) -> dict[str, Any] | None:
        """Load, here or in a process that is thrown away; the report, None if it failed."""
        # Nothing is left behind here, and much is made: collecting only costs time.
        gc.disable()
        if self._preload:
            report = self._try_to_load()
            # What user code has installed would end us.
            self._led()
        else:
            report = self._scout()
        if "code" in report:
            self._tell("failed", report)
            return None
        self._title = f"{report['title']}"
        self._graceful_timeout = report["graceful_timeout"]
        others = [
            thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
        ]
        if others:
            report["warnings"].append(
                f"importing the application has started threads ({', '.join(others)}), which "
                "do not exist in the workers: start them in on_worker_start, or use --no-preload"
            )
        if self._preload:
            # Workers share what is there now: a collector that looks at an object
            # writes into it, and the page is copied. What an import has left to collect is
            # little, and looking for it would take as long as forking a worker.
            gc.freeze()
        return report

    def _try_to_load(self) -> dict[str, Any]:
        with _overheard() as heard:
            try:
                loaded = self._loaded = self._load()
                # From now on it must outlive the arbiter, to see to its workers.
                end_with_parent(False)
                if loaded.applications:
                    cfg = loaded.applications[0].cfg
                    setup_logging(cfg.log_level, cfg.log_format, cfg.log_file)
                for application in loaded.applications:
                    # Once for all workers, not in each of them.
                    import_event_loop(application.cfg.event_loop)
                    application.before_fork()
                return _report(loaded)
            except ImproperlyConfigured as exc:
                return {"code": BOOT_FAILED, "text": str(exc), "said": False}
            except SystemExit as exc:
                code = exc.code if isinstance(exc.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = BOOT_FAILED
        return {"code": code or BOOT_FAILED, "text": heard.getvalue(), "said": True}

    def _scout(self) -> dict[str, Any]:
        """Load in a process that says what there is, and ends."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            report = self._try_to_load()
            with contextlib.suppress(OSError):
                theirs.sendall(encode(Note("report", report)))
            theirs.close()
            leave(0)
        theirs.close()
        with ours:
            data = b""
            while chunk := ours.recv(_READ_SIZE):
                data += chunk
        _, status = os.waitpid(pid, 0)
        if not data:
            text = f"the process that imports the application has ended with status {status}"
            return {"code": BOOT_FAILED, "text": text, "said": False}
        note = decode(data)
        assert isinstance(note, Note)
        return note.data

    # Orders

    def _obey(self) -> None:
        assert self._wakeup is not None
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup[0], select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wakeup[0].fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._wakeup[0].recv(4096)
                    self._reap()
                elif not self._receive():
                    return

    def _receive(self) -> bool:
        """Obey what has come; False when it is time to end."""
        try:
            data, descriptors = receive(self._control)
        except ConnectionError:
            data, descriptors = b"", []
        self._descriptors += descriptors
        if not data:
            self._orphaned_end()
            return False
        for frame in self._framer.feed(data):
            note = decode(frame)
            assert isinstance(note, Note)
            taken = self._descriptors[: note.descriptors]
            del self._descriptors[: note.descriptors]
            if note.name == "spawn":
                self._spawn(Order(**note.data), taken)
            elif note.name == "end":
                return False
            elif note.name == "ready":
                self._when_ready()
            elif note.name == "reopen logs":
                reopen_logs()
            elif note.name == "logging":
                setup_logging(**note.data)
            elif note.name == "files":
                self._files = note.data["files"]
        return True

    def _when_ready(self) -> None:
        if self._loaded is None:
            return
        for application in self._loaded.applications:
            application.ready_in_fork_server()

    def _spawn(self, order: Order, descriptors: list[int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as exc:
            for descriptor in descriptors:
                os.close(descriptor)
            self._tell("not forked", {"aid": order.aid, "reason": exc.strerror})
            return
        if pid == 0:
            code = 1
            try:
                code = self._become_worker(order, descriptors)
            except BaseException:
                traceback.print_exc()
            leave(code)
        for descriptor in descriptors:
            os.close(descriptor)
        self._workers[pid] = order.aid
        self._tell("forked", {"aid": order.aid, "pid": pid})

    def _become_worker(self, order: Order, descriptors: list[int]) -> int:
        assert self._wakeup is not None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for sock in self._wakeup:
            sock.close()
        gc.enable()
        if order.slot is not None:
            os.environ["PULSAR_WORKER_SLOT"] = str(order.slot)
        application = None
        if order.application is not None:
            if self._loaded is None:  # --no-preload
                self._loaded = self._load()
                end_with_parent(False)
                cfg = self._loaded.applications[0].cfg
                setup_logging(cfg.log_level, cfg.log_format, cfg.log_file)
            application = self._loaded.applications[order.application]
        return self._live(application, order, descriptors)

    # Ends

    def _reap(self) -> None:
        while self._workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                # Somebody else has waited for them: all that is known is that they ended.
                for aid in self._workers.values():
                    self._tell("exited", {"aid": aid, "status": 0})
                self._workers.clear()
                return
            if pid == 0:
                return
            if pid in self._workers:
                self._tell("exited", {"aid": self._workers.pop(pid), "status": status})

    def _orphaned_end(self) -> None:
        """The arbiter has gone: workers drain by themselves; kill those that do not."""
        self._orphaned = True
        logger.error("the arbiter has gone: %d workers drain and end", len(self._workers))
        for path, device, inode in self._files:
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if (status.st_dev, status.st_ino) == (device, inode):
                    Path(path).unlink()
        deadline = time.monotonic() + self._graceful_timeout + _LAST_PATIENCE
        assert self._wakeup is not None
        poll = select.poll()
        poll.register(self._wakeup[0], select.POLLIN)
        while True:
            self._reap()
            left = deadline - time.monotonic()
            if not self._workers or left <= 0:
                break
            if poll.poll(min(left, 1.0) * 1000):
                with contextlib.suppress(BlockingIOError):
                    self._wakeup[0].recv(4096)
        for pid in list(self._workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _tell(self, name: str, data: dict[str, Any]) -> None:
        if not self._orphaned:
            with contextlib.suppress(OSError):
                self._control.sendall(self._framer.encode(encode(Note(name, data))))


def _report(loaded: Loaded) -> dict[str, Any]:
    applications = [application.describe() for application in loaded.applications]
    return {
        "version": __version__,
        "title": loaded.title,
        "graceful_timeout": float(loaded.settings["graceful_timeout"][0]),
        "settings": loaded.settings,
        "applications": applications,
        "warnings": [
            warning for application in loaded.applications for warning in application.cfg.warnings
        ],
        "files": _imported_files() if loaded.settings["reload"][0] else [],
    }


def _imported_files() -> list[str]:
    """The files of imported modules that are no part of an installation: the user's."""
    base = (sys.prefix, sys.base_prefix, sys.exec_prefix)
    files = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(".py"):
            path = os.path.abspath(name)  # noqa: PTH100 - hundreds of them
            if not path.startswith(base):
                files.add(path)
    return sorted(files)


class _Tee(io.StringIO):
    """Keeps what is written to standard error, which gets it, too."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        self._real = real

    def write(self, text: str) -> int:
        self._real.write(text)
        return super().write(text)

    def flush(self) -> None:
        self._real.flush()

    def fileno(self) -> int:
        return int(self._real.fileno())

    def isatty(self) -> bool:
        return bool(self._real.isatty())


@contextlib.contextmanager
def _overheard() -> Iterator[io.StringIO]:
    """Keep what Python code says on standard error meanwhile."""
    real = sys.stderr
    tee = _Tee(real)
    sys.stderr = tee
    try:
        yield tee
    finally:
        sys.stderr = real
        # A handler made meanwhile holds on to the tee.
        for handler in [*logging.getLogger().handlers, *logging.getLogger("pulsar").handlers]:
            if isinstance(handler, logging.StreamHandler) and handler.stream is tee:
                handler.setStream(real)


def leave(code: int) -> NoReturn:
    """End a forked process: with ``atexit``, without unwinding its parent's stack."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code)


def _nothing(number: int, frame: Any) -> None:
    """The arbiter leads."""
