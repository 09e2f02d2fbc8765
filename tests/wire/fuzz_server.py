"""Fuzzes the server on real connections: ``python -m tests.wire.fuzz_server [SECONDS] [SEED]``.

Requests of the corpus, strung together, damaged and cut, go to a WSGI server; so many at a
time, on its loop and in threads. It must not hang, not log an error, and go on serving; and
the application must be called for what the engine reads in the bytes, and for nothing else.
Not collected by pytest: tests/apps/wsgi/test_fuzz.py is the short form. What it finds becomes
a case of the corpus, or a test.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from typing import Any

import uvloop

from tests.apps.wsgi.client import Answers, request
from tests.apps.wsgi.serving import Served, served

from .http11_corpus.engine import cut, outcomes
from .http11_corpus.load import cases, pieces

CORPUS = [case.send for case in cases("request") if len(case.send) < 3000]
PIECES = pieces()
TOGETHER = 20
PATIENCE = 20.0

Environ = dict[str, Any]


class Errors(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


def app(environ: Environ, start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Method", environ["REQUEST_METHOD"])])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def message(generator: random.Random) -> bytes:
    """One to many requests, whole or damaged."""
    parts = generator.choices(CORPUS, k=generator.choice([1, 1, 1, 2, 4]))
    if generator.random() < 0.3:
        parts.insert(0, request("/good") * generator.choice([1, 2, 300]))
    if generator.random() < 0.4:
        parts += generator.choices(PIECES, k=3)
        generator.shuffle(parts)
    data = bytearray(b"".join(parts))
    for _ in range(generator.choice([0, 0, 1, 1, 3, 10])):
        where = generator.randrange(len(data) + 1)
        match generator.randrange(5):
            case 0:
                data[where : where + 1] = generator.randbytes(1)
            case 1:
                del data[where : where + generator.choice([1, 2, 20])]
            case 2:
                data[where:where] = generator.choice(PIECES)
            case 3:
                data[where:where] = generator.choice([b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t"])
            case 4:
                data[where:where] = data[where : where + 30]
    return bytes(data)


async def ask(server: Served, data: bytes, generator: random.Random) -> bytes | None:
    """Everything that is answered; None where the connection was reset."""
    number = generator.choice([0, 0, 1, 3, 8])
    places = [generator.randrange(len(data) + 1) for _ in range(number)]
    async with await server.client() as client:
        reading = asyncio.ensure_future(client.rest())
        try:
            for piece in cut(data, places):
                await client.send(piece)
                await asyncio.sleep(0)
            client.end()
            return await reading
        except OSError:
            return None
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def check(data: bytes, answered: bytes) -> None:
    """Raises ``AssertionError`` where it is not what the engine makes of ``data``."""
    wanted: list[int] = []
    methods = []
    for one in outcomes([data]):
        if not isinstance(one, dict):
            wanted.append(400 if one == "incomplete" else one)
            break
        wanted.append(200)
        methods.append(one["method"])
        if not one["keep_alive"]:
            break
    answers = Answers()
    answers.feed(answered)
    answers.feed(b"")
    found: list[int] = []
    while answers.buffer:
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        answer = answers.take(method)
        assert answer is not None
        found.append(answer.status)
        assert answer.status != 200 or answer["X-Method"] == method
    if wanted[-1:] == [400] and len(found) == len(wanted) - 1:
        wanted.pop()  # nothing but an empty line in front of the end
    assert found == wanted, f"{found} instead of {wanted}"


async def fuzz(seconds: float, seed: int, **settings: Any) -> tuple[int, int]:
    """How many connections there were, and how many of them were reset."""
    generator = random.Random(seed)
    done = reset = 0
    until = time.monotonic() + seconds

    async def one(server: Served) -> None:
        nonlocal done, reset
        while time.monotonic() < until:
            data = message(generator)
            try:
                async with asyncio.timeout(PATIENCE):
                    answered = await ask(server, data, generator)
                if answered is None:
                    reset += 1
                else:
                    check(data, answered)
            except BaseException as error:
                error.add_note(f"seed {seed}, {settings}, sent: {data!r}")
                raise
            done += 1

    async with served(app, **settings) as server:
        async with asyncio.TaskGroup() as group:
            for _ in range(TOGETHER):
                group.create_task(one(server))
        async with await server.client() as client:
            assert (await client.get()).status == 200
    return done, reset


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    errors = Errors()
    logging.getLogger("pulsar").addHandler(errors)
    logging.getLogger("asyncio").addHandler(errors)
    ways: list[dict[str, Any]] = [{}, {"thread_workers": 4}, {"thread_workers": "auto"}]
    for number, settings in enumerate(ways):
        factory = uvloop.new_event_loop if number != 1 else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            done, reset = runner.run(fuzz(seconds / len(ways), seed + number, **settings))
        print(f"seed {seed + number} {settings}: {done} connections, {reset} of them reset")
        assert not errors.records, errors.records[:3]


if __name__ == "__main__":
    main()
