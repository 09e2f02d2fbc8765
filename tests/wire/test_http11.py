"""The engine's parts: what they decide, what they hold, and what they cost."""

from __future__ import annotations

import contextlib
import gc
import re
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.errors import InvalidMessage
from pulsar.wire import headers, http11_render, http11_request
from pulsar.wire.http11 import (
    CHUNKED,
    UNTIL_CLOSE,
    IncompleteMessage,
    Limits,
    MessageRefused,
    RequestHeads,
    RequestParser,
    ResponseParser,
    answer_framing,
    field_line,
    has_framing_fields,
    last_chunk,
    options,
    render_chunk,
    render_request,
    render_response,
)

from .http11_corpus.engine import by_byte, outcomes, quick_and_careful
from .http11_corpus.load import cases

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def parser(limits: Limits | None = None) -> RequestParser:
    return RequestParser(RequestHeads(limits))


def refused(data: bytes, limits: Limits | None = None) -> MessageRefused:
    with pytest.raises(MessageRefused) as caught:
        parser(limits).feed(data)
    return caught.value


# -- heads


def test_a_head_is_found_and_shared() -> None:
    heads = RequestHeads()
    request = heads.find(HELLO)
    assert request is not None
    assert (request.method, request.target, request.minor, request.size) == ("GET", "/", 1, 27)
    assert request.body == 0
    assert HELLO not in heads.known  # most heads never come again
    request = heads.find(HELLO)
    assert request is not None
    assert heads.find(HELLO + HELLO) is request
    assert heads.find(HELLO + b"anything") is request
    assert heads.find(HELLO[:-1]) is None
    other = heads.find(HELLO.replace(b"/ ", b"/2 "))
    assert other is not None
    assert other.fields is request.fields
    assert repr(request) == "<Request GET />"


def test_the_environment_of_a_head() -> None:
    head = b"GET /a%20b?c=%20 HTTP/1.0\r\nHost: d\r\nContent-Type: e\r\nX-F: g\r\n\r\n"
    heads = RequestHeads(constants={"SERVER_PORT": "80", "SERVER_PROTOCOL": "?"})
    request = heads.find(head)
    assert request is not None
    assert request.environ == {
        "SERVER_PORT": "80",
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "c=%20",
        "RAW_URI": "/a%20b?c=%20",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "HTTP_HOST": "d",
        "CONTENT_TYPE": "e",
        "HTTP_X_F": "g",
    }


def test_fields_are_looked_up_in_any_case() -> None:
    request = RequestHeads().find(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nx:  2 \r\n\r\n")
    assert request is not None
    fields = request.fields
    assert list(fields) == [("host", "a"), ("x", "1"), ("x", "2")]
    assert len(fields) == 3
    assert fields.get("X") == "1, 2"
    assert fields.get_all("x") == ["1", "2"]
    assert fields.get("y") is None
    assert fields.get("y", "z") == "z"
    assert repr(fields) == "<Fields host, x, x>"
    assert repr(parser().trailers) == "<Fields none>"


def test_nothing_is_remembered_of_a_head_that_is_refused() -> None:
    heads = RequestHeads(Limits(body=5))
    for _ in range(3):
        assert heads.find(POST) is None
        with pytest.raises(MessageRefused):
            RequestParser(heads).feed(POST)
    assert heads.find(HELLO) is not None


def test_what_is_remembered_is_bounded() -> None:
    heads = RequestHeads()
    for number in range(3000):
        head = b"GET /%d HTTP/1.1\r\nHost: a\r\nX-%d: %d\r\n\r\n" % ((number,) * 3)
        assert heads.find(head) is not None
        assert heads.find(head) is heads.known[head]
        render_response(f"200 {number}", [(f"X-{number}", str(number))])
    assert len(heads.known) <= http11_request._CACHED
    assert len(heads._rests) <= http11_request._CACHED
    assert len(heads._seen) <= http11_request._SEEN
    for cache in (headers._names, headers._fields, headers._lines):
        assert len(cache) <= headers._CACHED
    assert len(http11_render._status_lines) <= http11_render._CACHED


def test_what_is_long_is_not_remembered() -> None:
    heads = RequestHeads()
    long = b"x" * 3000
    for head in (
        b"GET /" + long + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + long + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + long + b": y\r\n\r\n",
    ):
        assert heads.find(head) is not None
        assert heads.find(head) is not None
    assert all(len(key) <= http11_request.KNOWN_LENGTH for key in heads.known)
    assert all(len(key) <= http11_request.KNOWN_LENGTH for key in heads._rests)
    assert all(len(key) <= headers._CACHED_LENGTH for key in (*headers._names, *headers._fields))
    assert field_line("X", "y" * 300) == b"X: " + b"y" * 300 + b"\r\n"
    assert ("X", "y" * 300) not in headers._lines


# -- parsers


def test_a_body_comes_in_pieces() -> None:
    heads = RequestHeads()
    request = heads.find(POST)
    reading = RequestParser(heads, request)
    assert reading.request is request
    assert reading.read() == b""
    assert reading.feed(b"01234") == b""
    assert reading.read() == b"01234"
    assert reading.feed(b"567") == b""
    assert not reading.complete
    assert reading.feed(b"89" + HELLO) == HELLO
    assert reading.complete
    assert reading.read() == b"56789"
    assert reading.feed(HELLO) == HELLO


def test_a_large_piece_is_not_copied() -> None:
    reading = parser()
    reading.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    piece = bytes(65536)
    reading.feed(piece)
    assert reading.read() is piece


def test_the_head_is_there_before_the_body() -> None:
    reading = parser()
    for byte in by_byte(POST)[:-1]:
        reading.feed(byte)
        assert reading.request is None
    reading.feed(POST[-1:])
    assert reading.request is not None
    assert reading.request.body == 10
    assert not reading.complete


@pytest.mark.parametrize("way", ["quick", "careful"])
def test_what_counts_as_a_beginning(way: str) -> None:
    reading = RequestParser(quick_and_careful()[way])
    assert not reading.started
    reading.feed(b"\r")
    assert not reading.started
    reading.feed(b"\n")
    assert not reading.started
    reading.eof()
    reading.feed(b"G")
    assert reading.started
    with pytest.raises(IncompleteMessage, match="ended its side inside a head"):
        reading.eof()
    reading.feed(POST[1:])
    with pytest.raises(IncompleteMessage, match="ended its side inside a body"):
        reading.eof()
    reading.feed(b"0123456789")
    reading.eof()


@pytest.mark.parametrize("bad", [b"?", b"G\0", POST + b"", CHUNKS + b"x\r\n"])
def test_the_end_behind_an_error_is_that_error(bad: bytes) -> None:
    reading = parser(Limits(body=5))
    with pytest.raises(MessageRefused) as first:
        reading.feed(bad + b"\r\n\r\n")
    with pytest.raises(MessageRefused) as second:
        reading.eof()
    assert first.value is not second.value
    assert str(first.value) == str(second.value)
    assert first.value.status == second.value.status


def test_an_error_is_a_sentence_without_the_peers_bytes() -> None:
    for case in cases():
        if case.refuse is None:
            continue
        reading = parser() if case.side == "request" else ResponseParser(case.to)
        data = case.send
        with pytest.raises(MessageRefused) as caught:
            while True:
                data = reading.feed(data)
                if reading.complete:
                    reading = parser()
        assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,.:'*/-]+\.", str(caught.value)), case


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", "There is a bare CR in a header line."),
        (b"GET / HTTP/1.1\r\nHost: a\x0bb\r\n\r\n", "There is the control character 0x0B in a"),
        (b"GET / HTTP/1.1\n", "There is a bare LF in the start line."),
        (b"GET /\0", "There is a NUL in the start line."),
        (CHUNKS + b"1\n", "There is a bare LF in a chunk's size."),
        (CHUNKS + b"0\r\nX: \x7f", "There is a DEL in a trailer."),
        (b"GET / HTTP/1.1\r\n" + b"X" * 9000, "A header line is too long."),
    ],
)
def test_an_error_names_what_is_wrong(data: bytes, sentence: str) -> None:
    assert str(refused(data)).startswith(sentence)


def test_limits_are_the_callers() -> None:
    limits = Limits(start_line=20, field=20, fields=2, head=49, body=4, chunk_extensions=4)
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    assert refused(b"GET /1234567 HTTP/1.1", limits).status == 414
    assert refused(head + b"X: 345678901234567890\r\n\r\n", limits).status == 431
    assert refused(head + b"X: y\r\nX: y\r\n\r\n", limits).status == 431
    assert refused(head + b"X: 45678901234567890\r\n\r\n", limits).status == 431
    assert refused(head + b"Content-Length: 5\r\n\r\n", limits).status == 413
    chunks = Limits(body=4, chunk_extensions=4)
    assert refused(CHUNKS + b"5\r\n", chunks).status == 413
    assert refused(CHUNKS + b"3\r\nabc\r\n2\r\nde\r\n", chunks).status == 413
    assert refused(CHUNKS + b"1;ab\r\nx\r\n1;cd\r\n", chunks).status == 400
    response = ResponseParser("GET", Limits(body=4))
    response.feed(b"HTTP/1.1 200 OK\r\n\r\nabcd")
    with pytest.raises(MessageRefused) as caught:
        response.feed(b"e")
    assert caught.value.status == 502


def test_connect_is_let_through_for_a_proxy() -> None:
    reading = parser(Limits(connect=True))
    tail = reading.feed(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n\x16\x03")
    assert tail == b"\x16\x03"
    assert reading.complete
    assert reading.request is not None
    assert (reading.request.authority, reading.request.path) == ("a.example:443", "")
    with_body = b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
    assert refused(with_body, Limits(connect=True)).status == 400


def test_what_follows_an_upgrade_of_the_protocol_is_given_back() -> None:
    response = ResponseParser("GET")
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    assert response.feed(head + b"\x81\x00") == b"\x81\x00"
    assert response.complete
    assert response.response is not None
    assert response.response.fields.get("upgrade") == "x"


# -- what to send


@pytest.mark.parametrize(
    ("method", "minor", "status", "length", "keep_alive", "wanted"),
    [
        ("GET", 1, 200, 5, True, (5, True)),
        ("GET", 1, 200, 0, True, (0, True)),
        ("GET", 1, 200, 5, False, (5, False)),
        ("GET", 1, 200, None, True, (CHUNKED, True)),
        ("GET", 1, 200, None, False, (CHUNKED, False)),
        ("GET", 0, 200, 5, True, (5, True)),
        ("GET", 0, 200, None, True, (UNTIL_CLOSE, False)),
        ("HEAD", 1, 200, 5, True, (0, True)),
        ("HEAD", 1, 200, None, True, (0, True)),
        ("HEAD", 0, 200, None, True, (0, True)),
        ("GET", 1, 204, None, True, (0, True)),
        ("GET", 1, 304, 5, True, (0, True)),
        ("GET", 0, 304, None, True, (0, True)),
        ("GET", 1, 103, None, True, (0, True)),
        ("CONNECT", 1, 200, None, True, (0, True)),
        ("CONNECT", 1, 403, 5, True, (5, True)),
    ],
)
def test_how_an_answer_is_framed(
    method: str,
    minor: int,
    status: int,
    length: int | None,
    keep_alive: bool,
    wanted: tuple[int, bool],
) -> None:
    assert answer_framing(method, minor, status, length, keep_alive) == wanted


def test_which_answers_say_how_long_they_are() -> None:
    statuses = (100, 103, 200, 204, 205, 304, 404, 500)
    assert [s for s in statuses if has_framing_fields(s)] == [200, 205, 304, 404, 500]


@pytest.mark.parametrize(
    ("connection", "wanted"),
    [
        (None, []),
        ("", [""]),
        ("close", ["close"]),
        ("Keep-Alive", ["keep-alive"]),
        ("Upgrade ,\tHTTP2-Settings", ["http2-settings", "upgrade"]),
    ],
)
def test_options_of_a_connection(connection: str | None, wanted: list[str]) -> None:
    assert sorted(options(connection)) == wanted


def test_heads_are_rendered() -> None:
    head = render_response("200 OK", [("A", "b"), ("C", "")], b"Date: now\r\n")
    assert head == b"HTTP/1.1 200 OK\r\nA: b\r\nC: \r\nDate: now\r\n\r\n"
    assert head == render_response("200 OK", [("A", "b"), ("C", "")], b"Date: now\r\n")
    assert render_response("299 ", []) == b"HTTP/1.1 299 \r\n\r\n"
    head = render_request("GET", "/a?b", [("Host", "c\xe9")])
    assert head == b"GET /a?b HTTP/1.1\r\nHost: c\xe9\r\n\r\n"
    assert render_request("CONNECT", "a:1", []) == b"CONNECT a:1 HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(
    "render",
    [
        lambda: render_response("200 O\r\nK", []),
        lambda: render_response("200 O\u20ac", []),
        lambda: render_response("20 OK", []),
        lambda: render_response("OK", []),
        lambda: render_response("", []),
        lambda: render_response("200 OK\n", []),
        lambda: render_response("200 OK", [("", "a")]),
        lambda: render_response("200 OK", [("A:", "b")]),
        lambda: render_response("200 OK", [("A B", "b")]),
        lambda: render_response("200 OK", [("A\r\nB", "b")]),
        lambda: render_response("200 OK", [("\xc4", "b")]),
        lambda: render_response("200 OK", [("A", "b\r\nC: d")]),
        lambda: render_response("200 OK", [("A", "b\n")]),
        lambda: render_response("200 OK", [("A", "b\0")]),
        lambda: render_response("200 OK", [("A", "b\x7f")]),
        lambda: render_response("200 OK", [("A", "\u20ac")]),
        lambda: render_response("200 OK", [("A", 1)]),  # type: ignore[list-item]
        lambda: render_response("200 OK", [("A", None)]),  # type: ignore[list-item]
        lambda: render_response("200 OK", [("A", b"b")]),  # type: ignore[list-item]
        lambda: render_response("200 OK", [("A", ["b"])]),  # type: ignore[list-item]
        lambda: render_response("200 OK", [(b"A", "b")]),  # type: ignore[list-item]
        lambda: render_request("GET", "/a b", []),
        lambda: render_request("GET", "/a\r\nB: c", []),
        lambda: render_request("GET", "", []),
        lambda: render_request("GET", "/\xe9", []),
        lambda: render_request("GET", "/#a", []),
        lambda: render_request("G T", "/", []),
        lambda: render_request("GET", "/", [("A", "b\r")]),
        lambda: last_chunk([("A", "b\r\n")]),
        lambda: last_chunk([("Content-Length", "1")]),
        lambda: last_chunk([("HOST", "a")]),
    ],
)
def test_what_would_be_another_head_is_not_rendered(render: Callable[[], Any]) -> None:
    for _ in range(2):  # nothing of it is kept, either
        with pytest.raises(InvalidMessage):
            render()


def test_chunks_are_rendered() -> None:
    assert render_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert render_chunk(b"") == b""
    assert last_chunk() == b"0\r\n\r\n"
    assert last_chunk([("X-Sum", "1")]) == b"0\r\nX-Sum: 1\r\n\r\n"


# -- what it costs


def test_a_thousand_requests_in_one_packet_come_one_after_the_other() -> None:
    heads = RequestHeads()
    packet = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(1000))
    tail, targets = packet, []
    gc.collect()
    tracemalloc.start()
    try:
        while tail:
            reading = RequestParser(heads)
            tail = reading.feed(tail)
            assert reading.request is not None
            targets.append(reading.request.target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert targets == [f"/{number}" for number in range(1000)]
    assert peak < 2_000_000


def test_parsers_leave_no_work_to_the_collector() -> None:
    sent = [HELLO, POST + b"0123456789", CHUNKS + b"0\r\n\r\n", b"GET ? HTTP/1.1\r\n\r\n"]
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for heads in quick_and_careful().values():
            for data in sent:
                with contextlib.suppress(MessageRefused):
                    RequestParser(heads).feed(data)
        gc.collect()
        assert [one for one in gc.garbage if isinstance(one, RequestParser)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


# Each is the worst of its kind. In time that grows with its square, one takes minutes.
WORST = {
    "one chunk of a byte after the other": CHUNKS + b"1\r\nx\r\n" * 100_000,
    "chunks with extensions": CHUNKS + b"1;a\r\nx\r\n" * 5000,
    "extensions that end badly": CHUNKS + b"1" + b";a=b" * 2000 + b"\x00",
    "white space in an extension": CHUNKS + b"1;" + b" \t" * 4000,
    "quotation that does not end": CHUNKS + b'1;a="' + b"\\a" * 4000,
    "zeros": CHUNKS + b"0" * 8000,
    "names": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * 8180 + b" : y\r\n",
    "escapes in Host": b"GET / HTTP/1.1\r\nHost: " + b"%41" * 2700 + b"%\r\n\r\n",
    "a host in the target": b"GET http://" + b"a" * 8000 + b"@/ HTTP/1.1\r\n\r\n",
    "options": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + b"," * 8000 + b"\r\n\r\n",
    "cookies": b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"Cookie: " + b"a" * 600 + b"\r\n") * 99,
    "requests": HELLO * 2000,
}


@pytest.mark.parametrize("name", WORST)
def test_bad_input_costs_no_more_time_than_good(name: str) -> None:
    data = WORST[name]
    began = time.process_time()
    outcomes([data])
    outcomes(by_byte(data[:20_000]))
    assert time.process_time() - began < 10
