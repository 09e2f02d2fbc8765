"""Who is measured: the servers, how each is started, and when it is ready.

Owns: the list of peers and their command lines.
Leaves: their processes to ``process``, their load to ``load``.
"""

import contextlib
import importlib.util
import shlex
import shutil
import socket
import ssl
import subprocess
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
ACCESS_LOG = BUILD / "access.log"
CERTIFICATE, KEY = BUILD / "tls.pem", BUILD / "tls.key"
START_PATIENCE = 20.0


# Ours stop accepting at 1,000 connections unless they are told otherwise.
_CROWD = ("--max-connections", "12000")


class StartError(Exception):
    """A server did not start; the message ends with what it printed."""


@dataclass(frozen=True)
class Peer:
    """A server that can be measured: ``command`` with ``{port}`` where its port goes.

    ``crowd`` is what it wants to be told before it takes thousands of connections.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    cwd: Path | None = None
    program: str = ""
    crowd: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """The modules and the program that this server needs and that are not installed."""
        lacks = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if self.program and _program(self.program) is None:
            lacks.append(self.program)
        return lacks


def _program(name: str) -> str | None:
    """Where ``name`` is: next to the interpreter, or on the path."""
    return shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)


def _script(name: str, script: str, *arguments: str, needs: Sequence[str] = ()) -> Peer:
    command = (sys.executable, str(SERVERS / script), "{port}", *arguments)
    return Peer(name, command, tuple(needs))


def _pulsar(name: str, script: str) -> Peer:
    """Ours take the way that a user's script takes: settings from the command line."""
    command = (sys.executable, str(SERVERS / script))
    settings = ("--concurrency", "thread", "--bind", f"{HOST}:{{port}}")
    return Peer(name, command + settings, ("pulsar", "uvloop"), crowd=_CROWD)


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
    """Who serves ``application`` of ``http/apps.py``, or the same for another interface."""
    target = f"apps:{application}"
    return (
        _canned("uvloop", application, "--unparsed"),
        _canned("canned", application),
        _nginx(application),
        _http("bjoern", "serve_c.py", "bjoern", "{port}", application, needs=["bjoern"]),
        _http("fastwsgi", "serve_c.py", "fastwsgi", "{port}", application, needs=["fastwsgi"]),
        _granian("granian", "wsgi", target),
        _granian("granian-rsgi", "rsgi", f"rsgi:{application}"),
        _granian("granian-asgi", "asgi", f"asgi:{application}"),
        _uwsgi(application),
        _uvicorn(application),
        _module(
            "gunicorn",
            *("--worker-class", "gthread", "--threads", "4", "--keep-alive", "75"),
            *("--bind", f"{HOST}:{{port}}", "--chdir", str(HTTP), target),
            crowd=("--worker-connections", "12000"),
        ),
        _http_pulsar("pulsar", target),
        _http_pulsar("pulsar-log", target, "--access-log", str(ACCESS_LOG)),
        _http_pulsar("pulsar-threads", target, "--threads", "4"),
        _http_pulsar("pulsar-auto", target, "--threads", "auto"),
    )


def https(application: str) -> tuple[Peer, ...]:
    """Who serves it over TLS: see ``write_certificate``."""
    target, files = f"apps:{application}", (str(CERTIFICATE), str(KEY))
    return (
        _canned("uvloop", application, "--unparsed", "--tls", *files),
        _canned("canned", application, "--tls", *files),
        _nginx(application, *files),
        _granian(
            "granian", "wsgi", target, "--ssl-certificate", files[0], "--ssl-keyfile", files[1]
        ),
        _uvicorn(application, "--ssl-certfile", files[0], "--ssl-keyfile", files[1]),
        _http_pulsar("pulsar", target, "--cert-file", files[0], "--key-file", files[1]),
    )


def write_certificate() -> None:
    """Make the certificate of those who serve over TLS, on a curve that all of them know.

    Raises ``StartError`` where there is no program ``openssl`` that can do it.
    """
    BUILD.mkdir(exist_ok=True)
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST}")
    files = ("-days", "30", "-out", str(CERTIFICATE), "-keyout", str(KEY))
    try:
        subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartError(f"openssl cannot make a certificate: {error}") from None


def _http(name: str, script: str, *arguments: str, needs: Sequence[str]) -> Peer:
    command = (sys.executable, str(HTTP / script), *arguments)
    return Peer(name, command, tuple(needs))


def _canned(name: str, application: str, *options: str) -> Peer:
    needs = ["uvloop", "httptools"]
    return _http(name, "canned.py", "{port}", application, *options, needs=needs)


def _nginx(application: str, *files: str) -> Peer:
    command = (sys.executable, str(HTTP / "nginx.py"), "{port}", application, *files)
    return Peer("nginx", command, program="nginx")


def _uwsgi(application: str) -> Peer:
    # A connection that is kept alive has a thread of it to itself.
    command = (_program("uwsgi") or "uwsgi", "--http11-socket", f"{HOST}:{{port}}")
    threads = ("--master", "--processes", "1", "--threads", "70", "--die-on-term")
    quiet = ("--disable-logging", "--log-master", "--add-header", "Connection: Keep-Alive")
    target = ("--wsgi-file", str(HTTP / "apps.py"), "--callable", application)
    return Peer("uwsgi", (*command, *threads, *quiet, *target), cwd=HTTP, program="uwsgi")


def _module(name: str, *arguments: str, module: str = "", crowd: tuple[str, ...] = ()) -> Peer:
    module = module or name
    command = (sys.executable, "-m", module, *arguments)
    return Peer(name, command, (module,), cwd=HTTP, crowd=crowd)


def _granian(name: str, interface: str, target: str, *options: str) -> Peer:
    options = ("--interface", interface, "--port", "{port}", *options)
    crowd = ("--backlog", "12000", "--backpressure", "12000")
    return _module(name, *options, target, module="granian", crowd=crowd)


def _uvicorn(application: str, *options: str) -> Peer:
    return _module(
        "uvicorn",
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off"),
        *("--log-level", "warning", "--timeout-keep-alive", "75", "--port", "{port}"),
        *("--app-dir", str(HTTP), *options, f"asgi:{application}"),
    )


def _http_pulsar(name: str, target: str, *settings: str) -> Peer:
    command = (sys.executable, "-m", "pulsar", "serve", target)
    settings = ("--concurrency", "thread", "--bind", f"{HOST}:{{port}}", *settings)
    return Peer(name, command + settings, ("pulsar", "uvloop"), cwd=HTTP, crowd=_CROWD)


def custom(text: str) -> Peer:
    """A peer from the command line: ``NAME=COMMAND``, with ``{port}`` in the command."""
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise ValueError(f"{text!r} is not NAME=COMMAND with {{port}} in the command")
    return Peer(name, tuple(shlex.split(command)))


class Server:
    """A running peer."""

    def __init__(
        self,
        peer: Peer,
        *,
        core: int,
        datagrams: bool = False,
        http: bool = False,
        tls: bool = False,
        crowd: bool = False,
    ) -> None:
        """Start ``peer`` on ``core``, for thousands of connections if ``crowd``.

        ``wait`` for it afterwards.
        """
        self.name = peer.name
        self._http = http
        self._tls = tls
        self.port = _free_port(datagrams)
        self._datagrams = datagrams
        command = [part.replace("{port}", str(self.port)) for part in peer.command]
        if crowd:
            command += peer.crowd
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        try:
            self.tree = Tree(command, core, cwd=peer.cwd, stdout=self._log, stderr=self._log)
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
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            sock.settimeout(0.5)
            try:
                sock.connect((HOST, self.port))
                if self._tls:
                    context = ssl.create_default_context(cafile=CERTIFICATE)
                    sock = stack.enter_context(context.wrap_socket(sock, server_hostname=HOST))
                sock.sendall(ask)
                answer = sock.recv(64)
                return answer.startswith(b"HTTP/1.1 200 ") if self._http else answer == ask
            except OSError:
                return False


def _free_port(datagrams: bool) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if datagrams else 1) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])
