"""The server that a chaos run torments: its files, its process tree, its own words.

Owns: ``Server``: starting ``pulsar serve``, deploying new code under it, and asking it, by its
commands, by requests, and by what the kernel knows about its processes.
Leaves: faults to ``actions``, what must hold to ``run``.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos import kernel
from benchmarks.chaos.load import DATAGRAMS, ECHO, HTTP, LINES, TLS_NAME, Dialogue, Message, Target

ROOT = Path(__file__).resolve().parents[2]
DEPLOYED = Path(__file__).resolve().parent / "deployed"

# Seconds for anything that a healthy server does at once, on a machine that has other work.
PATIENCE = 30.0

SERVES_ON = re.compile(r" serves on (\S+)(?: \(TLS\))?$", re.MULTILINE)

BACK_OFF = re.compile(r" is started again in ([\d.]+) s$", re.MULTILINE)

# For how many seconds a crash may make the next one of its slot worse.
CRASHES_COUNT = 60.0

# Variables that would change the server's settings.
FOREIGN = ("PULSAR_", "LISTEN_", "NOTIFY_", "WEB_CONCURRENCY", "PYTHONWARNINGS")


class InvariantError(Exception):
    """The server is not as it has to be."""


@dataclass(frozen=True)
class Flavour:
    """What is served: an example, and how its messages look."""

    example: str
    dialogue: Dialogue
    loads: tuple[str, ...]

    def with_kept(self, clients: int) -> "Flavour":
        """The same with so many clients that keep their connections."""
        loads = (
            f"{load.partition('=')[0]}={clients}" if load.startswith("kept") else load
            for load in self.loads
        )
        return replace(self, loads=tuple(loads))

    @property
    def connecting(self) -> int:
        """How many of them connect for every request."""
        return sum(
            int(load.partition("=")[2]) for load in self.loads if not load.startswith("kept")
        )


FLAVOURS = {
    "lines": Flavour("lineserver", LINES, ("kept=16", "lines=4")),
    "echo": Flavour("echo", ECHO, ("echo=4",)),
    "web": Flavour("helloworld", HTTP, ("kept-http=16", "http=4")),
    "udp": Flavour("echoudp", DATAGRAMS, ("udp=16",)),
}


@dataclass(frozen=True)
class Options:
    """How to serve."""

    transport: str = "tcp"
    workers: int = 4
    reuse_port: bool = False
    # How many clients keep their connections.
    kept: int = 16
    timeout: float = 2.0
    # What is too late, in milliseconds.
    late: float = 100.0
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    python: str = sys.executable
    extra: tuple[str, ...] = ()


def slots_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The slots of all applications."""
    return [slot for application in status["applications"] for slot in application["slots"]]


def ready_workers(status: dict[str, Any]) -> int:
    """How many workers are said to be ready."""
    return sum(application["ready"] for application in status["applications"])


class Server:
    """``pulsar serve`` in ``directory``, which is made, with the code of a flavour in it."""

    def __init__(self, name: str, directory: Path, options: Options) -> None:
        self.name = name
        self.flavour = FLAVOURS[name].with_kept(options.kept)
        self.options = options
        self.directory = directory
        # How many workers there have to be, and which code they have to run.
        self.wanted = options.workers
        self.version = 0
        # Where it serves, in the words of the load.
        self.address = ""
        self.target = Target()
        self.process: subprocess.Popen[bytes] | None = None
        self._log = directory.with_suffix(".log")
        # When workers were made to crash.
        self.crashes: list[float] = []
        self._read = 0
        self._second = int(time.time())
        self._known_workers: set[int] = set()

    # Files

    def write_files(self) -> None:
        """Make the directory: the example, the deployed module, the settings."""
        self.directory.mkdir()
        example = ROOT / "examples" / self.flavour.example / "manage.py"
        shutil.copy(example, self.directory)
        self.deploy()
        self.configure()

    def deploy(self, source: str | None = None) -> None:
        """Replace the served module: by ``source``, or by the next version that works."""
        if source is None:
            self.version += 1
            source = self.source()
        # Never a half-written module: a worker could be importing it.
        fresh = self.directory / "deployed.fresh"
        fresh.write_text(source)
        # Python tells versions by their second and size, and two may have both in common.
        self._second += 1
        os.utime(fresh, (self._second, self._second))
        fresh.replace(self.directory / "deployed.py")

    def source(self) -> str:
        """The served module, in its current version."""
        text = (DEPLOYED / f"{self.name}.py").read_text()
        return text.replace('VERSION = b"0"', f'VERSION = b"{self.version}"')

    def restore(self) -> None:
        """Deploy the current version again, after one that did not work."""
        self.version -= 1
        self.deploy()
        self.configure()

    def configure(self, *more: str) -> None:
        """Write the settings, with ``more`` addresses than usual."""
        text = "".join(f"{json.dumps(bind)}, " for bind in (self._bind(), *more))
        (self.directory / "chaos.toml").write_text(f"bind = [{text}]\n")

    def _bind(self) -> str:
        match self.options.transport:
            case "unix":
                return f"unix:{self.directory}/socket"
            case "udp":
                return "udp://127.0.0.1:0"
        return "127.0.0.1:0"

    # The process

    def start(self) -> None:
        """Start the server; returns when every worker is ready. Raises ``InvariantError``."""
        options = self.options
        command = ["serve", "deployed:Served", "-c", "chaos.toml"]
        command += ["--workers", str(self.wanted), "--timeout", str(options.timeout)]
        if options.certificate is not None and options.transport == "tls":
            command += ["--cert-file", str(options.certificate), "--key-file", str(options.key)]
        if options.reuse_port:
            command.append("--reuse-port")
        with self._log.open("wb") as log:
            self.process = self._pulsar(*command, *options.extra, stdout=log, stderr=log)
        self._wait(lambda: SERVES_ON.search(self.log()), "does not say where it serves")
        found = SERVES_ON.search(self.log())
        assert found is not None
        self.address = f"tls:{found[1]}" if options.transport == "tls" else found[1]
        self.target = Target.parse(self.address)
        self._wait(self._is_ready, "is not ready")

    @property
    def pid(self) -> int:
        """The arbiter's."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals, pid: int | None = None) -> bool:
        """Send a signal to the arbiter, or to ``pid``; False when it has gone."""
        try:
            os.kill(self.pid if pid is None else pid, number)
        except ProcessLookupError:
            return False
        return True

    def command(self, *words: object) -> "subprocess.Popen[bytes]":
        """Start ``pulsar WORDS PID``; output and errors come through one pipe."""
        return self._pulsar(*words, self.pid, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def status(self) -> dict[str, Any]:
        """What ``pulsar status`` says. Raises ``InvariantError`` when it says nothing."""
        with self._pulsar(
            "status", self.pid, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as asking:
            try:
                output, errors = asking.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                asking.kill()
                raise InvariantError("pulsar status does not answer") from None
        # The exit code tells whether it is ready; what it is not ready for is on the output.
        if not output.strip():
            raise InvariantError(f"pulsar status: {errors.decode(errors='replace').strip()}")
        status: dict[str, Any] = json.loads(output)
        self._known_workers |= {slot["pid"] for slot in slots_of(status)}
        return status

    def wait_for_end(self) -> int:
        """Wait for the arbiter's end; returns its exit code. Raises ``InvariantError``."""
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise InvariantError(f"the server has not ended in {PATIENCE:.0f} s") from None

    def kill(self) -> None:
        """End every process of the tree at once, stopped ones as well."""
        process = self.process
        if process is None:
            return
        below = kernel.descendants(process.pid)
        # The arbiter first: it would replace what is killed.
        process.kill()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def _pulsar(self, *words: object, **options: Any) -> "subprocess.Popen[bytes]":
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)
        }
        # What is compiled stays, as for a user, but not in the server's directory.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(self.directory.with_suffix(".compiled"))
        return subprocess.Popen(
            [self.options.python, "-m", "pulsar", *map(str, words)],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            **options,
        )

    def _is_ready(self) -> bool:
        try:
            status = self.status()
        except InvariantError:
            return False  # its control socket comes late
        return bool(status["ready"]) and ready_workers(status) == self.wanted

    def _wait(self, condition: Callable[[], object], sentence: str) -> None:
        assert self.process is not None
        until = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                raise InvariantError(f"the server has ended with code {self.process.returncode}")
            if time.monotonic() > until:
                raise InvariantError(f"the server {sentence}")
            time.sleep(0.05)

    # What it says

    def log(self) -> str:
        """Everything that the server has logged."""
        return self._log.read_text(errors="replace")

    def back_off(self, since: int) -> float:
        """For how many seconds a slot is left alone, as logged behind ``since`` characters.

        A slot that keeps crashing is; one that crashed again after a minute is not.
        """
        lately = [at for at in self.crashes if time.monotonic() - at < CRASHES_COUNT]
        waits = [float(seconds) for seconds in BACK_OFF.findall(self.log()[since:])]
        return max(waits, default=0.0) if len(lately) > 1 else 0.0

    def new_log(self) -> str:
        """What has been logged since the last call."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        return new.decode(errors="replace")

    def connect(self) -> socket.socket:
        """A connection of our own, with a timeout. Raises ``InvariantError``."""
        target, kind = self.target, socket.SOCK_STREAM
        if self.name == "udp":
            kind = socket.SOCK_DGRAM
        sock = socket.socket(socket.AF_UNIX if target.path else socket.AF_INET, kind)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(target.path or (target.host, target.port))
            if target.tls:
                context = ssl.create_default_context(cafile=self.options.ca)
                return context.wrap_socket(sock, server_hostname=TLS_NAME)
        except OSError as error:
            sock.close()
            raise InvariantError(f"a connection fails: {error}") from None
        return sock

    def answered_version(self) -> int:
        """The version of the code that answers a new connection. Raises ``InvariantError``."""
        dialogue = self.flavour.dialogue
        rest = b""
        messages: list[Message] = []
        with self.connect() as sock:
            try:
                sock.sendall(dialogue.question(b"!version"))
                while not messages or messages[0][0] is None:
                    piece = sock.recv(1000)
                    if not piece:
                        raise InvariantError("the question for the version is not answered")
                    messages, rest = dialogue.messages(rest + piece)
            except OSError as error:
                raise InvariantError(f"the question for the version fails: {error}") from None
        return int(messages[0][0])

    # What the kernel says

    def workers(self) -> list[int]:
        """The workers of every generation, those that start or end included."""
        children = kernel.children(self.pid)
        found = [pid for pid in kernel.descendants(self.pid) if pid not in children]
        # Orphans of a fork server that was killed are the arbiter's children now.
        found += [pid for pid in children if pid in self._known_workers]
        self._known_workers |= set(found)
        return sorted(found)

    def hands(self, pid: int) -> int:
        """How many connections the worker ``pid`` has accepted."""
        return len(self._established() & set(kernel.descriptors(pid).values()))

    def spread(self, pids: Sequence[int]) -> dict[int, int]:
        """How many connections each of these workers has accepted."""
        established = self._established()
        return {pid: len(established & set(kernel.descriptors(pid).values())) for pid in pids}

    def _established(self) -> set[str]:
        return kernel.established(self.target.port, self.target.path)
