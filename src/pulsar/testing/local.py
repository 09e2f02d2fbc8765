"""A server in the process of its test, in a thread or in the loop that runs.

Owns: ``LocalServer``: the order of start and stop, as ``SingleProcess`` has it, without what
belongs to a process: signals, the pid file, users, logging.
Leaves: serving to the application.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

from ..actors.actor import log_loop_error
from ..actors.single import SingleProcess
from ..application import Application, MultiApp, running
from ..apps.socket import SocketServer
from ..config import Config
from ..errors import ImproperlyConfigured
from ..protocols import TcpServer
from ..protocols.kinds import callable_name
from ..system import new_event_loop
from ..target import application_for
from .server import DEFAULTS, PATIENCE, ErrorLog, Server

__all__ = ["LocalServer"]

_TOO_LATE = "the server does not start within boot_timeout"

_served: list[Application] = []


class LocalServer(Server):
    """Serves ``app``, which may be served again afterwards; see ``pulsar.testing.serve``."""

    def __init__(self, app: Any, settings: dict[str, Any]) -> None:
        super().__init__()
        if settings.get("workers"):
            raise ImproperlyConfigured(
                "worker processes import what they serve: name it, as in "
                "serve('mymodule:thing', workers=2)"
            )
        self.applications = _applications(app, settings)
        self._settings = {**DEFAULTS, **settings, "workers": 0}
        self._log = ErrorLog()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event | None = None
        self._graceful = False
        # What happened after the start.
        self._failure: BaseException | None = None

    def take_errors(self) -> list[BaseException]:
        """See ``Server``."""
        return self._log.take()

    # In a thread

    def _start(self) -> None:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run,
            args=(started,),
            name=f"server {self.applications[0].name}",
            daemon=True,  # a loop that is stuck must not keep the tests from their end
        )
        self._thread.start()
        try:
            started.result(self._cfg().boot_timeout)
        except BaseException as exc:
            too_late = isinstance(exc, TimeoutError) and not started.done()
            if self._thread.is_alive() and self._loop is not None and self._task is not None:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._task.cancel)
            self._join(0.0)
            if too_late:
                raise TimeoutError(_TOO_LATE) from None
            raise

    def _run(self, started: Future[None]) -> None:
        cfg = self._cfg()
        factory = partial(new_event_loop, cfg.event_loop)
        try:
            with asyncio.Runner(debug=cfg.debug, loop_factory=factory) as runner:
                runner.get_loop().set_exception_handler(log_loop_error)
                runner.run(self._serve(lambda: started.set_result(None)))
        except BaseException as exc:
            if started.done():
                self._failure = exc
            else:
                started.set_exception(exc)

    def _stop(self, graceful: bool) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # it has ended by itself, and its loop is closed
            self._loop.call_soon_threadsafe(self._end, graceful)
        self._join(self._cfg().graceful_timeout if graceful else 0.0)
        if self._failure is not None:
            raise self._failure

    def _join(self, timeout: float) -> None:
        thread = self._thread
        assert thread is not None
        thread.join(timeout + PATIENCE)
        if thread.is_alive():
            frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001
            raise TimeoutError(
                "the server does not stop, and its thread is left behind; it is here:\n"
                + "".join(traceback.format_stack(frame))
            )

    # In the loop that runs

    async def _start_here(self) -> None:
        started = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._serve(lambda: started.set_result(None)))
        try:
            await asyncio.wait(
                {task, started},
                timeout=self._cfg().boot_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not started.done() and not task.done():
                raise TimeoutError(_TOO_LATE)
        except BaseException:
            task.cancel()
            await asyncio.wait({task})
            raise
        if not started.done():
            await task

    async def _stop_here(self, graceful: bool) -> None:
        assert self._task is not None
        self._end(graceful)
        await self._task

    # In the server's loop

    async def _serve(self, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ended, self._graceful, self._failure = asyncio.Event(), False, None
        self._log.open(threading.get_ident())
        try:
            async with AsyncExitStack() as stack:
                for application in self.applications:
                    await stack.enter_async_context(self._served(application))
                names = [name for one in self.applications for name in _addresses(one)]
                self._serves_at(names)
                self.secure = any(one.cfg.get("cert_file") for one in self.applications)
                started()
                await self._ended.wait()
        finally:
            self._log.close()

    @asynccontextmanager
    async def _served(self, application: Application) -> AsyncIterator[None]:
        if any(application is one for one in _served):
            raise ImproperlyConfigured(f"{application.name} is being served already")
        _served.append(application)
        # Tests may have two of one name; get_application gives the first.
        found = running.setdefault(application.name, application)
        kept, application.cfg = application.cfg, self._cfg(application)
        worker = _Worker(application, self._end)
        try:
            await application.monitor_start(worker)
            try:
                await application.worker_hook("on_worker_start", worker)
                await _start_worker(application, worker)
                try:
                    if not application.fired_event("start"):
                        application.started()
                    yield
                finally:
                    timeout = application.cfg.graceful_timeout if self._graceful else 0.0
                    await application.worker_stop(worker, timeout)
                    await application.worker_hook("on_worker_stop", worker)
            finally:
                await application.monitor_stop(worker)
        finally:
            application.cfg = kept
            _served.remove(application)
            if found is application:
                del running[application.name]
            if not application.fired_event("stop"):
                application.fire_event("stop")

    def _end(self, graceful: bool) -> None:
        assert self._ended is not None
        self._graceful = graceful and (self._graceful or not self._ended.is_set())
        self._ended.set()

    def _cfg(self, application: Application | None = None) -> Config:
        """The settings of an application under test, by default the first."""
        cfg = (application or self.applications[0]).cfg.copy()
        for name, value in self._settings.items():
            if name in cfg:
                cfg.set(name, value)
        return cfg


class _Worker(SingleProcess):
    """What an application under test takes for the worker that serves it."""

    def __init__(self, application: Application, end: Callable[[bool], None]) -> None:
        super().__init__(application)
        self.loop = asyncio.get_running_loop()
        self._end = end

    def stop(self, graceful: bool = True) -> None:
        """Stop serving; callable from any thread."""
        assert self.loop is not None
        with suppress(RuntimeError):  # the loop may be closed by now: then it has stopped
            self.loop.call_soon_threadsafe(self._end, graceful)


async def _start_worker(application: Application, worker: _Worker) -> None:
    if not isinstance(application, SocketServer):
        await application.worker_start(worker)
        return
    application.servers.clear()  # of the last time
    try:
        await application.worker_start(worker)
    except BaseException:
        for server in application.servers:
            await server.close(0.0)
        raise
    for server in application.servers:
        if isinstance(server, TcpServer):
            # Nobody sends one more request on a connection that the test has left open.
            server.close = partial(server.close, linger=0.0)  # type: ignore[method-assign]


def _applications(app: Any, settings: dict[str, Any]) -> list[Application]:
    given = {name: settings[name] for name in ("bind", "kind") if name in settings}
    application = application_for(app, callable_name(app), Config(apps=("socket",), **given))
    found = application.applications if isinstance(application, MultiApp) else [application]
    for name, value in settings.items():
        known = [one for one in found if name in one.cfg]
        # Where none has it, the first one says so.
        for one in known or found[:1]:
            one.cfg.copy().set(name, value)
    return found


def _addresses(application: Application) -> list[Any]:
    return application.addresses if isinstance(application, SocketServer) else []
