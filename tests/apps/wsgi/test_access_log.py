"""The access log: what a line says, that nobody can forge one, and where the lines go."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pulsar.apps.wsgi import WSGIServer, access
from pulsar.errors import ImproperlyConfigured
from tests.apps.wsgi.client import request
from tests.apps.wsgi.serving import served
from tests.apps.wsgi.test_http import push
from tests.support.serving import PATIENCE

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]


def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise ValueError
    status = "404 Not Found" if path == "/missing" else "200 OK"
    start_response(status, [("Content-Type", "text/plain"), ("X-Out", 'a "b"')])
    if path == "/stream":
        return iter([b"abc"] * 3)
    if path == "/breaks":
        return breaking()
    return [b"hello"]


def breaking() -> Iterator[bytes]:
    yield b"some"
    raise ValueError


def logged(
    run: Run, path: Path, *sent: bytes, format: str = access.COMBINED, **settings: Any
) -> list[str]:
    """The lines that each of ``sent``, on a connection of its own, makes."""

    async def main() -> None:
        settings.update(access_log=str(path), access_log_format=format)
        async with served(app, **settings) as server:
            for data in sent:
                async with await server.client() as client:
                    await client.send(data)
                    client.end()
                    try:
                        await client.rest()
                    except ConnectionResetError:
                        pass

    run(main())
    return path.read_bytes().decode("ascii").splitlines()


def test_the_combined_format(run: Run, mode: Mode, tmp_path: Path) -> None:
    data = request(
        "/a?b", "User-Agent: me/1.0", "Referer: http://a/", "Authorization: Basic dXNlcjpzZWNyZXQ="
    )
    [line] = logged(run, tmp_path / "log", data, **mode)
    date = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    assert re.fullmatch(
        rf'127\.0\.0\.1 - user {date} "GET /a\?b HTTP/1\.1" 200 5 "http://a/" "me/1\.0"', line
    )
    assert "secret" not in line


ATOMS = {
    "%(h)s": "127.0.0.1",
    "%(l)s": "-",
    "%(u)s": "-",
    "%(r)s": "POST /a%20b?c=%22 HTTP/1.1",
    "%(m)s": "POST",
    "%(U)s": "/a%20b",
    "%(q)s": "c=%22",
    "%(H)s": "HTTP/1.1",
    "%(s)s": "200",
    "%(B)s": "5",
    "%(b)s": "5",
    "%(f)s": "-",
    "%(a)s": "me",
    "%(T)s": "0",
    "%(p)s": f"<{os.getpid()}>",
    "%({User-Agent}i)s": "me",
    "%({x-none}i)s": "-",
    "%({x-out}o)s": 'a \\"b\\"',
    "%({X-None}o)s": "-",
    "%({REMOTE_ADDR}e)s": "127.0.0.1",
    "%({wsgi.url_scheme}e)s": "http",
    "%({NONE}e)s": "-",
    "%%": "%",
    "100%%d": "100%d",
}


def test_atoms(run: Run, mode: Mode, tmp_path: Path) -> None:
    data = request("/a%20b?c=%22", "User-Agent: me", method="POST", body=b"body")
    lines = logged(run, tmp_path / "log", data * 2, format="\t".join(ATOMS), **mode)
    assert lines == ["\t".join(ATOMS.values())] * 2


def test_times(run: Run, mode: Mode, tmp_path: Path) -> None:
    atoms = "%(T)s %(M)s %(D)s %(L)s"
    [line] = logged(run, tmp_path / "log", request(), format=atoms, **mode)
    seconds, milliseconds, microseconds, exact = line.split()
    assert int(seconds) == 0
    assert 0 <= int(milliseconds) * 1000 <= int(microseconds) + 1000
    assert re.fullmatch(r"0\.\d{6}", exact)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (request("/missing"), "GET 404 5"),
        (request(method="HEAD"), "HEAD 200 0"),
        (request("/stream"), "GET 200 9"),
        (request("/stream", version="1.0"), "GET 200 9"),
        (request("/fails"), "GET 500 28"),
        (request("/fails", method="HEAD"), "HEAD 500 0"),
        (request("/breaks"), "GET 200 4"),
        (request("/", "Content-Length: x"), "- 400 32"),
        (b"nonsense\r\n\r\n", "- 400 31"),
    ],
)
def test_how_a_request_has_ended(
    run: Run, mode: Mode, tmp_path: Path, data: bytes, expected: str
) -> None:
    assert logged(run, tmp_path / "log", data, format="%(m)s %(s)s %(B)s", **mode) == [expected]


def test_json(run: Run, mode: Mode, tmp_path: Path) -> None:
    data = [
        request('/a"b?c', 'User-Agent: "me"\x80\\', "Referer: http://a/", "X-Request-Id: 42"),
        b"nonsense\r\n\r\n",
    ]
    first, second = map(json.loads, logged(run, tmp_path / "log", *data, format="json", **mode))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}", first.pop("time"))
    assert 0 <= first.pop("seconds") < PATIENCE
    assert first == {
        "pid": os.getpid(),
        "remote_addr": "127.0.0.1",
        "method": "GET",
        "target": '/a"b?c',
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 5,
        "referer": "http://a/",
        "user_agent": '"me"\x80\\',
        "request_id": "42",
    }
    assert (second["status"], second["method"], second["target"]) == (400, None, None)


@pytest.mark.parametrize("format", [access.COMBINED, "json"])
def test_a_line_cannot_be_forged(run: Run, mode: Mode, tmp_path: Path, format: str) -> None:
    agents = [
        'x" 200 1 "-" "forged',
        "back\\slash\\",
        "tab\there",
        "\x80\x85\xa0\xff",
        "%s %(h)s %d %",
        "{0} \\n \\x0a",
        "a" * 8000,
        "\xff" * 8000,
        '"' * 8000,
    ]
    sent = [request("/", f"User-Agent: {agent}", f"Referer: {agent}") for agent in agents]
    lines = logged(run, tmp_path / "log", *sent, format=format, **mode)
    assert len(lines) == len(agents)
    for line, agent in zip(lines, agents, strict=True):
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < select.PIPE_BUF
        if format == "json":
            assert agent.startswith(json.loads(line)["user_agent"])
        else:
            # Exactly three values are in quotes: the request, the referrer and the agent.
            assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) == 6


def test_who_is_behind_a_proxy(run: Run, mode: Mode, tmp_path: Path) -> None:
    data = request("/", "X-Forwarded-For: 192.0.2.1")
    settings = {"forwarded_allow_ips": ["127.0.0.1"], **mode}
    assert logged(run, tmp_path / "log", data, format="%(h)s", **settings) == ["192.0.2.1"]
    assert logged(run, tmp_path / "other", data, format="%(h)s", **mode) == ["127.0.0.1"]


def test_a_client_that_has_gone_is_in_the_log(run: Run, mode: Mode, tmp_path: Path) -> None:
    path = tmp_path / "log"

    def endless(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"x" * 65536

    async def main() -> None:
        settings = {"access_log": str(path), "access_log_format": "%(s)s %(B)s", **mode}
        async with served(endless, **settings) as server:
            client = await server.client()
            await client.send(request())
            await client.read()
            client.abort()
            async with asyncio.timeout(PATIENCE):
                while not path.read_text():
                    await asyncio.sleep(0.01)

    run(main())
    [line] = path.read_text().splitlines()
    assert line.startswith("200 ")
    assert int(line.split()[1]) > 0


# Where it goes


def test_many_lines_in_order(run: Run, mode: Mode, tmp_path: Path) -> None:
    data = b"".join(request(f"/{number}") for number in range(3000))
    path = tmp_path / "log"

    async def main() -> None:
        settings = {"access_log": str(path), "access_log_format": "%(U)s", **mode}
        async with served(app, **settings) as server, await server.client() as client:
            sending = asyncio.ensure_future(push(client, data))
            for _ in range(3000):
                await client.answer()
            await sending

    run(main())
    assert path.read_text().splitlines() == [f"/{number}" for number in range(3000)]


def test_a_file_that_is_moved_is_left(
    run: Run, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_LOOK", 0.0)
    path = tmp_path / "log"

    async def main() -> None:
        settings = {"access_log": str(path), "access_log_format": "%(U)s", **mode}
        async with served(app, **settings) as server, await server.client() as client:
            await client.get("/one")
            await until_written(path, "/one\n")
            path.rename(tmp_path / "old")
            await client.get("/two")
            await until_written(path, "/two\n")
            path.unlink()
            await client.get("/three")
            await until_written(path, "/three\n")

    run(main())
    assert (tmp_path / "old").read_text() == "/one\n"


async def until_written(path: Path, text: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not path.exists() or path.read_text() != text:
            await asyncio.sleep(0.005)


def test_a_directory_that_is_gone_is_complained_of_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access, "_LOOK", 0.0)
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "log"

    async def main() -> None:
        async with (
            served(app, access_log=str(path), access_log_format="%(U)s") as server,
            await server.client() as client,
        ):
            await client.get("/one")
            await until_written(path, "/one\n")
            path.unlink()
            directory.rmdir()
            for _ in range(5):
                assert (await client.get("/two")).status == 200

    run(main())
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert str(path) in errors[0]


def test_a_full_disk_hurts_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")

    async def main() -> None:
        async with served(app, access_log="/dev/full") as server, await server.client() as client:
            for _ in range(5):
                assert (await client.get()).status == 200

    run(main())
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "No space left" in errors[0]


def test_a_pipe(run: Run, tmp_path: Path) -> None:
    """Lines in a pipe are written singly enough not to mix with those of others."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got = bytearray()

    def read() -> None:
        with path.open("rb", buffering=0) as pipe:
            while piece := pipe.read(100):
                got.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()

    async def main() -> None:
        settings = {"access_log": str(path), "access_log_format": "%(U)s %(a)s"}
        async with served(app, **settings) as server, await server.client() as client:
            data = b"".join(
                request(f"/{number}", f"User-Agent: {'x' * 900}") for number in range(300)
            )
            sending = asyncio.ensure_future(client.send(data))
            for _ in range(300):
                await client.answer()
            await sending

    run(main())
    reader.join(PATIENCE)
    lines = got.decode().splitlines()
    assert [line.split()[0] for line in lines] == [f"/{number}" for number in range(300)]


def test_standard_output(run: Run, mode: Mode, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        settings = {"access_log": "-", "access_log_format": "%(m)s %(U)s", **mode}
        async with served(app, **settings) as server, await server.client() as client:
            await client.get("/x")

    run(main())
    assert capfd.readouterr().out == "GET /x\n"


# The settings


@pytest.mark.parametrize(
    "format", ["jsn", "%(x)s", "%(h)", "%h", "%", "", "%({}i)s", "%({a}x)s", 1]
)
def test_a_format_that_cannot_be(format: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="access_log_format"):
        WSGIServer(app, load_config=False, access_log_format=format)


def test_a_file_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        application = WSGIServer(
            app, load_config=False, bind="127.0.0.1:0", access_log=str(tmp_path / "no" / "log")
        )
        with pytest.raises(ImproperlyConfigured, match="cannot write the access log"):
            await application.create_server()

    run(main())
