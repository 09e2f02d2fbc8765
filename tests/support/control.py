"""A server to control that serves nothing: what its control socket asks for, it only notes.

Owns: ``Fake``, the arbiter's part; ``controlled``, a process of its own with one;
``only``, which hides other people's servers from ``discover``.
Leaves: what is asked, and how, to the tests.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from pulsar.actors import control_client
from pulsar.actors.control import ControlServer
from pulsar.errors import ImproperlyConfigured, ReloadFailed
from tests.support.process import ServerProcess

ROOT = Path(__file__).parents[2]


class Fake:
    """Does at once what it is asked for, and keeps it in ``calls``.

    ``failure`` is the text with which reloads fail, ``gate`` what a reload waits for.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        applications: Collection[str] = ("echo",),
        ready: bool = True,
        failure: str = "",
    ) -> None:
        self.name = name
        self.workers = dict.fromkeys(applications, 2)
        self.ready = ready
        self.failure = failure
        self.gate: asyncio.Event | None = None
        self.generation = 1
        self.calls: list[str] = []
        self.changed = asyncio.Condition()
        self.stopped = asyncio.Event()

    async def refresh(self) -> None:
        """Its figures do not change."""

    def status(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pid": os.getpid(),
            "version": "1.2.3",
            "state": "running",
            "ready": self.ready,
            "generation": self.generation,
            "uptime": 11107.5,
            "applications": [
                self._application(*application) for application in self.workers.items()
            ],
            "forkservers": [{"pid": 4000, "generation": self.generation}],
        }

    def _application(self, name: str, workers: int) -> dict[str, Any]:
        slots = [
            {
                "slot": slot,
                "pid": 5000 + slot,
                "state": "running",
                "generation": self.generation,
                "uptime": 62.0,
                "connections": 12,
                "requests": 34567,
                "lag": 0.0004,
                "memory": 32 * 2**20,
            }
            for slot in range(workers)
        ]
        if slots:
            unknown = ("pid", "uptime", "connections", "requests", "lag", "memory")
            slots[-1] |= {"state": "starting", **dict.fromkeys(unknown)}
        return {
            "name": name,
            "workers": workers,
            "ready": max(0, workers - 1),
            "addresses": ["127.0.0.1:8060", "[::1]:8060"],
            "restarts": int(workers > 0),
            "last_failure": "slot 1: killed by SIGKILL" if workers else None,
            "slots": slots,
        }

    def config(self) -> dict[str, dict[str, list[Any]]]:
        return {
            name: {
                "workers": [workers, "flag --workers"],
                "bind": [["127.0.0.1:8060"], "default"],
                "config": [None, "default"],
            }
            for name, workers in self.workers.items()
        }

    async def reload(self, progress: Callable[[str], None]) -> None:
        await self._note("reload")
        progress(f"generation {self.generation + 1} starts")
        if self.gate is not None:
            await self.gate.wait()
        if self.failure:
            raise ReloadFailed(self.failure)
        self.generation += 1
        progress(f"generation {self.generation} serves")
        await self._note("reloaded")

    async def scale(self, workers: int, application: str | None) -> None:
        if application is None and len(self.workers) > 1:
            raise ImproperlyConfigured("say which application: echo, chat")
        name = next(iter(self.workers)) if application is None else application
        if name not in self.workers:
            raise ImproperlyConfigured(f"there is no application {name!r}")
        if self.gate is not None:
            await self.gate.wait()
        self.workers[name] = workers
        await self._note(f"scale {name} {workers}")

    def stop(self, graceful: bool = True) -> None:
        self.calls.append(f"stop {graceful}")
        self.stopped.set()

    async def until(self, call: str, count: int = 1) -> None:
        """Wait until ``call`` was made ``count`` times."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.calls.count(call) >= count)

    async def _note(self, call: str) -> None:
        async with self.changed:
            self.calls.append(call)
            self.changed.notify_all()


def controlled(name: str = "fake", where: str = "auto", **options: Any) -> ServerProcess:
    """A process with a ``Fake`` and a control socket, to be entered.

    ``deaf`` lets it ignore the order to stop; the rest are arguments of ``Fake``.
    """
    arguments = json.dumps({"name": name, "where": where, **options})
    return ServerProcess("-m", "tests.support.control", arguments, cwd=ROOT)


def only(monkeypatch: pytest.MonkeyPatch, *pids: int) -> None:
    """Let ``discover`` find the sockets that are named after these processes, only."""
    endings = tuple(f"/{pid}" for pid in pids)

    class Table:
        def read_text(self, errors: str) -> str:
            lines = Path("/proc/net/unix").read_text(errors=errors).splitlines()
            return "\n".join(line for line in lines if line.endswith(endings))

    monkeypatch.setattr(control_client, "_TABLE", Table())


async def _serve(where: str, deaf: bool, options: dict[str, Any]) -> None:
    fake = Fake(**options)
    server = ControlServer(fake, where, fake.name)
    ended = asyncio.Event() if deaf else fake.stopped
    for number in (signal.SIGTERM, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await server.start()
    sys.stderr.write(f"{fake.name} serves on {server.address}\n")
    await ended.wait()
    await server.close()


def _main() -> None:
    options = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO)
    asyncio.run(_serve(options.pop("where"), options.pop("deaf", False), options))


if __name__ == "__main__":
    _main()
