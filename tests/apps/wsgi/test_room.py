"""At ``max_connections`` who has nothing in hand makes room; and how an idle connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pulsar.protocols import tcpserver
from tests.apps.wsgi.client import request
from tests.apps.wsgi.serving import served

Run = Callable[..., Any]
Environ = dict[str, Any]

HALF_A_HEAD = b"GET / HTTP/1.1\r\nHost: a\r\nX"
HALF_A_BODY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpserver, "_SILENCE", 0.0)


class Application:
    """``/wait`` is answered when ``going`` is set."""

    def __init__(self) -> None:
        self.going = asyncio.Event()
        self.waiting = asyncio.Event()

    async def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/wait":
            self.waiting.set()
            await self.going.wait()
        start_response("200 OK", [])
        return [b"ok"]


@pytest.mark.parametrize("half", [HALF_A_HEAD, HALF_A_BODY], ids=["head", "body"])
def test_a_request_that_does_not_come_makes_room(run: Run, half: bytes) -> None:
    async def main() -> None:
        app = Application()
        limits = {"max_connections": 2, "head_timeout": 100}
        async with served(app, **limits) as server, await server.client() as busy:
            await busy.send(request("/wait"))
            await app.waiting.wait()
            async with await server.client() as slow:
                await slow.send(half)
                async with await server.client() as other:
                    assert (await other.get()).status == 200
                answer = await slow.answer()
                assert (answer.status, answer.closes) == (408, True)
                assert await slow.rest() == b""
            app.going.set()
            assert (await busy.answer()).status == 200

    run(main())


def test_an_idle_connection_makes_room(run: Run) -> None:
    async def main() -> None:
        app = Application()
        async with served(app, max_connections=1) as server, await server.client() as idle:
            assert (await idle.get()).status == 200
            async with await server.client() as other:
                assert (await other.get()).status == 200
            assert await idle.rest() == b""

    run(main())


def test_what_is_in_hand_stays(run: Run) -> None:
    async def main() -> None:
        app = Application()
        async with served(app, max_connections=1) as server, await server.client() as busy:
            await busy.send(request("/wait"))
            await app.waiting.wait()
            async with await server.client() as other:
                await other.send(request())
                app.going.set()
                assert (await busy.answer()).status == 200
                assert (await other.answer()).status == 200

    run(main())


def test_a_request_that_came_before_the_end_is_answered(run: Run) -> None:
    async def main() -> None:
        async with served(Application()) as server, await server.client() as client:
            assert (await client.get()).status == 200
            [connection] = server.server._members
            client.sock.send(request())  # in one go with the end: the loop has not seen it
            connection.finish()
            answer = await client.answer()
            assert (answer.status, answer.closes) == (200, True)
            assert await client.rest() == b""

    run(main())


def test_the_end_of_an_idle_connection_is_seen_at_once(run: Run) -> None:
    async def main() -> None:
        async with served(Application()) as server, await server.client() as client:
            assert (await client.get()).status == 200
            [connection] = server.server._members
            connection.finish()
            assert client.sock.recv(1) == b""  # and not a turn of the loop later

    run(main())
