"""PEP 3333 to the letter, on the loop and in threads."""

from __future__ import annotations

import functools
import io
import logging
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from pulsar.apps.wsgi import WSGIServer, head
from pulsar.errors import ImproperlyConfigured, PulsarException
from tests.apps.wsgi.client import Client, request
from tests.apps.wsgi.serving import asked, served

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]

TEXT = [("Content-Type", "text/plain")]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error, each with the class of its exception."""
    return [
        record.getMessage() + (f" {record.exc_info[0].__name__}" if record.exc_info else "")
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]


def assert_failed(answer: Any, caplog: pytest.LogCaptureFixture, error: str = "") -> None:
    """The client was told no more than that, and the log everything, once."""
    assert (answer.status, answer.reason) == (500, "Internal Server Error")
    assert answer.closes
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body == b"The application has failed.\n"
    [said] = errors(caplog)
    assert said.startswith("GET / failed"), said
    assert said.endswith(error), said


# Applications, each checked by wsgiref.validate


def whole(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*TEXT, ("Content-Length", "6")])
    return [b"whole\n"]


def pieces(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [b"who", b"", b"le\n"]


def generated(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    yield b"who"
    yield b""
    yield b"le\n"


def written(environ: Environ, start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", TEXT)
    write(b"who")
    write(b"le")
    return [b"\n"]


def filed(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(b"whole\n"), 2)
    return wrapped


class Object:
    """An application whose result is an object of its own."""

    def __init__(self, environ: Environ, start_response: Any) -> None:
        self.start = start_response

    def __iter__(self) -> Iterator[bytes]:
        self.start("200 OK", TEXT)
        yield b"whole\n"


class Callable_:
    def __call__(self, environ: Environ, start_response: Any, more: int = 0) -> Iterable[bytes]:
        return whole(environ, start_response)


APPLICATIONS = {
    "whole": whole,
    "pieces": pieces,
    "generated": generated,
    "written": written,
    "a file": filed,
    "a class": Object,
    "an object": Callable_(),
    "a partial": functools.partial(lambda more, environ, start: whole(environ, start), 1),
}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(
    run: Run,
    mode: Mode,
    name: str,
    version: str,
    method: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = b"some body" if method == "POST" else None
    data = request(version=version, method=method, body=body)
    for app in (APPLICATIONS[name], validator(APPLICATIONS[name])):
        answer = asked(run, app, data, method=method, **mode)
        assert (answer.status, answer.reason) == (200, "OK")
        assert answer["Content-Type"] == "text/plain"
        assert answer.body == (b"" if method == "HEAD" else b"whole\n")
        assert answer.closes == (version == "1.0")
        assert not (answer.chunked and version == "1.0")
        assert answer["Date"]
        assert answer["Server"].startswith("pulsar/")
    assert errors(caplog) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("app", [None, 1, "app", lambda environ: [], list, object()])
def test_what_is_no_application_is_refused(app: Any) -> None:
    with pytest.raises(ImproperlyConfigured):
        WSGIServer(app, load_config=False, bind="127.0.0.1:0").check()


# start_response


@pytest.mark.parametrize("yields", [False, True])
def test_start_response_twice(
    run: Run, mode: Mode, yields: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        start_response("201 Created", TEXT)
        return [b"x"]

    def generator(environ: Environ, start_response: Any) -> Iterable[bytes]:
        yield from app(environ, start_response)

    assert_failed(asked(run, generator if yields else app, **mode), caplog, "PulsarException")


def test_start_response_again_with_exc_info_replaces_the_head(
    run: Run, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [*TEXT, ("X-First", "1"), ("Content-Length", "1000")])
        try:
            raise ValueError("what the application can deal with")
        except ValueError:
            start_response("503 Try Later", [*TEXT, ("X-Second", "2")], sys.exc_info())
        return [b"sorry"]

    for each in (app, validator(app)):
        answer = asked(run, each, **mode)
        assert (answer.status, answer.reason, answer.body) == (503, "Try Later", b"sorry")
        assert answer["X-Second"] == "2"
        assert "X-First" not in answer
        assert answer.get_all("Content-Length") in ([], ["5"])
    assert errors(caplog) == []


def test_exc_info_at_the_first_call_is_fine(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            raise ValueError
        except ValueError:
            start_response("500 Mine", TEXT, sys.exc_info())
        return [b"x"]

    answer = asked(run, validator(app), **mode)
    assert (answer.status, answer.reason, answer.body) == (500, "Mine", b"x")
    assert not answer.closes


@pytest.mark.parametrize("writes", [False, True])
def test_exc_info_after_the_head_was_sent_raises_it(
    run: Run, mode: Mode, writes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    raised = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        if writes:
            write(b"some")
        else:
            yield b"some"
        try:
            raise LookupError("the real one")
        except LookupError:
            try:
                start_response("500 Oops", TEXT, sys.exc_info())
            except LookupError as error:
                raised.append(str(error))
                raise
        yield b"more"

    with pytest.raises((EOFError, ConnectionResetError)):
        asked(run, app, **mode)
    assert raised == ["the real one"]
    assert errors(caplog) == ["GET / failed LookupError"]


def test_no_start_response(run: Run, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    for result in ([b"x"], [], (), iter([b"x"]), iter([])):
        caplog.clear()
        answer = asked(run, lambda environ, start, result=result: result, **mode)
        assert_failed(answer, caplog, "PulsarException")


def test_the_head_waits_for_the_first_bytes(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        yield b""
        try:
            raise ValueError
        except ValueError:
            start_response("404 Not Found", TEXT, sys.exc_info())
        yield b"x"

    assert asked(run, app, **mode).status == 404


def test_headers_keep_their_order_and_their_doubles(run: Run, mode: Mode) -> None:
    sent = [("B", "1"), ("Set-Cookie", "a=1"), ("A", ""), ("Set-Cookie", "b=2; Path=/"), ("b", "2")]

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", sent)
        return [b"x"]

    answer = asked(run, app, **mode)
    assert answer.headers[: len(sent)] == sent


def test_date_and_server_of_the_application(run: Run, mode: Mode) -> None:
    date = "Thu, 01 Jan 1970 00:00:00 GMT"

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("date", date), ("SERVER", "mine")])
        return [b"x"]

    answer = asked(run, app, **mode)
    assert (answer.get_all("Date"), answer.get_all("Server")) == ([date], ["mine"])


def test_the_server_header_can_be_switched_off(run: Run, mode: Mode) -> None:
    assert "Server" not in asked(run, whole, server_header=False, **mode)
    refused = asked(run, whole, b"nonsense\r\n\r\n", server_header=False, **mode)
    assert refused.status == 400
    assert "Server" not in refused


def test_hop_by_hop_headers_are_dropped_and_that_is_said_once(
    run: Run, mode: Mode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_warned", set())
    dropped = [
        "Connection",
        "keep-alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "TRANSFER-ENCODING",
        "Upgrade",
    ]

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        number = environ["PATH_INFO"]
        hop = [(name, "close") for name in dropped]
        start_response("200 OK", [("A", number), *hop, ("B", "2"), ("Content-Length", "1")])
        return [b"x"]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for number in range(3):
                answer = await client.get(f"/{number}")
                names = [name for name, _ in answer.headers]
                assert names == ["A", "B", "Content-Length", "Date", "Server"]
                assert not answer.closes

    run(main())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == len(dropped)
    for name, said in zip(dropped, warnings, strict=True):
        assert name in said


# What cannot be sent

INJECTED = "a\r\nX-Injected: yes"
WRONG_HEADS: dict[str, tuple[Any, Any]] = {
    "status: a number": (200, TEXT),
    "status: bytes": (b"200 OK", TEXT),
    "status: None": (None, TEXT),
    "status: no number": ("OK", TEXT),
    "status: empty": ("", TEXT),
    "status: two digits": ("20 OK", TEXT),
    "status: four digits": ("2000 OK", TEXT),
    "status: a zero in front": ("020 OK", TEXT),
    "status: a blank in front": (" 200 OK", TEXT),
    "status: an interim one": ("100 Continue", TEXT),
    "status: of an upgrade": ("101 Switching Protocols", TEXT),
    "status: not Latin-1": ("200 \u20ac", TEXT),
    "status: a line end": ("200 OK\r\nX-Injected: yes", TEXT),
    "status: LF": ("200 OK\nX-Injected: yes", TEXT),
    "status: CR": ("200 OK\rX-Injected: yes", TEXT),
    "status: NUL": ("200 OK\0", TEXT),
    "headers: None": ("200 OK", None),
    "headers: a number": ("200 OK", 1),
    "headers: a text": ("200 OK", "ab"),
    "headers: of three": ("200 OK", [("a", "b", "c")]),
    "headers: of one": ("200 OK", [("a",)]),
    "value: a line end": ("200 OK", [("X", INJECTED)]),
    "value: LF": ("200 OK", [("X", "a\nX-Injected: yes")]),
    "value: CR": ("200 OK", [("X", "a\rX-Injected: yes")]),
    "value: a folded line": ("200 OK", [("X", "a\r\n X-Injected: yes")]),
    "value: a body": ("200 OK", [("X", "a\r\n\r\nX-Injected: yes")]),
    "value: ends in CR": ("200 OK", [("X", "a\r")]),
    "value: ends in a line end": ("200 OK", [("X", "a\r\n")]),
    "value: NUL": ("200 OK", [("X", "a\0b")]),
    "value: DEL": ("200 OK", [("X", "a\x7f")]),
    "value: not Latin-1": ("200 OK", [("X", "\u20ac")]),
    "value: what some make CR LF of": ("200 OK", [("X", "a\u010d\u010aX-Injected: yes")]),
    "value: bytes": ("200 OK", [("X", b"a")]),
    "value: a number": ("200 OK", [("X", 1)]),
    "value: None": ("200 OK", [("X", None)]),
    "name: a line end": ("200 OK", [("X: a\r\nX-Injected", "yes")]),
    "name: a colon": ("200 OK", [("X:", "a")]),
    "name: a blank": ("200 OK", [("X ", "a")]),
    "name: empty": ("200 OK", [("", "a")]),
    "name: bytes": ("200 OK", [(b"X", "a")]),
    "name: None": ("200 OK", [(None, "a")]),
    "name: not ASCII": ("200 OK", [("\xdcX", "a")]),
    "hop-by-hop, and a line end": ("200 OK", [("Connection", INJECTED)]),
    "length: a text": ("200 OK", [("Content-Length", "one")]),
    "length: empty": ("200 OK", [("Content-Length", "")]),
    "length: negative": ("200 OK", [("Content-Length", "-1")]),
    "length: signed": ("200 OK", [("Content-Length", "+1")]),
    "length: with a blank": ("200 OK", [("Content-Length", " 1")]),
    "length: hexadecimal": ("200 OK", [("Content-Length", "0x1")]),
    "length: other digits": ("200 OK", [("Content-Length", "\xb9")]),
    "length: several": ("200 OK", [("Content-Length", "1"), ("content-length", "1")]),
    "length: a list": ("200 OK", [("Content-Length", "1, 1")]),
}


@pytest.mark.parametrize("case", WRONG_HEADS)
def test_a_head_that_cannot_be_sent(
    run: Run, mode: Mode, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers = WRONG_HEADS[case]

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(status, headers)
        return [b"x"]

    def generator(environ: Environ, start_response: Any) -> Iterable[bytes]:
        yield from app(environ, start_response)

    for each in (app, generator):
        caplog.clear()
        answer = asked(run, each, **mode)
        assert b"njected" not in answer.head + answer.body
        assert_failed(answer, caplog)


@pytest.mark.parametrize("case", ["value: a line end", "status: LF", "name: a colon"])
def test_what_was_refused_does_not_come_through_a_cache(run: Run, mode: Mode, case: str) -> None:
    wrong = WRONG_HEADS[case]

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        for _ in range(3):
            with pytest.raises(PulsarException):
                start_response(*wrong)
        start_response("200 OK", TEXT)
        return [b"fine"]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for _ in range(3):
                assert (await client.get()).body == b"fine"

    run(main())


@pytest.mark.parametrize(
    "headers",
    [
        (("A", "1"), ("B", "2")),
        [["A", "1"], ["B", "2"]],
        iter([("A", "1"), ("B", "2")]),
    ],
    ids=["a tuple", "lists", "an iterator"],
)
def test_headers_in_another_shape_are_all_sent_or_refused(
    run: Run, mode: Mode, headers: Any
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [b"x"]

    answer = asked(run, app, **mode)
    sent = [pair for pair in answer.headers if pair[0] in {"A", "B"}]
    assert (answer.status, sent) in [(500, []), (200, [("A", "1"), ("B", "2")])]


WRONG_BODIES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a number": lambda: 1,
    "a text": lambda: "text",
    "bytes": lambda: b"bytes",
    "texts": lambda: ["text"],
    "numbers": lambda: [1, 2],
    "None inside": lambda: [None],
    "texts behind bytes": lambda: [b"a", "text"],
    "a generator of texts": lambda: (text for text in ["text"]),
    "an iterator of None": lambda: iter([None]),
}


@pytest.mark.parametrize("case", WRONG_BODIES)
def test_a_body_that_is_none(
    run: Run, mode: Mode, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return WRONG_BODIES[case]()

    assert_failed(asked(run, app, **mode), caplog, "TypeError")


def test_write_takes_bytes_only(run: Run, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)("text")
        return []

    assert_failed(asked(run, app, **mode), caplog, "TypeError")


# How long a body is


@pytest.mark.parametrize(
    "length", [("Content-Length", "5"), ("content-length", "5"), ("CONTENT-LENGTH", "005")]
)
def test_a_body_is_as_long_as_it_says(
    run: Run, mode: Mode, length: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [length])
        if environ["PATH_INFO"] == "/written":
            write(b"hel")
            return [b"lo"]
        return iter([b"h", b"", b"ello"]) if environ["PATH_INFO"] == "/pieces" else [b"hello"]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for target in ("/whole", "/pieces", "/written", "/whole"):
                answer = await client.get(target)
                assert (answer.body, answer.closes) == (b"hello", False)
                assert not answer.chunked

    run(main())
    assert errors(caplog) == []


@pytest.mark.parametrize("way", ["/whole", "/pieces", "/written"])
def test_a_body_that_is_too_long_is_cut_off(
    run: Run, mode: Mode, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        long = environ["PATH_INFO"] == way
        write = start_response("200 OK", [("Content-Length", "5")])
        if not long:
            return [b"hello"]
        if way == "/written":
            write(b"hello, wor")
            return [b"ld"]
        return iter([b"hel", b"lo, ", b"world"]) if way == "/pieces" else [b"hello, world"]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            answer = await client.get(way)
            assert answer.body == b"hello"
            # Nothing of the rest is taken for the next answer.
            if not answer.closes:
                assert (await client.get("/fine")).body == b"hello"

    run(main())
    assert errors(caplog)
    assert "Content-Length" in caplog.text


@pytest.mark.parametrize("way", ["/whole", "/pieces", "/written", "/nothing"])
def test_a_body_that_is_too_short_is_no_answer(
    run: Run, mode: Mode, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Length", "5")])
        if way == "/written":
            write(b"hel")
        return {"/pieces": iter([b"he", b"l"]), "/whole": [b"hel"]}.get(way, [])

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            await client.send(request(way) + request("/next"))
            try:
                answer = await client.answer()
            except (EOFError, ConnectionResetError):
                return
            # Before anything was sent it can be an answer of another kind.
            assert (answer.status, answer.closes) == (500, True)
            assert await client.rest() == b""

    run(main())
    [said] = errors(caplog)
    assert said.startswith(f"GET {way} failed")
    assert "shorter than its Content-Length" in caplog.text


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_answer_without_a_body_has_none(
    run: Run, mode: Mode, status: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        how = environ["QUERY_STRING"]
        start_response(status, [("Content-Length", "4")] if "length" in how else [("ETag", '"a"')])
        if "empty" in how:
            return []
        return iter([b"bo", b"dy"]) if "pieces" in how else [b"body"]

    async def main() -> None:
        fields = [] if version == "1.1" else ["Connection: keep-alive"]
        async with served(app, **mode) as server, await server.client() as client:
            for how in ("empty", "whole", "pieces", "length-whole", "length-pieces"):
                await client.send(request(f"/?{how}", *fields, version=version))
                answer = await client.answer()
                assert f"{answer.status} {answer.reason}" == status
                assert (answer.body, answer.until_close, answer.closes) == (b"", False, False)
                if "length" in how and answer.status == 304:
                    assert answer["Content-Length"] == "4"

    run(main())


def test_head_is_get_without_a_body(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        how = environ["PATH_INFO"]
        length = [("Content-Length", "12")] if how.endswith("length") else []
        write = start_response("200 OK", [*TEXT, *length])
        if how == "/written":
            write(b"some")
        return iter([b"some", b" of", b" it  "]) if "pieces" in how else [b"some of it  "]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for target in ("/", "/pieces", "/written", "/length", "/pieces-length"):
                answer = await client.get(target, method="HEAD")
                assert (answer.status, answer.body, answer.closes) == (200, b"", False)
                plain = await client.get(target)
                assert plain.body
                for name in ("Content-Length", "Transfer-Encoding"):
                    # RFC 9110 section 9.3.2: the same, or nothing.
                    assert answer.get_all(name) in ([], plain.get_all(name))
                assert answer["Content-Type"] == "text/plain"

    run(main())


# write


def test_write_and_the_iterable_are_one_body_in_order(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"1")
        yield b"2"
        write(b"3")
        write(b"")
        yield b"4"

    for version in ("1.1", "1.0"):
        assert asked(run, app, request(version=version), **mode).body == b"1234"


def test_write_in_a_large_way(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        for number in range(50):
            write(b"%d" % (number % 10) * 50_000)
        return [b"."]

    body = asked(run, app, **mode).body
    assert body == b"".join(b"%d" % (number % 10) * 50_000 for number in range(50)) + b"."


def test_what_was_written_is_on_its_way(run: Run) -> None:
    """PEP 3333: a piece is not kept back until there is another one.

    In a thread the client, on the loop, would read it while the application looks for it.
    """
    clients: list[Client] = []

    def arrived(text: bytes) -> bool:
        sock = clients[0].sock.dup()
        with sock:
            sock.settimeout(10.0)
            seen = b""
            while not seen.endswith(text):
                seen = sock.recv(10_000, socket.MSG_PEEK)
            return True

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Length", "15")])
        write(b"first")
        assert arrived(b"first")
        yield b"other"
        assert arrived(b"firstother")
        yield b"third"

    async def main() -> None:
        async with served(app) as server, await server.client() as client:
            clients.append(client)
            await client.send(request())
            assert (await client.answer()).body == b"firstotherthird"

    run(main())


# close


class Result:
    """An iterable that counts its ends."""

    def __init__(self, *pieces: Any, closing: Exception | None = None) -> None:
        self.pieces = iter(pieces)
        self.closing = closing
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self.pieces)
        if isinstance(piece, Exception):
            raise piece
        return bytes(piece)

    def close(self) -> None:
        self.closed += 1
        if self.closing is not None:
            raise self.closing


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("pieces", [(), (b"",), (b"a",), (b"a", b"b")])
@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified"])
def test_close_is_called_once(
    run: Run, mode: Mode, pieces: tuple[bytes, ...], method: str, status: str
) -> None:
    results = []

    def app(environ: Environ, start_response: Any) -> Result:
        start_response(status, TEXT)
        results.append(Result(*pieces))
        return results[-1]

    asked(run, app, method=method, **mode)
    assert [result.closed for result in results] == [1]


@pytest.mark.parametrize("kind", [list, tuple])
def test_close_of_a_list_with_a_close(run: Run, mode: Mode, kind: type) -> None:
    closed = []

    class Closing(kind):  # type: ignore[misc]
        def close(self) -> None:
            closed.append(1)

    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return Closing([b"a"])

    assert asked(run, app, **mode).body == b"a"
    assert closed == [1]


@pytest.mark.parametrize("sent", [(), (b"a",), (b"a", b"b")])
def test_close_behind_an_error(
    run: Run, mode: Mode, sent: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    result = Result(*sent, ValueError("in the middle"), b"never")

    def app(environ: Environ, start_response: Any) -> Result:
        start_response("200 OK", TEXT)
        return result

    if sent:
        with pytest.raises((EOFError, ConnectionResetError)):
            asked(run, app, **mode)
        assert errors(caplog) == ["GET / failed ValueError"]
    else:
        assert_failed(asked(run, app, **mode), caplog, "ValueError")
    assert result.closed == 1


def test_close_behind_a_refused_head(run: Run, mode: Mode) -> None:
    """PEP 3333: "regardless of whether the current request completed normally"."""
    result = Result(b"a")
    assert asked(run, lambda environ, start: result, **mode).status == 500
    assert result.closed == 1


def test_an_error_in_close_is_logged_and_the_answer_stands(
    run: Run, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    result = Result(b"a", b"b", closing=ValueError("while closing"))

    def app(environ: Environ, start_response: Any) -> Result:
        start_response("200 OK", TEXT)
        return result

    assert asked(run, app, **mode).body == b"ab"
    assert result.closed == 1
    assert [said.split()[-1] for said in errors(caplog)] == ["ValueError"]


# Errors


@pytest.mark.parametrize("late", [False, True], ids=["called", "iterated"])
def test_an_error_before_the_head_is_a_plain_500(
    run: Run, mode: Mode, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [("X-Secret", "yes"), ("Content-Length", "5")])
        raise ZeroDivisionError("a secret")

    def generator(environ: Environ, start_response: Any) -> Iterable[bytes]:
        yield app(environ, start_response)

    answer = asked(run, generator if late else app, **mode)
    assert_failed(answer, caplog, "ZeroDivisionError")
    assert b"ecret" not in answer.head + answer.body
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info
    assert record.exc_info[2] is not None


def test_an_error_behind_the_head_ends_the_connection_unfinished(
    run: Run, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        yield b"some"
        raise ZeroDivisionError

    async def main(version: str) -> None:
        async with served(app, **mode) as server, await server.client() as client:
            await client.send(request(version=version) + request("/next"))
            with pytest.raises((EOFError, ConnectionResetError)):
                # With HTTP/1.0 only a reset tells that it is not all.
                await client.answer()

    run(main("1.1"))
    run(main("1.0"))
    assert errors(caplog) == ["GET / failed ZeroDivisionError"] * 2


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), KeyError("x")], ids=repr)
def test_whatever_an_application_raises_costs_one_connection(
    run: Run, mode: Mode, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/fine":
            return whole(environ, start_response)
        raise error

    async def main() -> None:
        async with (
            served(app, **mode) as server,
            await server.client() as client,
            await server.client() as other,
        ):
            assert (await other.get("/fine")).status == 200
            assert (await client.get("/bad")).status == 500
            assert (await other.get("/fine")).status == 200

    run(main())
    assert errors(caplog) == [f"GET /bad failed {type(error).__name__}"]
