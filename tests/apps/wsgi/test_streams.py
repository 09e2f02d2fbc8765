"""Long bodies in both directions, with peers that are slow, and peers that go away."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from tests.apps.wsgi.client import request
from tests.apps.wsgi.serving import served
from tests.apps.wsgi.test_http import ENDED, still
from tests.support.serving import PATIENCE

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]

PIECE = 64 * 1024
# What the kernel and the transport may hold of an answer that nobody reads, in bytes.
ROOM = 16 * 2**20
PIECES = 20 * 2**20 // PIECE


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


class Source:
    """Makes an endless body in each of the ways there are, and counts."""

    def __init__(self, pieces: int = 10**9) -> None:
        self.pieces = pieces
        self.made = 0
        self.closed = 0

    def piece(self) -> bytes:
        self.made += 1
        return self.made.to_bytes(8, "big") * (PIECE // 8)

    def generated(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            while self.made < self.pieces:
                yield self.piece()
        finally:
            self.closed += 1

    def iterated(self, environ: Environ, start_response: Any) -> Source:
        start_response("200 OK", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.made == self.pieces:
            raise StopIteration
        return self.piece()

    def close(self) -> None:
        self.closed += 1

    def filed(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](self, PIECE)
        return wrapped

    def read(self, size: int) -> bytes:
        return self.piece() if self.made < self.pieces else b""

    async def later(self, environ: Environ, start_response: Any) -> AsyncIterator[bytes]:
        start_response("200 OK", [])
        return self.generated_later()

    async def generated_later(self) -> AsyncIterator[bytes]:
        try:
            while self.made < self.pieces:
                await asyncio.sleep(0)
                yield self.piece()
        finally:
            self.closed += 1


WAYS = ["generated", "iterated", "filed", "later"]
every_way = pytest.mark.parametrize("way", WAYS)


def quiet(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether nothing was logged that an operator would have to look at."""
    return not [record for record in caplog.records if record.levelno >= logging.ERROR]


# Answers


@every_way
def test_a_slow_reader_is_waited_for(run: Run, mode: Mode, way: str) -> None:
    source, little = Source(pieces=PIECES), Source(pieces=1)

    def app(environ: Environ, start_response: Any) -> Any:
        chosen = little if environ["PATH_INFO"] == "/little" else source
        return getattr(chosen, way)(environ, start_response)

    async def main() -> None:
        async with (
            served(app, **mode) as server,
            await server.client(window=4096) as client,
            await server.client() as other,
        ):
            await client.send(request())
            await still(lambda: source.made)
            assert source.made * PIECE < ROOM
            # Meanwhile others are served.
            assert len((await other.get("/little")).body) == PIECE
            client.widen()
            body = (await client.answer()).body
            assert len(body) == PIECES * PIECE
            numbers = range(1, PIECES + 1)
            assert body == b"".join(n.to_bytes(8, "big") * (PIECE // 8) for n in numbers)
        await until(lambda: source.closed, "it is closed")

    run(main())
    assert (source.closed, little.closed) == (1, 1)


def test_write_waits_for_a_slow_reader_in_a_thread(run: Run) -> None:
    source = Source(pieces=PIECES)

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        while source.made < source.pieces:
            write(source.piece())
        return []

    async def main() -> None:
        async with (
            served(app, thread_workers=2) as server,
            await server.client(window=4096) as client,
        ):
            await client.send(request())
            await still(lambda: source.made)
            assert source.made * PIECE < ROOM
            client.widen()
            assert len((await client.answer()).body) == PIECES * PIECE

    run(main())


@every_way
@pytest.mark.parametrize("when", ["reading", "slow", "at once"])
def test_a_client_that_goes_away_ends_the_iterable(
    run: Run, mode: Mode, way: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()

    async def main() -> None:
        async with served(getattr(source, way), **mode) as server:
            client = await server.client(window=4096 if when == "slow" else None)
            await client.send(request())
            if when == "reading":
                for _ in range(10):
                    await client.read()
            elif when == "slow":
                await still(lambda: source.made)
            client.abort()
            await until(lambda: server.server.connections == 0, "the connection is gone")
            if source.made:
                await until(lambda: source.closed, "it is closed")
            made = source.made
            async with await server.client() as other:
                # Others are served, and nobody goes on with the one that is gone.
                await other.send(request())
                await other.read()
            assert made or when == "at once"

    run(main())
    assert source.closed <= 2
    assert quiet(caplog)


@every_way
def test_close_is_called_once_for_a_client_that_goes_away(
    run: Run, mode: Mode, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()

    async def main() -> None:
        async with served(getattr(source, way), **mode) as server:
            client = await server.client()
            await client.send(request())
            await client.read()
            client.abort()
            await until(lambda: source.closed, "it is closed")
            made = source.made
            await until(lambda: server.server.connections == 0, "the connection is gone")
        # Everything about it has ended with the server.
        assert source.made <= made + 1

    run(main())
    assert source.closed == 1
    assert quiet(caplog)


def test_whoever_iterates_closes(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A generator cannot be closed while another thread runs it."""
    threads = []
    inside = threading.Event()
    go_on = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            yield b"first"
            inside.set()
            assert go_on.wait(PATIENCE)
            while True:
                yield b"x" * PIECE
        finally:
            threads.append(threading.current_thread())

    async def main() -> None:
        async with served(app, thread_workers=1) as server:
            client = await server.client()
            await client.send(request())
            await client.read()
            await until(inside.is_set, "it runs")
            client.abort()
            await until(lambda: server.server.connections == 0, "the connection is gone")
            go_on.set()
            await until(lambda: threads, "it is closed")

    run(main())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert quiet(caplog)


def test_an_application_that_waits_is_cancelled_when_its_client_goes(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    events = []

    async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        events.append("called")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        return []

    async def main() -> None:
        async with served(app) as server:
            client = await server.client()
            await client.send(request())
            await until(lambda: events, "it is called")
            client.abort()
            await until(lambda: "cancelled" in events, "it is cancelled")

    run(main())
    assert events == ["called", "cancelled"]
    assert quiet(caplog)


# Requests


def digest(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Reads the body as most do, and answers with its size and digest."""
    stream, size, found = environ["wsgi.input"], 0, hashlib.sha256()
    while piece := stream.read(PIECE):
        size += len(piece)
        found.update(piece)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{size} {found.hexdigest()}".encode()]


def expected(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("size", [0, 1, 1000, 256 * 1024, 256 * 1024 + 1, 20_000_000])
def test_uploads(run: Run, mode: Mode, size: int, in_chunks: bool) -> None:
    body = random.Random(size).randbytes(size)
    generator = random.Random(size)

    async def main() -> None:
        async with served(digest, **mode) as server, await server.client() as client:
            for _ in range(2):
                if in_chunks:
                    await client.send(request("/", "Transfer-Encoding: chunked", method="PUT"))
                    done = 0
                    while done < size:
                        piece = body[done : done + generator.randint(1, 300_000)]
                        await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                        done += len(piece)
                    await client.send(b"0\r\n\r\n")
                else:
                    await client.send(request("/", method="PUT", body=body))
                assert (await client.answer()).body == expected(body)

    run(main())


def test_a_body_that_nobody_reads_is_not_the_next_request(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    async def main() -> None:
        async with served(app, **mode) as server:
            for body in (b"GET /x HTTP/1.1\r\n\r\n" * 3, b"x" * 3_000_000):
                async with await server.client() as client:
                    data = request("/1", method="POST", body=body) + request("/2")
                    sending = asyncio.ensure_future(client.send(data))
                    assert (await client.answer()).body == b"/1"
                    answer = await client.answer()
                    assert answer.body == b"/2"
                    await sending

    run(main())


@pytest.mark.parametrize("fields", [("Content-Length: 1000000",), ("Transfer-Encoding: chunked",)])
@pytest.mark.parametrize("how", ["abort", "end"])
def test_who_goes_away_in_the_middle_of_an_upload(
    run: Run, mode: Mode, fields: tuple[str, ...], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"whole"]

    async def main() -> None:
        async with served(app, **mode) as server:
            client = await server.client()
            chunk = b"7a120\r\n" if "chunked" in fields[0] else b""
            await client.send(request("/", *fields, method="PUT") + chunk + b"x" * 500_000)
            if how == "abort":
                client.abort()
            else:
                client.end()
                try:
                    answer = await client.answer()
                    assert (answer.status, answer.closes) == (400, True)
                except ENDED:
                    pass
                client.sock.close()
            await until(lambda: server.server.connections == 0, "the connection is gone")

    run(main())
    assert b"" not in bodies, "half a body passed for a whole one"
    assert [len(body) for body in bodies if len(body) != 500_000] == []
    assert quiet(caplog)
    assert not bodies, "it was read to an end that was none"


def test_small_pieces_of_a_large_upload(run: Run, mode: Mode) -> None:
    body = b"0123456789" * 3000

    async def main() -> None:
        async with served(digest, **mode) as server, await server.client() as client:
            await client.send(request("/", "Transfer-Encoding: chunked", method="POST"))
            for start in range(0, len(body), 10):
                await client.send(b"a;x=y\r\n" + body[start : start + 10] + b"\r\n")
            await client.send(b"0\r\nX-Trailer: 1\r\n\r\n")
            assert (await client.answer()).body == expected(body)

    run(main())


# Threads


def test_as_many_requests_at_a_time_as_there_are_threads(run: Run) -> None:
    together = threading.Barrier(3, timeout=PATIENCE)

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        together.wait()
        start_response("200 OK", [])
        return [threading.current_thread().name.encode()]

    async def main() -> None:
        async with served(app, thread_workers=3) as server:
            clients = [await server.client() for _ in range(6)]
            for client in clients:
                await client.send(request())
            names = [(await client.answer()).body for client in clients]
            for client in clients:
                client.sock.close()
        assert len(set(names)) == 3

    run(main())


def test_the_loop_goes_on_while_threads_are_busy(run: Run) -> None:
    release = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert release.wait(PATIENCE)
        start_response("200 OK", [])
        return [b"x"]

    async def main() -> None:
        async with (
            served(app, thread_workers=2) as server,
            await server.client() as first,
            await server.client() as second,
            await server.client() as wrong,
        ):
            await first.send(request())
            await second.send(request())
            # What needs no thread is answered.
            await wrong.send(b"nonsense\r\n\r\n")
            assert (await wrong.answer()).status == 400
            release.set()
            assert (await first.answer()).body == (await second.answer()).body == b"x"

    run(main())


def test_many_connections_and_few_threads(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        if environ["QUERY_STRING"]:
            return iter([environ["PATH_INFO"].encode(), b"?"])
        return [environ["PATH_INFO"].encode()]

    async def main() -> None:
        async with served(app, thread_workers=2) as server:

            async def one(number: int) -> None:
                async with await server.client() as client:
                    for index in range(20):
                        query = "?q" if index % 2 else ""
                        answer = await client.get(f"/{number}/{index}{query}")
                        assert answer.body == f"/{number}/{index}{query[:1]}".encode()

            await asyncio.gather(*map(one, range(20)))

    run(main())


BOUND: ContextVar[str] = ContextVar("bound")


@pytest.mark.parametrize("how", ["whole", "gone", "write"])
def test_an_application_and_its_iterable_share_a_context(
    run: Run, mode: Mode, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As with Flask's stream_with_context: what is set in the call is reset at the end."""
    closed = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            token = BOUND.set(environ["PATH_INFO"])
            write = start_response("200 OK", [])
            if how == "write":
                write(b"w" * 1000)

            def pieces() -> Iterator[bytes]:
                try:
                    for number in range(200):
                        assert BOUND.get() == environ["PATH_INFO"]
                        time.sleep(0.0005)  # so that others have their turn
                        yield b"%d " % number * (100 if how == "gone" else 1)
                        while how == "gone" and number == 199:
                            yield b"x" * 100_000
                finally:
                    BOUND.reset(token)
                    loop.call_soon_threadsafe(closed.set)

            return pieces()

        async with served(app, **mode) as server, await server.client() as client:
            if how == "gone":
                await client.send(request("/a"))
                await client.until(b"199 ")
                client.abort()
            else:
                for path in ("/a", "/b"):
                    assert (await client.get(path)).body.endswith(b" 198 199 ")
            await closed.wait()

    run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
