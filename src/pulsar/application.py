"""Applications: something to serve, its settings, and ``start``.

Owns: ``Application`` and ``get_application``.
Leaves: sockets to ``apps.socket``, running to ``actors``, settings to ``config``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from .actors.single import BOOT_FAILED, SingleProcess
from .config import Config, render_config
from .errors import ImproperlyConfigured
from .events import EventHandler
from .log import LOG_LEVELS

__all__ = ["Application", "get_application"]

logger = logging.getLogger("pulsar.server")

_running: dict[str, Application] = {}

# The exit code of a command line, an environment or a file that cannot be used.
USAGE = 2


class Application(EventHandler):
    """Something to serve, with settings. ``start`` serves it until it is stopped.

    One-time events: ``start``, when it is being served; ``stop``, when it no longer is.

    :param callable: what is served; a subclass says what it accepts
    :param load_config: False: ``start`` reads no command line, environment or file
    :param name: for logs and ``get_application``; by default the class's, in lower case
    :param description: for ``--help``; by default the class's docstring
    :param params: settings by name; flags, environment and file count more

    Raises ``ImproperlyConfigured`` for an unknown setting or a bad value.
    """

    ONE_TIME_EVENTS: ClassVar[tuple[str, ...]] = ("start", "stop")

    # The names under which settings are declared for this application.
    cfg_apps: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        callable: Any = None,
        load_config: bool = True,
        *,
        name: str | None = None,
        description: str | None = None,
        **params: Any,
    ) -> None:
        super().__init__()
        self.callable = callable
        self._load_config = load_config
        if name is not None:
            params["name"] = name
        doc = inspect.getdoc(type(self)) or ""
        self.cfg = Config(
            apps=self.cfg_apps, description=description or doc.partition("\n")[0], **params
        )
        # Reads flags, environment and file into a Config: once now, again at a reload.
        self._read: Callable[[Config], None] = _read_nothing
        self._runner: SingleProcess | None = None

    @property
    def name(self) -> str:
        """The application's name."""
        return str(self.cfg.name or type(self).__name__.lower())

    def load_config(
        self,
        argv: list[str] | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        namespace: argparse.Namespace | None = None,
    ) -> None:
        """Read flags, environment and file, as ``start`` does unless it was done before.

        :param argv: by default ``sys.argv[1:]``
        :param environ: by default ``os.environ``
        :param namespace: what a parser of yours made of the command line, instead of ``argv``

        Raises ``ImproperlyConfigured``; a bad flag ends the process with code 2.
        """
        if namespace is None:
            namespace = self.cfg.parser().parse_args(argv)
        flags, here = namespace, Path.cwd()

        def read(cfg: Config) -> None:
            # Relative paths are taken from here, at a reload too, when chdir has happened.
            with contextlib.chdir(here):
                cfg.load_namespace(flags, environ)

        read(self.cfg)
        self._read = read
        self._load_config = False

    def start(self) -> None:
        """Serve until stopped by a signal or by ``stop``.

        Ends the process, with a sentence on standard error, when it cannot: code 2
        for bad settings, 3 when serving cannot start. Raises ``RuntimeError``
        inside a running loop, which it would block, and the second time.
        """
        _refuse_running_loop(type(self).__name__)
        if self.fired_event("start"):
            raise RuntimeError(f"{self.name} has been started before: make another application")
        try:
            if self._load_config:
                self.load_config()
            if self.cfg.print_config:
                sys.stdout.write(render_config(self.cfg))
                return
            self._change_directory()
        except ImproperlyConfigured as exc:
            self._exit(USAGE, exc)
        try:
            if self.cfg.check:
                self.check()
                sys.stdout.write(f"{self.name}: settings and application are fine\n")
                return
            self._serve()
        except ImproperlyConfigured as exc:
            self._exit(BOOT_FAILED, exc)

    def stop(self, graceful: bool = True) -> None:
        """Make ``start`` return; callable from any thread. Does nothing when not started."""
        runner = self._runner
        if runner is not None:
            runner.stop(graceful)

    def check(self) -> None:
        """What ``--check`` looks at, beyond the settings. Raises ``ImproperlyConfigured``."""

    def info(self) -> dict[str, Any]:
        """What there is to know about this application, as plain data."""
        return {"name": self.name, "running": self.name in _running}

    def _serve(self) -> None:
        if self.name in _running:
            raise ImproperlyConfigured(f"an application called {self.name} is running already")
        self._warn_of_workers()
        _running[self.name] = self
        self._runner = SingleProcess(self)
        try:
            self._runner.run()
        finally:
            self._runner = None
            del _running[self.name]
            if not self.fired_event("stop"):
                self.fire_event("stop")

    def _change_directory(self) -> None:
        directory = self.cfg.chdir
        if directory is not None:
            try:
                os.chdir(directory)
            except OSError as exc:
                raise ImproperlyConfigured(
                    f"cannot change to the directory {directory}: {exc.strerror}"
                ) from exc

    def _warn_of_workers(self) -> None:
        cfg = self.cfg
        if cfg.concurrency == "process" and cfg.workers > 1:
            cfg.warnings.append(
                f"workers is {cfg.workers}, but this version serves from one process"
            )

    def _exit(self, code: int, exc: Exception) -> NoReturn:
        sys.stderr.write(f"{self.name}: error: {exc}\n")
        raise SystemExit(code)

    # What the runner calls

    async def monitor_start(self, monitor: Any) -> None:
        """Called where sockets are bound, before any worker starts. Does nothing here."""

    async def monitor_stop(self, monitor: Any) -> None:
        """Called when all workers have stopped. Does nothing here."""

    async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
        """Called where the application is served. Does nothing here."""

    async def worker_stop(self, worker: Any, timeout: float) -> None:
        """Called to stop serving within ``timeout`` seconds. Does nothing here."""

    def started(self) -> None:
        """Called when the application is served: fires ``start``."""
        self.fire_event("start")

    def description_lines(self) -> list[str]:
        """What to log when the application is served."""
        return [f"{self.name} is running"]

    async def reload(self) -> None:
        """Take the new values of settings that may change while serving.

        Raises ``ImproperlyConfigured`` when they cannot be used; then nothing changes.
        """
        fresh = self.cfg.fresh()
        self._read(fresh)
        changed = [name for name in fresh if fresh.get(name) != self.cfg.get(name)]
        live = [name for name in changed if fresh.settings[name].change == "live"]
        # Only what may change: the rest of the fresh values waits for a restart.
        new = self.cfg.copy()
        new.take(fresh, live)
        await self.apply_settings(new, live)
        self.cfg.take(fresh, live)
        logger.info("reloaded; settings that have changed: %s", ", ".join(live) or "none")
        restart = sorted(set(changed) - set(live))
        if restart:
            logger.warning("these settings have changed and need a restart: %s", ", ".join(restart))

    async def apply_settings(self, cfg: Config, changed: list[str]) -> None:
        """Act on ``changed`` settings, whose new values are in ``cfg``, while serving.

        Raises ``ImproperlyConfigured`` before anything has changed.
        """
        if "log_level" in changed:
            logging.getLogger("pulsar").setLevel(LOG_LEVELS[cfg.log_level])


async def get_application(name: str) -> Application:
    """The application called ``name`` that runs in this process.

    Raises ``LookupError`` when there is none.
    """
    try:
        return _running[name]
    except KeyError:
        known = ", ".join(sorted(_running)) or "none"
        raise LookupError(f"no application is called {name!r}; running: {known}") from None


def _read_nothing(cfg: Config) -> None:
    """For an application that takes nothing from outside."""


def _refuse_running_loop(name: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{name}.start() blocks, and an event loop runs here: await create_server() instead"
    )
