"""``pulsar.testing``: servers for the test suites of users."""

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask
import httpx
import pytest

from pulsar import (
    DatagramProtocol,
    ImproperlyConfigured,
    MultiApp,
    ProtocolConsumer,
    get_application,
)
from pulsar.apps.socket import SocketServer, UdpSocketServer
from pulsar.apps.wsgi import WSGIServer
from pulsar.testing import Server, serve
from tests.support.certs import Certificates, certs

__all__ = ["certs"]

Run = Callable[..., Any]

# Seconds for what happens at once, on a machine that has other work.
PATIENCE = 30.0


class Shout(ProtocolConsumer):
    def data_received(self, data: bytes) -> None:
        if b"!" in data:
            raise ValueError("no shouting")
        self.write(data.upper())
        self.finished()


class Hosted(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if b"!" in data:
            raise ValueError("no shouting")
        self.transport.write(data.upper())


async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        if b"!" in data:
            raise ValueError("no shouting")
        writer.write(data.upper())
    writer.close()


class Datagrams(DatagramProtocol):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.sendto(data.upper(), addr)


class Faulty(SocketServer):
    async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
        await super().worker_start(worker, exc)
        raise LookupError("no database")


def shop() -> flask.Flask:
    app = flask.Flask("shop")
    app.testing = True  # so that its errors reach the server

    @app.get("/")
    def index() -> dict[str, Any]:
        environ = flask.request.environ
        return {
            "url": flask.request.url,
            "multithread": environ["wsgi.multithread"],
            "multiprocess": environ["wsgi.multiprocess"],
            "pid": os.getpid(),
        }

    @app.get("/fails")
    def fails() -> str:
        raise ValueError("no apples")

    return app


def shout(address: Any, text: bytes = b"hello") -> bytes:
    """The answer to ``text``, over a new connection."""
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(text)
        return sock.recv(100)


def ask(address: Any, text: bytes = b"hello") -> bytes:
    """The answer to a datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(text, address)
        return sock.recv(100)


# In a thread


@pytest.mark.parametrize("threads", [0, 2])
def test_a_web_application(threads: int) -> None:
    with serve(shop(), thread_workers=threads) as server:
        told = httpx.get(server.url).json()
        assert told == {
            "url": f"http://127.0.0.1:{server.port}/",
            "multithread": bool(threads),
            "multiprocess": False,
            "pid": os.getpid(),
        }
        assert server.address == (server.host, server.port) == ("127.0.0.1", server.port)
        assert server.addresses == [server.address]
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


@pytest.mark.parametrize(
    "thing", [Shout, lambda: Shout(), Hosted, handler, SocketServer(Shout, bind=":80", workers=4)]
)
def test_a_stream_server(thing: Any) -> None:
    with serve(thing) as server:
        assert shout(server.address) == b"HELLO"


def test_a_datagram_server() -> None:
    with serve(Datagrams) as server, serve(UdpSocketServer(Datagrams)) as other:
        assert ask(server.address) == ask(other.address) == b"HELLO"


def test_several_applications() -> None:
    both = MultiApp(
        SocketServer(Shout, name="streams"), UdpSocketServer(Datagrams, name="datagrams")
    )
    with serve(both) as server:
        streams, datagrams = server.addresses
        assert shout(streams) == ask(datagrams) == b"HELLO"


def test_settings(certs: Certificates) -> None:
    tls = {"cert_file": str(certs.server_cert), "key_file": str(certs.server_key)}
    context = ssl.create_default_context(cafile=certs.ca)
    with serve(shop(), bind=["127.0.0.1:0", "127.0.0.1:0?tls=off"], **tls) as server:
        assert server.url.startswith("https://")
        assert httpx.get(server.url, verify=context).json()["url"] == f"{server.url}/"
        plain = server.addresses[1][1]
        assert httpx.get(f"http://127.0.0.1:{plain}").status_code == 200


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with serve(shop(), bind=f"unix:{path}") as server:
        assert server.address == path
        with pytest.raises(ValueError, match="is a Unix socket, without a port"):
            _ = server.url
        with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
            assert client.get("http://shop/").json()["url"] == "http://shop/"


@pytest.mark.parametrize(("bind", "host"), [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "[::1]")])
def test_all_interfaces_have_a_url(bind: str, host: str) -> None:
    with serve(shop(), bind=bind) as server:
        assert server.url == f"http://{host}:{server.port}"


def test_an_application_has_its_hooks_and_events_and_is_served_again() -> None:
    calls: list[Any] = []

    async def on_worker_start(worker: Any) -> None:
        assert await get_application("hooked") is application
        calls.append((worker.slot, worker.cfg.keep_alive))

    application = SocketServer(
        Shout,
        name="hooked",
        on_worker_start=on_worker_start,
        on_worker_stop=lambda worker: calls.append("stopped"),
        keep_alive=3,
    )
    for event in ("start", "stop"):
        application.bind_event(event, lambda arg, exc=None, event=event: calls.append(event))
    with serve(application, keep_alive=4) as server:
        assert application.addresses == server.addresses
        with pytest.raises(ImproperlyConfigured, match="hooked is being served already"):
            serve(application).__enter__()
    assert calls == [(0, 4), "start", "stopped", "stop"]
    with serve(application), serve(SocketServer(Shout, name="hooked")) as other:
        assert shout(other.address) == b"HELLO"
    assert calls[4:] == [(0, 3), "stopped"]
    assert application.cfg.bind == ("127.0.0.1:8060",)
    assert not application.info()["running"]


def test_the_end_waits_for_what_is_in_hand() -> None:
    entered = threading.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        entered.set()
        while application.servers[0].accepting:  # until the end has begun
            await asyncio.sleep(0.001)
        writer.write(b"done")
        writer.close()

    application = SocketServer(slow)
    with serve(application) as server:
        sock = socket.create_connection(server.address, PATIENCE)
        sock.sendall(b"hello")
        assert entered.wait(PATIENCE)
    with sock:
        assert sock.recv(100) == b"done"


def test_a_block_that_raises_waits_for_nobody() -> None:
    hold = asyncio.Event()

    async def for_ever(reader: Any, writer: Any) -> None:
        writer.write(b"connected")
        await hold.wait()

    with (
        pytest.raises(KeyError),
        serve(for_ever, graceful_timeout=1000) as server,
        socket.create_connection(server.address, PATIENCE) as sock,
    ):
        assert sock.recv(100) == b"connected"
        raise KeyError


def test_a_server_that_ends_by_itself() -> None:
    with serve(Shout, max_requests=1) as server:
        assert shout(server.address) == b"HELLO"
        server._thread.join(PATIENCE)  # type: ignore[attr-defined]
        with pytest.raises(ConnectionRefusedError):
            shout(server.address)


# In the loop that runs


def test_in_the_running_loop(run: Run) -> None:
    async def main() -> None:
        loops = []

        async def remember(worker: Any) -> None:
            loops.append(asyncio.get_running_loop())

        application = WSGIServer(shop(), on_worker_start=remember)
        async with serve(application) as server, httpx.AsyncClient() as client:
            told = (await client.get(server.url)).json()
            assert told["pid"] == os.getpid()
            assert loops == [asyncio.get_running_loop()]
            assert (await client.get(f"{server.url}/fails")).status_code == 500
            [error] = server.take_errors()
            assert str(error) == "no apples"

        with pytest.raises(ExceptionGroup) as caught:
            async with serve(handler) as server:
                reader, writer = await asyncio.open_connection(*server.address)
                writer.write(b"hello!")
                assert await reader.read() == b""
                writer.close()
        assert caught.group_contains(ValueError, match="no shouting")
        assert len(asyncio.all_tasks()) == 1

    run(main())


# What goes wrong


@pytest.mark.parametrize("thing", [shop(), Shout, Hosted, handler])
def test_an_error_of_the_server(thing: Any) -> None:
    def fail(server: Any) -> None:
        if isinstance(thing, flask.Flask):
            assert httpx.get(f"{server.url}/fails").status_code == 500
        else:
            assert shout(server.address, b"hello!") == b""

    with serve(thing) as server:
        fail(server)
        [error] = server.take_errors()
        assert isinstance(error, ValueError)
        assert server.take_errors() == []
    with (
        pytest.raises(ExceptionGroup, match="errors that the test did not take") as caught,
        serve(thing) as server,
        serve(Shout),
    ):
        fail(server)
    assert [type(one) for one in caught.value.exceptions] == [ValueError]
    with pytest.raises(KeyError) as noted, serve(thing) as server:
        fail(server)
        raise KeyError
    [note] = noted.value.__notes__
    assert note.startswith("The server has logged:\nTraceback")
    assert "ValueError: no " in note


def fail_to_start(worker: Any) -> None:
    raise LookupError("no database")


@pytest.mark.parametrize(
    ("start", "error", "says"),
    [
        (lambda: serve(object()), ImproperlyConfigured, "cannot serve <object object"),
        (lambda: serve(Shout, bindd=":0"), ImproperlyConfigured, "did you mean bind"),
        (lambda: serve(Shout, keep_alive="x"), ImproperlyConfigured, "keep_alive cannot be 'x'"),
        (lambda: serve(Shout, workers=2), ImproperlyConfigured, "'mymodule:thing', workers=2"),
        (lambda: serve(Shout, bind=":0?tls=on"), ImproperlyConfigured, "give cert_file, too"),
        (lambda: serve(Faulty(Shout)), LookupError, "no database"),
        (
            lambda: serve(
                MultiApp(
                    SocketServer(Shout, name="good"),
                    SocketServer(Shout, name="bad", on_worker_start=fail_to_start),
                )
            ),
            LookupError,
            "no database",
        ),
        (lambda: serve("a:b", workers=0), ImproperlyConfigured, "served by worker processes"),
        (lambda: serve("a:b", log_file="x"), ImproperlyConfigured, "log_file cannot be given"),
    ],
)
def test_what_cannot_be_served(start: Any, error: type[Exception], says: str, run: Run) -> None:
    with pytest.raises(error, match=says), start():
        pass

    async def main() -> None:
        with pytest.raises(error, match=says):
            async with start():
                pass

    run(main())


def test_a_start_that_takes_too_long(run: Run) -> None:
    async def hang(worker: Any) -> None:
        await asyncio.Event().wait()

    application = SocketServer(Shout, on_worker_start=hang)
    with pytest.raises(TimeoutError, match="does not start within boot_timeout"):
        serve(application, boot_timeout=0.1).__enter__()

    async def main() -> None:
        with pytest.raises(TimeoutError, match="does not start within boot_timeout"):
            await serve(application, boot_timeout=0.1).__aenter__()

    run(main())


def test_a_loop_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulsar.testing.local.PATIENCE", 0.05)
    release = threading.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"stuck")
        await asyncio.sleep(0)
        release.wait(PATIENCE)
        writer.close()

    try:
        with (
            pytest.raises(TimeoutError, match=r"it is here:\n(?s:.)*release\.wait"),
            serve(stuck, graceful_timeout=0.05) as server,
        ):
            assert shout(server.address) == b"stuck"
    finally:
        release.set()


# A program of its own

PROGRAM = """
from tests.test_testing import shop

app = shop()
app.testing = True
"""


def await_error(server: Server) -> BaseException:
    deadline = time.monotonic() + PATIENCE
    while not (errors := server.take_errors()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [error] = errors
    return error


def test_a_process_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_of_a_test.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PULSAR_KEEP_ALIVE", "nonsense")
    with (
        pytest.raises(ExceptionGroup, match="errors that the test did not take") as caught,
        serve("shop_of_a_test:app", workers=2, thread_workers=1) as server,
    ):
        told = httpx.get(server.url).json()
        os.kill(told.pop("pid"), signal.SIGKILL)
        assert "killed by SIGKILL" in str(await_error(server))
        assert told == {"url": f"{server.url}/", "multithread": False, "multiprocess": True}
        assert httpx.get(f"{server.url}/fails").status_code == 500
        [error] = server.take_errors()
        assert re.search(r"GET /fails failed\nTraceback(?s:.)*ValueError: no ap", str(error))
        assert httpx.get(f"{server.url}/fails").status_code == 500
    assert caught.group_contains(RuntimeError, match="ValueError: no apples")


def test_a_program_that_does_not_start(capsys: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"with code 4, (?s:.)*no module 'no_such'"):
        asyncio.run(serve("no_such:thing").__aenter__())
    assert "there is no module 'no_such'" in capsys.readouterr().err


# pytest

SUITE = {
    "conftest.py": 'pytest_plugins = ["pulsar.testing.plugin"]\n',
    "test_shop.py": """
import sys
import httpx
from pulsar import ProtocolConsumer

def app(environ, start_response):
    1 / len(environ["PATH_INFO"][1:])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

def test_nothing_is_imported_before():
    assert "pulsar.testing.local" not in sys.modules
    assert "pulsar.application" not in sys.modules

def test_good(pulsar_server):
    server, other = pulsar_server(app), pulsar_server(app, thread_workers=1)
    assert httpx.get(f"{server.url}/a").text == httpx.get(f"{other.url}/a").text == "ok"

def test_bad(pulsar_server):
    assert httpx.get(pulsar_server(app).url).status_code == 500
""",
}


def test_the_fixture(tmp_path: Path) -> None:
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    options = ("-q", "-W", "error", "-p", "no:randomly", "-p", "no:cacheprovider")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "3 passed, 1 error" in result.stdout, result.stdout + result.stderr
    assert "ERROR at teardown of test_bad" in result.stdout
    assert "ZeroDivisionError: division by zero" in result.stdout
    assert "GET / failed" in result.stdout  # its log
