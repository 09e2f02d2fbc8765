"""One process that serves by itself: no arbiter, no workers.

Owns: ``SingleProcess``: the loop, the signals, and the order of start and stop.
Leaves: what is served to the application, through the few methods of ``Served``.

The process tree is the other way to run an application, through the same methods
of ``Served``: ``monitor_start`` where it is supervised, ``worker_start`` and
``worker_stop`` where it is served. Here one object plays both parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from typing import Any

from ..errors import ImproperlyConfigured
from ..log import reopen_logs, setup_logging
from ..pidfile import PidFile
from ..privileges import drop_privileges, resolve_identity
from ..system import new_event_loop, set_process_title
from .served import Served

__all__ = ["SingleProcess"]

logger = logging.getLogger("pulsar.server")


class SingleProcess:
    """Runs ``application`` on one loop in this process until it is told to stop.

    Signals, where this is the main thread: TERM and INT stop gracefully, a second
    one at once; QUIT stops at once; HUP reloads what may change while serving; USR1
    opens log files anew.
    """

    # The slot of a worker in the process tree; there is only this one.
    slot = 0
    generation = 1

    def __init__(self, application: Served) -> None:
        self.application = application
        self.cfg = application.cfg
        self.name = application.name
        # Anything that the application wants to keep with it, as with a worker.
        self.extra: dict[str, Any] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = False
        self._now: asyncio.Event | None = None
        self._reloading: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Serve until stopped.

        Raises ``ImproperlyConfigured`` when serving cannot start.
        """
        cfg = self.cfg
        owner = resolve_identity(cfg.user, cfg.group)
        setup_logging(cfg.log_level, cfg.log_format, cfg.log_file, owner=owner)
        for warning in cfg.warnings:
            logger.warning(warning)
        if cfg.process_name:
            set_process_title(cfg.process_name)
        self.application.prepare()
        pidfile = PidFile(cfg.pidfile) if cfg.pidfile else None
        if pidfile is not None:
            pidfile.create()
        factory = lambda: new_event_loop(cfg.event_loop)  # noqa: E731
        try:
            with asyncio.Runner(debug=cfg.debug, loop_factory=factory) as runner:
                runner.run(self._main())
        finally:
            if pidfile is not None:
                pidfile.remove()

    def stop(self, graceful: bool = True) -> None:
        """Stop serving; callable from any thread."""
        loop = self.loop
        if loop is not None:
            # The loop may be closed by now: then it has stopped.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop_now if not graceful else self._stop_soon)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        application = self.application
        try:
            with self._signals(self.loop):
                await application.monitor_start(self)
                drop_privileges(self.cfg.user, self.cfg.group)
                try:
                    await application.worker_hook("on_worker_start", self)
                    await application.worker_start(self)
                    for line in application.description_lines():
                        logger.info(line)
                    application.started()
                    await self._stop.wait()
                    await self._finish()
                finally:
                    await application.monitor_stop(self)
            logger.info("%s has stopped", self.name)
        finally:
            self.loop = None

    async def _finish(self) -> None:
        assert self._now is not None
        self._stopping = True
        timeout = 0.0 if self._now.is_set() else self.cfg.graceful_timeout
        stopping = asyncio.ensure_future(self.application.worker_stop(self, timeout))
        now = asyncio.ensure_future(self._now.wait())
        await asyncio.wait({stopping, now}, return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        if not stopping.done():
            await self.application.worker_stop(self, 0.0)
        await stopping
        await self.application.worker_hook("on_worker_stop", self)

    def _stop_soon(self) -> None:
        assert self._stop is not None
        self._stop.set()

    def _stop_now(self) -> None:
        assert self._now is not None
        self._now.set()
        self._stop_soon()

    # Signals

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Any:
        if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
            yield
            return
        handlers = {
            signal.SIGTERM: self._on_stop_signal,
            signal.SIGINT: self._on_stop_signal,
            signal.SIGQUIT: self._on_quit,
            signal.SIGHUP: self._on_reload,
            signal.SIGUSR1: self._on_reopen,
            # Of the process tree; what they do by default, ending us, nobody wants.
            signal.SIGUSR2: self._on_nothing,
            signal.SIGTTIN: self._on_nothing,
            signal.SIGTTOU: self._on_nothing,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler, number)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        assert self._stop is not None
        if self._stop.is_set():
            logger.info("%s again: stopping at once", number.name)
            self._stop_now()
        else:
            logger.info("%s: stopping gracefully", number.name)
            self._stop_soon()

    def _on_quit(self, number: signal.Signals) -> None:
        logger.info("%s: stopping at once", number.name)
        self._stop_now()

    def _on_reload(self, number: signal.Signals) -> None:
        logger.info("%s: reloading settings and certificates", number.name)
        if self._reloading is None and self.loop is not None:
            self._reloading = self.loop.create_task(self._reload())

    def _on_reopen(self, number: signal.Signals) -> None:
        reopen_logs()
        logger.info("%s: log files were reopened", number.name)

    def _on_nothing(self, number: signal.Signals) -> None:
        logger.info("%s: there are no workers", number.name)

    async def _reload(self) -> None:
        try:
            await self.application.reload()
        except ImproperlyConfigured as exc:
            logger.error("not reloaded, everything goes on as it was: %s", exc)
        except Exception:
            logger.exception("not reloaded, everything goes on as it was")
        finally:
            self._reloading = None

    def info(self) -> dict[str, Any]:
        """What there is to know about this process, as plain data."""
        return {"name": self.name, "pid": os.getpid(), "stopping": self._stopping}
