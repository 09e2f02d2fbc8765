"""Bodies that threads read while they are still coming."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from pulsar.apps.wsgi.incoming import Incoming
from pulsar.errors import ConnectionClosed
from tests.apps.wsgi.client import chunked, request
from tests.apps.wsgi.serving import served

Run = Callable[..., Any]
Environ = dict[str, Any]

TEXT = [("Content-Type", "text/plain")]


class Reading:
    """Reads a body piece by piece, and tells of each; answers with what it has read."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.environ: Environ = {}
        self.error: BaseException | None = None
        self.left = threading.Event()

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        self.environ = environ
        size = 0
        try:
            while piece := environ["wsgi.input"].read1(1000):
                size += len(piece)
                self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            self.left.set()
        start_response("200 OK", TEXT)
        return [b"%d" % size]

    async def until(self, text: bytes) -> None:
        got = b""
        while len(got) < len(text):
            got += await self.pieces.get()
        assert got == text


def head(*fields: str) -> bytes:
    return request("/", *fields, method="POST")


async def left(reading: Reading) -> None:
    assert await asyncio.to_thread(reading.left.wait, 30)


def test_a_thread_reads_while_the_client_sends(run: Run) -> None:
    async def main() -> None:
        app = Reading()
        async with served(app, thread_workers=2) as server, await server.client() as client:
            await client.send(head("Content-Length: 9") + b"one")
            await app.until(b"one")
            await client.send(b"two")
            await app.until(b"two")
            await client.send(b"end" + request("/next", method="POST", body=b"four"))
            answer = await client.answer()
            assert (answer.body, answer.closes) == (b"9", False)
            assert (await client.answer()).body == b"4"

    run(main())


def test_half_of_the_threads_wait_for_clients(run: Run) -> None:
    async def main() -> None:
        app = Reading()
        async with served(app, thread_workers=2) as server:
            slow = [await server.client() for _ in range(3)]
            for client in slow:
                await client.send(head("Content-Length: 6") + b"one")
            await app.until(b"one")
            async with await server.client() as quick:
                for _ in range(3):
                    await quick.send(request("/", method="POST", body=b"quick"))
                    assert (await quick.answer()).body == b"5"
            for client in slow:
                await client.send(b"two")
            for client in slow:
                assert (await client.answer()).body == b"6"
                await client.__aexit__()

    run(main())


def test_one_thread_waits_for_nobody(run: Run) -> None:
    async def main() -> None:
        app = Reading()
        async with served(app, thread_workers=1) as server, await server.client() as slow:
            await slow.send(head("Content-Length: 100000") + b"x" * 99_999)
            async with await server.client() as quick:
                await quick.send(request("/", method="POST", body=b"quick"))
                assert (await quick.answer()).body == b"5"
            await slow.send(b"x")
            assert (await slow.answer()).body == b"100000"

    run(main())


def test_a_body_in_chunks_is_complete_first(run: Run) -> None:
    async def main() -> None:
        app = Reading()
        async with served(app, thread_workers=2) as server, await server.client() as client:
            whole = chunked(b"x" * 70_000, b"y" * 70_000)
            await client.send(head("Transfer-Encoding: chunked") + whole[:100_000])
            await client.send(whole[100_000:])
            assert (await client.answer()).body == b"140000"
            assert app.environ["CONTENT_LENGTH"] == "140000"

    run(main())


def test_a_client_is_told_to_go_on_when_the_body_is_wanted(run: Run) -> None:
    async def main() -> None:
        app = Reading()
        async with served(app, thread_workers=2) as server, await server.client() as client:
            for _ in range(2):
                await client.send(head("Content-Length: 3", "Expect: 100-continue"))
                assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                await client.send(b"one")
                answer = await client.answer()
                assert (answer.status, answer.body, answer.closes) == (200, b"3", False)

    run(main())


def test_a_client_that_was_not_told_to_go_on_is_answered_and_left(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("403 Forbidden", TEXT)
        return [b"no"]

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as client:
            await client.send(head("Content-Length: 3", "Expect: 100-continue"))
            answer = await client.answer()
            assert (answer.status, answer.body, answer.closes) == (403, b"no", True)
            assert await client.rest() == b""

    run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_what_nobody_reads_is_not_the_next_request(run: Run, streamed: bool) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        body = environ["PATH_INFO"].encode()
        return iter([body, b"!"]) if streamed else [body, b"!"]

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as client:
            await client.send(head("Content-Length: 1000000") + b"GET /x HTTP/1.1\r\n\r\n")
            answer = await client.answer()
            assert (answer.body, answer.closes) == (b"/!", False)
            sending = asyncio.ensure_future(
                client.send(b"GET /x HTTP/1.1\r\n\r\n" * 52630 + b"\r\n" * 5 + b"y" + request("/2"))
            )
            await sending
            assert (await client.answer()).body == b"/2!"

    run(main())


def test_memory_is_bounded_while_the_application_does_not_read(run: Run) -> None:
    go_on = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        go_on.wait(30)
        size = 0
        while piece := environ["wsgi.input"].read(100_000):
            size += len(piece)
        start_response("200 OK", TEXT)
        return [b"%d" % size]

    total = 30_000_000

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as client:
            sent = 0

            async def send() -> None:
                nonlocal sent
                await client.send(head(f"Content-Length: {total}"))
                while sent < total:
                    await client.send(b"x" * 100_000)
                    sent += 100_000

            sending = asyncio.ensure_future(send())
            before = -1
            while sent != before or not sent:
                before = sent
                await asyncio.sleep(0.2)
            # What the kernel has for both, and a little more.
            assert sent < total * 0.75
            go_on.set()
            await sending
            assert (await client.answer()).body == b"%d" % total

    run(main())


@pytest.mark.parametrize("how", ["abort", "end", "stall", "garbage"])
def test_a_body_that_does_not_end(run: Run, how: str) -> None:
    async def main() -> None:
        app = Reading()
        settings = {"thread_workers": 2, "stall_timeout": 0.2 if how == "stall" else 60}
        async with served(app, **settings) as server, await server.client() as client:
            await client.send(head("Content-Length: 100") + b"some")
            await app.until(b"some")
            if how == "abort":
                client.abort()
            elif how == "end":
                client.end()
            elif how == "garbage":
                return  # the client is closed
            if how in {"end", "stall"}:
                answer = await client.answer()
                assert (answer.status, answer.closes) == (400 if how == "end" else 408, True)
            await left(app)
            assert isinstance(app.error, ConnectionClosed)

    run(main())


def test_an_answer_may_begin_before_the_body_ends(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        while piece := environ["wsgi.input"].read1(1000):
            yield piece.upper()

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as client:
            await client.send(head("Content-Length: 6") + b"one")
            await client.until(b"ONE")
            await client.send(b"two")
            assert (await client.answer()).body == b"ONETWO"
            assert (await client.get()).body == b""

    run(main())


def test_what_is_awaited_reads_a_body_that_is_complete(run: Run) -> None:
    called = threading.Event()

    def app(environ: Environ, start_response: Any) -> Any:
        called.set()

        async def answer() -> list[bytes]:
            body = environ["wsgi.input"].read()
            start_response("200 OK", TEXT)
            return [b"%d" % len(body)]

        return answer()

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as client:
            await client.send(head("Content-Length: 1000000") + b"x" * 300_000)
            assert await asyncio.to_thread(called.wait, 30)
            await client.send(b"x" * 700_000)
            assert (await client.answer()).body == b"1000000"
            assert (await client.get()).body == b"0"

    run(main())


def test_reading_as_from_a_file(run: Run) -> None:
    async def main() -> None:
        incoming = Incoming(b"one\ntwo\nth", lambda: None)
        assert incoming.input.readline() == b"one\n"
        assert not incoming.add(b"ree\nfour")
        incoming.end()
        assert incoming.input.readlines() == [b"two\n", b"three\n", b"four"]
        assert incoming.input.read() == b""
        assert incoming.size == 18

    run(main())


def test_what_a_generator_awaits_reads_a_body_that_is_complete(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[Any]:
        async def read() -> bytes:
            return b"%d" % len(environ["wsgi.input"].read())

        start_response("200 OK", TEXT)
        yield b"read "
        yield read()

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as client:
            await client.send(head("Content-Length: 1000000") + b"x" * 100_000)
            await client.until(b"read ")
            await client.send(b"x" * 900_000)
            assert (await client.answer()).body == b"read 1000000"
            assert (await client.get()).body == b"read 0"

    run(main())


def test_a_client_is_told_to_go_on_before_an_answer_that_comes_first(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first "
        yield environ["wsgi.input"].read()

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as client:
            await client.send(head("Content-Length: 3", "Expect: 100-continue"))
            await client.until(b"first ")
            await client.send(b"one")
            answer = await client.answer()
            assert (answer.interim, answer.body, answer.closes) == ([100], b"first one", False)

    run(main())


def test_threads_wait_for_nobody_who_has_been_answered(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        if environ["PATH_INFO"] == "/read":
            return [environ["wsgi.input"].read()]
        return [b"unread"]

    async def main() -> None:
        async with served(app, thread_workers=2) as server, await server.client() as silent:
            await silent.send(request("/", "Content-Length: 100", method="POST") + b"some")
            assert (await silent.answer()).body == b"unread"
            async with await server.client() as other:
                await other.send(request("/read", "Content-Length: 6", method="POST") + b"one")
                site = server.application._site
                assert site is not None
                assert site.threads is not None
                while not site.threads.waiting:  # it is read early: the silent one has let go
                    await asyncio.sleep(0.01)
                await other.send(b"two")
                assert (await other.answer()).body == b"onetwo"
            # Nor does a server that stops.
            await server.server.close(timeout=None, linger=0)
            assert await silent.rest() == b""

    run(main())


def test_a_large_body_that_is_collected_goes_to_a_file(run: Run) -> None:
    async def main() -> None:
        incoming = Incoming(b"", lambda: None)
        incoming.collect()
        for _ in range(20):
            assert not incoming.add(b"x" * 100_000)
        assert incoming._spool is not None
        incoming.end()
        assert len(incoming.input.read()) == 2_000_000
        incoming.drop()
        assert incoming._spool is None

    run(main())
