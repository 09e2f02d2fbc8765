"""A server that is a program of its own, started by its test as ``pulsar serve`` starts it.

Owns: ``ProgramServer``: the process, when it is ready, and what it has logged.
Leaves: serving to ``cli``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from ..actors.control_client import Address, ControlClient, connect, discover
from ..actors.control_messages import LINUX, ServerStatus
from ..apps.socket import settings as _socket  # noqa: F401 - declares them
from ..apps.wsgi import settings as _wsgi  # noqa: F401 - declares them
from ..config import Config
from ..config.setting import PREFIX
from ..errors import ImproperlyConfigured
from .server import DEFAULTS, PATIENCE, Server

__all__ = ["ProgramServer"]

# Should its test be killed, the server goes, too. So it must not be started by a thread that
# ends before the test does.
_PROGRAM = """
from pulsar.system import end_with_parent
end_with_parent(True)
from pulsar.cli import main
main()
"""

# Variables of ours that would change what is tested.
_FOREIGN = (PREFIX, "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "WEB_CONCURRENCY")

# How we hear of errors and addresses.
_OURS = ("control", "log_file", "log_format")

# Seconds between looks whether it has ended instead of being ready.
_LOOK = 0.1


class ProgramServer(Server):
    """Runs ``pulsar serve TARGET``; see ``pulsar.testing.serve``."""

    def __init__(self, target: str, settings: dict[str, Any]) -> None:
        super().__init__()
        for name in _OURS:
            if name in settings:
                raise ImproperlyConfigured(f"{name} cannot be given: pulsar.testing needs it")
        workers = {"workers": 1, "concurrency": "process"}
        self._target = target
        self._cfg = Config(
            apps=("socket", "wsgi"), **{**DEFAULTS, **workers, "log_format": "json", **settings}
        )
        if not self._cfg.workers or self._cfg.concurrency != "process":
            raise ImproperlyConfigured(
                "what is named by a text is served by worker processes: to serve without, give "
                "the thing itself"
            )
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._errors: list[BaseException] = []
        # How many bytes of the log were read, and what in them was no record.
        self._seen, self._text = 0, ""

    @property
    def pid(self) -> int:
        """The process id of the arbiter."""
        assert self._process is not None
        return self._process.pid

    def take_errors(self) -> list[BaseException]:
        """See ``Server``."""
        self._read_log()
        taken, self._errors = self._errors, []
        return taken

    def _start(self) -> None:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pulsar-")))
            ready = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            ready.bind(str(directory / "ready"))
            ready.settimeout(_LOOK)
            control = "auto" if LINUX else str(directory / "control")
            self._seen, self._text = 0, ""
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - until the end of the server
            self._process = subprocess.Popen(  # noqa: S603 - the target is the test's own
                [sys.executable, "-c", _PROGRAM, self._target],
                env=self._environment(NOTIFY_SOCKET=ready.getsockname(), PULSAR_CONTROL=control),
                stdin=subprocess.DEVNULL,
                stderr=self._log,
                # What the terminal says to the tests is not for the server.
                process_group=0,
            )
            try:
                self._await_ready(ready)
                with self._connect(Address(control)) as client:
                    self._look(client)
            except BaseException:
                self._kill()
                raise

    async def _start_here(self) -> None:
        await asyncio.to_thread(self._start)

    async def _stop_here(self, graceful: bool) -> None:
        await asyncio.to_thread(self._stop, graceful)

    def _stop(self, graceful: bool) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM if graceful else signal.SIGQUIT)
        try:
            code = self._process.wait(self._cfg.graceful_timeout + PATIENCE)
        except BaseException:
            self._kill()
            raise
        self._close()
        if code:
            raise RuntimeError(f"{self._target} has ended with code {code}:\n{self._text}")

    def _await_ready(self, ready: socket.socket) -> None:
        assert self._process is not None
        # It has one deadline for the import, and one for the start of workers.
        deadline = time.monotonic() + 2 * self._cfg.boot_timeout + PATIENCE
        while True:
            with suppress(TimeoutError):
                if b"READY=1" in ready.recv(4096):
                    return
            code = self._process.poll()
            self._read_log()
            if code is not None:
                raise ImproperlyConfigured(
                    f"{self._target} has ended with code {code}, and does not serve:\n{self._text}"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._target} does not start:\n{self._text}")

    def _connect(self, address: Address) -> ControlClient:
        if LINUX:
            address = next(one for one in discover() if one.pid == self.pid)
        return connect(address, PATIENCE)

    def _look(self, client: ControlClient) -> None:
        status = ServerStatus.of(client.request("status", timeout=PATIENCE))
        self._serves_at([name for one in status.applications for name in one.addresses])
        config = client.request("config", timeout=PATIENCE)
        self.secure = any(one.get("cert_file", [None])[0] for one in config.values())

    def _environment(self, **variables: str) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        # What can be imported here can be imported there.
        found["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        for name, setting in self._cfg.settings.items():
            if self._cfg.is_set(name):
                found[setting.variable] = _text(self._cfg.get(name))
        return {**found, **variables}

    def _kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._read_log()
        assert self._log is not None
        self._log.close()

    def _read_log(self) -> None:
        """Read what is new in the log, and log it here."""
        if self._log is None or self._log.closed:
            return
        # The position in the file is the server's, where it writes on.
        size = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), size - self._seen, self._seen)
        whole = data[: data.rfind(b"\n") + 1]
        self._seen += len(whole)
        for line in whole.decode(errors="backslashreplace").splitlines():
            self._hear(line)

    def _hear(self, line: str) -> None:
        try:
            record = json.loads(line)
            level = logging.getLevelNamesMapping()[record["level"].upper()]
            logger, message = logging.getLogger(record["logger"]), record["message"]
        except (ValueError, KeyError, TypeError):
            self._text += f"{line}\n"
            sys.stderr.write(f"{line}\n")
            return
        if "exception" in record:
            message = f"{message}\n{record['exception']}"
        if level >= logging.ERROR:
            self._errors.append(RuntimeError(message))
        logger.log(level, "%s (process %s)", message, record.get("pid"))


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
