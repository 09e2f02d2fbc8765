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
HTTP = HERE / "http"
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
    cwd: Path | None = None

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


def http(application: str) -> tuple[Peer, ...]:
    """Who serves ``application`` of ``http/apps.py``, or the same of ``http/asgi.py``."""
    target, asgi = f"apps:{application}", f"asgi:{application}"
    return (
        _http("canned", "canned.py", "{port}", application, needs=["uvloop", "httptools"]),
        _http("bjoern", "serve_c.py", "bjoern", "{port}", application, needs=["bjoern"]),
        _http("fastwsgi", "serve_c.py", "fastwsgi", "{port}", application, needs=["fastwsgi"]),
        _module("granian", "--interface", "wsgi", "--port", "{port}", target),
        _module("granian-asgi", "--interface", "asgi", "--port", "{port}", asgi, module="granian"),
        _module(
            "uvicorn",
            *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off"),
            *("--log-level", "warning", "--port", "{port}", asgi),
        ),
        _module(
            "gunicorn",
            *("--worker-class", "gthread", "--threads", "4", "--bind", f"{HOST}:{{port}}", target),
        ),
        _http_pulsar("pulsar", target),
        _http_pulsar("pulsar-log", target, "--access-log", str(BUILD / "access.log")),
        _http_pulsar("pulsar-threads", target, "--threads", "4"),
    )


def _http(name: str, script: str, *arguments: str, needs: Sequence[str]) -> Peer:
    command = (sys.executable, str(HTTP / script), *arguments)
    return Peer(name, command, tuple(needs))


def _module(name: str, *arguments: str, module: str = "") -> Peer:
    module = module or name
    chdir = {"uvicorn": ("--app-dir", str(HTTP)), "gunicorn": ("--chdir", str(HTTP))}
    command = (sys.executable, "-m", module, *chdir.get(module, ()), *arguments)
    return Peer(name, command, (module,), cwd=HTTP)


def _http_pulsar(name: str, target: str, *settings: str) -> Peer:
    command = (sys.executable, "-m", "pulsar", "serve", target)
    settings = ("--concurrency", "thread", "--bind", f"{HOST}:{{port}}", *settings)
    return Peer(name, command + settings, ("pulsar", "uvloop"), cwd=HTTP)


def custom(text: str) -> Peer:
    """A peer from the command line: ``NAME=COMMAND``, with ``{port}`` in the command."""
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise ValueError(f"{text!r} is not NAME=COMMAND with {{port}} in the command")
    return Peer(name, tuple(shlex.split(command)))


class Server:
    """A running peer."""

    def __init__(
        self, peer: Peer, *, datagrams: bool, http: bool, core: int, extra: Sequence[str]
    ) -> None:
        """Start ``peer`` on ``core``, with ``extra`` arguments; ``wait`` for it afterwards."""
        self.name = peer.name
        self._http = http
        self.port = _free_port(datagrams)
        self._datagrams = datagrams
        command = [part.replace("{port}", str(self.port)) for part in peer.command]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        try:
            self.tree = Tree(
                [*command, *extra], core, cwd=peer.cwd, stdout=self._log, stderr=self._log
            )
        except OSError as error:
            self._log.close()
            raise StartError(f"cannot be run: {error}") from None

    def wait(self) -> None:
        """Wait until the server answers; raises ``StartError`` when it ends or takes too long."""
        until = time.monotonic() + START_PATIENCE
        while not self._answers():
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

    def _answers(self) -> bool:
        ask = (
            f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() if self._http else b"ready?\r\n\r\n"
        )
        kind = socket.SOCK_DGRAM if self._datagrams else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.settimeout(0.5)
            try:
                sock.connect((HOST, self.port))
                sock.sendall(ask)
                answer = sock.recv(64)
                return answer.startswith(b"HTTP/1.1 200 ") if self._http else answer == ask
            except OSError:
                return False


def _free_port(datagrams: bool) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if datagrams else 1) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])
