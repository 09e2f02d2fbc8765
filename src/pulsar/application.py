"""Applications: something to serve, its settings, and ``start``.

Owns: ``Application``, ``MultiApp`` and ``get_application``.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from .actors.forkserver import Loaded
from .actors.served import BAD_USAGE, BOOT_FAILED, Listening, plain_settings
from .actors.single import SingleProcess
from .actors.tree import can_fork, is_fork_server, run_tree
from .config import Config, render_config
from .errors import ImproperlyConfigured
from .events import EventHandler
from .log import setup_logging

if TYPE_CHECKING:
    from .actors.arbiter import Arbiter

__all__ = ["Application", "MultiApp", "get_application"]

logger = logging.getLogger("pulsar.server")

# The applications that run in this process, by name.
running: dict[str, Application] = {}

# Functions of the user's that an application calls: see Application.
HOOKS = ("when_ready", "post_fork", "on_worker_start", "on_worker_stop")


class Application(EventHandler):
    """Something to serve, with settings. ``start`` serves it until it is stopped.

    One-time events: ``start``, when it is being served; ``stop``, when it no longer is.

    :param callable: what is served; a subclass says what it accepts
    :param load_config: False: ``start`` reads no command line, environment or file
    :param name: for logs and ``get_application``; by default the class's, in lower case
    :param description: for ``--help``; by default the class's docstring
    :param when_ready: called with the application when all workers serve, in the
        process of the arbiter; in the fork server when that alone has the code
    :param post_fork: called with the worker first thing in each worker process
    :param on_worker_start: called with the worker before it serves; plain or ``async``
    :param on_worker_stop: called with the worker when it serves no more; plain or ``async``
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
        self._hooks = {hook: params.pop(hook) for hook in HOOKS if hook in params}
        doc = inspect.getdoc(type(self)) or ""
        self.cfg = Config(
            apps=self.cfg_apps, description=description or doc.partition("\n")[0], **params
        )
        # Reads flags, environment and file into a Config: once now, again at a reload.
        self._read: Callable[[Config], None] = _read_nothing
        self._runner: SingleProcess | Arbiter | None = None

    @property
    def name(self) -> str:
        """The application's name."""
        return str(self.cfg.name or type(self).__name__.lower())

    @property
    def title(self) -> str:
        """What its processes are called: ``process_name``, or the application's name."""
        return str(self.cfg.process_name or self.name)

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
            self.change_directory()
        except ImproperlyConfigured as exc:
            self._exit(BAD_USAGE, exc)
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
        return {"name": self.name, "running": self.name in running}

    def _serve(self) -> None:
        if self.name in running:
            raise ImproperlyConfigured(f"an application called {self.name} is running already")
        running[self.name] = self
        code = 0
        try:
            if self.serves_alone() and not is_fork_server():
                self._runner = SingleProcess(self)
                self._runner.run()
            else:
                code = self._run_tree()
        finally:
            self._runner = None
            del running[self.name]
            if not self.fired_event("stop"):
                self.fire_event("stop")
        if code:
            raise SystemExit(code)

    def loaded(self) -> Loaded:
        """What the fork server serves."""
        return Loaded([self], self.title, plain_settings(self.cfg))

    def _run_tree(self) -> int:
        return run_tree(
            self.loaded,
            self.cfg,
            [self],
            leads=self._led_by,
            title=self.name,
            prepare=self.prepare,
        )

    def _led_by(self, root: Arbiter) -> None:
        self._runner = root

    def serves_alone(self) -> bool:
        """Whether one process serves, without an arbiter and workers.

        Raises ``ImproperlyConfigured`` when workers are asked for and cannot be had.
        """
        cfg = self.cfg
        if cfg.concurrency == "thread" or not cfg.workers:
            return True
        if can_fork():
            return False
        if cfg.workers > 1 or cfg.origin("concurrency") != "default":
            raise ImproperlyConfigured(
                "worker processes need the main thread of a system with fork: "
                "set concurrency to thread"
            )
        return True

    def warn_of_the_command_line(self) -> None:
        """Warn of what is not called when the arbiter has not got the code."""
        for name in ("monitor_start", "monitor_stop"):
            if not getattr(type(self), name).__module__.startswith("pulsar."):
                self.cfg.warnings.append(
                    f"{type(self).__name__}.{name} is not called: started from the command line, "
                    "the arbiter does not import the application; run a script that starts it"
                )

    def change_directory(self) -> None:
        """Go to ``chdir``, if it is set. Raises ``ImproperlyConfigured``."""
        directory = self.cfg.chdir
        if directory is not None:
            try:
                os.chdir(directory)
            except OSError as exc:
                raise ImproperlyConfigured(
                    f"cannot change to the directory {directory}: {exc.strerror}"
                ) from exc

    def _exit(self, code: int, exc: Exception) -> NoReturn:
        sys.stderr.write(f"{self.name}: error: {exc}\n")
        raise SystemExit(code)

    # What the runner calls

    def prepare(self) -> None:
        """Called before privileges are dropped, for what needs them. Does nothing here."""

    def before_fork(self) -> None:
        """Called in the fork server, to do once what all workers would do. Does nothing here.

        Raises ``ImproperlyConfigured`` for what no worker could serve.
        """

    def describe(self) -> dict[str, Any]:
        """What the arbiter must know of this application, as plain data.

        ``name``; ``settings``, see ``plain_settings``; ``listen``, the addresses to
        listen on, see ``Listen``; ``secure``, whether they speak TLS; ``alone``, whether
        it wants no workers.
        """
        return {
            "name": self.name,
            "settings": plain_settings(self.cfg),
            "listen": [],
            "secure": False,
            "alone": self.serves_alone(),
        }

    def forked(self, worker: Any) -> None:
        """Called first thing in a worker process."""
        running[self.name] = self
        if "post_fork" in self._hooks:
            self._hooks["post_fork"](worker)

    def ready_in_fork_server(self) -> None:
        """Called in the fork server when all workers serve, if the arbiter has no code."""
        if "when_ready" in self._hooks:
            try:
                self._hooks["when_ready"](self)
            except Exception:
                logger.exception("when_ready of %s failed", self.name)

    async def worker_hook(self, name: str, worker: Any) -> None:
        """Called to run ``on_worker_start`` and ``on_worker_stop``."""
        hook = self._hooks.get(name)
        if hook is not None:
            result = hook(worker)
            if inspect.isawaitable(result):
                await result

    def inherit(self, listening: Sequence[Listening], balance: Any) -> None:
        """Called in a worker with the sockets to listen on, before ``worker_start``."""

    async def adopt(self, listening: Sequence[Listening]) -> None:
        """Called to listen on sockets of a worker that is not there, too."""

    async def release(self, listening: Sequence[Listening]) -> None:
        """Called to listen on these sockets no more; the caller closes them."""

    async def stop_listening(self, binds: Sequence[str] | None) -> None:
        """Called to leave the sockets of these binds (None: all) to others who listen there."""

    def figures(self) -> dict[str, int]:
        """Counters that the arbiter collects: ``connections`` and ``requests``."""
        return {}

    def in_hand(self) -> list[str]:
        """A line for each request that is being served, for the log of a stuck worker."""
        return []

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
        self.ready_in_fork_server()

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
        if not {"log_level", "log_format", "log_file"}.isdisjoint(changed):
            setup_logging(cfg.log_level, cfg.log_format, cfg.log_file)


class MultiApp(Application):
    """Several applications in one process tree: one arbiter, workers for each of them.

    :param applications: what is served; or override ``build``
    :param params: settings of the tree, such as ``pidfile``, ``control``, ``log_level``

    The command line, the environment and the file give the settings that every
    application has, such as ``workers``, for all of them; what belongs to one, such as
    ``bind``, is given in code.
    """

    def __init__(
        self,
        *applications: Application,
        load_config: bool = True,
        name: str | None = None,
        description: str | None = None,
        **params: Any,
    ) -> None:
        super().__init__(None, load_config, name=name, description=description, **params)
        self._given = applications
        self._applications: list[Application] | None = None

    def build(self) -> Iterable[Application]:
        """The applications; by default those that were given."""
        return self._given

    @property
    def applications(self) -> list[Application]:
        """The applications, with what was given from outside in their settings.

        Raises ``ImproperlyConfigured`` when there are none, or two have one name.
        """
        if self._applications is None:
            self._applications = list(self.build())
            names = [application.name for application in self._applications]
            if not names:
                raise ImproperlyConfigured(f"{self.name} has no applications")
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ImproperlyConfigured(
                    f"{self.name} has two applications called {twice[0]}: give one another name"
                )
            for application in self._applications:
                given = [name for name in self.cfg if self.cfg.is_set(name) and name != "name"]
                application.cfg.take(self.cfg, given)
        return self._applications

    def check(self) -> None:
        """Look at each application."""
        for application in self.applications:
            application.check()

    def serves_alone(self) -> bool:
        """See ``Application.serves_alone``: one process cannot serve several applications."""
        if super().serves_alone():
            raise ImproperlyConfigured(
                f"{self.name} serves {len(self.applications)} applications: it needs workers"
            )
        return False

    def _run_tree(self) -> int:
        applications = self.applications
        for application in applications:
            running[application.name] = application
        try:
            return run_tree(
                self.loaded,
                self.cfg,
                applications,
                leads=self._led_by,
                title=self.name,
                prepare=self.prepare,
            )
        finally:
            for application in applications:
                running.pop(application.name, None)

    def prepare(self) -> None:
        """Prepare each application."""
        for application in self.applications:
            application.prepare()

    def loaded(self) -> Loaded:
        """What the fork server serves."""
        return Loaded(self.applications, self.title, plain_settings(self.cfg))

    def started(self) -> None:
        """Called by nobody: it is its applications that are started."""


async def get_application(name: str) -> Application:
    """The application called ``name`` that runs in this process.

    Raises ``LookupError`` when there is none.
    """
    try:
        return running[name]
    except KeyError:
        known = ", ".join(sorted(running)) or "none"
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
