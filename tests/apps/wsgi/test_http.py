"""HTTP/1.1 around the application: connections, pipelines, expectations, refusals, ends."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pulsar.protocols import connection
from tests.apps.wsgi.client import Client, chunked, request
from tests.apps.wsgi.serving import Served, asked, served
from tests.support.serving import PATIENCE

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]

ENDED = (EOFError, ConnectionResetError, BrokenPipeError)


def echo(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Answers with the target and the body."""
    body = environ["RAW_URI"].encode() + b" " + environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def streamed(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """The same, and nobody knows how long it is."""
    start_response("200 OK", [])
    yield environ["RAW_URI"].encode()
    yield b" "
    yield environ["wsgi.input"].read()


async def later(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """The same, a turn of the loop later."""
    await asyncio.sleep(0)
    return echo(environ, start_response)


ECHOES = {"whole": echo, "streamed": streamed, "later": later}
every_echo = pytest.mark.parametrize("app", ECHOES.values(), ids=ECHOES)


async def push(client: Client, data: bytes) -> None:
    """Send until nobody takes it any more."""
    try:
        await client.send(data)
    except ConnectionError:
        pass


# Connections that are kept, and that are not


@every_echo
def test_a_connection_is_kept(run: Run, mode: Mode, app: Any) -> None:
    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for number in range(30):
                body = b"x" * number
                await client.send(request(f"/{number}", method="POST", body=body))
                answer = await client.answer()
                assert answer.body == b"/%d " % number + body
                assert "Connection" not in answer
            assert server.server.sessions == 1

    run(main())


@every_echo
@pytest.mark.parametrize(
    ("version", "fields", "closes"),
    [
        ("1.1", (), False),
        ("1.1", ("Connection: keep-alive",), False),
        ("1.1", ("Connection: close",), True),
        ("1.1", ("Connection: Close",), True),
        ("1.1", ("Connection: keep-alive, close",), True),
        ("1.1", ("Connection: foo", "Connection: close"), True),
        ("1.1", ("Connection: closed",), False),
        ("1.0", (), True),
        ("1.0", ("Connection: close",), True),
        ("1.0", ("Connection: keep-alive",), False),
        ("1.0", ("Connection: Keep-Alive",), False),
        ("1.0", ("Connection: keep-alive, close",), True),
    ],
)
def test_who_keeps_a_connection(
    run: Run, mode: Mode, app: Any, version: str, fields: tuple[str, ...], closes: bool
) -> None:
    # Without a length, only the end of the connection ends a body in HTTP/1.0.
    closes = closes or (version == "1.0" and app is streamed)

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            await client.send(request("/first", *fields, version=version))
            answer = await client.answer()
            assert answer.body == b"/first "
            assert answer.closes == closes
            if closes:
                assert await client.rest() == b""
                return
            if version == "1.0":
                assert answer["Connection"] == "keep-alive"
            assert (await client.get("/next")).body == b"/next "

    run(main())


def test_an_idle_connection_is_closed_without_a_word(run: Run, mode: Mode) -> None:
    async def main() -> None:
        async with served(echo, keep_alive=0.1, **mode) as server, await server.client() as client:
            assert (await client.get("/")).status == 200
            assert await client.rest() == b""

    run(main())


# Pipelines


@every_echo
@pytest.mark.parametrize("count", [2, 1000])
def test_a_pipeline_in_one_packet(run: Run, mode: Mode, app: Any, count: int) -> None:
    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            data = b"".join(request(f"/{number}") for number in range(count))
            sending = asyncio.ensure_future(client.send(data))
            for number in range(count):
                answer = await client.answer()
                assert (answer.body, answer.closes) == (b"/%d " % number, False)
            await sending
            assert (await client.get("/last")).body == b"/last "
            assert server.server.requests_processed == count + 1

    run(main())


@every_echo
def test_a_pipeline_of_everything(run: Run, mode: Mode, app: Any) -> None:
    pipeline = [
        ("GET", request("/0"), b"/0 "),
        ("POST", request("/1", method="POST", body=b"one"), b"/1 one"),
        ("HEAD", request("/2", method="HEAD"), b""),
        ("POST", request("/3", "Transfer-Encoding: chunked", method="POST"), b"/3 two!"),
        ("GET", request("/4", "Connection: upgrade", "Upgrade: h2c", body=b"four"), b"/4 four"),
        ("DELETE", request("/5", method="DELETE"), b"/5 "),
        ("POST", request("/6", method="POST", body=b""), b"/6 "),
        ("POST", b"\r\n" + request("/7", method="POST", body=b"x" * 300_000), None),
        ("GET", request("/8", "Connection: close"), b"/8 "),
    ]
    data = b""
    for method, raw, _ in pipeline:
        data += raw + (chunked(b"tw", b"o!") if b"/3 " in raw else b"")
        assert method.encode() in raw

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            sending = asyncio.ensure_future(client.send(data))
            for method, _, body in pipeline:
                answer = await client.answer(method)
                assert answer.status == 200
                assert answer.body == (b"/7 " + b"x" * 300_000 if body is None else body)
            await sending
            assert answer.closes
            assert await client.rest() == b""

    run(main())


def test_a_deep_pipeline_costs_no_stack(run: Run, mode: Mode) -> None:
    depths = set()

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        frame: Any = sys._getframe()
        depth = 0
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        depths.add(depth)
        return echo(environ, start_response)

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            await client.get()
            sending = asyncio.ensure_future(client.send(request() * 3000))
            for _ in range(3000):
                await client.answer()
            await sending

    run(main())
    assert max(depths) - min(depths) < 10


@pytest.mark.parametrize("app_name", ["whole", "later"])
def test_a_pipeline_whose_answers_nobody_reads_is_not_worked_off(
    run: Run, mode: Mode, app_name: str
) -> None:
    called = 0
    count, size = 400, 50_000

    def whole(environ: Environ, start_response: Any) -> Iterable[bytes]:
        nonlocal called
        called += 1
        start_response("200 OK", [("X-Number", environ["PATH_INFO"][1:])])
        return [b"x" * size]

    async def later(environ: Environ, start_response: Any) -> Iterable[bytes]:
        await asyncio.sleep(0)
        return whole(environ, start_response)

    app = {"whole": whole, "later": later}[app_name]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client(window=4096) as client:
            data = b"".join(request(f"/{number}") for number in range(count))
            sending = asyncio.ensure_future(client.send(data))
            await still(lambda: called)
            # What the kernel takes, and a batch.
            assert called * size < 16 * 2**20
            client.widen()
            for number in range(count):
                answer = await client.answer()
                assert (answer["X-Number"], len(answer.body)) == (str(number), size)
            await sending

    run(main())


async def still(count: Callable[[], int]) -> None:
    """Wait until ``count`` has begun to rise, and rises no more."""
    seen, quiet = 0, 0
    async with asyncio.timeout(PATIENCE):
        while not seen or quiet < 10:
            await asyncio.sleep(0.02)
            quiet = quiet + 1 if seen == count() else 0
            seen = count()


def test_answers_come_in_the_order_of_the_requests(run: Run) -> None:
    async def main() -> None:
        first = asyncio.Event()

        async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/first":
                await first.wait()
            return echo(environ, start_response)

        async with served(app) as server, await server.client() as client:
            await client.send(request("/first") + request("/second"))
            async with served(app) as other, await other.client() as quick:
                await quick.get("/")
            first.set()
            assert (await client.answer()).body == b"/first "
            assert (await client.answer()).body == b"/second "

    run(main())


# Behind the last request


async def failing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/fails":
        raise LookupError
    return echo(environ, start_response)


def failing_at_once(environ: Environ, start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/fails":
        raise LookupError
    return echo(environ, start_response)


LAST_REQUESTS = {
    "asked for": (echo, request("/last", "Connection: close")),
    "asked for, later": (later, request("/last", "Connection: close")),
    "asked for, streamed": (streamed, request("/last", "Connection: close")),
    "HTTP/1.0": (echo, request("/last", version="1.0")),
    "HTTP/1.0, later": (later, request("/last", version="1.0")),
    "HTTP/1.0, streamed": (streamed, request("/last", "Connection: keep-alive", version="1.0")),
    "an error": (failing_at_once, request("/fails")),
    "an error, later": (failing, request("/fails")),
    "a refusal": (echo, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
}


@pytest.mark.parametrize("before", [0, 300])
@pytest.mark.parametrize("case", LAST_REQUESTS)
def test_nothing_behind_a_close_is_served(run: Run, mode: Mode, case: str, before: int) -> None:
    app, last = LAST_REQUESTS[case]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            data = request("/before") * before + last + request("/behind") * 1000
            sending = asyncio.ensure_future(push(client, data))
            for _ in range(before):
                assert (await client.answer()).body == b"/before "
            answer = await client.answer()
            assert b"behind" not in answer.body
            assert answer.closes
            try:
                assert await client.rest() == b""
            except ConnectionResetError:
                pass
            await sending
            assert server.server.requests_processed <= before + 1

    run(main())


@pytest.mark.parametrize(
    ("how", "app"),
    [("close", echo), ("close", later), ("close", streamed), ("1.0", echo), ("1.0", streamed)],
)
def test_an_answer_before_a_close_is_not_lost(run: Run, mode: Mode, how: str, app: Any) -> None:
    """RFC 9112 section 9.6: who closes with something unread sends a reset, which destroys it."""
    body = b"x" * 2_000_000
    fields = ["Connection: close"] if how == "close" else []

    async def main() -> None:
        async with served(app, **mode) as server, await server.client(window=4096) as client:
            data = request(
                "/", *fields, method="POST", body=body, version="1.0" if how == "1.0" else "1.1"
            )
            # It goes on sending, and reads only afterwards.
            sending = asyncio.ensure_future(push(client, data + request("/more") * 1000))
            await still(lambda: server.server.requests_processed + client.sock.fileno())
            answer = await client.answer()
            assert answer.body == b"/ " + body
            await sending

    run(main())


# Expectations (RFC 9110 section 10.1.1)


def test_continue_is_sent_when_the_head_is_fine(run: Run, mode: Mode) -> None:
    async def main() -> None:
        async with served(echo, **mode) as server, await server.client() as client:
            for _ in range(3):
                await client.send(
                    request("/", "Expect: 100-continue", "Content-Length: 5", method="POST")
                )
                assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                await client.send(b"he")
                await client.send(b"llo")
                answer = await client.answer()
                assert (answer.interim, answer.body) == ([100], b"/ hello")

    run(main())


def test_continue_with_chunks(run: Run, mode: Mode) -> None:
    async def main() -> None:
        async with served(echo, **mode) as server, await server.client() as client:
            fields = ("Expect: 100-Continue", "Transfer-Encoding: chunked")
            await client.send(request("/", *fields, method="PUT"))
            await client.until(b"100 Continue\r\n\r\n")
            await client.send(chunked(b"hel", b"lo"))
            assert (await client.answer()).body == b"/ hello"
            assert (await client.get()).interim == []

    run(main())


def test_a_client_that_does_not_wait_for_continue(run: Run, mode: Mode) -> None:
    async def main() -> None:
        async with served(echo, **mode) as server, await server.client() as client:
            data = request("/", "Expect: 100-continue", method="POST", body=b"hello")
            await client.send(data * 3)
            for _ in range(3):
                answer = await client.answer()
                assert (answer.body, answer.interim in ([], [100])) == (b"/ hello", True)

    run(main())


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        (["Expect: 100-continue"], "1.1"),
        (["Expect: 100-continue", "Content-Length: 0"], "1.1"),
        (["Expect: 100-continue"], "1.0"),
    ],
)
def test_no_continue_where_nothing_follows(
    run: Run, mode: Mode, fields: list[str], version: str
) -> None:
    answer = asked(run, echo, request("/", *fields, version=version), **mode)
    assert (answer.interim, answer.body) == ([], b"/ ")


def test_no_continue_to_http_1_0(run: Run, mode: Mode) -> None:
    async def main() -> None:
        async with served(echo, **mode) as server, await server.client() as client:
            fields = ("Expect: 100-continue", "Content-Length: 5")
            await client.send(request("/", *fields, version="1.0", method="POST"))
            await client.send(b"hello")
            answer = await client.answer()
            assert (answer.interim, answer.body) == ([], b"/ hello")

    run(main())


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (["Expect: 100-continue", "Content-Length: 1001"], 413),
        (["Expect: 100-continue", "Content-Length: x"], 400),
        (["Expect: 200-ok", "Content-Length: 5"], 417),
        (["Expect: 100-continue, 200-ok", "Content-Length: 5"], 417),
    ],
)
def test_a_refusal_instead_of_continue(
    run: Run, mode: Mode, fields: list[str], status: int
) -> None:
    data = request("/", *fields, method="POST")
    answer = asked(run, echo, data, max_body=1000, **mode)
    assert (answer.status, answer.interim, answer.closes) == (status, [], True)


# Ends


@every_echo
def test_who_has_ended_his_side_is_answered(run: Run, mode: Mode, app: Any) -> None:
    async def main() -> None:
        async with served(app, **mode) as server:
            for count in (1, 3):
                async with await server.client() as client:
                    await client.send(request("/", method="POST", body=b"hello") * count)
                    client.end()
                    for _ in range(count):
                        assert (await client.answer()).body == b"/ hello"
                    assert await client.rest() == b""

    run(main())


def test_who_has_ended_his_side_gets_a_long_answer_whole(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        for _ in range(100):
            yield b"x" * 100_000

    async def main() -> None:
        async with served(app, **mode) as server, await server.client(window=4096) as client:
            await client.send(request())
            client.end()
            assert len((await client.answer()).body) == 10_000_000
            assert await client.rest() == b""

    run(main())


@pytest.mark.parametrize("data", [b"", b"\r\n", b"\r\n\r\n", request() + b"\r\n"])
def test_an_end_between_requests_is_no_request(
    run: Run, mode: Mode, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_EOF_LINGER", 1000.0)

    async def main() -> None:
        async with served(echo, **mode) as server, await server.client() as client:
            await client.send(data)
            if b"GET" in data:
                assert (await client.answer()).status == 200
            client.end()
            assert await client.rest() == b""

    run(main())


# Refusals


REFUSALS: dict[str, tuple[bytes, int, dict[str, Any]]] = {
    "nonsense": (b"nonsense\r\n\r\n", 400, {}),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, {}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, {}),
    "a long target": (request("/" + "a" * 200), 414, {"limit_request_line": 100}),
    "a long field": (request("/", "X: " + "a" * 200), 431, {"limit_request_field_size": 100}),
    "many fields": (request("/", *["X: a"] * 9), 431, {"limit_request_fields": 5}),
    "a long body": (request("/", "Content-Length: 101", method="POST"), 413, {"max_body": 100}),
    "many chunks": (
        request("/", "Transfer-Encoding: chunked", method="POST") + chunked(b"a" * 60, b"b" * 60),
        413,
        {"max_body": 100},
    ),
    "a tunnel": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501, {}),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, {}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal(run: Run, mode: Mode, case: str, caplog: pytest.LogCaptureFixture) -> None:
    data, status, settings = REFUSALS[case]
    caplog.set_level(logging.INFO, "pulsar")
    answer = asked(run, echo, data, **settings, **mode)
    assert (answer.status, answer.closes) == (status, True)
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["Date"]
    assert answer.body.decode().endswith(".\n")
    [line] = [record for record in caplog.records if f" {status} " in record.getMessage()]
    assert line.levelname == "INFO"
    assert "127.0.0.1:" in line.getMessage()
    assert line.exc_info is None


@pytest.mark.parametrize("case", ["a long target", "a long field", "many fields", "a long body"])
def test_what_is_just_within_the_limits(run: Run, mode: Mode, case: str) -> None:
    data = {
        "a long target": request("/" + "a" * (100 - len("GET / HTTP/1.1"))),
        "a long field": request("/", "X: " + "a" * 97),
        "many fields": request("/", *["X: a"] * 4),
        "a long body": request("/", method="POST", body=b"a" * 100),
    }[case]
    assert asked(run, echo, data, **REFUSALS[case][2], **mode).status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request("/", f"Content-Length: {10**9}", method="POST"), 413),
        (request("/", "Content-Length: 1", "Content-Length: 2", method="POST"), 400),
        (request("/", "Transfer-Encoding: chunked", method="POST") + b"1000000\r\n", 413),
        (b"GET /", 414),
        (b"GET / HTTP/1.1\r\nX: ", 431),
    ],
)
def test_a_refusal_is_not_lost_on_who_goes_on_sending(
    run: Run, mode: Mode, head: bytes, status: int
) -> None:
    async def main() -> None:
        async with (
            served(echo, max_body=10_000, **mode) as server,
            await server.client() as client,
        ):
            # 20 MB, which no buffer takes in: somebody reads them, or says that it is over.
            sending = asyncio.ensure_future(push(client, head + b"a" * 20_000_000))
            answer = await client.answer()
            assert (answer.status, answer.closes) == (status, True)
            await sending

    run(main())


# The server stops


def test_what_is_answered_while_the_server_stops_says_that_it_is_the_last(
    run: Run, mode: Mode
) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/slow":
                await release.wait()
            return echo(environ, start_response)

        async with (
            served(app, **mode) as server,
            await server.client() as busy,
            await server.client() as idle,
            await server.client() as pipelining,
        ):
            for client in (busy, idle, pipelining):
                assert not (await client.get("/before")).closes
            await busy.send(request("/slow"))
            await pipelining.send(request("/slow") + request("/behind"))
            await in_hand(server, 2)
            stopping = asyncio.ensure_future(server.server.close())
            # It is told to everybody at once.
            while not (await idle.get("/idle")).closes:
                pass
            assert await idle.rest() == b""
            release.set()
            answer = await busy.answer()
            assert (answer.body, answer.closes) == (b"/slow ", True)
            # What was sent before anybody was told is answered: the last one says it.
            answer = await pipelining.answer()
            assert (answer.body, answer.closes) == (b"/slow ", False)
            answer = await pipelining.answer()
            assert (answer.body, answer.closes) == (b"/behind ", True)
            for client in (busy, pipelining):
                assert await client.rest() == b""
            await stopping

    run(main())


async def in_hand(server: Served, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(server.server.in_hand()) < count:
            await asyncio.sleep(0.001)


def test_connections_that_are_idle_go_when_the_server_stops(run: Run, mode: Mode) -> None:
    async def main() -> None:
        async with (
            served(echo, **mode) as server,
            await server.client() as used,
            await server.client() as fresh,
        ):
            await used.get()
            await server.server.close(timeout=5)
            assert await used.rest() == b""
            assert await fresh.rest() == b""

    run(main())
