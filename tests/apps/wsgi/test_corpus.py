"""The corpus of raw requests (tests/wire/http11_corpus) over real connections.

What the engine makes of the bytes is tested there; here, what the application is called
with, what the client is answered, and whether the connection stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pulsar.protocols import connection
from tests.apps.wsgi.client import Client, request
from tests.apps.wsgi.serving import served
from tests.wire.http11_corpus.load import Case, cases

REQUESTS = cases("request")
GOOD = request("/good", method="POST", body=b"good")
LAST = request("/last")

# So many at a time: enough to be quick, and few enough for the deadline of each.
TOGETHER = 16

Seen = dict[str, list[dict[str, Any]]]


class Application:
    """Keeps what it is called with, by the client's port."""

    def __init__(self) -> None:
        self.seen: Seen = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        described = {
            "method": environ["REQUEST_METHOD"],
            "target": environ["RAW_URI"],
            "query": environ["QUERY_STRING"],
            "path_info": environ["PATH_INFO"],
            "http_host": environ.get("HTTP_HOST"),
            "version": environ["SERVER_PROTOCOL"].removeprefix("HTTP/"),
            "body": environ["wsgi.input"].read().decode("latin-1"),
            "environ": environ,
        }
        self.seen.setdefault(environ["REMOTE_PORT"], []).append(described)
        # Whoever reads the answers need not know which of them are to HEAD.
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else b"ok"
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


async def by_byte(client: Client, data: bytes) -> None:
    for index in range(len(data)):
        await client.send(data[index : index + 1])
        await asyncio.sleep(0)


async def whole(client: Client, data: bytes) -> None:
    await client.send(data)


async def behind_a_good_one(client: Client, data: bytes) -> None:
    await client.send(GOOD + data)


WAYS: dict[str, Callable[[Client, bytes], Any]] = {
    "whole": whole,
    "byte by byte": by_byte,
    "behind a good one": behind_a_good_one,
}


async def check(case: Case, way: str, app: Application, client: Client) -> None:
    port = str(client.sock.getsockname()[1])
    app.seen.pop(port, None)  # of a client before
    wanted, refused, stays_open = expected(case, way)
    await WAYS[way](client, case.send)
    if stays_open:
        await client.send(LAST)
    if case.end:
        client.end()
    for message in wanted:
        answer = await client.answer()
        assert (answer.status, answer.body) in [(200, b""), (200, b"ok")]
        assert answer.interim == [] or message["expect_continue"], "nobody expects 100"
        # Whoever has ended his side may be told anything.
        assert case.end or answer.closes == (not message["keep_alive"]), "open, or not"
    if refused is not None:
        answer = await client.answer()
        assert (answer.status, answer.closes) == (refused, True)
        assert answer["Content-Type"].startswith("text/plain")
    elif case.incomplete:
        if not case.end:
            client.end()
        if client.answers.buffer or await client.read():
            answer = await client.answer()
            assert (answer.status, answer.closes) == (400, True)
    if not stays_open:
        assert await client.rest() == b""
    check_calls(app.seen.get(port, []), wanted)


def expected(case: Case, way: str) -> tuple[list[dict[str, Any]], int | None, bool]:
    """The requests that are served, the status that refuses the rest, and whether it goes on."""
    wanted = list(case.accept)
    if way == "behind a good one":
        wanted.insert(0, {"target": "/good", "body": "good", "keep_alive": True})
    for index, message in enumerate(wanted):
        if not message["keep_alive"]:
            # Who answers requests reads nothing behind the last one, as a parser would.
            return wanted[: index + 1], None, False
    stays_open = case.refuse is None and not case.end and not case.incomplete
    if stays_open:
        wanted.append({"target": "/last", "keep_alive": True})
    return wanted, case.refuse, stays_open


def check_calls(seen: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    targets = [one["target"] for one in seen]
    assert len(targets) == len(wanted), f"the application was called for {targets}"
    for have, message in zip(seen, wanted, strict=True):
        for key in have.keys() & message.keys():
            if key == "environ":
                assert {name: have[key].get(name) for name in message[key]} == message[key]
            else:
                assert have[key] == message[key], key


@pytest.mark.parametrize("way", WAYS)
def test_the_corpus(
    run: Callable[..., Any], mode: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the server waits for its client to go, it does not wait without need.
    monkeypatch.setattr(connection, "_EOF_LINGER", 1000.0)
    app = Application()
    # Nothing that only a longer way could find comes behind so many bytes.
    chosen = [case for case in REQUESTS if way != "byte by byte" or len(case.send) < 500]
    assert len(chosen) > 200
    failures: list[str] = []

    async def main() -> None:
        room = asyncio.Semaphore(TOGETHER)

        async def one(case: Case) -> None:
            async with room, await server.client() as client:
                try:
                    async with asyncio.timeout(20):
                        await check(case, way, app, client)
                except (AssertionError, EOFError, OSError) as error:
                    failures.append(f"{case}: {error!r}")

        async with served(app, **mode) as server:
            await asyncio.gather(*map(one, chosen))

    run(main(), timeout=50)
    assert not failures, "\n".join(failures)
