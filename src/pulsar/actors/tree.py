"""The process tree from outside: how a program becomes its arbiter.

Owns: ``run_tree``, ``arbiter``, and who of the processes that come back from a fork
does what.
Leaves: the work to ``Arbiter``, ``ForkServer`` and ``live``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..errors import ImproperlyConfigured
from ..log import setup_logging
from ..privileges import drop_privileges, resolve_identity
from ..system import end_with_parent, import_event_loop
from .actor import ACTOR_HOOKS, Actor, current_actor
from .forkserver import ForkServer, Loaded
from .generation import fork_first, inherited, is_fork_server
from .notify import Notifier
from .reloader import require_watchfiles
from .served import ServeAlone, Served, plain_settings
from .signals import hold_signals, let_signals_through

if TYPE_CHECKING:
    from .arbiter import Arbiter

# Modules of the library that argparse, logging and sockets import when they need them.
_IMPORTED_LATE = ("encodings.idna", "linecache", "shutil", "tempfile", "tokenize")

__all__ = ["ServeAlone", "arbiter", "can_fork", "is_fork_server", "run_tree"]


def can_fork() -> bool:
    """True where there can be worker processes: not on Windows, and in the main thread alone."""
    return hasattr(os, "fork") and threading.current_thread() is threading.main_thread()


def run_tree(
    load: Callable[[], Loaded],
    cfg: Config,
    applications: Sequence[Served] | None = None,
    *,
    root: Arbiter | None = None,
    leads: Callable[[Arbiter], None] = lambda _root: None,
    title: str = "pulsar",
    prepare: Callable[[], None] | None = None,
) -> int:
    """Be the arbiter of a process tree until it ends; returns the exit code.

    In a process that was started to be a fork server it does not return at all.

    :param load: what is served; called in the fork server, where it may import
    :param cfg: the settings that are needed before ``load`` is called
    :param applications: what is served, where it exists already
    :param root: the arbiter; by default a new one, which has not got the code
    :param leads: called with the arbiter before it leads
    :param title: what a new one is called until that is known
    :param prepare: called before privileges are dropped, for what needs them

    Raises ``ImproperlyConfigured``, and ``ServeAlone`` when what was loaded wants no
    workers.
    """
    owner = resolve_identity(cfg.user, cfg.group)

    def load_without_privileges() -> Loaded:
        if prepare is not None:
            prepare()
        if owner is not None:
            # What we, and what we use, import late: later it may be out of reach.
            for name in _IMPORTED_LATE:
                import_module(name)
            import_event_loop(cfg.event_loop)
        drop_privileges(cfg.user, cfg.group)
        # Who is importing hears nothing of the arbiter's end. After the drop, which
        # takes it back.
        end_with_parent(True)
        setup_logging(cfg.log_level, cfg.log_format, cfg.log_file)
        return load()

    def fork_server(control: Any, generation: int = 1, stderr: int | None = None) -> ForkServer:
        # Only here: the arbiter is no worker.
        from .worker import live

        return ForkServer(
            control,
            load_without_privileges,
            live,
            # What exists already need not be imported.
            preload=cfg.preload or applications is not None,
            generation=generation,
            stderr=stderr,
        )

    given = inherited()
    if given is not None:
        fork_server(given.control, given.generation, given.stderr).run()
    if cfg.reload:
        require_watchfiles()
    setup_logging(cfg.log_level, cfg.log_format, cfg.log_file, owner=owner)
    # Before the fork: it takes what is for the arbiter alone out of the environment.
    notifier = Notifier() if root is None else None
    others = [thread.name for thread in threading.enumerate() if thread.name != "MainThread"]
    if others:
        cfg.warnings.append(
            f"the script has started threads ({', '.join(others)}), which do not exist in the "
            "workers: start them in on_worker_start"
        )
    # Until the arbiter has its handlers; the fork server lets them through at once.
    hold_signals()
    try:
        sock, pid = fork_first(lambda control: fork_server(control).run())
        # Only now: while we import it, the fork server loads the application, and no worker has
        # it in memory.
        from .arbiter import Arbiter

        if root is None:
            root = Arbiter(applications, cfg=cfg, title=title, notifier=notifier)
        leads(root)
        return root.lead(sock, pid)
    finally:
        let_signals_through()


def arbiter(cfg: Config | None = None, **params: Any) -> Actor:
    """The arbiter of this process; a new one, to ``start``, when there is none.

    :param cfg: settings
    :param params: hooks by the names of ``Actor``'s events; the rest is kept in
        ``arbiter().params``

    Raises ``RuntimeError`` in a process that has another actor: send a message to
    ``"arbiter"`` there.
    """
    from .arbiter import Arbiter, RootArbiter  # see run_tree

    actor = current_actor()
    if isinstance(actor, Arbiter):
        return actor
    if actor is not None and actor.name != "arbiter":
        root = getattr(actor, "arbiter", None)
        if isinstance(root, Arbiter):
            return root  # a monitor: it lives with the arbiter
        raise RuntimeError(
            f"{actor.name} is not in the arbiter's process: send a command to 'arbiter'"
        )
    hooks = {name: params.pop(name) for name in ACTOR_HOOKS if name in params}
    return RootArbiter(_run_without_application, cfg=cfg, hooks=hooks, params=params)


def _run_without_application(root: Arbiter) -> int:
    if not can_fork():
        raise ImproperlyConfigured(
            "an arbiter forks processes: it needs the main thread of a system with fork"
        )
    cfg = root.cfg
    title = str(cfg.process_name or cfg.name or "pulsar")
    settings = plain_settings(cfg)
    return run_tree(lambda: Loaded([], title, settings), cfg, [], root=root)
