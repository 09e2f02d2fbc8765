"""Process trees to be tested: started, asked, watched, and what is left of them.

Owns: ``Tree``, a server of several processes; ``Client``, who talks to its workers;
``until``, ``descendants``, ``gone`` and ``opened``.
Leaves: what is served to tree_app.py, a single server process to process.py.
"""

import ast
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pulsar.actors.control_client import Address, connect
from pulsar.actors.control_messages import ServerStatus, SlotStatus
from tests.support.process import PATIENCE, ServerProcess, clean_environment

T = TypeVar("T")

# The command line, as it is installed.
PULSAR = Path(sysconfig.get_path("scripts")) / "pulsar"

APP = Path(__file__).with_name("tree_app.py").read_text()

# Runs the rest of its arguments on a terminal. Who leads a group cannot begin a session.
_ON_TERMINAL = (
    "import os, sys; os.setpgid(0, os.getpgid(os.getppid())); os.setsid(); "
    "os.open(os.environ.pop('TERMINAL'), os.O_RDWR); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def deploy(directory: Path, version: int = 1, *, name: str = "app", more: str = "") -> None:
    """Write the module that is served; ``more`` is source to go behind it."""
    text = APP.replace("VERSION = 1", f"VERSION = {version}")
    write(directory / f"{name}.py", f"{text}\n{more}")


def write(path: Path, text: str) -> None:
    """Write a file at once: nobody sees half of it, and its time of change is a new one."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    # Python tells a module's old bytecode by its size and its second of change.
    with suppress(FileNotFoundError):
        before = path.stat().st_mtime
        os.utime(fresh, (before + 1, before + 1))
    fresh.replace(path)


class Tree(ServerProcess):
    """A ``ServerProcess`` with workers and a control socket.

    :param terminal: the name of a terminal that is to control it
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        listens: int = 1,
        env: Mapping[str, str] | None = None,
        terminal: str = "",
        pass_fds: Sequence[int] = (),
    ) -> None:
        words = [str(argument) for argument in arguments]
        if terminal:
            words = ["-c", _ON_TERMINAL, *words]
            env = {**(env or {}), "TERMINAL": terminal}
        super().__init__(*words, cwd=cwd, listens=listens, env=env, pass_fds=pass_fds)
        self.directory = cwd
        # Its processes, as far as they have been noticed.
        self.seen: set[int] = set()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.returncode is None:
            self.seen.update(descendants(self.process.pid))
        super().__exit__(kind, error, trace)
        for pid in self.seen:
            until(lambda: gone(pid), f"process {pid} has gone")  # noqa: B023 - at once

    @property
    def pid(self) -> int:
        """The arbiter's."""
        return self.process.pid

    # What it says of itself

    def control(
        self,
        command: str,
        *,
        progress: Callable[[str], None] | None = None,
        **arguments: object,
    ) -> Any:
        """Ask for something through the control socket, and wait for the outcome."""
        address = Address(f"\0pulsar/{os.geteuid()}/{self.pid}", os.geteuid(), self.pid)
        with connect(address, PATIENCE) as client:
            return client.request(command, timeout=PATIENCE, progress=progress, **arguments)

    def status(self) -> ServerStatus:
        """How it is."""
        status = ServerStatus.of(self.control("status"))
        for application in status.applications:
            self.seen.update(slot.pid for slot in application.slots if slot.pid is not None)
        self.seen.update(forkserver.pid for forkserver in status.forkservers)
        return status

    def slots(self, application: int = 0) -> list[SlotStatus]:
        """The slots of an application."""
        return self.status().applications[application].slots

    def workers(self, application: int = 0) -> list[int]:
        """The workers that serve, or will, by slot."""
        return [slot.pid for slot in self.slots(application) if slot.pid is not None]

    @property
    def forkserver(self) -> int:
        """The only fork server."""
        [forkserver] = self.status().forkservers
        return forkserver.pid

    def until_ready(self, workers: int, generation: int | None = None) -> ServerStatus:
        """Wait until so many serve, nobody else is there, and one fork server is."""

        def is_ready() -> ServerStatus | None:
            status = self.status()
            slots = [slot for application in status.applications for slot in application.slots]
            calm = (
                status.ready
                and len(slots) == workers
                and all(slot.state == "running" for slot in slots)
                and len(status.forkservers) == 1
                and len(descendants(self.pid)) == workers + 1
                and (generation is None or status.generation == generation)
            )
            return status if calm else None

        return until(is_ready, f"{workers} workers serve")

    def reload(self) -> None:
        """Reload by ``HUP``, and wait until the new generation serves."""
        generation = self.status().generation
        self.send(signal.SIGHUP)
        until(lambda: self.status().generation > generation, "the reload")

    def command(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """The outcome of ``pulsar WORDS PID``."""
        return subprocess.run(
            [sys.executable, PULSAR, *map(str, words), str(self.pid)],
            cwd=self.directory,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    # What is served

    def client(self, address: int | str = 0) -> "Client":
        """A connection to the address with that number, or to that address."""
        text = self.addresses[address] if isinstance(address, int) else address
        return Client.connect(text)

    def ask(self, expression: str, address: int | str = 0) -> Any:
        """The value of an expression in a worker, on a connection of its own."""
        with self.client(address) as client:
            return client.ask(expression)

    def who(self) -> "Who":
        """The worker that answers."""
        return Who(*self.ask("who()"))

    def client_of(self, pid: int) -> "Client":
        """A connection to the worker ``pid``."""
        kept = []
        try:
            # Each takes a connection from a worker that is no use.
            while True:
                client = self.client()
                if client.ask("os.getpid()") == pid:
                    return client
                kept.append(client)
                assert len(kept) < 1000, f"process {pid} does not answer"
        finally:
            for client in kept:
                client.close()


class Who(NamedTuple):
    """A worker, in its own words."""

    version: int
    slot: int
    pid: int


class Client:
    """A connection that sends expressions and receives values; a context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE)
        self._file = sock.makefile("rb")

    @classmethod
    def connect(cls, address: str) -> Self:
        """Connect to an address as the log shows it."""
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            path = address.removeprefix("unix:")
            sock.settimeout(PATIENCE)
            sock.connect(f"\0{path[1:]}" if path.startswith("@") else path)
            return cls(sock)
        host, _, port = address.rpartition(":")
        return cls(socket.create_connection((host.strip("[]"), int(port)), PATIENCE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def send(self, expression: str) -> None:
        self.sock.sendall(expression.encode() + b"\n")

    def block(self, path: Path) -> None:
        """Hold the worker up until ``path`` exists."""
        waiting = path.with_suffix(".waiting")
        waiting.unlink(missing_ok=True)
        self.send(f"block({str(path)!r}, {str(waiting)!r})")
        until(waiting.exists, "the worker stands still")

    def receive(self) -> Any:
        """The next value. Raises ``ConnectionError`` when there is none."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the server has closed the connection")
        return ast.literal_eval(line.decode())

    def ask(self, expression: str) -> Any:
        self.send(expression)
        return self.receive()

    def at_end(self) -> bool:
        """Wait for more; True when the connection is closed instead."""
        try:
            return not self._file.readline()
        except ConnectionResetError:
            return True


@contextmanager
def serve(
    directory: Path,
    *arguments: object,
    bind: str = "127.0.0.1:0",
    target: str = "app:App",
    **options: Any,
) -> Iterator[Tree]:
    """``pulsar serve`` in ``directory``, where the test's module is written if there is none."""
    if not (directory / "app.py").exists():
        deploy(directory)
    tree = Tree(PULSAR, "serve", target, "--bind", bind, *arguments, cwd=directory, **options)
    with tree:
        yield tree


def run_to_end(
    *arguments: object, cwd: Path, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run ``python ARGUMENTS``: its exit code, and what it has said on standard error."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**clean_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stderr


def until(condition: Callable[[], T | None], what: str) -> T:
    """Wait until ``condition`` gives something, and return that."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"in vain: until {what}"
        time.sleep(0.01)
    return result


def gone(pid: int) -> bool:
    """True when there is no process ``pid``; one of ours that has ended is buried."""
    if _state(pid) == "Z":
        # The orphans of a server are ours.
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return not _state(pid)


def opened(pid: int) -> list[str]:
    """What the descriptors of a process are, as Linux calls it."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(descriptor))
    return found


def descendants(pid: int) -> set[int]:
    """The processes below ``pid``."""
    found: set[int] = set()
    for child in _children(pid):
        found |= {child, *descendants(child)}
    return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
