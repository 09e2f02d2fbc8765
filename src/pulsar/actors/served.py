"""What runs an application asks of it: the seam between this floor and the ones above.

Owns: ``Served``, ``Listen`` and ``Listening``, the exit codes.
Leaves: doing it to ``pulsar.application`` and the apps.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ..config import Config

__all__ = [
    "BAD_USAGE",
    "BOOT_FAILED",
    "NOT_LOADABLE",
    "Listen",
    "Listening",
    "ServeAlone",
    "Served",
    "plain_settings",
]

# Exit codes: of a command line, an environment or a file that cannot be used; and those
# of gunicorn.
BAD_USAGE = 2
BOOT_FAILED = 3
NOT_LOADABLE = 4


class ServeAlone(Exception):  # noqa: N818 - it is no error
    """What was loaded wants no workers, but to be served by the process that was started."""


class Listen(NamedTuple):
    """One address that an application wants to listen on; plain data."""

    # As parse_bind understands it.
    bind: str
    datagram: bool = False
    backlog: int = 2048
    # A socket of its own for each worker slot.
    reuse_port: bool = False


class Listening(NamedTuple):
    """A socket that an application listens on."""

    sock: socket.socket
    bind: str
    # It never speaks TLS.
    plain: bool = False
    # Somebody else may go on listening on it: it was inherited.
    foreign: bool = False


class Served(Protocol):
    """An application, to those that run it."""

    cfg: Config

    @property
    def name(self) -> str:
        """The application's name."""

    def prepare(self) -> None:
        """Do what takes privileges that are about to be given up."""

    # In the process that supervises it, where its code is there

    async def monitor_start(self, monitor: Any) -> None:
        """Before any worker: in one process, bind; in a tree, that has been done."""

    async def monitor_stop(self, monitor: Any) -> None:
        """After all workers."""

    def started(self) -> None:
        """It is served now."""

    # In the process that serves it

    async def worker_start(self, worker: Any) -> None:
        """Serve."""

    async def worker_stop(self, worker: Any, timeout: float) -> None:
        """Stop serving within ``timeout`` seconds."""

    # One process

    async def reload(self) -> None:
        """Take new settings that may change while serving."""

    def description_lines(self) -> list[str]:
        """What to log when it is served."""

    # A process tree

    def before_fork(self) -> None:
        """Do once, in the fork server, what all workers would do; in a worker nothing."""

    def describe(self) -> dict[str, Any]:
        """What the arbiter must know, as plain data: see ``Application.describe``."""

    def ready_in_fork_server(self) -> None:
        """The tree is ready; called in the fork server, when the arbiter has no code."""

    def forked(self, worker: Any) -> None:
        """Called first thing in a new worker process."""

    def inherit(self, listening: Sequence[Listening], balance: Any) -> None:
        """Take the sockets to listen on, before ``worker_start``."""

    async def adopt(self, listening: Sequence[Listening]) -> None:
        """Listen on these, too: they belong to a worker that is not there."""

    async def release(self, listening: Sequence[Listening]) -> None:
        """Listen on these no more; the caller closes them."""

    async def worker_hook(self, name: str, worker: Any) -> None:
        """Run the user's ``on_worker_start`` or ``on_worker_stop``."""

    async def stop_listening(self, binds: Sequence[str] | None) -> None:
        """Leave the sockets of these binds, or of all, to those who go on listening on them."""

    def figures(self) -> dict[str, int]:
        """Counters for the arbiter: ``connections``, ``requests``."""

    def in_hand(self) -> list[str]:
        """A line for each request that is being served."""


def plain_settings(cfg: Config) -> dict[str, list[Any]]:
    """Each setting as plain data: its value, where that came from, how it may change."""
    return {
        name: [
            "***" if setting.secret and value is not None else _plain(value),
            cfg.origin(name),
            setting.change,
        ]
        for name, setting in cfg.settings.items()
        for value in (cfg.get(name),)
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return repr(value)
