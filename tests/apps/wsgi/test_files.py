"""``wsgi.file_wrapper``: files are sent by the kernel, and everything else as it can be."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pulsar.tls import client_context
from tests.apps.wsgi.client import TlsClient, request
from tests.apps.wsgi.serving import asked, served
from tests.apps.wsgi.test_http import ENDED, still
from tests.support.certs import Certificates
from tests.support.serving import PATIENCE

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]

SIZE = 3_000_001


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


class Sender:
    """Answers with a file, and remembers those that it has opened."""

    def __init__(self, open_it: Callable[[], Any], *headers: tuple[str, str]) -> None:
        self.open_it = open_it
        self.headers = headers
        self.opened: list[Any] = []

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        file = self.open_it()
        self.opened.append(file)
        start_response("200 OK", [("Content-Type", "a/b"), *self.headers])
        return environ["wsgi.file_wrapper"](file)


def test_a_file(run: Run, mode: Mode, path: Path) -> None:
    app = Sender(lambda: path.open("rb"))
    content = path.read_bytes()

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for method in ("GET", "HEAD", "GET"):
                answer = await client.get(method=method)
                assert answer["Content-Length"] == str(SIZE)
                assert answer.body == (b"" if method == "HEAD" else content)
            await client.send(request("/1") * 3)
            for _ in range(3):
                assert (await client.answer()).body == content

    run(main())
    assert len(app.opened) == 6
    assert all(file.closed for file in app.opened)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_where_it_stands_and_as_far_as_it_is_told(
    run: Run, mode: Mode, path: Path, version: str
) -> None:
    def open_it() -> Any:
        file = path.open("rb")
        file.seek(1000)
        return file

    app = Sender(open_it, ("Content-Length", "2000"))
    answer = asked(run, app, request(version=version), **mode)
    assert answer.body == path.read_bytes()[1000:3000]
    assert app.opened[0].closed


OPENERS: dict[str, Callable[[Path], Any]] = {
    "buffered": lambda path: path.open("rb"),
    "raw": lambda path: path.open("rb", buffering=0),
    "to be written, too": lambda path: path.open("r+b"),
    "in memory": lambda path: io.BytesIO(path.read_bytes()),
    "compressed": lambda path: unpacking(path),
    "temporary": lambda path: temporary(path),
    "read before": lambda path: read_before(path),
}


def unpacking(path: Path) -> Any:
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    return gzip.GzipFile(packed)


def temporary(path: Path) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the server closes it
    file.write(path.read_bytes())
    file.seek(0)
    return file


def read_before(path: Path) -> Any:
    file = path.open("rb")
    file.read(10)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", OPENERS)
def test_kinds_of_files(run: Run, mode: Mode, path: Path, kind: str) -> None:
    app = Sender(lambda: OPENERS[kind](path))
    assert asked(run, app, **mode).body == path.read_bytes()
    assert app.opened[0].closed


def test_what_is_no_plain_file(run: Run, mode: Mode) -> None:
    class Pieces:
        """Has ``read``, and not even a ``close``."""

        def __init__(self) -> None:
            self.left = [b"one", b"two"]

        def read(self, size: int) -> bytes:
            return self.left.pop(0) if self.left else b""

    assert asked(run, Sender(Pieces), **mode).body == b"onetwo"

    def pipe() -> Any:
        reading, writing = os.pipe()
        os.write(writing, b"through a pipe")
        os.close(writing)
        return os.fdopen(reading, "rb")

    assert asked(run, Sender(pipe), **mode).body == b"through a pipe"


def test_an_empty_file(run: Run, mode: Mode, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    answer = asked(run, Sender(lambda: (tmp_path / "empty").open("rb")), **mode)
    assert (answer.body, answer["Content-Length"]) == (b"", "0")


def test_a_file_that_is_shorter_than_was_announced(
    run: Run, mode: Mode, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Sender(lambda: path.open("rb"), ("Content-Length", str(SIZE + 1)))
    try:
        answer = asked(run, app, **mode)
    except ENDED:
        pass
    else:
        assert answer.status == 500
    assert "shorter than its Content-Length" in caplog.text
    assert app.opened[0].closed


def test_a_file_without_start_response(
    run: Run, mode: Mode, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = []

    def app(environ: Environ, start_response: Any) -> Any:
        opened.append(path.open("rb"))
        return environ["wsgi.file_wrapper"](opened[0])

    assert asked(run, app, **mode).status == 500
    assert opened[0].closed


def test_a_file_behind_what_was_written(run: Run, mode: Mode, path: Path) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])(b"first, ")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    assert asked(run, app, **mode).body == b"first, " + path.read_bytes()


def test_a_slow_reader_of_a_file(run: Run, mode: Mode, tmp_path: Path) -> None:
    path = tmp_path / "large"
    size = 16 * 2**20
    with path.open("wb") as file:
        file.truncate(size - 4)
        file.seek(size - 4)
        file.write(b"end.")
    app = Sender(lambda: path.open("rb"))

    async def main() -> None:
        async with (
            served(app, **mode) as server,
            await server.client(window=4096) as client,
            await server.client() as other,
        ):
            await client.send(request())
            await client.until(b"\r\n\r\n")
            # The loop is free meanwhile, and afterwards the connection is as before.
            for _ in range(20):
                assert (await other.get(method="HEAD")).status == 200
            client.widen()
            body = (await client.answer()).body
            assert (len(body), body[-4:]) == (size, b"end.")
            assert len((await client.get()).body) == size

    run(main())


def test_a_client_that_goes_away_closes_the_file(
    run: Run, mode: Mode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(64 * 2**20)
    app = Sender(lambda: path.open("rb"))

    async def main() -> None:
        async with served(app, **mode) as server:
            for slowly in (False, True):
                client = await server.client(window=4096 if slowly else None)
                await client.send(request())
                await client.read()
                if slowly:
                    await still(lambda: server.server.connections)
                client.abort()
                async with asyncio.timeout(PATIENCE):
                    while server.server.connections or not app.opened[-1].closed:
                        await asyncio.sleep(0.01)

    run(main())
    assert len(app.opened) == 2
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_over_tls(run: Run, mode: Mode, path: Path, certs: Certificates) -> None:
    app = Sender(lambda: path.open("rb"))
    tls = {"cert_file": str(certs.server_cert), "key_file": str(certs.server_key)}

    async def main() -> None:
        async with (
            served(app, **tls, **mode) as server,
            await TlsClient.connect(server.address, client_context(certs.ca)) as client,
        ):
            for _ in range(2):
                await client.send(request())
                assert (await client.answer()).body == path.read_bytes()

    run(main())
