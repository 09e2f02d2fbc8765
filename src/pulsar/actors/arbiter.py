"""The arbiter: the root of the process tree.

Owns: ``Arbiter``: signals, the order of start and stop, reloads, who forks, who is
reaped, and what the control socket asks for.
Leaves: workers to ``monitor``, the code of the application to fork servers: started
from the command line, this process never imports it.

Start, in this order: the fork server loads and reports; pid file; sockets; workers,
until all serve; the control socket. Stop: the door is shut; workers drain; fork
servers end; sockets, control socket and pid file go.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config import Config
from ..errors import ActorError, ActorGone, ImproperlyConfigured, ReloadFailed
from ..log import reopen_logs, setup_logging
from ..net import format_address
from ..pidfile import PidFile
from ..privileges import resolve_identity
from ..system import enable_subreaper, set_process_title
from ..version import __version__
from .actor import Actor, StoppedEarly, log_loop_error, set_process_actor
from .commands import CommandRequest, command
from .control import ControlServer
from .forkserver import Order
from .generation import Generation, LoadFailed, run_again
from .hosts import spawn_in_loop
from .message import Note
from .monitor import Monitor, described
from .notify import Notifier
from .processes import BootFailed, Process
from .reloader import watch_files
from .router import Router
from .served import BOOT_FAILED, Listen, Listening, ServeAlone, Served
from .signals import let_signals_through

__all__ = ["Arbiter", "RootArbiter"]

logger = logging.getLogger("pulsar.server")

# Seconds between looks at the workers' signs of life, at most; and parts of the timeout.
_LOOK, _LOOKS = 5.0, 8

# Seconds for what needs no time: a fork server without workers, a worker told "now".
_PATIENCE = 2.0

# So many children that nobody knew are remembered.
_KEPT_STATUSES = 64

# Seconds that workers have to tell their figures when somebody wants to see them.
_FIGURES_PATIENCE = 0.2

# Seconds until a fork server that cannot be started is tried again, at first and at most.
_RETRY_FIRST, _RETRY_MOST = 1.0, 30.0

Progress = Callable[[str], None]


class Arbiter(Actor):
    """The root of the process tree; ``lead`` runs it.

    :param applications: what is served, where its code is in this process; None when
        only the fork server has it
    :param title: what it is called until that is known
    """

    def __init__(
        self,
        applications: Sequence[Served] | None = None,
        *,
        title: str = "pulsar",
        cfg: Config | None = None,
        notifier: Notifier | None = None,
        hooks: Mapping[str, Callable[..., Any]] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        router = Router(import_modules=applications is not None)
        super().__init__(
            "arbiter", aid="arbiter", cfg=cfg, router=router, hooks=hooks, params=params
        )
        self.applications = applications
        self.monitors: list[Monitor] = []
        # All workers have been ready once: nothing that happens now makes us give up.
        self.was_ready = False
        self.stopping = False
        self.generation: Generation
        self.failure: tuple[int, str] | None = None
        self._generations: list[Generation] = []
        self._numbers = itertools.count(1)
        self._processes: dict[str, Process] = {}
        self._actor_numbers = itertools.count(1)
        self._now = asyncio.Event()
        self._change: asyncio.Future[None] | None = None
        self._reloading = asyncio.Lock()
        self._notifier = notifier or Notifier()
        self._control: ControlServer | None = None
        self._pidfile: PidFile | None = None
        # The fork server of a reload that is under way.
        self._next: Generation | None = None
        self._reaps_orphans = False
        # The last children that nobody knew, and how they ended.
        self._reaped: dict[int, int] = {}
        self._settings: dict[str, list[Any]] = {}
        self._first: tuple[socket.socket, int] | None = None
        self._title = title
        self._looked_at = 0.0

    def lead(self, sock: socket.socket, pid: int) -> int:
        """Be the arbiter of the first fork server; returns the exit code of the process."""
        self._first = (sock, pid)
        set_process_actor(self)
        try:
            with asyncio.Runner(debug=self.cfg.debug) as runner:
                runner.run(self._lead())
        finally:
            set_process_actor(None)
        if self.failure is None:
            return 0
        code, text = self.failure
        if text:
            if self._settings and self.setting("log_file") not in (None, "-"):
                logger.error("%s", text)
            sys.stderr.write(f"{self._title}: error: {text}\n")
        return code

    async def _lead(self) -> None:
        try:
            await self.run()
        except LoadFailed as exc:
            self.failure = (exc.code, "" if exc.said else str(exc))
        except ImproperlyConfigured as exc:
            self.failure = (BOOT_FAILED, str(exc))
        except StoppedEarly:
            pass
        except ServeAlone:
            raise
        except Exception:
            # The user's monitor_start, most likely.
            logger.exception("%s cannot start", self._title)
            self.failure = (BOOT_FAILED, "")

    # Start

    async def starting(self) -> None:
        """Boot."""
        assert self.loop is not None
        assert self._first is not None
        self._change = self.loop.create_future()
        self.loop.set_exception_handler(log_loop_error)
        self._reaps_orphans = enable_subreaper()
        self._handle_signals()
        sock, pid = self._first
        self.generation = self._add_generation(next(self._numbers), sock, pid, None)
        await self._boot()

    async def _boot(self) -> None:
        timeout = self.cfg.boot_timeout if "boot_timeout" in self.cfg else 60.0
        report = await self.generation.wait_until_loaded(timeout)
        if any(each["alone"] for each in report["applications"]):
            raise ServeAlone
        self._configure(report)
        if self.setting("pidfile"):
            pidfile = PidFile(self.setting("pidfile"))
            pidfile.create()
            self._pidfile = pidfile
        for warning in report["warnings"]:
            logger.warning("%s", warning)
        for index, each in enumerate(report["applications"]):
            application = self.applications[index] if self.applications is not None else None
            monitor = Monitor(self, index, each, application)
            self.monitors.append(monitor)
            await spawn_in_loop(self, monitor)
            monitor.open()
            if application is not None:
                with monitor.current():
                    await application.monitor_start(monitor)
        self._tell_files()
        for monitor in self.monitors:
            await monitor.boot()
        self._control = ControlServer(self, self.setting("control"), self._title)
        await self._control.start()
        self._tell_files()

    def started(self) -> None:
        """All workers serve: say so."""
        assert self.loop is not None
        self.was_ready = True
        for monitor in self.monitors:
            for name, plain in monitor.listeners.names:
                secure = " (TLS)" if monitor.secure and not plain else ""
                logger.info("%s serves on %s%s", monitor.name, format_address(name), secure)
            if not monitor.listeners.names:
                logger.info("%s is running", monitor.name)
            if monitor.application is not None:
                monitor.application.started()
        if self.applications is None:
            self.generation.tell("ready")
        self._notifier.ready(self._notify_text())
        if self._notifier.watchdog_interval is not None:
            self.create_task(self._watchdog(self._notifier.watchdog_interval))
        self.create_task(self._watch_workers())
        if self.setting("reload"):
            self.create_task(self._watch_files())

    def _configure(self, report: dict[str, Any]) -> None:
        self._settings = report["settings"]
        self._title = report["title"]
        self._set_up_logging()
        set_process_title(f"{self._title}: arbiter")

    def _set_up_logging(self) -> None:
        setup_logging(
            self.setting("log_level"),
            self.setting("log_format"),
            self.setting("log_file"),
            # The file must be theirs who will reopen it.
            owner=resolve_identity(self.setting("user"), self.setting("group")),
        )

    def setting(self, name: str) -> Any:
        """The value of one of the core's settings, of the generation that serves."""
        return self._settings[name][0]

    def _notify_text(self) -> str:
        workers = sum(monitor.ready for monitor in self.monitors)
        return f"{workers} workers serve, generation {self.generation.number}"

    # Stop

    def stop(self, graceful: bool = True) -> None:
        """Stop the tree; again, or not ``graceful``: at once. Callable from any thread."""
        loop = self.loop
        if loop is not None and not _runs_in(loop):
            # It may be closed by now: then the tree has stopped.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.stop, graceful)
            return
        if not graceful or (self._stopping is not None and self._stopping.is_set()):
            self._now.set()
        super().stop()

    def give_up(self, reason: str) -> None:
        """The tree cannot come up."""
        if self.failure is None:
            self.failure = (BOOT_FAILED, reason)
            self.stop(graceful=False)

    async def _end(self) -> None:
        self.stopping = True
        self._notifier.stopping()
        try:
            await self._stop_everybody()
        finally:
            for monitor in self.monitors:
                if monitor.application is not None:
                    with monitor.current():
                        await monitor.application.monitor_stop(monitor)
                monitor.listeners.close()
            if self._control is not None:
                await self._control.close()
            await super()._end()
            if self._pidfile is not None:
                self._pidfile.remove()
            for name in _SIGNALS:
                with contextlib.suppress(ValueError):
                    assert self.loop is not None
                    self.loop.remove_signal_handler(getattr(signal, name))
        if self.was_ready:
            logger.info("%s has stopped", self._title)

    async def _stop_everybody(self) -> None:
        if not self._now.is_set():
            for monitor in self.monitors:
                monitor.listeners.shut_the_door()
        for monitor in self.monitors:
            monitor.stop_workers()
        for generation in self._generations:
            if generation.report is None:
                generation.kill()  # it is still importing, and does not listen
        # The workers' copies keep the queues until they are empty; then nobody is kept
        # waiting, and another server may bind.
        for monitor in self.monitors:
            monitor.listeners.close()
        for process in list(self._processes.values()):
            if process.slot is None:
                process.stop(self._graceful_timeout())
        await self._all_ended()
        for generation in self._generations:
            generation.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while self._generations:
                    await self.next_change()
        for generation in list(self._generations):
            generation.kill()
            generation.reap()
            generation.close()

    async def _all_ended(self) -> None:
        """Wait for all processes: in peace, then in haste, then they are killed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._graceful_timeout() + _PATIENCE
        hurried = killed = False
        while self._processes:
            if self._now.is_set() and not hurried:
                hurried = True
                deadline = loop.time() + _PATIENCE
                for process in self._processes.values():
                    process.stop(0.0, [])
            if loop.time() >= deadline:
                if killed:
                    return  # the kernel does not let go of them
                killed = True
                deadline = loop.time() + _PATIENCE
                for process in list(self._processes.values()):
                    process.kill("it has not ended in time")
            now = loop.create_task(self._now.wait())
            # Taken now: a task would look for it later, and miss what happens before.
            change = self._change
            assert change is not None
            waiters: set[asyncio.Future[Any]] = {change} if hurried else {change, now}
            await asyncio.wait(
                waiters,
                timeout=max(0.0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            now.cancel()

    def _graceful_timeout(self) -> float:
        if not self._settings:
            return 0.0
        return max(
            [float(self.setting("graceful_timeout"))]
            + [float(monitor.setting("graceful_timeout")) for monitor in self.monitors]
        )

    # News for those who wait

    def changed(self) -> None:
        """Something has happened that somebody may wait for."""
        if self._change is not None and self.loop is not None:
            change, self._change = self._change, self.loop.create_future()
            change.set_result(None)

    async def next_change(self) -> None:
        """Wait until something has happened."""
        assert self._change is not None
        await asyncio.shield(self._change)

    # Processes

    def fork(
        self,
        *,
        name: str,
        number: int,
        application: int | None,
        slot: int | None,
        generation: Generation,
        noted: Callable[[Process, Note], None],
        hold: bool = False,
        heartbeat: float = 5.0,
        listening: Sequence[Listening] = (),
        cell: int = 0,
        table: int = -1,
        payload: bytes = b"",
    ) -> Process:
        """Have ``generation`` fork a process. Raises ``OSError`` without descriptors.

        :param noted: called with notes of the process
        :param cell: its cell in the table of connection counts, whose descriptor is
            ``table``; 0: there is none

        The rest is explained with ``Order``.
        """
        order = Order(
            aid=f"{name}-{number}",
            name=name,
            generation=generation.number,
            application=application,
            slot=slot,
            hold=hold,
            heartbeat=heartbeat,
            cell=cell,
            sockets=described(listening),
            payload=payload,
        )
        reaped = self._reaped.get if self._reaps_orphans else None
        process = Process(order, generation, self.router, noted, reaped=reaped)
        self._processes[process.aid] = process
        descriptors = [one.sock.fileno() for one in listening]
        if cell:
            descriptors.insert(0, table)
        process.exited.add_done_callback(lambda _: self._process_ended(process))
        process.fork(*descriptors)
        return process

    def _process_ended(self, process: Process) -> None:
        self._processes.pop(process.aid, None)
        self.notices.pop(process.aid, None)
        generation = process.generation
        if not generation.workers and generation not in (self.generation, self._next):
            generation.end()
        self.changed()

    async def spawn_process(self, payload: bytes, name: str | None) -> tuple[str, str]:
        """A process for an actor that somebody wants to spawn; its id and its name."""
        if self.stopping:
            raise ActorError("no process is started any more: the arbiter is stopping")
        number = next(self._actor_numbers)
        process = self.fork(
            name=name or f"actor-{number}",
            number=number,
            application=None,
            slot=None,
            generation=self.generation,
            noted=lambda _process, _note: None,
            payload=payload,
        )
        try:
            await process.until_ready(float(self.setting("boot_timeout")))
        except BootFailed as exc:
            raise ActorError(f"{process.name} could not be started: {exc}") from None
        return process.aid, process.name

    async def kill_actor(self, aid: str) -> str:
        """See ``Actor.kill_actor``; for the arbiter also by name."""
        for process in self._processes.values():
            if aid in (process.aid, process.name):
                process.kill("an actor wanted it killed")
                await asyncio.wait({process.exited})
                return process.aid
        return await super().kill_actor(aid)

    def info(self) -> dict[str, Any]:
        """What there is to know about the tree, as plain data."""
        return {**super().info(), **self.status()}

    def _reap(self) -> None:
        """Children have ended: fork servers, and whoever has lost its fork server."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for generation in self._generations:
                if generation.pid == pid:
                    generation.exited(status)
            known = [process for process in self._processes.values() if process.pid == pid]
            for process in known:
                process.has_exited(status)
            if not known:
                # It may be one that has not said hello yet.
                self._reaped[pid] = status
                while len(self._reaped) > _KEPT_STATUSES:
                    del self._reaped[next(iter(self._reaped))]

    # Generations

    def _add_generation(
        self, number: int, sock: socket.socket, pid: int, errors: int | None
    ) -> Generation:
        generation = Generation(
            number, sock, pid, self._generation_noted, self._generation_lost, errors
        )
        self._generations.append(generation)
        return generation

    async def _load_next(self) -> Generation:
        """A fork server with the code that is there now. Raises ``ReloadFailed``."""
        number = next(self._numbers)
        sock, pid, errors = run_again(number)
        generation = self._add_generation(number, sock, pid, errors)
        try:
            timeout = float(self.setting("boot_timeout"))
            report = await generation.wait_until_loaded(timeout)
            if self.stopping:
                raise ReloadFailed("the server is stopping")
            if report["version"] != __version__:
                raise ReloadFailed(
                    f"pulsar is {report['version']} now, and this server runs {__version__}: "
                    "this takes a restart"
                )
            if any(each["alone"] for each in report["applications"]):
                raise ReloadFailed(
                    "it wants to be served without workers now: this takes a restart"
                )
            names = [each["name"] for each in report["applications"]]
            before = [monitor.name for monitor in self.monitors]
            # A single one is the same one, whatever it is called: that takes a restart.
            if names != before and not len(names) == len(before) == 1:
                raise ReloadFailed(
                    f"it serves other applications ({', '.join(names)}): this takes a restart"
                )
        except BaseException:
            generation.kill()
            raise
        for warning in report["warnings"]:
            logger.warning("%s", warning)
        return generation

    def _generation_noted(self, generation: Generation, note: Note) -> None:
        data = note.data
        process = self._processes.get(data.get("aid", ""))
        if process is None:
            return
        match note.name:
            case "forked":
                process.has_pid(data["pid"])
            case "exited":
                process.has_exited(data["status"])
            case "not forked":
                process.failure = f"{process.name} could not be forked: {data['reason']}"
                process.has_exited(None)

    def _generation_lost(self, generation: Generation) -> None:
        # It may be a zombie still: its workers are orphans already.
        generation.alive = False
        if generation in self._generations:
            self._generations.remove(generation)
        for process in list(self._processes.values()):
            if process.generation is generation:
                process.is_lost()
        self._reap()
        self.changed()
        if generation is self.generation and not generation.ending and not self.stopping:
            if generation.report is None:
                return  # it could not load: whoever waits for that is told
            logger.error(
                "%s has died: its workers go on, and another one is started", generation.title
            )
            self.create_task(self._replace_fork_server())

    async def _replace_fork_server(self) -> None:
        retry = _RETRY_FIRST
        async with self._reloading:
            while not self.stopping and not self.generation.alive:
                try:
                    self.generation = await self._load_next()
                except (ReloadFailed, OSError) as exc:
                    logger.error(
                        "there is no fork server, and none can be started, so no worker can: %s",
                        exc,
                    )
                    if not self.was_ready:
                        self.give_up("the fork server has died, and cannot be started again")
                    await asyncio.sleep(retry)
                    retry = min(retry * 2, _RETRY_MOST)
        self._tell_files()
        for monitor in self.monitors:
            monitor.generation = self.generation
            monitor.fill()

    # Reload

    async def reload(self, progress: Progress = lambda _text: None) -> None:
        """Serve with the code and the settings that are there now.

        Raises ``ReloadFailed`` when they cannot: the old ones go on.
        """
        if self.stopping or not self.was_ready:
            raise ReloadFailed("the server is starting or stopping")
        async with self._reloading:
            self._notifier.reloading()
            try:
                await self._reload(progress)
            except (BootFailed, ImproperlyConfigured, OSError) as exc:
                self._log_failed_reload(exc)
                raise ReloadFailed(str(exc)) from exc
            except ReloadFailed as exc:
                self._log_failed_reload(exc)
                raise
            finally:
                self._notifier.ready(self._notify_text())

    def _log_failed_reload(self, exc: Exception) -> None:
        if self.stopping:
            logger.info("not reloaded: the server is stopping")
            return
        said = isinstance(exc, LoadFailed) and exc.said
        logger.error("not reloaded, everything goes on as it was: %s", "see above" if said else exc)

    async def _reload(self, progress: Progress) -> None:
        old = self.generation
        progress("loading")
        new = await self._load_next()
        assert new.report is not None
        reports = new.report["applications"]
        prepared = []
        try:
            for monitor, report in zip(self.monitors, reports, strict=True):
                listens = [Listen(*listen) for listen in report["listen"]]
                prepared.append((monitor, report, monitor.listeners.prepare(listens)))
        except ImproperlyConfigured:
            for monitor, _, binds in prepared:
                monitor.listeners.discard(binds)
            new.kill()
            raise
        renewed: list[Monitor] = []
        self._next = new
        try:
            for monitor, report, binds in prepared:
                renewed.append(monitor)
                await monitor.renew(new, report, binds, progress)
        except (BootFailed, ImproperlyConfigured) as exc:
            progress("going back")
            for monitor in renewed:
                await monitor.go_back(old, new)
            for monitor, _, binds in prepared:
                monitor.listeners.discard(binds)
            if not new.workers:
                new.end()  # else the end of the last one is its own
            raise ReloadFailed(str(exc)) from exc
        finally:
            self._next = None
        self.generation = new
        self._change_settings(new.report)
        for _, _, binds in prepared:
            self.create_task(self._close_dropped(binds.dropped, old))
        self._tell_files()
        if not old.workers and old.alive:
            old.end()
        logger.info("reloaded: generation %d serves", new.number)

    async def _close_dropped(self, dropped: Sequence[Any], old: Generation) -> None:
        """Close sockets that are not listened on any more, when nobody has them."""
        while dropped and old.workers and not self.stopping:
            await self.next_change()
        for bound in dropped:
            bound.close()

    def _change_settings(self, report: dict[str, Any]) -> None:
        before = {name: value for name, (value, _, _) in self._settings.items()}
        restart = [
            name
            for name, (value, _, change) in report["settings"].items()
            if change == "restart" and name in before and before[name] != value
        ]
        if restart:
            logger.warning(
                "these settings have changed and need a restart: %s", ", ".join(sorted(restart))
            )
        kept = {name: self._settings[name] for name in restart}
        self._settings = {**report["settings"], **kept}
        self._set_up_logging()

    async def _reload_and_tell(self, why: str) -> None:
        logger.info("%s: reloading", why)
        with contextlib.suppress(ReloadFailed):  # it is in the log
            await self.reload()

    async def _watch_files(self) -> None:
        await watch_files(
            lambda: [*(self.generation.report or {}).get("files", ())],
            lambda changed: self._reload_and_tell(f"{changed} has changed"),
        )

    def _tell_files(self) -> None:
        """What to remove when we are killed: nobody else will."""
        paths = [path for monitor in self.monitors for path in monitor.listeners.paths]
        if self._pidfile is not None:
            paths.append(str(self._pidfile.path))
        if self.setting("control") not in ("auto", "off"):
            paths.append(self.setting("control"))
        files = []
        for path in paths:
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                files.append([path, status.st_dev, status.st_ino])
        for generation in self._generations:
            generation.tell("files", {"files": files})

    # What the control socket asks for

    async def refresh(self) -> None:
        """Ask all workers for their figures; one that does not answer at once is left out."""
        serving = [p for p in self._processes.values() if p.slot is not None and p.serving]
        asked = [
            asyncio.ensure_future(process.ask("figures", "beat", 0, {})) for process in serving
        ]
        if asked:
            _, late = await asyncio.wait(asked, timeout=_FIGURES_PATIENCE)
            for task in late:
                task.cancel()

    def status(self) -> dict[str, Any]:
        """See ``control_messages.ServerStatus``."""
        state = "running"
        if self.stopping:
            state = "stopping"
        elif not self.was_ready:
            state = "starting"
        elif self._reloading.locked():
            state = "reloading"
        return {
            "name": self._title,
            "pid": os.getpid(),
            "version": __version__,
            "state": state,
            "ready": self.was_ready
            and not self.stopping
            and all(monitor.ready and not monitor.waiting for monitor in self.monitors),
            "generation": self.generation.number,
            "uptime": 0.0 if self.loop is None else self.loop.time() - self._started_at,
            "applications": [monitor.status() for monitor in self.monitors],
            "forkservers": [
                {"pid": generation.pid, "generation": generation.number}
                for generation in self._generations
            ],
        }

    def config(self) -> dict[str, dict[str, list[Any]]]:
        """Application -> setting -> [value, where it came from]."""
        return {
            monitor.name: {
                name: [value, origin] for name, (value, origin, _) in monitor.settings.items()
            }
            for monitor in self.monitors
        }

    async def scale(self, workers: int, application: str | None = None) -> None:
        """Have so many workers of ``application``, by default of the only one.

        Returns when that is so. Raises ``ImproperlyConfigured``.
        """
        names = [monitor.name for monitor in self.monitors]
        if application is None and len(names) != 1:
            raise ImproperlyConfigured(f"say of which application: {', '.join(names)}")
        chosen = [m for m in self.monitors if application in (None, m.name)]
        if not chosen:
            raise ImproperlyConfigured(
                f"there is no application {application!r}: there are {', '.join(names)}"
            )
        await chosen[0].scale(workers)

    # Liveness

    async def _watch_workers(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            timeouts = [float(m.setting("timeout")) for m in self.monitors]
            shortest = min([t for t in timeouts if t], default=_LOOK * _LOOKS)
            pause = min(_LOOK, shortest / _LOOKS)
            due = loop.time() + pause
            await asyncio.sleep(pause)
            now = loop.time()
            for monitor in self.monitors:
                monitor.check_liveness(now, max(0.0, now - due))

    async def _watchdog(self, interval: float) -> None:
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(interval)

    # Signals

    def _handle_signals(self) -> None:
        assert self.loop is not None
        for name, handler in _SIGNALS.items():
            self.loop.add_signal_handler(getattr(signal, name), handler, self, name)
        let_signals_through()

    def _on_stop_signal(self, name: str) -> None:
        again = self._stopping is not None and self._stopping.is_set()
        logger.info("%s%s", name, " again: stopping at once" if again else ": stopping gracefully")
        self.stop()

    def _on_quit(self, name: str) -> None:
        logger.info("%s: stopping at once", name)
        self.stop(graceful=False)

    def _on_reload(self, name: str) -> None:
        if self.was_ready and not self.stopping:
            self.create_task(self._reload_and_tell(name))
        else:
            logger.info("%s: not now, the server is starting or stopping", name)

    def _on_reopen(self, name: str) -> None:
        reopen_logs()
        logger.info("%s: log files were reopened", name)
        for process in self._processes.values():
            process.tell("reopen logs")
        for generation in self._generations:
            generation.tell("reopen logs")

    def _on_more_or_fewer(self, name: str) -> None:
        step = 1 if name == "SIGTTIN" else -1
        for monitor in self.monitors:
            workers = monitor.wanted + step
            if workers < 1:
                logger.info("%s: %s keeps its last worker", name, monitor.name)
            else:
                logger.info("%s: %s gets %d workers", name, monitor.name, workers)
                self.create_task(monitor.scale(workers))

    def _on_abort(self, name: str) -> None:
        self.create_task(self._log_stacks(name))

    async def _log_stacks(self, name: str) -> None:
        for process in list(self._processes.values()):
            stacks = await process.dump()
            if not process.alive:
                continue
            logger.info("%s: the stacks of %s:\n%s", name, process.title, stacks or "no answer")

    def _on_child(self, name: str) -> None:
        self._reap()

    def _on_nothing(self, name: str) -> None:
        """Not even the default, which would end us."""


_SIGNALS: dict[str, Callable[[Arbiter, str], None]] = {
    "SIGTERM": Arbiter._on_stop_signal,  # noqa: SLF001 - this is its own table
    "SIGINT": Arbiter._on_stop_signal,  # noqa: SLF001
    "SIGQUIT": Arbiter._on_quit,  # noqa: SLF001
    "SIGHUP": Arbiter._on_reload,  # noqa: SLF001
    "SIGUSR1": Arbiter._on_reopen,  # noqa: SLF001
    "SIGUSR2": Arbiter._on_nothing,  # noqa: SLF001
    "SIGTTIN": Arbiter._on_more_or_fewer,  # noqa: SLF001
    "SIGTTOU": Arbiter._on_more_or_fewer,  # noqa: SLF001
    "SIGABRT": Arbiter._on_abort,  # noqa: SLF001
    "SIGCHLD": Arbiter._on_child,  # noqa: SLF001
}


class RootArbiter(Arbiter):
    """What ``pulsar.arbiter`` makes: an arbiter without an application.

    :param run: forks the fork server, and has the arbiter ``lead``; returns the exit code
    """

    def __init__(self, run: Callable[[RootArbiter], int], **options: Any) -> None:
        super().__init__([], **options)
        self._run = run

    def start(self) -> None:
        """Run until stopped by a signal or by ``stop``; ends the process with code 3 if it cannot.

        Raises ``RuntimeError`` inside a running loop, and ``ImproperlyConfigured`` where
        there are no processes to be forked.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("arbiter().start() blocks, and an event loop runs here")
        code = self._run(self)
        if code:
            raise SystemExit(code)


def _runs_in(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


@command()
async def spawn_process(
    request: CommandRequest, payload: bytes, name: str | None = None
) -> tuple[str, str]:
    """For ``spawn``: a process for an actor, started by the arbiter."""
    actor = request.actor
    if not isinstance(actor, Arbiter):
        raise ActorGone("only the arbiter starts processes")
    return await actor.spawn_process(payload, name)
