"""Applications that are coroutine functions, and what may be awaited of the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from typing import Any

import pytest

from tests.apps.wsgi.client import request
from tests.apps.wsgi.serving import asked, served

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]

TEXT = [("Content-Type", "text/plain")]


async def soon(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def whole(environ: Environ, start_response: Any) -> Any:
    await asyncio.sleep(0)
    start_response("200 OK", TEXT)
    return [b"who", b"le"]


async def starts_first(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    await asyncio.sleep(0)
    return [b"whole"]


async def generates(environ: Environ, start_response: Any) -> AsyncIterator[bytes]:
    start_response("200 OK", TEXT)
    for piece in (b"wh", b"", b"ole"):
        await asyncio.sleep(0)
        yield piece


async def returns_a_generator(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    return (piece for piece in (b"wh", b"", b"ole"))


async def returns_an_async_generator(environ: Environ, start_response: Any) -> Any:
    await asyncio.sleep(0)
    return generates(environ, start_response)


def returns_a_coroutine(environ: Environ, start_response: Any) -> Any:
    return whole(environ, start_response)


async def returns_a_future(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    return asyncio.ensure_future(soon([b"whole"]))


def returns_awaitables(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    return [soon(b"wh"), b"o", soon(b""), soon(b"le")]


def generates_awaitables(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    yield soon(b"wh")
    yield b""
    yield soon(b"o")
    yield b"le"


async def writes(environ: Environ, start_response: Any) -> Any:
    write = start_response("200 OK", TEXT)
    await write(b"wh")
    await write(b"")
    await write(b"o")
    return [b"le"]


class Object:
    async def __call__(self, environ: Environ, start_response: Any) -> Any:
        return await whole(environ, start_response)


APPLICATIONS: dict[str, Any] = {
    "a coroutine function": whole,
    "that starts first": starts_first,
    "an async generator": generates,
    "that returns a generator": returns_a_generator,
    "that returns an async generator": returns_an_async_generator,
    "that returns a future": returns_a_future,
    "a function that returns a coroutine": returns_a_coroutine,
    "a list of awaitables": returns_awaitables,
    "a generator of awaitables": generates_awaitables,
    "that writes": writes,
    "an object": Object(),
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(
    run: Run, mode: Mode, name: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = APPLICATIONS[name]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            fields = ["Connection: keep-alive"] if version == "1.0" else []
            for method in ("GET", "HEAD", "GET"):
                await client.send(request("/", *fields, version=version, method=method))
                answer = await client.answer(method)
                assert (answer.status, answer["Content-Type"]) == (200, "text/plain")
                assert answer.body == (b"" if method == "HEAD" else b"whole")
                if answer.closes:
                    assert version == "1.0"
                    assert await client.rest() == b""
                    return

    run(main())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_requests_wait_side_by_side(run: Run) -> None:
    async def main() -> None:
        together = asyncio.Barrier(10)

        async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            await together.wait()
            return await whole(environ, start_response)

        async with served(app) as server:
            clients = [await server.client() for _ in range(10)]
            for client in clients:
                await client.send(request())
            for client in clients:
                assert (await client.answer()).body == b"whole"
                client.sock.close()

    run(main())


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), asyncio.CancelledError()])
@pytest.mark.parametrize("started", [False, True])
def test_an_error_before_anything_was_sent_is_a_500(
    run: Run, mode: Mode, started: bool, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if started:
            start_response("200 OK", TEXT)
        await asyncio.sleep(0)
        raise error

    async def generator(environ: Environ, start_response: Any) -> AsyncIterator[bytes]:
        yield (await app(environ, start_response))  # type: ignore[misc]

    for each in (app, generator):
        caplog.clear()
        answer = asked(run, each, **mode)
        assert (answer.status, answer.closes) == (500, True)
        [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert record.exc_info
        assert record.exc_info[0] is type(error)


@pytest.mark.parametrize("how", ["generates", "writes", "awaits"])
def test_an_error_behind_the_head_ends_the_connection(
    run: Run, mode: Mode, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def bad() -> bytes:
        await asyncio.sleep(0)
        raise ValueError

    async def generated(environ: Environ, start_response: Any) -> AsyncIterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"some"
        yield await bad()

    async def written(environ: Environ, start_response: Any) -> Iterable[bytes]:
        await start_response("200 OK", TEXT)(b"some")
        return [await bad()]

    def awaited(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return iter([b"some", bad()])

    app = {"generates": generated, "writes": written, "awaits": awaited}[how]
    with pytest.raises((EOFError, ConnectionResetError)):
        asked(run, app, **mode)
    assert [r.levelname for r in caplog.records if r.levelno >= logging.WARNING] == ["ERROR"]


@pytest.mark.parametrize("value", ["text", None, 1, [None], ["text"]])
def test_what_is_awaited_must_be_a_body(
    run: Run, mode: Mode, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return value

    def piecewise(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [soon(value)]

    for each in (app, piecewise):
        assert asked(run, each, **mode).status == 500


def test_an_async_generator_is_closed_by_its_end(run: Run, mode: Mode) -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def app(environ: Environ, start_response: Any) -> AsyncIterator[bytes]:
            start_response("200 OK", [("Content-Length", "4")])
            try:
                yield b"some"
                await asyncio.Event().wait()
            finally:
                # Only who is closed by his own loop can do this.
                await asyncio.sleep(0)
                closed.set()

        async with served(app, **mode) as server:
            client = await server.client()
            await client.send(request())
            await client.until(b"some")
            client.abort()
            await closed.wait()

    run(main())


def test_the_context_of_a_request_is_its_own(run: Run) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nothing")

    async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        before = variable.get()
        variable.set(environ["PATH_INFO"])
        await asyncio.sleep(0)
        start_response("200 OK", TEXT)
        return [f"{before} {variable.get()}".encode()]

    async def main() -> None:
        async with served(app) as server, await server.client() as client:
            for path in ("/one", "/two"):
                assert (await client.get(path)).body == f"nothing {path}".encode()

    run(main())


# Synchronous code on the loop does not see it


def no_loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(soon(True)) is True  # which works only where none runs
    return False


class Looking:
    """An iterable that looks for the loop wherever it is called."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def look(self) -> None:
        self.seen.append(no_loop_runs())

    def app(self, environ: Environ, start_response: Any) -> Any:
        self.look()
        write = start_response("200 OK", TEXT)
        write(b"written ")
        self.look()
        return self if environ["PATH_INFO"] == "/iterable" else self.generated()

    def __iter__(self) -> Any:
        self.look()
        self.left = [b"a", b"", b"b"]
        return self

    def __next__(self) -> bytes:
        self.look()
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    def generated(self) -> Any:
        try:
            for piece in (b"a", soon(b""), b"x" * 3_000_000, b"b"):
                self.look()
                yield piece
        finally:
            self.look()

    def close(self) -> None:
        self.look()


@pytest.mark.parametrize("path", ["/iterable", "/generator"])
def test_synchronous_code_sees_no_loop(run: Run, mode: Mode, path: str) -> None:
    looking = Looking()
    answer = asked(run, looking.app, request(path), **mode)
    assert answer.body.startswith(b"written a")
    assert len(looking.seen) >= 6
    assert all(looking.seen)


def test_asynchronous_code_sees_its_loop(run: Run, mode: Mode) -> None:
    loops = []

    async def app(environ: Environ, start_response: Any) -> Any:
        loops.append(asyncio.get_running_loop())
        start_response("200 OK", TEXT)
        return generated()

    async def generated() -> AsyncIterator[bytes]:
        loops.append(asyncio.get_running_loop())
        yield b"x"

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            assert (await client.get()).body == b"x"
        assert loops == [asyncio.get_running_loop()] * 2

    run(main())


def test_a_future_finds_the_loop_all_the_same(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        if environ["PATH_INFO"] == "/run":
            return [asyncio.run(soon(b"ran"))]
        return asyncio.ensure_future(soon([b"whole"]))

    async def main() -> None:
        async with served(app) as server, await server.client() as client:
            assert (await client.get("/future")).body == b"whole"
            # Which leaves the thread without a loop to be found.
            assert (await client.get("/run")).body == b"ran"

    run(main())


def test_an_error_in_synchronous_code_leaves_the_loop_as_it_was(run: Run) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/fails":
            raise ValueError
        start_response("200 OK", TEXT)
        return failing()

    def failing() -> Any:
        yield b"some"
        raise ValueError

    async def main() -> None:
        async with served(app) as server:
            for path in ("/fails", "/breaks"):
                async with await server.client() as client:
                    await client.send(request(path))
                    await client.rest()
            asyncio.get_running_loop()
            await asyncio.sleep(0)

    run(main())
