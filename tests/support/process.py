"""A server in a process of its own: started, waited for, stopped, and what it said.

Owns: ``ServerProcess``, and ``exclusive_port`` for the few that cannot take any port.
Leaves: what is served, and what a client says to it, to the tests.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# Seconds for anything that a healthy server does at once, on a machine that has other work.
PATIENCE = 30.0

# Flags for a server with workers, as by default, and for one in a single process.
MODES = [
    pytest.param((), id="workers"),
    pytest.param(("--workers", "0"), id="alone"),
]

# Variables of ours that would change what is tested.
_FOREIGN = ("PULSAR_", "LISTEN_", "WEB_CONCURRENCY", "PYTHONWARNINGS", "PYTHONASYNCIODEBUG")


class ServerProcess:
    """Runs ``python ARGUMENTS`` and reads what it logs; a context manager.

    It is entered when the server says where it serves, at ``listens`` addresses.
    At the end it is stopped at once unless the test has stopped it before, and
    then the exit code must be 0 and the log free of tracebacks. When the test
    fails, what the server has said is added to the failure, and all its
    processes are killed.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path,
        listens: int = 1,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._command = [sys.executable, *map(str, arguments)]
        self._cwd = cwd
        self._listens = listens
        self._env = {**clean_environment(), **(env or {})}
        self._pass_fds = pass_fds
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._env,
            pass_fds=self._pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, name=f"stderr of {self.process.pid}")
        self._reader.start()
        try:
            self.wait_for(" serves on ", self._listens)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._kill()
            error.add_note(f"the server's standard error:\n{self.stderr}")
            return
        stopped_before = self.process.returncode is not None
        try:
            code = self.wait() if stopped_before else self.stop(signal.SIGQUIT)
        except BaseException:
            self._kill()
            raise
        self._close()
        if not stopped_before:
            assert code == 0, f"the server ended with code {code}:\n{self.stderr}"
            assert "Traceback" not in self.stderr, self.stderr

    @property
    def stderr(self) -> str:
        """Everything on standard error so far."""
        with self._changed:
            return "".join(self._lines)

    @property
    def addresses(self) -> list[str]:
        """The texts behind ``serves on``, without the remark about TLS."""
        lines = [line for line in self.stderr.splitlines() if " serves on " in line]
        return [line.partition(" serves on ")[2].removesuffix(" (TLS)") for line in lines]

    @property
    def below(self) -> set[int]:
        """The pids of its fork servers and workers; of none in a single process."""
        found: set[int] = set()
        parents = [self.process.pid]
        while parents:
            pid = parents.pop()
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            except FileNotFoundError:
                continue  # it has ended meanwhile
            parents += map(int, children.split())
            found.update(parents)
        return found

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first address."""
        host, _, port = self.addresses[0].rpartition(":")
        return host.strip("[]"), int(port)

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until ``count`` lines of standard error contain ``text``."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._has(text, count), PATIENCE)
            found = self._has(text, count)
        if not found:
            if self._ended:
                # It ends, or it has closed standard error.
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)
            code = self.process.poll()
            state = "is still running" if code is None else f"has ended with code {code}"
            raise AssertionError(
                f"the server {state} and has not said {text!r} {count} times:\n{self.stderr}"
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of it and its workers; returns the exit code."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise AssertionError("the server does not end") from error
        # It ends when nobody has standard error any more.
        self._reader.join(PATIENCE)
        if self._reader.is_alive():
            raise AssertionError("a process of the server does not end")
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.send(number)
        return self.wait()

    def _kill(self) -> None:
        """End all its processes at once."""
        group = self.process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        # Orphans come to us, see leaks.prepare.
        while True:
            try:
                os.waitpid(-group, 0)
            except ChildProcessError:
                break
        self._reader.join()
        self._close()

    def _close(self) -> None:
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _has(self, text: str, count: int) -> bool:
        return sum(text in line for line in self._lines) >= count


def clean_environment() -> dict[str, str]:
    """This process's environment, without what would change a server's settings.

    What is imported leaves no bytecode, which would be taken for that of what replaces
    it in the same second.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**ours, "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def exclusive_port(port: int, kind: socket.SocketKind) -> Iterator[None]:
    """Have ``port`` of 127.0.0.1 to oneself, among all tests of all processes of this machine.

    The test is skipped when the port belongs to somebody who is no test of ours.
    """
    name = f"pulsar-test-port-{port}-{kind.name}.lock"
    with (Path(tempfile.gettempdir()) / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket(type=kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port} is taken by another program on this machine")
        yield
