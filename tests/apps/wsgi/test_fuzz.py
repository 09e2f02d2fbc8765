"""Random messages over real connections: whatever comes, the server answers as its engine reads.

The engine itself is fuzzed in tests/wire; here it is what stands around it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.apps.wsgi.client import Answers, Client, request
from tests.apps.wsgi.serving import served
from tests.wire.http11_corpus.engine import cut, outcomes
from tests.wire.http11_corpus.load import pieces

Run = Callable[..., Any]
Environ = dict[str, Any]

MESSAGES = 250
PIECES = pieces()
# Without these, next to nothing would be a request.
GOOD = [
    request("/a"),
    request("/b", method="POST", body=b"body"),
    request("/c", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
    request("/d", "Connection: close"),
    request("/e", "Connection: keep-alive", version="1.0"),
    request("/f", method="HEAD"),
]


def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Method", environ["REQUEST_METHOD"])])
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    if len(body) % 2:
        return iter([body, b"!"])
    return [body]


async def later(environ: Environ, start_response: Any) -> Iterable[bytes]:
    await asyncio.sleep(0)
    return app(environ, start_response)


def message(generator: random.Random) -> bytes:
    whole = generator.choices(GOOD, k=generator.choice([0, 0, 1, 2, 5]))
    parts = generator.choices(PIECES, k=generator.choice([0, 1, 3, 10]))
    mixed = whole + parts
    if generator.random() < 0.3:
        generator.shuffle(mixed)
    data = bytearray(b"".join(mixed))
    for _ in range(generator.choice([0, 0, 0, 1, 3])):
        if data:
            data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


async def sent(client: Client, data: bytes, generator: random.Random) -> bytes | None:
    """Everything that the server answers; ``data`` is sent in a few packets.

    None: the connection was reset, for who has said that he will send no more has done so.
    """
    places = [generator.randrange(len(data) + 1) for _ in range(generator.choice([0, 0, 1, 4]))]
    try:
        for piece in cut(data, places):
            await client.send(piece)
            await asyncio.sleep(0)
        client.end()
        return await client.rest()
    except OSError:
        assert b"HTTP/1.0" in data or b"lose" in data
        return None


def check(data: bytes, answered: bytes) -> None:
    wanted: list[int] = []
    methods = []
    for one in outcomes([data]):
        if isinstance(one, dict):
            wanted.append(200)
            methods.append(one["method"])
            if not one["keep_alive"]:
                break
        else:
            wanted.append(400 if one == "incomplete" else one)
    answers = Answers()
    answers.feed(answered)
    answers.feed(b"")
    found = []
    while answers.buffer:
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        answer = answers.take(method)
        assert answer is not None
        found.append(answer.status)
        if answer.status == 200:
            assert answer["X-Method"] == method
    if wanted[-1:] == [400] and len(found) == len(wanted) - 1:
        wanted.pop()  # nothing but an empty line in front of the end
    assert found == wanted


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("application", "settings"),
    [(app, {}), (app, {"thread_workers": 2}), (later, {})],
    ids=["loop", "threads", "later"],
)
def test_random_messages(
    run: Run, application: Any, settings: Any, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    generator = random.Random(seed)
    messages = [message(generator) for _ in range(MESSAGES)]

    async def main() -> None:
        async with served(application, **settings) as server:
            for data in messages:
                async with await server.client() as client:
                    try:
                        answered = await sent(client, data, generator)
                        if answered is not None:
                            check(data, answered)
                    except BaseException as error:
                        error.add_note(f"sent: {data!r}")
                        raise

    run(main())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
