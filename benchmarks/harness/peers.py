"""Who is measured: the servers, how each is started, and when it is ready.

Owns: the list of peers and their command lines.
Leaves: their processes to ``process``, their load to ``load``.
"""

import importlib.util
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .process import Tree

HERE = Path(__file__).resolve().parent.parent
SERVERS = HERE / "servers"
BUILD = HERE / "build"
HOST = "127.0.0.1"
START_PATIENCE = 20.0


class StartError(Exception):
    """A server did not start; the message ends with what it printed."""


@dataclass(frozen=True)
class Peer:
    """A server that can be measured: ``command`` with ``{port}`` where its port goes."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """The modules that this server needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def _script(name: str, script: str, *arguments: str, needs: Sequence[str] = ()) -> Peer:
    command = (sys.executable, str(SERVERS / script), "{port}", *arguments)
    return Peer(name, command, tuple(needs))


def _pulsar(name: str, script: str) -> Peer:
    """Ours take the way that a user's script takes: settings from the command line."""
    command = (sys.executable, str(SERVERS / script))
    settings = ("--concurrency", "thread", "--bind", f"{HOST}:{{port}}")
    return Peer(name, command + settings, ("pulsar", "uvloop"))


def _floor(name: str, kind: str) -> Peer:
    return Peer(name, (str(BUILD / "floor"), kind, "{port}"))


TCP = (
    _floor("floor", "tcp"),
    _script("uvloop", "bare.py", "uvloop", needs=["uvloop"]),
    _script("uvloop-buffered", "bare_buffered.py", "uvloop", needs=["uvloop"]),
    _script("uvloop-streams", "bare_streams.py", "uvloop", needs=["uvloop"]),
    _script("asyncio", "bare.py", "asyncio"),
    _script("asyncio-streams", "bare_streams.py", "asyncio"),
    _script("twisted", "twisted_tcp.py", needs=["twisted"]),
    _script("trio", "trio_tcp.py", needs=["trio"]),
    _pulsar("pulsar-hosted", "pulsar_hosted.py"),
    _pulsar("pulsar-consumer", "pulsar_consumer.py"),
    _pulsar("pulsar-request", "pulsar_request.py"),
    _pulsar("pulsar-streams", "pulsar_streams.py"),
)

UDP = (
    _floor("floor", "udp"),
    _floor("floor-batch", "udp-batch"),
    _script("uvloop", "bare_udp.py", "uvloop", needs=["uvloop"]),
    _script("asyncio", "bare_udp.py", "asyncio"),
    _pulsar("pulsar-udp", "pulsar_udp.py"),
)


def custom(text: str) -> Peer:
    """A peer from the command line: ``NAME=COMMAND``, with ``{port}`` in the command."""
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise ValueError(f"{text!r} is not NAME=COMMAND with {{port}} in the command")
    return Peer(name, tuple(shlex.split(command)))


class Server:
    """A running peer."""

    def __init__(self, peer: Peer, *, datagrams: bool, core: int, extra: Sequence[str]) -> None:
        """Start ``peer`` on ``core``, with ``extra`` arguments; ``wait`` for it afterwards."""
        self.name = peer.name
        self.port = _free_port(datagrams)
        self._datagrams = datagrams
        command = [part.replace("{port}", str(self.port)) for part in peer.command]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        try:
            self.tree = Tree([*command, *extra], core, stdout=self._log, stderr=self._log)
        except OSError as error:
            self._log.close()
            raise StartError(f"cannot be run: {error}") from None

    def wait(self) -> None:
        """Wait until the server echoes; raises ``StartError`` when it ends or takes too long."""
        until = time.monotonic() + START_PATIENCE
        while not self._echoes():
            if not self.tree.alive:
                raise StartError(f"ended at its start:\n{self.output()}")
            if time.monotonic() > until:
                raise StartError(f"does not answer:\n{self.output()}")
            time.sleep(0.02)

    def output(self) -> str:
        """The end of what the server has printed."""
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")[-2000:].strip()
        return text.replace(f"{HERE.parent}/", "")

    def stop(self) -> None:
        """End the server and all it started."""
        self.tree.stop()
        self._log.close()

    def _echoes(self) -> bool:
        kind = socket.SOCK_DGRAM if self._datagrams else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.settimeout(0.5)
            try:
                sock.connect((HOST, self.port))
                sock.sendall(b"ready?\r\n\r\n")
                return sock.recv(64) == b"ready?\r\n\r\n"
            except OSError:
                return False


def _free_port(datagrams: bool) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if datagrams else 1) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])
