"""HTTP behind the PROXY protocol: the application sees the client, and nobody can pretend."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.apps.wsgi.client import Answer, BlockingClient, request
from tests.apps.wsgi.serving import served
from tests.support.certs import Certificates
from tests.support.process import PATIENCE
from tests.support.programs import require_program
from tests.support.tree import Tree, serve, until, write

Run = Callable[..., Any]

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
ENDS = ["192.0.2.1", "56324", "198.51.100.2", "443"]

APP = """
import json, os

NAMES = ("REMOTE_ADDR", "REMOTE_PORT", "SERVER_NAME", "SERVER_PORT")

def app(environ, start_response):
    start_response("200 OK", [("X-Worker", str(os.getpid()))])
    seen = [environ[name] for name in NAMES] + [environ["wsgi.url_scheme"]]
    if environ["PATH_INFO"] == "/file":
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    return [json.dumps(seen).encode()]
"""

names: dict[str, Any] = {"__file__": __file__}
exec(APP, names)
app = names["app"]


def test_the_environment(run: Run, mode: dict[str, Any]) -> None:
    async def main() -> list[Answer]:
        bind = "127.0.0.1:0?proxy_protocol=on"
        async with served(app, bind=bind, **mode) as server, await server.client() as client:
            await client.send(V1 + request("/") + request("/", "X-Forwarded-For: 203.0.113.7"))
            found = [await client.answer() for _ in range(2)]
            await client.send(request("/file"))
            return [*found, await client.answer()]

    first, second, file = run(main())
    assert json.loads(first.body) == json.loads(second.body) == [*ENDS, "http"]
    assert file.body == Path(__file__).read_bytes()


def test_forwarded_headers_are_believed_of_the_client_that_the_header_names(run: Run) -> None:
    async def main() -> list[Answer]:
        found = []
        for allowed in ("192.0.2.1", "127.0.0.1"):
            async with (
                served(
                    app, bind="127.0.0.1:0?proxy_protocol=on", forwarded_allow_ips=[allowed]
                ) as server,
                await server.client() as client,
            ):
                await client.send(V1 + request("/", "X-Forwarded-For: 203.0.113.7"))
                found.append(await client.answer())
        return found

    assert [json.loads(answer.body)[0] for answer in run(main())] == ["203.0.113.7", "192.0.2.1"]


def test_where_nobody_asked_for_it_a_header_is_no_http(run: Run) -> None:
    async def main() -> None:
        async with served(app) as server:
            for header in (V1, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"):
                async with await server.client() as client:
                    await client.send(header + request("/"))
                    answer = await client.answer()
                    assert (answer.status, answer.closes) == (400, True)

    run(main())


@pytest.fixture
def tree(tmp_path: Path, certs: Certificates) -> Iterator[Tree]:
    """Two workers that listen with and without TLS, on a Unix socket, and without headers."""
    write(tmp_path / "app.py", APP)
    binds = ["127.0.0.1:0?proxy_protocol=on", "127.0.0.1:0?proxy_protocol=on&tls=off"]
    binds += ["unix:x.sock?proxy_protocol=on&tls=off", "127.0.0.1:0?tls=off"]
    with serve(
        tmp_path,
        *("--workers", 2, "--cert-file", certs.server_cert, "--key-file", certs.server_key),
        *("--reuse-port", "--name", "web"),
        bind=",".join(binds),
        target="app:app",
        listens=4,
    ) as tree:
        yield tree


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_a_tree(tree: Tree) -> None:
    def workers() -> set[str]:
        """Those that have answered, until there were two."""
        seen: set[str] = set()

        def ask() -> bool:
            with BlockingClient(("127.0.0.1", port(tree.addresses[1]))) as client:
                client.send(V1 + request("/"))
                answer = client.answer()
                assert json.loads(answer.body) == [*ENDS, "http"]
                seen.add(answer["X-Worker"])
            with BlockingClient(("127.0.0.1", port(tree.addresses[3]))) as client:
                assert json.loads(client.get("/").body)[0] == "127.0.0.1"
            return len(seen) == 2

        until(ask, "both workers have answered")
        return seen

    before = workers()
    tree.reload()
    tree.until_ready(2)
    assert not before & workers()
    # Without a header there is nothing.
    with BlockingClient(("127.0.0.1", port(tree.addresses[1]))) as client:
        client.send(request("/"))
        try:
            assert client.sock.recv(100) == b""
        except ConnectionResetError:
            pass
    tree.wait_for(" refused: there is no PROXY header")
    assert tree.stop(signal.SIGTERM) == 0


@contextmanager
def haproxy(directory: Path, *servers: str) -> Iterator[list[int]]:
    """HAProxy before each of ``servers``, as it writes them; gives the ports that it serves."""
    program = require_program("haproxy", "haproxy")
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in servers]
    lines = ["global", " maxconn 100", "defaults", " mode tcp"]
    lines += [f" timeout {what} 30s" for what in ("connect", "client", "server")]
    for number, (listener, server) in enumerate(zip(listeners, servers, strict=True)):
        lines += [f"listen l{number}", f" bind fd@{listener.fileno()}", f" server s {server}"]
    config, log = directory / "haproxy.cfg", directory / "haproxy.log"
    config.write_text("\n".join([*lines, ""]))
    with log.open("w") as said:
        process = subprocess.Popen(
            [program, "-db", "-f", config],
            pass_fds=[listener.fileno() for listener in listeners],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        yield [listener.getsockname()[1] for listener in listeners]
        assert process.poll() is None
    except BaseException as error:
        error.add_note(log.read_text())
        raise
    finally:
        for listener in listeners:
            listener.close()
        process.kill()
        process.wait(PATIENCE)


def test_haproxy(tree: Tree, tmp_path: Path) -> None:
    secure, plain, unix = tree.addresses[:3]
    path = unix.removeprefix("unix:")
    with haproxy(
        tmp_path,
        # It looks every 50 ms whether we are there; with version 2 it says so.
        f"{plain} send-proxy check inter 50",
        f"{plain} send-proxy-v2 check inter 50",
        f"{secure} send-proxy-v2 ssl verify none check inter 50",
        f"unix@{path} send-proxy-v2",
        f"{plain} send-proxy-v2 proxy-v2-options unique-id,crc32c",
    ) as ports:
        for number, front in enumerate(ports):
            for _ in range(10):
                with BlockingClient(("127.0.0.1", front)) as client:
                    own = client.sock.getsockname()[1]
                    scheme = "https" if number == 2 else "http"
                    expected = ["127.0.0.1", str(own), "127.0.0.1", str(front), scheme]
                    for _ in range(2):
                        assert json.loads(client.get("/").body) == expected
    assert "refused" not in tree.stderr
