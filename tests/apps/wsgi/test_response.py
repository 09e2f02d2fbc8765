"""``HttpServerResponse`` itself, what goes beyond PEP 3333, and deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import partial
from typing import Any

import pytest

from pulsar import ProtocolConsumer, TcpServer
from pulsar.apps.wsgi import HttpServerResponse, WSGIServer
from pulsar.apps.wsgi.head import http_date
from pulsar.apps.wsgi.server import HttpServerResponse as FromTheServersModule
from pulsar.errors import InvalidMessage, PulsarException
from tests.apps.wsgi.client import Client, request
from tests.apps.wsgi.serving import asked, served

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]

TEXT = [("Content-Type", "text/plain")]


def greedy(environ: Environ, start_response: Any) -> Iterable[bytes]:
    environ["wsgi.input"].read()
    return hello(environ, start_response)


def hello(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*TEXT, ("Content-Length", "5")])
    return [b"hello"]


# The class, as the documentation of old has it


@asynccontextmanager
async def served_by(factory: Any) -> Any:
    async with (
        TcpServer(factory, address=("127.0.0.1", 0)) as server,
        await Client.connect(server.address) as client,
    ):
        yield client


def test_it_is_a_consumer_for_any_server(run: Run) -> None:
    cfg = WSGIServer(hello, load_config=False).cfg
    assert FromTheServersModule is HttpServerResponse

    async def main() -> None:
        factory = partial(HttpServerResponse, hello, cfg, server_software="mine/1")
        async with served_by(factory) as client:
            for _ in range(3):
                answer = await client.get()
                assert (answer.body, answer["Server"]) == (b"hello", "mine/1")
        one = HttpServerResponse(hello, cfg, None, asyncio.get_running_loop())
        assert isinstance(one, ProtocolConsumer)
        assert one.wsgi_callable is hello
        assert one.headers_sent is None

    run(main())


def test_the_head_as_it_was_sent(run: Run) -> None:
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        response = start_response.__self__
        seen.append(response.headers_sent)
        write = start_response("200 OK", TEXT)
        seen.append(response.headers_sent)
        write(b"")
        seen.append(response.headers_sent)
        write(b"", force=True)
        seen.append(response.headers_sent)
        yield b"body"
        assert response.headers_sent is seen[-1]

    answer = asked(run, app)
    assert answer.body == b"body"
    assert seen == [None, None, None, answer.head]


def test_the_head_can_be_sent_before_there_is_a_body(run: Run, mode: Mode) -> None:
    async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        await start_response("200 OK", TEXT)(b"", force=True)
        await go_on.wait()
        return [b"body"]

    async def main() -> None:
        nonlocal go_on
        go_on = asyncio.Event()
        async with served(app, **mode) as server, await server.client() as client:
            await client.send(request())
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            go_on.set()
            assert (await client.answer()).body == b"body"

    go_on: Any = None
    run(main())


def test_subclasses(run: Run, mode: Mode) -> None:
    class Response(HttpServerResponse):
        def start_response(self, status: str, response_headers: Any, exc_info: Any = None) -> Any:
            headers = [*response_headers, ("X-Mine", "1")]
            return super().start_response(status, headers, exc_info)

    class Server(WSGIServer):
        response_class = Response

    async def main() -> None:
        application = Server(hello, load_config=False, bind="127.0.0.1:0", workers=0, **mode)
        server = await application.create_server()
        async with await Client.connect(server.address) as client:
            assert (await client.get())["X-Mine"] == "1"
        await application.worker_stop(None, 0)

    run(main())


# Early hints (RFC 8297)


def test_early_hints(run: Run, mode: Mode) -> None:
    links = [("Link", "</a.css>; rel=preload"), ("Link", "</b.js>; rel=preload")]

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        hint = environ["wsgi.early_hints"]
        hint(links)
        hint([("Link", "</c.js>")])
        with pytest.raises(InvalidMessage):
            hint([("Link", "a\r\nX: y")])
        start_response("200 OK", TEXT)
        yield b"body"
        hint(links)

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for _ in range(2):
                await client.send(request())
                raw = await client.until(b"</c.js>\r\n\r\n")
                hints = raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
                assert hints[0] == b"HTTP/1.1 103 Early Hints"
                assert hints[1:] == [b"%b: %b" % tuple(map(str.encode, pair)) for pair in links]
                answer = await client.answer()
                assert (answer.interim, answer.body) == ([103, 103], b"body")
            await client.send(request(version="1.0"))
            assert (await client.answer()).interim == []

    run(main())


# Trailers


class WithTrailers:
    def __init__(self, *trailers: tuple[str, str]) -> None:
        self.sent = list(trailers)

    def __iter__(self) -> Iterator[bytes]:
        yield b"bo"
        yield b"dy"

    def trailers(self) -> list[tuple[str, str]]:
        return self.sent


def test_trailers(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        length = [("Content-Length", "4")] if environ["PATH_INFO"] == "/length" else []
        start_response("200 OK", [*TEXT, *length])
        return WithTrailers(("Digest", "x"), ("X-Time", "1"))

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            answer = await client.get()
            assert (answer.body, answer.trailers) == (b"body", [("Digest", "x"), ("X-Time", "1")])
            answer = await client.get("/length")
            assert (answer.body, answer.trailers) == (b"body", [])
            assert (await client.get(method="HEAD")).trailers == []
            assert (await client.get()).body == b"body"

    run(main())


@pytest.mark.parametrize(
    "trailer", [("Content-Length", "1"), ("X", "a\r\nY: b"), ("Transfer-Encoding", "chunked")]
)
def test_trailers_that_cannot_be_sent_end_the_connection(
    run: Run, mode: Mode, trailer: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return WithTrailers(trailer)

    with pytest.raises((EOFError, ConnectionResetError)):
        asked(run, app, **mode)
    assert [r.levelname for r in caplog.records if r.levelno >= logging.WARNING] == ["ERROR"]


# Another protocol


class Shout(ProtocolConsumer):
    def data_received(self, data: bytes) -> None:
        self.write(data.upper())
        self.finished()


def test_a_change_of_protocol(run: Run) -> None:
    refused = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        response = start_response.__self__
        if environ["PATH_INFO"] == "/shout":
            response.upgrade(Shout, "shout", [("X-Volume", "11")])
            return []
        try:
            response.upgrade(Shout, "shout")
        except PulsarException as error:
            refused.append(str(error))
        return hello(environ, start_response)

    async def main() -> None:
        async with served(app) as server, await server.client() as client:
            # Not offered, and offered but not taken.
            assert (await client.get("/")).body == b"hello"
            offer = ("Connection: Upgrade", "Upgrade: h2c, Shout")
            await client.send(request("/shout", *offer) + b"first")
            answer = await client.answer()
            assert (answer.status, answer["Upgrade"], answer["X-Volume"]) == (101, "shout", "11")
            assert answer["Connection"].lower() == "upgrade"
            assert await client.until(b"FIRST") == b"FIRST"
            await client.send(b"second")
            assert await client.until(b"SECOND") == b"FIRSTSECOND"

    run(main())
    assert len(refused) == 1
    assert "shout" in refused[0]


def test_a_protocol_that_is_not_taken(run: Run, mode: Mode) -> None:
    async def main() -> None:
        async with served(hello, **mode) as server, await server.client() as client:
            offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x")
            body = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            await client.send(request("/", *offer, body=body) * 2)
            for _ in range(2):
                assert (await client.answer()).body == b"hello"
            assert (await client.get()).body == b"hello"
            assert server.server.requests_processed == 3

    run(main())


# Deadlines


@pytest.mark.parametrize("sent", [b"GET", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_head_that_takes_too_long(
    run: Run, mode: Mode, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pulsar")

    async def main() -> None:
        settings = {"head_timeout": 0.2, **mode}
        async with served(hello, **settings) as server, await server.client() as client:
            await client.send(sent)
            answering = asyncio.ensure_future(client.answer())
            # Bytes that come in between do not give it more time.
            while not answering.done():
                try:
                    await client.send(b"a")
                except ConnectionError:
                    break
                await asyncio.sleep(0.02)
            answer = await answering
            assert (answer.status, answer.closes) == (408, True)

    run(main())
    assert any("408" in record.getMessage() for record in caplog.records)


def test_a_slow_head_among_quick_ones(run: Run, mode: Mode) -> None:
    async def main() -> None:
        settings = {"head_timeout": 0.2, "keep_alive": 100, **mode}
        async with served(hello, **settings) as server, await server.client() as client:
            for _ in range(3):
                assert (await client.get()).status == 200
            await client.send(request() + b"GET / HTTP/1.1\r\n")
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 408
            assert await client.rest() == b""

    run(main())


@pytest.mark.parametrize("field", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_body_that_stops_coming(run: Run, mode: Mode, field: str) -> None:
    async def main() -> None:
        settings = {"stall_timeout": 0.2, **mode}
        async with served(greedy, **settings) as server, await server.client() as client:
            await client.send(request("/", field, method="POST") + b"5\r\nsome")
            answer = await client.answer()
            assert (answer.status, answer.closes) == (408, True)
            assert await client.rest() == b""

    run(main())


def test_a_body_that_comes_slowly_is_waited_for(run: Run, mode: Mode) -> None:
    """The deadline is about silence: the head's is over with the head."""

    async def main() -> None:
        settings = {"stall_timeout": 100, "head_timeout": 0.2, **mode}
        async with served(hello, **settings) as server, await server.client() as client:
            await client.send(request("/", "Content-Length: 10", method="POST"))
            for _ in range(10):
                await asyncio.sleep(0.05)
                await client.send(b"x")
            assert (await client.answer()).status == 200

    run(main())


def test_a_reader_that_stops_reading(run: Run, mode: Mode) -> None:
    closed = []

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"x" * 65536

        def close(self) -> None:
            closed.append(1)

    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])
        return Endless()

    async def main() -> None:
        settings = {"stall_timeout": 0.3, **mode}
        async with served(app, **settings) as server, await server.client(window=4096) as client:
            await client.send(request())
            while not closed or server.server.connections:
                await asyncio.sleep(0.01)

    run(main())
    assert closed == [1]


def test_an_application_may_take_its_time(run: Run) -> None:
    async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        await asyncio.sleep(1.0)
        return hello(environ, start_response)

    settings = {"stall_timeout": 0.2, "head_timeout": 0.2, "keep_alive": 0.2}
    assert asked(run, app, **settings).body == b"hello"


def test_dates() -> None:
    for second in (0, 784111777, 951782400, 1709164800, 4102444799):
        assert http_date(second) == formatdate(second, usegmt=True)
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110's example
